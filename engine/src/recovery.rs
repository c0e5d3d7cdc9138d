//! Replaying the log into memory at start, and setting aside what of it is damaged.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, mpsc::sync_channel},
};

use parking_lot::Mutex;
use wattlake_catalog::failpoint;

use crate::{
    Error, Result,
    batch::{Readings, ReadingsDecoder},
    version::Versions,
    wal::{Damage, Recovered, recover, salvage},
};

/// Decoded frames that wait to be applied.
const FRAMES_AHEAD: usize = 8;

/// What a replay works with.
pub(crate) struct Replay {
    pub wal_dir: PathBuf,
    /// Where damaged segments are copied to.
    pub quarantine: PathBuf,
    /// Frames up to this are in files.
    pub watermark: u64,
    pub versions: Arc<Versions>,
    /// Memtables are frozen at this size.
    pub flush_bytes_max: usize,
    /// Takes words for each damaged place; `None`: damage is an error.
    pub damage: Option<Arc<Mutex<Vec<String>>>>,
}

impl Replay {
    /// Blocks: for blocking threads. Frames are read and decoded while those before them are applied.
    pub(crate) fn run(self) -> Result<Recovered> {
        let Self { wal_dir, quarantine, watermark, versions, flush_bytes_max, damage } = self;
        std::thread::scope(|scope| {
            let (sender, decoded) = sync_channel::<(u64, Vec<Readings>)>(FRAMES_AHEAD);
            let series = Arc::clone(&versions.series);
            scope.spawn(move || {
                for (sequence, batches) in decoded {
                    failpoint!("recover.mid_replay");
                    for readings in batches {
                        versions.current().active.apply(readings);
                    }
                    if versions.current().active.bytes() >= flush_bytes_max {
                        versions.freeze(sequence);
                    }
                }
            });
            // Nobody takes them any more only after a panic, which the scope passes on.
            let apply = move |sequence, batches| drop(sender.send((sequence, batches)));
            let mut decoder = ReadingsDecoder::new(&series);
            let mut decode = |bytes: &[u8]| decoder.decode(bytes);
            let Some(damage) = damage else { return recover(&wal_dir, watermark, &mut decode, apply) };
            let mut set_aside = |found: Damage<'_>| {
                copy_into(&quarantine, found.segment)?;
                damage.lock().push(found.error.message);
                Ok(())
            };
            salvage(&wal_dir, watermark, &mut set_aside, &mut decode, apply)
        })
    }
}

/// Copies a file into a folder, which is made, so that it survives a power cut.
fn copy_into(folder: &Path, file: &Path) -> Result<()> {
    let target = folder.join(file.file_name().unwrap_or_default());
    let copy = || {
        std::fs::create_dir_all(folder)?;
        std::fs::copy(file, &target)?;
        std::fs::File::open(&target)?.sync_all()?;
        std::fs::File::open(folder)?.sync_all()
    };
    copy().map_err(|error| Error::io("copy", file, &error))
}
