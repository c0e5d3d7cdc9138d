//! `wattlake discover`: which systems a vendor's credential sees.

use std::{path::PathBuf, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, StringArray},
    util::pretty::pretty_format_batches,
};
use clap::Args;
use serde_json::{Value, json};

use super::{
    Common, Failure, logging,
    remote::{RemoteArgs, here_or_there},
};
use crate::http::{Question, discover};

#[derive(Debug, Args)]
#[command(
    after_help = "The file holds the metadata of an energy source, with the credentials; on the command line they would
be seen by others:

  {\"apiProvider\": \"solaredge\", \"apiKey\": \"...\"}

Examples:
  wattlake discover --metadata solaredge.json
  wattlake discover --metadata solaredge.json --create all
  wattlake discover --metadata solaredge.json --devices
  wattlake discover --like 0197c5f0-0000-7000-8000-000000000001 --create 3066774"
)]
pub(super) struct DiscoverArgs {
    /// JSON file with provider and credentials
    #[arg(long, value_name = "FILE", required_unless_present = "like")]
    metadata: Option<PathBuf>,
    /// An energy source whose credentials are used
    #[arg(long, value_name = "ID")]
    like: Option<String>,
    /// Creates site, meter and source of a system, by the vendor's id, or of `all` that are not there; may be repeated
    #[arg(long, value_name = "SYSTEM")]
    create: Vec<String>,
    /// Asks for devices as well, a call for each system: meters and batteries get a meter each
    #[arg(long)]
    devices: bool,
    /// JSON instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

pub(super) async fn run(common: &Common, args: DiscoverArgs) -> Result<(), Failure> {
    let settings = common.settings()?;
    logging::init(&settings.log, true)?;
    let metadata: Value = match &args.metadata {
        None => json!({}),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| Failure::io(format!("cannot read {}: {error}", path.display())))?;
            serde_json::from_str(&text)
                .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?
        }
    };
    let mut body = json!({ "metadata": metadata, "create": args.create, "devices": args.devices });
    if let Some(like) = &args.like {
        body["like"] = like.as_str().into();
    }
    let found = here_or_there(
        &args.remote,
        &settings,
        async |open| {
            let question: Question =
                serde_json::from_value(body.clone()).map_err(|error| Failure::usage(error.to_string()))?;
            Ok(json!(discover(&open.sources, open.engine.catalog(), question).await?))
        },
        async |server| server.ask(server.post("/api/discovery").json(&body)).await,
    )
    .await?;
    if args.json {
        println!("{found:#}");
        return Ok(());
    }
    let rows = found.as_array().map(Vec::as_slice).unwrap_or_default();
    let column = |name: &str| -> ArrayRef {
        let text = |row: &Value| row[name].as_str().map_or_else(|| row[name].to_string(), str::to_owned);
        Arc::new(
            rows.iter().map(|row| Some(text(row)).filter(|text| text != "null")).collect::<StringArray>(),
        )
    };
    let columns =
        ["systemId", "name", "timezone", "capacity", "status", "sourceId"].map(|name| (name, column(name)));
    let mut columns: Vec<_> = columns.into();
    if args.devices {
        columns.insert(5, ("devices", Arc::new(rows.iter().map(devices).collect::<StringArray>())));
    }
    let failed = |error: arrow::error::ArrowError| Failure::failed(error.to_string());
    let columns = columns.into_iter().map(|(name, column)| (name, column, true));
    let batch = RecordBatch::try_from_iter_with_nullable(columns).map_err(failed)?;
    println!("{}", pretty_format_batches(&[batch]).map_err(failed)?);
    Ok(())
}

/// The devices of a system, a line each.
fn devices(system: &Value) -> Option<String> {
    if let Some(words) = system["devicesError"].as_str() {
        return Some(words.to_owned());
    }
    let line = |device: &Value| {
        let words = ["kind", "measures", "model", "serialNumber"].map(|name| device[name].as_str());
        words.into_iter().flatten().collect::<Vec<_>>().join(" ")
    };
    Some(system["devices"].as_array()?.iter().map(line).collect::<Vec<_>>().join("\n"))
}
