//! What consecutive readings of one series amount to, in a few numbers.
//!
//! Summaries of neighbouring stretches are put together by whoever knows the buckets: what lies between the last reading of one and
//! the first of the next is in neither.

use wattlake_catalog::Quality;
use wattlake_config::MetricKind;

use crate::{
    register::{GLITCH_LASTS, step},
    rows::Rows,
};

/// A gauge's reading stands for this many cadences at most when the next one is missing; increases of a register over more are spread.
pub const HOLD_CADENCES: i64 = 2;

/// A value at an instant, in microseconds since 1970 UTC.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    pub ts: i64,
    pub value: f64,
}

/// One or more consecutive readings of one series, bad ones left out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    pub count: u64,
    /// Readings of quality `estimated`.
    pub estimated: u64,
    pub first: Point,
    pub last: Point,
    pub min: f64,
    pub max: f64,
    pub sum: f64,
    /// Of an extensive gauge: the integral from the first to the last reading over the time that readings stand for (value times microseconds), and that
    /// time in microseconds.
    pub weighted: f64,
    pub covered: i64,
    /// Of a register: what it counted from the first reading to the last one that is no glitch; `None` when there are not two, or when it was set
    /// back.
    pub increase: Option<f64>,
    /// Steps of the register over more time than a reading stands for: their increase is estimated.
    pub gaps: u64,
    /// The last reading of the register that is no glitch. Where it is not the last one of all, readings around these decide what they count.
    pub register: Point,
    /// Since when the register shows less than it did, but no reset, while that may be a glitch; [`i64::MIN`]: it is not known what it counted.
    pub(crate) fallen: Option<i64>,
    /// The register neither fell nor had gaps: the increase is the last value without the first.
    pub is_rising: bool,
    /// Of an extensive gauge: microseconds between two readings when they are evenly spaced and each stands until the next.
    pub step: Option<i64>,
}

impl Summary {
    pub fn of(point: Point, is_estimated: bool) -> Self {
        Self {
            count: 1,
            estimated: u64::from(is_estimated),
            first: point,
            last: point,
            min: point.value,
            max: point.value,
            sum: point.value,
            weighted: 0.0,
            covered: 0,
            increase: None,
            gaps: 0,
            register: point,
            fallen: None,
            is_rising: true,
            step: None,
        }
    }

    /// Takes the next row of a series into what is summed up so far; bad ones are left out.
    pub(crate) fn take_row(so_far: &mut Option<Self>, rows: &Rows, row: usize, kind: MetricKind, hold: i64) {
        let is_estimated = match rows.quality[row] {
            Quality::Bad => return,
            Quality::Good => false,
            Quality::Estimated => true,
        };
        let point = Point { ts: rows.ts[row], value: rows.value[row] };
        match so_far {
            Some(summary) => summary.push(point, is_estimated, kind, hold),
            None => *so_far = Some(Self::of(point, is_estimated)),
        }
    }

    /// Takes the next reading of a metric of this kind. One stands until the next, at most for `hold` microseconds.
    pub fn push(&mut self, point: Point, is_estimated: bool, kind: MetricKind, hold: i64) {
        match kind {
            MetricKind::GaugeExtensive => self.weigh(point, hold),
            MetricKind::Register => self.count_up(point, hold),
            MetricKind::GaugeIntensive | MetricKind::Interval => {}
        }
        self.count += 1;
        self.estimated += u64::from(is_estimated);
        self.last = point;
        self.min = self.min.min(point.value);
        self.max = self.max.max(point.value);
        self.sum += point.value;
    }

    /// Whether it says the same as another one, but for the rounding of sums.
    pub(crate) fn is_like(&self, other: &Self, kind: MetricKind) -> bool {
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs().max(b.abs());
        let near_point = |a: Point, b: Point| a.ts == b.ts && near(a.value, b.value);
        let is_same = (self.count, self.estimated) == (other.count, other.estimated)
            && near_point(self.first, other.first)
            && near_point(self.last, other.last)
            && near(self.min, other.min)
            && near(self.max, other.max);
        is_same
            && match kind {
                MetricKind::GaugeExtensive => {
                    // The integral of readings of both signs may be near zero.
                    let most = self.min.abs().max(self.max.abs()) * self.covered as f64;
                    let is_near = (self.weighted - other.weighted).abs() <= 1e-9 * most;
                    self.covered == other.covered && is_near
                }
                MetricKind::Register => {
                    let increase = self
                        .increase
                        .zip(other.increase)
                        .is_none_or(|(a, b)| (a - b).abs() <= 1e-9 * self.max.abs().max(self.min.abs()));
                    increase
                        && self.increase.is_some() == other.increase.is_some()
                        && self.gaps == other.gaps
                        && near_point(self.register, other.register)
                }
                MetricKind::GaugeIntensive | MetricKind::Interval => {
                    let most = self.min.abs().max(self.max.abs()) * self.count as f64;
                    (self.sum - other.sum).abs() <= 1e-9 * most
                }
            }
    }

