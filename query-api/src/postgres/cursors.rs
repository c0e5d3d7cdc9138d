//! `DECLARE`, `FETCH`, `CLOSE`: cursors are portals that statements read from.

use std::sync::Arc;

use datafusion::sql::sqlparser::ast::{
    CloseCursor, Declare, DeclareType, FetchDirection, Statement, ValueWithSpan,
};
use futures::{StreamExt, stream};
use pgwire::{
    api::{
        portal::{Format, Portal, PortalExecutionState},
        results::{QueryResponse, Response, Tag},
        stmt::StoredStatement,
        store::{Entry, MemPortalStore, PortalStore},
    },
    error::PgWireResult,
    messages::response::TransactionStatus,
};

use super::{
    errors::error,
    handler::to_response,
    session::{Cursor, Session},
    statements::Prepared,
};

type Store = MemPortalStore<Prepared>;

/// Runs a statement about cursors; `None` for any other.
pub(super) async fn execute(
    session: &Session,
    status: TransactionStatus,
    store: &Store,
    statement: &Statement,
) -> PgWireResult<Option<Response>> {
    let done = |tag: &str| Ok(Some(Response::Execution(Tag::new(tag))));
    match statement {
        Statement::Declare { stmts } => {
            for cursor in stmts {
                declare(session, status, store, cursor).await?;
            }
            done("DECLARE CURSOR")
        }
        Statement::Fetch { name, direction, into: None, .. } => {
            fetch(store, &name.value, direction).await.map(|rows| Some(Response::Query(rows)))
        }
        Statement::Close { cursor: CloseCursor::All } => {
            session.take_portals(|cursor| cursor.is_some()).iter().for_each(|name| store.rm_portal(name));
            done("CLOSE CURSOR ALL")
        }
        Statement::Close { cursor: CloseCursor::Specific { name } } => {
            if !session.forget_portal(&name.value) {
                return Err(no_cursor(&name.value));
            }
            store.rm_portal(&name.value);
            done("CLOSE CURSOR")
        }
        _ => Ok(None),
    }
}

fn no_cursor(name: &str) -> pgwire::error::PgWireError {
    error("34000", format!("cursor \"{name}\" does not exist"))
}

async fn declare(
    session: &Session,
    status: TransactionStatus,
    store: &Store,
    cursor: &Declare,
) -> PgWireResult<()> {
    let (Some(DeclareType::Cursor), [name], Some(query)) =
        (&cursor.declare_type, &cursor.names[..], &cursor.for_query)
    else {
        return Err(error("42601", "DECLARE name CURSOR FOR query is meant"));
    };
    if cursor.scroll == Some(true) {
        return Err(error("0A000", "cursors go forward only"));
    }
    let lives = if cursor.hold == Some(true) { Cursor::Connection } else { Cursor::Transaction };
    if status == TransactionStatus::Idle && lives == Cursor::Transaction {
        return Err(error("25P01", "DECLARE CURSOR can only be used in transaction blocks"));
    }
    session.count_portal(&name.value, Some(lives))?;
    let statement = Arc::new(Statement::Query(query.clone()));
    let format = if cursor.binary == Some(true) { Format::UnifiedBinary } else { Format::UnifiedText };
    let started = async {
        let rows = session.server.backend.rows(session.ask(&statement)?).await?;
        let prepared = Prepared::of_rows(statement, rows.schema());
        let stored = Arc::new(StoredStatement::new(name.value.clone(), prepared, Vec::new()));
        let portal = Portal::new_cursor(name.value.clone(), stored);
        portal.start(to_response(rows, &format)?).await;
        store.put_portal(Arc::new(portal));
        Ok(())
    };
    let started = started.await;
    if started.is_err() {
        session.forget_portal(&name.value);
    }
    started
}

/// Rows come from the cursor as they are sent.
async fn fetch(store: &Store, name: &str, direction: &FetchDirection) -> PgWireResult<QueryResponse> {
    let count = |limit: &ValueWithSpan| {
        limit
            .to_string()
            .parse::<usize>()
            .map_err(|_| error("42601", format!("`{limit}` is not a number of rows")))
    };
    let most = match direction {
        FetchDirection::Next | FetchDirection::Forward { limit: None } => 1,
        FetchDirection::Count { limit } | FetchDirection::Forward { limit: Some(limit) } => count(limit)?,
        FetchDirection::All | FetchDirection::ForwardAll => usize::MAX,
        _ => return Err(error("55000", "cursor can only scan forward")),
    };
    let Some(Entry::Value(portal)) = store.get_portal(name) else { return Err(no_cursor(name)) };
    let state = portal.state();
    let fields = match &*state.lock().await {
        PortalExecutionState::Suspended(rows) => rows.row_schema(),
        _ => return Err(error("55000", format!("cursor \"{name}\" cannot be fetched from"))),
    };
    let rows = stream::unfold((state, most), |(state, left)| async move {
        let left = left.checked_sub(1)?;
        let row = match &mut *state.lock().await {
            PortalExecutionState::Suspended(rows) => rows.data_rows().next().await,
            _ => None,
        };
        Some((row?, (state, left)))
    });
    let mut response = QueryResponse::new(fields, rows);
    response.set_command_tag("FETCH");
    Ok(response)
}

/// The columns of the answer to `FETCH`.
pub(super) fn columns(store: &Store, statement: &Statement) -> Option<arrow::datatypes::SchemaRef> {
    let Statement::Fetch { name, .. } = statement else { return None };
    let Some(Entry::Value(portal)) = store.get_portal(&name.value) else { return None };
    portal.statement.statement.columns()
}
