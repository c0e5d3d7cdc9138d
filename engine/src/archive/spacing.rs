//! Where in a series the readings of a time lie, without looking at their times.
//!
//! Most devices report evenly: a straight line from the first reading to the last one tells when the n-th was taken, and two numbers
//! tell how far any reading lies off that line. So a search for a time goes no further than these; a learned index of one segment.

use std::ops::Range;

/// Times kept of a series: of longer ones every second, fourth and so on, which widens what is found by as many rows.
const SAMPLES_MAX: usize = 1 << 16;

/// How far the readings of a series lie off the line, microseconds, neither negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spacing {
    /// The farthest that one was taken before the line says.
    pub early: i64,
    /// The farthest that one was taken after it.
    pub late: i64,
}

impl Spacing {
    /// Which of `rows` readings, the first and the last of which were taken at `first` and `last`, may have `from <= ts < to`: all
    /// that have, and as few others as the spacing allows.
    pub(super) fn rows_between(
        self,
        rows: u64,
        (first, last): (i64, i64),
        (from, to): (i64, i64),
    ) -> Range<u64> {
        if first >= to || last < from || rows == 0 {
            return 0..0;
        }
        let span = i128::from(last) - i128::from(first);
        if rows == 1 || span <= 0 {
            return 0..rows;
        }
        // The first row that the line puts at a time or later.
        let row_at = |ts: i128| -> u64 {
            let rows_before = (ts - i128::from(first)).max(0).saturating_mul(i128::from(rows - 1));
            let row = rows_before / span + i128::from(rows_before % span != 0);
            u64::try_from(row).unwrap_or(rows).min(rows)
        };
        let start = row_at(i128::from(from) - i128::from(self.late));
        let end = row_at(i128::from(to) + i128::from(self.early));
        start..end.max(start)
    }
}

/// Finds out the spacing of readings that come in order.
#[derive(Debug)]
pub(super) struct SpacingBuilder {
    /// The time of every `every`-th reading.
    samples: Vec<i64>,
    every: u64,
    rows: u64,
    last: i64,
}

impl Default for SpacingBuilder {
    fn default() -> Self {
        Self { samples: Vec::new(), every: 1, rows: 0, last: 0 }
    }
}

impl SpacingBuilder {
    /// Takes the next times.
    pub(super) fn push(&mut self, mut times: &[i64]) {
        self.last = times.last().copied().unwrap_or(self.last);
        while let Some(first) = times.first() {
            if self.samples.len() == SAMPLES_MAX {
                self.every *= 2;
                let mut is_kept = false;
                self.samples.retain(|_| {
                    is_kept = !is_kept;
                    is_kept
                });
            }
            if self.every == 1 {
                let (now, rest) = times.split_at(times.len().min(SAMPLES_MAX - self.samples.len()));
                self.samples.extend_from_slice(now);
                self.rows += now.len() as u64;
                times = rest;
            } else {
                if self.rows.is_multiple_of(self.every) {
                    self.samples.push(*first);
                }
                self.rows += 1;
                times = &times[1..];
            }
        }
    }

