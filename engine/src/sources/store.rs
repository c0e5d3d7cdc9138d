//! From what a vendor says to readings of our entities.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use wattlake_catalog::{Category, Entity, EntityId, EntityType, Fleet};

use super::connector::{Point, Quantity, Role};
use crate::{Batch, BatchSeries, Conversion, Engine, SeriesKey};

/// Where readings of a source go.
pub(crate) struct Places<'a> {
    pub source: EntityId,
    pub targets: &'a BTreeMap<Role, EntityId>,
    pub fleet: Arc<Fleet>,
}

impl Places<'_> {
    /// The series of a quantity; `None`: of a device that is not in the fleet.
    pub(crate) fn series(&self, quantity: Quantity, device: Option<&str>) -> Option<SeriesKey> {
        let own = |entity: EntityId, metric: &str| {
            let entity_type = self.fleet.entity(entity).map_or(EntityType::EnergySource, Entity::entity_type);
            SeriesKey { entity, entity_type, metric: metric.into() }
        };
        let site = self.fleet.site_of(self.source)?.id;
        let is_here = |entity: &EntityId| self.fleet.site_of(*entity).is_some_and(|found| found.id == site);
        if let Some(serial) = device {
            let entity = self.fleet.by_external_id(serial).filter(is_here)?;
            return Some(own(entity, quantity.metric()));
        }
        Some(match self.targets.get(&quantity.role()).copied().filter(is_here) {
            None => own(self.source, quantity.metric()),
            Some(entity) => own(entity, self.metric_at(entity, quantity)),
        })
    }

    /// What is fed in is the energy of a meter of injection.
    fn metric_at(&self, entity: EntityId, quantity: Quantity) -> &'static str {
        let is_injection = self.fleet.meter(entity).is_some_and(|meter| meter.category == Category::Inj);
        match quantity {
            Quantity::ExportEnergy if is_injection => "energy",
            Quantity::ExportPower if is_injection => "power",
            other => other.metric_of_role(),
        }
    }
}

/// Readings to be written, and how many of the vendor's could not be.
pub(crate) fn batch(engine: &Engine, places: &Places<'_>, points: &[Point]) -> (Batch, u64) {
    let now = engine.clock().now_micros();
    let ingest = &engine.settings().ingest;
    let micros = |period: std::time::Duration| i64::try_from(period.as_micros()).unwrap_or(i64::MAX);
    let latest = now.saturating_add(micros(ingest.max_future.0));
    let resolution = micros(ingest.created_at_resolution.0).max(1);
    let mut batch = Batch { created_at: now - now.rem_euclid(resolution), ..Batch::default() };
    // By quantity, device and unit: the place in the table, and the way to the canonical unit.
    let mut known: HashMap<_, Option<(u32, Conversion)>> = HashMap::new();
    let mut refused = 0;
    for point in points {
        let key = (point.quantity, point.device.as_deref(), point.unit);
        let table = &mut batch.table;
        let series = known.entry(key).or_insert_with(|| {
            let series = places.series(point.quantity, point.device.as_deref())?;
            let (unit, conversion) = engine.metrics().normalise(&series.metric, Some(point.unit)).ok()?;
            table.push(BatchSeries {
                entity: series.entity,
                entity_type: series.entity_type,
                metric: series.metric.to_string(),
                unit: unit.to_owned(),
            });
            Some((table.len() as u32 - 1, conversion))
        });
        let value = series.map(|(index, conversion)| (index, conversion.apply(point.value)));
        match value.filter(|(_, value)| value.is_finite() && (0..=latest).contains(&point.ts)) {
            Some((index, value)) => {
                batch.series.push(index);
                batch.ts.push(point.ts);
                batch.value.push(value + 0.0);
                batch.quality.push(point.quality);
            }
            None => refused += 1,
        }
    }
    (batch, refused)
}
