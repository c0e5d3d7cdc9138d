//! The manifest of the archive: a DuckLake 1.0 catalog with one table, `measurements`.
//!
//! [`commit`](commit::commit) is the only verb that changes it (MAN-3). Objects are durable before they are named here
//! (MAN-1); every file has a whole-file hash (MAN-5). Files are immutable and never renamed or reused.

mod block_sums;
mod commit;
mod create;
mod expire;
mod read;

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{EntityId, Progress};

pub use block_sums::BlockSums;
pub(crate) use commit::commit;
pub(crate) use create::create;
pub use expire::{Expired, NamedSnapshot, Scheduled};
pub(crate) use expire::{
    clock_seen, expire, forget_name, forget_scheduled, known_objects, name_latest, named, note_clock,
    scheduled,
};
pub(crate) use read::{commit_message, load, load_checkpoint, resolve};

/// The table id of `measurements`.
const TABLE_ID: i64 = 1;

/// A committed state of the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(pub i64);

/// Which snapshot to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotAt {
    Latest,
    Id(SnapshotId),
    /// The one kept under this name.
    Name(String),
    /// The last one committed at or before this instant.
    Time(Timestamp),
}

/// The columns of `measurements`; the id is the Parquet field id.
pub mod columns {
    pub struct Column {
        pub id: i64,
        pub name: &'static str,
        /// The type's name in DuckLake.
        pub ducklake_type: &'static str,
        pub nullable: bool,
    }

    const fn column(id: i64, name: &'static str, ducklake_type: &'static str, nullable: bool) -> Column {
        Column { id, name, ducklake_type, nullable }
    }

    pub const ENTITY_ID: i64 = 1;
    pub const TIMESTAMP: i64 = 3;
    pub const METRIC: i64 = 4;

    pub const ALL: [Column; 9] = [
        column(ENTITY_ID, "entity_id", "varchar", false),
        column(2, "entity_type", "varchar", false),
        column(TIMESTAMP, "timestamp", "timestamptz", false),
        column(METRIC, "metric", "varchar", false),
        column(5, "value", "float64", false),
        column(6, "unit", "varchar", false),
        column(7, "quality", "varchar", false),
        column(8, "metadata", "varchar", true),
        column(9, "created_at", "timestamptz", false),
    ];
}

/// An object in the archive's storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredFile {
    /// Relative to the table's folder, for example `month=2026-01/0198.parquet`.
    pub path: String,
    pub bytes: u64,
    /// Length of the Parquet footer, without its length field and magic number.
    pub footer_bytes: u64,
    /// BLAKE3 of the whole file, hex.
    pub blake3: String,
    #[serde(default, skip_serializing_if = "BlockSums::is_empty")]
    pub sums: BlockSums,
}

/// The range of keys in a data file; all bounds are inclusive. Times are microseconds since 1970 UTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileBounds {
    pub min_ts: i64,
    pub max_ts: i64,
    pub min_entity: String,
    pub max_entity: String,
    pub min_metric: String,
    pub max_metric: String,
}

impl FileBounds {
    /// Whether both ranges leave room for one key.
    pub fn overlap(&self, other: &Self) -> bool {
        self.min_ts <= other.max_ts
            && other.min_ts <= self.max_ts
            && self.min_entity <= other.max_entity
            && other.min_entity <= self.max_entity
            && self.min_metric <= other.max_metric
            && other.min_metric <= self.max_metric
    }

    /// Whether they leave room for one of the entities.
    pub fn may_hold_any(&self, entities: &BTreeSet<EntityId>) -> bool {
        match (self.min_entity.parse::<EntityId>(), self.max_entity.parse::<EntityId>()) {
            (Ok(min), Ok(max)) if min <= max => entities.range(min..=max).next().is_some(),
            _ => true,
        }
    }
}

