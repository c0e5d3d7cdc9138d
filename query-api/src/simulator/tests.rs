//! Weeks of polling in seconds: what is stored in the end is what the simulated systems have measured, whatever went wrong between.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicI64, atomic::Ordering},
};

use wattlake_catalog::{
    Category, EnergySourceDraft, EntityId, GapFilter, GapState, JobState, MeterDraft, ReadingFrequency,
};
use wattlake_engine::{Engine, SourceStatus, Sources};

use super::{
    plant::{Measure, QUARTER},
    *,
};
use crate::fixture;

const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

fn micros(text: &str) -> i64 {
    text.parse::<Timestamp>().expect("a time").as_microsecond()
}

/// A system with credentials of its own.
fn system(vendor: Vendor, n: usize) -> System {
    const ZONES: [&str; 6] = [
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",
        "Asia/Kathmandu",
        "America/St_Johns",
        "Africa/Casablanca",
    ];
    let name = format!("{vendor:?}-{n}").to_lowercase();
    // Every other system of SolarEdge is known by its owner's grant only.
    let has_key = vendor == Vendor::Enphase || n.is_multiple_of(2);
    System {
        vendor,
        zone: ZONES[n % ZONES.len()].into(),
        peak: 3.0 + n as f64,
        key: has_key.then(|| format!("canary-key-{name}")),
        client_id: format!("client-{name}"),
        client_secret: format!("canary-secret-{name}"),
        refresh_token: format!("canary-refresh-{name}"),
        id: name,
    }
}

/// An engine whose sources poll simulated vendors, at a time that the test sets.
struct World {
    engine: Arc<Engine>,
    sources: Sources,
    simulator: Simulator,
    now: Arc<AtomicI64>,
    /// Source and system.
    polled: Vec<(EntityId, System)>,
    folder: tempfile::TempDir,
}

impl World {
    async fn new(start: i64, systems: Vec<System>, chaos: Chaos, is_generous: bool, every: &str) -> Self {
        let folder = tempfile::TempDir::new().expect("folder");
        let engine = fixture::engine(folder.path(), start).await;
        let Clock::Fixed(now) = engine.clock().clone() else { panic!("the clock is set by hand") };
        let simulator = Simulator::new(engine.clock().clone(), systems.clone(), chaos, is_generous);
        let address = simulator.serve("127.0.0.1:0".parse().expect("an address")).await.expect("a server");
        let mut polled = Vec::new();
        for system in systems {
            let site = fixture::site(&engine, &system.id, Some(&system.zone)).await;
            let draft = MeterDraft {
                id: None,
                site_id: site,
                parent_meter_id: None,
                name: "solar".into(),
                category: Category::Prod,
                reading_frequency: ReadingFrequency::Min15,
                capacity: Some(system.peak),
                description: None,
                metadata: Default::default(),
                active: true,
            };
            let meter = engine.catalog().create_meter(&draft).await.expect("meter").id;
            let (provider, base, streams) = match system.vendor {
                Vendor::SolarEdge => {
                    ("solaredge", format!("http://{address}/v2"), json!(["energy", "meters", "days"]))
                }
                Vendor::Enphase => {
                    ("enphase", format!("http://{address}"), json!(["production", "consumption", "days"]))
                }
            };
            let mut metadata = json!({ "useAPI": true, "apiProvider": provider, "baseUrl": base, "local": true, "systemId": system.id,
                "streams": streams, "updateFrequency": every, "clientId": system.client_id, "clientSecret": system.client_secret,
                "refreshToken": system.refresh_token });
            if let Some(key) = &system.key {
                metadata["apiKey"] = key.as_str().into();
            }
            let draft = EnergySourceDraft {
                id: None,
                meter_id: meter,
                name: system.id.clone(),
                source_type: "solar".into(),
                capacity: None,
                metadata: metadata.as_object().cloned().expect("an object"),
                active: true,
            };
            let source = engine.catalog().create_source(&draft).await.expect("source");
            polled.push((source.id, system));
        }
        let sources = Sources::new(Arc::clone(&engine));
        Self { engine, sources, simulator, now, polled, folder }
    }

