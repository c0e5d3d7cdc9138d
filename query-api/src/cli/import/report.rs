//! What became of an import: for people, for machines, and a file with every line that was refused.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Seek, SeekFrom},
    path::Path,
    sync::Arc,
    time::Instant,
};

use arrow::{
    array::{ArrayRef, RecordBatch, StringArray, UInt64Array},
    util::pretty::pretty_format_batches,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use wattlake_catalog::{ForeignReading, Refused};
use wattlake_engine::{
    BodyFormat, BulkReport, ERRORS_REPORTED_MAX, IngestReport, Part, RowError, SeriesCount,
};

use super::{ImportArgs, database::Made, plan::Plan};
use crate::{cli::Failure, http::PartReport};

/// Errors and series printed in full.
const ERRORS_SHOWN: usize = 10;
const SERIES_SHOWN: usize = 40;

/// What a file brought.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct FileCount {
    file: String,
    format: String,
    accepted: u64,
    rejected: u64,
}

/// What was counted until some part, for a process that goes on there.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Saved {
    total: IngestReport,
    files: Vec<FileCount>,
    series: Vec<(String, String, SeriesCount)>,
    /// Bytes of the file of refused lines.
    rejects: Option<u64>,
}

pub(super) struct Report {
    started: Instant,
    /// Readings that another process has taken.
    before: u64,
    total: IngestReport,
    stored: BulkReport,
    files: Vec<FileCount>,
    unknown_files: Vec<String>,
    rejects: Option<csv::Writer<BufWriter<File>>>,
    /// Tables of a database that have nothing to import.
    ignored: Vec<String>,
    /// Sites, meters and energy sources of a database: those that were made, and those that were there.
    created: u64,
    existing: u64,
    /// Readings of a dry run whose meters are not there yet.
    of_new_meters: u64,
    /// By entity and metric.
    series: BTreeMap<(String, String), SeriesCount>,
}

fn unwritable(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::io(format!("cannot write {}: {error}", path.display()))
}

fn create(path: &Path) -> Result<File, Failure> {
    File::create(path).map_err(|error| unwritable(path, &error))
}

impl Report {
    pub(super) fn new(args: &ImportArgs, unknown_files: Vec<String>) -> Result<Self, Failure> {
        let rejects = args.rejects.as_ref().map(|path| {
            let mut rejects = csv::Writer::from_writer(BufWriter::new(create(path)?));
            let written = rejects.write_record(["file", "line", "reason"]);
            written.map_err(|error| unwritable(path, &error))?;
            Ok::<_, Failure>(rejects)
        });
        Ok(Self {
            started: Instant::now(),
            before: 0,
            total: IngestReport::default(),
            stored: BulkReport::default(),
            files: Vec::new(),
            unknown_files,
            rejects: rejects.transpose()?,
            ignored: Vec::new(),
            created: 0,
            existing: 0,
            of_new_meters: 0,
            series: BTreeMap::new(),
        })
    }

    /// What was counted until now.
    pub(super) fn save(&mut self) -> Saved {
        let rejects = self.rejects.as_mut().and_then(|rejects| {
            rejects.flush().ok()?;
            rejects.get_ref().get_ref().stream_position().ok()
        });
        let series =
            self.series.iter().map(|((entity, metric), count)| (entity.clone(), metric.clone(), *count));
        Saved { total: self.total.clone(), files: self.files.clone(), series: series.collect(), rejects }
    }

    /// Goes on from what another process counted; `None`: the file of refused lines is not there any more.
    pub(super) fn go_on(args: &ImportArgs, unknown_files: Vec<String>, saved: Saved) -> Option<Self> {
        let rejects = match (&args.rejects, saved.rejects) {
            (None, _) => None,
            (Some(path), Some(bytes)) => {
                let mut file = File::options().write(true).open(path).ok()?;
                if file.metadata().ok()?.len() < bytes {
                    return None;
                }
                file.set_len(bytes).ok()?;
                file.seek(SeekFrom::End(0)).ok()?;
                Some(csv::Writer::from_writer(BufWriter::new(file)))
            }
            (Some(_), None) => return None,
        };
        Some(Self {
            started: Instant::now(),
            before: saved.total.accepted,
            total: saved.total,
            stored: BulkReport::default(),
            files: saved.files,
            unknown_files,
            rejects,
            ignored: Vec::new(),
            created: 0,
            existing: 0,
            of_new_meters: 0,
            series: saved
                .series
                .into_iter()
                .map(|(entity, metric, count)| ((entity, metric), count))
                .collect(),
        })
    }

