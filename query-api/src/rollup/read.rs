//! Reading what a rollup is made of: hours or days that files have summed up, where they say the same as the rows ([`super::choice`]),
//! and rows elsewhere. All is read from one view.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::{Range, RangeInclusive},
    sync::Arc,
};

use arrow::{
    array::AsArray,
    datatypes::{Float64Type, TimestampMicrosecondType},
};
use datafusion::common::ScalarValue;
use futures::{StreamExt, TryStreamExt, stream};
use wattlake_catalog::{Access, DataFile, EntityId, Fleet, Quality};
use wattlake_config::MetricKind;
use wattlake_engine::{
    GLITCH_LASTS, HOLD_CADENCES, ReadView, SeriesRows, Stretch, StretchSummary, Summary, cadence_micros,
};

use super::{
    aggregate::{Aggregation, Cell, Item, Rules, Sample, aggregate},
    bucket::{Buckets, Width},
    choice::Choice,
    ends::Ends,
    request::RollupRequest,
};
use crate::{
    error::{ApiError, Kind, Result},
    query::{Allowance, QueryService, ResultStream, SqlRequest},
};

/// Entity-bucket pairs of one rollup.
const CELLS_MAX: usize = 5_000_000;
/// More entities than this are read as "all" and picked from the rows.
pub(super) const ENTITIES_LISTED_MAX: usize = 5_000;
/// So many rows are read as fast as the summaries of a whole file.
const ROWS_MANY: i64 = 500_000;
/// Summaries held in memory at once, about: entities are read in portions.
const SUMMARIES_AT_ONCE: i64 = 500_000;
/// Rows held beside the summaries of a portion; with more of them it is read as rows, which are not held.
const ROWS_HELD_MAX: usize = 2_000_000;
/// Files that are read side by side.
const FILES_AT_ONCE: usize = 8;
const HOUR: i64 = 3_600_000_000;
const DAY: i64 = 24 * HOUR;

pub(super) type Cells = HashMap<EntityId, BTreeMap<usize, Cell>>;

/// Whether summaries are read in place of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SummariesRead {
    /// Where that is possible, and rows would be many.
    InPlaceOfMany,
    /// Where that is possible.
    #[cfg(test)]
    Always,
    #[cfg(test)]
    Never,
}

/// What is to be read.
pub(super) struct Reader<'a> {
    pub service: &'a QueryService,
    pub view: &'a ReadView,
    pub fleet: &'a Fleet,
    pub request: &'a RollupRequest,
    pub access: &'a Access,
    pub kind: MetricKind,
    pub summaries: SummariesRead,
    /// The buckets of every entity that may contribute.
    pub buckets: BTreeMap<EntityId, Arc<Buckets>>,
}

/// What was aggregated.
#[derive(Default)]
pub(super) struct Found {
    pub cells: Cells,
    pub ends: Ends,
    /// How many cells there are.
    total: usize,
}

/// What a portion of entities is made of.
#[derive(Default)]
struct Parts {
    /// In order of time, apart from each other.
    summaries: BTreeMap<EntityId, Vec<Summary>>,
    /// All readings that lie in none of them.
    rows: BTreeMap<EntityId, Vec<Sample>>,
    /// Entities most of whose readings no summary stands for.
    rows_only: Vec<EntityId>,
}

/// The summaries of one file.
struct FileSummaries {
    file: Arc<DataFile>,
    stretches: Vec<StretchSummary>,
}

