//! What each message of a client does.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow_pg::datatypes::{arrow_schema_to_pg_fields, encode_recordbatch};
use async_trait::async_trait;
use datafusion::sql::sqlparser::ast::Statement;
use futures::{Sink, SinkExt, StreamExt, stream, stream::BoxStream};
use pgwire::{
    api::{
        ClientInfo, ClientPortalStore, DEFAULT_NAME, PgWireConnectionState, PidSecretKeyGenerator,
        RandomPidSecretKeyGenerator, Type,
        auth::{
            DefaultServerParameterProvider, StartupHandler, finish_authentication, protocol_negotiation,
            save_startup_parameters_to_metadata,
        },
        cancel::CancelHandler,
        portal::{Format, Portal, PortalExecutionState},
        query::{
            ExtendedQueryHandler, SimpleQueryHandler, send_execution_response, send_partial_query_response,
        },
        results::{FieldInfo, QueryResponse, Response},
        stmt::StoredStatement,
        store::{Entry, MemPortalStore, PortalStore},
    },
    error::{PgWireError, PgWireResult},
    messages::{
        PgWireBackendMessage, PgWireFrontendMessage,
        cancel::CancelRequest,
        data::DataRow,
        extendedquery::{
            Bind, BindComplete, Close, CloseComplete, Execute, Parse, ParseComplete, Sync as PgSync,
            TARGET_TYPE_BYTE_PORTAL, TARGET_TYPE_BYTE_STATEMENT,
        },
        response::{EmptyQueryResponse, ReadyForQuery, TransactionStatus},
        startup::Authentication,
    },
};

use super::{
    Server,
    backend::Ask,
    commands,
    copy::CopyOut,
    cursors,
    errors::{error, fatal},
    key,
    session::{Cursor, Session},
    statements::{Parser, Prepared, check_bind, check_transaction, parameters, parse, write_uuids},
    texts,
};
use crate::{
    error::{ApiError, Kind},
    query::ResultStream,
    sql::{SERVER_VERSION, only_reads},
};

/// Answers the messages of one connection.
pub(super) struct Handler {
    session: Arc<Session>,
    parser: Arc<Parser>,
}

/// The store of every connection is of this kind.
fn portals<S: PortalStore>(store: &S) -> PgWireResult<&MemPortalStore<Prepared>> {
    store.as_any().downcast_ref().ok_or_else(|| error("XX000", "the connection has no portals"))
}

impl Handler {
    pub(super) fn new(session: Arc<Session>) -> Self {
        Self { parser: Arc::new(Parser(Arc::clone(&session))), session }
    }

    async fn parse(&self, text: &str) -> PgWireResult<Vec<Statement>> {
        parse(&self.session, text).await
    }

    async fn run(&self, ask: Ask, format: &Format) -> PgWireResult<QueryResponse> {
        to_response(self.session.server.backend.rows(ask).await?, format)
    }

    /// `format`: how a client that says it wants the rows.
    async fn execute<C>(
        &self,
        client: &mut C,
        statement: &Arc<Statement>,
        format: Option<&Format>,
    ) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        check_transaction(client, statement)?;
        if only_reads(statement) {
            let ask = self.session.ask(statement)?;
            return Ok(Response::Query(self.run(ask, &Format::UnifiedText).await?));
        }
        if let Some(copy) = CopyOut::of(statement)? {
            return copy.send(&self.session, client).await;
        }
        let status = client.transaction_status();
        let store = portals(client.portal_store())?;
        if let Some(response) = cursors::execute(&self.session, status, store, statement, format).await? {
            return Ok(response);
        }
        let forget = |names: Vec<String>| names.iter().for_each(|name| store.rm_statement(name));
        let close = |names: Vec<String>| names.iter().for_each(|name| store.rm_portal(name));
        match &**statement {
            Statement::Deallocate { name, .. } if !name.value.eq_ignore_ascii_case("all") => {
                self.session.forget_statement(&name.value);
                forget(vec![name.value.clone()]);
            }
            Statement::Deallocate { .. } => forget(self.session.take_statements()),
            Statement::Discard { .. } => {
                forget(self.session.take_statements());
                close(self.session.take_portals(|_| true));
            }
            Statement::Commit { .. } | Statement::Rollback { savepoint: None, .. } => {
                close(self.session.take_portals(|cursor| cursor != Some(Cursor::Connection)));
            }
            _ => {}
        }
        commands::execute(&self.session, status, statement)
    }
}

/// The rows of a running query as the protocol has them.
pub(super) fn to_response(rows: ResultStream, format: &Format) -> PgWireResult<QueryResponse> {
    let fields = Arc::new(arrow_schema_to_pg_fields(&rows.schema(), format, None)?);
    let of_rows = Arc::clone(&fields);
    let rows = rows.flat_map(move |batch| encoded(&of_rows, batch));
    Ok(QueryResponse::new(fields, rows))
}

