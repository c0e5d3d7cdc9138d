//! The engine as a whole against a model: a map from key to the newest reading.

mod faults;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, atomic::AtomicI64},
};

use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use proptest::prelude::*;
use wattlake_catalog::{Catalog, Category, EntityId, MeterDraft, ReadingFrequency, SiteDraft};
use wattlake_config::{ByteCount, Settings};

use crate::*;

/// 2026-03-01T00:00:00Z.
const NOW: i64 = 1_772_323_200_000_000;
const HOUR: i64 = 3_600_000_000;

pub(crate) fn settings(dir: &Path) -> Settings {
    let mut settings = Settings::default();
    settings.data_dir.0 = dir.to_owned();
    settings
}

pub(crate) async fn start(settings: &Settings) -> Arc<Engine> {
    start_in(settings, None).await
}

async fn start_in(settings: &Settings, fault: Option<archive::Fault>) -> Arc<Engine> {
    let data_dir = DataDir::acquire(&settings.data_dir.0).expect("lock");
    let storage = Storage::open(settings).expect("storage");
    let storage = match fault {
        Some(fault) => storage.with_fault(fault),
        None => storage,
    };
    let key = settings.data_dir.0.join("secrets.key");
    let catalog = Catalog::open(&settings.catalog_url(), &key, storage.data_path()).await.expect("catalog");
    let clock = Clock::Fixed(Arc::new(AtomicI64::new(NOW)));
    Engine::start(settings, data_dir, storage, Arc::new(catalog), clock).await.expect("engine")
}

/// Readings of power of one meter.
pub(crate) fn power_batch(entity: EntityId, readings: impl Iterator<Item = (i64, f64)>) -> Batch {
    let mut batch = Batch { created_at: NOW, ..Batch::default() };
    batch.table.push(BatchSeries {
        entity,
        entity_type: wattlake_catalog::EntityType::Meter,
        metric: "power".into(),
        unit: "kW".into(),
    });
    for (ts, value) in readings {
        batch.series.push(0);
        batch.ts.push(ts);
        batch.value.push(value);
        batch.quality.push(wattlake_catalog::Quality::Good);
    }
    batch
}

/// Ends without a flush, as a kill does.
pub(crate) async fn crash(engine: Arc<Engine>) {
    engine.abandon().await;
}

/// Two meters on one site.
pub(crate) async fn two_meters(engine: &Engine) -> [EntityId; 2] {
    let site = SiteDraft {
        id: None,
        name: "site".into(),
        location: None,
        industry_type: None,
        description: None,
        metadata: serde_json::Map::new(),
        active: true,
    };
    let site_id = engine.catalog().create_site(&site).await.expect("site").id;
    let mut ids = Vec::new();
    for n in [1u128, 2] {
        let draft = MeterDraft {
            id: Some(EntityId(uuid::Uuid::from_u128(n))),
            site_id,
            parent_meter_id: None,
            name: format!("meter {n}"),
            category: Category::Cons,
            reading_frequency: ReadingFrequency::Min15,
            capacity: None,
            description: None,
            metadata: serde_json::Map::new(),
            active: true,
        };
        ids.push(engine.catalog().create_meter(&draft).await.expect("meter").id);
    }
    [ids[0], ids[1]]
}

fn request(format: BodyFormat, body: impl Into<Bytes>) -> IngestRequest {
    IngestRequest {
        format,
        body: Body::Bytes(body.into()),
        precision: None,
        is_atomic: false,
        site: "default".into(),
        mapping: None,
        allowed_sites: Vec::new(),
        is_dry_run: false,
        errors_max: ERRORS_REPORTED_MAX,
    }
}

