//! SQL: what may be asked, and the tables that can be asked.

mod catalog_tables;
mod functions;
mod guard;
mod key_range;
mod latest;
mod measurements;
mod schema;

pub(crate) use functions::measurement_id;
pub(crate) use guard::parse_query;
pub(crate) use measurements::{KeyOrder, visible_entities};
pub(crate) use schema::WattlakeSchema;

#[cfg(test)]
mod tests;

/// The address under which the archive's objects are registered.
pub(crate) const ARCHIVE_URL: &str = "wattlake://archive/";
