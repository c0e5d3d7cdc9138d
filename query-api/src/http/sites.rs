//! `/api/sites`.

use axum::{
    Extension,
    body::Bytes,
    extract::{Path, RawQuery, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use wattlake_catalog::{Access, Site, SiteDraft, SiteId};

use super::{
    App,
    auth::{check_site, check_unlimited},
    listing::{merge_patch, page},
    measurements::refuse_readings,
    reply::{created, json_response, read_flag, read_json, read_query, read_value},
};
use crate::error::{ApiError, Result};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParams {
    limit: Option<String>,
    cursor: Option<String>,
}

/// `GET /api/sites`, and `/api/portfolios` for the front end that knows them by that name.
pub(super) async fn list(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let params: ListParams = read_query(query.as_deref(), &[])?;
    let fleet = app.engine.catalog().fleet();
    let sites = fleet.sites().filter(|site| access.allows_site(site.id));
    page(sites, |site| site.id.0, params.limit.as_deref(), params.cursor.as_deref())
}

/// `POST /api/sites`.
pub(super) async fn create(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    body: Bytes,
) -> Result<Response> {
    let draft: SiteDraft = read_json(&body)?;
    check_unlimited(&access)?;
    Ok(created(&app.engine.catalog().create_site(&draft).await?))
}

/// `GET /api/sites/{id}`.
pub(super) async fn show(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
) -> Result<Response> {
    Ok(json_response(&find(&app, &access, id.parse()?)?))
}

/// `PATCH /api/sites/{id}`: the fields of the body replace those stored, `null` clears one.
pub(super) async fn change(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Response> {
    let id: SiteId = id.parse()?;
    let stored = find(&app, &access, id)?;
    let patch: serde_json::Value = read_json(&body)?;
    if patch.get("id").is_some_and(|patched| patched.as_str() != Some(&id.to_string())) {
        return Err(ApiError::invalid("id: cannot be changed"));
    }
    let mut merged = serde_json::to_value(SiteDraft::from(&stored))
        .map_err(|error| ApiError::internal(format!("a site cannot be written as JSON: {error}")))?;
    merge_patch(&mut merged, patch);
    let draft: SiteDraft = read_value(merged)?;
    Ok(json_response(&app.engine.catalog().update_site(id, &draft).await?))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RemoveParams {
    cascade: Option<String>,
}

/// `DELETE /api/sites/{id}`: 409 while it still has children or readings, unless `?cascade=true`.
pub(super) async fn remove(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let id: SiteId = id.parse()?;
    let params: RemoveParams = read_query(query.as_deref(), &[])?;
    let cascade = read_flag("cascade", params.cascade.as_deref())?;
    find(&app, &access, id)?;
    let fleet = app.engine.catalog().fleet();
    let meters = fleet.site_meters(id);
    let entities =
        meters.iter().flat_map(|m| [*m].into_iter().chain(fleet.sources_of(*m).to_vec())).collect::<Vec<_>>();
    if !cascade {
        refuse_readings(&app, &entities).await?;
    }
    app.engine.catalog().delete_site(id, cascade).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn find(app: &App, access: &Access, id: SiteId) -> Result<Site> {
    check_site(access, id)?;
    let site = app.engine.catalog().fleet().site(id).cloned();
    site.ok_or_else(|| ApiError::not_found(format!("no site {id}")))
}