/// The rows of a batch, in the formats of the fields.
pub(super) fn encoded(
    fields: &Arc<Vec<FieldInfo>>,
    batch: Result<RecordBatch, ApiError>,
) -> BoxStream<'static, PgWireResult<DataRow>> {
    let batch =
        batch.and_then(|batch| texts::written(fields, batch).map_err(|e| ApiError::internal(e.to_string())));
    match batch {
        Ok(batch) => stream::iter(encode_recordbatch(Arc::clone(fields), batch)).boxed(),
        Err(failed) => stream::once(std::future::ready(Err(failed.into()))).boxed(),
    }
}

#[async_trait]
impl StartupHandler for Handler {
    async fn on_startup<C>(&self, client: &mut C, message: PgWireFrontendMessage) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        match message {
            PgWireFrontendMessage::Startup(startup) => {
                protocol_negotiation(client, &startup).await?;
                save_startup_parameters_to_metadata(client, &startup);
                // Our settings are not those of Postgres; what concerns the connection goes the way of SET.
                for (name, value) in &startup.parameters {
                    commands::set_at_start(&self.session, &name.to_ascii_lowercase(), value);
                }
                client.set_state(PgWireConnectionState::AuthenticationInProgress);
                let request = Authentication::CleartextPassword;
                client.send(PgWireBackendMessage::Authentication(request)).await?;
            }
            PgWireFrontendMessage::PasswordMessageFamily(password) => {
                let password = password.into_password()?;
                let admitted = self.session.server.backend.admit(&password.password).await;
                let access = admitted.map_err(|refused| match refused.kind {
                    Kind::Unauthorized => fatal("28P01", "the password is not a valid token"),
                    Kind::Forbidden => fatal("42501", refused.message),
                    _ => fatal("57P03", refused.message),
                })?;
                self.session.admit(access);
                let (pid, secret) = RandomPidSecretKeyGenerator::default().generate(client);
                client.set_pid_and_secret_key(pid, secret.clone());
                let running = Arc::downgrade(&self.session.cancelled);
                self.session.server.running.lock().insert(key(pid, &secret), running);
                let mut parameters = DefaultServerParameterProvider::default();
                parameters.server_version = SERVER_VERSION.to_owned();
                parameters.is_superuser = false;
                parameters.default_transaction_read_only = true;
                parameters.time_zone = "UTC".to_owned();
                finish_authentication(client, &parameters).await?;
            }
            _ => return Err(fatal("08P01", "a password was expected")),
        }
        Ok(())
    }
}

#[async_trait]
impl SimpleQueryHandler for Handler {
    async fn do_query<C>(&self, client: &mut C, query: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let statements = self.parse(query).await?;
        let mut responses = Vec::with_capacity(statements.len());
        for statement in statements {
            match self.execute(client, &Arc::new(statement), None).await {
                Ok(response) => responses.push(response),
                // What came before it was done, and is answered.
                Err(failed) if !responses.is_empty() => {
                    responses.push(Response::Error(Box::new(failed.into())));
                    break;
                }
                Err(failed) => return Err(failed),
            }
        }
        Ok(responses)
    }
}

/// Stops the query of another connection.
pub(super) struct Canceller(pub Arc<Server>);

#[async_trait]
impl CancelHandler for Canceller {
    async fn on_cancel_request(&self, request: CancelRequest) {
        self.0.cancel(request.pid, &request.secret_key);
    }
}

#[async_trait]
impl ExtendedQueryHandler for Handler {
    type Statement = Prepared;
    type QueryParser = Parser;

    fn query_parser(&self) -> Arc<Parser> {
        Arc::clone(&self.parser)
    }

