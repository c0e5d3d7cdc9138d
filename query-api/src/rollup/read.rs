//! Reading what a rollup is made of: days that files have summed up, where they say the same as the rows ([`super::choice`]), and
//! rows elsewhere. All is read from one view.

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
    DaySummary, GLITCH_LASTS, HOLD_CADENCES, ReadView, SeriesRows, Summary, cadence_micros,
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
/// So many rows are read as fast as the days of a whole file.
const ROWS_MANY: i64 = 500_000;
/// Days held in memory at once, about: entities are read in portions.
const DAYS_AT_ONCE: i64 = 500_000;
/// Rows held beside the days of a portion; with more of them it is read as rows, which are not held.
const ROWS_HELD_MAX: usize = 2_000_000;
/// Files that are read side by side.
const FILES_AT_ONCE: usize = 8;
const DAY: i64 = 86_400_000_000;

pub(super) type Cells = HashMap<EntityId, BTreeMap<usize, Cell>>;

/// Whether days are read in place of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DaysRead {
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
    pub days: DaysRead,
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
    days: BTreeMap<EntityId, Vec<Summary>>,
    /// All readings that lie in no day.
    rows: BTreeMap<EntityId, Vec<Sample>>,
}

/// The days of one file.
struct FileDays {
    file: Arc<DataFile>,
    days: Vec<DaySummary>,
}

