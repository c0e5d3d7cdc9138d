//! Reading some stretches of rows of a data file: what day summaries do not say enough of.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{AsArray, RecordBatch},
    datatypes::{Float64Type, Int32Type, TimestampMicrosecondType},
};
use futures::TryStreamExt;
use parquet::{
    arrow::{
        ParquetRecordBatchStreamBuilder, ProjectionMask,
        arrow_reader::{ArrowReaderOptions, RowSelection, RowSelector},
    },
    file::metadata::PageIndexPolicy,
};
use wattlake_catalog::{DataFile, Quality};

use super::{Storage, object_reader::ObjectReader, rows_between, scan::dictionary_schema};
use crate::{Error, Result};

const BATCH_ROWS: usize = 16_384;

/// A reading as a file holds it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StoredReading {
    /// Microseconds since 1970 UTC.
    pub ts: i64,
    pub value: f64,
    pub quality: Quality,
}

/// Reads stretches of rows, which ascend and lie apart, without the `hidden` ones, which ascend, too. Answers the readings of each.
pub(crate) async fn read_row_ranges(
    storage: &Storage,
    file: &DataFile,
    ranges: &[Range<u64>],
    hidden: &[u64],
) -> Result<Vec<Vec<StoredReading>>> {
    let mut selectors: Vec<RowSelector> = Vec::new();
    let mut lengths = Vec::with_capacity(ranges.len());
    let mut next = 0;
    for range in ranges {
        if range.start > next {
            selectors.push(RowSelector::skip((range.start - next) as usize));
        }
        let inside =
            hidden.partition_point(|row| *row < range.start)..hidden.partition_point(|row| *row < range.end);
        lengths.push((range.end - range.start) as usize - inside.len());
        selectors.extend(Vec::from(rows_between(range.start, range.end, &hidden[inside])));
        next = range.end;
    }
    let mut readings = Vec::with_capacity(lengths.iter().sum());
    let columns = ["timestamp", "value", "quality"];
    read_selected(storage, file, selectors.into(), &columns, |batch| {
        append(batch, &mut readings).ok_or_else(|| not_readings(file))
    })
    .await?;
    check_count(file, readings.len(), lengths.iter().sum())?;
    let mut readings = readings.into_iter();
    Ok(lengths.into_iter().map(|length| readings.by_ref().take(length).collect()).collect())
}

/// Reads single rows, whose positions ascend, with their units.
pub(crate) async fn read_rows_at(
    storage: &Storage,
    file: &DataFile,
    positions: &[u64],
) -> Result<Vec<(StoredReading, Arc<str>)>> {
    let mut selectors = Vec::with_capacity(positions.len() * 2);
    let mut next = 0;
    for position in positions {
        selectors.push(RowSelector::skip((position - next) as usize));
        selectors.push(RowSelector::select(1));
        next = position + 1;
    }
    let (mut readings, mut units) =
        (Vec::with_capacity(positions.len()), Vec::with_capacity(positions.len()));
    if !positions.is_empty() {
        let columns = ["timestamp", "value", "unit", "quality"];
        let mut take = |batch: &RecordBatch| {
            append(batch, &mut readings)?;
            let unit = batch.column_by_name("unit")?.as_dictionary_opt::<Int32Type>()?;
            let texts = unit.values().as_string_opt::<i32>()?;
            let texts: Vec<Arc<str>> = texts.iter().map(|text| text.map(Arc::from)).collect::<Option<_>>()?;
            for key in unit.keys().values() {
                units.push(Arc::clone(texts.get(usize::try_from(*key).ok()?)?));
            }
            Some(())
        };
        read_selected(storage, file, selectors.into(), &columns, |batch| {
            take(batch).ok_or_else(|| not_readings(file))
        })
        .await?;
    }
    check_count(file, readings.len(), positions.len())?;
    Ok(readings.into_iter().zip(units).collect())
}

/// Reads some columns of some rows. Pages without any of the rows are not read.
pub(super) async fn read_selected(
    storage: &Storage,
    file: &DataFile,
    rows: RowSelection,
    columns: &[&str],
    mut take: impl FnMut(&RecordBatch) -> Result<()>,
) -> Result<()> {
    let options = ArrowReaderOptions::new()
        .with_schema(dictionary_schema())
        .with_page_index_policy(PageIndexPolicy::Optional);
    let reader = ObjectReader::new(storage, &file.stored);
    let builder = ParquetRecordBatchStreamBuilder::new_with_options(reader, options).await?;
    let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
    let mut stream =
        builder.with_projection(mask).with_row_selection(rows).with_batch_size(BATCH_ROWS).build()?;
    while let Some(batch) = stream.try_next().await? {
        take(&batch)?;
    }
    Ok(())
}

fn not_readings(file: &DataFile) -> Error {
    Error::corrupt(format!("data file {}: not a table of readings", file.stored.path))
}

fn check_count(file: &DataFile, found: usize, wanted: usize) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    Err(Error::corrupt(format!("data file {} has other rows than its footer says", file.stored.path)))
}

fn append(batch: &RecordBatch, readings: &mut Vec<StoredReading>) -> Option<()> {
    let ts = batch.column_by_name("timestamp")?.as_primitive_opt::<TimestampMicrosecondType>()?;
    let value = batch.column_by_name("value")?.as_primitive_opt::<Float64Type>()?;
    let quality = batch.column_by_name("quality")?.as_dictionary_opt::<Int32Type>()?;
    let texts = quality.values().as_string_opt::<i32>()?;
    let known = texts.iter().map(|text| text?.parse::<Quality>().ok()).collect::<Option<Vec<_>>>()?;
    for row in 0..batch.num_rows() {
        let quality = *known.get(usize::try_from(quality.keys().value(row)).ok()?)?;
        readings.push(StoredReading { ts: ts.value(row), value: value.value(row), quality });
    }
    Some(())
}
