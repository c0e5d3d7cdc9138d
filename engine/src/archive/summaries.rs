//! Summaries by series and day inside a data file, so that rollups by days and more need not read its rows.
//!
//! They are a table of their own inside the file (docs/formats/day-summaries.md).

use std::{
    ops::{Range, RangeInclusive},
    sync::Arc,
};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, Float64Builder, Int64Builder, RecordBatch, StringDictionaryBuilder,
        UInt8Builder,
    },
    datatypes::{DataType, Field, Float64Type, Int32Type, Int64Type, Schema, UInt8Type},
};
use futures::TryStreamExt;
use jiff::tz::TimeZone;
use parquet::{
    arrow::{ArrowWriter, arrow_writer::ArrowWriterOptions},
    basic::{Compression, Encoding, ZstdLevel},
    file::properties::WriterProperties,
    schema::types::ColumnPath,
};
use wattlake_catalog::{DataFile, EntityId};
use wattlake_config::MetricKind;

use super::{
    Storage,
    calendar::{Calendar, LocalDay},
    embedded::Embedded,
    lookup::key_bounds,
};
use crate::{
    Error, Result, SeriesKey,
    meaning::{Meaning, Meanings},
    rows::Rows,
    summary::{HOLD_CADENCES, Point, Summary},
};

/// Days are read in groups. Each has the ids of its series, so that smaller ones would be larger in all.
const GROUP_DAYS: usize = 64 << 10;
/// They are few, so that this costs little.
const ZSTD_LEVEL: i32 = 15;
/// Days of fewer rows are summed up together with those after them, within a month, up to so many rows: a summary for each would be
/// nearly as large as its rows.
const SPARSE_ROWS: u64 = 64;
const JOINED_ROWS_MAX: u64 = 512;
/// A day of a series in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct DaySummary {
    pub entity: EntityId,
    /// How the metric was understood, and what the meter's cadence was, in seconds.
    pub kind: MetricKind,
    pub cadence: i64,
    /// The day's rows in the file, bad ones included.
    pub rows: Range<u64>,
    /// Whether all rows of it count: none was deleted or corrected.
    pub is_whole: bool,
    /// Of the readings that are good or estimated; `None`: all are bad. The sum of a register is not known.
    pub summary: Option<Summary>,
}

const TEXTS: [&str; 2] = ["metric", "entity_id"];
const INTEGERS: [&str; 10] = [
    "cadence",
    "first_row",
    "rows",
    "bad",
    "estimated",
    "first_ts",
    "span",
    "covered",
    "gaps",
    "register_span",
];
/// Numbers that readings have or add up to, each in two columns: in thousandths where that is exact, which is most often and takes
/// a third of the bytes, else as they are.
const NUMBERS: [&str; 8] = ["first", "last", "min", "max", "sum", "weighted", "increase", "register"];
/// Places in the list.
const FIRST: usize = 0;
const LAST: usize = 1;

fn schema() -> Schema {
    let text = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let texts = TEXTS.iter().map(|name| Field::new(*name, text.clone(), false));
    let kind = Field::new("kind", DataType::UInt8, false);
    let integers = INTEGERS.iter().map(|name| Field::new(*name, DataType::Int64, true));
    let milli = NUMBERS.iter().map(|name| Field::new(milli_name(name), DataType::Int64, true));
    let others = NUMBERS.iter().map(|name| Field::new(*name, DataType::Float64, true));
    Schema::new(texts.chain([kind]).chain(integers).chain(milli).chain(others).collect::<Vec<_>>())
}

fn milli_name(name: &str) -> String {
    format!("{name}_milli")
}

/// A number in thousandths, when it is one but for the rounding of adding up.
fn to_milli(value: f64) -> Option<i64> {
    let milli = (value * 1000.0).round();
    let is_exact = milli.abs() < 1e15 && (milli / 1000.0 - value).abs() <= value.abs() * 1e-13;
    is_exact.then_some(milli as i64)
}

/// Small numbers of either sign as small ones.
fn zigzag(n: i64) -> i64 {
    (n << 1) ^ (n >> 63)
}

