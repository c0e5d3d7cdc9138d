//! Compaction: merging files into larger ones, without what was deleted. Which ones is [`policy`]'s business.
//!
//! The work is done on a thread of its own from a fixed list of files; only the commit waits for the flush lock. When a
//! flush put deletes on an input meanwhile, the result is thrown away and the job done again, the last time with the
//! lock held (MAN-3).

mod policy;

use std::sync::Arc;

use tokio::{
    runtime::Handle,
    sync::{Mutex, MutexGuard},
};
use wattlake_catalog::{CommitRequest, DataFile, NewDataFile, failpoint, seeded_bug};

pub(crate) use policy::{Job, plan};

use crate::{
    Error, Result, Storage,
    archive::{FileScan, Level, deleted_rows},
    background,
    flush::month_of,
    journal::Journal,
    merge::{FileSink, Source, merge, never_equal},
    publish::publish,
    series::SeriesTable,
    version::Versions,
};

/// How often a job is tried beside running flushes.
const ATTEMPTS_UNLOCKED: usize = 3;

/// What compaction works with.
pub(crate) struct Compactor<'a> {
    pub storage: &'a Storage,
    pub journal: &'a Arc<Journal>,
    pub versions: &'a Versions,
    /// Held while the manifest changes.
    pub flush_lock: &'a Mutex<()>,
}

/// A data file with the rows of it that do not count.
pub(crate) struct Input {
    pub file: Arc<DataFile>,
    /// In order.
    pub hidden: Vec<u64>,
}

impl Compactor<'_> {
    /// Does one job; `false` when its files are not there any more, or merging them would make no fewer.
    pub(crate) async fn run(&self, job: &Job) -> Result<bool> {
        for _ in 0..ATTEMPTS_UNLOCKED {
            if let Some(done) = self.attempt(job, None).await? {
                return Ok(done);
            }
        }
        let lock = self.flush_lock.lock().await;
        let done = self.attempt(job, Some(&lock)).await?;
        done.ok_or_else(|| Error::internal("files changed while the flush lock was held"))
    }

    /// As [`Compactor::run`], once; `None` when a flush put deletes on an input meanwhile, which cannot be with the lock held.
    pub(crate) async fn attempt(&self, job: &Job, held: Option<&MutexGuard<'_, ()>>) -> Result<Option<bool>> {
        let manifest = Arc::clone(&self.versions.current().manifest);
        let inputs: Vec<_> =
            manifest.files.iter().filter(|file| job.inputs.contains(&file.id)).cloned().collect();
        if inputs.len() != job.inputs.len() {
            return Ok(Some(false));
        }
        failpoint!("compact.start");
        let new_files = self.rewrite(&inputs, job.level).await?;
        failpoint!("compact.after_put");
        let has_deletes = inputs.iter().any(|file| file.delete.is_some());
        if inputs.len() > 1 && new_files.len() >= inputs.len() && !has_deletes {
            // As many files as before would be merged again and again.
            self.discard(&new_files).await;
            return Ok(Some(false));
        }
        let lock = match held {
            Some(_) => None,
            None => Some(self.flush_lock.lock().await),
        };
        let base = Arc::clone(&self.versions.current().manifest);
        let is_unchanged = |input: &Arc<DataFile>| {
            base.files.iter().any(|file| file.id == input.id && file.delete == input.delete)
        };
        if !inputs.iter().all(is_unchanged) && !seeded_bug!("bug.compaction_ignores_new_deletes") {
            self.discard(&new_files).await;
            return Ok(None);
        }
        let request = CommitRequest {
            message: format!("compaction of {} files of {}", inputs.len(), job.month),
            new_files,
            removed: inputs.iter().map(|file| file.removal()).collect(),
            is_rewrite: true,
            ..CommitRequest::default()
        };
        publish(self.journal, self.versions, &request, &[]).await?;
        failpoint!("compact.after_catalog");
        drop(lock);
        Ok(Some(true))
    }

    async fn rewrite(&self, inputs: &[Arc<DataFile>], level: Level) -> Result<Vec<NewDataFile>> {
        let mut opened = Vec::with_capacity(inputs.len());
        for file in inputs {
            let hidden = deleted_rows(self.storage, file).await?;
            opened.push(Input { file: Arc::clone(file), hidden });
        }
        let (storage, series) = (self.storage.clone(), Arc::clone(&self.versions.series));
        let handle = Handle::current();
        background::run("compaction", move || rewrite_files(&handle, &storage, &series, &opened, level)).await
    }

    /// Deletes files that were never published; what cannot be deleted now is found as an orphan later.
    async fn discard(&self, files: &[NewDataFile]) {
        for file in files {
            let _ = self.storage.delete(&Storage::object_path(&file.stored)).await;
        }
    }
}

/// Writes the live rows of files of one month to new files. Blocks: for background threads.
pub(crate) fn rewrite_files(
    handle: &Handle,
    storage: &Storage,
    series: &Arc<SeriesTable>,
    inputs: &[Input],
    level: Level,
) -> Result<Vec<NewDataFile>> {
    let Some(first) = inputs.first() else { return Ok(Vec::new()) };
    let (month, _) = month_of(first.file.bounds.min_ts)?;
    let mut sources: Vec<Source> = Vec::with_capacity(inputs.len());
    for Input { file, hidden } in inputs {
        sources.push(Box::new(FileScan::open(handle, storage, series, file, hidden)?));
    }
    let mut sink = FileSink::new(handle, storage, series, level, &month);
    merge(sources, never_equal, |key, rows, range| sink.append(key, rows, range))?;
    let files = sink.finish()?;
    let expected: u64 = inputs.iter().map(|input| input.file.rows - input.hidden.len() as u64).sum();
    let written: u64 = files.iter().map(|file| file.rows).sum();
    if written != expected {
        return Err(Error::corrupt(format!(
            "{written} of {expected} live rows came out of a rewrite of {month}"
        )));
    }
    Ok(files)
}
