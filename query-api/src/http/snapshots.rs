//! `/api/snapshots`: states of the archive that are kept under a name.

use axum::{
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};
use wattlake_catalog::NamedSnapshot;

use super::{
    App,
    reply::{created, json_response, read_json},
};
use crate::error::Result;

fn to_json(named: &NamedSnapshot) -> Value {
    json!({ "name": named.name, "snapshotId": named.snapshot.0, "committedAt": named.committed_at })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Draft {
    name: String,
}

/// `POST`: writes out what is in memory and keeps that state until its name is deleted.
pub(super) async fn create(State(app): State<App>, body: Bytes) -> Result<Response> {
    let draft: Draft = read_json(&body)?;
    app.engine.flush().await?;
    Ok(created(&to_json(&app.engine.catalog().name_snapshot(&draft.name, app.now()).await?)))
}

/// `GET`: all of them, by name.
pub(super) async fn list(State(app): State<App>) -> Result<Response> {
    let named = app.engine.catalog().named_snapshots().await?;
    Ok(json_response(&named.iter().map(to_json).collect::<Vec<_>>()))
}

/// `DELETE`: the state then expires like any other.
pub(super) async fn remove(State(app): State<App>, Path(name): Path<String>) -> Result<Response> {
    app.engine.catalog().forget_snapshot_name(&name).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
