//! `wattlake verify`.

use clap::Args;
use serde_json::{Value, json};

use super::{
    Common, Failure, logging,
    remote::{Remote, RemoteArgs},
};
use crate::server;

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
    let (report, is_sound) = if args.remote.url.is_some() {
        ask(&Remote::new(&args.remote, &settings)?, args.quick).await?
    } else {
        match server::open(&settings).await {
            Ok(open) => {
                let report = open.engine.verify(args.quick).await;
                open.close().await?;
                let report = report?;
                (json!(report), report.is_sound())
            }
            Err(failure) if failure.is_in_use() => {
                ask(&Remote::new(&args.remote, &settings)?, args.quick).await?
            }
            Err(failure) => return Err(failure),
        }
    };
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

async fn ask(remote: &Remote, is_quick: bool) -> Result<(Value, bool), Failure> {
    let response = remote.send(remote.post("/api/verify").query(&[("quick", is_quick)])).await?;
    let report: Value = response
        .json()
        .await
        .map_err(|error| Failure::failed(format!("the answer is not JSON: {}", error.without_url())))?;
    let is_sound = report["problems"].as_array().is_some_and(|all| all.iter().all(|p| p["kind"] == "orphan"));
    Ok((report, is_sound))
}
