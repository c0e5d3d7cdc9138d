//! What each message of a client does.

use std::{collections::HashMap, sync::Arc};

use arrow::datatypes::{DataType, SchemaRef};
use arrow_pg::datatypes::{
    PG_OID_ALIAS_KEY, arrow_schema_to_pg_fields, df::deserialize_parameters_with_server_types,
    encode_recordbatch, into_pg_type, pg_type_for_alias_kind,
};
use async_trait::async_trait;
use datafusion::{
    common::{
        ParamValues, ScalarValue,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    logical_expr::LogicalPlan,
    prelude::Expr,
    sql::sqlparser::ast::Statement,
};
use futures::{Sink, SinkExt, StreamExt, stream};
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
        stmt::{QueryParser, StoredStatement},
        store::{Entry, MemPortalStore, PortalStore},
    },
    error::{PgWireError, PgWireResult},
    messages::{
        PgWireBackendMessage, PgWireFrontendMessage,
        cancel::CancelRequest,
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
};
use crate::{
    error::{ApiError, Kind, Result},
    query::ResultStream,
    sql::{SERVER_VERSION, count_parameters, only_reads},
};

/// Statements in one message.
const STATEMENTS_MAX: usize = 100;

/// A statement that was parsed and, if it is a query, planned once to know its columns.
#[derive(Clone)]
pub(super) struct Prepared {
    statement: Arc<Statement>,
    outline: Arc<Outline>,
}

/// Columns and parameters of a query.
#[derive(Default)]
struct Outline {
    columns: Option<SchemaRef>,
    /// As the planner infers them, in the order of their numbers.
    parameters: Vec<Option<DataType>>,
    /// As they go over the wire.
    types: Vec<Type>,
    /// Which parameters the client declared as uuid. Ours are texts.
    uuids: Vec<bool>,
}

/// Answers the messages of one connection.
pub(super) struct Handler {
    session: Arc<Session>,
    parser: Arc<Parser>,
}

pub(super) struct Parser(Arc<Session>);

impl Prepared {
    /// One without parameters whose columns are known.
    pub(super) fn of_rows(statement: Arc<Statement>, columns: SchemaRef) -> Self {
        Self { statement, outline: Arc::new(Outline { columns: Some(columns), ..Outline::default() }) }
    }

    pub(super) fn columns(&self) -> Option<SchemaRef> {
        self.outline.columns.clone()
    }
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

