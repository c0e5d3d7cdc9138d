//! Backup while the engine writes, and restoring one.
//!
//! A backup is a folder: a copy of the catalog, every object that it names, the key of the sealed secrets, and `backup.json` with
//! the BLAKE3 of each of them. Of a catalog on Postgres it holds the newest state and the fleet, as a document that any catalog
//! can be made of; tokens and earlier snapshots are `pg_dump`'s business. Readings in memory are written out first, so that the log is not needed. While objects are
//! copied maintenance waits: nothing that the copied catalog names goes away.

use std::{
    fs::File,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use wattlake_catalog::{Catalog, FleetCopy};
use wattlake_config::Settings;

use crate::{
    DataDir, Engine, Error, ErrorKind, Result, Storage,
    journal::{Journal, Replayed},
    rebuild,
};

const CATALOG: &str = "catalog.db";
const CATALOG_DOCUMENT: &str = "catalog.json";
const SECRETS: &str = "secrets.key";
const CONTENTS: &str = "backup.json";
const OBJECTS: &str = "lake";
const VERSION: u32 = 1;

/// What a backup holds: the text of `backup.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackupContents {
    pub version: u32,
    pub created_at: jiff::Timestamp,
    /// The newest state in it.
    pub snapshot_id: i64,
    pub files: Vec<BackupFile>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupFile {
    /// Relative to the backup, with `/`.
    pub path: String,
    pub bytes: u64,
    pub blake3: String,
}

impl BackupContents {
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

impl Engine {
    /// Copies everything that was acknowledged before the call into a folder that is new or empty.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a folder with something in it.
    pub async fn backup(self: &Arc<Self>, folder: &Path) -> Result<BackupContents> {
        refuse_contents(folder)?;
        std::fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, &error))?;
        self.flush().await?;
        let _maintenance = self.maintenance_pause().await;
        let snapshot_id = self.versions().current().manifest.snapshot.0;
        let (catalog, mut objects) = if is_postgres(self.settings()) {
            let document = CatalogDocument {
                fleet: self.catalog().copy_fleet().await?,
                state: Replayed::of(
                    &self.versions().current().manifest,
                    self.catalog().wal_checkpoint().await?,
                ),
            };
            let text = serde_json::to_vec_pretty(&document)
                .map_err(|error| Error::internal(format!("backup of the catalog: {error}")))?;
            (write(folder, CATALOG_DOCUMENT, &text, 0o600)?, document.state.objects())
        } else {
            self.catalog().copy_to(&folder.join(CATALOG)).await?;
            // Read after the copy: whatever that names is among these.
            let objects = self.catalog().known_objects().await?;
            (describe(folder, CATALOG)?, objects.into_iter().collect())
        };
        objects.sort();
        let mut files = vec![catalog];
        for path in objects {
            // What is only scheduled for deletion may be gone.
            let Some(bytes) = self.storage().read_if_present(&path).await? else { continue };
            files.push(write(folder, &format!("{OBJECTS}/{path}"), &bytes, 0o600)?);
        }
        let secrets = self.settings().data_dir.0.join(SECRETS);
        let key = std::fs::read(&secrets).map_err(|error| Error::io("read", &secrets, &error))?;
        files.push(write(folder, SECRETS, &key, 0o600)?);
        let created_at = jiff::Timestamp::from_microsecond(self.clock().now_micros()).unwrap_or_default();
        let contents = BackupContents { version: VERSION, created_at, snapshot_id, files };
        let text = serde_json::to_vec_pretty(&contents)
            .map_err(|error| Error::internal(format!("backup contents: {error}")))?;
        // Last: a backup without it is none.
        write(folder, CONTENTS, &text, 0o600)?;
        Ok(contents)
    }
}

