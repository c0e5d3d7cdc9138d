//! `wattlake import`: files in parts, straight into the data directory in one commit, or through the server that holds it.

mod database;
mod plan;
mod reading;
mod report;
mod resume;

use std::{collections::VecDeque, path::PathBuf, sync::Arc, time::Duration};

use clap::Args;
use serde_json::json;
use wattlake_catalog::SnapshotId;
use wattlake_config::Settings;
use wattlake_engine::{
    BulkImport, BulkReport, DecodedPart, Ingest, IngestReport, IngestRequest, Part, UndoReport,
};

use self::{
    database::Fleet,
    plan::{Plan, Planned},
    reading::Reading,
    report::Report,
    resume::Position,
};
use super::{
    Common, Failure, logging,
    remote::{Remote, RemoteArgs, here_or_there},
};
use crate::{
    http::{PartReport, PartSeries},
    server,
};

/// How often a full memtable or a busy server is waited for.
const RETRIES_MAX: u32 = 600;
/// Parts that are decoded side by side.
const PARTS_AT_ONCE: usize = 2;
/// Bytes of text in one part of a local import, where the memory is large enough: two are decoded while others wait to be sorted.
const LOCAL_PART_BYTES: usize = 8 << 20;
const LOCAL_PART_BYTES_MIN: usize = 64 << 10;
const PART_SHARE: usize = 12;
/// Refused rows of a part that are told one by one, where somebody wants all of them.
const ERRORS_OF_PART: usize = 100_000;

#[derive(Debug, Args)]
#[command(
    after_help = "Formats are found out by content. Files of vendors and utilities: NEM12 and NEM13, Green Button,
InfluxDB line protocol and annotated CSV, SolarEdge JSON, CSV of Enphase, SMA, Shelly, Fluvius,
Ameren, DSMR-reader, HomeWizard, NISC, Chronograf. Our own: CSV, NDJSON, Parquet. All also as
gzip or zstd, in zip, tar and folders.

Examples:
  wattlake import readings.csv
  wattlake import exports/ --time-zone Europe/Berlin --site Bakery --dry-run
  wattlake import nem12.zip --rejects refused.csv
  wattlake import postgres://user:password@host:5432/name --dry-run
  wattlake import --undo 42
  wattlake import meters.csv.gz --map mapping.toml

