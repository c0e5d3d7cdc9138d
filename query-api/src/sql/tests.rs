//! The scripts of `tests/`, each over the same small archive, in the format of sqllogictest.

use std::{fmt::Write, path::Path, sync::Arc};

use arrow::{
    array::AsArray,
    datatypes::{Float64Type, Int64Type},
    util::{
        display::{ArrayFormatter, FormatOptions},
        pretty::pretty_format_batches,
    },
};
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, Runner};
use wattlake_catalog::{Access, EntityType, Quality, ReadingFrequency};
use wattlake_engine::{Batch, BatchSeries, BodyFormat, Engine, Ingest, IngestRequest, TimePrecision};

use super::measurements::{SPLIT_ROWS_MIN, STREAMS_MAX};
use crate::{
    error::ApiError,
    fixture,
    query::{QueryService, SqlRequest},
};

/// 2026-05-20T10:07:00Z.
const NOW: i64 = 1_779_271_620_000_000;
const HOUR: i64 = 3_600_000_000;

/// Two meters at a site in Berlin, one in Kathmandu, one at a site without a zone.
async fn fill(engine: &Arc<Engine>) {
    let mut lines = String::new();
    let mut line = |metric: &str, entity, value: f64, time: &str, hours: i64| {
        let time = time.parse::<jiff::Timestamp>().expect("time").as_microsecond() + hours * HOUR;
        writeln!(lines, "{metric},entity_id={entity} value={value} {time}").expect("text");
    };
    let berlin = fixture::site(engine, "berlin", Some("Europe/Berlin")).await;
    let main = fixture::meter(engine, berlin, "main", ReadingFrequency::Hourly).await;
    let spare = fixture::meter(engine, berlin, "spare", ReadingFrequency::Hourly).await;
    // The day of 23 hours, and one on either side of it.
    for hour in 0..71 {
        line("power", main, hour as f64, "2026-03-27T23:00:00Z", hour);
    }
    // A reset after the second reading, a glitch at the fifth, a gap before the last.
    for (hour, value) in [(0, 100.0), (1, 104.0), (2, 2.0), (3, 5.0), (4, 4.0), (5, 7.0), (10, 12.0)] {
        line("energy_total", main, value, "2026-03-01T00:00:00Z", hour);
    }
    line("energy_total", spare, 5.0, "2026-03-01T00:00:00Z", 0);
    let nepal = fixture::site(engine, "nepal", Some("Asia/Kathmandu")).await;
    let east = fixture::meter(engine, nepal, "east", ReadingFrequency::Hourly).await;
    for hour in 0..30 {
        line("power", east, 2.0, "2026-03-28T00:00:00Z", hour);
    }
    let plain = fixture::site(engine, "plain", None).await;
    fixture::meter(engine, plain, "silent", ReadingFrequency::Daily).await;
    write(engine, lines).await;
}

/// Stores line protocol with times in microseconds.
async fn write(engine: &Arc<Engine>, lines: String) {
    let request = IngestRequest {
        format: BodyFormat::LineProtocol,
        body: bytes::Bytes::from(lines).into(),
        precision: Some(TimePrecision::Microseconds),
        is_atomic: true,
        site: String::new(),
        mapping: None,
        allowed_sites: Vec::new(),
        is_dry_run: false,
        errors_max: wattlake_engine::ERRORS_REPORTED_MAX,
    };
    Ingest::new(Arc::clone(engine)).ingest(request).await.expect("stored");
}

struct Database(Arc<QueryService>);

#[async_trait::async_trait]
impl AsyncDB for Database {
    type Error = ApiError;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, ApiError> {
        let (schema, batches) = self.0.collect(SqlRequest::new(sql, &Access::unrestricted())).await?;
        let options = FormatOptions::new().with_null("NULL");
        let mut rows = Vec::new();
        for batch in &batches {
            let columns: Vec<_> = batch
                .columns()
                .iter()
                .map(|column| ArrayFormatter::try_new(column, &options).expect("a column that has a text"))
                .collect();
            rows.extend(
                (0..batch.num_rows()).map(|row| {
                    columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>()
                }),
            );
        }
        Ok(DBOutput::Rows { types: vec![DefaultColumnType::Any; schema.fields().len()], rows })
    }

