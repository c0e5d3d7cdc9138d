//! Reading what a rollup is made of: days that files have summed up, where they say the same as the rows, and rows elsewhere
//! (ROLL-5).
//!
//! A day of a series stands for its rows when it lies in one bucket, none of its rows was deleted or corrected, and no other reading of
//! the series lies in between: of a file without summaries, of memory, of another day. All is read from one view.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::RangeInclusive,
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
use wattlake_engine::{DaySummary, HOLD_CADENCES, ReadView, Summary, cadence_micros};

use super::{
    aggregate::{Aggregation, Cell, Item, Rules, Sample, aggregate},
    bucket::{Buckets, Width},
    request::RollupRequest,
};
use crate::{
    error::{ApiError, Kind, Result},
    query::{QueryService, SqlRequest},
};

/// Entity-bucket pairs of one rollup.
const CELLS_MAX: usize = 5_000_000;
/// More entities than this are read as "all" and picked from the rows.
const ENTITIES_LISTED_MAX: usize = 5_000;
/// Days held in memory at once, about: entities are read in portions.
const DAYS_AT_ONCE: i64 = 500_000;
/// So many rows are read as fast as the days of a whole file.
const ROWS_MANY: i64 = 500_000;
/// Files whose days are read side by side.
const FILES_AT_ONCE: usize = 8;
/// Stretches of time that rows are asked for in one query; more are joined.
const STRETCHES_MAX: usize = 16;
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

/// What is known of a portion of entities before rows are read.
#[derive(Default)]
struct Plan {
    /// In order of time, apart from each other.
    days: BTreeMap<EntityId, Vec<Summary>>,
    /// Where rows are to be read.
    rows: Stretches,
}

