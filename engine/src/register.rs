//! What a register counts from reading to reading (ROLL-4).
//!
//! A fall to less than half is a reset: what it shows then was counted since. A smaller fall is a glitch when the register is back at what it
//! showed within [`GLITCH_LASTS`]: glitches count for nothing. Else it was set back, as when a used meter takes the place of another: the fall
//! counts nothing, and counting goes on from there.
//!
//! So a part of a history gives the same as the whole, from [`GLITCH_LASTS`] after its first reading on: if the whole takes that one for a
//! glitch, there is a first reading within that time which is at least what the register showed before; it counts for both.

use std::collections::VecDeque;

use crate::summary::Point;

/// A register that falls below this share of its last value was reset.
const RESET_BELOW: f64 = 0.5;
/// A glitch lasts no longer than this, microseconds: meters read once a day have time to say so.
pub const GLITCH_LASTS: i64 = 2 * 86_400_000_000;

/// What a register counted between two readings; `None`: the later one is a smaller fall.
pub(crate) fn step(before: f64, value: f64) -> Option<f64> {
    if value >= before {
        Some(value - before)
    } else if value < before * RESET_BELOW {
        Some(value)
    } else {
        None
    }
}

/// What was counted from one reading to another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    pub from: Point,
    pub to: Point,
    pub increase: f64,
}

/// Takes the readings of a register in order of time.
#[derive(Clone, Debug, Default)]
pub struct Register {
    /// The last reading that counts.
    last: Option<Point>,
    waiting: Waiting,
    steps: VecDeque<Step>,
}

/// Readings of which it is not known whether they count; the first is a smaller fall.
#[derive(Clone, Debug, Default)]
struct Waiting {
    points: VecDeque<Point>,
    /// Those that none after them exceeds: the first is the highest of all.
    highest: VecDeque<Point>,
}

impl Register {
    /// Takes the next reading.
    pub fn push(&mut self, point: Point) {
        if self.waiting.points.is_empty() {
            let Some(last) = self.last else {
                self.last = Some(point);
                return;
            };
            if let Some(increase) = step(last.value, point.value) {
                self.take(last, point, increase);
                return;
            }
        }
        self.settle(point.ts);
        self.waiting.push(point);
        self.settle(i64::MIN);
    }

    /// Nothing comes after what was taken.
    pub fn finish(&mut self) {
        self.settle(i64::MAX);
    }

    /// Takes several readings at once that end with one that counts. `None`: it is not sure that the first one counts.
    pub fn jump(&mut self, first: Point, last: Point) -> Option<()> {
        self.push(first);
        if self.last != Some(first) {
            return None;
        }
        self.last = Some(last);
        Some(())
    }

    /// What has been counted since the last call.
    pub fn steps(&mut self) -> impl Iterator<Item = Step> {
        self.steps.drain(..)
    }

    fn take(&mut self, from: Point, to: Point, increase: f64) {
        self.steps.push_back(Step { from, to, increase });
        self.last = Some(to);
    }

    /// Decides about those that wait, as far as they and the time can tell.
    fn settle(&mut self, now: i64) {
        while let (Some(next), Some(last)) = (self.waiting.points.front().copied(), self.last) {
            if let Some(increase) = step(last.value, next.value) {
                self.take(last, next, increase);
            } else if !self.waiting.reach(last.value) {
                if now.saturating_sub(next.ts) <= GLITCH_LASTS {
                    return;
                }
                self.last = Some(next);
            }
            self.waiting.pop();
        }
    }
}

impl Waiting {
    fn push(&mut self, point: Point) {
        while self.highest.pop_back_if(|known| known.value < point.value).is_some() {}
        self.points.push_back(point);
        self.highest.push_back(point);
    }

    fn pop(&mut self) {
        let Some(point) = self.points.pop_front() else { return };
        self.highest.pop_front_if(|known| known.ts == point.ts);
    }

    fn reach(&self, value: f64) -> bool {
        self.highest.front().is_some_and(|point| point.value >= value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: i64 = 3_600_000_000;

    fn counted(readings: &[(i64, f64)]) -> Vec<(i64, i64, f64)> {
        let mut register = Register::default();
        let points = readings.iter().map(|(hour, value)| Point { ts: hour * HOUR, value: *value });
        points.for_each(|point| register.push(point));
        register.finish();
        register.steps().map(|step| (step.from.ts / HOUR, step.to.ts / HOUR, step.increase)).collect()
    }

    /// The rule as it is written above, looking ahead from every reading.
    fn by_the_rule(readings: &[(i64, f64)]) -> Vec<(i64, i64, f64)> {
        let (mut steps, mut before) = (Vec::new(), readings[0]);
        for (i, (hour, value)) in readings.iter().enumerate().skip(1) {
            let is_small_fall = |value: f64| value < before.1 && value >= before.1 / 2.0;
            if is_small_fall(*value) {
                let mut soon = readings[i + 1..].iter().take_while(|(later, _)| later - hour <= 48);
                if soon.any(|(_, later)| *later >= before.1) {
                    continue;
                }
            } else {
                let increase = if *value >= before.1 { value - before.1 } else { *value };
                steps.push((before.0, *hour, increase));
            }
            before = (*hour, *value);
        }
        steps
    }

    #[test]
    fn a_small_fall_is_a_glitch_only_when_the_register_comes_back_in_time() {
        assert_eq!(counted(&[(0, 100.0), (1, 99.0), (49, 101.0)]), [(0, 49, 1.0)]);
        assert_eq!(counted(&[(0, 100.0), (1, 99.0), (50, 101.0)]), [(1, 50, 2.0)]);
        assert_eq!(counted(&[(0, 100.0), (1, 60.0), (2, 29.0), (3, 30.0)]), [(1, 2, 29.0), (2, 3, 1.0)]);
        // A used meter takes the place of another.
        let replaced: Vec<_> =
            (0..100).map(|h| (h, if h < 10 { 1000.0 } else { 700.0 } + h as f64)).collect();
        let steps = counted(&replaced);
        assert_eq!(steps.len(), 98);
        assert!(steps.iter().all(|step| step.2 == 1.0) && steps.iter().all(|step| step.1 != 10));
    }

    #[test]
    fn a_register_that_runs_backwards_for_long_is_not_slow() {
        let mut register = Register::default();
        for second in 0..400_000 {
            register.push(Point { ts: second * 1_000_000, value: 1e9 - second as f64 });
            assert!(register.waiting.points.len() <= 172_802);
        }
        register.finish();
        assert_eq!(register.steps().count(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn steps_are_those_of_the_rule(
            readings in prop::collection::vec((1i64..30, prop_oneof![6 => 0i32..20, 2 => -30i32..0, 1 => -300i32..0]), 1..80),
            cut in any::<prop::sample::Index>(),
        ) {
            let (mut hour, mut value) = (0, 200);
            let readings: Vec<_> = readings.into_iter().map(|(pause, step)| {
                hour += pause;
                value = (value + step).max(0);
                (hour, f64::from(value))
            }).collect();
            let steps = by_the_rule(&readings);
            prop_assert_eq!(counted(&readings), &*steps);
            // A part of it says the same after some time.
            let part = &readings[cut.index(readings.len())..];
            let sure = |steps: &[(i64, i64, f64)]| -> Vec<_> { steps.iter().filter(|step| step.0 >= part[0].0 + 48).copied().collect() };
            prop_assert_eq!(sure(&counted(part)), sure(&steps));
        }
    }
}
