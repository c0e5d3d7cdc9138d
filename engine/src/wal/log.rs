//! The open log: appending frames, syncing, starting and deleting segments.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{
    frame,
    recover::Recovered,
    segment::{self, Segment},
};
use wattlake_catalog::{failpoint, seeded_bug};

use crate::{Error, ErrorKind, Result};

/// An open segment file.
pub(crate) trait SegmentFile: Send {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    fn sync(&mut self) -> io::Result<()>;
    fn truncate(&mut self, len: u64) -> io::Result<()>;
}

/// Makes segment files; tests put failing ones in its place.
pub(crate) trait SegmentFiles: Send {
    fn create(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>>;
    /// Opens a file to be written again from its start; its length stays.
    fn reopen(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>>;
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// Segment files on a real disk.
pub(crate) struct DiskFiles;

impl SegmentFile for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        if seeded_bug!("bug.wal_no_sync") {
            return Ok(());
        }
        self.sync_data()
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        use std::io::Seek;
        self.set_len(len)?;
        self.seek(io::SeekFrom::Start(len)).map(drop)
    }
}

impl SegmentFiles for DiskFiles {
    fn create(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        Ok(Box::new(OpenOptions::new().write(true).create(true).truncate(true).open(path)?))
    }

    fn reopen(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        Ok(Box::new(OpenOptions::new().write(true).open(path)?))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

/// Why an append was not made.
#[derive(Debug)]
pub(crate) enum AppendError {
    /// Nothing of it is in the log; the log can go on.
    Refused(Error),
    /// What the log holds is unknown; nothing may be acknowledged any more (WAL-4).
    Broken(Error),
}

impl AppendError {
    /// A disk that is full or read-only took nothing and may take more later; after anything else nobody knows.
    fn of(error: Error) -> Self {
        match error.kind {
            ErrorKind::StorageFull | ErrorKind::Unavailable => Self::Refused(error),
            _ => Self::Broken(error),
        }
    }
}

/// A log that takes frames. Not thread-safe: it belongs to the writer thread.
pub(crate) struct Log {
    dir: PathBuf,
    files: Box<dyn SegmentFiles>,
    segment_bytes: u64,
    closed: Vec<Segment>,
    /// Files of released segments. Writing over them needs no new blocks, which makes a sync about twice as fast.
    spares: Vec<PathBuf>,
    current: Option<Current>,
    next_sequence: u64,
    /// The last frame is not synced yet.
    is_unsynced: bool,
    buffer: Vec<u8>,
}

struct Current {
    file: Box<dyn SegmentFile>,
    path: PathBuf,
    first: u64,
    len: u64,
}

impl Log {
    pub(crate) fn new(
        dir: &Path,
        files: Box<dyn SegmentFiles>,
        segment_bytes: u64,
        recovered: Recovered,
    ) -> Self {
        let dir = dir.to_owned();
        let Recovered { segments: closed, spares, next_sequence, .. } = recovered;
        Self {
            dir,
            files,
            segment_bytes,
            closed,
            spares,
            current: None,
            next_sequence,
            is_unsynced: false,
            buffer: Vec::new(),
        }
    }

    /// The sequence number of the last frame.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.next_sequence - 1
    }

    /// Bytes of the open segment and number of closed ones.
    pub(crate) fn size(&self) -> (u64, usize) {
        (self.current.as_ref().map_or(0, |current| current.len), self.closed.len())
    }

    /// Writes one frame of [`encode_chunk`](super::encode_chunk)ed batches; it is durable only after [`Log::sync`].
    pub(crate) fn append(&mut self, chunks: &[Vec<u8>]) -> Result<u64, AppendError> {
        if self.current.as_ref().is_some_and(|current| current.len >= self.segment_bytes) {
            // Only the last segment may have a torn tail.
            self.sync().map_err(AppendError::Broken)?;
            self.rotate();
        }
        let current = match &mut self.current {
            Some(current) => current,
            None => self.current.insert(
                start_segment(&*self.files, &self.dir, self.spares.pop(), self.next_sequence)
                    .map_err(AppendError::of)?,
            ),
        };
        let sequence = self.next_sequence;
        self.buffer.clear();
        frame::append_frame(sequence, self.is_unsynced, chunks, &mut self.buffer);
        failpoint!("wal.before_write");
        if let Err(error) = current.file.append(&self.buffer) {
            let refused = AppendError::of(Error::io("write", &current.path, &error));
            let AppendError::Refused(refused) = refused else { return Err(refused) };
            // Half a frame must not stay in front of a later whole one.
            if current.file.truncate(current.len).is_ok() {
                return Err(AppendError::Refused(refused));
            }
            if self.is_unsynced {
                return Err(AppendError::Broken(refused));
            }
            // It may, at the end of a segment that the next one goes on from.
            self.rotate();
            return Err(AppendError::Refused(refused));
        }
        current.len += self.buffer.len() as u64;
        self.next_sequence += 1;
        self.is_unsynced = true;
        failpoint!("wal.after_write_before_sync");
        Ok(sequence)
    }

    /// Makes all appended frames durable.
    ///
    /// # Errors
    /// After an error the page cache may hold what the disk does not: the caller must stop (WAL-4).
    pub(crate) fn sync(&mut self) -> Result<()> {
        if let Some(current) = &mut self.current {
            current.file.sync().map_err(|error| Error::io("sync", &current.path, &error))?;
        }
        self.is_unsynced = false;
        Ok(())
    }

    /// Closes the current segment; the next frame starts a new one. All its frames must be synced.
    pub(crate) fn rotate(&mut self) {
        // A segment without frames is started anew under the same name: nobody else may release it.
        if let Some(Current { path, first, .. }) = self.current.take()
            && first < self.next_sequence
        {
            self.closed.push(Segment { path, first, last: self.next_sequence - 1 });
        }
    }

    /// Releases the closed segments whose frames are all in committed files: some are kept to be written over, the others
    /// deleted.
    pub(crate) fn release_through(&mut self, watermark: u64) -> Result<()> {
        let (done, keep): (Vec<_>, Vec<_>) =
            self.closed.drain(..).partition(|segment| segment.last <= watermark);
        self.closed = keep;
        let mut renamed = Vec::new();
        for segment in done {
            let is_kept = self.spares.len() + renamed.len() < SPARES_MAX;
            let spare = segment.path.with_extension(segment::SPARE);
            failpoint!("wal.release.before");
            let released = match is_kept {
                true => std::fs::rename(&segment.path, &spare),
                false => std::fs::remove_file(&segment.path),
            };
            match released {
                Ok(()) if is_kept => renamed.push(spare),
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("release", &segment.path, &error));
                }
                _ => {}
            }
        }
        if renamed.is_empty() {
            return Ok(());
        }
        failpoint!("wal.release.after");
        // Before one is written over: under its old name again after a power cut, its new header would be damage.
        self.files.sync_dir(&self.dir).map_err(|error| Error::io("sync", &self.dir, &error))?;
        self.spares.append(&mut renamed);
        Ok(())
    }
}

/// Released segments kept to be written over.
const SPARES_MAX: usize = 4;

/// Starts a segment, in a new file or over a released one; it is in its folder for good before any frame is. What a
/// released file held before stays behind the new frames: its sequence numbers are lower, so that nobody takes it for
/// them.
fn start_segment(
    files: &dyn SegmentFiles,
    dir: &Path,
    spare: Option<PathBuf>,
    first: u64,
) -> Result<Current> {
    let path = segment::path(dir, first);
    let start = || {
        let mut file = match &spare {
            Some(spare) => files.reopen(spare)?,
            None => files.create(&path)?,
        };
        file.append(&segment::header(first))?;
        failpoint!("wal.rotate.before_header_sync");
        file.sync()?;
        failpoint!("wal.rotate.before_rename");
        if let Some(spare) = &spare {
            std::fs::rename(spare, &path)?;
        }
        failpoint!("wal.rotate.before_dirsync");
        files.sync_dir(dir)?;
        Ok(file)
    };
    let file = start().map_err(|error: io::Error| Error::io("create", &path, &error))?;
    Ok(Current { file, path, first, len: segment::HEADER_BYTES as u64 })
}
