//! How far a stream was read, and which window comes next.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    SECOND,
    connector::{Quantity, Stream, Window},
};

pub(crate) const DAY: i64 = 86_400 * SECOND;
/// What was read is read again when it is so many days old: vendors fill and correct what they have shown.
pub(crate) const AGAIN_DAYS: [i64; 3] = [1, 3, 7];
/// A site or a device that has been silent for longer is not waited for.
pub(crate) const SILENT_DAYS_MAX: i64 = 30;
/// A source that was never asked begins so far back.
const FIRST_LOOK: i64 = DAY;

/// Travels with the readings that it stands for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Cursor {
    /// Everything before was read, as far as the vendor had it. Microseconds since 1970 UTC, as all times here.
    pub until: i64,
    /// Everything before was read again, for each of [`AGAIN_DAYS`].
    pub again: [i64; 3],
    /// The longest window that the vendor takes, seconds, when it refused longer ones.
    pub span: Option<i64>,
    /// Windows are named in UTC: the vendor misread local times.
    pub in_utc: bool,
    /// The vendor gives nothing of this until then.
    pub closed_until: i64,
    /// The last round found nothing new.
    pub is_silent: bool,
    /// What the vendor gives, by the serial number of the device that it is of; empty: of the whole site.
    pub known: BTreeMap<String, Known>,
}

/// What a vendor gives for a site or a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Known {
    /// The first reading and the last one, microseconds since 1970 UTC.
    pub from: i64,
    pub to: i64,
    /// The seconds between readings, where they are others than expected.
    pub quantities: Vec<(Quantity, Option<i64>)>,
}

impl Cursor {
    pub(crate) fn first(stream: &Stream, now: i64) -> Self {
        let from = floor(now - FIRST_LOOK.max(stream.cadence * SECOND), stream.cadence);
        Self { until: from, again: [from; 3], ..Self::default() }
    }

    pub(crate) fn span(&self, stream: &Stream) -> i64 {
        self.span.unwrap_or(stream.span_max).clamp(stream.span_min, stream.span_max) * SECOND
    }

    /// The end of what can be asked for.
    pub(crate) fn end(&self, stream: &Stream, now: i64) -> i64 {
        floor(now - stream.settles * SECOND, stream.cadence)
    }

    /// The windows that hold what is new, in order. Those of one round; the last one ends now.
    pub(crate) fn fresh(&self, stream: &Stream, now: i64) -> Vec<Window> {
        let end = self.end(stream, now);
        let span = self.span(stream);
        let horizon = stream.horizon.map_or(i64::MIN, |horizon| ceil(now - horizon * SECOND, stream.cadence));
        let start = self.until.max(horizon);
        if start >= end {
            return Vec::new();
        }
        let calls = (end - start + span - 1) / span;
        // What is left of the calls is filled with what is known already.
        let slack = calls * span - (end - start);
        let start = (start - slack.min(floor(stream.overlap * SECOND, stream.cadence))).max(horizon);
        windows(Window { from: start, to: end }, span)
    }

    /// A window to read again, and which of [`AGAIN_DAYS`] that is. Whole days, as long as a window may be.
    pub(crate) fn again(&self, stream: &Stream, now: i64) -> Option<(usize, Window)> {
        if !stream.is_polled || stream.is_instant {
            return None;
        }
        (0..AGAIN_DAYS.len()).find_map(|level| {
            let from = self.again[level];
            let limit = floor(now - AGAIN_DAYS[level] * DAY, stream.cadence).min(self.until);
            let day = DAY.max(stream.cadence * SECOND);
            (limit - from >= day).then(|| (level, Window { from, to: from + day.min(self.span(stream)) }))
        })
    }

    /// Notes what an answer about a fresh window brought; `last` is the end of its last reading.
    pub(crate) fn advance(&mut self, last: Option<i64>) {
        if let Some(last) = last
            && last > self.until
        {
            self.until = last;
            self.is_silent = false;
        }
    }

    /// Gives up on what a silent site may still have; answers what is given up.
    pub(crate) fn give_up(&mut self, stream: &Stream, now: i64) -> Option<Window> {
        let limit = floor(now - SILENT_DAYS_MAX * DAY, stream.cadence);
        let lost = Window { from: self.until, to: limit };
        (lost.len() > 0).then(|| {
            self.until = limit;
            lost
        })
    }

    /// Halves the window after a refusal. `false`: it is as short as it may be.
    pub(crate) fn shrink(&mut self, stream: &Stream, window: Window) -> bool {
        let half = floor(window.len() / 2, stream.cadence) / SECOND;
        let next = half.max(stream.span_min);
        let is_shorter = next * SECOND < window.len();
        if is_shorter {
            self.span = Some(next);
        }
        is_shorter
    }
}