A mapping file names the columns of a foreign table (docs/importing.md tells of more):
  site = \"Households\"                  # where unknown entities are registered
  timestamp = \"reading_datetime\"
  time_zone = \"Australia/Brisbane\"     # of times without an offset
  entity = \"customer_id\"               # a uuid or an external id
  [[values]]
  column = \"general_supply_kwh\"
  metric = \"energy\"
  unit = \"kWh\""
)]
pub(super) struct ImportArgs {
    /// Files, folders, archives, patterns such as 'exports/*.csv', or a Postgres database with the same tables
    #[arg(required_unless_present = "undo", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Format or vendor profile [default: found out by content]
    #[arg(long)]
    format: Option<String>,
    /// TOML file with column names, units and time zone
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,
    /// Zone of local times, for example Europe/Berlin or +10:00
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
    /// Zone of NEM12 and NEM13, whose standard time holds all year [default: that of the market, +10:00]
    #[arg(long, value_name = "ZONE")]
    market_zone: Option<String>,
    /// Local times that the clock shows twice or not at all: sequence, earlier, later or reject
    #[arg(long, value_name = "POLICY", default_value = "sequence")]
    dst: String,
    /// The meter of files that name none [default: the file's name]
    #[arg(long, value_name = "NAME")]
    entity: Option<String>,
    /// Unit of numeric timestamps: s, ms, us or ns
    #[arg(long)]
    precision: Option<String>,
    /// Site on which unknown entities are registered [default: that of the mapping, else the file's name]
    #[arg(long)]
    site: Option<String>,
    /// CSV file for refused lines and why
    #[arg(long, value_name = "FILE")]
    rejects: Option<PathBuf>,
    /// Puts back what an import changed, by the batch that its report names; readings changed since stay
    #[arg(long, value_name = "BATCH", conflicts_with = "files")]
    undo: Option<i64>,
    /// Checks every row, compares it with what is stored, and stores nothing
    #[arg(long)]
    dry_run: bool,
    /// The report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

pub(super) async fn run(common: &Common, args: ImportArgs) -> Result<(), Failure> {
    let settings = common.settings()?;
    logging::init(&settings.log, true)?;
    if let Some(batch) = args.undo {
        return undo(&settings, &args, batch).await;
    }
    let Planned { plans, unknown } = plan::make(&args)?;
    let opened = if args.remote.url.is_some() {
        None
    } else {
        match server::open(&settings).await {
            Ok(open) => Some(open),
            Err(failure) if failure.is_in_use() => None,
            Err(failure) => return Err(failure),
        }
    };
    let Some(open) = opened else {
        let remote = Remote::new(&args.remote, &settings)?;
        let mut report = Report::new(&args, unknown)?;
        let body_max = settings.ingest.max_body_bytes.as_usize();
        let stored = run_remotely(&remote, body_max, &plans, &args, &mut report).await?;
        report.stored(stored);
        return report.tell(&args);
    };
    let done = import_here(&open, &plans, unknown, &args).await;
    open.close().await?;
    done?.tell(&args)
}

/// Where an import begins: at a file, after some of its parts, or after a row of a database.
#[derive(Default)]
struct Start {
    file: usize,
    parts: u64,
    place: Option<String>,
}

/// Imports into the data directory, from where a process that was killed has come.
async fn import_here(
    open: &server::Open,
    plans: &[Plan],
    unknown: Vec<String>,
    args: &ImportArgs,
) -> Result<Report, Failure> {
    let part_bytes = part_bytes(open);
    let Some(name) = resume::name_of(args, plans, part_bytes).await? else {
        let mut report = Report::new(args, unknown)?;
        let stored =
            run_locally(open, open.engine.bulk_import(), plans, Start::default(), args, &mut report).await?;
        report.stored(stored);
        return Ok(report);
    };
    let (mut bulk, state) = open.engine.resumable_import(&name)?;
    let position = state.and_then(|state| serde_json::from_str::<Position>(&state).ok());
    let (mut start, mut resumed) = (Start::default(), None);
    if let Some(Position { file, parts, place, report }) = position {
        start = Start { file, parts, place };
        resumed = Report::go_on(args, unknown.clone(), report);
    }
    let mut report = match resumed {
        Some(report) => {
            eprintln!(
                "going on with an import that broke off: {} readings were read already",
                report.counts().0
            );
            report
        }
        None => {
            // Dropped with what it had: it begins anew.
            drop(bulk);
            (start, bulk) = (Start::default(), open.engine.resumable_import(&name)?.0);
            Report::new(args, unknown)?
        }
    };
    let stored = run_locally(open, bulk, plans, start, args, &mut report).await?;
    report.stored(stored);
    Ok(report)
}

fn part_bytes(open: &server::Open) -> usize {
    let budget = open.engine.settings().memory.budget.as_usize();
    (budget / PART_SHARE).clamp(LOCAL_PART_BYTES_MIN, LOCAL_PART_BYTES)
}

/// Takes parts one by one.
enum Sink<'a> {
    Local { ingest: &'a Ingest, bulk: &'a mut BulkImport },
    Remote { remote: &'a Remote, path: &'a str },
}

impl Sink<'_> {
    /// Takes a part; `state` tells how far a local import has come with it.
    async fn take(
        &mut self,
        plan: &Plan,
        part: Part,
        report: &mut Report,
        state: impl FnOnce(&mut Report) -> String,
    ) -> Result<(), Failure> {
        match self {
            Sink::Local { ingest, bulk } => {
                let decoded = ingest.decode_part(request(plan, &part)).await;
                push(ingest, bulk, (plan, &part), decoded, report, state).await
            }
            Sink::Remote { remote, path } => {
                let of_part = with_patience(async || send(remote, path, plan, &part).await).await?;
                report.count(plan, &part, of_part)
            }
        }
    }
}

