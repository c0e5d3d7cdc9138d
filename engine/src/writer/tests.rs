use std::sync::atomic::Ordering;

use tempfile::TempDir;
use wattlake_catalog::{EntityId, EntityType, Manifest, Quality, SnapshotId};

use super::*;
use crate::{
    Batch, BatchSeries,
    batch::{Readings, ReadingsDecoder},
    series::SeriesTable,
    wal::{encode_chunk, faulty::FaultyDisk, recover},
};

fn decode(bytes: &[u8]) -> Result<Readings> {
    ReadingsDecoder::new(&SeriesTable::default()).decode(bytes)
}

struct Harness {
    dir: TempDir,
    disk: FaultyDisk,
    versions: Arc<Versions>,
    writer: Writer,
    failed: watch::Receiver<Option<Error>>,
}

impl Harness {
    fn new() -> Self {
        let dir = TempDir::new().expect("dir");
        let disk = FaultyDisk::default();
        let manifest = Manifest { snapshot: SnapshotId(1), files: Vec::new() };
        let versions = Arc::new(Versions::new(manifest, Arc::new(SeriesTable::default())));
        let (sender, failed) = watch::channel(None);
        let options = WriterOptions {
            durability: Durability::Durable,
            flush_bytes_max: usize::MAX,
            frozen: Arc::default(),
            failed: sender,
        };
        let log = Log::new(
            dir.path(),
            Box::new(disk.clone()),
            1 << 20,
            recover(dir.path(), 0, &mut decode, |_, _| {}).expect("an empty log"),
        );
        let writer = spawn(log, Arc::clone(&versions), options).expect("writer");
        Self { dir, disk, versions, writer, failed }
    }

    async fn write(&self, n: i64) -> Result<()> {
        let batch = Batch {
            table: vec![BatchSeries {
                entity: EntityId(uuid::Uuid::from_u128(1)),
                entity_type: EntityType::Meter,
                metric: "power".into(),
                unit: "kW".into(),
            }],
            series: vec![0],
            ts: vec![n],
            value: vec![1.0],
            quality: vec![Quality::Good],
            metadata: Vec::new(),
            created_at: n,
            progress: Vec::new(),
        };
        let readings = batch.into_readings(&self.versions.series);
        let chunk = encode_chunk(|out| readings.encode(&self.versions.series, out));
        let (ack, answer) = oneshot::channel();
        let write = PendingWrite { readings, chunk, ack };
        self.writer.sender.send(Command::Write(write)).expect("writer lives");
        answer.await.expect("an answer")
    }

    fn in_memory(&self) -> usize {
        self.versions.current().active.rows()
    }

    /// What a restart would find.
    fn in_log(&self) -> Vec<i64> {
        let mut found = Vec::new();
        recover(self.dir.path(), 0, &mut decode, |_, batches| {
            found.extend(batches.iter().map(|b| b.created_at));
        })
        .expect("log");
        found
    }
}

/// WAL-4: after one failed sync nothing is acknowledged, even when the disk seems well again.
#[tokio::test]
async fn nothing_is_acknowledged_after_a_failed_sync() {
    let harness = Harness::new();
    harness.write(1).await.expect("durable");
    harness.disk.fail_sync.store(true, Ordering::Relaxed);
    assert_eq!(harness.write(2).await.expect_err("not durable").kind, ErrorKind::Io);
    harness.disk.fail_sync.store(false, Ordering::Relaxed);
    assert!(harness.write(3).await.expect_err("closed").message.contains("log is closed"));
    assert!(harness.failed.borrow().is_some(), "the process is told to end");
    assert_eq!(harness.in_memory(), 1, "what was not acknowledged is not shown");
    assert!(harness.in_log().starts_with(&[1]) && !harness.in_log().contains(&3));
}

/// A full disk refuses what does not fit; writing goes on when there is room again.
#[tokio::test]
async fn a_full_disk_refuses_and_recovers() {
    let harness = Harness::new();
    harness.write(1).await.expect("durable");
    harness.disk.fail_append.store(true, Ordering::Relaxed);
    assert_eq!(harness.write(2).await.expect_err("full").kind, ErrorKind::StorageFull);
    harness.disk.fail_append.store(false, Ordering::Relaxed);
    harness.write(3).await.expect("room again");
    assert!(harness.failed.borrow().is_none());
    assert_eq!((harness.in_memory(), harness.in_log()), (2, vec![1, 3]));
}
