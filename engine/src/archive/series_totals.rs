//! Totals of each series inside a data file: how many readings, their sum and their extremes. A file holds rows of one month, so
//! that aggregates over months and more need neither its rows nor its days.
//!
//! They are a table of their own inside the file (docs/formats/series-totals.md).

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{
        ArrayAccessor, ArrayRef, AsArray, Float64Builder, Int64Builder, RecordBatch, StringArray,
        StringDictionaryBuilder, TimestampMicrosecondBuilder,
    },
    datatypes::{DataType, Field, Int32Type, Int64Type, Schema, TimeUnit, TimestampMicrosecondType},
};
use futures::TryStreamExt;
use parquet::{
    arrow::{ArrowWriter, arrow_writer::ArrowWriterOptions},
    basic::{Compression, Encoding, ZstdLevel},
    file::properties::WriterProperties,
    schema::types::ColumnPath,
};
use wattlake_catalog::{DataFile, EntityId, EntityType, Quality};

use super::{
    Storage,
    embedded::Embedded,
    spacing::{Spacing, SpacingBuilder},
};
use crate::{Error, Result, SeriesKey, UnitId, rows::Rows};

/// They are few, so that this costs little.
const ZSTD_LEVEL: i32 = 15;
/// A file whose totals stand for fewer rows than this, on average, has none: they would be nearly as large as its rows.
const ROWS_PER_TOTAL_MIN: u64 = 32;
/// A series has one total for each unit and quality that its rows have. A file with a series of more has no totals.
const TOTALS_PER_SERIES_MAX: usize = 16;

/// The totals of one file.
#[derive(Debug)]
pub struct SeriesTotals {
    /// One row for each series, unit and quality: `metric`, `entity_id`, `entity_type`, `unit`, `quality` (dictionaries of texts),
    /// `rows` (number), `first`, `last` (times of readings), `sum`, `min`, `max` (of their values, in `unit`), `early`, `late` (of the
    /// whole series).
    pub batch: RecordBatch,
    /// In the order of the file; together they are all of its rows.
    pub series: Vec<TotalledSeries>,
}

/// A series in a file and its totals.
#[derive(Clone, Debug, PartialEq)]
pub struct TotalledSeries {
    pub key: SeriesKey,
    /// Rows of the batch.
    pub totals: Range<usize>,
    /// Rows of the file.
    pub rows: Range<u64>,
    /// Times of the first and the last reading.
    pub times: (i64, i64),
    /// `None` in files of builds that did not write it.
    spacing: Option<Spacing>,
}

impl TotalledSeries {
    /// The rows of the file that may hold readings with `from <= ts < to`: all that do, and few others.
    pub fn rows_between(&self, from: i64, to: i64) -> Range<u64> {
        let Range { start, end } = self.rows;
        let found = match self.spacing {
            Some(spacing) => spacing.rows_between(end - start, self.times, (from, to)),
            None if self.times.0 < to && from <= self.times.1 => 0..end - start,
            None => 0..0,
        };
        start + found.start..start + found.end
    }
}

const TEXTS: [&str; 5] = ["metric", "entity_id", "entity_type", "unit", "quality"];
const TIMES: [&str; 2] = ["first", "last"];
const NUMBERS: [&str; 3] = ["sum", "min", "max"];
const SPACING: [&str; 2] = ["early", "late"];

fn schema() -> Schema {
    let text = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC")));
    let texts = TEXTS.iter().map(|name| Field::new(*name, text.clone(), false));
    let times = TIMES.iter().map(|name| Field::new(*name, time.clone(), false));
    let numbers = NUMBERS.iter().map(|name| Field::new(*name, DataType::Float64, false));
    let rows = Field::new("rows", DataType::Int64, false);
    let spacing = SPACING.iter().map(|name| Field::new(*name, DataType::Int64, false));
    Schema::new(texts.chain([rows]).chain(times).chain(numbers).chain(spacing).collect::<Vec<_>>())
}

/// Readings of a series in one unit and quality.
#[derive(Clone, Debug)]
struct Total {
    entity_type: EntityType,
    unit: UnitId,
    unit_text: Arc<str>,
    quality: Quality,
    rows: u64,
    first: i64,
    last: i64,
    sum: f64,
    min: f64,
    max: f64,
}

impl Total {
    /// Of no reading yet.
    fn none(
        entity_type: EntityType,
        (unit, unit_text): (UnitId, Arc<str>),
        quality: Quality,
        first: i64,
    ) -> Self {
        let (min, max) = (f64::INFINITY, f64::NEG_INFINITY);
        Self { entity_type, unit, unit_text, quality, rows: 0, first, last: first, sum: 0.0, min, max }
    }