/// Everything that the view shows, read back from files and memory, as (entity, metric, ts) -> value bits.
pub(crate) async fn visible(engine: &Engine) -> BTreeMap<(String, String, i64), u64> {
    let view = engine.read_view();
    let late = view.late_rows(i64::MIN, i64::MAX, |_| true);
    let mut out = BTreeMap::new();
    for file in &view.manifest.files {
        let hidden = view.hidden_rows(file, &late).await.expect("hidden rows");
        let bytes = view.storage().read_whole(&file.stored).await.expect("file");
        let mut position = 0;
        for batch in
            ParquetRecordBatchReaderBuilder::try_new(bytes).expect("parquet").build().expect("reader")
        {
            let batch = batch.expect("batch");
            let text = |name: &str| {
                let column = arrow::compute::cast(
                    batch.column_by_name(name).expect("column"),
                    &arrow::datatypes::DataType::Utf8,
                );
                arrow::array::AsArray::as_string::<i32>(&column.expect("text")).clone()
            };
            let (entity, metric) = (text("entity_id"), text("metric"));
            let ts = arrow::array::AsArray::as_primitive::<arrow::datatypes::TimestampMicrosecondType>(
                batch.column_by_name("timestamp").expect("ts"),
            );
            let value = arrow::array::AsArray::as_primitive::<arrow::datatypes::Float64Type>(
                batch.column_by_name("value").expect("value"),
            );
            for i in 0..batch.num_rows() {
                if hidden.binary_search(&position).is_err() {
                    let key = (entity.value(i).to_owned(), metric.value(i).to_owned(), ts.value(i));
                    // MAN-2: no two live rows have the same key.
                    assert_eq!(out.insert(key.clone(), value.value(i).to_bits()), None, "{key:?} twice");
                }
                position += 1;
            }
        }
    }
    for series in view.hot.select(i64::MIN, i64::MAX, |_| true) {
        for (ts, value) in series.rows.ts.iter().zip(&series.rows.value) {
            let key = (series.key.entity.to_string(), series.key.metric.to_string(), *ts);
            assert_eq!(out.insert(key.clone(), value.to_bits()), None, "{key:?} in file and memory");
        }
    }
    out
}

/// (entity, metric) -> (ts, value bits).
type Newest = BTreeMap<(String, String), (i64, u64)>;

fn newest_of(model: &BTreeMap<(String, String, i64), u64>) -> Newest {
    model
        .iter()
        .map(|((entity, metric, ts), value)| ((entity.clone(), metric.clone()), (*ts, *value)))
        .collect()
}

async fn latest(engine: &Engine) -> Newest {
    let found = engine.read_view().latest(|_| true).await.expect("readings");
    let count = found.len();
    let found: Newest = found
        .into_iter()
        .map(|r| ((r.key.entity.to_string(), r.key.metric.to_string()), (r.ts, r.value.to_bits())))
        .collect();
    assert_eq!(found.len(), count, "each series once");
    found
}

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<(usize, usize, i64, i32)>),
    /// Rows of one metric, or of one entity, in a range of hours.
    Delete {
        entity: Option<usize>,
        metric: Option<usize>,
        hours: (i64, i64),
    },
    Flush,
    Compact {
        everything: bool,
    },
    Restart,
    Crash,
}

fn any_step() -> impl Strategy<Value = Step> {
    // Keys over two months, and many of the last hours: duplicates and corrections are common, those of a series' latest
    // reading among them.
    let hour = prop_oneof![-40i64 * 24..20, -4i64..4];
    let reading = (0usize..2, 0usize..2, hour, -3i32..3);
    let hours = (-40i64 * 24..20, 1i64..600).prop_map(|(from, length)| (from, from + length));
    prop_oneof![
        8 => prop::collection::vec(reading, 1..30).prop_map(Step::Write),
        2 => (prop::option::of(0usize..2), prop::option::of(0usize..2), hours)
            .prop_map(|(entity, metric, hours)| Step::Delete { entity, metric, hours }),
        3 => Just(Step::Flush),
        2 => any::<bool>().prop_map(|everything| Step::Compact { everything }),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
    ]
}

