//! Writing data files: sorted by (metric, entity, timestamp), with the settings that measured smallest.

use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, DictionaryArray, Float64Array, Int32Array, RecordBatch, StringArray, StringBuilder,
        TimestampMicrosecondArray,
    },
    datatypes::{DataType, Int32Type},
};
use bytes::Bytes;
use parquet::{
    arrow::{ArrowWriter, arrow_writer::ArrowWriterOptions},
    basic::{Compression, Encoding, ZstdLevel},
    file::{metadata::KeyValue, properties::WriterProperties},
    schema::types::ColumnPath,
};
use wattlake_catalog::{FileBounds, NewDataFile, Quality, StoredFile};

use super::{Storage, measurement_schema};
use crate::{
    Error, Result,
    version::{HotSeries, HotView},
};

/// Rows of a row group: one group of a metric is skipped as a whole, larger ones compress no better.
const ROW_GROUP_ROWS: usize = 1 << 20;
const PAGE_ROWS: usize = 20_000;

/// Rows for one file, series by series in the order of the file.
pub(crate) type FileRows = Vec<HotSeries>;

/// Writes a file and answers what the manifest needs to know of it; nothing is visible before the commit.
pub(crate) async fn write_data_file(
    storage: &Storage,
    view: &HotView,
    month: &str,
    rows: FileRows,
) -> Result<NewDataFile> {
    let view = view.clone();
    let encode = move || encode(&view, &rows).map(|encoded| (encoded, bounds(&rows)));
    let ((bytes, rows), bounds) = tokio::task::spawn_blocking(encode)
        .await
        .map_err(|error| Error::internal(format!("encoding a file panicked: {error}")))??;
    let bounds = bounds.ok_or_else(|| Error::internal("a data file without rows"))?;
    let stored = describe(Storage::new_data_path(month), &bytes)?;
    storage.put(&stored.path, bytes).await?;
    let row_group_rows = ROW_GROUP_ROWS as u64;
    Ok(NewDataFile { stored, rows, row_group_rows, level: 0, bounds })
}

/// Hash, size and footer length of an encoded Parquet file.
pub(super) fn describe(path: String, bytes: &Bytes) -> Result<StoredFile> {
    let tail = bytes.len().checked_sub(8).map(|at| &bytes[at..]);
    let footer_bytes = tail
        .and_then(|tail| tail.first_chunk::<4>())
        .map(|length| u64::from(u32::from_le_bytes(*length)))
        .ok_or_else(|| Error::internal("an encoded Parquet file is too short"))?;
    let blake3 = blake3::hash(bytes).to_hex().to_string();
    Ok(StoredFile { path, bytes: bytes.len() as u64, footer_bytes, blake3 })
}

fn bounds(rows: &[HotSeries]) -> Option<FileBounds> {
    let (first, last) = (rows.first()?, rows.last()?);
    let entities = || rows.iter().map(|series| series.key.entity);
    Some(FileBounds {
        min_ts: rows.iter().filter_map(|series| series.rows.first()).map(|row| row.ts).min()?,
        max_ts: rows.iter().filter_map(|series| series.rows.last()).map(|row| row.ts).max()?,
        min_entity: entities().min()?.to_string(),
        max_entity: entities().max()?.to_string(),
        min_metric: first.key.metric.to_string(),
        max_metric: last.key.metric.to_string(),
    })
}

/// Properties of every data file.
fn properties() -> WriterProperties {
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).unwrap_or_default()))
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

fn encode(view: &HotView, rows: &[HotSeries]) -> Result<(Bytes, u64)> {
    let text = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let schema = Arc::new(measurement_schema(&text));
    // Readers see plain strings: the Arrow schema, with its dictionaries, stays out of the file.
    let options = ArrowWriterOptions::new().with_properties(properties()).with_skip_arrow_metadata(true);
    let mut writer = ArrowWriter::try_new_with_options(Vec::new(), Arc::clone(&schema), options)?;
    let mut total = 0;
    // Batches of some series keep the Arrow form small beside the rows themselves.
    let mut start = 0;
    while start < rows.len() {
        let mut end = start;
        let mut count = 0;
        while end < rows.len() && (count == 0 || count + rows[end].rows.len() <= ROW_GROUP_ROWS / 8) {
            count += rows[end].rows.len();
            end += 1;
        }
        writer.write(&to_record_batch(view, &rows[start..end], &schema)?)?;
        total += count as u64;
        start = end;
    }
    Ok((Bytes::from(writer.into_inner()?), total))
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
fn to_record_batch(
    view: &HotView,
    series: &[HotSeries],
    schema: &Arc<arrow::datatypes::Schema>,
) -> Result<RecordBatch> {
    let rows = || series.iter().flat_map(|series| &series.rows);
    let [mut entity_id, mut entity_type, mut metric, mut unit, mut quality] =
        std::array::from_fn(|_| TextColumn::default());
    let mut metadata = StringBuilder::new();
    for one in series {
        entity_id.push_new_run(one.key.entity.to_string(), one.rows.len());
        entity_type.push_run(one.key.entity_type.as_str(), one.rows.len());
        metric.push_run(&one.key.metric, one.rows.len());
        for run in one.rows.chunk_by(|a, b| a.unit == b.unit) {
            unit.push_run(&view.unit(&run[0]), run.len());
        }
        for row in &one.rows {
            metadata.append_option(row.metadata.as_deref());
        }
    }
    Quality::ALL.iter().for_each(|q| quality.values.push(q.as_str().to_owned()));
    quality.keys.extend(rows().map(|row| i32::from(crate::batch::quality_code(row.quality))));
    let time = |values: Vec<i64>| -> ArrayRef {
        Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC"))
    };
    let metadata: ArrayRef = Arc::new(metadata.finish());
    let columns = vec![
        entity_id.finish()?,
        entity_type.finish()?,
        time(rows().map(|row| row.ts).collect()),
        metric.finish()?,
        Arc::new(Float64Array::from_iter_values(rows().map(|row| row.value))),
        unit.finish()?,
        quality.finish()?,
        arrow::compute::cast(&metadata, schema.field(7).data_type())?,
        time(rows().map(|row| row.created_at).collect()),
    ];
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}
