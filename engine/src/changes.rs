//! Taking rows out of files: superseded by newer readings, deleted, or past their retention.
//!
//! A few rows go into the file's cumulative delete file; when many go at once the file is written anew without them, and when
//! all go it leaves the archive. Readers never merge (MAN-2).

use std::{collections::BTreeSet, sync::Arc};

use tokio::runtime::Handle;
use wattlake_catalog::{DataFile, EntityId, NewDataFile, NewDeleteFile, RemovedFile};

use crate::{
    Result, SeriesKey, Storage,
    archive::{Level, deleted_rows, find_positions, write_delete_file},
    background,
    compaction::{Input, rewrite_files},
    series::SeriesTable,
};

/// When more than this share of a file's rows goes at once, in a hundred, the file is written anew: a scan would skip
/// more than it saves.
const REWRITE_PERCENT: u64 = 20;

/// Which rows a deletion is about. All conditions must hold.
#[derive(Clone, Debug, PartialEq)]
pub struct RowFilter {
    /// `None`: all entities.
    pub entities: Option<BTreeSet<EntityId>>,
    /// `None`: all metrics.
    pub metric: Option<String>,
    /// Microseconds since 1970 UTC; `from <= ts < to`.
    pub from: i64,
    pub to: i64,
}

impl RowFilter {
    fn wants(&self, key: &SeriesKey) -> bool {
        self.entities.as_ref().is_none_or(|entities| entities.contains(&key.entity))
            && self.metric.as_ref().is_none_or(|metric| *metric == *key.metric)
    }

    /// Whether the bounds of a file leave room for a wanted row.
    fn may_hit(&self, file: &DataFile) -> bool {
        let bounds = &file.bounds;
        bounds.max_ts >= self.from
            && bounds.min_ts < self.to
            && self.metric.as_ref().is_none_or(|m| bounds.min_metric <= *m && *m <= bounds.max_metric)
            && self.entities.as_ref().is_none_or(|entities| bounds.may_hold_any(entities))
    }

    /// Whether the bounds of a file say that all its rows are wanted.
    fn takes_all(&self, file: &DataFile) -> bool {
        let bounds = &file.bounds;
        self.entities.is_none()
            && self.metric.as_ref().is_none_or(|m| bounds.min_metric == *m && *m == bounds.max_metric)
            && self.from <= bounds.min_ts
            && bounds.max_ts < self.to
    }
}

/// What becomes of files, for one commit.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub new_files: Vec<NewDataFile>,
    pub new_deletes: Vec<NewDeleteFile>,
    pub removed: Vec<RemovedFile>,
    /// Rows that no longer count.
    pub rows: u64,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        self.new_deletes.is_empty() && self.removed.is_empty()
    }

    /// Adds other changes, of other files.
    pub(crate) fn absorb(&mut self, other: Self) {
        self.new_files.extend(other.new_files);
        self.new_deletes.extend(other.new_deletes);
        self.removed.extend(other.removed);
        self.rows += other.rows;
    }

    /// Takes rows out of a file: `gone` are those that count until now, `before` those that do not, both in order.
    pub(crate) async fn take_out(
        &mut self,
        storage: &Storage,
        series: &Arc<SeriesTable>,
        file: &Arc<DataFile>,
        before: Vec<u64>,
        gone: Vec<u64>,
    ) -> Result<()> {
        if gone.is_empty() {
            return Ok(());
        }
        self.rows += gone.len() as u64;
        let is_many = gone.len() as u64 * 100 > file.rows * REWRITE_PERCENT;
        let mut hidden = before;
        hidden.extend(gone);
        hidden.sort_unstable();
        if hidden.len() as u64 == file.rows {
            self.removed.push(file.removal());
        } else if is_many {
            let (storage, series, handle) = (storage.clone(), Arc::clone(series), Handle::current());
            let input = [Input { file: Arc::clone(file), hidden }];
            let level = Level::of_number(file.level);
            let rewrite = move || rewrite_files(&handle, &storage, &series, &input, level);
            self.new_files.extend(background::run("rewrite", rewrite).await?);
            self.removed.push(file.removal());
        } else {
            self.new_deletes.push(write_delete_file(storage, file, hidden).await?);
        }
        Ok(())
    }

    /// Takes the rows of a filter out of some files; at most `files_max` files are changed.
    pub(crate) async fn of_filter(
        storage: &Storage,
        series: &Arc<SeriesTable>,
        files: &[Arc<DataFile>],
        filter: &Arc<RowFilter>,
        files_max: usize,
    ) -> Result<Self> {
        let mut changes = Self::default();
        for file in files.iter().filter(|file| filter.may_hit(file)) {
            if changes.new_deletes.len() + changes.removed.len() >= files_max {
                break;
            }
            if filter.takes_all(file) {
                changes.rows += file.live_rows();
                changes.removed.push(file.removal());
                continue;
            }
            let before = deleted_rows(storage, file).await?;
            let (handle, store) = (Handle::current(), storage.clone());
            let (target, wanted) = (Arc::clone(file), Arc::clone(filter));
            let mut gone = background::run("delete-scan", move || {
                find_positions(&handle, &store, &target, wanted.from, wanted.to, &|key| wanted.wants(key))
            })
            .await?;
            gone.retain(|position| before.binary_search(position).is_err());
            changes.take_out(storage, series, file, before, gone).await?;
        }
        Ok(changes)
    }

    /// Files that the filter is about and rows that they may lose at most, without reading any.
    pub(crate) fn estimate(files: &[Arc<DataFile>], filter: &RowFilter) -> (usize, u64) {
        let hit = files.iter().filter(|file| filter.may_hit(file));
        hit.fold((0, 0), |(files, rows), file| (files + 1, rows + file.live_rows()))
    }
}
