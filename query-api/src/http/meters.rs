//! `/api/meters`.

use axum::{
    Extension,
    extract::{RawQuery, State},
    response::Response,
};
use serde::Deserialize;
use serde_json::{Value, json};
use wattlake_catalog::{Access, EntityId, Fleet, Meter, MeterDraft, SiteId};

use super::{
    App,
    auth::check_site,
    listing::page,
    reply::{json_response, read_flag, read_query},
    resource::{Resource, with_sources},
};
use crate::error::{ApiError, Result};

/// Meters.
pub(super) struct Meters;

impl Resource for Meters {
    type Id = EntityId;
    type Stored = Meter;
    type Draft = MeterDraft;

    fn find(app: &App, access: &Access, id: EntityId) -> Result<Meter> {
        let meter = app.engine.catalog().fleet().meter(id).cloned();
        let meter = meter.filter(|meter| access.allows_site(meter.site_id));
        meter.ok_or_else(|| ApiError::not_found(format!("no meter {id}")))
    }

    fn check_place(_: &App, access: &Access, draft: &MeterDraft) -> Result<()> {
        check_site(access, draft.site_id)
    }

    async fn create(app: &App, draft: MeterDraft) -> Result<Meter> {
        Ok(app.engine.catalog().create_meter(&draft).await?)
    }

    async fn update(app: &App, id: EntityId, draft: MeterDraft) -> Result<Meter> {
        Ok(app.engine.catalog().update_meter(id, &draft).await?)
    }

    async fn delete(app: &App, id: EntityId, cascade: bool) -> Result<()> {
        Ok(app.engine.catalog().delete_meter(id, cascade).await?)
    }

    fn entities(fleet: &Fleet, id: EntityId) -> Vec<EntityId> {
        with_sources(fleet, fleet.subtree(id))
    }
}

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