    /// The spacing of all that was taken; it starts anew.
    pub(super) fn finish(&mut self) -> Spacing {
        let done = std::mem::take(self);
        let Some(first) = done.samples.first().copied() else { return Spacing::default() };
        let steps = i128::from(done.rows.saturating_sub(1)).max(1);
        let a_sample = (i128::from(done.last) - i128::from(first)) * i128::from(done.every);
        // The line from sample to sample: it rises by the quotient, and by one more whenever remainders make up a whole.
        let (rise, rest) = (a_sample.div_euclid(steps), a_sample.rem_euclid(steps));
        let (mut line, mut parts) = (i128::from(first), 0);
        let (mut early, mut late) = (0, 0);
        let after = done.samples.iter().skip(1).chain([&done.last]);
        for (ts, next) in done.samples.iter().zip(after) {
            let here = line;
            line += rise;
            parts += rest;
            if parts >= steps {
                parts -= steps;
                line += 1;
            }
            // Readings between two samples lie between their times.
            let (latest, line_until) = if done.every == 1 { (*ts, here) } else { (*next, line) };
            early = early.max(line_until - i128::from(*ts));
            late = late.max(i128::from(latest) - here);
        }
        let micros = |far: i128| i64::try_from(far).unwrap_or(i64::MAX);
        Spacing { early: micros(early), late: micros(late) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spacing(times: &[i64], part: usize) -> Spacing {
        let mut builder = SpacingBuilder::default();
        times.chunks(part).for_each(|times| builder.push(times));
        builder.finish()
    }

    #[test]
    fn evenly_spaced_readings_are_found_exactly() {
        let times: Vec<i64> = (0..2880).map(|row| 1_000 + row * 900).collect();
        let spacing = spacing(&times, 1000);
        assert_eq!(spacing, Spacing::default());
        let all = (times[0], times[2879]);
        assert_eq!(spacing.rows_between(2880, all, (times[96], times[192])), 96..192);
        assert_eq!(spacing.rows_between(2880, all, (times[96] + 1, times[192] + 1)), 97..193);
        assert_eq!(spacing.rows_between(2880, all, (i64::MIN, i64::MAX)), 0..2880);
        assert_eq!(spacing.rows_between(2880, all, (all.1 + 1, i64::MAX)), 0..0);
    }

    #[test]
    fn of_a_day_that_is_missing_no_more_is_read_than_that() {
        let times: Vec<i64> = (0..2880).filter(|row| row / 96 != 10).collect();
        let found = spacing(&times, 64).rows_between(times.len() as u64, (0, 2879), (96 * 20, 96 * 21));
        assert!(found.end - found.start <= 3 * 96, "{found:?}");
    }

    #[test]
    fn of_long_series_samples_are_kept() {
        let mut builder = SpacingBuilder::default();
        let times: Vec<i64> = (0..5 * SAMPLES_MAX as i64).map(|row| row * 1_000_000).collect();
        times.chunks(999).for_each(|times| builder.push(times));
        assert!(builder.samples.len() <= SAMPLES_MAX);
        let spacing = builder.finish();
        let range = (times[100_000], times[100_100]);
        let found = spacing.rows_between(times.len() as u64, (0, times[times.len() - 1]), range);
        assert!(found.start <= 100_000 && found.end >= 100_100 && found.end - found.start < 150, "{found:?}");
    }

    #[test]
    fn of_long_series_nothing_is_missed() {
        let mut random = 1u64;
        let mut step = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Seconds, some minutes, and a gap now and then.
            match random >> 58 {
                0 => 50_000_000,
                1..8 => 300_000,
                _ => 1_000 + (random >> 40) as i64 % 50,
            }
        };
        let times: Vec<i64> = (0..3 * SAMPLES_MAX)
            .scan(0, |ts, _| {
                *ts += step();
                Some(*ts)
            })
            .collect();
        let (rows, ends) = (times.len(), (times[0], times[times.len() - 1]));
        let spacing = spacing(&times, 10_007);
        for start in (0..rows - 500).step_by(977) {
            let found = spacing.rows_between(rows as u64, ends, (times[start], times[start + 500]));
            assert!(found.start <= start as u64 && found.end >= start as u64 + 500, "{start}: {found:?}");
        }
    }

    proptest! {
        /// Every reading of a time lies in the rows that are found.
        #[test]
        fn nothing_is_missed(
            steps in prop::collection::vec(prop_oneof![4 => Just(900i64), 1 => 1..5_000i64, 1 => 1..1i64 << 40], 1..300),
            start in prop_oneof![-1000..1000i64, Just(i64::MIN / 2)], part in 1usize..50, a in 0usize..300, b in 0usize..300, off in -2..3i64,
        ) {
            let times: Vec<i64> = steps.iter().scan(start, |ts, step| { *ts += step; Some(*ts) }).collect();
            let ts = |at: usize| times[at % times.len()] + off;
            let (from, to) = (ts(a.min(b)), ts(a.max(b)));
            let found = spacing(&times, part).rows_between(times.len() as u64, (times[0], times[times.len() - 1]), (from, to));
            for (row, ts) in times.iter().enumerate() {
                prop_assert!(*ts < from || *ts >= to || found.contains(&(row as u64)), "{row} of {times:?}, {found:?}");
            }
        }
    }
}
