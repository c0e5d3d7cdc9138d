//! Tables: Arrow streams and Parquet files by column name, plain or mapped.

use std::{io::Cursor, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, Float64Array, RecordBatch, StringArray},
    buffer::ScalarBuffer,
    datatypes::{DataType, Field, Int32Type, Int64Type, Schema, TimeUnit, TimestampMicrosecondType},
    ipc::reader::StreamReader,
};
use bytes::Bytes;
use parquet::{
    arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
    errors::ParquetError,
    file::reader::ChunkReader,
};

use wattlake_catalog::Quality;

use super::{
    arrow_stream,
    codes::SeriesByCodes,
    time::{LocalClock, TimeReader},
};
use crate::{
    Error, ErrorKind, Result,
    ingest::{Collector, IngestRequest, SeriesName, SeriesSlot, TableMapping, ValueColumn, parse_quality},
};

/// A body may decode to this many times its size, but not to more than a limit; what is below a floor is fine.
const RATIO_MAX: i64 = 100;
const DECODED_MAX: i64 = 1 << 30;
const DECODED_FLOOR: i64 = 64 << 20;
const BATCH_ROWS: usize = 64 << 10;
/// What a row takes in memory at least: a page of a few bytes may hold millions.
pub(super) const ROW_BYTES: i64 = 32;

/// The columns of a table, found by name before the first row is read.
#[derive(Debug)]
pub(super) struct TablePlan {
    pub entity: Option<String>,
    pub entity_name: Option<String>,
    pub timestamp: String,
    pub entity_type: Option<String>,
    pub quality: Option<String>,
    pub metadata: Option<String>,
    pub readings: Readings,
}

#[derive(Debug)]
pub(super) enum Readings {
    /// One reading a row, with its metric in a column.
    Long { metric: String, value: String, unit: Option<String> },
    /// Several readings a row, a metric a column.
    Wide(Vec<ValueColumn>),
}

impl TablePlan {
    /// Finds our columns, camelCase or snake_case, or those that the mapping names.
    pub(super) fn new(columns: &[String], mapping: Option<&TableMapping>) -> Result<Self> {
        let default = TableMapping::default();
        let is_mapped = mapping.is_some();
        let mapping = mapping.unwrap_or(&default);
        let find =
            |names: &[&str]| names.iter().find(|n| columns.iter().any(|c| c == *n)).map(|n| (*n).to_owned());
        let missing = |what: &str| {
            Error::invalid(format!("column `{what}` is missing; the table has {}", columns.join(", ")))
        };
        let named = |name: &Option<String>, names: &[&str]| -> Result<Option<String>> {
            match name {
                Some(name) => find(&[name]).ok_or_else(|| missing(name)).map(Some),
                None => Ok(find(names)),
            }
        };
        let entity = match mapping.entity_name {
            Some(_) => None,
            None => Some(
                named(&mapping.entity, &["entityId", "entity_id"])?.ok_or_else(|| missing("entity_id"))?,
            ),
        };
        let readings = if mapping.values.is_empty() {
            Readings::Long {
                metric: find(&["metric"]).ok_or_else(|| missing("metric"))?,
                value: find(&["value"]).ok_or_else(|| missing("value"))?,
                unit: find(&["unit"]),
            }
        } else {
            for value in &mapping.values {
                find(&[&value.column]).ok_or_else(|| missing(&value.column))?;
            }
            Readings::Wide(mapping.values.clone())
        };
        let plan = Self {
            entity,
            entity_name: mapping.entity_name.clone(),
            timestamp: find(&[mapping.time_column()]).ok_or_else(|| missing(mapping.time_column()))?,
            entity_type: find(&["entityType", "entity_type"]),
            quality: named(&mapping.quality, &["quality"])?,
            metadata: find(&["metadata"]),
            readings,
        };
        // Columns that mean nothing are only fine in a table that is mapped, or in one that we wrote.
        let ours = ["created_at", "createdAt", "id"];
        let known = |column: &String| {
            ours.contains(&column.as_str())
                || *column == plan.timestamp
                || [&plan.entity, &plan.entity_type, &plan.quality, &plan.metadata]
                    .iter()
                    .any(|named| named.as_ref() == Some(column))
                || matches!(&plan.readings, Readings::Long { metric, value, unit }
                    if column == metric || column == value || Some(column) == unit.as_ref())
        };
        if !is_mapped && let Some(unknown) = columns.iter().find(|column| !known(column)) {
            return Err(Error::invalid(format!(
                "unknown column `{unknown}`; valid are entity_id, entity_type, timestamp, metric, value, unit, quality, \
                 metadata"
            )));
        }
        Ok(plan)
    }
}

