//! Reading data files by ranges, nothing unchecked: ranges are widened to the blocks whose checksums the manifest has.
//!
//! So a flipped bit on disk, a byte lost on the way or an object that somebody replaced is an error that names the file, and
//! never a wrong number.

use std::{collections::HashMap, ops::Range, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream, stream::BoxStream};
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, path::Path,
};
use wattlake_catalog::{BlockSums, StoredFile};

use super::Storage;
use crate::Error;

const BLOCK: u64 = BlockSums::BLOCK_BYTES;

/// Some data files of the archive, for reading.
#[derive(Clone, Debug)]
pub struct CheckedStore {
    storage: Storage,
    files: Arc<HashMap<Path, StoredFile>>,
}

impl CheckedStore {
    pub fn new<'a>(storage: &Storage, files: impl IntoIterator<Item = &'a StoredFile>) -> Self {
        let files = files.into_iter().map(|stored| (Storage::object_path(stored), stored.clone()));
        Self { storage: storage.clone(), files: Arc::new(files.collect()) }
    }

    fn file(&self, path: &Path) -> Result<&StoredFile> {
        let unknown = || object_store::Error::NotFound {
            path: path.to_string(),
            source: "not a file of this snapshot".into(),
        };
        self.files.get(path).ok_or_else(unknown)
    }

    /// Reads ranges whose blocks have the sums that they had when they were written.
    pub(super) async fn read(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let file = self.file(path)?;
        if file.sums.is_empty() {
            return self.storage.read_ranges(path, ranges, Some(file.bytes)).await;
        }
        let mut wide: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
        let mut sorted = ranges.to_vec();
        sorted.sort_by_key(|range| range.start);
        for range in sorted {
            let end = range.end.next_multiple_of(BLOCK).min(file.bytes);
            let range = range.start / BLOCK * BLOCK..end;
            match wide.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => wide.push(range),
            }
        }
        let mut blocks = self.storage.read_ranges(path, &wide, Some(file.bytes)).await?;
        for (range, bytes) in wide.iter().zip(&mut blocks) {
            if matches(&file.sums, range, bytes) {
                continue;
            }
            // Perhaps only on the way, or in the cache.
            let _ = self.storage.drop_cached(path, range);
            let again = self.storage.read_ranges(path, std::slice::from_ref(range), Some(file.bytes)).await?;
            match again.into_iter().next() {
                Some(found) if matches(&file.sums, range, &found) => *bytes = found,
                _ => {
                    let _ = self.storage.drop_cached(path, range);
                    metrics::counter!("wattlake_checksum_failures_total").increment(1);
                    let error = Error::corrupt(format!(
                        "file {}: checksum mismatch in bytes {} to {}; `wattlake verify` looks at all files",
                        file.path, range.start, range.end
                    ));
                    return Err(object_store::Error::Generic { store: "archive", source: Box::new(error) });
                }
            }
        }
        let slice = |range: &Range<u64>| {
            let at = wide.partition_point(|wide| wide.end < range.end.min(file.bytes));
            let (wide, bytes) = (wide.get(at)?, blocks.get(at)?);
            let from = usize::try_from(range.start.checked_sub(wide.start)?).ok()?;
            let to = usize::try_from(range.end.min(file.bytes).checked_sub(wide.start)?).ok()?;
            (from <= to && to <= bytes.len()).then(|| bytes.slice(from..to))
        };
        let cut = ranges.iter().map(slice).collect::<Option<Vec<_>>>();
        cut.ok_or_else(|| object_store::Error::Generic {
            store: "archive",
            source: format!("ranges {ranges:?} do not lie in {} of {} bytes", file.path, file.bytes).into(),
        })
    }
}

fn matches(sums: &BlockSums, range: &Range<u64>, bytes: &Bytes) -> bool {
    let expected = sums.of(range);
    bytes.len() as u64 == range.end - range.start
        && bytes.chunks(BLOCK as usize).len() == expected.len()
        && bytes.chunks(BLOCK as usize).zip(expected).all(|(block, sum)| crc32c::crc32c(block) == *sum)
}

impl std::fmt::Display for CheckedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("archive")
    }
}

fn only_reads<T>(what: &str) -> Result<T> {
    Err(object_store::Error::NotSupported { source: format!("{what}: files are only read here").into() })
}

#[async_trait]
impl ObjectStore for CheckedStore {
    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let file = self.file(path)?;
        let range = match &options.range {
            None => 0..file.bytes,
            Some(range) => range.as_range(file.bytes).map_err(|error| object_store::Error::Generic {
                store: "archive",
                source: Box::new(error),
            })?,
        };
        let meta = ObjectMeta {
            location: path.clone(),
            last_modified: Default::default(),
            size: file.bytes,
            e_tag: None,
            version: None,
        };
        let read =
            if options.head { Vec::new() } else { self.read(path, std::slice::from_ref(&range)).await? };
        let payload = GetResultPayload::Stream(stream::iter(read.into_iter().map(Ok)).boxed());
        Ok(GetResult { payload, meta, range, attributes: Default::default() })
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.read(path, ranges).await
    }

    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        only_reads("put")
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        only_reads("put")
    }

    fn delete_stream(&self, _: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        stream::once(async { only_reads("delete") }).boxed()
    }

    fn list(&self, _: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        stream::once(async { only_reads("list") }).boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        only_reads("list")
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        only_reads("copy")
    }
}

#[cfg(test)]
mod tests;
