//! Aggregates that may use totals equal those of rows alone, whatever happened to the archive.

use arrow::{
    array::RecordBatch,
    util::display::{ArrayFormatter, FormatOptions},
};
use rand::{RngExt, seq::IndexedRandom};
use wattlake_catalog::Access;

use crate::{
    fixture::history::{DAY, History, METRICS, NOW, cases},
    query::SqlRequest,
};

const KEYS: [&str; 9] = [
    "entity_id",
    "metric",
    "quality",
    "unit",
    "date_trunc('month', timestamp)",
    "date_part('year', timestamp)",
    "time_bucket(INTERVAL '2 months', timestamp)",
    "time_bucket('1mo', timestamp)",
    "CASE WHEN quality = 'bad' THEN 'bad' ELSE upper(metric) END",
];
/// What totals do not say.
const OTHER_KEYS: [&str; 3] = [
    "date_trunc('day', timestamp)",
    "date_part('hour', timestamp)",
    "time_bucket('1mo', timestamp, 'Europe/Berlin')",
];
const AGGREGATES: [&str; 12] = [
    "count(*)",
    "count(value)",
    "sum(value)",
    "min(value)",
    "max(value)",
    "avg(value)",
    "min(timestamp)",
    "max(timestamp)",
    "max(unit)",
    "count(*) FILTER (WHERE quality = 'estimated')",
    "avg(value) FILTER (WHERE metric = 'power')",
    "max(value) - min(value)",
];
const OTHER_AGGREGATES: [&str; 4] =
    ["count(metadata)", "count(DISTINCT quality)", "sum(value * 2)", "median(value)"];
const FILTERS: [&str; 9] = [
    "metric = 'power'",
    "metric <> 'temperature'",
    "quality <> 'bad'",
    "(metric = 'energy' OR quality = 'estimated')",
    "date_trunc('month', timestamp) = TIMESTAMP '2026-04-01T00:00:00Z'",
    "metric LIKE 'energy%'",
    "metric IN ('power', 'nothing')",
    "metric IN ('power', 'temperature', 'energy', 'energy_total', 'nothing')",
    "(metric = 'power' OR metric = 'energy' OR metric IS NULL)",
];
const OTHER_FILTERS: [&str; 3] = [
    "value > 0",
    "date_part('hour', timestamp) < 6",
    "(timestamp < TIMESTAMP '2026-03-10T00:00:00Z' OR metric = 'power')",
];
/// Edges of months, just beside them, and others.
const TIMES: [&str; 7] = [
    "2026-03-01T00:00:00Z",
    "2026-04-01T00:00:00Z",
    "2026-05-01T00:00:00Z",
    "2026-03-31T23:59:59.999999Z",
    "2026-04-01T00:00:00.000001Z",
    "2026-04-17T06:30:00Z",
    "2020-01-01T00:00:00Z",
];

/// A question about `measurements`, whose name is left open.
fn question(history: &mut History) -> String {
    let mut some = |usual: &[&str], other: &[&str], most: usize| -> Vec<String> {
        let count = history.rng.random_range(0..=most);
        let mut picked: Vec<String> =
            usual.sample(&mut history.rng, count).map(|text| (*text).to_owned()).collect();
        if history.rng.random_bool(0.06) {
            picked.extend(other.choose(&mut history.rng).map(|text| (*text).to_owned()));
        }
        picked
    };
    let keys = some(&KEYS, &OTHER_KEYS, 3);
    let aggregates = some(&AGGREGATES, &OTHER_AGGREGATES, 4);
    let mut filters = some(&FILTERS, &OTHER_FILTERS, 2);
    let time = |history: &mut History| format!("TIMESTAMP '{}'", history.any(&TIMES));
    match history.rng.random_range(0..8) {
        0 => filters.push(format!("timestamp >= {}", time(history))),
        1 => filters.push(format!("timestamp < {}", time(history))),
        2 => filters.push(format!("{} < timestamp", time(history))),
        3 => filters.push(format!("timestamp BETWEEN {} AND {}", time(history), time(history))),
        4 => {
            let meter = history.meters.choose(&mut history.rng).expect("meter");
            filters.push(format!("entity_id = '{meter}'"));
        }
        5 => {
            let some: Vec<String> =
                history.meters.sample(&mut history.rng, 3).map(|meter| format!("'{meter}'")).collect();
            // No id is written in capitals.
            filters.push(format!(
                "entity_id IN ({}, '{}')",
                some.join(", "),
                some[0].to_uppercase().replace('\'', "")
            ));
        }
        _ => {}
    }
    let columns: Vec<String> = keys.iter().chain(&aggregates).cloned().collect();
    let columns = if columns.is_empty() { vec!["count(*)".to_owned()] } else { columns };
    let mut text = format!("SELECT {} FROM MEASUREMENTS m", columns.join(", "));
    if !filters.is_empty() {
        text += &format!(" WHERE {}", filters.join(" AND "));
    }
    if !keys.is_empty() {
        let places: Vec<String> = (1..=keys.len()).map(|place| place.to_string()).collect();
        text += &format!(" GROUP BY {}", places.join(", "));
    }
    text
}

