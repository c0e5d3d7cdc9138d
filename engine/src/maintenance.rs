//! What keeps the archive small and fast beside ingest: compaction, retention, expiry of snapshots, the sweep of objects
//! that nobody names, and the search for orphans.
//!
//! A round does what is due; every part can be asked what it would do. Deletions by time wait when the wall clock jumped
//! ([`clock_guard`]).

mod clock_guard;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use parking_lot::Mutex as SyncMutex;
use serde::Serialize;
use tokio::sync::{Mutex, MutexGuard};
use wattlake_catalog::{CommitRequest, EntityId, Fleet, SiteId, failpoint};
use wattlake_config::RetentionRule;

pub(crate) use clock_guard::ClockGuard;

use crate::{
    Engine, Result, RowFilter,
    changes::Changes,
    compaction::{Compactor, plan},
    publish::publish,
};

/// How often deletions by time are looked for.
const DELETIONS_EVERY: Duration = Duration::from_secs(3600);
/// Objects that nobody names are left alone for so long: they may be uploads in flight.
const ORPHAN_AGE: i64 = 24 * 3600 * 1_000_000;
/// Passes over the files in a round: so many, and one more for every few files, since a merge takes in only some.
const PASSES_MIN: usize = 4;
const FILES_PER_PASS: usize = 8;
/// Share of the files that retention may change in one round, in a hundred, and files that it always may.
const RETENTION_PERCENT: usize = 5;
const RETENTION_FILES: usize = 8;

/// What a round is asked to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MaintenanceOptions {
    /// Compacts every month as if it were over, and looks for deletions now.
    pub everything: bool,
    /// Says what would be done and does nothing.
    pub is_dry_run: bool,
    /// Goes on although the clock jumped, and without a limit of files.
    pub is_forced: bool,
}

/// What a round did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MaintenanceReport {
    /// Merges of files, and how many files they took in.
    pub compactions: usize,
    pub compacted_files: usize,
    /// Rows past their retention; in a dry run the rows of the files that may hold such rows.
    pub retention_files: usize,
    pub retention_rows: u64,
    pub expired_snapshots: usize,
    pub expired_files: usize,
    /// Objects of expired files whose grace was over.
    pub swept_objects: usize,
    /// Objects that no snapshot names and that are older than a day.
    pub orphans: usize,
    /// Why nothing was deleted by time, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletions_paused: Option<String>,
}

/// What maintenance remembers between rounds.
#[derive(Debug)]
pub(crate) struct MaintenanceState {
    /// One round at a time.
    turn: Mutex<()>,
    guard: SyncMutex<ClockGuard>,
    started: Instant,
    deletions_at: SyncMutex<Option<Instant>>,
}

impl MaintenanceState {
    pub(crate) fn new(seen: i64, wall: i64) -> Self {
        Self {
            turn: Mutex::new(()),
            guard: SyncMutex::new(ClockGuard::new(seen, wall, Duration::ZERO)),
            started: Instant::now(),
            deletions_at: SyncMutex::new(None),
        }
    }

    fn deletions_are_due(&self) -> bool {
        self.deletions_at.lock().is_none_or(|at| at.elapsed() >= DELETIONS_EVERY)
    }
}

