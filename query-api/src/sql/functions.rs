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
                    found |= series::NAMES.contains(&name) || ["percentile_cont", "median"].contains(&name);
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(found)
}

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
