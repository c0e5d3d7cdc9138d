//! What comes by itself is watched: messages of brokers, devices that only tell how it stands now, and readings that others push.
//!
//! Nobody can be asked for what is missing, so the archive itself is looked at: each UTC day one, three and seven days after its end, as
//! windows of vendors are read again. What a series' cadence is, its own readings say. Holes go to the [ledger](super::gaps).

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ops::{Range, RangeInclusive},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use wattlake_catalog::{Entity, EntityId, Fleet, GapFilter, GapState, Progress};

use super::{
    SECOND, Sources,
    connector::Window,
    cursor::{AGAIN_DAYS, DAY, SILENT_DAYS_MAX, floor},
    gaps::{Hole, Look, write_down},
    time,
};
use crate::{Batch, Error, ReadView, Result, SeriesKey};

/// The page of the ledger.
pub(super) const LIVE: &str = "live";
/// Where it stands, among the states of what goes on for long.
const KEY: &str = "watch";
/// Days before and after that are looked at with a day: they tell its cadence, and whether a silence comes every night.
const AROUND: i64 = 2 * DAY;
const HOUR: i64 = 3600 * SECOND;
/// Whether a day is due is looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// The same where the clock is set by a test.
const LOOK_OFTEN: Duration = Duration::from_millis(20);
/// Times held at once, 8 bytes each: of more, a part of the series is looked at after the other.
const TIMES_MAX: usize = if cfg!(test) { 5_000 } else { 8 << 20 };
/// Parts are not made smaller than this; of the numbers that part series.
const PART_MIN: u32 = 1 << 8;
/// Readings that tell a cadence, and how many of a hundred steps between them must be about as long as most.
const READINGS_MIN: usize = 12;
const REGULAR: usize = 75;
/// A shorter cadence is none: what comes several times a second is not counted.
const CADENCE_MIN: i64 = SECOND;
/// Holes of one day in one series that are told apart; of more, those that are close together are told as one.
const HOLES_MAX: usize = 24;
/// A silence of these lengths is a night's when the nights before and after are silent, too.
const NIGHT: Range<i64> = 4 * HOUR..20 * HOUR;
/// Nights begin and end at another time each day.
const DUSK: i64 = HOUR;
/// Changes of a cadence that are shown.
const CHANGES_MAX: usize = 1000;

/// Days that were looked at: everything before, for each of [`AGAIN_DAYS`]. Microseconds since 1970 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Watch {
    again: [i64; 3],
}

impl Watch {
    /// The next day to look at, and which look it is.
    fn next(&self, now: i64) -> Option<(usize, i64)> {
        (0..AGAIN_DAYS.len())
            .map(|level| (level, self.again[level]))
            .find(|(level, day)| day + (1 + AGAIN_DAYS[*level]) * DAY <= now)
    }
}

/// A series whose readings come at another pace than before.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CadenceChange {
    pub entity_id: EntityId,
    pub metric: Arc<str>,
    /// The UTC day.
    pub day: Timestamp,
    pub seconds_before: f64,
    pub seconds: f64,
}

/// What a day of a series is like.
#[derive(Clone, Debug, Default, PartialEq)]
struct Day {
    /// Microseconds between readings; none: they do not come regularly.
    cadence: Option<i64>,
    /// The cadence before and after, where it changed.
    changed: Option<(i64, i64)>,
    holes: Vec<(i64, i64)>,
}

/// Microseconds between some times, which ascend, if they come regularly.
fn pace(times: &[i64]) -> Option<i64> {
    if times.len() < READINGS_MIN {
        return None;
    }
    let mut steps: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let middle = steps.len() / 2;
    let (_, step, _) = steps.select_nth_unstable(middle);
    let step = *step;
    let regular = steps.iter().filter(|one| (step / 2..=step + step / 2).contains(*one)).count();
    (step >= CADENCE_MIN && regular * 100 >= REGULAR * steps.len()).then_some(step)
}

fn differ(a: i64, b: i64) -> bool {
    (a - b).abs() * 5 > a.min(b)
}

