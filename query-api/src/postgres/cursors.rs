//! `DECLARE`, `FETCH`, `CLOSE`: cursors are portals that statements read from.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow_pg::datatypes::arrow_schema_to_pg_fields;
use datafusion::sql::sqlparser::ast::{
    CloseCursor, Declare, DeclareType, FetchDirection, Statement, ValueWithSpan,
};
use futures::{StreamExt, stream};
use pgwire::{
    api::{
        portal::{Format, Portal},
        results::{QueryResponse, Response, Tag},
        stmt::StoredStatement,
        store::{Entry, MemPortalStore, PortalStore},
    },
    error::PgWireResult,
    messages::response::TransactionStatus,
};
use tokio::sync::Mutex;

use super::{
    errors::error,
    handler::encoded,
    session::{Cursor, Session},
    statements::Prepared,
};
use crate::{error::ApiError, query::ResultStream};

type Store = MemPortalStore<Prepared>;

/// The rows of a cursor that nobody has fetched yet. How they are written is up to who fetches them.
pub(super) struct CursorRows {
    rows: ResultStream,
    /// What is left of a batch.
    batch: Option<RecordBatch>,
    /// That of `DECLARE`, for who does not say it.
    format: Format,
}

impl CursorRows {
    /// At most so many rows; `None`: there are no more.
    async fn next(&mut self, most: usize) -> Option<Result<RecordBatch, ApiError>> {
        let batch = match self.batch.take() {
            Some(batch) => batch,
            None => match self.rows.next().await? {
                Ok(batch) => batch,
                Err(failed) => return Some(Err(failed)),
            },
        };
        let count = batch.num_rows().min(most);
        if count < batch.num_rows() {
            self.batch = Some(batch.slice(count, batch.num_rows() - count));
        }
        Some(Ok(batch.slice(0, count)))
    }
}

/// Runs a statement about cursors; `None` for any other. `format`: how a client that says it wants the rows of `FETCH`.
pub(super) async fn execute(
    session: &Session,
    status: TransactionStatus,
    store: &Store,
    statement: &Statement,
    format: Option<&Format>,
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
            Ok(Some(Response::Query(fetch(store, &name.value, direction, format).await?)))
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
        let mut prepared = Prepared::of_rows(statement, rows.schema());
        prepared.cursor = Some(Arc::new(Mutex::new(CursorRows { rows, batch: None, format })));
        let stored = Arc::new(StoredStatement::new(name.value.clone(), prepared, Vec::new()));
        store.put_portal(Arc::new(Portal::new_cursor(name.value.clone(), stored)));
        Ok(())
    };
    let started = started.await;
    if started.is_err() {
        session.forget_portal(&name.value);
    }
    started
}

async fn fetch(
    store: &Store,
    name: &str,
    direction: &FetchDirection,
    format: Option<&Format>,
) -> PgWireResult<QueryResponse> {
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
    let Some(cursor) = &portal.statement.statement.cursor else {
        return Err(error("55000", format!("cursor \"{name}\" cannot be fetched from")));
    };
    let mut response = rows_of(cursor, most, format).await?;
    response.set_command_tag("FETCH");
    Ok(response)
}

/// At most so many of a cursor's rows; they come from it as they are sent.
pub(super) async fn rows_of(
    cursor: &Arc<Mutex<CursorRows>>,
    most: usize,
    format: Option<&Format>,
) -> PgWireResult<QueryResponse> {
    let fields = {
        let cursor = cursor.lock().await;
        Arc::new(arrow_schema_to_pg_fields(&cursor.rows.schema(), format.unwrap_or(&cursor.format), None)?)
    };
    let of_rows = Arc::clone(&fields);
    let batches = stream::unfold((Arc::clone(cursor), most), |(cursor, left)| async move {
        if left == 0 {
            return None;
        }
        let batch = cursor.lock().await.next(left).await?;
        let taken = batch.as_ref().map_or(left, RecordBatch::num_rows);
        Some((batch, (cursor, left - taken)))
    });
    let rows = batches.flat_map(move |batch| encoded(&of_rows, batch));
    Ok(QueryResponse::new(fields, rows))
}

/// The columns of the answer to `FETCH`.
pub(super) fn columns(store: &Store, statement: &Statement) -> Option<arrow::datatypes::SchemaRef> {
    let Statement::Fetch { name, .. } = statement else { return None };
    let Some(Entry::Value(portal)) = store.get_portal(&name.value) else { return None };
    portal.statement.statement.columns()
}
