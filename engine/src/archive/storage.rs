//! Where objects are: a local directory with our own durable put, or an S3-compatible store.

mod breaker;
mod cache;
mod local;
mod remote;
mod spool;

use std::{fs, ops::Range, path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{
    ObjectMeta, ObjectStore, ObjectStoreExt, local::LocalFileSystem, path::Path as ObjectPath,
};
use wattlake_catalog::StoredFile;
use wattlake_config::Settings;

use self::{local::put_durably, remote::Remote};
use crate::{Error, ErrorKind, Result};

/// The table's folder below the storage root.
const TABLE_DIR: &str = "measurements";

#[derive(Clone, Debug)]
enum Backend {
    Local { root: PathBuf, store: Arc<dyn ObjectStore> },
    Remote(Arc<Remote>),
}

/// The archive's objects.
#[derive(Clone, Debug)]
pub struct Storage {
    backend: Backend,
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
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let prefix = prefix.trim_matches('/');
            let data_path = match prefix {
                "" => format!("s3://{bucket}/"),
                prefix => format!("s3://{bucket}/{prefix}/"),
            };
            let store = remote::s3_store(bucket, prefix, settings)?;
            let backend = Backend::Remote(Arc::new(Remote::open(store, settings)?));
            return Ok(Self { backend, data_path });
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
        Ok(Self { backend: Backend::Local { root, store: Arc::new(store) }, data_path })
    }

    /// The same objects behind a store that fails once; everything goes through the store then.
    #[cfg(test)]
    pub(crate) fn with_fault(self, fault: super::faulty::Fault) -> Self {
        let Backend::Local { store, .. } = self.backend else { return self };
        let store = Arc::new(super::faulty::FaultyStore { inner: store, fault });
        Self { backend: Backend::Remote(Arc::new(Remote::bare(store))), ..self }
    }

    /// The root as outside readers address it, ending in `/`.
    pub fn data_path(&self) -> &str {
        &self.data_path
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
        match &self.backend {
            Backend::Local { root, .. } => {
                let (root, path) = (root.clone(), root.join(path));
                tokio::task::spawn_blocking(move || put_durably(&root, &path, &bytes))
                    .await
                    .map_err(|error| Error::internal(format!("writing a file panicked: {error}")))?
            }
            Backend::Remote(remote) => remote.put(path, bytes).await,
        }
    }

    /// Deletes an object; one that is not there is fine. Deleting is done again when it was not, so nothing is synced.
    pub(crate) async fn delete(&self, path: &ObjectPath) -> Result<()> {
        match &self.backend {
            Backend::Local { store, .. } => match store.delete(path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => {
                    Err(Error::new(ErrorKind::Unavailable, format!("cannot delete {path}: {error}")))
                }
            },
            Backend::Remote(remote) => remote.delete(path.as_ref()).await,
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
        match &self.backend {
            Backend::Local { store, .. } => {
                let listed = store.list(Some(&ObjectPath::from(folder))).try_collect().await;
                listed.map_err(|error| {
                    Error::new(ErrorKind::Unavailable, format!("cannot list {folder}: {error}"))
                })
            }
            Backend::Remote(remote) => remote.list(folder).await,
        }
    }

    /// Reads an object whose path is relative to the root; `None` when it is not there.
    pub(crate) async fn read_if_present(&self, path: &str) -> Result<Option<Bytes>> {
        match self.whole(path, None).await {
            Ok(found) => Ok(Some(found)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads a whole object and checks its hash.
    pub(crate) async fn read_whole(&self, stored: &StoredFile) -> Result<Bytes> {
        let bytes = self.whole(&Self::root_path(&stored.path), Some(stored.bytes)).await?;
        let found = blake3::hash(&bytes).to_hex();
        if found.as_str() != stored.blake3 {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("file {}: hash mismatch, expected {}, found {found}", stored.path, stored.blake3),
            ));
        }
        Ok(bytes)
    }

    async fn whole(&self, path: &str, size: Option<u64>) -> object_store::Result<Bytes> {
        match &self.backend {
            Backend::Local { store, .. } => store.get(&ObjectPath::from(path)).await?.bytes().await,
            Backend::Remote(remote) => remote.read_whole(path, size).await,
        }
    }

    /// Ranges of an object as they are stored, nothing of them checked. `size`: of the object, when it
    /// is known and parts may be cached.
    pub(super) async fn read_ranges(
        &self,
        path: &ObjectPath,
        ranges: &[Range<u64>],
        size: Option<u64>,
    ) -> object_store::Result<Vec<Bytes>> {
        match &self.backend {
            Backend::Local { root, store } => {
                let are_within = size.is_some_and(|size| ranges.iter().all(|range| range.end <= size));
                let cached = || local::read_cached(&root.join(path.as_ref()), ranges);
                match are_within.then(cached).flatten() {
                    Some(cached) => Ok(cached),
                    None => store.get_ranges(path, ranges).await,
                }
            }
            Backend::Remote(remote) => remote.read_ranges(path.as_ref(), ranges, size).await,
        }
    }

    /// Forgets what is cached of a range; `false` when nothing is ever cached.
    pub(super) fn drop_cached(&self, path: &ObjectPath, range: &Range<u64>) -> bool {
        match &self.backend {
            Backend::Local { .. } => false,
            Backend::Remote(remote) => {
                remote.drop_cached(path.as_ref(), range);
                true
            }
        }
    }

    /// Uploads what an object store did not take before.
    pub(crate) async fn upload_spooled(&self) -> Result<()> {
        match &self.backend {
            Backend::Local { .. } => Ok(()),
            Backend::Remote(remote) => remote.upload_spooled().await,
        }
    }

    /// Bytes that wait for the object store.
    pub(crate) fn spooled_bytes(&self) -> u64 {
        match &self.backend {
            Backend::Local { .. } => 0,
            Backend::Remote(remote) => remote.spooled_bytes(),
        }
    }

    /// Removes what a crash left of unfinished local writes.
    pub(crate) fn remove_unfinished(&self) -> Result<usize> {
        match &self.backend {
            Backend::Local { root, .. } => local::remove_unfinished(root.clone()),
            Backend::Remote(_) => Ok(0),
        }
    }
}
