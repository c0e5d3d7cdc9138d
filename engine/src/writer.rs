//! The writer thread: group commit (WAL-1, WAL-2, WAL-4).
//!
//! It owns the log and is the only one to append to the active memtable, so the order of the log is the order of the
//! memtable. Whatever has queued up while one frame was synced goes into the next.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::sync::{Notify, oneshot, watch};
use wattlake_catalog::{failpoint, seeded_bug};
use wattlake_config::Durability;

use crate::{
    Error, ErrorKind, Result,
    batch::Readings,
    version::Versions,
    wal::{AppendError, Log},
};

/// Bytes of batches in one frame: larger ones would only delay their acknowledgement.
const FRAME_BYTES_MAX: usize = 8 << 20;
/// How soon the log is synced in `fast` mode.
const FAST_SYNC_WITHIN: Duration = Duration::from_millis(100);

/// A batch on its way into the log.
pub(crate) struct PendingWrite {
    pub readings: Readings,
    /// The batch as [`encode_chunk`](crate::wal::encode_chunk) made it.
    pub chunk: Vec<u8>,
    pub ack: oneshot::Sender<Result<()>>,
}

pub(crate) enum Command {
    Write(PendingWrite),
    /// Freezes the active memtable.
    Freeze(oneshot::Sender<()>),
    /// Releases the segments whose frames are all at or below this.
    Release(u64),
}

/// Numbers of the log for status and metrics.
#[derive(Debug, Default)]
pub(crate) struct WriterStats {
    pub last_sequence: AtomicU64,
    pub segment_bytes: AtomicU64,
    pub closed_segments: AtomicU64,
    pub syncs: AtomicU64,
}

/// The handle of the writer thread; dropping the sender ends it.
pub(crate) struct Writer {
    pub sender: Sender<Command>,
    pub stats: Arc<WriterStats>,
    pub thread: JoinHandle<()>,
}

pub(crate) struct WriterOptions {
    pub durability: Durability,
    pub flush_bytes_max: usize,
    /// Woken when a memtable was frozen.
    pub frozen: Arc<Notify>,
    /// Set once when the log is broken.
    pub failed: watch::Sender<Option<Error>>,
}

/// Starts the thread.
pub(crate) fn spawn(log: Log, versions: Arc<Versions>, options: WriterOptions) -> Result<Writer> {
    let (sender, receiver) = channel();
    let stats = Arc::new(WriterStats::default());
    let mut state = State {
        log,
        versions,
        options,
        stats: Arc::clone(&stats),
        unsynced_since: None,
        broken: None,
        group: Vec::new(),
    };
    state.update_stats();
    let thread = std::thread::Builder::new()
        .name("wal-writer".into())
        .spawn(move || state.run(&receiver))
        .map_err(|error| Error::new(ErrorKind::Io, format!("cannot start the writer thread: {error}")))?;
    Ok(Writer { sender, stats, thread })
}

struct State {
    log: Log,
    versions: Arc<Versions>,
    options: WriterOptions,
    stats: Arc<WriterStats>,
    /// When the oldest frame that is not synced yet was written; only in `fast` mode.
    unsynced_since: Option<Instant>,
    broken: Option<Error>,
    group: Vec<PendingWrite>,
}

