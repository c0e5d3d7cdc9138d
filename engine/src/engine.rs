//! [`Engine`]: starting, writing, flushing, reading, stopping.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::tz::TimeZone;
use parking_lot::Mutex as SyncMutex;
use serde::Serialize;
use tokio::sync::{Mutex, Notify, oneshot, watch};
use wattlake_catalog::{Catalog, Progress, SnapshotAt, SnapshotId, failpoint, seeded_bug};
use wattlake_config::Settings;

use crate::{
    Batch, Clock, DataDir, Error, ErrorKind, MetricRegistry, ReadView, Result, Storage,
    batch::Readings,
    flush::Flusher,
    ingest::LineCache,
    journal::Journal,
    maintenance::{MaintenanceOptions, MaintenanceState},
    meaning::MeaningSource,
    recovery::Replay,
    series::SeriesTable,
    version::{HotView, Versions},
    wal::{DiskFiles, Log, encode_chunk},
    writer::{self, Command, PendingWrite, Writer, WriterOptions, WriterStats},
};

/// Longest wait between two attempts of a failing flush.
const FLUSH_RETRY_MAX: Duration = Duration::from_secs(30);

/// How often the spool is looked at.
const UPLOAD_RETRY: Duration = Duration::from_millis(500);

/// The storage engine of one data directory.
pub struct Engine {
    settings: Settings,
    clock: Clock,
    metrics: MetricRegistry,
    catalog: Arc<Catalog>,
    journal: Arc<Journal>,
    storage: Storage,
    versions: Arc<Versions>,
    line_cache: LineCache,
    flusher: Flusher,
    /// Held while frozen memtables are written out.
    flush_lock: Mutex<()>,
    writer: SyncMutex<Option<Writer>>,
    stats: Arc<WriterStats>,
    inflight_bytes: AtomicUsize,
    is_stopping: AtomicBool,
    frozen: Arc<Notify>,
    failed: watch::Receiver<Option<Error>>,
    last_flush_error: SyncMutex<Option<String>>,
    maintenance: MaintenanceState,
    /// When the Delta table was last written; held while it is.
    delta: Mutex<Option<Instant>>,
    background: SyncMutex<Vec<tokio::task::JoinHandle<()>>>,
    _data_dir: DataDir,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

/// Numbers for `/api/status`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EngineStatus {
    pub snapshot_id: i64,
    pub data_files: usize,
    pub delete_files: usize,
    pub archive_rows: u64,
    pub archive_bytes: u64,
    pub memory_rows: usize,
    pub memory_bytes: usize,
    pub memory_budget_bytes: u64,
    pub frozen_memtables: usize,
    pub series_seen: usize,
    pub wal_sequence: u64,
    pub wal_segments: u64,
    pub wal_syncs: u64,
    pub last_flush_error: Option<String>,
    /// Bytes of files that the object store did not take yet.
    pub spooled_bytes: u64,
}

impl Engine {
    /// Recovers the log and starts writing and flushing.
    ///
    /// # Errors
    /// Damage of the log (WAL-3) or of the catalog; an unreadable data directory.
    pub async fn start(
        settings: &Settings,
        data_dir: DataDir,
        storage: Storage,
        catalog: Arc<Catalog>,
        clock: Clock,
    ) -> Result<Arc<Self>> {
        Self::start_with(settings, data_dir, storage, catalog, clock, None).await
    }

    /// As [`Engine::start`], but a damaged log does not stop it: what is whole is replayed, and damaged segments are copied
    /// to `wal-quarantine/` in the data directory. Answers what was wrong, in words.
    pub async fn repair(
        settings: &Settings,
        data_dir: DataDir,
        storage: Storage,
        catalog: Arc<Catalog>,
        clock: Clock,
    ) -> Result<(Arc<Self>, Vec<String>)> {
        let damage = Arc::new(SyncMutex::new(Vec::new()));
        let engine =
            Self::start_with(settings, data_dir, storage, catalog, clock, Some(Arc::clone(&damage))).await?;
        let damage = std::mem::take(&mut *damage.lock());
        Ok((engine, damage))
    }

