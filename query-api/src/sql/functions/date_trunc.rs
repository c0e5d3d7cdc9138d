//! `date_trunc` that is quick for times in UTC.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, TimestampMicrosecondArray},
    datatypes::{DataType, FieldRef, TimeUnit, TimestampMicrosecondType},
};
use datafusion::{
    error::Result,
    logical_expr::{
        ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
        sort_properties::{ExprProperties, SortProperties},
    },
};
use jiff::{Span, Timestamp, civil, tz::TimeZone};

use super::{as_inner, text_of};

/// DataFusion's `date_trunc`, which goes through a calendar for every zoned value. Times in UTC, as all of ours are, take its arithmetic for
/// times without a zone instead; months and more, which that does not help, are looked up once for times that follow each other.
pub(super) fn udf() -> ScalarUDF {
    ScalarUDF::new_from_impl(DateTrunc { inner: datafusion::functions::datetime::date_trunc() })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct DateTrunc {
    inner: Arc<ScalarUDF>,
}

impl ScalarUDFImpl for DateTrunc {
    as_inner! {
        return_field_from_args(args: ReturnFieldArgs<'_>) -> Result<FieldRef>,
        output_ordering(inputs: &[ExprProperties]) -> Result<SortProperties>,
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let utc = match args.args.get(1).map(ColumnarValue::data_type) {
            Some(DataType::Timestamp(TimeUnit::Microsecond, Some(zone))) if &*zone == "UTC" => zone,
            _ => return self.inner.invoke_with_args(args),
        };
        let rezone = |array: &ArrayRef, zone: Option<Arc<str>>| -> ArrayRef {
            let times = array.as_primitive::<TimestampMicrosecondType>().clone();
            Arc::new(times.with_timezone_opt(zone))
        };
        let ColumnarValue::Array(array) = &args.args[1] else {
            return self.inner.invoke_with_args(args);
        };
        if let Some(months) = months_of(&args.args[0])
            && let Some(starts) = starts_of_months(array.as_primitive(), months)
        {
            return Ok(ColumnarValue::Array(Arc::new(starts.with_timezone(utc))));
        }
        args.args[1] = ColumnarValue::Array(rezone(array, None));
        // Past the check of the type that was promised: the zone is put back below.
        Ok(match self.inner.inner().invoke_with_args(args)? {
            ColumnarValue::Array(array) => ColumnarValue::Array(rezone(&array, Some(utc))),
            scalar => scalar,
        })
    }
}

/// The months of a unit that is made of them.
fn months_of(unit: &ColumnarValue) -> Option<i8> {
    let ColumnarValue::Scalar(unit) = unit else { return None };
    let unit = text_of(unit)?;
    let known = [("month", 1), ("quarter", 3), ("year", 12)];
    known.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, months)| months)
}

/// `None`: a time is out of what a calendar knows.
fn starts_of_months(times: &TimestampMicrosecondArray, months: i8) -> Option<TimestampMicrosecondArray> {
    // The last one looked up, and where the next begins.
    let (mut start, mut end) = (0, 0);
    let mut starts = Vec::with_capacity(times.len());
    for (row, time) in times.values().iter().enumerate() {
        if !(start..end).contains(time) && times.is_valid(row) {
            let date = Timestamp::from_microsecond(*time).ok()?.to_zoned(TimeZone::UTC).date();
            let first = civil::date(date.year(), (date.month() - 1) / months * months + 1, 1);
            let next = first.checked_add(Span::new().months(months)).ok()?;
            let micros =
                |date: civil::Date| Some(date.to_zoned(TimeZone::UTC).ok()?.timestamp().as_microsecond());
            (start, end) = (micros(first)?, micros(next)?);
        }
        starts.push(start);
    }
    Some(TimestampMicrosecondArray::new(starts.into(), times.nulls().cloned()))
}

#[cfg(test)]
mod tests {
    use arrow::{array::TimestampMicrosecondArray, datatypes::Field};
    use datafusion::{common::ScalarValue, config::ConfigOptions};
    use proptest::prelude::*;

    use super::*;

    /// Any times, and those at the edges of months.
    fn micros() -> impl Strategy<Value = i64> {
        let edge = |(month, micros): (i64, i64)| {
            let year = 1970 + month.div_euclid(12) as i16;
            let first =
                civil::date(year, month.rem_euclid(12) as i8 + 1, 1).to_zoned(TimeZone::UTC).expect("a time");
            first.timestamp().as_microsecond() + micros
        };
        prop_oneof![-(1_i64 << 52)..1 << 52, (-600i64..600, -1i64..=1).prop_map(edge)]
    }

    proptest! {
        /// The shortcuts are ones in time only.
        #[test]
        fn date_trunc_is_that_of_datafusion(micros in prop::collection::vec(prop::option::of(micros()), 1..20)) {
            let times = TimestampMicrosecondArray::from(micros).with_timezone("UTC");
            let field = Arc::new(Field::new("t", times.data_type().clone(), true));
            for unit in ["second", "minute", "hour", "day", "week", "month", "quarter", "year"] {
                let run = |udf: &ScalarUDF| {
                    let granularity = ScalarValue::from(unit);
                    let text = Arc::new(Field::new("g", DataType::Utf8, false));
                    udf.invoke_with_args(ScalarFunctionArgs {
                        args: vec![granularity.into(), ColumnarValue::Array(Arc::new(times.clone()))],
                        arg_fields: vec![text, Arc::clone(&field)],
                        number_rows: times.len(),
                        return_field: Arc::clone(&field),
                        config_options: Arc::new(ConfigOptions::new()),
                    })
                };
                let (ours, theirs) = (run(&udf()).unwrap(), run(&datafusion::functions::datetime::date_trunc()).unwrap());
                let (ours, theirs) = (ours.into_array(times.len()).unwrap(), theirs.into_array(times.len()).unwrap());
                prop_assert_eq!(&ours, &theirs, "{}", unit);
            }
        }
    }
}
