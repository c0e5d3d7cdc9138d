//! A circuit breaker: while a store fails, callers are told so at once instead of waiting for it each.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::RngExt;

use crate::{Error, ErrorKind, Result};

/// Failures in a row after which nobody asks any more.
const FAILURES_MAX: u32 = 3;
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// Until then nobody asks; afterwards one does.
    closed_until: Option<Instant>,
    pause: Duration,
    last_error: String,
}

/// Closed circuits let requests pass; after failures in a row the circuit opens for a while, then one request at a time tries.
#[derive(Debug, Default)]
pub(super) struct Breaker(Mutex<State>);

impl Breaker {
    /// Whether a request may be made now.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] with the last error of the store.
    pub(super) fn ask(&self) -> Result<()> {
        let mut state = self.0.lock();
        match state.closed_until {
            Some(until) if Instant::now() < until => Err(Error::new(
                ErrorKind::Unavailable,
                format!("object storage is not asked for a moment, since it failed: {}", state.last_error),
            )),
            Some(_) => {
                // This one tries; the others wait for what becomes of it.
                state.closed_until = Some(Instant::now() + state.pause);
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.0.lock().closed_until.is_some()
    }

    pub(super) fn note<T>(&self, outcome: &Result<T>) {
        let mut state = self.0.lock();
        match outcome {
            Err(error) if error.kind == ErrorKind::Unavailable => {
                state.failures += 1;
                state.last_error.clone_from(&error.message);
                if state.failures >= FAILURES_MAX {
                    let doubled = (state.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
                    state.pause = doubled;
                    // Several servers shall not come back in step.
                    let jitter = rand::rng().random_range(0.8..1.2);
                    state.closed_until = Some(Instant::now() + doubled.mul_f64(jitter));
                    metrics::gauge!("wattlake_storage_circuit_open").set(1.0);
                }
            }
            _ if state.failures > 0 => {
                *state = State::default();
                metrics::gauge!("wattlake_storage_circuit_open").set(0.0);
            }
            _ => {}
        }
    }
}
