//! Undoing an import: every reading that it changed becomes again what it was, as long as the state before it is kept.
//!
//! The rows of the import's files are compared with those of the snapshot before it. Of what is new or another, the rows that are still
//! what the import made them are taken out of the archive, and those before them put back, in one commit. A reading that was changed
//! since stays as it is. Meters that the import registered stay.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use wattlake_catalog::{CommitRequest, DataFile, Manifest, NewDataFile, SnapshotAt, SnapshotId};

use super::{collect, commit::Built};
use crate::{
    Engine, Error, ErrorKind, Result,
    archive::{FileScan, Level, deleted_rows, find_rows},
    background,
    flush::{by_month, is_same, wanted_series},
    merge::{FileSink, Source},
    publish::publish,
    rows::SeriesRows,
};

/// How the message of an import's commit begins.
pub(super) const MESSAGE: &str = "import of ";
/// Rows of one of the import's files, which are compared in memory.
const FILE_ROWS_MAX: u64 = if cfg!(test) { 5_000 } else { 16_000_000 };

/// What undoing an import did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndoReport {
    /// Readings that were not there before, and are gone.
    pub removed: u64,
    /// Readings that are again what they were.
    pub restored: u64,
    /// Readings that were changed or deleted since, and stay as they are.
    pub kept: u64,
}

/// What an import changed in one of its files.
struct Changed {
    /// Its own readings.
    imported: Vec<SeriesRows>,
    /// Those that they replaced.
    previous: Vec<SeriesRows>,
}

impl Engine {
    /// Puts readings back as they were before an import; with `is_dry_run` it only answers what would be done.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when that is no import, or the state before it is not kept any more.
    ///
    /// # Cancel safety
    /// Whoever stops waiting leaves it to its end.
    pub async fn undo_import(self: &Arc<Self>, batch: SnapshotId, is_dry_run: bool) -> Result<UndoReport> {
        let engine = Arc::clone(self);
        let work = tokio::spawn(async move { undo(&engine, batch, is_dry_run).await });
        work.await.map_err(|error| Error::internal(format!("undoing an import panicked: {error}")))?
    }
}

async fn undo(engine: &Arc<Engine>, batch: SnapshotId, is_dry_run: bool) -> Result<UndoReport> {
    let catalog = engine.catalog();
    let message = catalog.commit_message(batch).await?;
    if !message.as_deref().is_some_and(|message| message.starts_with(MESSAGE)) {
        let words = match message {
            Some(message) => format!("batch {} is no import but: {message}", batch.0),
            None => format!("there is no import {}, or its state is not kept any more", batch.0),
        };
        return Err(Error::new(ErrorKind::NotFound, words));
    }
    let state = async |id: i64| {
        let manifest = catalog.manifest(SnapshotAt::Id(SnapshotId(id))).await;
        manifest.map_err(|error| match error.kind {
            wattlake_catalog::ErrorKind::NotFound => Error::new(
                ErrorKind::NotFound,
                format!(
                    "the state before import {} is not kept any more (snapshots.keep); it cannot be undone",
                    batch.0
                ),
            ),
            _ => error.into(),
        })
    };
    let (before, after) = (state(batch.0 - 1).await?, state(batch.0).await?);
    let known: HashSet<i64> = before.files.iter().map(|file| file.id).collect();
    let imported: Vec<_> = after.files.iter().filter(|file| !known.contains(&file.id)).cloned().collect();
    // What was acknowledged until now is looked at as well.
    engine.flush().await?;
    let versions = engine.versions();
    if is_dry_run {
        return Ok(build(engine, &imported, &before, &versions.current().manifest, true).await?.report);
    }
    // Others go on while it is found out what is to be done, and then once more if they came in between.
    for is_last in [false, true] {
        let mut guard = if is_last { Some(engine.flush_lock().lock().await) } else { None };
        let base = Arc::clone(&versions.current().manifest);
        let built = build(engine, &imported, &before, &base, false).await?;
        if guard.is_none() {
            guard = Some(engine.flush_lock().lock().await);
        }
        let current = Arc::clone(&versions.current().manifest);
        let may_share_keys = |file: &DataFile| imported.iter().any(|one| one.bounds.overlap(&file.bounds));
        if built.has_conflict(&base, &current, may_share_keys) {
            built.discard(engine.storage()).await;
            continue;
        }
        let Built { mut new_files, changes, report, .. } = built;
        if changes.is_empty() && new_files.is_empty() {
            return Ok(report);
        }
        new_files.extend(changes.new_files);
        let request = CommitRequest {
            message: format!("undo of import {}", batch.0),
            new_files,
            new_deletes: changes.new_deletes,
            removed: changes.removed,
            ..CommitRequest::default()
        };
        publish(engine.journal(), versions, &request, &[]).await?;
        drop(guard);
        return Ok(report);
    }
    Err(Error::internal("the archive changed while the flush lock was held"))
}

