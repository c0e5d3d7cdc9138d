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
    /// While the circuit is open: when somebody asks again.
    retry_at: Option<Instant>,
    /// Somebody asks, to see whether the store is back.
    is_trying: bool,
    pause: Duration,
    last_error: String,
}

/// A closed circuit lets requests pass; after failures in a row it opens for a while, then one request at a time tries.
#[derive(Debug, Default)]
pub(super) struct Breaker(Mutex<State>);

impl Breaker {
    /// Whether a request may be made now.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] with the last error of the store.
    pub(super) fn ask(&self) -> Result<()> {
        let mut state = self.0.lock();
        match state.retry_at {
            Some(at) if Instant::now() < at => Err(Error::new(
                ErrorKind::Unavailable,
                format!("object storage is not asked for a moment, since it failed: {}", state.last_error),
            )),
            Some(_) => {
                // The others wait for what becomes of this one, but not for ever: it may never end.
                state.retry_at = Some(Instant::now() + state.pause);
                state.is_trying = true;
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.0.lock().retry_at.is_some()
    }

    pub(super) fn note<T>(&self, outcome: &Result<T>) {
        let mut state = self.0.lock();
        match outcome {
            Err(error) if error.kind == ErrorKind::Unavailable => {
                state.failures += 1;
                state.last_error.clone_from(&error.message);
                // Requests that were under way when the circuit opened say nothing new.
                let is_news = state.retry_at.is_none() || state.is_trying;
                if state.failures >= FAILURES_MAX && is_news {
                    state.is_trying = false;
                    state.pause = (state.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
                    // Several servers shall not come back in step.
                    let jitter = rand::rng().random_range(0.8..1.2);
                    state.retry_at = Some(Instant::now() + state.pause.mul_f64(jitter));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_open_it_and_a_success_closes_it() {
        let breaker = Breaker::default();
        let failed = || Err::<(), _>(Error::new(ErrorKind::Unavailable, "no route to the store"));
        for _ in 1..FAILURES_MAX {
            breaker.note(&failed());
        }
        breaker.note(&Ok(()));
        for _ in 0..FAILURES_MAX {
            assert!(breaker.ask().is_ok() && !breaker.is_open());
            breaker.note(&failed());
        }
        let error = breaker.ask().expect_err("open");
        assert!(error.kind == ErrorKind::Unavailable && error.message.contains("no route"), "{error}");
        // A burst of requests that were under way is one failure.
        (0..20).for_each(|_| breaker.note(&failed()));
        assert_eq!(breaker.0.lock().pause, PAUSE_MIN);
        // Each attempt that fails doubles the pause, up to a limit.
        for _ in 0..10 {
            breaker.0.lock().retry_at = Some(Instant::now());
            breaker.ask().expect("one tries");
            assert!(breaker.ask().is_err(), "and no other");
            breaker.note(&failed());
        }
        assert_eq!(breaker.0.lock().pause, PAUSE_MAX);
        breaker.note(&Ok(()));
        assert!(breaker.ask().is_ok() && !breaker.is_open());
        // What is wrong with a request says nothing of the store.
        (0..9).for_each(|_| breaker.note(&Err::<(), _>(Error::invalid("no such thing"))));
        assert!(!breaker.is_open());
    }
}
