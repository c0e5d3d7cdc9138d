//! The storage engine: decoding and checking readings, the write-ahead log, the memtable, flush to Parquet, and the
//! consistent view that queries read.
//!
//! The path of a reading: [`decode`] -> [`Ingest`] (validate, normalise, resolve) -> [`Engine::write`] (log, group
//! commit, memtable, acknowledge) -> flush (sort, merge, Parquet and delete files, one catalog transaction). Threads:
//! one writer thread owns the log; one flush task owns the manifest; readers only hold `Arc`s. Locks are taken in the
//! order flush lock, version change, memtable, series table.

mod archive;
mod background;
mod backup;
mod batch;
mod bulk;
mod changes;
mod clock;
mod compaction;
mod data_dir;
mod decode;
mod delta;
mod engine;
mod error;
mod files;
mod flush;
mod ingest;
mod journal;
mod latest;
mod maintenance;
mod meaning;
mod memtable;
mod merge;
mod metric;
mod publish;
mod read_view;
mod rebuild;
mod recovery;
mod register;
mod rows;
mod series;
mod sources;
mod summary;
mod totals_cache;
mod verify;
mod version;
mod wal;
mod writer;

pub use archive::{
    CheckedStore, SeriesTotals, Storage, StoredReading, Stretch, StretchSummary, TotalledSeries,
    measurement_schema, rows_between,
};
pub use backup::{BackupContents, BackupFile, restore};
pub use batch::{Batch, BatchSeries};
pub use bulk::{BulkImport, BulkReport, UndoReport};
pub use changes::RowFilter;
pub use clock::Clock;
pub use data_dir::DataDir;
pub use decode::{BodyFormat, ContentEncoding, Part, Parts, TimePrecision, decompress, parse_timestamp};
pub use delta::DeltaReport;
pub use engine::{Engine, EngineStatus};
pub use error::{Error, ErrorKind, Result};
pub use files::{
    DstPolicy, FileFormat, FileOptions, FoundFile, Profile, RefusedLine, find_files, parse_zone,
};
pub use ingest::{
    Body, DecodedPart, ERRORS_REPORTED_MAX, Ingest, IngestReport, IngestRequest, RowError, SeriesCount,
    TableMapping, ValueColumn,
};
pub use latest::LatestReading;
pub use maintenance::{MaintenanceOptions, MaintenanceReport};
pub use meaning::cadence_micros;
pub use metric::{Conversion, Metric, MetricRegistry};
pub use read_view::ReadView;
pub use rebuild::{RebuildReport, rebuild_catalog};
pub use register::{GLITCH_LASTS, Register, Step};
pub use rows::{Rows, SeriesRows};
pub use series::{SeriesId, SeriesKey, UnitId};
pub use sources::{
    BackfillPlan, BudgetStatus, CadenceChange, ConnectionTest, DryReading, DryRun, FoundDevice, FoundSystem,
    JobStatus, Obstacle, PROVIDERS, Replayed, SourceStatus, Sources, jq,
};
pub use summary::{HOLD_CADENCES, Point, Summary};
pub use verify::{Problem, ProblemKind, VerifyReport};
pub use version::HotView;

#[cfg(test)]
mod tests;
