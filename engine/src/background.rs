//! Work beside ingest and queries: sorting, encoding, merging. Each piece has a thread of its own with a lower priority,
//! so that it takes the CPU that requests leave.

use crate::{Error, ErrorKind, Result};

/// Niceness of background threads; requests have 0.
const NICENESS: i32 = 10;

/// Does CPU work on a thread of its own.
///
/// # Errors
/// Those of the work; [`ErrorKind::Internal`] when it panicked.
///
/// # Cancel safety
/// Once started, the work goes on to its end even if nobody waits for it.
pub(crate) async fn run<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (reply, answer) = tokio::sync::oneshot::channel();
    let thread = move || {
        // Threads, not processes, have a niceness on Linux. Without the right to change it, work goes on as it is.
        let _ = rustix::process::setpriority_process(None, NICENESS);
        let _ = reply.send(work());
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(thread)
        .map_err(|error| Error::new(ErrorKind::Unavailable, format!("cannot start a thread: {error}")))?;
    // A panic drops the sender; the panic hook has said what happened.
    answer.await.map_err(|_| Error::internal(format!("{name} panicked")))?
}
