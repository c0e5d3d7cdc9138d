//! `/api/energy-sources`.

use axum::{
    Extension,
    extract::{RawQuery, State},
    response::Response,
};
use serde::Deserialize;
use wattlake_catalog::{Access, EnergySource, EnergySourceDraft, EntityId, Fleet};

use super::{App, auth::check_site, listing::page, reply::read_query, resource::Resource};
use crate::error::{ApiError, Result};

/// Energy sources.
pub(super) struct EnergySources;

impl Resource for EnergySources {
    type Id = EntityId;
    type Stored = EnergySource;
    type Draft = EnergySourceDraft;

    fn find(app: &App, access: &Access, id: EntityId) -> Result<EnergySource> {
        let fleet = app.engine.catalog().fleet();
        let is_visible = fleet.site_of(id).is_some_and(|site| access.allows_site(site.id));
        let source = fleet.source(id).filter(|_| is_visible).cloned();
        source.ok_or_else(|| ApiError::not_found(format!("no energy source {id}")))
    }

    fn check_place(app: &App, access: &Access, draft: &EnergySourceDraft) -> Result<()> {
        let site = app.engine.catalog().fleet().meter(draft.meter_id).map(|meter| meter.site_id);
        site.map_or(Ok(()), |site| check_site(access, site))
    }

    async fn create(app: &App, draft: EnergySourceDraft) -> Result<EnergySource> {
        Ok(app.engine.catalog().create_source(&draft).await?)
    }

    async fn update(app: &App, id: EntityId, draft: EnergySourceDraft) -> Result<EnergySource> {
        Ok(app.engine.catalog().update_source(id, &draft).await?)
    }

    async fn delete(app: &App, id: EntityId, _: bool) -> Result<()> {
        Ok(app.engine.catalog().delete_source(id).await?)
    }

    fn entities(_: &Fleet, id: EntityId) -> Vec<EntityId> {
        vec![id]
    }
}

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
