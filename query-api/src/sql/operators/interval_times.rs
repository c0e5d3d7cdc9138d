//! An interval times a number, or by one, as in Postgres: BI tools cut time into quarters of an hour with it.

use std::sync::Arc;

use arrow::{
    array::{AsArray, IntervalMonthDayNanoArray},
    datatypes::{DataType, Float64Type, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit},
};
use datafusion::{
    error::{DataFusionError, Result},
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility},
};

const DAYS_OF_MONTH: f64 = 30.0;
const NANOS_OF_DAY: f64 = 86_400e9;

pub(super) fn times() -> ScalarUDF {
    ScalarUDF::new_from_impl(IntervalTimes { name: "interval_times", signature: signature() })
}

pub(super) fn by() -> ScalarUDF {
    ScalarUDF::new_from_impl(IntervalTimes { name: "interval_by", signature: signature() })
}

fn signature() -> Signature {
    let interval = DataType::Interval(IntervalUnit::MonthDayNano);
    Signature::exact(vec![interval, DataType::Float64], Volatility::Immutable)
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct IntervalTimes {
    name: &'static str,
    signature: Signature,
}

impl ScalarUDFImpl for IntervalTimes {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Interval(IntervalUnit::MonthDayNano))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let intervals = arrays[0].as_primitive::<IntervalMonthDayNanoType>();
        let factors = arrays[1].as_primitive::<Float64Type>();
        let product = |(interval, factor): (Option<_>, Option<f64>)| match (interval, factor) {
            (Some(interval), Some(factor)) => {
                let factor = if self.name == "interval_by" { factor.recip() } else { factor };
                let out_of_range = || DataFusionError::Execution("interval out of range".to_owned());
                times_number(interval, factor).map(Some).ok_or_else(out_of_range)
            }
            _ => Ok(None),
        };
        let products = intervals.iter().zip(factors.iter()).map(product);
        Ok(ColumnarValue::Array(Arc::new(products.collect::<Result<IntervalMonthDayNanoArray>>()?)))
    }
}

/// Parts of a month go into its days, of 30, parts of a day into its time, rounded to microseconds:
/// <https://www.postgresql.org/docs/16/functions-datetime.html>. `None`: it cannot be said.
fn times_number(interval: IntervalMonthDayNano, factor: f64) -> Option<IntervalMonthDayNano> {
    let months = f64::from(interval.months) * factor;
    let days = f64::from(interval.days) * factor + months.fract() * DAYS_OF_MONTH;
    let nanos = interval.nanoseconds as f64 * factor + days.fract() * NANOS_OF_DAY;
    let micros = (nanos / 1000.0).round();
    let whole = |number: f64| {
        let number = number.trunc();
        (number.abs() <= f64::from(i32::MAX)).then_some(number as i32)
    };
    (micros.abs() < 9e15).then_some(())?;
    Some(IntervalMonthDayNano::new(whole(months)?, whole(days)?, micros as i64 * 1000))
}
