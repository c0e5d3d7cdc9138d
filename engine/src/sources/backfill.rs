//! Fetching history: a job of one source, window by window, daily totals first. Its step travels with its readings, so that a new
//! process goes on where the last one was.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use wattlake_catalog::{Job, JobState, Progress};

use super::{
    SECOND,
    ask::Asker,
    connector::{Stream, Window},
    cursor::floor,
};

/// How far a job has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Step {
    /// Streams that are done.
    pub streams: usize,
    /// Everything before was fetched of the next one, microseconds since 1970 UTC.
    pub at: Option<i64>,
    pub calls: u64,
    pub readings: u64,
    /// Answers to the next call that could not be read.
    #[serde(default)]
    pub unread: u32,
}

/// A job that is being worked on.
#[derive(Clone, Debug)]
pub(crate) struct Backfill {
    pub job: Job,
    pub step: Step,
    pub cancelled: Arc<AtomicBool>,
}

pub(crate) fn step_key(job: uuid::Uuid) -> String {
    format!("job/{job}")
}

/// Streams in the order in which history is fetched: few calls for many years come first.
fn order(streams: &[Stream]) -> Vec<Stream> {
    let mut ordered: Vec<_> = streams.iter().filter(|stream| !stream.is_instant).copied().collect();
    ordered.sort_by_key(|stream| std::cmp::Reverse(stream.cadence));
    ordered
}

/// What of a time span a stream has.
fn part(stream: &Stream, from: i64, to: i64, now: i64) -> Window {
    let horizon = stream.horizon.map_or(i64::MIN, |horizon| now - horizon * SECOND);
    let from = floor(from.max(horizon).saturating_add(stream.cadence * SECOND - 1), stream.cadence);
    Window { from, to: to.min(floor(now - stream.settles * SECOND, stream.cadence)) }
}

/// Calls that a time span takes.
pub(crate) fn calls(streams: &[Stream], span: impl Fn(&Stream) -> i64, from: i64, to: i64, now: i64) -> i64 {
    let calls = streams.iter().filter(|stream| !stream.is_instant).map(|stream| {
        let part = part(stream, from, to, now);
        let span = span(stream).max(1);
        (part.len().max(0) + span - 1) / span
    });
    calls.sum()
}

impl Backfill {
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// The window to fetch next; `None`: all is done.
    pub(crate) fn next(
        &mut self,
        streams: &[Stream],
        span: impl Fn(&Stream) -> i64,
        now: i64,
    ) -> Option<(Stream, Window)> {
        let (from, to) = (self.job.from.as_microsecond(), self.job.to.as_microsecond());
        let ordered = order(streams);
        while let Some(stream) = ordered.get(self.step.streams) {
            let part = part(stream, from, to, now);
            let start = self.step.at.map_or(part.from, |at| at.max(part.from));
            if start < part.to {
                return Some((*stream, Window { from: start, to: part.to.min(start + span(stream)) }));
            }
            self.skip_stream();
        }
        None
    }

    /// Goes on with the next stream.
    pub(crate) fn skip_stream(&mut self) {
        self.step.streams += 1;
        self.step.at = None;
    }

    /// The job after a window was fetched.
    pub(crate) fn after(&self, window: Window, readings: u64) -> Self {
        let mut after = self.clone();
        after.step.at = Some(window.to);
        after.step.calls += 1;
        after.step.unread = 0;
        after.step.readings += readings;
        after
    }

    pub(crate) fn progress(&self) -> Progress {
        Progress { key: step_key(self.job.id), state: serde_json::to_string(&self.step).unwrap_or_default() }
    }

    pub(crate) async fn finish(&self, asker: &Asker) {
        self.end(asker, JobState::Done, None).await;
    }

    pub(crate) async fn fail(&self, asker: &Asker, error: &str) {
        self.end(asker, JobState::Failed, Some(error)).await;
    }

    async fn end(&self, asker: &Asker, state: JobState, error: Option<&str>) {
        let now = Timestamp::from_microsecond(asker.now()).unwrap_or_default();
        // When that fails the job is running still, and a later process finds nothing to do and ends it.
        if let Err(error) = asker.engine.catalog().end_job(self.job.id, state, error, now).await {
            tracing::warn!(job = %self.job.id, %error, "the end of a job was not noted");
        }
    }
}

#[cfg(test)]
mod tests {
    use wattlake_catalog::EntityId;

    use super::*;

    const QUARTERS: Stream = Stream {
        name: "energy",
        cadence: 900,
        span_max: 43_200,
        span_min: 900,
        settles: 90,
        overlap: 0,
        horizon: Some(10 * 86_400),
        is_polled: true,
        is_sparse: false,
        is_instant: false,
    };
    const DAYS: Stream = Stream {
        name: "days",
        cadence: 86_400,
        span_max: 28 * 86_400,
        horizon: None,
        is_polled: false,
        ..QUARTERS
    };
    const DAY: i64 = 86_400 * SECOND;

    #[test]
    fn a_job_fetches_days_first_and_everything_once() {
        let now = 100 * DAY;
        let at = |micros| Timestamp::from_microsecond(micros).expect("a time");
        let job = Job {
            id: uuid::Uuid::nil(),
            source_id: EntityId(uuid::Uuid::nil()),
            from: at(30 * DAY),
            to: at(95 * DAY),
            state: JobState::Running,
            calls_planned: 0,
            error: None,
            created_at: at(now),
            updated_at: at(now),
        };
        let mut backfill = Backfill { job, step: Step::default(), cancelled: Arc::default() };
        let span = |stream: &Stream| stream.span_max * SECOND;
        let mut found = Vec::new();
        while let Some((stream, window)) = backfill.next(&[QUARTERS, DAYS], span, now) {
            found.push((stream.name, window));
            // What a new process would read.
            let kept: Step = serde_json::from_str(&backfill.after(window, 5).progress().state).expect("JSON");
            backfill.step = kept;
        }
        assert_eq!(found.len() as i64, calls(&[QUARTERS, DAYS], span, 30 * DAY, 95 * DAY, now));
        assert_eq!((backfill.step.calls, backfill.step.readings), (13, 65));
        let days: Vec<_> =
            found.iter().take_while(|(name, _)| *name == "days").map(|(_, window)| *window).collect();
        assert_eq!((days.len(), days[0].from, days[2].to), (3, 30 * DAY, 95 * DAY));
        // The vendor knows the quarters of ten days.
        assert_eq!((found[3].1.from, found[12].1.to), (90 * DAY, 95 * DAY));
        assert!(found[3..].windows(2).all(|pair| pair[0].1.to == pair[1].1.from));
    }
}