    /// Gives every source its turns until a time.
    async fn run_until(&self, end: i64) {
        while let Some(next) = self.sources.run_due().await.expect("turns") {
            let now = self.now.load(Ordering::Relaxed);
            if next >= end {
                break;
            }
            self.now.store(next.max(now + 1), Ordering::Relaxed);
        }
        self.now.store(end, Ordering::Relaxed);
    }

    fn status(&self) -> Vec<SourceStatus> {
        self.sources.status()
    }

    /// What is stored of a source's metric, by time.
    fn stored(&self, source: EntityId, metric: &str) -> BTreeMap<i64, f64> {
        let mut stored = BTreeMap::new();
        for series in self
            .engine
            .read_view()
            .hot
            .select(i64::MIN, i64::MAX, |key| key.entity == source && &*key.metric == metric)
        {
            for (ts, value) in series.rows.ts.iter().zip(&series.rows.value) {
                assert_eq!(stored.insert(*ts, *value), None, "one reading at a time");
            }
        }
        stored
    }

    /// Compares what is stored with what was measured in the whole quarters of a span, kWh with Wh.
    fn compare(&self, from: i64, to: i64) -> usize {
        let (from, to) = (-(-from).div_euclid(QUARTER) * QUARTER, to.div_euclid(QUARTER) * QUARTER);
        let mut compared = 0;
        for (source, system) in &self.polled {
            let plant = self.simulator.plant(&system.id).expect("a plant");
            for (metric, measure) in
                [("energy", Measure::Energy), ("consumption_energy", Measure::Consumption)]
            {
                let stored = self.stored(*source, metric);
                let measured = (from..to).step_by(QUARTER as usize);
                let measured: BTreeMap<i64, f64> =
                    measured.filter_map(|ts| Some((ts, plant.measured(measure, ts)?))).collect();
                let (mut missing, mut wrong) = (Vec::new(), Vec::new());
                for (ts, value) in &measured {
                    match stored.get(ts) {
                        None => missing.push(time(*ts)),
                        Some(found) if (found * 1000.0 - value).abs() > 1e-6 => {
                            wrong.push((time(*ts), *found, *value));
                        }
                        Some(_) => compared += 1,
                    }
                }
                let more = stored.keys().filter(|ts| (from..to).contains(*ts) && !measured.contains_key(ts));
                let more: Vec<_> = more.map(|ts| time(*ts)).collect();
                assert!(
                    missing.is_empty() && wrong.is_empty() && more.is_empty(),
                    "{} {metric}: {} missing, the first {:?}; wrong {:?}; not measured {:?}; {:?}",
                    system.id,
                    missing.len(),
                    missing.first(),
                    wrong.iter().take(5).collect::<Vec<_>>(),
                    more.first(),
                    self.status().iter().find(|status| status.id == *source)
                );
            }
        }
        compared
    }
}

impl World {
    /// What the ledger says of a span: nothing is open, what is filled is there, and what is empty was never measured.
    async fn gaps_are_true(&self, from: i64, to: i64) {
        let gaps = self.engine.catalog().gaps(&GapFilter::default(), i64::MAX).await.expect("gaps");
        let mut counts = BTreeMap::new();
        for gap in gaps.iter().filter(|gap| (from..to).contains(&gap.from.as_microsecond())) {
            *counts.entry(gap.state.as_str()).or_insert(0) += 1;
            let (_, system) =
                self.polled.iter().find(|(id, _)| Some(*id) == gap.source_id).expect("a source of ours");
            let plant = self.simulator.plant(&system.id).expect("a plant");
            let measure = if gap.metric == "energy" { Measure::Energy } else { Measure::Consumption };
            for ts in (gap.from.as_microsecond()..gap.to.as_microsecond()).step_by(QUARTER as usize) {
                let is_measured = plant.measured(measure, ts).is_some();
                assert_eq!(
                    is_measured,
                    gap.state == GapState::Filled,
                    "{} at {}: {gap:?}",
                    system.id,
                    time(ts)
                );
            }
        }
        assert!(!counts.contains_key("open") && counts["filled"] > 0 && counts["empty"] > 0, "{counts:?}");
        // What Enphase never had is in the ledger, all of it.
        for (id, system) in self.polled.iter().filter(|(_, system)| system.vendor == Vendor::Enphase) {
            let plant = self.simulator.plant(&system.id).expect("a plant");
            let first = from.div_euclid(QUARTER) * QUARTER + QUARTER;
            for ts in (first..to - QUARTER)
                .step_by(QUARTER as usize)
                .filter(|ts| plant.measured(Measure::Energy, *ts).is_none())
            {
                let is_known = gaps.iter().any(|gap| {
                    gap.source_id == Some(*id)
                        && gap.metric == "energy"
                        && (gap.from.as_microsecond()..gap.to.as_microsecond()).contains(&ts)
                });
                assert!(is_known, "{} at {} is in no gap", system.id, time(ts));
            }
        }
    }
}