/// `WATTLAKE_TEST_CASES=100000` runs them all, by hand.
pub(crate) fn cases() -> u32 {
    std::env::var("WATTLAKE_TEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(32)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 200, ..ProptestConfig::default() })]

    /// WAL-1, WAL-2, MAN-2: whatever is written, deleted, flushed, compacted, restarted or killed, the newest reading of
    /// each key is there once.
    #[test]
    fn every_view_is_the_newest_reading_of_each_key(steps in prop::collection::vec(any_step(), 1..14)) {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        runtime.block_on(async {
            let dir = tempfile::TempDir::new().expect("dir");
            let settings = settings(dir.path());
            let mut engine = start(&settings).await;
            let entities = two_meters(&engine).await;
            let metrics = ["power", "soc"];
            let mut model = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Write(readings) => {
                        let mut body = String::new();
                        for (e, m, hour, value) in readings {
                            let ts = NOW + hour * HOUR;
                            let (entity, metric) = (entities[e], metrics[m]);
                            body += &format!("{metric},entity_id={entity} value={value} {ts}\n");
                            model.insert((entity.to_string(), metric.to_owned(), ts), (f64::from(value) + 0.0).to_bits());
                        }
                        let request = IngestRequest {
                            precision: Some(TimePrecision::Microseconds),
                            ..request(BodyFormat::LineProtocol, body)
                        };
                        let report = Ingest::new(Arc::clone(&engine)).ingest(request).await.expect("stored");
                        assert_eq!(report.rejected, 0, "{:?}", report.errors);
                    }
                    Step::Delete { entity, metric, hours } => {
                        let filter = RowFilter {
                            entities: entity.map(|e| [entities[e]].into()),
                            metric: metric.map(|m| metrics[m].to_owned()),
                            from: NOW + hours.0 * HOUR,
                            to: NOW + hours.1 * HOUR,
                        };
                        let before = model.len();
                        model.retain(|(e, m, ts): &(String, String, i64), _| {
                            !(entity.is_none_or(|i| entities[i].to_string() == *e)
                                && metric.is_none_or(|i| metrics[i] == m)
                                && (filter.from..filter.to).contains(ts))
                        });
                        let deleted = engine.delete_rows(filter).await.expect("delete");
                        assert_eq!(deleted, (before - model.len()) as u64, "the number of rows that were deleted");
                    }
                    Step::Flush => { engine.flush().await.expect("flush"); }
                    Step::Compact { everything } => {
                        let options = MaintenanceOptions { everything, ..MaintenanceOptions::default() };
                        engine.maintain(options).await.expect("maintenance");
                    }
                    Step::Restart => {
                        engine.stop().await.expect("stop");
                        engine.catalog().close().await;
                        drop(engine);
                        engine = start(&settings).await;
                    }
                    Step::Crash => {
                        crash(engine).await;
                        engine = start(&settings).await;
                    }
                }
                assert_eq!(visible(&engine).await, model);
                assert_eq!(latest(&engine).await, newest_of(&model));
            }
            crash(engine).await;
        });
    }
}

#[tokio::test]
async fn identical_readings_write_nothing() {
    let dir = tempfile::TempDir::new().expect("dir");
    let engine = start(&settings(dir.path())).await;
    let [a, _] = two_meters(&engine).await;
    let ingest = Ingest::new(Arc::clone(&engine));
    let body = format!("power,entity_id={a} value=1.5,unit=\"kW\" {}000\n", NOW - HOUR);
    ingest.ingest(request(BodyFormat::LineProtocol, body.clone())).await.expect("stored");
    let first = engine.flush().await.expect("flush");
    ingest.ingest(request(BodyFormat::LineProtocol, body)).await.expect("stored");
    assert_eq!(engine.flush().await.expect("flush"), first, "no new snapshot");
    let status = engine.status();
    assert_eq!((status.archive_rows, status.data_files, status.delete_files), (1, 1, 0));
}

/// The latest flushed time of a series is exactly its high-water mark: a reading there is looked up, not taken for new.
#[tokio::test]
async fn the_latest_reading_of_a_series_can_be_corrected() {
    let dir = tempfile::TempDir::new().expect("dir");
    let engine = start(&settings(dir.path())).await;
    let [a, _] = two_meters(&engine).await;
    let ingest = Ingest::new(Arc::clone(&engine));
    for value in [1.0, 2.0, 3.0] {
        let body = format!("power,entity_id={a} value={value} {NOW}000\n");
        ingest.ingest(request(BodyFormat::LineProtocol, body)).await.expect("stored");
        let key = (a.to_string(), "power".to_owned(), NOW);
        let expected = BTreeMap::from([(key, f64::to_bits(value))]);
        assert_eq!(visible(&engine).await, expected, "in memory");
        engine.flush().await.expect("flush");
        assert_eq!(visible(&engine).await, expected, "in files");
    }
}