/// Puts a backup in place of a data directory that is new or empty, and its objects into the storage of the settings.
/// Everything is checked before anything is written.
///
/// # Errors
/// [`ErrorKind::Corrupt`] naming the file that is missing or not what was backed up; [`ErrorKind::Invalid`] for a backup of
/// SQLite where the settings name Postgres.
pub async fn restore(settings: &Settings, folder: &Path) -> Result<BackupContents> {
    let data_dir = settings.data_dir.0.clone();
    refuse_contents(&data_dir)?;
    let contents_path = folder.join(CONTENTS);
    let text = std::fs::read(&contents_path).map_err(|error| Error::io("read", &contents_path, &error))?;
    let contents: BackupContents = serde_json::from_slice(&text)
        .map_err(|error| Error::invalid(format!("{} is not a backup: {error}", folder.display())))?;
    if contents.version != VERSION {
        return Err(Error::invalid(format!("backup version {} is not {VERSION}", contents.version)));
    }
    if is_postgres(settings) && contents.files.iter().any(|file| file.path == CATALOG) {
        return Err(Error::invalid(
            "the backup is of a catalog on SQLite: restore it without catalog.url, which then stays SQLite",
        ));
    }
    for file in &contents.files {
        let path = inside(folder, &file.path)?;
        let found = std::fs::read(&path)
            .map_err(|error| Error::corrupt(format!("backup file {}: {error}", path.display())))?;
        if found.len() as u64 != file.bytes || blake3::hash(&found).to_hex().as_str() != file.blake3 {
            return Err(Error::corrupt(format!("backup file {} is not what was backed up", path.display())));
        }
    }
    let lock = DataDir::acquire(&data_dir)?;
    let storage = Storage::open(settings)?;
    let objects = format!("{OBJECTS}/measurements/");
    for file in &contents.files {
        let source = inside(folder, &file.path)?;
        let bytes = std::fs::read(&source).map_err(|error| Error::io("read", &source, &error))?;
        match file.path.strip_prefix(&objects) {
            Some(object) => storage.put(object, Bytes::from(bytes)).await?,
            None => write(&data_dir, &file.path, &bytes, 0o600).map(drop)?,
        }
    }
    let key = lock.path().join(SECRETS);
    let catalog = Arc::new(Catalog::open(&settings.catalog_url(), &key, storage.data_path()).await?);
    let done = match std::fs::read(lock.path().join(CATALOG_DOCUMENT)) {
        Ok(text) => fill_catalog(&catalog, &storage, &text).await,
        // A journal that is there already is of another history.
        Err(_) => Journal::new(storage, Arc::clone(&catalog)).begin_anew().await,
    };
    catalog.close().await;
    done?;
    let _ = std::fs::remove_file(lock.path().join(CATALOG_DOCUMENT));
    Ok(contents)
}

/// A catalog as a document.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CatalogDocument {
    fleet: FleetCopy,
    state: Replayed,
}

async fn fill_catalog(catalog: &Arc<Catalog>, storage: &Storage, text: &[u8]) -> Result<()> {
    let CatalogDocument { fleet, state } = serde_json::from_slice(text)
        .map_err(|error| Error::corrupt(format!("backup file {CATALOG_DOCUMENT}: {error}")))?;
    rebuild::fill(catalog, storage, Some(fleet), state).await.map(drop)
}

fn is_postgres(settings: &Settings) -> bool {
    settings.catalog_url().starts_with("postgres")
}

fn refuse_contents(folder: &Path) -> Result<()> {
    let is_empty = match std::fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        Err(error) => return Err(Error::io("read", folder, &error)),
    };
    if is_empty {
        return Ok(());
    }
    Err(Error::invalid(format!("{} is not empty; name a new folder", folder.display())))
}

/// A path of a backup as a path below its folder; nothing leads out of it.
fn inside(folder: &Path, path: &str) -> Result<PathBuf> {
    let relative = Path::new(path);
    if relative.components().all(|part| matches!(part, Component::Normal(_))) && !path.is_empty() {
        return Ok(folder.join(relative));
    }
    Err(Error::new(ErrorKind::Corrupt, format!("backup file `{path}` lies outside of the backup")))
}

fn write(folder: &Path, path: &str, bytes: &[u8], mode: u32) -> Result<BackupFile> {
    let target = inside(folder, path)?;
    let parent = target.parent().unwrap_or(folder);
    let put = || {
        std::fs::create_dir_all(parent)?;
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&target)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        File::open(parent)?.sync_all()
    };
    put().map_err(|error: std::io::Error| Error::io("write", &target, &error))?;
    describe(folder, path)
}

/// Reads a file back: the hash is that of what is on disk.
fn describe(folder: &Path, path: &str) -> Result<BackupFile> {
    let target = inside(folder, path)?;
    let bytes = std::fs::read(&target).map_err(|error| Error::io("read", &target, &error))?;
    let blake3 = blake3::hash(&bytes).to_hex().to_string();
    Ok(BackupFile { path: path.to_owned(), bytes: bytes.len() as u64, blake3 })
}
