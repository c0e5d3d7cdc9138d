//! The tables `rollup_daily` and `rollup_hourly`: each series in calendar buckets of its site, as `/api/rollup` has them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arrow::{
    array::{
        ArrayRef, AsArray, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt64Array,
    },
    compute::concat_batches,
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit, UInt64Type},
};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    datasource::{MemTable, TableType},
    error::{DataFusionError, Result},
    logical_expr::{Expr, TableProviderFilterPushDown},
    physical_plan::ExecutionPlan,
};
use jiff::Timestamp;
use wattlake_catalog::{Access, EntityId, Fleet};
use wattlake_engine::ReadView;

use super::{key_range::KeyRange, measurements::visible_entities};
use crate::{
    error::{ApiError, Result as ApiResult},
    rollup::{RollupParams, RollupRequest},
};

/// Rollups beyond SQL, which feed these tables.
#[async_trait]
pub(crate) trait Rollups: Send + Sync {
    async fn rollup(&self, request: RollupRequest, view: ReadView, access: Access) -> ApiResult<RecordBatch>;
}

const HOUR: i64 = 3_600_000_000;

/// How wide the buckets of a table are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Every {
    Hour,
    Day,
}

impl Every {
    fn width(self) -> &'static str {
        match self {
            Self::Hour => "1h",
            Self::Day => "1d",
        }
    }

    /// At least as long as any of them, in microseconds.
    fn longest(self) -> i64 {
        match self {
            Self::Hour => HOUR,
            // A day in which the clock goes back, and some more where a country changed its zone.
            Self::Day => 48 * HOUR,
        }
    }
}

pub(super) struct RollupTable {
    pub every: Every,
    pub rollups: Arc<dyn Rollups>,
    pub view: ReadView,
    pub fleet: Arc<Fleet>,
    pub access: Access,
}

impl std::fmt::Debug for RollupTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RollupTable").field("every", &self.every).finish_non_exhaustive()
    }
}

/// The columns of these tables.
pub(super) fn table_schema() -> SchemaRef {
    let time = || DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        Field::new("entity_id", DataType::Utf8, false),
        Field::new("metric", DataType::Utf8, false),
        Field::new("bucket_start", time(), false),
        Field::new("bucket_end", time(), false),
        Field::new("value", DataType::Float64, true),
        Field::new("unit", DataType::Utf8, false),
        Field::new("count", DataType::UInt64, false),
        Field::new("coverage", DataType::Float64, true),
        Field::new("estimated_share", DataType::Float64, true),
    ]))
}

impl RollupTable {
    /// The series that there are and that the filters let pass, by metric, and the time of the newest reading.
    async fn series(&self, range: &KeyRange) -> ApiResult<(BTreeMap<String, BTreeSet<EntityId>>, i64)> {
        let allowed = visible_entities(&self.fleet, &self.access);
        let wanted = |entity: &EntityId| allowed.as_ref().is_none_or(|allowed| allowed.contains(entity));
        let found = self.view.latest(|key| range.wants(key) && wanted(&key.entity)).await?;
        let (mut series, mut newest) = (BTreeMap::<String, BTreeSet<EntityId>>::new(), i64::MIN);
        for reading in found.iter().filter(|reading| self.fleet.site_of(reading.key.entity).is_some()) {
            newest = newest.max(reading.ts);
            series.entry(reading.key.metric.to_string()).or_default().insert(reading.key.entity);
        }
        Ok((series, newest))
    }

    async fn rows(&self, range: &KeyRange) -> ApiResult<RecordBatch> {
        let (series, newest) = self.series(range).await?;
        let in_files = self.view.manifest.files.iter().map(|file| file.bounds.min_ts).min();
        let in_memory = self.view.hot.oldest();
        let oldest = in_files.into_iter().chain(in_memory).min().unwrap_or(newest);
        // A bucket that the range cuts would lack readings, so a longer range is asked for; the filters take it away again.
        let from = range.from.max(oldest).saturating_sub(self.every.longest());
        let to = range.to.min(newest.saturating_add(1)).saturating_add(self.every.longest());
        let mut batches = Vec::new();
        if from < to {
            for (metric, entities) in series {
                batches.push(self.of_metric(metric, entities, from, to).await?);
            }
        }
        concat_batches(&table_schema(), &batches).map_err(|error| ApiError::internal(error.to_string()))
    }

    async fn of_metric(
        &self,
        metric: String,
        entities: BTreeSet<EntityId>,
        from: i64,
        to: i64,
    ) -> ApiResult<RecordBatch> {
        let instant = |micros| Timestamp::from_microsecond(micros).map(|at| at.to_string());
        let outside = |_| ApiError::invalid("bucket_start: the range lies outside of the calendar");
        let params = RollupParams {
            entity_id: entities.iter().map(EntityId::to_string).collect(),
            metric: Some(metric.clone()),
            bucket: Some(self.every.width().to_owned()),
            from: Some(instant(from).map_err(outside)?),
            to: Some(instant(to).map_err(outside)?),
            by: Some("entity".to_owned()),
            mode: Some("own".to_owned()),
            ..RollupParams::default()
        };
        let request = RollupRequest::new(&params, &jiff::tz::TimeZone::UTC, Timestamp::MAX)?;
        let batch = self.rollups.rollup(request, self.view.clone(), self.access.clone()).await?;
        to_table(&batch, &metric)
    }
}

/// The answer to a rollup by entity, as rows of the table.
fn to_table(batch: &RecordBatch, metric: &str) -> ApiResult<RecordBatch> {
    let column = |name: &str| -> ApiResult<ArrayRef> {
        let found = batch.column_by_name(name).cloned();
        found.ok_or_else(|| ApiError::internal(format!("a rollup has no {name}")))
    };
    let times = |name: &str| -> ApiResult<ArrayRef> {
        let texts = column(name)?;
        let micros = texts.as_string::<i32>().iter().map(|text| {
            let at: Timestamp = text.unwrap_or_default().parse()?;
            Ok::<_, jiff::Error>(at.as_microsecond())
        });
        let micros: Vec<i64> =
            micros.collect::<Result<_, _>>().map_err(|e| ApiError::internal(e.to_string()))?;
        Ok(Arc::new(TimestampMicrosecondArray::from(micros).with_timezone("UTC")))
    };
    let counts = arrow::compute::cast(&column("count")?, &DataType::UInt64)
        .map_err(|e| ApiError::internal(e.to_string()))?;
    let counts: UInt64Array = counts.as_primitive::<UInt64Type>().clone();
    let number = |name: &str| -> ApiResult<ArrayRef> {
        let numbers: Float64Array = column(name)?.as_primitive::<arrow::datatypes::Float64Type>().clone();
        Ok(Arc::new(numbers))
    };
    let metrics = StringArray::from_iter_values(std::iter::repeat_n(metric, batch.num_rows()));
    let columns: Vec<ArrayRef> = vec![
        column("entityId")?,
        Arc::new(metrics),
        times("bucketStart")?,
        times("bucketEnd")?,
        number("value")?,
        column("unit")?,
        Arc::new(counts),
        number("coverage")?,
        number("estimatedShare")?,
    ];
    RecordBatch::try_new(table_schema(), columns).map_err(|error| ApiError::internal(error.to_string()))
}

#[async_trait]
impl TableProvider for RollupTable {
    fn schema(&self) -> SchemaRef {
        table_schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let range = KeyRange::of(filters, "bucket_start");
        let rows = self.rows(&range).await.map_err(|error| DataFusionError::External(Box::new(error)))?;
        MemTable::try_new(table_schema(), vec![vec![rows]])?.scan(state, projection, &[], limit).await
    }
}