/// Whether there is no reading in `from <= ts < to`.
fn is_silent(times: &[i64], from: i64, to: i64) -> bool {
    let next = times.partition_point(|ts| *ts < from);
    times.get(next).is_none_or(|ts| *ts >= to)
}

/// What the times of readings from [`AROUND`] before a day until as long after its begin say of it. `silent`: the cadence of a series
/// that was silent when the days began.
fn look_at(times: &[i64], day: i64, silent: Option<i64>) -> Day {
    let (next, end) = (day + DAY, day + AROUND);
    let middle = times.partition_point(|ts| *ts < day);
    let (before, after) = (pace(&times[..middle]), pace(&times[middle..]));
    let changed = before.zip(after).filter(|(before, after)| differ(*before, *after));
    let cadence = match (changed, before, after) {
        (Some((before, after)), ..) => Some(before.max(after)),
        (None, Some(one), _) | (None, None, Some(one)) => Some(one),
        (None, None, None) => pace(times).or(silent),
    };
    let Some(cadence) = cadence else { return Day::default() };
    let until_first = silent.map(|_| (day - AROUND - cadence, times.first().copied().unwrap_or(end)));
    let pairs = times.windows(2).map(|pair| (pair[0], pair[1]));
    let since_last = times.last().map(|last| (*last, end));
    let silences = until_first.into_iter().chain(pairs).chain(since_last);
    let silences = silences.filter(|(from, to)| to - from > cadence + cadence / 2);
    let inside =
        silences.map(|(from, to)| (from + cadence, to)).filter(|(from, to)| *from < next && *to > day);
    let is_night = |(from, to): &(i64, i64)| {
        NIGHT.contains(&(to - from))
            && is_silent(times, from - DAY + DUSK, to - DAY - DUSK)
            && is_silent(times, from + DAY + DUSK, (to + DAY - DUSK).min(end))
    };
    let holes = inside.filter(|silence| !is_night(silence)).map(|(from, to)| (from.max(day), to.min(next)));
    Day { cadence: Some(cadence), changed, holes: few(holes.collect()) }
}

/// At most [`HOLES_MAX`] stretches that hold the given ones, which ascend.
fn few(holes: Vec<(i64, i64)>) -> Vec<(i64, i64)> {
    if holes.len() <= HOLES_MAX {
        return holes;
    }
    let mut between: Vec<usize> = (1..holes.len()).collect();
    // The longest stretches with readings keep holes apart.
    between.sort_by_key(|at| holes[at - 1].1 - holes[*at].0);
    between.truncate(HOLES_MAX - 1);
    between.sort_unstable();
    let starts = [0].into_iter().chain(between.iter().copied());
    let ends = between.iter().copied().chain([holes.len()]);
    starts.zip(ends).map(|(start, end)| (holes[start].0, holes[end - 1].1)).collect()
}

/// Series, by metric and entity.
type Name = (Arc<str>, EntityId);

/// A number that parts series, the same in every process: FNV-1a, its upper half.
fn part_of(metric: &str, entity: EntityId) -> u32 {
    let bytes = metric.bytes().chain(*entity.0.as_bytes());
    let hash = bytes
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (hash >> 32) as u32
}

/// What is known besides the times of readings.
struct Around {
    fleet: Arc<Fleet>,
    /// Series whose vendors are asked.
    asked: HashSet<Name>,
    /// Series that were silent when the day began, and their cadences.
    silent: BTreeMap<Name, i64>,
}

impl Sources {
    /// Looks at the days that are due, until [`Sources::stop`].
    pub async fn watch(&self) {
        let every = if self.engine().clock().is_system() { LOOK_EVERY } else { LOOK_OFTEN };
        while !self.0.stopping.load(Ordering::Acquire) {
            if let Err(error) = self.watch_due().await {
                tracing::warn!(%error, "the archive was not looked at for gaps");
            }
            tokio::select! {
                () = self.0.stopped.notified() => {}
                () = tokio::time::sleep(every) => {}
            }
        }
    }

