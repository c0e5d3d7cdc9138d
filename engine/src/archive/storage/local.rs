//! Objects as files of a directory, written so that they survive a power cut: object_store's local store syncs nothing.

use std::{
    fs::{self, File},
    io::Write,
    ops::Range,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use wattlake_catalog::{failpoint, seeded_bug};

use crate::{Error, Result};

const UNFINISHED: &str = "unfinished";

pub(super) fn is_unfinished(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == UNFINISHED)
}

/// Temporary name, write, fsync, rename, fsync of every folder up to the root.
pub(super) fn put_durably(root: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
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

/// Removes what a crash left of unfinished writes below a folder.
pub(super) fn remove_unfinished(root: PathBuf) -> Result<usize> {
    let mut removed = 0;
    let mut folders = vec![root];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|error| Error::io("read", &folder, &error))? {
            let path = entry.map_err(|error| Error::io("read", &folder, &error))?.path();
            if path.is_dir() {
                folders.push(path);
            } else if is_unfinished(&path) {
                fs::remove_file(&path).map_err(|error| Error::io("delete", &path, &error))?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}

/// Ranges of a file that the system holds in memory, without waiting for the disk, so that no thread has to be woken for that.
/// `None`: some of it is not there, or cannot be had this way; nothing is wrong then.
#[cfg(target_os = "linux")]
pub(super) fn read_cached(path: &Path, ranges: &[Range<u64>]) -> Option<Vec<Bytes>> {
    use rustix::{
        fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
        io::{IoSliceMut, ReadWriteFlags, preadv2},
    };

    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED).ok()?;
    let read = |range: &Range<u64>| -> Option<Bytes> {
        let mut bytes = vec![0; usize::try_from(range.end.checked_sub(range.start)?).ok()?];
        let mut done = 0;
        while done < bytes.len() {
            let offset = range.start + done as u64;
            let mut rest = [IoSliceMut::new(&mut bytes[done..])];
            match preadv2(&file, &mut rest, offset, ReadWriteFlags::NOWAIT).ok()? {
                0 => return None,
                count => done += count,
            }
        }
        Some(bytes.into())
    };
    ranges.iter().map(read).collect()
}

#[cfg(not(target_os = "linux"))]
pub(super) fn read_cached(_: &Path, _: &[Range<u64>]) -> Option<Vec<Bytes>> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_memory_is_what_was_written() {
        let folder = tempfile::TempDir::new().expect("folder");
        let path = folder.path().join("a/b.parquet");
        let bytes = Bytes::from((0..200_000u32).map(|n| (n % 251) as u8).collect::<Vec<_>>());
        put_durably(folder.path(), &path, &bytes).expect("written");
        let wanted = [5..10, 70_000..200_000, 3..3];
        let expected: Vec<_> =
            wanted.iter().map(|range| bytes.slice(range.start as usize..range.end as usize)).collect();
        // Not every file system can tell what it holds in memory.
        assert!(read_cached(&path, &wanted).is_none_or(|found| found == expected));
        for nonsense in [199_999..200_001, Range { start: 7, end: 3 }] {
            assert_eq!(read_cached(&path, &[nonsense]), None, "not a part of the file");
        }
        assert_eq!(read_cached(&folder.path().join("c"), &wanted), None);
    }
}
