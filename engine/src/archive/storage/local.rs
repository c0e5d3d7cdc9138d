//! Objects as files of a directory, written so that they survive a power cut: object_store's local store syncs nothing.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

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
