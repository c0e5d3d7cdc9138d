//! `wattlake backup`, `wattlake restore`, `wattlake repair` and `wattlake rebuild-catalog`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{
    Common, Failure, logging,
    remote::{RemoteArgs, here_or_there},
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
    let report = here_or_there(
        &args.remote,
        &settings,
        async |open| {
            let made = open.engine.backup(&directory).await?;
            Ok(json!({ "files": made.files.len(), "bytes": made.bytes(), "snapshotId": made.snapshot_id }))
        },
        async |remote| remote.ask(remote.post("/api/backup").json(&json!({ "directory": directory }))).await,
    )
    .await?;
    println!(
        "{} files, {} bytes, snapshot {}, in {}",
        report["files"],
        report["bytes"],
        report["snapshotId"],
        directory.display()
    );
    Ok(())
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

/// Makes a lost catalog anew.
pub(super) async fn rebuild_catalog(common: &Common) -> Result<(), Failure> {
    let settings = common.settings()?;
    logging::init(&settings.log, true)?;
    let report = wattlake_engine::rebuild_catalog(&settings).await?;
    println!("{} files with {} rows", report.files, report.rows);
    println!("{} sites, {} meters, {} energy sources", report.sites, report.meters, report.energy_sources);
    println!("tokens and earlier snapshots are gone; the next start makes a new admin token");
    for path in &report.missing_objects {
        println!("missing in the storage: {path}");
    }
    match report.missing_objects.len() {
        0 => Ok(()),
        n => Err(Failure::failed(format!("{n} objects are missing: questions about them fail by name"))),
    }
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