    /// Looks at the days that are due; answers how many looks that were.
    pub async fn watch_due(&self) -> Result<usize> {
        // Which series vendors are asked for is known once the sources were looked at.
        if self.engine().settings().sources.poll && self.0.known.lock().fleet.is_none() {
            return Ok(0);
        }
        let known = *self.0.watch.lock();
        let mut watch = match known {
            Some(watch) => watch,
            None => self.take_up_watch().await?,
        };
        let mut looks = 0;
        while let Some((level, day)) = watch.next(self.now())
            && !self.0.stopping.load(Ordering::Acquire)
        {
            self.look_at_day(day, level + 1 == AGAIN_DAYS.len()).await?;
            watch.again[level] = day + DAY;
            self.save_watch(watch).await?;
            looks += 1;
        }
        Ok(looks)
    }

    /// Where the last process ended; what lies too far back is not looked at any more.
    async fn take_up_watch(&self) -> Result<Watch> {
        let today = floor(self.now(), 86_400);
        let state = self.engine().progress().await?.remove(KEY);
        let kept: Option<Watch> = state.and_then(|state| serde_json::from_str(&state).ok());
        let mut watch = kept.unwrap_or(Watch { again: [today; 3] });
        for (day, age) in watch.again.iter_mut().zip(AGAIN_DAYS) {
            *day = (*day).max(today - (age + SILENT_DAYS_MAX) * DAY);
        }
        if kept != Some(watch) {
            self.save_watch(watch).await?;
        }
        *self.0.watch.lock() = Some(watch);
        Ok(watch)
    }

    async fn save_watch(&self, watch: Watch) -> Result<()> {
        let state = serde_json::to_string(&watch)
            .map_err(|error| Error::internal(format!("the days looked at cannot be written: {error}")))?;
        let progress = vec![Progress { key: KEY.to_owned(), state }];
        self.engine().write(Batch { created_at: self.now(), progress, ..Batch::default() }).await?;
        *self.0.watch.lock() = Some(watch);
        Ok(())
    }

    async fn look_at_day(&self, day: i64, is_last: bool) -> Result<()> {
        let view = self.engine().read_view();
        let around = self.around(&view, day).await?;
        let mut holes = Vec::new();
        let mut parts = vec![0..=u32::MAX];
        while let Some(part) = parts.pop() {
            let wanted = |key: &SeriesKey| {
                part.contains(&part_of(&key.metric, key.entity))
                    && around.fleet.entity(key.entity).is_some_and(Entity::is_active)
                    && !around.asked.contains(&(Arc::clone(&key.metric), key.entity))
            };
            match view.times(day - AROUND, day + AROUND, TIMES_MAX, wanted).await? {
                Some(times) => self.judge(&around, day, &part, &times, &mut holes),
                None if part.end() - part.start() >= PART_MIN => {
                    let middle = part.start() + (part.end() - part.start()) / 2;
                    parts.extend([*part.start()..=middle, middle + 1..=*part.end()]);
                }
                None => {
                    tracing::warn!(day = %time(day), "a series has too many readings to be looked at for gaps");
                }
            }
        }
        let sources = by_target(&around.fleet);
        let look = Look { asked: None, stream: LIVE, window: Window { from: day, to: day + DAY }, is_last };
        write_down(self.engine(), look, holes, |entity| {
            around.fleet.source(entity).map(|source| source.id).or_else(|| sources.get(&entity).copied())
        })
        .await
    }

