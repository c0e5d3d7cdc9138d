//! One turn of a source: what is new is fetched, then what is to be read again, then a step of its backfill.
//!
//! Nothing waits here. What cannot be asked now says when it can, and the turn ends; the next one goes on where the cursors stand.

mod history;
mod trouble;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use wattlake_catalog::{EntityId, Progress, failpoint};

use super::{
    SECOND,
    ask::{Asker, Trouble},
    backfill::Backfill,
    budget::Purpose,
    connector::{Decoded, Stream, Window},
    cursor::{AGAIN_DAYS, Cursor, DAY, Known},
    failure::{CallFailure, Class},
    gaps,
    settings::SourceSettings,
    store::{Places, batch},
};
use crate::Result;

/// After so many failures in a row a stream waits for the next turn of its source.
const FAILURES_MAX: u32 = 8;
/// Windows read again in one turn: what is new must not wait for them.
const AGAIN_MAX: usize = 8;
/// Devices of a stream that are watched.
const DEVICES_MAX: usize = 1000;
/// Nobody is asked: looked at again all the same.
const NEVER: i64 = i64::MAX;

/// What a turn works on; it belongs to one source.
pub(crate) struct Work {
    pub settings: Arc<SourceSettings>,
    streams: Vec<Stream>,
    cursors: BTreeMap<&'static str, Cursor>,
    /// When what is new is asked for, microseconds since 1970 UTC.
    pub poll_at: i64,
    /// Somebody wants it now: the calls of the month are not spread this time.
    pub is_wanted: bool,
    /// Streams of this turn that are done.
    done: Vec<&'static str>,
    /// Failures in a row.
    pub failures: u32,
    /// The same of what is read besides polling, and when that goes on.
    other_failures: u32,
    others_at: i64,
    pub backfill: Option<Backfill>,
    /// Not asked any more until somebody changes something.
    pub stopped: Option<CallFailure>,
    /// Of the last turn.
    pub error: Option<String>,
    /// Readings stored.
    pub readings: u64,
    /// Readings of the vendor that could not be stored.
    pub refused: u64,
    pub last_success: Option<i64>,
}

/// When to come back.
enum Next {
    Done,
    Later(i64),
    Stop,
}

fn cursor_key(source: EntityId, stream: &str) -> String {
    format!("source/{source}/{stream}")
}

impl Work {
    /// Takes a source up where the last process left it.
    pub(crate) fn new(settings: Arc<SourceSettings>, states: &BTreeMap<String, String>, now: i64) -> Self {
        let streams = settings.connector.streams();
        let mut work = Self {
            settings,
            streams,
            cursors: BTreeMap::new(),
            poll_at: now,
            is_wanted: false,
            done: Vec::new(),
            failures: 0,
            other_failures: 0,
            others_at: 0,
            backfill: None,
            stopped: None,
            error: None,
            readings: 0,
            refused: 0,
            last_success: None,
        };
        work.take_up_cursors(states, now);
        work
    }

    /// Reads how far streams were read.
    pub(crate) fn take_up_cursors(&mut self, states: &BTreeMap<String, String>, now: i64) {
        let cursor = |stream: &Stream| {
            let kept = states.get(&cursor_key(self.settings.id, stream.name));
            let kept = kept.and_then(|text| serde_json::from_str(text).ok());
            (stream.name, kept.unwrap_or_else(|| Cursor::first(stream, now)))
        };
        self.cursors = self.streams.iter().map(cursor).collect();
    }

    /// Does what is due; answers when the next turn is.
    pub(crate) async fn turn(&mut self, asker: &Asker) -> i64 {
        if self.stopped.is_some() {
            return NEVER;
        }
        let mut next = NEVER;
        if self.poll_at <= asker.now() {
            match self.poll(asker).await {
                Next::Done => {
                    self.done.clear();
                    self.failures = 0;
                    self.poll_at = self.settings.schedule.next_after(asker.now(), self.settings.phase());
                }
                Next::Later(at) => self.poll_at = at,
                Next::Stop => return NEVER,
            }
        }
        next = next.min(self.poll_at);
        // While polling is in trouble nothing else is tried.
        if self.failures == 0 {
            if self.others_at <= asker.now() {
                std::mem::swap(&mut self.failures, &mut self.other_failures);
                let steps = [self.read_again(asker).await, self.step_backfill(asker).await];
                std::mem::swap(&mut self.failures, &mut self.other_failures);
                self.others_at = NEVER;
                for step in steps {
                    match step {
                        Next::Done => {}
                        Next::Later(at) => self.others_at = self.others_at.min(at),
                        Next::Stop => return NEVER,
                    }
                }
            }
            next = next.min(self.others_at);
            if self.others_at == NEVER {
                // The next turn finds out what there is to do.
                self.others_at = 0;
            }
        }
        if let Err(error) = asker.keep_alive(&self.settings).await {
            tracing::debug!(source = %self.settings.id, ?error, "tokens were not renewed");
        }
        next
    }