impl Reader<'_> {
    /// The cells, and how many days stood for their rows.
    pub(super) async fn read(&self) -> Result<(Cells, usize)> {
        let (mut cells, mut days) = (Cells::new(), 0);
        let entities: Vec<EntityId> = self.buckets.keys().copied().collect();
        let (from, to) = self.window();
        let portion = match self.can_use_days() {
            true => DAYS_AT_ONCE / (to.saturating_sub(from) / DAY + 1),
            false => i64::MAX,
        };
        for entities in entities.chunks(usize::try_from(portion.max(1)).unwrap_or(usize::MAX)) {
            let plan = match self.can_use_days() {
                true => self.within_time(self.plan(entities)).await?,
                false => Plan { rows: Stretches::from([(from, to)]), ..Plan::default() },
            };
            days += plan.days.values().map(Vec::len).sum::<usize>();
            let again = self.aggregate(entities, plan, &mut cells).await?;
            if !again.is_empty() {
                let plan = Plan { rows: Stretches::from([(from, to)]), ..Plan::default() };
                self.aggregate(&again, plan, &mut cells).await?;
            }
        }
        Ok((cells, days))
    }

    /// Reading days is a part of the query, but not one that SQL sees.
    async fn within_time<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let limit = self.service.engine().settings().query.timeout;
        tokio::time::timeout(limit.0, work).await.unwrap_or_else(|_| {
            Err(ApiError::new(
                Kind::Unprocessable,
                format!("the rollup took longer than query.timeout = {limit}"),
            ))
        })
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

    /// The range asked for, and around it what reaches in: spans of gauges and registers.
    fn window(&self) -> (i64, i64) {
        let reach = match self.kind {
            MetricKind::GaugeExtensive | MetricKind::Register => {
                let cadences = self.buckets.keys().map(|entity| cadence_micros(self.fleet, *entity));
                cadences.max().unwrap_or(0) * HOLD_CADENCES
            }
            MetricKind::GaugeIntensive | MetricKind::Interval => 0,
        };
        let (from, to) = (self.request.from.as_microsecond(), self.request.to.as_microsecond());
        (from - reach, to.saturating_add(reach).saturating_add(1))
    }

    fn rules(&self, entity: EntityId) -> Rules {
        Rules {
            kind: self.kind,
            aggregation: self.request.aggregation,
            cadence: cadence_micros(self.fleet, entity),
            from: self.request.from.as_microsecond(),
            to: self.request.to.as_microsecond(),
        }
    }

    /// Reads the days of some entities, in order, and finds out which of them count.
    async fn plan(&self, entities: &[EntityId]) -> Result<Plan> {
        let Some((first, last)) = entities.first().zip(entities.last()) else { return Ok(Plan::default()) };
        let range = *first..=*last;
        let (low, high) = (first.to_string(), last.to_string());
        let (from, to) = self.window();
        let metric = self.request.metric.as_str();
        let is_wanted = |id: &EntityId| entities.binary_search(id).is_ok();
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
        let mut read = stream::iter(reads).buffer_unordered(FILES_AT_ONCE);
        let mut busy = Stretches::default();
        let mut days: BTreeMap<EntityId, Vec<DaySummary>> = BTreeMap::new();
        while let Some((file, of_file)) = read.try_next().await? {
            match of_file {
                None => busy.add(file.bounds.min_ts.max(from), file.bounds.max_ts.saturating_add(1).min(to)),
                Some(of_file) => {
                    for day in of_file.into_iter().filter(|day| is_wanted(&day.entity)) {
                        days.entry(day.entity).or_default().push(day);
                    }
                }
            }
        }
        busy.join();
        let hot = self.view.hot.select(from, to, |key| *key.metric == *metric && is_wanted(&key.entity));
        let hot: HashMap<EntityId, Vec<i64>> =
            hot.into_iter().map(|series| (series.key.entity, series.rows.ts)).collect();
        let mut plan = Plan { rows: busy.clone(), ..Plan::default() };
        for times in hot.values() {
            times.iter().for_each(|ts| plan.rows.add(*ts, *ts + 1));
        }
        for (entity, days) in days {
            let Some(buckets) = self.buckets.get(&entity) else { continue };
            let times = hot.get(&entity).map_or(&[][..], |times| times);
            let choice =
                Choice { rules: self.rules(entity), buckets, window: (from, to), busy: &busy, times };
            let counting = choice.of(days, &mut plan.rows);
            if !counting.is_empty() {
                plan.days.insert(entity, counting);
            }
        }
        plan.rows.join();
        plan.rows.limit(STRETCHES_MAX);
        Ok(plan)
    }

    async fn read_days<'f>(
        &self,
        file: &'f DataFile,
        entities: &RangeInclusive<EntityId>,
    ) -> Result<(&'f DataFile, Option<Vec<DaySummary>>)> {
        Ok((file, self.view.day_summaries(file, &self.request.metric, entities).await?))
    }

    /// Reads the rows, entity by entity in order of time, and aggregates each together with its days. Answers the entities whose
    /// days turned out not to say enough.
    async fn aggregate(&self, entities: &[EntityId], plan: Plan, cells: &mut Cells) -> Result<Vec<EntityId>> {
        let Plan { mut days, rows } = plan;
        let mut again = Vec::new();
        let mut total: usize = cells.values().map(BTreeMap::len).sum();
        let mut close = |entity: EntityId, days: Vec<Summary>, samples: &mut Vec<Sample>| -> Result<()> {
            if let Some(buckets) = self.buckets.get(&entity) {
                match aggregate(&merge(samples, &days), buckets, &self.rules(entity)) {
                    Some(of_entity) => {
                        total += of_entity.len();
                        cells.insert(entity, of_entity);
                    }
                    None => again.push(entity),
                }
            }
            samples.clear();
            if total > CELLS_MAX {
                let message =
                    format!("the rollup has more than {CELLS_MAX} entity-bucket pairs; choose wider buckets");
                return Err(ApiError::new(Kind::Unprocessable, message));
            }
            Ok(())
        };
        let mut samples: Vec<Sample> = Vec::new();
        if let Some(query) = self.query(entities, &rows) {
            let mut stream = self.service.sql(query).await?;
            let mut current: Option<(EntityId, String)> = None;
            while let Some(batch) = stream.next().await {
                let batch = batch?;
                let text = |column: usize| {
                    let views = batch.column(column).as_string_view_opt();
                    views.ok_or_else(|| ApiError::internal("the rows of a rollup have unexpected types"))
                };
                let (entity, quality) = (text(0)?, text(3)?);
                let ts = batch.column(1).as_primitive::<TimestampMicrosecondType>();
                let value = batch.column(2).as_primitive::<Float64Type>();
                for i in 0..batch.num_rows() {
                    let id = entity.value(i);
                    if current.as_ref().is_none_or(|(_, known)| known != id) {
                        if let Some((entity, _)) = current {
                            close(entity, days.remove(&entity).unwrap_or_default(), &mut samples)?;
                        }
                        current = Some((id.parse()?, id.to_owned()));
                    }
                    let quality: Quality = quality.value(i).parse()?;
                    samples.push(Sample { ts: ts.value(i), value: value.value(i), quality });
                }
            }
            if let Some((entity, _)) = current {
                close(entity, days.remove(&entity).unwrap_or_default(), &mut samples)?;
            }
        }
        // Those that have nothing but days.
        for (entity, days) in days {
            close(entity, days, &mut samples)?;
        }
        Ok(again)
    }

    fn query(&self, entities: &[EntityId], rows: &Stretches) -> Option<SqlRequest> {
        let (first, last) = rows.0.first().zip(rows.0.last())?;
        let time = |micros: i64| ScalarValue::TimestampMicrosecond(Some(micros), Some(Arc::from("UTC")));
        let qualities: Vec<_> = self.request.qualities.iter().map(|q| format!("'{q}'")).collect();
        let mut query = format!(
            "SELECT entity_id, timestamp, value, quality FROM measurements WHERE metric = $1 AND timestamp >= $2 \
             AND timestamp < $3 AND quality IN ({})",
            qualities.join(", ")
        );
        let mut params = vec![ScalarValue::from(self.request.metric.as_str()), time(first.0), time(last.1)];
        if rows.0.len() > 1 {
            let mut parts = Vec::new();
            for (from, to) in &rows.0 {
                parts.push(format!(
                    "timestamp >= ${} AND timestamp < ${}",
                    params.len() + 1,
                    params.len() + 2
                ));
                params.extend([time(*from), time(*to)]);
            }
            query += &format!(" AND ({})", parts.join(" OR "));
        }
        if entities.len() <= ENTITIES_LISTED_MAX {
            let ids: Vec<_> = entities.iter().map(|id| format!("'{id}'")).collect();
            query += &format!(" AND entity_id IN ({})", ids.join(", "));
        }
        query += " ORDER BY entity_id, timestamp";
        Some(SqlRequest {
            params,
            view: Some(self.view.clone()),
            feeds_rollup: true,
            ..SqlRequest::new(query, self.access)
        })
    }
}

