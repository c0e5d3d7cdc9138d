//! `date_trunc` that is quick for times in UTC.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray},
    datatypes::{DataType, FieldRef, TimeUnit, TimestampMicrosecondType},
};
use datafusion::{
    error::Result,
    logical_expr::{
        ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
        sort_properties::{ExprProperties, SortProperties},
    },
};

/// DataFusion's `date_trunc`, which goes through a calendar for every zoned value; times in UTC, as all of ours are, take
/// its arithmetic for times without a zone instead.
pub(super) fn udf() -> ScalarUDF {
    ScalarUDF::new_from_impl(DateTrunc { inner: datafusion::functions::datetime::date_trunc() })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct DateTrunc {
    inner: Arc<ScalarUDF>,
}

impl ScalarUDFImpl for DateTrunc {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arguments)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn output_ordering(&self, inputs: &[ExprProperties]) -> Result<SortProperties> {
        self.inner.output_ordering(inputs)
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
        args.args[1] = ColumnarValue::Array(rezone(array, None));
        // Past the check of the type that was promised: the zone is put back below.
        Ok(match self.inner.inner().invoke_with_args(args)? {
            ColumnarValue::Array(array) => ColumnarValue::Array(rezone(&array, Some(utc))),
            scalar => scalar,
        })
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{Array, TimestampMicrosecondArray},
        datatypes::Field,
    };
    use datafusion::{common::ScalarValue, config::ConfigOptions};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The shortcut is one in time only.
        #[test]
        fn date_trunc_is_that_of_datafusion(micros in prop::collection::vec(prop::option::of(-(1_i64 << 52)..1 << 52), 1..20)) {
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
