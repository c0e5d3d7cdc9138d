//! Cutting files into bodies: text at line ends, CSV with its header repeated, Parquet as Arrow streams.

use std::{
    io::{BufRead, Read},
    path::{Path, PathBuf},
};

use arrow::ipc::writer::StreamWriter;
use axum::body::Bytes;
use parquet::arrow::arrow_reader::{
    ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use wattlake_engine::{BodyFormat, open_file};

use crate::cli::Failure;

/// Rows of a Parquet file in one body.
const PARQUET_ROWS: usize = 200_000;

/// A part of a file that can be ingested by itself.
pub(super) struct Chunk {
    pub body: Bytes,
    pub format: BodyFormat,
    /// Index of the first row in the file; for line protocol of the first line.
    pub first_row: u64,
    /// About how far into the file this is, in bytes.
    pub position: u64,
}

/// The parts of one file, in order.
pub(super) struct Chunks {
    path: PathBuf,
    source: Source,
    format: BodyFormat,
    row: u64,
    position: u64,
}

enum Source {
    Text { reader: Box<dyn BufRead + Send>, header: Vec<u8>, bytes_max: usize, rest: Vec<u8>, is_done: bool },
    Parquet { reader: ParquetRecordBatchReader, bytes_per_row: u64 },
}

impl Chunks {
    pub(super) fn open(path: &Path, format: BodyFormat, bytes_max: usize) -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::failed(format!("cannot read {}: {error}", path.display()))
        };
        let source = match format {
            BodyFormat::Parquet => {
                let file = std::fs::File::open(path).map_err(|error| failed(&error))?;
                let bytes = file.metadata().map_err(|error| failed(&error))?.len();
                let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
                let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(file, options);
                let builder = builder.map_err(|error| failed(&error))?;
                let rows = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0).max(1);
                let reader = builder.with_batch_size(PARQUET_ROWS).build().map_err(|error| failed(&error))?;
                Source::Parquet { reader, bytes_per_row: bytes / rows }
            }
            BodyFormat::Csv | BodyFormat::NdJson | BodyFormat::LineProtocol => {
                let mut reader = open_file(path)?;
                let mut header = Vec::new();
                if format == BodyFormat::Csv {
                    reader.read_until(b'\n', &mut header).map_err(|error| failed(&error))?;
                }
                Source::Text { reader, header, bytes_max, rest: Vec::new(), is_done: false }
            }
            BodyFormat::Json | BodyFormat::ArrowStream => {
                return Err(Failure::usage("import takes csv, ndjson, line-protocol or parquet"));
            }
        };
        Ok(Self { path: path.to_owned(), source, format, row: 0, position: 0 })
    }

    /// The next part; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Chunk>, Failure> {
        let path = &self.path;
        let failed = |error: &dyn std::fmt::Display| {
            Failure::failed(format!("cannot read {}: {error}", path.display()))
        };
        match &mut self.source {
            Source::Parquet { reader, bytes_per_row } => {
                let Some(batch) = reader.next() else { return Ok(None) };
                let batch = batch.map_err(|error| failed(&error))?;
                let mut body = Vec::new();
                let mut writer =
                    StreamWriter::try_new(&mut body, &batch.schema()).map_err(|error| failed(&error))?;
                writer.write(&batch).and_then(|()| writer.finish()).map_err(|error| failed(&error))?;
                drop(writer);
                let first_row = self.row;
                self.row += batch.num_rows() as u64;
                self.position = self.row * *bytes_per_row;
                let body = Bytes::from(body);
                Ok(Some(Chunk { body, format: BodyFormat::ArrowStream, first_row, position: self.position }))
            }
            Source::Text { reader, header, bytes_max, rest, is_done } => {
                if *is_done {
                    return Ok(None);
                }
                let mut text = std::mem::take(rest);
                let wanted = bytes_max.saturating_sub(text.len()) as u64;
                reader.by_ref().take(wanted).read_to_end(&mut text).map_err(|error| failed(&error))?;
                if (text.len() as u64) < *bytes_max as u64 {
                    *is_done = true;
                } else if let Some(end) = text.iter().rposition(|byte| *byte == b'\n') {
                    *rest = text.split_off(end + 1);
                } else {
                    return Err(failed(&format!("a line is longer than {bytes_max} bytes")));
                }
                if text.is_empty() && self.row > 0 {
                    return Ok(None);
                }
                let first_row = self.row;
                self.row += text.iter().filter(|byte| **byte == b'\n').count() as u64;
                self.position += text.len() as u64;
                let body = if header.is_empty() { text } else { [header.as_slice(), &text].concat() };
                let body = Bytes::from(body);
                Ok(Some(Chunk { body, format: self.format, first_row, position: self.position }))
            }
        }
    }
}
