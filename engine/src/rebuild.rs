//! Rebuilding a lost catalog from the storage: the journal tells the live files and the fleet.

use std::{
    collections::HashSet,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Serialize;
use wattlake_catalog::{Catalog, CommitRequest, FleetCopy, SnapshotAt};
use wattlake_config::Settings;

use crate::{
    DataDir, Error, ErrorKind, Result, Storage,
    journal::{Journal, Replayed, replay, saved_fleet},
};

/// What a rebuilt catalog holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RebuildReport {
    pub files: usize,
    /// Live rows in them.
    pub rows: u64,
    pub sites: usize,
    pub meters: usize,
    pub energy_sources: usize,
    /// Objects that the journal names and the storage does not have.
    pub missing_objects: Vec<String>,
}

/// Makes the catalog of an archive anew. Earlier and named snapshots, tokens and the deletion of old objects are forgotten;
/// readings in the log are replayed by the next start.
///
/// # Errors
/// [`ErrorKind::Conflict`] when there is a catalog, [`ErrorKind::NotFound`] when the storage has no journal,
/// [`ErrorKind::Corrupt`] naming a damaged record.
pub async fn rebuild_catalog(settings: &Settings) -> Result<RebuildReport> {
    let data_dir = DataDir::acquire(&settings.data_dir.0)?;
    let storage = Storage::open(settings)?;
    let Some(replayed) = replay(&storage).await? else {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("the storage {} has no journal to rebuild a catalog from", storage.data_path()),
        ));
    };
    let fleet = saved_fleet(&storage).await?;
    let key = data_dir.path().join("secrets.key");
    let url = settings.catalog_url();
    let Some(path) = url.strip_prefix("sqlite:") else {
        let catalog = Arc::new(Catalog::open(&url, &key, storage.data_path()).await?);
        let report = fill(&catalog, &storage, fleet, replayed).await;
        catalog.close().await;
        return report;
    };
    let path = PathBuf::from(path.strip_prefix("//").unwrap_or(path));
    if path.exists() {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("there is a catalog at {}; move it away to have it made anew", path.display()),
        ));
    }
    let unfinished = path.with_extension("unfinished");
    for side_file in ["", "-wal", "-shm", "-journal"] {
        remove_if_present(&PathBuf::from(format!("{}{side_file}", unfinished.display())))?;
        // Of the lost catalog: they would be taken for those of the new one.
        remove_if_present(&PathBuf::from(format!("{}{side_file}", path.display())))?;
    }
    let url = format!("sqlite:{}", unfinished.display());
    let catalog = Arc::new(Catalog::open(&url, &key, storage.data_path()).await?);
    let report = fill(&catalog, &storage, fleet, replayed).await;
    catalog.close().await;
    let report = report?;
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::rename(&unfinished, &path)
        .and_then(|()| File::open(folder)?.sync_all())
        .map_err(|error| Error::io("rename", &unfinished, &error))?;
    Ok(report)
}

/// Puts a fleet and files into an empty catalog, and begins its journal.
pub(crate) async fn fill(
    catalog: &Arc<Catalog>,
    storage: &Storage,
    fleet: Option<FleetCopy>,
    replayed: Replayed,
) -> Result<RebuildReport> {
    if !catalog.manifest(SnapshotAt::Latest).await?.files.is_empty() || catalog.wal_checkpoint().await? > 0 {
        return Err(Error::new(
            ErrorKind::Conflict,
            "the catalog is not empty; rebuild into an empty database",
        ));
    }
    let present: HashSet<String> = storage
        .list()
        .await?
        .iter()
        .filter_map(|object| Some(Storage::table_path(&object.location)?.to_owned()))
        .collect();
    let missing_objects = replayed.missing(&present);
    if let Some(fleet) = fleet {
        catalog.restore_fleet(fleet).await?;
    }
    let request = CommitRequest {
        wal_sequence: Some(replayed.wal_sequence),
        message: format!("rebuilt from the journal up to snapshot {}", replayed.snapshot),
        new_files: replayed.files.into_values().collect(),
        ..CommitRequest::default()
    };
    let files = request.new_files.len();
    let rows = request.new_files.iter().map(|f| f.rows - f.delete.as_ref().map_or(0, |d| d.count)).sum();
    let owned = Arc::clone(catalog);
    tokio::spawn(async move { owned.commit(&request).await })
        .await
        .map_err(|error| Error::internal(format!("the commit panicked: {error}")))??;
    Journal::new(storage.clone(), Arc::clone(catalog)).begin_anew().await?;
    let fleet = catalog.fleet();
    Ok(RebuildReport {
        files,
        rows,
        sites: fleet.sites().count(),
        meters: fleet.meters().count(),
        energy_sources: fleet.sources().count(),
        missing_objects,
    })
}

fn remove_if_present(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("delete", path, &error)),
        _ => Ok(()),
    }
}
