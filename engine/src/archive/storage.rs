//! Where objects are: a local directory with our own durable put, or an S3-compatible store.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{
    ClientOptions, ObjectMeta, ObjectStore, ObjectStoreExt, PutPayload, aws::AmazonS3Builder,
    local::LocalFileSystem, path::Path as ObjectPath, prefix::PrefixStore,
};
use wattlake_catalog::StoredFile;
use wattlake_config::Settings;

use wattlake_catalog::{failpoint, seeded_bug};

use crate::{Error, ErrorKind, Result};

/// The table's folder below the storage root.
const TABLE_DIR: &str = "measurements";

/// Which kind of storage it is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum StorageKind {
    Local { root: PathBuf },
    S3,
}

/// The archive's objects.
#[derive(Clone, Debug)]
pub struct Storage {
    kind: StorageKind,
    store: Arc<dyn ObjectStore>,
    data_path: String,
}

impl Storage {
    /// Opens the storage that the settings name; a local directory is created.
    ///
    /// # Errors
    /// A directory that cannot be made, or an S3 address or credentials that make no sense.
    pub fn open(settings: &Settings) -> Result<Self> {
        let url = &settings.storage.url;
        if let Some(rest) = url.strip_prefix("s3://") {
            return Self::open_s3(rest, settings);
        }
        let root = match url.strip_prefix("file://") {
            Some(path) => PathBuf::from(path),
            None if url.is_empty() => settings.data_dir.0.join("lake"),
            None => PathBuf::from(url),
        };
        Self::open_local(root)
    }

    /// A local directory, which is created.
    pub(crate) fn open_local(root: PathBuf) -> Result<Self> {
        fs::create_dir_all(root.join(TABLE_DIR)).map_err(|error| Error::io("create", &root, &error))?;
        let root = root.canonicalize().map_err(|error| Error::io("resolve", &root, &error))?;
        let store = LocalFileSystem::new_with_prefix(&root)?;
        let data_path = format!("file://{}/", root.display());
        Ok(Self { kind: StorageKind::Local { root }, store: Arc::new(store), data_path })
    }

    fn open_s3(rest: &str, settings: &Settings) -> Result<Self> {
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_matches('/');
        let s3 = &settings.storage.s3;
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_client_options(ClientOptions::new().with_allow_http(s3.allow_http));
        for (value, apply) in [
            (&s3.endpoint, AmazonS3Builder::with_endpoint as fn(AmazonS3Builder, String) -> AmazonS3Builder),
            (&s3.region, AmazonS3Builder::with_region),
            (&s3.access_key, AmazonS3Builder::with_access_key_id),
            (&s3.secret_key, AmazonS3Builder::with_secret_access_key),
        ] {
            if !value.is_empty() {
                builder = apply(builder, value.clone());
            }
        }
        let store =
            builder.build().map_err(|error| Error::invalid(format!("storage.url s3://{rest}: {error}")))?;
        let data_path = match prefix {
            "" => format!("s3://{bucket}/"),
            prefix => format!("s3://{bucket}/{prefix}/"),
        };
        let store: Arc<dyn ObjectStore> = match prefix {
            "" => Arc::new(store),
            prefix => Arc::new(PrefixStore::new(store, prefix)),
        };
        Ok(Self { kind: StorageKind::S3, store, data_path })
    }

    /// The same objects behind a store that fails once; everything goes through the store then.
    #[cfg(test)]
    pub(crate) fn with_fault(self, fault: super::faulty::Fault) -> Self {
        let store = Arc::new(super::faulty::FaultyStore { inner: self.store, fault });
        Self { kind: StorageKind::S3, store, ..self }
    }

    /// The root as outside readers address it, ending in `/`.
    pub fn data_path(&self) -> &str {
        &self.data_path
    }

