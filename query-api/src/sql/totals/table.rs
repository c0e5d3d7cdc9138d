//! The readings of `measurements`, many of them summed up.

use std::sync::Arc;

use arrow::{
    array::{RecordBatch, UInt64Array},
    compute::{cast, take},
    datatypes::{DataType, Field, Schema, SchemaRef},
    error::ArrowError,
};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider, memory::DataSourceExec},
    datasource::{memory::MemorySourceConfig, provider_as_source, source_as_provider},
    error::Result,
    logical_expr::{Expr, TableProviderFilterPushDown, TableSource, TableType},
    physical_expr::{
        PhysicalExpr,
        expressions::{col, lit},
    },
    physical_plan::{ExecutionPlan, empty::EmptyExec, projection::ProjectionExec, union::UnionExec},
};
use wattlake_engine::{ReadView, SeriesTotals};

use super::super::{
    key_range::KeyRange,
    measurements::{FileRows, MeasurementsTable, pushdown},
};

/// So many files have few totals.
const FILES_FEW: usize = 2;

/// The columns: its name, what it is called among the totals of a file, and the column of `measurements` that it is for a single
/// reading (`None`: one).
const COLUMNS: [(&str, &str, Option<&str>); 11] = [
    ("entity_id", "entity_id", Some("entity_id")),
    ("entity_type", "entity_type", Some("entity_type")),
    ("metric", "metric", Some("metric")),
    ("unit", "unit", Some("unit")),
    ("quality", "quality", Some("quality")),
    ("timestamp", "first", Some("timestamp")),
    ("last", "last", Some("timestamp")),
    ("rows", "rows", None),
    ("sum", "sum", Some("value")),
    ("min", "min", Some("value")),
    ("max", "max", Some("value")),
];

/// Rows that stand for one reading or for many. All that a row stands for has the same key columns, lies between its times `timestamp`
/// and `last` in one UTC month, and within the range of times or outside of it.
#[derive(Debug)]
pub(in super::super) struct SummedReadings {
    /// A [`MeasurementsTable`].
    readings: Arc<dyn TableProvider>,
    /// Which readings count: microseconds since 1970 UTC, `from <= ts < to`.
    times: (i64, i64),
    schema: SchemaRef,
}

impl SummedReadings {
    /// The readings of a source; `None` when it is not `measurements`, or no file lies within the times.
    pub(super) fn of(source: &Arc<dyn TableSource>, times: (i64, i64)) -> Option<Arc<dyn TableSource>> {
        let readings = source_as_provider(source).ok()?;
        let table = readings.downcast_ref::<MeasurementsTable>()?;
        let is_within =
            |bounds: &wattlake_catalog::FileBounds| times.0 <= bounds.min_ts && bounds.max_ts < times.1;
        if !table
            .view()
            .manifest
            .files
            .iter()
            .any(|file| ReadView::may_have_totals(file) && is_within(&file.bounds))
        {
            return None;
        }
        let types = table.schema();
        let field = |(name, _, single): &(&str, &str, Option<&str>)| {
            let data_type = match single {
                None => DataType::Int64,
                Some(single) => types.field_with_name(single)?.data_type().clone(),
            };
            Ok(Field::new(*name, data_type, false))
        };
        let fields: Vec<Field> = COLUMNS.iter().map(field).collect::<Result<_, ArrowError>>().ok()?;
        let schema = Arc::new(Schema::new(fields));
        Some(provider_as_source(Arc::new(Self { readings, times, schema })))
    }

    /// Whether it is made of the totals of a few files, and no reading is read one by one but of memory and for corrections.
    pub(in super::super) fn is_small(&self) -> bool {
        let Some(table) = self.readings.downcast_ref::<MeasurementsTable>() else { return false };
        let (from, to) = self.times;
        let mut files = 0;
        let asked = table.view().manifest.files.iter().filter(|file| {
            let bounds = &file.bounds;
            bounds.min_ts < to && from <= bounds.max_ts
        });
        asked.into_iter().all(|file| {
            files += 1;
            let is_within = from <= file.bounds.min_ts && file.bounds.max_ts < to;
            files <= FILES_FEW && is_within && ReadView::may_have_totals(file)
        })
    }

    /// Which totals of a file stand for its rows, which are left out then.
    fn choose(&self, range: &KeyRange, rows: &mut FileRows<'_>) -> UInt64Array {
        let (from, to) = self.times;
        let mut chosen = Vec::new();
        rows.cover(range, |series, hidden| {
            let (first, last) = series.times;
            let is_whole = hidden.is_empty() && from <= first && last < to;
            if is_whole {
                chosen.extend(series.totals.clone().map(|total| total as u64));
                return 0..0;
            }
            series.rows_between(from, to)
        });
        UInt64Array::from(chosen)
    }

    /// The columns of some totals.
    fn to_batch(
        &self,
        totals: &SeriesTotals,
        chosen: &UInt64Array,
        schema: &SchemaRef,
    ) -> Result<RecordBatch> {
        let column = |field: &Arc<Field>| {
            let (_, name, _) = COLUMNS
                .iter()
                .find(|(name, ..)| name == field.name())
                .ok_or_else(|| ArrowError::SchemaError(format!("no totals of {}", field.name())))?;
            let column = totals
                .batch
                .column_by_name(name)
                .ok_or_else(|| ArrowError::SchemaError(format!("the totals of a file lack {name}")))?;
            cast(&take(column, chosen, None)?, field.data_type())
        };
        let columns = schema.fields().iter().map(column).collect::<Result<Vec<_>, ArrowError>>()?;
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(chosen.len()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
    }
}

#[async_trait]
impl TableProvider for SummedReadings {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(pushdown(filters))
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(table) = self.readings.downcast_ref::<MeasurementsTable>() else {
            return datafusion::common::internal_err!("the source of totals is not measurements");
        };
        let all: Vec<usize> = (0..COLUMNS.len()).collect();
        let projection = projection.unwrap_or(&all);
        let schema = Arc::new(self.schema.project(projection)?);
        let range = table.key_range(filters);
        let mut files = table.files(&range, true).await?;
        let mut batches = Vec::new();
        for rows in &mut files {
            let chosen = self.choose(&range, rows);
            if let Some(totals) = &rows.totals {
                batches.push(self.to_batch(totals, &chosen, &schema)?);
            }
        }
        let single = projection.iter().map(|column| {
            let (name, _, single) = COLUMNS[*column];
            let expression: Arc<dyn PhysicalExpr> = match single {
                Some(single) => col(single, &table.schema())?,
                None => lit(1i64),
            };
            Ok((expression, name.to_owned()))
        });
        let single = single.collect::<Result<Vec<_>>>()?;
        let summed = DataSourceExec::from_data_source(MemorySourceConfig::try_new(&[batches], schema, None)?);
        let rows = table.rows(state, files, &range)?;
        if rows.downcast_ref::<EmptyExec>().is_some() {
            return Ok(summed);
        }
        UnionExec::try_new(vec![summed, Arc::new(ProjectionExec::try_new(single, rows)?)])
    }
}
