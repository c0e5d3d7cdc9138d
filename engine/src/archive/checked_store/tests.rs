use std::sync::Arc;

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::runtime::Handle;
use wattlake_catalog::EntityId;

use crate::{
    Engine,
    archive::FileScan,
    tests::{power_batch, settings, start, two_meters},
};

const MINUTE: i64 = 60_000_000;
/// 2026-02-01T00:00:00Z.
const START: i64 = 1_769_904_000_000_000;

async fn write(engine: &Arc<Engine>, entity: EntityId, rows: i64) {
    let mut rng = SmallRng::seed_from_u64(7);
    let batch = power_batch(entity, (0..rows).map(|row| (START + row * MINUTE, rng.random())));
    engine.write(batch).await.expect("write");
}

/// Any flipped bit of a file is an error that names it, or lies where nobody reads: never another number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flipped_bits_are_never_numbers() {
    let dir = tempfile::TempDir::new().expect("dir");
    let engine = start(&settings(dir.path())).await;
    let [a, b] = two_meters(&engine).await;
    write(&engine, a, 20_000).await;
    write(&engine, b, 5_000).await;
    engine.flush().await.expect("flush");
    let view = engine.read_view();
    let file = Arc::clone(&view.manifest.files[0]);
    assert!(file.stored.bytes > 2 * super::BLOCK, "several blocks, the last one short");
    let path = dir.path().join("lake/measurements").join(&file.stored.path);
    let whole = std::fs::read(&path).expect("file");
    let scan = || {
        let (storage, series) = (engine.storage().clone(), Arc::clone(&engine.versions().series));
        let (file, handle) = (Arc::clone(&file), Handle::current());
        tokio::task::spawn_blocking(move || {
            let scan = FileScan::open(&handle, &storage, &series, &file, &[])?;
            let mut rows = Vec::new();
            for chunk in scan {
                let (key, part) = chunk?;
                rows.extend(part.ts.iter().zip(&part.value).map(|(ts, v)| (key.entity, *ts, v.to_bits())));
            }
            Ok::<_, crate::Error>(rows)
        })
    };
    let truth = scan().await.expect("scan").expect("sound");
    assert_eq!(truth.len(), 25_000);
    let flips = std::env::var("WATTLAKE_TEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    let mut rng = SmallRng::seed_from_u64(rand::random());
    let mut detected = 0;
    for _ in 0..flips {
        let (at, bit) = (rng.random_range(0..whole.len()), rng.random_range(0..8));
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << bit;
        std::fs::write(&path, &damaged).expect("write");
        match scan().await.expect("scan") {
            Ok(rows) => assert!(rows == truth, "bit {bit} of byte {at} is another number"),
            Err(error) => {
                detected += 1;
                assert!(error.message.contains(&file.stored.path), "byte {at}: {error}");
            }
        }
    }
    assert!(detected * 10 > flips * 9, "{detected} of {flips}");
    // Cut short, or another file in its place.
    std::fs::write(&path, &whole[..whole.len() - 100]).expect("write");
    assert!(scan().await.expect("scan").is_err());
    std::fs::write(&path, &whole).expect("write");
    assert!(scan().await.expect("scan").expect("sound") == truth);
}
