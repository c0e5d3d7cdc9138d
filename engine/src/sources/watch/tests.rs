use std::sync::atomic::AtomicI64;

use proptest::prelude::*;

use super::*;

const MINUTE: i64 = 60 * SECOND;
/// A day far from the beginning of time.
const TODAY: i64 = 20_000 * DAY;

/// Times from two days before until two days after the begin of a day, without some.
fn every(step: i64, is_there: impl Fn(i64) -> bool) -> Vec<i64> {
    (TODAY - AROUND..TODAY + AROUND).step_by(step as usize).filter(|ts| is_there(*ts)).collect()
}

fn hours(holes: &[(i64, i64)]) -> Vec<(f64, f64)> {
    let hour = |ts: i64| (ts - TODAY) as f64 / HOUR as f64;
    holes.iter().map(|(from, to)| (hour(*from), hour(*to))).collect()
}

#[test]
fn holes_of_a_day_are_those_of_its_cadence() {
    let times = every(5 * MINUTE, |ts| !(TODAY + 3 * HOUR..TODAY + 5 * HOUR).contains(&ts));
    let found = look_at(&times, TODAY, None);
    assert_eq!((found.cadence, hours(&found.holes)), (Some(5 * MINUTE), vec![(3.0, 5.0)]));
    // Readings that come late within their interval are no holes.
    let jittered: Vec<_> =
        times.iter().enumerate().map(|(n, ts)| ts + (n as i64 * 37 % 100) * SECOND).collect();
    assert_eq!(look_at(&jittered, TODAY, None).holes.len(), 1);
    // Holes of the days around belong to those.
    for around in [-20, 24] {
        let times = every(5 * MINUTE, |ts| !(0..2 * HOUR).contains(&(ts - TODAY - around * HOUR)));
        assert_eq!(look_at(&times, TODAY, None).holes, []);
    }
    // A hole over midnight is one of both days.
    let times = every(5 * MINUTE, |ts| !(-HOUR..HOUR).contains(&(ts - TODAY)));
    assert_eq!(hours(&look_at(&times, TODAY, None).holes), [(0.0, 1.0)]);
}

#[test]
fn what_does_not_come_regularly_has_no_holes() {
    let mut ts = TODAY - AROUND;
    let times: Vec<_> = (0..3000u64)
        .map(|n| {
            ts += (1 + n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 180) as i64 * SECOND;
            ts
        })
        .collect();
    assert_eq!(look_at(&times, TODAY, None), Day::default());
    assert_eq!(look_at(&every(12 * HOUR, |_| true), TODAY, None), Day::default(), "too few");
    let ten_a_second: Vec<_> = (0..5000).map(|n| TODAY + n * SECOND / 10).collect();
    assert_eq!(look_at(&ten_a_second, TODAY, None), Day::default());
    assert_eq!(look_at(&[], TODAY, None), Day::default());
}

#[test]
fn a_nights_silence_is_none_unless_it_lasts() {
    let hour_of = |ts: i64| (ts - TODAY).rem_euclid(DAY) / HOUR;
    let sleeps = |ts: i64| !(6..18).contains(&hour_of(ts));
    let asleep = every(5 * MINUTE, |ts| !sleeps(ts));
    assert_eq!(look_at(&asleep, TODAY, None), Day { cadence: Some(5 * MINUTE), ..Day::default() });
    // The first night of a new series, too.
    let new = every(5 * MINUTE, |ts| !sleeps(ts) && ts > TODAY);
    assert_eq!(look_at(&new, TODAY, None).holes, []);
    // Silent by day as well.
    let broken = every(5 * MINUTE, |ts| !sleeps(ts) && !(TODAY..TODAY + DAY).contains(&ts));
    assert_eq!(hours(&look_at(&broken, TODAY, None).holes), [(0.0, 24.0)]);
    // What is silent for one night of three is missing.
    let once = every(5 * MINUTE, |ts| !(TODAY + HOUR..TODAY + 9 * HOUR).contains(&ts));
    assert_eq!(hours(&look_at(&once, TODAY, None).holes), [(1.0, 9.0)]);
}

#[test]
fn a_series_that_ended_is_silent_from_then_on() {
    let ended = every(5 * MINUTE, |ts| ts < TODAY + 7 * HOUR);
    assert_eq!(hours(&look_at(&ended, TODAY, None).holes), [(7.0, 24.0)]);
    let before = every(5 * MINUTE, |ts| ts < TODAY - 30 * HOUR);
    assert_eq!(hours(&look_at(&before, TODAY, None).holes), [(0.0, 24.0)]);
    // Too few of its readings lie in the days around to tell the cadence, or none: the day before has told it.
    for ended in [vec![], vec![TODAY - AROUND + HOUR]] {
        assert_eq!(look_at(&ended, TODAY, None).holes, []);
        assert_eq!(hours(&look_at(&ended, TODAY, Some(5 * MINUTE)).holes), [(0.0, 24.0)]);
    }
    // It is back.
    let back = every(5 * MINUTE, |ts| ts >= TODAY + 7 * HOUR);
    assert_eq!(look_at(&back, TODAY, None).holes, [], "new ones are missing nowhere");
    assert_eq!(hours(&look_at(&back, TODAY, Some(5 * MINUTE)).holes), [(0.0, 7.0)]);
    let back = every(HOUR, |ts| ts >= TODAY + 42 * HOUR);
    assert_eq!(hours(&look_at(&back, TODAY, Some(HOUR)).holes), [(0.0, 24.0)]);
}

