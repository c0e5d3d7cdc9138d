//! `wattlake status`.

use clap::Args;
use serde_json::{Value, json};

use super::{
    Common, Failure, logging,
    remote::{Remote, RemoteArgs},
};
use crate::server;

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
    let status = if args.remote.url.is_some() {
        ask(&Remote::new(&args.remote, &settings)?).await?
    } else if !settings.data_dir.0.exists() {
        let dir = settings.data_dir.0.display();
        return Err(Failure::failed(format!("there is no data directory {dir}; `wattlake serve` makes one")));
    } else {
        match server::open(&settings).await {
            Ok(open) => {
                let status = json!({ "server": "not running", "engine": open.engine.status() });
                open.close().await?;
                status
            }
            Err(failure) if failure.is_in_use() => ask(&Remote::new(&args.remote, &settings)?).await?,
            Err(failure) => return Err(failure),
        }
    };
    if args.json {
        println!("{status:#}");
    } else {
        print_lines("", &status);
    }
    Ok(())
}

async fn ask(remote: &Remote) -> Result<Value, Failure> {
    let response = remote.send(remote.get("/api/status")).await?;
    response
        .json()
        .await
        .map_err(|error| Failure::failed(format!("the answer is not JSON: {}", error.without_url())))
}

/// One `name  value` a line, nested names joined by dots.
fn print_lines(prefix: &str, value: &Value) {
    let Value::Object(map) = value else { return };
    for (name, value) in map {
        let name = format!("{prefix}{name}");
        match value {
            Value::Object(_) => print_lines(&format!("{name}."), value),
            Value::String(text) => println!("{name:<28} {text}"),
            Value::Null => println!("{name:<28} -"),
            other => println!("{name:<28} {other}"),
        }
    }
}
