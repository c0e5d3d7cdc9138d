//! Where the time of a reading goes: decoding, the log, flush, looking up late rows, and being read again.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run should say so and stop")]

use std::{hint::black_box, sync::Arc};

use arrow::{
    array::{AsArray, RecordBatch},
    datatypes::Int64Type,
};
use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::Runtime;
use wattlake_benches::Fleet;
use wattlake_catalog::{Access, Catalog};
use wattlake_config::{ByteCount, Period, Settings};
use wattlake_engine::{
    Body, BodyFormat, Clock, DataDir, Engine, Ingest, IngestRequest, Storage, TimePrecision,
};
use wattlake_query_api::{QueryService, SqlRequest};

const FLEET: Fleet = Fleet { devices: 500 };
const ROWS: u64 = 5_000;

struct Bench {
    runtime: Runtime,
    engine: Arc<Engine>,
    ingest: Ingest,
    _dir: tempfile::TempDir,
}

impl Bench {
    /// An engine with a registered fleet that flushes only when it is told to.
    fn new() -> Self {
        let dir = tempfile::TempDir::new().unwrap();
        let mut settings = Settings::default();
        settings.data_dir.0 = dir.path().to_owned();
        settings.flush.interval = Period::secs(3600);
        settings.flush.max_bytes = ByteCount::mib(4096);
        settings.memory.budget = ByteCount::mib(8192);
        let runtime = Runtime::new().unwrap();
        let engine = runtime.block_on(async {
            let data_dir = DataDir::acquire(dir.path()).unwrap();
            let storage = Storage::open(&settings).unwrap();
            let key = dir.path().join("key");
            let catalog = Catalog::open(&settings.catalog_url(), &key, storage.data_path()).await.unwrap();
            Engine::start(&settings, data_dir, storage, Arc::new(catalog), Clock::System).await.unwrap()
        });
        let bench = Self { ingest: Ingest::new(Arc::clone(&engine)), runtime, engine, _dir: dir };
        bench.ingest(BodyFormat::LineProtocol, FLEET.lines(0, FLEET.devices), false);
        bench
    }

    fn ingest(&self, format: BodyFormat, body: impl Into<Bytes>, is_dry_run: bool) {
        let precision = match format {
            BodyFormat::LineProtocol => TimePrecision::Nanoseconds,
            _ => TimePrecision::Seconds,
        };
        let request = IngestRequest {
            format,
            body: Body::Bytes(body.into()),
            precision: Some(precision),
            is_atomic: false,
            site: "bench".into(),
            mapping: None,
            allowed_sites: Vec::new(),
            is_dry_run,
            errors_max: wattlake_engine::ERRORS_REPORTED_MAX,
        };
        let report = self.runtime.block_on(self.ingest.ingest(request)).unwrap();
        assert_eq!(report.rejected, 0, "{:?}", report.errors);
    }
}

fn decode(c: &mut Criterion) {
    let bench = Bench::new();
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(ROWS));
    for (name, format, body) in [
        ("line_protocol", BodyFormat::LineProtocol, FLEET.lines(0, ROWS)),
        ("ndjson", BodyFormat::NdJson, FLEET.ndjson(0, ROWS)),
        ("csv", BodyFormat::Csv, FLEET.csv(0, ROWS)),
    ] {
        let body = Bytes::from(body);
        group.bench_function(name, |b| b.iter(|| bench.ingest(format, black_box(body.clone()), true)));
    }
    group.finish();
}

