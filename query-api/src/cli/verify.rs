//! `wattlake verify`.

use clap::Args;
use serde_json::json;

use super::{
    Common, Failure, logging,
    remote::{RemoteArgs, here_or_there},
};

/// Problems printed in full.
const PROBLEMS_SHOWN: usize = 50;

#[derive(Debug, Args)]
#[command(
    after_help = "Reads every file and checks hashes, statistics, deletes and that no two live rows have one key; also
looks for missing objects and for those that nobody names. Exit code 1 when something is damaged.

Examples:
  wattlake verify                 everything, through the server when one runs
  wattlake verify --quick         only that all objects are there in their size"
)]
pub(super) struct VerifyArgs {
    /// Only looks whether all objects are there in their size
    #[arg(long)]
    quick: bool,
    /// The report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

pub(super) async fn run(common: &Common, args: VerifyArgs) -> Result<(), Failure> {
    let settings = common.settings()?;
    logging::init(&settings.log, true)?;
    let report = here_or_there(
        &args.remote,
        &settings,
        async |open| Ok(json!(open.engine.verify(args.quick).await?)),
        async |remote| remote.ask(remote.post("/api/verify").query(&[("quick", args.quick)])).await,
    )
    .await?;
    let is_sound = report["problems"].as_array().is_some_and(|all| all.iter().all(|p| p["kind"] == "orphan"));
    if args.json {
        println!("{report:#}");
    } else {
        let problems = report["problems"].as_array().cloned().unwrap_or_default();
        for problem in problems.iter().take(PROBLEMS_SHOWN) {
            let text = |key: &str| problem[key].as_str().unwrap_or_default();
            println!("{:<18} {}  {}", text("kind"), text("path"), text("message"));
        }
        if problems.len() > PROBLEMS_SHOWN {
            println!("... and {} more", problems.len() - PROBLEMS_SHOWN);
        }
        let (files, bytes, rows) = (&report["files"], &report["bytes"], &report["rows"]);
        let verdict = if is_sound { "sound" } else { "damaged" };
        println!("{files} files, {bytes} bytes, {rows} rows read: the archive is {verdict}");
    }
    if is_sound {
        Ok(())
    } else {
        Err(Failure::failed("the archive is damaged; restore the files named above"))
    }
}
