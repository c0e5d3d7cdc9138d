//! Forgetting old snapshots, the files that only they name, and the objects of those files.
//!
//! Two steps, so that a query that still reads a file never loses it (MAN-4): expiry takes files out of the catalog and
//! schedules their objects; a sweep deletes objects whose grace is over and then forgets them.

use std::collections::HashSet;

use jiff::Timestamp;

use super::{SnapshotId, TABLE_ID};
use crate::{
    Error, ErrorKind, Result,
    db::{Db, Row, Tx, params},
};

/// What an expiry removes, or would remove.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    pub snapshots: usize,
    pub data_files: usize,
    pub delete_files: usize,
}

/// A snapshot that is kept under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedSnapshot {
    pub name: String,
    pub snapshot: SnapshotId,
    /// When the snapshot was committed.
    pub committed_at: Timestamp,
}

/// An object to delete, relative to the storage's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scheduled {
    pub path: String,
    pub since: Timestamp,
}

/// Forgets snapshots that were superseded before `before`, unless they have a name: every instant from `before` on can
/// still be asked for. With `is_dry_run` nothing is changed.
pub(crate) async fn expire(db: &Db, before: Timestamp, now: Timestamp, is_dry_run: bool) -> Result<Expired> {
    let mut tx = db.begin().await?;
    let rows = tx.rows("SELECT snapshot_id, snapshot_time FROM ducklake_snapshot ORDER BY 1", vec![]).await?;
    let snapshots = rows.iter().map(|row| Ok((row.int(0)?, row.time(1)?))).collect::<Result<Vec<_>>>()?;
    let rows = tx.rows("SELECT snapshot_id FROM wattlake_snapshot_name", vec![]).await?;
    let named = rows.iter().map(|row| row.int(0)).collect::<Result<HashSet<_>>>()?;
    let (kept, gone) = partition(&snapshots, &named, before);
    let mut expired = Expired { snapshots: gone.len(), ..Expired::default() };
    if gone.is_empty() {
        return Ok(expired);
    }
    let is_dead = |begin: i64, end: i64| {
        let first = kept.partition_point(|snapshot| *snapshot < begin);
        kept.get(first).is_none_or(|snapshot| *snapshot >= end)
    };
    let mut deletes = Vec::new();
    let mut files = Vec::new();
    for (table, id, out) in [
        ("ducklake_delete_file", "delete_file_id", &mut deletes),
        ("ducklake_data_file", "data_file_id", &mut files),
    ] {
        let sql = format!(
            "SELECT {id}, begin_snapshot, end_snapshot, path FROM {table} \
             WHERE table_id = $1 AND end_snapshot IS NOT NULL"
        );
        for row in tx.rows(&sql, params![TABLE_ID]).await? {
            if is_dead(row.int(1)?, row.int(2)?) {
                out.push((row.int(0)?, row.text(3)?));
            }
        }
    }
    expired.data_files = files.len();
    expired.delete_files = deletes.len();
    if is_dry_run {
        return Ok(expired);
    }
    for (id, path) in deletes {
        schedule(&mut tx, id, &path, now).await?;
        for table in ["ducklake_delete_file", "wattlake_delete_file"] {
            tx.execute(&format!("DELETE FROM {table} WHERE delete_file_id = $1"), params![id]).await?;
        }
    }
    for (id, path) in files {
        schedule(&mut tx, id, &path, now).await?;
        for table in ["ducklake_file_column_stats", "ducklake_data_file", "wattlake_file"] {
            tx.execute(&format!("DELETE FROM {table} WHERE data_file_id = $1"), params![id]).await?;
        }
    }
    for id in gone {
        for table in ["ducklake_snapshot", "ducklake_snapshot_changes"] {
            tx.execute(&format!("DELETE FROM {table} WHERE snapshot_id = $1"), params![id]).await?;
        }
    }
    tx.commit().await?;
    Ok(expired)
}

/// Which snapshots stay and which go, both in order. `snapshots` are in order of id.
fn partition(
    snapshots: &[(i64, Timestamp)],
    named: &HashSet<i64>,
    before: Timestamp,
) -> (Vec<i64>, Vec<i64>) {
    // The newest one from before the limit is the state at the limit.
    let at_limit = snapshots.iter().rev().find(|(_, time)| *time < before).map(|(id, _)| *id);
    let latest = snapshots.last().map(|(id, _)| *id);
    let is_kept = |(id, time): &(i64, Timestamp)| {
        *time >= before || Some(*id) == at_limit || Some(*id) == latest || named.contains(id)
    };
    let (kept, gone): (Vec<_>, Vec<_>) = snapshots.iter().partition(|snapshot| is_kept(snapshot));
    let ids = |snapshots: Vec<(i64, Timestamp)>| snapshots.into_iter().map(|(id, _)| id).collect();
    (ids(kept), ids(gone))
}

async fn schedule(tx: &mut Tx, file_id: i64, path: &str, now: Timestamp) -> Result<()> {
    tx.execute(
        "INSERT INTO ducklake_files_scheduled_for_deletion (data_file_id, path, path_is_relative, schedule_start) \
         VALUES ($1, $2, $3, $4)",
        params![file_id, format!("measurements/{path}"), true, now],
    )
    .await
    .map(drop)
}

