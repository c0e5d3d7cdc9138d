//! Backup while the engine writes, and restoring one.
//!
//! A backup is a folder: a copy of the catalog, every object that it names, the key of the sealed secrets, and `backup.json` with
//! the BLAKE3 of each of them. Readings in memory are written out first, so that the log is not needed. While objects are
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
use wattlake_config::Settings;

use crate::{DataDir, Engine, Error, ErrorKind, Result, Storage};

const CATALOG: &str = "catalog.db";
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
    /// [`ErrorKind::Invalid`] for a folder with something in it, and for a catalog on Postgres, which has tools of its own.
    pub async fn backup(self: &Arc<Self>, folder: &Path) -> Result<BackupContents> {
        refuse_contents(folder)?;
        std::fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, &error))?;
        self.flush().await?;
        let _maintenance = self.maintenance_pause().await;
        let snapshot_id = self.versions().current().manifest.snapshot.0;
        let catalog = folder.join(CATALOG);
        self.catalog().copy_to(&catalog).await?;
        // Read after the copy: whatever that names is among these.
        let mut objects: Vec<_> = self.catalog().known_objects().await?.into_iter().collect();
        objects.sort();
        let mut files = vec![describe(folder, CATALOG)?];
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
/// [`ErrorKind::Corrupt`] naming the file that is missing or not what was backed up.
pub async fn restore(settings: &Settings, folder: &Path) -> Result<BackupContents> {
    if settings.catalog_url().starts_with("postgres") {
        return Err(Error::invalid("catalog.url is Postgres; restore its database with pg_restore instead"));
    }
    let data_dir = settings.data_dir.0.clone();
    refuse_contents(&data_dir)?;
    let contents_path = folder.join(CONTENTS);
    let text = std::fs::read(&contents_path).map_err(|error| Error::io("read", &contents_path, &error))?;
    let contents: BackupContents = serde_json::from_slice(&text)
        .map_err(|error| Error::invalid(format!("{} is not a backup: {error}", folder.display())))?;
    if contents.version != VERSION {
        return Err(Error::invalid(format!("backup version {} is not {VERSION}", contents.version)));
    }
    for file in &contents.files {
        let path = inside(folder, &file.path)?;
        let found = std::fs::read(&path)
            .map_err(|error| Error::corrupt(format!("backup file {}: {error}", path.display())))?;
        if found.len() as u64 != file.bytes || blake3::hash(&found).to_hex().as_str() != file.blake3 {
            return Err(Error::corrupt(format!("backup file {} is not what was backed up", path.display())));
        }
    }
    let _lock = DataDir::acquire(&data_dir)?;
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
    Ok(contents)
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
