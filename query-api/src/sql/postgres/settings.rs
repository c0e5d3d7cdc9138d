//! Settings of Postgres that clients ask for, by `SHOW` or in the catalog's table `pg_settings`.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch, StringArray, new_null_array},
    datatypes::SchemaRef,
};
use async_trait::async_trait;
use datafusion::{
    catalog::{MemTable, SchemaProvider, TableProvider},
    error::Result,
};

/// The version that clients are told; some choose their catalog queries by it.
pub(crate) const SERVER_VERSION: &str = "16.6";

/// In order, as they are on a new connection.
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

/// The catalog, with our settings in `pg_settings`.
#[derive(Debug)]
pub(super) struct CatalogWithSettings(pub Arc<dyn SchemaProvider>);

#[async_trait]
impl SchemaProvider for CatalogWithSettings {
    fn table_names(&self) -> Vec<String> {
        self.0.table_names()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let table = self.0.table(name).await?;
        Ok(match table {
            Some(table) if name == "pg_settings" => Some(Arc::new(settings(table.schema())?)),
            table => table,
        })
    }

    fn table_exist(&self, name: &str) -> bool {
        self.0.table_exist(name)
    }
}

fn settings(schema: SchemaRef) -> Result<MemTable> {
    let texts = |of: fn(&(&'static str, &'static str)) -> &'static str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(SETTINGS.iter().map(of)))
    };
    let columns = schema.fields().iter().map(|field| match field.name().as_str() {
        "name" => texts(|setting| setting.0),
        "setting" | "reset_val" => texts(|setting| setting.1),
        _ => new_null_array(field.data_type(), SETTINGS.len()),
    });
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns.collect())?;
    MemTable::try_new(schema, vec![vec![batch]])
}