impl Reader<'_> {
    /// The cells, and how many days stood for their rows.
    pub(super) async fn read(&self) -> Result<(Cells, usize)> {
        let mut found = Found::default();
        let entities: Vec<EntityId> = self.buckets.keys().copied().collect();
        let mut days = 0;
        if self.can_use_days() {
            days = self.read_with_days(&entities, &mut found).await?;
        } else {
            self.read_rows(&entities, self.window(), &mut found).await?;
        }
        if self.books_increases() {
            self.close_ends(&mut found).await?;
        }
        Ok((found.cells, days))
    }

    /// Reads days where they stand for their rows; answers how many did.
    async fn read_with_days(&self, entities: &[EntityId], found: &mut Found) -> Result<usize> {
        let mut days = 0;
        // Reading days is a part of the query, but not one that SQL sees.
        let mut clock = Allowance::new(self.service.engine().settings().query.timeout.0);
        let (from, to) = self.window();
        let portion = (DAYS_AT_ONCE / (to.saturating_sub(from) / DAY + 1)).max(1) as usize;
        for entities in entities.chunks(portion) {
            let rows_only = match clock.spend(self.read_parts(entities)).await?? {
                Some(parts) => {
                    days += parts.days.values().map(Vec::len).sum::<usize>();
                    self.aggregate_parts(parts, found)?
                }
                None => entities.to_vec(),
            };
            if !rows_only.is_empty() {
                tracing::debug!(entities = rows_only.len(), "read as rows only");
                self.read_rows(&rows_only, self.window(), found).await?;
            }
        }
        Ok(days)
    }

    /// Whether a day's summary can say what is asked.
    fn can_use_days(&self) -> bool {
        let is_wide = match self.request.width {
            Width::Fixed(seconds) => seconds * 1_000_000 >= DAY,
            Width::Days(_) | Width::Weeks(_) | Width::Months(_) | Width::Years(_) | Width::All => true,
        };
        let is_summed_up = match self.request.aggregation {
            Aggregation::Percentile(_) => false,
            Aggregation::Avg => self.kind != MetricKind::Register,
            _ => true,
        };
        let qualities = BTreeSet::from([Quality::Good, Quality::Estimated]);
        is_wide
            && is_summed_up
            && self.request.qualities == qualities
            && match self.days {
                DaysRead::InPlaceOfMany => self.rows_expected() >= ROWS_MANY,
                #[cfg(test)]
                DaysRead::Always => true,
                #[cfg(test)]
                DaysRead::Never => false,
            }
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

    /// Reads the days of some entities, in order, and the rows that no day stands for. `None` when these would be too many.
    async fn read_parts(&self, entities: &[EntityId]) -> Result<Option<Parts>> {
        let Some((with_days, others)) = self.read_files(entities).await? else { return Ok(None) };
        let Some(mut rows) = self.collect_rows(entities, others).await? else { return Ok(None) };
        let late = self.late_rows(entities);
        let late_times: HashMap<EntityId, &[i64]> =
            late.iter().map(|series| (series.key.entity, &*series.rows.ts)).collect();
        let mut by_entity: BTreeMap<EntityId, Vec<Place>> = BTreeMap::new();
        for (file, FileDays { days, .. }) in with_days.iter().enumerate() {
            let mut day = 0;
            for run in days.chunk_by(|a, b| a.entity == b.entity) {
                if entities.binary_search(&run[0].entity).is_ok() {
                    let places = (day..day + run.len()).map(|day| Place { file, day });
                    by_entity.entry(run[0].entity).or_default().extend(places);
                }
                day += run.len();
            }
        }
        let window = self.window();
        let mut days = BTreeMap::new();
        let mut wanted: Vec<Vec<usize>> = vec![Vec::new(); with_days.len()];
        let (mut all, mut many) = (0, 0);
        for (entity, places) in by_entity {
            let Some(buckets) = self.buckets.get(&entity) else { continue };
            let others = rows.get(&entity).map_or(&[][..], |rows| rows);
            let late = late_times.get(&entity).copied().unwrap_or_default();
            let choice = Choice { rules: self.rules(entity), buckets, window, others, late };
            let mut counting = Vec::new();
            let places = places.into_iter().map(|place| (place, &with_days[place.file].days[place.day]));
            for (place, day, counts) in choice.of(places) {
                all += day.rows.end - day.rows.start;
                match day.summary {
                    Some(summary) if counts => counting.push(summary),
                    _ => {
                        many += day.rows.end - day.rows.start;
                        wanted[place.file].push(place.day);
                    }
                }
            }
            days.insert(entity, counting);
        }
        tracing::debug!(rows_of_days = all, read_as_rows = many, "days chosen");
        if many > ROWS_HELD_MAX as u64 || many > all / 2 {
            return Ok(None);
        }
        let reads: Vec<_> = with_days
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
        Ok(Some(Parts { days, rows }))
    }

    /// The files that may hold something asked for: those with days, and the others. `None` when days are not worth it.
    async fn read_files(&self, entities: &[EntityId]) -> Result<Option<(Vec<FileDays>, Vec<Arc<DataFile>>)>> {
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
                reads.push(self.read_days(file, &range));
            }
        }
        let mut reads = stream::iter(reads).buffer_unordered(FILES_AT_ONCE);
        let (mut with_days, mut others) = (Vec::new(), Vec::new());
        while let Some((file, days)) = reads.try_next().await? {
            match days {
                Some(days) => with_days.push(FileDays { file, days }),
                None => others.push(file),
            }
        }
        let has_days = with_days.iter().any(|file| !file.days.is_empty());
        Ok(has_days.then_some((with_days, others)))
    }

    async fn read_days(
        &self,
        file: &Arc<DataFile>,
        entities: &RangeInclusive<EntityId>,
    ) -> Result<(Arc<DataFile>, Option<Vec<DaySummary>>)> {
        let days = self.view.day_summaries(file, &self.request.metric, entities).await?;
        Ok((Arc::clone(file), days))
    }

    /// Readings in memory that may take the place of rows in files.
    fn late_rows(&self, entities: &[EntityId]) -> Vec<SeriesRows> {
        let (from, to) = self.window();
        let metric = self.request.metric.as_str();
        self.view
            .late_rows(from, to, |key| *key.metric == *metric && entities.binary_search(&key.entity).is_ok())
    }

    /// The rows of some days of a file, by entity.
    async fn read_wanted(
        &self,
        file: &FileDays,
        mut wanted: Vec<usize>,
        late: &[SeriesRows],
    ) -> Result<Vec<(EntityId, Vec<Sample>)>> {
        wanted.sort_unstable();
        let ranges: Vec<Range<u64>> = wanted.iter().map(|day| file.days[*day].rows.clone()).collect();
        let read = self.view.row_ranges(&file.file, &ranges, late).await?;
        let (from, to) = self.window();
        let is_asked = |s: &Sample| (from..to).contains(&s.ts) && self.request.qualities.contains(&s.quality);
        let samples = read.into_iter().map(|readings| readings.into_iter().filter(is_asked).collect());
        Ok(wanted.iter().map(|day| file.days[*day].entity).zip(samples).collect())
    }

    /// The rows of files without days and of memory; `None` when they are too many to hold.
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

    /// Aggregates a portion. Answers the entities whose days turned out not to say enough.
    fn aggregate_parts(&self, parts: Parts, found: &mut Found) -> Result<Vec<EntityId>> {
        let Parts { mut days, mut rows } = parts;
        let entities: BTreeSet<EntityId> = days.keys().chain(rows.keys()).copied().collect();
        let mut rows_only = Vec::new();
        for entity in entities {
            let (days, rows) =
                (days.remove(&entity).unwrap_or_default(), rows.remove(&entity).unwrap_or_default());
            if !self.aggregate(entity, &merge(&rows, &days), found)? {
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
            for i in 0..batch.num_rows() {
                let id = entity.value(i);
                if self.current.as_ref().is_none_or(|(_, known)| known != id) {
                    if let Some((entity, _)) = self.current {
                        done.push((entity, std::mem::take(&mut self.samples)));
                    }
                    self.current = Some((id.parse()?, id.to_owned()));
                }
                let quality: Quality = quality.value(i).parse()?;
                self.samples.push(Sample { ts: ts.value(i), value: value.value(i), quality });
            }
            self.done = done.into_iter();
        }
    }
}

/// Rows and days in order of time; they lie apart.
fn merge<'a>(samples: &[Sample], days: &'a [Summary]) -> Vec<Item<'a>> {
    let mut items = Vec::with_capacity(samples.len() + days.len());
    let mut next = days.iter().peekable();
    for sample in samples {
        while let Some(day) = next.next_if(|day| day.first.ts < sample.ts) {
            items.push(Item::Day(day));
        }
        items.push(Item::Row(*sample));
    }
    items.extend(next.map(Item::Day));
    items
}

/// Where a day was read.
#[derive(Clone, Copy, Debug)]
struct Place {
    file: usize,
    day: usize,
}