#[test]
fn a_change_of_the_cadence_is_told_and_no_hole() {
    for (before, after) in [(MINUTE, 5 * MINUTE), (5 * MINUTE, MINUTE)] {
        let mut times: Vec<_> = (TODAY - AROUND..TODAY).step_by(before as usize).collect();
        times.extend((TODAY..TODAY + AROUND).step_by(after as usize));
        let found = look_at(&times, TODAY, None);
        assert_eq!(found, Day { cadence: Some(5 * MINUTE), changed: Some((before, after)), holes: vec![] });
    }
}

#[test]
fn many_holes_are_told_as_few() {
    let holes: Vec<_> =
        (0..1000i64).map(|n| (n * 100 + n / 10 * 1000, n * 100 + n / 10 * 1000 + 50)).collect();
    let told = few(holes.clone());
    assert_eq!(told.len(), HOLES_MAX);
    assert!(told.windows(2).all(|pair| pair[0].1 < pair[1].0));
    assert!(holes.iter().all(|hole| told.iter().any(|few| few.0 <= hole.0 && hole.1 <= few.1)));
    assert_eq!(few(holes[..HOLES_MAX].to_vec()), holes[..HOLES_MAX]);
}

proptest! {
    /// Of a series with one reading in each step, holes are the steps without one.
    #[test]
    fn holes_are_the_steps_without_a_reading(
        minutes in prop::sample::select(vec![5i64, 10, 15, 30]),
        outages in prop::collection::vec((0i64..96 * 60, 1i64..180), 0..6),
        jitter in 0i64..100,
    ) {
        let step = minutes * MINUTE;
        let start = TODAY - AROUND;
        let is_out = |ts: i64| outages.iter().any(|(from, len)| {
            let from = start + from * MINUTE;
            (from..from + len * MINUTE).contains(&ts)
        });
        let grid = every(step, |_| true);
        let there: Vec<i64> = grid.iter().copied().filter(|ts| !is_out(*ts)).collect();
        // Those before the first reading are of a series that is new.
        let first = there[0];
        let times: Vec<i64> =
            there.iter().enumerate().map(|(n, ts)| ts + jitter * (n as i64 % 7) * step / 2100).collect();
        let found = look_at(&times, TODAY, None);
        prop_assert_eq!(found.cadence.map(|cadence| (cadence + step / 4) / step), Some(1));
        for ts in grid.iter().filter(|ts| (TODAY..TODAY + DAY).contains(*ts)) {
            let middle = ts + step / 2;
            let is_told = found.holes.iter().any(|(from, to)| (*from..*to).contains(&middle));
            prop_assert_eq!(is_told, is_out(*ts) && *ts > first, "{}", (ts - TODAY) / MINUTE);
        }
        prop_assert!(found.holes.iter().all(|(from, to)| TODAY <= *from && from < to && *to <= TODAY + DAY));
    }
}

/// A world of pushed readings, looked at day by day.
struct World {
    engine: Arc<crate::Engine>,
    now: Arc<AtomicI64>,
    start: i64,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new() -> (Self, [EntityId; 2]) {
        let folder = tempfile::TempDir::new().expect("folder");
        let engine = crate::tests::start(&crate::tests::settings(folder.path())).await;
        let meters = crate::tests::two_meters(&engine).await;
        let crate::Clock::Fixed(now) = engine.clock().clone() else { panic!("the clock is set by hand") };
        let start = now.load(Ordering::Relaxed);
        assert_eq!(start % DAY, 0);
        (Self { engine, now, start, _folder: folder }, meters)
    }

    async fn push(&self, entity: EntityId, metric: &str, times: impl Iterator<Item = i64>) {
        let mut batch = crate::tests::power_batch(entity, times.map(|ts| (ts, 1.0)));
        batch.table[0].metric = metric.into();
        batch.table[0].unit = self.engine.metrics().normalise(metric, None).expect("a metric").0.to_owned();
        self.engine.write(batch).await.expect("stored");
    }

    /// Looks at what is due at a time of a new process.
    async fn look(&self, at: i64) -> (usize, Vec<CadenceChange>) {
        self.now.store(at, Ordering::Relaxed);
        let sources = Sources::new(Arc::clone(&self.engine));
        sources.run_due().await.expect("sources");
        let looks = sources.watch_due().await.expect("looks");
        assert_eq!(sources.watch_due().await.expect("looks"), 0, "each day once");
        (looks, sources.cadence_changes())
    }

