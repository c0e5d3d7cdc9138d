//! Where the last row of each series of a data file is: files are in the order of series and time. Totals tell how many rows each
//! has; without them the columns that tell the series are read, which are short.

use std::sync::Arc;

use futures::TryStreamExt;
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask, arrow_reader::ArrowReaderOptions};
use wattlake_catalog::DataFile;

use super::{
    Storage,
    object_reader::ObjectReader,
    scan::{KeyColumns, damaged, dictionary_schema},
    series_totals::read_series_totals,
};
use crate::{Result, SeriesKey};

/// Runs of texts are read much faster than they are long.
const BATCH_ROWS: usize = 64 << 10;

/// The position in a file of the last row of each series that is not `hidden`, in the order of the file; `hidden` ascends.
pub(crate) async fn last_positions(
    storage: &Storage,
    file: &DataFile,
    hidden: &[u64],
) -> Result<Vec<(Arc<SeriesKey>, u64)>> {
    if let Some(totals) = read_series_totals(storage, file).await? {
        let last = totals.series.into_iter().filter_map(|series| {
            let position = last_visible(series.rows.start, series.rows.end, hidden)?;
            Some((Arc::new(series.key), position))
        });
        return Ok(last.collect());
    }
    let reader = ObjectReader::new(storage, &file.stored);
    let options = ArrowReaderOptions::new().with_schema(dictionary_schema());
    let builder = ParquetRecordBatchStreamBuilder::new_with_options(reader, options).await?;
    let mask = ProjectionMask::columns(builder.parquet_schema(), ["entity_id", "entity_type", "metric"]);
    let mut stream = builder.with_projection(mask).with_batch_size(BATCH_ROWS).build()?;
    let path = &file.stored.path;
    let mut last: Vec<(Arc<SeriesKey>, u64)> = Vec::new();
    let mut first = 0;
    while let Some(batch) = stream.try_next().await.map_err(|error| damaged(path, error))? {
        let columns = KeyColumns::of(&batch, path)?;
        let mut start = 0;
        while start < batch.num_rows() {
            let end = columns.run_end(start);
            if let Some(position) = last_visible(first + start as u64, first + end as u64, hidden) {
                let key = columns.key(start, last.last().map(|(key, _)| key), path)?;
                match last.last_mut() {
                    Some((known, at)) if known.sort_key() == key.sort_key() => *at = position,
                    _ => last.push((key, position)),
                }
            }
            start = end;
        }
        first += batch.num_rows() as u64;
    }
    Ok(last)
}

/// The last of the rows `start..end` that is not hidden.
fn last_visible(start: u64, end: u64, hidden: &[u64]) -> Option<u64> {
    let below = hidden.partition_point(|row| *row < end);
    let hidden_at_end =
        hidden[..below].iter().rev().zip((start..end).rev()).take_while(|(row, at)| *row == at);
    let visible = end - hidden_at_end.count() as u64;
    (visible > start).then(|| visible - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_rows_at_the_end_are_passed_over() {
        assert_eq!(last_visible(10, 20, &[]), Some(19));
        assert_eq!(last_visible(10, 20, &[3, 9, 15, 18, 20, 21]), Some(19));
        assert_eq!(last_visible(10, 20, &[15, 18, 19, 20]), Some(17));
        assert_eq!(last_visible(10, 12, &[9, 10, 11, 12]), None);
        assert_eq!(last_visible(10, 12, &[9, 11]), Some(10));
    }
}
