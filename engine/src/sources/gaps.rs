//! The ledger of gaps: what the cadence of a series promises and no answer brought.
//!
//! A window that is read again a day, three and seven days later shows what is missing in it, and what has come meanwhile. An
//! interval that an answer names without a value is none: the vendor says that there is nothing. What nobody is asked for is
//! [watched](super::watch) in the archive.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use jiff::SignedDuration;
use uuid::Uuid;
use wattlake_catalog::{EntityId, Gap, GapFilter, GapState};

use super::{
    SECOND,
    connector::{Decoded, Quantity, Stream, Window},
    cursor::{Cursor, DAY, SILENT_DAYS_MAX},
    store::Places,
    time,
};
use crate::{Engine, Result, SeriesKey};

/// A device (none: the whole site) and what an answer tells of it.
type Told<'a> = (&'a str, Quantity);

fn named(device: &Option<String>) -> &str {
    device.as_deref().unwrap_or_default()
}

/// Times of the readings of an answer, in order.
pub(crate) fn by_series(decoded: &Decoded) -> BTreeMap<Told<'_>, Vec<i64>> {
    let mut times: BTreeMap<_, Vec<i64>> = BTreeMap::new();
    for point in &decoded.points {
        times.entry((named(&point.device), point.quantity)).or_default().push(point.ts);
    }
    for times in times.values_mut() {
        times.sort_unstable();
        times.dedup();
    }
    times
}

/// Times of a window that an answer should have told of a series.
struct Missing<'a> {
    told: Told<'a>,
    /// Microseconds between readings.
    step: i64,
    times: Vec<i64>,
}

/// What an answer about a window does not tell.
fn missing<'a>(
    stream: &Stream,
    cursor: &'a Cursor,
    window: Window,
    decoded: &'a Decoded,
) -> Vec<Missing<'a>> {
    if stream.is_sparse {
        return Vec::new();
    }
    let mut told: BTreeMap<Told<'_>, BTreeSet<i64>> = BTreeMap::new();
    for point in &decoded.points {
        told.entry((named(&point.device), point.quantity)).or_default().insert(point.ts);
    }
    for (quantity, device, ts) in &decoded.empty {
        told.entry((named(device), *quantity)).or_default().insert(*ts);
    }
    let mut all = Vec::new();
    for (device, known) in &cursor.known {
        let from = window.from.max(known.from);
        let mut to = window.to.min(cursor.until);
        if !device.is_empty() {
            // One that was taken away is not waited for any longer than a site.
            to = to.min(known.to + SILENT_DAYS_MAX * DAY);
        }
        for (quantity, cadence) in &known.quantities {
            let step = cadence.unwrap_or(stream.cadence) * SECOND;
            let told = told.get(&(device.as_str(), *quantity));
            let times = (from + (-from).rem_euclid(step)..to).step_by(step as usize);
            let times = times.filter(|ts| told.is_none_or(|told| !told.contains(ts))).collect::<Vec<_>>();
            if !times.is_empty() {
                all.push(Missing { told: (device, *quantity), step, times });
            }
        }
    }
    all
}

/// Times in order as stretches, `from <= ts < to`.
pub(crate) fn stretches(times: &[i64], step: i64) -> Vec<(i64, i64)> {
    let mut out: Vec<(i64, i64)> = Vec::new();
    for ts in times {
        match out.last_mut() {
            Some((_, to)) if *to == *ts => *to += step,
            _ => out.push((*ts, ts + step)),
        }
    }
    out
}

/// A stretch of a series without readings, `from <= ts < to`; microseconds since 1970 UTC.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Hole {
    pub series: SeriesKey,
    pub from: i64,
    pub to: i64,
    /// Microseconds between readings.
    pub cadence: i64,
}

/// A window of a page of the ledger that was looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look<'a> {
    /// The energy source whose vendor was asked; none: the archive itself was looked at, and nobody was asked.
    pub asked: Option<EntityId>,
    pub stream: &'a str,
    pub window: Window,
    /// The window will not be looked at any more.
    pub is_last: bool,
}

/// Brings the ledger up to date after a window was read again. `is_last`: it will not be asked for any more.
pub(crate) async fn note(
    engine: &Engine,
    places: &Places<'_>,
    stream: &Stream,
    cursor: &Cursor,
    window: Window,
    decoded: &Decoded,
    is_last: bool,
) -> Result<()> {
    let view = engine.read_view();
    let mut holes = Vec::new();
    for missing in missing(stream, cursor, window, decoded) {
        let (device, quantity) = missing.told;
        let device = Some(device).filter(|device| !device.is_empty());
        let Some(series) = places.series(quantity, device) else { continue };
        for (from, to) in stretches(&view.missing(&series, missing.times).await?, missing.step) {
            holes.push(Hole { series: series.clone(), from, to, cadence: missing.step });
        }
    }
    let look = Look { asked: Some(places.source), stream: stream.name, window, is_last };
    write_down(engine, look, holes, |_| Some(places.source)).await
}

