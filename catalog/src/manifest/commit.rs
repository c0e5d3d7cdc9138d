//! The one commit verb (MAN-3): data files, delete files, statistics, snapshot and WAL watermark in one transaction.

use jiff::Timestamp;
use uuid::Uuid;

use super::{
    CommitRequest, CommitResult, FileBounds, NewDataFile, NewDeleteFile, SnapshotId, StoredDelete, TABLE_ID,
    columns,
};
use crate::{
    Error, ErrorKind, Result,
    db::{Db, Tx, params},
    progress,
};

/// Publishes a change. With nothing but a watermark no snapshot is made.
///
/// # Errors
/// [`ErrorKind::Stale`] when the change was computed from an older state: load that of now, recompute and call again.
/// A commit whose answer was lost is looked up. [`ErrorKind::Unavailable`] when the database does not answer that either: the
/// change may have been published then, which the next commit on the same base finds out. After any other error nothing was
/// published.
pub(crate) async fn commit(db: &Db, request: &CommitRequest, now: Timestamp) -> Result<CommitResult> {
    let token = Uuid::new_v4().to_string();
    failpoint!("catalog.before_begin");
    if let (Some(sequence), true) =
        (request.wal_sequence, seeded_bug!("bug.watermark_in_its_own_transaction"))
    {
        let mut tx = db.begin().await?;
        let sql = "UPDATE wattlake_checkpoint SET wal_sequence = $1 WHERE id = 1";
        tx.execute(sql, params![i64::try_from(sequence).unwrap_or(0)]).await?;
        tx.commit().await?;
        failpoint!("catalog.between_two_transactions");
    }
    let mut tx = db.begin().await?;
    let result = write(&mut tx, request, &token, now).await?;
    failpoint!("catalog.before_commit");
    match tx.commit().await {
        Ok(()) if seeded_bug!("fault.commit_answer_lost") => {
            Err(Error::new(ErrorKind::Unavailable, "the answer to COMMIT was lost"))
        }
        Ok(()) => Ok(result),
        // The answer to COMMIT was lost: the catalog itself says whether it happened.
        Err(error) if was_published(db, result.snapshot, &token).await? => {
            tracing::warn!(%error, snapshot = result.snapshot.0, "commit succeeded although its answer was lost");
            Ok(result)
        }
        Err(error) => Err(error),
    }
}

async fn was_published(db: &Db, snapshot: SnapshotId, token: &str) -> Result<bool> {
    let mut attempt = 0;
    loop {
        match look_up(db, snapshot, token).await {
            Ok(is_there) => return Ok(is_there),
            Err(error) if attempt == 5 => return Err(error),
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100 << attempt)).await,
        }
        attempt += 1;
    }
}

/// Looks inside a writing transaction: it begins only when the one in doubt has ended. The database may have that COMMIT still before
/// it when its client has already given up.
async fn look_up(db: &Db, snapshot: SnapshotId, token: &str) -> Result<bool> {
    let sql =
        "SELECT snapshot_id FROM ducklake_snapshot_changes WHERE snapshot_id = $1 AND commit_extra_info = $2";
    let mut tx = db.begin().await?;
    Ok(tx.row(sql, params![snapshot.0, token]).await?.is_some())
}

/// The counters that a commit moves on.
struct Counters {
    snapshot: i64,
    schema_version: i64,
    next_catalog_id: i64,
    next_file_id: i64,
    next_row_id: i64,
}