/// Readings to acknowledged: decode, log, fsync, memtable. With one reading it is the log and its fsync alone.
fn wal(c: &mut Criterion) {
    let bench = Bench::new();
    let mut group = c.benchmark_group("wal");
    let mut from = FLEET.devices;
    for (name, rows) in [("one_reading", 1), ("batch", ROWS)] {
        group.throughput(Throughput::Elements(rows));
        group.bench_function(name, |b| {
            b.iter_batched(
                || {
                    from += rows;
                    FLEET.lines(from, rows)
                },
                |body| bench.ingest(BodyFormat::LineProtocol, body, false),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// A memtable of 200,000 rows to a committed Parquet file; the same rows changed, to a delete file as well.
fn flush(c: &mut Criterion) {
    const FLUSHED: u64 = 200_000;
    let mut group = c.benchmark_group("flush");
    group.throughput(Throughput::Elements(FLUSHED)).sample_size(10);
    let filled = || {
        let bench = Bench::new();
        bench.ingest(BodyFormat::LineProtocol, FLEET.lines(0, FLUSHED), false);
        bench
    };
    group.bench_function("new_rows", |b| {
        b.iter_batched(
            filled,
            |bench| {
                bench.runtime.block_on(bench.engine.flush()).unwrap();
                bench
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("identical_rows", |b| {
        b.iter_batched(
            || {
                let bench = filled();
                bench.runtime.block_on(bench.engine.flush()).unwrap();
                bench.ingest(BodyFormat::LineProtocol, FLEET.lines(0, FLUSHED), false);
                bench
            },
            |bench| {
                bench.runtime.block_on(bench.engine.flush()).unwrap();
                bench
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// The hot rows of one series, and of all.
fn scan_memory(c: &mut Criterion) {
    const HOT: u64 = 200_000;
    let bench = Bench::new();
    bench.ingest(BodyFormat::LineProtocol, FLEET.lines(0, HOT), false);
    let one = bench.engine.catalog().fleet().by_external_id(&Fleet::serial(7)).unwrap();
    let mut group = c.benchmark_group("scan_memory");
    group.bench_function("one_series", |b| {
        b.iter(|| {
            black_box(bench.engine.read_view().hot.select(i64::MIN, i64::MAX, |key| key.entity == one))
        });
    });
    group.throughput(Throughput::Elements(HOT));
    group.bench_function("all_series", |b| {
        b.iter(|| black_box(bench.engine.read_view().hot.select(i64::MIN, i64::MAX, |_| true)));
    });
    group.finish();
}

/// SQL over committed files: all rows, one series, a day of all.
fn scan_files(c: &mut Criterion) {
    const STORED: u64 = 2_000_000;
    let bench = Bench::new();
    for part in 0..STORED / 200_000 {
        bench.ingest(BodyFormat::LineProtocol, FLEET.lines(part * 200_000, 200_000), false);
    }
    bench.runtime.block_on(bench.engine.flush()).unwrap();
    let queries = QueryService::new(Arc::clone(&bench.engine)).unwrap();
    let one = bench.engine.catalog().fleet().by_external_id(&Fleet::serial(7)).unwrap();
    let mut group = c.benchmark_group("scan_files");
    for (name, rows, condition) in [
        ("all_rows", STORED, String::new()),
        ("one_series", STORED / FLEET.devices, format!("WHERE entity_id = '{one}' AND metric = 'power'")),
        (
            "one_day",
            96 * FLEET.devices,
            "WHERE timestamp >= '2025-01-10T00:00:00Z' AND timestamp < '2025-01-11T00:00:00Z'".to_owned(),
        ),
    ] {
        let query = format!("SELECT count(*), sum(value), max(timestamp) FROM measurements {condition}");
        group.throughput(Throughput::Elements(rows));
        group.bench_function(name, |b| {
            b.iter(|| {
                let request = SqlRequest::new(black_box(query.as_str()), &Access::unrestricted());
                let (_, batches) = bench.runtime.block_on(queries.collect(request)).unwrap();
                assert_eq!(counted(&batches[0]), rows);
            });
        });
    }
    group.finish();
}

fn counted(batch: &RecordBatch) -> u64 {
    batch.column(0).as_primitive::<Int64Type>().value(0).cast_unsigned()
}

criterion_group!(benches, decode, wal, flush, scan_memory, scan_files);
criterion_main!(benches);
