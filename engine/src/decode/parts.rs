//! Cutting a file into bodies that can be decoded by themselves: text between records, CSV with its header repeated,
//! Parquet as tables.
//!
//! A local time that the clock shows twice is told apart by the order of the rows around it, so a table is never cut
//! before a row with such a time.

mod table;
mod text;

use std::{fs::File, io::Read};

use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;

use self::{table::TableParts, text::TextParts};
use crate::{
    BodyFormat, Error, Result,
    ingest::{Body, TableMapping},
};

/// A part of a file that can be ingested by itself.
#[derive(Clone, Debug)]
pub struct Part {
    pub body: Body,
    pub format: BodyFormat,
    /// Index of the first row in the file; for line protocol of the first line.
    pub first_row: u64,
}

impl Part {
    /// The body as bytes of its format.
    ///
    /// # Errors
    /// When a table cannot be written as an Arrow stream.
    pub fn bytes(&self) -> Result<Bytes> {
        let batch = match &self.body {
            Body::Bytes(bytes) => return Ok(bytes.clone()),
            Body::Table(batch) => batch,
        };
        let mut bytes = Vec::new();
        let mut writer = StreamWriter::try_new(&mut bytes, &batch.schema())?;
        writer.write(batch)?;
        writer.finish()?;
        drop(writer);
        Ok(Bytes::from(bytes))
    }
}

/// The parts of one file, in order; an error ends them.
pub struct Parts {
    source: Source,
    is_failed: bool,
}

enum Source {
    Text(TextParts),
    Table(TableParts),
}

impl Parts {
    /// CSV, NDJSON or line protocol, also gzip or zstd, in parts of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// When the first bytes cannot be read, or the format is none of these.
    pub fn of_text(
        source: impl Read + Send + 'static,
        format: BodyFormat,
        mapping: Option<&TableMapping>,
        bytes_max: usize,
    ) -> Result<Self> {
        TextParts::new(source, format, mapping, bytes_max).map(|parts| Source::Text(parts).into())
    }

    /// Parquet.
    ///
    /// # Errors
    /// When its footer cannot be read.
    pub fn of_parquet(file: File, mapping: Option<&TableMapping>) -> Result<Self> {
        TableParts::new(file, mapping).map(|parts| Source::Table(parts).into())
    }

    /// Rows of the whole file, where it says so.
    pub fn rows(&self) -> Option<u64> {
        match &self.source {
            Source::Text(_) => None,
            Source::Table(parts) => Some(parts.rows()),
        }
    }
}

impl Iterator for Parts {
    type Item = Result<Part>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_failed {
            return None;
        }
        let part = match &mut self.source {
            Source::Text(parts) => parts.next(),
            Source::Table(parts) => parts.next(),
        };
        self.is_failed = part.is_err();
        part.transpose()
    }
}

impl From<Source> for Parts {
    fn from(source: Source) -> Self {
        Self { source, is_failed: false }
    }
}

fn no_cut(what: &str) -> Error {
    Error::invalid(format!(
        "the hour that the clock shows twice in autumn fills {what}; sort the file by time, or import it in smaller files"
    ))
}

#[cfg(test)]
mod tests;
