//! The ledger of gaps: times without a reading where the cadence of a series expects some.

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::{
    Catalog, EntityId, Result,
    db::{Row, params},
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
    pub source_id: EntityId,
    pub entity_id: EntityId,
    /// The kind of answer that the vendor gives these readings in.
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
}

const COLUMNS: &str =
    "id, source_id, entity_id, stream, metric, gap_from, gap_to, state, found_at, asked, asked_at, proof";

fn gap(row: &Row) -> Result<Gap> {
    Ok(Gap {
        id: row.uuid(0)?,
        source_id: EntityId(row.uuid(1)?),
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
    })
}

impl Catalog {
    /// The newest gaps first, at most `limit` of them; of one source or of all.
    pub async fn gaps(
        &self,
        source: Option<EntityId>,
        state: Option<GapState>,
        limit: i64,
    ) -> Result<Vec<Gap>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM wattlake_gap WHERE (source_id = $1 OR $2) AND (state = $3 OR $4) \
             ORDER BY gap_from DESC, id LIMIT $5"
        );
        let params = params![
            source.unwrap_or(EntityId(Uuid::nil())),
            source.is_none(),
            state.map_or("", GapState::as_str),
            state.is_none(),
            limit
        ];
        self.db.rows(&sql, params).await?.iter().map(gap).collect()
    }

    /// Puts gaps into the ledger, or the newer state of gaps that are there.
    pub async fn save_gaps(&self, gaps: &[Gap]) -> Result<()> {
        let sql = format!(
            "INSERT INTO wattlake_gap ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) \
             ON CONFLICT (id) DO UPDATE SET gap_from = excluded.gap_from, gap_to = excluded.gap_to, state = excluded.state, \
             asked = excluded.asked, asked_at = excluded.asked_at, proof = excluded.proof"
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
                gap.proof.clone()
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
