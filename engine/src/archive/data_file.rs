//! Writing data files: sorted by (metric, entity, timestamp), with the settings that measured smallest.

use std::{ops::Range, sync::Arc};

use ahash::AHashSet;
use arrow::{
    array::{ArrayRef, Float64Array, StringBuilder, TimestampMicrosecondArray},
    datatypes::{DataType, Schema},
};
use bytes::Bytes;
use parquet::{
    arrow::{
        ArrowWriter,
        arrow_writer::{ArrowColumnWriter, ArrowRowGroupWriterFactory, ArrowWriterOptions, compute_leaves},
    },
    basic::{Compression, Encoding, ZstdLevel},
    file::{
        metadata::KeyValue,
        properties::WriterProperties,
        writer::{SerializedFileWriter, SerializedRowGroupWriter},
    },
    schema::types::ColumnPath,
};
use wattlake_catalog::{BlockSums, EntityId, FileBounds, NewDataFile, StoredFile};

use super::{
    Storage,
    embedded::{Embedded, embed},
    measurement_schema,
    run_column::RunColumn,
    series_totals::SeriesTotalsWriter,
    summaries::{Stretch, SummaryWriter},
};
use crate::{Error, Result, SeriesKey, UnitId, meaning::Meanings, rows::Rows};

/// Rows of a row group: one group of a metric is skipped as a whole, larger ones compress no better.
const ROW_GROUP_ROWS: usize = 1 << 20;
const PAGE_ROWS: usize = 20_000;
/// Rows handed to Parquet's writers at once: they stay small beside the file.
const BATCH_ROWS: usize = 1 << 16;

/// How a file came to be, which says how long it will live: files of a flush are soon merged into larger ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Flush,
    Day,
    Month,
}

impl Level {
    /// The number in the manifest.
    pub(crate) const fn number(self) -> i64 {
        match self {
            Self::Flush => 0,
            Self::Day => 1,
            Self::Month => 2,
        }
    }

    pub(crate) const fn of_number(number: i64) -> Self {
        match number {
            ..=0 => Self::Flush,
            1 => Self::Day,
            2.. => Self::Month,
        }
    }

    fn zstd(self) -> ZstdLevel {
        let level = match self {
            Self::Flush => 1,
            Self::Day | Self::Month => 3,
        };
        ZstdLevel::try_new(level).unwrap_or_default()
    }
}

/// A data file in the making. Rows come in the order of the file.
pub(crate) struct DataFileEncoder {
    level: Level,
    schema: Arc<Schema>,
    file: SerializedFileWriter<Vec<u8>>,
    columns: ColumnFactories,
    group: Option<RowGroup>,
    /// Only in files that live long.
    summaries: Option<Summaries>,
    rows: u64,
    bounds: Option<Bounds>,
}

/// What the file says of its rows beside them.
struct Summaries {
    hours: SummaryWriter,
    days: SummaryWriter,
    totals: SeriesTotalsWriter,
}

struct Bounds {
    ts: (i64, i64),
    entity: (EntityId, EntityId),
    metric: (Arc<str>, Arc<str>),
}

impl DataFileEncoder {
    pub(crate) fn new(level: Level) -> Result<Self> {
        let schema = Arc::new(measurement_schema(&DataType::Utf8));
        let writer = |values: Values| {
            // Readers see plain strings, whatever Arrow's schema would tell them.
            let options = ArrowWriterOptions::new()
                .with_properties(properties(level, values))
                .with_skip_arrow_metadata(true);
            ArrowWriter::try_new_with_options(Vec::new(), Arc::clone(&schema), options)?
                .into_serialized_writer()
        };
        let (file, columns) = writer(Values::Dictionary)?;
        let (_, plain) = writer(Values::Plain)?;
        let columns = ColumnFactories { columns, plain };
        Ok(Self { level, schema, file, columns, group: None, summaries: None, rows: 0, bounds: None })
    }