fn from_zigzag(n: i64) -> i64 {
    ((n as u64 >> 1) as i64) ^ -(n & 1)
}

fn kind_number(kind: MetricKind) -> u8 {
    match kind {
        MetricKind::GaugeExtensive => 0,
        MetricKind::GaugeIntensive => 1,
        MetricKind::Interval => 2,
        MetricKind::Register => 3,
    }
}

fn kind_of(number: u8) -> Option<MetricKind> {
    [MetricKind::GaugeExtensive, MetricKind::GaugeIntensive, MetricKind::Interval, MetricKind::Register]
        .into_iter()
        .find(|kind| kind_number(*kind) == number)
}

/// Sums up the rows of a file while they are written.
pub(super) struct DaySummaryWriter {
    meanings: Arc<Meanings>,
    calendars: Vec<Calendar>,
    schema: Arc<Schema>,
    writer: ArrowWriter<Vec<u8>>,
    days: Days,
    open: Option<OpenDay>,
    rows: u64,
}

/// A day, or several that have few rows.
struct OpenDay {
    key: SeriesKey,
    meaning: Meaning,
    /// Place of its zone's calendar.
    calendar: usize,
    /// The last one of its days.
    day: LocalDay,
    rows: Range<u64>,
    rows_before_day: u64,
    summary: Option<Summary>,
}

impl DaySummaryWriter {
    pub(super) fn new(meanings: Arc<Meanings>) -> Result<Self> {
        let schema = Arc::new(schema());
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL).unwrap_or_default()))
            .set_max_row_group_row_count(Some(GROUP_DAYS));
        let milli = NUMBERS.iter().map(|name| milli_name(name));
        let numbers = NUMBERS.iter().map(|name| (*name).to_owned());
        for name in milli.chain(numbers) {
            properties = properties
                .set_column_dictionary_enabled(ColumnPath::from(name.as_str()), false)
                .set_column_encoding(ColumnPath::from(name), Encoding::BYTE_STREAM_SPLIT);
        }
        properties = properties
            .set_column_dictionary_enabled(ColumnPath::from("first_ts"), false)
            .set_column_encoding(ColumnPath::from("first_ts"), Encoding::DELTA_BINARY_PACKED);
        let options =
            ArrowWriterOptions::new().with_properties(properties.build()).with_skip_arrow_metadata(true);
        let writer = ArrowWriter::try_new_with_options(Vec::new(), Arc::clone(&schema), options)?;
        let days = Days::default();
        Ok(Self { meanings, calendars: Vec::new(), schema, writer, days, open: None, rows: 0 })
    }

    /// Takes the next rows of the file.
    pub(super) fn append(&mut self, key: &SeriesKey, rows: &Rows, range: Range<usize>) -> Result<()> {
        let mut start = range.start;
        while start < range.end {
            let ts = rows.ts[start];
            match &mut self.open {
                Some(open) if open.key == *key && ts < open.day.end => {}
                Some(open) if open.key == *key => {
                    let day = self.calendars[open.calendar].day_of(ts);
                    if !open.join(day) {
                        let next = OpenDay::new(key, open.meaning.clone(), open.calendar, day, self.rows);
                        self.close()?;
                        self.open = Some(next);
                    }
                }
                _ => {
                    self.close()?;
                    let meaning = self.meanings.of(key);
                    let calendar = self.calendar_of(&meaning.zone);
                    let day = self.calendars[calendar].day_of(ts);
                    self.open = Some(OpenDay::new(key, meaning, calendar, day, self.rows));
                }
            }
            let Some(open) = &mut self.open else { continue };
            let stop = start + rows.ts[start..range.end].partition_point(|ts| *ts < open.day.end);
            open.push(rows, start..stop);
            self.rows += (stop - start) as u64;
            start = stop;
        }
        Ok(())
    }

    fn calendar_of(&mut self, zone: &TimeZone) -> usize {
        self.calendars.iter().position(|calendar| calendar.is_of(zone)).unwrap_or_else(|| {
            self.calendars.push(Calendar::new(zone.clone()));
            self.calendars.len() - 1
        })
    }

    fn close(&mut self) -> Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        self.days.append(&open);
        if self.days.len == GROUP_DAYS {
            self.write_group()?;
        }
        Ok(())
    }

    fn write_group(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.days).finish(&self.schema)?;
        Ok(self.writer.write(&batch)?)
    }

    /// The table.
    pub(super) fn finish(mut self) -> Result<Vec<u8>> {
        self.close()?;
        self.write_group()?;
        Ok(self.writer.into_inner()?)
    }
}

