//! `wattlake backup`, `wattlake restore` and `wattlake repair`.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::{
    Common, Failure, logging,
    remote::{Remote, RemoteArgs},
};
use crate::server;

#[derive(Debug, Args)]
#[command(
    after_help = "Copies catalog, files and the key of the secrets, consistently, while a server writes.

Example:
  wattlake backup /backups/2026-01-31"
)]
pub(super) struct BackupArgs {
    /// A folder that is new or empty; on the server's machine
    directory: PathBuf,
    #[command(flatten)]
    remote: RemoteArgs,
}

pub(super) async fn backup(common: &Common, args: BackupArgs) -> Result<(), Failure> {
    let settings = common.settings()?;
    logging::init(&settings.log, true)?;
    let directory = std::path::absolute(&args.directory)
        .map_err(|error| Failure::usage(format!("{}: {error}", args.directory.display())))?;
    let report = if args.remote.url.is_some() {
        ask(&Remote::new(&args.remote, &settings)?, &directory).await?
    } else {
        match server::open(&settings).await {
            Ok(open) => {
                let contents = open.engine.backup(&directory).await;
                open.close().await?;
                let contents = contents?;
                json!({ "files": contents.files.len(), "bytes": contents.bytes(), "snapshotId": contents.snapshot_id })
            }
            Err(failure) if failure.is_in_use() => {
                ask(&Remote::new(&args.remote, &settings)?, &directory).await?
            }
            Err(failure) => return Err(failure),
        }
    };
    println!(
        "{} files, {} bytes, snapshot {}, in {}",
        report["files"],
        report["bytes"],
        report["snapshotId"],
        directory.display()
    );
    Ok(())
}

async fn ask(remote: &Remote, directory: &std::path::Path) -> Result<Value, Failure> {
    let response = remote.send(remote.post("/api/backup").json(&json!({ "directory": directory }))).await?;
    response
        .json()
        .await
        .map_err(|error| Failure::failed(format!("the answer is not JSON: {}", error.without_url())))
}

#[derive(Debug, Args)]
#[command(
    after_help = "The data directory must be new or empty; every file of the backup is checked before anything is written.

Example:
  wattlake restore /backups/2026-01-31 --data-dir /var/lib/wattlake"
)]
pub(super) struct RestoreArgs {
    /// A folder that `wattlake backup` made
    directory: PathBuf,
}

pub(super) async fn restore(common: &Common, args: RestoreArgs) -> Result<(), Failure> {
    let settings = common.settings()?;
    logging::init(&settings.log, true)?;
    let contents = wattlake_engine::restore(&settings, &args.directory).await?;
    println!(
        "{} files, {} bytes, snapshot {} of {}, in {}",
        contents.files.len(),
        contents.bytes(),
        contents.snapshot_id,
        contents.created_at,
        settings.data_dir.0.display()
    );
    Ok(())
}

/// Opens a data directory whose log is damaged, keeping what is whole.
pub(super) async fn repair(common: &Common) -> Result<(), Failure> {
    let settings = common.settings()?;
    logging::init(&settings.log, true)?;
    let (open, damage) = server::repair(&settings).await?;
    let status = open.engine.status();
    open.close().await?;
    for message in &damage {
        println!("{message}");
    }
    let replayed = status.memory_rows;
    match damage.len() {
        0 => println!("the log is sound; {replayed} readings of it were written to files"),
        n => println!(
            "{n} damaged places; {replayed} readings of whole frames were written to files; the damaged segments are in {}",
            settings.data_dir.0.join("wal-quarantine").display()
        ),
    }
    Ok(())
}
