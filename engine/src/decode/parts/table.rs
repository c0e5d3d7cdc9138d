//! Parquet files as tables.

use std::fs::File;

use arrow::{array::RecordBatch, compute::concat_batches};
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};

use super::{Part, no_cut};
use crate::{
    BodyFormat, Error, Result,
    decode::{
        table::{TimeColumn, read_footer},
        time::LocalClock,
    },
    ingest::{Body, TableMapping},
};

/// Rows in one part, about.
const ROWS: usize = 200_000;

pub(super) struct TableParts {
    file: File,
    footer: ArrowReaderMetadata,
    /// Row groups are read one after the other: a batch across two of them would have no common dictionary.
    next_group: usize,
    reader: Option<ParquetRecordBatchReader>,
    clock: Option<LocalClock>,
    /// What comes after the last cut.
    rest: Option<RecordBatch>,
    rows: u64,
    row: u64,
}

impl TableParts {
    pub(super) fn new(file: File, mapping: Option<&TableMapping>) -> Result<Self> {
        let malformed = |error| Error::invalid(format!("this is not a Parquet file: {error}"));
        let footer = read_footer(&file).map_err(malformed)?;
        let rows = u64::try_from(footer.metadata().file_metadata().num_rows()).unwrap_or(0);
        let clock = LocalClock::of(mapping)?;
        Ok(Self { file, footer, next_group: 0, reader: None, clock, rest: None, rows, row: 0 })
    }

    fn next_batch(&mut self) -> Option<Result<RecordBatch>> {
        let damaged =
            |error: &dyn std::fmt::Display| Error::invalid(format!("the Parquet file is damaged: {error}"));
        loop {
            if let Some(batch) = self.reader.as_mut().and_then(Iterator::next) {
                return Some(batch.map_err(|error| damaged(&error)));
            }
            if self.next_group >= self.footer.metadata().num_row_groups() {
                return None;
            }
            let file = match self.file.try_clone() {
                Ok(file) => file,
                Err(error) => return Some(Err(damaged(&error))),
            };
            let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.footer.clone())
                .with_row_groups(vec![self.next_group])
                .with_batch_size(ROWS)
                .build();
            self.next_group += 1;
            match reader {
                Ok(reader) => self.reader = Some(reader),
                Err(error) => return Some(Err(damaged(&error))),
            }
        }
    }

    pub(super) fn next(&mut self) -> Result<Option<Part>> {
        let damaged = |error| Error::invalid(format!("the Parquet file is damaged: {error}"));
        let Some(batch) = self.next_batch() else { return Ok(None) };
        let mut batch = batch?;
        if let Some(rest) = self.rest.take() {
            batch = concat_batches(&batch.schema(), [&rest, &batch]).map_err(damaged)?;
        }
        if self.row + (batch.num_rows() as u64) < self.rows {
            let cut = self.find_cut(&batch)?;
            self.rest = Some(batch.slice(cut, batch.num_rows() - cut)).filter(|rest| rest.num_rows() > 0);
            batch = batch.slice(0, cut);
        }
        let first_row = self.row;
        self.row += batch.num_rows() as u64;
        Ok(Some(Part {
            body: Body::Table(batch),
            format: BodyFormat::ArrowStream,
            first_row,
            lines: None,
            refused: Vec::new(),
        }))
    }

    /// How many rows come before the last place where the table may be cut.
    fn find_cut(&self, batch: &RecordBatch) -> Result<usize> {
        let rows = batch.num_rows();
        let clock = self.clock.as_ref();
        let Some((clock, column)) =
            clock.and_then(|clock| Some((clock, batch.column_by_name(&clock.column)?)))
        else {
            return Ok(rows);
        };
        let times = TimeColumn::new(&clock.column, column)?;
        // What the row after this batch says is not known, so the last row starts the next part.
        let cut = (1..rows).rev().find(|row| !times.is_repeated(*row, clock));
        cut.ok_or_else(|| no_cut(&format!("{rows} rows")))
    }

    pub(super) fn rows(&self) -> u64 {
        self.rows
    }
}
