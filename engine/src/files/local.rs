//! Local times of a file as instants.
//!
//! In autumn the clock shows an hour twice, and in spring it skips one. Rows in order tell which pass of an hour they belong to: the
//! first one has the summer offset. So rows of such an hour are held until what follows tells. Where only one pass is there it is taken
//! for the second, as SolarEdge gives it, and the readings are marked as estimated. A time that the clock skipped moves on by the gap;
//! where the hour after it is there as well it is left out.

use std::{collections::VecDeque, str::FromStr};

use jiff::{
    civil::DateTime,
    tz::{AmbiguousOffset, TimeZone},
};

use wattlake_catalog::Quality;

use crate::{Error, Result};

/// Rows that are held at most; then the first ones are taken for what they are without what follows.
pub(super) const HELD_MAX: usize = if cfg!(test) { 100 } else { 100_000 };

/// Rows whose instants are remembered: an hour of quarter minutes.
const RECENT_MAX: usize = 240;

/// What is done with a local time that the clock shows twice or not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DstPolicy {
    /// By the order of the rows.
    #[default]
    Sequence,
    /// The first of two.
    Earlier,
    /// The second of two.
    Later,
    /// Such rows are refused.
    Reject,
}

impl FromStr for DstPolicy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "sequence" => Ok(Self::Sequence),
            "earlier" => Ok(Self::Earlier),
            "later" => Ok(Self::Later),
            "reject" => Ok(Self::Reject),
            _ => Err(Error::invalid(format!("`{text}` is not one of sequence, earlier, later, reject"))),
        }
    }
}

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placed {
    /// Microseconds since 1970 UTC.
    At(i64),
    /// The same, but the file does not tell for sure.
    About(i64),
    /// The clock skipped this time, and the hour after it has a row of its own.
    Skipped,
    /// The policy wants no such times.
    Refused,
}

impl Placed {
    /// The instant of a reading and the quality that it then has, or why there is none. `is_nothing`: the row says nothing but zeros; at a
    /// time that did not exist it is left out (`Ok(None)`).
    pub(super) fn instant(
        self,
        quality: Quality,
        is_nothing: bool,
    ) -> std::result::Result<Option<(i64, Quality)>, &'static str> {
        match self {
            Self::At(at) => Ok(Some((at, quality))),
            Self::About(at) if quality == Quality::Bad => Ok(Some((at, quality))),
            Self::About(at) => Ok(Some((at, Quality::Estimated))),
            Self::Skipped if is_nothing => Ok(None),
            Self::Skipped => Err("the clock skipped this time, and the hour after it has a row of its own"),
            Self::Refused => Err("the clock shows this time twice or not at all"),
        }
    }
}

/// Finds the instants of rows of one series, or of one table, in the order of the file.
#[derive(Debug)]
pub(super) struct LocalTimes<T> {
    zone: TimeZone,
    policy: DstPolicy,
    /// Rows of an hour that comes twice.
    fold: Vec<(DateTime, T)>,
    is_second_pass: bool,
    /// Rows at times that the clock skips.
    gap: Vec<(DateTime, T)>,
    last: Option<DateTime>,
    is_descending: bool,
    /// Instants of the last rows: in a file that goes back in time the hour after a skipped one comes before it.
    recent: VecDeque<i64>,
}

impl<T> LocalTimes<T> {
    pub(super) fn new(zone: TimeZone, policy: DstPolicy) -> Self {
        Self {
            zone,
            policy,
            fold: Vec::new(),
            is_second_pass: false,
            gap: Vec::new(),
            last: None,
            is_descending: false,
            recent: VecDeque::new(),
        }
    }

