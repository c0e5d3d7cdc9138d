//! InfluxDB's write endpoints, so that its clients work unchanged, and the few others that they call.

use axum::{
    Extension,
    body::Body,
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};
use wattlake_catalog::Access;
use wattlake_engine::{BodyFormat, IngestReport, IngestRequest, TimePrecision};

use super::{
    App,
    measurements::read_body,
    reply::{add_retry_after, json_response, read_query, status},
};
use crate::error::{ApiError, Kind, Result};

/// Which of InfluxDB's error shapes an answer has.
#[derive(Clone, Copy)]
enum Shape {
    V1,
    V2,
    V3,
}

/// The parameters of all three endpoints; those that only place data in InfluxDB are read and ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Params {
    db: Option<String>,
    bucket: Option<String>,
    precision: Option<String>,
    #[serde(rename = "rp")]
    _rp: Option<String>,
    #[serde(rename = "consistency")]
    _consistency: Option<String>,
    #[serde(rename = "org")]
    _org: Option<String>,
    #[serde(rename = "orgID")]
    _org_id: Option<String>,
    #[serde(rename = "u")]
    _user: Option<String>,
    #[serde(rename = "p")]
    _password: Option<String>,
    #[serde(rename = "accept_partial")]
    _accept_partial: Option<String>,
    #[serde(rename = "no_sync")]
    _no_sync: Option<String>,
}

/// `POST /write`, `/api/v2/write` and `/api/v3/write_lp`: they differ in how they word their errors.
pub(super) async fn write(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let shape = match uri.path() {
        "/write" => Shape::V1,
        "/api/v3/write_lp" => Shape::V3,
        _ => Shape::V2,
    };
    respond(shape, store(&app, access, uri.query(), &headers, body).await)
}

async fn store(
    app: &App,
    access: Access,
    query: Option<&str>,
    headers: &HeaderMap,
    body: Body,
) -> Result<IngestReport> {
    let params: Params = read_query(query, &[])?;
    let precision = params.precision.as_deref().map(str::parse::<TimePrecision>).transpose()?;
    let (body, _held) = read_body(app, headers, body).await?;
    let request = IngestRequest {
        format: BodyFormat::LineProtocol,
        body: body.into(),
        precision,
        is_atomic: false,
        site: params.bucket.or(params.db).unwrap_or_else(|| "default".to_owned()),
        mapping: None,
        allowed_sites: access.sites,
        is_dry_run: false,
        errors_max: wattlake_engine::ERRORS_REPORTED_MAX,
    };
    Ok(app.ingest.ingest(request).await?)
}

fn respond(shape: Shape, outcome: Result<IngestReport>) -> Response {
    let error = match outcome {
        Ok(report) if report.rejected == 0 => return with_version(StatusCode::NO_CONTENT.into_response()),
        Ok(report) => partial(&report),
        Err(error) => error,
    };
    let lines: Vec<Value> = error.details.clone();
    let body = match shape {
        Shape::V1 => json!({ "error": error.message }),
        Shape::V2 => {
            let code = match error.kind {
                Kind::Invalid | Kind::Unprocessable | Kind::TimedOut | Kind::Conflict => "invalid",
                Kind::Unauthorized => "unauthorized",
                Kind::Forbidden => "forbidden",
                Kind::NotFound => "not found",
                Kind::TooLarge => "request too large",
                Kind::Overloaded => "too many requests",
                Kind::Unavailable | Kind::InsufficientStorage => "unavailable",
                Kind::Internal => "internal error",
            };
            json!({ "code": code, "message": error.message })
        }
        Shape::V3 => json!({ "error": error.message, "data": lines }),
    };
    let mut response = json_response(&body);
    *response.status_mut() = status(error.kind);
    if let Ok(text) =
        HeaderValue::from_str(&error.message.replace(|c: char| !c.is_ascii_graphic() && c != ' ', "?"))
    {
        response.headers_mut().insert("x-influxdb-error", text);
    }
    add_retry_after(&mut response);
    with_version(response)
}

/// InfluxDB's words for a request of which some lines were refused; the good ones are stored.
fn partial(report: &IngestReport) -> ApiError {
    let details =
        report.errors.iter().map(|e| json!({ "line_number": e.row, "error_message": e.message })).collect();
    let lines: Vec<_> =
        report.errors.iter().take(10).map(|e| format!("line {}: {}", e.row, e.message)).collect();
    let message = format!(
        "partial write: {} readings stored, {} refused: {}",
        report.accepted,
        report.rejected,
        lines.join("; ")
    );
    ApiError { kind: Kind::Invalid, message, details }
}

fn with_version(mut response: Response) -> Response {
    // Clients tell by the version which dialect to speak.
    response.headers_mut().insert("x-influxdb-version", HeaderValue::from_static("1.8.10"));
    response.headers_mut().insert("x-influxdb-build", HeaderValue::from_static("OSS"));
    response
}

/// `GET /ping`.
pub(super) async fn ping() -> Response {
    with_version(StatusCode::NO_CONTENT.into_response())
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct QueryParams {
    q: Option<String>,
}

/// `/query`: what clients ask before they write.
pub(super) async fn query(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    RawQuery(query): RawQuery,
    body: axum::body::Bytes,
) -> Response {
    let form = std::str::from_utf8(&body).unwrap_or_default();
    let text = [query.as_deref().unwrap_or_default(), form]
        .iter()
        .filter_map(|part| read_query::<QueryParams>(Some(part), &[]).ok()?.q)
        .next()
        .unwrap_or_default();
    let words: Vec<_> = text.split_whitespace().map(str::to_uppercase).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["SHOW", "DATABASES"] | ["SHOW", "DATABASES;"] => {
            let fleet = app.engine.catalog().fleet();
            let names: Vec<_> = fleet
                .sites()
                .filter(|site| access.allows_site(site.id))
                .map(|site| json!([site.name]))
                .collect();
            json!({ "statement_id": 0, "series": [{ "name": "databases", "columns": ["name"], "values": names }] })
        }
        // A site of that name is made with the first line written to it.
        ["CREATE", "DATABASE", ..] | ["SHOW", "RETENTION", "POLICIES", ..] => json!({ "statement_id": 0 }),
        _ => {
            let message =
                "InfluxQL is not supported; ask in SQL at /api/sql (understood here: SHOW DATABASES)";
            let mut response = json_response(&json!({ "error": message }));
            *response.status_mut() = StatusCode::BAD_REQUEST;
            return with_version(response);
        }
    };
    with_version(json_response(&json!({ "results": [result] })))
}