/// Rows and days in order of time, without the rows that days stand for.
fn merge<'a>(samples: &[Sample], days: &'a [Summary]) -> Vec<Item<'a>> {
    let mut items = Vec::with_capacity(samples.len() + days.len());
    let mut next = 0;
    for sample in samples {
        while let Some(day) = days.get(next).filter(|day| day.last.ts < sample.ts) {
            items.push(Item::Day(day));
            next += 1;
        }
        if days.get(next).is_none_or(|day| sample.ts < day.first.ts) {
            items.push(Item::Row(*sample));
        }
    }
    items.extend(days[next..].iter().map(Item::Day));
    items
}

/// Finds out which days of a series stand for their rows.
struct Choice<'a> {
    rules: Rules,
    buckets: &'a Buckets,
    window: (i64, i64),
    /// Where files without summaries may have rows.
    busy: &'a Stretches,
    /// Times of readings in memory, in order.
    times: &'a [i64],
}

impl Choice<'_> {
    /// Those that do; where the others lie goes to `rows`.
    fn of(&self, days: Vec<DaySummary>, rows: &mut Stretches) -> Vec<Summary> {
        let (from, to) = self.window;
        let mut near: Vec<(Summary, bool)> = Vec::with_capacity(days.len());
        for day in days {
            let Some(summary) = day.summary else { continue };
            if summary.last.ts < from || summary.first.ts >= to {
                continue;
            }
            let is_same = day.is_whole
                && day.kind == self.rules.kind
                && day.cadence.saturating_mul(1_000_000) == self.rules.cadence;
            near.push((summary, is_same && self.fits(&summary)));
        }
        near.sort_by_key(|(summary, _)| summary.first.ts);
        // The last one of those that reach farthest so far.
        let mut reach: Option<usize> = None;
        for i in 0..near.len() {
            if let Some(before) = reach
                && near[before].0.last.ts >= near[i].0.first.ts
            {
                near[before].1 = false;
                near[i].1 = false;
            }
            if reach.is_none_or(|before| near[before].0.last.ts < near[i].0.last.ts) {
                reach = Some(i);
            }
        }
        let mut counting = Vec::with_capacity(near.len());
        for (summary, counts) in near {
            match counts {
                true => counting.push(summary),
                false => rows.add(summary.first.ts.max(from), (summary.last.ts + 1).min(to)),
            }
        }
        counting
    }

    fn fits(&self, day: &Summary) -> bool {
        let (first, last) = (day.first.ts, day.last.ts);
        let next = self.times.partition_point(|ts| *ts < first);
        if self.times.get(next).is_some_and(|ts| *ts <= last) || self.busy.touches(first, last) {
            return false;
        }
        if last < self.rules.from {
            // Only its end reaches in, and how the register got there must not matter.
            return self.rules.kind != MetricKind::Register || day.is_rising;
        }
        if first >= self.rules.to {
            return true;
        }
        let bucket = self.buckets.index(first);
        first >= self.rules.from
            && last < self.rules.to
            && bucket.is_some()
            && bucket == self.buckets.index(last)
    }
}

