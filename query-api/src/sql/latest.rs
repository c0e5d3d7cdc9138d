//! The table `latest`: the newest reading of each series.

use std::{collections::BTreeSet, sync::Arc};

use arrow::{
    array::{ArrayRef, Float64Array, RecordBatch, StringViewBuilder, TimestampMicrosecondArray},
    error::ArrowError,
};
use datafusion::{
    catalog::TableProvider,
    datasource::MemTable,
    error::{DataFusionError, Result},
};
use wattlake_catalog::EntityId;
use wattlake_engine::{LatestReading, ReadView};

use crate::error::ApiError;

/// The newest readings of a view; `allowed` are the only entities that may be seen.
pub(super) async fn table(
    view: &ReadView,
    allowed: Option<&BTreeSet<EntityId>>,
) -> Result<Arc<dyn TableProvider>> {
    let found = view.latest(|key| allowed.is_none_or(|allowed| allowed.contains(&key.entity))).await;
    let readings = found.map_err(|error| DataFusionError::External(Box::new(ApiError::from(error))))?;
    let batch = to_batch(&readings)?;
    Ok(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?))
}

pub(super) fn to_batch(readings: &[LatestReading]) -> Result<RecordBatch, ArrowError> {
    let text = |of: &dyn Fn(&LatestReading) -> String| -> ArrayRef {
        let mut builder = StringViewBuilder::new().with_deduplicate_strings();
        readings.iter().for_each(|reading| builder.append_value(of(reading)));
        Arc::new(builder.finish())
    };
    let times =
        TimestampMicrosecondArray::from_iter_values(readings.iter().map(|r| r.ts)).with_timezone("UTC");
    let values = Float64Array::from_iter_values(readings.iter().map(|r| r.value));
    RecordBatch::try_from_iter_with_nullable(vec![
        ("entity_id", text(&|r| r.key.entity.to_string()), false),
        ("entity_type", text(&|r| r.key.entity_type.as_str().to_owned()), false),
        ("metric", text(&|r| r.key.metric.to_string()), false),
        ("timestamp", Arc::new(times) as ArrayRef, false),
        ("value", Arc::new(values), false),
        ("unit", text(&|r| r.unit.to_string()), false),
        ("quality", text(&|r| r.quality.as_str().to_owned()), false),
    ])
}
