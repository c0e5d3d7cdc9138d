//! Writing data files: sorted by (metric, entity, timestamp), with the settings that measured smallest.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{
        ArrayRef, DictionaryArray, Float64Array, Int32Array, RecordBatch, StringArray, StringBuilder,
        TimestampMicrosecondArray,
    },
    datatypes::{DataType, Int32Type, Schema},
};
use bytes::Bytes;
use parquet::{
    arrow::{ArrowWriter, arrow_writer::ArrowWriterOptions},
    basic::{Compression, Encoding, ZstdLevel},
    file::{
        metadata::KeyValue,
        properties::{EnabledStatistics, WriterProperties},
    },
    schema::types::ColumnPath,
};
use wattlake_catalog::{BlockSums, EntityId, FileBounds, NewDataFile, Quality, StoredFile};

use super::{
    Storage,
    day_summaries::{DaySummaryWriter, embed, length_entry},
    measurement_schema,
};
use crate::{Error, Result, SeriesKey, UnitId, meaning::Meanings, rows::Rows};

/// Rows of a row group: one group of a metric is skipped as a whole, larger ones compress no better.
const ROW_GROUP_ROWS: usize = 1 << 20;
const PAGE_ROWS: usize = 20_000;
/// Row groups of spilled files: several are read side by side, each as a whole.
const SPILL_GROUP_ROWS: usize = 64 << 10;
/// Rows handed to the Parquet writer at once: their Arrow form stays small beside the file.
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

    const fn zstd_level(self) -> i32 {
        match self {
            Self::Flush => 1,
            Self::Day | Self::Month => 3,
        }
    }
}

/// A data file in the making. Rows come in the order of the file.
pub(crate) struct DataFileEncoder {
    level: Level,
    schema: Arc<Schema>,
    writer: ArrowWriter<Vec<u8>>,
    columns: Columns,
    /// Only in files that live long.
    days: Option<DaySummaryWriter>,
    rows: u64,
    bounds: Option<Bounds>,
}

struct Bounds {
    ts: (i64, i64),
    entity: (EntityId, EntityId),
    metric: (Arc<str>, Arc<str>),
}

impl DataFileEncoder {
    pub(crate) fn new(level: Level) -> Result<Self> {
        Self::with_properties(level, properties(level))
    }

    /// A file that also holds the summaries of its days.
    pub(crate) fn with_day_summaries(level: Level, meanings: Arc<Meanings>) -> Result<Self> {
        let days = Some(DaySummaryWriter::new(meanings)?);
        Ok(Self { days, ..Self::new(level)? })
    }

    /// A file that is read once and soon: written fast instead of small.
    pub(crate) fn for_spill() -> Result<Self> {
        let fast = WriterProperties::builder()
            .set_max_row_group_row_count(Some(SPILL_GROUP_ROWS))
            .set_column_dictionary_enabled(ColumnPath::from("value"), false)
            .set_column_dictionary_enabled(ColumnPath::from("timestamp"), false)
            .set_column_dictionary_enabled(ColumnPath::from("created_at"), false)
            .set_column_encoding(ColumnPath::from("timestamp"), Encoding::DELTA_BINARY_PACKED)
            .set_column_encoding(ColumnPath::from("created_at"), Encoding::DELTA_BINARY_PACKED)
            .set_statistics_enabled(EnabledStatistics::None);
        Self::with_properties(Level::Flush, fast.build())
    }

    fn with_properties(level: Level, properties: WriterProperties) -> Result<Self> {
        let text = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        let schema = Arc::new(measurement_schema(&text));
        // Readers see plain strings: the Arrow schema, with its dictionaries, stays out of the file.
        let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
        let writer = ArrowWriter::try_new_with_options(Vec::new(), Arc::clone(&schema), options)?;
        Ok(Self { level, schema, writer, columns: Columns::default(), days: None, rows: 0, bounds: None })
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// Bytes encoded so far, about.
    pub(crate) fn bytes(&self) -> usize {
        self.writer.bytes_written() + self.writer.in_progress_size()
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
        if let Some(days) = &mut self.days {
            days.append(key, rows, range.clone())?;
        }
        let mut rest = range;
        while !rest.is_empty() {
            let take = rest.len().min(BATCH_ROWS - self.columns.len());
            self.columns.append(key, rows, rest.start..rest.start + take, unit);
            rest.start += take;
            if self.columns.len() == BATCH_ROWS {
                self.write_columns()?;
            }
        }
        Ok(())
    }

    fn write_columns(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.columns).finish(&self.schema)?;
        Ok(self.writer.write(&batch)?)
    }

