//! The table `measurements`: files of a pinned snapshot together with the readings in memory.
//!
//! Files are pruned by the manifest, row groups and pages by their statistics; deleted and superseded rows are row
//! selections, so that every predicate may be pushed into the Parquet scan.

use std::{collections::BTreeSet, ops::Range, sync::Arc};

use arrow::{
    array::{ArrayRef, Float64Array, RecordBatch, StringViewBuilder, TimestampMicrosecondArray},
    datatypes::{DataType, Schema, SchemaRef},
};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider, memory::DataSourceExec},
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
    physical_expr::{LexOrdering, PhysicalSortExpr, conjunction_opt, expressions::col},
    physical_plan::{
        ExecutionPlan, empty::EmptyExec, filter::FilterExec,
        sorts::sort_preserving_merge::SortPreservingMergeExec, union::UnionExec,
    },
};
use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectMeta;
use parquet::arrow::arrow_reader::{RowSelection, RowSelector};
use wattlake_catalog::{Access, DataFile, EntityId, Fleet};
use wattlake_engine::{
    CheckedStore, ReadView, SeriesRows, SeriesTotals, Storage, TotalledSeries, measurement_schema,
    rows_between,
};

use super::{
    ARCHIVE_URL,
    key_range::{KeyRange, exact_times, is_of_series},
};
use crate::error::ApiError;

/// Files that are merged in order at most: each holds buffers of its own.
const ORDERED_FILES_MAX: usize = 512;
/// The same for other scans of one metric: more of them are spread over fewer streams, without an order.
pub(super) const STREAMS_MAX: usize = 16;
/// Decoded filter columns kept per file while many are merged.
const ORDERED_CACHE_BYTES: usize = 1 << 20;

/// Smaller files are read by one partition.
pub(super) const SPLIT_ROWS_MIN: u64 = 128 << 10;
/// With so many files for each partition they spread well enough as they are.
const WHOLE_FILES_MIN: usize = 4;

/// The column of times.
pub(super) const TIME: &str = "timestamp";

/// An extension of a session: scans of one metric are streams in the order of entity and time however many files there are, one
/// partition a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyOrder;

/// An extension of a session: scans of one metric are one stream in the order of entity and time.
#[derive(Clone, Copy, Debug)]
pub(super) struct OneStream;

/// Files whose totals are read side by side.
const FILES_AT_ONCE: usize = 8;

/// A file and which of its rows a scan leaves out.
pub(super) struct FileRows<'a> {
    pub file: &'a Arc<DataFile>,
    /// With them, exactly the rows of the series that are wanted are left.
    pub totals: Option<Arc<SeriesTotals>>,
    /// Positions of rows that must not be seen, in order.
    pub hidden: Vec<u64>,
    /// Stretches that need not be read, in order and apart.
    pub covered: Vec<Range<u64>>,
}

