//! ROLL-5 through files: rollups that may use the summaries in files equal those from rows alone, whatever happened to the archive.

use std::{path::Path, sync::Arc};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{DataType, Float64Type},
};
use jiff::{Timestamp, tz::TimeZone};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use wattlake_catalog::{Access, EntityId, EntityType, Quality, ReadingFrequency};
use wattlake_engine::{Batch, BatchSeries, Engine, MaintenanceOptions, RowFilter};

use super::super::{RollupParams, RollupRequest, execute::rollup_with, read::DaysRead};
use crate::{fixture, query::QueryService};

/// 2026-05-20T10:07:00Z: the month is not over, and both changes of clocks of spring are past.
const NOW: i64 = 1_779_271_620_000_000;
const MINUTE: i64 = 60_000_000;
const DAY: i64 = 1440 * MINUTE;
const METRICS: [(&str, &str); 4] =
    [("power", "kW"), ("temperature", "degC"), ("energy", "kWh"), ("energy_total", "kWh")];
const ZONES: [&str; 4] = ["Europe/Berlin", "Asia/Kathmandu", "America/St_Johns", "Australia/Lord_Howe"];

struct World {
    engine: Arc<Engine>,
    service: QueryService,
    meters: Vec<EntityId>,
    rng: SmallRng,
}

impl World {
    async fn new(dir: &Path, seed: u64) -> Self {
        let engine = fixture::engine(dir, NOW).await;
        let mut meters = Vec::new();
        for zone in ZONES {
            let site = fixture::site(&engine, zone, Some(zone)).await;
            for frequency in [ReadingFrequency::Min15, ReadingFrequency::Hourly] {
                let name = format!("{zone} {frequency}");
                meters.push(fixture::meter(&engine, site, &name, frequency).await);
            }
        }
        let service = QueryService::new(Arc::clone(&engine)).expect("service");
        Self { engine, service, meters, rng: SmallRng::seed_from_u64(seed) }
    }

    /// Writes a stretch of every series, with gaps, resets, glitches and bad readings.
    async fn write(&mut self, from: i64, to: i64, share: f64) {
        for n in 0..self.meters.len() {
            for (metric, unit) in METRICS {
                let mut batch = Batch { created_at: NOW, ..Batch::default() };
                batch.table.push(BatchSeries {
                    entity: self.meters[n],
                    entity_type: EntityType::Meter,
                    metric: metric.to_owned(),
                    unit: unit.to_owned(),
                });
                let cadence = if n % 2 == 0 { 15 } else { 60 } * MINUTE;
                let mut ts = from - from.rem_euclid(cadence);
                // Registers go on where the time says that they stand.
                let mut register = (ts / cadence % 100_000) as f64;
                while ts < to {
                    let odd = self.rng.random_range(0..400);
                    match odd {
                        0 => ts += cadence * self.rng.random_range(1..30),
                        1 => register = self.rng.random_range(0.0..10.0),
                        2 => ts += self.rng.random_range(1..cadence),
                        _ => ts += cadence,
                    }
                    register += self.rng.random_range(0..8) as f64 / 8.0;
                    if !self.rng.random_bool(share) {
                        continue;
                    }
                    let glitch = if odd == 3 { self.rng.random_range(-20.0..20.0) } else { 0.0 };
                    batch.series.push(0);
                    batch.ts.push(ts);
                    batch.value.push(match metric {
                        "energy_total" => register + glitch,
                        _ => self.rng.random_range(-800..800) as f64 / 16.0,
                    });
                    batch.quality.push(match self.rng.random_range(0..60) {
                        0 => Quality::Bad,
                        1 => Quality::Estimated,
                        _ => Quality::Good,
                    });
                }
                if !batch.is_empty() {
                    self.engine.write(batch).await.expect("write");
                }
            }
        }
    }

    async fn compact(&self) {
        self.engine.flush().await.expect("flush");
        let options = MaintenanceOptions { everything: true, is_dry_run: false, is_forced: true };
        self.engine.maintain(options).await.expect("maintenance");
    }

