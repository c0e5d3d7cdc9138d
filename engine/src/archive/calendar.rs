//! Local days as spans of instants, for summing up rows by day.

use jiff::{Timestamp, civil::Date, tz::TimeZone};

/// A day in a zone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct LocalDay {
    /// Year and month.
    pub month: (i16, i8),
    /// Microseconds since 1970 UTC.
    start: i64,
    /// Where the next one starts.
    pub end: i64,
}

impl LocalDay {
    fn of(micros: i64, zone: &TimeZone) -> Self {
        let start_of =
            |date: Date| date.to_zoned(zone.clone()).ok().map(|start| start.timestamp().as_microsecond());
        let mut date = Timestamp::from_microsecond(micros).unwrap_or_default().to_zoned(zone.clone()).date();
        loop {
            let next = date.tomorrow().ok();
            let end = next.and_then(start_of).unwrap_or(i64::MAX);
            // A clock that is put back across midnight shows the day before once more; the new day has begun.
            match next {
                Some(next) if end <= micros => date = next,
                _ => {
                    let start = start_of(date).unwrap_or(i64::MIN).min(micros);
                    return Self { month: (date.year(), date.month()), start, end };
                }
            }
        }
    }
}

/// Days of a zone that were asked for before: all series of a file have the same few.
pub(super) struct Calendar {
    zone: TimeZone,
    /// In order.
    days: Vec<LocalDay>,
}

impl Calendar {
    pub(super) fn new(zone: TimeZone) -> Self {
        Self { zone, days: Vec::new() }
    }

    pub(super) fn is_of(&self, zone: &TimeZone) -> bool {
        self.zone == *zone
    }

    /// The day that holds an instant, in microseconds since 1970 UTC.
    pub(super) fn day_of(&mut self, micros: i64) -> LocalDay {
        let after = self.days.partition_point(|day| day.start <= micros);
        match self.days[..after].last() {
            Some(day) if micros < day.end => *day,
            _ => {
                let day = LocalDay::of(micros, &self.zone);
                self.days.insert(after, day);
                day
            }
        }
    }
}

#[cfg(test)]
mod tests;