    /// Gaps of a series: hours from the start, and what became of them.
    async fn gaps(&self, entity: EntityId, metric: &str) -> Vec<(i64, i64, GapState)> {
        let filter = GapFilter { entity: Some(entity), ..GapFilter::default() };
        let gaps = self.engine.catalog().gaps(&filter, i64::MAX).await.expect("gaps");
        let mut found: Vec<_> = gaps
            .iter()
            .filter(|gap| gap.metric == metric)
            .map(|gap| {
                assert_eq!((gap.stream.as_str(), gap.source_id, gap.asked), (LIVE, None, 0));
                assert_eq!(gap.proof.is_some(), gap.state != GapState::Open, "{gap:?}");
                let hour = |at: Timestamp| (at.as_microsecond() - self.start) / HOUR;
                (hour(gap.from), hour(gap.to), gap.state)
            })
            .collect();
        found.sort_unstable_by_key(|gap| gap.0);
        found
    }
}

/// Pushed readings over seven weeks, each day by a process of its own. One series has a hole that is never filled, and ends; another one
/// has a hole that is filled late, and changes its cadence; what has none has no gaps.
#[tokio::test]
async fn what_is_pushed_is_watched() {
    let (world, [ending, lasting]) = World::new().await;
    let day = |n: i64| world.start + n * DAY;
    let hole = day(5) + 3 * HOUR..day(5) + 5 * HOUR;
    let late: Vec<i64> = hole.clone().step_by((5 * MINUTE) as usize).collect();
    let mut changes = Vec::new();
    assert_eq!(world.look(world.start).await, (0, vec![]));
    for n in 0..52 {
        let times = |step: i64| (day(n)..day(n + 1)).step_by(step as usize);
        if n < 10 {
            world.push(ending, "power", times(5 * MINUTE).filter(|ts| !hole.contains(ts))).await;
        }
        let step = if n < 20 { 5 * MINUTE } else { 15 * MINUTE };
        world.push(lasting, "power", times(step).filter(|ts| !hole.contains(ts))).await;
        // More than what is held at once.
        for metric in ["voltage", "current", "frequency"] {
            world.push(lasting, metric, times(2 * MINUTE)).await;
        }
        if n == 8 {
            world.push(lasting, "power", late.iter().copied()).await;
        }
        if n % 3 == 0 {
            world.engine.flush().await.expect("flush");
        }
        let (looks, changed) = world.look(day(n + 1) + HOUR).await;
        assert_eq!(looks as i64, [1, 3, 7].into_iter().filter(|age| n >= *age).count() as i64, "day {n}");
        changes.extend(changed);
        if n == 6 {
            let open = (123, 125, GapState::Open);
            assert_eq!(world.gaps(ending, "power").await, [open]);
            assert_eq!(world.gaps(lasting, "power").await, [open]);
        }
    }
    assert_eq!(world.gaps(lasting, "power").await, [(123, 125, GapState::Filled)]);
    let mut expected = vec![(123, 125, GapState::Empty)];
    // After a month nobody waits for it any more.
    expected.extend((10..=39).map(|n| (n * 24, n * 24 + 24, GapState::Empty)));
    assert_eq!(world.gaps(ending, "power").await, expected);
    for metric in ["voltage", "current", "frequency"] {
        assert_eq!(world.gaps(lasting, metric).await, []);
    }
    let changes: BTreeSet<_> = changes
        .iter()
        .map(|change| {
            (change.entity_id, (change.day.as_microsecond() - world.start) / DAY, change.seconds as i64)
        })
        .collect();
    assert!(changes.contains(&(lasting, 20, 900)), "{changes:?}");
    assert!(
        changes.iter().all(|(entity, day, _)| *entity == lasting && (19..=21).contains(day)),
        "{changes:?}"
    );
}

/// What lies too far back is not looked at; an inactive meter is not watched.
#[tokio::test]
async fn days_without_a_process_are_looked_at_up_to_a_month() {
    let (world, [active, inactive]) = World::new().await;
    assert_eq!(world.look(world.start).await.0, 0);
    let times =
        || (0..100 * 24).map(|n| world.start + n * HOUR).filter(|ts| (ts - world.start) / DAY % 2 == 0);
    for meter in [active, inactive] {
        world.push(meter, "power", times()).await;
    }
    let catalog = world.engine.catalog();
    let fleet = catalog.fleet();
    let meter = fleet.meter(inactive).expect("a meter");
    let draft = wattlake_catalog::MeterDraft {
        id: None,
        site_id: meter.site_id,
        parent_meter_id: None,
        name: meter.name.clone(),
        category: meter.category,
        reading_frequency: meter.reading_frequency,
        capacity: None,
        description: None,
        metadata: meter.metadata.clone(),
        active: false,
    };
    catalog.update_meter(inactive, &draft).await.expect("changed");
    // After a hundred days.
    let (looks, _) = world.look(world.start + 100 * DAY).await;
    assert_eq!(looks, 3 * SILENT_DAYS_MAX as usize);
    let gaps = world.gaps(active, "power").await;
    assert!(gaps.iter().all(|(from, to, _)| from % 48 == 24 && to - from == 24), "{gaps:?}");
    assert_eq!(gaps.first().map(|gap| gap.0 / 24), Some(63), "a month before the oldest look");
    assert_eq!(world.gaps(inactive, "power").await, []);
}
