//! The tables of one query, made when they are named.

use std::sync::Arc;

use arrow::{array::RecordBatch, error::ArrowError};
use async_trait::async_trait;
use datafusion::{
    catalog::{SchemaProvider, TableProvider},
    datasource::MemTable,
    error::{DataFusionError, Result},
    prelude::SessionContext,
};
use wattlake_catalog::{Access, Fleet};
use wattlake_engine::ReadView;

use super::{
    catalog_tables,
    functions::{self, Zones},
    latest,
    measurements::{MeasurementsTable, visible_entities},
};

const TABLES: [&str; 6] = ["measurements", "sites", "meters", "energy_sources", "meter_tree", "latest"];

/// One query's view of everything, so that each table is the same however often it is named.
pub(crate) struct WattlakeSchema {
    measurements: Arc<MeasurementsTable>,
    view: ReadView,
    fleet: Arc<Fleet>,
    access: Access,
    /// Of sites without one of their own.
    default_zone: String,
}

impl std::fmt::Debug for WattlakeSchema {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WattlakeSchema").finish_non_exhaustive()
    }
}

impl WattlakeSchema {
    pub(crate) fn new(view: ReadView, fleet: Arc<Fleet>, access: Access, default_zone: &str) -> Self {
        let measurements = Arc::new(MeasurementsTable::new(view.clone(), &fleet, &access));
        Self { measurements, view, fleet, access, default_zone: default_zone.to_owned() }
    }

    /// Makes the schema the default one of a session and adds our functions.
    pub(crate) fn register(self, context: &SessionContext) -> Result<()> {
        let zones = Zones {
            fleet: Arc::clone(&self.fleet),
            allowed: visible_entities(&self.fleet, &self.access),
            default: self.default_zone.clone(),
        };
        functions::register(context, zones);
        let catalog = context
            .catalog("wattlake")
            .ok_or_else(|| DataFusionError::Internal("the session has no catalog".to_owned()))?;
        catalog.register_schema("public", Arc::new(self))?;
        Ok(())
    }
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
            _ => Ok(None),
        }
    }

    fn table_exist(&self, name: &str) -> bool {
        TABLES.contains(&name)
    }
}
