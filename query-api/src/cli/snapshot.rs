//! `wattlake snapshot`: states of the archive that are kept under a name.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    Common, Failure, logging,
    remote::{Remote, RemoteArgs, here_or_there},
};
use crate::server::Open;

#[derive(Debug, Subcommand)]
pub(super) enum SnapshotCommand {
    /// Keeps the newest state under a name
    #[command(after_help = "Example:
  wattlake snapshot create audit-2025
  wattlake sql --as-of audit-2025 \"SELECT count(*) FROM measurements\"")]
    Create(NameArgs),
    /// Lists the names
    List(ListArgs),
    /// Gives up a name; its state then expires like any other
    Delete(NameArgs),
}

#[derive(Debug, Args)]
pub(super) struct NameArgs {
    /// A letter, then letters, digits, `-`, `_` or `.`
    name: String,
    #[command(flatten)]
    remote: RemoteArgs,
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    remote: RemoteArgs,
}

impl SnapshotCommand {
    fn remote_args(&self) -> &RemoteArgs {
        match self {
            Self::Create(args) | Self::Delete(args) => &args.remote,
            Self::List(args) => &args.remote,
        }
    }
}

pub(super) async fn run(common: &Common, command: SnapshotCommand) -> Result<(), Failure> {
    let settings = common.settings()?;
    logging::init(&settings.log, true)?;
    let names = here_or_there(
        command.remote_args(),
        &settings,
        async |open| local(open, &command).await,
        async |remote| ask(remote, &command).await,
    )
    .await?;
    for named in names.as_array().into_iter().flatten() {
        let text = |key: &str| named[key].as_str().unwrap_or_default();
        println!("{:<30} {:>10}  {}", text("name"), named["snapshotId"], text("committedAt"));
    }
    Ok(())
}

async fn local(open: &Open, command: &SnapshotCommand) -> Result<Value, Failure> {
    let catalog = open.engine.catalog();
    match command {
        SnapshotCommand::Create(args) => {
            open.engine.flush().await?;
            catalog.name_snapshot(&args.name, jiff::Timestamp::now()).await?;
        }
        SnapshotCommand::Delete(args) => catalog.forget_snapshot_name(&args.name).await?,
        SnapshotCommand::List(_) => {}
    }
    let named = catalog.named_snapshots().await?;
    let rows = named.iter().map(|named| {
        json!({ "name": named.name, "snapshotId": named.snapshot.0, "committedAt": named.committed_at })
    });
    Ok(rows.collect())
}

async fn ask(remote: &Remote, command: &SnapshotCommand) -> Result<Value, Failure> {
    match command {
        SnapshotCommand::Create(args) => {
            let body = json!({ "name": args.name });
            remote.send(remote.post("/api/snapshots").json(&body)).await?;
        }
        SnapshotCommand::Delete(args) => {
            remote.send(remote.delete(&format!("/api/snapshots/{}", args.name))).await?;
        }
        SnapshotCommand::List(_) => {}
    }
    remote.ask(remote.get("/api/snapshots")).await
}