    /// Readings that were taken, and refused ones.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.total.accepted, self.total.rejected)
    }

    /// Adds what became of a part.
    pub(super) fn count(&mut self, plan: &Plan, part: &Part, of_part: PartReport) -> Result<(), Failure> {
        let PartReport { report: of_part, series } = of_part;
        for one in series {
            let count = SeriesCount {
                rows: one.readings,
                first: one.first.as_microsecond(),
                last: one.last.as_microsecond(),
            };
            self.series.entry((one.entity, one.metric)).or_default().add(count);
        }
        let before = part.refused.iter().map(|refused| (refused.line, "invalid", refused.message.clone()));
        let rows =
            of_part.errors.iter().map(|error| (line_of(part, error), &*error.kind, error.message.clone()));
        let rejected = of_part.rejected + part.refused.len() as u64;
        for (line, kind, message) in before.chain(rows).collect::<Vec<_>>() {
            self.refuse(plan, line, kind, &message)?;
        }
        if self.files.last().is_none_or(|last| last.file != plan.file.name) {
            let (file, format) = (plan.file.name.clone(), plan.format.name().to_owned());
            self.files.push(FileCount { file, format, accepted: 0, rejected: 0 });
        }
        if let Some(last) = self.files.last_mut() {
            last.accepted += of_part.accepted;
            last.rejected += rejected;
        }
        self.total.accepted += of_part.accepted;
        self.total.rejected += rejected;
        self.total.registered += of_part.registered;
        self.total.skipped_fields += of_part.skipped_fields;
        Ok(())
    }

    pub(super) fn ignored(&mut self, tables: &[String]) {
        self.ignored.extend_from_slice(tables);
    }

    /// Notes rows of a database that are no readings and cannot be taken.
    pub(super) fn refused_rows(&mut self, plan: &Plan, refused: Vec<Refused>) -> Result<(), Failure> {
        for (what, message) in refused {
            self.refuse(plan, 0, "invalid", &format!("{what}: {message}"))?;
            self.total.rejected += 1;
        }
        Ok(())
    }

    /// Counts readings of a database whose meters would be made first.
    pub(super) fn count_foreign(&mut self, readings: &[ForeignReading]) {
        for reading in readings {
            let count = SeriesCount { rows: 1, first: reading.ts, last: reading.ts };
            self.series.entry((reading.entity_id.clone(), reading.metric.clone())).or_default().add(count);
        }
        self.total.accepted += readings.len() as u64;
        self.of_new_meters += readings.len() as u64;
    }

    /// Notes what became of a site, meter or energy source of a database.
    pub(super) fn made(&mut self, plan: &Plan, what: String, made: Made) -> Result<(), Failure> {
        match made {
            Made::New => self.created += 1,
            Made::Known => self.existing += 1,
            Made::Refused(message) => self.refused_rows(plan, vec![(what, message)])?,
        }
        Ok(())
    }

    fn refuse(&mut self, plan: &Plan, line: u64, kind: &str, message: &str) -> Result<(), Failure> {
        if let Some(rejects) = &mut self.rejects {
            let written = rejects.write_record([&*plan.file.name, &line.to_string(), message]);
            written.map_err(|error| Failure::io(format!("cannot write the refused lines: {error}")))?;
        }
        if self.total.errors.len() < ERRORS_REPORTED_MAX {
            let message = format!("{}: {message}", plan.file.name);
            self.total.errors.push(RowError { row: line, kind: kind.to_owned().into(), message });
        }
        Ok(())
    }

    pub(super) fn stored(&mut self, stored: BulkReport) {
        self.stored = stored;
    }

    /// Prints it; lines that were refused make the import one that failed, though the others are stored.
    pub(super) fn tell(mut self, args: &ImportArgs) -> Result<(), Failure> {
        if let Some(rejects) = &mut self.rejects {
            rejects
                .flush()
                .map_err(|error| Failure::io(format!("cannot write the refused lines: {error}")))?;
        }
        let BulkReport { rows, corrected, identical, batch } = self.stored;
        let batch = batch.map(|batch| batch.0);
        let new = rows - corrected - identical + self.of_new_meters;
        let seconds = self.started.elapsed().as_secs_f64();
        let time = |micros: i64| Timestamp::from_microsecond(micros).unwrap_or_default().to_string();
        if args.json {
            let series = self.series.iter().map(|((entity, metric), count)| {
                json!({ "entity": entity, "metric": metric, "readings": count.rows, "first": time(count.first), "last": time(count.last) })
            });
            let stored =
                json!({ "new": new, "corrected": corrected, "identical": identical, "batch": batch });
            println!(
                "{:#}",
                json!({ "dryRun": args.dry_run, "seconds": seconds, "report": self.total, "stored": stored, "files": self.files,
                    "series": series.collect::<Vec<_>>(), "unknownFiles": self.unknown_files, "ignoredTables": self.ignored, "created": self.created, "existing": self.existing })
            );
        } else {
            for error in self.total.errors.iter().take(ERRORS_SHOWN) {
                // What is no row has no line: a site, a meter.
                let line = if error.row > 0 { format!("line {}: ", error.row) } else { String::new() };
                eprintln!("{line}{} ({})", error.message, error.kind);
            }
            if self.total.rejected > ERRORS_SHOWN as u64 {
                let rest = self.total.rejected - ERRORS_SHOWN as u64;
                let hint =
                    if args.rejects.is_some() { "" } else { "; --rejects FILE writes down all of them" };
                eprintln!("... and {rest} more{hint}");
            }
            for file in &self.unknown_files {
                eprintln!("{file}: left out, its format is not known");
            }
            if !self.ignored.is_empty() {
                eprintln!("left out, nothing in them is imported: {}", self.ignored.join(", "));
            }
            if self.created + self.existing > 0 {
                let (created, existing) = (self.created, self.existing);
                let verb = if args.dry_run { "would be made" } else { "made" };
                println!("{created} sites, meters and energy sources {verb}, {existing} there already");
            }
            let rows: Vec<_> = self.series.iter().collect();
            if !rows.is_empty() && rows.len() <= SERIES_SHOWN {
                let column = |values: Vec<String>| -> ArrayRef { Arc::new(StringArray::from(values)) };
                let columns = [
                    ("entity", column(rows.iter().map(|((entity, _), _)| entity.clone()).collect())),
                    ("metric", column(rows.iter().map(|((_, metric), _)| metric.clone()).collect())),
                    (
                        "readings",
                        Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| row.1.rows)))
                            as ArrayRef,
                    ),
                    ("first", column(rows.iter().map(|row| time(row.1.first)).collect())),
                    ("last", column(rows.iter().map(|row| time(row.1.last)).collect())),
                ];
                let table =
                    RecordBatch::try_from_iter(columns).and_then(|batch| pretty_format_batches(&[batch]));
                println!("{}", table.map_err(|error| Failure::failed(error.to_string()))?);
            }
            if rows.len() > SERIES_SHOWN {
                let first = rows.iter().map(|(_, count)| count.first).min().unwrap_or_default();
                let last = rows.iter().map(|(_, count)| count.last).max().unwrap_or_default();
                println!("{} series from {} to {}; --json lists them", rows.len(), time(first), time(last));
            }
            let verb = if args.dry_run { "would be stored" } else { "stored" };
            let rate = (self.total.accepted - self.before) as f64 / seconds.max(0.001);
            let (accepted, rejected, registered) =
                (self.total.accepted, self.total.rejected, self.total.registered);
            println!(
                "{accepted} readings {verb}, {rejected} refused, {registered} meters registered, in {seconds:.1} s ({rate:.0}/s)"
            );
            println!("{new} of them new, {corrected} corrected, {identical} known already");
            if let Some(batch) = batch {
                println!("batch {batch}: `wattlake import --undo {batch}` puts back what was there before");
            }
        }
        match self.total.rejected {
            0 => Ok(()),
            1 => Err(Failure::failed("1 line was refused")),
            n => Err(Failure::failed(format!("{n} lines were refused"))),
        }
    }
}

/// The line that an error is about; of tables without lines the row. Both are counted from 1.
fn line_of(part: &Part, error: &RowError) -> u64 {
    if let Some(lines) = &part.lines {
        return lines.get(error.row as usize).copied().unwrap_or(error.row);
    }
    let row = error.row + part.first_row;
    match part.format {
        // The header is the first line. Cells that hold line ends are counted as one line.
        BodyFormat::Csv => row + 2,
        BodyFormat::NdJson => row + 1,
        // Lines are counted already.
        BodyFormat::LineProtocol => row,
        BodyFormat::Json | BodyFormat::ArrowStream | BodyFormat::Parquet => row + 1,
    }
}