    /// Takes the next readings.
    fn add(&mut self, values: &[f64], last: i64) {
        self.rows += values.len() as u64;
        self.last = last;
        for value in values {
            self.sum += value;
            self.min = self.min.min(*value);
            self.max = self.max.max(*value);
        }
    }
}

/// Adds up the rows of a file while they are written.
pub(crate) struct SeriesTotalsWriter {
    open: Option<SeriesKey>,
    totals: Vec<Total>,
    /// Of the open series.
    times_seen: SpacingBuilder,
    rows: u64,
    /// Whether a series has too many totals.
    is_given_up: bool,
    texts: [StringDictionaryBuilder<Int32Type>; TEXTS.len()],
    counts: Int64Builder,
    times: [TimestampMicrosecondBuilder; TIMES.len()],
    numbers: [Float64Builder; NUMBERS.len()],
    spacing: [Int64Builder; SPACING.len()],
}

impl Default for SeriesTotalsWriter {
    fn default() -> Self {
        Self {
            open: None,
            totals: Vec::new(),
            times_seen: SpacingBuilder::default(),
            rows: 0,
            is_given_up: false,
            texts: std::array::from_fn(|_| StringDictionaryBuilder::new()),
            counts: Int64Builder::new(),
            times: std::array::from_fn(|_| TimestampMicrosecondBuilder::new().with_timezone("UTC")),
            numbers: std::array::from_fn(|_| Float64Builder::new()),
            spacing: std::array::from_fn(|_| Int64Builder::new()),
        }
    }
}

impl SeriesTotalsWriter {
    /// Takes the next rows of the file.
    pub(crate) fn append(
        &mut self,
        key: &SeriesKey,
        rows: &Rows,
        range: Range<usize>,
        unit: &dyn Fn(UnitId) -> Arc<str>,
    ) {
        if self.open.as_ref().is_some_and(|open| open.sort_key() != key.sort_key()) {
            self.close();
        }
        if self.open.as_ref() != Some(key) {
            self.open = Some(key.clone());
        }
        self.times_seen.push(&rows.ts[range.clone()]);
        let mut start = range.start;
        while start < range.end {
            let (of_unit, quality) = (rows.unit[start], rows.quality[start]);
            let alike = |row: &usize| rows.unit[*row] == of_unit && rows.quality[*row] == quality;
            let end = start + (start..range.end).take_while(alike).count();
            let times = (rows.ts[start], rows.ts[end - 1]);
            let values = &rows.value[start..end];
            start = end;
            let is_same = |total: &Total| {
                total.entity_type == key.entity_type && total.unit == of_unit && total.quality == quality
            };
            let place = match self.totals.iter().position(is_same) {
                Some(place) => place,
                None if self.totals.len() == TOTALS_PER_SERIES_MAX => {
                    self.is_given_up = true;
                    continue;
                }
                None => {
                    self.totals.push(Total::none(
                        key.entity_type,
                        (of_unit, unit(of_unit)),
                        quality,
                        times.0,
                    ));
                    self.totals.len() - 1
                }
            };
            self.totals[place].add(values, times.1);
        }
        self.rows += range.len() as u64;
    }

    fn close(&mut self) {
        let (Some(key), totals) = (self.open.take(), std::mem::take(&mut self.totals)) else { return };
        let Spacing { early, late } = self.times_seen.finish();
        if self.is_given_up {
            return;
        }
        let entity = key.entity.to_string();
        for total in totals {
            let (kind, quality) = (total.entity_type.as_str(), total.quality.as_str());
            let texts = [&*key.metric, &entity, kind, &*total.unit_text, quality];
            self.texts.iter_mut().zip(texts).for_each(|(column, text)| column.append_value(text));
            self.counts.append_value(total.rows.try_into().unwrap_or(i64::MAX));
            let times = [total.first, total.last];
            self.times.iter_mut().zip(times).for_each(|(column, time)| column.append_value(time));
            let numbers = [total.sum, total.min, total.max];
            self.numbers.iter_mut().zip(numbers).for_each(|(column, number)| column.append_value(number));
            self.spacing
                .iter_mut()
                .zip([early, late])
                .for_each(|(column, micros)| column.append_value(micros));
        }
    }