    /// Takes a row; `out` gets it, and those that were held, as soon as their instants are known.
    pub(super) fn push(&mut self, local: DateTime, row: T, out: &mut impl FnMut(Placed, T)) {
        let ambiguous = self.zone.to_ambiguous_timestamp(local);
        match ambiguous.offset() {
            AmbiguousOffset::Unambiguous { .. } => {
                if let Some(last) = self.last.filter(|last| *last != local) {
                    self.is_descending = local < last;
                }
                self.last = Some(local);
                self.release_fold(out);
                let Ok(at) = ambiguous.compatible() else { return out(Placed::Refused, row) };
                let at = at.as_microsecond();
                // The hour after a skipped one: those that would fall on it are left out.
                let held = std::mem::take(&mut self.gap);
                for (skipped, held) in held {
                    match self.instant(skipped, true) {
                        Some(moved) if moved == at || self.recent.contains(&moved) => {
                            out(Placed::Skipped, held);
                        }
                        Some(moved) if !self.is_descending && moved > at => self.gap.push((skipped, held)),
                        Some(moved) => out(Placed::About(moved), held),
                        None => out(Placed::Refused, held),
                    }
                }
                if self.recent.len() >= RECENT_MAX {
                    self.recent.pop_front();
                }
                self.recent.push_back(at);
                out(Placed::At(at), row);
            }
            AmbiguousOffset::Fold { .. } => match self.policy {
                DstPolicy::Reject => out(Placed::Refused, row),
                DstPolicy::Earlier => self.place(local, false, Placed::About, row, out),
                DstPolicy::Later => self.place(local, true, Placed::About, row, out),
                DstPolicy::Sequence => self.push_fold(local, row, out),
            },
            AmbiguousOffset::Gap { .. } => match self.policy {
                DstPolicy::Reject => out(Placed::Refused, row),
                _ if self.gap.len() >= HELD_MAX => self.place(local, true, Placed::About, row, out),
                _ => self.gap.push((local, row)),
            },
        }
    }

    /// An instant of a local time: of two the later one, or the earlier one; one that is skipped moves on by the gap.
    fn instant(&self, local: DateTime, is_later: bool) -> Option<i64> {
        let ambiguous = self.zone.to_ambiguous_timestamp(local);
        let at = match (ambiguous.offset(), is_later) {
            (AmbiguousOffset::Fold { .. }, true) => ambiguous.later(),
            (AmbiguousOffset::Fold { .. }, false) => ambiguous.earlier(),
            _ => ambiguous.compatible(),
        };
        Some(at.ok()?.as_microsecond())
    }

    fn place(
        &self,
        local: DateTime,
        is_later: bool,
        how: fn(i64) -> Placed,
        row: T,
        out: &mut impl FnMut(Placed, T),
    ) {
        out(self.instant(local, is_later).map_or(Placed::Refused, how), row);
    }

    fn push_fold(&mut self, local: DateTime, row: T, out: &mut impl FnMut(Placed, T)) {
        // In a file that goes back in time the second pass comes first.
        let second = !self.is_descending;
        if self.is_second_pass {
            return self.place(local, second, Placed::At, row, out);
        }
        let is_again = self.fold.last().is_some_and(|(last, _)| match self.is_descending {
            true => local >= *last,
            false => local <= *last,
        });
        if is_again {
            for (held, row) in std::mem::take(&mut self.fold) {
                self.place(held, !second, Placed::At, row, out);
            }
            self.is_second_pass = true;
            return self.place(local, second, Placed::At, row, out);
        }
        self.fold.push((local, row));
        if self.fold.len() >= HELD_MAX {
            self.release_fold(out);
        }
    }

    /// Nothing of a second pass has come: what is held is one pass, whichever.
    fn release_fold(&mut self, out: &mut impl FnMut(Placed, T)) {
        self.is_second_pass = false;
        for (held, row) in std::mem::take(&mut self.fold) {
            self.place(held, true, Placed::About, row, out);
        }
    }

