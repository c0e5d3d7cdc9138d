//! Aggregates over the readings of one series in the order of time: `counter_increase`, `rate`, `time_weighted_avg`, `integral`.
//!
//! Readings may come in any order; they are kept until the group is complete, 16 bytes each.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, ListArray},
    buffer::OffsetBuffer,
    datatypes::{DataType, Field, FieldRef, Float64Type, Int64Type, TimestampMicrosecondType},
};
use datafusion::{
    common::ScalarValue,
    error::{DataFusionError, Result},
    logical_expr::{
        Accumulator, AggregateUDF, AggregateUDFImpl, Signature, Volatility,
        function::{AccumulatorArgs, StateFieldsArgs},
    },
    physical_expr::expressions::Literal,
};
use jiff::Timestamp;
use wattlake_config::MetricKind;
use wattlake_engine::{Point, Register, Summary};

use super::{invalid, is_time, text_of, utc_micros};
use crate::rollup::Width;

const HOUR: i64 = 3_600_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum What {
    /// What a register counted, by the rules for resets and glitches (ROLL-4).
    CounterIncrease,
    /// The same by time, per hour or whatever is said.
    Rate,
    /// The mean in which each reading counts as long as it stands.
    TimeWeightedAvg,
    /// The sum of values times hours: of kW it is kWh.
    Integral,
}

/// Whether an aggregate of this name is one of ours.
pub(super) fn is_over_time(name: &str) -> bool {
    What::ALL.iter().any(|what| what.name() == name)
}

impl What {
    const ALL: [Self; 4] = [Self::CounterIncrease, Self::Rate, Self::TimeWeightedAvg, Self::Integral];

    fn name(self) -> &'static str {
        match self {
            Self::CounterIncrease => "counter_increase",
            Self::Rate => "rate",
            Self::TimeWeightedAvg => "time_weighted_avg",
            Self::Integral => "integral",
        }
    }

    fn usage(self) -> &'static str {
        match self {
            Self::CounterIncrease => "write counter_increase(value, timestamp)",
            Self::Rate => "write rate(value, timestamp [, '1h'])",
            Self::TimeWeightedAvg => {
                "write time_weighted_avg(value, timestamp [, longest time that a reading stands, as '30m'])"
            }
            Self::Integral => {
                "write integral(value, timestamp [, longest time that a reading stands, as '30m'])"
            }
        }
    }
}