    async fn shutdown(&mut self) {}
}

#[tokio::test]
async fn scripts() {
    let folder = tempfile::TempDir::new().expect("folder");
    let engine = fixture::engine(folder.path(), NOW).await;
    fill(&engine).await;
    let service = Arc::new(QueryService::new(Arc::clone(&engine)).expect("service"));
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sql/tests");
    let mut run = 0;
    // From memory, then from files.
    for _ in 0..2 {
        for script in std::fs::read_dir(&scripts).expect("scripts") {
            let mut runner = Runner::new(async || Ok(Database(Arc::clone(&service))));
            if let Err(error) = runner.run_file_async(script.expect("script").path()).await {
                panic!("{}", error.display(false));
            }
            run += 1;
        }
        engine.flush().await.expect("flush");
    }
    assert!(run >= 6, "{run}");
}

/// What is kept is of the newest state; of an earlier one it is found anew.
#[tokio::test]
async fn latest_is_that_of_the_state_that_is_asked() {
    const QUESTION: &str = "SELECT value FROM latest ORDER BY value";
    let folder = tempfile::TempDir::new().expect("folder");
    let engine = fixture::engine(folder.path(), NOW).await;
    let site = fixture::site(&engine, "site", None).await;
    let other = fixture::site(&engine, "other", None).await;
    let meter = fixture::meter(&engine, site, "meter", ReadingFrequency::Hourly).await;
    let elsewhere = fixture::meter(&engine, other, "elsewhere", ReadingFrequency::Hourly).await;
    let service = QueryService::new(Arc::clone(&engine)).expect("service");
    let all = Access::unrestricted();
    let values = async |request: SqlRequest| -> Vec<f64> {
        let (_, batches) = service.collect(request).await.expect("an answer");
        batches
            .iter()
            .flat_map(|batch| batch.column(0).as_primitive::<Float64Type>().values().to_vec())
            .collect()
    };
    let mut views = Vec::new();
    for n in 1..=3 {
        let time = NOW - HOUR * (10 - n);
        write(
            &engine,
            format!("power,entity_id={meter} value={n} {time}\npower,entity_id={elsewhere} value=9 {time}\n"),
        )
        .await;
        assert_eq!(values(SqlRequest::new(QUESTION, &all)).await, [n as f64, 9.0], "from memory");
        engine.flush().await.expect("flush");
        assert_eq!(values(SqlRequest::new(QUESTION, &all)).await, [n as f64, 9.0], "from files");
        views.push(engine.read_view());
    }
    let then = SqlRequest { view: Some(views[0].clone()), ..SqlRequest::new(QUESTION, &all) };
    assert_eq!(values(then).await, [1.0, 9.0]);
    let restricted = Access { sites: vec![site], ..all };
    assert_eq!(values(SqlRequest::new(QUESTION, &restricted)).await, [3.0]);
    let then = SqlRequest { view: Some(views[1].clone()), ..SqlRequest::new(QUESTION, &restricted) };
    assert_eq!(values(then).await, [2.0]);
    const ROLLUP: &str = "SELECT CAST(count(*) AS DOUBLE) FROM rollup_hourly";
    let then = SqlRequest { view: Some(views[1].clone()), ..SqlRequest::new(ROLLUP, &restricted) };
    assert_eq!(values(then).await, [2.0], "rollups, too");
    assert_eq!(values(SqlRequest::new(ROLLUP, &restricted)).await, [3.0]);
}

