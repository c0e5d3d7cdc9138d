//! `POST /api/compact`, `/api/verify`, `/api/backup` and `/api/export`: maintenance now, whether the archive is sound, a copy of it,
//! and its files as a table of another format.

use axum::{
    body::Bytes,
    extract::{RawQuery, State},
    response::Response,
};
use serde::Deserialize;
use serde_json::json;
use wattlake_engine::MaintenanceOptions;

use super::{
    App,
    reply::{json_response, read_flag, read_json, read_query},
};
use crate::error::{ApiError, Result};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Params {
    all: Option<String>,
    dry_run: Option<String>,
    force: Option<String>,
}

/// `all`: compacts every month as if it were over; `dryRun`: only says what would be done; `force`: also deletes by time
/// after the clock jumped.
pub(super) async fn compact(State(app): State<App>, RawQuery(query): RawQuery) -> Result<Response> {
    let params: Params = read_query(query.as_deref(), &[])?;
    let options = MaintenanceOptions {
        everything: read_flag("all", params.all.as_deref())?,
        is_dry_run: read_flag("dryRun", params.dry_run.as_deref())?,
        is_forced: read_flag("force", params.force.as_deref())?,
    };
    Ok(json_response(&app.engine.maintain(options).await?))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct VerifyParams {
    quick: Option<String>,
}

/// `quick`: only looks whether all objects are there in their size.
pub(super) async fn verify(State(app): State<App>, RawQuery(query): RawQuery) -> Result<Response> {
    let params: VerifyParams = read_query(query.as_deref(), &[])?;
    let is_quick = read_flag("quick", params.quick.as_deref())?;
    Ok(json_response(&app.engine.verify(is_quick).await?))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExportDraft {
    format: TableFormat,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
enum TableFormat {
    Delta,
}

pub(super) async fn export(State(app): State<App>, body: Bytes) -> Result<Response> {
    let ExportDraft { format: TableFormat::Delta } = read_json(&body)?;
    Ok(json_response(&app.engine.export_delta().await?))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BackupDraft {
    /// An absolute path on this machine, new or empty.
    directory: std::path::PathBuf,
}

pub(super) async fn backup(State(app): State<App>, body: Bytes) -> Result<Response> {
    let draft: BackupDraft = read_json(&body)?;
    if !draft.directory.is_absolute() {
        return Err(ApiError::invalid("directory: an absolute path on the server's machine"));
    }
    let contents = app.engine.backup(&draft.directory).await?;
    Ok(json_response(&json!({
        "files": contents.files.len(),
        "bytes": contents.bytes(),
        "snapshotId": contents.snapshot_id,
    })))
}
