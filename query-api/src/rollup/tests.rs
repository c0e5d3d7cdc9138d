mod summaries;

use std::collections::BTreeMap;

use jiff::{Timestamp, tz::TimeZone};
use proptest::prelude::*;
use wattlake_catalog::Quality;
use wattlake_config::MetricKind;
use wattlake_engine::{Point, Summary};

use super::{
    aggregate::{Aggregation, Cell, Item, Rules, Sample, aggregate},
    bucket::{Buckets, Width},
};

const MINUTE: i64 = 60_000_000;

fn time(text: &str) -> Timestamp {
    text.parse().expect("time")
}

fn buckets(width: &str, from: &str, to: &str, zone: &str) -> Vec<String> {
    let zone = TimeZone::get(zone).expect("zone");
    let buckets = Buckets::new(width.parse().expect("width"), time(from), time(to), &zone).expect("buckets");
    buckets.edges.iter().map(|edge| Timestamp::from_microsecond(*edge).expect("edge").to_string()).collect()
}

/// ROLL-2: days of 23, 24 and 25 hours, a day that starts at one o'clock, a half-hour change, a day that never was.
#[test]
fn calendar_days_follow_the_zone() {
    let berlin = |from, to| buckets("1d", from, to, "Europe/Berlin");
    assert_eq!(
        berlin("2026-03-28T23:00:00Z", "2026-03-30T22:00:00Z"),
        ["2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z", "2026-03-30T22:00:00Z"]
    );
    assert_eq!(
        berlin("2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"),
        ["2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"]
    );
    assert_eq!(
        buckets("1d", "2018-11-03T03:00:00Z", "2018-11-05T02:00:00Z", "America/Sao_Paulo"),
        ["2018-11-03T03:00:00Z", "2018-11-04T03:00:00Z", "2018-11-05T02:00:00Z"]
    );
    assert_eq!(
        buckets("1d", "2026-04-04T13:00:00Z", "2026-04-05T13:30:00Z", "Australia/Lord_Howe"),
        ["2026-04-04T13:00:00Z", "2026-04-05T13:30:00Z"]
    );
    assert_eq!(
        buckets("1d", "2011-12-29T10:00:00Z", "2011-12-31T10:00:00Z", "Pacific/Apia"),
        ["2011-12-29T10:00:00Z", "2011-12-30T10:00:00Z", "2011-12-31T10:00:00Z"]
    );
}

#[test]
fn weeks_months_and_years_are_those_of_the_calendar() {
    assert_eq!(
        buckets("1w", "2026-01-01T00:00:00Z", "2026-01-08T00:00:00Z", "UTC"),
        ["2025-12-29T00:00:00Z", "2026-01-05T00:00:00Z", "2026-01-12T00:00:00Z"]
    );
    assert_eq!(
        buckets("1mo", "2026-02-10T00:00:00Z", "2026-04-01T00:00:00Z", "Asia/Kathmandu"),
        ["2026-01-31T18:15:00Z", "2026-02-28T18:15:00Z", "2026-03-31T18:15:00Z", "2026-04-30T18:15:00Z"]
    );
    assert_eq!(
        buckets("3mo", "2026-02-10T00:00:00Z", "2026-04-01T00:00:00Z", "UTC"),
        ["2026-01-01T00:00:00Z", "2026-04-01T00:00:00Z"]
    );
    assert_eq!(
        buckets("1y", "2025-12-31T23:30:00Z", "2026-01-01T00:30:00Z", "Europe/Berlin"),
        ["2025-12-31T23:00:00Z", "2026-12-31T23:00:00Z"]
    );
    assert_eq!(buckets("all", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "UTC").len(), 2);
}

#[test]
fn nonsense_is_refused() {
    for text in ["", "d", "0d", "1x", "-1d", "99999d", "1.5h"] {
        assert!(text.parse::<Width>().is_err(), "{text}");
    }
    let (from, to) = (time("2026-01-01T00:00:00Z"), time("2126-01-01T00:00:00Z"));
    assert!(Buckets::new(Width::Fixed(60), from, to, &TimeZone::UTC).is_err(), "too many");
    assert!(Buckets::new(Width::Days(1), to, from, &TimeZone::UTC).is_err(), "backwards");
}

fn rules(kind: MetricKind, aggregation: Aggregation, to: i64) -> Rules {
    Rules { kind, aggregation, cadence: 15 * MINUTE, from: 0, to }
}