    /// A file that also holds the summaries of its hours and days and the totals of its series.
    pub(crate) fn with_summaries(level: Level, meanings: Arc<Meanings>) -> Result<Self> {
        let summaries = Some(Summaries {
            hours: SummaryWriter::new(Stretch::Hour, Arc::clone(&meanings))?,
            days: SummaryWriter::new(Stretch::Day, meanings)?,
            totals: SeriesTotalsWriter::default(),
        });
        Ok(Self { summaries, ..Self::new(level)? })
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// Bytes encoded so far, about.
    pub(crate) fn bytes(&self) -> usize {
        self.file.bytes_written() + self.group.as_ref().map_or(0, RowGroup::bytes)
    }

    /// Appends some rows of a series.
    pub(crate) fn append(
        &mut self,
        key: &SeriesKey,
        rows: &Rows,
        range: Range<usize>,
        unit: &dyn Fn(UnitId) -> Arc<str>,
    ) -> Result<()> {
        let Some((first, last)) = rows.ts[range.clone()].first().zip(rows.ts[range.clone()].last()) else {
            return Ok(());
        };
        let bounds = self.bounds.get_or_insert_with(|| Bounds {
            ts: (*first, *last),
            entity: (key.entity, key.entity),
            metric: (Arc::clone(&key.metric), Arc::clone(&key.metric)),
        });
        bounds.ts = (bounds.ts.0.min(*first), bounds.ts.1.max(*last));
        bounds.entity = (bounds.entity.0.min(key.entity), bounds.entity.1.max(key.entity));
        if *bounds.metric.1 != *key.metric {
            bounds.metric.1 = Arc::clone(&key.metric);
        }
        self.rows += range.len() as u64;
        if let Some(Summaries { hours, days, totals }) = &mut self.summaries {
            hours.append(key, rows, range.clone())?;
            days.append(key, rows, range.clone())?;
            totals.append(key, rows, range.clone(), unit);
        }
        let mut rest = range;
        while !rest.is_empty() {
            let group = match &mut self.group {
                Some(group) => group,
                None => {
                    let index = self.file.flushed_row_groups().len();
                    self.group.insert(RowGroup::new(&self.columns, index)?)
                }
            };
            let take = rest.len().min(BATCH_ROWS - group.buffered()).min(ROW_GROUP_ROWS - group.rows);
            group.append(key, rows, rest.start..rest.start + take, unit);
            rest.start += take;
            if group.buffered() == BATCH_ROWS {
                group.write_buffers(&self.schema)?;
            }
            if group.rows == ROW_GROUP_ROWS {
                self.close_group()?;
            }
        }
        Ok(())
    }

    fn close_group(&mut self) -> Result<()> {
        match self.group.take() {
            Some(group) => group.finish(&self.schema, &mut self.file, self.level.zstd()),
            None => Ok(()),
        }
    }

    /// The whole file.
    ///
    /// # Errors
    /// When no row was appended.
    pub(crate) fn finish(mut self, month: &str) -> Result<EncodedFile> {
        let bounds = self.bounds.take().ok_or_else(|| Error::internal("a data file without rows"))?;
        self.close_group()?;
        let mut tables = Vec::new();
        if let Some(Summaries { hours, days, totals }) = self.summaries.take() {
            // In the order of their places.
            let found = [
                (Embedded::SeriesTotals, totals.into_table()?),
                (Embedded::HourSummaries, hours.finish()?),
                (Embedded::DaySummaries, days.finish()?),
            ];
            for (place, table) in found {
                if let Some(table) = table {
                    self.file.append_key_value_metadata(place.length_entry(&table));
                    tables.push(table);
                }
            }
        }
        let mut bytes = self.file.into_inner()?;
        embed(&mut bytes, &tables)?;
        let bytes = Bytes::from(bytes);
        let stored = describe(Storage::new_data_path(month), &bytes)?;
        let Bounds { ts, entity, metric } = bounds;
        let file = NewDataFile {
            stored,
            rows: self.rows,
            row_group_rows: ROW_GROUP_ROWS as u64,
            level: self.level.number(),
            bounds: FileBounds {
                min_ts: ts.0,
                max_ts: ts.1,
                min_entity: entity.0.to_string(),
                max_entity: entity.1.to_string(),
                min_metric: metric.0.to_string(),
                max_metric: metric.1.to_string(),
            },
            delete: None,
        };
        Ok(EncodedFile { file, bytes })
    }
}

/// An encoded data file: what the manifest needs to know of it, and its bytes. Nothing is visible before the commit.
pub(crate) struct EncodedFile {
    pub file: NewDataFile,
    pub bytes: Bytes,
}

/// Length of the footer of an encoded Parquet file, without its length field and magic number.
pub(super) fn footer_bytes(file: &[u8]) -> Result<u64> {
    let tail = file.len().checked_sub(8).map(|at| &file[at..]);
    let length = tail.and_then(|tail| tail.first_chunk::<4>()).map(|length| u32::from_le_bytes(*length));
    length
        .map(u64::from)
        .filter(|length| length + 8 <= file.len() as u64)
        .ok_or_else(|| Error::internal("an encoded Parquet file is too short"))
}

/// Hash, checksums, size and footer length of an encoded Parquet file.
pub(super) fn describe(path: String, bytes: &Bytes) -> Result<StoredFile> {
    let footer_bytes = footer_bytes(bytes)?;
    let blake3 = blake3::hash(bytes).to_hex().to_string();
    let sums = BlockSums::new(bytes.chunks(BlockSums::BLOCK_BYTES as usize).map(crc32c::crc32c));
    Ok(StoredFile { path, bytes: bytes.len() as u64, footer_bytes, blake3, sums })
}

/// How the values of a row group are coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Values {
    Dictionary,
    Plain,
}

