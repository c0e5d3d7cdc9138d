//! Bulk imports over HTTP, as `wattlake import` makes them through a running server.
//!
//! `POST /api/imports` starts one, `POST /api/imports/{id}` adds a part, `POST /api/imports/{id}/finish` stores all of them in one
//! commit, `DELETE` gives it up. With `?dryRun=true` at its start it only answers what would be stored. Nothing of it is seen before it is finished. `POST /api/import` stores a single part at once.

use std::{
    collections::{BTreeMap, HashMap},
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
use jiff::Timestamp;
use parking_lot::Mutex as SyncMutex;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Mutex;
use uuid::Uuid;
use wattlake_catalog::{Access, Entity, EntityId, SnapshotId};
use wattlake_engine::{
    BulkImport, DecodedPart, ERRORS_REPORTED_MAX, Engine, IngestReport, IngestRequest, TableMapping,
    TimePrecision,
};

use super::{
    App,
    measurements::read_body,
    reply::{created, json_response, read_flag, read_json, read_query},
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
    /// Nothing is stored when it is finished: it only answers what would be.
    is_preview: bool,
}

impl Imports {
    fn start(&self, bulk: BulkImport, is_preview: bool, access: &Access) -> Result<Uuid> {
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
            is_preview,
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

/// What became of a part.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PartReport {
    #[serde(flatten)]
    pub report: IngestReport,
    /// With `series=true`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub series: Vec<PartSeries>,
}

/// What a part has of a series.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PartSeries {
    /// The name of the meter or energy source.
    pub entity: String,
    pub metric: String,
    pub readings: u64,
    pub first: Timestamp,
    pub last: Timestamp,
}

impl PartSeries {
    /// Those of a part that was decoded.
    pub(crate) fn of(part: &DecodedPart, report: &IngestReport, engine: &Engine) -> Vec<Self> {
        let mut counts = BTreeMap::new();
        part.count_series(engine, &mut counts);
        let fleet = engine.catalog().fleet();
        let time = |micros: i64| Timestamp::from_microsecond(micros).unwrap_or_default();
        let name = |id: EntityId| match fleet.entity(id) {
            Some(Entity::Meter(meter)) => meter.name.clone(),
            Some(Entity::Source(source)) => source.name.clone(),
            None => {
                let unknown = report.unknown.iter().find(|(unknown, _)| *unknown == id);
                unknown.map_or_else(|| id.to_string(), |(_, name)| name.clone())
            }
        };
        let named = counts.into_iter().map(|((id, metric), count)| Self {
            entity: name(id),
            metric,
            readings: count.rows,
            first: time(count.first),
            last: time(count.last),
        });
        named.collect()
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
    errors: Option<String>,
    series: Option<String>,
}

/// Errors that a part may ask to be told in full.
const ERRORS_MAX: usize = 100_000;

impl Params {
    fn errors_max(&self) -> Result<usize> {
        let Some(text) = &self.errors else { return Ok(ERRORS_REPORTED_MAX) };
        let count = text.parse().ok().filter(|count| *count <= ERRORS_MAX);
        count.ok_or_else(|| ApiError::invalid(format!("errors: `{text}` is not a number up to {ERRORS_MAX}")))
    }

    fn into_request(self, body: bytes::Bytes, access: Access) -> Result<IngestRequest> {
        let mapping = self.mapping.as_deref().map(|text| {
            let mapping: TableMapping =
                serde_json::from_str(text).map_err(|error| ApiError::invalid(format!("mapping: {error}")))?;
            mapping.check()?;
            Ok::<_, ApiError>(Arc::new(mapping))
        });
        let errors_max = self.errors_max()?;
        Ok(IngestRequest {
            format: self.format.parse()?,
            body: body.into(),
            precision: self.precision.as_deref().map(str::parse::<TimePrecision>).transpose()?,
            is_atomic: false,
            site: self.site.unwrap_or_else(|| "default".to_owned()),
            mapping: mapping.transpose()?,
            allowed_sites: access.sites,
            is_dry_run: read_flag("dryRun", self.dry_run.as_deref())?,
            errors_max,
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

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StartParams {
    dry_run: Option<String>,
}

pub(super) async fn start(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let params: StartParams = read_query(query.as_deref(), &[])?;
    let is_preview = read_flag("dryRun", params.dry_run.as_deref())?;
    let id = app.imports.start(app.engine.bulk_import(), is_preview, &access)?;
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
    let tells_series = read_flag("series", params.series.as_deref())?;
    let mut request = params.into_request(body, access)?;
    // Readings of a preview are compared with what is stored, without registering anything.
    request.is_dry_run |= import.is_preview;
    let (part, report) = app.ingest.decode_part(request).await?;
    let series = if tells_series { PartSeries::of(&part, &report, &app.engine) } else { Vec::new() };
    let mut bulk = import.bulk.lock().await;
    let open = bulk.as_mut().ok_or_else(|| ApiError::not_found(format!("import {id} is finished")))?;
    if let Err(error) = app.ingest.push(open, part, String::new).await {
        // What it holds is not whole any more.
        *bulk = None;
        app.imports.end(id);
        return Err(error.into());
    }
    *import.used_at.lock() = Instant::now();
    Ok(json_response(&PartReport { report, series }))
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
    let stored = if import.is_preview { bulk.preview().await? } else { bulk.finish().await? };
    let new = stored.rows - stored.corrected - stored.identical;
    let mut answer = json!({ "new": new, "corrected": stored.corrected, "identical": stored.identical });
    if let Some(batch) = stored.batch {
        answer["batch"] = batch.0.into();
    }
    Ok(json_response(&answer))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Undo {
    batch: i64,
    #[serde(default)]
    dry_run: bool,
}

/// `POST /api/imports/undo`: what an import changed becomes again what it was before it.
pub(super) async fn undo(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    body: bytes::Bytes,
) -> Result<Response> {
    let Undo { batch, dry_run } = read_json(&body)?;
    if !access.sites.is_empty() {
        return Err(ApiError::new(Kind::Forbidden, "a token for some sites cannot undo an import"));
    }
    let undone = app.engine.undo_import(SnapshotId(batch), dry_run).await?;
    Ok(json_response(&undone))
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
