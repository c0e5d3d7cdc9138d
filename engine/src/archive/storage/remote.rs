//! An object store over a network, which is slow, refuses, forgets to answer and goes away: retries, a circuit breaker, a spool
//! for what it does not take and a cache of what was read.

use std::{collections::BTreeMap, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::{
    ClientOptions, ObjectMeta, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig, aws::AmazonS3Builder,
    path::Path as ObjectPath, prefix::PrefixStore,
};
use wattlake_config::Settings;

use super::{
    breaker::Breaker,
    cache::{Cache, PART_BYTES},
    spool::Spool,
};
use crate::{Error, ErrorKind, Result};

/// Larger objects are uploaded in parts, so that a request never takes long.
const UPLOAD_PART_BYTES: usize = 8 << 20;
const UPLOADS_SIDE_BY_SIDE: usize = 3;
/// A body of at most a few parts that has not come after this has stalled.
const READ_TIMEOUT: Duration = Duration::from_secs(12);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Retries of one request; beyond them the breaker, the spool and the caller's own patience decide.
const RETRIES: usize = 4;
const RETRY_TIMEOUT: Duration = Duration::from_secs(40);
/// Data files alone are cached.
const CACHED: &str = "measurements/month=";
/// Bytes asked for in one request.
const READ_BYTES_MAX: u64 = 8 << 20;
const READS_SIDE_BY_SIDE: usize = 8;

#[derive(Debug)]
pub(super) struct Remote {
    store: Arc<dyn ObjectStore>,
    breaker: Breaker,
    spool: Option<Spool>,
    cache: Arc<Cache>,
}

/// The store of an `s3://` address.
pub(super) fn s3_store(bucket: &str, prefix: &str, settings: &Settings) -> Result<Arc<dyn ObjectStore>> {
    let s3 = &settings.storage.s3;
    let client = ClientOptions::new()
        .with_allow_http(s3.allow_http)
        .with_timeout(REQUEST_TIMEOUT)
        .with_connect_timeout(CONNECT_TIMEOUT);
    let retry = RetryConfig { max_retries: RETRIES, retry_timeout: RETRY_TIMEOUT, ..RetryConfig::default() };
    let mut builder =
        AmazonS3Builder::from_env().with_bucket_name(bucket).with_client_options(client).with_retry(retry);
    for (value, apply) in [
        (&s3.endpoint, AmazonS3Builder::with_endpoint as fn(AmazonS3Builder, String) -> AmazonS3Builder),
        (&s3.region, AmazonS3Builder::with_region),
        (&s3.access_key, AmazonS3Builder::with_access_key_id),
        (&s3.secret_key, AmazonS3Builder::with_secret_access_key),
    ] {
        if !value.is_empty() {
            builder = apply(builder, value.clone());
        }
    }
    let store = builder
        .build()
        .map_err(|error| Error::invalid(format!("storage.url s3://{bucket}/{prefix}: {error}")))?;
    Ok(match prefix {
        "" => Arc::new(store),
        prefix => Arc::new(PrefixStore::new(store, prefix)),
    })
}

/// What went wrong with a store, whatever it is: a missing bucket, too, may be there again later.
fn unavailable(what: &str, path: &str, error: &object_store::Error) -> Error {
    Error::new(ErrorKind::Unavailable, format!("object storage: cannot {what} {path}: {error}"))
}

/// As an error of the object store's own kind, for its interface.
fn generic(error: Error) -> object_store::Error {
    object_store::Error::Generic { store: "archive", source: Box::new(error) }
}

impl Remote {
    pub(super) fn open(store: Arc<dyn ObjectStore>, settings: &Settings) -> Result<Self> {
        let s3 = &settings.storage.s3;
        let data_dir = &settings.data_dir.0;
        let spool = match s3.spool.0 {
            0 => None,
            bytes_max => Some(Spool::open(data_dir.join("spool"), bytes_max)?),
        };
        let cache = Arc::new(Cache::open(data_dir.join("cache"), s3.cache.0));
        Ok(Self { store, breaker: Breaker::default(), spool, cache })
    }

    /// One without retries, spool and cache.
    #[cfg(test)]
    pub(super) fn bare(store: Arc<dyn ObjectStore>) -> Self {
        let cache = Arc::new(Cache::off());
        Self { store, breaker: Breaker::default(), spool: None, cache }
    }

    fn spool_holding(&self, path: &str) -> Option<&Spool> {
        self.spool.as_ref().filter(|spool| spool.holds(path))
    }

    pub(super) fn spooled_bytes(&self) -> u64 {
        self.spool.as_ref().map_or(0, Spool::bytes)
    }

    /// Stores an object in the store or, when that fails, in the spool.
    pub(super) async fn put(&self, path: &str, bytes: Bytes) -> Result<()> {
        if path.starts_with(CACHED) {
            // What was just written is read soon.
            let (cache, name, content) = (Arc::clone(&self.cache), path.to_owned(), bytes.clone());
            tokio::task::spawn_blocking(move || {
                for (index, part) in (0..).zip(content.chunks(PART_BYTES as usize)) {
                    cache.put(&name, index, part);
                }
            });
        }
        let Some(spool) = &self.spool else { return self.upload(path, bytes).await };
        // An older version of it that is still to be uploaded must not come after a newer one.
        if self.breaker.is_open() || spool.holds(path) {
            return spool.put(path, bytes).await;
        }
        match self.upload(path, bytes.clone()).await {
            Err(error) if error.kind == ErrorKind::Unavailable => {
                tracing::warn!(%error, path, "kept in the spool");
                // What the caller can do something about is the store, not the spool.
                spool
                    .put(path, bytes)
                    .await
                    .map_err(|full| Error { message: format!("{}; {}", error.message, full.message), ..full })
            }
            outcome => outcome,
        }
    }

    async fn upload(&self, path: &str, bytes: Bytes) -> Result<()> {
        self.breaker.ask()?;
        let target = ObjectPath::from(path);
        let outcome = async {
            // Unique names and overwrite: retried puts cannot meet another object (idempotent).
            if bytes.len() <= UPLOAD_PART_BYTES * 2 {
                return self.store.put(&target, PutPayload::from_bytes(bytes)).await.map(drop);
            }
            let mut upload = self.store.put_multipart(&target).await?;
            let parts: Vec<_> = (0..bytes.len())
                .step_by(UPLOAD_PART_BYTES)
                .map(|at| bytes.slice(at..bytes.len().min(at + UPLOAD_PART_BYTES)))
                .map(|part| upload.put_part(PutPayload::from_bytes(part)))
                .collect();
            let sent =
                stream::iter(parts).buffer_unordered(UPLOADS_SIDE_BY_SIDE).try_collect::<Vec<()>>().await;
            if let Err(error) = sent {
                let _ = upload.abort().await;
                return Err(error);
            }
            upload.complete().await.map(drop)
        };
        let outcome = outcome.await.map_err(|error| unavailable("write", path, &error));
        self.breaker.note(&outcome);
        outcome
    }

    /// Uploads what waits in the spool, oldest first, until there is nothing or the store fails.
    pub(super) async fn upload_spooled(&self) -> Result<()> {
        let Some(spool) = &self.spool else { return Ok(()) };
        while let Some((path, turn)) = spool.oldest() {
            let bytes = spool.read(&path).await?;
            self.upload(&path, bytes).await?;
            spool.remove(&path, Some(turn)).await?;
            tracing::debug!(path, "uploaded from the spool");
        }
        Ok(())
    }

    pub(super) async fn delete(&self, path: &str) -> Result<()> {
        if let Some(spool) = &self.spool {
            spool.remove(path, None).await?;
        }
        self.breaker.ask()?;
        let outcome = match self.store.delete(&ObjectPath::from(path)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(unavailable("delete", path, &error)),
        };
        self.breaker.note(&outcome);
        outcome
    }

    /// All objects below a folder, those in the spool included.
    pub(super) async fn list(&self, folder: &str) -> Result<Vec<ObjectMeta>> {
        // The spool first: what is uploaded meanwhile is in the store's list.
        let spooled = self.spool.as_ref().map_or_else(Vec::new, |spool| spool.list(folder));
        self.breaker.ask()?;
        let listed = self.store.list(Some(&ObjectPath::from(folder))).try_collect::<Vec<_>>().await;
        let outcome = listed.map_err(|error| unavailable("list", folder, &error));
        self.breaker.note(&outcome);
        let mut objects = outcome?;
        for (path, size, written_at) in spooled {
            let location = ObjectPath::from(path);
            objects.retain(|object| object.location != location);
            objects.push(ObjectMeta {
                location,
                last_modified: written_at.into(),
                size,
                e_tag: None,
                version: None,
            });
        }
        Ok(objects)
    }

    /// A whole object, past the cache.
    pub(super) async fn read_whole(&self, path: &str, size: Option<u64>) -> object_store::Result<Bytes> {
        if let Some(spool) = self.spool_holding(path) {
            // Uploaded in between: the store has it now.
            if let Ok(bytes) = spool.read(path).await {
                return Ok(bytes);
            }
        }
        if let Some(size) = size {
            let whole = self.fetch(path, std::slice::from_ref(&(0..size))).await?;
            return Ok(whole.into_iter().next().unwrap_or_default());
        }
        let target = ObjectPath::from(path);
        self.asked(async { self.store.get(&target).await?.bytes().await }).await
    }

    /// Ranges of an object whose size is known; with `cached` through the cache.
    pub(super) async fn read_ranges(
        &self,
        path: &str,
        ranges: &[Range<u64>],
        size: Option<u64>,
    ) -> object_store::Result<Vec<Bytes>> {
        if let Some(spool) = self.spool_holding(path)
            && let Ok(bytes) = spool.read(path).await
        {
            let whole = bytes.len() as u64;
            return Ok(ranges
                .iter()
                .map(|range| bytes.slice(range.start.min(whole) as usize..range.end.min(whole) as usize))
                .collect());
        }
        match size.filter(|_| self.cache.is_on()) {
            Some(size) => self.read_cached(path, ranges, size).await,
            None => self.fetch(path, ranges).await,
        }
    }

    /// Forgets cached parts that a range touches.
    pub(super) fn drop_cached(&self, path: &str, range: &Range<u64>) {
        for index in range.start / PART_BYTES..range.end.div_ceil(PART_BYTES) {
            self.cache.drop_part(path, index);
        }
    }

    async fn read_cached(
        &self,
        path: &str,
        ranges: &[Range<u64>],
        size: u64,
    ) -> object_store::Result<Vec<Bytes>> {
        let mut indexes: Vec<u64> = ranges
            .iter()
            .flat_map(|range| range.start / PART_BYTES..range.end.min(size).div_ceil(PART_BYTES))
            .collect();
        indexes.sort_unstable();
        indexes.dedup();
        let (cache, wanted, name) = (Arc::clone(&self.cache), indexes.clone(), path.to_owned());
        let found = tokio::task::spawn_blocking(move || {
            wanted.iter().map(|index| cache.get(&name, *index)).collect::<Vec<_>>()
        });
        let found = found.await.map_err(|error| generic(Error::internal(format!("the cache: {error}"))))?;
        let mut parts: BTreeMap<u64, Bytes> = BTreeMap::new();
        let mut missing: Vec<u64> = Vec::new();
        for (index, part) in indexes.into_iter().zip(found) {
            match part {
                Some(bytes) => drop(parts.insert(index, bytes)),
                None => missing.push(index),
            }
        }
        metrics::counter!("wattlake_cache_hits_total").increment(parts.len() as u64);
        metrics::counter!("wattlake_cache_misses_total").increment(missing.len() as u64);
        // Neighbours in one request.
        let runs: Vec<&[u64]> = missing.chunk_by(|a, b| a + 1 == *b).collect();
        let runs: Vec<Range<u64>> = runs
            .iter()
            .map(|run| run[0] * PART_BYTES..((run[run.len() - 1] + 1) * PART_BYTES).min(size))
            .collect();
        let fetched = self.fetch(path, &runs).await?;
        let mut new = Vec::with_capacity(missing.len());
        for (run, bytes) in runs.iter().zip(fetched) {
            for at in (run.start..run.end).step_by(PART_BYTES as usize) {
                let (from, to) = (at - run.start, (at + PART_BYTES).min(run.end) - run.start);
                let part = bytes.slice(from as usize..to as usize);
                parts.insert(at / PART_BYTES, part.clone());
                new.push((at / PART_BYTES, part));
            }
        }
        let (cache, name) = (Arc::clone(&self.cache), path.to_owned());
        // The answer does not wait for it.
        tokio::task::spawn_blocking(move || {
            new.iter().for_each(|(index, part)| cache.put(&name, *index, part));
        });
        Ok(ranges.iter().map(|range| assemble(&parts, range)).collect())
    }

    /// Reads ranges from the store, few bytes a request, and makes sure that all of them came.
    async fn fetch(&self, path: &str, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        let target = ObjectPath::from(path);
        let read = |range: Range<u64>| {
            let target = target.clone();
            async move {
                match self.asked(self.store.get_range(&target, range.clone())).await {
                    Err(error) if !matches!(error, object_store::Error::NotFound { .. }) => {
                        tracing::debug!(%error, path, "asking once more");
                        self.asked(self.store.get_range(&target, range)).await
                    }
                    outcome => outcome,
                }
            }
        };
        let mut pieces = Vec::new();
        for (i, range) in ranges.iter().enumerate() {
            let mut at = range.start;
            while at < range.end {
                let end = range.end.min(at + READ_BYTES_MAX);
                pieces.push((i, at..end));
                at = end;
            }
        }
        let got: Vec<(usize, Bytes)> = stream::iter(pieces)
            .map(|(i, range)| {
                let read = read(range);
                async move { Ok::<_, object_store::Error>((i, read.await?)) }
            })
            .buffered(READS_SIDE_BY_SIDE)
            .try_collect()
            .await?;
        let mut out: Vec<Vec<Bytes>> = vec![Vec::new(); ranges.len()];
        for (i, bytes) in got {
            out[i].push(bytes);
        }
        let joined = out.into_iter().map(|parts| match <[Bytes; 1]>::try_from(parts) {
            Ok([whole]) => whole,
            Err(parts) => parts.concat().into(),
        });
        let joined: Vec<Bytes> = joined.collect();
        for (bytes, range) in joined.iter().zip(ranges) {
            if bytes.len() as u64 != range.end - range.start {
                return Err(generic(Error::new(
                    ErrorKind::Unavailable,
                    format!("object storage: {path}: {} bytes came of {range:?}", bytes.len()),
                )));
            }
        }
        Ok(joined)
    }

    /// Makes a request if the circuit is closed, and ends it when it stalls.
    async fn asked<T>(
        &self,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> object_store::Result<T> {
        self.breaker.ask().map_err(generic)?;
        let outcome = tokio::time::timeout(READ_TIMEOUT, request).await.unwrap_or_else(|_| {
            Err(generic(Error::new(
                ErrorKind::Unavailable,
                format!("object storage: an answer did not come within {READ_TIMEOUT:?}"),
            )))
        });
        self.breaker.note(&match &outcome {
            Ok(_) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(Error::new(ErrorKind::Unavailable, error.to_string())),
        });
        outcome
    }
}

/// A range out of the parts that it lies in.
fn assemble(parts: &BTreeMap<u64, Bytes>, range: &Range<u64>) -> Bytes {
    let mut pieces = Vec::new();
    for (index, part) in parts.range(range.start / PART_BYTES..range.end.div_ceil(PART_BYTES)) {
        let start = index * PART_BYTES;
        let from = range.start.saturating_sub(start).min(part.len() as u64);
        let to = (range.end - start).min(part.len() as u64);
        pieces.push(part.slice(from as usize..to as usize));
    }
    match <[Bytes; 1]>::try_from(pieces) {
        Ok([whole]) => whole,
        Err(pieces) => pieces.concat().into(),
    }
}