    async fn execute<C>(&self, client: &mut C, statement: &Arc<Statement>) -> PgWireResult<Response>
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
        if let Some(response) = cursors::execute(&self.session, status, store, statement).await? {
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

async fn parse(session: &Session, text: &str) -> PgWireResult<Vec<Statement>> {
    let statements = session.server.backend.parse(text.to_owned()).await?;
    if statements.len() > STATEMENTS_MAX {
        return Err(error("54000", format!("more than {STATEMENTS_MAX} statements at once")));
    }
    Ok(statements)
}

/// A transaction that failed takes nothing but its end.
fn check_transaction<C: ClientInfo>(client: &C, statement: &Statement) -> PgWireResult<()> {
    let is_end = matches!(statement, Statement::Rollback { .. } | Statement::Commit { .. });
    if client.transaction_status() == TransactionStatus::Error && !is_end {
        let message = "current transaction is aborted, commands ignored until end of transaction block";
        return Err(error("25P02", message));
    }
    Ok(())
}

/// The rows of a running query as the protocol has them.
pub(super) fn to_response(rows: ResultStream, format: &Format) -> PgWireResult<QueryResponse> {
    let fields = Arc::new(arrow_schema_to_pg_fields(&rows.schema(), format, None)?);
    let of_rows = Arc::clone(&fields);
    let rows = rows.flat_map(move |batch| match batch {
        Ok(batch) => stream::iter(encode_recordbatch(Arc::clone(&of_rows), batch)).boxed(),
        Err(failed) => stream::once(std::future::ready(Err(failed.into()))).boxed(),
    });
    Ok(QueryResponse::new(fields, rows))
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
            match self.execute(client, &Arc::new(statement)).await {
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

#[async_trait]
impl QueryParser for Parser {
    type Statement = Prepared;

    async fn parse_sql<C>(
        &self,
        client: &C,
        sql: &str,
        types: &[Option<Type>],
    ) -> PgWireResult<Option<Prepared>>
    where
        C: ClientInfo + Unpin + Send + Sync,
    {
        let mut statements = parse(&self.0, sql).await?;
        if statements.len() > 1 {
            return Err(error("42601", "cannot insert multiple commands into a prepared statement"));
        }
        let Some(statement) = statements.pop().map(Arc::new) else { return Ok(None) };
        check_transaction(client, &statement)?;
        let outline = if only_reads(&statement) {
            describe(&self.0, &statement, count_parameters(sql)).await?
        } else {
            Outline { columns: commands::columns(&statement), ..Outline::default() }
        };
        let uuids = types.iter().map(|given| *given == Some(Type::UUID)).collect();
        let outline = Arc::new(Outline { uuids, ..outline });
        Ok(Some(Prepared { statement, outline }))
    }

    fn get_parameter_types(&self, prepared: &Prepared) -> PgWireResult<Vec<Type>> {
        Ok(prepared.outline.types.clone())
    }

    fn get_result_schema(
        &self,
        prepared: &Prepared,
        format: Option<&Format>,
    ) -> PgWireResult<Vec<FieldInfo>> {
        let Some(columns) = &prepared.outline.columns else { return Ok(vec![]) };
        arrow_schema_to_pg_fields(columns, format.unwrap_or(&Format::UnifiedText), None)
    }
}

async fn describe(session: &Session, statement: &Arc<Statement>, count: usize) -> PgWireResult<Outline> {
    let (sender, told) = tokio::sync::oneshot::channel();
    let tell = move |plan: &LogicalPlan| {
        let _ = sender.send(outline(plan, count)?);
        Ok(())
    };
    session.server.backend.describe(session.ask(statement)?, Box::new(tell)).await?;
    told.await.map_err(|_| error("XX000", "the plan was not told"))
}

/// Columns and parameters of a plan; `count` is the number of parameters of the text, some of which may not have come into
/// the plan.
fn outline(plan: &LogicalPlan, count: usize) -> Result<Outline> {
    let mut inferred: HashMap<String, Option<DataType>> = plan.get_parameter_types()?;
    let mut aliases = HashMap::new();
    // What a parameter is cast to says what it is; object ids have types of their own.
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Limit(limit) = node {
            for expression in [&limit.skip, &limit.fetch].into_iter().flatten() {
                if let Expr::Placeholder(placeholder) = &**expression {
                    inferred.entry(placeholder.id.clone()).or_default().get_or_insert(DataType::Int64);
                }
            }
        }
        node.apply_expressions(|expression| {
            expression.apply(|inner| {
                if let Expr::Cast(cast) = inner
                    && let Expr::Placeholder(placeholder) = &*cast.expr
                {
                    let known = inferred.entry(placeholder.id.clone()).or_default();
                    known.get_or_insert_with(|| cast.field.data_type().clone());
                }
                if let Expr::Placeholder(placeholder) = inner {
                    inferred.entry(placeholder.id.clone()).or_default();
                    let kind =
                        placeholder.field.as_ref().filter(|field| field.data_type() == &DataType::Int32);
                    let kind = kind.and_then(|field| field.metadata().get(PG_OID_ALIAS_KEY));
                    if let Some(alias) = kind.and_then(|kind| pg_type_for_alias_kind(kind)) {
                        aliases.insert(placeholder.id.clone(), alias);
                    }
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    let ids = (1..=count).map(|number| format!("${number}"));
    let ordered: Vec<_> = ids.map(|id| (inferred.remove(&id).flatten(), aliases.remove(&id))).collect();
    let types = ordered.iter().map(|(data_type, alias)| match (alias, data_type) {
        (Some(alias), _) => Ok(alias.clone()),
        (None, Some(data_type)) => into_pg_type(data_type),
        (None, None) => Ok(Type::UNKNOWN),
    });
    let types = types.collect::<PgWireResult<_>>().map_err(|failed| ApiError::invalid(failed.to_string()))?;
    let columns = Some(Arc::new(plan.schema().as_arrow().clone()));
    let parameters = ordered.into_iter().map(|(data_type, _)| data_type).collect();
    Ok(Outline { columns, parameters, types, uuids: Vec::new() })
}

/// The values of a portal's parameters.
fn parameters(portal: &Portal<Prepared>) -> PgWireResult<Vec<ScalarValue>> {
    let outline = &portal.statement.statement.outline;
    let inferred: Vec<_> = outline.parameters.iter().map(Option::as_ref).collect();
    let types: Vec<_> = outline.types.iter().map(Some).collect();
    match deserialize_parameters_with_server_types(portal, &inferred, &types)? {
        ParamValues::List(values) => Ok(values.into_iter().map(|value| value.value).collect()),
        ParamValues::Map(_) => Err(error("XX000", "parameters have numbers")),
    }
}

/// An id in binary, or as any of the texts that Postgres takes.
fn read_uuid(bytes: &[u8]) -> Option<uuid::Uuid> {
    match <[u8; 16]>::try_from(bytes) {
        Ok(bytes) => Some(uuid::Uuid::from_bytes(bytes)),
        Err(_) => uuid::Uuid::try_parse_ascii(bytes).ok(),
    }
}

/// The library takes these numbers as they come.
fn check_bind(message: &Bind, outline: &Outline) -> PgWireResult<()> {
    let (given, needed) = (message.parameters.len(), outline.types.len());
    if given != needed {
        let message = format!("{given} parameters are given, the statement has {needed}");
        return Err(error("08P01", message));
    }
    let columns = outline.columns.as_ref().map_or(0, |columns| columns.fields().len());
    for (what, formats, all) in [
        ("parameter", message.parameter_format_codes.len(), given),
        ("result", message.result_column_format_codes.len(), columns),
    ] {
        if formats > 1 && formats != all {
            return Err(error(
                "08P01",
                format!("{formats} {what} formats are given, there must be 0, 1 or {all}"),
            ));
        }
    }
    Ok(())
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
        for (i, value) in message.parameters.iter_mut().enumerate() {
            if outline.uuids.get(i) == Some(&true)
                && let Some(bytes) = value
                && let Some(id) = read_uuid(bytes)
            {
                *value = Some(id.to_string().into());
            }
        }
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
        if !only_reads(&prepared.statement) {
            return self.execute(client, &prepared.statement).await;
        }
        check_transaction(client, &prepared.statement)?;
        let ask = Ask { params: parameters(portal)?, ..self.session.ask(&prepared.statement)? };
        Ok(Response::Query(self.run(ask, &portal.result_column_format).await?))
    }
}
