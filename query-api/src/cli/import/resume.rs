//! An import into the data directory that goes on after a kill: which one it is, and how far it has come.
//!
//! Files are the same as long as their names, lengths and times are; a database as long as it counts the same inserts, changes and deletes.

use std::{fs::Metadata, path::Path, time::UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::json;
use wattlake_catalog::ForeignDatabase;

use super::{
    ImportArgs,
    plan::Plan,
    report::{Report, Saved},
};
use crate::cli::Failure;

/// How far an import was read: everything before is on disk.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Position {
    /// The file, and parts of it.
    pub file: usize,
    pub parts: u64,
    /// Of a database: the place of a row.
    pub place: Option<String>,
    pub report: Saved,
}

impl Position {
    /// After some parts of a file.
    pub(super) fn of_parts(file: usize, parts: u64, report: &mut Report) -> String {
        json!(Self { file, parts, place: None, report: report.save() }).to_string()
    }

    /// After a row of a database.
    pub(super) fn of_place(file: usize, place: String, report: &mut Report) -> String {
        json!(Self { file, parts: 0, place: Some(place), report: report.save() }).to_string()
    }
}

/// The same for the same import of the same files, and a file name; `None`: it cannot go on.
///
/// # Errors
/// When a file cannot be looked at, or a database does not answer.
pub(super) async fn name_of(
    args: &ImportArgs,
    plans: &[Plan],
    part_bytes: usize,
) -> Result<Option<String>, Failure> {
    if args.dry_run {
        return Ok(None);
    }
    let looked_at = |path: &Path| {
        let unreadable = |error| Failure::io(format!("cannot read {}: {error}", path.display()));
        path.metadata().map_err(unreadable)
    };
    let changed = |metadata: &Metadata| {
        let changed = metadata.modified().ok().and_then(|changed| changed.duration_since(UNIX_EPOCH).ok());
        changed.map_or(0, |changed| changed.as_nanos())
    };
    let mut hasher = blake3::Hasher::new();
    let mut add = |text: String| {
        hasher.update(text.as_bytes()).update(b"\0");
    };
    let ImportArgs { format, time_zone, market_zone, dst, entity, precision, site, rejects, .. } = args;
    add(format!(
        "{} {part_bytes} {format:?} {time_zone:?} {market_zone:?} {dst} {entity:?} {precision:?} {site:?} {rejects:?}",
        env!("CARGO_PKG_VERSION")
    ));
    for path in args.map.iter().chain(&args.files).filter(|path| path.exists()) {
        let metadata = looked_at(path)?;
        add(format!("{} {} {}", path.display(), metadata.len(), changed(&metadata)));
    }
    for plan in plans {
        if let Some(url) = &plan.database {
            let stamp = ForeignDatabase::open(url, args.time_zone.as_deref()).await?.stamp().await?;
            // Rows in partitions have no order of their own.
            let Some(stamp) = stamp else { return Ok(None) };
            add(format!("{} {stamp}", plan.file.name));
            continue;
        }
        let metadata = looked_at(&plan.file.path)?;
        // What comes through a pipe may be something else the next time.
        if !metadata.is_file() {
            return Ok(None);
        }
        // What was unpacked now is as old as its archive.
        let changed = if plan.file.is_unpacked() { 0 } else { changed(&metadata) };
        add(format!("{} {} {} {changed}", plan.file.name, plan.format.name(), metadata.len()));
    }
    Ok(Some(hasher.finalize().to_hex()[..32].to_owned()))
}