impl FileRows<'_> {
    /// Leaves out all rows of series but those that `needed` names of the series that are wanted, given the hidden ones of each.
    pub(super) fn cover(
        &mut self,
        range: &KeyRange,
        mut needed: impl FnMut(&TotalledSeries, &[u64]) -> Range<u64>,
    ) {
        let Some(totals) = &self.totals else { return };
        self.covered.clear();
        let mut next = 0;
        for series in range.wanted(&totals.series) {
            let hidden = self.hidden.partition_point(|row| *row < series.rows.start)
                ..self.hidden.partition_point(|row| *row < series.rows.end);
            let needed = needed(series, &self.hidden[hidden]);
            if needed.is_empty() {
                continue;
            }
            if needed.start > next {
                self.covered.push(next..needed.start);
            }
            next = needed.end;
        }
        if next < self.file.rows {
            self.covered.push(next..self.file.rows);
        }
    }

    /// Whether no row is left.
    fn is_empty(&self) -> bool {
        let covered: u64 = self.covered.iter().map(|rows| rows.end - rows.start).sum();
        covered >= self.file.rows || self.hidden.len() as u64 >= self.file.rows
    }
}

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

    pub(super) fn view(&self) -> &ReadView {
        &self.view
    }

    /// What filters say about keys, and what access does.
    pub(super) fn key_range(&self, filters: &[Expr]) -> KeyRange {
        let mut range = KeyRange::of(filters, TIME);
        if let Some(allowed) = &self.allowed {
            range.restrict_entities(allowed.clone());
        }
        range
    }

    /// The files that may hold such keys, with the rows of them that the view must not show. Their totals are there when they tell
    /// which rows are wanted, or when `with_totals`.
    pub(super) async fn files(&self, range: &KeyRange, with_totals: bool) -> Result<Vec<FileRows<'_>>> {
        let late = self.view.late_rows(range.from, range.to, |key| range.wants(key));
        let mut reads = Vec::new();
        for file in self.view.manifest.files.iter().filter(|file| range.may_hold(file)) {
            reads.push(self.file_rows(file, &late, with_totals || range.is_of_some_series()));
        }
        let mut files: Vec<FileRows<'_>> = stream::iter(reads).buffered(FILES_AT_ONCE).try_collect().await?;
        for rows in &mut files {
            rows.cover(range, |series, _| series.rows_between(range.from, range.to));
        }
        Ok(files)
    }

    async fn file_rows<'a>(
        &'a self,
        file: &'a Arc<DataFile>,
        late: &[SeriesRows],
        with_totals: bool,
    ) -> Result<FileRows<'a>> {
        let hidden = self.view.hidden_rows(file, late).await.map_err(unreadable)?;
        let totals = match with_totals {
            true => self.view.series_totals(file).await.map_err(unreadable)?,
            false => None,
        };
        Ok(FileRows { file, totals, hidden, covered: Vec::new() })
    }

    fn scan_files(
        &self,
        state: &dyn Session,
        mut files: Vec<FileRows<'_>>,
        ordering: Option<&LexOrdering>,
        range: &KeyRange,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let partitions = state.config().target_partitions();
        let is_merged = state.config().get_extension::<KeyOrder>().is_some();
        let are_split = !is_merged && files.len() < WHOLE_FILES_MIN * partitions;
        files.retain(|rows| !rows.is_empty());
        if files.is_empty() {
            return Ok(None);
        }
        let mut pieces = Vec::with_capacity(files.len());
        for rows in &files {
            let file = rows.file;
            let parts = if are_split && file.rows >= SPLIT_ROWS_MIN { partitions.max(1) } else { 1 };
            let bytes = file.stored.bytes / parts as u64;
            pieces.extend((0..parts).map(|part| (bytes, partitioned_file(rows, part, parts))));
        }
        let groups = match ordering {
            Some(_) => pieces.into_iter().map(|(_, file)| FileGroup::new(vec![file])).collect(),
            None => balanced(pieces, partitions),
        };
        let store = CheckedStore::new(self.view.storage(), files.iter().map(|rows| &rows.file.stored));
        let cache = state.runtime_env().cache_manager.get_file_metadata_cache();
        let mut options = state.default_table_options().parquet;
        if ordering.is_some() && files.len() > WHOLE_FILES_MIN * partitions {
            options.global.max_predicate_cache_size = Some(ORDERED_CACHE_BYTES);
        }
        let source = ParquetSource::new(Arc::clone(&self.schema))
            .with_table_parquet_options(options)
            .with_pushdown_filters(true)
            // By the size of columns, entities come before times; as they are asked, times come before what a join finds out.
            .with_reorder_filters(!range.is_short(files.iter().map(|rows| &**rows.file)))
            .with_enable_page_index(true)
            .with_parquet_file_reader_factory(Arc::new(CachedParquetFileReaderFactory::new(
                Arc::new(store),
                cache,
            )));
        let config = FileScanConfigBuilder::new(ObjectStoreUrl::parse(ARCHIVE_URL)?, Arc::new(source))
            .with_file_groups(groups)
            .with_output_ordering(ordering.cloned().into_iter().collect())
            .build();
        Ok(Some(DataSourceExec::from_data_source(config)))
    }

    /// The rows of some files and of memory, in all columns: of the series that are wanted, at times that may pass filters.
    pub(super) fn rows(
        &self,
        state: &dyn Session,
        files: Vec<FileRows<'_>>,
        range: &KeyRange,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let ordering = self.ordering(state, files.len(), range)?;
        let is_within = |rows: &FileRows<'_>| range.contains_times(&rows.file.bounds);
        let mut kinds: Vec<((bool, bool), Vec<FileRows<'_>>)> = Vec::new();
        for rows in files {
            let kind = (rows.totals.is_some(), is_within(&rows));
            match kinds.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, alike)) => alike.push(rows),
                None => kinds.push((kind, vec![rows])),
            }
        }
        let (series, times) = (range.series_predicate(&self.schema)?, range.time_predicate(&self.schema)?);
        let mut parts: Vec<Arc<dyn ExecutionPlan>> = Vec::new();
        for ((is_of_series, is_within), files) in kinds {
            let Some(mut plan) = self.scan_files(state, files, ordering.as_ref(), range)? else { continue };
            let series = series.as_ref().filter(|_| !is_of_series);
            let times = times.as_ref().filter(|_| !is_within);
            if let Some(predicate) = conjunction_opt(times.into_iter().chain(series).cloned()) {
                plan = Arc::new(FilterExec::try_new(predicate, plan)?);
            }
            parts.push(plan);
        }
        let is_one_stream = ordering.is_some() && state.config().get_extension::<OneStream>().is_some();
        if let Some(batch) = self.hot_batch(range)? {
            let source = MemorySourceConfig::try_new(&[vec![batch]], self.schema(), None)?;
            let source = source.try_with_sort_information(ordering.iter().cloned().collect())?;
            parts.push(DataSourceExec::from_data_source(source));
        }
        let plan: Arc<dyn ExecutionPlan> = match parts.len() {
            0 => Arc::new(EmptyExec::new(self.schema())),
            1 => parts.remove(0),
            _ => UnionExec::try_new(parts)?,
        };
        Ok(match ordering {
            Some(ordering) if is_one_stream => Arc::new(SortPreservingMergeExec::new(ordering, plan)),
            _ => plan,
        })
    }

    /// The order of rows in files and of those in memory, where each is a stream of its own: windows over the readings of an
    /// entity need no sort then, and aggregates by entity hold one at a time.
    fn ordering(&self, state: &dyn Session, files: usize, range: &KeyRange) -> Result<Option<LexOrdering>> {
        let config = state.config();
        let is_in_order =
            config.get_extension::<KeyOrder>().is_some() || config.get_extension::<OneStream>().is_some();
        let files_max = if is_in_order { ORDERED_FILES_MAX } else { STREAMS_MAX };
        if files > files_max || !range.is_of_one_metric() {
            return Ok(None);
        }
        let key = ["entity_id", TIME];
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

/// Which filters need not be looked at again: those of series and of times, which a scan goes by.
pub(super) fn pushdown(filters: &[&Expr]) -> Vec<TableProviderFilterPushDown> {
    let is_exact = |filter: &&Expr| match is_of_series(filter) || exact_times(filter, TIME).is_some() {
        true => TableProviderFilterPushDown::Exact,
        false => TableProviderFilterPushDown::Inexact,
    };
    filters.iter().map(is_exact).collect()
}

pub(super) fn unreadable(error: wattlake_engine::Error) -> DataFusionError {
    DataFusionError::External(Box::new(ApiError::from(error)))
}

/// One of several parts of a file's rows, without those that are left out.
fn partitioned_file(rows: &FileRows<'_>, part: usize, parts: usize) -> PartitionedFile {
    let file = rows.file;
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
    if rows.hidden.is_empty() && rows.covered.is_empty() && parts == 1 {
        return partitioned;
    }
    partitioned.with_extension(access_plan(rows, part as u64, parts as u64))
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

/// Row selections of a file's row groups without the rows that are left out. Each part has its share of every group, so that all have work
/// whatever groups a filter leaves; pages without any of the rows are not read.
fn access_plan(rows: &FileRows<'_>, part: u64, parts: u64) -> ParquetAccessPlan {
    let file = rows.file;
    let mut groups = Vec::new();
    let mut start = 0;
    while start < file.rows {
        let end = (start + file.row_group_rows).min(file.rows);
        let share = |part: u64| start + (end - start) * part / parts;
        let (first, last) = (share(part), share(part + 1));
        let mut selectors = vec![RowSelector::skip((first - start) as usize)];
        let next = rows.covered.partition_point(|covered| covered.end <= first);
        let mut at = first;
        for covered in rows.covered[next..].iter().take_while(|covered| covered.start < last) {
            let (from, to) = (covered.start.max(at), covered.end.min(last));
            selectors.extend(visible(at..from, &rows.hidden));
            selectors.push(RowSelector::skip((to - from) as usize));
            at = to;
        }
        selectors.extend(visible(at..last, &rows.hidden));
        selectors.push(RowSelector::skip((end - last) as usize));
        let selection = RowSelection::from(selectors);
        groups.push(match selection.row_count() as u64 {
            0 => RowGroupAccess::Skip,
            rows if rows == end - start => RowGroupAccess::Scan,
            _ => RowGroupAccess::Selection(selection),
        });
        start = end;
    }
    ParquetAccessPlan::new(groups)
}

/// Selectors of some rows without the hidden ones.
fn visible(rows: Range<u64>, hidden: &[u64]) -> Vec<RowSelector> {
    if rows.is_empty() {
        return Vec::new();
    }
    let inside =
        hidden.partition_point(|row| *row < rows.start)..hidden.partition_point(|row| *row < rows.end);
    Vec::from(rows_between(rows.start, rows.end, &hidden[inside]))
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
        Ok(pushdown(filters))
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let range = self.key_range(filters);
        let plan = self.rows(state, self.files(&range, false).await?, &range)?;
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
        fn parts_are_all_rows_that_are_not_left_out_once(
            rows_in_all in 1u64..200, group in 1u64..70, parts in 1u64..5, hidden in prop::collection::btree_set(0u64..200, 0..60),
            edges in prop::collection::btree_set(0u64..200, 0..8),
        ) {
            let file = Arc::new(file(rows_in_all, group));
            let hidden: Vec<u64> = hidden.into_iter().filter(|row| *row < rows_in_all).collect();
            let edges: Vec<u64> = edges.into_iter().filter(|row| *row < rows_in_all).collect();
            let covered: Vec<Range<u64>> = edges.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
            let is_left_out = |row: u64| {
                hidden.binary_search(&row).is_ok() || covered.iter().any(|covered| covered.contains(&row))
            };
            let expected: Vec<u64> = (0..rows_in_all).filter(|row| !is_left_out(*row)).collect();
            let file_rows = FileRows { file: &file, totals: None, hidden: hidden.clone(), covered: covered.clone() };
            let mut found: Vec<u64> =
                (0..parts).flat_map(|part| rows(&access_plan(&file_rows, part, parts), &file)).collect();
            found.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }
}
