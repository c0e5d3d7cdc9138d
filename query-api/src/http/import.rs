//! Bulk imports over HTTP, as `wattlake import` makes them through a running server.
//!
//! `POST /api/imports` starts one, `POST /api/imports/{id}` adds a part, `POST /api/imports/{id}/finish` stores all of them in one
//! commit, `DELETE` gives it up. Nothing of it is seen before it is finished. `POST /api/import` stores a single part at once.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Extension,
    body::Body,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use parking_lot::Mutex as SyncMutex;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Mutex;
use uuid::Uuid;
use wattlake_catalog::Access;
use wattlake_engine::{BulkImport, IngestRequest, TableMapping, TimePrecision};

use super::{
    App,
    measurements::read_body,
    reply::{created, json_response, read_flag, read_query},
};
use crate::error::{ApiError, Kind, Result};

/// Imports at a time: each sorts in memory of its own.
const IMPORTS_MAX: usize = 2;
/// An import that nobody adds to for so long is given up.
const IDLE_MAX: Duration = Duration::from_secs(600);

/// Imports that were started and not finished yet.
#[derive(Debug, Default)]
pub(crate) struct Imports(SyncMutex<HashMap<Uuid, Arc<Import>>>);

#[derive(Debug)]
struct Import {
    /// `None` once it is finished.
    bulk: Mutex<Option<BulkImport>>,
    /// The sites that whoever started it may write to.
    sites: Vec<wattlake_catalog::SiteId>,
    used_at: SyncMutex<Instant>,
}

impl Imports {
    fn start(&self, bulk: BulkImport, access: &Access) -> Result<Uuid> {
        let mut imports = self.0.lock();
        imports.retain(|_, import| import.used_at.lock().elapsed() < IDLE_MAX);
        if imports.len() >= IMPORTS_MAX {
            return Err(ApiError::new(
                Kind::Overloaded,
                format!("{IMPORTS_MAX} imports are under way; try again when one is finished"),
            ));
        }
        let id = Uuid::new_v4();
        let import = Import {
            bulk: Mutex::new(Some(bulk)),
            sites: access.sites.clone(),
            used_at: SyncMutex::new(Instant::now()),
        };
        imports.insert(id, Arc::new(import));
        Ok(id)
    }

    /// An import of somebody with the same rights.
    fn find(&self, id: &str, access: &Access) -> Result<(Uuid, Arc<Import>)> {
        let id: Uuid =
            id.parse().map_err(|_| ApiError::invalid(format!("import id `{id}` is not a uuid")))?;
        let found = self.0.lock().get(&id).cloned().filter(|import| import.sites == access.sites);
        let import = found.ok_or_else(|| {
            ApiError::not_found(format!("no import {id}: it is finished, given up, or was never started"))
        })?;
        *import.used_at.lock() = Instant::now();
        Ok((id, import))
    }

    fn end(&self, id: Uuid) {
        self.0.lock().remove(&id);
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Params {
    format: String,
    site: Option<String>,
    /// JSON with the fields of a mapping file.
    mapping: Option<String>,
    precision: Option<String>,
    dry_run: Option<String>,
}

impl Params {
    fn into_request(self, body: bytes::Bytes, access: Access) -> Result<IngestRequest> {
        let mapping = self.mapping.as_deref().map(|text| {
            let mapping: TableMapping =
                serde_json::from_str(text).map_err(|error| ApiError::invalid(format!("mapping: {error}")))?;
            mapping.check()?;
            Ok::<_, ApiError>(Arc::new(mapping))
        });
        Ok(IngestRequest {
            format: self.format.parse()?,
            body: body.into(),
            precision: self.precision.as_deref().map(str::parse::<TimePrecision>).transpose()?,
            is_atomic: false,
            site: self.site.unwrap_or_else(|| "default".to_owned()),
            mapping: mapping.transpose()?,
            allowed_sites: access.sites,
            is_dry_run: read_flag("dryRun", self.dry_run.as_deref())?,
        })
    }
}

pub(super) async fn import(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let params: Params = read_query(query.as_deref(), &[])?;
    let (body, _held) = read_body(&app, &headers, body).await?;
    let report = app.ingest.ingest(params.into_request(body, access)?).await?;
    Ok(json_response(&report))
}

pub(super) async fn start(State(app): State<App>, Extension(access): Extension<Access>) -> Result<Response> {
    let id = app.imports.start(app.engine.bulk_import(), &access)?;
    Ok(created(&json!({ "id": id })))
}

pub(super) async fn add(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let (id, import) = app.imports.find(&id, &access)?;
    let params: Params = read_query(query.as_deref(), &[])?;
    let (body, _held) = read_body(&app, &headers, body).await?;
    let (part, report) = app.ingest.decode_part(params.into_request(body, access)?).await?;
    let mut bulk = import.bulk.lock().await;
    let open = bulk.as_mut().ok_or_else(|| ApiError::not_found(format!("import {id} is finished")))?;
    if let Err(error) = app.ingest.push(open, part).await {
        // What it holds is not whole any more.
        *bulk = None;
        app.imports.end(id);
        return Err(error.into());
    }
    *import.used_at.lock() = Instant::now();
    Ok(json_response(&report))
}

pub(super) async fn finish(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
) -> Result<Response> {
    let (id, import) = app.imports.find(&id, &access)?;
    let bulk = import.bulk.lock().await.take();
    app.imports.end(id);
    let bulk = bulk.ok_or_else(|| ApiError::not_found(format!("import {id} is finished")))?;
    let stored = bulk.finish().await?;
    let new = stored.rows - stored.corrected - stored.identical;
    Ok(json_response(&json!({ "new": new, "corrected": stored.corrected, "identical": stored.identical })))
}

pub(super) async fn give_up(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
) -> Result<Response> {
    let (id, _) = app.imports.find(&id, &access)?;
    app.imports.end(id);
    Ok(StatusCode::NO_CONTENT.into_response())
}
