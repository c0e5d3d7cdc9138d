//! The journal: what every commit changes, kept beside the files, so that a lost catalog can be rebuilt from the storage alone.
//!
//! A record is written before the catalog is asked. A commit that then fails leaves a record too, which the next one replaces:
//! it is for the same snapshot. Only the last record can be one that was never committed, and what it says is as true: its files
//! are there, and hold what the log or the files before them hold. Every now and then a record holds the whole state; older
//! ones are deleted then.
//!
//! Objects: `journal/<number>.json` (a change), `journal/<number>.state.json` (all files), `journal/fleet.json` (sites, meters and
//! energy sources). Each is a line of JSON and a line with its BLAKE3.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use parking_lot::Mutex as SyncMutex;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::Mutex;
use wattlake_catalog::{
    Catalog, CommitRequest, Fleet, FleetCopy, Manifest, NewDataFile, SnapshotAt, StoredDelete, failpoint,
};

use crate::{Error, ErrorKind, Result, Storage};

const FOLDER: &str = "journal";
const FLEET: &str = "journal/fleet.json";
const STATE_SUFFIX: &str = ".state.json";
const CHANGE_SUFFIX: &str = ".json";
/// Changes between two states: as many, and one more for so many files, so that states stay a small part of all.
const CHANGES_MIN: usize = 64;
const FILES_PER_CHANGE: usize = 64;
/// A start does not wait longer for a storage that does not answer.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// What a commit did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Record {
    /// The snapshot that the commit makes.
    snapshot: i64,
    at: Timestamp,
    message: String,
    /// Everything in the write-ahead log up to this number is in the files; `None` in a change that did not move it.
    wal_sequence: Option<u64>,
    content: Content,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Content {
    /// All live files.
    State(Vec<NewDataFile>),
    /// On top of the record before. Paths are relative to the table.
    #[serde(rename_all = "camelCase")]
    Change { added: Vec<NewDataFile>, removed: Vec<String>, deletes: BTreeMap<String, StoredDelete> },
}

/// The live files by path, as the journal tells.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Replayed {
    pub files: BTreeMap<String, NewDataFile>,
    pub snapshot: i64,
    pub wal_sequence: u64,
}

impl Replayed {
    /// What the journal would tell of a manifest.
    pub(crate) fn of(manifest: &Manifest, wal_sequence: u64) -> Self {
        let files = state_after(manifest, &CommitRequest::default());
        let files = files.into_iter().map(|file| (file.stored.path.clone(), file)).collect();
        Self { files, snapshot: manifest.snapshot.0, wal_sequence }
    }

    /// Paths of all files and delete files, relative to the storage's root.
    pub(crate) fn objects(&self) -> Vec<String> {
        self.paths().map(Storage::root_path).collect()
    }

    fn paths(&self) -> impl Iterator<Item = &str> {
        let deletes = self.files.values().filter_map(|file| file.delete.as_ref());
        self.files.keys().map(String::as_str).chain(deletes.map(|delete| delete.stored.path.as_str()))
    }

    fn apply(&mut self, record: &Record) {
        self.snapshot = record.snapshot;
        self.wal_sequence = record.wal_sequence.unwrap_or(self.wal_sequence);
        let by_path = |file: &NewDataFile| (file.stored.path.clone(), file.clone());
        match &record.content {
            Content::State(files) => self.files = files.iter().map(by_path).collect(),
            Content::Change { added, removed, deletes } => {
                self.files.retain(|path, _| !removed.contains(path));
                self.files.extend(added.iter().map(by_path));
                for (path, delete) in deletes {
                    if let Some(file) = self.files.get_mut(path) {
                        file.delete = Some(delete.clone());
                    }
                }
            }
        }
    }

    /// Files and delete files that are not among the objects of the storage, relative to the table.
    pub(crate) fn missing(&self, present: &HashSet<String>) -> Vec<String> {
        self.paths().filter(|path| !present.contains(*path)).map(str::to_owned).collect()
    }
}

/// Where the journal stands.
#[derive(Debug, Default)]
struct Position {
    next: u64,
    /// Of the last record; `None` when the next one has to be a state.
    snapshot: Option<i64>,
    changes: usize,
    /// Numbers and paths of all records, in order.
    records: Vec<(u64, String)>,
}

/// The journal of an archive, written with every commit.
#[derive(Debug)]
pub(crate) struct Journal {
    storage: Storage,
    catalog: Arc<Catalog>,
    /// `None` until somebody looked.
    position: Mutex<Option<Position>>,
    saved_fleet: SyncMutex<Option<Arc<Fleet>>>,
}

