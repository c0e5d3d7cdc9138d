//! Timestamps: RFC 3339, epochs of a stated precision, and local times of a stated zone.

use std::str::FromStr;

use ahash::{HashMap, HashMapExt, RandomState};
use jiff::{
    Timestamp,
    civil::DateTime,
    tz::{AmbiguousOffset, TimeZone},
};

use crate::{
    Error, Result,
    ingest::{IngestRequest, TableMapping},
};

/// The unit of a numeric timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimePrecision {
    Nanoseconds,
    Microseconds,
    Milliseconds,
    Seconds,
    Minutes,
    Hours,
    /// By the size of the number, as InfluxDB 3 does.
    Auto,
}

impl FromStr for TimePrecision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "ns" | "n" | "nanosecond" => Ok(Self::Nanoseconds),
            "us" | "u" | "µ" | "microsecond" => Ok(Self::Microseconds),
            "ms" | "millisecond" => Ok(Self::Milliseconds),
            "s" | "second" => Ok(Self::Seconds),
            "m" => Ok(Self::Minutes),
            "h" => Ok(Self::Hours),
            "auto" => Ok(Self::Auto),
            _ => Err(Error::invalid(format!("unknown precision `{text}`; valid are s, ms, us, ns"))),
        }
    }
}

impl TimePrecision {
    /// The word that names it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nanoseconds => "ns",
            Self::Microseconds => "us",
            Self::Milliseconds => "ms",
            Self::Seconds => "s",
            Self::Minutes => "m",
            Self::Hours => "h",
            Self::Auto => "auto",
        }
    }

    /// Microseconds since 1970 UTC, or `None` when the number is out of range.
    pub(crate) fn to_micros(self, n: i64) -> Option<i64> {
        match self {
            Self::Nanoseconds => Some(n.div_euclid(1000)),
            Self::Microseconds => Some(n),
            Self::Milliseconds => n.checked_mul(1000),
            Self::Seconds => n.checked_mul(1_000_000),
            Self::Minutes => n.checked_mul(60_000_000),
            Self::Hours => n.checked_mul(3_600_000_000),
            Self::Auto => match n.unsigned_abs() {
                0..5_000_000_000 => Self::Seconds.to_micros(n),
                5_000_000_000..5_000_000_000_000 => Self::Milliseconds.to_micros(n),
                5_000_000_000_000..5_000_000_000_000_000 => Some(n),
                _ => Self::Nanoseconds.to_micros(n),
            },
        }
    }
}

/// Reads RFC 3339 with an offset, or a number of the stated precision; answers microseconds since 1970 UTC.
///
/// # Errors
/// A text saying what is expected.
pub fn parse_timestamp(text: &str, precision: Option<TimePrecision>) -> Result<i64, String> {
    let text = text.trim();
    if let Some(micros) = plain_utc(text.as_bytes()) {
        return Ok(micros);
    }
    if let Ok(number) = text.parse::<i64>() {
        let precision = precision.ok_or_else(|| {
            format!("timestamp {number} is a number; say its unit with ?precision=s|ms|us|ns")
        })?;
        return precision.to_micros(number).ok_or_else(|| format!("timestamp {number} is out of range"));
    }
    match text.parse::<Timestamp>() {
        Ok(time) => Ok(time.as_microsecond()),
        Err(_) if text.parse::<DateTime>().is_ok() => {
            Err(format!("timestamp `{text}` has no offset; write for example 2026-01-31T12:00:00Z or +01:00"))
        }
        Err(_) => Err(format!("timestamp `{text}` is not RFC 3339, for example 2026-01-31T12:00:00Z")),
    }
}

/// Reads `2026-01-31T12:00:00Z`, also with up to six digits of a fraction, which is how most tables write a time; leaves
/// everything else to the general way.
fn plain_utc(text: &[u8]) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| {
        text[range].iter().try_fold(0i64, |n, byte| {
            let digit = byte.wrapping_sub(b'0');
            (digit <= 9).then(|| n * 10 + i64::from(digit))
        })
    };
    let is_plain = text.len() >= 20
        && text.len() <= 27
        && text[4] == b'-'
        && text[7] == b'-'
        && text[10] == b'T'
        && text[13] == b':'
        && text[16] == b':'
        && text[text.len() - 1] == b'Z';
    if !is_plain {
        return None;
    }
    let fraction = match &text[19..text.len() - 1] {
        [] => 0,
        [b'.', digits @ ..] if !digits.is_empty() => {
            number(20..text.len() - 1)? * 10i64.pow(6 - digits.len() as u32)
        }
        _ => return None,
    };
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_of_month = match month {
        2 => 28 + i64::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=days_of_month).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Days since 1970: H. Hinnant, chrono-Compatible Low-Level Date Algorithms, days_from_civil.
    let year = year - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000 + fraction)
}

/// The wall clock that a mapping names: reads local times, and knows those that autumn shows twice.
#[derive(Debug)]
pub(super) struct LocalClock {
    zone: TimeZone,
    /// strftime pattern.
    format: Option<String>,
    /// The column with the time.
    pub column: String,
}

impl LocalClock {
    /// The clock of a mapping that names a zone.
    pub(super) fn of(mapping: Option<&TableMapping>) -> Result<Option<Self>> {
        let Some((mapping, zone)) = mapping.and_then(|m| Some((m, m.time_zone.as_deref()?))) else {
            return Ok(None);
        };
        let zone = TimeZone::get(zone).map_err(|error| Error::invalid(format!("time_zone: {error}")))?;
        let column = mapping.time_column().to_owned();
        Ok(Some(Self { zone, format: mapping.time_format.clone(), column }))
    }

