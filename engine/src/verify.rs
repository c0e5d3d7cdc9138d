//! `verify`: whether the archive is what the catalog says it is. Reads everything, changes nothing.

mod summary_check;
mod totals_check;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde::Serialize;
use tokio::runtime::Handle;
use uuid::Uuid;
use wattlake_catalog::{DataFile, EntityId, Manifest, StoredFile};

use self::{summary_check::SummaryCheck, totals_check::TotalsCheck};
use crate::{
    Engine, Result, Storage,
    archive::{Chunk, FileScan, Stretch, deleted_rows, read_footer_rows, read_series_totals, read_summaries},
    background,
    compaction::Input,
    flush::month_of,
    merge::{Source, merge, never_equal},
    series::SeriesTable,
};

/// What is wrong with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// The catalog names it, and the storage does not have it.
    Missing,
    /// Size or hash are not those of the catalog (MAN-5).
    Altered,
    /// It has the right hash and cannot be read all the same.
    Unreadable,
    /// Row count or bounds are not those of the catalog: readers would skip it wrongly.
    WrongStatistics,
    /// A delete file that names rows which its data file does not have.
    WrongDeletes,
    /// Two live rows have one key (MAN-2).
    DuplicateKeys,
    /// No snapshot names it. Maintenance deletes it after a day.
    Orphan,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub kind: ProblemKind,
    /// Relative to the storage's root; for duplicate keys the month.
    pub path: String,
    pub message: String,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifyReport {
    pub files: usize,
    pub bytes: u64,
    /// Live rows that were read; 0 when only objects were looked at.
    pub rows: u64,
    pub problems: Vec<Problem>,
}

impl VerifyReport {
    fn add(&mut self, kind: ProblemKind, path: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem { kind, path: path.into(), message: message.into() });
    }

    /// Orphans are no damage: nothing reads them.
    pub fn is_sound(&self) -> bool {
        self.problems.iter().all(|problem| problem.kind == ProblemKind::Orphan)
    }
}

impl Engine {
    /// Checks that all objects are there in their size; unless `is_quick` also hashes, statistics, deletes and that no two
    /// live rows have one key.
    pub async fn verify(&self, is_quick: bool) -> Result<VerifyReport> {
        let mut report = VerifyReport::default();
        // Commits go on meanwhile: what was named before the list must be in it, what is in it may be named after.
        let manifest = Arc::clone(&self.versions().current().manifest);
        let named = self.catalog().known_objects().await?;
        let objects = self.storage().list().await?;
        let sizes: HashMap<String, u64> =
            objects.iter().map(|object| (object.location.to_string(), object.size)).collect();
        let known = self.catalog().known_objects().await?;
        for path in sizes.keys().filter(|path| path.ends_with(".parquet") && !known.contains(*path)) {
            report.add(ProblemKind::Orphan, path.as_str(), "no snapshot names this object");
        }
        let mut sound = Vec::new();
        for file in &manifest.files {
            let deletes = file.delete.as_ref().map(|delete| &delete.stored);
            let mut is_sound = true;
            for stored in [&file.stored].into_iter().chain(deletes) {
                report.files += 1;
                report.bytes += stored.bytes;
                is_sound &= self.verify_object(stored, &sizes, is_quick, &mut report).await;
            }
            if is_sound {
                sound.push(Arc::clone(file));
            }
        }
        self.verify_history(&manifest, &named, &sizes, &mut report);
        if !is_quick {
            self.verify_rows(sound, &mut report).await?;
        }
        report.problems.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(report)
    }

    async fn verify_object(
        &self,
        stored: &StoredFile,
        sizes: &HashMap<String, u64>,
        is_quick: bool,
        report: &mut VerifyReport,
    ) -> bool {
        let path = Storage::object_path(stored).to_string();
        match sizes.get(&path) {
            None => {
                report.add(ProblemKind::Missing, path, "the catalog names it, the storage does not have it");
                return false;
            }
            Some(size) if *size != stored.bytes => {
                let message = format!("{size} bytes where the catalog says {}", stored.bytes);
                report.add(ProblemKind::Altered, path, message);
                return false;
            }
            Some(_) if is_quick => return true,
            Some(_) => {}
        }
        match self.storage().read_whole(stored).await {
            Ok(_) => true,
            Err(error) => {
                report.add(ProblemKind::Altered, path, error.message);
                false
            }
        }
    }

    /// Files of earlier snapshots: only that they are there.
    fn verify_history(
        &self,
        manifest: &Manifest,
        known: &std::collections::HashSet<String>,
        sizes: &HashMap<String, u64>,
        report: &mut VerifyReport,
    ) {
        let current: std::collections::HashSet<String> = manifest
            .files
            .iter()
            .flat_map(|file| [Some(&file.stored), file.delete.as_ref().map(|delete| &delete.stored)])
            .flatten()
            .map(|stored| Storage::object_path(stored).to_string())
            .collect();
        for path in known.iter().filter(|path| !current.contains(*path) && !sizes.contains_key(*path)) {
            report.add(ProblemKind::Missing, path.as_str(), "an earlier snapshot names it");
        }
    }

