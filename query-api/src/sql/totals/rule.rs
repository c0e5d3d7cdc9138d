//! Which aggregates can be made of totals, and how.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::{
    common::{
        Column, TableReference,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    error::Result,
    functions::core::expr_fn::coalesce,
    functions_aggregate::{
        average::Avg,
        count::Count,
        min_max::{Max, Min, max_udaf, min_udaf},
        sum::{Sum, sum_udaf},
    },
    logical_expr::{
        Aggregate, AggregateUDF, Expr, Filter, LogicalPlan, Projection, SubqueryAlias, TableScanBuilder,
        Volatility, cast, expr::AggregateFunction, lit, utils::split_conjunction,
    },
    optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule},
};

use super::{
    super::{functions::width_of, key_range::exact_times},
    table::SummedReadings,
};
use crate::rollup::Width;

/// Columns that are the same for all readings of a total.
const KEY: [&str; 5] = ["entity_id", "entity_type", "metric", "unit", "quality"];
/// Columns of `measurements` that are never null, beside those of the key.
const NEVER_NULL: [&str; 3] = ["timestamp", "value", "created_at"];
/// Parts of a time that are the same for all times of a UTC month, for `date_trunc` and `date_part`.
const MONTHS_AND_MORE: [&str; 5] = ["month", "quarter", "year", "decade", "century"];

/// Replaces `measurements` below an aggregate by [`SummedReadings`], where that says enough.
#[derive(Debug)]
pub(in super::super) struct UseTotals;

impl OptimizerRule for UseTotals {
    fn name(&self) -> &'static str {
        "use_totals"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        if let LogicalPlan::Aggregate(aggregate) = &plan
            && let Some(summed) = from_totals(aggregate)?
        {
            return Ok(Transformed::yes(summed));
        }
        Ok(Transformed::no(plan))
    }
}

/// The same aggregate of totals; `None` where they do not say enough.
fn from_totals(aggregate: &Aggregate) -> Result<Option<LogicalPlan>> {
    if !aggregate.group_expr.iter().all(is_same_within) {
        return Ok(None);
    }
    let Some(table) = qualifier(&aggregate.input) else { return Ok(None) };
    let mut parts = Parts { table, aggregates: Vec::new() };
    let answers = aggregate.aggr_expr.iter().map(|expr| parts.combine(expr)).collect::<Option<Vec<_>>>();
    let (Some(answers), Some(times)) = (answers, times_of(&aggregate.input)) else { return Ok(None) };
    let Some(input) = with_totals(&aggregate.input, times)? else { return Ok(None) };
    let groups = aggregate.group_expr.len();
    let summed = Aggregate::try_new(Arc::new(input), aggregate.group_expr.clone(), parts.aggregates)?;
    let columns = aggregate.schema.columns();
    let keys = columns[..groups].iter().cloned().map(Expr::Column);
    let answers =
        answers.into_iter().zip(&columns[groups..]).map(|(answer, column)| answer.alias(&column.name));
    let expressions = keys.chain(answers).collect();
    let projection = Projection::try_new(expressions, Arc::new(LogicalPlan::Aggregate(summed)))?;
    Ok(Some(LogicalPlan::Projection(projection)))
}

