//! `wattlake backfill`: fetches the history of an energy source from its vendor.

use std::{io::IsTerminal, time::Duration};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde_json::{Value, json};
use wattlake_catalog::EntityId;

use super::{
    Common, Failure, logging,
    remote::{Remote, RemoteArgs, here_or_there},
};
use crate::{server::Open, time::parse_instant};

/// How often the progress is looked at.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
#[command(
    after_help = "Polling goes on meanwhile and comes first; calls beyond the budget wait for it, so that much history
may take weeks. A server that is restarted goes on where it was. Without a running server the
command does the work itself.

Examples:
  wattlake backfill --source 0197c5f0-0000-7000-8000-000000000001 --from 2025-01-01 --to 2026-01-01 --dry-run
  wattlake backfill --source 0197c5f0-0000-7000-8000-000000000001 --from now-90d --to now"
)]
pub(super) struct BackfillArgs {
    /// The energy source
    #[arg(long, value_name = "ID")]
    source: String,
    /// The first time: RFC 3339, a date, or like now-90d
    #[arg(long, value_name = "TIME")]
    from: String,
    /// The time before which it ends
    #[arg(long, value_name = "TIME", default_value = "now")]
    to: String,
    /// Says how many calls it takes, and fetches nothing
    #[arg(long)]
    dry_run: bool,
    /// Begins and does not wait for the end; needs a running server
    #[arg(long)]
    detach: bool,
    /// The plan and the outcome as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

pub(super) async fn run(common: &Common, args: BackfillArgs) -> Result<(), Failure> {
    let settings = common.settings()?;
    logging::init(&settings.log, true)?;
    here_or_there(
        &args.remote,
        &settings,
        async |open| here(open, &args).await,
        async |server| there(server, &args).await,
    )
    .await
}

async fn here(open: &Open, args: &BackfillArgs) -> Result<(), Failure> {
    let id: EntityId = args.source.parse()?;
    let now = Timestamp::from_microsecond(open.engine.clock().now_micros()).unwrap_or_default();
    let zone = open.sources.zone_of(id);
    let from = parse_instant("--from", &args.from, &zone, now)?;
    let to = parse_instant("--to", &args.to, &zone, now)?.min(now);
    if from >= to {
        return Err(Failure::usage(format!("--from {from} is not before --to {to}")));
    }
    let plan = open.sources.plan_backfill(id, from, to).await?;
    show_plan(args, &json!(plan));
    if args.dry_run {
        return Ok(());
    }
    if args.detach {
        return Err(Failure::usage(
            "--detach: no server runs that could go on; start `wattlake serve` first",
        ));
    }
    let job = open.sources.start_backfill(id, from, to).await?.job.id;
    let sources = open.sources.clone();
    let polling = tokio::spawn(async move { sources.run().await });
    let outcome = watch(args, async || {
        let jobs = open.sources.jobs().await?;
        let found = jobs.into_iter().find(|one| one.job.id == job);
        found.map(|one| json!(one)).ok_or_else(|| Failure::failed(format!("the job {job} is gone")))
    })
    .await;
    open.sources.stop();
    let _ = polling.await;
    outcome
}

async fn there(server: &Remote, args: &BackfillArgs) -> Result<(), Failure> {
    let path = format!("/api/energy-sources/{}/backfill", args.source);
    let ask = async |dry_run: bool| {
        let body = json!({ "from": args.from, "to": args.to, "dryRun": dry_run });
        server.ask(server.post(&path).json(&body)).await
    };
    show_plan(args, &ask(true).await?);
    if args.dry_run {
        return Ok(());
    }
    let job = ask(false).await?;
    let id = job["id"].as_str().unwrap_or_default().to_owned();
    if args.detach {
        println!("job {id} has begun; GET /api/jobs/{id} tells how far it is, DELETE cancels it");
        return Ok(());
    }
    watch(args, async || server.ask(server.get(&format!("/api/jobs/{id}"))).await).await
}

fn show_plan(args: &BackfillArgs, plan: &Value) {
    if args.json {
        if args.dry_run {
            println!("{plan:#}");
        }
        return;
    }
    let streams: Vec<_> =
        plan["streams"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    println!(
        "{} calls for {}; {} are left this month besides polling; done about {}",
        plan["calls"],
        streams.join(", "),
        plan["callsLeft"],
        plan["estimatedEnd"].as_str().and_then(|text| text.get(..16)).unwrap_or_default().replace('T', " ")
            + " UTC",
    );
}

/// Shows the progress of a job until it has ended.
async fn watch(args: &BackfillArgs, look: impl AsyncFn() -> Result<Value, Failure>) -> Result<(), Failure> {
    let mut job = look().await?;
    let bar = match std::io::stderr().is_terminal() {
        true => ProgressBar::new(job["callsPlanned"].as_u64().unwrap_or(0)),
        false => ProgressBar::hidden(),
    };
    if let Ok(style) = ProgressStyle::with_template("[{bar:30}] {pos}/{len} calls, {msg} readings, ETA {eta}")
    {
        bar.set_style(style.progress_chars("=> "));
    }
    loop {
        bar.set_position(job["calls"].as_u64().unwrap_or(0));
        bar.set_message(job["readings"].to_string());
        match job["state"].as_str() {
            Some("running") => tokio::time::sleep(LOOK).await,
            state => {
                bar.finish_and_clear();
                if args.json {
                    println!("{job:#}");
                } else {
                    println!("{} readings in {} calls", job["readings"], job["calls"]);
                }
                return match state {
                    Some("done") => Ok(()),
                    other => Err(Failure::failed(format!(
                        "the backfill is {}: {}",
                        other.unwrap_or("gone"),
                        job["error"].as_str().unwrap_or("what it has fetched stays")
                    ))),
                };
            }
        }
        job = look().await?;
    }
}
