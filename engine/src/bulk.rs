//! Bulk imports: readings go past the log and the memtable, are sorted in runs (spilled to disk when there are several),
//! and end as final files in one atomic commit.
//!
//! What the archive holds already is merged in: in months where the import is large the files that may share keys with it
//! are written anew, elsewhere their rows are looked up as for a flush. A reading that is there already changes nothing.
//! The files are built beside running flushes; only when one of those touched the same keys the work is done again with
//! the flush lock held (MAN-3).

pub(crate) mod resume;
mod spill;
mod undo;

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use ahash::HashMap;
use parking_lot::Mutex as SyncMutex;
use tokio::{runtime::Handle, task::JoinHandle};
use wattlake_catalog::{
    CommitRequest, DataFile, FileBounds, Manifest, NewDataFile, RemovedFile, SnapshotId, failpoint,
};

use crate::{
    Engine, Error, ErrorKind, Result, Storage,
    archive::{Chunk, FileScan, Level, deleted_rows},
    background,
    batch::Readings,
    changes::Changes,
    compaction::Input,
    flush::{by_month, month_of, supersede},
    memtable::{Block, sort_blocks},
    merge::{FileSink, Source, Winner, merge, never_equal},
    publish::publish,
    rows::{Rows, SeriesRows},
    series::{SeriesId, SeriesTable},
};
pub use undo::UndoReport;

use resume::{Opened, Resumable};
use spill::{SpillFile, SpillFolder, SpillReader, SpillWriter};

/// Share of the memory budget that readings take before they are sorted into a run: while one run is sorted and
/// written, the next one fills.
const RUN_SHARE: usize = 6;
/// When a month's files hold more than this many times the import's rows of it, their rows are looked up instead of
/// all written anew.
const LOOKUP_FACTOR: u64 = 4;
/// Rows of a month that are looked up at most: they are held in memory.
const LOOKUP_ROWS_MAX: u64 = 2_000_000;
/// Months written side by side.
const MONTHS_AT_ONCE: usize = 2;

/// What a bulk import did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BulkReport {
    /// Readings with different keys; of those with one key the last one counts.
    pub rows: u64,
    /// Of them: those that replaced a stored reading, and those that were stored already.
    pub corrected: u64,
    pub identical: u64,
    /// What [`Engine::undo_import`] knows it by; none when nothing had to be stored.
    pub batch: Option<SnapshotId>,
}

/// A bulk import under way. Dropping it leaves no trace.
pub struct BulkImport {
    engine: Arc<Engine>,
    pending: Vec<Arc<Block>>,
    pending_bytes: usize,
    /// The run that is being sorted and spilled.
    sorting: Option<JoinHandle<Result<Run>>>,
    runs: Vec<Run>,
    spill: Option<Arc<SpillFolder>>,
    spilled_bytes: u64,
    /// Where another process would go on.
    resumable: Option<Resumable>,
}

impl std::fmt::Debug for BulkImport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BulkImport").finish_non_exhaustive()
    }
}

/// Sorted readings, month by month; within one, each key once.
#[derive(Debug, Default)]
struct Run {
    months: BTreeMap<String, MonthRun>,
    /// The latest time of each series.
    marks: HashMap<SeriesId, i64>,
    spilled_bytes: u64,
}

#[derive(Debug)]
struct MonthRun {
    bounds: FileBounds,
    rows: u64,
    data: RunData,
}

#[derive(Clone, Debug)]
enum RunData {
    Memory { rows: Arc<Vec<SeriesRows>>, parts: Arc<Vec<(usize, Range<usize>)>> },
    Spilled { file: Arc<SpillFile>, parts: Range<u64> },
}

impl Engine {
    /// Starts a bulk import.
    pub fn bulk_import(self: &Arc<Self>) -> BulkImport {
        BulkImport {
            engine: Arc::clone(self),
            pending: Vec::new(),
            pending_bytes: 0,
            sorting: None,
            runs: Vec::new(),
            spill: None,
            spilled_bytes: 0,
            resumable: None,
        }
    }

