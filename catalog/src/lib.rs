//! The SQL catalog: sites, meters and energy sources; access tokens; and the manifest of the archive as a DuckLake
//! catalog. SQLite by default, Postgres for several hosts; both behave the same (`tests.rs` runs one suite on both).
//!
//! `sqlx` lives only in this crate. It knows tables and transactions, not Parquet or HTTP. Lock order: the database
//! transaction first, then the in-memory [`Fleet`] is swapped; readers of the fleet take no lock.

#[macro_use]
pub mod failpoint;

mod catalog;
mod db;
mod entities;
mod error;
mod fleet;
mod fleet_copy;
mod foreign;
mod gaps;
mod grants;
mod jobs;
mod manifest;
mod migrations;
mod model;
mod progress;
mod secrets;
mod tokens;

pub use catalog::Catalog;
pub use entities::{NewEntities, OnboardingDraft, OnboardingMeter, OnboardingSource};
pub use error::{Error, ErrorKind, Result};
pub use fleet::{Entity, Fleet};
pub use fleet_copy::FleetCopy;
pub use foreign::{ForeignDatabase, ForeignReading, Refused};
pub use gaps::{Gap, GapFilter, GapState};
pub use grants::Grant;
pub use jobs::{Job, JobState};
pub use manifest::{
    BlockSums, CommitRequest, CommitResult, DataFile, DeleteFile, Expired, FileBounds, Manifest,
    NamedSnapshot, NewDataFile, NewDeleteFile, RemovedFile, Scheduled, SnapshotAt, SnapshotId, StoredDelete,
    StoredFile, columns,
};
pub use model::{
    Category, EnergySource, EnergySourceDraft, EntityId, EntityType, IndustryType, Meter, MeterDraft,
    Quality, ReadingFrequency, Site, SiteDraft, SiteId,
};
pub use progress::Progress;
pub use secrets::{MASK, SecretKey};
pub use tokens::{Access, NewToken, Scope, Token};

#[cfg(test)]
mod tests;
