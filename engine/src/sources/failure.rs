//! What can go wrong when a vendor is asked, and what is done about it: one table for all connectors.

use std::fmt;

/// Characters of an answer that an error quotes.
const QUOTED_CHARS_MAX: usize = 200;

/// What the runner does about a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Network, timeout, 5xx: asked again after a while, ever longer.
    Retry,
    /// All calls of the credential wait until then, microseconds since 1970 UTC.
    Throttled { until: i64 },
    /// The calls of this month are used up.
    QuotaExhausted,
    /// The access token is refreshed once, and the call made once more.
    AuthExpired,
    /// Nothing is asked any more until somebody authorises again.
    AuthDead,
    /// This kind of answer is not given for this site: asked again a day later.
    Forbidden,
    /// The window is halved, and the limit remembered.
    WindowTooLarge,
    /// No error: the same window is asked for at the next turn.
    NoDataYet,
    /// The interface was switched off for good.
    Gone,
    /// An answer that does not say what it should; asked again at the next turn.
    BadPayload,
    /// What was asked is wrong: settings must be changed first.
    Refused,
}

/// A failed call, in words that a user understands and without secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CallFailure {
    pub class: Class,
    pub message: String,
}

impl CallFailure {
    pub(crate) fn new(class: Class, message: impl Into<String>) -> Self {
        Self { class, message: message.into() }
    }

    pub(crate) fn bad_payload(message: impl fmt::Display, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(&body[..body.len().min(4 * QUOTED_CHARS_MAX)]);
        let start: String = text.chars().filter(|c| !c.is_control()).take(QUOTED_CHARS_MAX).collect();
        Self::new(Class::BadPayload, format!("{message}; the answer begins with `{start}`"))
    }
}

impl fmt::Display for CallFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Secrets that no message, log line or file may hold.
#[derive(Clone, Default)]
pub(crate) struct Secrets(Vec<String>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(***)")
    }
}

impl Secrets {
    /// Shorter texts would be found in words that are no secret.
    const CHARS_MIN: usize = 4;

    pub(crate) fn add(&mut self, secret: &str) {
        if secret.chars().count() >= Self::CHARS_MIN && !self.0.iter().any(|known| known == secret) {
            self.0.push(secret.to_owned());
            // Longer ones first: one may begin with another.
            self.0.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        }
    }

    /// A text with every secret replaced.
    pub(crate) fn redact(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "***"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_most_of_an_answer_stay_out_of_messages() {
        let mut secrets = Secrets::default();
        secrets.add("key-12");
        secrets.add("key-123456");
        assert_eq!(secrets.redact("at key-123456, not key-12"), "at ***, not ***");
        let body = "x\n".repeat(100_000);
        let failure = CallFailure::bad_payload("no JSON", body.as_bytes());
        assert!(failure.message.len() < 512 && !failure.message.contains('\n'), "{}", failure.message);
    }
}
