//! The data directory and its lock: one process at a time.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use wattlake_catalog::failpoint;

use crate::{Error, ErrorKind, Result};

/// An owned data directory; the lock lives as long as this value, and ends with the process however it ends.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory when it is missing and takes its lock, before anything in it is read.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`] naming the process that holds it.
    pub fn acquire(path: &Path) -> Result<Self> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| Error::io("create", path, &error))?;
        let lock_path = path.join("LOCK");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(|error| Error::io("open", &lock_path, &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = lock.read_to_string(&mut holder);
                return Err(Error::new(
                    ErrorKind::InUse,
                    format!("data directory {} is in use by process {}", path.display(), holder.trim()),
                ));
            }
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", &lock_path, &error)),
        }
        failpoint!("lock.after_acquire");
        let write = lock
            .set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()));
        write.map_err(|error| Error::io("write", &lock_path, &error))?;
        let path = path.canonicalize().map_err(|error| Error::io("resolve", path, &error))?;
        Ok(Self { path, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn wal(&self) -> Result<PathBuf> {
        let wal = self.path.join("wal");
        std::fs::create_dir_all(&wal).map_err(|error| Error::io("create", &wal, &error))?;
        let sync = File::open(&self.path).and_then(|dir| dir.sync_all());
        sync.map_err(|error| Error::io("sync", &self.path, &error))?;
        Ok(wal)
    }
}
