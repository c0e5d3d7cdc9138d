//! The settings of Wattlake: one typed struct, layered as defaults < file < environment < flags.
//!
//! This crate owns names, defaults, units and checks of all settings. It reads files and environment variables only
//! through [`Layers`]; it opens no sockets and knows nothing of what the settings are for. Unknown keys are refused
//! with the nearest valid one.

mod error;
mod layers;
mod quantity;
mod settings;

pub use error::ConfigError;
pub use layers::{Layers, is_reserved_variable};
pub use quantity::{ByteCount, Period};
pub use settings::{
    Carbon, Catalog, Compaction, Durability, Flight, Flush, Http, Ingest, LineMapping, Log, LogFormat,
    Memory, MetricDefinition, MetricKind, PostgresWire, Query, RetentionRule, S3, Settings, Snapshots,
    Storage, Tls, Wal,
};

#[cfg(test)]
mod tests;
