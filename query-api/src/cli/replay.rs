//! `wattlake replay`: decodes kept answers of a vendor again.

use clap::Args;
use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Value, json};
use wattlake_catalog::EntityId;

use super::{
    Common, Failure, logging,
    remote::{RemoteArgs, here_or_there},
};
use crate::time::parse_instant;

#[derive(Debug, Args)]
#[command(
    after_help = "Answers are kept while `sources.archive` is more than 0. After a mapping was mended they are stored as it says now, without
a call of the vendor.

Example:
  wattlake replay --source 0197c5f0-0000-7000-8000-000000000001 --from now-7d"
)]
pub(super) struct ReplayArgs {
    /// The energy source
    #[arg(long, value_name = "ID")]
    source: String,
    /// Answers that came from then on: RFC 3339, a date, or like now-7d
    #[arg(long, value_name = "TIME")]
    from: String,
    /// And before then
    #[arg(long, value_name = "TIME", default_value = "now")]
    to: String,
    /// JSON instead of a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

pub(super) async fn run(common: &Common, args: ReplayArgs) -> Result<(), Failure> {
    let settings = common.settings()?;
    logging::init(&settings.log, true)?;
    let replayed = here_or_there(
        &args.remote,
        &settings,
        async |open| {
            let id: EntityId = args.source.parse()?;
            let now = Timestamp::from_microsecond(open.engine.clock().now_micros()).unwrap_or_default();
            let from = parse_instant("--from", &args.from, &TimeZone::UTC, now)?;
            let to = parse_instant("--to", &args.to, &TimeZone::UTC, now)?;
            Ok(json!(open.sources.replay(id, from, to).await?))
        },
        async |server| {
            let path = format!("/api/energy-sources/{}/replay", args.source);
            server.ask(server.post(&path).json(&json!({ "from": args.from, "to": args.to }))).await
        },
    )
    .await?;
    if args.json {
        println!("{replayed:#}");
    } else {
        let count = |name: &str| replayed.get(name).and_then(Value::as_u64).unwrap_or(0);
        println!(
            "{} readings of {} answers, {} refused; {} answers could not be read",
            count("readings"),
            count("answers"),
            count("refused"),
            count("unread")
        );
    }
    Ok(())
}