impl State {
    fn run(&mut self, receiver: &Receiver<Command>) {
        loop {
            let first = match self.unsynced_since {
                None => receiver.recv().ok(),
                Some(since) => {
                    let left = FAST_SYNC_WITHIN.saturating_sub(since.elapsed());
                    match receiver.recv_timeout(left) {
                        Ok(command) => Some(command),
                        Err(RecvTimeoutError::Timeout) => {
                            self.sync();
                            continue;
                        }
                        Err(RecvTimeoutError::Disconnected) => None,
                    }
                }
            };
            let Some(mut command) = first else { break };
            let mut bytes = 0;
            // Takes what has queued up; anything but a write ends the group, so that order is kept.
            loop {
                match command {
                    Command::Write(write) => {
                        bytes += write.chunk.len();
                        self.group.push(write);
                    }
                    other => {
                        self.commit_group();
                        self.handle(other);
                        bytes = 0;
                    }
                }
                if bytes >= FRAME_BYTES_MAX {
                    break;
                }
                match receiver.try_recv() {
                    Ok(next) => command = next,
                    Err(_) => break,
                }
            }
            self.commit_group();
            if self.unsynced_since.is_some_and(|since| since.elapsed() >= FAST_SYNC_WITHIN) {
                self.sync();
            }
        }
        self.sync();
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Write(write) => self.group.push(write),
            Command::Freeze(reply) => {
                self.sync();
                self.freeze();
                let _ = reply.send(());
            }
            Command::Release(watermark) => {
                if let Err(error) = self.log.release_through(watermark) {
                    // They are released after the next flush or at the next start.
                    tracing::warn!(%error, "log segments could not be released");
                }
                self.update_stats();
            }
        }
    }

    /// Appends and syncs one frame, applies it, and acknowledges its batches.
    fn commit_group(&mut self) {
        if self.group.is_empty() {
            return;
        }
        let mut group = std::mem::take(&mut self.group);
        let chunks: Vec<_> = group.iter_mut().map(|write| std::mem::take(&mut write.chunk)).collect();
        let outcome = self.append(&chunks);
        failpoint!("wal.after_sync_before_ack");
        for write in group.drain(..) {
            if outcome.is_ok() {
                self.versions.current().active.apply(write.readings);
                failpoint!("memtable.after_apply");
            }
            // Nobody waits any more when the client has gone; the rows are stored all the same.
            let _ = write.ack.send(outcome.clone());
        }
        self.group = group;
        if self.versions.current().active.bytes() >= self.options.flush_bytes_max {
            self.sync();
            self.freeze();
        }
        self.update_stats();
    }

    fn append(&mut self, chunks: &[Vec<u8>]) -> Result<()> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        match self.log.append(chunks) {
            Ok(_) => {}
            Err(AppendError::Refused(error)) => return Err(error),
            Err(AppendError::Broken(error)) => return Err(self.break_off(error)),
        }
        self.unsynced_since.get_or_insert_with(Instant::now);
        match self.options.durability {
            Durability::Fast => Ok(()),
            Durability::Durable if seeded_bug!("bug.ack_before_sync") => Ok(()),
            Durability::Durable => {
                self.sync();
                self.broken.clone().map_or(Ok(()), Err)
            }
        }
    }

    fn sync(&mut self) {
        if self.unsynced_since.is_none() || self.broken.is_some() {
            return;
        }
        let started = Instant::now();
        match self.log.sync() {
            Ok(()) => {
                self.unsynced_since = None;
                self.stats.syncs.fetch_add(1, Ordering::Relaxed);
                metrics::histogram!("wattlake_wal_sync_seconds").record(started.elapsed());
            }
            Err(error) => {
                self.break_off(error);
            }
        }
    }

    /// WAL-4: from here on nothing is acknowledged; the process ends and recovers by replay.
    fn break_off(&mut self, error: Error) -> Error {
        let message = format!("{error}; the log is closed, readings not yet acknowledged are refused");
        let error = Error::new(ErrorKind::Io, message);
        tracing::error!(%error, "write-ahead log failed");
        self.broken = Some(error.clone());
        self.options.failed.send_replace(Some(error.clone()));
        error
    }

    fn freeze(&mut self) {
        self.log.rotate();
        self.versions.freeze(self.log.last_sequence());
        self.options.frozen.notify_one();
        self.update_stats();
    }

    fn update_stats(&self) {
        let (segment_bytes, closed) = self.log.size();
        self.stats.last_sequence.store(self.log.last_sequence(), Ordering::Relaxed);
        self.stats.segment_bytes.store(segment_bytes, Ordering::Relaxed);
        self.stats.closed_segments.store(closed as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
