//! The rows of a running query.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use futures::Stream;
use tokio::{sync::mpsc, task::JoinHandle, time::Sleep};

use super::memory::GivenUp;
use crate::error::{ApiError, Kind, Result};

/// Batches of one query; dropping it stops the query.
pub(crate) struct ResultStream {
    schema: SchemaRef,
    receiver: mpsc::Receiver<Result<RecordBatch>>,
    task: JoinHandle<()>,
    end: Arc<End>,
    is_over: bool,
    given_up: GivenUp,
    /// How long one batch may take.
    limit: Duration,
    /// Runs while a batch is awaited.
    deadline: Option<Pin<Box<Sleep>>>,
}

/// A query looks at its clock between two steps of its work, and a step may be long. Who waits for it does not wait longer
/// than this beyond its limit.
pub(super) const STEP: Duration = Duration::from_secs(1);

/// Why there are no more batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reached {
    /// The last one, or an error, was sent.
    Complete,
    /// Nobody took them.
    Unread,
}

/// Set once; not at all by a query that died.
#[derive(Debug, Default)]
pub(super) struct End(OnceLock<Reached>);

impl End {
    pub(super) fn set(&self, reached: Reached) {
        let _ = self.0.set(reached);
    }
}

impl ResultStream {
    pub(super) fn new(
        schema: SchemaRef,
        receiver: mpsc::Receiver<Result<RecordBatch>>,
        task: JoinHandle<()>,
        end: Arc<End>,
        given_up: GivenUp,
        limit: Duration,
    ) -> Self {
        Self { schema, receiver, task, end, is_over: false, given_up, limit, deadline: None }
    }

    pub(super) fn set_schema(&mut self, schema: SchemaRef) {
        self.schema = schema;
    }

    fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
        self.task.abort();
    }

    pub(crate) fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}

impl Stream for ResultStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let Poll::Ready(batch) = self.receiver.poll_recv(context) else {
            let limit = self.limit;
            let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit + STEP)));
            ready!(deadline.as_mut().poll(context));
            self.is_over = true;
            self.give_up();
            return Poll::Ready(Some(Err(too_long(limit))));
        };
        self.deadline = None;
        if let Some(batch) = batch {
            return Poll::Ready(Some(batch));
        }
        self.is_over = true;
        // A result must not look complete when it is not.
        Poll::Ready(match self.end.0.get() {
            Some(Reached::Complete) => None,
            Some(Reached::Unread) => Some(Err(ApiError::new(
                Kind::TimedOut,
                "the rows were not read for 30 seconds, so the query was given up; read faster or ask for less",
            ))),
            None => {
                Some(Err(ApiError::internal("the query failed unexpectedly; the server's log says more")))
            }
        })
    }
}

pub(super) fn too_long(limit: Duration) -> ApiError {
    let limit = wattlake_config::Period(limit);
    ApiError::new(Kind::TimedOut, format!("the query took longer than query.timeout = {limit}"))
}

impl Drop for ResultStream {
    fn drop(&mut self) {
        self.give_up();
    }
}
