//! `GET /api/latest`: the newest reading of each series.

use std::collections::{BTreeMap, BTreeSet};

use arrow::{
    array::AsArray,
    datatypes::{Float64Type, TimestampMicrosecondType},
};
use axum::{
    Extension,
    extract::{RawQuery, State},
    response::Response,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use wattlake_catalog::{Access, EntityId, SiteId};

use super::{
    App,
    auth::check_site,
    measurements::text,
    reply::{json_response, read_query},
    resource::with_sources,
};
use crate::{
    error::{ApiError, Result},
    query::SqlRequest,
};

/// Entities asked for by name; more are read as "all".
const ENTITIES_LISTED_MAX: usize = 5_000;

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
    pub entity_id: String,
    pub entity_type: String,
    pub metric: String,
    pub timestamp: Timestamp,
    pub value: f64,
    pub unit: String,
    pub quality: String,
}

/// `siteId`: everything on a site; `meterId`: a meter, those below it and their sources; `entityId`: one entity.
pub(super) async fn latest(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    RawQuery(query): RawQuery,
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
    let rows = latest_rows(&app, &access, entities.as_ref(), params.metric.as_deref()).await?;
    Ok(json_response(&rows))
}

/// The newest readings, ordered by entity and metric.
pub(super) async fn latest_rows(
    app: &App,
    access: &Access,
    entities: Option<&BTreeSet<EntityId>>,
    metric: Option<&str>,
) -> Result<Vec<Latest>> {
    let mut conditions = Vec::new();
    let mut request = SqlRequest::new("", access);
    if let Some(metric) = metric {
        conditions.push("metric = $1".to_owned());
        request.params.push(metric.into());
    }
    if let Some(entities) = entities {
        if entities.is_empty() {
            return Ok(Vec::new());
        }
        if entities.len() <= ENTITIES_LISTED_MAX {
            let ids: Vec<_> = entities.iter().map(|id| format!("'{id}'")).collect();
            conditions.push(format!("entity_id IN ({})", ids.join(", ")));
        }
    }
    let filter =
        if conditions.is_empty() { String::new() } else { format!("WHERE {}", conditions.join(" AND ")) };
    request.query = format!(
        "SELECT entity_id, entity_type, metric, timestamp, value, unit, quality FROM latest {filter} \
         ORDER BY entity_id, metric"
    );
    let (_, batches) = app.queries.collect(request).await?;
    let mut rows = BTreeMap::new();
    for batch in &batches {
        let (entity, kind, metric) = (text(batch, 0)?, text(batch, 1)?, text(batch, 2)?);
        let (unit, quality) = (text(batch, 5)?, text(batch, 6)?);
        let time = batch.column(3).as_primitive::<TimestampMicrosecondType>();
        let value = batch.column(4).as_primitive::<Float64Type>();
        for i in 0..batch.num_rows() {
            let id: EntityId = entity.value(i).parse()?;
            if entities.is_some_and(|entities| !entities.contains(&id)) {
                continue;
            }
            let row = Latest {
                entity_id: entity.value(i).to_owned(),
                entity_type: kind.value(i).to_owned(),
                metric: metric.value(i).to_owned(),
                timestamp: Timestamp::from_microsecond(time.value(i)).unwrap_or_default(),
                value: value.value(i),
                unit: unit.value(i).to_owned(),
                quality: quality.value(i).to_owned(),
            };
            rows.insert((id, row.metric.clone()), row);
        }
    }
    Ok(rows.into_values().collect())
}