/// Writes down the holes of a window: new ones are open, those that are not there any more filled, and after the last look they are
/// empty for good. `source_of`: the energy source of an entity.
pub(crate) async fn write_down(
    engine: &Engine,
    look: Look<'_>,
    holes: Vec<Hole>,
    source_of: impl Fn(EntityId) -> Option<EntityId>,
) -> Result<()> {
    let filter = GapFilter {
        source: look.asked,
        state: Some(GapState::Open),
        stream: Some(look.stream),
        between: Some((time(look.window.from), time(look.window.to))),
        ..GapFilter::default()
    };
    let open = engine.catalog().gaps(&filter, i64::MAX).await?;
    let now = time(engine.clock().now_micros());
    let nothing = |asked: i64| match (look.asked, asked) {
        (None, _) => format!("no reading had come until {now}, and nobody can be asked"),
        (Some(_), 1) => format!("asked once, the last time at {now}: the vendor has nothing"),
        (Some(_), asked) => format!("asked {asked} times, the last time at {now}: the vendor has nothing"),
    };
    // A whole fleet may be silent at once.
    let mut by_series: HashMap<(EntityId, Arc<str>), Vec<Hole>> = HashMap::new();
    for hole in holes {
        by_series.entry((hole.series.entity, Arc::clone(&hole.series.metric))).or_default().push(hole);
    }
    let mut changed = Vec::new();
    for mut gap in open {
        let (from, to) = (gap.from.as_microsecond(), gap.to.as_microsecond());
        let before = gap.clone();
        let left = by_series.get_mut(&(gap.entity_id, Arc::from(gap.metric.as_str()))).and_then(|holes| {
            let at = holes.iter().position(|hole| hole.from < to && hole.to > from)?;
            Some(holes.swap_remove(at))
        });
        if look.asked.is_some() {
            gap.asked += 1;
            gap.asked_at = now;
        }
        match left {
            None => {
                gap.state = GapState::Filled;
                gap.proof = Some(match look.asked {
                    Some(_) => format!("an answer at {now} had readings for all of it"),
                    None => format!("at {now} there were readings for all of it"),
                });
            }
            Some(hole) => {
                (gap.from, gap.to) = (time(hole.from), time(hole.to));
                if look.is_last {
                    gap.state = GapState::Empty;
                    gap.proof = Some(nothing(gap.asked));
                }
            }
        }
        if gap != before {
            changed.push(gap);
        }
    }
    let asked = i64::from(look.asked.is_some());
    changed.extend(by_series.into_values().flatten().map(|hole| Gap {
        id: Uuid::now_v7(),
        source_id: source_of(hole.series.entity),
        entity_id: hole.series.entity,
        stream: look.stream.to_owned(),
        metric: hole.series.metric.to_string(),
        from: time(hole.from),
        to: time(hole.to),
        state: if look.is_last { GapState::Empty } else { GapState::Open },
        found_at: now,
        asked,
        asked_at: now,
        proof: look.is_last.then(|| nothing(asked)),
        cadence: Some(SignedDuration::from_micros(hole.cadence)),
    }));
    match changed.is_empty() {
        true => Ok(()),
        false => Ok(engine.catalog().save_gaps(&changed).await?),
    }
}

/// Seconds between most of some times, which ascend, where there are enough to tell.
pub(crate) fn cadence(times: &[i64]) -> Option<i64> {
    const READINGS_MIN: usize = 12;
    if times.len() < READINGS_MIN {
        return None;
    }
    let mut steps: Vec<_> = times.windows(2).map(|pair| (pair[1] - pair[0]) / SECOND).collect();
    steps.sort_unstable();
    Some(steps[steps.len() / 2]).filter(|step| *step > 0)
}

#[cfg(test)]
mod tests {
    use wattlake_catalog::Quality;

    use super::*;
    use crate::sources::{connector::Point, cursor::Known};

    const STREAM: Stream = Stream {
        name: "energy",
        cadence: 900,
        span_max: 86_400,
        span_min: 900,
        settles: 90,
        overlap: 0,
        horizon: None,
        is_polled: true,
        is_sparse: false,
        is_instant: false,
    };