    /// As [`Engine::bulk_import`], but one that goes on where a process that was killed ended. `name` is the same for the same import, and
    /// a file name. Answers also the last state that was given to [`BulkImport::push`] and is on disk with what was pushed until then.
    ///
    /// # Errors
    /// When the folder of the import cannot be made.
    pub fn resumable_import(self: &Arc<Self>, name: &str) -> Result<(BulkImport, Option<String>)> {
        let series = &self.versions().series;
        let Opened { resumable, folder, runs, state } = Resumable::open(self.settings(), series, name)?;
        let spilled_bytes = runs.iter().map(|run| run.spilled_bytes).sum();
        let (spill, resumable) = (Some(folder), Some(resumable));
        Ok((BulkImport { runs, spill, spilled_bytes, resumable, ..self.bulk_import() }, state))
    }
}

impl BulkImport {
    /// Takes readings; of two with one key the later one counts. `state` tells how far the caller has come with these.
    pub(crate) async fn push(&mut self, readings: Readings, state: impl FnOnce() -> String) -> Result<()> {
        if readings.is_empty() {
            return Ok(());
        }
        self.pending_bytes += readings.memory_bytes();
        self.pending.push(Arc::new(Block::of(readings)));
        let budget = self.engine.settings().memory.budget.as_usize();
        if self.pending_bytes >= budget / RUN_SHARE {
            self.finish_sorting().await?;
            let spill = self.spill()?;
            let (blocks, series) = (self.take_pending(), Arc::clone(&self.engine.versions().series));
            let sort = background::run("import-sort", move || {
                Run::sort(&blocks, &series).and_then(|run| run.spill(&spill))
            });
            self.sorting = Some(tokio::spawn(sort));
            if let Some(resumable) = &mut self.resumable {
                resumable.sorting = Some(state());
            }
        }
        Ok(())
    }

    fn take_pending(&mut self) -> Vec<Arc<Block>> {
        self.pending_bytes = 0;
        std::mem::take(&mut self.pending)
    }

    async fn finish_sorting(&mut self) -> Result<()> {
        let Some(sorting) = self.sorting.take() else { return Ok(()) };
        let run = sorting
            .await
            .map_err(|error| Error::internal(format!("sorting an import panicked: {error}")))??;
        self.spilled_bytes += run.spilled_bytes;
        if let Some(resumable) = &mut self.resumable {
            resumable.keep(&run, &self.engine.versions().series)?;
        }
        self.runs.push(run);
        let max = self.engine.settings().ingest.import_spill;
        if self.spilled_bytes > max.0 {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "the import needs more than ingest.import_spill = {max} for sorting; import it in parts"
                ),
            ));
        }
        Ok(())
    }

    fn spill(&mut self) -> Result<Arc<SpillFolder>> {
        if let Some(spill) = &self.spill {
            return Ok(Arc::clone(spill));
        }
        let name = format!("import-{}", uuid::Uuid::now_v7().simple());
        let path = self.engine.settings().data_dir.0.join("tmp").join(name);
        Ok(Arc::clone(self.spill.insert(Arc::new(SpillFolder::create(path)?))))
    }

    /// Stores everything in one commit; afterwards it is durable and visible.
    ///
    /// # Errors
    /// Nothing is stored then.
    ///
    /// # Cancel safety
    /// Whoever stops waiting leaves it to its end.
    pub async fn finish(mut self) -> Result<BulkReport> {
        self.finish_runs().await?;
        if self.runs.is_empty() {
            return Ok(BulkReport::default());
        }
        let Self { engine, runs, .. } = self;
        let months = Month::of_runs(&runs);
        let marks: Vec<_> = runs.iter().flat_map(|run| &run.marks).map(|(id, ts)| (*id, *ts)).collect();
        // Owned, so that a caller that stops waiting does not tear it.
        tokio::spawn(async move {
            // What was acknowledged before counts as older.
            engine.flush().await?;
            commit(&engine, &Arc::new(months), &marks).await
        })
        .await
        .map_err(|error| Error::internal(format!("the import panicked: {error}")))?
    }
}