impl Journal {
    pub(crate) fn new(storage: Storage, catalog: Arc<Catalog>) -> Self {
        Self { storage, catalog, position: Mutex::default(), saved_fleet: SyncMutex::default() }
    }

    /// Writes a change down and commits it; answers the manifest after it. Runs in an owned task: a database transaction
    /// is never torn by whoever stops waiting.
    pub(crate) async fn publish(
        self: &Arc<Self>,
        base: &Manifest,
        request: &CommitRequest,
    ) -> Result<Manifest> {
        let (journal, base, request) = (Arc::clone(self), base.clone(), request.clone());
        tokio::spawn(async move { journal.publish_owned(&base, &request).await })
            .await
            .map_err(|error| Error::internal(format!("the commit panicked: {error}")))?
    }

    async fn publish_owned(&self, base: &Manifest, request: &CommitRequest) -> Result<Manifest> {
        let mut position = self.position.lock().await;
        let has_files =
            !(request.new_files.is_empty() && request.new_deletes.is_empty() && request.removed.is_empty());
        if has_files {
            let position = self.look(&mut position).await?;
            let is_change = position.snapshot == Some(base.snapshot.0)
                && position.changes < CHANGES_MIN + base.files.len() / FILES_PER_CHANGE;
            let (wal_sequence, content) = if is_change {
                (request.wal_sequence, change(base, request))
            } else {
                // Nothing is written on top of a change that may have happened meanwhile.
                let (newest, known) = self.newest().await?;
                if newest.snapshot != base.snapshot {
                    return Err(Error::new(
                        ErrorKind::Unavailable,
                        format!(
                            "snapshot {} is newer than the one that the change was computed from",
                            newest.snapshot.0
                        ),
                    ));
                }
                (Some(request.wal_sequence.unwrap_or(known)), Content::State(state_after(base, request)))
            };
            let snapshot = base.snapshot.0 + 1;
            let message = request.message.clone();
            let record = Record { snapshot, at: Timestamp::now(), message, wal_sequence, content };
            self.append(position, &record).await?;
            failpoint!("journal.after_record");
        }
        let request = &CommitRequest { base: Some(base.snapshot), ..request.clone() };
        match self.catalog.commit(request).await {
            Ok(result) => {
                if let Some(position) = position.as_mut().filter(|_| has_files) {
                    self.forget_old(position).await;
                }
                Ok(base.after(request, &result))
            }
            Err(error) => {
                if let Some(position) = &mut *position {
                    position.snapshot = None;
                }
                Err(error.into())
            }
        }
    }

    /// What the catalog holds, and its WAL watermark.
    pub(crate) async fn newest(&self) -> Result<(Manifest, u64)> {
        // Asked first: it may be behind the files then, never ahead of them.
        let wal_sequence = self.catalog.wal_checkpoint().await?;
        Ok((self.catalog.manifest(SnapshotAt::Latest).await?, wal_sequence))
    }

    /// Writes the state of a catalog whose snapshots are counted anew: records of before count no more.
    pub(crate) async fn begin_anew(&self) -> Result<()> {
        let mut position = self.position.lock().await;
        let position = self.look(&mut position).await?;
        let record = self.state("a new catalog").await?;
        // Whatever came before is of another history, with numbers of its own.
        self.append(position, &Record { snapshot: i64::MIN, ..record.clone() }).await?;
        self.append(position, &record).await
    }

    /// Begins the journal of an archive that has none, as one of an earlier version.
    pub(crate) async fn begin_if_missing(&self) -> Result<()> {
        let mut position = self.position.lock().await;
        let position = self.look(&mut position).await?;
        if !position.records.is_empty() {
            return Ok(());
        }
        let record = self.state("the journal begins").await?;
        self.append(position, &record).await
    }

    /// The catalog's newest state as a record.
    async fn state(&self, message: &str) -> Result<Record> {
        let (manifest, wal_sequence) = self.newest().await?;
        Ok(Record {
            snapshot: manifest.snapshot.0,
            at: Timestamp::now(),
            message: message.to_owned(),
            wal_sequence: Some(wal_sequence),
            content: Content::State(state_after(&manifest, &CommitRequest::default())),
        })
    }

