//! Merges streams in the order of entity and time by runs.
//!
//! DataFusion compares row by row. Files hold each series as one run of thousands of rows, and files of different months do not overlap: what
//! is merged here are slices of batches, each as long as the next stream allows. Streams that do overlap come out in slices of few rows, which
//! are put together again.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    fmt,
    ops::Range,
    sync::Arc,
};

use arrow::{
    array::{AsArray, RecordBatch, StringViewArray, TimestampMicrosecondArray},
    compute::interleave_record_batch,
    datatypes::{DataType, SchemaRef, TimeUnit},
};
use datafusion::{
    common::{
        config::ConfigOptions,
        tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion},
        utils::memory::get_record_batch_memory_size,
    },
    error::{DataFusionError, Result},
    execution::{
        SendableRecordBatchStream, TaskContext,
        memory_pool::{MemoryConsumer, MemoryReservation},
    },
    physical_expr::{LexOrdering, PhysicalExpr, expressions::Column},
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::{
        ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties,
        PlanProperties, ReplaceChildrenOptions, common::spawn_buffered,
        sorts::sort_preserving_merge::SortPreservingMergeExec, stream::RecordBatchStreamAdapter,
    },
};
use futures::{StreamExt, TryStreamExt, stream};

/// Slices of this many rows and more are passed on as they are.
const LONG: usize = 512;
/// Rows that are put together of shorter ones.
const TOGETHER: usize = 8192;

/// Puts [`MergeRunsExec`] into the place of merges in the order of entity and time.
#[derive(Debug)]
pub(super) struct MergeRuns;

impl PhysicalOptimizerRule for MergeRuns {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| {
            let by_runs = node.downcast_ref::<SortPreservingMergeExec>().and_then(MergeRunsExec::in_place_of);
            Ok(match by_runs {
                Some(by_runs) => Transformed::yes(Arc::new(by_runs) as _),
                None => Transformed::no(node),
            })
        })
        .data()
    }

    fn name(&self) -> &str {
        "merge_runs"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

#[derive(Clone, Debug)]
struct MergeRunsExec {
    input: Arc<dyn ExecutionPlan>,
    key: Key,
    properties: Arc<PlanProperties>,
}

/// The columns that streams are in the order of.
#[derive(Clone, Copy, Debug)]
struct Key {
    entity: usize,
    time: usize,
}

impl Key {
    /// `None`: the order is another one.
    fn of(ordering: &LexOrdering, schema: &SchemaRef) -> Option<Self> {
        let column = |place: usize| -> Option<usize> {
            let by = ordering.get(place).filter(|by| !by.options.descending)?;
            let index = by.expr.downcast_ref::<Column>()?.index();
            (!schema.field(index).is_nullable()).then_some(index)
        };
        let key = Self { entity: column(0)?, time: column(1)? };
        let is_time =
            matches!(schema.field(key.time).data_type(), DataType::Timestamp(TimeUnit::Microsecond, _));
        let is_text = *schema.field(key.entity).data_type() == DataType::Utf8View;
        (ordering.len() == 2 && is_text && is_time).then_some(key)
    }
}

impl MergeRunsExec {
    fn in_place_of(merge: &SortPreservingMergeExec) -> Option<Self> {
        if merge.fetch().is_some() || merge.input().output_partitioning().partition_count() < 2 {
            return None;
        }
        let key = Key::of(merge.expr(), &merge.schema())?;
        Some(Self { input: Arc::clone(merge.input()), key, properties: Arc::clone(merge.properties()) })
    }
}

impl DisplayAs for MergeRunsExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MergeRunsExec")
    }
}

impl ExecutionPlan for MergeRunsExec {
    fn name(&self) -> &str {
        "MergeRunsExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(input) = children.pop().filter(|_| children.is_empty()) else {
            return Err(DataFusionError::Internal("a merge has one input".to_owned()));
        };
        Ok(Arc::new(Self { input, ..Self::clone(&self) }))
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let schema = self.schema();
        let memory = MemoryConsumer::new(format!("MergeRunsExec[{partition}]"))
            .register(&context.runtime_env().memory_pool);
        let inputs = (0..self.input.output_partitioning().partition_count())
            .map(|input| Ok(spawn_buffered(self.input.execute(input, Arc::clone(&context))?, 1)))
            .collect::<Result<Vec<_>>>()?;
        let merge = Merge::new(inputs, self.key, memory);
        let batches = stream::try_unfold(merge, |mut merge| async move {
            Ok(merge.next().await?.map(|batch| (batch, merge)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches.into_stream())))
    }
}

/// A batch with rows, counted for as long as it is held.
struct Held {
    batch: RecordBatch,
    entities: StringViewArray,
    times: TimestampMicrosecondArray,
    _memory: MemoryReservation,
}

