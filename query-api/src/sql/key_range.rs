//! What the filters of a query say about the keys of `measurements`, to leave out files and series.

use std::{collections::BTreeSet, sync::Arc};

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::{
    common::{ScalarValue, internal_err},
    error::Result,
    logical_expr::{BinaryExpr, Expr, Operator},
    physical_expr::{
        PhysicalExpr, conjunction_opt,
        expressions::{InListExpr, binary, col, lit},
    },
};
use wattlake_catalog::{DataFile, EntityId, FileBounds};
use wattlake_engine::{SeriesKey, TotalledSeries};

/// So many entities are looked up among the series of a file; of more, all series are gone through.
const SEARCHED_MAX: usize = 64;

/// The keys that may pass the filters: maybe more than do, never fewer.
#[derive(Clone, Debug)]
pub(super) struct KeyRange {
    /// Microseconds since 1970 UTC; `from <= ts < to`.
    pub from: i64,
    pub to: i64,
    metrics: Option<BTreeSet<String>>,
    entities: Option<BTreeSet<EntityId>>,
    time: &'static str,
}

impl KeyRange {
    /// `time` is the column that holds times.
    pub(super) fn of(filters: &[Expr], time: &'static str) -> Self {
        let mut range = Self { from: i64::MIN, to: i64::MAX, metrics: None, entities: None, time };
        filters.iter().for_each(|filter| range.narrow(filter));
        range
    }

