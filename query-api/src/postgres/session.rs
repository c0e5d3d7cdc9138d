//! What a connection remembers.

use std::{collections::HashMap, sync::Arc, time::Duration};

use datafusion::sql::sqlparser::ast::Statement;
use parking_lot::Mutex;
use pgwire::error::PgWireResult;
use tokio::sync::Notify;
use wattlake_catalog::Access;

use super::{
    Server,
    backend::{Ask, View},
    errors::error,
};

/// Prepared statements of a connection.
const STATEMENTS_MAX: usize = 1000;
/// Bytes of their texts.
const STATEMENT_BYTES_MAX: usize = 16 << 20;
/// Portals and cursors of a connection: each keeps a query.
const PORTALS_MAX: usize = 16;

/// How long a cursor lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cursor {
    Transaction,
    /// `WITH HOLD`
    Connection,
}

pub(super) struct Session {
    pub server: Arc<Server>,
    /// Tells the running query to stop.
    pub cancelled: Arc<Notify>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    access: Option<Access>,
    timeout: Option<Duration>,
    settings: HashMap<String, String>,
    /// Bytes of the text of each prepared statement.
    statements: HashMap<String, usize>,
    /// Portals, and which of them are cursors.
    portals: HashMap<String, Option<Cursor>>,
    transaction: Option<Transaction>,
}

struct Transaction {
    is_repeatable: bool,
    view: Option<View>,
}

impl Session {
    pub(super) fn new(server: Arc<Server>) -> Self {
        Self { server, cancelled: Arc::default(), state: Mutex::default() }
    }

    pub(super) fn admit(&self, access: Access) {
        self.state.lock().access = Some(access);
    }

    /// A question of this connection: of its token, within its time, about the state that its transaction sees.
    pub(super) fn ask(&self, statement: &Arc<Statement>) -> PgWireResult<Ask> {
        let mut state = self.state.lock();
        let access = state.access.clone().ok_or_else(|| error("28000", "not authenticated"))?;
        let timeout = state.timeout;
        let view =
            state.transaction.as_mut().filter(|transaction| transaction.is_repeatable).map(|transaction| {
                transaction.view.get_or_insert_with(|| self.server.backend.view()).clone()
            });
        Ok(Ask { statement: Arc::clone(statement), params: Vec::new(), access, timeout, view })
    }

    pub(super) fn begin(&self, is_repeatable: bool) {
        let transaction = Transaction { is_repeatable, view: None };
        self.state.lock().transaction = Some(transaction);
    }

    /// `SET TRANSACTION`: counts for a transaction that has asked nothing yet.
    pub(super) fn set_isolation(&self, is_repeatable: bool) {
        if let Some(transaction) = &mut self.state.lock().transaction {
            transaction.is_repeatable = is_repeatable;
        }
    }

    pub(super) fn end(&self) {
        self.state.lock().transaction = None;
    }

    /// Whether a state of the archive stays because of this connection.
    pub(super) fn keeps_snapshot(&self) -> bool {
        self.state.lock().transaction.as_ref().is_some_and(|transaction| transaction.view.is_some())
    }

    pub(super) fn set_timeout(&self, timeout: Option<Duration>) {
        self.state.lock().timeout = timeout;
    }

    pub(super) fn timeout(&self) -> Option<Duration> {
        self.state.lock().timeout
    }

    pub(super) fn set(&self, name: &str, value: String) {
        self.state.lock().settings.insert(name.to_owned(), value);
    }

    pub(super) fn unset(&self, name: &str) {
        self.state.lock().settings.remove(name);
    }

    pub(super) fn setting(&self, name: &str) -> Option<String> {
        self.state.lock().settings.get(name).cloned()
    }

    pub(super) fn reset(&self) {
        let mut state = self.state.lock();
        state.settings.clear();
        state.timeout = None;
    }

    pub(super) fn count_statement(&self, name: &str, bytes: usize) -> PgWireResult<()> {
        let statements = &mut self.state.lock().statements;
        let others = statements.iter().filter(|(other, _)| *other != name).map(|(_, bytes)| bytes);
        let total: usize = others.sum();
        if total + bytes > STATEMENT_BYTES_MAX
            || (statements.len() >= STATEMENTS_MAX && !statements.contains_key(name))
        {
            return Err(error(
                "53400",
                format!(
                    "more than {STATEMENTS_MAX} prepared statements or {STATEMENT_BYTES_MAX} bytes of them; close some"
                ),
            ));
        }
        statements.insert(name.to_owned(), bytes);
        Ok(())
    }

    pub(super) fn forget_statement(&self, name: &str) {
        self.state.lock().statements.remove(name);
    }

    /// Names of the prepared statements, forgotten.
    pub(super) fn take_statements(&self) -> Vec<String> {
        self.state.lock().statements.drain().map(|(name, _)| name).collect()
    }

    /// Makes room for a portal, which is a cursor if `cursor` says so.
    pub(super) fn count_portal(&self, name: &str, cursor: Option<Cursor>) -> PgWireResult<()> {
        let portals = &mut self.state.lock().portals;
        if portals.len() >= PORTALS_MAX && !portals.contains_key(name) {
            return Err(error("53400", format!("more than {PORTALS_MAX} portals and cursors; close some")));
        }
        if cursor.is_some() && portals.contains_key(name) {
            return Err(error("42P03", format!("cursor \"{name}\" already exists")));
        }
        portals.insert(name.to_owned(), cursor);
        Ok(())
    }

    pub(super) fn forget_portal(&self, name: &str) -> bool {
        self.state.lock().portals.remove(name).is_some()
    }

    /// Names of the portals that end now, forgotten.
    pub(super) fn take_portals(&self, ends: impl Fn(Option<Cursor>) -> bool) -> Vec<String> {
        let portals = &mut self.state.lock().portals;
        portals.extract_if(|_, cursor| ends(*cursor)).map(|(name, _)| name).collect()
    }
}