#[tokio::test]
async fn writes_beyond_the_memory_budget_are_refused_and_nothing_is_lost() {
    let dir = tempfile::TempDir::new().expect("dir");
    let mut settings = settings(dir.path());
    settings.memory.budget = ByteCount(27_000);
    settings.flush.max_bytes = ByteCount(27_000);
    let engine = start(&settings).await;
    let [a, _] = two_meters(&engine).await;
    let ingest = Ingest::new(Arc::clone(&engine));
    let write = async |from: i64| {
        let lines: Vec<_> =
            (from..from + 500).map(|n| format!("power,entity_id={a} value=1 {}", NOW / 1000 - n)).collect();
        let request = IngestRequest {
            precision: Some(TimePrecision::Milliseconds),
            ..request(BodyFormat::LineProtocol, lines.join("\n"))
        };
        ingest.ingest(request).await.map(|report| report.accepted)
    };
    assert_eq!(write(0).await.expect("fits"), 500);
    assert_eq!(write(500).await.expect("fits"), 500);
    let error = write(1000).await.expect_err("full");
    assert_eq!(error.kind, ErrorKind::Overloaded);
    assert!(error.message.contains("memory.budget"), "{error}");
    engine.flush().await.expect("flush");
    assert_eq!(write(1000).await.expect("room again"), 500);
    assert_eq!(visible(&engine).await.len(), 1500);
}

#[tokio::test]
async fn a_data_directory_has_one_owner() {
    let dir = tempfile::TempDir::new().expect("dir");
    let first = DataDir::acquire(dir.path()).expect("first");
    let error = DataDir::acquire(dir.path()).expect_err("second");
    assert_eq!(error.kind, ErrorKind::InUse);
    assert!(error.message.contains(&std::process::id().to_string()), "{error}");
    drop(first);
    DataDir::acquire(dir.path()).expect("free again");
}

#[tokio::test]
async fn registration_is_limited_per_minute() {
    let dir = tempfile::TempDir::new().expect("dir");
    let mut settings = settings(dir.path());
    settings.ingest.max_new_entities_per_minute = 2;
    let engine = start(&settings).await;
    let ingest = Ingest::new(Arc::clone(&engine));
    let body = "power,host=a value=1\npower,host=b value=1\npower,host=c value=1\npower,host=a value=2\n";
    let report =
        ingest.ingest(IngestRequest { site: "db".into(), ..request(BodyFormat::LineProtocol, body) }).await;
    let report = report.expect("stored");
    assert_eq!((report.accepted, report.rejected, report.registered), (3, 1, 2));
    assert_eq!(report.errors[0].kind, "too_many_new_entities");
    let fleet = engine.catalog().fleet();
    assert!(fleet.by_external_id("db/power,host=a").is_some());
    assert_eq!(fleet.sites().map(|site| site.name.as_str()).collect::<Vec<_>>(), ["db"]);
}

#[tokio::test]
async fn units_are_limited() {
    let dir = tempfile::TempDir::new().expect("dir");
    let engine = start(&settings(dir.path())).await;
    let [a, _] = two_meters(&engine).await;
    let ingest = Ingest::new(Arc::clone(&engine));
    let lines = |from: usize, to: usize| -> String {
        (from..to).map(|n| format!("odd,entity_id={a} value=1,unit=\"u{n}\" {n}\n")).collect()
    };
    for (from, to, refused) in [(0, 10_000, 0), (9_990, 10_005, 5)] {
        let request = request(BodyFormat::LineProtocol, lines(from, to));
        let report = ingest.ingest(request).await.expect("a report");
        assert_eq!(report.rejected, refused);
        assert!(report.errors.iter().all(|error| error.kind == "too_many_units"));
    }
}

