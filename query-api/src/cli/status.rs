//! `wattlake status`.

use clap::Args;
use serde_json::{Value, json};

use super::{
    Common, Failure, logging,
    remote::{RemoteArgs, here_or_there},
};

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// JSON instead of lines
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

pub(super) async fn run(common: &Common, args: StatusArgs) -> Result<(), Failure> {
    let settings = common.settings()?;
    logging::init(&settings.log, true)?;
    if args.remote.url.is_none() && !settings.data_dir.0.exists() {
        let dir = settings.data_dir.0.display();
        return Err(Failure::failed(format!("there is no data directory {dir}; `wattlake serve` makes one")));
    }
    let status = here_or_there(
        &args.remote,
        &settings,
        async |open| Ok(json!({ "server": "not running", "engine": open.engine.status() })),
        async |remote| remote.ask(remote.get("/api/status")).await,
    )
    .await?;
    if args.json {
        println!("{status:#}");
    } else {
        print_lines("", &status);
    }
    Ok(())
}

/// The fields of an object that say something, one after the other.
fn in_a_line(value: &Value) -> String {
    let Value::Object(map) = value else { return value.to_string() };
    let told = map
        .iter()
        .filter(|(_, value)| !value.is_null() && value.as_array().is_none_or(|items| !items.is_empty()));
    let told = told.map(|(name, value)| match value {
        Value::String(text) => format!("{name}={text}"),
        other => format!("{name}={other}"),
    });
    told.collect::<Vec<_>>().join(" ")
}

/// One `name  value` a line, nested names joined by dots.
fn print_lines(prefix: &str, value: &Value) {
    let Value::Object(map) = value else { return };
    for (name, value) in map {
        let name = format!("{prefix}{name}");
        match value {
            Value::Object(_) => print_lines(&format!("{name}."), value),
            Value::Array(items) => {
                for item in items {
                    println!("{name:<28} {}", in_a_line(item));
                }
            }
            Value::String(text) => println!("{name:<28} {text}"),
            Value::Null => println!("{name:<28} -"),
            other => println!("{name:<28} {other}"),
        }
    }
}
