//! Points in time as people write them in requests.

use jiff::{Timestamp, Zoned, civil, tz::TimeZone};

use wattlake_catalog::SnapshotAt;

use crate::error::{ApiError, Result};

/// Reads RFC 3339 with an offset, a plain date or local time in `zone`, `now`, or `now-7d`.
///
/// # Errors
/// Naming the parameter and the forms that are valid.
pub(crate) fn parse_instant(name: &str, text: &str, zone: &TimeZone, now: Timestamp) -> Result<Timestamp> {
    let invalid = || {
        ApiError::invalid(format!(
            "{name}: `{text}` is not a time; write 2026-01-31T12:00:00Z, 2026-01-31, now or now-7d"
        ))
    };
    // A `+` in a query string that was not escaped arrives as a space.
    let text = text.trim();
    if let Some(rest) = text.strip_prefix("now") {
        if rest.is_empty() {
            return Ok(now);
        }
        let (sign, span) = rest.split_at_checked(1).ok_or_else(invalid)?;
        let span = wattlake_config::Period::from_text(span).ok_or_else(invalid)?;
        return match sign {
            "-" => now.checked_sub(span).map_err(|_| invalid()),
            "+" | " " => now.checked_add(span).map_err(|_| invalid()),
            _ => Err(invalid()),
        };
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    if let Ok(time) = text.replace(' ', "+").parse::<Timestamp>() {
        return Ok(time);
    }
    let local = match text.parse::<civil::Date>() {
        Ok(date) if text.len() == 10 => date.to_datetime(civil::Time::midnight()),
        _ => text.parse::<civil::DateTime>().map_err(|_| invalid())?,
    };
    zone.to_ambiguous_timestamp(local).compatible().map_err(|_| invalid())
}

/// Reads which earlier state is asked for: a time as in [`parse_instant`], or the name of a snapshot.
///
/// # Errors
/// Naming the parameter and the forms that are valid.
pub(crate) fn parse_as_of(name: &str, text: &str, zone: &TimeZone, now: Timestamp) -> Result<SnapshotAt> {
    match parse_instant(name, text, zone, now) {
        Ok(time) => Ok(SnapshotAt::Time(time)),
        // Names start with a letter, and times do not.
        Err(_) if text.starts_with(|c: char| c.is_ascii_alphabetic()) && !text.starts_with("now") => {
            Ok(SnapshotAt::Name(text.to_owned()))
        }
        Err(error) => Err(error),
    }
}

/// The zone of a name.
///
/// # Errors
/// Naming the parameter.
pub(crate) fn parse_zone(name: &str, text: &str) -> Result<TimeZone> {
    TimeZone::get(text).map_err(|_| {
        ApiError::invalid(format!("{name}: `{text}` is not an IANA time zone, for example Europe/Berlin"))
    })
}

/// An instant as RFC 3339 with the offset of its zone.
pub(crate) fn format_instant(micros: i64, zone: &TimeZone) -> String {
    let Ok(time) = Timestamp::from_microsecond(micros) else { return micros.to_string() };
    let zoned: Zoned = time.to_zoned(zone.clone());
    let offset = zoned.offset();
    if offset.seconds() == 0 && zone == &TimeZone::UTC {
        return time.to_string();
    }
    time.display_with_offset(offset).to_string()
}
