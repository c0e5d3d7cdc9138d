//! The archive of what vendors answered, compressed and bounded: after a mapping was mended it is decoded again, without a call.
//!
//! `raw/SOURCE/TIME-STREAM-FROM-TO.json.zst` in the data directory, times in microseconds since 1970 UTC. The oldest answers go when there is
//! no room. Answers hold no secrets of ours, but data of customers: files are for their owner alone.

use std::{
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use parking_lot::Mutex;
use wattlake_catalog::EntityId;
use wattlake_config::Settings;

use super::connector::{Stream, Window};
use crate::{Error, Result};

const ZSTD_LEVEL: i32 = 3;

/// Where answers are kept, if they are.
pub(crate) struct RawArchive {
    folder: PathBuf,
    /// Bytes that may be kept; 0: nothing is.
    bytes_max: u64,
    /// Bytes that are; unknown before the first look.
    used: Mutex<Option<u64>>,
}

/// An answer that was kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RawAnswer {
    /// When it came.
    pub at: i64,
    pub stream: String,
    pub from: i64,
    pub to: i64,
    pub path: PathBuf,
}

impl RawArchive {
    pub(crate) fn new(settings: &Settings) -> Self {
        let folder = settings.data_dir.0.join("raw");
        Self { folder, bytes_max: settings.sources.archive.0, used: Mutex::new(None) }
    }

    /// Keeps an answer. What cannot be kept is lost without harm.
    pub(crate) async fn keep(
        &self,
        now: i64,
        source: EntityId,
        stream: &Stream,
        window: Window,
        body: Bytes,
    ) {
        if self.bytes_max == 0 {
            return;
        }
        let folder = self.folder.join(source.to_string());
        let name = format!("{now:020}-{}-{}-{}.json.zst", file_name(stream.name), window.from, window.to);
        let written = tokio::task::spawn_blocking(move || write(&folder, &name, &body)).await;
        match written {
            Ok(Ok(bytes)) => self.make_room(bytes),
            Ok(Err(error)) => tracing::warn!(%error, "an answer was not kept"),
            Err(_) => {}
        }
    }

    /// Deletes the oldest answers until the others have room.
    fn make_room(&self, bytes: u64) {
        let mut used = self.used.lock();
        let total = used.map_or_else(|| size_of_all(&self.folder), |used| used + bytes);
        *used = Some(total);
        if total <= self.bytes_max {
            return;
        }
        let mut all: Vec<(String, PathBuf, u64)> = files(&self.folder);
        all.sort();
        let mut total: u64 = all.iter().map(|(_, _, bytes)| bytes).sum();
        for (_, path, bytes) in all {
            // Some more than needed, so that not every answer looks for the oldest one.
            if total <= self.bytes_max / 10 * 9 {
                break;
            }
            if std::fs::remove_file(&path).is_ok() {
                total -= bytes;
            }
        }
        *used = Some(total);
    }

    /// The answers of a source that came in a span of time, the oldest first.
    pub(crate) fn answers(&self, source: EntityId, from: i64, to: i64) -> Vec<RawAnswer> {
        let mut found: Vec<_> = files(&self.folder.join(source.to_string()))
            .into_iter()
            .filter_map(|(name, path, _)| {
                let name = name.strip_suffix(".json.zst")?;
                let mut parts = name.rsplitn(3, '-');
                let (to, from) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
                let (at, stream) = parts.next()?.split_once('-')?;
                Some(RawAnswer { at: at.parse().ok()?, stream: stream.to_owned(), from, to, path })
            })
            .filter(|answer| (from..to).contains(&answer.at))
            .collect();
        found.sort();
        found
    }
}

/// The text of an answer.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path).map_err(|error| Error::io("read", path, &error))?;
    zstd::decode_all(&bytes[..]).map_err(|error| Error::io("decompress", path, &error))
}

/// Stream names of configurations may hold anything.
pub(crate) fn file_name(stream: &str) -> String {
    stream.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).take(64).collect()
}

fn write(folder: &Path, name: &str, body: &[u8]) -> std::io::Result<u64> {
    use std::io::Write;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let bytes = zstd::encode_all(body, ZSTD_LEVEL)?;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(folder.join(name))?;
    file.write_all(&bytes)?;
    Ok(bytes.len() as u64)
}

/// Name, path and bytes of the files in a folder and those below it.
fn files(folder: &Path) -> Vec<(String, PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => found.extend(files(&entry.path())),
            Ok(metadata) => {
                found.push((entry.file_name().to_string_lossy().into_owned(), entry.path(), metadata.len()));
            }
            Err(_) => {}
        }
    }
    found
}

fn size_of_all(folder: &Path) -> u64 {
    files(folder).iter().map(|(_, _, bytes)| bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::mapping::intern;

    #[tokio::test]
    async fn the_oldest_answers_go_when_there_is_no_room() {
        let folder = tempfile::TempDir::new().expect("folder");
        let mut settings = Settings::default();
        settings.data_dir.0 = folder.path().to_owned();
        settings.sources.archive = wattlake_config::ByteCount(20_000);
        let raw = RawArchive::new(&settings);
        let source = EntityId(uuid::Uuid::from_u128(7));
        let stream = Stream {
            name: intern("day/../by-day"),
            cadence: 900,
            span_max: 900,
            span_min: 900,
            settles: 0,
            overlap: 0,
            horizon: None,
            is_polled: true,
            is_sparse: false,
            is_instant: false,
        };
        for n in 0..100 {
            let body: String =
                (0..200).map(|i| format!("{},", (i * 7919 + n * 104_729) % 1_000_003)).collect();
            raw.keep(n * 1000, source, &stream, Window { from: n, to: n + 1 }, Bytes::from(body)).await;
        }
        let kept = raw.answers(source, 0, i64::MAX);
        assert!(size_of_all(&raw.folder) <= 20_000 && kept.len() > 10, "{}", kept.len());
        assert_eq!(kept.last().map(|answer| (answer.at, answer.from, answer.to)), Some((99_000, 99, 100)));
        assert!(kept.windows(2).all(|pair| pair[0].at + 1000 == pair[1].at), "those in the middle are there");
        assert_eq!(kept[0].stream, file_name(stream.name));
        assert!(String::from_utf8(read(&kept[0].path).expect("an answer")).expect("text").contains(','));
        assert_eq!(raw.answers(source, 50_000, 51_000).len(), usize::from(kept[0].at <= 50_000));
    }
}
