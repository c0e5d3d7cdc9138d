//! `/api/sql`: one query in, rows out, streamed.

use axum::{
    Extension,
    body::Bytes,
    extract::{RawQuery, State},
    http::HeaderMap,
    response::Response,
};
use datafusion::common::ScalarValue;
use serde::Deserialize;
use serde_json::Value;
use wattlake_catalog::Access;

use super::{
    App,
    encode::{OutputFormat, respond},
    reply::{read_json, read_query},
};
use crate::{
    error::{ApiError, Result},
    query::SqlRequest,
    time::parse_as_of,
};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct GetParams {
    q: Option<String>,
    format: Option<String>,
    as_of: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PostParams {
    format: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SqlBody {
    query: String,
    #[serde(default)]
    params: Vec<Value>,
    as_of: Option<String>,
}

pub(super) async fn get(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response> {
    let params: GetParams = read_query(query.as_deref(), &[])?;
    let format = OutputFormat::negotiate(params.format.as_deref(), &headers)?;
    let text = params.q.ok_or_else(|| ApiError::invalid("q is required: /api/sql?q=SELECT ..."))?;
    let body = SqlBody { query: text, params: Vec::new(), as_of: params.as_of };
    answer(&app, access, body, format).await
}

pub(super) async fn post(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response> {
    let params: PostParams = read_query(query.as_deref(), &[])?;
    let format = OutputFormat::negotiate(params.format.as_deref(), &headers)?;
    answer(&app, access, read_json(&body)?, format).await
}

async fn answer(app: &App, access: Access, body: SqlBody, format: OutputFormat) -> Result<Response> {
    let as_of =
        body.as_of.as_deref().map(|text| parse_as_of("asOf", text, &app.zone(), app.now())).transpose()?;
    let params = body.params.into_iter().map(parameter).collect::<Result<_>>()?;
    let stream =
        app.queries.sql(SqlRequest { params, as_of, ..SqlRequest::new(body.query, &access) }).await?;
    respond(format, stream.schema(), stream).await
}

fn parameter(value: Value) -> Result<ScalarValue> {
    match value {
        Value::Null => Ok(ScalarValue::Null),
        Value::Bool(b) => Ok(ScalarValue::from(b)),
        Value::String(text) => Ok(ScalarValue::from(text)),
        Value::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(integer), _) => Ok(ScalarValue::from(integer)),
            (None, Some(float)) => Ok(ScalarValue::from(float)),
            (None, None) => Err(ApiError::invalid(format!("params: {n} is out of range"))),
        },
        other => Err(ApiError::invalid(format!("params: {other} is not a text, number, boolean or null"))),
    }
}
