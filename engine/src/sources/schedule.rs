//! When a source is asked: every so often, or by a cron expression in its site's zone.

use jiff::{Timestamp, tz::TimeZone};

const MICROS: i64 = 1_000_000;
/// Nothing is polled more often.
const SECONDS_MIN: i64 = 5;
const SECONDS_MAX: i64 = 31 * 86_400;

#[derive(Clone, Debug)]
pub(crate) enum Schedule {
    /// Seconds.
    Every(i64),
    Cron(Box<croner::Cron>, TimeZone),
}

impl Schedule {
    /// Reads `15min`, `2h`, `1d` or a cron expression.
    ///
    /// # Errors
    /// A text that says what is valid.
    pub(crate) fn parse(text: &str, zone: &TimeZone) -> Result<Self, String> {
        let text = text.trim();
        if let Some(seconds) = seconds(text) {
            return match seconds {
                SECONDS_MIN..=SECONDS_MAX => Ok(Self::Every(seconds)),
                _ => Err(format!("`{text}` is not between {SECONDS_MIN} seconds and 31 days")),
            };
        }
        match text.parse::<croner::Cron>() {
            Ok(cron) => Ok(Self::Cron(Box::new(cron), zone.clone())),
            Err(_) => Err(format!(
                "`{text}` is neither a length of time, as 15min or 6h, nor a cron expression, as `5 */6 * * *`"
            )),
        }
    }

    /// The first time after one, microseconds since 1970 UTC. Sources with the same interval are spread over it by their phase, which
    /// is from 0 to 1; cron expressions are taken at their word.
    pub(crate) fn next_after(&self, now: i64, phase: f64) -> i64 {
        match self {
            Self::Every(seconds) => {
                let every = seconds * MICROS;
                let shift = (phase * every as f64) as i64 % every;
                let since = (now - shift).rem_euclid(every);
                now - since + every
            }
            Self::Cron(cron, zone) => {
                let at = Timestamp::from_microsecond(now).unwrap_or_default().to_zoned(zone.clone());
                // An expression that never comes again, such as one of the 30th of February, is looked at again in a month.
                cron.find_next_occurrence(&at, false)
                    .map_or(now + SECONDS_MAX * MICROS, |next| next.timestamp().as_microsecond())
            }
        }
    }
}

/// The seconds of a length of time.
pub(crate) fn seconds(text: &str) -> Option<i64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: i64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim() {
        "s" | "sec" | "seconds" => 1,
        "m" | "min" | "minutes" => 60,
        "h" | "hour" | "hours" => 3600,
        "d" | "day" | "days" => 86_400,
        _ => return None,
    };
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(text: &str) -> i64 {
        text.parse::<Timestamp>().expect("a time").as_microsecond()
    }

    #[test]
    fn intervals_are_spread_and_cron_is_local() {
        let berlin = TimeZone::get("Europe/Berlin").expect("a zone");
        let every = Schedule::parse("15min", &berlin).expect("valid");
        let now = micros("2026-03-29T00:59:00Z");
        assert_eq!(every.next_after(now, 0.0), micros("2026-03-29T01:00:00Z"));
        assert_eq!(every.next_after(now, 0.5), micros("2026-03-29T01:07:30Z"));
        assert_eq!(every.next_after(micros("2026-03-29T01:07:30Z"), 0.5), micros("2026-03-29T01:22:30Z"));
        // Seven in the morning, before and after the clock went forward.
        let cron = Schedule::parse("0 7 * * *", &berlin).expect("valid");
        assert_eq!(cron.next_after(micros("2026-03-28T00:00:00Z"), 0.3), micros("2026-03-28T06:00:00Z"));
        assert_eq!(cron.next_after(micros("2026-03-28T06:00:00Z"), 0.3), micros("2026-03-29T05:00:00Z"));
    }

    #[test]
    fn what_is_no_schedule_is_refused_in_words() {
        for text in ["", "15 parsecs", "0min", "99999d", "every day", "99999999999999999999h"] {
            let error = Schedule::parse(text, &TimeZone::UTC).expect_err(text);
            assert!(error.contains(text), "{error}");
        }
    }
}