impl BulkImport {
    /// Sorts what was not sorted yet.
    async fn finish_runs(&mut self) -> Result<()> {
        self.finish_sorting().await?;
        if !self.pending.is_empty() {
            let (blocks, series) = (self.take_pending(), Arc::clone(&self.engine.versions().series));
            self.runs.push(background::run("import-sort", move || Run::sort(&blocks, &series)).await?);
        }
        Ok(())
    }

    /// Leaves its folder behind, as a kill does.
    #[cfg(test)]
    async fn leave(mut self) {
        // Whose run nobody knows of.
        if let Some(sorting) = self.sorting.take() {
            std::mem::forget(sorting.await);
        }
        std::mem::forget((self.spill, self.runs));
    }

    /// Answers what [`BulkImport::finish`] would, and stores nothing.
    ///
    /// # Errors
    /// As there.
    pub async fn preview(mut self) -> Result<BulkReport> {
        self.finish_runs().await?;
        if self.runs.is_empty() {
            return Ok(BulkReport::default());
        }
        self.engine.flush().await?;
        let months = Arc::new(Month::of_runs(&self.runs));
        let base = Arc::clone(&self.engine.versions().current().manifest);
        let built = build(&self.engine, &months, &base).await?;
        built.discard(self.engine.storage()).await;
        Ok(built.report)
    }
}

impl Run {
    fn sort(blocks: &[Arc<Block>], series: &SeriesTable) -> Result<Self> {
        let rows = Arc::new(sort_blocks(blocks, series, |_, _| Some((i64::MIN, i64::MAX))));
        let marks = rows.iter().filter_map(|s| Some((s.id, *s.rows.ts.last()?))).collect();
        let mut months = BTreeMap::new();
        for (month, parts) in by_month(&rows)? {
            let bounds = bounds_of(&rows, &parts).ok_or_else(|| Error::internal("an empty month"))?;
            let count = parts.iter().map(|(_, range)| range.len() as u64).sum();
            let data = RunData::Memory { rows: Arc::clone(&rows), parts: Arc::new(parts) };
            months.insert(month, MonthRun { bounds, rows: count, data });
        }
        Ok(Self { months, marks, spilled_bytes: 0 })
    }

    /// Moves the readings to disk.
    fn spill(mut self, folder: &Arc<SpillFolder>) -> Result<Self> {
        let mut out = SpillWriter::create(folder)?;
        let mut places = Vec::new();
        for run in self.months.values() {
            let start = out.position();
            if let RunData::Memory { rows, parts } = &run.data {
                for (index, range) in parts.iter() {
                    out.append(rows[*index].id, &rows[*index].rows, range.clone())?;
                }
            }
            places.push(start..out.position());
        }
        self.spilled_bytes = out.position();
        let file = Arc::new(out.finish()?);
        for (run, parts) in self.months.values_mut().zip(places) {
            run.data = RunData::Spilled { file: Arc::clone(&file), parts };
        }
        Ok(self)
    }
}

fn bounds_of(rows: &[SeriesRows], parts: &[(usize, Range<usize>)]) -> Option<FileBounds> {
    let entities = || parts.iter().map(|(index, _)| rows[*index].key.entity);
    let (first, last) = (parts.first()?, parts.last()?);
    Some(FileBounds {
        min_ts: parts.iter().map(|(index, range)| rows[*index].rows.ts[range.start]).min()?,
        max_ts: parts.iter().map(|(index, range)| rows[*index].rows.ts[range.end - 1]).max()?,
        min_entity: entities().min()?.to_string(),
        max_entity: entities().max()?.to_string(),
        min_metric: rows[first.0].key.metric.to_string(),
        max_metric: rows[last.0].key.metric.to_string(),
    })
}

