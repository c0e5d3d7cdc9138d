//! `convert_unit(value, from, to)`: a value in another unit of the same dimension.

use std::sync::Arc;

use arrow::{
    array::{AsArray, Float64Builder},
    datatypes::{DataType, Float64Type},
};
use datafusion::{
    error::Result,
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility},
};
use wattlake_engine::Conversion;

use super::invalid;

pub(super) fn udf() -> ScalarUDF {
    let types = vec![DataType::Float64, DataType::Utf8, DataType::Utf8];
    ScalarUDF::new_from_impl(ConvertUnit { signature: Signature::exact(types, Volatility::Immutable) })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct ConvertUnit {
    signature: Signature,
}

impl ScalarUDFImpl for ConvertUnit {
    fn name(&self) -> &'static str {
        "convert_unit"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let values = arrays[0].as_primitive::<Float64Type>();
        let (from, to) = (arrays[1].as_string::<i32>(), arrays[2].as_string::<i32>());
        // Neighbours have the same units.
        let mut known: Option<(&str, &str, Conversion)> = None;
        let mut out = Float64Builder::with_capacity(values.len());
        for ((value, from), to) in values.iter().zip(from).zip(to) {
            let (Some(value), Some(from), Some(to)) = (value, from, to) else {
                out.append_null();
                continue;
            };
            let conversion = match known {
                Some((f, t, conversion)) if (f, t) == (from, to) => conversion,
                _ => match Conversion::between(from, to) {
                    Some(conversion) => conversion,
                    None => return invalid(format!("convert_unit: {from} cannot be converted to {to}")),
                },
            };
            known = Some((from, to, conversion));
            out.append_value(conversion.apply(value));
        }
        Ok(ColumnarValue::Array(Arc::new(out.finish())))
    }
}
