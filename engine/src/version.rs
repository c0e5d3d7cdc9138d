//! What a query reads: one version of the archive's files together with the readings still in memory.
//!
//! A [`Version`] is immutable but for its active memtable, which only grows. The writer thread replaces it when the
//! active memtable is frozen, the flush when frozen rows have become files; readers hold an `Arc` of theirs.

use std::sync::Arc;

use ahash::{HashMap, HashMapExt};
use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use wattlake_catalog::Manifest;

use crate::{
    latest::{LatestCache, LatestReading},
    memtable::{Block, Memtable, newest_rows, sort_blocks},
    rows::SeriesRows,
    series::{SeriesId, SeriesKey, SeriesTable, UnitId},
    totals_cache::TotalsCache,
};

/// A memtable that takes no more rows, waiting for or in flush.
#[derive(Clone, Debug)]
pub(crate) struct Frozen {
    pub memtable: Arc<Memtable>,
    /// The last WAL sequence number in it.
    pub last_sequence: u64,
}

/// One state of the store.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub manifest: Arc<Manifest>,
    /// Oldest first.
    pub frozen: Vec<Frozen>,
    pub active: Arc<Memtable>,
}

/// The current version, and what is known about flushed series.
#[derive(Debug)]
pub(crate) struct Versions {
    current: ArcSwap<Version>,
    /// Serialises changes; readers do not take it.
    change: Mutex<()>,
    pub series: Arc<SeriesTable>,
    high_water: RwLock<HighWater>,
    pub latest: LatestCache,
    pub totals: TotalsCache,
}

/// Latest flushed timestamp per series: a row above it is in no file.
#[derive(Debug, Default)]
struct HighWater {
    exact: HashMap<SeriesId, i64>,
    /// For series not flushed by this process: the latest timestamp of any file at start.
    others: i64,
}

impl HighWater {
    /// A mark that is high enough for every series.
    fn of_files(manifest: &Manifest) -> i64 {
        manifest.files.iter().map(|file| file.bounds.max_ts).max().unwrap_or(i64::MIN)
    }
}

impl Versions {
    pub(crate) fn new(manifest: Manifest, series: Arc<SeriesTable>) -> Self {
        let others = HighWater::of_files(&manifest);
        let version = Version { manifest: Arc::new(manifest), frozen: Vec::new(), active: Arc::default() };
        Self {
            current: ArcSwap::from_pointee(version),
            change: Mutex::new(()),
            series,
            high_water: RwLock::new(HighWater { exact: HashMap::new(), others }),
            latest: LatestCache::default(),
            totals: TotalsCache::default(),
        }
    }

    pub(crate) fn current(&self) -> Arc<Version> {
        self.current.load_full()
    }

    /// Freezes the active memtable when it holds rows.
    pub(crate) fn freeze(&self, last_sequence: u64) {
        let _guard = self.change.lock();
        let version = self.current();
        if version.active.is_empty() {
            return;
        }
        let mut frozen = version.frozen.clone();
        frozen.push(Frozen { memtable: Arc::clone(&version.active), last_sequence });
        let manifest = Arc::clone(&version.manifest);
        self.current.store(Arc::new(Version { manifest, frozen, active: Arc::default() }));
    }

    /// Puts a new manifest in place and drops the frozen memtables whose rows are in it: those up to a WAL sequence number.
    ///
    /// `flushed` is raised first: a reader of the new version must not take a file's row for a new one.
    pub(crate) fn publish(&self, manifest: Manifest, flushed: &[(SeriesId, i64)], wal_sequence: u64) {
        {
            let mut high_water = self.high_water.write();
            let others = high_water.others;
            for (id, ts) in flushed {
                let mark = high_water.exact.entry(*id).or_insert(others);
                *mark = (*mark).max(*ts);
            }
        }
        self.replace(manifest, wal_sequence);
    }

