//! The newest reading of each series, kept from one snapshot to the next.
//!
//! Of a file only what is new is looked at: the places of the last rows of its series, and the few rows that can be newest.
//! Most commits are a flush or a compaction, which leave a handful of new files; a delete that hits the newest reading of a
//! series sends a search for the one before it back through older files, newest first.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use tokio::sync::Mutex;
use wattlake_catalog::{DataFile, Manifest, Quality, SnapshotId};

use crate::{
    Result, SeriesKey, Storage,
    archive::{deleted_rows, last_positions, read_rows_at},
};

/// The newest reading of a series.
#[derive(Clone, Debug, PartialEq)]
pub struct LatestReading {
    pub key: Arc<SeriesKey>,
    /// Microseconds since 1970 UTC.
    pub ts: i64,
    pub value: f64,
    pub unit: Arc<str>,
    pub quality: Quality,
}

/// A key in the order of files.
#[derive(Clone, Debug)]
struct ByKey(Arc<SeriesKey>);

impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for ByKey {}

impl PartialOrd for ByKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.sort_key().cmp(&other.0.sort_key())
    }
}

/// The newest readings in the files of one snapshot.
#[derive(Clone, Debug, Default)]
struct Newest {
    snapshot: Option<SnapshotId>,
    /// Ids of its files and of their delete files.
    files: HashMap<i64, Option<i64>>,
    entries: BTreeMap<ByKey, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    reading: LatestReading,
    /// Where it is.
    file: i64,
    position: u64,
}

/// The newest readings of the newest snapshot that somebody asked about; memory goes with the number of series.
#[derive(Debug, Default)]
pub(crate) struct LatestCache {
    newest: Mutex<Newest>,
}

impl LatestCache {
    /// The newest readings in the files of a manifest, in the order of files. Of one that was overtaken by a newer one nothing is
    /// kept.
    ///
    /// # Errors
    /// Files that cannot be read. What was known before stays.
    pub(crate) async fn in_files(
        &self,
        storage: &Storage,
        manifest: &Manifest,
    ) -> Result<Vec<LatestReading>> {
        let mut newest = self.newest.lock().await;
        if newest.snapshot.is_some_and(|snapshot| snapshot > manifest.snapshot) {
            drop(newest);
            return Ok(Newest::default().advanced(storage, manifest).await?.readings());
        }
        if newest.snapshot != Some(manifest.snapshot) {
            *newest = newest.advanced(storage, manifest).await?;
        }
        Ok(newest.readings())
    }
}

impl Newest {
    fn readings(&self) -> Vec<LatestReading> {
        self.entries.values().map(|entry| entry.reading.clone()).collect()
    }

    /// The same for a later snapshot.
    async fn advanced(&self, storage: &Storage, manifest: &Manifest) -> Result<Self> {
        let files = manifest.files.iter().map(|file| (file.id, file.delete.as_ref().map(|d| d.id))).collect();
        let mut next = Self { snapshot: Some(manifest.snapshot), files, entries: self.entries.clone() };
        let lost = next.lose(self, storage, manifest).await?;
        let is_new = |file: &&Arc<DataFile>| !self.files.contains_key(&file.id);
        for file in newest_first(manifest.files.iter().filter(is_new)) {
            let can_be_newest = |entries: &BTreeMap<ByKey, Entry>, key: &ByKey| {
                entries.get(key).is_none_or(|entry| file.bounds.max_ts > entry.reading.ts)
            };
            next.look_into(storage, file, can_be_newest).await?;
        }
        // Most often the row itself is in a new file. Otherwise any older one may hold the row before it.
        let is_missing =
            |(key, ts): &(ByKey, i64)| next.entries.get(key).is_none_or(|entry| entry.reading.ts < *ts);
        let mut missing: BTreeSet<ByKey> = lost.into_iter().filter(is_missing).map(|(key, _)| key).collect();
        for file in newest_first(manifest.files.iter().filter(|file| !is_new(file))) {
            missing.retain(|key| {
                next.entries.get(key).is_none_or(|entry| entry.reading.ts < file.bounds.max_ts)
            });
            if missing.is_empty() {
                break;
            }
            next.look_into(storage, file, |_, key| missing.contains(key)).await?;
        }
        Ok(next)
    }

    /// Forgets what is no longer in a file of the manifest, or was deleted there. Answers the keys with the times that were lost.
    async fn lose(
        &mut self,
        before: &Self,
        storage: &Storage,
        manifest: &Manifest,
    ) -> Result<Vec<(ByKey, i64)>> {
        let mut deleted = HashMap::new();
        for file in &manifest.files {
            let has_more_deletes =
                before.files.get(&file.id).is_some_and(|delete| *delete != self.files[&file.id]);
            if has_more_deletes {
                deleted.insert(file.id, deleted_rows(storage, file).await?);
            }
        }
        let mut lost = Vec::new();
        let files = &self.files;
        self.entries.retain(|key, entry| {
            let is_deleted =
                deleted.get(&entry.file).is_some_and(|rows| rows.binary_search(&entry.position).is_ok());
            let is_kept = files.contains_key(&entry.file) && !is_deleted;
            if !is_kept {
                lost.push((key.clone(), entry.reading.ts));
            }
            is_kept
        });
        Ok(lost)
    }

    /// Takes the last rows of the wanted series of a file that are newer than what is known.
    async fn look_into(
        &mut self,
        storage: &Storage,
        file: &DataFile,
        is_wanted: impl Fn(&BTreeMap<ByKey, Entry>, &ByKey) -> bool,
    ) -> Result<()> {
        let hidden = deleted_rows(storage, file).await?;
        let mut rows = last_positions(storage, file, &hidden).await?;
        rows.retain(|(key, _)| is_wanted(&self.entries, &ByKey(Arc::clone(key))));
        let positions: Vec<u64> = rows.iter().map(|(_, position)| *position).collect();
        let readings = read_rows_at(storage, file, &positions).await?;
        for ((key, position), (stored, unit)) in rows.into_iter().zip(readings) {
            let name = ByKey(Arc::clone(&key));
            if self.entries.get(&name).is_some_and(|entry| entry.reading.ts >= stored.ts) {
                continue;
            }
            let (ts, value, quality) = (stored.ts, stored.value, stored.quality);
            let reading = LatestReading { key, ts, value, unit, quality };
            self.entries.insert(name, Entry { reading, file: file.id, position });
        }
        Ok(())
    }
}

fn newest_first<'a>(files: impl Iterator<Item = &'a Arc<DataFile>>) -> Vec<&'a Arc<DataFile>> {
    let mut files: Vec<_> = files.collect();
    files.sort_by_key(|file| Reverse(file.bounds.max_ts));
    files
}
