//! Functions that make much out of little, with a bound: a text of two gigabytes is one call away, and no memory pool
//! counts what a function holds.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray},
    compute::cast,
    datatypes::{DataType, Int64Type},
};
use datafusion::{
    error::{DataFusionError, Result},
    execution::FunctionRegistry,
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl},
    prelude::SessionContext,
};

use super::{functions::as_inner, operators::Operators};

/// Bytes of one value.
const VALUE_BYTES_MAX: u64 = 4 << 20;
/// Bytes of the values of one batch.
const BATCH_BYTES_MAX: u64 = 64 << 20;

/// Arrays of any length out of two numbers. As tables `range` and `generate_series` stream, and stay.
const REMOVED: [&str; 4] = ["range", "generate_series", "array_repeat", "array_resize"];
/// Texts that can be much longer than what they are made of.
const BOUNDED: [&str; 6] = ["repeat", "lpad", "rpad", "replace", "concat", "concat_ws"];

/// Puts the bounded functions into the place of those without.
pub(super) fn replace_unbounded(context: &SessionContext) -> Result<()> {
    let state = context.state_ref();
    let mut state = state.write();
    for name in REMOVED {
        state.deregister_udf(name)?;
    }
    for name in BOUNDED {
        let inner = state.udf(name)?;
        state.register_udf(Arc::new(ScalarUDF::new_from_impl(Bounded { inner })))?;
    }
    let operators = Operators::new(state.udf("concat")?);
    state.register_expr_planner(Arc::new(operators))?;
    Ok(())
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Bounded {
    inner: Arc<ScalarUDF>,
}

impl Bounded {
    /// At most how many bytes the text of each row will have.
    fn lengths(&self, args: &ScalarFunctionArgs) -> Result<Vec<u64>> {
        // What is the same in all rows is looked at once.
        let is_constant = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if is_constant { 1 } else { args.number_rows };
        let arrays: Vec<ArrayRef> = args.args.iter().map(|arg| arg.to_array(rows)).collect::<Result<_>>()?;
        let bytes = |column: usize| -> Result<Vec<u64>> {
            let texts = cast(&arrays[column], &DataType::LargeUtf8)?;
            Ok(texts.as_string::<i64>().iter().map(|text| text.map_or(0, |text| text.len() as u64)).collect())
        };
        let numbers = |column: usize| -> Result<Vec<u64>> {
            let counts = cast(&arrays[column], &DataType::Int64)?;
            let counts = counts.as_primitive::<Int64Type>().iter();
            Ok(counts.map(|count| u64::try_from(count.unwrap_or(0)).unwrap_or(0)).collect())
        };
        let times =
            |a: Vec<u64>, b: Vec<u64>| a.into_iter().zip(b).map(|(a, b)| a.saturating_mul(b)).collect();
        Ok(match self.name() {
            "repeat" => times(bytes(0)?, numbers(1)?),
            "lpad" | "rpad" => numbers(1)?,
            // Each of its bytes might be one that is replaced.
            "replace" => times(bytes(0)?, bytes(2)?.into_iter().map(|to| to.max(1)).collect()),
            _ => {
                let mut sums = vec![0u64; rows];
                for column in 0..arrays.len() {
                    sums.iter_mut()
                        .zip(bytes(column)?)
                        .for_each(|(sum, bytes)| *sum = sum.saturating_add(bytes));
                }
                sums
            }
        })
    }
}

impl ScalarUDFImpl for Bounded {
    as_inner! {}

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let mut total = 0u64;
        for bytes in self.lengths(&args)? {
            total = total.saturating_add(bytes);
            if bytes > VALUE_BYTES_MAX || total > BATCH_BYTES_MAX {
                return Err(DataFusionError::ResourcesExhausted(format!(
                    "{} may make texts of {VALUE_BYTES_MAX} bytes, and {BATCH_BYTES_MAX} bytes of them at once",
                    self.name()
                )));
            }
        }
        self.inner.invoke_with_args(args)
    }
}
