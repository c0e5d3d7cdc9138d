//! Testing, polling and backfilling an energy source, and the jobs that do it.
//!
//! Vendor APIs are reached through connectors, of which this version has none. So a test says what is in the way, a poll
//! or a backfill is refused in the same words, and there are no jobs.

use axum::{
    Extension,
    body::Bytes,
    extract::{Path, RawQuery, State},
    response::Response,
};
use serde::Deserialize;
use serde_json::{Value, json};
use wattlake_catalog::{Access, EnergySource, EnergySourceDraft, EntityId};

use super::{
    App,
    energy_sources::EnergySources,
    listing::page,
    reply::{json_response, read_json, read_query},
    resource::Resource,
};
use crate::{
    error::{ApiError, Kind, Result},
    time::parse_instant,
};

/// Why a source cannot be polled: a word for `connectionStatus`, and a sentence.
struct Obstacle {
    status: &'static str,
    message: String,
}

fn obstacle(source: &EnergySource) -> Obstacle {
    let provider = source.metadata.get("apiProvider").and_then(Value::as_str);
    let uses_api = source.metadata.get("useAPI").and_then(Value::as_bool).unwrap_or(false);
    match provider.filter(|_| uses_api) {
        None => Obstacle {
            status: "not_configured",
            message: "no vendor API is configured; set metadata.useAPI to true and metadata.apiProvider"
                .into(),
        },
        Some(provider) => Obstacle {
            status: "unsupported",
            message: format!(
                "there is no connector for the provider `{provider}`: this version polls no vendor API; write readings to \
                 /api/measurements or import files"
            ),
        },
    }
}

/// `POST /api/energy-sources/{id}/test`: tries the connection, and notes its state and the time in the metadata.
pub(super) async fn test(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
) -> Result<Response> {
    let id: EntityId = id.parse()?;
    let source = EnergySources::find(&app, &access, id)?;
    let Obstacle { status, message } = obstacle(&source);
    let tested = app.now().to_string();
    let mut draft = EnergySourceDraft::from(&source);
    draft.metadata.insert("connectionStatus".into(), status.into());
    draft.metadata.insert("lastTested".into(), tested.as_str().into());
    EnergySources::update(&app, id, draft).await?;
    Ok(json_response(&json!({ "connectionStatus": status, "lastTested": tested, "message": message })))
}

/// `POST /api/energy-sources/{id}/poll`.
pub(super) async fn poll(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
) -> Result<Response> {
    let source = EnergySources::find(&app, &access, id.parse()?)?;
    Err(ApiError::new(Kind::Unprocessable, obstacle(&source).message))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Range {
    from: String,
    to: String,
}

/// `POST /api/energy-sources/{id}/backfill`.
pub(super) async fn backfill(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Response> {
    let source = EnergySources::find(&app, &access, id.parse()?)?;
    let range: Range = read_json(&body)?;
    let zone = app.zone();
    let from = parse_instant("from", &range.from, &zone, app.now())?;
    let to = parse_instant("to", &range.to, &zone, app.now())?;
    if from >= to {
        return Err(ApiError::invalid(format!("from {from} is not before to {to}")));
    }
    Err(ApiError::new(Kind::Unprocessable, obstacle(&source).message))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct JobsParams {
    limit: Option<String>,
    cursor: Option<String>,
}

/// `GET /api/jobs`.
pub(super) async fn jobs(RawQuery(query): RawQuery) -> Result<Response> {
    let params: JobsParams = read_query(query.as_deref(), &[])?;
    let none: [Value; 0] = [];
    page(none.iter(), |_| uuid::Uuid::nil(), params.limit.as_deref(), params.cursor.as_deref())
}

/// `GET` and `DELETE /api/jobs/{id}`.
pub(super) async fn job(Path(id): Path<String>) -> Result<Response> {
    Err(ApiError::not_found(format!("no job {id}")))
}
