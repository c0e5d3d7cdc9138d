//! Timestamps: RFC 3339, epochs of a stated precision, and local times of a stated zone.

use std::str::FromStr;

use ahash::{HashMap, HashMapExt};
use jiff::{
    Timestamp,
    civil::DateTime,
    tz::{AmbiguousOffset, TimeZone},
};

use crate::{Error, Result};

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

/// Reads the times of a table, including local ones.
pub(crate) struct TimeReader {
    precision: Option<TimePrecision>,
    zone: Option<TimeZone>,
    format: Option<String>,
    /// The last instant of each series, to tell the two passes of the hour that autumn repeats.
    last: HashMap<u32, i64>,
}

impl TimeReader {
    pub(crate) fn new(
        precision: Option<TimePrecision>,
        zone: Option<&str>,
        format: Option<&str>,
    ) -> Result<Self> {
        let zone = zone
            .map(TimeZone::get)
            .transpose()
            .map_err(|error| Error::invalid(format!("time_zone: {error}")))?;
        Ok(Self { precision, zone, format: format.map(str::to_owned), last: HashMap::new() })
    }

    /// Microseconds since 1970 UTC. `series` is any number that tells the series of a table apart.
    pub(crate) fn read(&mut self, text: &str, series: u32) -> Result<i64, String> {
        let Some(zone) = &self.zone else { return parse_timestamp(text, self.precision) };
        if self.format.is_none()
            && let Ok(time) = parse_timestamp(text, self.precision)
        {
            return Ok(time);
        }
        let text = text.trim();
        let local = match &self.format {
            Some(format) => DateTime::strptime(format, text)
                .map_err(|_| format!("time `{text}` does not match the pattern `{format}`"))?,
            None => text
                .parse::<DateTime>()
                .map_err(|_| format!("time `{text}` is not of the form YYYY-MM-DD HH:MM:SS"))?,
        };
        let out_of_range = |_| format!("time `{text}` is out of range");
        let ambiguous = zone.to_ambiguous_timestamp(local);
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

    /// A local time given as microseconds since 1970 without a zone, as Parquet files have it.
    pub(crate) fn read_naive(&mut self, micros: i64, series: u32) -> Result<i64, String> {
        if self.zone.is_none() {
            return Err(
                "timestamps have no time zone; store them as UTC or name the zone in the mapping".to_owned()
            );
        }
        let time = Timestamp::from_microsecond(micros).map_err(|error| error.to_string())?;
        let text = TimeZone::UTC.to_datetime(time).to_string();
        let format = self.format.take();
        let read = self.read(&text, series);
        self.format = format;
        read
    }
}
