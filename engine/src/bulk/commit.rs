//! The end of an import: files of its months, merged with what the archive holds, in one commit.
//!
//! What the archive holds already is merged in: in months where the import is large the files that may share keys with it
//! are written anew, elsewhere their rows are looked up as for a flush. A reading that is there already changes nothing.
//! The files are built beside running flushes; only when one of those touched the same keys the work is done again with
//! the flush lock held (MAN-3).

use std::sync::Arc;

use parking_lot::Mutex as SyncMutex;
use tokio::runtime::Handle;
use wattlake_catalog::{CommitRequest, DataFile, Manifest, NewDataFile, RemovedFile, failpoint};

use super::{BulkReport, Month, collect, undo};
use crate::{
    Engine, Error, Result, Storage,
    archive::{FileScan, Level, deleted_rows},
    background,
    changes::Changes,
    compaction::Input,
    flush::{month_of, supersede},
    merge::{FileSink, Winner, merge, never_equal},
    publish::publish,
    rows::SeriesRows,
    series::{SeriesId, SeriesTable},
};

/// When a month's files hold more than this many times the import's rows of it, their rows are looked up instead of
/// all written anew.
const LOOKUP_FACTOR: u64 = 4;
/// Rows of a month that are looked up at most: they are held in memory.
const LOOKUP_ROWS_MAX: u64 = 2_000_000;
/// Months written side by side.
const MONTHS_AT_ONCE: usize = 2;

/// What is to be committed, and what is told of it.
#[derive(Default)]
pub(super) struct Built<R> {
    pub new_files: Vec<NewDataFile>,
    pub changes: Changes,
    /// Files that were read and must still be what they were.
    pub inputs: Vec<Arc<DataFile>>,
    pub report: R,
}

impl<R> Built<R> {
    /// Whether what happened since `base` matters to what was built on it.
    pub(super) fn has_conflict(
        &self,
        base: &Manifest,
        current: &Manifest,
        may_share_keys: impl Fn(&DataFile) -> bool,
    ) -> bool {
        let same = |file: &Arc<DataFile>, files: &[Arc<DataFile>]| {
            files.iter().any(|other| other.id == file.id && other.delete == file.delete)
        };
        !self.inputs.iter().all(|input| same(input, &current.files))
            || current.files.iter().filter(|file| !same(file, &base.files)).any(|file| may_share_keys(file))
    }

    /// Deletes the files that are not needed. What stays of them is swept one day.
    pub(super) async fn discard(&self, storage: &Storage) {
        let data = self.new_files.iter().chain(&self.changes.new_files).map(|file| &file.stored);
        for stored in data.chain(self.changes.new_deletes.iter().map(|file| &file.stored)) {
            let _ = storage.delete(&Storage::object_path(stored)).await;
        }
    }
}

/// Stores the months of an import in one commit. `marks`: the latest time of each series.
pub(super) async fn commit(
    engine: &Arc<Engine>,
    months: &Arc<Vec<Month>>,
    marks: &[(SeriesId, i64)],
) -> Result<BulkReport> {
    let versions = engine.versions();
    for is_last in [false, true] {
        let mut guard = if is_last { Some(engine.flush_lock().lock().await) } else { None };
        let base = Arc::clone(&versions.current().manifest);
        let built = build(engine, months, &base).await?;
        if guard.is_none() {
            guard = Some(engine.flush_lock().lock().await);
        }
        let current = Arc::clone(&versions.current().manifest);
        if built.has_conflict(&base, &current, |file| months.iter().any(|month| month.may_share_keys(file))) {
            built.discard(engine.storage()).await;
            continue;
        }
        let Built { mut new_files, changes, mut report, .. } = built;
        if new_files.is_empty() && changes.is_empty() {
            return Ok(report);
        }
        new_files.extend(changes.new_files);
        let request = CommitRequest {
            message: format!("{}{} readings", undo::MESSAGE, report.rows),
            new_files,
            new_deletes: changes.new_deletes,
            removed: changes.removed,
            ..CommitRequest::default()
        };
        failpoint!("import.before_catalog");
        report.batch = Some(publish(engine.journal(), versions, &request, marks).await?);
        failpoint!("import.after_catalog");
        drop(guard);
        return Ok(report);
    }
    Err(Error::internal("the archive changed while the flush lock was held"))
}

