//! `POST /api/discovery`: which systems a vendor's credential sees, and sites, meters and sources for those that are wanted.

use axum::{Extension, body::Bytes, extract::State, response::Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use wattlake_catalog::{Access, EntityId, OnboardingDraft};
use wattlake_engine::{FoundSystem, Sources};

use super::{
    App,
    energy_sources::EnergySources,
    polling::obstacle,
    reply::{json_response, read_json},
    resource::Resource,
};
use crate::error::{ApiError, Kind, Result};

/// What the runner writes, and what is of one system.
const NOT_COPIED: [&str; 5] = ["connectionStatus", "lastTested", "lastError", "systemId", "targets"];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Question {
    /// An energy source whose credentials are used.
    like: Option<EntityId>,
    /// Metadata of a source: `apiProvider` and credentials.
    #[serde(default)]
    metadata: Map<String, Value>,
    /// The systems to create, by the vendor's ids; `["all"]`: all that are not there.
    #[serde(default)]
    create: Vec<String>,
}

/// Finds systems, and creates those that are wanted; answers what was found, with the sources that poll it.
pub(crate) async fn discover(
    sources: &Sources,
    catalog: &wattlake_catalog::Catalog,
    question: Question,
) -> Result<Vec<FoundSystem>> {
    let Question { like, metadata, create } = question;
    let mut found = sources.discover(like, &metadata).await.map_err(obstacle)?;
    let mut common = match like {
        Some(id) => catalog.source_with_secrets(id).await?.metadata,
        None => Map::new(),
    };
    common.extend(metadata);
    common.retain(|name, _| !NOT_COPIED.contains(&name.as_str()));
    common.insert("useAPI".into(), true.into());
    let is_all = create.iter().any(|id| id == "all");
    if let Some(unknown) =
        create.iter().find(|id| *id != "all" && !found.iter().any(|system| system.system_id == **id))
    {
        return Err(ApiError::new(
            Kind::Unprocessable,
            format!("create: the vendor has no system {unknown}"),
        ));
    }
    for system in &mut found {
        if system.source_id.is_some() || !(is_all || create.contains(&system.system_id)) {
            continue;
        }
        let mut metadata = common.clone();
        metadata.insert("systemId".into(), system.system_id.as_str().into());
        // A zone that is none would make the site invalid; it can be set later.
        let zone = system.timezone.as_deref().filter(|zone| jiff::tz::TimeZone::get(zone).is_ok());
        let draft: OnboardingDraft = serde_json::from_value(json!({
            "site": { "name": system.name, "metadata": zone.map_or(json!({}), |zone| json!({ "timezone": zone })) },
            "meters": [{ "name": "Solar", "category": "PROD", "readingFrequency": "15min", "capacity": system.capacity,
                "sources": [{ "name": system.name, "sourceType": "solar", "capacity": system.capacity, "metadata": metadata }] }],
        }))
        .map_err(|error| ApiError::internal(format!("a site of the system {} is not valid: {error}", system.system_id)))?;
        system.source_id = catalog.onboard(&draft).await?.source_ids.first().copied();
    }
    Ok(found)
}

/// `POST /api/discovery`.
pub(super) async fn post(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    body: Bytes,
) -> Result<Response> {
    let question: Question = read_json(&body)?;
    if let Some(like) = question.like {
        EnergySources::find(&app, &access, like)?;
    }
    if !access.sites.is_empty() {
        return Err(ApiError::new(Kind::Forbidden, "a token for some sites cannot look for others"));
    }
    Ok(json_response(&discover(&app.sources, app.engine.catalog(), question).await?))
}