/// Stretches of time, `from <= ts < to`.
#[derive(Clone, Debug, Default, PartialEq)]
struct Stretches(Vec<(i64, i64)>);

impl<const N: usize> From<[(i64, i64); N]> for Stretches {
    fn from(stretches: [(i64, i64); N]) -> Self {
        Self(stretches.to_vec())
    }
}

impl Stretches {
    fn add(&mut self, from: i64, to: i64) {
        if from < to {
            self.0.push((from, to));
        }
    }

    /// Puts them in order, those that touch each other as one.
    fn join(&mut self) {
        self.0.sort_unstable();
        let mut joined: Vec<(i64, i64)> = Vec::new();
        for (from, to) in self.0.drain(..) {
            match joined.last_mut() {
                Some(last) if last.1 >= from => last.1 = last.1.max(to),
                _ => joined.push((from, to)),
            }
        }
        self.0 = joined;
    }

    /// Closes the smallest gaps until there are at most so many.
    fn limit(&mut self, most: usize) {
        if self.0.len() <= most {
            return;
        }
        let mut gaps: Vec<(i64, usize)> =
            self.0.windows(2).enumerate().map(|(i, pair)| (pair[1].0 - pair[0].1, i + 1)).collect();
        gaps.sort_unstable_by_key(|gap| std::cmp::Reverse(*gap));
        let open: BTreeSet<usize> = gaps.into_iter().take(most - 1).map(|(_, at)| at).collect();
        let mut joined: Vec<(i64, i64)> = Vec::new();
        for (i, stretch) in self.0.iter().enumerate() {
            match joined.last_mut() {
                Some(last) if !open.contains(&i) => last.1 = stretch.1,
                _ => joined.push(*stretch),
            }
        }
        self.0 = joined;
    }

    /// Whether a time from `first` to `last` lies in one; they are joined.
    fn touches(&self, first: i64, last: i64) -> bool {
        let next = self.0.partition_point(|(_, to)| *to <= first);
        self.0.get(next).is_some_and(|(from, _)| *from <= last)
    }
}
