//! A store that fails on demand, for tests.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, path::Path,
};

/// When an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Nothing was done.
    Before,
    /// It was done, and the answer was lost.
    After,
}

/// Fails one of the operations that follow; shared between the store and the test.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    /// Operations until the one that fails; negative: it has failed.
    left: Arc<AtomicI64>,
    moment: Moment,
}

impl Fault {
    /// Fails the `nth` operation from now on, counted from 1.
    pub(crate) fn new(nth: i64, moment: Moment) -> Self {
        Self { left: Arc::new(AtomicI64::new(nth)), moment }
    }

    pub(crate) fn has_fired(&self) -> bool {
        self.left.load(Ordering::SeqCst) <= 0
    }

    fn is_due(&self) -> bool {
        self.left.fetch_sub(1, Ordering::SeqCst) == 1
    }

    fn error() -> Error {
        Error::Generic { store: "faulty", source: "planted failure".into() }
    }
}

#[derive(Debug)]
pub(crate) struct FaultyStore {
    pub inner: Arc<dyn ObjectStore>,
    pub fault: Fault,
}

impl std::fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("faulty")
    }
}

impl FaultyStore {
    fn refuse_read(&self) -> Result<()> {
        // A read whose answer is lost is one that failed.
        if self.fault.moment == Moment::Before && self.fault.is_due() { Err(Fault::error()) } else { Ok(()) }
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let is_due = self.fault.is_due();
        if is_due && self.fault.moment == Moment::Before {
            return Err(Fault::error());
        }
        let done = self.inner.put_opts(path, payload, options).await;
        if is_due { Err(Fault::error()) } else { done }
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.refuse_read()?;
        self.inner.get_opts(path, options).await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.refuse_read()?;
        self.inner.get_ranges(path, ranges).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let fault = self.fault.clone();
        if fault.is_due() && fault.moment == Moment::Before {
            return futures::stream::once(async { Err(Fault::error()) }).boxed();
        }
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