    /// The whole file.
    ///
    /// # Errors
    /// When no row was appended.
    pub(crate) fn finish(mut self, month: &str) -> Result<EncodedFile> {
        let bounds = self.bounds.take().ok_or_else(|| Error::internal("a data file without rows"))?;
        if self.columns.len() > 0 {
            self.write_columns()?;
        }
        let days = self.days.take().map(DaySummaryWriter::finish).transpose()?;
        if let Some(table) = &days {
            self.writer.append_key_value_metadata(length_entry(table));
        }
        let mut bytes = self.writer.into_inner()?;
        if let Some(table) = &days {
            embed(&mut bytes, table)?;
        }
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

/// Properties of every data file.
fn properties(level: Level) -> WriterProperties {
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(level.zstd_level()).unwrap_or_default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_write_batch_size(PAGE_ROWS)
        // Keys are uuids of 36 characters; a truncated bound would prune less.
        .set_statistics_truncate_length(Some(128))
        .set_column_index_truncate_length(Some(128))
        .set_created_by(concat!("wattlake ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_key_value_metadata(Some(vec![KeyValue::new("wattlake.format".to_owned(), "1".to_owned())]));
    for column in ["timestamp", "created_at"] {
        let path = ColumnPath::from(column);
        builder = builder
            .set_column_dictionary_enabled(path.clone(), false)
            .set_column_encoding(path, Encoding::DELTA_BINARY_PACKED);
    }
    builder.build()
}

/// A dictionary column under construction: one key a row, each distinct text once.
#[derive(Default)]
struct TextColumn {
    keys: Vec<i32>,
    values: Vec<String>,
}

impl TextColumn {
    fn push_run(&mut self, text: &str, rows: usize) {
        let key = match self.values.last() {
            Some(last) if last == text => self.values.len() - 1,
            _ => self.values.iter().position(|known| known == text).unwrap_or_else(|| {
                self.values.push(text.to_owned());
                self.values.len() - 1
            }),
        };
        self.keys.extend(std::iter::repeat_n(key as i32, rows));
    }

    fn repeat_last(&mut self, rows: usize) {
        self.keys.extend(std::iter::repeat_n(self.values.len() as i32 - 1, rows));
    }

    /// For texts that come once: no search for an earlier one.
    fn push_new_run(&mut self, text: String, rows: usize) {
        self.values.push(text);
        self.keys.extend(std::iter::repeat_n((self.values.len() - 1) as i32, rows));
    }

    fn finish(self) -> Result<ArrayRef> {
        let values: ArrayRef = Arc::new(StringArray::from_iter_values(self.values));
        Ok(Arc::new(DictionaryArray::<Int32Type>::try_new(Int32Array::from(self.keys), values)?))
    }
}

/// Rows as the columns of `measurements` with dictionary-coded strings.
#[derive(Default)]
struct Columns {
    entity_id: TextColumn,
    entity_type: TextColumn,
    metric: TextColumn,
    unit: TextColumn,
    entity: Option<EntityId>,
    ts: Vec<i64>,
    value: Vec<f64>,
    quality: Vec<i32>,
    metadata: StringBuilder,
    created_at: Vec<i64>,
}

impl Columns {
    fn len(&self) -> usize {
        self.ts.len()
    }

    fn append(
        &mut self,
        key: &SeriesKey,
        rows: &Rows,
        range: Range<usize>,
        unit: &dyn Fn(UnitId) -> Arc<str>,
    ) {
        let count = range.len();
        if self.entity == Some(key.entity) {
            self.entity_id.repeat_last(count);
        } else {
            self.entity = Some(key.entity);
            self.entity_id.push_new_run(key.entity.to_string(), count);
        }
        self.entity_type.push_run(key.entity_type.as_str(), count);
        self.metric.push_run(&key.metric, count);
        for run in rows.unit[range.clone()].chunk_by(|a, b| a == b) {
            self.unit.push_run(&unit(run[0]), run.len());
        }
        self.ts.extend_from_slice(&rows.ts[range.clone()]);
        self.value.extend_from_slice(&rows.value[range.clone()]);
        self.quality
            .extend(rows.quality[range.clone()].iter().map(|q| i32::from(crate::batch::quality_code(*q))));
        self.created_at.extend_from_slice(&rows.created_at[range.clone()]);
        if rows.metadata.is_empty() {
            self.metadata.append_nulls(count);
        } else {
            rows.metadata_of(range).for_each(|text| self.metadata.append_option(text));
        }
    }

    fn finish(mut self, schema: &Arc<Schema>) -> Result<RecordBatch> {
        let mut quality = TextColumn { keys: self.quality, ..TextColumn::default() };
        Quality::ALL.iter().for_each(|q| quality.values.push(q.as_str().to_owned()));
        let time = |values: Vec<i64>| -> ArrayRef {
            Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC"))
        };
        let metadata: ArrayRef = Arc::new(self.metadata.finish());
        let columns = vec![
            self.entity_id.finish()?,
            self.entity_type.finish()?,
            time(self.ts),
            self.metric.finish()?,
            Arc::new(Float64Array::from(self.value)),
            self.unit.finish()?,
            quality.finish()?,
            arrow::compute::cast(&metadata, schema.field(7).data_type())?,
            time(self.created_at),
        ];
        Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
    }
}