/// A live data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFile {
    pub id: i64,
    pub stored: StoredFile,
    pub rows: u64,
    /// Rows of every row group but the last.
    pub row_group_rows: u64,
    /// 0: flush, 1: day, 2: month.
    pub level: i64,
    pub bounds: FileBounds,
    pub delete: Option<DeleteFile>,
}

/// The live positional delete file of a data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteFile {
    pub id: i64,
    pub stored: StoredFile,
    pub count: u64,
}

/// The files of one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub snapshot: SnapshotId,
    pub files: Vec<Arc<DataFile>>,
}

/// A data file to publish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewDataFile {
    pub stored: StoredFile,
    pub rows: u64,
    pub row_group_rows: u64,
    pub level: i64,
    pub bounds: FileBounds,
    /// Rows of it that do not count from the start: only when a catalog is rebuilt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete: Option<StoredDelete>,
}

/// A positional delete file in storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredDelete {
    pub stored: StoredFile,
    pub count: u64,
}

/// A cumulative delete file to publish for a live data file.
#[derive(Clone, Debug)]
pub struct NewDeleteFile {
    pub data_file_id: i64,
    /// The live delete file whose positions are contained in the new one.
    pub replaces: Option<i64>,
    pub stored: StoredFile,
    pub count: u64,
}

/// A live data file that leaves the archive with the next snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemovedFile {
    pub data_file_id: i64,
    /// Its live delete file when the change was computed.
    pub delete_file_id: Option<i64>,
}

/// One change of the archive.
#[derive(Clone, Debug, Default)]
pub struct CommitRequest {
    /// The snapshot that it was computed from, if from one: it must still be the newest.
    pub base: Option<SnapshotId>,
    pub new_files: Vec<NewDataFile>,
    pub new_deletes: Vec<NewDeleteFile>,
    pub removed: Vec<RemovedFile>,
    /// The new files hold exactly the live rows of the removed ones.
    pub is_rewrite: bool,
    /// Everything in the write-ahead log up to this sequence number is in the files.
    pub wal_sequence: Option<u64>,
    /// What went on with the readings of the files, such as cursors of sources.
    pub progress: Vec<Progress>,
    pub message: String,
}

/// The ids that a commit gave, in the order of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitResult {
    pub snapshot: SnapshotId,
    pub data_file_ids: Vec<i64>,
    pub delete_file_ids: Vec<i64>,
}

impl Manifest {
    /// The manifest after a commit on top of this one.
    pub fn after(&self, request: &CommitRequest, result: &CommitResult) -> Self {
        let is_removed = |id: i64| request.removed.iter().any(|removed| removed.data_file_id == id);
        let mut files: Vec<_> = self.files.iter().filter(|file| !is_removed(file.id)).cloned().collect();
        for (new, id) in request.new_deletes.iter().zip(&result.delete_file_ids) {
            if let Some(file) = files.iter_mut().find(|file| file.id == new.data_file_id) {
                let delete = DeleteFile { id: *id, stored: new.stored.clone(), count: new.count };
                *file = Arc::new(DataFile { delete: Some(delete), ..(**file).clone() });
            }
        }
        for (new, id) in request.new_files.iter().zip(&result.data_file_ids) {
            files.push(Arc::new(DataFile {
                id: *id,
                stored: new.stored.clone(),
                rows: new.rows,
                row_group_rows: new.row_group_rows,
                level: new.level,
                bounds: new.bounds.clone(),
                delete: None,
            }));
        }
        Self { snapshot: result.snapshot, files }
    }

    /// Rows that a reader sees.
    pub fn live_rows(&self) -> u64 {
        self.files.iter().map(|file| file.live_rows()).sum()
    }
}

impl DataFile {
    /// How it is named in a change that takes it away.
    pub fn removal(&self) -> RemovedFile {
        RemovedFile { data_file_id: self.id, delete_file_id: self.delete.as_ref().map(|delete| delete.id) }
    }

    pub fn live_rows(&self) -> u64 {
        self.rows - self.delete.as_ref().map_or(0, |delete| delete.count)
    }
}
