//! What a turn does about a failure.

use super::{FAILURES_MAX, Next, Work};
use crate::sources::{
    SECOND,
    ask::{Asker, Trouble},
    connector::{Stream, Window},
    cursor::DAY,
    failure::{CallFailure, Class},
};

const MINUTE: i64 = 60 * SECOND;
/// The first wait after a failure, doubled with each further one.
pub(super) const BACKOFF: i64 = 5 * SECOND;
const BACKOFF_MAX: i64 = 15 * MINUTE;

impl Work {
    /// What is done about a failure, by its class.
    pub(super) async fn handle(
        &mut self,
        asker: &Asker,
        stream: &Stream,
        window: Window,
        trouble: Trouble,
    ) -> Next {
        let failure = match trouble {
            Trouble::Later(at) => return Next::Later(at),
            Trouble::Failed(failure) => failure,
        };
        metrics::counter!("wattlake_source_failures_total").increment(1);
        tracing::debug!(source = %self.settings.id, stream = stream.name, class = ?failure.class, %failure, "a call failed");
        let now = asker.now();
        match failure.class {
            Class::Retry => self.fail(asker, &failure),
            Class::Throttled { until } => Next::Later(until),
            Class::QuotaExhausted => {
                let limits = self.settings.limits;
                self.error = Some(failure.message.clone());
                match asker.with_ledger(&self.settings, |ledger| ledger.exhaust(&limits, now)).await {
                    Ok(until) => Next::Later(until),
                    Err(error) => self.fail(asker, &CallFailure::new(Class::Retry, error.message)),
                }
            }
            Class::Forbidden => {
                let mut cursor = self.cursor(stream).clone();
                cursor.closed_until = now + DAY;
                self.error = Some(failure.message.clone());
                match self.save(asker, stream, cursor).await {
                    Ok(()) => Next::Done,
                    Err(error) => self.fail(asker, &CallFailure::new(Class::Retry, error.message)),
                }
            }
            Class::WindowTooLarge if self.shrink(asker, stream, window).await => Next::Later(now),
            Class::NoDataYet => Next::Done,
            Class::WindowTooLarge | Class::BadPayload => self.note(&failure),
            Class::AuthExpired | Class::AuthDead | Class::Gone | Class::Refused => {
                tracing::warn!(source = %self.settings.id, name = self.settings.name, %failure, "a source is not asked any more");
                self.error = Some(failure.message.clone());
                self.stopped = Some(failure);
                Next::Stop
            }
        }
    }

    /// Something that the next turn may find otherwise.
    pub(super) fn note(&mut self, failure: &CallFailure) -> Next {
        self.error = Some(failure.message.clone());
        Next::Done
    }

    /// Comes back after a while, ever longer; after many failures at the next turn only.
    pub(super) fn fail(&mut self, asker: &Asker, failure: &CallFailure) -> Next {
        Next::Later(self.back_off(asker, failure))
    }

    pub(super) fn back_off(&mut self, asker: &Asker, failure: &CallFailure) -> i64 {
        self.error = Some(failure.message.clone());
        self.failures += 1;
        let now = asker.now();
        let longest = BACKOFF.saturating_mul(1 << self.failures.min(20)).min(BACKOFF_MAX);
        // Full jitter: those that failed together do not come back together.
        let wait = (rand::random::<f64>() * longest as f64) as i64;
        if self.failures < FAILURES_MAX {
            return now + wait.max(SECOND);
        }
        self.settings.schedule.next_after(now, self.settings.phase()).max(now + BACKOFF_MAX / 2 + wait)
    }
}
