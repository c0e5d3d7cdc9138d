//! `wattlake import`: files in parts, straight into the data directory in one commit, or through the server that holds it.

use std::{
    collections::VecDeque,
    io::IsTerminal,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::json;
use wattlake_engine::{
    BodyFormat, BulkImport, BulkReport, Ingest, IngestReport, IngestRequest, Part, Parts, TableMapping,
    TimePrecision,
};

use super::{
    Common, Failure, logging,
    remote::{Remote, RemoteArgs},
};
use crate::server;

/// Errors printed in full.
const ERRORS_SHOWN: usize = 10;
/// How often a full memtable or a busy server is waited for.
const RETRIES_MAX: u32 = 600;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  wattlake import readings.csv
  wattlake import meters.csv.gz --map mapping.toml --dry-run
  wattlake import dump.lp --format line-protocol --site plant-north

A mapping file names the columns of a foreign table:
  site = \"Households\"                  # where unknown entities are registered
  timestamp = \"reading_datetime\"
  time_zone = \"Australia/Brisbane\"     # of times without an offset
  entity = \"customer_id\"               # a uuid or an external id
  [[values]]
  column = \"general_supply_kwh\"
  metric = \"energy\"
  unit = \"kWh\"")]
pub(super) struct ImportArgs {
    /// CSV, NDJSON, line protocol or Parquet, also gzip or zstd
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// csv, ndjson, line-protocol or parquet [default: by the file's name]
    #[arg(long)]
    format: Option<String>,
    /// TOML file with column names, units and time zone
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,
    /// Unit of numeric timestamps: s, ms, us or ns
    #[arg(long)]
    precision: Option<String>,
    /// Site on which unknown entities are registered [default: that of the mapping, else the file's name]
    #[arg(long)]
    site: Option<String>,
    /// Checks every row and stores nothing
    #[arg(long)]
    dry_run: bool,
    /// The report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// Where parts go.
enum Target {
    /// One import for all files: it is stored as a whole when everything was read.
    Local(Box<server::Open>, Box<BulkImport>),
    Remote(Remote),
}

/// Parts that are decoded side by side.
const PARTS_AT_ONCE: usize = 2;
/// Bytes of text in one part of a local import.
const LOCAL_PART_BYTES: usize = 8 << 20;

/// One file's options.
struct Plan {
    format: BodyFormat,
    precision: Option<TimePrecision>,
    mapping: Option<Arc<TableMapping>>,
    site: String,
    is_dry_run: bool,
}

pub(super) async fn run(common: &Common, args: ImportArgs) -> Result<(), Failure> {
    let settings = common.settings()?;
    logging::init(&settings.log, true)?;
    let mapping = args.map.as_deref().map(read_mapping).transpose()?;
    let precision = args.precision.as_deref().map(str::parse).transpose();
    let precision = precision.map_err(|error: wattlake_engine::Error| Failure::usage(error.message))?;
    let mut plans = Vec::new();
    for file in &args.files {
        let format = match &args.format {
            Some(name) => {
                name.parse().map_err(|error: wattlake_engine::Error| Failure::usage(error.message))?
            }
            None => format_of(file)?,
        };
        let named = args.site.clone().or_else(|| mapping.as_ref().and_then(|m| m.site.clone()));
        let site = named.unwrap_or_else(|| stem(file));
        plans.push((
            file,
            Plan { format, precision, mapping: mapping.clone(), site, is_dry_run: args.dry_run },
        ));
    }
    let target = if args.remote.url.is_some() {
        Target::Remote(Remote::new(&args.remote, &settings)?)
    } else {
        match server::open(&settings).await {
            Ok(open) => {
                let bulk = open.engine.bulk_import();
                Target::Local(Box::new(open), Box::new(bulk))
            }
            Err(failure) if failure.is_in_use() => Target::Remote(Remote::new(&args.remote, &settings)?),
            Err(failure) => return Err(failure),
        }
    };
    let started = Instant::now();
    let mut total = IngestReport::default();
    let (stored, outcome) = match target {
        Target::Local(open, mut bulk) => {
            let mut outcome = Ok(());
            for (file, plan) in plans {
                outcome = import_locally(&open.ingest, &mut bulk, file, &plan, &mut total).await;
                if outcome.is_err() {
                    break;
                }
            }
            // All or nothing: a file that breaks off stores none of them.
            let stored = match outcome {
                Ok(()) => bulk.finish().await.map(Some).map_err(Failure::from),
                Err(_) => Ok(None),
            };
            open.close().await?;
            (stored?, outcome.map_err(|failure| failure.with("; nothing was stored")))
        }
        Target::Remote(remote) => {
            let body_max = settings.ingest.max_body_bytes.as_usize();
            // A dry run stores nothing that would have to come together.
            let path = match args.dry_run {
                true => "/api/import".to_owned(),
                false => start_remotely(&remote).await?,
            };
            let mut outcome = Ok(());
            for (file, plan) in plans {
                outcome = import_remotely(&remote, &path, file, &plan, body_max, &mut total).await;
                if outcome.is_err() {
                    break;
                }
            }
            match outcome {
                Ok(()) if args.dry_run => (None, Ok(())),
                Ok(()) => {
                    let finished = remote.ask(remote.post(&format!("{path}/finish"))).await;
                    let stored = finished.map_err(|failure| {
                        failure.with("; whether it was stored is not known, importing again changes nothing")
                    })?;
                    let n = |name: &str| stored[name].as_u64().unwrap_or(0);
                    let (corrected, identical) = (n("corrected"), n("identical"));
                    (
                        Some(BulkReport { rows: n("new") + corrected + identical, corrected, identical }),
                        Ok(()),
                    )
                }
                Err(failure) if args.dry_run => (None, Err(failure)),
                Err(failure) => {
                    let _ = remote.send(remote.delete(&path)).await;
                    (None, Err(failure.with("; nothing was stored")))
                }
            }
        }
    };
    outcome?;
    report(&total, stored, &args, started.elapsed());
    match total.rejected {
        0 => Ok(()),
        n => Err(Failure::failed(format!("{n} rows were refused"))),
    }
}

fn read_mapping(path: &Path) -> Result<Arc<TableMapping>, Failure> {
    let usage = |message: String| Failure::usage(format!("mapping {}: {message}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| usage(error.to_string()))?;
    let mapping = TableMapping::deserialize(
        toml::Deserializer::parse(&text).map_err(|error| usage(error.to_string()))?,
    );
    let mapping = mapping.map_err(|error| usage(error.to_string().trim().to_owned()))?;
    mapping.check().map_err(|error| usage(error.message))?;
    Ok(Arc::new(mapping))
}

/// The file's name without its endings.
fn stem(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.split('.').next().filter(|stem| !stem.is_empty()).unwrap_or("default").to_owned()
}

fn format_of(file: &Path) -> Result<BodyFormat, Failure> {
    let name = file.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let name = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name);
    match name.rsplit_once('.').map(|(_, ending)| ending) {
        Some("csv") => Ok(BodyFormat::Csv),
        Some("ndjson" | "jsonl") => Ok(BodyFormat::NdJson),
        Some("lp" | "line") => Ok(BodyFormat::LineProtocol),
        Some("parquet") => Ok(BodyFormat::Parquet),
        _ => Err(Failure::usage(format!(
            "{}: the ending says nothing of the format; add --format csv, ndjson, line-protocol or parquet",
            file.display()
        ))),
    }
}

/// A file that is being read in parts.
struct Reading<'a> {
    file: &'a Path,
    bytes: u64,
    bar: ProgressBar,
    parts: Option<Parts>,
}

impl<'a> Reading<'a> {
    fn open(file: &'a Path, plan: &Plan, part_bytes: usize) -> Result<Self, Failure> {
        let unreadable =
            |error: std::io::Error| Failure::io(format!("cannot read {}: {error}", file.display()));
        let opened = std::fs::File::open(file).map_err(unreadable)?;
        let bytes = opened.metadata().map_err(unreadable)?.len();
        let bar = progress(bytes, file);
        let mapping = plan.mapping.as_deref();
        let parts = match plan.format {
            BodyFormat::Parquet => Parts::of_parquet(opened, mapping),
            // The bar moves with what is read, compressed or not.
            format => Parts::of_text(bar.wrap_read(opened), format, mapping, part_bytes),
        };
        let parts = parts.map_err(|error| named(file, error))?;
        Ok(Self { file, bytes, bar, parts: Some(parts) })
    }

