//! Buckets of time: fixed widths, and calendar widths in a zone through daylight saving (ROLL-2).

use std::str::FromStr;

use jiff::{Span, Timestamp, ToSpan, Unit, ZonedRound, civil, tz::TimeZone};

use crate::error::{ApiError, Result};

/// Buckets of one answer and group; more would be a mistake in the request.
const BUCKETS_MAX: usize = 400_000;

/// The width of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    /// Seconds; aligned to midnight UTC, so that it divides days of every zone alike.
    Fixed(i64),
    Days(i32),
    Weeks(i32),
    Months(i32),
    Years(i32),
    /// One bucket for the whole range.
    All,
}

impl FromStr for Width {
    type Err = ApiError;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || {
            ApiError::invalid(format!(
                "bucket: `{text}` is not a width; write 5m, 15m, 1h, 1d, 1w, 1mo, 1y or all"
            ))
        };
        if text == "all" {
            return Ok(Self::All);
        }
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let n: i32 = number.parse().ok().filter(|n| (1..=10_000).contains(n)).ok_or_else(invalid)?;
        match unit {
            "s" => Ok(Self::Fixed(n.into())),
            "m" | "min" => Ok(Self::Fixed(i64::from(n) * 60)),
            "h" => Ok(Self::Fixed(i64::from(n) * 3600)),
            "d" => Ok(Self::Days(n)),
            "w" => Ok(Self::Weeks(n)),
            "mo" => Ok(Self::Months(n)),
            "y" => Ok(Self::Years(n)),
            _ => Err(invalid()),
        }
    }
}

/// The buckets that a range touches: `edges[i]..edges[i + 1]`, microseconds since 1970 UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Buckets {
    pub edges: Vec<i64>,
}

impl Buckets {
    /// The buckets of `from..to` in a zone; the first and the last one may reach beyond the range.
    ///
    /// # Errors
    /// An empty range, or more buckets than an answer may have.
    pub(crate) fn new(width: Width, from: Timestamp, to: Timestamp, zone: &TimeZone) -> Result<Self> {
        if from >= to {
            return Err(ApiError::invalid(format!("from ({from}) must lie before to ({to})")));
        }
        let (first, last) = (from.as_microsecond(), to.as_microsecond());
        let mut edges = Vec::new();
        match width {
            Width::All => edges = vec![first, last],
            Width::Fixed(seconds) => {
                let step = seconds * 1_000_000;
                let start = first - first.rem_euclid(step);
                if (last - start) / step > BUCKETS_MAX as i64 {
                    return Err(too_many());
                }
                let mut edge = start;
                edges.push(edge);
                while edge < last {
                    edge += step;
                    edges.push(edge);
                }
            }
            Width::Days(_) | Width::Weeks(_) | Width::Months(_) | Width::Years(_) => {
                calendar(width, from, last, zone, &mut edges)?;
            }
        }
        Ok(Self { edges })
    }

    pub(crate) fn len(&self) -> usize {
        self.edges.len() - 1
    }

    /// The bucket that holds an instant.
    pub(crate) fn index(&self, micros: i64) -> Option<usize> {
        let i = self.edges.partition_point(|edge| *edge <= micros);
        (i > 0 && i < self.edges.len()).then(|| i - 1)
    }
}

fn too_many() -> ApiError {
    ApiError::invalid(format!(
        "the range has more than {BUCKETS_MAX} buckets; choose wider ones or a shorter range"
    ))
}

fn calendar(width: Width, from: Timestamp, last: i64, zone: &TimeZone, edges: &mut Vec<i64>) -> Result<()> {
    let out_of_range =
        |error: jiff::Error| ApiError::invalid(format!("the range leaves the calendar: {error}"));
    let date = from.to_zoned(zone.clone()).date();
    let (mut start, step): (civil::Date, Span) = match width {
        Width::Days(1) => (date, 1.day()),
        Width::Days(n) => {
            let epoch = civil::date(1970, 1, 1);
            let days = date.since((Unit::Day, epoch)).map_err(out_of_range)?.get_days();
            let back = days.rem_euclid(n);
            (date.checked_sub(back.days()).map_err(out_of_range)?, n.days())
        }
        Width::Weeks(n) => {
            let monday = date.checked_sub(i32::from(date.weekday().to_monday_zero_offset()).days());
            let monday = monday.map_err(out_of_range)?;
            let weeks =
                monday.since((Unit::Day, civil::date(1970, 1, 5))).map_err(out_of_range)?.get_days() / 7;
            (monday.checked_sub((weeks.rem_euclid(n) * 7).days()).map_err(out_of_range)?, (n * 7).days())
        }
        Width::Months(n) => {
            let months = i32::from(date.year()) * 12 + i32::from(date.month()) - 1;
            let first = months - months.rem_euclid(n);
            let year = i16::try_from(first.div_euclid(12)).unwrap_or(i16::MIN);
            let month = i8::try_from(first.rem_euclid(12) + 1).unwrap_or(1);
            (civil::Date::new(year, month, 1).map_err(out_of_range)?, n.months())
        }
        Width::Years(n) => {
            let year = i32::from(date.year()) - i32::from(date.year()).rem_euclid(n);
            let year = i16::try_from(year).unwrap_or(i16::MIN);
            (civil::Date::new(year, 1, 1).map_err(out_of_range)?, n.years())
        }
        Width::Fixed(_) | Width::All => return Err(ApiError::internal("not a calendar width")),
    };
    loop {
        // A day whose midnight is skipped starts when the clock goes on.
        let edge = start.to_zoned(zone.clone()).map_err(out_of_range)?;
        // Midnight that is repeated starts the day the first time.
        edges.push(edge.timestamp().as_microsecond());
        if edges.len() > BUCKETS_MAX {
            return Err(too_many());
        }
        if edges.last().is_some_and(|edge| *edge >= last) {
            // Two dates of a zone that skipped a whole day share an instant.
            edges.dedup();
            return Ok(());
        }
        start = start.checked_add(step).map_err(out_of_range)?;
    }
}

/// The civil day in which a bucket starts, to line up buckets of several zones.
pub(super) fn civil_label(micros: i64, zone: &TimeZone) -> civil::DateTime {
    let time = Timestamp::from_microsecond(micros).unwrap_or_default().to_zoned(zone.clone());
    time.round(ZonedRound::new().smallest(Unit::Second)).unwrap_or(time).datetime()
}