/// The import's rows of one UTC month, in runs, oldest first.
#[derive(Debug)]
struct Month {
    name: String,
    bounds: Vec<FileBounds>,
    /// Duplicates between runs counted twice.
    rows: u64,
    runs: Vec<RunData>,
}

impl Month {
    fn of_runs(runs: &[Run]) -> Vec<Self> {
        let mut months: BTreeMap<&String, Self> = BTreeMap::new();
        for (name, run) in runs.iter().flat_map(|run| &run.months) {
            let month = months.entry(name).or_insert_with(|| Self {
                name: name.clone(),
                bounds: Vec::new(),
                rows: 0,
                runs: Vec::new(),
            });
            month.bounds.push(run.bounds.clone());
            month.rows += run.rows;
            month.runs.push(run.data.clone());
        }
        months.into_values().collect()
    }

    /// Whether a file may hold a key of these rows.
    fn may_share_keys(&self, file: &DataFile) -> bool {
        self.bounds.iter().any(|bounds| bounds.overlap(&file.bounds))
    }

    fn sources(&self, series: &Arc<SeriesTable>) -> Vec<Source> {
        self.runs.iter().map(|run| run.source(series)).collect()
    }
}

impl RunData {
    fn source(&self, series: &Arc<SeriesTable>) -> Source {
        match self {
            Self::Spilled { file, parts } => {
                Box::new(SpillReader::new(Arc::clone(file), Arc::clone(series), parts.clone()))
            }
            Self::Memory { rows, parts } => {
                let (rows, parts) = (Arc::clone(rows), Arc::clone(parts));
                Box::new((0..parts.len()).map(move |i| -> Result<Chunk> {
                    let (index, range) = &parts[i];
                    let SeriesRows { key, rows, .. } = &rows[*index];
                    let mut part = Rows::with_capacity(range.len());
                    part.extend_from(rows, range.clone());
                    Ok((Arc::clone(key), part))
                }))
            }
        }
    }
}

/// What is to be committed, and what is told of it.
#[derive(Default)]
struct Built<R> {
    new_files: Vec<NewDataFile>,
    changes: Changes,
    /// Files that were read and must still be what they were.
    inputs: Vec<Arc<DataFile>>,
    report: R,
}

impl<R> Built<R> {
    /// Whether what happened since `base` matters to what was built on it.
    fn has_conflict(
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
    async fn discard(&self, storage: &Storage) {
        let data = self.new_files.iter().chain(&self.changes.new_files).map(|file| &file.stored);
        for stored in data.chain(self.changes.new_deletes.iter().map(|file| &file.stored)) {
            let _ = storage.delete(&Storage::object_path(stored)).await;
        }
    }
}

async fn commit(
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

async fn build(engine: &Arc<Engine>, months: &Arc<Vec<Month>>, base: &Manifest) -> Result<Built<BulkReport>> {
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

/// The merged rows of runs, in memory.
fn collect(sources: Vec<Source>) -> Result<Vec<SeriesRows>> {
    let mut rows: Vec<SeriesRows> = Vec::new();
    let append = |key: &crate::SeriesKey, part: &Rows, range: Range<usize>| {
        match rows.last_mut().filter(|last| last.key.sort_key() == key.sort_key()) {
            Some(last) => last.rows.extend_from(part, range),
            None => {
                let mut first = Rows::default();
                first.extend_from(part, range);
                rows.push(SeriesRows { id: NO_SERIES, key: Arc::new(key.clone()), rows: first });
            }
        }
        Ok(())
    };
    merge(sources, |_, _, _| Ok(Winner::Later), append)?;
    Ok(rows)
}

/// Rows of runs are marked by the runs themselves.
const NO_SERIES: SeriesId = SeriesId(u32::MAX);

#[cfg(test)]
mod tests;