pub(super) fn udafs() -> impl Iterator<Item = AggregateUDF> {
    What::ALL.into_iter().map(|what| {
        let signature = Signature::user_defined(Volatility::Immutable);
        AggregateUDF::new_from_impl(OverTime { what, signature })
    })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct OverTime {
    what: What,
    signature: Signature,
}

impl AggregateUDFImpl for OverTime {
    fn name(&self) -> &str {
        self.what.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let usage = self.what.usage();
        let (value, time, length) = match types {
            [value, time] => (value, time, None),
            [value, time, length] if self.what != What::CounterIncrease => (value, time, Some(length)),
            _ => return invalid(usage),
        };
        if !(value.is_numeric() || value.is_null())
            || !is_time(time)
            || length.is_some_and(|l| !l.is_string())
        {
            return invalid(usage);
        }
        Ok([DataType::Float64, utc_micros()].into_iter().chain(length.map(|_| DataType::Utf8)).collect())
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let list = |part: &str, of| {
            let item = Arc::new(Field::new_list_field(of, true));
            Arc::new(Field::new(format!("{}[{part}]", args.name), DataType::List(item), true))
        };
        Ok(vec![list("times", DataType::Int64), list("values", DataType::Float64)])
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        if args.is_distinct {
            return invalid(format!("{} cannot be DISTINCT", self.what.name()));
        }
        let length = match args.exprs.get(2) {
            None => None,
            Some(given) => match given.downcast_ref::<Literal>().and_then(|given| length_of(given.value())) {
                Some(length) => Some(length),
                None => {
                    return invalid(format!(
                        "the length of time is a constant as '30m' or '1h'; {}",
                        self.what.usage()
                    ));
                }
            },
        };
        Ok(Box::new(Readings { what: self.what, length, times: Vec::new(), values: Vec::new() }))
    }
}

/// Microseconds of a fixed width, as in rollups.
fn length_of(value: &ScalarValue) -> Option<i64> {
    match text_of(value)?.parse().ok()? {
        Width::Fixed(seconds) => Some(seconds * 1_000_000),
        Width::Days(days) => Some(i64::from(days) * 24 * HOUR),
        _ => None,
    }
}

#[derive(Debug)]
struct Readings {
    what: What,
    length: Option<i64>,
    times: Vec<i64>,
    values: Vec<f64>,
}

impl Readings {
    fn take(&mut self, times: impl Iterator<Item = Option<i64>>, values: impl Iterator<Item = Option<f64>>) {
        for (time, value) in times.zip(values) {
            if let (Some(time), Some(value)) = (time, value) {
                self.times.push(time);
                self.values.push(value);
            }
        }
    }

    /// The readings by time.
    fn points(&self) -> Result<Vec<Point>> {
        let points = self.times.iter().zip(&self.values).map(|(ts, value)| Point { ts: *ts, value: *value });
        let mut points: Vec<_> = points.collect();
        points.sort_by_key(|point| point.ts);
        match points.windows(2).find(|pair| pair[0].ts == pair[1].ts) {
            None => Ok(points),
            Some(pair) => Err(DataFusionError::Execution(format!(
                "{}: several readings at {}; group by entity_id, and filter or group by metric, so that each group is one series",
                self.what.name(),
                Timestamp::from_microsecond(pair[0].ts).unwrap_or_default()
            ))),
        }
    }

    fn answer(&self) -> Result<Option<f64>> {
        let points = self.points()?;
        let Some((first, rest)) = points.split_first() else { return Ok(None) };
        let weigh = || {
            let mut summary = Summary::of(*first, false);
            let hold = self.length.unwrap_or(i64::MAX);
            rest.iter().for_each(|point| summary.push(*point, false, MetricKind::GaugeExtensive, hold));
            summary
        };
        Ok(match self.what {
            What::CounterIncrease => counted(&points).map(|(increase, _)| increase),
            What::Rate => counted(&points)
                .map(|(increase, passed)| increase * self.length.unwrap_or(HOUR) as f64 / passed as f64),
            What::TimeWeightedAvg => {
                let summary = weigh();
                Some(if summary.covered == 0 {
                    first.value
                } else {
                    summary.weighted / summary.covered as f64
                })
            }
            What::Integral => {
                let summary = weigh();
                (summary.count > 1).then(|| summary.weighted / HOUR as f64)
            }
        })
    }
}

/// What a register counted, and the microseconds from the first reading to the last that counts. `None` when there are not two such.
fn counted(points: &[Point]) -> Option<(f64, i64)> {
    let mut register = Register::default();
    points.iter().for_each(|point| register.push(*point));
    register.finish();
    let steps: Vec<_> = register.steps().collect();
    let (first, last) = (points.first()?, steps.last()?.to);
    Some((steps.iter().map(|step| step.increase).sum(), last.ts.saturating_sub(first.ts)))
}

/// One list of all of an array.
fn one_list(values: ArrayRef) -> ScalarValue {
    let item = Arc::new(Field::new_list_field(values.data_type().clone(), true));
    ScalarValue::List(Arc::new(ListArray::new(
        item,
        OffsetBuffer::from_lengths([values.len()]),
        values,
        None,
    )))
}

impl Accumulator for Readings {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let times = values[1].as_primitive::<TimestampMicrosecondType>();
        self.take(times.iter(), values[0].as_primitive::<Float64Type>().iter());
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let (times, values) = (states[0].as_list::<i32>(), states[1].as_list::<i32>());
        for (times, values) in times.iter().zip(values.iter()) {
            if let (Some(times), Some(values)) = (times, values) {
                self.take(
                    times.as_primitive::<Int64Type>().iter(),
                    values.as_primitive::<Float64Type>().iter(),
                );
            }
        }
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let times = arrow::array::Int64Array::from(std::mem::take(&mut self.times));
        let values = arrow::array::Float64Array::from(std::mem::take(&mut self.values));
        Ok(vec![one_list(Arc::new(times)), one_list(Arc::new(values))])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.answer().map(ScalarValue::Float64)
    }

    fn size(&self) -> usize {
        size_of::<Self>() + (self.times.capacity() + self.values.capacity()) * 8
    }
}
