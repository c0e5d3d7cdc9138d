//! The table `measurements`: files of a pinned snapshot together with the readings in memory.
//!
//! Files are pruned by the manifest, row groups and pages by their statistics; deleted and superseded rows are row
//! selections, so that every predicate may be pushed into the Parquet scan.

use std::{collections::BTreeSet, sync::Arc};

use arrow::{
    array::{ArrayRef, Float64Array, RecordBatch, StringViewBuilder, TimestampMicrosecondArray},
    datatypes::{DataType, Schema, SchemaRef},
};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider, memory::DataSourceExec},
    common::ScalarValue,
    datasource::{
        listing::PartitionedFile,
        memory::MemorySourceConfig,
        object_store::ObjectStoreUrl,
        physical_plan::{
            FileGroup, FileScanConfigBuilder, ParquetSource,
            parquet::{CachedParquetFileReaderFactory, ParquetAccessPlan, RowGroupAccess},
        },
    },
    error::{DataFusionError, Result},
    logical_expr::{Expr, TableProviderFilterPushDown, TableType},
    physical_expr::{
        LexOrdering, PhysicalSortExpr,
        expressions::{InListExpr, col, lit},
    },
    physical_plan::{ExecutionPlan, empty::EmptyExec, filter::FilterExec, union::UnionExec},
};
use object_store::ObjectMeta;
use parquet::arrow::arrow_reader::{RowSelection, RowSelector};
use wattlake_catalog::{Access, DataFile, EntityId, Fleet};
use wattlake_engine::{CheckedStore, ReadView, SeriesRows, Storage, measurement_schema, rows_between};

use super::{ARCHIVE_URL, key_range::KeyRange};
use crate::error::ApiError;

/// Files that are merged in order at most: each holds buffers of its own.
const ORDERED_FILES_MAX: usize = 512;
/// Decoded filter columns kept per file while many are merged.
const ORDERED_CACHE_BYTES: usize = 1 << 20;

/// Smaller files are read by one partition.
pub(super) const SPLIT_ROWS_MIN: u64 = 128 << 10;
/// With so many files for each partition they spread well enough as they are.
const WHOLE_FILES_MIN: usize = 4;

/// An extension of a session: scans declare the order of their files, one partition a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyOrder;

/// The table as one query sees it.
pub(crate) struct MeasurementsTable {
    view: ReadView,
    schema: SchemaRef,
    /// The only entities that may be seen, sorted; `None`: all.
    allowed: Option<BTreeSet<EntityId>>,
}

impl std::fmt::Debug for MeasurementsTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeasurementsTable").finish_non_exhaustive()
    }
}

