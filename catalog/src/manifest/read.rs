//! Reading the manifest: the live files of the newest or of an earlier snapshot.

use std::{collections::HashMap, sync::Arc};

use super::{
    BlockSums, DataFile, DeleteFile, FileBounds, Manifest, SnapshotAt, SnapshotId, StoredFile, TABLE_ID,
};
use crate::{
    Error, Result,
    db::{Db, Row, params},
};

/// What the commit of a snapshot said of itself; `None`: there is no such snapshot.
pub(crate) async fn commit_message(db: &Db, snapshot: SnapshotId) -> Result<Option<String>> {
    let sql = "SELECT commit_message FROM ducklake_snapshot_changes WHERE snapshot_id = $1";
    let rows = db.rows(sql, params![snapshot.0]).await?;
    Ok(rows.first().map(|row| row.opt_text(0)).transpose()?.flatten())
}

/// Finds the snapshot that `at` names.
pub(crate) async fn resolve(db: &Db, at: SnapshotAt) -> Result<SnapshotId> {
    let (filter, values, words) = match at {
        SnapshotAt::Latest => ("1 = 1", vec![], "at all".to_owned()),
        SnapshotAt::Name(name) => (
            "snapshot_id = (SELECT snapshot_id FROM wattlake_snapshot_name WHERE name = $1)",
            params![name.as_str()],
            format!("named `{name}`"),
        ),
        SnapshotAt::Id(SnapshotId(id)) => ("snapshot_id = $1", params![id], format!("with number {id}")),
        SnapshotAt::Time(time) => ("snapshot_time <= $1", params![time], format!("at or before {time}")),
    };
    let sql =
        format!("SELECT snapshot_id FROM ducklake_snapshot WHERE {filter} ORDER BY snapshot_id DESC LIMIT 1");
    let row = db.row(&sql, values).await?;
    let row = row.ok_or_else(|| Error::not_found(format!("no snapshot {words} is kept")))?;
    Ok(SnapshotId(row.int(0)?))
}

/// Loads the files of a snapshot, ordered by id.
pub(crate) async fn load(db: &Db, snapshot: SnapshotId) -> Result<Manifest> {
    let live = "table_id = $1 AND begin_snapshot <= $2 AND (end_snapshot IS NULL OR end_snapshot > $2)";
    let values = params![TABLE_ID, snapshot.0];
    let sql = format!(
        "SELECT d.data_file_id, d.delete_file_id, d.path, d.file_size_bytes, d.footer_size, d.delete_count, \
         w.blake3 FROM ducklake_delete_file d JOIN wattlake_delete_file w ON w.delete_file_id = d.delete_file_id \
         WHERE {live}"
    );
    let mut deletes = HashMap::new();
    for row in db.rows(&sql, values.clone()).await? {
        let delete = DeleteFile {
            id: row.int(1)?,
            stored: StoredFile {
                path: row.text(2)?,
                bytes: unsigned(&row, 3)?,
                footer_bytes: unsigned(&row, 4)?,
                blake3: row.text(6)?,
                sums: BlockSums::default(),
            },
            count: unsigned(&row, 5)?,
        };
        deletes.insert(row.int(0)?, delete);
    }
    let sql = format!(
        "SELECT f.data_file_id, f.path, f.file_size_bytes, f.footer_size, f.record_count, w.blake3, w.level, \
         w.row_group_rows, w.min_ts, w.max_ts, w.min_entity, w.max_entity, w.min_metric, w.max_metric, w.block_sums \
         FROM ducklake_data_file f JOIN wattlake_file w ON w.data_file_id = f.data_file_id WHERE {live} \
         ORDER BY f.data_file_id"
    );
    let mut files = Vec::new();
    for row in db.rows(&sql, values).await? {
        let id = row.int(0)?;
        files.push(Arc::new(DataFile {
            id,
            stored: StoredFile {
                path: row.text(1)?,
                bytes: unsigned(&row, 2)?,
                footer_bytes: unsigned(&row, 3)?,
                blake3: row.text(5)?,
                sums: read_sums(&row, 14)?,
            },
            rows: unsigned(&row, 4)?,
            level: row.int(6)?,
            row_group_rows: unsigned(&row, 7)?,
            bounds: FileBounds {
                min_ts: row.int(8)?,
                max_ts: row.int(9)?,
                min_entity: row.text(10)?,
                max_entity: row.text(11)?,
                min_metric: row.text(12)?,
                max_metric: row.text(13)?,
            },
            delete: deletes.remove(&id),
        }));
    }
    Ok(Manifest { snapshot, files })
}

/// The WAL watermark: everything up to it is in files.
pub(crate) async fn load_checkpoint(db: &Db) -> Result<u64> {
    let row = db.row("SELECT wal_sequence FROM wattlake_checkpoint WHERE id = 1", vec![]).await?;
    unsigned(&row.ok_or_else(|| Error::internal("the catalog has no checkpoint"))?, 0)
}

fn read_sums(row: &Row, i: usize) -> Result<BlockSums> {
    let Some(text) = row.opt_text(i)? else { return Ok(BlockSums::default()) };
    BlockSums::from_text(&text).ok_or_else(|| Error::internal("the catalog holds bad block sums"))
}

fn unsigned(row: &Row, i: usize) -> Result<u64> {
    let n = row.int(i)?;
    u64::try_from(n).map_err(|_| Error::internal(format!("the catalog holds a negative count {n}")))
}
