//! `measurement_id(entity_id, metric, timestamp)`.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, StringBuilder},
    datatypes::{DataType, TimestampMicrosecondType},
};
use datafusion::{
    error::Result,
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility},
};
use uuid::Uuid;

use super::utc_micros;

/// The namespace of measurement ids.
const NAMESPACE: Uuid = Uuid::from_u128(0x6f2d_9d1c_51f4_5d0a_9c0f_2c7b_8a3e_4d11);

/// The id of a measurement: uuid v5 of entity, metric and timestamp, computed and never stored.
pub(crate) fn measurement_id(entity_id: &str, metric: &str, micros: i64) -> Uuid {
    Uuid::new_v5(&NAMESPACE, format!("{entity_id}/{metric}/{micros}").as_bytes())
}

pub(super) fn udf() -> ScalarUDF {
    ScalarUDF::new_from_impl(MeasurementId { signature: Signature::any(3, Volatility::Immutable) })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct MeasurementId {
    signature: Signature,
}

impl ScalarUDFImpl for MeasurementId {
    fn name(&self) -> &'static str {
        "measurement_id"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let types = [DataType::Utf8, DataType::Utf8, utc_micros()];
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let arrays: Vec<ArrayRef> = arrays
            .iter()
            .zip(&types)
            .map(|(array, to)| arrow::compute::cast(array, to))
            .collect::<Result<_, _>>()?;
        let (entity, metric) = (arrays[0].as_string::<i32>(), arrays[1].as_string::<i32>());
        let time = arrays[2].as_primitive::<TimestampMicrosecondType>();
        let mut out = StringBuilder::new();
        for ((entity, metric), time) in entity.iter().zip(metric).zip(time) {
            match (entity, metric, time) {
                (Some(e), Some(m), Some(t)) => out.append_value(measurement_id(e, m, t).to_string()),
                _ => out.append_null(),
            }
        }
        Ok(ColumnarValue::Array(Arc::new(out.finish())))
    }
}