/// The columns of `measurements`.
pub(super) fn table_schema() -> SchemaRef {
    let schema = measurement_schema(&DataType::Utf8View);
    // Field ids are the files' business; in a query they would only make schemas differ.
    let fields = schema.fields().iter().map(|field| field.as_ref().clone().with_metadata(Default::default()));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// The only entities whose readings may be seen; `None`: all.
pub(crate) fn visible_entities(fleet: &Fleet, access: &Access) -> Option<BTreeSet<EntityId>> {
    (!access.sites.is_empty()).then(|| {
        let meters = access.sites.iter().flat_map(|site| fleet.site_meters(*site));
        meters.flat_map(|meter| [meter].into_iter().chain(fleet.sources_of(meter).to_vec())).collect()
    })
}

impl MeasurementsTable {
    pub(super) fn new(view: ReadView, fleet: &Fleet, access: &Access) -> Self {
        let allowed = visible_entities(fleet, access);
        Self { view, schema: table_schema(), allowed }
    }

    async fn scan_files(
        &self,
        state: &dyn Session,
        files: Vec<&Arc<DataFile>>,
        range: &KeyRange,
        ordering: Option<&LexOrdering>,
    ) -> Result<Vec<Arc<dyn ExecutionPlan>>> {
        if files.is_empty() {
            return Ok(Vec::new());
        }
        let late = self.view.late_rows(range.from, range.to, |key| range.wants(key));
        let partitions = state.config().target_partitions();
        let are_split = ordering.is_none() && files.len() < WHOLE_FILES_MIN * partitions;
        let mut pieces = Vec::with_capacity(files.len());
        for file in &files {
            let hidden = self.view.hidden_rows(file, &late).await;
            let hidden =
                hidden.map_err(|error| DataFusionError::External(Box::new(ApiError::from(error))))?;
            if hidden.len() as u64 >= file.rows {
                continue;
            }
            let parts = if are_split && file.rows >= SPLIT_ROWS_MIN { partitions.max(1) } else { 1 };
            let bytes = file.stored.bytes / parts as u64;
            pieces.extend((0..parts).map(|part| (bytes, partitioned_file(file, &hidden, part, parts))));
        }
        if pieces.is_empty() {
            return Ok(Vec::new());
        }
        let groups = match ordering {
            Some(_) => pieces.into_iter().map(|(_, file)| FileGroup::new(vec![file])).collect(),
            None => balanced(pieces, partitions),
        };
        let store = CheckedStore::new(self.view.storage(), files.iter().map(|file| &file.stored));
        let cache = state.runtime_env().cache_manager.get_file_metadata_cache();
        let mut options = state.default_table_options().parquet;
        if ordering.is_some() {
            options.global.max_predicate_cache_size = Some(ORDERED_CACHE_BYTES);
        }
        let source = ParquetSource::new(Arc::clone(&self.schema))
            .with_table_parquet_options(options)
            .with_pushdown_filters(true)
            .with_reorder_filters(true)
            .with_enable_page_index(true)
            .with_parquet_file_reader_factory(Arc::new(CachedParquetFileReaderFactory::new(
                Arc::new(store),
                cache,
            )));
        let config = FileScanConfigBuilder::new(ObjectStoreUrl::parse(ARCHIVE_URL)?, Arc::new(source))
            .with_file_groups(groups)
            .with_output_ordering(ordering.cloned().into_iter().collect())
            .build();
        Ok(vec![DataSourceExec::from_data_source(config)])
    }

    /// The order of rows in files and of those in memory.
    fn key_ordering(&self) -> Result<Option<LexOrdering>> {
        let key = ["metric", "entity_id", "timestamp"];
        let columns = key.iter().map(|name| Ok(PhysicalSortExpr::new_default(col(name, &self.schema)?)));
        Ok(LexOrdering::new(columns.collect::<Result<Vec<_>>>()?))
    }

    fn hot_batch(&self, range: &KeyRange) -> Result<Option<RecordBatch>> {
        let series = self.view.hot.select(range.from, range.to, |key| range.wants(key));
        if series.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.to_batch(&series)?))
    }

    fn to_batch(&self, series: &[SeriesRows]) -> Result<RecordBatch> {
        let [mut entity, mut kind, mut metric, mut unit, mut quality, mut metadata] =
            std::array::from_fn(|_| StringViewBuilder::new().with_deduplicate_strings());
        let (mut ts, mut value, mut created) = (Vec::new(), Vec::new(), Vec::new());
        for one in series {
            let id = one.key.entity.to_string();
            for (unit_text, text) in self.view.hot.units(one).zip(one.rows.metadata()) {
                entity.append_value(&id);
                kind.append_value(one.key.entity_type.as_str());
                metric.append_value(&*one.key.metric);
                unit.append_value(&*unit_text);
                metadata.append_option(text);
            }
            one.rows.quality.iter().for_each(|q| quality.append_value(q.as_str()));
            ts.extend_from_slice(&one.rows.ts);
            value.extend_from_slice(&one.rows.value);
            created.extend_from_slice(&one.rows.created_at);
        }
        let time = |values: Vec<i64>| -> ArrayRef {
            Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC"))
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(entity.finish()),
            Arc::new(kind.finish()),
            time(ts),
            Arc::new(metric.finish()),
            Arc::new(Float64Array::from(value)),
            Arc::new(unit.finish()),
            Arc::new(quality.finish()),
            Arc::new(metadata.finish()),
            time(created),
        ];
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }
}

/// One of several parts of a file's rows, without the hidden ones.
fn partitioned_file(file: &DataFile, hidden: &[u64], part: usize, parts: usize) -> PartitionedFile {
    let meta = ObjectMeta {
        location: Storage::object_path(&file.stored),
        // Names are never reused, so the time tells caches nothing.
        last_modified: Default::default(),
        size: file.stored.bytes,
        e_tag: None,
        version: None,
    };
    let partitioned = PartitionedFile::new_from_meta(meta)
        .with_metadata_size_hint(usize::try_from(file.stored.footer_bytes).unwrap_or(0) + 8);
    if hidden.is_empty() && parts == 1 {
        return partitioned;
    }
    partitioned.with_extension(access_plan(file, hidden, part as u64, parts as u64))
}

/// Spreads files with their sizes over partitions of about the same size.
fn balanced(mut files: Vec<(u64, PartitionedFile)>, partitions: usize) -> Vec<FileGroup> {
    let mut groups: Vec<(u64, Vec<PartitionedFile>)> = vec![(0, Vec::new()); partitions.max(1)];
    files.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
    for (bytes, file) in files {
        if let Some(smallest) = groups.iter_mut().min_by_key(|(bytes, _)| *bytes) {
            smallest.0 += bytes;
            smallest.1.push(file);
        }
    }
    groups
        .into_iter()
        .filter(|(_, files)| !files.is_empty())
        .map(|(_, files)| FileGroup::new(files))
        .collect()
}