fn of_rows(samples: &[Sample], buckets: &Buckets, rules: &Rules) -> BTreeMap<usize, Cell> {
    let items: Vec<_> = samples.iter().map(|sample| Item::Row(*sample)).collect();
    aggregate(&items, buckets, rules).expect("rows are enough")
}

fn hours(n: i64) -> Buckets {
    Buckets { edges: (0..=n).map(|i| i * 60 * MINUTE).collect() }
}

fn good(minute: i64, value: f64) -> Sample {
    Sample { ts: minute * MINUTE, value, quality: Quality::Good }
}

fn values(cells: &BTreeMap<usize, Cell>) -> Vec<(usize, f64)> {
    cells.iter().map(|(i, cell)| (*i, (cell.value * 1e6).round() / 1e6)).collect()
}

#[test]
fn power_is_weighted_by_time() {
    let samples =
        [good(0, 10.0), good(15, 20.0), good(30, 30.0), good(45, 40.0), good(60, 8.0), good(62, 4.0)];
    let cells =
        of_rows(&samples, &hours(2), &rules(MetricKind::GaugeExtensive, Aggregation::Default, 120 * MINUTE));
    // The second hour: 8 for two minutes, 4 for two cadences of 15.
    assert_eq!(values(&cells), [(0, 25.0), (1, ((8.0 * 2.0 + 4.0 * 30.0) / 32.0 * 1e6f64).round() / 1e6)]);
    let gap = [good(0, 10.0), good(50, 1.0)];
    let cells =
        of_rows(&gap, &hours(1), &rules(MetricKind::GaugeExtensive, Aggregation::Default, 60 * MINUTE));
    // A reading stands for two cadences at most: 10 for 30 minutes, 1 for the 10 that are left.
    assert_eq!(values(&cells), [(0, ((10.0 * 30.0 + 1.0 * 10.0) / 40.0 * 1e6f64).round() / 1e6)]);
}

#[test]
fn registers_are_booked_by_increase() {
    let kind = MetricKind::Register;
    let of = |samples: &[Sample], n: i64| {
        values(&of_rows(samples, &hours(n), &rules(kind, Aggregation::Default, n * 60 * MINUTE)))
    };
    assert_eq!(of(&[good(0, 100.0), good(15, 101.0), good(30, 103.0), good(60, 104.0)], 1), [(0, 4.0)]);
    // A reset counts from zero; a small fall is a glitch that books nothing.
    assert_eq!(of(&[good(0, 100.0), good(15, 2.0), good(30, 3.0)], 1), [(0, 3.0)]);
    assert_eq!(of(&[good(0, 100.0), good(15, 99.0), good(30, 101.0)], 1), [(0, 1.0)]);
    // A fall that lasts is none, and counts nothing itself.
    assert_eq!(of(&[good(0, 100.0), good(15, 99.0), good(30, 99.5), good(45, 99.75)], 1), [(0, 0.75)]);
    // Across a gap of four hours the increase is spread, not dumped.
    assert_eq!(of(&[good(0, 100.0), good(240, 108.0)], 4), [(0, 2.0), (1, 2.0), (2, 2.0), (3, 2.0)]);
}

proptest! {
    /// Sums, counts, extremes and percentiles equal those of a slow reading of the same samples.
    #[test]
    fn simple_aggregates_equal_the_obvious_ones(minutes in prop::collection::btree_map(0i64..300, -100i32..100, 1..60)) {
        let samples: Vec<_> = minutes.iter().map(|(m, v)| good(*m, f64::from(*v))).collect();
        let buckets = hours(5);
        let cells = |aggregation| of_rows(&samples, &buckets, &rules(MetricKind::Interval, aggregation, 300 * MINUTE));
        for hour in 0..5usize {
            let mut inside: Vec<f64> =
                minutes.iter().filter(|(m, _)| **m / 60 == hour as i64).map(|(_, v)| f64::from(*v)).collect();
            let get = |aggregation| cells(aggregation).get(&hour).map(|cell| cell.value);
            if inside.is_empty() {
                prop_assert_eq!(get(Aggregation::Sum), None);
                continue;
            }
            let n = inside.len() as f64;
            prop_assert_eq!(get(Aggregation::First), inside.first().copied());
            prop_assert_eq!(get(Aggregation::Last), inside.last().copied());
            prop_assert_eq!(get(Aggregation::Default), Some(inside.iter().sum()));
            prop_assert_eq!(get(Aggregation::Avg), Some(inside.iter().sum::<f64>() / n));
            prop_assert_eq!(get(Aggregation::Count), Some(n));
            inside.sort_by(f64::total_cmp);
            prop_assert_eq!(get(Aggregation::Min), inside.first().copied());
            prop_assert_eq!(get(Aggregation::Max), inside.last().copied());
            let median = (inside[(inside.len() - 1) / 2] + inside[inside.len() / 2]) / 2.0;
            prop_assert!((get(Aggregation::Percentile(50)).expect("median") - median).abs() < 1e-9);
        }
    }
}