    async fn poll(&mut self, asker: &Asker) -> Next {
        let now = asker.now();
        if self.done.is_empty() {
            self.error = None;
        }
        if self.done.is_empty() && !std::mem::take(&mut self.is_wanted) {
            let limits = self.settings.limits;
            match asker.with_ledger(&self.settings, |ledger| ledger.poll_from(&limits, now)).await {
                Ok(from) if from > now => return Next::Later(from),
                Ok(_) => {}
                Err(error) => return self.fail(asker, &CallFailure::new(Class::Retry, error.message)),
            }
        }
        for stream in self.streams.clone() {
            if !stream.is_polled || self.done.contains(&stream.name) {
                continue;
            }
            match self.poll_stream(asker, &stream).await {
                Next::Done => self.done.push(stream.name),
                // One kind of answer that never comes does not hold up the others.
                Next::Later(_) if self.failures >= FAILURES_MAX => {
                    self.failures = 0;
                    self.done.push(stream.name);
                }
                other => return other,
            }
        }
        Next::Done
    }

    /// Fetches what is new of a stream, window by window in the order of time.
    async fn poll_stream(&mut self, asker: &Asker, stream: &Stream) -> Next {
        let now = asker.now();
        if self.cursor(stream).closed_until > now {
            return Next::Done;
        }
        if stream.is_instant {
            return self.poll_instant(asker, stream, now).await;
        }
        let mut windows = self.cursor(stream).fresh(stream, now);
        // A site that was silent is asked for the newest window first: only when there is something, the others are worth a call.
        if self.cursor(stream).is_silent && windows.len() > 1 {
            let newest = windows[windows.len() - 1];
            match self.fetch(asker, Purpose::Poll, stream, newest, false).await {
                Ok(decoded) if decoded.points.is_empty() => return self.stay_silent(asker, stream).await,
                Ok(_) => {}
                Err(trouble) => return self.handle(asker, stream, newest, trouble).await,
            }
        }
        windows.reverse();
        while let Some(window) = windows.pop() {
            match self.fetch(asker, Purpose::Poll, stream, window, true).await {
                Ok(_) => {}
                Err(Trouble::Failed(failure)) if failure.class == Class::WindowTooLarge => {
                    if !self.shrink(asker, stream, window).await {
                        return self.note(&failure);
                    }
                    windows = self.cursor(stream).fresh(stream, now);
                    windows.retain(|next| next.to > window.from);
                    windows.reverse();
                }
                Err(trouble) => return self.handle(asker, stream, window, trouble).await,
            }
        }
        let end = self.cursor(stream).end(stream, now);
        if self.cursor(stream).until < end - DAY.min(4 * stream.cadence * SECOND) {
            return self.stay_silent(asker, stream).await;
        }
        Next::Done
    }

    /// Asks how it stands now.
    async fn poll_instant(&mut self, asker: &Asker, stream: &Stream, now: i64) -> Next {
        let window = Window { from: self.cursor(stream).until.min(now), to: now };
        match self.fetch(asker, Purpose::Poll, stream, window, false).await {
            Ok(_) => {
                // It would be written to the log at every poll, and says nothing that the readings do not.
                if let Some(cursor) = self.cursors.get_mut(stream.name) {
                    cursor.until = now;
                }
                Next::Done
            }
            Err(trouble) => self.handle(asker, stream, window, trouble).await,
        }
    }

    /// Nothing new: the next poll asks with fewer calls.
    async fn stay_silent(&mut self, asker: &Asker, stream: &Stream) -> Next {
        let mut cursor = self.cursor(stream).clone();
        cursor.is_silent = true;
        if let Some(lost) = cursor.give_up(stream, asker.now()) {
            tracing::warn!(source = %self.settings.id, stream = stream.name, days = lost.len() / DAY,
                "the vendor has had no readings for a month; they are not waited for any more");
        }
        match self.save(asker, stream, cursor).await {
            Ok(()) => Next::Done,
            Err(error) => self.fail(asker, &CallFailure::new(Class::Retry, error.message)),
        }
    }

