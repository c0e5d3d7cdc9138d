//! Summaries of the hours and of the days of each series inside a data file, so that rollups need not read its rows.
//!
//! They are tables of their own inside the file (docs/formats/summaries.md).

mod writer;

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
use wattlake_catalog::{DataFile, EntityId};
use wattlake_config::MetricKind;

pub(super) use self::writer::SummaryWriter;
use super::{Storage, embedded::Embedded, lookup::key_bounds};
use crate::{
    Error, Result, SeriesKey,
    summary::{Point, Summary},
};

/// Summaries are read in groups. Each has the ids of its series, so that smaller ones would be larger in all.
const GROUP_ROWS: usize = 64 << 10;

/// How long the stretches are that the rows of a series are summed up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stretch {
    /// Of UTC, where it has many rows.
    Hour,
    /// Of the zone of the series' site.
    Day,
}

/// A stretch of a series in a file: consecutive rows.
#[derive(Clone, Debug, PartialEq)]
pub struct StretchSummary {
    pub entity: EntityId,
    /// How the metric was understood, and what the meter's cadence was, in seconds.
    pub kind: MetricKind,
    pub cadence: i64,
    /// The rows in the file, bad ones included.
    pub rows: Range<u64>,
    /// Whether the summary is that of all rows that count: none was deleted or corrected, and they were summed up at all.
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

/// The number of rows that were not summed up: of their summary only the times of the first and the last one are true.
const NOT_SUMMED_UP: u8 = 4;

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

/// A stretch while its rows are written.
struct Written<'a> {
    key: &'a SeriesKey,
    kind: MetricKind,
    /// Seconds.
    cadence: i64,
    rows: Range<u64>,
    is_summed_up: bool,
    summary: Option<Summary>,
}

/// Stretches as columns. What follows from other columns is null.
struct Columns {
    len: usize,
    texts: [StringDictionaryBuilder<Int32Type>; TEXTS.len()],
    kind: UInt8Builder,
    integers: [Int64Builder; INTEGERS.len()],
    milli: [Int64Builder; NUMBERS.len()],
    others: [Float64Builder; NUMBERS.len()],
    /// The series of the last stretch, and its last value in thousandths.
    previous: Option<(SeriesKey, i64)>,
}

impl Default for Columns {
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

impl Columns {
    fn append(&mut self, stretch: &Written<'_>) {
        let Written { key, kind, rows, .. } = stretch;
        self.texts[0].append_value(&*key.metric);
        self.texts[1].append_value(key.entity.to_string());
        let kind = *kind;
        self.kind.append_value(if stretch.is_summed_up { kind_number(kind) } else { NOT_SUMMED_UP });
        let s = stretch.summary.as_ref();
        let is_gauge = kind == MetricKind::GaugeExtensive;
        let register = s.filter(|_| kind == MetricKind::Register);
        // A register that only rises is known by its first and its last value.
        let irregular = register.filter(|s| !s.is_rising);
        let uneven = s.filter(|s| is_gauge && s.count > 1 && s.step.is_none());
        let unless_rising = s.filter(|s| register.is_none() || !s.is_rising);
        let count = rows.end - rows.start;
        let integers = [
            Some(stretch.cadence),
            // Within a group it follows from the stretches before.
            (self.len == 0).then(|| signed(rows.start)),
            Some(signed(count)),
            s.map(|s| signed(count - s.count)),
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
        // The first value is near the last one of the stretch before, and the last one near the first.
        let (first, last) = (milli[FIRST], milli[LAST]);
        let before = self.previous.as_ref().filter(|(before, _)| before == *key).map_or(0, |(_, last)| *last);
        milli[FIRST] = first.map(|first| zigzag(first - before));
        milli[LAST] = last.map(|last| zigzag(last - first.unwrap_or(0)));
        self.milli.iter_mut().zip(milli).for_each(|(column, value)| column.append_option(value));
        self.previous = Some(((*key).clone(), last.unwrap_or(0)));
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

/// The stretches of a metric (`None`: of all) in a file, in the order of its rows, of entities in a range; `None` when the file has
/// none of such a length.
pub(crate) async fn read_summaries(
    storage: &Storage,
    file: &DataFile,
    stretch: Stretch,
    metric: Option<&str>,
    entities: &RangeInclusive<EntityId>,
) -> Result<Option<Vec<StretchSummary>>> {
    let schema = schema();
    let table = Embedded::from(stretch);
    let Some(builder) = table.open(storage, file, &schema).await? else { return Ok(None) };
    let (low, high) = (entities.start().to_string(), entities.end().to_string());
    let bounds = key_bounds(builder.metadata(), &schema)?.into_iter().enumerate();
    let hit = bounds.filter(|(_, group)| metric.is_none_or(|metric| group.may_hold(metric, &low, &high)));
    let groups = hit.map(|(index, _)| index).collect();
    let mut stream = builder.with_row_groups(groups).with_batch_size(GROUP_ROWS).build()?;
    let mut reader = Reader { metric, entities, next_row: 0, previous: None, found: Vec::new() };
    while let Some(batch) = stream.try_next().await? {
        reader.read(&batch).ok_or_else(|| {
            Error::corrupt(format!("data file {}: its summaries are not readable", file.stored.path))
        })?;
    }
    Ok(Some(reader.found))
}

/// Takes the wanted stretches out of batches that come in order.
struct Reader<'a> {
    metric: Option<&'a str>,
    entities: &'a RangeInclusive<EntityId>,
    next_row: u64,
    /// The series of the last stretch, and its last value in thousandths.
    previous: Option<(i32, EntityId, i64)>,
    found: Vec<StretchSummary>,
}

impl Reader<'_> {
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
            let (kind, is_whole) = match kinds.value(row) {
                NOT_SUMMED_UP => (MetricKind::GaugeIntensive, false),
                kind => (kind_of(kind)?, true),
            };
            let summary = match integer(3) {
                None => None,
                Some(bad) => {
                    let count = (rows.end - rows.start).checked_sub(u64::try_from(bad).ok()?)?;
                    Some(summary(kind, count, &integer, &number)?)
                }
            };
            self.found.push(StretchSummary { entity, kind, cadence: integer(0)?, rows, is_whole, summary });
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
