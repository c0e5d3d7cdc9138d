//! OAuth tokens that vendors give out and replace; sealed like the secrets of metadata.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Catalog, EnergySource, EntityId, Error, Result, db::params};

/// What lets a client ask for data on somebody's behalf.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Grant {
    pub access_token: String,
    /// The one that the next refresh needs: vendors replace it with each.
    pub refresh_token: String,
    /// Microseconds since 1970 UTC.
    pub expires_at: i64,
}

impl std::fmt::Debug for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grant").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

/// Whom a sealed grant belongs to: it does not open under another name.
fn owner(id: &str) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("wattlake/grant/{id}").as_bytes())
}

impl Catalog {
    /// The newest tokens of a grant.
    pub async fn grant(&self, id: &str) -> Result<Option<Grant>> {
        let row = self.db.row("SELECT sealed FROM wattlake_grant WHERE id = $1", params![id]).await?;
        let Some(row) = row else { return Ok(None) };
        let text = self.key.open(&row.text(0)?, owner(id), "grant")?;
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|_| Error::internal(format!("the grant {id} in the catalog cannot be read")))
    }

    /// Keeps new tokens, durably when this returns.
    pub async fn save_grant(&self, id: &str, grant: &Grant) -> Result<()> {
        let text = serde_json::to_string(grant)
            .map_err(|_| Error::internal(format!("the grant {id} cannot be written as JSON")))?;
        let sealed = self.key.seal(&text, owner(id), "grant")?;
        let sql = "INSERT INTO wattlake_grant (id, sealed, updated_at) VALUES ($1, $2, $3) \
                   ON CONFLICT (id) DO UPDATE SET sealed = excluded.sealed, updated_at = excluded.updated_at";
        let mut tx = self.begin().await?;
        tx.execute(sql, params![id, sealed, Timestamp::now()]).await?;
        tx.commit().await
    }

    /// An energy source with its secrets in plain text.
    ///
    /// # Errors
    /// When there is no such source, or a secret does not open with this data directory's key.
    pub async fn source_with_secrets(&self, id: EntityId) -> Result<EnergySource> {
        let fleet = self.fleet();
        let source = fleet.source(id).ok_or_else(|| Error::not_found(format!("no energy source {id}")))?;
        let mut source = source.clone();
        let row = self.db.row("SELECT metadata FROM energy_sources WHERE id = $1", params![id]).await?;
        let row = row.ok_or_else(|| Error::not_found(format!("no energy source {id}")))?;
        let serde_json::Value::Object(mut metadata) = row.json(0)? else {
            return Err(Error::internal(format!("the metadata of {id} is not an object")));
        };
        self.key.open_metadata(&mut metadata, id.0)?;
        source.metadata = metadata;
        Ok(source)
    }
}
