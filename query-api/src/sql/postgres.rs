//! What clients of Postgres expect to find beside our tables: the catalog `pg_catalog`, its functions, and their way of
//! writing SQL.

mod functions;
mod rewrite;

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

use super::{guard::CATALOG, schema::table_schemas};

/// The version that clients are told; some choose their catalog queries by it.
pub(crate) const SERVER_VERSION: &str = "16.6";

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

/// Settings of Postgres that clients ask for, in order, as they are on a new connection.
pub(crate) const SETTINGS: [(&str, &str); 27] = [
    ("application_name", ""),
    ("bytea_output", "hex"),
    ("client_encoding", "UTF8"),
    ("client_min_messages", "notice"),
    ("datestyle", "ISO, YMD"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "on"),
    ("extra_float_digits", "1"),
    ("in_hot_standby", "off"),
    ("integer_datetimes", "on"),
    ("intervalstyle", "postgres"),
    ("is_superuser", "off"),
    ("lc_collate", "C"),
    ("lc_ctype", "C"),
    ("max_identifier_length", "63"),
    ("max_index_keys", "32"),
    ("search_path", "public"),
    ("server_encoding", "UTF8"),
    ("server_version", SERVER_VERSION),
    ("server_version_num", "160006"),
    ("session_authorization", "reader"),
    ("standard_conforming_strings", "on"),
    ("statement_timeout", "0"),
    ("timezone", "UTC"),
    ("transaction_isolation", "read committed"),
    ("transaction_read_only", "on"),
    ("wal_level", "replica"),
];

pub(crate) fn setting(name: &str) -> Option<&'static str> {
    SETTINGS.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
}