    fn any<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.rng.random_range(0..choices.len())]
    }

    /// Asks both ways; answers how many days stood for their rows.
    async fn compare(&mut self, words: &str) -> usize {
        let begin = NOW - 100 * DAY;
        let from = match self.rng.random_range(0..3) {
            0 => Timestamp::from_microsecond(begin + self.rng.random_range(0..90 * DAY))
                .expect("time")
                .to_string(),
            1 => self.any(&["2026-03-01", "2026-03-29", "2026-04-05", "2026-02-20"]).to_owned(),
            _ => "now-30d".to_owned(),
        };
        let params = RollupParams {
            metric: Some(self.any(&METRICS.map(|(name, _)| name)).to_owned()),
            bucket: Some(self.any(&["1d", "1d", "1w", "1mo", "all", "2d", "24h", "1h"]).to_owned()),
            from: Some(from),
            to: match self.rng.random_range(0..2) {
                0 => None,
                _ => Some("2026-05-19".to_owned()),
            },
            tz: match self.rng.random_range(0..3) {
                0 => Some(self.any(&ZONES).to_owned()),
                _ => None,
            },
            by: Some(self.any(&["total", "site", "meter", "entity"]).to_owned()),
            agg: match self.rng.random_range(0..2) {
                0 => None,
                _ => {
                    Some(self.any(&["avg", "sum", "min", "max", "count", "first", "last", "p95"]).to_owned())
                }
            },
            quality: match self.rng.random_range(0..8) {
                0 => Some("good".to_owned()),
                _ => None,
            },
            ..RollupParams::default()
        };
        let berlin = TimeZone::get("Europe/Berlin").expect("zone");
        let now = Timestamp::from_microsecond(NOW).expect("now");
        let request = RollupRequest::new(&params, &berlin, now).expect("request");
        let view = self.engine.read_view();
        let access = Access::unrestricted();
        let ask = |days| rollup_with(&self.service, &request, &view, &access, days);
        let (expected, none) = ask(DaysRead::Never).await.expect("from rows");
        let (found, days) = ask(DaysRead::Always).await.expect("from days");
        assert_eq!(none, 0);
        same(&found, &expected, &format!("{words}: {params:?}"));
        days
    }
}

fn same(found: &RecordBatch, expected: &RecordBatch, words: &str) {
    assert_eq!((found.schema(), found.num_rows()), (expected.schema(), expected.num_rows()), "{words}");
    for (column, (a, b)) in found.columns().iter().zip(expected.columns()).enumerate() {
        if *a.data_type() != DataType::Float64 {
            assert_eq!(a, b, "{words}");
            continue;
        }
        let (a, b) = (a.as_primitive::<Float64Type>(), b.as_primitive::<Float64Type>());
        for row in 0..found.num_rows() {
            assert_eq!(a.is_null(row), b.is_null(row), "{words}");
            let (a, b) = (a.value(row), b.value(row));
            let limit = 1e-9 * a.abs().max(b.abs()).max(1.0);
            assert!((a - b).abs() <= limit, "{words}: column {column}, row {row}: {a} and {b}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollups_from_days_equal_those_from_rows() {
    let cases = std::env::var("WATTLAKE_TEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    for seed in 0..cases {
        let folder = tempfile::TempDir::new().expect("folder");
        let mut world = World::new(folder.path(), seed).await;
        let mut days = 0;
        world.write(NOW - 100 * DAY, NOW - 3 * DAY, 1.0).await;
        world.compact().await;
        for n in 0..25 {
            days += world.compare(&format!("seed {seed}, compacted, {n}")).await;
        }
        assert!(days > 1_500, "only {days} days stood for their rows");
        // Late and corrected readings of some days, in files of flushes, and deletions.
        let late = NOW - world.rng.random_range(5..80) * DAY;
        world.write(late, late + DAY, 0.5).await;
        world.write(NOW - 3 * DAY, NOW - DAY, 1.0).await;
        world.engine.flush().await.expect("flush");
        let mut deleted = 0;
        for _ in 0..3 {
            let from = NOW - world.rng.random_range(5..80) * DAY;
            let filter = RowFilter { entities: None, metric: None, from, to: from + DAY / 3 };
            deleted += world.engine.delete_rows(filter).await.expect("delete");
        }
        assert!(deleted > 0);
        // And in memory.
        let late = NOW - world.rng.random_range(5..80) * DAY;
        world.write(late, late + DAY / 4, 0.3).await;
        world.write(NOW - DAY, NOW, 1.0).await;
        let mut days = 0;
        for n in 0..25 {
            days += world.compare(&format!("seed {seed}, changed, {n}")).await;
        }
        assert!(days > 250, "only {days} days stood for their rows");
        world.compact().await;
        for n in 0..10 {
            world.compare(&format!("seed {seed}, compacted again, {n}")).await;
        }
        let report = world.engine.verify(false).await.expect("verify");
        assert!(report.is_sound(), "{:?}", report.problems);
        world.engine.stop().await.expect("stop");
    }
}
