//! Backfills as jobs: planned, begun, listed, cancelled.

use std::sync::atomic::Ordering;

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;
use wattlake_catalog::{EntityId, Job, JobState};

use super::{
    Sources,
    ask::CALLS,
    backfill::{self, Step, step_key},
    budget::Ledger,
    connector, time,
};
use crate::{Error, ErrorKind, Result};

/// What a backfill would take.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackfillPlan {
    pub calls: i64,
    /// Calls of this month that polling leaves, now.
    pub calls_left: i64,
    pub estimated_end: Timestamp,
    pub streams: Vec<&'static str>,
}

/// Calls of a credential in its month.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BudgetStatus {
    /// A name that does not tell the secret.
    pub credential: String,
    pub since: Timestamp,
    pub polls: i64,
    /// Backfill, reading again, retries.
    pub others: i64,
    /// The vendor asked for a pause, or the month is used up.
    pub paused_until: Option<Timestamp>,
}

/// A job with how far it has come.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobStatus {
    #[serde(flatten)]
    pub job: Job,
    pub kind: &'static str,
    pub calls: u64,
    pub readings: u64,
    /// From 0 to 1.
    pub progress: f64,
}

impl Sources {
    /// What a backfill of `from <= ts < to` would take.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with what is in the way.
    pub async fn plan_backfill(&self, id: EntityId, from: Timestamp, to: Timestamp) -> Result<BackfillPlan> {
        self.reconcile().await?;
        let source = self.known(id)?;
        let work = self.work(&source).await;
        let Some(work) = work.as_ref() else { return Err(self.obstacle(&source)) };
        let now = self.now();
        let streams = work.streams();
        let span = |stream: &connector::Stream| work.span(stream);
        let calls = backfill::calls(streams, span, from.as_microsecond(), to.as_microsecond(), now);
        let limits = work.settings.limits;
        let (calls_left, end) =
            self.0.asker.with_ledger(&work.settings, |ledger| ledger.estimate(&limits, calls, now)).await?;
        Ok(BackfillPlan {
            calls,
            calls_left,
            estimated_end: time(end),
            streams: streams.iter().map(|stream| stream.name).collect(),
        })
    }

    /// Begins a backfill. One source has one at a time.
    ///
    /// # Errors
    /// As [`Sources::plan_backfill`]; [`ErrorKind::Conflict`] while another one runs.
    pub async fn start_backfill(&self, id: EntityId, from: Timestamp, to: Timestamp) -> Result<JobStatus> {
        let plan = self.plan_backfill(id, from, to).await?;
        if let Some(running) = self
            .jobs()
            .await?
            .into_iter()
            .find(|one| one.job.source_id == id && one.job.state == JobState::Running)
        {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("job {} fetches history of this source already; cancel it or wait", running.job.id),
            ));
        }
        let now = time(self.now());
        let job = Job {
            id: Uuid::now_v7(),
            source_id: id,
            from,
            to,
            state: JobState::Running,
            calls_planned: plan.calls,
            error: None,
            created_at: now,
            updated_at: now,
        };
        self.engine().catalog().create_job(&job).await?;
        if let Ok(source) = self.known(id) {
            source.has_new_job.store(true, Ordering::Release);
            let mut glance = source.glance.lock();
            glance.next_turn = glance.next_turn.min(self.now());
        }
        self.0.wake.notify_one();
        Ok(job_status(job, &Step::default()))
    }

    /// All jobs, the newest first.
    pub async fn jobs(&self) -> Result<Vec<JobStatus>> {
        let jobs = self.engine().catalog().jobs().await?;
        let states = self.engine().progress().await?;
        let with_step = |job: Job| {
            let step = states.get(&step_key(job.id)).and_then(|text| serde_json::from_str(text).ok());
            job_status(job, &step.unwrap_or_default())
        };
        Ok(jobs.into_iter().map(with_step).collect())
    }

    /// The calls of every credential that was used.
    pub async fn budgets(&self) -> Result<Vec<BudgetStatus>> {
        let states = self.engine().progress().await?;
        let used = states.iter().filter_map(|(key, state)| {
            let ledger: Ledger = serde_json::from_str(state).ok()?;
            Some(BudgetStatus {
                credential: key.strip_prefix(CALLS)?.to_owned(),
                since: time(ledger.period_start),
                polls: ledger.polls,
                others: ledger.extras,
                paused_until: (ledger.paused_until > self.now()).then(|| time(ledger.paused_until)),
            })
        });
        Ok(used.collect())
    }

    /// Ends a job; what it has fetched stays.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is none; [`ErrorKind::Conflict`] when it has ended.
    pub async fn cancel(&self, id: Uuid) -> Result<JobStatus> {
        let catalog = self.engine().catalog();
        catalog.job(id).await?;
        if let Some(cancelled) = self.0.known.lock().cancels.get(&id) {
            cancelled.store(true, Ordering::Relaxed);
        }
        if !catalog.end_job(id, JobState::Cancelled, None, time(self.now())).await? {
            return Err(Error::new(ErrorKind::Conflict, format!("job {id} has ended already")));
        }
        let jobs = self.jobs().await?;
        let job = jobs.into_iter().find(|one| one.job.id == id);
        job.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no job {id}")))
    }
}

fn job_status(job: Job, step: &Step) -> JobStatus {
    let progress = match job.state {
        JobState::Done => 1.0,
        _ => (step.calls as f64 / (job.calls_planned.max(1)) as f64).min(1.0),
    };
    JobStatus { job, kind: "backfill", calls: step.calls, readings: step.readings, progress }
}
