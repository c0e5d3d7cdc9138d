//! The rows of a running query.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use futures::Stream;
use tokio::{sync::mpsc, task::JoinHandle};

use crate::error::Result;

/// Batches of one query; dropping it stops the query.
pub(crate) struct ResultStream {
    schema: SchemaRef,
    receiver: mpsc::Receiver<Result<RecordBatch>>,
    task: JoinHandle<()>,
}

impl ResultStream {
    pub(super) fn new(
        schema: SchemaRef,
        receiver: mpsc::Receiver<Result<RecordBatch>>,
        task: JoinHandle<()>,
    ) -> Self {
        Self { schema, receiver, task }
    }

    pub(crate) fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}

impl Stream for ResultStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receiver.poll_recv(context)
    }
}

impl Drop for ResultStream {
    fn drop(&mut self) {
        self.task.abort();
    }
}