impl Reader<'_> {
    /// The cells, and how many summaries stood for their rows.
    pub(super) async fn read(&self) -> Result<(Cells, usize)> {
        let mut found = Found::default();
        let entities: Vec<EntityId> = self.buckets.keys().copied().collect();
        let mut summaries = 0;
        if let Some(stretch) = self.stretch() {
            summaries = self.read_with_summaries(stretch, &entities, &mut found).await?;
        } else {
            self.read_rows(&entities, self.window(), &mut found).await?;
        }
        if self.books_increases() {
            self.close_ends(&mut found).await?;
        }
        Ok((found.cells, summaries))
    }

    /// Reads summaries where they stand for their rows; answers how many did.
    async fn read_with_summaries(
        &self,
        stretch: Stretch,
        entities: &[EntityId],
        found: &mut Found,
    ) -> Result<usize> {
        let mut summaries = 0;
        // Reading summaries is a part of the query, but not one that SQL sees.
        let mut clock = Allowance::new(self.service.engine().settings().query.timeout.0);
        let (from, to) = self.window();
        let length = match stretch {
            Stretch::Hour => HOUR,
            Stretch::Day => DAY,
        };
        let portion = (SUMMARIES_AT_ONCE / (to.saturating_sub(from) / length + 1)).max(1) as usize;
        for entities in entities.chunks(portion) {
            let rows_only = match clock.spend(self.read_parts(stretch, entities)).await?? {
                Some(parts) => {
                    summaries += parts.summaries.values().map(Vec::len).sum::<usize>();
                    self.aggregate_parts(parts, found)?
                }
                None => entities.to_vec(),
            };
            if !rows_only.is_empty() {
                tracing::debug!(entities = rows_only.len(), "read as rows only");
                self.read_rows(&rows_only, self.window(), found).await?;
            }
        }
        Ok(summaries)
    }

    /// The longest stretches whose summaries can say what is asked.
    fn stretch(&self) -> Option<Stretch> {
        let stretch = match self.request.width {
            Width::Fixed(seconds) if seconds * 1_000_000 >= DAY => Stretch::Day,
            Width::Fixed(seconds) if seconds * 1_000_000 >= HOUR => Stretch::Hour,
            Width::Fixed(_) => return None,
            Width::Days(_) | Width::Weeks(_) | Width::Months(_) | Width::Years(_) | Width::All => {
                Stretch::Day
            }
        };
        let is_summed_up = match self.request.aggregation {
            Aggregation::Percentile(_) => false,
            Aggregation::Avg => self.kind != MetricKind::Register,
            _ => true,
        };
        let qualities = BTreeSet::from([Quality::Good, Quality::Estimated]);
        let is_worth_it = match self.summaries {
            SummariesRead::InPlaceOfMany => self.rows_expected() >= ROWS_MANY,
            #[cfg(test)]
            SummariesRead::Always => true,
            #[cfg(test)]
            SummariesRead::Never => false,
        };
        (is_summed_up && self.request.qualities == qualities && is_worth_it).then_some(stretch)
    }

    /// Rows that there are, by the cadences of meters.
    fn rows_expected(&self) -> i64 {
        let (from, to) = self.window();
        let of_entity = |entity| to.saturating_sub(from) / cadence_micros(self.fleet, entity);
        self.buckets.keys().fold(0, |sum, entity| i64::saturating_add(sum, of_entity(*entity)))
    }

    /// The range asked for, and around it what reaches in: spans of gauges and registers, and what tells whether a register's readings there
    /// count.
    pub(super) fn window(&self) -> (i64, i64) {
        let cadences = self.buckets.keys().map(|entity| cadence_micros(self.fleet, *entity));
        let hold = cadences.max().unwrap_or(0) * HOLD_CADENCES;
        let (before, after) = match self.kind {
            MetricKind::GaugeExtensive => (hold, hold),
            MetricKind::Register if self.books_increases() => (2 * hold + GLITCH_LASTS, hold + GLITCH_LASTS),
            _ => return self.range(),
        };
        let (from, to) = self.range();
        (from.saturating_sub(before), to.saturating_add(after).saturating_add(1))
    }

    /// The range asked for, microseconds.
    pub(super) fn range(&self) -> (i64, i64) {
        (self.request.from.as_microsecond(), self.request.to.as_microsecond())
    }

    fn books_increases(&self) -> bool {
        self.kind == MetricKind::Register
            && matches!(self.request.aggregation, Aggregation::Default | Aggregation::Sum)
    }

    fn rules(&self, entity: EntityId) -> Rules {
        let (from, to) = self.range();
        let cadence = cadence_micros(self.fleet, entity);
        Rules { kind: self.kind, aggregation: self.request.aggregation, cadence, from, to }
    }

    /// Reads the summaries of some entities, in order, and the rows that none stands for. `None` when these would be too many.
    async fn read_parts(&self, stretch: Stretch, entities: &[EntityId]) -> Result<Option<Parts>> {
        let Some((summed_up, others)) = self.read_files(stretch, entities).await? else { return Ok(None) };
        let Some(mut rows) = self.collect_rows(entities, others).await? else { return Ok(None) };
        let late = self.late_rows(entities);
        let late_times: HashMap<EntityId, &[i64]> =
            late.iter().map(|series| (series.key.entity, &*series.rows.ts)).collect();
        let mut by_entity: BTreeMap<EntityId, Vec<Place>> = BTreeMap::new();
        for (file, FileSummaries { stretches, .. }) in summed_up.iter().enumerate() {
            let mut next = 0;
            for run in stretches.chunk_by(|a, b| a.entity == b.entity) {
                if entities.binary_search(&run[0].entity).is_ok() {
                    let places = (next..next + run.len()).map(|index| Place { file, index });
                    by_entity.entry(run[0].entity).or_default().extend(places);
                }
                next += run.len();
            }
        }
        let window = self.window();
        let (mut summaries, mut rows_only) = (BTreeMap::new(), Vec::new());
        let mut wanted: Vec<Vec<usize>> = vec![Vec::new(); summed_up.len()];
        let mut read_as_rows = 0;
        for (entity, places) in by_entity {
            let Some(buckets) = self.buckets.get(&entity) else { continue };
            let others = rows.get(&entity).map_or(&[][..], |rows| rows);
            let late = late_times.get(&entity).copied().unwrap_or_default();
            let choice = Choice { rules: self.rules(entity), buckets, window, others, late };
            let places =
                places.into_iter().map(|place| (place, &summed_up[place.file].stretches[place.index]));
            let (mut counting, mut missing) = (Vec::new(), Vec::new());
            let (mut all, mut many) = (0, 0);
            for (place, stretch, counts) in choice.of(places) {
                all += stretch.rows.end - stretch.rows.start;
                match stretch.summary {
                    Some(summary) if counts => counting.push(summary),
                    _ => {
                        many += stretch.rows.end - stretch.rows.start;
                        missing.push(place);
                    }
                }
            }
            if many > all / 2 {
                rows.remove(&entity);
                rows_only.push(entity);
                continue;
            }
            read_as_rows += many;
            missing.into_iter().for_each(|place| wanted[place.file].push(place.index));
            summaries.insert(entity, counting);
        }
        tracing::debug!(
            entities = summaries.len(),
            rows_only = rows_only.len(),
            read_as_rows,
            "summaries chosen"
        );
        if read_as_rows > ROWS_HELD_MAX as u64 || summaries.is_empty() {
            return Ok(None);
        }
        let reads: Vec<_> = summed_up
            .iter()
            .zip(wanted)
            .filter(|(_, wanted)| !wanted.is_empty())
            .map(|(file, wanted)| self.read_wanted(file, wanted, &late))
            .collect();
        let mut reads = stream::iter(reads).buffer_unordered(FILES_AT_ONCE);
        while let Some(read) = reads.try_next().await? {
            for (entity, samples) in read {
                rows.entry(entity).or_default().extend(samples);
            }
        }
        rows.values_mut().for_each(|samples| samples.sort_by_key(|sample| sample.ts));
        Ok(Some(Parts { summaries, rows, rows_only }))
    }

    /// The files that may hold something asked for: those with summaries, and the others. `None` when summaries are not worth it.
    async fn read_files(
        &self,
        stretch: Stretch,
        entities: &[EntityId],
    ) -> Result<Option<(Vec<FileSummaries>, Vec<Arc<DataFile>>)>> {
        let Some((first, last)) = entities.first().zip(entities.last()) else { return Ok(None) };
        let range = *first..=*last;
        let (low, high) = (first.to_string(), last.to_string());
        let (from, to) = self.window();
        let metric = self.request.metric.as_str();
        let mut reads = Vec::new();
        for file in &self.view.manifest.files {
            let bounds = &file.bounds;
            if bounds.min_ts < to
                && bounds.max_ts >= from
                && (bounds.min_metric.as_str()..=bounds.max_metric.as_str()).contains(&metric)
                && bounds.min_entity.as_str() <= high.as_str()
                && low.as_str() <= bounds.max_entity.as_str()
            {
                reads.push(self.read_summaries(stretch, file, &range));
            }
        }
        let mut reads = stream::iter(reads).buffer_unordered(FILES_AT_ONCE);
        let (mut summed_up, mut others) = (Vec::new(), Vec::new());
        while let Some((file, stretches)) = reads.try_next().await? {
            match stretches {
                Some(stretches) => summed_up.push(FileSummaries { file, stretches }),
                None => others.push(file),
            }
        }
        let has_sums = summed_up.iter().any(|file| file.stretches.iter().any(|stretch| stretch.is_whole));
        Ok(has_sums.then_some((summed_up, others)))
    }

    async fn read_summaries(
        &self,
        stretch: Stretch,
        file: &Arc<DataFile>,
        entities: &RangeInclusive<EntityId>,
    ) -> Result<(Arc<DataFile>, Option<Vec<StretchSummary>>)> {
        let found = self.view.summaries(file, stretch, &self.request.metric, entities).await?;
        Ok((Arc::clone(file), found))
    }

    /// Readings in memory that may take the place of rows in files.
    fn late_rows(&self, entities: &[EntityId]) -> Vec<SeriesRows> {
        let (from, to) = self.window();
        let metric = self.request.metric.as_str();
        self.view
            .late_rows(from, to, |key| *key.metric == *metric && entities.binary_search(&key.entity).is_ok())
    }

    /// The rows of some stretches of a file, by entity.
    async fn read_wanted(
        &self,
        file: &FileSummaries,
        mut wanted: Vec<usize>,
        late: &[SeriesRows],
    ) -> Result<Vec<(EntityId, Vec<Sample>)>> {
        wanted.sort_unstable();
        let ranges: Vec<Range<u64>> =
            wanted.iter().map(|index| file.stretches[*index].rows.clone()).collect();
        let read = self.view.row_ranges(&file.file, &ranges, late).await?;
        let (from, to) = self.window();
        let is_asked = |s: &Sample| (from..to).contains(&s.ts) && self.request.qualities.contains(&s.quality);
        let samples = read.into_iter().map(|readings| readings.into_iter().filter(is_asked).collect());
        Ok(wanted.iter().map(|index| file.stretches[*index].entity).zip(samples).collect())
    }

    /// The rows of files without summaries and of memory; `None` when they are too many to hold.
    async fn collect_rows(
        &self,
        entities: &[EntityId],
        files: Vec<Arc<DataFile>>,
    ) -> Result<Option<BTreeMap<EntityId, Vec<Sample>>>> {
        let view = self.view.with_files(files);
        let mut rows = BTreeMap::new();
        let mut held = 0;
        let mut stream = EntityRows::new(self.service.sql(self.query(entities, view, self.window())).await?);
        while let Some((entity, samples)) = stream.next().await? {
            held += samples.len();
            if held > ROWS_HELD_MAX {
                return Ok(None);
            }
            rows.insert(entity, samples);
        }
        Ok(Some(rows))
    }

    /// Aggregates a portion. Answers the entities whose summaries turned out not to say enough.
    fn aggregate_parts(&self, parts: Parts, found: &mut Found) -> Result<Vec<EntityId>> {
        let Parts { mut summaries, mut rows, mut rows_only } = parts;
        let entities: BTreeSet<EntityId> = summaries.keys().chain(rows.keys()).copied().collect();
        for entity in entities {
            let summaries = summaries.remove(&entity).unwrap_or_default();
            let rows = rows.remove(&entity).unwrap_or_default();
            if !self.aggregate(entity, &merge(&rows, &summaries), found)? {
                rows_only.push(entity);
            }
        }
        Ok(rows_only)
    }

    /// `false` when the items do not say enough.
    fn aggregate(&self, entity: EntityId, items: &[Item<'_>], found: &mut Found) -> Result<bool> {
        let Some(buckets) = self.buckets.get(&entity) else { return Ok(true) };
        let rules = self.rules(entity);
        let Some(of_entity) = aggregate(items, buckets, &rules) else { return Ok(false) };
        found.ends.take(entity, items, &rules);
        found.total += of_entity.len();
        let before = found.cells.insert(entity, of_entity);
        found.total -= before.map_or(0, |before| before.len());
        if found.total > CELLS_MAX {
            let message =
                format!("the rollup has more than {CELLS_MAX} entity-bucket pairs; choose wider buckets");
            return Err(ApiError::new(Kind::Unprocessable, message));
        }
        Ok(true)
    }

    /// Reads all in a window as rows and aggregates each entity when its rows are there.
    pub(super) async fn read_rows(
        &self,
        entities: &[EntityId],
        window: (i64, i64),
        found: &mut Found,
    ) -> Result<()> {
        if entities.is_empty() {
            return Ok(());
        }
        let query = self.query(entities, self.view.clone(), window);
        let mut stream = EntityRows::new(self.service.sql(query).await?);
        while let Some((entity, samples)) = stream.next().await? {
            self.aggregate(entity, &merge(&samples, &[]), found)?;
        }
        Ok(())
    }

    /// The qualities that count, as a list in SQL.
    pub(super) fn qualities(&self) -> String {
        let qualities: Vec<_> = self.request.qualities.iter().map(|q| format!("'{q}'")).collect();
        qualities.join(", ")
    }

    /// The rows of some entities in a window, in order of entity and time.
    fn query(&self, entities: &[EntityId], view: ReadView, (from, to): (i64, i64)) -> SqlRequest {
        let time = |micros: i64| ScalarValue::TimestampMicrosecond(Some(micros), Some(Arc::from("UTC")));
        let mut query = format!(
            "SELECT entity_id, timestamp, value, quality FROM measurements WHERE metric = $1 AND timestamp >= $2 \
             AND timestamp < $3 AND quality IN ({})",
            self.qualities()
        );
        if entities.len() <= ENTITIES_LISTED_MAX {
            let ids: Vec<_> = entities.iter().map(|id| format!("'{id}'")).collect();
            query += &format!(" AND entity_id IN ({})", ids.join(", "));
        }
        query += " ORDER BY entity_id, timestamp";
        SqlRequest {
            params: vec![ScalarValue::from(self.request.metric.as_str()), time(from), time(to)],
            view: Some(view),
            feeds_rollup: true,
            ..SqlRequest::new(query, self.access)
        }
    }
}