/// Readings of a register or a gauge as fleets send them: regular, with gaps, resets, glitches and all qualities.
fn readings() -> impl Strategy<Value = Vec<Sample>> {
    let reading = (
        prop_oneof![80 => Just(15i64), 10 => 1i64..40, 10 => 40i64..400, 1 => 400i64..4000],
        prop_oneof![6 => 0i64..40, 1 => -400i64..-1, 1 => -30i64..0],
        prop_oneof![8 => Just(Quality::Good), 1 => Just(Quality::Estimated)],
    );
    prop::collection::vec(reading, 1..300).prop_map(|readings| {
        let (mut minute, mut value) = (-120, 500i64);
        let sample = |(pause, step, quality): (i64, i64, Quality)| {
            minute += pause;
            value = (value + step).max(0);
            Sample { ts: minute * MINUTE, value: value as f64 / 8.0, quality }
        };
        readings.into_iter().map(sample).collect()
    })
}

fn is_near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    /// ROLL-5 in the small: some of the stretches within a bucket summed up, the others as rows, give the same as all rows.
    #[test]
    fn days_say_the_same_as_their_rows(
        samples in readings(),
        kind in prop_oneof![
            Just(MetricKind::GaugeExtensive), Just(MetricKind::GaugeIntensive), Just(MetricKind::Interval), Just(MetricKind::Register)
        ],
        aggregation in prop_oneof![
            4 => Just(Aggregation::Default), 1 => Just(Aggregation::Avg), 1 => Just(Aggregation::Sum), 1 => Just(Aggregation::Min),
            1 => Just(Aggregation::Max), 1 => Just(Aggregation::Count), 1 => Just(Aggregation::First), 1 => Just(Aggregation::Last)
        ],
        cuts in prop::collection::vec((1usize..30, any::<bool>()), 1..60),
    ) {
        let buckets = Buckets { edges: (0..=10).map(|i| i * 360 * MINUTE).collect() };
        let rules = rules(kind, aggregation, 60 * 60 * MINUTE);
        let expected = of_rows(&samples, &buckets, &rules);
        let hold = rules.cadence * wattlake_engine::HOLD_CADENCES;
        let place = |sample: &Sample| (sample.ts < rules.from, sample.ts >= rules.to, buckets.index(sample.ts));
        let mut stretches: Vec<(Vec<Sample>, bool)> = Vec::new();
        let mut rest = &samples[..];
        for (length, is_day) in cuts.iter().cycle() {
            let Some(first) = rest.first() else { break };
            let same = rest.iter().take_while(|sample| place(sample) == place(first)).count().min(*length);
            stretches.push((rest[..same].to_vec(), *is_day));
            rest = &rest[same..];
        }
        let summaries: Vec<Summary> = stretches.iter().map(|(samples, _)| {
            let mut points = samples.iter().map(|s| (Point { ts: s.ts, value: s.value }, s.quality == Quality::Estimated));
            let (first, is_estimated) = points.next().expect("one");
            let mut summary = Summary::of(first, is_estimated);
            points.for_each(|(point, is_estimated)| summary.push(point, is_estimated, kind, hold));
            summary
        }).collect();
        let mut items = Vec::new();
        for ((samples, is_day), summary) in stretches.iter().zip(&summaries) {
            match is_day {
                true => items.push(Item::Summary(summary)),
                false => items.extend(samples.iter().map(|sample| Item::Row(*sample))),
            }
        }
        // A summary that begins or ends with a fall says so.
        if let Some(cells) = aggregate(&items, &buckets, &rules) {
            prop_assert_eq!(cells.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
            for (index, cell) in &cells {
                let other = &expected[index];
                prop_assert_eq!((cell.count, cell.estimated), (other.count, other.estimated), "bucket {}", index);
                prop_assert!(is_near(cell.value, other.value), "bucket {index}: {} and {}", cell.value, other.value);
            }
        } else {
            prop_assert_eq!(kind, MetricKind::Register);
        }
    }
}
