//! `a || b` of texts, bounded as the functions that make much out of little.

use std::sync::Arc;

use arrow::{
    array::{Array, BooleanArray},
    buffer::NullBuffer,
    compute::nullif,
    datatypes::DataType,
};
use datafusion::{
    common::ScalarValue,
    error::Result,
    logical_expr::{ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature},
};

pub(super) fn udf(concat: Arc<ScalarUDF>) -> ScalarUDF {
    ScalarUDF::new_from_impl(TextConcat { concat })
}

/// As `concat` of two, but null where one of them is.
#[derive(Debug, PartialEq, Eq, Hash)]
struct TextConcat {
    concat: Arc<ScalarUDF>,
}

impl ScalarUDFImpl for TextConcat {
    fn name(&self) -> &str {
        "text_concat"
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        let names: Vec<_> = args.iter().map(|arg| arg.schema_name().to_string()).collect();
        Ok(names.join(" || "))
    }

    fn signature(&self) -> &Signature {
        self.concat.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.concat.return_type(types)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.concat.coerce_types(types)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let mut nulls: Option<NullBuffer> = None;
        for arg in &args.args {
            match arg {
                ColumnarValue::Scalar(value) if value.is_null() => {
                    return Ok(ColumnarValue::Scalar(ScalarValue::try_from(args.return_type())?));
                }
                ColumnarValue::Scalar(_) => {}
                ColumnarValue::Array(array) => {
                    nulls = NullBuffer::union(nulls.as_ref(), array.logical_nulls().as_ref());
                }
            }
        }
        Ok(match (self.concat.inner().invoke_with_args(args)?, nulls) {
            (ColumnarValue::Array(texts), Some(nulls)) => {
                let is_null = BooleanArray::new(!nulls.inner(), None);
                ColumnarValue::Array(nullif(&texts, &is_null)?)
            }
            (texts, _) => texts,
        })
    }
}