    /// As [`Versions::publish`] for a manifest of which nobody says what is new in it.
    pub(crate) fn catch_up(&self, manifest: Manifest, wal_sequence: u64) {
        {
            let mut high_water = self.high_water.write();
            let newest = HighWater::of_files(&manifest);
            high_water.others = high_water.others.max(newest);
            high_water.exact.values_mut().for_each(|mark| *mark = (*mark).max(newest));
        }
        self.replace(manifest, wal_sequence);
    }

    fn replace(&self, manifest: Manifest, wal_sequence: u64) {
        let _guard = self.change.lock();
        let version = self.current();
        let is_kept = |frozen: &&Frozen| frozen.last_sequence > wal_sequence;
        let frozen = version.frozen.iter().filter(is_kept).cloned().collect();
        let active = Arc::clone(&version.active);
        self.current.store(Arc::new(Version { manifest: Arc::new(manifest), frozen, active }));
    }

    /// A row of the series at or below this may already be in a file.
    pub(crate) fn high_water(&self, id: SeriesId) -> i64 {
        let high_water = self.high_water.read();
        high_water.exact.get(&id).copied().unwrap_or(high_water.others)
    }

    /// Bytes in memory, frozen ones included.
    pub(crate) fn hot_bytes(&self) -> usize {
        let version = self.current();
        version.active.bytes() + version.frozen.iter().map(|f| f.memtable.bytes()).sum::<usize>()
    }
}

/// The readings in memory as one query sees them.
#[derive(Clone, Debug)]
pub struct HotView {
    /// Oldest first.
    blocks: Vec<Arc<Block>>,
    series: Arc<SeriesTable>,
}

impl HotView {
    pub(crate) fn new(version: &Version, series: &Arc<SeriesTable>) -> Self {
        let memtables = version.frozen.iter().map(|f| &f.memtable).chain([&version.active]);
        Self { blocks: memtables.flat_map(|m| m.blocks()).collect(), series: Arc::clone(series) }
    }

    /// A view of one frozen memtable.
    pub(crate) fn of_frozen(frozen: &Frozen, series: &Arc<SeriesTable>) -> Self {
        Self { blocks: frozen.memtable.blocks(), series: Arc::clone(series) }
    }

    /// No readings in memory, for queries of an earlier snapshot.
    pub(crate) fn empty(series: &Arc<SeriesTable>) -> Self {
        Self { blocks: Vec::new(), series: Arc::clone(series) }
    }

    /// How many rows there are, before duplicates are merged.
    pub(crate) fn rows(&self) -> usize {
        self.blocks.iter().map(|block| block.rows()).sum()
    }

    /// The time of the oldest row.
    pub fn oldest(&self) -> Option<i64> {
        self.blocks.iter().filter_map(|block| block.oldest()).min()
    }

    /// Rows with `from <= ts < to` of the series that `wanted` picks, merged, in the order of files.
    pub fn select(&self, from: i64, to: i64, wanted: impl Fn(&SeriesKey) -> bool) -> Vec<SeriesRows> {
        sort_blocks(&self.blocks, &self.series, |_, key| wanted(key).then_some((from, to)))
    }

    /// The newest row of each series, in the order of files.
    pub(crate) fn latest(&self) -> Vec<LatestReading> {
        newest_rows(&self.blocks, &self.series)
    }

    /// Rows that may supersede a row in a file: those not above their series' high-water mark.
    pub(crate) fn late(
        &self,
        versions: &Versions,
        from: i64,
        to: i64,
        wanted: impl Fn(&SeriesKey) -> bool,
    ) -> Vec<SeriesRows> {
        sort_blocks(&self.blocks, &self.series, |id, key| {
            let to = versions.high_water(id).saturating_add(1).min(to);
            (from < to && wanted(key)).then_some((from, to))
        })
    }

    /// The text of an interned unit.
    pub fn unit(&self, unit: UnitId) -> Arc<str> {
        self.series.unit(unit)
    }

    /// The unit of each row, in order.
    pub fn units<'a>(&'a self, rows: &'a SeriesRows) -> impl Iterator<Item = Arc<str>> + 'a {
        rows.rows.unit.iter().map(|unit| self.unit(*unit))
    }
}