/// The rows of a query, entity by entity.
struct EntityRows {
    stream: ResultStream,
    /// The entity whose rows come, with its text.
    current: Option<(EntityId, String)>,
    samples: Vec<Sample>,
    done: std::vec::IntoIter<(EntityId, Vec<Sample>)>,
}

impl EntityRows {
    fn new(stream: ResultStream) -> Self {
        Self { stream, current: None, samples: Vec::new(), done: Vec::new().into_iter() }
    }

    async fn next(&mut self) -> Result<Option<(EntityId, Vec<Sample>)>> {
        loop {
            if let Some(done) = self.done.next() {
                return Ok(Some(done));
            }
            let Some(batch) = self.stream.next().await else {
                let last = self.current.take().map(|(entity, _)| entity);
                return Ok(last.map(|entity| (entity, std::mem::take(&mut self.samples))));
            };
            let batch = batch?;
            let text = |column: usize| {
                let views = batch.column(column).as_string_view_opt();
                views.ok_or_else(|| ApiError::internal("the rows of a rollup have unexpected types"))
            };
            let (entity, quality) = (text(0)?, text(3)?);
            let ts = batch.column(1).as_primitive::<TimestampMicrosecondType>();
            let value = batch.column(2).as_primitive::<Float64Type>();
            let mut done = Vec::new();
            // Texts are looked at where they may be others: views that are the same are of the same text.
            let mut known: Option<(u128, u128, Quality)> = None;
            for i in 0..batch.num_rows() {
                let views = (entity.views()[i], quality.views()[i]);
                let quality = match known {
                    Some((of_entity, of_quality, quality)) if (of_entity, of_quality) == views => quality,
                    _ => {
                        let id = entity.value(i);
                        if self.current.as_ref().is_none_or(|(_, current)| current != id) {
                            if let Some((entity, _)) = self.current {
                                done.push((entity, std::mem::take(&mut self.samples)));
                            }
                            self.current = Some((id.parse()?, id.to_owned()));
                        }
                        quality.value(i).parse()?
                    }
                };
                known = Some((views.0, views.1, quality));
                self.samples.push(Sample { ts: ts.value(i), value: value.value(i), quality });
            }
            self.done = done.into_iter();
        }
    }
}

/// Rows and summaries in order of time; they lie apart.
fn merge<'a>(samples: &[Sample], summaries: &'a [Summary]) -> Vec<Item<'a>> {
    let mut items = Vec::with_capacity(samples.len() + summaries.len());
    let mut next = summaries.iter().peekable();
    for sample in samples {
        while let Some(summary) = next.next_if(|summary| summary.first.ts < sample.ts) {
            items.push(Item::Summary(summary));
        }
        items.push(Item::Row(*sample));
    }
    items.extend(next.map(Item::Summary));
    items
}

/// Where a summary was read.
#[derive(Clone, Copy, Debug)]
struct Place {
    file: usize,
    index: usize,
}
