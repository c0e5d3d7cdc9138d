//! A site whose sources are polled from simulated vendor APIs, with their history.

use std::net::SocketAddr;

use jiff::{Timestamp, ToSpan};
use serde_json::json;
use wattlake_catalog::{EnergySourceDraft, EntityId, OnboardingDraft, SiteId};

use super::fleet::id;
use crate::{
    cli::{
        Failure,
        simulate::{metadata, systems},
    },
    server::Open,
    simulator::{Chaos, Simulator},
};

/// How often the vendors are asked.
const EVERY: &str = "1min";
const SITE: &str = "Sunny Street";

/// Starts the vendors, and sources that poll them; the first time also the fetching of some days of history.
pub(super) async fn begin(open: &Open, days: i64) -> Result<SocketAddr, Failure> {
    let systems = systems();
    let simulator = Simulator::new(open.engine.clock().clone(), systems.clone(), Chaos::default(), true);
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let address = simulator
        .serve(loopback)
        .await
        .map_err(|error| Failure::failed(format!("the simulated vendors cannot listen: {error}")))?;
    let catalog = open.engine.catalog();
    let name = |n: usize| format!("{SITE}/system {n}");
    if catalog.fleet().site(SiteId(id(SITE))).is_none() {
        let meters: Vec<_> = systems
            .iter()
            .enumerate()
            .map(|(n, system)| {
                let mut metadata = metadata(system, address, EVERY);
                metadata["budget"] = json!({ "perMinute": 10_000, "perMonth": 10_000_000 });
                let source = json!({ "id": id(&name(n)), "name": format!("{:?} {}", system.vendor, system.id),
                    "sourceType": "solar", "capacity": system.peak, "metadata": metadata });
                json!({ "id": id(&format!("{SITE}/roof {n}")), "name": format!("Roof {}", n + 1), "category": "PROD",
                    "readingFrequency": "15min", "capacity": system.peak, "sources": [source] })
            })
            .collect();
        let site = json!({ "id": id(SITE), "name": SITE, "industryType": "residential",
            "metadata": { "timezone": systems[0].zone } });
        let draft: OnboardingDraft = serde_json::from_value(json!({ "site": site, "meters": meters }))
            .map_err(|error| Failure::failed(format!("the demo's polled site is not valid: {error}")))?;
        catalog.onboard(&draft).await?;
        let now = Timestamp::now();
        let from = now.checked_sub((days * 24).hours()).unwrap_or(now);
        for n in 0..systems.len() {
            open.sources.start_backfill(EntityId(id(&name(n))), from, now).await?;
        }
        return Ok(address);
    }
    // The vendors listen elsewhere than the last time, and a new address takes the credentials anew.
    for (n, system) in systems.iter().enumerate() {
        let source = EntityId(id(&name(n)));
        let fleet = catalog.fleet();
        let Some(known) = fleet.source(source) else { continue };
        let mut draft = EnergySourceDraft::from(known);
        let fresh = metadata(system, address, EVERY);
        for field in ["baseUrl", "apiKey", "clientSecret", "refreshToken"] {
            draft.metadata.extend(fresh.get(field).map(|value| (field.to_owned(), value.clone())));
        }
        catalog.update_source(source, &draft).await?;
    }
    Ok(address)
}
