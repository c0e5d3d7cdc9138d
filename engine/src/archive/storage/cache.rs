//! Parts of objects on local disk, so that they are not fetched again. What is read from it is checked like anything else: a
//! damaged part is dropped and fetched anew.

use std::{
    collections::HashMap,
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use parking_lot::Mutex;

/// Objects are cached in parts of this size; the last one of an object is shorter.
pub(super) const PART_BYTES: u64 = 1 << 20;

#[derive(Debug)]
struct Part {
    bytes: u64,
    used: u64,
}

#[derive(Debug, Default)]
struct Parts {
    by_name: HashMap<String, Part>,
    bytes: u64,
}

/// A folder of parts, the ones used longest ago going first. Whatever goes wrong with it only makes reading slower.
#[derive(Debug)]
pub(super) struct Cache {
    root: PathBuf,
    bytes_max: u64,
    parts: Mutex<Parts>,
    clock: AtomicU64,
}

impl Cache {
    pub(super) fn open(root: PathBuf, bytes_max: u64) -> Self {
        let mut parts = Parts::default();
        if bytes_max == 0 {
            // What an earlier process cached is of no use.
            let _ = fs::remove_dir_all(&root);
        } else if let Err(error) = fs::create_dir_all(&root) {
            tracing::warn!(%error, path = %root.display(), "no read cache");
        }
        for entry in fs::read_dir(&root).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            match entry.metadata() {
                Ok(meta) if name.ends_with(".part") => {
                    parts.bytes += meta.len();
                    parts.by_name.insert(name, Part { bytes: meta.len(), used: 0 });
                }
                _ => drop(fs::remove_file(entry.path())),
            }
        }
        Self { root, bytes_max, parts: Mutex::new(parts), clock: AtomicU64::new(1) }
    }

    /// One that keeps nothing.
    #[cfg(test)]
    pub(super) fn off() -> Self {
        Self { root: PathBuf::new(), bytes_max: 0, parts: Mutex::default(), clock: AtomicU64::new(1) }
    }

    pub(super) fn is_on(&self) -> bool {
        self.bytes_max > 0
    }

    fn name(path: &str, index: u64) -> String {
        // Names of objects are unique in themselves; folders only group them.
        let file = path.rsplit('/').next().unwrap_or(path);
        format!("{file}.{index}.part")
    }

    /// Blocks: for blocking threads.
    pub(super) fn get(&self, path: &str, index: u64) -> Option<Bytes> {
        let name = Self::name(path, index);
        let used = self.clock.fetch_add(1, Ordering::Relaxed);
        self.parts.lock().by_name.get_mut(&name)?.used = used;
        match fs::read(self.root.join(&name)) {
            Ok(bytes) => Some(bytes.into()),
            Err(_) => {
                self.forget(&name);
                None
            }
        }
    }

    /// Blocks: for blocking threads.
    pub(super) fn put(&self, path: &str, index: u64, bytes: &[u8]) {
        let name = Self::name(path, index);
        let size = bytes.len() as u64;
        if size > self.bytes_max {
            return;
        }
        // Several readers may store the same part at once.
        let turn = self.clock.fetch_add(1, Ordering::Relaxed);
        let unfinished = self.root.join(format!("{name}.{turn}.unfinished"));
        let written =
            fs::write(&unfinished, bytes).and_then(|()| fs::rename(&unfinished, self.root.join(&name)));
        if let Err(error) = written {
            tracing::debug!(%error, name, "a part was not cached");
            let _ = fs::remove_file(&unfinished);
            return;
        }
        let mut gone = Vec::new();
        {
            let mut parts = self.parts.lock();
            let replaced = parts.by_name.insert(name, Part { bytes: size, used: turn });
            parts.bytes = parts.bytes + size - replaced.map_or(0, |old| old.bytes);
            if parts.bytes > self.bytes_max {
                // A tenth at once: looking for the oldest passes over all of them.
                let mut by_age: Vec<_> =
                    parts.by_name.iter().map(|(name, part)| (part.used, name.clone())).collect();
                by_age.sort_unstable();
                for (_, name) in by_age {
                    if parts.bytes <= self.bytes_max / 10 * 9 {
                        break;
                    }
                    if let Some(part) = parts.by_name.remove(&name) {
                        parts.bytes -= part.bytes;
                        gone.push(name);
                    }
                }
            }
            metrics::gauge!("wattlake_cache_bytes").set(parts.bytes as f64);
        }
        for name in gone {
            let _ = fs::remove_file(self.root.join(name));
        }
    }

    /// Drops a part of which something was wrong.
    pub(super) fn drop_part(&self, path: &str, index: u64) {
        let name = Self::name(path, index);
        self.forget(&name);
        let _ = fs::remove_file(self.root.join(&name));
    }

    fn forget(&self, name: &str) {
        let mut parts = self.parts.lock();
        if let Some(part) = parts.by_name.remove(name) {
            parts.bytes -= part.bytes;
        }
    }
}
