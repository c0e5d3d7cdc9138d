//! `GET /api/latest`: the newest reading of each series.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Extension,
    extract::{RawQuery, State},
    http::HeaderMap,
    response::Response,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use wattlake_catalog::{Access, EntityId, EntityType, Quality, SiteId};
use wattlake_engine::{LatestReading, SeriesKey};

use super::{
    App,
    auth::check_site,
    reply::{json_response, read_query},
    resource::with_sources,
};
use crate::{
    error::{ApiError, Result},
    query::Allowance,
    sql::visible_entities,
};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Params {
    site_id: Option<String>,
    meter_id: Option<String>,
    entity_id: Option<String>,
    metric: Option<String>,
}

/// The newest reading of a series.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Latest {
    pub entity_id: EntityId,
    pub entity_type: EntityType,
    pub metric: String,
    pub timestamp: Timestamp,
    pub value: f64,
    pub unit: String,
    pub quality: Quality,
}

impl From<LatestReading> for Latest {
    fn from(reading: LatestReading) -> Self {
        let LatestReading { key, ts, value, unit, quality } = reading;
        Self {
            entity_id: key.entity,
            entity_type: key.entity_type,
            metric: key.metric.to_string(),
            timestamp: Timestamp::from_microsecond(ts).unwrap_or_default(),
            value,
            unit: unit.to_string(),
            quality,
        }
    }
}

/// `siteId`: everything on a site; `meterId`: a meter, those below it and their sources; `entityId`: one entity.
pub(super) async fn latest(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response> {
    let params: Params = read_query(query.as_deref(), &[])?;
    let fleet = app.engine.catalog().fleet();
    let entities_of = |meters| with_sources(&fleet, meters).into_iter().collect();
    let missing = |what: &str, id: &str| ApiError::not_found(format!("no {what} {id}"));
    let mut entities: Option<BTreeSet<EntityId>> = None;
    let mut narrow = |set: BTreeSet<EntityId>| {
        entities = Some(match entities.take() {
            Some(known) => known.intersection(&set).copied().collect(),
            None => set,
        });
    };
    if let Some(text) = &params.site_id {
        let id: SiteId = text.parse()?;
        check_site(&access, id)?;
        fleet.site(id).ok_or_else(|| missing("site", text))?;
        narrow(entities_of(fleet.site_meters(id)));
    }
    if let Some(text) = &params.meter_id {
        let id: EntityId = text.parse()?;
        fleet.meter(id).filter(|m| access.allows_site(m.site_id)).ok_or_else(|| missing("meter", text))?;
        narrow(entities_of(fleet.subtree(id)));
    }
    if let Some(text) = &params.entity_id {
        let id: EntityId = text.parse()?;
        let site = fleet.site_of(id).filter(|site| access.allows_site(site.id));
        site.ok_or_else(|| missing("entity", text))?;
        narrow(BTreeSet::from([id]));
    }
    let tag = app.tagger.tag(&app, &access, ("latest", &query));
    if let Some(unchanged) = tag.unchanged(&headers) {
        return Ok(unchanged);
    }
    let rows = latest_rows(&app, &access, entities, params.metric).await?;
    Ok(tag.on(json_response(&rows)))
}

/// The newest readings, ordered by entity and metric.
pub(super) async fn latest_rows(
    app: &App,
    access: &Access,
    entities: Option<BTreeSet<EntityId>>,
    metric: Option<String>,
) -> Result<Vec<Latest>> {
    let visible = visible_entities(&app.engine.catalog().fleet(), access);
    let wanted = move |key: &SeriesKey| {
        let is_in =
            |set: &Option<BTreeSet<EntityId>>| set.as_ref().is_none_or(|set| set.contains(&key.entity));
        is_in(&entities) && is_in(&visible) && metric.as_deref().is_none_or(|metric| *key.metric == *metric)
    };
    let engine = Arc::clone(&app.engine);
    let mut clock = Allowance::new(engine.settings().query.timeout.0);
    let found = app.queries.run(async move { clock.spend(engine.read_view().latest(wanted)).await });
    let mut rows: Vec<_> = found.await??.into_iter().map(Latest::from).collect();
    rows.sort_by(|a, b| (a.entity_id, &a.metric).cmp(&(b.entity_id, &b.metric)));
    Ok(rows)
}
