//! Reading a Parquet file of the archive by ranges.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use futures::{FutureExt, TryFutureExt, future::BoxFuture};
use object_store::path::Path;
use parquet::{
    arrow::{arrow_reader::ArrowReaderOptions, async_reader::AsyncFileReader},
    errors::{ParquetError, Result},
    file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader},
};
use wattlake_catalog::StoredFile;

use super::{CheckedStore, Storage};

pub(super) struct ObjectReader {
    store: CheckedStore,
    path: Path,
    bytes: u64,
    footer_bytes: usize,
}

impl ObjectReader {
    pub(super) fn new(storage: &Storage, stored: &StoredFile) -> Self {
        Self {
            store: CheckedStore::new(storage, [stored]),
            path: Storage::object_path(stored),
            bytes: stored.bytes,
            footer_bytes: stored.footer_bytes as usize,
        }
    }
}

fn external(error: object_store::Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}

impl AsyncFileReader for ObjectReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes>> {
        async move {
            let read = self.store.read(&self.path, std::slice::from_ref(&range)).await.map_err(external)?;
            Ok(read.into_iter().next().unwrap_or_default())
        }
        .boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>>> {
        async move { self.store.read(&self.path, &ranges).map_err(external).await }.boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>>> {
        async move {
            // The manifest knows the footer's length: one request gets all of it.
            let policy = options.map_or(PageIndexPolicy::Skip, ArrowReaderOptions::offset_index_policy);
            let reader = ParquetMetaDataReader::new()
                .with_offset_index_policy(policy)
                .with_prefetch_hint(Some(self.footer_bytes + 8));
            let bytes = self.bytes;
            reader.load_and_finish(self, bytes).await.map(Arc::new)
        }
        .boxed()
    }
}
