//! The tables of one query, made when they are named.

use std::sync::Arc;

use arrow::{array::RecordBatch, datatypes::SchemaRef, error::ArrowError};
use async_trait::async_trait;
use datafusion::{
    catalog::{SchemaProvider, TableProvider},
    datasource::MemTable,
    error::Result,
    logical_expr::ScalarUDF,
};
use wattlake_catalog::{Access, Fleet};
use wattlake_engine::ReadView;

use super::{
    catalog_tables,
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
        access: Access,
        default_zone: &str,
        rollups: Arc<dyn Rollups>,
    ) -> Self {
        let measurements = Arc::new(MeasurementsTable::new(view.clone(), &fleet, &access));
        Self { measurements, view, fleet, access, default_zone: default_zone.to_owned(), rollups }
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
        let table = |batch: Result<RecordBatch, ArrowError>| -> Result<Option<Arc<dyn TableProvider>>> {
            let batch = batch?;
            Ok(Some(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?)))
        };
        match name {
            "measurements" => Ok(Some(Arc::clone(&self.measurements) as _)),
            "latest" => {
                let allowed = visible_entities(&self.fleet, &self.access);
                latest::table(&self.view, &self.measurements, allowed.as_ref()).await.map(Some)
            }
            "sites" => table(catalog_tables::sites(&self.fleet, &self.access)),
            "meters" => table(catalog_tables::meters(&self.fleet, &self.access)),
            "energy_sources" => table(catalog_tables::energy_sources(&self.fleet, &self.access)),
            "meter_tree" => table(catalog_tables::meter_tree(&self.fleet, &self.access)),
            "rollup_daily" => Ok(Some(self.rollup(Every::Day))),
            "rollup_hourly" => Ok(Some(self.rollup(Every::Hour))),
            _ => Ok(None),
        }
    }

    fn table_exist(&self, name: &str) -> bool {
        TABLES.contains(&name)
    }
}
