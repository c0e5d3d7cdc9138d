//! `/api/sites`.

use axum::{
    Extension,
    extract::{RawQuery, State},
    response::Response,
};
use serde::Deserialize;
use wattlake_catalog::{Access, EntityId, Fleet, Site, SiteDraft, SiteId};

use super::{
    App,
    auth::{check_site, check_unlimited},
    listing::page,
    reply::read_query,
    resource::{Resource, with_sources},
};
use crate::error::{ApiError, Result};

/// Sites.
pub(super) struct Sites;

impl Resource for Sites {
    type Id = SiteId;
    type Stored = Site;
    type Draft = SiteDraft;

    fn find(app: &App, access: &Access, id: SiteId) -> Result<Site> {
        check_site(access, id)?;
        let site = app.engine.catalog().fleet().site(id).cloned();
        site.ok_or_else(|| ApiError::not_found(format!("no site {id}")))
    }

    fn check_place(app: &App, access: &Access, draft: &SiteDraft) -> Result<()> {
        match draft.id {
            Some(id) if app.engine.catalog().fleet().site(id).is_some() => check_site(access, id),
            _ => check_unlimited(access),
        }
    }

    async fn create(app: &App, draft: SiteDraft) -> Result<Site> {
        Ok(app.engine.catalog().create_site(&draft).await?)
    }

    async fn update(app: &App, id: SiteId, draft: SiteDraft) -> Result<Site> {
        Ok(app.engine.catalog().update_site(id, &draft).await?)
    }

    async fn delete(app: &App, id: SiteId, cascade: bool) -> Result<()> {
        Ok(app.engine.catalog().delete_site(id, cascade).await?)
    }

    fn entities(fleet: &Fleet, id: SiteId) -> Vec<EntityId> {
        with_sources(fleet, fleet.site_meters(id))
    }
}

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