async fn write(tx: &mut Tx, request: &CommitRequest, token: &str, now: Timestamp) -> Result<CommitResult> {
    let sql = "SELECT snapshot_id, schema_version, next_catalog_id, next_file_id, \
               (SELECT next_row_id FROM ducklake_table_stats WHERE table_id = $1) \
               FROM ducklake_snapshot ORDER BY snapshot_id DESC LIMIT 1";
    let base = tx.row(sql, params![TABLE_ID]).await?;
    let base = base.ok_or_else(|| Error::internal("the catalog has no snapshot"))?;
    let mut counters = Counters {
        snapshot: base.int(0)?,
        schema_version: base.int(1)?,
        next_catalog_id: base.int(2)?,
        next_file_id: base.int(3)?,
        next_row_id: base.int(4)?,
    };
    if request.base.is_some_and(|known| known.0 != counters.snapshot)
        && !seeded_bug!("bug.commit_ignores_its_base")
    {
        return Err(Error::new(
            ErrorKind::Stale,
            format!("snapshot {} is newer than the one that the change was computed from", counters.snapshot),
        ));
    }
    if let Some(sequence) = request.wal_sequence {
        let sequence = i64::try_from(sequence).map_err(|_| Error::internal("WAL sequence overflow"))?;
        let sql = "UPDATE wattlake_checkpoint SET wal_sequence = $1 WHERE id = 1 AND wal_sequence <= $1";
        if tx.execute(sql, params![sequence]).await? != 1 {
            return Err(Error::internal(format!("the WAL watermark would go back to {sequence}")));
        }
    }
    progress::write(tx, &request.progress).await?;
    let mut result = CommitResult {
        snapshot: SnapshotId(counters.snapshot),
        data_file_ids: Vec::new(),
        delete_file_ids: Vec::new(),
    };
    if request.new_files.is_empty() && request.new_deletes.is_empty() && request.removed.is_empty() {
        return Ok(result);
    }
    counters.snapshot += 1;
    result.snapshot = SnapshotId(counters.snapshot);
    for delete in &request.new_deletes {
        expect_base(tx, delete.data_file_id, delete.replaces).await?;
    }
    for removed in &request.removed {
        expect_base(tx, removed.data_file_id, removed.delete_file_id).await?;
        remove_data_file(tx, removed.data_file_id, &counters).await?;
    }
    failpoint!("catalog.in_tx");
    for file in &request.new_files {
        let id = insert_data_file(tx, file, &mut counters).await?;
        result.data_file_ids.push(id);
        if let Some(StoredDelete { stored, count }) = file.delete.clone() {
            let delete = NewDeleteFile { data_file_id: id, replaces: None, stored, count };
            insert_delete_file(tx, &delete, &mut counters).await?;
        }
    }
    for delete in &request.new_deletes {
        if seeded_bug!("bug.lost_delete_file") {
            result.delete_file_ids.push(-1);
            continue;
        }
        result.delete_file_ids.push(insert_delete_file(tx, delete, &mut counters).await?);
    }
    insert_snapshot(tx, request, &counters, token, now).await?;
    Ok(result)
}

/// The data file is live and its delete file is still the one that the request was computed from.
async fn expect_base(tx: &mut Tx, data_file_id: i64, delete_file_id: Option<i64>) -> Result<()> {
    let sql = "SELECT (SELECT delete_file_id FROM ducklake_delete_file d WHERE d.data_file_id = f.data_file_id \
               AND d.end_snapshot IS NULL) FROM ducklake_data_file f WHERE data_file_id = $1 AND end_snapshot IS NULL";
    let row = tx.row(sql, params![data_file_id]).await?;
    match row.map(|row| row.opt_int(0)).transpose()? {
        Some(current) if current == delete_file_id => Ok(()),
        Some(_) if seeded_bug!("bug.commit_ignores_its_base") => Ok(()),
        _ => Err(Error::new(
            ErrorKind::Stale,
            format!("data file {data_file_id} changed since the change was computed"),
        )),
    }
}

/// Ends a data file and its delete file; earlier snapshots keep them.
async fn remove_data_file(tx: &mut Tx, id: i64, counters: &Counters) -> Result<()> {
    tx.execute(
        "UPDATE ducklake_table_stats SET \
         record_count = record_count - (SELECT record_count FROM ducklake_data_file WHERE data_file_id = $2), \
         file_size_bytes = file_size_bytes - (SELECT file_size_bytes FROM ducklake_data_file WHERE data_file_id = $2) \
         WHERE table_id = $1",
        params![TABLE_ID, id],
    )
    .await?;
    for table in ["ducklake_data_file", "ducklake_delete_file"] {
        let sql =
            format!("UPDATE {table} SET end_snapshot = $2 WHERE data_file_id = $1 AND end_snapshot IS NULL");
        tx.execute(&sql, params![id, counters.snapshot]).await?;
    }
    Ok(())
}