    /// The next part. Reading, and the decompression and Parquet decoding that go with it, block.
    async fn next(&mut self) -> Result<Option<Part>, Failure> {
        let Some(mut parts) = self.parts.take() else { return Ok(None) };
        let (back, part) = tokio::task::spawn_blocking(move || {
            let part = parts.next();
            (parts, part)
        })
        .await
        .map_err(|error| Failure::failed(format!("reading {} failed: {error}", self.file.display())))?;
        let rows = back.rows();
        self.parts = Some(back);
        let Some(part) = part else { return Ok(None) };
        let part = part.map_err(|error| named(self.file, error))?;
        if let Some(rows) = rows {
            self.bar.set_position(self.bytes * part.first_row / rows.max(1));
        }
        Ok(Some(part))
    }

    /// Adds what became of a part.
    fn count(&self, report: IngestReport, first_row: u64, total: &mut IngestReport) {
        total.accepted += report.accepted;
        total.rejected += report.rejected;
        total.registered += report.registered;
        total.skipped_fields += report.skipped_fields;
        for mut error in report.errors {
            error.row += first_row;
            error.message = format!("{}: {}", self.file.display(), error.message);
            total.errors.push(error);
        }
        total.errors.truncate(100);
        self.bar.set_message(format!("{} readings", total.accepted));
        if self.bar.is_hidden() {
            let (accepted, rejected) = (total.accepted, total.rejected);
            tracing::info!(file = %self.file.display(), accepted, rejected, "importing");
        }
    }
}

fn named(file: &Path, error: wattlake_engine::Error) -> Failure {
    let message = format!("{}: {}", file.display(), error.message);
    Failure::from(wattlake_engine::Error::new(error.kind, message))
}

/// Decodes parts side by side and takes them in the order of the file.
async fn import_locally(
    ingest: &Ingest,
    bulk: &mut BulkImport,
    file: &Path,
    plan: &Plan,
    total: &mut IngestReport,
) -> Result<(), Failure> {
    let mut reading = Reading::open(file, plan, LOCAL_PART_BYTES)?;
    let mut decoding = VecDeque::new();
    loop {
        while decoding.len() < PARTS_AT_ONCE
            && let Some(part) = reading.next().await?
        {
            let (ingest, request) = (ingest.clone(), request(plan, &part));
            let decoded = tokio::spawn(async move { ingest.decode_part(request).await });
            decoding.push_back((part.first_row, decoded));
        }
        let Some((first_row, decoded)) = decoding.pop_front() else { break };
        let decoded = decoded.await.map_err(|error| Failure::failed(format!("decoding failed: {error}")))?;
        let (part, report) = decoded.map_err(|error| named(file, error))?;
        ingest.push(bulk, part).await?;
        reading.count(report, first_row, total);
    }
    reading.bar.finish();
    Ok(())
}

/// Starts an import on a server and answers its path.
async fn start_remotely(remote: &Remote) -> Result<String, Failure> {
    let started = with_patience(async || remote.send_or_busy(remote.post("/api/imports")).await).await?;
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
    file: &Path,
    plan: &Plan,
    body_max: usize,
    total: &mut IngestReport,
) -> Result<(), Failure> {
    let mut reading = Reading::open(file, plan, body_max / 2)?;
    while let Some(part) = reading.next().await? {
        let report = with_patience(async || send(remote, path, plan, &part).await).await?;
        reading.count(report, part.first_row, total);
    }
    reading.bar.finish();
    Ok(())
}

fn progress(bytes: u64, file: &Path) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(bytes);
    let template = "{prefix} [{bar:30}] {percent}% {msg} {bytes_per_sec} ETA {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(stem(file));
    bar
}

