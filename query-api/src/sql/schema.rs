//! The tables of one query, made when they are named.

use std::sync::Arc;

use arrow::{datatypes::SchemaRef, error::ArrowError};
use async_trait::async_trait;
use datafusion::{
    catalog::{SchemaProvider, TableProvider},
    error::Result,
    logical_expr::ScalarUDF,
};
use wattlake_catalog::{Access, Fleet};
use wattlake_engine::ReadView;

use super::{
    catalog_tables::{self, FleetTables},
    functions::{self, Zones},
    latest,
    measurements::{self, MeasurementsTable, visible_entities},
    rollups::{self, Every, RollupTable, Rollups},
};

const TABLES: [&str; 8] = [
    "measurements",
    "sites",
    "meters",
    "energy_sources",
    "meter_tree",
    "latest",
    "rollup_daily",
    "rollup_hourly",
];

/// One query's view of everything, so that each table is the same however often it is named.
pub(crate) struct WattlakeSchema {
    measurements: Arc<MeasurementsTable>,
    view: ReadView,
    fleet: Arc<Fleet>,
    fleet_tables: Arc<FleetTables>,
    access: Access,
    /// Of sites without one of their own.
    default_zone: String,
    rollups: Arc<dyn Rollups>,
}

impl std::fmt::Debug for WattlakeSchema {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WattlakeSchema").finish_non_exhaustive()
    }
}

impl WattlakeSchema {
    pub(crate) fn new(
        view: ReadView,
        fleet: Arc<Fleet>,
        fleet_tables: Arc<FleetTables>,
        access: Access,
        default_zone: &str,
        rollups: Arc<dyn Rollups>,
    ) -> Self {
        let measurements = Arc::new(MeasurementsTable::new(view.clone(), &fleet, &access));
        let default_zone = default_zone.to_owned();
        Self { measurements, view, fleet, fleet_tables, access, default_zone, rollups }
    }

    fn rollup(&self, every: Every) -> Arc<dyn TableProvider> {
        Arc::new(RollupTable {
            every,
            rollups: Arc::clone(&self.rollups),
            view: self.view.clone(),
            fleet: Arc::clone(&self.fleet),
            access: self.access.clone(),
        })
    }

    /// The function that knows the zones of this query's fleet.
    pub(super) fn site_zone(&self) -> ScalarUDF {
        functions::site_zone(Zones {
            fleet: Arc::clone(&self.fleet),
            allowed: visible_entities(&self.fleet, &self.access),
            default: self.default_zone.clone(),
        })
    }
}

/// The tables and their columns, the same in each query.
pub(crate) fn table_schemas() -> Result<Vec<(&'static str, SchemaRef)>, ArrowError> {
    let (fleet, all) = (Fleet::default(), Access::unrestricted());
    Ok(vec![
        ("measurements", measurements::table_schema()),
        ("latest", latest::to_batch(&[])?.schema()),
        ("sites", catalog_tables::sites(&fleet, &all)?.schema()),
        ("meters", catalog_tables::meters(&fleet, &all)?.schema()),
        ("energy_sources", catalog_tables::energy_sources(&fleet, &all)?.schema()),
        ("meter_tree", catalog_tables::meter_tree(&fleet, &all)?.schema()),
        ("rollup_daily", rollups::table_schema()),
        ("rollup_hourly", rollups::table_schema()),
    ])
}

#[async_trait]
impl SchemaProvider for WattlakeSchema {
    fn table_names(&self) -> Vec<String> {
        TABLES.iter().map(|name| (*name).to_owned()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        match name {
            "measurements" => Ok(Some(Arc::clone(&self.measurements) as _)),
            "latest" => {
                let allowed = visible_entities(&self.fleet, &self.access);
                latest::table(&self.view, allowed.as_ref()).await.map(Some)
            }
            "rollup_daily" => Ok(Some(self.rollup(Every::Day))),
            "rollup_hourly" => Ok(Some(self.rollup(Every::Hour))),
            _ => self.fleet_tables.table(name, &self.fleet, &self.access),
        }
    }

    fn table_exist(&self, name: &str) -> bool {
        TABLES.contains(&name)
    }
}