    /// Refuses a catalog that knows less than the journal: it is an old copy, or a new one in place of one that was lost.
    pub(crate) async fn check(&self, manifest: &Manifest) -> Result<()> {
        let looked = tokio::time::timeout(CHECK_TIMEOUT, async {
            let mut position = self.position.lock().await;
            self.look(&mut position).await.map(|position| position.snapshot)
        });
        let last = match looked.await {
            Ok(Ok(last)) => last,
            Ok(Err(error)) if error.kind != ErrorKind::Unavailable => return Err(error),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the journal was not compared with the catalog");
                return Ok(());
            }
            Err(_) => {
                tracing::warn!("the journal was not compared with the catalog: the storage does not answer");
                return Ok(());
            }
        };
        match last {
            // One record may be of a commit that was never made.
            Some(last) if last > manifest.snapshot.0 + 1 => Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "the catalog knows the archive at {} up to snapshot {}, but its journal goes to {last}: the catalog was \
                     lost or is an old copy. Move it away and run `wattlake rebuild-catalog`, or restore a backup",
                    self.storage.data_path(),
                    manifest.snapshot.0
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Writes the fleet down when it changed since the last time.
    pub(crate) async fn save_fleet(&self) -> Result<()> {
        let fleet = self.catalog.fleet();
        if self.saved_fleet.lock().as_ref().is_some_and(|saved| Arc::ptr_eq(saved, &fleet)) {
            return Ok(());
        }
        let copy = self.catalog.copy_fleet().await?;
        self.storage.put_at(FLEET, sealed(&copy)?).await?;
        *self.saved_fleet.lock() = Some(fleet);
        Ok(())
    }

    async fn append(&self, position: &mut Position, record: &Record) -> Result<()> {
        let is_state = matches!(record.content, Content::State(_));
        let suffix = if is_state { STATE_SUFFIX } else { CHANGE_SUFFIX };
        let path = format!("{FOLDER}/{:020}{suffix}", position.next);
        // A record of this number may be there although its writing failed: the next one takes another.
        let number = position.next;
        position.next += 1;
        self.storage.put_at(&path, sealed(record)?).await?;
        position.records.push((number, path));
        position.snapshot = Some(record.snapshot);
        position.changes = if is_state { 0 } else { position.changes + 1 };
        Ok(())
    }

    async fn look<'a>(&self, position: &'a mut Option<Position>) -> Result<&'a mut Position> {
        if position.is_none() {
            let records = list(&self.storage).await?;
            let mut found = Position {
                next: records.last().map_or(1, |(number, _)| number + 1),
                changes: records.iter().rev().take_while(|(_, path)| !path.ends_with(STATE_SUFFIX)).count(),
                ..Position::default()
            };
            if let Some((_, last)) = records.last() {
                found.snapshot = Some(read::<Record>(&self.storage, last).await?.snapshot);
            }
            found.records = records;
            *position = Some(found);
        }
        position.as_mut().ok_or_else(|| Error::internal("the journal has no position"))
    }

    /// Deletes what lies before the last state but one; what cannot be deleted stays for the next time.
    async fn forget_old(&self, position: &mut Position) {
        let states: Vec<u64> = position
            .records
            .iter()
            .filter(|(_, path)| path.ends_with(STATE_SUFFIX))
            .map(|(number, _)| *number)
            .collect();
        let Some(oldest) = states.len().checked_sub(2).map(|at| states[at]) else { return };
        while let Some((number, path)) = position.records.first() {
            if *number >= oldest
                || self.storage.delete(&object_store::path::Path::from(path.as_str())).await.is_err()
            {
                return;
            }
            position.records.remove(0);
        }
    }
}

/// All live files after a commit.
fn state_after(base: &Manifest, request: &CommitRequest) -> Vec<NewDataFile> {
    let mut files = Vec::with_capacity(base.files.len() + request.new_files.len());
    for file in &base.files {
        if request.removed.iter().any(|removed| removed.data_file_id == file.id) {
            continue;
        }
        let new = request.new_deletes.iter().find(|delete| delete.data_file_id == file.id);
        let delete = match (new, &file.delete) {
            (Some(new), _) => Some(StoredDelete { stored: new.stored.clone(), count: new.count }),
            (None, Some(old)) => Some(StoredDelete { stored: old.stored.clone(), count: old.count }),
            (None, None) => None,
        };
        files.push(NewDataFile {
            stored: file.stored.clone(),
            rows: file.rows,
            row_group_rows: file.row_group_rows,
            level: file.level,
            bounds: file.bounds.clone(),
            delete,
        });
    }
    files.extend(request.new_files.iter().cloned());
    files
}