    /// A text of the mapping's pattern, or `YYYY-MM-DD HH:MM:SS`.
    fn parse(&self, text: &str) -> Result<DateTime, String> {
        match &self.format {
            Some(format) => DateTime::strptime(format, text)
                .map_err(|_| format!("time `{text}` does not match the pattern `{format}`")),
            None => text.parse().map_err(|_| format!("time `{text}` is not of the form YYYY-MM-DD HH:MM:SS")),
        }
    }

    /// Whether the text is a local time that the clock shows twice.
    pub(super) fn is_repeated(&self, text: &str) -> bool {
        let text = text.trim();
        let is_local = self.format.is_some() || text.parse::<Timestamp>().is_err();
        is_local && self.parse(text).is_ok_and(|local| self.repeats(local))
    }

    /// Whether the clock shows a local time twice, given as microseconds since 1970 without a zone.
    pub(super) fn is_repeated_naive(&self, micros: i64) -> bool {
        naive(micros).is_ok_and(|local| self.repeats(local))
    }

    fn repeats(&self, local: DateTime) -> bool {
        matches!(self.zone.to_ambiguous_timestamp(local).offset(), AmbiguousOffset::Fold { .. })
    }
}

fn naive(micros: i64) -> Result<DateTime, String> {
    let time = Timestamp::from_microsecond(micros).map_err(|error| error.to_string())?;
    Ok(TimeZone::UTC.to_datetime(time))
}

/// Reads the times of a table, including local ones.
pub(super) struct TimeReader {
    precision: Option<TimePrecision>,
    clock: Option<LocalClock>,
    /// The last instant of each series, to tell the two passes of the hour that autumn repeats.
    last: HashMap<u64, i64>,
    hasher: RandomState,
}

impl TimeReader {
    pub(super) fn new(request: &IngestRequest) -> Result<Self> {
        let clock = LocalClock::of(request.mapping.as_deref())?;
        Ok(Self { precision: request.precision, clock, last: HashMap::new(), hasher: RandomState::new() })
    }

    /// Microseconds since 1970 UTC. Entity and metric tell the series of a table apart; the metric is empty in a wide
    /// one.
    pub(super) fn read(&mut self, text: &str, entity: &str, metric: &str) -> Result<i64, String> {
        let Some(clock) = &self.clock else { return parse_timestamp(text, self.precision) };
        if clock.format.is_none()
            && let Ok(time) = parse_timestamp(text, self.precision)
        {
            return Ok(time);
        }
        let local = clock.parse(text.trim())?;
        self.resolve(local, entity, metric)
    }

    /// A local time given as microseconds since 1970 without a zone, as Parquet files have it.
    pub(super) fn read_naive(&mut self, micros: i64, entity: &str, metric: &str) -> Result<i64, String> {
        self.resolve(naive(micros)?, entity, metric)
    }

    fn resolve(&mut self, local: DateTime, entity: &str, metric: &str) -> Result<i64, String> {
        let Some(clock) = &self.clock else {
            return Err(
                "timestamps have no time zone; store them as UTC or name the zone in the mapping".to_owned()
            );
        };
        let out_of_range = |_| format!("time {local} is out of range");
        let ambiguous = clock.zone.to_ambiguous_timestamp(local);
        let series = self.hasher.hash_one((entity, metric));
        // In order, the first pass of a repeated hour has the summer offset, the second the winter one. A time that
        // spring skips is moved on by the gap.
        let micros = match ambiguous.offset() {
            AmbiguousOffset::Fold { .. } => {
                let earlier = ambiguous.earlier().map_err(out_of_range)?.as_microsecond();
                match self.last.get(&series) {
                    Some(last) if *last >= earlier => {
                        ambiguous.later().map_err(out_of_range)?.as_microsecond()
                    }
                    _ => earlier,
                }
            }
            _ => ambiguous.compatible().map_err(out_of_range)?.as_microsecond(),
        };
        self.last.insert(series, micros);
        Ok(micros)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The short way reads a time as the library does, or not at all.
        #[test]
        fn plain_times_are_those_of_the_calendar(
            text in "[0-2][0-9]{3}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{0,7})?Z",
        ) {
            if let Some(micros) = plain_utc(text.as_bytes()) {
                prop_assert_eq!(text.parse::<Timestamp>().map(|t| t.as_microsecond()).ok(), Some(micros));
            }
        }
    }

    #[test]
    fn every_day_is_read() {
        let mut date = jiff::civil::date(1969, 12, 25);
        while date.year() < 2110 {
            let text = format!("{date}T23:59:58.25Z");
            let expected: Timestamp = text.parse().unwrap();
            assert_eq!(plain_utc(text.as_bytes()), Some(expected.as_microsecond()), "{text}");
            date = date.tomorrow().unwrap();
        }
    }

    /// In a long table the metrics of an entity stand in rows of their own with one time: that is no second pass.
    #[test]
    fn the_passes_of_the_repeated_hour_are_told_by_series() {
        let zone = Some("Europe/Berlin".to_owned());
        let clock = LocalClock::of(Some(&TableMapping { time_zone: zone, ..TableMapping::default() }));
        let mut reader = TimeReader {
            precision: None,
            clock: clock.unwrap(),
            last: HashMap::new(),
            hasher: RandomState::new(),
        };
        for offset in ["+02", "+01"] {
            for time in ["02:00", "02:30"] {
                for (entity, metric) in [("a", "power"), ("a", "energy"), ("b", "power")] {
                    let read = reader.read(&format!("2025-10-26 {time}"), entity, metric).unwrap();
                    let expected: Timestamp = format!("2025-10-26T{time}{offset}").parse().unwrap();
                    assert_eq!(read, expected.as_microsecond(), "{time}{offset} {entity} {metric}");
                }
            }
        }
    }
}
