//! Reading a data file from its first row to its last, series by series, without the rows that a delete file names.
//!
//! Scans are driven by background threads: they block on the storage of each batch, and hold one batch and the
//! compressed bytes of one row group.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, DictionaryArray, RecordBatch, StringArray},
    datatypes::{DataType, Float64Type, Int32Type, TimestampMicrosecondType},
};
use futures::StreamExt;
use parquet::arrow::{
    ParquetRecordBatchStreamBuilder, ProjectionMask,
    arrow_reader::{ArrowReaderOptions, RowSelection, RowSelector},
    async_reader::ParquetRecordBatchStream,
};
use tokio::runtime::Handle;
use wattlake_catalog::{DataFile, EntityId, EntityType, Quality};

use super::{Storage, measurement_schema, object_reader::ObjectReader};
use crate::{
    Error, Result, SeriesKey,
    rows::Rows,
    series::{SeriesTable, UnitId},
};

const BATCH_ROWS: usize = 16_384;

/// Consecutive rows of one series.
pub(crate) type Chunk = (Arc<SeriesKey>, Rows);

/// The live rows of a data file, in order.
pub(crate) struct FileScan {
    handle: Handle,
    stream: ParquetRecordBatchStream<ObjectReader>,
    path: String,
    series: Arc<SeriesTable>,
    ready: std::vec::IntoIter<Chunk>,
    last_key: Option<Arc<SeriesKey>>,
}

/// Strings as dictionaries: a run of rows of one series then has one key.
pub(super) fn dictionary_schema() -> arrow::datatypes::SchemaRef {
    Arc::new(measurement_schema(&DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))))
}

pub(super) fn damaged(path: &str, what: impl std::fmt::Display) -> Error {
    Error::corrupt(format!("data file {path}: {what}"))
}

/// Rows `start..end` without some of them, for a reader that starts at `start`; `hidden` ascends and lies within.
pub fn rows_between(start: u64, end: u64, hidden: &[u64]) -> RowSelection {
    let mut selectors = Vec::new();
    let mut next = start;
    for position in hidden {
        if *position > next {
            selectors.push(RowSelector::select((position - next) as usize));
        }
        selectors.push(RowSelector::skip(1));
        next = position + 1;
    }
    if next < end {
        selectors.push(RowSelector::select((end - next) as usize));
    }
    RowSelection::from(selectors)
}

impl FileScan {
    /// Opens a file; blocks, so it is called from background threads. `hidden` are the rows to leave out, in order.
    pub(crate) fn open(
        handle: &Handle,
        storage: &Storage,
        series: &Arc<SeriesTable>,
        file: &DataFile,
        hidden: &[u64],
    ) -> Result<Self> {
        let reader = ObjectReader::new(storage, &file.stored);
        let options = ArrowReaderOptions::new().with_schema(dictionary_schema());
        let builder = handle.block_on(ParquetRecordBatchStreamBuilder::new_with_options(reader, options))?;
        let mut builder = builder.with_batch_size(BATCH_ROWS);
        if !hidden.is_empty() {
            builder = builder.with_row_selection(rows_between(0, file.rows, hidden));
        }
        Ok(Self {
            handle: handle.clone(),
            stream: builder.build()?,
            path: file.stored.path.clone(),
            series: Arc::clone(series),
            ready: Vec::new().into_iter(),
            last_key: None,
        })
    }

    fn chunks(&mut self, batch: &RecordBatch) -> Result<Vec<Chunk>> {
        let (columns, ts) = (KeyColumns::of(batch, &self.path)?, times(batch, &self.path)?);
        let text = |name| dictionary(batch, name, &self.path);
        let (unit, quality) = (text("unit")?, text("quality")?);
        let metadata = dictionary(batch, "metadata", &self.path)?;
        let column =
            |name: &str| batch.column_by_name(name).ok_or_else(|| damaged(&self.path, format!("no {name}")));
        let value = column("value")?.as_primitive_opt::<Float64Type>();
        let created = column("created_at")?.as_primitive_opt::<TimestampMicrosecondType>();
        let (Some(value), Some(created)) = (value, created) else {
            return Err(damaged(&self.path, "a column has another type"));
        };
        let units: Vec<UnitId> = strings(unit.values()).map(|text| self.series.intern_unit(text)).collect();
        let qualities = strings(quality.values())
            .map(|text| text.parse::<Quality>())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| damaged(&self.path, error))?;
        let mut chunks = Vec::new();
        let mut start = 0;
        while start < batch.num_rows() {
            let end = columns.run_end(start);
            let key = columns.key(start, self.last_key.as_ref(), &self.path)?;
            let mut rows = Rows {
                ts: ts[start..end].to_vec(),
                value: value.values()[start..end].to_vec(),
                quality: quality.keys().values()[start..end].iter().map(|k| qualities[*k as usize]).collect(),
                unit: unit.keys().values()[start..end].iter().map(|k| units[*k as usize]).collect(),
                created_at: created.values()[start..end].to_vec(),
                metadata: Vec::new(),
            };
            if metadata.null_count() < metadata.len() {
                let texts = metadata.values().as_string::<i32>();
                for row in (start..end).filter(|row| metadata.is_valid(*row)) {
                    let text = texts.value(metadata.keys().value(row) as usize);
                    rows.metadata.push(((row - start) as u32, text.into()));
                }
            }
            self.last_key = Some(Arc::clone(&key));
            chunks.push((key, rows));
            start = end;
        }
        Ok(chunks)
    }
}