/// Whether the value of an expression is the same for all readings that one total may stand for.
fn is_same_within(expr: &Expr) -> bool {
    let mut is_same = true;
    let walked = expr.apply(|expr| {
        let (holds, next) = match expr {
            Expr::Column(column) => (KEY.contains(&column.name.as_str()), TreeNodeRecursion::Continue),
            call if is_months(call) => (true, TreeNodeRecursion::Jump),
            Expr::Literal(..)
            | Expr::Alias(_)
            | Expr::BinaryExpr(_)
            | Expr::Between(_)
            | Expr::Case(_)
            | Expr::Cast(_)
            | Expr::TryCast(_)
            | Expr::InList(_)
            | Expr::IsNotNull(_)
            | Expr::IsNull(_)
            | Expr::IsTrue(_)
            | Expr::IsFalse(_)
            | Expr::Like(_)
            | Expr::SimilarTo(_)
            | Expr::Negative(_)
            | Expr::Not(_) => (true, TreeNodeRecursion::Continue),
            Expr::ScalarFunction(function) => {
                let volatility = function.func.signature().volatility;
                (volatility != Volatility::Volatile, TreeNodeRecursion::Continue)
            }
            _ => (false, TreeNodeRecursion::Stop),
        };
        is_same &= holds;
        Ok(if holds { next } else { TreeNodeRecursion::Stop })
    });
    walked.is_ok() && is_same
}

/// Whether an expression is a function of a time's UTC month.
fn is_months(expr: &Expr) -> bool {
    let Expr::ScalarFunction(function) = expr else { return false };
    let [what, time] = function.args.as_slice() else { return false };
    let (Expr::Literal(what, _), true) = (what, is_utc_time(time)) else { return false };
    match function.func.name() {
        "date_trunc" | "date_part" => {
            let text = what.try_as_str().flatten();
            text.is_some_and(|text| MONTHS_AND_MORE.contains(&text.to_ascii_lowercase().as_str()))
        }
        "time_bucket" => matches!(width_of(what), Ok(Some(Width::Months(_) | Width::Years(_)))),
        _ => false,
    }
}

/// The time of a reading, perhaps without its zone, which is UTC.
fn is_utc_time(expr: &Expr) -> bool {
    match expr {
        Expr::Column(column) => column.name == "timestamp",
        Expr::Cast(cast) => {
            let is_utc = match cast.field.data_type() {
                DataType::Timestamp(_, zone) => zone.as_ref().is_none_or(|zone| &**zone == "UTC"),
                _ => false,
            };
            is_utc && is_utc_time(&cast.expr)
        }
        _ => false,
    }
}

/// The times that the filters below an aggregate let pass. `None`: a filter may let some readings of a total pass and others not.
fn times_of(plan: &LogicalPlan) -> Option<(i64, i64)> {
    let (filters, (from, to)): (Vec<&Expr>, _) = match plan {
        LogicalPlan::TableScan(scan) if scan.fetch.is_none() => {
            (scan.filters.iter().collect(), (i64::MIN, i64::MAX))
        }
        LogicalPlan::Filter(filter) => (vec![&filter.predicate], times_of(&filter.input)?),
        LogicalPlan::SubqueryAlias(alias) => (Vec::new(), times_of(&alias.input)?),
        LogicalPlan::Projection(projection) if is_plain(projection) => {
            (Vec::new(), times_of(&projection.input)?)
        }
        _ => return None,
    };
    let mut times = (from, to);
    for filter in filters.into_iter().flat_map(split_conjunction) {
        match exact_times(filter, "timestamp") {
            Some((from, to)) => times = (times.0.max(from), times.1.min(to)),
            None if is_same_within(filter) => {}
            None => return None,
        }
    }
    Some(times)
}

/// Whether a projection only leaves out columns.
fn is_plain(projection: &Projection) -> bool {
    projection.expr.iter().all(|expr| matches!(expr, Expr::Column(_)))
}

/// The input of an aggregate with totals in place of `measurements`.
fn with_totals(plan: &LogicalPlan, times: (i64, i64)) -> Result<Option<LogicalPlan>> {
    Ok(match plan {
        LogicalPlan::TableScan(scan) => SummedReadings::of(&scan.source, times)
            .map(|source| {
                let name = scan.table_name.clone();
                TableScanBuilder::new(name, source).with_filters(scan.filters.clone()).build()
            })
            .transpose()?
            .map(LogicalPlan::TableScan),
        LogicalPlan::Filter(filter) => with_totals(&filter.input, times)?
            .map(|input| Filter::try_new(filter.predicate.clone(), Arc::new(input)))
            .transpose()?
            .map(LogicalPlan::Filter),
        LogicalPlan::SubqueryAlias(alias) => with_totals(&alias.input, times)?
            .map(|input| SubqueryAlias::try_new(Arc::new(input), alias.alias.clone()))
            .transpose()?
            .map(LogicalPlan::SubqueryAlias),
        LogicalPlan::Projection(projection) => with_totals(&projection.input, times)?,
        _ => None,
    })
}