    /// Reads windows again that vendors may have filled or corrected.
    async fn read_again(&mut self, asker: &Asker) -> Next {
        for stream in self.streams.clone() {
            for _ in 0..AGAIN_MAX {
                let now = asker.now();
                let cursor = self.cursor(&stream);
                let Some((level, window)) = cursor.again(&stream, now).filter(|_| cursor.closed_until <= now)
                else {
                    break;
                };
                let decoded = match self.ask(asker, Purpose::Extra, &stream, window).await {
                    Ok(decoded) => decoded,
                    Err(trouble) => match self.handle(asker, &stream, window, trouble).await {
                        Next::Done => break,
                        other => return other,
                    },
                };
                self.failures = 0;
                let mut cursor = self.cursor(&stream).clone();
                cursor.again[level] = window.to;
                let noted = self.store(asker, &stream, cursor, &decoded).await;
                let is_last = level + 1 == AGAIN_DAYS.len();
                let noted = match noted {
                    Ok(()) => self.note_gaps(asker, &stream, window, &decoded, is_last).await,
                    error => error,
                };
                if let Err(error) = noted {
                    return self.fail(asker, &CallFailure::new(Class::Retry, error.message));
                }
            }
        }
        Next::Done
    }

    fn cursor(&self, stream: &Stream) -> &Cursor {
        &self.cursors[stream.name]
    }

    /// Asks for a fresh window and stores what comes; the cursor moves on if `advances`.
    async fn fetch(
        &mut self,
        asker: &Asker,
        purpose: Purpose,
        stream: &Stream,
        window: Window,
        advances: bool,
    ) -> std::result::Result<Decoded, Trouble> {
        let decoded = self.ask(asker, purpose, stream, window).await?;
        let mut cursor = self.cursor(stream).clone();
        observe(&mut cursor, stream, &decoded);
        if advances {
            cursor.advance(end_of_last(stream, &decoded));
        }
        self.store(asker, stream, cursor, &decoded).await?;
        self.last_success = Some(asker.now());
        Ok(decoded)
    }

    /// Asks for a window; once more in UTC when the vendor took local times for others.
    async fn ask(
        &mut self,
        asker: &Asker,
        purpose: Purpose,
        stream: &Stream,
        window: Window,
    ) -> std::result::Result<Decoded, Trouble> {
        let in_utc = self.cursor(stream).in_utc;
        let decoded = asker.window(&self.settings, purpose, stream, window, in_utc).await?;
        if !decoded.misread_times {
            return Ok(decoded);
        }
        if !in_utc {
            let mut cursor = self.cursor(stream).clone();
            cursor.in_utc = true;
            self.save(asker, stream, cursor).await?;
            let decoded = asker.window(&self.settings, purpose, stream, window, true).await?;
            if !decoded.misread_times {
                return Ok(decoded);
            }
        }
        let words = format!("the answer for {} is about other times than those asked for", stream.name);
        Err(CallFailure::new(Class::BadPayload, words).into())
    }

    /// Writes readings together with their cursor (WAL-5).
    async fn store(
        &mut self,
        asker: &Asker,
        stream: &Stream,
        cursor: Cursor,
        decoded: &Decoded,
    ) -> Result<()> {
        self.write(asker, stream, cursor, decoded, None).await
    }

    async fn write(
        &mut self,
        asker: &Asker,
        stream: &Stream,
        cursor: Cursor,
        decoded: &Decoded,
        more: Option<Progress>,
    ) -> Result<()> {
        let fleet = asker.engine.catalog().fleet();
        let places = Places { source: self.settings.id, targets: &self.settings.targets, fleet };
        let (mut batch, refused) = batch(&asker.engine, &places, &decoded.points);
        let stored = batch.len() as u64;
        let is_kept = !stream.is_instant || cursor.closed_until != self.cursor(stream).closed_until;
        if is_kept && cursor != *self.cursor(stream) {
            batch.progress.push(self.progress(stream, &cursor)?);
        }
        batch.progress.extend(more);
        failpoint!("poll.before_store");
        asker.engine.write(batch).await?;
        failpoint!("poll.after_store");
        self.readings += stored;
        self.refused += refused;
        self.cursors.insert(stream.name, cursor);
        Ok(())
    }

    async fn save(&mut self, asker: &Asker, stream: &Stream, cursor: Cursor) -> Result<()> {
        self.store(asker, stream, cursor, &Decoded::default()).await
    }

