//! `wattlake export`.

use clap::{Args, ValueEnum};
use serde_json::json;

use super::{
    Common, Failure, logging,
    remote::{RemoteArgs, here_or_there},
};

#[derive(Debug, Args)]
#[command(
    after_help = "The table is at measurements/ in the storage: the same Parquet files, with a log of its own beside
them. It shows what was there when it was written; delta.interval has a server do that by itself.
It is for reading: do not write to it, and do not VACUUM it.

Example:
  wattlake export --format delta"
)]
pub(super) struct ExportArgs {
    #[arg(long, value_enum)]
    format: TableFormat,
    /// The report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TableFormat {
    /// Delta Lake, reader version 1
    Delta,
}

pub(super) async fn run(common: &Common, args: ExportArgs) -> Result<(), Failure> {
    let settings = common.settings()?;
    logging::init(&settings.log, true)?;
    let TableFormat::Delta = args.format;
    let report = here_or_there(
        &args.remote,
        &settings,
        async |open| Ok(json!(open.engine.export_delta().await?)),
        async |remote| remote.ask(remote.post("/api/export").json(&json!({ "format": "delta" }))).await,
    )
    .await?;
    if args.json {
        println!("{report:#}");
        return Ok(());
    }
    let n = |name: &str| report[name].as_u64().unwrap_or(0);
    println!("Delta version {}: {} files with {} rows", n("version"), n("files"), n("rows"));
    println!("{} files came and {} went", n("added"), n("removed"));
    Ok(())
}
