//! How far something that goes on for long has come.

use crate::{
    Catalog, Result,
    db::{Tx, params},
};

/// A state by its key: the cursor of a source, the calls of a credential, the step of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    pub key: String,
    /// JSON; empty: the key is forgotten.
    pub state: String,
}

impl Catalog {
    /// All that was published with files; what is in the log may be newer.
    pub async fn progress(&self) -> Result<Vec<Progress>> {
        let rows = self.db.rows("SELECT key, state FROM wattlake_progress", params![]).await?;
        rows.iter().map(|row| Ok(Progress { key: row.text(0)?, state: row.text(1)? })).collect()
    }
}

/// Takes over new states.
pub(crate) async fn write(tx: &mut Tx, progress: &[Progress]) -> Result<()> {
    for Progress { key, state } in progress {
        if state.is_empty() {
            tx.execute("DELETE FROM wattlake_progress WHERE key = $1", params![key.as_str()]).await?;
        } else {
            let sql = "INSERT INTO wattlake_progress (key, state) VALUES ($1, $2) \
                       ON CONFLICT (key) DO UPDATE SET state = excluded.state";
            tx.execute(sql, params![key.as_str(), state.as_str()]).await?;
        }
    }
    Ok(())
}
