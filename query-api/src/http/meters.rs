//! `/api/meters`.

use axum::{
    Extension,
    body::Bytes,
    extract::{Path, RawQuery, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};
use wattlake_catalog::{Access, EntityId, Fleet, Meter, MeterDraft, SiteId};

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
    site_id: Option<String>,
    tree: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

/// `GET /api/meters`; with `?tree=true` nested, roots first, each with its `sources` and `children`.
pub(super) async fn list(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let params: ListParams = read_query(query.as_deref(), &[])?;
    let site: Option<SiteId> = params.site_id.as_deref().map(str::parse).transpose()?;
    let fleet = app.engine.catalog().fleet();
    if let Some(site) = site {
        check_site(&access, site)?;
        fleet.site(site).ok_or_else(|| ApiError::not_found(format!("no site {site}")))?;
    }
    let is_wanted = |id: SiteId| access.allows_site(id) && site.is_none_or(|site| site == id);
    if read_flag("tree", params.tree.as_deref())? {
        let sites = fleet.sites().filter(|site| is_wanted(site.id));
        let roots: Vec<_> =
            sites.flat_map(|site| fleet.roots(site.id)).map(|id| subtree(&fleet, *id)).collect();
        return Ok(json_response(&roots));
    }
    let meters = fleet.meters().filter(|meter| is_wanted(meter.site_id));
    page(meters, |meter| meter.id.0, params.limit.as_deref(), params.cursor.as_deref())
}

fn subtree(fleet: &Fleet, id: EntityId) -> Value {
    let mut node = fleet.meter(id).map_or(Value::Null, |meter| json!(meter));
    node["sources"] =
        fleet.sources_of(id).iter().filter_map(|id| fleet.source(*id)).map(|s| json!(s)).collect();
    node["children"] = fleet.children(id).iter().map(|child| subtree(fleet, *child)).collect();
    node
}

/// `POST /api/meters`.
pub(super) async fn create(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    body: Bytes,
) -> Result<Response> {
    let draft: MeterDraft = read_json(&body)?;
    check_site(&access, draft.site_id)?;
    Ok(created(&app.engine.catalog().create_meter(&draft).await?))
}

/// `GET /api/meters/{id}`.
pub(super) async fn show(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
) -> Result<Response> {
    Ok(json_response(&find(&app, &access, id.parse()?)?))
}

/// `PATCH /api/meters/{id}`: the fields of the body replace those stored, `null` clears one.
pub(super) async fn change(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Response> {
    let id: EntityId = id.parse()?;
    let stored = find(&app, &access, id)?;
    let patch: Value = read_json(&body)?;
    if patch.get("id").is_some_and(|patched| patched.as_str() != Some(&id.to_string())) {
        return Err(ApiError::invalid("id: cannot be changed"));
    }
    let mut merged = serde_json::to_value(MeterDraft::from(&stored))
        .map_err(|error| ApiError::internal(format!("a meter cannot be written as JSON: {error}")))?;
    merge_patch(&mut merged, patch);
    let draft: MeterDraft = read_value(merged)?;
    check_site(&access, draft.site_id)?;
    Ok(json_response(&app.engine.catalog().update_meter(id, &draft).await?))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RemoveParams {
    cascade: Option<String>,
}

/// `DELETE /api/meters/{id}`: 409 while it still has children or readings, unless `?cascade=true`.
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
    let fleet = app.engine.catalog().fleet();
    let meters = fleet.subtree(id);
    let entities =
        meters.iter().flat_map(|m| [*m].into_iter().chain(fleet.sources_of(*m).to_vec())).collect::<Vec<_>>();
    if !cascade {
        refuse_readings(&app, &entities).await?;
    }
    app.engine.catalog().delete_meter(id, cascade).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn find(app: &App, access: &Access, id: EntityId) -> Result<Meter> {
    let meter = app.engine.catalog().fleet().meter(id).cloned();
    meter
        .filter(|meter| access.allows_site(meter.site_id))
        .ok_or_else(|| ApiError::not_found(format!("no meter {id}")))
}