/// Adds a decoded part to a local import; `state` tells how far it has come with that.
async fn push(
    ingest: &Ingest,
    bulk: &mut BulkImport,
    (plan, part): (&Plan, &Part),
    decoded: wattlake_engine::Result<(DecodedPart, IngestReport)>,
    report: &mut Report,
    state: impl FnOnce(&mut Report) -> String,
) -> Result<(), Failure> {
    let (readings, of_part) = decoded.map_err(|error| plan.named(error))?;
    let series = PartSeries::of(&readings, &of_part, ingest.engine());
    report.count(plan, part, PartReport { report: of_part, series })?;
    Ok(ingest.push(bulk, readings, || state(report)).await?)
}

/// Puts back what an import changed.
async fn undo(settings: &Settings, args: &ImportArgs, batch: i64) -> Result<(), Failure> {
    let undone = here_or_there(
        &args.remote,
        settings,
        async |open| Ok(open.engine.undo_import(SnapshotId(batch), args.dry_run).await?),
        async |server| {
            let body = json!({ "batch": batch, "dryRun": args.dry_run });
            let answer = server.ask(server.post("/api/imports/undo").json(&body)).await?;
            serde_json::from_value(answer)
                .map_err(|error| Failure::failed(format!("the answer is no report: {error}")))
        },
    )
    .await?;
    if args.json {
        println!("{:#}", json!({ "dryRun": args.dry_run, "undone": undone }));
        return Ok(());
    }
    let UndoReport { removed, restored, kept } = undone;
    let verb = if args.dry_run { "would be" } else { "are" };
    println!(
        "{removed} readings {verb} gone, {restored} {verb} as they were before, {kept} were changed since and stay"
    );
    Ok(())
}

/// What is said of an import that broke off.
fn nothing_stored(args: &ImportArgs) -> &'static str {
    if args.dry_run { "" } else { "; nothing was stored" }
}

/// All or nothing: a file that breaks off stores none of them.
async fn run_locally(
    open: &server::Open,
    mut bulk: BulkImport,
    plans: &[Plan],
    start: Start,
    args: &ImportArgs,
    report: &mut Report,
) -> Result<BulkReport, Failure> {
    for (file, plan) in plans.iter().enumerate().skip(start.file) {
        let is_first = file == start.file;
        let imported = match &plan.database {
            None => {
                let known = if is_first { start.parts } else { 0 };
                import_locally(open, &mut bulk, (file, plan), known, report).await
            }
            Some(url) => {
                let fleet = Fleet::Here(open.engine.catalog());
                let mut sink = Sink::Local { ingest: &open.ingest, bulk: &mut bulk };
                let after = start.place.as_deref().filter(|_| is_first);
                database::import(
                    (url, args.time_zone.as_deref()),
                    (file, plan),
                    after,
                    &fleet,
                    &mut sink,
                    report,
                )
                .await
            }
        };
        imported.map_err(|failure| failure.with(nothing_stored(args)))?;
    }
    Ok(if args.dry_run { bulk.preview().await? } else { bulk.finish().await? })
}

/// Decodes parts side by side and takes them in the order of the file, but for those that are `known`.
async fn import_locally(
    open: &server::Open,
    bulk: &mut BulkImport,
    (file, plan): (usize, &Plan),
    known: u64,
    report: &mut Report,
) -> Result<(), Failure> {
    let ingest = &open.ingest;
    let mut reading = Reading::open(plan, part_bytes(open))?;
    let mut parts = 0;
    while parts < known && reading.next().await?.is_some() {
        parts += 1;
    }
    let mut decoding = VecDeque::new();
    loop {
        while decoding.len() < PARTS_AT_ONCE
            && let Some(part) = reading.next().await?
        {
            let (ingest, request) = (ingest.clone(), request(plan, &part));
            let decoded = tokio::spawn(async move { ingest.decode_part(request).await });
            decoding.push_back((part, decoded));
        }
        let Some((part, decoded)) = decoding.pop_front() else { break };
        let decoded = decoded.await.map_err(|error| Failure::failed(format!("decoding failed: {error}")))?;
        parts += 1;
        let state = |report: &mut Report| Position::of_parts(file, parts, report);
        push(ingest, bulk, (plan, &part), decoded, report, state).await?;
        reading.show(report);
    }
    reading.finish();
    Ok(())
}