async fn ask(history: &History, query: &str, access: &Access) -> Vec<RecordBatch> {
    let asked = history.service.collect(SqlRequest::new(query, access)).await;
    asked.unwrap_or_else(|error| panic!("{query}: {error:?}")).1
}

/// Sorted rows of texts.
fn rows(batches: &[RecordBatch]) -> Vec<Vec<String>> {
    let options = FormatOptions::new().with_null("NULL");
    let mut rows: Vec<Vec<String>> = Vec::new();
    for batch in batches {
        let columns: Vec<_> =
            batch.columns().iter().map(|c| ArrayFormatter::try_new(c, &options).expect("text")).collect();
        for row in 0..batch.num_rows() {
            rows.push(columns.iter().map(|column| column.value(row).to_string()).collect());
        }
    }
    rows.sort();
    rows
}

/// Asks with totals and without; answers whether they were used.
async fn compare(history: &mut History, words: &str) -> bool {
    let text = question(history);
    let access = match history.rng.random_range(0..4) {
        0 => Access { sites: vec![history.sites[1]], ..Access::unrestricted() },
        _ => Access::unrestricted(),
    };
    let with = text.replace("MEASUREMENTS", "measurements");
    let without = text.replace("MEASUREMENTS", "(SELECT * FROM measurements LIMIT 1000000000)");
    let (found, expected) = (ask(history, &with, &access).await, ask(history, &without, &access).await);
    assert_eq!(rows(&found), rows(&expected), "{words}: {with}");
    uses_totals(history, &with, &access).await
}

async fn plan(history: &History, query: &str, access: &Access) -> String {
    let explained = ask(history, &format!("EXPLAIN {query}"), access).await;
    rows(&explained).concat().concat()
}

async fn uses_totals(history: &History, query: &str, access: &Access) -> bool {
    let plan = plan(history, query, access).await;
    ["m.rows", "m.sum", "m.min", "m.max", "m.last"].iter().any(|column| plan.contains(column))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aggregates_of_totals_equal_those_of_rows() {
    for seed in 0..cases() {
        let folder = tempfile::TempDir::new().expect("folder");
        let mut history = History::new(folder.path(), seed).await;
        history.write(NOW - 100 * DAY, NOW - 3 * DAY, 1.0).await;
        history.compact().await;
        let all = Access::unrestricted();
        let whole =
            plan(&history, "SELECT metric, count(*), avg(value) FROM measurements m GROUP BY 1", &all).await;
        assert!(whole.contains("m.rows") && !whole.contains(".parquet"), "{whole}");
        let mut used = 0;
        for n in 0..60 {
            used += u32::from(compare(&mut history, &format!("seed {seed}, compacted, {n}")).await);
        }
        history.change().await;
        for n in 0..60 {
            used += u32::from(compare(&mut history, &format!("seed {seed}, changed, {n}")).await);
        }
        history.compact().await;
        for n in 0..20 {
            used += u32::from(compare(&mut history, &format!("seed {seed}, compacted again, {n}")).await);
        }
        assert!(used > 60, "totals were used by {used} of 140 questions");
        history.engine.stop().await.expect("stop");
    }
}

/// What is asked in these ways is never answered from totals.
#[tokio::test]
async fn what_totals_do_not_say_is_read_as_rows() {
    let folder = tempfile::TempDir::new().expect("folder");
    let mut history = History::new(folder.path(), 1).await;
    history.write(NOW - 60 * DAY, NOW - 50 * DAY, 1.0).await;
    history.compact().await;
    let all = Access::unrestricted();
    let asked = |text: &str| text.replace("FROM measurements", "FROM measurements m");
    for key in OTHER_KEYS {
        let query = asked(&format!("SELECT {key}, count(*) FROM measurements GROUP BY 1"));
        assert!(!uses_totals(&history, &query, &all).await, "{query}");
    }
    for aggregate in OTHER_AGGREGATES
        .into_iter()
        .chain(["sum(value) FILTER (WHERE value > 1)", "first_value(value ORDER BY timestamp)"])
    {
        let query = asked(&format!("SELECT {aggregate}, count(*) FROM measurements"));
        assert!(!uses_totals(&history, &query, &all).await, "{query}");
    }
    for filter in OTHER_FILTERS.into_iter().chain(["random() < 0.5", "metadata IS NULL"]) {
        let query = asked(&format!("SELECT count(*) FROM measurements WHERE {filter}"));
        assert!(!uses_totals(&history, &query, &all).await, "{query}");
    }
    // Nothing of other sites, from totals, rows or memory.
    history.write(NOW - 40 * DAY, NOW - 39 * DAY, 1.0).await;
    let own = Access { sites: vec![history.sites[1]], ..Access::unrestricted() };
    let mut meters = vec![vec![history.meters[2].to_string()], vec![history.meters[3].to_string()]];
    meters.sort();
    for query in [
        "SELECT DISTINCT entity_id FROM measurements",
        "SELECT DISTINCT entity_id FROM measurements WHERE value > -1000",
    ] {
        assert_eq!(rows(&ask(&history, query, &own).await), meters, "{query}");
    }
    for metric in METRICS {
        let query = asked(&format!("SELECT count(*) FROM measurements WHERE metric = '{}'", metric.0));
        assert!(uses_totals(&history, &query, &all).await, "{query}");
    }
}
