//! `POST /api/discovery`: which systems a vendor's credential sees, and sites, meters and sources for those that are wanted.

use axum::{Extension, body::Bytes, extract::State, response::Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use wattlake_catalog::{Access, EntityId, OnboardingDraft};
use wattlake_engine::{FoundDevice, FoundSystem, Sources};

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
    /// Asks for devices, a call for each system: of those to create, or of all where none is. Meters and batteries get a meter each.
    #[serde(default)]
    devices: bool,
}

/// A meter that is made for what devices measure.
struct Measured {
    role: &'static str,
    name: &'static str,
    category: &'static str,
    /// The streams of SolarEdge and of Enphase that have it.
    streams: [&'static str; 2],
}

const MEASURED: [Measured; 3] = [
    Measured {
        role: "consumption",
        name: "Consumption",
        category: "CONS",
        streams: ["meters", "consumption"],
    },
    Measured { role: "export", name: "Feed-in", category: "INJ", streams: ["meters", "export"] },
    Measured { role: "storage", name: "Storage", category: "STOR", streams: ["storage", "battery"] },
];

impl Measured {
    fn is_of(&self, device: &FoundDevice) -> bool {
        device.measures == Some(self.role) || device.kind == "battery" && self.role == "storage"
    }
}

/// Finds systems, and creates those that are wanted; answers what was found, with the sources that poll it.
pub(crate) async fn discover(
    sources: &Sources,
    catalog: &wattlake_catalog::Catalog,
    question: Question,
) -> Result<Vec<FoundSystem>> {
    let Question { like, metadata, create, devices } = question;
    let is_all = create.iter().any(|id| id == "all");
    let is_wanted =
        |system: &FoundSystem| system.source_id.is_none() && (is_all || create.contains(&system.system_id));
    let asked = |system: &FoundSystem| devices && (create.is_empty() || is_wanted(system));
    let mut found = sources.discover(like, &metadata, asked).await.map_err(obstacle)?;
    let mut common = match like {
        Some(id) => catalog.source_with_secrets(id).await?.metadata,
        None => Map::new(),
    };
    common.extend(metadata);
    common.retain(|name, _| !NOT_COPIED.contains(&name.as_str()));
    common.insert("useAPI".into(), true.into());
    if let Some(unknown) =
        create.iter().find(|id| *id != "all" && !found.iter().any(|system| system.system_id == **id))
    {
        return Err(ApiError::new(
            Kind::Unprocessable,
            format!("create: the vendor has no system {unknown}"),
        ));
    }
    for system in &mut found {
        if !is_wanted(system) {
            continue;
        }
        let mut metadata = common.clone();
        metadata.insert("systemId".into(), system.system_id.as_str().into());
        let meters = measured_by(system.devices.as_deref().unwrap_or_default(), &mut metadata);
        // A zone that is none would make the site invalid; it can be set later.
        let zone = system.timezone.as_deref().filter(|zone| jiff::tz::TimeZone::get(zone).is_ok());
        let solar = json!({ "name": "Solar", "category": "PROD", "readingFrequency": "15min", "capacity": system.capacity,
            "sources": [{ "name": system.name, "sourceType": "solar", "capacity": system.capacity, "metadata": metadata }] });
        let meters: Vec<Value> = std::iter::once(solar).chain(meters).collect();
        let draft: OnboardingDraft = serde_json::from_value(json!({
            "site": { "name": system.name, "metadata": zone.map_or(json!({}), |zone| json!({ "timezone": zone })) },
            "meters": meters,
        }))
        .map_err(|error| ApiError::internal(format!("a site of the system {} is not valid: {error}", system.system_id)))?;
        system.source_id = catalog.onboard(&draft).await?.source_ids.first().copied();
    }
    Ok(found)
}

/// Meters for what devices measure; the source asks for that as well and stores it there.
fn measured_by(devices: &[FoundDevice], metadata: &mut Map<String, Value>) -> Vec<Value> {
    let vendor = usize::from(metadata.get("apiProvider").is_some_and(|provider| provider == "enphase"));
    let wanted = MEASURED.iter().filter(|measured| devices.iter().any(|device| measured.is_of(device)));
    let (mut meters, mut targets) = (Vec::new(), Map::new());
    let mut streams: Vec<Value> = match metadata.get("streams") {
        Some(Value::Array(named)) => named.clone(),
        _ => [["energy", "power", "days"], ["production", "consumption", "days"]][vendor]
            .map(Value::from)
            .into(),
    };
    for measured in wanted {
        let id = uuid::Uuid::now_v7().to_string();
        meters.push(json!({ "id": id, "name": measured.name, "category": measured.category, "readingFrequency": "15min" }));
        targets.insert(measured.role.into(), id.into());
        let stream = Value::from(measured.streams[vendor]);
        if !streams.contains(&stream) {
            streams.push(stream);
        }
    }
    if !targets.is_empty() {
        metadata.insert("targets".into(), targets.into());
        metadata.insert("streams".into(), streams.into());
    }
    meters
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