/// Finds out what undoing does to a state, and writes its files unless it is a dry run.
async fn build(
    engine: &Arc<Engine>,
    imported: &[Arc<DataFile>],
    before: &Manifest,
    base: &Manifest,
    is_dry_run: bool,
) -> Result<Built<UndoReport>> {
    let mut built = Built::default();
    let mut gone: BTreeMap<i64, Vec<u64>> = BTreeMap::new();
    for file in imported {
        let changed = compare(engine, file, before).await?;
        let restored = look_up(engine, &changed, base, &mut gone, &mut built.report).await?;
        if !is_dry_run {
            built.new_files.extend(store(engine, restored).await?);
        }
    }
    if is_dry_run {
        return Ok(built);
    }
    for (id, mut positions) in gone {
        let Some(file) = base.files.iter().find(|file| file.id == id) else { continue };
        positions.sort_unstable();
        let hidden = deleted_rows(engine.storage(), file).await?;
        built.inputs.push(Arc::clone(file));
        built.changes.take_out(engine.storage(), &engine.versions().series, file, hidden, positions).await?;
    }
    Ok(built)
}

/// The live rows of some files of one state, each key once.
async fn rows_of(engine: &Arc<Engine>, files: Vec<Arc<DataFile>>) -> Result<Vec<SeriesRows>> {
    let mut inputs = Vec::new();
    for file in files {
        let hidden = deleted_rows(engine.storage(), &file).await?;
        inputs.push((file, hidden));
    }
    let (handle, storage) = (Handle::current(), engine.storage().clone());
    let series = Arc::clone(&engine.versions().series);
    background::run("undo-scan", move || {
        let scans = inputs.iter().map(|(file, hidden)| {
            Ok(Box::new(FileScan::open(&handle, &storage, &series, file, hidden)?) as Source)
        });
        collect(scans.collect::<Result<_>>()?)
    })
    .await
}

/// What is in a file of an import and was not there before, or was another.
async fn compare(engine: &Arc<Engine>, file: &Arc<DataFile>, before: &Manifest) -> Result<Changed> {
    let shared: Vec<_> =
        before.files.iter().filter(|old| old.bounds.overlap(&file.bounds)).cloned().collect();
    let rows: u64 = shared.iter().map(|old| old.rows).sum::<u64>() + file.rows;
    if rows > FILE_ROWS_MAX {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!(
                "the import has {rows} rows to compare in one month, and at most {FILE_ROWS_MAX} can be undone; restore a backup instead"
            ),
        ));
    }
    let imported = rows_of(engine, vec![Arc::clone(file)]).await?;
    let old = rows_of(engine, shared).await?;
    let mut changed = Changed { imported: Vec::new(), previous: Vec::new() };
    for series in imported {
        let known = old.binary_search_by(|old| old.key.sort_key().cmp(&series.key.sort_key()));
        let known = known.ok().map(|at| &old[at].rows);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for row in 0..series.rows.len() {
            let before =
                known.and_then(|known| Some((known, known.ts.binary_search(&series.rows.ts[row]).ok()?)));
            match before {
                Some((known, at)) if says_the_same(&series.rows, row, known, at) => {}
                Some((_, at)) => {
                    ours.push(row as u32);
                    theirs.push(at as u32);
                }
                None => ours.push(row as u32),
            }
        }
        if let Some(known) = known.filter(|_| !theirs.is_empty()) {
            changed.previous.push(SeriesRows { rows: known.pick(&theirs), ..series.clone() });
        }
        if !ours.is_empty() {
            changed.imported.push(SeriesRows { rows: series.rows.pick(&ours), ..series });
        }
    }
    Ok(changed)
}