/// Parts of a window, in order, none longer than `span`.
pub(crate) fn windows(all: Window, span: i64) -> Vec<Window> {
    let mut parts = Vec::new();
    let mut from = all.from;
    while from < all.to {
        let to = all.to.min(from + span);
        parts.push(Window { from, to });
        from = to;
    }
    parts
}

/// The last multiple of some seconds at or before a time.
pub(crate) fn floor(ts: i64, seconds: i64) -> i64 {
    ts - ts.rem_euclid(seconds * SECOND)
}

fn ceil(ts: i64, seconds: i64) -> i64 {
    floor(ts + seconds * SECOND - 1, seconds)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const QUARTERS: Stream = Stream {
        name: "energy",
        cadence: 900,
        span_max: 86_400,
        span_min: 900,
        settles: 90,
        overlap: 6 * 3600,
        horizon: None,
        is_polled: true,
        is_sparse: false,
        is_instant: false,
    };

    #[test]
    fn windows_of_a_poll_fill_their_calls_with_what_is_known() {
        let now = 100 * DAY + 95 * SECOND;
        let mut cursor = Cursor { until: 100 * DAY - 3600 * SECOND, span: Some(43_200), ..Cursor::default() };
        // The quarter before midnight has settled; six hours before are asked for again.
        let expected = Window { from: 100 * DAY - 7 * 3600 * SECOND, to: 100 * DAY };
        assert_eq!(cursor.fresh(&QUARTERS, now), [expected]);
        // A day and an hour take three calls of twelve hours, whether or not they are full.
        cursor.until = 99 * DAY - 3600 * SECOND;
        let windows = cursor.fresh(&QUARTERS, now);
        assert_eq!(windows.len(), 3);
        assert_eq!((windows[0].from, windows[2].to), (99 * DAY - 7 * 3600 * SECOND, 100 * DAY));
        cursor.until = 100 * DAY;
        assert_eq!(cursor.fresh(&QUARTERS, now), []);
    }

    #[test]
    fn what_was_read_is_read_again_by_age() {
        let mut cursor = Cursor { until: 10 * DAY, again: [8 * DAY, 6 * DAY, 5 * DAY], ..Cursor::default() };
        let now = 10 * DAY + 3600 * SECOND;
        assert_eq!(cursor.again(&QUARTERS, now), Some((0, Window { from: 8 * DAY, to: 9 * DAY })));
        cursor.again[0] = 9 * DAY;
        assert_eq!(cursor.again(&QUARTERS, now), Some((1, Window { from: 6 * DAY, to: 7 * DAY })));
        cursor.again[1] = 7 * DAY;
        assert_eq!(cursor.again(&QUARTERS, now), None);
    }

    #[test]
    fn a_silent_site_is_waited_for_a_month() {
        let mut cursor = Cursor { until: 10 * DAY, ..Cursor::default() };
        assert_eq!(cursor.give_up(&QUARTERS, 40 * DAY), None);
        let lost = cursor.give_up(&QUARTERS, 42 * DAY + 5 * SECOND);
        assert_eq!((lost, cursor.until), (Some(Window { from: 10 * DAY, to: 12 * DAY }), 12 * DAY));
        // What it sends after all is found by a window that is read again.
        assert!(cursor.again(&QUARTERS, 42 * DAY).is_some());
    }

    #[test]
    fn a_refused_window_is_halved_until_it_is_short() {
        let mut cursor = Cursor::default();
        let mut lengths = Vec::new();
        loop {
            let span = cursor.span(&QUARTERS);
            lengths.push(span / SECOND);
            if !cursor.shrink(&QUARTERS, Window { from: 0, to: span }) {
                break;
            }
        }
        assert_eq!(lengths, [86_400, 43_200, 21_600, 10_800, 5_400, 2_700, 900]);
    }

    proptest! {
        /// Windows cover all that is new without holes, none is too long, and nothing beyond what has settled is asked for.
        #[test]
        fn windows_cover_what_is_new(until in 0i64..400, ahead in 0i64..400, span in 1i64..96, jitter in 0i64..900) {
            let cursor = Cursor { until: until * 900 * SECOND, span: Some(span * 900), ..Cursor::default() };
            let now = (until + ahead) * 900 * SECOND + jitter * SECOND;
            let windows = cursor.fresh(&QUARTERS, now);
            let end = cursor.end(&QUARTERS, now);
            prop_assert_eq!(windows.is_empty(), end <= cursor.until);
            if let (Some(first), Some(last)) = (windows.first(), windows.last()) {
                prop_assert!(first.from <= cursor.until && last.to == end && end <= now - 90 * SECOND);
                prop_assert!(windows.iter().all(|w| w.len() > 0 && w.len() <= span * 900 * SECOND));
                prop_assert!(windows.windows(2).all(|pair| pair[0].to == pair[1].from));
                // Overlap never costs a call.
                let needed = (end - cursor.until + span * 900 * SECOND - 1) / (span * 900 * SECOND);
                prop_assert_eq!(windows.len() as i64, needed);
            }
        }
    }
}