    fn narrow(&mut self, filter: &Expr) {
        if let Some((from, to)) = exact_times(filter, self.time) {
            (self.from, self.to) = (self.from.max(from), self.to.min(to));
            return;
        }
        match filter {
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
                self.narrow(left);
                self.narrow(right);
            }
            _ if let Some((name, texts)) = constants(filter) => self.one_of(name, &texts),
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                if let (Some(name), Expr::Literal(value, _)) = (column_name(left), &**right) {
                    self.compare(name, *op, value);
                } else if let (Expr::Literal(value, _), Some(name)) = (&**left, column_name(right))
                    && let Some(op) = op.swap()
                {
                    self.compare(name, op, value);
                }
            }
            Expr::Between(between) if !between.negated => {
                if let Some(name) = column_name(&between.expr) {
                    for (bound, op) in [(&between.low, Operator::GtEq), (&between.high, Operator::LtEq)] {
                        if let Expr::Literal(value, _) = &**bound {
                            self.compare(name, op, value);
                        }
                    }
                }
            }
            _ => {}
        }
    }

    fn compare(&mut self, column: &str, op: Operator, value: &ScalarValue) {
        if column == self.time {
            let Some(micros) = micros(value) else { return };
            match op {
                Operator::Eq => {
                    self.from = self.from.max(micros);
                    self.to = self.to.min(micros.saturating_add(1));
                }
                // A bound finer than a microsecond was rounded: the filter above still decides.
                Operator::Gt | Operator::GtEq => self.from = self.from.max(micros),
                Operator::Lt | Operator::LtEq => self.to = self.to.min(micros.saturating_add(1)),
                _ => {}
            }
        }
    }

    fn one_of(&mut self, column: &str, texts: &[&str]) {
        match column {
            "metric" => {
                let wanted: BTreeSet<_> = texts.iter().map(|text| (*text).to_owned()).collect();
                self.metrics = Some(match self.metrics.take() {
                    Some(known) => known.intersection(&wanted).cloned().collect(),
                    None => wanted,
                });
            }
            // A text that is no uuid in its usual form equals no entity id.
            "entity_id" => {
                let ids = texts.iter().filter_map(|text| {
                    let id: EntityId = text.parse().ok()?;
                    (id.to_string() == *text).then_some(id)
                });
                self.restrict_entities(ids.collect());
            }
            _ => {}
        }
    }

    pub(super) fn restrict_entities(&mut self, wanted: BTreeSet<EntityId>) {
        self.entities = Some(match self.entities.take() {
            Some(known) => known.intersection(&wanted).copied().collect(),
            None => wanted,
        });
    }

    /// Whether all times of a file pass.
    pub(super) fn contains_times(&self, file: &FileBounds) -> bool {
        self.from <= file.min_ts && file.max_ts < self.to
    }

    /// How many series pass at most, if that is known.
    pub(super) fn series_at_most(&self) -> Option<usize> {
        Some(self.metrics.as_ref()?.len().saturating_mul(self.entities.as_ref()?.len()))
    }

    pub(super) fn is_of_one_metric(&self) -> bool {
        self.metrics.as_ref().is_some_and(|metrics| metrics.len() == 1)
    }

    /// Whether the times are a small part of those in files.
    pub(super) fn is_short<'a>(&self, files: impl Iterator<Item = &'a DataFile>) -> bool {
        let span = |from: i64, to: i64| (i128::from(to) - i128::from(from)).max(0);
        let (mut asked, mut all) = (0, 0);
        for bounds in files.map(|file| &file.bounds) {
            asked += span(bounds.min_ts.max(self.from), bounds.max_ts.min(self.to));
            all += span(bounds.min_ts, bounds.max_ts);
        }
        asked < all / 4
    }

    /// Whether some series are left out.
    pub(super) fn is_of_some_series(&self) -> bool {
        self.metrics.is_some() || self.entities.is_some()
    }

    /// What rows must fulfil to be of the series that are wanted.
    pub(super) fn series_predicate(&self, schema: &SchemaRef) -> Result<Option<Arc<dyn PhysicalExpr>>> {
        let one_of = |column: &str, texts: Vec<String>| -> Result<Arc<dyn PhysicalExpr>> {
            let texts = texts.into_iter().map(|text| lit(ScalarValue::Utf8View(Some(text)))).collect();
            Ok(Arc::new(InListExpr::try_new(col(column, schema)?, texts, false, schema)?))
        };
        let metrics =
            self.metrics.as_ref().map(|metrics| one_of("metric", metrics.iter().cloned().collect()));
        let entities = self
            .entities
            .as_ref()
            .map(|entities| one_of("entity_id", entities.iter().map(EntityId::to_string).collect()));
        Ok(conjunction_opt(metrics.transpose()?.into_iter().chain(entities.transpose()?)))
    }

    /// What times must fulfil that may pass the filters; `None`: all may.
    pub(super) fn time_predicate(&self, schema: &SchemaRef) -> Result<Option<Arc<dyn PhysicalExpr>>> {
        let DataType::Timestamp(_, zone) = schema.field_with_name(self.time)?.data_type() else {
            return internal_err!("the column {} holds no times", self.time);
        };
        let bound = |micros: i64, none: i64, op: Operator| -> Result<Option<Arc<dyn PhysicalExpr>>> {
            let micros =
                (micros != none).then(|| lit(ScalarValue::TimestampMicrosecond(Some(micros), zone.clone())));
            micros.map(|micros| binary(col(self.time, schema)?, op, micros, schema)).transpose()
        };
        let from = bound(self.from, i64::MIN, Operator::GtEq)?;
        let to = bound(self.to, i64::MAX, Operator::Lt)?;
        Ok(conjunction_opt(from.into_iter().chain(to)))
    }

    pub(super) fn wants(&self, key: &SeriesKey) -> bool {
        self.metrics.as_ref().is_none_or(|metrics| metrics.contains(&*key.metric))
            && self.entities.as_ref().is_none_or(|entities| entities.contains(&key.entity))
    }

    /// The series that are wanted, of those of a file in its order.
    pub(super) fn wanted<'a>(&self, series: &'a [TotalledSeries]) -> Vec<&'a TotalledSeries> {
        let of_metric = |metric: &String| {
            let start = series.partition_point(|one| *one.key.metric < **metric);
            let rest = &series[start..];
            &rest[..rest.partition_point(|one| *one.key.metric == **metric)]
        };
        let parts = match &self.metrics {
            Some(metrics) => metrics.iter().map(of_metric).collect(),
            None => vec![series],
        };
        match &self.entities {
            Some(entities) if self.metrics.is_some() && entities.len() <= SEARCHED_MAX => {
                let find = |part: &'a [TotalledSeries], entity: &EntityId| {
                    let start = part.partition_point(|one| one.key.entity < *entity);
                    part.get(start).filter(|one| one.key.entity == *entity)
                };
                parts.iter().flat_map(|part| entities.iter().filter_map(|id| find(part, id))).collect()
            }
            _ => parts.iter().flat_map(|part| part.iter().filter(|one| self.wants(&one.key))).collect(),
        }
    }

    pub(super) fn may_hold(&self, file: &DataFile) -> bool {
        let bounds = &file.bounds;
        let in_metrics = |metrics: &BTreeSet<String>| {
            metrics.range(bounds.min_metric.clone()..=bounds.max_metric.clone()).next().is_some()
        };
        bounds.max_ts >= self.from
            && bounds.min_ts < self.to
            && self.metrics.as_ref().is_none_or(in_metrics)
            && self.entities.as_ref().is_none_or(|entities| bounds.may_hold_any(entities))
    }
}