fn time(ts: i64) -> String {
    Timestamp::from_microsecond(ts).expect("a time").to_string()
}

fn cases(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The month of the clock change, and a week more in which vendors fill and correct what they have shown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_month_ends_with_what_was_measured() {
    let each = cases("WATTLAKE_TEST_SYSTEMS", 3);
    let systems =
        (0..each).flat_map(|n| [system(Vendor::SolarEdge, n), system(Vendor::Enphase, n)]).collect();
    let start = micros("2026-03-10T07:12:00Z");
    let world = World::new(start, systems, Chaos::heavy(7), false, "3h").await;
    let end = start + 31 * DAY;
    world.run_until(end + 10 * DAY).await;
    assert_eq!(world.simulator.violations(), Vec::<String>::new());
    for status in world.status() {
        assert!(["connected", "failing"].contains(&status.connection_status), "{status:?}");
    }
    let compared = world.compare(start, end);
    assert!(compared > each * 2 * 31 * 96, "{compared} readings of {} calls", world.simulator.calls());
    world.gaps_are_true(start, end).await;
    nothing_tells_secrets(&world).await;
}

/// No file and no answer holds what was given as a secret, or a token that a vendor gave.
async fn nothing_tells_secrets(world: &World) {
    world.engine.flush().await.expect("flush");
    let words = ["canary-", "access-solaredge", "access-enphase", "refresh-solaredge", "refresh-enphase"];
    let mut folders = vec![world.folder.path().to_owned()];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            files += 1;
            let bytes = std::fs::read(&path).expect("a file");
            for word in words {
                let found = bytes.windows(word.len()).position(|window| window == word.as_bytes());
                assert!(found.is_none(), "{} holds {word} at {found:?}", path.display());
            }
        }
    }
    assert!(files > 3);
    let told = serde_json::to_string(&world.status()).expect("JSON")
        + &format!("{:?}", world.engine.catalog().fleet());
    assert!(words.iter().all(|word| !told.contains(word)), "{told}");
}

