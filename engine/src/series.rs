//! Series and units as small numbers: interned once, compared and hashed cheaply ever after.

use std::sync::Arc;

use ahash::HashMap;
use parking_lot::RwLock;
use wattlake_catalog::{EntityId, EntityType};

use crate::batch::BatchSeries;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UnitId(pub(crate) u16);

/// All series and units that this process has seen.
#[derive(Debug, Default)]
pub(crate) struct SeriesTable {
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    ids: HashMap<(EntityId, Arc<str>), SeriesId>,
    keys: Vec<Arc<SeriesKey>>,
    units: Vec<Arc<str>>,
}

impl SeriesTable {
    /// The numbers of a batch's series and their units, in the order of its table.
    pub(crate) fn intern(&self, table: &[BatchSeries]) -> Vec<(SeriesId, UnitId)> {
        {
            let inner = self.inner.read();
            let known: Option<Vec<_>> = table
                .iter()
                .map(|series| Some((inner.find(series)?, inner.find_unit(&series.unit)?)))
                .collect();
            if let Some(known) = known {
                return known;
            }
        }
        let mut inner = self.inner.write();
        table.iter().map(|series| (inner.insert(series), inner.insert_unit(&series.unit))).collect()
    }

    pub(crate) fn key(&self, id: SeriesId) -> Arc<SeriesKey> {
        Arc::clone(&self.inner.read().keys[id.0 as usize])
    }

    pub(crate) fn unit(&self, id: UnitId) -> Arc<str> {
        Arc::clone(&self.inner.read().units[id.0 as usize])
    }

    /// How many series are known.
    pub(crate) fn len(&self) -> usize {
        self.inner.read().keys.len()
    }
}

impl Inner {
    fn find(&self, series: &BatchSeries) -> Option<SeriesId> {
        // A map keyed by (id, Arc<str>) cannot be asked with a &str without an allocation; metrics are short.
        self.ids.get(&(series.entity, Arc::from(series.metric.as_str()))).copied()
    }

    fn find_unit(&self, unit: &str) -> Option<UnitId> {
        self.units.iter().position(|known| &**known == unit).map(|i| UnitId(i as u16))
    }

    fn insert(&mut self, series: &BatchSeries) -> SeriesId {
        let metric: Arc<str> = Arc::from(series.metric.as_str());
        if let Some(id) = self.ids.get(&(series.entity, Arc::clone(&metric))) {
            return *id;
        }
        let id = SeriesId(self.keys.len() as u32);
        let key =
            SeriesKey { entity: series.entity, entity_type: series.entity_type, metric: Arc::clone(&metric) };
        self.keys.push(Arc::new(key));
        self.ids.insert((series.entity, metric), id);
        id
    }

    fn insert_unit(&mut self, unit: &str) -> UnitId {
        self.find_unit(unit).unwrap_or_else(|| {
            // Unknown metrics bring units of their own; past the limit of the number they share the empty one.
            if self.units.len() >= usize::from(u16::MAX) {
                return UnitId(0);
            }
            if self.units.is_empty() {
                self.units.push(Arc::from(""));
                if unit.is_empty() {
                    return UnitId(0);
                }
            }
            self.units.push(Arc::from(unit));
            UnitId((self.units.len() - 1) as u16)
        })
    }
}