    fn weigh(&mut self, point: Point, hold: i64) {
        // Times in SQL may be any.
        let span = point.ts.saturating_sub(self.last.ts);
        let covered = span.min(hold);
        self.weighted += self.last.value * covered as f64;
        self.covered = self.covered.saturating_add(covered);
        let is_even = span <= hold && (self.count == 1 || self.step == Some(span));
        self.step = is_even.then_some(span);
    }

    fn count_up(&mut self, point: Point, hold: i64) {
        let step = step(self.register.value, point.value);
        if let Some(since) = self.fallen {
            if since == i64::MIN {
                return;
            }
            let is_back = point.value >= self.register.value;
            if point.ts.saturating_sub(since) > GLITCH_LASTS || (step.is_some() && !is_back) {
                // It was set back, or may have been: what waited counts after all, but was not kept.
                (self.increase, self.gaps, self.register) = (None, 0, self.first);
                self.fallen = Some(i64::MIN);
                return;
            }
        }
        let Some(step) = step else {
            self.is_rising = false;
            self.fallen.get_or_insert(point.ts);
            return;
        };
        self.fallen = None;
        let is_gap = point.ts.saturating_sub(self.register.ts) > hold;
        self.increase = Some(self.increase.unwrap_or(0.0) + step);
        self.gaps += u64::from(is_gap);
        self.is_rising &= !is_gap && point.value >= self.register.value;
        self.register = point;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(kind: MetricKind, points: &[(i64, f64)], hold: i64) -> Summary {
        let mut points = points.iter().map(|(ts, value)| Point { ts: *ts, value: *value });
        let mut summary = Summary::of(points.next().expect("one"), false);
        points.for_each(|point| summary.push(point, false, kind, hold));
        summary
    }

    #[test]
    fn readings_stand_until_the_next_but_not_for_ever() {
        let even = summary(MetricKind::GaugeExtensive, &[(0, 1.0), (10, 2.0), (20, 4.0)], 20);
        assert_eq!((even.weighted, even.covered, even.step), (30.0, 20, Some(10)));
        let gap = summary(MetricKind::GaugeExtensive, &[(0, 1.0), (10, 2.0), (50, 4.0)], 20);
        assert_eq!((gap.weighted, gap.covered, gap.step), (50.0, 30, None));
        assert_eq!((gap.first.value, gap.last.ts, gap.min, gap.max, gap.sum), (1.0, 50, 1.0, 4.0, 7.0));
    }

    #[test]
    fn registers_are_reset_and_have_glitches_and_gaps() {
        let rising = summary(MetricKind::Register, &[(0, 100.0), (10, 101.0), (20, 103.0)], 20);
        assert_eq!((rising.increase, rising.is_rising, rising.gaps), (Some(3.0), true, 0));
        let reset = summary(MetricKind::Register, &[(0, 100.0), (10, 2.0)], 20);
        assert_eq!((reset.increase, reset.is_rising), (Some(2.0), false));
        let glitch = summary(MetricKind::Register, &[(0, 100.0), (10, 99.0)], 20);
        assert_eq!((glitch.increase, glitch.register.ts, glitch.is_rising), (None, 0, false));
        let back = summary(MetricKind::Register, &[(0, 100.0), (10, 99.0), (10 + GLITCH_LASTS, 101.0)], 20);
        assert_eq!((back.increase, back.register, back.gaps), (Some(1.0), back.last, 1));
        let late = [(0, 100.0), (10, 99.0), (11 + GLITCH_LASTS, 101.0), (12 + GLITCH_LASTS, 102.0)];
        let set_back = summary(MetricKind::Register, &late, 20);
        assert_eq!((set_back.increase, set_back.register.ts, set_back.count), (None, 0, 4));
        let reset_below =
            summary(MetricKind::Register, &[(0, 100.0), (10, 99.0), (20, 1.0), (30, 102.0)], 20);
        assert_eq!((reset_below.increase, reset_below.register.ts, reset_below.count), (None, 0, 4));
        let gap = summary(MetricKind::Register, &[(0, 100.0), (50, 104.0)], 20);
        assert_eq!((gap.increase, gap.gaps, gap.is_rising), (Some(4.0), 1, false));
    }
}