/// History is fetched beside polling, by a new process where the last one ended, and days before quarters.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_is_fetched_once_by_several_processes() {
    let systems = vec![system(Vendor::SolarEdge, 0), system(Vendor::Enphase, 0)];
    let start = micros("2026-04-10T07:12:00Z");
    let mut world = World::new(start, systems, Chaos::default(), false, "6h").await;
    world.run_until(start + HOUR).await;
    let (from, to) = (start - 20 * DAY, start - 10 * DAY);
    let at = |ts| Timestamp::from_microsecond(ts).expect("a time");
    for (source, _) in &world.polled {
        let plan = world.sources.plan_backfill(*source, at(from), at(to)).await.expect("a plan");
        assert!(plan.calls > 4 && plan.estimated_end > at(start), "{plan:?}");
        world.sources.start_backfill(*source, at(from), at(to)).await.expect("a job");
        let again = world.sources.start_backfill(*source, at(from), at(to)).await.expect_err("one at a time");
        assert!(again.message.contains("already"), "{again}");
    }
    for hour in 2..40 {
        // A new process knows what the one before has stored, no more.
        world.sources = Sources::new(Arc::clone(&world.engine));
        world.run_until(start + hour * HOUR).await;
    }
    let jobs = world.sources.jobs().await.expect("jobs");
    assert!(jobs.len() == 2 && jobs.iter().all(|one| one.job.state == JobState::Done), "{jobs:?}");
    // The vendor takes half of what was tried first.
    assert!(
        jobs.iter().all(|one| one.calls <= 2 * one.job.calls_planned as u64 && one.readings > 0),
        "{jobs:?}"
    );
    // All corrections of so long ago have been made.
    world.compare(from, to);
    for (source, system) in &world.polled {
        let days = world.stored(*source, "day_energy");
        assert!((8..=10).contains(&days.len()), "{}: {days:?}", system.id);
        let plant = world.simulator.plant(&system.id).expect("a plant");
        for (day, value) in days {
            let next = at(day)
                .to_zoned(plant.zone.clone())
                .date()
                .tomorrow()
                .expect("a day")
                .to_zoned(plant.zone.clone());
            let quarters =
                (day..next.expect("a time").timestamp().as_microsecond()).step_by(QUARTER as usize);
            let measured: f64 = quarters.filter_map(|ts| plant.measured(Measure::Energy, ts)).sum();
            assert!(
                (value * 1000.0 - measured).abs() < 1e-3,
                "{}: {} {value} {measured}",
                system.id,
                time(day)
            );
        }
    }
    assert_eq!(world.simulator.violations(), Vec::<String>::new());
}

