//! `wattlake dry-run`: what a poll of a source would store, and what its configuration misses.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use wattlake_catalog::EntityId;

use super::{
    Common, Failure, logging,
    remote::{RemoteArgs, here_or_there},
};

/// Readings shown of each stream.
const SHOWN: usize = 20;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  wattlake dry-run --source 0197c5f0-0000-7000-8000-000000000001
  wattlake dry-run --source 0197c5f0-0000-7000-8000-000000000001 --stream status --answer answer.json")]
pub(super) struct DryRunArgs {
    /// The energy source
    #[arg(long, value_name = "ID")]
    source: String,
    /// Only this kind of answer
    #[arg(long)]
    stream: Option<String>,
    /// A file with an answer of the vendor: nobody is asked
    #[arg(long, value_name = "FILE", requires = "stream")]
    answer: Option<PathBuf>,
    /// JSON instead of lines
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

pub(super) async fn run(common: &Common, args: DryRunArgs) -> Result<(), Failure> {
    let settings = common.settings()?;
    logging::init(&settings.log, true)?;
    let answer: Option<Value> = match &args.answer {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| Failure::io(format!("cannot read {}: {error}", path.display())))?;
            let answer = serde_json::from_str(&text);
            Some(answer.map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?)
        }
    };
    let runs = here_or_there(
        &args.remote,
        &settings,
        async |open| {
            let id: EntityId = args.source.parse()?;
            Ok(json!(open.sources.dry_run(id, args.stream.as_deref(), answer.as_ref()).await?))
        },
        async |server| {
            let path = format!("/api/energy-sources/{}/dry-run", args.source);
            server.ask(server.post(&path).json(&json!({ "stream": args.stream, "answer": answer }))).await
        },
    )
    .await?;
    if args.json {
        println!("{runs:#}");
        return Ok(());
    }
    for run in runs.as_array().into_iter().flatten() {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        println!("{}: {} readings, {} refused", text(&run["stream"]), run["count"], run["refused"]);
        for reading in run["readings"].as_array().into_iter().flatten().take(SHOWN) {
            println!(
                "  {:<22} {:<26} {:>14} {:<6} {}",
                text(&reading["timestamp"]),
                text(&reading["metric"]),
                text(&reading["value"]),
                text(&reading["unit"]),
                text(&reading["quality"])
            );
        }
        for (name, words) in [("unmatched", "not found"), ("leftOver", "not used")] {
            for path in run[name].as_array().into_iter().flatten() {
                println!("  {words}: {}", text(path));
            }
        }
        if let Some(error) = run["error"].as_str() {
            println!("  {error}");
        }
    }
    Ok(())
}
