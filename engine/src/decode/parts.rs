//! Cutting a file into bodies that can be decoded by themselves: text between records, CSV with its header repeated,
//! Parquet as tables.
//!
//! A local time that the clock shows twice is told apart by the order of the rows around it, so a table is never cut
//! before a row with such a time.

mod table;
mod text;

use std::{
    fs::File,
    io::{BufReader, Read},
};

use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;

use self::{table::TableParts, text::TextParts};
use super::body::decompressed;
use crate::{
    BodyFormat, Error, FileFormat, FileOptions, RefusedLine, Result,
    files::{AnnotatedCsv, Dump, FileReader},
    ingest::{Body, TableMapping},
};

/// A part of a file that can be ingested by itself.
#[derive(Clone, Debug)]
pub struct Part {
    pub body: Body,
    pub format: BodyFormat,
    /// Index of the first row in the file; for line protocol of the first line.
    pub first_row: u64,
    /// The line of each row, where rows are not counted.
    pub lines: Option<Vec<u64>>,
    /// Lines before it that hold no readings.
    pub refused: Vec<RefusedLine>,
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
    File(Box<FileReader>),
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

    /// A file of a vendor or utility, or any other one, also gzip or zstd.
    ///
    /// # Errors
    /// When the first bytes cannot be read, it is not of the format, or lacks what only the user knows.
    pub fn of_file(
        source: impl Read + Send + 'static,
        format: FileFormat,
        options: &FileOptions,
        mapping: Option<&TableMapping>,
        bytes_max: usize,
    ) -> Result<Self> {
        let unreadable = |error: std::io::Error| Error::invalid(format!("cannot be read: {error}"));
        match format {
            FileFormat::Body(BodyFormat::LineProtocol) => {
                let dump = Dump::new(BufReader::new(decompressed(source).map_err(unreadable)?));
                Self::of_text(dump, BodyFormat::LineProtocol, mapping, bytes_max)
            }
            FileFormat::AnnotatedCsv => {
                let lines = AnnotatedCsv::new(BufReader::new(decompressed(source).map_err(unreadable)?));
                Self::of_text(lines, BodyFormat::LineProtocol, mapping, bytes_max)
            }
            FileFormat::Body(format) => Self::of_text(source, format, mapping, bytes_max),
            format => {
                let source = BufReader::with_capacity(1 << 20, decompressed(source).map_err(unreadable)?);
                let reader = FileReader::new(source, format, options)?;
                Ok(Source::File(Box::new(reader)).into())
            }
        }
    }

    /// Rows of the whole file, where it says so.
    pub fn rows(&self) -> Option<u64> {
        match &self.source {
            Source::Text(_) | Source::File(_) => None,
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
            Source::File(reader) => next_of_file(reader),
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

fn next_of_file(reader: &mut FileReader) -> Result<Option<Part>> {
    let Some(rows) = reader.next()? else { return Ok(None) };
    let (batch, lines, refused) = rows.take()?;
    Ok(Some(Part {
        body: Body::Table(batch),
        format: BodyFormat::ArrowStream,
        first_row: 0,
        lines: Some(lines),
        refused,
    }))
}

fn no_cut(what: &str) -> Error {
    Error::invalid(format!(
        "the hour that the clock shows twice in autumn fills {what}; sort the file by time, or import it in smaller files"
    ))
}

#[cfg(test)]
mod tests;
