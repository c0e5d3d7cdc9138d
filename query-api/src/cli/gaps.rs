//! `wattlake gaps`: times without readings where the cadence expects some.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch, StringArray},
    util::pretty::pretty_format_batches,
};
use clap::Args;
use serde_json::{Value, json};
use wattlake_catalog::GapFilter;

use super::{
    Common, Failure, logging,
    remote::{RemoteArgs, here_or_there},
};

/// Gaps shown when nobody says how many.
const LIMIT: i64 = 100;

#[derive(Debug, Args)]
#[command(after_help = "Example:
  wattlake gaps --state open")]
pub(super) struct GapsArgs {
    /// Of one energy source
    #[arg(long, value_name = "ID")]
    source: Option<String>,
    /// Of the series of one meter or energy source
    #[arg(long, value_name = "ID")]
    entity: Option<String>,
    /// open, filled or empty (the vendor has nothing) [default: all]
    #[arg(long)]
    state: Option<String>,
    /// At most so many, the newest first
    #[arg(long, default_value_t = LIMIT, value_parser = clap::value_parser!(i64).range(1..=10_000))]
    limit: i64,
    /// JSON instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

pub(super) async fn run(common: &Common, args: GapsArgs) -> Result<(), Failure> {
    let settings = common.settings()?;
    logging::init(&settings.log, true)?;
    let gaps = here_or_there(
        &args.remote,
        &settings,
        async |open| {
            let filter = GapFilter {
                source: args.source.as_deref().map(str::parse).transpose()?,
                entity: args.entity.as_deref().map(str::parse).transpose()?,
                state: args.state.as_deref().map(str::parse).transpose()?,
                ..GapFilter::default()
            };
            Ok(json!(open.engine.catalog().gaps(&filter, args.limit).await?))
        },
        async |server| {
            let mut query = vec![("limit", args.limit.to_string())];
            query.extend(args.source.clone().map(|source| ("sourceId", source)));
            query.extend(args.entity.clone().map(|entity| ("entityId", entity)));
            query.extend(args.state.clone().map(|state| ("state", state)));
            server.ask(server.get("/api/gaps").query(&query)).await
        },
    )
    .await?;
    if args.json {
        println!("{gaps:#}");
        return Ok(());
    }
    let rows = gaps.as_array().map(Vec::as_slice).unwrap_or_default();
    if rows.is_empty() {
        println!("no gaps");
        return Ok(());
    }
    let column = |name: &str| -> ArrayRef {
        let text = |row: &Value| row[name].as_str().map_or_else(|| row[name].to_string(), str::to_owned);
        Arc::new(
            rows.iter().map(|row| Some(text(row)).filter(|text| text != "null")).collect::<StringArray>(),
        )
    };
    let columns = ["from", "to", "metric", "entityId", "stream", "cadenceSeconds", "state", "asked", "proof"]
        .map(|name| (name, column(name)));
    let failed = |error: arrow::error::ArrowError| Failure::failed(error.to_string());
    let batch = RecordBatch::try_from_iter(columns).map_err(failed)?;
    println!("{}", pretty_format_batches(&[batch]).map_err(failed)?);
    Ok(())
}