    /// The store for reading; object paths come from [`Storage::object_path`].
    pub fn object_store(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.store)
    }

    /// The object of a file whose path is relative to the table.
    pub fn object_path(stored: &StoredFile) -> ObjectPath {
        ObjectPath::from(Self::root_path(&stored.path))
    }

    /// A new, never used path of a data file of a UTC month, relative to the table.
    pub(crate) fn new_data_path(month: &str) -> String {
        format!("month={month}/{}.parquet", uuid::Uuid::now_v7().simple())
    }

    /// A new, never used path of a delete file, outside of what people glob for data.
    pub(crate) fn new_delete_path() -> String {
        format!("_deletes/{}.parquet", uuid::Uuid::now_v7().simple())
    }

    /// The path of an object of the table, relative to the table.
    pub(crate) fn table_path(object: &ObjectPath) -> Option<&str> {
        object.as_ref().strip_prefix(TABLE_DIR)?.strip_prefix('/')
    }

    /// The path relative to the root of an object whose path is relative to the table.
    pub(crate) fn root_path(path: &str) -> String {
        format!("{TABLE_DIR}/{path}")
    }

    /// Writes an object of the table so that it survives a power cut before this returns (MAN-1).
    pub(crate) async fn put(&self, path: &str, bytes: Bytes) -> Result<()> {
        self.put_at(&Self::root_path(path), bytes).await
    }

    /// As [`Storage::put`], with a path relative to the root.
    pub(crate) async fn put_at(&self, path: &str, bytes: Bytes) -> Result<()> {
        match &self.kind {
            StorageKind::Local { root } => {
                let path = root.join(path);
                let root = root.clone();
                tokio::task::spawn_blocking(move || put_durably(&root, &path, &bytes))
                    .await
                    .map_err(|error| Error::internal(format!("writing a file panicked: {error}")))?
            }
            StorageKind::S3 => {
                // Unique names and overwrite: retried puts cannot meet another object (idempotent).
                let path = ObjectPath::from(path);
                let put = self.store.put(&path, PutPayload::from_bytes(bytes)).await;
                // Whatever it is, a missing bucket included: the readings stay in the log and it is tried again.
                put.map(drop).map_err(|error| {
                    Error::new(
                        ErrorKind::Unavailable,
                        format!("object storage: cannot write {path}: {error}"),
                    )
                })
            }
        }
    }

    /// Writes an object of a local storage that a crash may lose.
    pub(crate) fn put_unsynced(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let StorageKind::Local { root } = &self.kind else {
            return Err(Error::internal("only local storage takes unsynced objects"));
        };
        let path = root.join(TABLE_DIR).join(path);
        let folder = path.parent().unwrap_or(root);
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&path, bytes))
            .map_err(|error| Error::io("write", &path, &error))
    }

    /// Deletes an object; one that is not there is fine. Deleting is done again when it was not, so nothing is synced.
    pub(crate) async fn delete(&self, path: &ObjectPath) -> Result<()> {
        match self.store.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(Error::new(
                ErrorKind::Unavailable,
                format!("object storage: cannot delete {path}: {error}"),
            )),
        }
    }

    /// The data and delete files of the table with their sizes and times of writing; a Delta log beside them is left out.
    pub(crate) async fn list(&self) -> Result<Vec<ObjectMeta>> {
        let mut objects = self.list_in(TABLE_DIR).await?;
        objects.retain(|object| {
            Self::table_path(&object.location).is_some_and(|path| !path.starts_with("_delta_log/"))
        });
        Ok(objects)
    }

    /// All objects below a folder of the root.
    pub(crate) async fn list_in(&self, folder: &str) -> Result<Vec<ObjectMeta>> {
        let prefix = ObjectPath::from(folder);
        let listed: Result<Vec<_>, _> = self.store.list(Some(&prefix)).try_collect().await;
        listed.map_err(|error| {
            Error::new(ErrorKind::Unavailable, format!("object storage: cannot list: {error}"))
        })
    }

    /// Reads an object whose path is relative to the root; `None` when it is not there.
    pub(crate) async fn read_if_present(&self, path: &str) -> Result<Option<Bytes>> {
        match self.store.get(&ObjectPath::from(path)).await {
            Ok(found) => Ok(Some(found.bytes().await?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads a whole object and checks its hash.
    pub(crate) async fn read_whole(&self, stored: &StoredFile) -> Result<Bytes> {
        let bytes = self.store.get(&Self::object_path(stored)).await?.bytes().await?;
        let found = blake3::hash(&bytes).to_hex();
        if found.as_str() != stored.blake3 {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("file {}: hash mismatch, expected {}, found {found}", stored.path, stored.blake3),
            ));
        }
        Ok(bytes)
    }

    /// Removes what a crash left of unfinished local writes.
    pub(crate) fn remove_unfinished(&self) -> Result<usize> {
        let StorageKind::Local { root } = &self.kind else { return Ok(0) };
        let mut removed = 0;
        let mut folders = vec![root.join(TABLE_DIR)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).map_err(|error| Error::io("read", &folder, &error))? {
                let path = entry.map_err(|error| Error::io("read", &folder, &error))?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|ext| ext == UNFINISHED) {
                    fs::remove_file(&path).map_err(|error| Error::io("delete", &path, &error))?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }
}

const UNFINISHED: &str = "unfinished";

/// Temporary name, write, fsync, rename, fsync of every folder up to the root: object_store's local store syncs
/// nothing.
fn put_durably(root: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    let unfinished = path.with_extension(UNFINISHED);
    let write = || {
        let folder = path.parent().unwrap_or(root);
        fs::create_dir_all(folder)?;
        let mut file = File::create(&unfinished)?;
        file.write_all(&bytes[..bytes.len() / 2])?;
        failpoint!("put.mid_write");
        file.write_all(&bytes[bytes.len() / 2..])?;
        failpoint!("put.before_fsync");
        if !seeded_bug!("bug.put_no_sync") {
            file.sync_all()?;
        }
        failpoint!("put.after_fsync_before_rename");
        fs::rename(&unfinished, path)?;
        failpoint!("put.after_rename_before_dirsync");
        for folder in path.ancestors().skip(1).take_while(|folder| folder.starts_with(root)) {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&unfinished);
        Error::io("write", path, &error)
    })
}
