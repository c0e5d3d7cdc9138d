//! Testing, polling and backfilling an energy source, the jobs that do it, and the gaps that were found.

use axum::{
    Extension,
    body::Bytes,
    extract::{Path, RawQuery, State},
    response::Response,
};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;
use wattlake_catalog::{Access, EntityId, Gap, GapFilter};
use wattlake_engine::ErrorKind;

use super::{
    App,
    energy_sources::EnergySources,
    listing::{add_cursor, page, read_limit},
    reply::{json_response, read_json, read_query},
    resource::Resource,
};
use crate::{
    error::{ApiError, Kind, Result},
    time::parse_instant,
};

/// What is wrong with a source is nothing that the request could say otherwise.
pub(super) fn obstacle(error: wattlake_engine::Error) -> ApiError {
    match error.kind {
        ErrorKind::Invalid => ApiError::new(Kind::Unprocessable, error.message),
        _ => error.into(),
    }
}

/// The id of an energy source that the bearer may see.
fn visible(app: &App, access: &Access, id: &str) -> Result<EntityId> {
    Ok(EnergySources::find(app, access, id.parse()?)?.id)
}

/// `POST /api/energy-sources/{id}/test`: tries the connection, and notes its state and the time in the metadata.
pub(super) async fn test(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
) -> Result<Response> {
    let id = visible(&app, &access, &id)?;
    Ok(json_response(&app.sources.test(id).await?))
}

/// `POST /api/energy-sources/{id}/poll`: polls now, and answers how the source stands then.
pub(super) async fn poll(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
) -> Result<Response> {
    let id = visible(&app, &access, &id)?;
    Ok(json_response(&app.sources.poll(id).await.map_err(obstacle)?))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Range {
    from: String,
    to: String,
    #[serde(default)]
    dry_run: bool,
}

/// `POST /api/energy-sources/{id}/backfill`: a job that fetches history; with `dryRun` only what it would take.
pub(super) async fn backfill(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Response> {
    let id = visible(&app, &access, &id)?;
    let range: Range = read_json(&body)?;
    let zone = app.sources.zone_of(id);
    let from = parse_instant("from", &range.from, &zone, app.now())?;
    let to = parse_instant("to", &range.to, &zone, app.now())?;
    if from >= to {
        return Err(ApiError::invalid(format!("from {from} is not before to {to}")));
    }
    // What lies ahead is not there yet; there is nothing before the first meters.
    let to = to.min(app.now());
    let from = from.max(Timestamp::UNIX_EPOCH);
    match range.dry_run {
        true => Ok(json_response(&app.sources.plan_backfill(id, from, to).await.map_err(obstacle)?)),
        false => Ok(json_response(&app.sources.start_backfill(id, from, to).await.map_err(obstacle)?)),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Trial {
    stream: Option<String>,
    answer: Option<Value>,
}

/// `POST /api/energy-sources/{id}/dry-run`: what a poll would store, or what a given answer says.
pub(super) async fn dry_run(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Response> {
    let id = visible(&app, &access, &id)?;
    let trial: Trial = match body.is_empty() {
        true => Trial { stream: None, answer: None },
        false => read_json(&body)?,
    };
    let runs =
        app.sources.dry_run(id, trial.stream.as_deref(), trial.answer.as_ref()).await.map_err(obstacle)?;
    Ok(json_response(&runs))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Span {
    from: String,
    to: String,
}

/// `POST /api/energy-sources/{id}/replay`: decodes kept answers again.
pub(super) async fn replay(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Response> {
    let id = visible(&app, &access, &id)?;
    let span: Span = read_json(&body)?;
    let from = parse_instant("from", &span.from, &app.zone(), app.now())?;
    let to = parse_instant("to", &span.to, &app.zone(), app.now())?;
    Ok(json_response(&app.sources.replay(id, from, to).await.map_err(obstacle)?))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct JobsParams {
    limit: Option<String>,
    cursor: Option<String>,
}

/// `GET /api/jobs`.
pub(super) async fn jobs(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let params: JobsParams = read_query(query.as_deref(), &[])?;
    let mut jobs = app.sources.jobs().await?;
    jobs.retain(|one| EnergySources::find(&app, &access, one.job.source_id).is_ok());
    // Ids are in the order of creation.
    jobs.sort_by_key(|one| one.job.id);
    page(jobs.iter(), |one| one.job.id, params.limit.as_deref(), params.cursor.as_deref())
}

async fn visible_job(app: &App, access: &Access, id: &str) -> Result<Uuid> {
    let missing = || ApiError::not_found(format!("no job {id}"));
    let id: Uuid = id.parse().map_err(|_| missing())?;
    let job = app.engine.catalog().job(id).await?;
    EnergySources::find(app, access, job.source_id).map_err(|_| missing())?;
    Ok(id)
}

/// `GET /api/jobs/{id}`.
pub(super) async fn job(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
) -> Result<Response> {
    let id = visible_job(&app, &access, &id).await?;
    let job = app.sources.jobs().await?.into_iter().find(|one| one.job.id == id);
    Ok(json_response(&job.ok_or_else(|| ApiError::not_found(format!("no job {id}")))?))
}

/// `DELETE /api/jobs/{id}`: cancels it; what it has fetched stays.
pub(super) async fn cancel(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
) -> Result<Response> {
    let id = visible_job(&app, &access, &id).await?;
    Ok(json_response(&app.sources.cancel(id).await?))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GapsParams {
    source_id: Option<String>,
    entity_id: Option<String>,
    state: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

/// `GET /api/gaps`: the newest first. The cursor is the last id of the page before.
pub(super) async fn gaps(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let params: GapsParams = read_query(query.as_deref(), &[])?;
    let limit = read_limit(params.limit.as_deref())?;
    let catalog = app.engine.catalog();
    let mut filter = GapFilter {
        source: params.source_id.as_deref().map(str::parse).transpose()?,
        entity: params.entity_id.as_deref().map(str::parse).transpose()?,
        state: params.state.as_deref().map(str::parse).transpose()?,
        ..GapFilter::default()
    };
    if let Some(cursor) = &params.cursor {
        let unknown = || ApiError::invalid(format!("cursor: `{cursor}` is not one of ours"));
        let last = cursor.parse().map_err(|_| unknown())?;
        filter.after = Some(last);
        if !catalog.has_gap(last).await? {
            return Err(unknown());
        }
    }
    let fleet = catalog.fleet();
    let is_visible = |gap: &Gap| fleet.site_of(gap.entity_id).is_some_and(|site| access.allows_site(site.id));
    // One more than a page tells whether another one follows. Whoever sees few sites skips the gaps of others.
    let mut gaps: Vec<Gap> = Vec::new();
    while gaps.len() <= limit {
        let more = catalog.gaps(&filter, limit as i64 + 1).await?;
        filter.after = more.last().map(|gap| gap.id);
        let is_end = more.len() <= limit;
        gaps.extend(more.into_iter().filter(|gap| is_visible(gap)));
        if is_end {
            break;
        }
    }
    let has_more = gaps.len() > limit;
    gaps.truncate(limit);
    let mut response = json_response(&gaps);
    if let Some(last) = gaps.last().filter(|_| has_more) {
        add_cursor(&mut response, &last.id.to_string());
    }
    Ok(response)
}