/// A stream, and the batch of it that is being passed on.
struct Input {
    stream: SendableRecordBatchStream,
    held: Option<Arc<Held>>,
    /// The next row of it.
    at: usize,
}

/// Where a stream stands: entity, time, and which one it is.
type Place = (Arc<str>, i64, usize);

struct Merge {
    inputs: Vec<Input>,
    key: Key,
    /// What batches take their own out of.
    memory: MemoryReservation,
    /// Of streams that are not at their end; the one that stands first is on top.
    places: BinaryHeap<Reverse<Place>>,
    /// Whether all streams were asked for their first batch.
    is_begun: bool,
    short: Short,
    /// Comes after what was put together of short ones.
    long: Option<RecordBatch>,
}

/// Rows of slices that are too short to be passed on.
#[derive(Default)]
struct Short {
    batches: Vec<Arc<Held>>,
    /// Batch and row.
    rows: Vec<(usize, usize)>,
    /// Which of the batches is the one that an input stands in.
    current: HashMap<usize, usize>,
}

impl Short {
    /// Takes some rows of the batch that an input stands in.
    fn push(&mut self, index: usize, held: &Arc<Held>, rows: Range<usize>) {
        let batch = *self.current.entry(index).or_insert_with(|| {
            self.batches.push(Arc::clone(held));
            self.batches.len() - 1
        });
        self.rows.extend(rows.map(|row| (batch, row)));
    }

    fn take(&mut self) -> Result<RecordBatch> {
        let Self { batches, rows, .. } = std::mem::take(self);
        let batches: Vec<_> = batches.iter().map(|held| &held.batch).collect();
        Ok(interleave_record_batch(&batches, &rows)?)
    }
}

impl Held {
    fn new(batch: RecordBatch, key: Key, memory: MemoryReservation) -> Result<Self> {
        memory.try_grow(get_record_batch_memory_size(&batch))?;
        Ok(Self {
            entities: batch.column(key.entity).as_string_view().clone(),
            times: batch.column(key.time).as_primitive().clone(),
            batch,
            _memory: memory,
        })
    }