    async fn on_parse<C>(&self, client: &mut C, message: Parse) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Prepared>,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let name = message.name.clone().unwrap_or_else(|| DEFAULT_NAME.to_owned());
        let stored = StoredStatement::parse(client, &message, self.query_parser()).await?;
        self.session.count_statement(&name, message.query.len())?;
        match stored {
            Some(mut stored) => {
                if let Some(columns) =
                    cursors::columns(portals(client.portal_store())?, &stored.statement.statement)
                {
                    stored.statement = Prepared::of_rows(Arc::clone(&stored.statement.statement), columns);
                }
                // Ids travel as text from here on.
                for declared in stored.parameter_types.iter_mut().filter(|given| **given == Some(Type::UUID))
                {
                    *declared = Some(Type::TEXT);
                }
                client.portal_store().put_statement(Arc::new(stored));
            }
            None => client.portal_store().put_empty_statement(&name),
        }
        client.send(PgWireBackendMessage::ParseComplete(ParseComplete::new())).await?;
        Ok(())
    }

    async fn on_bind<C>(&self, client: &mut C, mut message: Bind) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Prepared>,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let name = message.statement_name.as_deref().unwrap_or(DEFAULT_NAME);
        let portal_name = message.portal_name.as_deref().unwrap_or(DEFAULT_NAME).to_owned();
        let stored = client.portal_store().get_statement(name);
        let stored =
            stored.ok_or_else(|| error("26000", format!("prepared statement \"{name}\" does not exist")))?;
        let outline = stored.value().map(|stored| Arc::clone(&stored.statement.outline)).unwrap_or_default();
        check_bind(&message, &outline)?;
        self.session.count_portal(&portal_name, None)?;
        write_uuids(&mut message, &outline);
        match stored {
            Entry::Value(stored) => {
                let portal = Portal::try_new(&message, stored)?;
                client.portal_store().put_portal(Arc::new(portal));
            }
            Entry::Empty => client.portal_store().put_empty_portal(&portal_name),
        }
        client.send(PgWireBackendMessage::BindComplete(BindComplete::new())).await?;
        Ok(())
    }

    /// Streams: the rows of an answer are never collected.
    async fn on_execute<C>(&self, client: &mut C, message: Execute) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Prepared>,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let name = message.name.as_deref().unwrap_or(DEFAULT_NAME);
        let most = usize::try_from(message.max_rows).unwrap_or(0);
        let portal = match client.portal_store().get_portal(name) {
            Some(Entry::Value(portal)) => portal,
            Some(Entry::Empty) => {
                client.feed(PgWireBackendMessage::EmptyQueryResponse(EmptyQueryResponse::new())).await?;
                return Ok(());
            }
            None => return Err(error("34000", format!("portal \"{name}\" does not exist"))),
        };
        let state = portal.state();
        let mut state = state.lock().await;
        if matches!(*state, PortalExecutionState::Initial) {
            let mut status = client.transaction_status();
            match ExtendedQueryHandler::do_query(self, client, portal.as_ref(), most).await? {
                Response::Query(rows) => *state = PortalExecutionState::Suspended(rows),
                Response::Execution(tag) => {
                    send_execution_response(client, tag).await?;
                    *state = PortalExecutionState::Finished;
                    return Ok(());
                }
                Response::TransactionStart(tag) => {
                    send_execution_response(client, tag).await?;
                    status = status.to_in_transaction_state();
                }
                Response::TransactionEnd(tag) => {
                    send_execution_response(client, tag).await?;
                    status = status.to_idle_state();
                }
                _ => return Err(error("0A000", "that cannot be executed")),
            }
            client.set_transaction_status(status);
        }
        match &mut *state {
            PortalExecutionState::Suspended(rows) => {
                if !send_partial_query_response(client, rows, most).await? {
                    *state = PortalExecutionState::Finished;
                }
                Ok(())
            }
            PortalExecutionState::Initial => {
                *state = PortalExecutionState::Finished;
                Ok(())
            }
            PortalExecutionState::Finished => {
                let mut nothing = QueryResponse::new(Arc::default(), stream::empty());
                send_partial_query_response(client, &mut nothing, most).await.map(drop)
            }
        }
    }

    /// Portals end with their transaction.
    async fn on_sync<C>(&self, client: &mut C, _: PgSync) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Prepared>,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let status = client.transaction_status();
        if status == TransactionStatus::Idle {
            let ended = self.session.take_portals(|cursor| cursor.is_none());
            ended.iter().for_each(|name| client.portal_store().rm_portal(name));
        }
        client.send(PgWireBackendMessage::ReadyForQuery(ReadyForQuery::new(status))).await?;
        Ok(())
    }

    async fn on_close<C>(&self, client: &mut C, message: Close) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Prepared>,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let name = message.name.as_deref().unwrap_or(DEFAULT_NAME);
        match message.target_type {
            TARGET_TYPE_BYTE_STATEMENT => {
                self.session.forget_statement(name);
                client.portal_store().rm_statement(name);
            }
            TARGET_TYPE_BYTE_PORTAL => {
                self.session.forget_portal(name);
                client.portal_store().rm_portal(name);
            }
            _ => {}
        }
        client.send(PgWireBackendMessage::CloseComplete(CloseComplete::new())).await?;
        Ok(())
    }

    async fn do_query<C>(&self, client: &mut C, portal: &Portal<Prepared>, _: usize) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Prepared>,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let prepared = &portal.statement.statement;
        if let Some(cursor) = &prepared.cursor {
            return Ok(Response::Query(cursors::rows_of(cursor, usize::MAX, None).await?));
        }
        if !only_reads(&prepared.statement) {
            return self.execute(client, &prepared.statement, Some(&portal.result_column_format)).await;
        }
        check_transaction(client, &prepared.statement)?;
        let ask = Ask { params: parameters(portal)?, ..self.session.ask(&prepared.statement)? };
        Ok(Response::Query(self.run(ask, &portal.result_column_format).await?))
    }
}