    const QUARTER: i64 = 900 * SECOND;

    fn point(quarter: i64) -> Point {
        point_of(None, quarter)
    }

    fn point_of(device: Option<&str>, quarter: i64) -> Point {
        let (quantity, ts) = (Quantity::Energy, quarter * QUARTER);
        Point {
            quantity,
            device: device.map(str::to_owned),
            ts,
            value: 1.0,
            unit: "Wh",
            quality: Quality::Good,
        }
    }

    fn known(from: i64, to: i64, cadence: Option<i64>) -> Known {
        Known { from: from * QUARTER, to: to * QUARTER, quantities: vec![(Quantity::Energy, cadence)] }
    }

    /// Quarters that are missing, by device.
    fn quarters(cursor: &Cursor, window: Window, decoded: &Decoded) -> Vec<(String, Vec<i64>)> {
        let found = missing(&STREAM, cursor, window, decoded);
        found.iter().map(|m| (m.told.0.to_owned(), m.times.iter().map(|ts| ts / QUARTER).collect())).collect()
    }

    #[test]
    fn what_is_neither_told_nor_said_to_be_empty_is_missing() {
        let cursor = Cursor {
            until: 10 * QUARTER,
            known: [(String::new(), known(2, 8, None))].into(),
            ..Cursor::default()
        };
        let decoded = Decoded {
            points: [3, 4, 8].map(point).into(),
            empty: vec![(Quantity::Energy, None, 6 * QUARTER)],
            ..Decoded::default()
        };
        let found = quarters(&cursor, Window { from: 0, to: 20 * QUARTER }, &decoded);
        // Before the first reading and after the last one nothing is known to be missing.
        assert_eq!(found, [(String::new(), vec![2, 5, 7, 9])]);
        assert_eq!(stretches(&[1, 2, 3, 7, 9, 10], 1), [(1, 4), (7, 8), (9, 11)]);
    }

    #[test]
    fn each_device_has_times_and_a_pace_of_its_own() {
        let day = 96;
        let cursor = Cursor {
            until: 100 * day * QUARTER,
            known: [
                ("alive".into(), known(0, 100 * day, None)),
                ("gone".into(), known(0, 60 * day, None)),
                ("new".into(), known(90 * day + 2, 100 * day, None)),
                ("slow".into(), known(0, 100 * day, Some(3600))),
            ]
            .into(),
            ..Cursor::default()
        };
        let of = |device: &'static str, quarters: &[i64]| {
            quarters.iter().map(|n| point_of(Some(device), *n)).collect()
        };
        let points: Vec<Vec<Point>> =
            vec![of("alive", &[90 * day, 90 * day + 2]), of("new", &[90 * day + 2]), of("slow", &[90 * day])];
        let decoded = Decoded {
            points: points.concat(),
            // Nothing of one device tells nothing of another.
            empty: vec![(Quantity::Energy, Some("alive".into()), (90 * day + 3) * QUARTER)],
            ..Decoded::default()
        };
        let window = Window { from: 90 * day * QUARTER, to: (90 * day + 8) * QUARTER };
        let first = 90 * day;
        let after = |all: &[i64]| all.iter().map(|n| first + n).collect::<Vec<_>>();
        // The one that has been silent for a month is not waited for.
        assert_eq!(
            quarters(&cursor, window, &decoded),
            [
                ("alive".to_owned(), after(&[1, 4, 5, 6, 7])),
                ("new".to_owned(), after(&[3, 4, 5, 6, 7])),
                ("slow".to_owned(), after(&[4]))
            ]
        );
        let window = Window { from: 89 * day * QUARTER, to: (89 * day + 1) * QUARTER };
        let found = quarters(&cursor, window, &Decoded::default());
        assert!(
            found.iter().any(|(device, _)| device == "gone")
                && found.iter().all(|(device, _)| device != "new")
        );
    }

    #[test]
    fn the_cadence_is_that_of_most_readings() {
        let decoded = |step: i64| {
            let points = (0..40).filter(|n| n % 7 != 0).map(|n| point(n * step)).collect();
            Decoded { points, ..Decoded::default() }
        };
        let of = |decoded: &Decoded| cadence(&by_series(decoded)[&("", Quantity::Energy)]);
        assert_eq!(of(&decoded(1)), Some(900));
        assert_eq!(of(&decoded(4)), Some(3600));
        assert_eq!(of(&Decoded { points: vec![point(1), point(2)], ..Decoded::default() }), None);
    }
}