impl Engine {
    /// Keeps maintenance from starting for as long as the answer lives.
    pub(crate) async fn maintenance_pause(&self) -> MutexGuard<'_, ()> {
        self.maintenance().turn.lock().await
    }

    /// One round of maintenance.
    ///
    /// # Errors
    /// Of the first part that failed; what was done before it stays done.
    pub async fn maintain(&self, options: MaintenanceOptions) -> Result<MaintenanceReport> {
        let state = self.maintenance();
        let _turn = state.turn.lock().await;
        let mut report = MaintenanceReport::default();
        let now = self.clock().now_micros();
        if !options.is_dry_run {
            self.journal().begin_if_missing().await?;
            self.journal().save_fleet().await?;
        }
        self.compact(now, options, &mut report).await?;
        if options.everything || options.is_dry_run || options.is_forced || state.deletions_are_due() {
            let paused = {
                let mut guard = state.guard.lock();
                if options.is_forced {
                    guard.force();
                }
                guard.tick(now, state.started.elapsed())
            };
            match paused {
                Some(reason) => {
                    tracing::error!(reason, "deletions by time are paused");
                    metrics::gauge!("wattlake_deletions_paused").set(1.0);
                    report.deletions_paused = Some(reason);
                }
                None => {
                    metrics::gauge!("wattlake_deletions_paused").set(0.0);
                    self.apply_retention(now, options, &mut report).await?;
                    self.forget_snapshots(now, options, &mut report).await?;
                    self.sweep(now, options, &mut report).await?;
                    self.collect_orphans(now, options, &mut report).await?;
                }
            }
            if !options.is_dry_run {
                self.catalog().note_clock(now).await?;
                *state.deletions_at.lock() = Some(Instant::now());
            }
        }
        if !options.is_dry_run {
            self.export_delta_if_due().await?;
        }
        Ok(report)
    }

    /// Compacts what is due, until nothing is, or as often as the files of before can need: under many corrections there is always
    /// something.
    async fn compact(
        &self,
        now: i64,
        options: MaintenanceOptions,
        report: &mut MaintenanceReport,
    ) -> Result<()> {
        let compactor = Compactor {
            storage: self.storage(),
            journal: self.journal(),
            versions: self.versions(),
            flush_lock: self.flush_lock(),
        };
        let passes = PASSES_MIN + self.versions().current().manifest.files.len() / FILES_PER_PASS;
        for _ in 0..passes {
            let jobs = plan(&self.versions().current().manifest.files, now, options.everything)?;
            let mut has_progress = false;
            for job in &jobs {
                if self.is_stopping() {
                    return Ok(());
                }
                if options.is_dry_run || compactor.run(job).await? {
                    has_progress = true;
                    report.compactions += 1;
                    report.compacted_files += job.inputs.len();
                    metrics::counter!("wattlake_compactions_total").increment(1);
                }
            }
            if options.is_dry_run || !has_progress {
                break;
            }
        }
        Ok(())
    }

    async fn apply_retention(
        &self,
        now: i64,
        options: MaintenanceOptions,
        report: &mut MaintenanceReport,
    ) -> Result<()> {
        let fleet = self.catalog().fleet();
        for rule in &self.settings().retention {
            let Some(filter) = retention_filter(rule, &fleet, now) else { continue };
            let files = self.versions().current().manifest.files.clone();
            if options.is_dry_run {
                let (files, rows) = Changes::estimate(&files, &filter);
                report.retention_files += files;
                report.retention_rows += rows;
                continue;
            }
            let files_max = match options.is_forced {
                true => usize::MAX,
                false => (files.len() * RETENTION_PERCENT / 100).max(RETENTION_FILES),
            };
            let name = format!("retention of {}", rule.keep);
            let changed = self.delete_filtered(Arc::new(filter), files_max, &name).await?;
            report.retention_files += changed.files;
            report.retention_rows += changed.rows;
        }
        Ok(())
    }

    async fn forget_snapshots(
        &self,
        now: i64,
        options: MaintenanceOptions,
        report: &mut MaintenanceReport,
    ) -> Result<()> {
        let keep = i64::try_from(self.settings().snapshots.keep.0.as_micros()).unwrap_or(i64::MAX);
        let before = Timestamp::from_microsecond(now.saturating_sub(keep)).unwrap_or(Timestamp::MIN);
        let (catalog, is_dry_run) = (Arc::clone(self.catalog()), options.is_dry_run);
        let now = Timestamp::from_microsecond(now).unwrap_or_default();
        // Owned, so that a transaction is never torn.
        let expired = tokio::spawn(async move { catalog.expire(before, now, is_dry_run).await })
            .await
            .map_err(|error| crate::Error::internal(format!("expiry panicked: {error}")))??;
        failpoint!("gc.after_mark");
        report.expired_snapshots = expired.snapshots;
        report.expired_files = expired.data_files + expired.delete_files;
        Ok(())
    }

    /// Deletes the objects of expired files whose grace is over (MAN-4).
    async fn sweep(
        &self,
        now: i64,
        options: MaintenanceOptions,
        report: &mut MaintenanceReport,
    ) -> Result<()> {
        let grace = i64::try_from(self.settings().snapshots.grace.0.as_micros()).unwrap_or(i64::MAX);
        let mut deleted = Vec::new();
        for object in self.catalog().scheduled_objects().await? {
            if object.since.as_microsecond().saturating_add(grace) > now {
                continue;
            }
            report.swept_objects += 1;
            if !options.is_dry_run {
                failpoint!("gc.before_delete");
                self.storage().delete(&object_store::path::Path::from(object.path.as_str())).await?;
                failpoint!("gc.after_delete");
                deleted.push(object.path);
            }
        }
        if deleted.is_empty() {
            return Ok(());
        }
        Ok(self.catalog().forget_scheduled(&deleted).await?)
    }

    /// Deletes old objects that no snapshot ever named: what a crash left between writing and committing.
    async fn collect_orphans(
        &self,
        now: i64,
        options: MaintenanceOptions,
        report: &mut MaintenanceReport,
    ) -> Result<()> {
        // The list first: what is committed after it is in the catalog when that is read.
        let objects = self.storage().list().await?;
        let known = self.catalog().known_objects().await?;
        for object in objects {
            let age = now.saturating_sub(object.last_modified.timestamp_micros());
            let is_ours = object.location.as_ref().ends_with(".parquet");
            if !is_ours || age < ORPHAN_AGE || known.contains(object.location.as_ref()) {
                continue;
            }
            report.orphans += 1;
            if !options.is_dry_run {
                tracing::info!(path = %object.location, "deleting an object that no snapshot names");
                self.storage().delete(&object.location).await?;
            }
        }
        Ok(())
    }

    /// Deletes the rows of a filter that were acknowledged before the call, durably; answers how many there were.
    ///
    /// Rows in memory are written out first. Readings of the same keys that arrive later count as new ones.
    pub async fn delete_rows(self: &Arc<Self>, filter: RowFilter) -> Result<u64> {
        self.flush().await?;
        let engine = Arc::clone(self);
        // Owned, so that a caller that stops waiting does not tear it.
        let deleted =
            tokio::spawn(async move { engine.delete_filtered(Arc::new(filter), usize::MAX, "delete").await });
        let deleted = deleted
            .await
            .map_err(|error| crate::Error::internal(format!("the delete panicked: {error}")))??;
        Ok(deleted.rows)
    }

    async fn delete_filtered(
        &self,
        filter: Arc<RowFilter>,
        files_max: usize,
        message: &str,
    ) -> Result<Deleted> {
        let _guard = self.flush_lock().lock().await;
        let base = Arc::clone(&self.versions().current().manifest);
        let series = &self.versions().series;
        let changes = Changes::of_filter(self.storage(), series, &base.files, &filter, files_max).await?;
        let deleted =
            Deleted { rows: changes.rows, files: changes.new_deletes.len() + changes.removed.len() };
        if changes.is_empty() {
            return Ok(deleted);
        }
        let request = CommitRequest {
            new_files: changes.new_files,
            new_deletes: changes.new_deletes,
            removed: changes.removed,
            message: message.to_owned(),
            ..CommitRequest::default()
        };
        failpoint!("delete.before_catalog");
        publish(self.journal(), self.versions(), &request, &[]).await?;
        failpoint!("delete.after_catalog");
        Ok(deleted)
    }
}

/// What a deletion did.
struct Deleted {
    rows: u64,
    files: usize,
}

/// The rows that a rule is done with; `None` when nothing can be (a site that is not there).
fn retention_filter(rule: &RetentionRule, fleet: &Fleet, now: i64) -> Option<RowFilter> {
    let keep = i64::try_from(rule.keep.0.as_micros()).unwrap_or(i64::MAX);
    let entities = match rule.site.as_str() {
        "" => None,
        site => {
            let id = match site.parse::<SiteId>() {
                Ok(id) => fleet.site(id)?.id,
                Err(_) => fleet.sites().find(|known| known.name == site)?.id,
            };
            let meters = fleet.site_meters(id);
            let sources = meters.iter().flat_map(|meter| fleet.sources_of(*meter));
            Some(meters.iter().chain(sources).copied().collect::<BTreeSet<EntityId>>())
        }
    };
    let metric = (!rule.metric.is_empty()).then(|| rule.metric.clone());
    Some(RowFilter { entities, metric, from: i64::MIN, to: now.saturating_sub(keep) })
}