/// Inverters that are switched off now and then: what is missing of each is in the ledger, and nothing else. Nothing of the vendor's
/// series is taken for readings that come by themselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_of_single_devices_is_known() {
    let start = micros("2026-04-10T07:12:00Z");
    let world = World::new(start, vec![system(Vendor::SolarEdge, 0)], Chaos::default(), false, "3h").await;
    let (source, system) = world.polled[0].clone();
    let catalog = world.engine.catalog();
    let known = catalog.source_with_secrets(source).await.expect("the source");
    let mut metadata = known.metadata.clone();
    metadata.insert("streams".into(), json!(["energy", "inverters"]));
    let draft = |name: &str, metadata| EnergySourceDraft {
        id: None,
        meter_id: known.meter_id,
        name: name.into(),
        source_type: "solar".into(),
        capacity: None,
        metadata,
        active: true,
    };
    catalog.update_source(source, &draft(&known.name, metadata)).await.expect("changed");
    let mut devices = Vec::new();
    for serial in solaredge::INVERTERS {
        let metadata = json!({ "externalId": serial }).as_object().cloned().expect("an object");
        devices.push(catalog.create_source(&draft(serial, metadata)).await.expect("a device").id);
    }
    let end = start + 20 * DAY;
    for day in 0..30 {
        world.run_until(start + day * DAY).await;
        world.sources.watch_due().await.expect("looks");
    }
    let plant = world.simulator.plant(&system.id).expect("a plant");
    for (inverter, device) in devices.into_iter().enumerate() {
        let filter = GapFilter { entity: Some(device), ..GapFilter::default() };
        let gaps = catalog.gaps(&filter, i64::MAX).await.expect("gaps");
        assert!(
            gaps.iter().all(|gap| gap.source_id == Some(source) && gap.stream == "inverters"),
            "{gaps:?}"
        );
        let in_ledger = |ts: i64| {
            gaps.iter().any(|gap| {
                gap.state == GapState::Empty
                    && (gap.from.as_microsecond()..gap.to.as_microsecond()).contains(&ts)
            })
        };
        let stored = world.stored(device, "energy");
        let first = *stored.keys().next().expect("readings");
        let (mut away, mut there) = (0, 0);
        for ts in (first..end).step_by(QUARTER as usize) {
            match plant.is_away(inverter, ts) {
                true => away += 1,
                false => there += usize::from(stored.contains_key(&ts)),
            }
            assert_eq!(in_ledger(ts), plant.is_away(inverter, ts), "{inverter} at {}", time(ts));
        }
        assert!(away > 50 && there > 500, "{away} {there}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_is_refused_says_so_and_goes_on_when_it_is_authorised_again() {
    let start = micros("2026-04-10T07:12:00Z");
    let world = World::new(
        start,
        vec![system(Vendor::Enphase, 1), system(Vendor::SolarEdge, 0)],
        Chaos::default(),
        false,
        "1h",
    )
    .await;
    let (id, sound) = (world.polled[0].0, world.polled[1].0);
    let catalog = world.engine.catalog();
    let change = async |refresh_token: &str| {
        let fleet = catalog.fleet();
        let mut draft = EnergySourceDraft::from(fleet.source(id).expect("a source"));
        draft.metadata.insert("refreshToken".into(), refresh_token.into());
        catalog.update_source(id, &draft).await.expect("changed");
    };
    change("canary-of-somebody-else").await;
    world.run_until(start + 2 * HOUR).await;
    let status = world.status();
    let of = |id| status.iter().find(|status| status.id == id).expect("a status");
    assert_eq!(of(id).connection_status, "unauthorized");
    let error = of(id).last_error.clone().expect("words");
    assert!(error.contains("authorise again") && !error.contains("canary"), "{error}");
    // The other one has been polled all the same, and the catalog shows both.
    assert!(of(sound).readings > 0);
    let shown =
        |id| catalog.fleet().source(id).and_then(|source| source.metadata.get("connectionStatus").cloned());
    assert_eq!((shown(id), shown(sound)), (Some("unauthorized".into()), Some("connected".into())));
    let calls = world.simulator.calls();
    let tested = world.sources.test(id).await.expect("a test");
    assert_eq!((tested.connection_status, world.simulator.calls()), ("unauthorized", calls), "{tested:?}");
    change(&world.polled[0].1.refresh_token).await;
    world.run_until(start + 4 * HOUR).await;
    assert_eq!(shown(id), Some("connected".into()));
    assert!(
        world.status().iter().all(|status| status.readings > 0 && status.last_error.is_none()),
        "{:?}",
        world.status()
    );
    let tested = world.sources.test(id).await.expect("a test");
    assert_eq!(tested.connection_status, "connected", "{tested:?}");
}

/// Whoever is polled too often waits: a month's calls are spread over it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn polling_too_often_is_spread_over_the_month() {
    let start = micros("2026-04-01T00:00:10Z");
    let world = World::new(start, vec![system(Vendor::Enphase, 0)], Chaos::default(), false, "5min").await;
    world.run_until(start + 10 * DAY).await;
    let calls = world.simulator.calls();
    // A third of 1,000 calls, of which a fifth is kept.
    assert!((230..=340).contains(&calls), "{calls}");
    assert_eq!(world.simulator.violations(), Vec::<String>::new());
}

/// One kind of answer that never comes holds up neither the others nor what is read again and fetched of history.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_never_comes_holds_nothing_up() {
    let start = micros("2026-04-10T07:12:00Z");
    let chaos = Chaos { broken: Some("energy"), ..Chaos::default() };
    let world = World::new(start, vec![system(Vendor::SolarEdge, 0)], chaos, false, "3h").await;
    world.run_until(start + 12 * DAY).await;
    let (source, system) = &world.polled[0];
    let plant = world.simulator.plant(&system.id).expect("a plant");
    let stored = world.stored(*source, "consumption_energy");
    let first = start.div_euclid(QUARTER) * QUARTER + QUARTER;
    for ts in (first..start + 4 * DAY).step_by(QUARTER as usize) {
        let expected = plant.measured(Measure::Consumption, ts);
        let found = stored.get(&ts).map(|kwh| (kwh * 10_000.0).round() / 10.0);
        assert_eq!(found, expected, "{}", time(ts));
    }
    let status = &world.status()[0];
    assert!(
        status.last_error.as_ref().is_some_and(|words| words.contains("500") || words.contains("502")),
        "{status:?}"
    );
    assert_eq!(world.simulator.violations(), Vec::<String>::new());
}