    async fn start_with(
        settings: &Settings,
        data_dir: DataDir,
        storage: Storage,
        catalog: Arc<Catalog>,
        clock: Clock,
        damage: Option<Arc<SyncMutex<Vec<String>>>>,
    ) -> Result<Arc<Self>> {
        crate::bulk::resume::forget_old(settings, &clock);
        let unfinished = storage.remove_unfinished()?;
        let watermark = catalog.wal_checkpoint().await?;
        let manifest = catalog.manifest(SnapshotAt::Latest).await?;
        let journal = Arc::new(Journal::new(storage.clone(), Arc::clone(&catalog)));
        journal.check(&manifest).await?;
        let metrics = MetricRegistry::new(&settings.metrics);
        let series = Arc::new(SeriesTable::new(MeaningSource {
            catalog: Arc::clone(&catalog),
            metrics: metrics.clone(),
            default_zone: TimeZone::get(&settings.time_zone.0).unwrap_or(TimeZone::UTC),
        }));
        let versions = Arc::new(Versions::new(manifest, Arc::clone(&series)));
        let wal_dir = data_dir.wal()?;
        let flush_bytes_max = settings.flush.max_bytes.as_usize();
        let replay = Replay {
            wal_dir: wal_dir.clone(),
            quarantine: data_dir.path().join("wal-quarantine"),
            watermark,
            versions: Arc::clone(&versions),
            flush_bytes_max,
            damage,
        };
        let recovered = tokio::task::spawn_blocking(move || replay.run())
            .await
            .map_err(|error| Error::internal(format!("recovery panicked: {error}")))??;
        tracing::info!(
            frames = recovered.replayed_frames,
            torn_bytes = recovered.torn_bytes,
            unfinished_files = unfinished,
            snapshot = versions.current().manifest.snapshot.0,
            "recovered"
        );
        failpoint!("recover.after_replay");
        let log = Log::new(&wal_dir, Box::new(DiskFiles), settings.wal.segment_bytes.0, recovered);
        let frozen = Arc::new(Notify::new());
        let (failed_sender, failed) = watch::channel(None);
        let writer = writer::spawn(
            log,
            Arc::clone(&versions),
            WriterOptions {
                durability: settings.wal.durability,
                flush_bytes_max,
                frozen: Arc::clone(&frozen),
                failed: failed_sender,
            },
        )?;
        let flusher = Flusher {
            storage: storage.clone(),
            journal: Arc::clone(&journal),
            versions: Arc::clone(&versions),
        };
        let maintenance = MaintenanceState::new(catalog.clock_seen().await?, clock.now_micros());
        let engine = Arc::new(Self {
            settings: settings.clone(),
            clock,
            metrics,
            catalog,
            journal,
            storage,
            versions,
            line_cache: LineCache::default(),
            flusher,
            flush_lock: Mutex::new(()),
            stats: Arc::clone(&writer.stats),
            writer: SyncMutex::new(Some(writer)),
            inflight_bytes: AtomicUsize::new(0),
            is_stopping: AtomicBool::new(false),
            frozen,
            failed,
            last_flush_error: SyncMutex::new(None),
            maintenance,
            delta: Mutex::new(None),
            background: SyncMutex::default(),
            _data_dir: data_dir,
        });
        *engine.background.lock() = vec![
            tokio::spawn(Arc::clone(&engine).flush_loop()),
            tokio::spawn(Arc::clone(&engine).maintenance_loop()),
            tokio::spawn(Arc::clone(&engine).upload_loop()),
        ];
        Ok(engine)
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    pub fn metrics(&self) -> &MetricRegistry {
        &self.metrics
    }

    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    pub(crate) fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    pub(crate) fn series(&self) -> &SeriesTable {
        &self.versions.series
    }

    pub(crate) fn versions(&self) -> &Versions {
        &self.versions
    }

    /// Held while the manifest changes.
    pub(crate) fn flush_lock(&self) -> &Mutex<()> {
        &self.flush_lock
    }

    pub(crate) fn delta_turn(&self) -> &Mutex<Option<Instant>> {
        &self.delta
    }

    pub(crate) fn maintenance(&self) -> &MaintenanceState {
        &self.maintenance
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    pub(crate) fn line_cache(&self) -> &LineCache {
        &self.line_cache
    }

    /// Set once when the log is broken: the process must end and recover by replay (WAL-4).
    pub fn failed(&self) -> watch::Receiver<Option<Error>> {
        self.failed.clone()
    }

    /// Stores a batch; on `Ok` it is durable (WAL-1) and visible to every later query.
    ///
    /// # Errors
    /// [`ErrorKind::Overloaded`] when memory is full, [`ErrorKind::StorageFull`] when the disk is; nothing of the batch
    /// is stored then.
    ///
    /// # Cancel safety
    /// Once queued the batch is stored even if nobody waits for the answer.
    pub async fn write(&self, batch: Batch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let readings = batch.into_readings(&self.versions.series);
        self.write_prepared(self.prepare(readings)).await
    }

    /// Does what can be done before the log is asked: encoding and compressing.
    pub(crate) fn prepare(&self, readings: Readings) -> PreparedWrite {
        let chunk = encode_chunk(|out| readings.encode(&self.versions.series, out));
        PreparedWrite { readings, chunk }
    }

    /// As [`Engine::write`].
    pub(crate) async fn write_prepared(&self, write: PreparedWrite) -> Result<()> {
        let PreparedWrite { readings, chunk } = write;
        if self.is_stopping() {
            return Err(Error::new(ErrorKind::Unavailable, "the server is stopping"));
        }
        let bytes = readings.memory_bytes();
        let _reservation = self.reserve(bytes)?;
        let rows = readings.len() as u64;
        let (ack, answer) = oneshot::channel();
        self.send(Command::Write(PendingWrite { readings, chunk, ack }))?;
        answer.await.map_err(|_| Error::internal("the writer thread ended"))??;
        metrics::counter!("wattlake_readings_stored_total").increment(rows);
        Ok(())
    }

    /// The newest state of everything that makes progress, by key.
    pub async fn progress(&self) -> Result<BTreeMap<String, String>> {
        // Before the catalog is asked: what is flushed meanwhile is in one of them.
        let version = self.versions.current();
        let published = self.catalog.progress().await?;
        let mut states: BTreeMap<_, _> = published.into_iter().map(|one| (one.key, one.state)).collect();
        let memtables = version.frozen.iter().map(|frozen| &frozen.memtable).chain([&version.active]);
        for Progress { key, state } in memtables.flat_map(|memtable| memtable.progress()) {
            states.insert(key, state);
        }
        states.retain(|_, state| !state.is_empty());
        Ok(states)
    }

    fn reserve(&self, bytes: usize) -> Result<Reservation<'_>> {
        let inflight = self.inflight_bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let reservation = Reservation { inflight: &self.inflight_bytes, bytes };
        let budget = self.settings.memory.budget;
        let used = self.versions.hot_bytes() + inflight;
        if used > budget.as_usize() {
            metrics::counter!("wattlake_writes_refused_total", "reason" => "memory").increment(1);
            self.frozen.notify_one();
            return Err(Error::new(
                ErrorKind::Overloaded,
                format!("memory.budget of {budget} is in use while readings wait to be flushed; try again"),
            ));
        }
        Ok(reservation)
    }

    fn send(&self, command: Command) -> Result<()> {
        let writer = self.writer.lock();
        let writer =
            writer.as_ref().ok_or_else(|| Error::new(ErrorKind::Unavailable, "the server is stopping"))?;
        writer.sender.send(command).map_err(|_| Error::internal("the writer thread ended"))
    }

    /// Writes out everything that was acknowledged before the call and answers the snapshot that holds it.
    pub async fn flush(self: &Arc<Self>) -> Result<SnapshotId> {
        let engine = Arc::clone(self);
        // Owned, so that a caller that stops waiting does not tear it.
        tokio::spawn(async move { engine.flush_now().await })
            .await
            .map_err(|error| Error::internal(format!("the flush panicked: {error}")))?
    }

    async fn flush_now(&self) -> Result<SnapshotId> {
        let (reply, frozen) = oneshot::channel();
        self.send(Command::Freeze(reply))?;
        frozen.await.map_err(|_| Error::internal("the writer thread ended"))?;
        self.flush_frozen().await?;
        Ok(self.versions.current().manifest.snapshot)
    }

    async fn flush_frozen(&self) -> Result<()> {
        let _guard = self.flush_lock.lock().await;
        let started = Instant::now();
        loop {
            if seeded_bug!("bug.log_released_before_commit") {
                self.send(Command::Release(u64::MAX))?;
            }
            let outcome = self.flusher.flush_oldest().await;
            *self.last_flush_error.lock() = outcome.as_ref().err().map(ToString::to_string);
            match outcome? {
                None => return Ok(()),
                Some((snapshot, sequence)) => {
                    metrics::counter!("wattlake_flushes_total").increment(1);
                    metrics::histogram!("wattlake_flush_seconds").record(started.elapsed());
                    tracing::debug!(snapshot = snapshot.0, sequence, "flushed");
                    self.send(Command::Release(sequence))?;
                }
            }
        }
    }

    /// Flushes by age and whenever a memtable was frozen; a failing flush is tried again, ever more slowly.
    async fn flush_loop(self: Arc<Self>) {
        let interval = self.settings.flush.interval.0;
        let tick = (interval / 4).clamp(Duration::from_millis(20), Duration::from_secs(1));
        let mut retry = tick;
        while !self.is_stopping() {
            let _ = tokio::time::timeout(tick, self.frozen.notified()).await;
            let version = self.versions.current();
            let is_due = !version.active.is_empty() && version.active.age() >= interval;
            if !is_due && version.frozen.is_empty() {
                continue;
            }
            let outcome = if is_due { self.flush().await.map(drop) } else { self.flush_frozen().await };
            match outcome {
                Ok(()) => retry = tick,
                Err(_) if self.is_stopping() => {}
                Err(error) => {
                    metrics::counter!("wattlake_flush_failures_total").increment(1);
                    tracing::error!(%error, retry_in = ?retry, "flush failed; readings stay in the log and in memory");
                    tokio::time::sleep(retry).await;
                    retry = (retry * 2).min(FLUSH_RETRY_MAX);
                }
            }
        }
    }

    /// Uploads what an object store did not take, again and again.
    async fn upload_loop(self: Arc<Self>) {
        while !self.is_stopping() {
            tokio::time::sleep(UPLOAD_RETRY).await;
            let waiting = self.storage.spooled_bytes();
            metrics::gauge!("wattlake_spool_bytes").set(waiting as f64);
            if waiting > 0
                && let Err(error) = self.storage.upload_spooled().await
            {
                tracing::debug!(%error, "the spool waits");
            }
        }
    }

    /// Does what maintenance is due, now and then; what fails is tried again in the next round.
    async fn maintenance_loop(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.settings.compaction.interval.0).await;
            if self.is_stopping() {
                return;
            }
            if let Err(error) = self.maintain(MaintenanceOptions::default()).await {
                metrics::counter!("wattlake_maintenance_failures_total").increment(1);
                tracing::error!(%error, "maintenance failed; it is tried again");
            }
        }
    }

    async fn stop_background(&self) {
        let background = std::mem::take(&mut *self.background.lock());
        for task in background {
            task.abort();
            let _ = task.await;
        }
    }

    /// Flushes, then stops the writer thread; afterwards every write is refused.
    ///
    /// # Errors
    /// When the last flush failed; what it would have written is still in the log.
    pub async fn stop(self: &Arc<Self>) -> Result<()> {
        let flushed = self.flush().await;
        self.is_stopping.store(true, Ordering::Release);
        self.stop_background().await;
        let last = self.flush().await;
        if let Err(error) = self.journal.save_fleet().await {
            tracing::warn!(%error, "the fleet was not written to the journal");
        }
        let writer = self.writer.lock().take();
        if let Some(Writer { sender, thread, .. }) = writer {
            drop(sender);
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                return Err(Error::internal("the writer thread panicked"));
            }
        }
        flushed.and(last).map(drop)
    }

    /// Ends as a kill would: no flush, nothing more is written.
    #[cfg(test)]
    pub(crate) async fn abandon(&self) {
        self.is_stopping.store(true, Ordering::Release);
        self.stop_background().await;
        let writer = self.writer.lock().take();
        if let Some(Writer { sender, thread, .. }) = writer {
            drop(sender);
            thread.join().expect("writer thread");
        }
        self.catalog.close().await;
    }

    /// The newest state: all committed files and every acknowledged reading.
    pub fn read_view(&self) -> ReadView {
        let version = self.versions.current();
        ReadView {
            manifest: Arc::clone(&version.manifest),
            hot: HotView::new(&version, &self.versions.series),
            versions: Arc::clone(&self.versions),
            storage: self.storage.clone(),
        }
    }

    /// The files of an earlier snapshot; readings that were then only in memory are not in it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when no such snapshot is kept.
    pub async fn read_view_at(&self, at: SnapshotAt) -> Result<ReadView> {
        let manifest = self.catalog.manifest(at).await?;
        Ok(ReadView {
            manifest: Arc::new(manifest),
            hot: HotView::empty(&self.versions.series),
            versions: Arc::clone(&self.versions),
            storage: self.storage.clone(),
        })
    }

    pub fn status(&self) -> EngineStatus {
        let version = self.versions.current();
        let manifest = &version.manifest;
        EngineStatus {
            snapshot_id: manifest.snapshot.0,
            data_files: manifest.files.len(),
            delete_files: manifest.files.iter().filter(|file| file.delete.is_some()).count(),
            archive_rows: manifest.live_rows(),
            archive_bytes: manifest.files.iter().map(|file| file.stored.bytes).sum(),
            memory_rows: version.active.rows()
                + version.frozen.iter().map(|frozen| frozen.memtable.rows()).sum::<usize>(),
            memory_bytes: self.versions.hot_bytes(),
            memory_budget_bytes: self.settings.memory.budget.0,
            frozen_memtables: version.frozen.len(),
            series_seen: self.versions.series.len(),
            wal_sequence: self.stats.last_sequence.load(Ordering::Relaxed),
            wal_segments: self.stats.closed_segments.load(Ordering::Relaxed)
                + u64::from(self.stats.segment_bytes.load(Ordering::Relaxed) > 0),
            wal_syncs: self.stats.syncs.load(Ordering::Relaxed),
            last_flush_error: self.last_flush_error.lock().clone(),
            spooled_bytes: self.storage.spooled_bytes(),
        }
    }
}

/// A batch that is ready for the log.
pub(crate) struct PreparedWrite {
    readings: Readings,
    chunk: Vec<u8>,
}

/// Memory promised to a batch until it is applied.
struct Reservation<'a> {
    inflight: &'a AtomicUsize,
    bytes: usize,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.inflight.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}
