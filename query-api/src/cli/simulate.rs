//! `wattlake simulate`: vendor APIs to try things out with.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;
use serde_json::json;

use super::{Common, Failure, logging};
use crate::{
    server,
    simulator::{Chaos, Simulator, System, Vendor},
};

#[derive(Debug, Args)]
#[command(
    after_help = "Systems answer as SolarEdge's Monitoring API V2 and Enphase's v4 do, on this machine only. A file of
systems is a JSON array of objects with vendor (solaredge, enphase), id, zone, peak (kW), key,
clientId, clientSecret and refreshToken.

Example:
  wattlake simulate --listen 127.0.0.1:8799 --bad-days 7"
)]
pub(super) struct SimulateArgs {
    /// Where to listen; loopback only
    #[arg(long, default_value = "127.0.0.1:8799")]
    listen: SocketAddr,
    /// JSON file with the systems [default: one of each vendor]
    #[arg(long, value_name = "FILE")]
    systems: Option<PathBuf>,
    /// Makes one call in a dozen go wrong, by this seed
    #[arg(long, value_name = "SEED")]
    bad_days: Option<u64>,
    /// Without the quotas of free plans
    #[arg(long)]
    generous: bool,
}

/// One system of each vendor.
pub(super) fn systems() -> Vec<System> {
    let system = |vendor, id: &str, zone: &str, peak| System {
        vendor,
        id: id.into(),
        zone: zone.into(),
        peak,
        key: Some(format!("demo-key-{id}")),
        client_id: format!("demo-client-{id}"),
        client_secret: format!("demo-secret-{id}"),
        refresh_token: format!("demo-grant-{id}"),
    };
    vec![
        system(Vendor::SolarEdge, "3066774", "Europe/Berlin", 9.8),
        system(Vendor::Enphase, "698910067", "Europe/Berlin", 7.2),
    ]
}

/// The metadata of an energy source that polls a simulated system.
pub(crate) fn metadata(system: &System, address: SocketAddr, every: &str) -> serde_json::Value {
    let (provider, base) = match system.vendor {
        Vendor::SolarEdge => ("solaredge", format!("http://{address}/v2")),
        Vendor::Enphase => ("enphase", format!("http://{address}")),
    };
    json!({ "useAPI": true, "apiProvider": provider, "systemId": system.id, "baseUrl": base, "local": true, "updateFrequency": every,
        "apiKey": system.key, "clientId": system.client_id, "clientSecret": system.client_secret, "refreshToken": system.refresh_token })
}

pub(super) async fn run(common: &Common, args: SimulateArgs) -> Result<(), Failure> {
    let settings = common.settings()?;
    logging::init(&settings.log, true)?;
    if !args.listen.ip().is_loopback() {
        return Err(Failure::usage(format!(
            "--listen: {} is not loopback; simulated vendors stay on this machine",
            args.listen
        )));
    }
    let systems = match &args.systems {
        None => systems(),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| Failure::io(format!("cannot read {}: {error}", path.display())))?;
            serde_json::from_str(&text)
                .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?
        }
    };
    let chaos = args.bad_days.map_or_else(Chaos::default, Chaos::heavy);
    let simulator = Simulator::new(server::clock()?, systems.clone(), chaos, args.generous);
    let address = simulator
        .serve(args.listen)
        .await
        .map_err(|error| Failure::usage(format!("--listen: cannot listen on {}: {error}", args.listen)))?;
    println!(
        "simulated vendors answer on http://{address}\n\nAn energy source for each, for POST /api/energy-sources:\n"
    );
    for system in &systems {
        println!(
            "{}\n",
            json!({ "meterId": "(a meter's id)", "name": system.id, "sourceType": "solar",
                "metadata": metadata(system, address, "15min") })
        );
    }
    println!("Ctrl-C ends them.");
    server::termination().await;
    Ok(())
}
