//! The archive: Parquet data files and positional delete files in a directory or an S3-compatible store.
//!
//! This module writes, reads and looks up files; which of them count is the manifest's business. All object paths are
//! built in [`storage`].

mod calendar;
mod checked_store;
mod data_file;
mod delete_file;
mod embedded;
#[cfg(test)]
mod faulty;
mod last_rows;
mod lookup;
mod object_reader;
mod row_ranges;
mod run_column;
mod scan;
mod schema;
mod series_totals;
mod spacing;
mod storage;
mod summaries;
mod times;

pub use checked_store::CheckedStore;
pub(crate) use data_file::{DataFileEncoder, EncodedFile, Level};
pub(crate) use delete_file::{deleted_rows, write_delete_file};
#[cfg(test)]
pub(crate) use faulty::{Fault, Moment};
pub(crate) use last_rows::last_positions;
pub(crate) use lookup::{KeyMatch, WantedSeries, find_rows};
pub use row_ranges::StoredReading;
pub(crate) use row_ranges::{read_row_ranges, read_rows_at};
pub use scan::rows_between;
pub(crate) use scan::{Chunk, FileScan, find_positions, read_footer_rows};
pub use schema::measurement_schema;
pub use series_totals::{SeriesTotals, TotalledSeries};
pub(crate) use series_totals::{SeriesTotalsWriter, read_series_totals};
pub use storage::Storage;
pub(crate) use summaries::read_summaries;
pub use summaries::{Stretch, StretchSummary};
pub(crate) use times::read_times;
