//! A change becomes the newest state: in the catalog first, then for the queries of this process.

use std::sync::Arc;

use wattlake_catalog::{CommitRequest, SnapshotId};

use crate::{Result, journal::Journal, series::SeriesId, version::Versions};

/// Commits a change of the current manifest. `flushed` are the latest times that it puts into files, by series. Call it under the flush
/// lock.
///
/// # Errors
/// As [`Journal::publish`]. A change whose commit failed may have happened all the same, when the catalog went away at the
/// wrong moment: the next one fails as stale, and is to be computed again from what was loaded.
pub(crate) async fn publish(
    journal: &Arc<Journal>,
    versions: &Versions,
    request: &CommitRequest,
    flushed: &[(SeriesId, i64)],
) -> Result<SnapshotId> {
    let base = Arc::clone(&versions.current().manifest);
    match journal.publish(&base, request).await {
        Ok(manifest) => {
            let snapshot = manifest.snapshot;
            versions.publish(manifest, flushed, request.wal_sequence.unwrap_or(0));
            Ok(snapshot)
        }
        Err(error) => {
            if let Err(error) = catch_up(journal, versions).await {
                tracing::warn!(%error, "whether the last change happened is not known yet");
            }
            Err(error)
        }
    }
}

/// Loads what the catalog holds when it is newer than what this process knows.
async fn catch_up(journal: &Arc<Journal>, versions: &Versions) -> Result<()> {
    let (manifest, wal_sequence) = journal.newest().await?;
    if manifest.snapshot > versions.current().manifest.snapshot {
        tracing::warn!(snapshot = manifest.snapshot.0, "a change happened although its commit failed");
        versions.catch_up(manifest, wal_sequence);
    }
    Ok(())
}