/// Whether a filter is about nothing but which metrics or entities are wanted, so that a range says all that it does.
pub(super) fn is_of_series(filter: &Expr) -> bool {
    constants(filter).is_some_and(|(column, _)| ["metric", "entity_id"].contains(&column))
}

/// The column and the texts of a filter that lets one of some texts pass.
fn constants(filter: &Expr) -> Option<(&str, Vec<&str>)> {
    fn text(expr: &Expr) -> Option<&str> {
        match expr {
            Expr::Literal(value, _) => value.try_as_str().flatten(),
            _ => None,
        }
    }
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => {
            let equal = |column, constant| Some((column_name(column)?, vec![text(constant)?]));
            equal(left, right).or_else(|| equal(right, left))
        }
        // Short lists come as this.
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            let ((column, mut texts), (other, more)) = (constants(left)?, constants(right)?);
            texts.extend(more);
            (column == other).then_some((column, texts))
        }
        Expr::InList(list) if !list.negated => {
            Some((column_name(&list.expr)?, list.list.iter().map(text).collect::<Option<_>>()?))
        }
        _ => None,
    }
}

/// The times that a comparison of the column `time` with constants lets pass, no more and no fewer: microseconds since 1970 UTC,
/// `from <= ts < to`. `None` when the filter is anything else.
pub(super) fn exact_times(filter: &Expr, time: &str) -> Option<(i64, i64)> {
    let is_time = |expr: &Expr| matches!(expr, Expr::Column(column) if column.name == time);
    let compare = |op: Operator, value: &ScalarValue| -> Option<(i64, i64)> {
        if matches!(value, ScalarValue::TimestampNanosecond(Some(t), _) if t % 1000 != 0) {
            return None;
        }
        let at = micros(value)?;
        let after = at.checked_add(1)?;
        match op {
            Operator::Eq => Some((at, after)),
            Operator::Gt => Some((after, i64::MAX)),
            Operator::GtEq => Some((at, i64::MAX)),
            Operator::Lt => Some((i64::MIN, at)),
            Operator::LtEq => Some((i64::MIN, after)),
            _ => None,
        }
    };
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match (&**left, &**right) {
            (column, Expr::Literal(value, _)) if is_time(column) => compare(*op, value),
            (Expr::Literal(value, _), column) if is_time(column) => compare(op.swap()?, value),
            _ => None,
        },
        Expr::Between(between) if !between.negated && is_time(&between.expr) => {
            let (Expr::Literal(low, _), Expr::Literal(high, _)) = (&*between.low, &*between.high) else {
                return None;
            };
            Some((compare(Operator::GtEq, low)?.0, compare(Operator::LtEq, high)?.1))
        }
        _ => None,
    }
}

/// Columns of times, whose casts round.
const TIMES: [&str; 2] = ["timestamp", "bucket_start"];

/// The column of an expression, also behind a cast: casts of literals' types keep the order of values.
fn column_name(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Column(column) => Some(&column.name),
        Expr::Cast(cast) => match &*cast.expr {
            Expr::Column(column) if !TIMES.contains(&column.name.as_str()) => Some(&column.name),
            _ => None,
        },
        _ => None,
    }
}

fn micros(value: &ScalarValue) -> Option<i64> {
    match value {
        ScalarValue::TimestampSecond(Some(t), _) => t.checked_mul(1_000_000),
        ScalarValue::TimestampMillisecond(Some(t), _) => t.checked_mul(1000),
        ScalarValue::TimestampMicrosecond(Some(t), _) => Some(*t),
        ScalarValue::TimestampNanosecond(Some(t), _) => Some(t.div_euclid(1000)),
        _ => None,
    }
}