    /// Lets go of what is held at the end of the file.
    pub(super) fn finish(&mut self, out: &mut impl FnMut(Placed, T)) {
        self.release_fold(out);
        for (held, row) in std::mem::take(&mut self.gap) {
            self.place(held, true, Placed::About, row, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn placed(policy: DstPolicy, times: &[&str]) -> Vec<String> {
        let mut local = LocalTimes::new(TimeZone::get("Europe/Berlin").expect("a zone"), policy);
        let mut found = Vec::new();
        let show =
            |at: i64| Timestamp::from_microsecond(at).expect("a time").strftime("%d %H:%M").to_string();
        let mut out = |placed: Placed, row: usize| {
            found.push((
                row,
                match placed {
                    Placed::At(at) => show(at),
                    Placed::About(at) => format!("~{}", show(at)),
                    Placed::Skipped => "skipped".to_owned(),
                    Placed::Refused => "refused".to_owned(),
                },
            ));
        };
        for (row, text) in times.iter().enumerate() {
            local.push(text.parse().expect("a time"), row, &mut out);
        }
        local.finish(&mut out);
        found.sort();
        found.into_iter().map(|(_, text)| text).collect()
    }

    const SEQUENCE: DstPolicy = DstPolicy::Sequence;

    #[test]
    fn rows_in_order_tell_the_passes_of_an_hour() {
        let hours = ["2025-10-26 01:00", "2025-10-26 02:00", "2025-10-26 02:00", "2025-10-26 03:00"];
        assert_eq!(placed(SEQUENCE, &hours), ["25 23:00", "26 00:00", "26 01:00", "26 02:00"]);
        let quarters = [
            "2025-10-26 02:30",
            "2025-10-26 02:45",
            "2025-10-26 02:00",
            "2025-10-26 02:30",
            "2025-10-26 03:00",
        ];
        assert_eq!(placed(SEQUENCE, &quarters), ["26 00:30", "26 00:45", "26 01:00", "26 01:30", "26 02:00"]);
        // The newest first.
        let back = [
            "2025-10-26 04:00",
            "2025-10-26 03:00",
            "2025-10-26 02:30",
            "2025-10-26 02:00",
            "2025-10-26 02:30",
            "2025-10-26 01:00",
        ];
        assert_eq!(
            placed(SEQUENCE, &back),
            ["26 03:00", "26 02:00", "26 01:30", "26 01:00", "26 00:30", "25 23:00"]
        );
    }

    #[test]
    fn one_pass_alone_is_taken_for_the_second() {
        let hours = ["2025-10-26 01:00", "2025-10-26 02:00", "2025-10-26 03:00"];
        assert_eq!(placed(SEQUENCE, &hours), ["25 23:00", "~26 01:00", "26 02:00"]);
        assert_eq!(placed(SEQUENCE, &["2025-10-26 02:00", "2025-10-26 02:15"]), ["~26 01:00", "~26 01:15"]);
        assert_eq!(placed(DstPolicy::Earlier, &hours)[1], "~26 00:00");
        assert_eq!(placed(DstPolicy::Later, &hours)[1], "~26 01:00");
        assert_eq!(placed(DstPolicy::Reject, &hours)[1], "refused");
    }

    #[test]
    fn a_time_that_is_skipped_moves_on_unless_the_next_hour_is_there() {
        let both = ["2025-03-30 01:00", "2025-03-30 02:00", "2025-03-30 03:00", "2025-03-30 04:00"];
        assert_eq!(placed(SEQUENCE, &both), ["30 00:00", "skipped", "30 01:00", "30 02:00"]);
        let one = ["2025-03-30 01:00", "2025-03-30 02:00", "2025-03-30 04:00"];
        assert_eq!(placed(SEQUENCE, &one), ["30 00:00", "~30 01:00", "30 02:00"]);
        let quarters = ["2025-03-30 02:00", "2025-03-30 02:30", "2025-03-30 03:00", "2025-03-30 03:30"];
        assert_eq!(placed(SEQUENCE, &quarters), ["skipped", "skipped", "30 01:00", "30 01:30"]);
        assert_eq!(placed(DstPolicy::Reject, &one)[1], "refused");
        let back = ["2025-03-30 04:00", "2025-03-30 03:00", "2025-03-30 02:00", "2025-03-30 01:00"];
        assert_eq!(placed(SEQUENCE, &back), ["30 02:00", "30 01:00", "skipped", "30 00:00"]);
        let back = ["2025-03-30 04:00", "2025-03-30 02:00", "2025-03-30 01:00"];
        assert_eq!(placed(SEQUENCE, &back), ["30 02:00", "~30 01:00", "30 00:00"]);
    }
}
