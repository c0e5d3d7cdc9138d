//! The ledger of gaps: what the cadence of a stream promises and no answer brought.
//!
//! A window that is read again a day, three and seven days later shows what is missing in it, and what has come meanwhile. An
//! interval that an answer names without a value is none: the vendor says that there is nothing.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use uuid::Uuid;
use wattlake_catalog::{Gap, GapState};

use super::{
    SECOND,
    connector::{Decoded, Quantity, Stream, Window},
    cursor::Cursor,
    store::Places,
};
use crate::{Engine, Result};

/// Stretches of a window in which an answer has no interval, by quantity.
pub(crate) fn missing(
    stream: &Stream,
    cursor: &Cursor,
    window: Window,
    decoded: &Decoded,
) -> BTreeMap<Quantity, Vec<i64>> {
    let Some(data_from) = cursor.data_from.filter(|_| !stream.is_sparse) else { return BTreeMap::new() };
    let step = cursor.cadence.unwrap_or(stream.cadence) * SECOND;
    let from = window.from.max(data_from);
    let to = window.to.min(cursor.until);
    let mut told: BTreeMap<Quantity, BTreeSet<i64>> = BTreeMap::new();
    // What is told of devices is compared nowhere: they come and go.
    for point in decoded.points.iter().filter(|point| point.device.is_none()) {
        told.entry(point.quantity).or_default().insert(point.ts);
    }
    for (quantity, ts) in &decoded.empty {
        told.entry(*quantity).or_default().insert(*ts);
    }
    let first = from + (-from).rem_euclid(step);
    let missing = cursor.seen.iter().map(|quantity| {
        let told = told.get(quantity);
        let times = (first..to).step_by(step as usize);
        let times = times.filter(|ts| told.is_none_or(|told| !told.contains(ts))).collect::<Vec<_>>();
        (*quantity, times)
    });
    missing.filter(|(_, times)| !times.is_empty()).collect()
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
    let id = places.source;
    let mut open = engine.catalog().gaps(Some(id), Some(GapState::Open), i64::MAX).await?;
    let inside = |gap: &Gap| (window.from..window.to).contains(&gap.from.as_microsecond());
    open.retain(|gap| gap.stream == stream.name && inside(gap));
    let missing = missing(stream, cursor, window, decoded);
    if open.is_empty() && missing.is_empty() {
        return Ok(());
    }
    let step = cursor.cadence.unwrap_or(stream.cadence) * SECOND;
    let view = engine.read_view();
    let mut still = Vec::new();
    for (quantity, times) in missing {
        let Some(series) = places.series(quantity, None) else { continue };
        for stretch in stretches(&view.missing(&series, times).await?, step) {
            still.push((series.clone(), stretch));
        }
    }
    let now = Timestamp::from_microsecond(engine.clock().now_micros()).unwrap_or_default();
    let at = |micros: i64| Timestamp::from_microsecond(micros).unwrap_or_default();
    let nothing = |asked: i64| {
        let times = if asked == 1 { "once".to_owned() } else { format!("{asked} times") };
        format!("asked {times}, the last time at {now}: the vendor has nothing")
    };
    let mut changed = Vec::new();
    for mut gap in open {
        let (from, to) = (gap.from.as_microsecond(), gap.to.as_microsecond());
        let left = still.iter().position(|(series, (start, end))| {
            series.entity == gap.entity_id && *series.metric == *gap.metric && *start < to && *end > from
        });
        gap.asked += 1;
        gap.asked_at = now;
        match left {
            None => {
                gap.state = GapState::Filled;
                gap.proof = Some(format!("an answer at {now} had readings for all of it"));
            }
            Some(left) => {
                let (_, (start, end)) = still.swap_remove(left);
                (gap.from, gap.to) = (at(start), at(end));
                if is_last {
                    gap.state = GapState::Empty;
                    gap.proof = Some(nothing(gap.asked));
                }
            }
        }
        changed.push(gap);
    }
    changed.extend(still.into_iter().map(|(series, (start, end))| Gap {
        id: Uuid::now_v7(),
        source_id: id,
        entity_id: series.entity,
        stream: stream.name.to_owned(),
        metric: series.metric.to_string(),
        from: at(start),
        to: at(end),
        state: if is_last { GapState::Empty } else { GapState::Open },
        found_at: now,
        asked: 1,
        asked_at: now,
        proof: is_last.then(|| nothing(1)),
    }));
    Ok(engine.catalog().save_gaps(&changed).await?)
}

/// Seconds between most readings of an answer, where there are enough to tell.
pub(crate) fn cadence(decoded: &Decoded) -> Option<i64> {
    const READINGS_MIN: usize = 12;
    let mut times: BTreeMap<Quantity, BTreeSet<i64>> = BTreeMap::new();
    for point in &decoded.points {
        times.entry(point.quantity).or_default().insert(point.ts);
    }
    let (_, times) = times.into_iter().next()?;
    if times.len() < READINGS_MIN {
        return None;
    }
    let times: Vec<_> = times.into_iter().collect();
    let mut steps: Vec<_> = times.windows(2).map(|pair| (pair[1] - pair[0]) / SECOND).collect();
    steps.sort_unstable();
    Some(steps[steps.len() / 2]).filter(|step| *step > 0)
}

#[cfg(test)]
mod tests {
    use wattlake_catalog::Quality;

    use super::*;
    use crate::sources::connector::Point;

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

    fn point(quarter: i64) -> Point {
        let (quantity, ts) = (Quantity::Energy, quarter * 900 * SECOND);
        Point { quantity, device: None, ts, value: 1.0, unit: "Wh", quality: Quality::Good }
    }

    #[test]
    fn what_is_neither_told_nor_said_to_be_empty_is_missing() {
        let cursor = Cursor {
            until: 10 * 900 * SECOND,
            data_from: Some(2 * 900 * SECOND),
            seen: [Quantity::Energy].into(),
            ..Cursor::default()
        };
        let decoded = Decoded {
            points: [3, 4, 8].map(point).into(),
            empty: vec![(Quantity::Energy, 6 * 900 * SECOND)],
            ..Decoded::default()
        };
        let window = Window { from: 0, to: 20 * 900 * SECOND };
        let found = missing(&STREAM, &cursor, window, &decoded);
        let quarters: Vec<_> = found[&Quantity::Energy].iter().map(|ts| ts / (900 * SECOND)).collect();
        // Before the first reading and after the last one nothing is known to be missing.
        assert_eq!(quarters, [2, 5, 7, 9]);
        assert_eq!(stretches(&[1, 2, 3, 7, 9, 10], 1), [(1, 4), (7, 8), (9, 11)]);
    }

    #[test]
    fn the_cadence_is_that_of_most_readings() {
        let decoded = |step: i64| {
            let points = (0..40).filter(|n| n % 7 != 0).map(|n| point(n * step)).collect();
            Decoded { points, ..Decoded::default() }
        };
        assert_eq!(cadence(&decoded(1)), Some(900));
        assert_eq!(cadence(&decoded(4)), Some(3600));
        assert_eq!(cadence(&Decoded { points: vec![point(1), point(2)], ..Decoded::default() }), None);
    }
}
