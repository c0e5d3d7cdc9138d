//! Finding rows of a data file by key: what late readings supersede, at flush and at query time.
//!
//! Files are sorted by (metric, entity, timestamp), so row-group statistics leave few groups to read; those are
//! walked once beside the sorted wanted keys.

use std::{ops::Range, sync::Arc};

use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{Float64Type, TimestampMicrosecondType};
use futures::TryStreamExt;
use parquet::{
    arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask, arrow_reader::statistics::StatisticsConverter},
    file::metadata::ParquetMetaData,
};
use wattlake_catalog::{DataFile, EntityId};

use super::{Storage, object_reader::ObjectReader};
use crate::{Error, Result};

/// Keys looked for in one series; times are sorted and each there once.
#[derive(Clone, Debug)]
pub(crate) struct WantedSeries {
    pub metric: Arc<str>,
    pub entity: EntityId,
    pub times: Vec<i64>,
}

/// A row of the file that has a wanted key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KeyMatch {
    /// Index into the wanted series, and into its times.
    pub series: usize,
    pub time: usize,
    /// 0-based row in the file.
    pub position: u64,
    pub value: f64,
    pub unit: String,
    pub quality: String,
    pub metadata: Option<String>,
}

/// Finds the rows with the wanted keys; `wanted` is in the order of the file. Deleted rows are found, too.
pub(crate) async fn find_rows(
    storage: &Storage,
    file: &DataFile,
    wanted: &[WantedSeries],
) -> Result<Vec<KeyMatch>> {
    let reader = ObjectReader::new(storage, &file.stored);
    let builder = ParquetRecordBatchStreamBuilder::new(reader).await?;
    let metadata = Arc::clone(builder.metadata());
    let groups = candidate_groups(&metadata, builder.schema(), wanted)?;
    if groups.is_empty() {
        return Ok(Vec::new());
    }
    let columns = ["entity_id", "timestamp", "metric", "value", "unit", "quality", "metadata"];
    let mask = ProjectionMask::columns(builder.parquet_schema(), columns);
    let mut position = Positions::new(&groups);
    let mut stream = builder
        .with_row_groups(groups.iter().map(|group| group.index).collect())
        .with_projection(mask)
        .with_batch_size(16_384)
        .build()?;
    let mut found = Vec::new();
    let mut cursor = Cursor { wanted, series: 0 };
    while let Some(batch) = stream.try_next().await? {
        cursor.walk(&batch, &mut position, &mut found)?;
    }
    Ok(found)
}

/// A row group that may hold wanted keys, with its rows in the file.
struct Group {
    index: usize,
    rows: Range<usize>,
}

/// The least and the greatest metric and entity of a row group.
pub(super) struct KeyBounds {
    /// Missing statistics exclude nothing.
    metric: Option<(String, String)>,
    entity: Option<(String, String)>,
}

impl KeyBounds {
    /// Whether it may hold rows of a metric and of an entity in a range; both are inclusive.
    pub(super) fn may_hold(&self, metric: &str, low: &str, high: &str) -> bool {
        let overlaps = |bounds: &Option<(String, String)>, low: &str, high: &str| {
            bounds.as_ref().is_none_or(|(min, max)| min.as_str() <= high && low <= max.as_str())
        };
        overlaps(&self.metric, metric, metric) && overlaps(&self.entity, low, high)
    }
}

/// The bounds of each row group.
pub(super) fn key_bounds(
    metadata: &ParquetMetaData,
    schema: &arrow::datatypes::Schema,
) -> Result<Vec<KeyBounds>> {
    let parquet_schema = metadata.file_metadata().schema_descr();
    let bounds = |column: &str| -> Result<(StringArray, StringArray)> {
        let converter = StatisticsConverter::try_new(column, schema, parquet_schema)?;
        let text = |array: &arrow::array::ArrayRef| -> Result<StringArray> {
            let array = arrow::compute::cast(array, &arrow::datatypes::DataType::Utf8)?;
            Ok(array.as_string::<i32>().clone())
        };
        Ok((
            text(&converter.row_group_mins(metadata.row_groups())?)?,
            text(&converter.row_group_maxes(metadata.row_groups())?)?,
        ))
    };
    let (metric_min, metric_max) = bounds("metric")?;
    let (entity_min, entity_max) = bounds("entity_id")?;
    let pair = |min: &StringArray, max: &StringArray, i: usize| {
        (min.is_valid(i) && max.is_valid(i)).then(|| (min.value(i).to_owned(), max.value(i).to_owned()))
    };
    let bounds = (0..metadata.num_row_groups()).map(|i| KeyBounds {
        metric: pair(&metric_min, &metric_max, i),
        entity: pair(&entity_min, &entity_max, i),
    });
    Ok(bounds.collect())
}