fn says_the_same(a: &crate::rows::Rows, at: usize, b: &crate::rows::Rows, other: usize) -> bool {
    use crate::merge::Side;
    Side { rank: 0, rows: a, row: at }.says_the_same(&Side { rank: 1, rows: b, row: other })
}

/// Finds the rows that are still what the import made them: those go, and what they replaced is answered.
async fn look_up(
    engine: &Arc<Engine>,
    changed: &Changed,
    current: &Manifest,
    gone: &mut BTreeMap<i64, Vec<u64>>,
    report: &mut UndoReport,
) -> Result<Vec<SeriesRows>> {
    let table = &engine.versions().series;
    // Times that are taken back, by the place of their series.
    let mut taken: HashMap<usize, HashSet<i64>> = HashMap::new();
    let mut count = 0;
    for file in &current.files {
        let (mut places, mut wanted) = (Vec::new(), Vec::new());
        for (place, series) in changed.imported.iter().enumerate() {
            if let Some(of_file) = wanted_series(file, series) {
                places.push(place);
                wanted.push(of_file);
            }
        }
        if wanted.is_empty() {
            continue;
        }
        let hidden = deleted_rows(engine.storage(), file).await?;
        for found in find_rows(engine.storage(), file, &wanted).await? {
            let (place, ts) = (places[found.series], wanted[found.series].times[found.time]);
            let rows = &changed.imported[place].rows;
            let Ok(at) = rows.ts.binary_search(&ts) else { continue };
            if hidden.binary_search(&found.position).is_err() && is_same(table, rows, at, &found) {
                gone.entry(file.id).or_default().push(found.position);
                taken.entry(place).or_default().insert(ts);
                count += 1;
            }
        }
    }
    let all: u64 = changed.imported.iter().map(|series| series.rows.len() as u64).sum();
    let mut restored = Vec::new();
    for previous in &changed.previous {
        let key = previous.key.sort_key();
        let of_series = changed.imported.binary_search_by(|series| series.key.sort_key().cmp(&key));
        let Some(times) = of_series.ok().and_then(|place| taken.get(&place)) else { continue };
        let back =
            (0..previous.rows.len() as u32).filter(|row| times.contains(&previous.rows.ts[*row as usize]));
        let rows = previous.rows.pick(&back.collect::<Vec<_>>());
        report.restored += rows.len() as u64;
        count -= rows.len() as u64;
        restored.push(SeriesRows { rows, ..previous.clone() });
    }
    report.removed += count;
    let back: u64 = restored.iter().map(|series| series.rows.len() as u64).sum();
    report.kept += all - count - back;
    Ok(restored)
}

/// Stores rows as files of their months.
async fn store(engine: &Arc<Engine>, rows: Vec<SeriesRows>) -> Result<Vec<NewDataFile>> {
    let (handle, storage) = (Handle::current(), engine.storage().clone());
    let series = Arc::clone(&engine.versions().series);
    background::run("undo-write", move || {
        let mut files = Vec::new();
        for (month, parts) in by_month(&rows)? {
            let mut sink = FileSink::new(&handle, &storage, &series, Level::Flush, &month);
            for (index, range) in parts {
                sink.append(&rows[index].key, &rows[index].rows, range)?;
            }
            files.extend(sink.finish()?);
        }
        Ok(files)
    })
    .await
}
