use std::sync::Arc;

use wattlake_catalog::{Catalog, EntityId};

use super::*;
use crate::{
    Engine, MaintenanceOptions, RowFilter, rebuild_catalog,
    tests::{crash, power_batch, settings, start, two_meters, visible},
};

const HOUR: i64 = 3_600_000_000;
/// 2026-02-01T00:00:00Z.
const START: i64 = 1_769_904_000_000_000;

async fn write(engine: &Arc<Engine>, entity: EntityId, hours: std::ops::Range<i64>, value: f64) {
    let batch = power_batch(entity, hours.map(|hour| (START + hour * HOUR, value)));
    engine.write(batch).await.expect("write");
}

async fn lose_catalog(engine: Arc<Engine>) {
    let path = engine.settings().data_dir.0.join("catalog.db");
    crash(engine).await;
    std::fs::remove_file(path).expect("remove");
}

#[tokio::test]
async fn a_lost_catalog_is_rebuilt_with_files_deletes_log_and_fleet() {
    let dir = tempfile::TempDir::new().expect("dir");
    let settings = settings(dir.path());
    let engine = start(&settings).await;
    let [a, b] = two_meters(&engine).await;
    engine.catalog().name_snapshot("before", Timestamp::now()).await.expect("name");
    for round in 0..5 {
        write(&engine, a, 0..200, f64::from(round)).await;
        write(&engine, b, i64::from(round) * 50..i64::from(round) * 50 + 60, 1.0).await;
        engine.flush().await.expect("flush");
        if round == 2 {
            let all = MaintenanceOptions { everything: true, ..MaintenanceOptions::default() };
            engine.maintain(all).await.expect("maintenance");
        }
    }
    let filter = RowFilter { entities: Some([b].into()), metric: None, from: START, to: START + 3 * HOUR };
    assert_eq!(engine.delete_rows(filter).await.expect("delete"), 3);
    // Only in the log.
    write(&engine, b, 300..310, 7.0).await;
    write(&engine, a, 10..12, 8.0).await;
    engine.journal().save_fleet().await.expect("fleet");
    let before = visible(&engine).await;
    let fleet = engine.catalog().copy_fleet().await.expect("fleet");
    lose_catalog(engine).await;

    // A server that starts on a new catalog would hide the archive.
    let data_dir = crate::DataDir::acquire(dir.path()).expect("lock");
    let storage = Storage::open(&settings).expect("storage");
    let key = dir.path().join("secrets.key");
    let fresh = Catalog::open(&settings.catalog_url(), &key, storage.data_path()).await.expect("catalog");
    let refused = Engine::start(&settings, data_dir, storage, Arc::new(fresh), crate::Clock::System).await;
    let error = refused.expect_err("a new catalog");
    assert!(error.kind == ErrorKind::Conflict && error.message.contains("rebuild-catalog"), "{error}");
    let error = rebuild_catalog(&settings).await.expect_err("there is a catalog");
    assert_eq!(error.kind, ErrorKind::Conflict);
    std::fs::remove_file(dir.path().join("catalog.db")).expect("remove");

    for attempt in 0..2 {
        let report = rebuild_catalog(&settings).await.expect("rebuild");
        assert_eq!((report.sites, report.meters, report.missing_objects.len()), (1, 2, 0));
        let engine = start(&settings).await;
        assert_eq!(visible(&engine).await, before, "attempt {attempt}");
        assert_eq!(engine.catalog().copy_fleet().await.expect("fleet"), fleet);
        assert!(engine.verify(false).await.expect("verify").is_sound());
        engine.flush().await.expect("flush");
        assert_eq!(visible(&engine).await, before);
        lose_catalog(engine).await;
    }
}

#[tokio::test]
async fn a_missing_or_damaged_record_is_named() {
    let dir = tempfile::TempDir::new().expect("dir");
    let settings = settings(dir.path());
    let engine = start(&settings).await;
    let [a, _] = two_meters(&engine).await;
    write(&engine, a, 0..10, 1.0).await;
    engine.flush().await.expect("flush");
    lose_catalog(engine).await;
    let record = dir.path().join("lake/journal/00000000000000000001.state.json");
    let mut text = std::fs::read(&record).expect("record");
    text[20] ^= 1;
    std::fs::write(&record, &text).expect("write");
    let error = rebuild_catalog(&settings).await.expect_err("damaged");
    assert!(error.kind == ErrorKind::Corrupt && error.message.contains("00001.state.json"), "{error}");
    std::fs::remove_file(&record).expect("remove");
    assert_eq!(rebuild_catalog(&settings).await.expect_err("no journal").kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn maintenance_begins_the_journal_of_an_older_archive() {
    let dir = tempfile::TempDir::new().expect("dir");
    let settings = settings(dir.path());
    let engine = start(&settings).await;
    let [a, _] = two_meters(&engine).await;
    write(&engine, a, 0..10, 1.0).await;
    engine.flush().await.expect("flush");
    let before = visible(&engine).await;
    crash(engine).await;
    std::fs::remove_dir_all(dir.path().join("lake/journal")).expect("as before there was one");
    let engine = start(&settings).await;
    engine.maintain(MaintenanceOptions::default()).await.expect("maintenance");
    lose_catalog(engine).await;
    assert_eq!(rebuild_catalog(&settings).await.expect("rebuild").files, 1);
    let engine = start(&settings).await;
    assert_eq!(visible(&engine).await, before);
}

/// Every prefix of the journal is a state of the archive; old records go away.
#[tokio::test]
async fn old_records_are_forgotten_and_a_commit_that_never_happened_is_not_believed() {
    let dir = tempfile::TempDir::new().expect("dir");
    let settings = settings(dir.path());
    let engine = start(&settings).await;
    let [a, b] = two_meters(&engine).await;
    for round in 0..i64::try_from(CHANGES_MIN).expect("small") * 3 {
        write(&engine, [a, b][usize::from(round % 2 == 0)], round..round + 2, round as f64).await;
        engine.flush().await.expect("flush");
    }
    let records = list(engine.storage()).await.expect("list");
    assert!(records.len() <= 2 * CHANGES_MIN + 2, "{} records", records.len());
    let before = visible(&engine).await;
    // As if a process had died between the record and the commit, and its files had been collected since.
    let (next, last) = (records.last().expect("records").0 + 1, &records.last().expect("records").1);
    let mut record: Record = read(engine.storage(), last).await.expect("record");
    record.snapshot += 1;
    let Content::Change { added, .. } = &mut record.content else { panic!("a change") };
    added[0].stored.path = "month=2026-02/never.parquet".to_owned();
    let path = format!("{FOLDER}/{next:020}{CHANGE_SUFFIX}");
    engine.storage().put_at(&path, sealed(&record).expect("sealed")).await.expect("put");
    lose_catalog(engine).await;
    let report = rebuild_catalog(&settings).await.expect("rebuild");
    assert_eq!(report.missing_objects, Vec::<String>::new());
    let engine = start(&settings).await;
    assert_eq!(visible(&engine).await, before);
}
