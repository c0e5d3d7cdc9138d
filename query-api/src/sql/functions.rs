//! SQL functions of our own.

mod convert_unit;
mod date_trunc;
mod measurement_id;
mod percentile_cont;
mod series;
mod site_zone;
mod time_bucket;
mod time_patterns;

use std::sync::Arc;

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::{
    common::{
        ScalarValue,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    error::{DataFusionError, Result},
    logical_expr::{Expr, LogicalPlan},
    prelude::SessionContext,
};

pub(crate) use measurement_id::measurement_id;
pub(super) use site_zone::{Zones, udf as site_zone};
pub(super) use time_bucket::width_of;

/// Adds our functions to a session, except [`site_zone`], which knows the fleet.
pub(super) fn register(context: &SessionContext) {
    context.register_udf(convert_unit::udf());
    context.register_udf(date_trunc::udf());
    context.register_udf(measurement_id::udf());
    context.register_udf(time_bucket::udf());
    context.register_udaf(percentile_cont::udaf());
    time_patterns::udfs().for_each(|udf| context.register_udf(udf));
    series::udafs().for_each(|udaf| context.register_udaf(udaf));
}

/// Whether a plan has aggregates that keep all readings of a group until it is complete.
pub(crate) fn keeps_groups(plan: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|part| {
                if let Expr::AggregateFunction(call) = part {
                    let name = call.func.name();
                    found |= series::is_over_time(name) || ["percentile_cont", "median"].contains(&name);
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(found)
}

/// In an implementation of a function by another one of the same name and arguments: what is that one's.
macro_rules! as_inner {
    ($($method:ident($($arg:ident: $of:ty),*) -> $out:ty),* $(,)?) => {
        fn name(&self) -> &str {
            self.inner.name()
        }

        fn aliases(&self) -> &[String] {
            self.inner.aliases()
        }

        fn signature(&self) -> &datafusion::logical_expr::Signature {
            self.inner.signature()
        }

        fn return_type(
            &self,
            types: &[arrow::datatypes::DataType],
        ) -> datafusion::error::Result<arrow::datatypes::DataType> {
            self.inner.return_type(types)
        }

        fn coerce_types(
            &self,
            types: &[arrow::datatypes::DataType],
        ) -> datafusion::error::Result<Vec<arrow::datatypes::DataType>> {
            self.inner.coerce_types(types)
        }

        $(fn $method(&self, $($arg: $of),*) -> $out {
            self.inner.$method($($arg),*)
        })*
    };
}
pub(super) use as_inner;

/// Times as all tables have them.
fn utc_micros() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC")))
}

fn is_time(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 | DataType::Null)
}

fn invalid<T>(message: impl Into<String>) -> Result<T> {
    Err(DataFusionError::Plan(message.into()))
}

/// The text of a constant of any string type.
fn text_of(value: &ScalarValue) -> Option<&str> {
    match value {
        ScalarValue::Utf8(text) | ScalarValue::Utf8View(text) | ScalarValue::LargeUtf8(text) => {
            text.as_deref()
        }
        _ => None,
    }
}