    async fn verify_rows(&self, files: Vec<Arc<DataFile>>, report: &mut VerifyReport) -> Result<()> {
        let mut months: BTreeMap<String, Vec<Input>> = BTreeMap::new();
        for file in files {
            let path = Storage::object_path(&file.stored).to_string();
            let hidden = match deleted_rows(self.storage(), &file).await {
                Ok(rows) if rows.last().is_some_and(|last| *last >= file.rows) => {
                    let message = format!("deletes of row {:?} of {}", rows.last(), file.rows);
                    report.add(ProblemKind::WrongDeletes, path, message);
                    continue;
                }
                Ok(rows) => rows,
                Err(error) => {
                    report.add(ProblemKind::WrongDeletes, path, error.message);
                    continue;
                }
            };
            months.entry(month_of(file.bounds.min_ts)?.0).or_default().push(Input { file, hidden });
        }
        for (month, files) in months {
            let (storage, handle) = (self.storage().clone(), Handle::current());
            let series = Arc::clone(&self.versions().series);
            let checked = background::run("verify", move || {
                Ok(verify_month(&handle, &storage, &series, &month, files))
            })
            .await?;
            report.rows += checked.rows;
            report.problems.extend(checked.problems);
        }
        Ok(())
    }
}

/// Reads the files of a month: each on its own, then all of them merged.
fn verify_month(
    handle: &Handle,
    storage: &Storage,
    series: &Arc<SeriesTable>,
    month: &str,
    files: Vec<Input>,
) -> VerifyReport {
    let mut report = VerifyReport::default();
    let mut readable = Vec::new();
    for Input { file, hidden } in files {
        let path = Storage::object_path(&file.stored).to_string();
        match verify_file(handle, storage, series, &file) {
            Err(error) => report.add(ProblemKind::Unreadable, path, error.message),
            Ok(Some(message)) => report.add(ProblemKind::WrongStatistics, path, message),
            Ok(None) => readable.push(Input { file, hidden }),
        }
    }
    let sources = readable
        .iter()
        .map(|Input { file, hidden }| {
            FileScan::open(handle, storage, series, file, hidden).map(|scan| Box::new(scan) as Source)
        })
        .collect::<Result<Vec<_>>>();
    let mut rows = 0;
    let merged = sources.and_then(|sources| {
        merge(sources, never_equal, |_, _, range| {
            rows += range.len() as u64;
            Ok(())
        })
    });
    report.rows = rows;
    if let Err(error) = merged {
        report.add(ProblemKind::DuplicateKeys, month, error.message);
    }
    report
}

/// Says what a file's rows do not share with the catalog.
fn verify_file(
    handle: &Handle,
    storage: &Storage,
    series: &Arc<SeriesTable>,
    file: &DataFile,
) -> Result<Option<String>> {
    let in_footer = read_footer_rows(handle, storage, file)?;
    let all = EntityId(Uuid::nil())..=EntityId(Uuid::max());
    let mut summaries = Vec::new();
    for stretch in [Stretch::Hour, Stretch::Day] {
        let stored = handle.block_on(read_summaries(storage, file, stretch, None, &all))?;
        summaries.push(SummaryCheck::new(stored));
    }
    let mut totals = TotalsCheck::new(handle.block_on(read_series_totals(storage, file))?);
    let bounds = &file.bounds;
    let mut rows = 0;
    let (min_entity, max_entity) = (bounds.min_entity.as_str(), bounds.max_entity.as_str());
    for chunk in FileScan::open(handle, storage, series, file, &[])? {
        let (key, part): Chunk = chunk?;
        rows += part.len() as u64;
        summaries.iter_mut().for_each(|check| check.take(&key, &part));
        totals.take(&key, &part, &|unit| series.unit(unit));
        let entity = key.entity.to_string();
        let in_bounds = (min_entity..=max_entity).contains(&entity.as_str())
            && (bounds.min_metric.as_str()..=bounds.max_metric.as_str()).contains(&&*key.metric)
            && part.ts.iter().all(|ts| (bounds.min_ts..=bounds.max_ts).contains(ts));
        if !in_bounds {
            return Ok(Some(format!("rows of {} of entity {entity} lie outside of its bounds", key.metric)));
        }
    }
    let wrong = summaries.into_iter().find_map(SummaryCheck::finish);
    if let Some(message) = wrong.or(totals.finish()?) {
        return Ok(Some(message));
    }
    let is_right = rows == file.rows && in_footer == file.rows;
    Ok((!is_right).then(|| format!("{rows} rows where the catalog says {}", file.rows)))
}
