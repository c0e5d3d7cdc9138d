//! Reading when there are readings, and nothing else of them.

use std::sync::Arc;

use wattlake_catalog::DataFile;

use super::{
    Storage,
    row_ranges::read_selected,
    rows_between,
    scan::{KeyColumns, times},
};
use crate::{Result, SeriesKey};

/// Hands over the times of all rows of a file but the `hidden` ones, which ascend, in runs of one series.
pub(crate) async fn read_times(
    storage: &Storage,
    file: &DataFile,
    hidden: &[u64],
    mut take: impl FnMut(&SeriesKey, &[i64]) -> Result<()>,
) -> Result<()> {
    let path = &file.stored.path;
    let columns = ["entity_id", "entity_type", "metric", "timestamp"];
    let mut last: Option<Arc<SeriesKey>> = None;
    let rows = rows_between(0, file.rows, hidden);
    read_selected(storage, file, rows, &columns, |batch| {
        let (keys, ts) = (KeyColumns::of(batch, path)?, times(batch, path)?);
        let mut start = 0;
        while start < batch.num_rows() {
            let end = keys.run_end(start);
            let key = keys.key(start, last.as_ref(), path)?;
            take(&key, &ts[start..end])?;
            last = Some(key);
            start = end;
        }
        Ok(())
    })
    .await
}
