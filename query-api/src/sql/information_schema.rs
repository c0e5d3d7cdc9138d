//! `information_schema`: the tables and columns that can be asked, and nothing about the server.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::{
    catalog::{
        CatalogProviderList, SchemaProvider, TableProvider, information_schema::InformationSchemaProvider,
    },
    error::Result,
};

/// The others tell settings and functions of the planner.
const TABLES: [&str; 4] = ["columns", "schemata", "tables", "views"];

#[derive(Debug)]
pub(super) struct InformationSchema(InformationSchemaProvider);

impl InformationSchema {
    pub(super) fn new(catalogs: &Arc<dyn CatalogProviderList>) -> Self {
        // Weak, since the schema is in the list that it describes.
        Self(InformationSchemaProvider::new(Arc::new(Described(Arc::downgrade(catalogs)))))
    }
}

#[async_trait]
impl SchemaProvider for InformationSchema {
    fn table_names(&self) -> Vec<String> {
        TABLES.iter().map(|name| (*name).to_owned()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        if !self.table_exist(name) {
            return Ok(None);
        }
        self.0.table(name).await
    }

    fn table_exist(&self, name: &str) -> bool {
        TABLES.contains(&name)
    }
}

/// The catalogs of a session.
#[derive(Debug)]
struct Described(std::sync::Weak<dyn CatalogProviderList>);

impl CatalogProviderList for Described {
    fn register_catalog(
        &self,
        _: String,
        _: Arc<dyn datafusion::catalog::CatalogProvider>,
    ) -> Option<Arc<dyn datafusion::catalog::CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        self.0.upgrade().map(|list| list.catalog_names()).unwrap_or_default()
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn datafusion::catalog::CatalogProvider>> {
        self.0.upgrade()?.catalog(name)
    }
}