/// The same through a server, which compares and stores at the end.
async fn run_remotely(
    remote: &Remote,
    body_max: usize,
    plans: &[Plan],
    args: &ImportArgs,
    report: &mut Report,
) -> Result<BulkReport, Failure> {
    let path = start_remotely(remote, args.dry_run).await?;
    for plan in plans {
        let imported = match &plan.database {
            None => import_remotely(remote, &path, plan, body_max, report).await,
            Some(url) => {
                let mut sink = Sink::Remote { remote, path: &path };
                let database = (url.as_str(), args.time_zone.as_deref());
                database::import(database, (0, plan), None, &Fleet::There(remote), &mut sink, report).await
            }
        };
        if let Err(failure) = imported {
            let _ = remote.send(remote.delete(&path)).await;
            return Err(failure.with(nothing_stored(args)));
        }
    }
    let finished = remote.ask(remote.post(&format!("{path}/finish"))).await;
    let stored = finished.map_err(|failure| {
        failure.with("; whether it was stored is not known, importing again changes nothing")
    })?;
    let n = |name: &str| stored[name].as_u64().unwrap_or(0);
    let (corrected, identical) = (n("corrected"), n("identical"));
    let batch = stored["batch"].as_i64().map(SnapshotId);
    Ok(BulkReport { rows: n("new") + corrected + identical, corrected, identical, batch })
}

/// Starts an import on a server and answers its path.
async fn start_remotely(remote: &Remote, is_dry_run: bool) -> Result<String, Failure> {
    let query = is_dry_run.then_some(("dryRun", "true"));
    let start = async || remote.send_or_busy(remote.post("/api/imports").query(query.as_slice())).await;
    let started = with_patience(start).await?;
    let started: serde_json::Value = started
        .json()
        .await
        .map_err(|error| Failure::failed(format!("the answer is not JSON: {}", error.without_url())))?;
    let id = started["id"].as_str().ok_or_else(|| Failure::failed("the server names no import"))?;
    Ok(format!("/api/imports/{id}"))
}

/// Asks again as long as the server is too busy.
async fn with_patience<T>(ask: impl AsyncFn() -> Result<Option<T>, Failure>) -> Result<T, Failure> {
    for _ in 0..RETRIES_MAX {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Err(Failure::failed(
        "the server stayed busy: readings are not being flushed, or other imports are under way; see `wattlake status`",
    ))
}

async fn import_remotely(
    remote: &Remote,
    path: &str,
    plan: &Plan,
    body_max: usize,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut reading = Reading::open(plan, body_max / 2)?;
    while let Some(part) = reading.next().await? {
        Sink::Remote { remote, path }.take(plan, part, report, |_| String::new()).await?;
        reading.show(report);
    }
    reading.finish();
    Ok(())
}

fn request(plan: &Plan, part: &Part) -> IngestRequest {
    IngestRequest {
        format: part.format,
        body: part.body.clone(),
        precision: plan.precision,
        is_atomic: false,
        site: plan.site.clone(),
        mapping: plan.mapping_of(part).map(Arc::clone),
        allowed_sites: Vec::new(),
        is_dry_run: plan.is_dry_run,
        errors_max: plan.errors_max,
    }
}

/// `None`: the server is busy, try again.
async fn send(remote: &Remote, path: &str, plan: &Plan, part: &Part) -> Result<Option<PartReport>, Failure> {
    let mapping = plan.mapping_of(part).map(|mapping| json!(**mapping).to_string());
    let mut query = vec![("format", part.format.as_str().to_owned()), ("site", plan.site.clone())];
    query.extend(mapping.map(|mapping| ("mapping", mapping)));
    query.extend(plan.precision.map(|precision| ("precision", precision.as_str().to_owned())));
    query.extend([("errors", plan.errors_max.to_string()), ("series", "true".to_owned())]);
    let request = remote.post(path).query(&query).body(part.bytes()?);
    let Some(response) = remote.send_or_busy(request).await? else { return Ok(None) };
    let report = response.json().await;
    report
        .map(Some)
        .map_err(|error| Failure::failed(format!("the answer is not a report: {}", error.without_url())))
}