/// Makes the files of an import on a state of the archive.
pub(super) async fn build(
    engine: &Arc<Engine>,
    months: &Arc<Vec<Month>>,
    base: &Manifest,
) -> Result<Built<BulkReport>> {
    let mut built = Built::default();
    let mut rewrites = Vec::new();
    for (index, month) in months.iter().enumerate() {
        let shared: Vec<_> = base.files.iter().filter(|file| month.may_share_keys(file)).cloned().collect();
        let stored: u64 = shared.iter().map(|file| file.rows).sum();
        if stored > month.rows * LOOKUP_FACTOR && month.rows <= LOOKUP_ROWS_MAX {
            built.inputs.extend(shared.iter().cloned());
            look_up(engine, month, &shared, &mut built).await?;
            continue;
        }
        let mut inputs = Vec::new();
        for file in shared {
            let hidden = deleted_rows(engine.storage(), &file).await?;
            inputs.push(Input { file, hidden });
        }
        built.inputs.extend(inputs.iter().map(|input| Arc::clone(&input.file)));
        rewrites.push((index, inputs));
    }
    let (months, handle) = (Arc::clone(months), Handle::current());
    let (storage, series) = (engine.storage().clone(), Arc::clone(&engine.versions().series));
    let now = engine.clock().now_micros();
    let rewritten = background::run("import-merge", move || {
        let queue = SyncMutex::new(rewrites.into_iter());
        let work = || -> Result<Vec<Rewritten>> {
            let mut done = Vec::new();
            loop {
                let Some((index, inputs)) = queue.lock().next() else { return Ok(done) };
                done.push(rewrite(&handle, &storage, &series, &months[index], &inputs, now)?);
            }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..MONTHS_AT_ONCE).map(|_| scope.spawn(work)).collect();
            let joined = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|_| Err(Error::internal("writing a month panicked")))
            });
            joined.collect::<Result<Vec<_>>>()
        })
    })
    .await?;
    for month in rewritten.into_iter().flatten() {
        built.new_files.extend(month.new_files);
        built.changes.removed.extend(month.removed);
        built.report.rows += month.report.rows;
        built.report.corrected += month.report.corrected;
        built.report.identical += month.report.identical;
    }
    Ok(built)
}

struct Rewritten {
    new_files: Vec<NewDataFile>,
    removed: Vec<RemovedFile>,
    report: BulkReport,
}

/// Merges a month of the import with the files that may share keys with it. Blocks: for background threads.
fn rewrite(
    handle: &Handle,
    storage: &Storage,
    series: &Arc<SeriesTable>,
    month: &Month,
    inputs: &[Input],
    now: i64,
) -> Result<Rewritten> {
    // The runs come first: which of the import's own readings of a key counts is settled before it is compared with what
    // is stored.
    let mut sources = month.sources(series);
    let runs = sources.len();
    for Input { file, hidden } in inputs {
        sources.push(Box::new(FileScan::open(handle, storage, series, file, hidden)?));
    }
    let first = month.bounds.first().map_or(now, |bounds| bounds.min_ts);
    let is_over = month_of(first)?.1 <= now;
    let level = if is_over { Level::Month } else { Level::Day };
    let mut sink = FileSink::new(handle, storage, series, level, &month.name);
    let (mut corrected, mut identical) = (0, 0);
    merge(
        sources,
        |key, earlier, later| match (earlier.rank < runs, later.rank < runs) {
            (false, _) => never_equal(key, earlier, later),
            (true, true) => Ok(Winner::Later),
            (true, false) if earlier.says_the_same(&later) => {
                identical += 1;
                Ok(Winner::Later)
            }
            (true, false) => {
                corrected += 1;
                Ok(Winner::Earlier)
            }
        },
        |key, rows, range| sink.append(key, rows, range),
    )?;
    let mut new_files = sink.finish()?;
    let stored: u64 = inputs.iter().map(|input| input.file.rows - input.hidden.len() as u64).sum();
    let written: u64 = new_files.iter().map(|file| file.rows).sum();
    let new = written
        .checked_sub(stored)
        .ok_or_else(|| Error::corrupt(format!("an import of {} lost rows", month.name)))?;
    let report = BulkReport { rows: new + corrected + identical, corrected, identical, batch: None };
    let mut removed: Vec<_> = inputs.iter().map(|input| input.file.removal()).collect();
    if new == 0 && corrected == 0 {
        // Everything is there already: what was written is not needed.
        for file in new_files.drain(..) {
            let _ = handle.block_on(storage.delete(&Storage::object_path(&file.stored)));
        }
        removed.clear();
    }
    Ok(Rewritten { new_files, removed, report })
}

/// Looks up the rows of a month in its files, as a flush does.
async fn look_up(
    engine: &Arc<Engine>,
    month: &Month,
    files: &[Arc<DataFile>],
    built: &mut Built<BulkReport>,
) -> Result<()> {
    let series = &engine.versions().series;
    let mut rows = {
        let sources = month.sources(series);
        background::run("import-collect", move || collect(sources)).await?
    };
    let count = |rows: &[SeriesRows]| rows.iter().map(|series| series.rows.len() as u64).sum::<u64>();
    let all = count(&rows);
    let late: Vec<usize> = (0..rows.len()).collect();
    let changes = supersede(engine.storage(), series, files, &late, &mut rows).await?;
    let kept = count(&rows);
    built.report.rows += all;
    built.report.identical += all - kept;
    built.report.corrected += changes.rows;
    built.changes.absorb(changes);
    if kept > 0 {
        let (handle, table, storage) = (Handle::current(), Arc::clone(series), engine.storage().clone());
        let name = month.name.clone();
        let write = move || {
            let mut sink = FileSink::new(&handle, &storage, &table, Level::Flush, &name);
            for SeriesRows { key, rows, .. } in &rows {
                sink.append(key, rows, 0..rows.len())?;
            }
            sink.finish()
        };
        built.new_files.extend(background::run("import-write", write).await?);
    }
    Ok(())
}
