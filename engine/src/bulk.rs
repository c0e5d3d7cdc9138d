//! Bulk imports: readings go past the log and the memtable, are sorted in runs (spilled to disk when there are several),
//! and end as final files in one atomic commit.

mod commit;
pub(crate) mod resume;
mod spill;
mod undo;

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use ahash::HashMap;
use tokio::task::JoinHandle;
use wattlake_catalog::{DataFile, FileBounds, SnapshotId};

use crate::{
    Engine, Error, ErrorKind, Result,
    archive::Chunk,
    background,
    batch::Readings,
    flush::by_month,
    memtable::{Block, sort_blocks},
    merge::{Source, Winner, merge},
    rows::{Rows, SeriesRows},
    series::{SeriesId, SeriesTable},
};
pub use undo::UndoReport;

use commit::{build, commit};
use resume::{Opened, Resumable};
use spill::{SpillFile, SpillFolder, SpillReader, SpillWriter};

/// Share of the memory budget that readings take before they are sorted into a run: while one run is sorted and
/// written, the next one fills.
const RUN_SHARE: usize = 6;
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
