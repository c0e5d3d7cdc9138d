//! `GET /api/hierarchy/{siteId}`: the tree of a site with the newest readings, and what meters leave unexplained.

use std::collections::{BTreeMap, BTreeSet};

use axum::{
    Extension,
    extract::{Path, State},
    response::Response,
};
use serde_json::{Map, Value, json};
use wattlake_catalog::{Access, EntityId, Fleet, SiteId};
use wattlake_config::MetricKind;

use super::{
    App,
    auth::check_site,
    latest::{Latest, latest_rows},
    reply::json_response,
    resource::with_sources,
};
use crate::error::{ApiError, Result};

pub(super) async fn hierarchy(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    Path(site_id): Path<String>,
) -> Result<Response> {
    let id: SiteId = site_id.parse()?;
    check_site(&access, id)?;
    let fleet = app.engine.catalog().fleet();
    let site = fleet.site(id).ok_or_else(|| ApiError::not_found(format!("no site {id}")))?;
    let entities: BTreeSet<EntityId> = with_sources(&fleet, fleet.site_meters(id)).into_iter().collect();
    let mut readings: Readings = BTreeMap::new();
    for row in latest_rows(&app, &access, Some(entities), None).await? {
        readings.entry(row.entity_id).or_default().insert(row.metric.clone(), row);
    }
    let tree = Tree { app: &app, fleet: &fleet, readings: &readings };
    let roots: Vec<_> = fleet.roots(id).iter().map(|root| tree.node(*root)).collect();
    Ok(json_response(&json!({ "site": site, "meters": roots })))
}

type Readings = BTreeMap<EntityId, BTreeMap<String, Latest>>;

struct Tree<'a> {
    app: &'a App,
    fleet: &'a Fleet,
    readings: &'a Readings,
}

impl Tree<'_> {
    fn node(&self, id: EntityId) -> Value {
        let mut node = self.fleet.meter(id).map_or(Value::Null, |meter| json!(meter));
        node["latest"] = self.latest(id);
        node["residuals"] = self.residuals(id);
        node["sources"] = self
            .fleet
            .sources_of(id)
            .iter()
            .filter_map(|source| {
                let mut value = json!(self.fleet.source(*source)?);
                value["latest"] = self.latest(*source);
                Some(value)
            })
            .collect();
        node["children"] = self.fleet.children(id).iter().map(|child| self.node(*child)).collect();
        node
    }

    fn latest(&self, id: EntityId) -> Value {
        let of_entity = self.readings.get(&id).into_iter().flatten();
        let rows = of_entity.map(|(metric, row)| {
            let row = json!({ "timestamp": row.timestamp, "value": row.value, "unit": row.unit, "quality": row.quality });
            (metric.clone(), row)
        });
        Value::Object(rows.collect::<Map<_, _>>())
    }

    /// Per summable metric: the meter's reading less those of its children of the same category. Only where all of
    /// them have one; how old they are is in `latest`.
    fn residuals(&self, id: EntityId) -> Value {
        let category = self.fleet.meter(id).map(|meter| meter.category);
        let same = |child: &&EntityId| self.fleet.meter(**child).map(|meter| meter.category) == category;
        let children: Vec<_> = self.fleet.children(id).iter().filter(same).collect();
        let mut residuals = Map::new();
        for (metric, row) in self.readings.get(&id).into_iter().flatten() {
            let is_sum = self.app.engine.metrics().kind(metric) != MetricKind::GaugeIntensive;
            let below: Option<Vec<f64>> =
                children.iter().map(|child| Some(self.readings.get(*child)?.get(metric)?.value)).collect();
            if let Some(below) = below.filter(|below| is_sum && !below.is_empty()) {
                residuals.insert(metric.clone(), json!(row.value - below.iter().sum::<f64>()));
            }
        }
        Value::Object(residuals)
    }
}
