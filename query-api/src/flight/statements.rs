//! Prepared statements, which live between calls.

use std::{collections::HashMap, time::Instant};

use bytes::Bytes;
use datafusion::common::ScalarValue;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::error::{ApiError, Kind, Result};

/// Of all clients; the one that was used longest ago makes room.
const STATEMENTS_MAX: usize = 1000;

#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub query: String,
    pub params: Vec<ScalarValue>,
    /// Nobody else may use it.
    pub token_id: String,
    used: Instant,
}

/// By handle.
#[derive(Default)]
pub(super) struct Statements(Mutex<HashMap<Bytes, Prepared>>);

impl Statements {
    pub(super) fn add(&self, query: String, token_id: &str) -> Bytes {
        let handle = Bytes::copy_from_slice(Uuid::new_v4().as_bytes());
        let mut all = self.0.lock();
        if all.len() >= STATEMENTS_MAX {
            let oldest =
                all.iter().min_by_key(|(_, prepared)| prepared.used).map(|(handle, _)| handle.clone());
            oldest.and_then(|handle| all.remove(&handle));
        }
        let prepared =
            Prepared { query, params: Vec::new(), token_id: token_id.to_owned(), used: Instant::now() };
        all.insert(handle.clone(), prepared);
        handle
    }

    fn with<T>(&self, handle: &Bytes, token_id: &str, act: impl FnOnce(&mut Prepared) -> T) -> Result<T> {
        let mut all = self.0.lock();
        match all.get_mut(handle).filter(|prepared| prepared.token_id == token_id) {
            Some(prepared) => {
                prepared.used = Instant::now();
                Ok(act(prepared))
            }
            None => Err(ApiError::new(
                Kind::NotFound,
                format!(
                    "no such prepared statement; it was closed, or {STATEMENTS_MAX} others were used since"
                ),
            )),
        }
    }

    pub(super) fn get(&self, handle: &Bytes, token_id: &str) -> Result<Prepared> {
        self.with(handle, token_id, |prepared| prepared.clone())
    }

    pub(super) fn bind(&self, handle: &Bytes, token_id: &str, params: Vec<ScalarValue>) -> Result<()> {
        self.with(handle, token_id, |prepared| prepared.params = params)
    }

    pub(super) fn close(&self, handle: &Bytes, token_id: &str) {
        self.0.lock().retain(|other, prepared| other != handle || prepared.token_id != token_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_its_tokens_own_and_the_oldest_makes_room() {
        let statements = Statements::default();
        let first = statements.add("SELECT 1".into(), "a");
        assert!(statements.get(&first, "b").is_err());
        statements.close(&first, "b");
        assert_eq!(statements.get(&first, "a").expect("ours").query, "SELECT 1");
        let second = statements.add("SELECT 2".into(), "a");
        for _ in 2..STATEMENTS_MAX {
            statements.add("SELECT 3".into(), "a");
        }
        assert!(statements.get(&first, "a").is_ok(), "a thousand fit");
        statements.add("SELECT 4".into(), "a");
        assert!(statements.get(&second, "a").is_err(), "the second was used longest ago");
        assert!(statements.get(&first, "a").is_ok());
        statements.close(&first, "a");
        assert!(statements.get(&first, "a").is_err());
    }
}