impl OpenDay {
    fn new(key: &SeriesKey, meaning: Meaning, calendar: usize, day: LocalDay, row: u64) -> Self {
        let rows = row..row;
        Self { key: key.clone(), meaning, calendar, day, rows, rows_before_day: row, summary: None }
    }

    /// Goes on with a day after its own, if that is of the same month and its own has few rows.
    fn join(&mut self, next: LocalDay) -> bool {
        let rows = self.rows.end - self.rows.start;
        if rows >= JOINED_ROWS_MAX || self.rows.end - self.rows_before_day >= SPARSE_ROWS {
            return false;
        }
        let is_same_month = next.month == self.day.month;
        if is_same_month {
            self.day = next;
            self.rows_before_day = self.rows.end;
        }
        is_same_month
    }

    fn push(&mut self, rows: &Rows, range: Range<usize>) {
        self.rows.end += range.len() as u64;
        let hold = self.meaning.cadence * HOLD_CADENCES;
        for row in range {
            Summary::take_row(&mut self.summary, rows, row, self.meaning.kind, hold);
        }
    }
}

/// Days as columns. What follows from other columns is null.
struct Days {
    len: usize,
    texts: [StringDictionaryBuilder<Int32Type>; TEXTS.len()],
    kind: UInt8Builder,
    integers: [Int64Builder; INTEGERS.len()],
    milli: [Int64Builder; NUMBERS.len()],
    others: [Float64Builder; NUMBERS.len()],
    /// The series of the last day, and its last value in thousandths.
    previous: Option<(SeriesKey, i64)>,
}

impl Default for Days {
    fn default() -> Self {
        Self {
            len: 0,
            texts: std::array::from_fn(|_| StringDictionaryBuilder::new()),
            kind: UInt8Builder::new(),
            integers: std::array::from_fn(|_| Int64Builder::new()),
            milli: std::array::from_fn(|_| Int64Builder::new()),
            others: std::array::from_fn(|_| Float64Builder::new()),
            previous: None,
        }
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

impl Days {
    fn append(&mut self, day: &OpenDay) {
        self.texts[0].append_value(&*day.key.metric);
        self.texts[1].append_value(day.key.entity.to_string());
        let kind = day.meaning.kind;
        self.kind.append_value(kind_number(kind));
        let s = day.summary.as_ref();
        let is_gauge = kind == MetricKind::GaugeExtensive;
        let register = s.filter(|_| kind == MetricKind::Register);
        // A register that only rises is known by its first and its last value.
        let irregular = register.filter(|s| !s.is_rising);
        let uneven = s.filter(|s| is_gauge && s.count > 1 && s.step.is_none());
        let unless_rising = s.filter(|s| register.is_none() || !s.is_rising);
        let rows = day.rows.end - day.rows.start;
        let integers = [
            Some(day.meaning.cadence / 1_000_000),
            // Within a group it follows from the days before.
            (self.len == 0).then(|| signed(day.rows.start)),
            Some(signed(rows)),
            s.map(|s| signed(rows - s.count)),
            s.map(|s| signed(s.estimated)),
            s.map(|s| s.first.ts),
            s.map(|s| s.last.ts - s.first.ts),
            uneven.map(|s| s.covered),
            irregular.map(|s| signed(s.gaps)),
            irregular.map(|s| s.register.ts - s.first.ts),
        ];
        self.integers.iter_mut().zip(integers).for_each(|(column, value)| column.append_option(value));
        let numbers = [
            s.map(|s| s.first.value),
            s.map(|s| s.last.value),
            unless_rising.map(|s| s.min),
            unless_rising.map(|s| s.max),
            s.filter(|_| register.is_none()).map(|s| s.sum),
            uneven.map(|s| s.weighted / 1e6),
            irregular.and_then(|s| s.increase),
            irregular.map(|s| s.register.value),
        ];
        let mut milli = numbers.map(|number| number.and_then(to_milli));
        for (column, (number, milli)) in self.others.iter_mut().zip(numbers.iter().zip(&milli)) {
            column.append_option(number.filter(|_| milli.is_none()));
        }
        // The first value is near the last one of the day before, and the last one near the first.
        let (first, last) = (milli[FIRST], milli[LAST]);
        let before = self.previous.as_ref().filter(|(key, _)| *key == day.key).map_or(0, |(_, last)| *last);
        milli[FIRST] = first.map(|first| zigzag(first - before));
        milli[LAST] = last.map(|last| zigzag(last - first.unwrap_or(0)));
        self.milli.iter_mut().zip(milli).for_each(|(column, value)| column.append_option(value));
        self.previous = Some((day.key.clone(), last.unwrap_or(0)));
        self.len += 1;
    }

    fn finish(mut self, schema: &Arc<Schema>) -> Result<RecordBatch> {
        let mut columns: Vec<ArrayRef> = Vec::new();
        columns.extend(self.texts.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef));
        columns.push(Arc::new(self.kind.finish()));
        let integers = self.integers.iter_mut().chain(&mut self.milli);
        let (integers, others) =
            (integers.map(|column| Arc::new(column.finish()) as ArrayRef), &mut self.others);
        columns.extend(integers);
        columns.extend(others.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef));
        Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
    }
}