    /// All totals; `None` when a series has too many.
    pub(crate) fn into_batch(mut self) -> Result<Option<RecordBatch>> {
        self.close();
        if self.is_given_up {
            return Ok(None);
        }
        let mut columns: Vec<ArrayRef> = Vec::new();
        columns.extend(self.texts.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef));
        columns.push(Arc::new(self.counts.finish()));
        columns.extend(self.times.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef));
        columns.extend(self.numbers.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef));
        columns.extend(self.spacing.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef));
        Ok(Some(RecordBatch::try_new(Arc::new(schema()), columns)?))
    }

    /// The table as it lies in a file; `None` when the file is better off without.
    pub(super) fn into_table(self) -> Result<Option<Vec<u8>>> {
        let rows = self.rows;
        let totals = self.into_batch()?.filter(|t| rows >= ROWS_PER_TOTAL_MIN * t.num_rows() as u64);
        totals.as_ref().map(encode).transpose()
    }
}

fn encode(totals: &RecordBatch) -> Result<Vec<u8>> {
    let zstd = ZstdLevel::try_new(ZSTD_LEVEL).unwrap_or_default();
    let mut properties = WriterProperties::builder().set_compression(Compression::ZSTD(zstd));
    let times = TIMES.iter().chain(&SPACING).map(|name| (*name, Encoding::DELTA_BINARY_PACKED));
    let numbers = NUMBERS.iter().map(|name| (*name, Encoding::BYTE_STREAM_SPLIT));
    for (name, encoding) in times.chain(numbers) {
        let path = ColumnPath::from(name);
        properties =
            properties.set_column_dictionary_enabled(path.clone(), false).set_column_encoding(path, encoding);
    }
    let options =
        ArrowWriterOptions::new().with_properties(properties.build()).with_skip_arrow_metadata(true);
    let mut writer = ArrowWriter::try_new_with_options(Vec::new(), totals.schema(), options)?;
    writer.write(totals)?;
    Ok(writer.into_inner()?)
}

/// The totals of a file; `None` when it has none.
pub(crate) async fn read_series_totals(storage: &Storage, file: &DataFile) -> Result<Option<SeriesTotals>> {
    let Some(builder) = Embedded::SeriesTotals.open(storage, file, &schema()).await? else { return Ok(None) };
    let schema = Arc::clone(builder.schema());
    let rows = usize::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0).max(1);
    let batches: Vec<_> = builder.with_batch_size(rows).build()?.try_collect().await?;
    let batch = arrow::compute::concat_batches(&schema, &batches)?;
    let unreadable =
        || Error::corrupt(format!("data file {}: its series totals are not readable", file.stored.path));
    let series = series_of(&batch).ok_or_else(unreadable)?;
    let end = series.last().map_or(0, |last| last.rows.end);
    if end != file.rows {
        return Err(unreadable());
    }
    Ok(Some(SeriesTotals { batch, series }))
}