/// Row selections of a file's row groups without the hidden rows. Each part has its share of every group, so that all have work
/// whatever groups a filter leaves; pages without any of the rows are not read.
fn access_plan(file: &DataFile, hidden: &[u64], part: u64, parts: u64) -> ParquetAccessPlan {
    let mut groups = Vec::new();
    let mut start = 0;
    while start < file.rows {
        let end = (start + file.row_group_rows).min(file.rows);
        let share = |part: u64| start + (end - start) * part / parts;
        let (first, last) = (share(part), share(part + 1));
        let inside = hidden.partition_point(|row| *row < first)..hidden.partition_point(|row| *row < last);
        let inside = &hidden[inside];
        groups.push(if inside.is_empty() && (first, last) == (start, end) {
            RowGroupAccess::Scan
        } else if inside.len() as u64 == last - first {
            RowGroupAccess::Skip
        } else {
            let mut selectors = vec![RowSelector::skip((first - start) as usize)];
            selectors.extend(Vec::from(rows_between(first, last, inside)));
            selectors.push(RowSelector::skip((end - last) as usize));
            RowGroupAccess::Selection(RowSelection::from(selectors))
        });
        start = end;
    }
    ParquetAccessPlan::new(groups)
}

#[async_trait]
impl TableProvider for MeasurementsTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
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
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let mut range = KeyRange::of(filters, "timestamp");
        if let Some(allowed) = &self.allowed {
            range.restrict_entities(allowed.clone());
        }
        let files: Vec<_> = self.view.manifest.files.iter().filter(|file| range.may_hold(file)).collect();
        let is_ordered =
            state.config().get_extension::<KeyOrder>().is_some() && files.len() <= ORDERED_FILES_MAX;
        let ordering = if is_ordered { self.key_ordering()? } else { None };
        let mut parts = self.scan_files(state, files, &range, ordering.as_ref()).await?;
        if let Some(batch) = self.hot_batch(&range)? {
            let source = MemorySourceConfig::try_new(&[vec![batch]], self.schema(), None)?;
            let source = source.try_with_sort_information(ordering.into_iter().collect())?;
            parts.push(DataSourceExec::from_data_source(source));
        }
        let mut plan: Arc<dyn ExecutionPlan> = match parts.len() {
            0 => Arc::new(EmptyExec::new(self.schema())),
            1 => parts.remove(0),
            _ => UnionExec::try_new(parts)?,
        };
        if let Some(allowed) = &self.allowed {
            let ids = allowed.iter().map(|id| lit(ScalarValue::Utf8View(Some(id.to_string())))).collect();
            let entity = col("entity_id", &self.schema)?;
            let filter = InListExpr::try_new(entity, ids, false, &self.schema)?;
            plan = Arc::new(FilterExec::try_new(Arc::new(filter), plan)?);
        }
        match projection {
            None => Ok(plan),
            Some(indices) => {
                let exprs = indices
                    .iter()
                    .map(|i| {
                        let name = self.schema.field(*i).name();
                        Ok((col(name, &self.schema)?, name.clone()))
                    })
                    .collect::<Result<Vec<_>>>()?;
                Ok(Arc::new(datafusion::physical_plan::projection::ProjectionExec::try_new(exprs, plan)?))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wattlake_catalog::{FileBounds, StoredFile};

    use super::*;

    fn file(rows: u64, row_group_rows: u64) -> DataFile {
        let stored = StoredFile {
            path: "month=2026-01/a.parquet".into(),
            bytes: 1,
            footer_bytes: 1,
            blake3: String::new(),
            sums: Default::default(),
        };
        let bounds = FileBounds {
            min_ts: 0,
            max_ts: 0,
            min_entity: String::new(),
            max_entity: String::new(),
            min_metric: String::new(),
            max_metric: String::new(),
        };
        DataFile { id: 1, stored, rows, row_group_rows, level: 2, bounds, delete: None }
    }

    /// The rows that a plan selects.
    fn rows(plan: &ParquetAccessPlan, file: &DataFile) -> Vec<u64> {
        let mut found = Vec::new();
        let mut at = 0;
        for group in plan.inner() {
            let end = (at + file.row_group_rows).min(file.rows);
            match group {
                RowGroupAccess::Skip => {}
                RowGroupAccess::Scan => found.extend(at..end),
                RowGroupAccess::Selection(selection) => {
                    assert_eq!(selection.iter().map(|s| s.row_count as u64).sum::<u64>(), end - at);
                    let mut row = at;
                    for selector in selection.iter() {
                        let next = row + selector.row_count as u64;
                        found.extend((row..next).filter(|_| !selector.skip));
                        row = next;
                    }
                }
            }
            at = end;
        }
        found
    }

    proptest! {
        #[test]
        fn parts_are_all_visible_rows_once(
            rows_in_all in 1u64..200, group in 1u64..70, parts in 1u64..5, hidden in prop::collection::btree_set(0u64..200, 0..60),
        ) {
            let file = file(rows_in_all, group);
            let hidden: Vec<u64> = hidden.into_iter().filter(|row| *row < rows_in_all).collect();
            let mut found: Vec<u64> = (0..parts)
                .flat_map(|part| rows(&access_plan(&file, &hidden, part, parts), &file))
                .collect();
            found.sort_unstable();
            let expected: Vec<u64> = (0..rows_in_all).filter(|row| hidden.binary_search(row).is_err()).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