/// Work is divided between threads where there is enough of it.
#[tokio::test]
async fn small_plans_are_not_divided() {
    let folder = tempfile::TempDir::new().expect("folder");
    let engine = fixture::engine(folder.path(), NOW).await;
    let site = fixture::site(&engine, "site", None).await;
    let mut meters = Vec::new();
    for n in 0..5 {
        meters.push(fixture::meter(&engine, site, &format!("meter {n}"), ReadingFrequency::Hourly).await);
    }
    let lines: Vec<_> =
        meters.iter().map(|meter| format!("power,entity_id={meter} value=1 {}", NOW - HOUR)).collect();
    write(&engine, lines.join("\n")).await;
    let service = QueryService::new(Arc::clone(&engine)).expect("service");
    let all = Access::unrestricted();
    let is_divided = async |query: String| {
        let (_, batches) =
            service.collect(SqlRequest::new(format!("EXPLAIN {query}"), &all)).await.expect("plan");
        pretty_format_batches(&batches).expect("a table").to_string().contains("RepartitionExec")
    };
    let readings = |count: usize, hours: usize| {
        let ids: Vec<_> = meters[..count].iter().map(|meter| format!("'{meter}'")).collect();
        format!(
            "SELECT entity_id, count(DISTINCT value) FROM measurements WHERE metric = 'power' AND entity_id IN ({}) AND \
             timestamp >= TIMESTAMP '2026-05-20T00:00:00Z' AND timestamp < TIMESTAMP '2026-05-20T00:00:00Z' + INTERVAL '{hours} hours' \
             GROUP BY 1",
            ids.join(", ")
        )
    };
    assert!(!is_divided("SELECT category, count(*) FROM meters GROUP BY 1".to_owned()).await);
    assert!(!is_divided(readings(4, 25)).await);
    let has_threads = std::thread::available_parallelism().is_ok_and(|threads| threads.get() > 1);
    let everything = "SELECT entity_id, count(DISTINCT value) FROM measurements GROUP BY 1".to_owned();
    for more in [readings(5, 25), readings(4, 26), everything] {
        assert_eq!(is_divided(more.clone()).await, has_threads, "{more}");
    }
}

/// A file that is read in parts, with corrected rows in each of them.
#[tokio::test]
async fn parts_of_a_large_file_are_all_of_it() {
    const ROWS: i64 = 140_000;
    let folder = tempfile::TempDir::new().expect("folder");
    let engine = fixture::engine(folder.path(), NOW).await;
    let site = fixture::site(&engine, "site", None).await;
    let meter = fixture::meter(&engine, site, "meter", ReadingFrequency::Hourly).await;
    for (step, value) in [(1, 1.0), (1_000, 5.0)] {
        let ts: Vec<i64> = (0..ROWS).step_by(step).map(|n| NOW - (n + 1) * 1_000_000).collect();
        let series = BatchSeries {
            entity: meter,
            entity_type: EntityType::Meter,
            metric: "power".to_owned(),
            unit: "kW".to_owned(),
        };
        let batch = Batch {
            created_at: NOW,
            table: vec![series],
            series: vec![0; ts.len()],
            value: vec![value; ts.len()],
            quality: vec![Quality::Good; ts.len()],
            ts,
            ..Batch::default()
        };
        engine.write(batch).await.expect("stored");
        engine.flush().await.expect("flush");
    }
    let largest = engine.read_view().manifest.files.iter().map(|file| file.rows).max();
    assert!(largest.is_some_and(|rows| rows >= SPLIT_ROWS_MIN), "{largest:?}");
    let service = QueryService::new(Arc::clone(&engine)).expect("service");
    let question = "SELECT count(*)::DOUBLE, sum(value), count(DISTINCT timestamp)::DOUBLE FROM measurements";
    let (_, batches) =
        service.collect(SqlRequest::new(question, &Access::unrestricted())).await.expect("answer");
    let found: Vec<f64> =
        batches[0].columns().iter().map(|c| c.as_primitive::<Float64Type>().value(0)).collect();
    assert_eq!(found, [140_000.0, 140_000.0 + 140.0 * 4.0, 140_000.0]);
}