/// The series of totals; `None` when these are not as this module writes them.
fn series_of(totals: &RecordBatch) -> Option<Vec<TotalledSeries>> {
    let texts = |name: &str| {
        let texts = totals.column_by_name(name)?.as_dictionary_opt::<Int32Type>()?;
        texts.downcast_dict::<StringArray>()
    };
    let (metrics, entities, types) = (texts("metric")?, texts("entity_id")?, texts("entity_type")?);
    let rows = totals.column_by_name("rows")?.as_primitive_opt::<Int64Type>()?;
    let time = |name: &str| totals.column_by_name(name)?.as_primitive_opt::<TimestampMicrosecondType>();
    let (first, last) = (time("first")?, time("last")?);
    let micros = |name: &str| totals.column_by_name(name)?.as_primitive_opt::<Int64Type>();
    let off_line = micros("early").zip(micros("late"));
    let mut series: Vec<TotalledSeries> = Vec::new();
    let mut known = ("", "");
    let mut position = 0;
    for row in 0..totals.num_rows() {
        let (metric, entity) = (metrics.value(row), entities.value(row));
        let end = u64::try_from(rows.value(row)).ok().and_then(|rows| rows.checked_add(position))?;
        match series.last_mut() {
            Some(open) if known == (metric, entity) => {
                open.totals.end = row + 1;
                open.rows.end = end;
                open.times = (open.times.0.min(first.value(row)), open.times.1.max(last.value(row)));
            }
            before => {
                let metric_text = match before {
                    Some(before) if known.0 == metric => Arc::clone(&before.key.metric),
                    _ => Arc::from(metric),
                };
                let entity_type: EntityType = types.value(row).parse().ok()?;
                let key =
                    SeriesKey { entity: entity.parse::<EntityId>().ok()?, entity_type, metric: metric_text };
                series.push(TotalledSeries {
                    key,
                    totals: row..row + 1,
                    rows: position..end,
                    times: (first.value(row), last.value(row)),
                    spacing: off_line
                        .map(|(early, late)| Spacing { early: early.value(row), late: late.value(row) }),
                });
                known = (metric, entity);
            }
        }
        position = end;
    }
    Some(series)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const MINUTE: i64 = 60_000_000;

    fn key(entity: u128) -> SeriesKey {
        let entity = EntityId(Uuid::from_u128(entity));
        SeriesKey { entity, entity_type: EntityType::Meter, metric: Arc::from("power") }
    }

    /// Rows a minute apart from their values, qualities and units.
    fn rows(readings: &[(f64, Quality, u32)]) -> Rows {
        Rows {
            ts: (0..readings.len() as i64).map(|minute| minute * MINUTE).collect(),
            value: readings.iter().map(|(value, ..)| *value).collect(),
            quality: readings.iter().map(|(_, quality, _)| *quality).collect(),
            unit: readings.iter().map(|(.., unit)| UnitId(*unit)).collect(),
            created_at: vec![0; readings.len()],
            metadata: Vec::new(),
        }
    }

    fn unit(id: UnitId) -> Arc<str> {
        Arc::from(format!("unit {}", id.0))
    }

    proptest! {
        #[test]
        fn totals_are_those_of_all_rows(
            readings in prop::collection::vec((-800i32..800, 0usize..3, 0u32..2), 1..80), parts in 1usize..10, many in 1u128..4,
        ) {
            let qualities = [Quality::Good, Quality::Estimated, Quality::Bad];
            let readings: Vec<_> =
                readings.iter().map(|(v, q, u)| (f64::from(*v) / 16.0, qualities[*q], *u)).collect();
            let rows = rows(&readings);
            let mut writer = SeriesTotalsWriter::default();
            for entity in 0..many {
                for start in (0..readings.len()).step_by(parts) {
                    writer.append(&key(entity), &rows, start..readings.len().min(start + parts), &unit);
                }
            }
            let batch = writer.into_batch().expect("totals").expect("not too many");
            let series = series_of(&batch).expect("series");
            let places: Vec<_> = series.iter().map(|one| (one.key.clone(), one.rows.clone())).collect();
            let len = readings.len() as u64;
            let expected: Vec<_> =
                (0..many).map(|n| (key(n), n as u64 * len..(n as u64 + 1) * len)).collect();
            prop_assert_eq!(places, expected);
            let column = |name: &str| batch.column_by_name(name).expect("column");
            let texts = |name| column(name).as_dictionary::<Int32Type>().downcast_dict::<StringArray>().expect("texts");
            let number = |name, row| column(name).as_primitive::<arrow::datatypes::Float64Type>().value(row);
            let time = |name, row| column(name).as_primitive::<TimestampMicrosecondType>().value(row);
            for one in series {
                prop_assert_eq!(one.times, (0, (len as i64 - 1) * MINUTE));
                for row in one.totals {
                    let mine: Vec<usize> = (0..readings.len())
                        .filter(|i| {
                            let (_, quality, of_unit) = readings[*i];
                            texts("quality").value(row) == quality.as_str()
                                && texts("unit").value(row) == &*unit(UnitId(of_unit))
                        })
                        .collect();
                    let values: Vec<f64> = mine.iter().map(|i| readings[*i].0).collect();
                    prop_assert_eq!(column("rows").as_primitive::<Int64Type>().value(row), mine.len() as i64);
                    prop_assert_eq!(number("sum", row), values.iter().sum::<f64>());
                    prop_assert_eq!(number("min", row), values.iter().copied().fold(f64::INFINITY, f64::min));
                    prop_assert_eq!(number("max", row), values.iter().copied().fold(f64::NEG_INFINITY, f64::max));
                    prop_assert_eq!(time("first", row), mine[0] as i64 * MINUTE);
                    prop_assert_eq!(time("last", row), mine[mine.len() - 1] as i64 * MINUTE);
                }
            }
        }
    }

    #[test]
    fn files_of_too_many_totals_have_none() {
        let table = |units: u32, each: usize| {
            let readings: Vec<_> =
                (0..units).flat_map(|unit| vec![(1.0, Quality::Good, unit); each]).collect();
            let mut writer = SeriesTotalsWriter::default();
            writer.append(&key(1), &rows(&readings), 0..readings.len(), &unit);
            writer.into_table().expect("table").is_some()
        };
        assert!(table(1, 32) && table(16, 32));
        assert!(!table(17, 100), "a series of too many units");
        assert!(!table(1, 31) && !table(2, 20), "hardly fewer totals than rows");
    }
}