impl Values {
    /// What is smaller for values that begin with these. A dictionary is worth it where values come again, other than right after
    /// themselves, which compression sees to: not of registers, which only rise.
    fn choose(first: &[f64]) -> Self {
        let runs = first.chunk_by(|a, b| a.to_bits() == b.to_bits());
        let (mut distinct, mut count) = (AHashSet::with_capacity(first.len()), 0);
        for run in runs {
            distinct.insert(run[0].to_bits());
            count += 1;
        }
        match distinct.len() > count - count / 10 && distinct.len() > first.len() / 8 {
            true => Self::Plain,
            false => Self::Dictionary,
        }
    }
}

/// Makes the column writers of a row group.
struct ColumnFactories {
    columns: ArrowRowGroupWriterFactory,
    /// The same with values that are not coded by a dictionary.
    plain: ArrowRowGroupWriterFactory,
}

/// Properties of every data file.
fn properties(level: Level, values: Values) -> WriterProperties {
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(level.zstd()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_write_batch_size(PAGE_ROWS)
        // Keys are uuids of 36 characters; a truncated bound would prune less.
        .set_statistics_truncate_length(Some(128))
        .set_column_index_truncate_length(Some(128))
        .set_created_by(concat!("wattlake ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_key_value_metadata(Some(vec![KeyValue::new("wattlake.format".to_owned(), "1".to_owned())]));
    if values == Values::Plain {
        builder = builder.set_column_dictionary_enabled(ColumnPath::from("value"), false);
    }
    for column in ["timestamp", "created_at"] {
        let path = ColumnPath::from(column);
        builder = builder
            .set_column_dictionary_enabled(path.clone(), false)
            .set_column_encoding(path, Encoding::DELTA_BINARY_PACKED);
    }
    builder.build()
}

/// A row group under construction: texts as runs, numbers with Parquet's own writers.
struct RowGroup {
    entity_id: RunColumn,
    entity_type: RunColumn,
    metric: RunColumn,
    unit: RunColumn,
    quality: RunColumn,
    writers: NumberWriters,
    /// Until the first values are known, which tell how they are coded.
    plain_value: Option<ArrowColumnWriter>,
    entity: Option<EntityId>,
    rows: usize,
    ts: Vec<i64>,
    value: Vec<f64>,
    metadata: StringBuilder,
    created_at: Vec<i64>,
}

/// Those of the columns that are not runs.
struct NumberWriters {
    ts: ArrowColumnWriter,
    value: ArrowColumnWriter,
    metadata: ArrowColumnWriter,
    created_at: ArrowColumnWriter,
}

/// Places of the columns in the schema.
const ENTITY_ID: usize = 0;
const ENTITY_TYPE: usize = 1;
const TIMESTAMP: usize = 2;
const METRIC: usize = 3;
const VALUE: usize = 4;
const UNIT: usize = 5;
const QUALITY: usize = 6;
const METADATA: usize = 7;
const CREATED_AT: usize = 8;

impl RowGroup {
    fn new(factories: &ColumnFactories, index: usize) -> Result<Self> {
        let make = |factory: &ArrowRowGroupWriterFactory| -> Result<Vec<_>> {
            Ok(factory.create_column_writers(index)?.into_iter().map(Some).collect())
        };
        let (mut writers, mut plain) = (make(&factories.columns)?, make(&factories.plain)?);
        let no_writer = |column: usize| Error::internal(format!("no writer for column {column}"));
        let mut take =
            |column: usize| writers.get_mut(column).and_then(Option::take).ok_or_else(|| no_writer(column));
        let writers = NumberWriters {
            ts: take(TIMESTAMP)?,
            value: take(VALUE)?,
            metadata: take(METADATA)?,
            created_at: take(CREATED_AT)?,
        };
        Ok(Self {
            entity_id: RunColumn::default(),
            entity_type: RunColumn::default(),
            metric: RunColumn::default(),
            unit: RunColumn::default(),
            quality: RunColumn::default(),
            writers,
            plain_value: plain.get_mut(VALUE).and_then(Option::take),
            entity: None,
            rows: 0,
            ts: Vec::new(),
            value: Vec::new(),
            metadata: StringBuilder::new(),
            created_at: Vec::new(),
        })
    }

    /// Rows that Parquet's writers have not got yet.
    fn buffered(&self) -> usize {
        self.ts.len()
    }

    fn bytes(&self) -> usize {
        let texts = [&self.entity_id, &self.entity_type, &self.metric, &self.unit, &self.quality];
        let NumberWriters { ts, value, metadata, created_at } = &self.writers;
        let numbers = [ts, value, metadata, created_at];
        texts.iter().map(|column| column.bytes()).sum::<usize>()
            + numbers.iter().map(|column| column.get_estimated_total_bytes()).sum::<usize>()
    }

    fn append(
        &mut self,
        key: &SeriesKey,
        rows: &Rows,
        range: Range<usize>,
        unit: &dyn Fn(UnitId) -> Arc<str>,
    ) {
        let count = range.len();
        self.rows += count;
        if self.entity == Some(key.entity) {
            self.entity_id.push_again(count);
        } else {
            self.entity = Some(key.entity);
            self.entity_id.push(&key.entity.to_string(), count);
        }
        self.entity_type.push(key.entity_type.as_str(), count);
        self.metric.push(&key.metric, count);
        for run in rows.unit[range.clone()].chunk_by(|a, b| a == b) {
            self.unit.push(&unit(run[0]), run.len());
        }
        for run in rows.quality[range.clone()].chunk_by(|a, b| a == b) {
            self.quality.push(run[0].as_str(), run.len());
        }
        self.ts.extend_from_slice(&rows.ts[range.clone()]);
        self.value.extend_from_slice(&rows.value[range.clone()]);
        self.created_at.extend_from_slice(&rows.created_at[range.clone()]);
        if rows.metadata.is_empty() {
            self.metadata.append_nulls(count);
        } else {
            rows.metadata_of(range).for_each(|text| self.metadata.append_option(text));
        }
    }

    fn write_buffers(&mut self, schema: &Schema) -> Result<()> {
        let time = |values: Vec<i64>| -> ArrayRef {
            Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC"))
        };
        let write = |writer: &mut ArrowColumnWriter, column: usize, array: ArrayRef| -> Result<()> {
            for leaf in compute_leaves(schema.field(column), &array)? {
                writer.write(&leaf)?;
            }
            Ok(())
        };
        if let Some(plain) = self.plain_value.take()
            && Values::choose(&self.value) == Values::Plain
        {
            self.writers.value = plain;
        }
        let NumberWriters { ts, value, metadata, created_at } = &mut self.writers;
        write(ts, TIMESTAMP, time(std::mem::take(&mut self.ts)))?;
        write(value, VALUE, Arc::new(Float64Array::from(std::mem::take(&mut self.value))))?;
        write(metadata, METADATA, Arc::new(self.metadata.finish()))?;
        write(created_at, CREATED_AT, time(std::mem::take(&mut self.created_at)))
    }

    fn finish(
        mut self,
        schema: &Schema,
        file: &mut SerializedFileWriter<Vec<u8>>,
        zstd: ZstdLevel,
    ) -> Result<()> {
        if self.buffered() > 0 {
            self.write_buffers(schema)?;
        }
        let columns = file.schema_descr().columns().to_vec();
        let mut group = file.next_row_group()?;
        let text = |group: &mut SerializedRowGroupWriter<'_, Vec<u8>>, place: usize, texts: RunColumn| {
            let (bytes, close) = texts.finish(&columns[place], zstd, PAGE_ROWS)?;
            group.append_column(&bytes, close).map_err(Error::from)
        };
        // In the order of the schema.
        text(&mut group, ENTITY_ID, self.entity_id)?;
        text(&mut group, ENTITY_TYPE, self.entity_type)?;
        self.writers.ts.close()?.append_to_row_group(&mut group)?;
        text(&mut group, METRIC, self.metric)?;
        self.writers.value.close()?.append_to_row_group(&mut group)?;
        text(&mut group, UNIT, self.unit)?;
        text(&mut group, QUALITY, self.quality)?;
        self.writers.metadata.close()?.append_to_row_group(&mut group)?;
        self.writers.created_at.close()?.append_to_row_group(&mut group)?;
        group.close()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_come_again_have_a_dictionary() {
        // Each stands for a while.
        let register: Vec<f64> = (0..60_000).map(|n| f64::from(n / 2) / 100.0).collect();
        assert_eq!(Values::choose(&register), Values::Plain);
        let power: Vec<f64> = (0..60_000).map(|n| f64::from(n * 7919 % 20_011) / 1000.0).collect();
        assert_eq!(Values::choose(&power), Values::Dictionary);
        let state = [0.0, 1.0].repeat(1000);
        for values in [&state[..], &[5.0; 1000], &[]] {
            assert_eq!(Values::choose(values), Values::Dictionary);
        }
    }
}