fn request(plan: &Plan, part: &Part) -> IngestRequest {
    IngestRequest {
        format: part.format,
        body: part.body.clone(),
        precision: plan.precision,
        is_atomic: false,
        site: plan.site.clone(),
        mapping: plan.mapping.clone(),
        allowed_sites: Vec::new(),
        is_dry_run: plan.is_dry_run,
    }
}

/// `None`: the server is busy, try again.
async fn send(
    remote: &Remote,
    path: &str,
    plan: &Plan,
    part: &Part,
) -> Result<Option<IngestReport>, Failure> {
    let mapping = plan.mapping.as_deref().map(|mapping| json!(mapping).to_string());
    let format = match part.format {
        BodyFormat::Json => "json",
        BodyFormat::NdJson => "ndjson",
        BodyFormat::Csv => "csv",
        BodyFormat::ArrowStream => "arrow",
        BodyFormat::Parquet => "parquet",
        BodyFormat::LineProtocol => "line-protocol",
    };
    let mut query = vec![("format", format.to_owned()), ("site", plan.site.clone())];
    query.extend(mapping.map(|mapping| ("mapping", mapping)));
    query.extend(plan.precision.map(|precision| ("precision", precision.as_str().to_owned())));
    query.extend(plan.is_dry_run.then(|| ("dryRun", "true".to_owned())));
    let request = remote.post(path).query(&query).body(part.bytes()?);
    let Some(response) = remote.send_or_busy(request).await? else { return Ok(None) };
    let report = response.json().await;
    report
        .map(Some)
        .map_err(|error| Failure::failed(format!("the answer is not a report: {}", error.without_url())))
}

fn report(total: &IngestReport, stored: Option<BulkReport>, args: &ImportArgs, elapsed: Duration) {
    if args.json {
        let stored = stored.map(|stored| {
            let new = stored.rows - stored.corrected - stored.identical;
            json!({ "new": new, "corrected": stored.corrected, "identical": stored.identical })
        });
        println!(
            "{:#}",
            json!({ "dryRun": args.dry_run, "seconds": elapsed.as_secs_f64(), "report": total, "stored": stored })
        );
        return;
    }
    for error in total.errors.iter().take(ERRORS_SHOWN) {
        eprintln!("row {}: {} ({})", error.row, error.message, error.kind);
    }
    if total.rejected > ERRORS_SHOWN as u64 {
        eprintln!("... and {} more", total.rejected - ERRORS_SHOWN as u64);
    }
    let verb = if args.dry_run { "would be stored" } else { "stored" };
    let rate = total.accepted as f64 / elapsed.as_secs_f64().max(0.001);
    println!(
        "{} readings {verb}, {} refused, {} meters registered, in {:.1} s ({rate:.0}/s)",
        total.accepted,
        total.rejected,
        total.registered,
        elapsed.as_secs_f64()
    );
    if let Some(BulkReport { rows, corrected, identical }) = stored.filter(|_| !args.dry_run) {
        let new = rows - corrected - identical;
        println!("{new} of them new, {corrected} corrected, {identical} known already");
    }
}
