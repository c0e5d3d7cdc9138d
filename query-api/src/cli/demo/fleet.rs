//! The demo's fleet: three sites in three time zones, meters in three levels, sources of every category.

use std::path::Path;

use serde_json::{Value, json};
use uuid::Uuid;
use wattlake_catalog::{Catalog, OnboardingDraft, SiteId};

use crate::cli::Failure;

/// Ids are made from names, so that a second start finds the fleet of the first.
pub(super) fn id(name: &str) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("wattlake/demo/{name}").as_bytes())
}

/// Name, zone, location, industry type, PV in kW, load in kW, battery in kWh or none.
type SiteSpec = (&'static str, &'static str, &'static str, &'static str, f64, f64, Option<f64>);

const SITES: [SiteSpec; 3] = [
    ("Berlin Bakery", "Europe/Berlin", "52.52,13.40", "industrial", 120.0, 90.0, Some(100.0)),
    ("Austin Offices", "America/Chicago", "30.27,-97.74", "commercial", 250.0, 180.0, Some(200.0)),
    ("Adelaide Homes", "Australia/Adelaide", "-34.93,138.60", "residential", 60.0, 40.0, None),
];

/// Creates the fleet when the catalog is empty.
///
/// # Errors
/// When the catalog holds something else: a demo is not mixed with real data.
pub(super) async fn create(catalog: &Catalog, data_dir: &Path) -> Result<(), Failure> {
    let fleet = catalog.fleet();
    let is_ours = fleet.site(SiteId(id(SITES[0].0))).is_some();
    if is_ours {
        return Ok(());
    }
    if fleet.sites().next().is_some() {
        return Err(Failure::usage(format!(
            "{} holds a fleet that is not the demo's; choose another directory with --data-dir",
            data_dir.display()
        )));
    }
    for spec in &SITES {
        let draft: OnboardingDraft = serde_json::from_value(draft(spec))
            .map_err(|error| Failure::failed(format!("the demo's fleet is not valid: {error}")))?;
        catalog.onboard(&draft).await?;
    }
    Ok(())
}

fn draft(&(site, zone, location, industry, pv, load, battery): &SiteSpec) -> Value {
    let meter = |name: &str, parent: Option<&str>, category: &str, capacity: f64, sources: Value| {
        json!({
            "id": id(&format!("{site}/{name}")),
            "parentMeterId": parent.map(|parent| id(&format!("{site}/{parent}"))),
            "name": name, "category": category, "readingFrequency": "15min", "capacity": capacity,
            "sources": sources,
        })
    };
    let source = |name: &str, kind: &str, capacity: f64| json!({ "id": id(&format!("{site}/source/{name}")), "name": name, "sourceType": kind, "capacity": capacity });
    let mut meters = vec![
        meter("Grid connection", None, "CONS", load, json!([])),
        meter("Building A", Some("Grid connection"), "CONS", load * 0.6, json!([])),
        meter("Building B", Some("Grid connection"), "CONS", load * 0.4, json!([])),
        meter("Cooling", Some("Building A"), "CONS", load * 0.3, json!([])),
        meter(
            "Car chargers",
            Some("Building A"),
            "CONS",
            load * 0.2,
            json!([source("Charger 1", "ev", load * 0.2)]),
        ),
        meter(
            "Solar",
            None,
            "PROD",
            pv,
            json!([source("Inverter 1", "solar", pv * 0.5), source("Inverter 2", "solar", pv * 0.5)]),
        ),
        meter("Feed-in", None, "INJ", pv, json!([source("Grid", "grid", pv)])),
    ];
    if let Some(capacity) = battery {
        meters.push(meter("Battery", None, "STOR", capacity, json!([source("Pack 1", "battery", capacity)])));
    }
    json!({
        "site": {
            "id": id(site), "name": site, "location": location, "industryType": industry,
            "metadata": { "timezone": zone },
        },
        "meters": meters,
    })
}
