//! `/api/energy-sources`.

use axum::{
    Extension,
    body::Bytes,
    extract::{Path, RawQuery, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use wattlake_catalog::{Access, EnergySource, EnergySourceDraft, EntityId};

use super::{
    App,
    auth::check_site,
    listing::{merge_patch, page},
    measurements::refuse_readings,
    reply::{created, json_response, read_flag, read_json, read_query, read_value},
};
use crate::error::{ApiError, Result};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ListParams {
    meter_id: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

/// `GET /api/energy-sources`.
pub(super) async fn list(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let params: ListParams = read_query(query.as_deref(), &[])?;
    let meter: Option<EntityId> = params.meter_id.as_deref().map(str::parse).transpose()?;
    let fleet = app.engine.catalog().fleet();
    let is_wanted = |source: &&EnergySource| {
        meter.is_none_or(|meter| meter == source.meter_id)
            && fleet.site_of(source.id).is_some_and(|site| access.allows_site(site.id))
    };
    page(
        fleet.sources().filter(is_wanted),
        |source| source.id.0,
        params.limit.as_deref(),
        params.cursor.as_deref(),
    )
}

/// `POST /api/energy-sources`.
pub(super) async fn create(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    body: Bytes,
) -> Result<Response> {
    let draft: EnergySourceDraft = read_json(&body)?;
    check_meter(&app, &access, &draft)?;
    Ok(created(&app.engine.catalog().create_source(&draft).await?))
}

/// `GET /api/energy-sources/{id}`.
pub(super) async fn show(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
) -> Result<Response> {
    Ok(json_response(&find(&app, &access, id.parse()?)?))
}

/// `PATCH /api/energy-sources/{id}`: the fields of the body replace those stored, `null` clears one.
pub(super) async fn change(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Response> {
    let id: EntityId = id.parse()?;
    let stored = find(&app, &access, id)?;
    let patch: serde_json::Value = read_json(&body)?;
    if patch.get("id").is_some_and(|patched| patched.as_str() != Some(&id.to_string())) {
        return Err(ApiError::invalid("id: cannot be changed"));
    }
    let mut merged = serde_json::to_value(EnergySourceDraft::from(&stored))
        .map_err(|error| ApiError::internal(format!("a energy source cannot be written as JSON: {error}")))?;
    merge_patch(&mut merged, patch);
    let draft: EnergySourceDraft = read_value(merged)?;
    check_meter(&app, &access, &draft)?;
    Ok(json_response(&app.engine.catalog().update_source(id, &draft).await?))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RemoveParams {
    cascade: Option<String>,
}

/// `DELETE /api/energy-sources/{id}`: 409 while it still has children or readings, unless `?cascade=true`.
pub(super) async fn remove(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let id: EntityId = id.parse()?;
    let params: RemoveParams = read_query(query.as_deref(), &[])?;
    let cascade = read_flag("cascade", params.cascade.as_deref())?;
    find(&app, &access, id)?;
    let entities = vec![id];
    if !cascade {
        refuse_readings(&app, &entities).await?;
    }
    app.engine.catalog().delete_source(id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// A source is only put behind meters of sites that the token is for.
fn check_meter(app: &App, access: &Access, draft: &EnergySourceDraft) -> Result<()> {
    let site = app.engine.catalog().fleet().meter(draft.meter_id).map(|meter| meter.site_id);
    site.map_or(Ok(()), |site| check_site(access, site))
}

fn find(app: &App, access: &Access, id: EntityId) -> Result<EnergySource> {
    let fleet = app.engine.catalog().fleet();
    let is_visible = fleet.site_of(id).is_some_and(|site| access.allows_site(site.id));
    let source = fleet.source(id).filter(|_| is_visible).cloned();
    source.ok_or_else(|| ApiError::not_found(format!("no energy source {id}")))
}