    /// Finds the holes of a part of all series.
    fn judge(
        &self,
        around: &Around,
        day: i64,
        part: &RangeInclusive<u32>,
        times: &BTreeMap<Name, Vec<i64>>,
        holes: &mut Vec<Hole>,
    ) {
        let lasting = around
            .silent
            .keys()
            .filter(|name| part.contains(&part_of(&name.0, name.1)) && !times.contains_key(*name));
        let all = times
            .iter()
            .map(|(name, times)| (name, times.as_slice()))
            .chain(lasting.map(|name| (name, [].as_slice())));
        for (name, times) in all {
            let found = look_at(times, day, around.silent.get(name).copied());
            let (Some(cadence), Some(entity)) = (found.cadence, around.fleet.entity(name.1)) else {
                continue;
            };
            if let Some(changed) = found.changed {
                self.tell_change(name, day, changed);
            }
            let series =
                SeriesKey { entity: name.1, entity_type: entity.entity_type(), metric: Arc::clone(&name.0) };
            holes.extend(found.holes.into_iter().map(|(from, to)| Hole {
                series: series.clone(),
                from,
                to,
                cadence,
            }));
        }
    }

    /// Series whose silence began before the days around this one.
    async fn around(&self, view: &ReadView, day: i64) -> Result<Around> {
        let fleet = self.engine().catalog().fleet();
        let mut asked = HashSet::new();
        for source in self.0.known.lock().sources.values() {
            asked.extend(
                source.glance.lock().watched.iter().map(|(entity, metric)| (Arc::clone(metric), *entity)),
            );
        }
        let filter = GapFilter {
            stream: Some(LIVE),
            between: Some((time(day - DAY), time(day))),
            ..GapFilter::default()
        };
        let gaps = self.engine().catalog().gaps(&filter, i64::MAX).await?;
        let until = time(day);
        let lasting = gaps.iter().filter(|gap| gap.to == until && gap.state != GapState::Filled);
        let mut silent: BTreeMap<Name, i64> = lasting
            .filter(|gap| fleet.entity(gap.entity_id).is_some_and(Entity::is_active))
            .filter_map(|gap| {
                let name = (Arc::from(gap.metric.as_str()), gap.entity_id);
                Some((name, i64::try_from(gap.cadence?.as_micros()).ok()?))
            })
            .collect();
        silent.retain(|name, _| !asked.contains(name));
        if !silent.is_empty() {
            let named = |key: &SeriesKey| silent.contains_key(&(Arc::clone(&key.metric), key.entity));
            let latest = view.latest(named).await?.into_iter();
            let alive: BTreeSet<Name> = latest
                .filter(|reading| reading.ts >= day - SILENT_DAYS_MAX * DAY)
                .map(|reading| (Arc::clone(&reading.key.metric), reading.key.entity))
                .collect();
            silent.retain(|name, _| alive.contains(name));
        }
        Ok(Around { fleet, asked, silent })
    }

    fn tell_change(&self, (metric, entity): &Name, day: i64, (before, after): (i64, i64)) {
        let seconds = |micros: i64| micros as f64 / SECOND as f64;
        let mut changes = self.0.changes.lock();
        // The days around a change see it as well.
        let is_known = changes.iter().any(|known: &CadenceChange| {
            known.entity_id == *entity
                && known.metric == *metric
                && (known.day.as_microsecond() - day).abs() <= AROUND
        });
        if is_known {
            return;
        }
        tracing::warn!(%entity, %metric, before = seconds(before), after = seconds(after), "readings come at another pace");
        if changes.len() == CHANGES_MAX {
            changes.pop_front();
        }
        changes.push_back(CadenceChange {
            entity_id: *entity,
            metric: Arc::clone(metric),
            day: time(day),
            seconds_before: seconds(before),
            seconds: seconds(after),
        });
    }

    /// Series that nobody is asked for and that changed their cadence, the newest last, as far as this process has seen.
    pub fn cadence_changes(&self) -> Vec<CadenceChange> {
        self.0.changes.lock().iter().cloned().collect()
    }
}

/// Sources by the entities that they write to besides themselves.
fn by_target(fleet: &Fleet) -> BTreeMap<EntityId, EntityId> {
    let targets = fleet.sources().filter_map(|source| {
        let targets = source.metadata.get("targets").and_then(Value::as_object)?;
        Some(targets.values().filter_map(|id| Some((id.as_str()?.parse().ok()?, source.id))))
    });
    targets.flatten().collect()
}

#[cfg(test)]
mod tests;