/// The days of a metric (`None`: of all) in a file, in the order of its rows, of entities in a range; `None` when the file has no
/// summaries.
pub(crate) async fn read_day_summaries(
    storage: &Storage,
    file: &DataFile,
    metric: Option<&str>,
    entities: &RangeInclusive<EntityId>,
) -> Result<Option<Vec<DaySummary>>> {
    let schema = Arc::new(schema());
    let Some(builder) = Embedded::DaySummaries.open(storage, file, &schema).await? else { return Ok(None) };
    let (low, high) = (entities.start().to_string(), entities.end().to_string());
    let bounds = key_bounds(builder.metadata(), &schema)?.into_iter().enumerate();
    let hit = bounds.filter(|(_, group)| metric.is_none_or(|metric| group.may_hold(metric, &low, &high)));
    let groups = hit.map(|(index, _)| index).collect();
    let mut stream = builder.with_row_groups(groups).with_batch_size(GROUP_DAYS).build()?;
    let mut reader = DayReader { metric, entities, next_row: 0, previous: None, days: Vec::new() };
    while let Some(batch) = stream.try_next().await? {
        reader.read(&batch).ok_or_else(|| {
            Error::corrupt(format!("data file {}: its day summaries are not readable", file.stored.path))
        })?;
    }
    Ok(Some(reader.days))
}

/// Takes the wanted days out of batches that come in order.
struct DayReader<'a> {
    metric: Option<&'a str>,
    entities: &'a RangeInclusive<EntityId>,
    next_row: u64,
    /// The series of the last day, and its last value in thousandths.
    previous: Option<(i32, EntityId, i64)>,
    days: Vec<DaySummary>,
}

