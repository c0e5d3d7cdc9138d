//! What lines of line protocol mean, by their bytes: a series that was seen before costs one hash and one comparison.
//!
//! Only what depends on nothing but the fleet and the configuration is kept, and only for as long as the fleet is the
//! same: any change of the catalog starts an empty cache.

use std::{collections::HashMap, sync::Arc};

use hashbrown::HashTable;
use parking_lot::RwLock;
use wattlake_catalog::{Fleet, SiteId};

use crate::{Conversion, series::ChannelId};

/// Bytes of names kept for one bucket or database; beyond it the cache starts again.
const BYTES_MAX: usize = 64 << 20;
/// Buckets or databases with a cache of their own.
const SITES_MAX: usize = 1000;

/// One cache for each bucket or database, since series without an entity are registered under its name.
#[derive(Debug, Default)]
pub(crate) struct LineCache {
    inner: RwLock<PerFleet>,
}

#[derive(Debug, Default)]
struct PerFleet {
    fleet: Option<Arc<Fleet>>,
    sites: HashMap<String, Arc<LineSeriesCache>>,
}

/// The known lines of one bucket or database.
#[derive(Debug, Default)]
pub(crate) struct LineSeriesCache {
    hasher: ahash::RandomState,
    known: RwLock<KnownLines>,
}

#[derive(Debug, Default)]
pub(crate) struct KnownLines {
    lines: HashTable<LearnedLine>,
    bytes: usize,
}

/// A series as a line writes it: measurement and tags, and the field.
#[derive(Clone, Debug)]
pub(crate) struct LearnedLine {
    hash: u64,
    /// Measurement and tags, then the field: one place in memory for the comparison.
    text: Box<[u8]>,
    key_bytes: u32,
    pub channel: ChannelId,
    pub conversion: Conversion,
    /// Where the entity is: a token may be limited to other sites.
    pub site: SiteId,
}

impl LearnedLine {
    pub(crate) fn new(
        cache: &LineSeriesCache,
        key: &[u8],
        field: &[u8],
        channel: ChannelId,
        conversion: Conversion,
        site: SiteId,
    ) -> Self {
        let hash = cache.hash_field(cache.hash_key(key), field);
        Self {
            hash,
            text: [key, field].concat().into(),
            key_bytes: key.len() as u32,
            channel,
            conversion,
            site,
        }
    }

    fn is(&self, key: &[u8], field: &[u8]) -> bool {
        self.key_bytes as usize == key.len()
            && self.text.len() == key.len() + field.len()
            && self.text[..key.len()] == *key
            && self.text[key.len()..] == *field
    }
}

impl LineCache {
    /// The cache of a bucket or database as long as the fleet is this one.
    pub(crate) fn of(&self, fleet: &Arc<Fleet>, site: &str) -> Arc<LineSeriesCache> {
        let is_current =
            |inner: &PerFleet| inner.fleet.as_ref().is_some_and(|known| Arc::ptr_eq(known, fleet));
        {
            let inner = self.inner.read();
            if is_current(&inner)
                && let Some(cache) = inner.sites.get(site)
            {
                return Arc::clone(cache);
            }
        }
        let mut inner = self.inner.write();
        if !is_current(&inner) || inner.sites.len() >= SITES_MAX {
            *inner = PerFleet { fleet: Some(Arc::clone(fleet)), sites: HashMap::new() };
        }
        Arc::clone(inner.sites.entry(site.to_owned()).or_default())
    }
}

impl LineSeriesCache {
    pub(crate) fn hash_key(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    pub(crate) fn hash_field(&self, key_hash: u64, field: &[u8]) -> u64 {
        self.hasher.hash_one((key_hash, field))
    }

    pub(crate) fn read(&self) -> parking_lot::RwLockReadGuard<'_, KnownLines> {
        self.known.read()
    }

    /// Keeps what the slow way found out.
    pub(crate) fn learn(&self, lines: Vec<LearnedLine>) {
        if lines.is_empty() {
            return;
        }
        let mut known = self.known.write();
        for line in lines {
            if known.lines.find(line.hash, |other| other.text == line.text).is_some() {
                continue;
            }
            let bytes = line.text.len() + size_of::<LearnedLine>();
            if known.bytes + bytes > BYTES_MAX {
                *known = KnownLines::default();
            }
            known.bytes += bytes;
            known.lines.insert_unique(line.hash, line, |line| line.hash);
        }
    }
}

impl KnownLines {
    pub(crate) fn find(&self, hash: u64, key: &[u8], field: &[u8]) -> Option<&LearnedLine> {
        self.lines.find(hash, |line| line.is(key, field))
    }
}
