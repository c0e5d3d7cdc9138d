//! Segment files: names and headers.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

pub(super) const HEADER_BYTES: usize = 32;
const MAGIC: [u8; 8] = *b"WATTWAL1";
/// Version 1 has no progress in its batches; it is read as well.
const VERSION: u32 = 2;
const EXTENSION: &str = "wal";
/// The file name's ending of a released segment that waits to be written over.
pub(super) const SPARE: &str = "free";

/// A closed segment; `last` is below `first` when it holds no frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub path: PathBuf,
    pub first: u64,
    pub last: u64,
}

/// The file of the segment whose first frame has this sequence number.
pub(super) fn path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.{EXTENSION}"))
}

pub(super) fn header(first: u64) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[16..24].copy_from_slice(&first.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..24]);
    bytes[24..28].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Checks a segment's header and answers its first sequence number.
pub(super) fn read_header(bytes: &[u8]) -> Result<u64, String> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Err(format!("{} bytes are too few for a segment header", bytes.len()));
    };
    let word = |at: usize| header[at..].first_chunk().map_or(0, |chunk| u32::from_le_bytes(*chunk));
    if header[..8] != MAGIC || word(24) != crc32c::crc32c(&header[..24]) {
        return Err("segment header is damaged".to_owned());
    }
    if !(1..=VERSION).contains(&word(8)) {
        return Err(format!(
            "segment format version {} is not 1 to {VERSION}; use the program that wrote it",
            word(8)
        ));
    }
    Ok(u64::from(word(16)) | u64::from(word(20)) << 32)
}

/// The segment files of a folder with the sequence numbers in their names, in order.
pub(super) fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found: Vec<_> = files_of(dir, EXTENSION)?
        .into_iter()
        .filter_map(|path| Some((path.file_stem()?.to_str()?.parse().ok()?, path)))
        .collect();
    found.sort();
    Ok(found)
}

/// Released segments.
pub(super) fn list_spares(dir: &Path) -> Result<Vec<PathBuf>> {
    files_of(dir, SPARE)
}

fn files_of(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(|error| Error::io("read", dir, &error))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| Error::io("read", dir, &error))?.path();
        if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    Ok(found)
}