/// Few files are streams in order, whose windows need no sort; of many that would be too many at once.
#[tokio::test]
async fn windows_over_many_files_say_the_same_as_over_few() {
    let folder = tempfile::TempDir::new().expect("folder");
    let engine = fixture::engine(folder.path(), NOW).await;
    let site = fixture::site(&engine, "site", None).await;
    let mut meters = Vec::new();
    for n in 0..3 {
        meters.push(fixture::meter(&engine, site, &format!("meter {n}"), ReadingFrequency::Hourly).await);
    }
    let service = QueryService::new(Arc::clone(&engine)).expect("service");
    let all = Access::unrestricted();
    let steps = "SELECT count(*), sum(value - before) FROM (SELECT value, lag(value) OVER \
                 (PARTITION BY entity_id ORDER BY timestamp) AS before FROM measurements WHERE metric = 'power')";
    // Aggregates that keep the readings of a group have one group at a time, of however many files.
    let increases = "SELECT entity_id, counter_increase(value, timestamp) AS increase FROM measurements WHERE metric = 'power' GROUP BY 1";
    let plan = async |text: &str| {
        let (_, batches) =
            service.collect(SqlRequest::new(format!("EXPLAIN {text}"), &all)).await.expect("plan");
        pretty_format_batches(&batches).expect("a table").to_string()
    };
    for file in 1..=STREAMS_MAX as i64 + 1 {
        // Every file has a piece of each meter's history; together they rise from reading to reading.
        let lines: Vec<_> = meters
            .iter()
            .flat_map(|meter| (0..5).map(move |n| (meter, file * 5 + n)))
            .map(|(meter, n)| format!("power,entity_id={meter} value={} {}", n * n, NOW - HOUR * (1000 - n)))
            .collect();
        write(&engine, lines.join("\n")).await;
        engine.flush().await.expect("flush");
        let (_, batches) = service.collect(SqlRequest::new(steps, &all)).await.expect("answer");
        let count = batches[0].column(0).as_primitive::<Int64Type>().value(0);
        let sum = batches[0].column(1).as_primitive::<Float64Type>().value(0);
        let last = file * 5 + 4;
        assert_eq!((count, sum), (3 * 5 * file, 3.0 * (last * last - 25) as f64), "{file} files");
        assert_eq!(plan(steps).await.contains("SortExec"), file > STREAMS_MAX as i64, "{file} files");
        let total = format!("SELECT sum(increase) FROM ({increases})");
        let (_, batches) = service.collect(SqlRequest::new(total, &all)).await.expect("answer");
        assert_eq!(batches[0].column(0).as_primitive::<Float64Type>().value(0), sum, "{file} files");
        let plan = plan(increases).await;
        assert!(plan.contains("mode=Single") && plan.contains("ordering_mode=Sorted"), "{plan}");
        assert_eq!(plan.contains("MergeRunsExec"), file > 1, "{plan}");
    }
    // What a rollup reads is merged and not sorted, of however many files.
    let rows = "EXPLAIN SELECT entity_id, timestamp, value, quality FROM measurements WHERE metric = 'power' AND \
                quality IN ('good') ORDER BY entity_id, timestamp";
    for feeds_rollup in [false, true] {
        let request = SqlRequest { feeds_rollup, ..SqlRequest::new(rows, &all) };
        let (_, batches) = service.collect(request).await.expect("plan");
        let plan = pretty_format_batches(&batches).expect("a table").to_string();
        assert_eq!(plan.contains("SortExec"), !feeds_rollup, "{plan}");
        assert!(plan.contains("MergeRunsExec"), "{plan}");
    }
    // Two days of them decode those: the scans below the merge know their times, where files reach beyond them.
    let day =
        increases.replace("GROUP BY", "AND timestamp >= '2026-04-09' AND timestamp < '2026-04-11' GROUP BY");
    let plan = plan(&day).await;
    let scans: Vec<_> = plan.lines().filter(|line| line.contains("DataSourceExec")).collect();
    let is_cut = |scan: &&&str| scan.contains("timestamp@2 >= ") && scan.contains("timestamp@2 < ");
    assert_eq!((scans.len(), scans.iter().filter(is_cut).count()), (2, 1), "{plan}");
}