    /// Rows from one on that come before a place, at least one.
    fn rows_before(&self, at: usize, place: Option<&Place>) -> usize {
        let rows = self.batch.num_rows();
        let Some((entity, time, _)) = place else { return rows - at };
        let is_before = |row: usize| (self.entities.value(row), self.times.value(row)) < (&**entity, *time);
        let (mut known, mut step) = (at + 1, 1);
        while known + step <= rows && is_before(known + step - 1) {
            known += step;
            step *= 2;
        }
        // Between what is known to be before and the first that is known not to be.
        let (mut low, mut high) = (known, (known + step - 1).min(rows));
        while low < high {
            let middle = low + (high - low) / 2;
            match is_before(middle) {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        low - at
    }
}

impl Input {
    /// The batch with the next row; `None` at the end of the stream. Whether it is another one than before.
    async fn held(&mut self, key: Key, memory: &MemoryReservation) -> Result<Option<(Arc<Held>, bool)>> {
        if let Some(held) = self.held.as_ref().filter(|held| self.at < held.batch.num_rows()) {
            return Ok(Some((Arc::clone(held), false)));
        }
        self.held = None;
        while let Some(batch) = self.stream.next().await.transpose()? {
            if batch.num_rows() > 0 {
                let held = Arc::new(Held::new(batch, key, memory.new_empty())?);
                (self.held, self.at) = (Some(Arc::clone(&held)), 0);
                return Ok(Some((held, true)));
            }
        }
        Ok(None)
    }
}

impl Merge {
    fn new(streams: Vec<SendableRecordBatchStream>, key: Key, memory: MemoryReservation) -> Self {
        Self {
            inputs: streams.into_iter().map(|stream| Input { stream, held: None, at: 0 }).collect(),
            key,
            memory,
            places: BinaryHeap::new(),
            is_begun: false,
            short: Short::default(),
            long: None,
        }
    }

    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        if !std::mem::replace(&mut self.is_begun, true) {
            for index in 0..self.inputs.len() {
                self.place(index, None).await?;
            }
        }
        if let Some(long) = self.long.take() {
            return Ok(Some(long));
        }
        while let Some(Reverse((entity, _, index))) = self.places.pop() {
            let input = &mut self.inputs[index];
            let Some(held) = &input.held else { continue };
            let rows = held.rows_before(input.at, self.places.peek().map(|place| &place.0));
            let slice = (rows >= LONG).then(|| held.batch.slice(input.at, rows));
            if slice.is_none() {
                self.short.push(index, held, input.at..input.at + rows);
            }
            input.at += rows;
            self.place(index, Some(entity)).await?;
            match slice {
                Some(slice) if self.short.rows.is_empty() => return Ok(Some(slice)),
                Some(slice) => {
                    self.long = Some(slice);
                    return self.short.take().map(Some);
                }
                None if self.short.rows.len() >= TOGETHER => return self.short.take().map(Some),
                None => {}
            }
        }
        match self.short.rows.is_empty() {
            true => Ok(None),
            false => self.short.take().map(Some),
        }
    }

    /// Takes a stream up again where it stands; the entity of the row before need not be copied again.
    async fn place(&mut self, index: usize, before: Option<Arc<str>>) -> Result<()> {
        let input = &mut self.inputs[index];
        let next = input.held(self.key, &self.memory).await?;
        if next.as_ref().is_none_or(|(_, is_another)| *is_another) {
            self.short.current.remove(&index);
        }
        let Some((held, _)) = next else { return Ok(()) };
        let entity = held.entities.value(input.at);
        let entity = before.filter(|before| **before == *entity).unwrap_or_else(|| Arc::from(entity));
        self.places.push(Reverse((entity, held.times.value(input.at), index)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{ArrayRef, Float64Array},
        compute::{SortColumn, concat_batches, lexsort_to_indices, take_record_batch},
        datatypes::{Field, Schema},
    };
    use datafusion::execution::memory_pool::{MemoryPool, UnboundedMemoryPool};
    use proptest::prelude::*;

    use super::*;

    const KEY: Key = Key { entity: 0, time: 1 };

    fn schema() -> SchemaRef {
        let time = DataType::Timestamp(TimeUnit::Microsecond, None);
        let fields = [("entity", DataType::Utf8View), ("time", time), ("value", DataType::Float64)];
        Arc::new(Schema::new(fields.map(|(name, of)| Field::new(name, of, false)).to_vec()))
    }

    fn batch(rows: &[(u8, i64)]) -> RecordBatch {
        let entities = rows.iter().map(|(entity, _)| Some(format!("entity number {entity}")));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringViewArray::from_iter(entities)),
            Arc::new(TimestampMicrosecondArray::from_iter_values(rows.iter().map(|(_, time)| *time))),
            Arc::new(Float64Array::from_iter_values(
                rows.iter().map(|(entity, time)| f64::from(*entity) + *time as f64 / 1e6),
            )),
        ];
        RecordBatch::try_new(schema(), columns).expect("a batch")
    }

    fn merged(streams: &[Vec<RecordBatch>]) -> Vec<RecordBatch> {
        let stream = |batches: &Vec<RecordBatch>| -> SendableRecordBatchStream {
            let batches = batches.clone().into_iter().map(Ok);
            Box::pin(RecordBatchStreamAdapter::new(schema(), stream::iter(batches)))
        };
        let pool: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
        let memory = MemoryConsumer::new("test").register(&pool);
        let mut merge = Merge::new(streams.iter().map(stream).collect(), KEY, memory);
        let mut found = Vec::new();
        futures::executor::block_on(async {
            while let Some(batch) = merge.next().await.expect("a batch") {
                found.push(batch);
            }
        });
        drop(merge);
        assert_eq!(pool.reserved(), 0);
        found
    }

    #[test]
    fn long_runs_are_passed_on_as_they_are() {
        let rows = |entity, from: i64, to| (from..to).map(|time| (entity, time)).collect::<Vec<_>>();
        let january = [rows(1, 0, 1000), rows(2, 0, 1000)].concat();
        let february = [rows(1, 1000, 3000), rows(2, 1000, 1100)].concat();
        let found = merged(&[vec![batch(&february)], vec![batch(&january[..700]), batch(&january[700..])]]);
        let lengths: Vec<_> = found.iter().map(RecordBatch::num_rows).collect();
        assert_eq!(lengths, [700, 300, 2000, 1000, 100]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn merged_streams_are_all_rows_in_order(
            streams in prop::collection::vec((prop::collection::btree_set((0u8..4, 0i64..3000), 0..1500), 1usize..900), 1..7),
            apart in any::<bool>(),
        ) {
            let streams: Vec<Vec<RecordBatch>> = streams
                .into_iter()
                .enumerate()
                .map(|(n, (rows, size))| {
                    let shift = if apart { n as i64 * 3000 } else { 0 };
                    let rows: Vec<_> = rows.into_iter().map(|(entity, time)| (entity, time + shift)).collect();
                    rows.chunks(size).map(batch).collect()
                })
                .collect();
            let all = concat_batches(&schema(), streams.iter().flatten()).expect("all");
            let by = |column: usize| SortColumn { values: Arc::clone(all.column(column)), options: None };
            let order = lexsort_to_indices(&[by(0), by(1)], None).expect("an order");
            let expected = take_record_batch(&all, &order).expect("sorted");
            let found = concat_batches(&schema(), &merged(&streams)).expect("merged");
            prop_assert_eq!(found, expected);
        }
    }
}
