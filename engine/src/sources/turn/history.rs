//! The step of a backfill that a turn takes.

use super::{Next, Work, observe, trouble::BACKOFF};
use crate::sources::{
    ask::{Asker, Trouble},
    backfill::Backfill,
    budget::Purpose,
    connector::{Decoded, Stream, Window},
    failure::{CallFailure, Class},
};

/// Calls of a backfill in one turn, so that what is new need not wait for them.
const BACKFILL_MAX: usize = 16;
/// Answers to one call of a backfill that may be unreadable.
const UNREAD_MAX: u32 = 8;

impl Work {
    pub(super) async fn step_backfill(&mut self, asker: &Asker) -> Next {
        for _ in 0..BACKFILL_MAX {
            let Some(mut backfill) = self.backfill.take().filter(|backfill| !backfill.is_cancelled()) else {
                return Next::Done;
            };
            let span = |stream: &Stream| self.cursor(stream).span(stream);
            let Some((stream, window)) = backfill.next(&self.streams, span, asker.now()) else {
                backfill.finish(asker).await;
                return Next::Done;
            };
            if self.cursor(&stream).closed_until > asker.now() {
                backfill.skip_stream();
                self.backfill = Some(backfill);
                continue;
            }
            let outcome = self.ask(asker, Purpose::Extra, &stream, window).await;
            let next = self.take_history(asker, backfill, &stream, window, outcome).await;
            if !matches!(next, Next::Done) {
                return next;
            }
        }
        Next::Later(asker.now())
    }

    /// Stores a window of history together with the step of its job, or does what is to be done about a failure.
    pub(super) async fn take_history(
        &mut self,
        asker: &Asker,
        mut backfill: Backfill,
        stream: &Stream,
        window: Window,
        outcome: Result<Decoded, Trouble>,
    ) -> Next {
        let trouble = match outcome {
            Ok(decoded) => return self.store_history(asker, backfill, stream, window, &decoded).await,
            Err(trouble) => trouble,
        };
        match &trouble {
            Trouble::Failed(failure) => match failure.class {
                Class::AuthDead | Class::Gone | Class::Refused => {
                    backfill.fail(asker, &failure.message).await;
                    return self.handle(asker, stream, window, trouble).await;
                }
                // The vendor knows nothing of that time.
                Class::NoDataYet => {
                    return self.store_history(asker, backfill, stream, window, &Decoded::default()).await;
                }
                Class::BadPayload => {
                    backfill.step.unread += 1;
                    if backfill.step.unread >= UNREAD_MAX {
                        let words =
                            format!("{}; the same window was asked for {UNREAD_MAX} times", failure.message);
                        backfill.fail(asker, &words).await;
                        return Next::Done;
                    }
                    let wait = BACKOFF << backfill.step.unread;
                    self.backfill = Some(backfill);
                    return Next::Later(asker.now() + wait);
                }
                _ => {}
            },
            Trouble::Later(_) => {}
        }
        self.backfill = Some(backfill);
        self.handle(asker, stream, window, trouble).await
    }

    pub(super) async fn store_history(
        &mut self,
        asker: &Asker,
        backfill: Backfill,
        stream: &Stream,
        window: Window,
        decoded: &Decoded,
    ) -> Next {
        let mut cursor = self.cursor(stream).clone();
        observe(&mut cursor, stream, decoded);
        let after = backfill.after(window, decoded.points.len() as u64);
        let mut stored = self.write(asker, stream, cursor, decoded, Some(after.progress())).await;
        if stored.is_ok() {
            self.backfill = Some(after);
            // History is asked for once.
            stored = self.note_gaps(asker, stream, window, decoded, true).await;
        } else {
            self.backfill = Some(backfill);
        }
        match stored {
            Ok(()) => {
                self.failures = 0;
                Next::Done
            }
            Err(error) => self.fail(asker, &CallFailure::new(Class::Retry, error.message)),
        }
    }
}
