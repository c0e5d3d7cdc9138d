//! Every call to the storage fails once, before it does anything or after it did all: what was acknowledged stays, what failed
//! changed nothing, and the next attempt succeeds.

use std::{collections::BTreeMap, sync::Arc};

use wattlake_catalog::EntityId;

use super::{HOUR, NOW, crash, power_batch, settings, start_in, two_meters, visible};
use crate::{
    Batch, Engine, MaintenanceOptions, ProblemKind, RowFilter,
    archive::{Fault, Moment},
};

type Model = BTreeMap<(String, String, i64), u64>;

fn batch(entity: EntityId, hours: impl Iterator<Item = i64>, value: f64) -> Batch {
    power_batch(entity, hours.map(|hour| (NOW + hour * HOUR, value)))
}

fn note(model: &mut Model, batch: &Batch) {
    for (ts, value) in batch.ts.iter().zip(&batch.value) {
        model.insert((batch.table[0].entity.to_string(), "power".to_owned(), *ts), value.to_bits());
    }
}

/// Writes, flushes, corrections, a delete, compactions and an import; after each of them the view is the model.
async fn script(engine: &Arc<Engine>, [a, b]: [EntityId; 2], model: &mut Model) {
    let write = async |model: &mut Model, batch: Batch| {
        note(model, &batch);
        engine.write(batch).await.expect("the log is well");
    };
    let options = MaintenanceOptions { everything: true, ..MaintenanceOptions::default() };
    write(model, batch(a, -1500..-1400, 1.0)).await;
    write(model, batch(b, -100..0, 1.0)).await;
    let _ = engine.flush().await;
    write(model, batch(a, -1450..-1445, 2.0)).await;
    write(model, batch(b, -50..0, 2.0)).await;
    let _ = engine.flush().await;
    let filter = RowFilter {
        entities: Some([a].into()),
        metric: None,
        from: NOW - 1430 * HOUR,
        to: NOW - 1425 * HOUR,
    };
    if engine.delete_rows(filter.clone()).await.is_ok() {
        model.retain(|(e, _, ts), _| *e != a.to_string() || !(filter.from..filter.to).contains(ts));
    }
    let _ = engine.maintain(options).await;
    let mut bulk = engine.bulk_import();
    let imported = batch(a, -1500..-1300, 3.0);
    let pushed = bulk.push(imported.clone().into_readings(engine.series()), String::new).await;
    if pushed.is_ok() && bulk.finish().await.is_ok() {
        note(model, &imported);
    }
    write(model, batch(a, -1350..-1349, 4.0)).await;
    let _ = engine.flush().await;
    let _ = engine.maintain(options).await;
}

async fn run(nth: i64, moment: Moment) -> bool {
    let dir = tempfile::TempDir::new().expect("dir");
    let settings = settings(dir.path());
    let fault = Fault::new(nth, moment);
    let engine = start_in(&settings, Some(fault.clone())).await;
    let meters = two_meters(&engine).await;
    let mut model = Model::new();
    script(&engine, meters, &mut model).await;
    let has_fired = fault.has_fired();
    let words = format!("call {nth} fails {moment:?}");
    if has_fired {
        assert_eq!(visible(&engine).await, model, "{words}");
    }
    crash(engine).await;
    let engine = start_in(&settings, None).await;
    assert_eq!(visible(&engine).await, model, "{words}, after a crash");
    engine.flush().await.expect("flush");
    let options = MaintenanceOptions { everything: true, ..MaintenanceOptions::default() };
    engine.maintain(options).await.expect("maintenance");
    assert_eq!(visible(&engine).await, model, "{words}, after compaction");
    let report = engine.verify(false).await.expect("verify");
    assert!(report.is_sound(), "{words}: {:?}", report.problems);
    let orphans = report.problems.iter().filter(|p| p.kind == ProblemKind::Orphan).count();
    assert!(orphans <= 4, "{words}: {orphans} orphans of one failure");
    crash(engine).await;
    has_fired
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_failing_call_to_the_storage_loses_or_doubles_anything() {
    for moment in [Moment::Before, Moment::After] {
        let mut nth = 1;
        while run(nth, moment).await {
            nth += 1;
        }
        assert!(nth > 8, "only {nth} calls of the storage {moment:?}: the script proves too little");
    }
}
