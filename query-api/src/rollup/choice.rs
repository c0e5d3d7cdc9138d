//! Which summaries stand for their rows (ROLL-5).
//!
//! That of a stretch of a series does when this lies in one bucket, none of its rows was deleted or corrected, and no other reading of the series
//! lies in between: of a file without summaries, of memory, of another stretch.

use wattlake_config::MetricKind;
use wattlake_engine::{StretchSummary, Summary};

use super::{
    aggregate::{Rules, Sample},
    bucket::Buckets,
};

/// Finds out which summaries of a series stand for their rows.
pub(super) struct Choice<'a> {
    pub rules: Rules,
    pub buckets: &'a Buckets,
    pub window: (i64, i64),
    /// The readings of the series in files without summaries and in memory, in order.
    pub others: &'a [Sample],
    /// Times of readings in memory, bad ones included, that may take the place of rows in files, in order.
    pub late: &'a [i64],
}

impl Choice<'_> {
    /// The stretches that lie in the window, in order of time, and whether the summary of each stands for its rows.
    pub(super) fn of<'d, P>(
        &self,
        stretches: impl Iterator<Item = (P, &'d StretchSummary)>,
    ) -> Vec<(P, &'d StretchSummary, bool)> {
        let (from, to) = self.window;
        let mut near: Vec<(P, &StretchSummary, Summary, bool)> = Vec::new();
        for (place, stretch) in stretches {
            let Some(summary) = stretch.summary else { continue };
            if summary.last.ts < from || summary.first.ts >= to {
                continue;
            }
            let is_same = stretch.is_whole
                && stretch.kind == self.rules.kind
                && stretch.cadence.saturating_mul(1_000_000) == self.rules.cadence;
            near.push((place, stretch, summary, is_same && self.fits(&summary)));
        }
        near.sort_by_key(|(_, _, summary, _)| summary.first.ts);
        // The one that reaches farthest of those before.
        let mut reach: Option<usize> = None;
        for i in 0..near.len() {
            if let Some(before) = reach
                && near[before].2.last.ts >= near[i].2.first.ts
            {
                near[before].3 = false;
                near[i].3 = false;
            }
            if reach.is_none_or(|before| near[before].2.last.ts < near[i].2.last.ts) {
                reach = Some(i);
            }
        }
        near.into_iter().map(|(place, stretch, _, counts)| (place, stretch, counts)).collect()
    }

    fn fits(&self, summary: &Summary) -> bool {
        let (first, last) = (summary.first.ts, summary.last.ts);
        let next = self.others.partition_point(|sample| sample.ts < first);
        let next_late = self.late.partition_point(|ts| *ts < first);
        if self.others.get(next).is_some_and(|sample| sample.ts <= last)
            || self.late.get(next_late).is_some_and(|ts| *ts <= last)
        {
            return false;
        }
        if last < self.rules.from {
            // Only its end reaches in, and how the register got there must not matter.
            return self.rules.kind != MetricKind::Register || summary.is_rising;
        }
        if first >= self.rules.to {
            return true;
        }
        let bucket = self.buckets.index(first);
        first >= self.rules.from
            && last < self.rules.to
            && bucket.is_some()
            && bucket == self.buckets.index(last)
    }
}

#[cfg(test)]
mod tests {
    use wattlake_catalog::{EntityId, Quality};
    use wattlake_engine::Point;

    use super::{super::aggregate::Aggregation, *};

    /// A day of a register with readings at these times.
    fn day(times: &[i64]) -> StretchSummary {
        let point = |ts: &i64| Point { ts: *ts, value: *ts as f64 };
        let mut summary = Summary::of(point(&times[0]), false);
        times[1..].iter().for_each(|ts| summary.push(point(ts), false, MetricKind::Register, 20));
        StretchSummary {
            entity: EntityId(uuid::Uuid::nil()),
            kind: MetricKind::Register,
            cadence: 0,
            rows: 0..times.len() as u64,
            is_whole: true,
            summary: Some(summary),
        }
    }

    /// Whether each of the days stands for its rows; the range is 100 to 300 with an edge at 200.
    fn stand(days: &[StretchSummary], others: &[i64], late: &[i64]) -> Vec<bool> {
        let buckets = Buckets { edges: vec![100, 200, 300] };
        let sample = |ts: &i64| Sample { ts: *ts, value: 0.0, quality: Quality::Good };
        let others: Vec<_> = others.iter().map(sample).collect();
        let aggregation = Aggregation::Default;
        let rules = Rules { kind: MetricKind::Register, aggregation, cadence: 0, from: 100, to: 300 };
        let choice = Choice { rules, buckets: &buckets, window: (90, 310), others: &others, late };
        let mut chosen = choice.of(days.iter().enumerate());
        chosen.sort_by_key(|(place, _, _)| *place);
        chosen.into_iter().map(|(_, _, counts)| counts).collect()
    }

    #[test]
    fn a_day_stands_for_its_rows_only_when_nothing_lies_in_between() {
        let days = [day(&[110, 120, 130]), day(&[140, 150]), day(&[210, 220])];
        assert_eq!(stand(&days, &[], &[]), [true, true, true]);
        assert_eq!(stand(&days, &[125, 135], &[]), [false, true, true], "a row of another file");
        assert_eq!(stand(&days, &[], &[135, 150]), [true, false, true], "a late reading in memory");
        let interleaved = [day(&[110, 160]), day(&[120, 130]), day(&[150, 170]), day(&[180, 190])];
        assert_eq!(stand(&interleaved, &[], &[]), [false, false, false, true]);
    }

    #[test]
    fn a_day_stands_for_its_rows_only_inside_one_bucket_and_as_it_is_understood_now() {
        let days = [day(&[190, 210]), day(&[80, 95]), day(&[305, 320]), day(&[295, 301])];
        assert_eq!(stand(&days, &[], &[]), [false, true, true, false]);
        let mut falling = day(&[80, 95]);
        if let Some(summary) = &mut falling.summary {
            summary.is_rising = false;
        }
        assert_eq!(stand(&[falling], &[], &[]), [false], "how the register got there matters");
        assert!(stand(&[day(&[10, 20]), day(&[400, 410])], &[], &[]).is_empty(), "too far away to reach in");
        let other_kind = StretchSummary { kind: MetricKind::Interval, ..day(&[110, 120]) };
        let other_cadence = StretchSummary { cadence: 900, ..day(&[130, 140]) };
        let corrected = StretchSummary { is_whole: false, ..day(&[150, 160]) };
        assert_eq!(stand(&[other_kind, other_cadence, corrected], &[], &[]), [false, false, false]);
    }
}
