//! ROLL-5 through files: rollups that may use the summaries in files equal those from rows alone, whatever happened to the archive.

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{DataType, Float64Type},
};
use jiff::{Timestamp, tz::TimeZone};
use rand::RngExt;
use wattlake_catalog::Access;

use super::super::{RollupParams, RollupRequest, execute::rollup_with, read::SummariesRead};
use crate::fixture::history::{DAY, History, METRICS, NOW, ZONES, cases};

/// Rollups of a history, asked both ways, and how many summaries of hours stood for their rows.
struct World(History, usize);

impl World {
    /// Asks both ways; answers how many summaries stood for their rows.
    async fn compare(&mut self, words: &str) -> usize {
        let history = &mut self.0;
        let begin = NOW - 100 * DAY;
        let from = match history.rng.random_range(0..3) {
            0 => Timestamp::from_microsecond(begin + history.rng.random_range(0..90 * DAY))
                .expect("time")
                .to_string(),
            1 => history.any(&["2026-03-01", "2026-03-29", "2026-04-05", "2026-02-20"]).to_owned(),
            _ => "now-30d".to_owned(),
        };
        let params = RollupParams {
            metric: Some(history.any(&METRICS.map(|(name, _)| name)).to_owned()),
            bucket: Some(
                history
                    .any(&["1d", "1d", "1w", "1mo", "all", "2d", "24h", "1h", "1h", "1h", "3h", "90m"])
                    .to_owned(),
            ),
            from: Some(from),
            to: match history.rng.random_range(0..2) {
                0 => None,
                _ => Some("2026-05-19".to_owned()),
            },
            tz: match history.rng.random_range(0..3) {
                0 => Some(history.any(&ZONES).to_owned()),
                _ => None,
            },
            by: Some(history.any(&["total", "site", "meter", "entity"]).to_owned()),
            agg: match history.rng.random_range(0..2) {
                0 => None,
                _ => Some(
                    history.any(&["avg", "sum", "min", "max", "count", "first", "last", "p95"]).to_owned(),
                ),
            },
            quality: match history.rng.random_range(0..8) {
                0 => Some("good".to_owned()),
                _ => None,
            },
            ..RollupParams::default()
        };
        let berlin = TimeZone::get("Europe/Berlin").expect("zone");
        let now = Timestamp::from_microsecond(NOW).expect("now");
        let request = RollupRequest::new(&params, &berlin, now).expect("request");
        let view = history.engine.read_view();
        let access = Access::unrestricted();
        let ask = |summaries| rollup_with(&history.service, &request, &view, &access, summaries);
        let (expected, none) = ask(SummariesRead::Never).await.expect("from rows");
        let (found, summaries) = ask(SummariesRead::Always).await.expect("from summaries");
        assert_eq!(none, 0);
        same(&found, &expected, &format!("{words}: {params:?}"));
        if params.bucket.is_some_and(|width| width.ends_with('h') && width != "24h") {
            self.1 += summaries;
        }
        summaries
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
async fn rollups_from_summaries_equal_those_from_rows() {
    for seed in 0..cases() {
        let folder = tempfile::TempDir::new().expect("folder");
        let mut world = World(History::new(folder.path(), seed).await, 0);
        let mut summaries = 0;
        world.0.write(NOW - 100 * DAY, NOW - 3 * DAY, 1.0).await;
        world.0.compact().await;
        for n in 0..25 {
            summaries += world.compare(&format!("seed {seed}, compacted, {n}")).await;
        }
        assert!(summaries > 1_500, "only {summaries} stood for their rows");
        world.0.change().await;
        let mut summaries = 0;
        for n in 0..25 {
            summaries += world.compare(&format!("seed {seed}, changed, {n}")).await;
        }
        assert!(summaries > 250, "only {summaries} stood for their rows");
        world.0.compact().await;
        for n in 0..10 {
            world.compare(&format!("seed {seed}, compacted again, {n}")).await;
        }
        assert!(world.1 > 100, "only {} of hours stood for their rows", world.1);
        let report = world.0.engine.verify(false).await.expect("verify");
        assert!(report.is_sound(), "{:?}", report.problems);
        world.0.engine.stop().await.expect("stop");
    }
}
