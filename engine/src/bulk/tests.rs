//! Bulk imports against a map: whatever the archive and memory held before, the newest reading of each key is there once,
//! and the report says what changed.

use std::collections::BTreeMap;

use proptest::prelude::*;
use wattlake_catalog::{EntityType, Quality};
use wattlake_config::ByteCount;

use crate::{
    Batch, BatchSeries, BulkReport, Engine, ErrorKind, MaintenanceOptions, UndoReport,
    tests::{crash, settings, start, two_meters, visible},
};
use std::sync::Arc;

/// 2026-03-01T00:00:00Z.
const NOW: i64 = 1_772_323_200_000_000;
const HOUR: i64 = 3_600_000_000;

type Reading = (usize, usize, i64, i32);
type Model = BTreeMap<(String, String, i64), u64>;

fn batch(entities: &[wattlake_catalog::EntityId], readings: &[Reading]) -> Batch {
    let mut batch = Batch { created_at: NOW, ..Batch::default() };
    for entity in entities {
        for (metric, unit) in [("power", "kW"), ("soc", "%")] {
            let (metric, unit) = (metric.to_owned(), unit.to_owned());
            batch.table.push(BatchSeries { entity: *entity, entity_type: EntityType::Meter, metric, unit });
        }
    }
    for (entity, metric, hour, value) in readings {
        batch.series.push((entity * 2 + metric) as u32);
        batch.ts.push(NOW + hour * HOUR);
        batch.value.push(f64::from(*value));
        batch.quality.push(Quality::Good);
    }
    batch
}

fn apply(model: &mut Model, entities: &[wattlake_catalog::EntityId], readings: &[Reading]) {
    for (entity, metric, hour, value) in readings {
        let key = (entities[*entity].to_string(), ["power", "soc"][*metric].to_owned(), NOW + hour * HOUR);
        model.insert(key, f64::from(*value).to_bits());
    }
}

async fn import(
    engine: &Arc<Engine>,
    entities: &[wattlake_catalog::EntityId],
    parts: &[Vec<Reading>],
) -> BulkReport {
    let mut bulk = engine.bulk_import();
    for part in parts {
        bulk.push(batch(entities, part).into_readings(engine.series()), String::new).await.expect("push");
    }
    bulk.finish().await.expect("import")
}

