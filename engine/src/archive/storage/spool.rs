//! The spool: objects on local disk that wait for the object store to take them.
//!
//! An object in it is durable and read from it; other readers of the archive find it when it is uploaded. Order is kept: what was
//! spooled first is uploaded first.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::local::put_durably;
use crate::{Error, ErrorKind, Result};

#[derive(Debug)]
struct Entry {
    bytes: u64,
    /// Order of arrival; also says whether an object was replaced while it was uploaded.
    turn: u64,
}

#[derive(Debug, Default)]
struct Entries {
    by_path: BTreeMap<String, Entry>,
    bytes: u64,
    next_turn: u64,
}

#[derive(Debug)]
pub(super) struct Spool {
    root: PathBuf,
    bytes_max: u64,
    entries: Mutex<Entries>,
    /// Held while files appear and disappear, so that each entry has its file.
    files: tokio::sync::Mutex<()>,
}

impl Spool {
    /// Opens a spool with what an earlier process left in it.
    pub(super) fn open(root: PathBuf, bytes_max: u64) -> Result<Self> {
        fs::create_dir_all(&root).map_err(|error| Error::io("create", &root, &error))?;
        let mut found: Vec<(SystemTime, String, u64)> = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).map_err(|error| Error::io("read", &folder, &error))? {
                let path = entry.map_err(|error| Error::io("read", &folder, &error))?.path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let meta = fs::metadata(&path).map_err(|error| Error::io("read", &path, &error))?;
                let name = path.strip_prefix(&root).ok().and_then(Path::to_str).map(str::to_owned);
                match name {
                    Some(name) if !super::local::is_unfinished(&path) => {
                        found.push((meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), name, meta.len()));
                    }
                    _ => fs::remove_file(&path).map_err(|error| Error::io("delete", &path, &error))?,
                }
            }
        }
        found.sort();
        let mut entries = Entries::default();
        for (_, path, bytes) in found {
            let turn = entries.next_turn;
            entries.next_turn += 1;
            entries.bytes += bytes;
            entries.by_path.insert(path, Entry { bytes, turn });
        }
        Ok(Self { root, bytes_max, entries: Mutex::new(entries), files: tokio::sync::Mutex::new(()) })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.entries.lock().bytes
    }

    pub(super) fn holds(&self, path: &str) -> bool {
        self.entries.lock().by_path.contains_key(path)
    }

    /// Paths below a folder with their sizes and times of writing.
    pub(super) fn list(&self, folder: &str) -> Vec<(String, u64, SystemTime)> {
        let entries = self.entries.lock();
        let is_inside = |path: &str| path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
        let inside = entries.by_path.iter().filter(|(path, _)| is_inside(path));
        let with_time = inside.filter_map(|(path, entry)| {
            let written_at = fs::metadata(self.root.join(path)).and_then(|meta| meta.modified()).ok()?;
            Some((path.clone(), entry.bytes, written_at))
        });
        with_time.collect()
    }

    /// Keeps an object durably.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when the spool is full.
    pub(super) async fn put(&self, path: &str, bytes: Bytes) -> Result<()> {
        let size = bytes.len() as u64;
        let _files = self.files.lock().await;
        let used = self.bytes();
        if used + size > self.bytes_max {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "the spool holds {used} bytes and {path} would need {size} more than storage.s3.spool allows"
                ),
            ));
        }
        let (root, target) = (self.root.clone(), self.root.join(path));
        tokio::task::spawn_blocking(move || put_durably(&root, &target, &bytes))
            .await
            .map_err(|error| Error::internal(format!("writing to the spool panicked: {error}")))??;
        let mut entries = self.entries.lock();
        let turn = entries.next_turn;
        entries.next_turn += 1;
        let replaced = entries.by_path.insert(path.to_owned(), Entry { bytes: size, turn });
        entries.bytes = entries.bytes + size - replaced.map_or(0, |old| old.bytes);
        Ok(())
    }

    pub(super) async fn read(&self, path: &str) -> Result<Bytes> {
        let file = self.root.join(path);
        let bytes = tokio::fs::read(&file).await.map_err(|error| Error::io("read", &file, &error))?;
        Ok(bytes.into())
    }

    /// The object that waits longest, with its turn.
    pub(super) fn oldest(&self) -> Option<(String, u64)> {
        let entries = self.entries.lock();
        let (path, entry) = entries.by_path.iter().min_by_key(|(_, entry)| entry.turn)?;
        Some((path.clone(), entry.turn))
    }

    /// Forgets an object unless it was replaced since that turn.
    pub(super) async fn remove(&self, path: &str, turn: Option<u64>) -> Result<()> {
        let _files = self.files.lock().await;
        let mut entries = self.entries.lock();
        match entries.by_path.get(path) {
            Some(entry) if turn.is_none_or(|turn| turn == entry.turn) => {}
            _ => return Ok(()),
        }
        let file = self.root.join(path);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("delete", &file, &error));
            }
            _ => {}
        }
        if let Some(gone) = entries.by_path.remove(path) {
            entries.bytes -= gone.bytes;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_object_replaced_while_its_older_version_is_uploaded_stays() {
        let folder = tempfile::tempdir().expect("folder");
        let spool = Spool::open(folder.path().to_owned(), 1 << 20).expect("a spool");
        for round in 0..100 {
            spool.put("fleet.json", Bytes::from_static(b"old")).await.expect("put");
            let (path, turn) = spool.oldest().expect("it waits");
            // At any moment of the replacing.
            let uploaded = async {
                tokio::time::sleep(std::time::Duration::from_micros(50 * round)).await;
                spool.remove(&path, Some(turn)).await
            };
            let (put, removed) = tokio::join!(spool.put(&path, Bytes::from_static(b"newer")), uploaded);
            put.expect("put");
            removed.expect("removed");
            assert!(spool.holds(&path) && spool.bytes() == 5);
            assert_eq!(spool.read(&path).await.expect("its file"), "newer");
            spool.remove(&path, None).await.expect("removed");
            assert!(spool.oldest().is_none() && spool.bytes() == 0);
        }
    }
}
