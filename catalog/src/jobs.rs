//! Jobs: long work that somebody asked for, such as fetching years of history.

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::{
    Catalog, EntityId, Error, Result,
    db::{Row, params},
    model::text_enum,
};

text_enum! {
    /// How a job stands.
    JobState: "job state" { Running = "running", Done = "done", Failed = "failed", Cancelled = "cancelled" }
}

/// The backfill of a source, `from <= ts < to`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    pub id: Uuid,
    pub source_id: EntityId,
    pub from: Timestamp,
    pub to: Timestamp,
    pub state: JobState,
    /// Calls that it was expected to take.
    pub calls_planned: i64,
    pub error: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

const COLUMNS: &str = "id, source_id, job_from, job_to, state, calls_planned, error, created_at, updated_at";

fn job(row: &Row) -> Result<Job> {
    Ok(Job {
        id: row.uuid(0)?,
        source_id: EntityId(row.uuid(1)?),
        from: row.time(2)?,
        to: row.time(3)?,
        state: row.text(4)?.parse()?,
        calls_planned: row.int(5)?,
        error: row.opt_text(6)?,
        created_at: row.time(7)?,
        updated_at: row.time(8)?,
    })
}

impl Catalog {
    /// All jobs, the newest first.
    pub async fn jobs(&self) -> Result<Vec<Job>> {
        let sql = format!("SELECT {COLUMNS} FROM wattlake_job ORDER BY created_at DESC, id");
        self.db.rows(&sql, params![]).await?.iter().map(job).collect()
    }

    pub async fn job(&self, id: Uuid) -> Result<Job> {
        let sql = format!("SELECT {COLUMNS} FROM wattlake_job WHERE id = $1");
        let row = self.db.row(&sql, params![id]).await?;
        row.as_ref().map_or_else(|| Err(Error::not_found(format!("no job {id}"))), job)
    }

    pub async fn create_job(&self, job: &Job) -> Result<()> {
        let sql = format!("INSERT INTO wattlake_job ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)");
        let params = params![
            job.id,
            job.source_id,
            job.from,
            job.to,
            job.state.as_str(),
            job.calls_planned,
            job.error.clone(),
            job.created_at,
            job.updated_at
        ];
        let mut tx = self.begin().await?;
        tx.execute(&sql, params).await?;
        tx.commit().await
    }

    /// Ends a running job; one that has ended stays as it is. Answers whether it was running.
    pub async fn end_job(
        &self,
        id: Uuid,
        state: JobState,
        error: Option<&str>,
        now: Timestamp,
    ) -> Result<bool> {
        let sql = "UPDATE wattlake_job SET state = $2, error = $3, updated_at = $4 WHERE id = $1 AND state = 'running'";
        let mut tx = self.begin().await?;
        let changed = tx.execute(sql, params![id, state.as_str(), error, now]).await?;
        tx.commit().await?;
        Ok(changed == 1)
    }
}