fn any_readings(max: usize) -> impl Strategy<Value = Vec<Reading>> {
    prop::collection::vec((0usize..2, 0usize..2, -80i64 * 24..20, 0i32..4), 0..max)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 100, ..ProptestConfig::default() })]

    #[test]
    fn imports_merge_with_what_is_there(
        before in any_readings(120),
        hot in any_readings(30),
        parts in prop::collection::vec(any_readings(80), 1..6),
        after in any_readings(30),
        spills: bool,
        compacts: bool,
    ) {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        runtime.block_on(async {
            let dir = tempfile::TempDir::new().expect("dir");
            let mut settings = settings(dir.path());
            if spills {
                // Every part is then a run of its own.
                settings.flush.max_bytes = ByteCount(20_000);
                settings.memory.budget = ByteCount(20_000);
            }
            let engine = start(&settings).await;
            let entities = two_meters(&engine).await;
            let mut model = Model::new();
            engine.write(batch(&entities, &before)).await.expect("stored");
            apply(&mut model, &entities, &before);
            engine.flush().await.expect("flush");
            if compacts {
                let options = MaintenanceOptions { everything: true, ..MaintenanceOptions::default() };
                engine.maintain(options).await.expect("maintenance");
            }
            engine.write(batch(&entities, &hot)).await.expect("stored");
            apply(&mut model, &entities, &hot);
            let old = model.clone();
            let all: Vec<_> = parts.concat();
            let mut imported = Model::new();
            apply(&mut imported, &entities, &all);
            apply(&mut model, &entities, &all);
            let report = import(&engine, &entities, &parts).await;
            let identical = imported.iter().filter(|(key, value)| old.get(*key) == Some(value)).count() as u64;
            let known = imported.keys().filter(|key| old.contains_key(*key)).count() as u64;
            let batch_id = report.batch;
            let report = BulkReport { batch: None, ..report };
            prop_assert_eq!(report, BulkReport { rows: imported.len() as u64, corrected: known - identical, identical, batch: None });
            prop_assert_eq!(batch_id.is_none(), identical == imported.len() as u64);
            prop_assert_eq!(visible(&engine).await, model.clone());
            // Again: nothing changes, no snapshot is made.
            let snapshot = engine.status().snapshot_id;
            let again = import(&engine, &entities, &parts).await;
            prop_assert_eq!((again.corrected, again.identical), (0, imported.len() as u64));
            prop_assert_eq!(engine.status().snapshot_id, snapshot);
            // Later readings win over imported ones.
            engine.write(batch(&entities, &after)).await.expect("stored");
            apply(&mut model, &entities, &after);
            prop_assert_eq!(visible(&engine).await, model.clone());
            engine.flush().await.expect("flush");
            prop_assert_eq!(visible(&engine).await, model.clone());
            // A preview says what an import would, and changes nothing.
            let mut bulk = engine.bulk_import();
            bulk.push(batch(&entities, &all).into_readings(engine.series()), String::new).await.expect("push");
            let preview = bulk.preview().await.expect("preview");
            let same = imported.iter().filter(|(key, value)| model.get(*key) == Some(value)).count() as u64;
            prop_assert_eq!((preview.rows, preview.identical, preview.batch), (imported.len() as u64, same, None));
            prop_assert_eq!(visible(&engine).await, model.clone());
            if let Some(batch_id) = batch_id {
                if compacts {
                    let options = MaintenanceOptions { everything: true, ..MaintenanceOptions::default() };
                    engine.maintain(options).await.expect("maintenance");
                }
                // What the import made of a reading is undone where it still is so.
                let mut expected = UndoReport::default();
                for (key, value) in imported.iter().filter(|(key, value)| old.get(*key) != Some(value)) {
                    if model.get(key) != Some(value) {
                        expected.kept += 1;
                    } else if let Some(before) = old.get(key) {
                        model.insert(key.clone(), *before);
                        expected.restored += 1;
                    } else {
                        model.remove(key);
                        expected.removed += 1;
                    }
                }
                prop_assert_eq!(engine.undo_import(batch_id, true).await.expect("a preview"), expected);
                prop_assert_eq!(engine.undo_import(batch_id, false).await.expect("undone"), expected);
                prop_assert_eq!(visible(&engine).await, model.clone());
                let again = engine.undo_import(batch_id, false).await.expect("nothing is left");
                prop_assert_eq!((again.removed, again.restored), (0, 0));
                prop_assert_eq!(visible(&engine).await, model);
            }
            let spilled = std::fs::read_dir(dir.path().join("tmp")).map_or(0, |entries| entries.count());
            prop_assert_eq!(spilled, 0, "spilled runs are deleted");
            engine.abandon().await;
            Ok(())
        })?;
    }
}

/// Others write and flush while an import is undone: what they wrote stays, everything else is as before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn undoing_beside_writes_loses_none() {
    for round in 0..8 {
        let dir = tempfile::TempDir::new().expect("dir");
        let engine = start(&settings(dir.path())).await;
        let entities = two_meters(&engine).await;
        let hours = || (0..24 * 20).map(|hour| -hour);
        let old: Vec<_> = hours().filter(|hour| hour % 3 == 0).map(|hour| (0, 0, hour, 1)).collect();
        let imported: Vec<_> = hours().map(|hour| (0, 0, hour, 2)).collect();
        let written: Vec<_> =
            hours().filter(|hour| hour % 5 == round % 5).map(|hour| (0, 0, hour, 3)).collect();
        engine.write(batch(&entities, &old)).await.expect("stored");
        engine.flush().await.expect("flush");
        let report = import(&engine, &entities, &[imported]).await;
        let batch_id = report.batch.expect("a batch");
        let undoing = tokio::spawn({
            let engine = Arc::clone(&engine);
            async move { engine.undo_import(batch_id, false).await }
        });
        for some in written.chunks(8) {
            engine.write(batch(&entities, some)).await.expect("stored");
            engine.flush().await.expect("flush");
        }
        undoing.await.expect("no panic").expect("undone");
        let mut model = Model::new();
        apply(&mut model, &entities, &old);
        apply(&mut model, &entities, &written);
        assert_eq!(visible(&engine).await, model);
        engine.abandon().await;
    }
}