/// The name by which the table below an aggregate is known there.
fn qualifier(plan: &LogicalPlan) -> Option<&TableReference> {
    match plan {
        LogicalPlan::TableScan(scan) => Some(&scan.table_name),
        LogicalPlan::SubqueryAlias(alias) => Some(&alias.alias),
        LogicalPlan::Filter(filter) => qualifier(&filter.input),
        LogicalPlan::Projection(projection) => qualifier(&projection.input),
        _ => None,
    }
}

/// The aggregates of totals that answers are made of.
struct Parts<'a> {
    table: &'a TableReference,
    aggregates: Vec<Expr>,
}

impl Parts<'_> {
    /// What an aggregate of readings is in aggregates of totals; `None` when they do not say it.
    fn combine(&mut self, expr: &Expr) -> Option<Expr> {
        let function = match expr {
            Expr::Alias(alias) => return self.combine(&alias.expr),
            Expr::AggregateFunction(function) => function,
            _ => return None,
        };
        let params = &function.params;
        let filter = params.filter.as_deref();
        let is_plain = !params.distinct && params.order_by.is_empty() && filter.is_none_or(is_same_within);
        let [argument] = params.args.as_slice() else { return None };
        let column = match argument {
            Expr::Column(column) => Some(column.name.as_str()),
            Expr::Literal(value, _) if !value.is_null() => None,
            _ => return None,
        };
        let function = function.func.inner();
        if !is_plain {
            None
        } else if function.downcast_ref::<Count>().is_some() {
            let is_never_null = column.is_none_or(|name| KEY.contains(&name) || NEVER_NULL.contains(&name));
            is_never_null.then(|| coalesce(vec![self.part(sum_udaf(), "rows", filter), lit(0i64)]))
        } else if function.downcast_ref::<Sum>().is_some() {
            (column? == "value").then(|| self.part(sum_udaf(), "sum", filter))
        } else if function.downcast_ref::<Avg>().is_some() {
            (column? == "value").then(|| {
                let rows = self.part(sum_udaf(), "rows", filter);
                self.part(sum_udaf(), "sum", filter) / cast(rows, DataType::Float64)
            })
        } else if function.downcast_ref::<Min>().is_some() {
            let least = match column? {
                "value" => "min",
                key => KEY.into_iter().chain(["timestamp"]).find(|name| *name == key)?,
            };
            Some(self.part(min_udaf(), least, filter))
        } else if function.downcast_ref::<Max>().is_some() {
            let greatest = match column? {
                "value" => "max",
                "timestamp" => "last",
                key => KEY.into_iter().find(|name| *name == key)?,
            };
            Some(self.part(max_udaf(), greatest, filter))
        } else {
            None
        }
    }

    /// An aggregate of a column of the totals.
    fn part(&mut self, function: Arc<AggregateUDF>, column: &str, filter: Option<&Expr>) -> Expr {
        let column = Expr::Column(Column::new(Some(self.table.clone()), column));
        let filter = filter.cloned().map(Box::new);
        let function = AggregateFunction::new_udf(function, vec![column], false, filter, Vec::new(), None);
        let aggregate = Expr::AggregateFunction(function);
        let name = aggregate.schema_name().to_string();
        if !self.aggregates.contains(&aggregate) {
            self.aggregates.push(aggregate);
        }
        Expr::Column(Column::new_unqualified(name))
    }
}
