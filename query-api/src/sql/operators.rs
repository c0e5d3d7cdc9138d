//! Operators that the planner takes for functions of ours.

mod interval_times;
mod text_concat;

use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use datafusion::{
    common::DFSchema,
    error::Result,
    logical_expr::{
        Expr, ExprSchemable, ScalarUDF,
        expr::{Placeholder, ScalarFunction},
        planner::{ExprPlanner, PlannerResult, RawBinaryExpr},
    },
    sql::sqlparser::ast::BinaryOperator,
};

/// `a || b` of what are no arrays, and an interval times or by a number.
#[derive(Debug)]
pub(super) struct Operators {
    text_concat: Arc<ScalarUDF>,
    interval_times: Arc<ScalarUDF>,
    interval_by: Arc<ScalarUDF>,
}

impl Operators {
    /// `concat` is the function of that name, bounded.
    pub(super) fn new(concat: Arc<ScalarUDF>) -> Self {
        Self {
            text_concat: Arc::new(text_concat::udf(concat)),
            interval_times: Arc::new(interval_times::times()),
            interval_by: Arc::new(interval_times::by()),
        }
    }
}

impl ExprPlanner for Operators {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let RawBinaryExpr { op, left, right } = &expr;
        let call = |udf: &Arc<ScalarUDF>, args: [&Expr; 2]| {
            let call = ScalarFunction::new_udf(Arc::clone(udf), args.map(Expr::clone).to_vec());
            Ok(PlannerResult::Planned(Expr::ScalarFunction(call)))
        };
        // What has no type yet is left to the planner.
        let is = |expr: &Expr, kind: fn(&DataType) -> bool| expr.get_type(schema).is_ok_and(|of| kind(&of));
        let is_interval = |expr| is(expr, |of| matches!(of, DataType::Interval(_)));
        let is_number = |expr| is(expr, |of| of.is_numeric() || of.is_null());
        match op {
            BinaryOperator::StringConcat => {
                let [left, right] = [left, right].map(text_if_nothing_is_said);
                if !is(&left, DataType::is_nested) && !is(&right, DataType::is_nested) {
                    return call(&self.text_concat, [&left, &right]);
                }
            }
            BinaryOperator::Multiply if is_interval(left) && is_number(right) => {
                return call(&self.interval_times, [left, right]);
            }
            BinaryOperator::Multiply if is_number(left) && is_interval(right) => {
                return call(&self.interval_times, [right, left]);
            }
            BinaryOperator::Divide if is_interval(left) && is_number(right) => {
                return call(&self.interval_by, [left, right]);
            }
            _ => {}
        }
        Ok(PlannerResult::Original(expr))
    }
}

/// A parameter of which nothing is said is a text.
fn text_if_nothing_is_said(expr: &Expr) -> Expr {
    match expr {
        Expr::Placeholder(Placeholder { id, field: None }) => {
            let field = Arc::new(Field::new("", DataType::Utf8, true));
            Expr::Placeholder(Placeholder { id: id.clone(), field: Some(field) })
        }
        expr => expr.clone(),
    }
}
