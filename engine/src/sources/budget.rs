//! Calls that a credential may still make: so many a minute and a month, some of the month kept for backfill and retries.

use std::collections::VecDeque;

use jiff::{Timestamp, civil::Date, tz::TimeZone};
use serde::{Deserialize, Serialize};

const MINUTE: i64 = 60_000_000;

/// What a vendor allows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Limits {
    pub per_minute: usize,
    pub per_month: i64,
    /// The share of a month's calls that polling leaves to backfill and retries.
    pub reserve: f64,
    /// The day on which a month of calls begins, at midnight UTC; months without it begin on their last day.
    pub reset_day: i8,
}

/// What a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Poll,
    /// Backfill, reading again what was read, retries: they leave polling its share.
    Extra,
}

/// The calls that were made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Ledger {
    /// When the month of calls began, microseconds since 1970 UTC.
    pub period_start: i64,
    pub polls: i64,
    pub extras: i64,
    /// Calls of the last minute.
    pub recent: VecDeque<i64>,
    /// The vendor asked for a pause until then.
    pub paused_until: i64,
}

impl Ledger {
    /// Takes a call, or says when one may be made.
    pub(crate) fn take(&mut self, limits: &Limits, purpose: Purpose, now: i64) -> Result<(), i64> {
        let (start, end) = self.roll(limits, now);
        if self.paused_until > now {
            return Err(self.paused_until);
        }
        while self.recent.front().is_some_and(|call| *call <= now - MINUTE) {
            self.recent.pop_front();
        }
        if self.recent.len() >= limits.per_minute {
            return Err(self.recent.front().map_or(now + MINUTE, |call| call + MINUTE));
        }
        let total = self.polls + self.extras;
        if total >= limits.per_month {
            return Err(end);
        }
        if purpose == Purpose::Extra {
            let month = limits.per_month as f64;
            let share =
                (total as f64 + 1.0 - month * limits.reserve) / (month * (1.0 - limits.reserve)).max(1.0);
            let from = start + (share * (end - start) as f64).ceil() as i64;
            if from > now {
                return Err(from.min(end));
            }
        }
        match purpose {
            Purpose::Poll => self.polls += 1,
            Purpose::Extra => self.extras += 1,
        }
        self.recent.push_back(now);
        Ok(())
    }

    /// When the next round of polling may begin: the calls of a month are spread over it.
    pub(crate) fn poll_from(&mut self, limits: &Limits, now: i64) -> i64 {
        let (start, end) = self.roll(limits, now);
        let month = limits.per_month as f64 * (1.0 - limits.reserve);
        let share = self.polls as f64 / month.max(1.0);
        start + ((share * (end - start) as f64) as i64).min(end - start)
    }

    /// The vendor wants no calls until then.
    pub(crate) fn pause(&mut self, until: i64) {
        self.paused_until = self.paused_until.max(until);
    }

    /// The vendor says that the month's calls are used up, whatever we counted.
    pub(crate) fn exhaust(&mut self, limits: &Limits, now: i64) -> i64 {
        let (_, end) = self.roll(limits, now);
        self.pause(end);
        end
    }

    /// Calls besides polling that are left this month, and about when so many will have been made: polling goes on beside them.
    pub(crate) fn estimate(&mut self, limits: &Limits, calls: i64, now: i64) -> (i64, i64) {
        let (start, end) = self.roll(limits, now);
        let month = limits.per_month as f64;
        let kept = month * limits.reserve;
        let passed = (now - start) as f64 / (end - start).max(1) as f64;
        let left = (kept + (month - kept) * passed) as i64 - self.polls - self.extras;
        let left = left.max(0);
        if calls <= left {
            return (left, now + calls * MINUTE / limits.per_minute.max(1) as i64);
        }
        let months = ((calls - left) as f64 / kept.max(1.0)).min(1200.0);
        (left, end + (months * (end - start) as f64) as i64 - (end - start) / 2)
    }

    /// Begins a new month when it is time; answers where it begins and ends.
    fn roll(&mut self, limits: &Limits, now: i64) -> (i64, i64) {
        let (start, end) = period(limits.reset_day, now);
        if self.period_start < start {
            (self.period_start, self.polls, self.extras) = (start, 0, 0);
        }
        (start, end)
    }
}

