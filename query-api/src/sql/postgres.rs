//! What clients of Postgres expect to find beside our tables: the catalog `pg_catalog`, its functions, and their way of
//! writing SQL.

mod functions;
mod rewrite;
mod settings;

use std::sync::Arc;

use datafusion::{
    catalog::SchemaProvider,
    datasource::empty::EmptyTable,
    error::{DataFusionError, Result},
    prelude::SessionContext,
    sql::sqlparser::{ast::Statement, parser::ParserError},
};
use datafusion_pg_catalog::{
    pg_catalog::{context::EmptyContextProvider, setup_pg_catalog},
    sql::PostgresCompatibilityParser,
};

use settings::CatalogWithSettings;
pub(crate) use settings::{SERVER_VERSION, SETTINGS, setting};

use super::{guard::CATALOG, schema::table_schemas};

/// Made once: object ids stay the same as long as the process lives.
pub(super) struct Compatibility {
    catalog: Arc<dyn SchemaProvider>,
    parser: PostgresCompatibilityParser,
}

impl Compatibility {
    /// Adds the functions to a session.
    pub(super) fn install(context: &SessionContext) -> Result<Self> {
        // The catalog describes the tables of this session: ours, without rows.
        for (name, schema) in table_schemas()? {
            context.register_table(name, Arc::new(EmptyTable::new(schema)))?;
        }
        setup_pg_catalog(context, CATALOG, EmptyContextProvider).map_err(|error| *error)?;
        functions::all().into_iter().for_each(|udf| context.register_udf(udf));
        let catalog = context.catalog(CATALOG).and_then(|catalog| catalog.schema("pg_catalog"));
        let catalog = catalog.ok_or_else(|| DataFusionError::Internal("no pg_catalog".to_owned()))?;
        let catalog = Arc::new(CatalogWithSettings(catalog));
        Ok(Self { catalog, parser: PostgresCompatibilityParser::new() })
    }

    pub(super) fn catalog(&self) -> Arc<dyn SchemaProvider> {
        Arc::clone(&self.catalog)
    }

    pub(super) fn parse(&self, text: &str) -> Result<Vec<Statement>, ParserError> {
        let mut statements = self.parser.parse(text)?;
        statements.iter_mut().for_each(rewrite::simplify);
        Ok(statements)
    }
}