/// What is too large to be compared is refused in words, and nothing is changed.
#[tokio::test]
async fn undoing_is_limited() {
    let dir = tempfile::TempDir::new().expect("dir");
    let engine = start(&settings(dir.path())).await;
    let entities = two_meters(&engine).await;
    let many: Vec<_> =
        (0..700).flat_map(|hour| [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(e, m)| (e, m, -hour, 1))).collect();
    let batch_id = import(&engine, &entities, std::slice::from_ref(&many)).await.batch.expect("a batch");
    // The rows before are compared with those of the import.
    let changed: Vec<_> = many.iter().map(|(e, m, hour, _)| (*e, *m, *hour, 2)).collect();
    let second = import(&engine, &entities, &[changed]).await.batch.expect("a batch");
    let error = engine.undo_import(second, false).await.expect_err("too many");
    assert!(error.kind == ErrorKind::TooLarge && error.message.contains("5000"), "{error}");
    let mut model = Model::new();
    apply(&mut model, &entities, &many);
    assert_ne!(visible(&engine).await, model);
    // Fewer rows can be undone; these have been changed since.
    let undone = engine.undo_import(batch_id, false).await.expect("undone");
    assert_eq!((undone.removed, undone.restored, undone.kept), (0, 0, many.len() as u64));
    engine.abandon().await;
}

/// An import whose process is killed again and again ends as one that nobody killed: what is on disk is not read again.
#[tokio::test]
async fn imports_go_on_after_a_kill() {
    let dir = tempfile::TempDir::new().expect("dir");
    let mut settings = settings(dir.path());
    // Some parts make a run.
    settings.memory.budget = ByteCount(20_000);
    let parts: Vec<Vec<Reading>> = (0..60)
        .map(|part| {
            (0..40).map(|n| (n % 2, part % 2, -(part as i64) * 20 - n as i64, (part % 4) as i32)).collect()
        })
        .collect();
    let mut engine = start(&settings).await;
    let entities = two_meters(&engine).await;
    // Series are numbered otherwise in each process.
    let old: Vec<Reading> = vec![(1, 1, -3, 9), (0, 1, -3, 9)];
    engine.write(batch(&entities, &old)).await.expect("stored");
    let (mut starts, mut done) = (Vec::new(), false);
    for round in 0.. {
        let (mut bulk, state) = engine.resumable_import("x").expect("an import");
        let from: usize = state.map_or(0, |state| state.parse().expect("a number"));
        starts.push(from);
        for (at, part) in parts.iter().enumerate().skip(from) {
            if round < 3 && at == from + 18 {
                break;
            }
            let readings = batch(&entities, part).into_readings(engine.series());
            bulk.push(readings, || (at + 1).to_string()).await.expect("push");
            done = at + 1 == parts.len();
        }
        if done {
            bulk.finish().await.expect("stored");
            break;
        }
        bulk.leave().await;
        crash(engine).await;
        engine = start(&settings).await;
        let first: Vec<Reading> = vec![(round % 2, round % 2, 10, 1)];
        engine.write(batch(&entities, &first)).await.expect("stored");
    }
    assert!(starts[0] == 0 && starts.windows(2).all(|pair| pair[0] < pair[1]), "{starts:?}");
    let mut model = Model::new();
    apply(&mut model, &entities, &old);
    for part in &parts {
        apply(&mut model, &entities, part);
    }
    let mut found = visible(&engine).await;
    found.retain(|key, _| key.2 <= NOW);
    assert_eq!(found, model);
    let left = || std::fs::read_dir(dir.path().join("imports")).expect("a folder").count();
    assert_eq!(left(), 0);
    // What is damaged, or cut off, is not gone on with.
    for damage in 0..3 {
        let (mut bulk, _) = engine.resumable_import("y").expect("an import");
        for (at, part) in parts.iter().enumerate() {
            let readings = batch(&entities, part).into_readings(engine.series());
            bulk.push(readings, || at.to_string()).await.expect("push");
        }
        bulk.leave().await;
        let folder = dir.path().join("imports/y");
        let paths = || std::fs::read_dir(&folder).expect("files").map(|entry| entry.expect("a file").path());
        let mut known =
            paths().filter(|path| path.extension().is_some() && !path.ends_with("checkpoint.json"));
        let run = known.next().expect("a run").with_extension("");
        match damage {
            0 => std::fs::write(folder.join("checkpoint.json"), "{").expect("written"),
            1 => std::fs::write(&run, "x").expect("written"),
            _ => std::fs::remove_file(run.with_extension("json")).expect("removed"),
        }
        let (bulk, state) = engine.resumable_import("y").expect("an import");
        assert!(state.is_none() && paths().count() == 0, "{damage}");
        drop(bulk);
        assert_eq!(left(), 0);
    }
    crash(engine).await;
    // Those that nobody went on with are forgotten.
    for (name, days) in [("new", 2), ("old", 4)] {
        let folder = dir.path().join("imports").join(name);
        std::fs::create_dir(&folder).expect("a folder");
        let changed = jiff::Timestamp::from_microsecond(NOW - days * 24 * HOUR).expect("a time");
        std::fs::File::open(&folder).expect("a folder").set_modified(changed.into()).expect("changed");
    }
    let engine = start(&settings).await;
    assert_eq!(left(), 1);
    engine.abandon().await;
}

