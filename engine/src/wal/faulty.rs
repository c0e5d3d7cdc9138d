//! A disk that fails on demand, for tests.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;

use super::{
    DiskFiles,
    log::{SegmentFile, SegmentFiles},
};

#[derive(Clone, Default)]
pub(crate) struct FaultyDisk {
    pub fail_append: Arc<AtomicBool>,
    /// As `fail_append`, but headers of segments are written.
    pub fail_frames: Arc<AtomicBool>,
    pub fail_truncate: Arc<AtomicBool>,
    pub fail_sync: Arc<AtomicBool>,
    /// Names by inode as they were when their folder was last synced: those that a power cut leaves.
    durable_names: Arc<Mutex<HashMap<u64, PathBuf>>>,
    /// The durable names of files when they were opened to be written over.
    pub reused: Arc<Mutex<Vec<Option<PathBuf>>>>,
}

struct FaultyFile(Box<dyn SegmentFile>, FaultyDisk);

impl SegmentFile for FaultyFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let is_header = bytes.len() == super::segment::HEADER_BYTES;
        if self.1.fail_append.load(Ordering::Relaxed)
            || (!is_header && self.1.fail_frames.load(Ordering::Relaxed))
        {
            self.0.append(&bytes[..bytes.len() / 2])?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.append(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.1.fail_sync.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.0.sync()
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        if self.1.fail_truncate.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Other.into());
        }
        self.0.truncate(len)
    }
}

impl SegmentFiles for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        Ok(Box::new(FaultyFile(DiskFiles.create(path)?, self.clone())))
    }

    fn reopen(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        let name = self.durable_names.lock().get(&fs::metadata(path)?.ino()).cloned();
        self.reused.lock().push(name);
        Ok(Box::new(FaultyFile(DiskFiles.reopen(path)?, self.clone())))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        DiskFiles.sync_dir(dir)?;
        let mut names = HashMap::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            names.insert(entry.metadata()?.ino(), entry.path());
        }
        *self.durable_names.lock() = names;
        Ok(())
    }
}