pub(super) fn decode_batch(
    request: &IngestRequest,
    batch: &RecordBatch,
    collector: &mut Collector,
) -> Result<()> {
    collector.take_hints(batch.schema_ref().metadata());
    TableDecoder::new(request)?.decode(batch, collector)
}

pub(super) fn decode_arrow(request: &IngestRequest, body: &Bytes, collector: &mut Collector) -> Result<()> {
    if body.is_empty() {
        return Err(Error::invalid("the body is empty; send an Arrow IPC stream"));
    }
    arrow_stream::check(body)?;
    let malformed = |error| Error::invalid(format!("the body is not an Arrow IPC stream: {error}"));
    let reader = StreamReader::try_new(Cursor::new(&body[..]), None).map_err(malformed)?;
    let mut table = TableDecoder::new(request)?;
    collector.take_hints(reader.schema().metadata());
    for batch in reader {
        table.decode(&batch.map_err(malformed)?, collector)?;
    }
    Ok(())
}

/// Refuses what would decode to far more than it is.
pub(super) fn check_decoded(what: &str, decoded: i64, bytes: usize) -> Result<()> {
    let limit = (bytes as i64).saturating_mul(RATIO_MAX).min(DECODED_MAX);
    if decoded <= limit.max(DECODED_FLOOR) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::TooLarge,
        format!("{what} would decode to {decoded} bytes; send smaller ones, or use `wattlake import`"),
    ))
}

pub(super) fn decode_parquet(request: &IngestRequest, body: &Bytes, collector: &mut Collector) -> Result<()> {
    let malformed = |error| Error::invalid(format!("the body is not a Parquet file: {error}"));
    let footer = read_footer(body).map_err(malformed)?;
    let metadata = footer.metadata();
    let pages =
        metadata.row_groups().iter().map(|group| group.total_byte_size()).fold(0, i64::saturating_add);
    let decoded = pages.max(metadata.file_metadata().num_rows().saturating_mul(ROW_BYTES));
    check_decoded("the Parquet file", decoded, body.len())?;
    let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(body.clone(), footer);
    let mut table = TableDecoder::new(request)?;
    let reader = builder.with_batch_size(BATCH_ROWS).build().map_err(malformed)?;
    for batch in reader {
        let batch = batch.map_err(|error| Error::invalid(format!("the Parquet file is damaged: {error}")))?;
        table.decode(&batch, collector)?;
    }
    Ok(())
}

/// Reads record batches of one schema.
struct TableDecoder<'a> {
    mapping: Option<&'a TableMapping>,
    times: TimeReader,
    row: u64,
}

impl<'a> TableDecoder<'a> {
    fn new(request: &'a IngestRequest) -> Result<Self> {
        let mapping = request.mapping.as_deref();
        Ok(Self { mapping, times: TimeReader::new(request)?, row: 0 })
    }

