//! `wattlake compact`.

use clap::Args;
use serde_json::json;
use wattlake_engine::MaintenanceOptions;

use super::{
    Common, Failure, logging,
    remote::{RemoteArgs, here_or_there},
};

#[derive(Debug, Args)]
#[command(after_help = "A server does this by itself, every compaction.interval.

Examples:
  wattlake compact                    what is due, now
  wattlake compact --all              every month into as few files as possible
  wattlake compact --dry-run          what would be merged, deleted and expired")]
pub(super) struct CompactArgs {
    /// Compacts every month as if it were over
    #[arg(long)]
    all: bool,
    /// Says what would be done and does nothing
    #[arg(long)]
    dry_run: bool,
    /// Deletes by time although the clock jumped, and without a limit of files
    #[arg(long)]
    force: bool,
    /// The report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

pub(super) async fn run(common: &Common, args: CompactArgs) -> Result<(), Failure> {
    let settings = common.settings()?;
    logging::init(&settings.log, true)?;
    let options =
        MaintenanceOptions { everything: args.all, is_dry_run: args.dry_run, is_forced: args.force };
    let flags = [("all", options.everything), ("dryRun", options.is_dry_run), ("force", options.is_forced)];
    let report = here_or_there(
        &args.remote,
        &settings,
        async |open| Ok(json!(open.engine.maintain(options).await?)),
        async |remote| remote.ask(remote.post("/api/compact").query(&flags)).await,
    )
    .await?;
    if args.json {
        println!("{report:#}");
        return Ok(());
    }
    let n = |name: &str| report[name].as_u64().unwrap_or(0);
    let (would, retained) = match args.dry_run {
        true => ("would be ", "at most "),
        false => ("", ""),
    };
    println!("{} files {would}merged into larger ones, in {} steps", n("compactedFiles"), n("compactions"));
    println!("{retained}{} rows {would}deleted past their retention", n("retentionRows"));
    println!("{} snapshots {would}expired, with {} files", n("expiredSnapshots"), n("expiredFiles"));
    println!("{} objects {would}deleted that no snapshot names", n("sweptObjects") + n("orphans"));
    if let Some(reason) = report["deletionsPaused"].as_str() {
        println!("deletions by time are paused: {reason}");
    }
    Ok(())
}