/// The month of calls that a time is in, microseconds since 1970 UTC.
fn period(reset_day: i8, now: i64) -> (i64, i64) {
    let today = Timestamp::from_microsecond(now).unwrap_or_default().to_zoned(TimeZone::UTC).date();
    let begins = |month: Date| {
        let first = month.first_of_month();
        let day = reset_day.clamp(1, first.days_in_month());
        first.with().day(day).build().unwrap_or(first)
    };
    let this = begins(today);
    let (from, to) = if today < this {
        (begins(this.first_of_month().yesterday().unwrap_or(this)), this)
    } else {
        (this, begins(this.last_of_month().tomorrow().unwrap_or(this)))
    };
    let micros = |date: Date| {
        date.to_zoned(TimeZone::UTC).map_or(i64::MAX, |zoned| zoned.timestamp().as_microsecond())
    };
    (micros(from), micros(to))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { per_minute: 10, per_month: 1000, reserve: 0.2, reset_day: 15 };

    fn micros(text: &str) -> i64 {
        text.parse::<Timestamp>().expect("a time").as_microsecond()
    }

    #[test]
    fn a_month_begins_on_its_day_or_its_last() {
        let of = |day, at| period(day, micros(at));
        assert_eq!(
            of(15, "2026-03-14T23:59:59Z"),
            (micros("2026-02-15T00:00:00Z"), micros("2026-03-15T00:00:00Z"))
        );
        assert_eq!(
            of(15, "2026-03-15T00:00:00Z"),
            (micros("2026-03-15T00:00:00Z"), micros("2026-04-15T00:00:00Z"))
        );
        assert_eq!(
            of(31, "2026-02-28T12:00:00Z"),
            (micros("2026-02-28T00:00:00Z"), micros("2026-03-31T00:00:00Z"))
        );
        assert_eq!(
            of(1, "2026-12-31T12:00:00Z"),
            (micros("2026-12-01T00:00:00Z"), micros("2027-01-01T00:00:00Z"))
        );
    }

    #[test]
    fn a_pause_holds_for_every_call() {
        let mut ledger = Ledger::default();
        let now = micros("2026-03-20T00:00:00Z");
        ledger.pause(now + 100);
        ledger.pause(now + 50);
        assert_eq!(ledger.take(&LIMITS, Purpose::Poll, now), Err(now + 100));
        assert_eq!(ledger.take(&LIMITS, Purpose::Poll, now + 100), Ok(()));
        assert_eq!(ledger.exhaust(&LIMITS, now + 200), micros("2026-04-15T00:00:00Z"));
        assert_eq!(ledger.take(&LIMITS, Purpose::Poll, now + 300), Err(micros("2026-04-15T00:00:00Z")));
    }

    #[test]
    fn polling_gets_its_share_whatever_backfill_takes() {
        let (start, end) = period(LIMITS.reset_day, micros("2026-03-20T00:00:00Z"));
        let mut ledger = Ledger::default();
        let mut now = start;
        while now < end {
            while ledger.take(&LIMITS, Purpose::Extra, now).is_ok() {}
            now += MINUTE;
            if ledger.poll_from(&LIMITS, now) <= now {
                assert_eq!(ledger.take(&LIMITS, Purpose::Poll, now), Ok(()));
            }
            now += 4 * MINUTE;
        }
        assert!(ledger.polls >= 799 && ledger.extras >= 199, "{ledger:?}");
        assert!(ledger.polls + ledger.extras <= 1000);
    }

    proptest! {
        /// Whoever asks when it is told to stays within what the vendor allows.
        #[test]
        fn limits_are_kept(
            per_minute in 1usize..20,
            per_month in 50i64..2000,
            start in 0i64..40 * 86_400,
            gaps in prop::collection::vec((any::<bool>(), 0i64..40_000), 1..2000),
        ) {
            let limits = Limits { per_minute, per_month, ..LIMITS };
            let mut now = micros("2026-01-01T00:00:00Z") + start * 1_000_000;
            let (mut ledger, mut calls) = (Ledger::default(), Vec::new());
            for (is_poll, seconds) in gaps {
                now += seconds * 1_000_000;
                let purpose = if is_poll { Purpose::Poll } else { Purpose::Extra };
                match ledger.take(&limits, purpose, now) {
                    Ok(()) => calls.push((now, is_poll)),
                    Err(mut at) => {
                        prop_assert!(at > now);
                        // One reason after the other passes.
                        let mut later = ledger.clone();
                        let mut reasons = 0;
                        while let Err(again) = later.take(&limits, purpose, at) {
                            prop_assert!(again > at && reasons < 4);
                            (at, reasons) = (again, reasons + 1);
                        }
                    }
                }
            }
            for (at, _) in &calls {
                let minute = calls.iter().filter(|(t, _)| (*at..at + MINUTE).contains(t)).count();
                prop_assert!(minute <= per_minute);
                let (from, to) = period(limits.reset_day, *at);
                let month = calls.iter().filter(|(t, _)| (from..to).contains(t)).count() as i64;
                prop_assert!(month <= per_month);
            }
        }
    }
}
