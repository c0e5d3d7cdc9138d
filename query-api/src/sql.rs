//! SQL: what may be asked, and the tables that can be asked.

mod bounded;
mod catalog_tables;
mod functions;
mod guard;
mod information_schema;
mod key_range;
mod latest;
mod measurements;
mod merge_runs;
mod operators;
mod postgres;
mod rollups;
mod schema;
mod session;
mod size;
mod totals;

pub(crate) use catalog_tables::FleetTables;
pub(crate) use functions::{keeps_groups, measurement_id};
pub(crate) use guard::{CATALOG, SCHEMA, only_reads, parameters as count_parameters, parse_query};
pub(crate) use measurements::{KeyOrder, visible_entities};
pub(crate) use postgres::{SERVER_VERSION, SETTINGS, setting};
pub(crate) use rollups::Rollups;
pub(crate) use schema::{WattlakeSchema, table_schemas};
pub(crate) use session::Sessions;
pub(crate) use size::reads_little;

#[cfg(test)]
mod tests;

/// The address under which the archive's objects are registered.
pub(crate) const ARCHIVE_URL: &str = "wattlake://archive/";
