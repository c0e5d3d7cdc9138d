//! The fleet as a document, kept beside the archive's files so that a lost catalog can be rebuilt.
//!
//! Secrets in it are sealed as they are in the database: it is of use only together with the key.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::{Catalog, EnergySource, Error, Fleet, Meter, Result, Site, entities::load_stored};

const VERSION: u32 = 1;

/// All sites, meters and energy sources at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FleetCopy {
    version: u32,
    pub sites: Vec<Site>,
    pub meters: Vec<Meter>,
    pub energy_sources: Vec<EnergySource>,
}

impl Catalog {
    /// The fleet as it is stored.
    pub async fn copy_fleet(&self) -> Result<FleetCopy> {
        let (sites, meters, energy_sources) = load_stored(&self.db).await?;
        Ok(FleetCopy { version: VERSION, sites, meters, energy_sources })
    }

    /// Puts a copy into a catalog without a fleet.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) when there is a fleet already.
    pub async fn restore_fleet(&self, copy: FleetCopy) -> Result<()> {
        if copy.version != VERSION {
            return Err(Error::invalid(format!("fleet copy of version {}, not {VERSION}", copy.version)));
        }
        if self.fleet().sites().next().is_some() {
            return Err(Error::conflict("the catalog has sites already"));
        }
        let fleet = Fleet::new(copy.sites, copy.meters, copy.energy_sources, HashMap::new());
        let mut tx = self.begin().await?;
        let mut writer = self.writer(&mut tx);
        for site in fleet.sites() {
            writer.insert_site(site).await?;
            // Parents come before their children.
            for id in fleet.site_meters(site.id) {
                let Some(meter) = fleet.meter(id) else { continue };
                writer.insert_meter(meter).await?;
                for source in fleet.sources_of(id).iter().filter_map(|source| fleet.source(*source)) {
                    writer.insert_source(source).await?;
                }
            }
        }
        self.finish(tx).await.map(drop)
    }
}