/// An import that needs more disk than allowed stores nothing and leaves nothing behind.
#[tokio::test]
async fn spilling_is_limited() {
    let dir = tempfile::TempDir::new().expect("dir");
    let mut settings = settings(dir.path());
    settings.flush.max_bytes = ByteCount(100);
    settings.memory.budget = ByteCount(100);
    settings.ingest.import_spill = ByteCount(1000);
    let engine = start(&settings).await;
    let entities = two_meters(&engine).await;
    let mut bulk = engine.bulk_import();
    let mut refused = None;
    for hour in 0..30 {
        let part = batch(&entities, &[(0, 0, -hour, 1), (1, 1, -hour, 1)]).into_readings(engine.series());
        if let Err(error) = bulk.push(part, String::new).await {
            refused = Some(error);
            break;
        }
    }
    let error = refused.expect("the limit is reached");
    assert!(error.kind == ErrorKind::TooLarge && error.message.contains("ingest.import_spill"), "{error}");
    drop(bulk);
    assert!(visible(&engine).await.is_empty());
}

/// A reading that an import itself corrects, in another run of its sorting, once looked like a correction of the archive
/// each time that the import was repeated.
#[tokio::test]
async fn an_import_that_corrects_itself_can_be_repeated() {
    let dir = tempfile::TempDir::new().expect("dir");
    let mut settings = settings(dir.path());
    settings.flush.max_bytes = ByteCount(100);
    settings.memory.budget = ByteCount(100);
    let engine = start(&settings).await;
    let entities = two_meters(&engine).await;
    let parts = [vec![(0, 0, -2, 2), (0, 0, -3, 1)], vec![(0, 0, -2, 3)]];
    let first = import(&engine, &entities, &parts).await;
    assert_eq!((first.rows, first.corrected, first.identical), (2, 0, 0));
    let snapshot = engine.status().snapshot_id;
    assert_eq!(
        import(&engine, &entities, &parts).await,
        BulkReport { rows: 2, corrected: 0, identical: 2, batch: None }
    );
    assert_eq!(engine.status().snapshot_id, snapshot);
}