fn candidate_groups(
    metadata: &ParquetMetaData,
    schema: &arrow::datatypes::Schema,
    wanted: &[WantedSeries],
) -> Result<Vec<Group>> {
    let wanted: Vec<_> = wanted.iter().map(|series| (&*series.metric, series.entity.to_string())).collect();
    let mut groups = Vec::new();
    let mut start = 0;
    for (index, (group, bounds)) in
        metadata.row_groups().iter().zip(key_bounds(metadata, schema)?).enumerate()
    {
        let rows = start..start + group.num_rows() as usize;
        start = rows.end;
        if wanted.iter().any(|(metric, entity)| bounds.may_hold(metric, entity, entity)) {
            groups.push(Group { index, rows });
        }
    }
    Ok(groups)
}

/// Positions in the file of the rows of the picked groups, in order.
struct Positions {
    ranges: std::vec::IntoIter<Range<usize>>,
    current: Range<usize>,
}

impl Positions {
    fn new(groups: &[Group]) -> Self {
        let ranges: Vec<_> = groups.iter().map(|group| group.rows.clone()).collect();
        Self { ranges: ranges.into_iter(), current: 0..0 }
    }

    fn next(&mut self) -> Result<u64> {
        loop {
            if let Some(position) = self.current.next() {
                return Ok(position as u64);
            }
            self.current = self
                .ranges
                .next()
                .ok_or_else(|| Error::corrupt("a file has more rows than its footer says"))?;
        }
    }
}

/// Walks the rows of a file beside the wanted series, both in the same order.
struct Cursor<'a> {
    wanted: &'a [WantedSeries],
    series: usize,
}

impl Cursor<'_> {
    fn walk(
        &mut self,
        batch: &RecordBatch,
        positions: &mut Positions,
        found: &mut Vec<KeyMatch>,
    ) -> Result<()> {
        let text = |name: &str| -> Result<StringArray> {
            let column = batch
                .column_by_name(name)
                .ok_or_else(|| Error::corrupt(format!("a data file lacks the column {name}")))?;
            let column = arrow::compute::cast(column, &arrow::datatypes::DataType::Utf8)?;
            Ok(column.as_string::<i32>().clone())
        };
        let (entity, metric) = (text("entity_id")?, text("metric")?);
        let (unit, quality, metadata) = (text("unit")?, text("quality")?, text("metadata")?);
        let bad = |name: &str| Error::corrupt(format!("a data file lacks the column {name}"));
        let time = batch.column_by_name("timestamp").ok_or_else(|| bad("timestamp"))?;
        let time = time.as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(|| bad("timestamp"))?;
        let value = batch.column_by_name("value").ok_or_else(|| bad("value"))?;
        let value = value.as_primitive_opt::<Float64Type>().ok_or_else(|| bad("value"))?;
        let mut entity_text = self.entity_text();
        for i in 0..batch.num_rows() {
            let position = positions.next()?;
            let row = (metric.value(i), entity.value(i));
            while let Some(series) = self.wanted.get(self.series)
                && (&*series.metric, entity_text.as_str()) < row
            {
                self.series += 1;
                entity_text = self.entity_text();
            }
            let Some(series) = self.wanted.get(self.series) else { return self.skip(batch, i, positions) };
            if (&*series.metric, entity_text.as_str()) != row {
                continue;
            }
            if let Ok(at) = series.times.binary_search(&time.value(i)) {
                found.push(KeyMatch {
                    series: self.series,
                    time: at,
                    position,
                    value: value.value(i),
                    unit: unit.value(i).to_owned(),
                    quality: quality.value(i).to_owned(),
                    metadata: metadata.is_valid(i).then(|| metadata.value(i).to_owned()),
                });
            }
        }
        Ok(())
    }

    fn entity_text(&self) -> String {
        self.wanted.get(self.series).map(|series| series.entity.to_string()).unwrap_or_default()
    }

    /// Everything wanted lies before row `i`: only the positions of the rest have to move on.
    fn skip(&self, batch: &RecordBatch, i: usize, positions: &mut Positions) -> Result<()> {
        (i + 1..batch.num_rows()).try_for_each(|_| positions.next().map(drop))
    }
}
