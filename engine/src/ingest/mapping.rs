//! Column mappings of tables that do not have our column names.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How to read a foreign table: which column is what, in which unit and time zone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TableMapping {
    /// Unknown entities are registered on the site of this name.
    pub site: Option<String>,
    /// The column with the time; default `timestamp`.
    pub timestamp: Option<String>,
    /// IANA zone of times without an offset; without it such times are refused.
    pub time_zone: Option<String>,
    /// strftime pattern of the time column; default RFC 3339 or `YYYY-MM-DD HH:MM[:SS]`.
    pub time_format: Option<String>,
    /// The column with the entity's uuid or external id; default `entity_id` or `entityId`.
    pub entity: Option<String>,
    /// One entity for the whole table, instead of a column.
    pub entity_name: Option<String>,
    /// The column with the quality; default `quality` when there is one.
    pub quality: Option<String>,
    /// Columns with readings; empty: the columns `metric`, `value` and `unit`.
    pub values: Vec<ValueColumn>,
    /// Field separator of CSV; default comma.
    pub delimiter: Option<char>,
}

/// A column with readings of one metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValueColumn {
    pub column: String,
    pub metric: String,
    pub unit: Option<String>,
}

impl TableMapping {
    pub(crate) fn time_column(&self) -> &str {
        self.timestamp.as_deref().unwrap_or("timestamp")
    }

    /// Field separator of CSV.
    pub(crate) fn delimiter(&self) -> u8 {
        self.delimiter.map_or(b',', |delimiter| delimiter as u8)
    }

    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// Naming the key and the valid choice.
    pub fn check(&self) -> Result<()> {
        if let Some(zone) = &self.time_zone
            && jiff::tz::TimeZone::get(zone).is_err()
        {
            return Err(Error::invalid(format!(
                "time_zone: `{zone}` is not an IANA zone, for example Europe/Berlin"
            )));
        }
        if self.entity.is_some() && self.entity_name.is_some() {
            return Err(Error::invalid(
                "entity names a column, entity_name one entity for all rows; give one of them",
            ));
        }
        if let Some(delimiter) = self.delimiter
            && !delimiter.is_ascii()
        {
            return Err(Error::invalid(format!("delimiter: `{delimiter}` is not one ASCII character")));
        }
        Ok(())
    }
}