/// What a commit adds, takes away and deletes rows of.
fn change(base: &Manifest, request: &CommitRequest) -> Content {
    let path = |id: i64| base.files.iter().find(|file| file.id == id).map(|file| file.stored.path.clone());
    let deletes = request.new_deletes.iter().filter_map(|delete| {
        let stored = StoredDelete { stored: delete.stored.clone(), count: delete.count };
        Some((path(delete.data_file_id)?, stored))
    });
    Content::Change {
        added: request.new_files.clone(),
        removed: request.removed.iter().filter_map(|removed| path(removed.data_file_id)).collect(),
        deletes: deletes.collect(),
    }
}

/// Reads the journal: the live files, and the state before the last record when that was perhaps not committed. `None`
/// when there is no journal.
pub(crate) async fn replay(storage: &Storage) -> Result<Option<Replayed>> {
    let mut records: Vec<Record> = Vec::new();
    for (_, path) in list(storage).await? {
        let record: Record = read(storage, &path).await?;
        // Earlier ones for the same snapshot, and later ones, were not committed.
        records.retain(|earlier| earlier.snapshot < record.snapshot);
        records.push(record);
    }
    let Some(start) = records.iter().rposition(|record| matches!(record.content, Content::State(_))) else {
        return Ok(None);
    };
    let apply = |records: &[Record]| {
        let mut replayed = Replayed::default();
        records.iter().for_each(|record| replayed.apply(record));
        replayed
    };
    let all = apply(&records[start..]);
    let Some((_, before)) = records.split_last().filter(|(_, before)| !before.is_empty()) else {
        return Ok(Some(all));
    };
    // Objects of a commit that never happened are gone after a day.
    let present = storage.list().await?.into_iter().map(|object| object.location);
    let present: HashSet<String> =
        present.filter_map(|path| Some(Storage::table_path(&path)?.to_owned())).collect();
    let Some(start) = before.iter().rposition(|record| matches!(record.content, Content::State(_))) else {
        return Ok(Some(all));
    };
    let without_last = apply(&before[start..]);
    if all.missing(&present).len() > without_last.missing(&present).len() {
        return Ok(Some(without_last));
    }
    Ok(Some(all))
}

/// The fleet as it was written down last.
pub(crate) async fn saved_fleet(storage: &Storage) -> Result<Option<FleetCopy>> {
    match storage.read_if_present(FLEET).await? {
        Some(bytes) => unsealed(FLEET, &bytes).map(Some),
        None => Ok(None),
    }
}

/// Numbers and paths of all records, in order.
async fn list(storage: &Storage) -> Result<Vec<(u64, String)>> {
    let objects = storage.list_in(FOLDER).await?;
    let mut records: Vec<(u64, String)> = objects
        .iter()
        .filter_map(|object| {
            let name = object.location.filename()?;
            let number = name.strip_suffix(STATE_SUFFIX).or_else(|| name.strip_suffix(CHANGE_SUFFIX))?;
            Some((number.parse().ok()?, object.location.to_string()))
        })
        .collect();
    records.sort();
    Ok(records)
}

async fn read<T: DeserializeOwned>(storage: &Storage, path: &str) -> Result<T> {
    let bytes = storage.read_if_present(path).await?;
    unsealed(path, &bytes.ok_or_else(|| Error::corrupt(format!("journal record {path} is gone")))?)
}

/// A line of JSON and one with its hash.
fn sealed(value: &impl Serialize) -> Result<Bytes> {
    let mut text =
        serde_json::to_vec(value).map_err(|error| Error::internal(format!("journal record: {error}")))?;
    let hash = blake3::hash(&text).to_hex();
    text.push(b'\n');
    text.extend_from_slice(hash.as_bytes());
    text.push(b'\n');
    Ok(text.into())
}

fn unsealed<T: DeserializeOwned>(path: &str, bytes: &[u8]) -> Result<T> {
    let damaged = |what: &str| Error::corrupt(format!("journal record {path}: {what}"));
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let (Some(json), Some(hash)) = (lines.next(), lines.next()) else { return Err(damaged("cut short")) };
    if blake3::hash(json).to_hex().as_bytes() != hash {
        return Err(damaged("hash mismatch"));
    }
    serde_json::from_slice(json).map_err(|error| damaged(&error.to_string()))
}

#[cfg(test)]
mod tests;