impl Iterator for FileScan {
    type Item = Result<Chunk>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(chunk) = self.ready.next() {
                return Some(Ok(chunk));
            }
            let batch = match self.handle.block_on(self.stream.next())? {
                Ok(batch) => batch,
                Err(error) => return Some(Err(damaged(&self.path, error))),
            };
            match self.chunks(&batch) {
                Ok(chunks) => self.ready = chunks.into_iter(),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// The columns of a batch that tell its series.
pub(super) struct KeyColumns<'a> {
    entity: &'a DictionaryArray<Int32Type>,
    entity_type: Option<&'a DictionaryArray<Int32Type>>,
    metric: &'a DictionaryArray<Int32Type>,
}

fn dictionary<'a>(batch: &'a RecordBatch, name: &str, path: &str) -> Result<&'a DictionaryArray<Int32Type>> {
    let column = batch.column_by_name(name).ok_or_else(|| damaged(path, format!("no column {name}")))?;
    column.as_dictionary_opt().ok_or_else(|| damaged(path, format!("column {name} is not text")))
}

pub(super) fn times<'a>(batch: &'a RecordBatch, path: &str) -> Result<&'a [i64]> {
    let ts = batch.column_by_name("timestamp");
    let ts = ts.and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
    Ok(ts.ok_or_else(|| damaged(path, "no times"))?.values())
}

fn strings(values: &ArrayRef) -> impl Iterator<Item = &str> {
    values.as_string::<i32>().iter().map(Option::unwrap_or_default)
}

impl<'a> KeyColumns<'a> {
    pub(super) fn of(batch: &'a RecordBatch, path: &str) -> Result<Self> {
        let entity_type = batch.column_by_name("entity_type");
        Ok(Self {
            entity: dictionary(batch, "entity_id", path)?,
            entity_type: entity_type.and_then(|column| column.as_dictionary_opt()),
            metric: dictionary(batch, "metric", path)?,
        })
    }

    /// Where the run of rows with the same keys ends. Equal texts may have several keys: that only makes more runs.
    pub(super) fn run_end(&self, start: usize) -> usize {
        let (entities, metrics) = (self.entity.keys().values(), self.metric.keys().values());
        let (entity, metric) = (entities[start], metrics[start]);
        let same = |row: &usize| entities[*row] == entity && metrics[*row] == metric;
        (start + 1..entities.len()).find(|row| !same(row)).unwrap_or(entities.len())
    }

    fn text(array: &DictionaryArray<Int32Type>, row: usize) -> &str {
        let values: &StringArray = array.values().as_string();
        values.value(array.keys().value(row) as usize)
    }

    pub(super) fn key(
        &self,
        row: usize,
        last: Option<&Arc<SeriesKey>>,
        path: &str,
    ) -> Result<Arc<SeriesKey>> {
        let entity: EntityId = Self::text(self.entity, row).parse().map_err(|error| damaged(path, error))?;
        let metric = Self::text(self.metric, row);
        if let Some(last) = last
            && last.entity == entity
            && *last.metric == *metric
        {
            return Ok(Arc::clone(last));
        }
        let entity_type = match self.entity_type {
            Some(array) => Self::text(array, row).parse().map_err(|error| damaged(path, error))?,
            None => EntityType::Meter,
        };
        let metric = match last {
            Some(last) if *last.metric == *metric => Arc::clone(&last.metric),
            _ => Arc::from(metric),
        };
        Ok(Arc::new(SeriesKey { entity, entity_type, metric }))
    }
}

/// How many rows a file's footer says that it has. Blocks: for background threads.
pub(crate) fn read_footer_rows(handle: &Handle, storage: &Storage, file: &DataFile) -> Result<u64> {
    let reader = ObjectReader::new(storage, &file.stored);
    let builder = handle.block_on(ParquetRecordBatchStreamBuilder::new(reader))?;
    Ok(u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0))
}

/// The positions in a file of the rows with `from <= ts < to` of the series that `wanted` picks, in order. Deleted rows
/// are found, too. Blocks, so it is called from background threads.
pub(crate) fn find_positions(
    handle: &Handle,
    storage: &Storage,
    file: &DataFile,
    from: i64,
    to: i64,
    wanted: &dyn Fn(&SeriesKey) -> bool,
) -> Result<Vec<u64>> {
    let reader = ObjectReader::new(storage, &file.stored);
    let options = ArrowReaderOptions::new().with_schema(dictionary_schema());
    let builder = handle.block_on(ParquetRecordBatchStreamBuilder::new_with_options(reader, options))?;
    let mask = ProjectionMask::columns(
        builder.parquet_schema(),
        ["entity_id", "entity_type", "metric", "timestamp"],
    );
    let mut stream = builder.with_projection(mask).with_batch_size(BATCH_ROWS).build()?;
    let path = &file.stored.path;
    let mut positions = Vec::new();
    let mut first = 0;
    while let Some(batch) = handle.block_on(stream.next()) {
        let batch = batch.map_err(|error| damaged(path, error))?;
        let (columns, ts) = (KeyColumns::of(&batch, path)?, times(&batch, path)?);
        let mut last = None;
        let mut start = 0;
        while start < batch.num_rows() {
            let end = columns.run_end(start);
            let key = columns.key(start, last.as_ref(), path)?;
            if wanted(&key) {
                let times = &ts[start..end];
                let low = start + times.partition_point(|ts| *ts < from);
                let high = start + times.partition_point(|ts| *ts < to);
                positions.extend((low..high).map(|row| first + row as u64));
            }
            last = Some(key);
            start = end;
        }
        first += batch.num_rows() as u64;
    }
    Ok(positions)
}