impl DayReader<'_> {
    /// `None` when the batch is not as this module writes it.
    fn read(&mut self, batch: &RecordBatch) -> Option<()> {
        let texts = |name: &str| batch.column_by_name(name)?.as_dictionary_opt::<Int32Type>();
        let (metrics, ids) = (texts("metric")?, texts("entity_id")?);
        let wanted: Vec<bool> = metrics
            .values()
            .as_string_opt::<i32>()?
            .iter()
            .map(|text| self.metric.is_none() || text == self.metric)
            .collect();
        let known = ids.values().as_string_opt::<i32>()?.iter().map(|text| text?.parse::<EntityId>().ok());
        let known = known.collect::<Option<Vec<_>>>()?;
        let kinds = batch.column_by_name("kind")?.as_primitive_opt::<UInt8Type>()?;
        let (mut integers, mut milli, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for name in INTEGERS {
            integers.push(batch.column_by_name(name)?.as_primitive_opt::<Int64Type>()?);
        }
        for name in NUMBERS {
            milli.push(batch.column_by_name(&milli_name(name))?.as_primitive_opt::<Int64Type>()?);
            others.push(batch.column_by_name(name)?.as_primitive_opt::<Float64Type>()?);
        }
        for row in 0..batch.num_rows() {
            let integer = |i: usize| integers[i].is_valid(row).then(|| integers[i].value(row));
            if let Some(first_row) = integer(1) {
                self.next_row = u64::try_from(first_row).ok()?;
                self.previous = None;
            }
            let rows = self.next_row..self.next_row.checked_add(u64::try_from(integer(2)?).ok()?)?;
            self.next_row = rows.end;
            let metric = metrics.keys().value(row);
            if !*wanted.get(usize::try_from(metric).ok()?)? {
                self.previous = None;
                continue;
            }
            let entity = *known.get(usize::try_from(ids.keys().value(row)).ok()?)?;
            let mut thousandths: [Option<i64>; NUMBERS.len()] =
                std::array::from_fn(|i| milli[i].is_valid(row).then(|| milli[i].value(row)));
            let is_same = |(m, id, _): &(i32, EntityId, i64)| (*m, *id) == (metric, entity);
            let before = self.previous.filter(is_same).map_or(0, |(_, _, last)| last);
            thousandths[FIRST] = match thousandths[FIRST] {
                Some(delta) => Some(before.checked_add(from_zigzag(delta))?),
                None => None,
            };
            thousandths[LAST] = match thousandths[LAST] {
                Some(delta) => Some(thousandths[FIRST].unwrap_or(0).checked_add(from_zigzag(delta))?),
                None => None,
            };
            self.previous = Some((metric, entity, thousandths[LAST].unwrap_or(0)));
            if !self.entities.contains(&entity) {
                continue;
            }
            let number = |i: usize| match thousandths[i] {
                Some(milli) => Some(milli as f64 / 1000.0),
                None => others[i].is_valid(row).then(|| others[i].value(row)),
            };
            let kind = kind_of(kinds.value(row))?;
            let summary = match integer(3) {
                None => None,
                Some(bad) => {
                    let count = (rows.end - rows.start).checked_sub(u64::try_from(bad).ok()?)?;
                    Some(summary(kind, count, &integer, &number)?)
                }
            };
            self.days.push(DaySummary { entity, kind, cadence: integer(0)?, rows, is_whole: true, summary });
        }
        Some(())
    }
}

/// A summary with what was left out of the columns.
fn summary(
    kind: MetricKind,
    count: u64,
    integer: &dyn Fn(usize) -> Option<i64>,
    number: &dyn Fn(usize) -> Option<f64>,
) -> Option<Summary> {
    let (first_ts, span) = (integer(5)?, integer(6)?);
    let first = Point { ts: first_ts, value: number(FIRST)? };
    let last = Point { ts: first_ts.checked_add(span)?, value: number(LAST)? };
    let sum = number(4).unwrap_or(f64::NAN);
    let intervals = i64::try_from(count).ok()?.checked_sub(1)?;
    let step = (kind == MetricKind::GaugeExtensive && intervals > 0 && integer(7).is_none())
        .then(|| span / intervals.max(1));
    let register =
        integer(9).zip(number(7)).map(|(span, value)| Point { ts: first_ts.saturating_add(span), value });
    let is_rising = kind == MetricKind::Register && register.is_none();
    let weighted = number(5).map(|seconds| seconds * 1e6);
    Some(Summary {
        count,
        estimated: u64::try_from(integer(4)?).ok()?,
        first,
        last,
        min: number(2).unwrap_or(first.value),
        max: number(3).unwrap_or(last.value),
        sum,
        weighted: weighted.or_else(|| step.map(|step| (sum - last.value) * step as f64)).unwrap_or(0.0),
        covered: integer(7).unwrap_or(if step.is_some() { span } else { 0 }),
        increase: if is_rising { (count > 1).then_some(last.value - first.value) } else { number(6) },
        gaps: integer(8).unwrap_or(0).try_into().ok()?,
        register: register.unwrap_or(last),
        fallen: None,
        is_rising,
        step,
    })
}