    fn progress(&self, stream: &Stream, cursor: &Cursor) -> Result<Progress> {
        let state = serde_json::to_string(cursor)
            .map_err(|error| crate::Error::internal(format!("a cursor cannot be written: {error}")))?;
        Ok(Progress { key: cursor_key(self.settings.id, stream.name), state })
    }

    async fn note_gaps(
        &self,
        asker: &Asker,
        stream: &Stream,
        window: Window,
        decoded: &Decoded,
        is_last: bool,
    ) -> Result<()> {
        let places = Places {
            source: self.settings.id,
            targets: &self.settings.targets,
            fleet: asker.engine.catalog().fleet(),
        };
        gaps::note(&asker.engine, &places, stream, self.cursor(stream), window, decoded, is_last).await
    }

    /// Remembers that windows must be shorter. `false`: they cannot be.
    async fn shrink(&mut self, asker: &Asker, stream: &Stream, window: Window) -> bool {
        let mut cursor = self.cursor(stream).clone();
        cursor.shrink(stream, window) && self.save(asker, stream, cursor).await.is_ok()
    }

    /// Whether all polled streams are refused to this site.
    pub(crate) fn is_closed(&self, now: i64) -> bool {
        let mut polled = self.streams.iter().filter(|stream| stream.is_polled).peekable();
        polled.peek().is_some() && polled.all(|stream| self.cursor(stream).closed_until > now)
    }

    /// The time up to which everything polled was read.
    pub(crate) fn read_until(&self) -> Option<i64> {
        let polled = self.streams.iter().filter(|stream| stream.is_polled && !stream.is_instant);
        polled.map(|stream| self.cursor(stream).until).min()
    }

    /// Streams whose readings come at another pace than expected, with the seconds between them.
    pub(crate) fn other_cadences(&self) -> Vec<(&'static str, i64)> {
        let of_stream = |stream: &Stream| {
            let known = self.cursor(stream).known.values().flat_map(|known| &known.quantities);
            let name = stream.name;
            known.filter_map(move |(_, cadence)| Some((name, (*cadence)?))).collect::<BTreeSet<_>>()
        };
        self.streams.iter().flat_map(of_stream).collect()
    }

    /// Series whose gaps the vendor is asked for.
    pub(crate) fn watched(&self, places: &Places<'_>) -> BTreeSet<(EntityId, Arc<str>)> {
        let streams = self.streams.iter().filter(|stream| !stream.is_instant);
        let known = streams.flat_map(|stream| &self.cursor(stream).known);
        let series = known.flat_map(|(device, known)| {
            let device = Some(device.as_str()).filter(|device| !device.is_empty());
            known.quantities.iter().filter_map(move |(quantity, _)| places.series(*quantity, device))
        });
        series.map(|series| (series.entity, series.metric)).collect()
    }

    pub(crate) fn streams(&self) -> &[Stream] {
        &self.streams
    }

    pub(crate) fn span(&self, stream: &Stream) -> i64 {
        self.cursor(stream).span(stream)
    }
}

/// Learns from an answer what the stream is like.
fn observe(cursor: &mut Cursor, stream: &Stream, decoded: &Decoded) {
    if stream.is_instant {
        return;
    }
    for ((device, quantity), times) in gaps::by_series(decoded) {
        if !cursor.known.contains_key(device) && cursor.known.len() >= DEVICES_MAX {
            continue;
        }
        let (Some(first), Some(last)) = (times.first().copied(), times.last().copied()) else { continue };
        let fresh = Known { from: first, to: last, quantities: Vec::new() };
        let known = cursor.known.entry(device.to_owned()).or_insert(fresh);
        (known.from, known.to) = (known.from.min(first), known.to.max(last));
        let at = known.quantities.iter().position(|(known, _)| *known == quantity).unwrap_or_else(|| {
            known.quantities.push((quantity, None));
            known.quantities.len() - 1
        });
        let Some(cadence) = gaps::cadence(&times) else { continue };
        let other = Some(cadence).filter(|cadence| *cadence != stream.cadence);
        if other.is_some() && known.quantities[at].1 != other {
            tracing::warn!(
                stream = stream.name,
                device,
                expected = stream.cadence,
                found = cadence,
                "readings come at another pace"
            );
        }
        known.quantities[at].1 = other;
    }
}

/// The end of the last interval with a reading; nothing is final that the vendor heard of later.
fn end_of_last(stream: &Stream, decoded: &Decoded) -> Option<i64> {
    let last = decoded.points.iter().map(|point| point.ts).max()? + stream.cadence * SECOND;
    Some(decoded.heard_until.map_or(last, |heard| last.min(super::cursor::floor(heard, stream.cadence))))
}
