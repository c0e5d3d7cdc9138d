//! Statements of a client: parsed, told of before they run, bound to parameters.

use std::{collections::HashMap, sync::Arc};

use arrow::datatypes::{DataType, SchemaRef};
use arrow_pg::datatypes::{
    PG_OID_ALIAS_KEY, arrow_schema_to_pg_fields, df::deserialize_parameters_with_server_types, into_pg_type,
    pg_type_for_alias_kind,
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
use pgwire::{
    api::{
        ClientInfo, Type,
        portal::{Format, Portal},
        results::FieldInfo,
        stmt::QueryParser,
    },
    error::PgWireResult,
    messages::{extendedquery::Bind, response::TransactionStatus},
};
use tokio::sync::Mutex;

use super::{commands, cursors::CursorRows, errors::error, session::Session};
use crate::{
    error::{ApiError, Result},
    sql::{count_parameters, only_reads},
};

/// Statements in one message.
const STATEMENTS_MAX: usize = 100;

/// A statement that was parsed and, if it is a query, planned once to know its columns.
#[derive(Clone)]
pub(super) struct Prepared {
    pub statement: Arc<Statement>,
    pub outline: Arc<Outline>,
    /// Of a cursor that was declared.
    pub cursor: Option<Arc<Mutex<CursorRows>>>,
}

/// Columns and parameters of a query.
#[derive(Default)]
pub(super) struct Outline {
    columns: Option<SchemaRef>,
    /// As the planner infers them, in the order of their numbers.
    parameters: Vec<Option<DataType>>,
    /// As they go over the wire.
    types: Vec<Type>,
    /// Which parameters the client declared as uuid. Ours are texts.
    uuids: Vec<bool>,
}

/// Parses for a session.
pub(super) struct Parser(pub Arc<Session>);

impl Prepared {
    /// One without parameters whose columns are known.
    pub(super) fn of_rows(statement: Arc<Statement>, columns: SchemaRef) -> Self {
        let outline = Arc::new(Outline { columns: Some(columns), ..Outline::default() });
        Self { statement, outline, cursor: None }
    }

    pub(super) fn columns(&self) -> Option<SchemaRef> {
        self.outline.columns.clone()
    }
}

pub(super) async fn parse(session: &Session, text: &str) -> PgWireResult<Vec<Statement>> {
    let statements = session.server.backend.parse(text.to_owned()).await?;
    if statements.len() > STATEMENTS_MAX {
        return Err(error("54000", format!("more than {STATEMENTS_MAX} statements at once")));
    }
    Ok(statements)
}

/// A transaction that failed takes nothing but its end.
pub(super) fn check_transaction<C: ClientInfo>(client: &C, statement: &Statement) -> PgWireResult<()> {
    let is_end = matches!(statement, Statement::Rollback { .. } | Statement::Commit { .. });
    if client.transaction_status() == TransactionStatus::Error && !is_end {
        let message = "current transaction is aborted, commands ignored until end of transaction block";
        return Err(error("25P02", message));
    }
    Ok(())
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
        Ok(Some(Prepared { statement, outline, cursor: None }))
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
pub(super) fn parameters(portal: &Portal<Prepared>) -> PgWireResult<Vec<ScalarValue>> {
    let outline = &portal.statement.statement.outline;
    let inferred: Vec<_> = outline.parameters.iter().map(Option::as_ref).collect();
    let types: Vec<_> = outline.types.iter().map(Some).collect();
    match deserialize_parameters_with_server_types(portal, &inferred, &types)? {
        ParamValues::List(values) => Ok(values.into_iter().map(|value| value.value).collect()),
        ParamValues::Map(_) => Err(error("XX000", "parameters have numbers")),
    }
}

/// Ids of parameters that were declared as uuids, as texts.
pub(super) fn write_uuids(message: &mut Bind, outline: &Outline) {
    for (value, is_uuid) in message.parameters.iter_mut().zip(&outline.uuids) {
        if *is_uuid
            && let Some(bytes) = value
            && let Some(id) = read_uuid(bytes)
        {
            *value = Some(id.to_string().into());
        }
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
pub(super) fn check_bind(message: &Bind, outline: &Outline) -> PgWireResult<()> {
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
