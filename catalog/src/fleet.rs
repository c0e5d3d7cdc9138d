//! The whole fleet in memory: an immutable picture of sites, meters and energy sources with their indexes.
//!
//! Readers hold an `Arc<Fleet>` for as long as they need one consistent picture; every change of the catalog builds
//! a new one.

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{EnergySource, EntityId, EntityType, Meter, Site, SiteId};

/// All sites, meters and energy sources at one moment. Maps are ordered by id, so that listings are stable.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    sites: BTreeMap<SiteId, Site>,
    meters: BTreeMap<EntityId, Meter>,
    sources: BTreeMap<EntityId, EnergySource>,
    external: HashMap<String, EntityId>,
    roots: HashMap<SiteId, Vec<EntityId>>,
    children: HashMap<EntityId, Vec<EntityId>>,
    sources_of: HashMap<EntityId, Vec<EntityId>>,
    revision: u64,
}

/// The number of pictures that this process made.
static REVISIONS: AtomicU64 = AtomicU64::new(0);

/// A meter or an energy source.
#[derive(Clone, Copy, Debug)]
pub enum Entity<'a> {
    Meter(&'a Meter),
    Source(&'a EnergySource),
}

impl Fleet {
    pub(crate) fn new(
        sites: Vec<Site>,
        meters: Vec<Meter>,
        sources: Vec<EnergySource>,
        external: HashMap<String, EntityId>,
    ) -> Self {
        let revision = REVISIONS.fetch_add(1, Ordering::Relaxed);
        let mut fleet = Self { external, revision, ..Self::default() };
        for meter in &meters {
            match meter.parent_meter_id {
                Some(parent) => fleet.children.entry(parent).or_default().push(meter.id),
                None => fleet.roots.entry(meter.site_id).or_default().push(meter.id),
            }
        }
        for source in &sources {
            fleet.sources_of.entry(source.meter_id).or_default().push(source.id);
        }
        fleet.sites = sites.into_iter().map(|site| (site.id, site)).collect();
        fleet.meters = meters.into_iter().map(|meter| (meter.id, meter)).collect();
        fleet.sources = sources.into_iter().map(|source| (source.id, source)).collect();
        let Self { roots, children, meters, sources_of, sources, .. } = &mut fleet;
        for list in roots.values_mut().chain(children.values_mut()) {
            list.sort_by_key(|id| (meters.get(id).map(|m| m.name.clone()), *id));
        }
        for list in sources_of.values_mut() {
            list.sort_by_key(|id| (sources.get(id).map(|s| s.name.clone()), *id));
        }
        fleet
    }

    /// Differs between any two pictures of one process.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn sites(&self) -> impl Iterator<Item = &Site> {
        self.sites.values()
    }

    pub fn meters(&self) -> impl Iterator<Item = &Meter> {
        self.meters.values()
    }

    pub fn sources(&self) -> impl Iterator<Item = &EnergySource> {
        self.sources.values()
    }

    pub fn site(&self, id: SiteId) -> Option<&Site> {
        self.sites.get(&id)
    }

    pub fn meter(&self, id: EntityId) -> Option<&Meter> {
        self.meters.get(&id)
    }

    pub fn source(&self, id: EntityId) -> Option<&EnergySource> {
        self.sources.get(&id)
    }

    pub fn entity(&self, id: EntityId) -> Option<Entity<'_>> {
        self.meter(id).map(Entity::Meter).or_else(|| self.source(id).map(Entity::Source))
    }

    pub fn by_external_id(&self, name: &str) -> Option<EntityId> {
        self.external.get(name).copied()
    }

    /// Meters of a site without a parent, by name.
    pub fn roots(&self, site: SiteId) -> &[EntityId] {
        self.roots.get(&site).map_or(&[], Vec::as_slice)
    }

    /// Meters right below a meter, by name.
    pub fn children(&self, meter: EntityId) -> &[EntityId] {
        self.children.get(&meter).map_or(&[], Vec::as_slice)
    }

    /// Energy sources of a meter, by name.
    pub fn sources_of(&self, meter: EntityId) -> &[EntityId] {
        self.sources_of.get(&meter).map_or(&[], Vec::as_slice)
    }

    /// A meter and all meters below it, parents before children.
    pub fn subtree(&self, meter: EntityId) -> Vec<EntityId> {
        let mut out = vec![meter];
        let mut next = 0;
        while let Some(id) = out.get(next).copied() {
            out.extend_from_slice(self.children(id));
            next += 1;
        }
        out
    }

    /// All meters of a site, parents before children.
    pub fn site_meters(&self, site: SiteId) -> Vec<EntityId> {
        self.roots(site).iter().flat_map(|root| self.subtree(*root)).collect()
    }

    /// The site that an entity belongs to.
    pub fn site_of(&self, id: EntityId) -> Option<&Site> {
        let meter = match self.entity(id)? {
            Entity::Meter(meter) => meter,
            Entity::Source(source) => self.meter(source.meter_id)?,
        };
        self.site(meter.site_id)
    }
}

impl Entity<'_> {
    pub fn is_active(self) -> bool {
        match self {
            Self::Meter(meter) => meter.active,
            Self::Source(source) => source.active,
        }
    }

    pub fn entity_type(self) -> EntityType {
        match self {
            Self::Meter(_) => EntityType::Meter,
            Self::Source(_) => EntityType::EnergySource,
        }
    }

    pub fn capacity(self) -> Option<f64> {
        match self {
            Self::Meter(meter) => meter.capacity,
            Self::Source(source) => source.capacity,
        }
    }

    /// The meter itself, or the one that a source is behind.
    pub fn meter_id(self) -> EntityId {
        match self {
            Self::Meter(meter) => meter.id,
            Self::Source(source) => source.meter_id,
        }
    }
}
