//! Health, status, metrics and flush.

use axum::{
    Extension,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use wattlake_catalog::{Access, JobState};

use super::{App, energy_sources::EnergySources, reply::json_response, resource::Resource};
use crate::error::{ApiError, Kind, Result};

/// `GET /health`: InfluxDB's shape, and whether writes are taken.
pub(super) async fn health(State(app): State<App>) -> Response {
    let failed = app.engine.failed().borrow().clone();
    let status = if failed.is_some() { "fail" } else { "pass" };
    let message = failed.map_or_else(|| "ready for queries and writes".to_owned(), |error| error.message);
    let version = env!("CARGO_PKG_VERSION");
    let body = json!({ "name": "influxdb", "message": message, "status": status, "checks": [], "version": version,
        "wattlake": { "version": version, "uptimeSeconds": app.started.elapsed().as_secs() } });
    let mut response = json_response(&body);
    if status == "fail" {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

/// `GET /ready`: 200 once requests are answered.
pub(super) async fn ready(State(app): State<App>) -> Response {
    match app.engine.failed().borrow().clone() {
        None => json_response(&json!({ "status": "ready" })),
        Some(error) => ApiError::new(Kind::Unavailable, error.message).into_response(),
    }
}

/// `GET /metrics` for Prometheus.
pub(super) async fn metrics(State(app): State<App>) -> Response {
    let status = app.engine.status();
    for (name, value) in [
        ("wattlake_memory_bytes", status.memory_bytes as f64),
        ("wattlake_memory_rows", status.memory_rows as f64),
        ("wattlake_memory_budget_bytes", status.memory_budget_bytes as f64),
        ("wattlake_archive_rows", status.archive_rows as f64),
        ("wattlake_archive_bytes", status.archive_bytes as f64),
        ("wattlake_data_files", status.data_files as f64),
        ("wattlake_wal_segments", status.wal_segments as f64),
        ("wattlake_snapshot_id", status.snapshot_id as f64),
        ("wattlake_flush_failing", f64::from(u8::from(status.last_flush_error.is_some()))),
    ] {
        metrics::gauge!(name).set(value);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.prometheus.render())
        .into_response()
}

/// `GET /api/status`.
pub(super) async fn status(State(app): State<App>, Extension(access): Extension<Access>) -> Result<Response> {
    let fleet = app.engine.catalog().fleet();
    let mut sources = app.sources.status();
    sources.retain(|source| EnergySources::find(&app, &access, source.id).is_ok());
    let mut jobs = app.sources.jobs().await?;
    jobs.retain(|one| {
        one.job.state == JobState::Running && sources.iter().any(|source| source.id == one.job.source_id)
    });
    let mut cadence_changes = app.sources.cadence_changes();
    cadence_changes
        .retain(|change| fleet.site_of(change.entity_id).is_some_and(|site| access.allows_site(site.id)));
    // Credentials are not those of one site.
    let budgets = if access.sites.is_empty() { app.sources.budgets().await? } else { Vec::new() };
    Ok(json_response(&json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptimeSeconds": app.started.elapsed().as_secs(),
        "storage": app.engine.storage().data_path(),
        "engine": app.engine.status(),
        "fleet": {
            "sites": fleet.sites().count(),
            "meters": fleet.meters().count(),
            "energySources": fleet.sources().count(),
        },
        "sources": sources,
        "jobs": jobs,
        "cadenceChanges": cadence_changes,
        "budgets": budgets,
    })))
}

/// `POST /api/flush`.
pub(super) async fn flush(State(app): State<App>) -> Result<Response> {
    let snapshot = app.engine.flush().await?;
    Ok(json_response(&json!({ "snapshotId": snapshot.0 })))
}
