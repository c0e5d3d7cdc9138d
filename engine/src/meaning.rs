//! What the readings of a series mean: how its metric is combined, how often it is read, and where its days begin.

use std::{collections::HashMap, fmt, sync::Arc};

use jiff::tz::TimeZone;
use parking_lot::Mutex;
use wattlake_catalog::{Catalog, EntityId, Fleet};
use wattlake_config::MetricKind;

use crate::{MetricRegistry, SeriesKey};

/// Cadence of entities that have none of their own.
const CADENCE_SECONDS: i64 = 900;

/// Microseconds between two readings of an entity, as configured.
pub fn cadence_micros(fleet: &Fleet, entity: EntityId) -> i64 {
    let meter = fleet.entity(entity).map(|entity| entity.meter_id()).and_then(|id| fleet.meter(id));
    meter.map_or(CADENCE_SECONDS, |meter| meter.reading_frequency.seconds()) * 1_000_000
}

/// How the readings of one series are to be understood.
#[derive(Clone, Debug)]
pub(crate) struct Meaning {
    pub kind: MetricKind,
    /// Microseconds between two readings, as configured.
    pub cadence: i64,
    /// The zone of the series' site.
    pub zone: TimeZone,
}

/// Where meanings come from.
pub(crate) struct MeaningSource {
    pub catalog: Arc<Catalog>,
    pub metrics: MetricRegistry,
    pub default_zone: TimeZone,
}

/// The meanings of all series as the fleet and the configuration are at one moment.
pub(crate) struct Meanings {
    source: Arc<MeaningSource>,
    fleet: Arc<Fleet>,
    zones: Mutex<HashMap<String, TimeZone>>,
}

impl fmt::Debug for MeaningSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeaningSource").finish_non_exhaustive()
    }
}

impl Meanings {
    pub(crate) fn new(source: Arc<MeaningSource>) -> Self {
        let fleet = source.catalog.fleet();
        Self { source, fleet, zones: Mutex::default() }
    }

    pub(crate) fn of(&self, key: &SeriesKey) -> Meaning {
        let name = self.fleet.site_of(key.entity).and_then(|site| site.zone_name());
        let zone = name.map(|name| {
            let mut zones = self.zones.lock();
            let read = || TimeZone::get(name).unwrap_or_else(|_| self.source.default_zone.clone());
            zones.entry(name.to_owned()).or_insert_with(read).clone()
        });
        Meaning {
            kind: self.source.metrics.kind(&key.metric),
            cadence: cadence_micros(&self.fleet, key.entity),
            zone: zone.unwrap_or_else(|| self.source.default_zone.clone()),
        }
    }
}