    fn decode(&mut self, batch: &RecordBatch, collector: &mut Collector) -> Result<()> {
        let columns: Vec<_> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
        let plan = TablePlan::new(&columns, self.mapping)?;
        let column = |name: &str| -> Result<ArrayRef> {
            batch
                .column_by_name(name)
                .cloned()
                .ok_or_else(|| Error::invalid(format!("column `{name}` is missing")))
        };
        let texts = |name: &str| Texts::new(name, &column(name)?);
        let optional = |name: &Option<String>| name.as_deref().map(texts).transpose();
        let (entity, entity_type) = (optional(&plan.entity)?, optional(&plan.entity_type)?);
        let qualities = optional(&plan.quality)?;
        let metadata = plan.metadata.as_deref().map(|name| text(name, &column(name)?)).transpose()?;
        let time = TimeColumn::new(&plan.timestamp, &column(&plan.timestamp)?)?;
        let readings = match &plan.readings {
            Readings::Long { metric, value, unit } => vec![ReadingColumn {
                metrics: Some(texts(metric)?),
                units: optional(unit)?,
                unit: None,
                ..ReadingColumn::of(number(value, &column(value)?)?)
            }],
            Readings::Wide(wide) => wide
                .iter()
                .map(|of_metric| {
                    let values = number(&of_metric.column, &column(&of_metric.column)?)?;
                    let (metric, unit) = (of_metric.metric.as_str(), of_metric.unit.as_deref());
                    Ok(ReadingColumn { metric, unit, ..ReadingColumn::of(values) })
                })
                .collect::<Result<_>>()?,
        };
        let quality_of: Vec<_> = qualities.iter().flat_map(|q| q.values.iter()).map(parse_quality).collect();
        // Dictionary codes name a series within the batch: each combination is understood once.
        let size = |texts: Option<&Texts>| texts.map_or(0, |texts| texts.values.len());
        let most = |sizes: &mut dyn Iterator<Item = usize>| sizes.max().unwrap_or(0);
        let metrics = most(&mut readings.iter().map(|column| size(column.metrics.as_ref())));
        let units = most(&mut readings.iter().map(|column| size(column.units.as_ref())));
        let kinds = [size(entity_type.as_ref()), metrics, units, readings.len()];
        let mut known: SeriesByCodes<Result<SeriesSlot, (&'static str, String)>> =
            SeriesByCodes::new(size(entity.as_ref()), kinds);
        let instants = time.instants();
        collector.reserve(batch.num_rows() * readings.len());
        for i in 0..batch.num_rows() {
            let row = self.row;
            self.row += 1;
            let entity_text = match (&entity, &plan.entity_name) {
                (Some(column), _) => column.get(i),
                (None, name) => name.as_deref(),
            };
            let Some(entity_text) = entity_text else {
                collector.refuse(row, "invalid", "entity id is null");
                continue;
            };
            // A long table has one reading a row, so that its metric tells the series; a wide one has one time a row.
            let metric =
                || readings.first().and_then(|only| only.metrics.as_ref()?.get(i)).unwrap_or_default();
            let ts = match instants {
                Some(instants) => instants[i],
                None => match time.read(i, &mut self.times, entity_text, metric()) {
                    Ok(ts) => ts,
                    Err(message) => {
                        collector.refuse(row, "invalid", message);
                        continue;
                    }
                },
            };
            let quality = match qualities.as_ref().map_or(-1, |texts| texts.codes[i]) {
                ..0 => Quality::Good,
                code => match &quality_of[code as usize] {
                    Ok(quality) => *quality,
                    Err(message) => {
                        collector.refuse(row, "invalid", message.clone());
                        continue;
                    }
                },
            };
            for (index, of_metric) in readings.iter().enumerate() {
                // In a wide table an empty cell is no reading; in a long one it is an error.
                if of_metric.has_nulls && of_metric.values.is_null(i) {
                    if of_metric.metrics.is_some() {
                        collector.refuse(row, "invalid", "value is null");
                    }
                    continue;
                }
                let code = |texts: Option<&Texts>| texts.map_or(-1, |texts| texts.codes[i]);
                let kind = [
                    code(entity_type.as_ref()),
                    code(of_metric.metrics.as_ref()),
                    code(of_metric.units.as_ref()),
                    index as i32,
                ];
                let series = known.get_or_insert_with(code(entity.as_ref()), kind, || {
                    collector.named_series(&SeriesName {
                        entity: entity_text,
                        entity_type: entity_type.as_ref().and_then(|texts| texts.get(i)),
                        metric: of_metric.metrics.as_ref().and_then(|m| m.get(i)).unwrap_or(of_metric.metric),
                        unit: of_metric.units.as_ref().and_then(|u| u.get(i)).or(of_metric.unit),
                    })
                });
                match series {
                    Ok(series) => {
                        let metadata =
                            metadata.as_ref().filter(|texts| texts.is_valid(i)).map(|t| t.value(i));
                        collector.push_value(row, *series, ts, of_metric.values.value(i), quality, metadata);
                    }
                    Err((kind, message)) => collector.refuse(row, kind, message.clone()),
                }
            }
        }
        Ok(())
    }
}

/// The readings of one column: their metric and unit come from columns beside it, or are the same for all.
struct ReadingColumn<'a> {
    metrics: Option<Texts>,
    metric: &'a str,
    units: Option<Texts>,
    unit: Option<&'a str>,
    values: Float64Array,
    has_nulls: bool,
}

impl ReadingColumn<'_> {
    fn of(values: Float64Array) -> Self {
        let has_nulls = values.null_count() > 0;
        Self { metrics: None, metric: "", units: None, unit: None, values, has_nulls }
    }
}

/// A text column by dictionary codes; -1 where there is no text.
struct Texts {
    codes: ScalarBuffer<i32>,
    values: StringArray,
}

impl Texts {
    fn new(name: &str, array: &ArrayRef) -> Result<Self> {
        let not_text = |error| Error::invalid(format!("column `{name}` is not text: {error}"));
        let array = arrow::compute::cast(array, &dictionary_type()).map_err(not_text)?;
        let array = array.as_dictionary::<Int32Type>();
        let (keys, values) = (array.keys(), array.values().as_string::<i32>().clone());
        let mut codes = keys.values().clone();
        if keys.null_count() > 0 || values.null_count() > 0 {
            let has_text = |i: usize| keys.is_valid(i) && values.is_valid(keys.value(i) as usize);
            codes = (0..keys.len()).map(|i| if has_text(i) { keys.value(i) } else { -1 }).collect();
        }
        Ok(Self { codes, values })
    }

