//! Series and units as small numbers: interned once, compared and hashed cheaply ever after.
//!
//! A *channel* is a series in one unit, which is what a reading names. Known metrics have one unit, so that nearly
//! every series has one channel.

use std::sync::Arc;

use ahash::HashMap;
use hashbrown::{HashTable, hash_table::Entry};
use parking_lot::{RwLock, RwLockReadGuard};
use wattlake_catalog::{EntityId, EntityType};

use crate::{
    batch::BatchSeries,
    meaning::{MeaningSource, Meanings},
};

/// Different units that one process takes.
pub(crate) const UNITS_MAX: usize = 10_000;

/// A series: one metric of one entity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeriesKey {
    pub entity: EntityId,
    pub entity_type: EntityType,
    pub metric: Arc<str>,
}

impl SeriesKey {
    /// The order of rows in files: metric, then entity. Uuids order as their text does.
    pub fn sort_key(&self) -> (&str, EntityId) {
        (&self.metric, self.entity)
    }
}

/// Number of an interned series; valid for the life of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeriesId(pub(crate) u32);

/// Number of an interned unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId(pub(crate) u32);

/// Number of an interned channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ChannelId(pub u32);

/// A series in one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Channel {
    pub series: SeriesId,
    pub unit: UnitId,
}

/// All series and units that this process has seen.
#[derive(Debug, Default)]
pub(crate) struct SeriesTable {
    inner: RwLock<Interned>,
    hasher: ahash::RandomState,
    meaning: Option<Arc<MeaningSource>>,
}

/// What is interned, for many look-ups under one lock.
#[derive(Debug, Default)]
pub(crate) struct Interned {
    /// Series by entity and metric.
    index: HashTable<SeriesId>,
    keys: Vec<Arc<SeriesKey>>,
    units: Vec<Arc<str>>,
    unit_ids: HashMap<Arc<str>, UnitId>,
    channels: Vec<Channel>,
    channel_ids: HashMap<(SeriesId, UnitId), ChannelId>,
}

impl SeriesTable {
    pub(crate) fn new(meaning: MeaningSource) -> Self {
        Self { meaning: Some(Arc::new(meaning)), ..Self::default() }
    }

    /// What series mean now; `None` where nobody knows.
    pub(crate) fn meanings(&self) -> Option<Arc<Meanings>> {
        self.meaning.as_ref().map(|source| Arc::new(Meanings::new(Arc::clone(source))))
    }

    /// The channels of a batch's series, in the order of its table.
    pub(crate) fn intern(&self, table: &[BatchSeries]) -> Vec<ChannelId> {
        {
            let inner = self.inner.read();
            let known: Option<Vec<_>> =
                table.iter().map(|series| inner.find(self.hash(series), series)).collect();
            if let Some(known) = known {
                return known;
            }
        }
        let mut inner = self.inner.write();
        table.iter().map(|series| inner.insert(&self.hasher, series)).collect()
    }

    /// The number of a unit's text.
    pub(crate) fn intern_unit(&self, text: &str) -> UnitId {
        if let Some(unit) = self.inner.read().unit_ids.get(text) {
            return *unit;
        }
        self.inner.write().insert_unit(text)
    }

    /// Whether readings in this unit can be taken: unknown metrics bring units of their own, and each is kept for good.
    pub(crate) fn takes_unit(&self, text: &str) -> bool {
        let inner = self.inner.read();
        inner.units.len() < UNITS_MAX || inner.unit_ids.contains_key(text)
    }

    fn hash(&self, series: &BatchSeries) -> u64 {
        self.hasher.hash_one((series.entity, series.metric.as_str()))
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Interned> {
        self.inner.read()
    }

    pub(crate) fn unit(&self, id: UnitId) -> Arc<str> {
        Arc::clone(self.inner.read().unit(id))
    }

    /// How many series are known.
    pub(crate) fn len(&self) -> usize {
        self.inner.read().keys.len()
    }
}

impl Interned {
    pub(crate) fn key(&self, id: SeriesId) -> &Arc<SeriesKey> {
        &self.keys[id.0 as usize]
    }

    pub(crate) fn unit(&self, id: UnitId) -> &Arc<str> {
        &self.units[id.0 as usize]
    }

    /// The texts of all units, indexed by their number.
    pub(crate) fn units(&self) -> &[Arc<str>] {
        &self.units
    }

    pub(crate) fn channel(&self, id: ChannelId) -> Channel {
        self.channels[id.0 as usize]
    }

    /// All channels, indexed by their number.
    pub(crate) fn channels(&self) -> &[Channel] {
        &self.channels
    }

    fn find(&self, hash: u64, series: &BatchSeries) -> Option<ChannelId> {
        let id = self.index.find(hash, |id| {
            let key = &self.keys[id.0 as usize];
            key.entity == series.entity && *key.metric == *series.metric
        })?;
        let unit = self.unit_ids.get(series.unit.as_str())?;
        self.channel_ids.get(&(*id, *unit)).copied()
    }

    fn insert(&mut self, hasher: &ahash::RandomState, series: &BatchSeries) -> ChannelId {
        let Self { index, keys, .. } = self;
        let hash_of = |key: &SeriesKey| hasher.hash_one((key.entity, &*key.metric));
        let entry = index.entry(
            hasher.hash_one((series.entity, series.metric.as_str())),
            |id| keys[id.0 as usize].entity == series.entity && *keys[id.0 as usize].metric == *series.metric,
            |id| hash_of(&keys[id.0 as usize]),
        );
        let id = match entry {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(free) => {
                let id = SeriesId(keys.len() as u32);
                free.insert(id);
                keys.push(Arc::new(SeriesKey {
                    entity: series.entity,
                    entity_type: series.entity_type,
                    metric: Arc::from(series.metric.as_str()),
                }));
                id
            }
        };
        let unit = self.insert_unit(&series.unit);
        *self.channel_ids.entry((id, unit)).or_insert_with(|| {
            self.channels.push(Channel { series: id, unit });
            ChannelId((self.channels.len() - 1) as u32)
        })
    }

    fn insert_unit(&mut self, text: &str) -> UnitId {
        if let Some(unit) = self.unit_ids.get(text) {
            return *unit;
        }
        let unit = UnitId(self.units.len() as u32);
        let text: Arc<str> = Arc::from(text);
        self.units.push(Arc::clone(&text));
        self.unit_ids.insert(text, unit);
        unit
    }
}