#[tokio::test]
async fn unknown_series_are_refused_without_auto_registration() {
    let dir = tempfile::TempDir::new().expect("dir");
    let mut settings = settings(dir.path());
    settings.ingest.auto_register = false;
    let engine = start(&settings).await;
    let [a, _] = two_meters(&engine).await;
    let ingest = Ingest::new(Arc::clone(&engine));
    let body = format!("power,host=a value=1\npower,entity_id={a} value=1\n");
    let report = ingest.ingest(request(BodyFormat::LineProtocol, body)).await.expect("stored");
    assert_eq!((report.accepted, report.rejected), (1, 1));
    assert_eq!((report.errors[0].row, &*report.errors[0].kind), (1, "unknown_entity"));
}

mod bodies {
    //! Every format and every kind of bad row: the good rows of a body are stored, the bad ones named.
    use super::*;

    async fn ingest(engine: &Arc<Engine>, format: BodyFormat, body: impl Into<Bytes>) -> IngestReport {
        Ingest::new(Arc::clone(engine)).ingest(request(format, body)).await.expect("a report")
    }

    fn kinds(report: &IngestReport) -> Vec<(u64, &str)> {
        report.errors.iter().map(|error| (error.row, &*error.kind)).collect()
    }

    #[tokio::test]
    async fn json_rows_are_judged_one_by_one() {
        let dir = tempfile::TempDir::new().expect("dir");
        let engine = start(&settings(dir.path())).await;
        let [a, _] = two_meters(&engine).await;
        let good = format!(
            r#"{{"entityId":"{a}","timestamp":"2026-02-01T10:00:00+01:00","metric":"power","value":1500,"unit":"W"}}"#
        );
        let change = |from: &str, to: &str| good.replace(from, to);
        let rows = [
            good.clone(),
            change(r#""unit":"W""#, r#""unit":"kWh""#),
            change("2026-02-01T10", "1969-02-01T10"),
            change("2026-02-01T10", "2026-03-09T10"),
            change("+01:00", ""),
            change("1500", "null"),
            change("1500", "1e999"),
            change(&a.to_string(), "00000000-0000-0000-0000-00000000dead"),
            change("metric", "metrik"),
            change(r#""value""#, r#""entityType":"energy_source","value""#),
            change(r#""value""#, r#""quality":"excellent","value""#),
            change(r#""value""#, r#""metadata":{"x":1},"quality":"estimated","value""#),
        ];
        let report = ingest(&engine, BodyFormat::Json, format!("[{}]", rows.join(","))).await;
        assert_eq!((report.accepted, report.rejected), (2, 10));
        assert_eq!(
            kinds(&report),
            [
                (1, "unknown_unit"),
                (2, "invalid"),
                (3, "future_timestamp"),
                (4, "invalid"),
                (5, "invalid"),
                (6, "invalid"),
                (7, "unknown_entity"),
                (8, "invalid"),
                (9, "invalid"),
                (10, "invalid"),
            ]
        );
        let key = (a.to_string(), "power".to_owned(), 1_769_936_400_000_000);
        assert_eq!(visible(&engine).await.get(&key), Some(&1.5f64.to_bits()));
        for body in ["", "[", "{\"a\":", "nope"] {
            let error = Ingest::new(Arc::clone(&engine)).ingest(request(BodyFormat::Json, body)).await;
            assert_eq!(error.expect_err(body).kind, ErrorKind::Invalid);
        }
        let error =
            Ingest::new(Arc::clone(&engine)).ingest(request(BodyFormat::Json, vec![b'"', 0xff])).await;
        assert!(error.expect_err("not UTF-8").message.contains("UTF-8"));
    }

    #[tokio::test]
    async fn atomic_requests_store_all_or_nothing() {
        let dir = tempfile::TempDir::new().expect("dir");
        let engine = start(&settings(dir.path())).await;
        let [a, _] = two_meters(&engine).await;
        let body = format!("power,entity_id={a} value=1\npower,entity_id={a} value=x\n");
        let request = IngestRequest { is_atomic: true, ..request(BodyFormat::LineProtocol, body) };
        let report = Ingest::new(Arc::clone(&engine)).ingest(request).await.expect("a report");
        assert_eq!((report.accepted, report.rejected), (0, 1));
        assert!(visible(&engine).await.is_empty());
    }

    #[tokio::test]
    async fn csv_and_ndjson_keep_good_rows() {
        let dir = tempfile::TempDir::new().expect("dir");
        let engine = start(&settings(dir.path())).await;
        let [a, b] = two_meters(&engine).await;
        let csv = format!(
            "entity_id,timestamp,metric,value,unit\n{a},2026-02-01T00:00:00Z,power,1,kW\n{a},2026-02-01T01:00:00Z,power\n\
             {b},2026-02-01T00:00:00Z,power,NaN,kW\n{b},2026-02-01T00:00:00Z,power,inf,kW\n{b},yesterday,power,1,kW\n\
             {b},2026-02-01T00:00:00Z,power,2,\n"
        );
        let report = ingest(&engine, BodyFormat::Csv, csv).await;
        assert_eq!(
            (report.accepted, kinds(&report)),
            (2, vec![(1, "invalid"), (2, "invalid"), (3, "invalid"), (4, "invalid")])
        );
        let mut bad_utf8 =
            format!("entity_id,timestamp,metric,value\n{a},2026-02-01T02:00:00Z,power,1\n{a},").into_bytes();
        bad_utf8.extend_from_slice(b"\xff\xfe,power,1\n");
        let report = ingest(&engine, BodyFormat::Csv, bad_utf8).await;
        assert_eq!((report.accepted, kinds(&report)), (1, vec![(1, "invalid")]));
        let error = Ingest::new(Arc::clone(&engine)).ingest(request(BodyFormat::Csv, "entity_id,ts\n")).await;
        assert!(error.expect_err("no column").message.contains("entity_id, ts"));
        let ndjson = format!(
            "{{\"entityId\":\"{a}\",\"timestamp\":\"2026-02-02T00:00:00Z\",\"metric\":\"soc\",\"value\":5}}\n\n{{oops\n"
        );
        let report = ingest(&engine, BodyFormat::NdJson, ndjson).await;
        assert_eq!((report.accepted, kinds(&report)), (1, vec![(1, "invalid")]));
    }

    #[tokio::test]
    async fn mapped_csv_reads_local_times_through_autumn_and_spring() {
        let dir = tempfile::TempDir::new().expect("dir");
        let engine = start(&settings(dir.path())).await;
        let mapping = TableMapping {
            site: Some("homes".into()),
            timestamp: Some("when".into()),
            time_zone: Some("Europe/Berlin".into()),
            entity: Some("customer".into()),
            values: vec![ValueColumn {
                column: "wh".into(),
                metric: "energy".into(),
                unit: Some("Wh".into()),
            }],
            ..TableMapping::default()
        };
        // 2025-10-26 repeats 02:00 to 03:00; 2025-03-30 skips it.
        let csv = "customer,when,wh,note\n7,2025-10-26 02:00:00,1000,a\n7,2025-10-26 02:30:00,2000,b\n\
                   7,2025-10-26 02:00:00,3000,c\n7,2025-10-26 02:30:00,4000,d\n7,2025-10-26 03:00:00,,e\n7,2025-03-30 02:30:00,500,f\n";
        let request = IngestRequest { mapping: Some(Arc::new(mapping)), ..request(BodyFormat::Csv, csv) };
        let report = Ingest::new(Arc::clone(&engine)).ingest(request).await.expect("a report");
        assert_eq!((report.accepted, report.rejected, report.registered), (5, 0, 1));
        let at = |text: &str| parse_timestamp(text, None).expect("time");
        let found: Vec<_> =
            visible(&engine).await.into_iter().map(|((_, _, ts), v)| (ts, f64::from_bits(v))).collect();
        assert_eq!(
            found,
            [
                (at("2025-03-30T01:30:00Z"), 0.5),
                (at("2025-10-26T00:00:00Z"), 1.0),
                (at("2025-10-26T00:30:00Z"), 2.0),
                (at("2025-10-26T01:00:00Z"), 3.0),
                (at("2025-10-26T01:30:00Z"), 4.0),
            ]
        );
    }

    #[tokio::test]
    async fn lines_of_every_writer_are_understood() {
        let dir = tempfile::TempDir::new().expect("dir");
        let engine = start(&settings(dir.path())).await;
        let [a, b] = two_meters(&engine).await;
        let body = format!(
            "# comment\r\n\npower,entity_id={a} value=1i,note=\"a, b=\\\"c\\\" \n d\",ok=t 1000\n\
             reading,entity_id={b} power=2.5e0,voltage=230u,quality=\"estimated\" 2000\r\n\
             my\\ meas\\,x,tag\\ one=va\\=l\\,ue f\\ 1=-.5 3000\n\
             power,entity_id={a} value=1500,unit=\"W\" 4000\n"
        );
        let report = ingest(&engine, BodyFormat::LineProtocol, body).await;
        assert_eq!(report.errors, [], "all lines are good");
        assert_eq!((report.accepted, report.skipped_fields, report.registered), (5, 2, 1));
        let fleet = engine.catalog().fleet();
        let c = fleet.by_external_id("default/my meas,x,tag one=va=l,ue").expect("registered");
        let all = visible(&engine).await;
        let value = |e: EntityId, m: &str, ts| {
            all.get(&(e.to_string(), m.to_owned(), ts)).map(|v| f64::from_bits(*v))
        };
        assert_eq!(value(a, "power", 1), Some(1.0));
        assert_eq!(value(b, "power", 2), Some(2.5));
        assert_eq!(value(b, "voltage", 2), Some(230.0));
        assert_eq!(value(c, "f 1", 3), Some(-0.5));
        assert_eq!(value(a, "power", 4), Some(1.5));
    }

    #[tokio::test]
    async fn bad_lines_are_named_and_the_others_kept() {
        let dir = tempfile::TempDir::new().expect("dir");
        let engine = start(&settings(dir.path())).await;
        let [a, _] = two_meters(&engine).await;
        let mut body = format!(
            "power,entity_id={a} value=1 1000\nnonsense\npower,entity_id={a} value= 1\npower,entity_id={a} value=nan\n\
             power,entity_id={a} value=inf 5\npower,entity_id={a} value=\"open 6\npower,entity_id={a} value=1 soon\n\
             power,entity_id={a} value=1,unit=\"kWh\" 8000\npower,entity_id={a} value=1,quality=\"odd\" 9000\n,a=b x=1\n"
        )
        .into_bytes();
        body.extend_from_slice(b"p\xff,a=b value=1\npower,entity_id=");
        body.extend_from_slice(format!("{a} value=2 2000").as_bytes());
        let report = ingest(&engine, BodyFormat::LineProtocol, body).await;
        let lines: Vec<_> = report.errors.iter().map(|error| error.row).collect();
        assert_eq!((report.accepted, lines), (2, (2..=11).collect()));
    }

    #[test]
    fn bombs_stop_at_the_limit() {
        use std::io::Write;
        let zeros = vec![0; 20 << 20];
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(&zeros).expect("gzip");
        let gzip = Bytes::from(gzip.finish().expect("gzip"));
        let packed = Bytes::from(zstd::encode_all(&zeros[..], 3).expect("zstd"));
        for (body, encoding) in [(gzip, ContentEncoding::Gzip), (packed, ContentEncoding::Zstd)] {
            assert_eq!(decompress(body.clone(), encoding, 20 << 20).expect("fits").len(), 20 << 20);
            assert_eq!(
                decompress(body.clone(), encoding, 1 << 20).expect_err("bomb").kind,
                ErrorKind::TooLarge
            );
            assert_eq!(
                decompress(body.slice(..body.len() / 2), encoding, 64 << 20).expect_err("cut").kind,
                ErrorKind::Invalid
            );
        }
        assert_eq!("br".parse::<ContentEncoding>().expect_err("unsupported").kind, ErrorKind::Invalid);
    }
}