async fn insert_data_file(tx: &mut Tx, file: &NewDataFile, counters: &mut Counters) -> Result<i64> {
    let id = counters.next_file_id;
    counters.next_file_id += 1;
    let rows = signed(file.rows)?;
    let bytes = signed(file.stored.bytes)?;
    tx.execute(
        "INSERT INTO ducklake_data_file (data_file_id, table_id, begin_snapshot, path, path_is_relative, \
         file_format, record_count, file_size_bytes, footer_size, row_id_start) \
         VALUES ($1, $2, $3, $4, $5, 'parquet', $6, $7, $8, $9)",
        params![
            id,
            TABLE_ID,
            counters.snapshot,
            file.stored.path.as_str(),
            true,
            rows,
            bytes,
            signed(file.stored.footer_bytes)?,
            counters.next_row_id
        ],
    )
    .await?;
    counters.next_row_id += rows;
    let FileBounds { min_ts, max_ts, min_entity, max_entity, min_metric, max_metric } = &file.bounds;
    for (column, min, max) in [
        (columns::ENTITY_ID, min_entity.clone(), max_entity.clone()),
        (columns::TIMESTAMP, statistics_time(*min_ts)?, statistics_time(*max_ts)?),
        (columns::METRIC, min_metric.clone(), max_metric.clone()),
    ] {
        tx.execute(
            "INSERT INTO ducklake_file_column_stats (data_file_id, table_id, column_id, value_count, null_count, \
             min_value, max_value) VALUES ($1, $2, $3, $4, 0, $5, $6)",
            params![id, TABLE_ID, column, rows, min, max],
        )
        .await?;
    }
    tx.execute(
        "INSERT INTO wattlake_file (data_file_id, level, min_ts, max_ts, min_entity, max_entity, min_metric, \
         max_metric, row_group_rows, blake3, block_sums) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        params![
            id,
            file.level,
            *min_ts,
            *max_ts,
            min_entity.as_str(),
            max_entity.as_str(),
            min_metric.as_str(),
            max_metric.as_str(),
            signed(file.row_group_rows)?,
            file.stored.blake3.as_str(),
            file.stored.sums.to_text()
        ],
    )
    .await?;
    tx.execute(
        "UPDATE ducklake_table_stats SET record_count = record_count + $2, next_row_id = $3, \
         file_size_bytes = file_size_bytes + $4 WHERE table_id = $1",
        params![TABLE_ID, rows, counters.next_row_id, bytes],
    )
    .await?;
    Ok(id)
}

async fn insert_delete_file(tx: &mut Tx, delete: &NewDeleteFile, counters: &mut Counters) -> Result<i64> {
    let id = counters.next_file_id;
    counters.next_file_id += 1;
    tx.execute(
        "UPDATE ducklake_delete_file SET end_snapshot = $2 WHERE data_file_id = $1 AND end_snapshot IS NULL",
        params![delete.data_file_id, counters.snapshot],
    )
    .await?;
    tx.execute(
        "INSERT INTO ducklake_delete_file (delete_file_id, table_id, begin_snapshot, data_file_id, path, \
         path_is_relative, format, delete_count, file_size_bytes, footer_size) \
         VALUES ($1, $2, $3, $4, $5, $6, 'parquet', $7, $8, $9)",
        params![
            id,
            TABLE_ID,
            counters.snapshot,
            delete.data_file_id,
            delete.stored.path.as_str(),
            true,
            signed(delete.count)?,
            signed(delete.stored.bytes)?,
            signed(delete.stored.footer_bytes)?
        ],
    )
    .await?;
    tx.execute(
        "INSERT INTO wattlake_delete_file (delete_file_id, blake3) VALUES ($1, $2)",
        params![id, delete.stored.blake3.as_str()],
    )
    .await?;
    Ok(id)
}

async fn insert_snapshot(
    tx: &mut Tx,
    request: &CommitRequest,
    counters: &Counters,
    token: &str,
    now: Timestamp,
) -> Result<()> {
    tx.execute(
        "INSERT INTO ducklake_snapshot (snapshot_id, snapshot_time, schema_version, next_catalog_id, next_file_id) \
         VALUES ($1, $2, $3, $4, $5)",
        params![
            counters.snapshot,
            now,
            counters.schema_version,
            counters.next_catalog_id,
            counters.next_file_id
        ],
    )
    .await?;
    let mut changes = Vec::new();
    if request.is_rewrite {
        changes.push(format!("rewrite_delete:{TABLE_ID}"));
    } else {
        if !request.new_files.is_empty() {
            changes.push(format!("inserted_into_table:{TABLE_ID}"));
        }
        if !(request.new_deletes.is_empty() && request.removed.is_empty()) {
            changes.push(format!("deleted_from_table:{TABLE_ID}"));
        }
    }
    tx.execute(
        "INSERT INTO ducklake_snapshot_changes (snapshot_id, changes_made, author, commit_message, \
         commit_extra_info) VALUES ($1, $2, 'wattlake', $3, $4)",
        params![counters.snapshot, changes.join(","), request.message.as_str(), token],
    )
    .await?;
    Ok(())
}

fn signed(n: u64) -> Result<i64> {
    i64::try_from(n).map_err(|_| Error::internal(format!("number {n} does not fit the catalog")))
}

/// An instant as DuckLake statistics write it: the fraction only when there is one.
fn statistics_time(micros: i64) -> Result<String> {
    let time = Timestamp::from_microsecond(micros)
        .map_err(|error| Error::internal(format!("time {micros} us is out of range: {error}")))?;
    let format = if micros % 1_000_000 == 0 { "%Y-%m-%d %H:%M:%S+00" } else { "%Y-%m-%d %H:%M:%S%.6f+00" };
    Ok(time.strftime(format).to_string())
}