    fn get(&self, i: usize) -> Option<&str> {
        let code = self.codes[i];
        (code >= 0).then(|| self.values.value(code as usize))
    }
}

fn dictionary_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

/// Reads the footer of a Parquet file, whose texts then come as dictionaries, as most files store them. A foreign Arrow
/// schema in it is not trusted.
pub(super) fn read_footer(file: &impl ChunkReader) -> Result<ArrowReaderMetadata, ParquetError> {
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let plain = ArrowReaderMetadata::load(file, options.clone())?;
    let fields = plain.schema().fields().iter().map(|field| match field.data_type() {
        DataType::Utf8 if field.name() != "metadata" => {
            Field::new(field.name(), dictionary_type(), field.is_nullable())
        }
        _ => Field::clone(field),
    });
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    ArrowReaderMetadata::try_new(Arc::clone(plain.metadata()), options.with_schema(schema))
}

/// A time column in one of the forms that files have.
pub(super) enum TimeColumn {
    Instant(ArrayRef),
    Local(ArrayRef),
    Text(StringArray),
    Number(ArrayRef),
}

impl TimeColumn {
    pub(super) fn new(name: &str, array: &ArrayRef) -> Result<Self> {
        let cast = |to: &DataType| {
            arrow::compute::cast(array, to)
                .map_err(|error| Error::invalid(format!("column `{name}` is not a time: {error}")))
        };
        match array.data_type() {
            DataType::Timestamp(_, Some(_)) => {
                Ok(Self::Instant(cast(&DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC"))))?))
            }
            DataType::Timestamp(_, None) | DataType::Date32 | DataType::Date64 => {
                Ok(Self::Local(cast(&DataType::Timestamp(TimeUnit::Microsecond, None))?))
            }
            t if t.is_integer() => Ok(Self::Number(cast(&DataType::Int64)?)),
            _ => Ok(Self::Text(text(name, array)?)),
        }
    }

    /// All times, when they are instants and none is missing.
    fn instants(&self) -> Option<&[i64]> {
        match self {
            Self::Instant(array) if array.null_count() == 0 => {
                Some(array.as_primitive::<TimestampMicrosecondType>().values())
            }
            _ => None,
        }
    }

    fn is_null(&self, i: usize) -> bool {
        match self {
            Self::Instant(array) | Self::Local(array) | Self::Number(array) => array.is_null(i),
            Self::Text(array) => array.is_null(i),
        }
    }

    fn read(&self, i: usize, times: &mut TimeReader, entity: &str, metric: &str) -> Result<i64, String> {
        if self.is_null(i) {
            return Err("timestamp is null".to_owned());
        }
        match self {
            Self::Instant(array) => Ok(array.as_primitive::<TimestampMicrosecondType>().value(i)),
            Self::Local(array) => {
                times.read_naive(array.as_primitive::<TimestampMicrosecondType>().value(i), entity, metric)
            }
            Self::Number(array) => {
                times.read(&array.as_primitive::<Int64Type>().value(i).to_string(), entity, metric)
            }
            Self::Text(array) => times.read(array.value(i), entity, metric),
        }
    }

    /// Whether row `i` has a local time that the clock shows twice.
    pub(super) fn is_repeated(&self, i: usize, clock: &LocalClock) -> bool {
        if self.is_null(i) {
            return false;
        }
        match self {
            Self::Instant(_) | Self::Number(_) => false,
            Self::Local(array) => {
                clock.is_repeated_naive(array.as_primitive::<TimestampMicrosecondType>().value(i))
            }
            Self::Text(array) => clock.is_repeated(array.value(i)),
        }
    }
}

fn text(name: &str, array: &ArrayRef) -> Result<StringArray> {
    let array = arrow::compute::cast(array, &DataType::Utf8)
        .map_err(|error| Error::invalid(format!("column `{name}` is not text: {error}")))?;
    Ok(array.as_string::<i32>().clone())
}

fn number(name: &str, array: &ArrayRef) -> Result<Float64Array> {
    let options = arrow::compute::CastOptions { safe: false, ..Default::default() };
    let array = arrow::compute::cast_with_options(array, &DataType::Float64, &options)
        .map_err(|error| Error::invalid(format!("column `{name}` is not a number: {error}")))?;
    Ok(array.as_primitive().clone())
}