/// Objects that no snapshot names any more, oldest first.
pub(crate) async fn scheduled(db: &Db) -> Result<Vec<Scheduled>> {
    let sql = "SELECT path, schedule_start FROM ducklake_files_scheduled_for_deletion ORDER BY 2, 1";
    let read = |row: &Row| Ok(Scheduled { path: row.text(0)?, since: row.time(1)? });
    db.rows(sql, vec![]).await?.iter().map(read).collect()
}

/// Forgets scheduled objects that were deleted.
pub(crate) async fn forget_scheduled(db: &Db, paths: &[String]) -> Result<()> {
    let mut tx = db.begin().await?;
    for path in paths {
        let sql = "DELETE FROM ducklake_files_scheduled_for_deletion WHERE path = $1";
        tx.execute(sql, params![path.as_str()]).await?;
    }
    tx.commit().await
}

/// Every object that some kept snapshot names or that is scheduled, relative to the storage's root.
pub(crate) async fn known_objects(db: &Db) -> Result<HashSet<String>> {
    let mut known = HashSet::new();
    for table in ["ducklake_data_file", "ducklake_delete_file"] {
        for row in db.rows(&format!("SELECT path FROM {table}"), vec![]).await? {
            known.insert(format!("measurements/{}", row.text(0)?));
        }
    }
    known.extend(scheduled(db).await?.into_iter().map(|object| object.path));
    Ok(known)
}

/// Keeps the newest snapshot under a name.
pub(crate) async fn name_latest(db: &Db, name: &str, now: Timestamp) -> Result<NamedSnapshot> {
    let is_plain = !name.is_empty()
        && name.len() <= 100
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && name.starts_with(|c: char| c.is_ascii_alphabetic());
    if !is_plain {
        return Err(Error::invalid(format!(
            "snapshot name `{name}`: a letter, then letters, digits, `-`, `_` or `.`, 100 at most"
        )));
    }
    let mut tx = db.begin().await?;
    let sql = "SELECT snapshot_id, snapshot_time FROM ducklake_snapshot ORDER BY snapshot_id DESC LIMIT 1";
    let latest = tx.row(sql, vec![]).await?.ok_or_else(|| Error::internal("the catalog has no snapshot"))?;
    let (id, committed_at) = (latest.int(0)?, latest.time(1)?);
    let sql = "SELECT snapshot_id FROM wattlake_snapshot_name WHERE name = $1";
    if tx.row(sql, params![name]).await?.is_some() {
        return Err(Error::new(ErrorKind::Conflict, format!("a snapshot named `{name}` exists already")));
    }
    let sql = "INSERT INTO wattlake_snapshot_name (name, snapshot_id, created_at) VALUES ($1, $2, $3)";
    tx.execute(sql, params![name, id, now]).await?;
    tx.commit().await?;
    Ok(NamedSnapshot { name: name.to_owned(), snapshot: SnapshotId(id), committed_at })
}

/// The snapshots that have names, by name.
pub(crate) async fn named(db: &Db) -> Result<Vec<NamedSnapshot>> {
    let sql = "SELECT n.name, n.snapshot_id, s.snapshot_time FROM wattlake_snapshot_name n \
               JOIN ducklake_snapshot s ON s.snapshot_id = n.snapshot_id ORDER BY n.name";
    let read = |row: &Row| {
        Ok(NamedSnapshot {
            name: row.text(0)?,
            snapshot: SnapshotId(row.int(1)?),
            committed_at: row.time(2)?,
        })
    };
    db.rows(sql, vec![]).await?.iter().map(read).collect()
}

/// Gives up a name; its snapshot then expires like any other.
pub(crate) async fn forget_name(db: &Db, name: &str) -> Result<()> {
    let mut tx = db.begin().await?;
    let sql = "DELETE FROM wattlake_snapshot_name WHERE name = $1";
    if tx.execute(sql, params![name]).await? == 0 {
        return Err(Error::not_found(format!("no snapshot is named `{name}`")));
    }
    tx.commit().await
}

/// The wall clock at the last round of maintenance, microseconds since 1970 UTC; 0 before the first.
pub(crate) async fn clock_seen(db: &Db) -> Result<i64> {
    let row = db.row("SELECT seen_at FROM wattlake_clock WHERE id = 1", vec![]).await?;
    row.ok_or_else(|| Error::internal("the catalog has no clock"))?.int(0)
}

/// Notes the wall clock of a round of maintenance.
pub(crate) async fn note_clock(db: &Db, micros: i64) -> Result<()> {
    let mut tx = db.begin().await?;
    tx.execute("UPDATE wattlake_clock SET seen_at = $1 WHERE id = 1", params![micros]).await?;
    tx.commit().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instant_of_the_window_stays_readable() {
        let at = |second: i64| Timestamp::from_second(second).expect("time");
        let snapshots: Vec<_> = (0..6).map(|id| (id, at(id * 10))).collect();
        let partition =
            |named: &[i64], before| partition(&snapshots, &named.iter().copied().collect(), at(before));
        // At second 25 the state was that of snapshot 2.
        assert_eq!(partition(&[], 25), (vec![2, 3, 4, 5], vec![0, 1]));
        assert_eq!(partition(&[0], 25), (vec![0, 2, 3, 4, 5], vec![1]));
        assert_eq!(partition(&[], 0), (vec![0, 1, 2, 3, 4, 5], vec![]));
        assert_eq!(partition(&[], 1000), (vec![5], vec![0, 1, 2, 3, 4]));
    }
}
