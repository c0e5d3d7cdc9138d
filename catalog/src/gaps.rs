//! The ledger of gaps: times without a reading where the cadence of a series expects some.

use jiff::{SignedDuration, Timestamp};
use serde::{Serialize, Serializer};
use uuid::Uuid;

use crate::{
    Catalog, EntityId, Result,
    db::{Row, Value, params},
    model::text_enum,
};

text_enum! {
    /// What became of a gap.
    GapState: "gap state" { Open = "open", Filled = "filled", Empty = "empty" }
}

/// A stretch of one series without readings, `from <= ts < to`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Gap {
    pub id: Uuid,
    /// The energy source whose vendor is asked for it; none: nobody can be asked.
    pub source_id: Option<EntityId>,
    pub entity_id: EntityId,
    /// The kind of answer that the vendor gives these readings in; `live` for those that come by themselves.
    pub stream: String,
    pub metric: String,
    pub from: Timestamp,
    pub to: Timestamp,
    pub state: GapState,
    pub found_at: Timestamp,
    /// How often the vendor was asked since.
    pub asked: i64,
    pub asked_at: Timestamp,
    /// Why it is not open any more.
    pub proof: Option<String>,
    /// Seconds between readings, as they were expected.
    #[serde(rename = "cadenceSeconds", serialize_with = "as_seconds")]
    pub cadence: Option<SignedDuration>,
}

fn as_seconds<S: Serializer>(
    cadence: &Option<SignedDuration>,
    to: S,
) -> std::result::Result<S::Ok, S::Error> {
    cadence.map(|cadence| cadence.as_secs_f64()).serialize(to)
}

/// Which gaps are wanted; all of them unless it says so.
#[derive(Clone, Copy, Debug, Default)]
pub struct GapFilter<'a> {
    pub source: Option<EntityId>,
    pub entity: Option<EntityId>,
    pub state: Option<GapState>,
    pub stream: Option<&'a str>,
    /// Those that begin in a span, `from <= ts < to`.
    pub between: Option<(Timestamp, Timestamp)>,
    /// Those that are listed after this one.
    pub after: Option<Uuid>,
}

const COLUMNS: &str = "id, source_id, entity_id, stream, metric, gap_from, gap_to, state, found_at, asked, asked_at, proof, \
                       cadence";

fn gap(row: &Row) -> Result<Gap> {
    Ok(Gap {
        id: row.uuid(0)?,
        source_id: row.opt_uuid(1)?.map(EntityId),
        entity_id: EntityId(row.uuid(2)?),
        stream: row.text(3)?,
        metric: row.text(4)?,
        from: row.time(5)?,
        to: row.time(6)?,
        state: row.text(7)?.parse()?,
        found_at: row.time(8)?,
        asked: row.int(9)?,
        asked_at: row.time(10)?,
        proof: row.opt_text(11)?,
        cadence: row.opt_int(12)?.map(SignedDuration::from_micros),
    })
}

impl Catalog {
    /// The newest gaps first, at most `limit` of them.
    pub async fn gaps(&self, filter: &GapFilter<'_>, limit: i64) -> Result<Vec<Gap>> {
        let mut conditions = vec!["TRUE".to_owned()];
        let mut values = Vec::new();
        let mut given = |condition: &str, value: Value| {
            values.push(value);
            conditions.push(condition.replace('?', &format!("${}", values.len())));
        };
        if let Some(source) = filter.source {
            given("source_id = ?", source.into());
        }
        if let Some(entity) = filter.entity {
            given("entity_id = ?", entity.into());
        }
        if let Some(state) = filter.state {
            given("state = ?", state.as_str().into());
        }
        if let Some(stream) = filter.stream {
            given("stream = ?", stream.into());
        }
        if let Some((from, to)) = filter.between {
            given("gap_from >= ?", from.into());
            given("gap_from < ?", to.into());
        }
        if let Some(after) = filter.after {
            // The order of the list: from the newest on, and by id where several begin together.
            given(
                "EXISTS (SELECT 1 FROM wattlake_gap last WHERE last.id = ? AND (wattlake_gap.gap_from < last.gap_from \
                 OR (wattlake_gap.gap_from = last.gap_from AND wattlake_gap.id > last.id)))",
                after.into(),
            );
        }
        values.push(limit.into());
        let sql = format!(
            "SELECT {COLUMNS} FROM wattlake_gap WHERE {} ORDER BY gap_from DESC, id LIMIT ${}",
            conditions.join(" AND "),
            values.len()
        );
        self.db.rows(&sql, values).await?.iter().map(gap).collect()
    }

    /// Whether there is such a gap.
    pub async fn has_gap(&self, id: Uuid) -> Result<bool> {
        Ok(self.db.row("SELECT id FROM wattlake_gap WHERE id = $1", params![id]).await?.is_some())
    }

    /// Puts gaps into the ledger, or the newer state of gaps that are there.
    pub async fn save_gaps(&self, gaps: &[Gap]) -> Result<()> {
        let sql = format!(
            "INSERT INTO wattlake_gap ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) \
             ON CONFLICT (id) DO UPDATE SET gap_from = excluded.gap_from, gap_to = excluded.gap_to, state = excluded.state, \
             asked = excluded.asked, asked_at = excluded.asked_at, proof = excluded.proof, cadence = excluded.cadence"
        );
        let mut tx = self.begin().await?;
        for gap in gaps {
            let params = params![
                gap.id,
                gap.source_id,
                gap.entity_id,
                gap.stream.as_str(),
                gap.metric.as_str(),
                gap.from,
                gap.to,
                gap.state.as_str(),
                gap.found_at,
                gap.asked,
                gap.asked_at,
                gap.proof.clone(),
                gap.cadence.map(|cadence| cadence.as_micros() as i64)
            ];
            tx.execute(&sql, params).await?;
        }
        tx.commit().await
    }

    /// Forgets gaps that were closed and lie before a time.
    pub async fn forget_closed_gaps(&self, before: Timestamp) -> Result<u64> {
        let mut tx = self.begin().await?;
        let sql = "DELETE FROM wattlake_gap WHERE state <> 'open' AND gap_to < $1";
        let gone = tx.execute(sql, params![before]).await?;
        tx.commit().await?;
        Ok(gone)
    }
}
