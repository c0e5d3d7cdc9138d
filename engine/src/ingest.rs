//! From decoded rows to a batch: entities are resolved (or registered), metrics and units normalised, times and numbers
//! checked. A bad row is reported and nothing else is lost.

mod collector;
mod line_cache;
mod mapping;
mod register;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Instant,
};

use arrow::array::RecordBatch;
use bytes::Bytes;
use parking_lot::Mutex as SyncMutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use wattlake_catalog::{EntityId, SiteId};

pub(crate) use collector::{Collector, Context, RawReading, SeriesName, SeriesSlot, parse_quality};
pub(crate) use line_cache::{KnownLines, LearnedLine, LineCache, LineSeriesCache};
pub use mapping::{TableMapping, ValueColumn};

use crate::{
    BodyFormat, BulkImport, Engine, Error, Result, TimePrecision, batch::Readings, decode,
    engine::PreparedWrite, series::ChannelId,
};

/// Errors reported in full unless a request says otherwise.
pub const ERRORS_REPORTED_MAX: usize = 100;

/// A body of readings with everything that its sender said about it.
#[derive(Clone, Debug)]
pub struct IngestRequest {
    pub format: BodyFormat,
    pub body: Body,
    /// The unit of numeric timestamps.
    pub precision: Option<TimePrecision>,
    /// All rows or none.
    pub is_atomic: bool,
    /// The site on which unknown entities are registered: the bucket or database of line protocol.
    pub site: String,
    /// How the columns of a table are to be read; only for CSV, NDJSON, Arrow and Parquet.
    pub mapping: Option<Arc<TableMapping>>,
    /// Only entities of these sites may be written; empty: all.
    pub allowed_sites: Vec<SiteId>,
    /// Check everything, store and register nothing.
    pub is_dry_run: bool,
    /// Errors that are reported in full; further ones are only counted.
    pub errors_max: usize,
}

/// Line protocol of at most so many bytes is decoded where it was received: handing it to another thread would take as long.
const SHORT_BYTES: usize = 64 << 10;

impl IngestRequest {
    fn is_short(&self) -> bool {
        match &self.body {
            Body::Bytes(bytes) => self.format == BodyFormat::LineProtocol && bytes.len() <= SHORT_BYTES,
            Body::Table(_) => false,
        }
    }
}

/// The readings of a request.
#[derive(Clone, Debug)]
pub enum Body {
    /// Decompressed bytes of the request's format.
    Bytes(Bytes),
    /// What an Arrow stream would hold.
    Table(RecordBatch),
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

/// What became of the rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct IngestReport {
    pub accepted: u64,
    pub rejected: u64,
    /// The first ones.
    pub errors: Vec<RowError>,
    /// Text and boolean fields of line protocol that are not readings.
    #[serde(rename = "skippedFields", default, skip_serializing_if = "is_zero")]
    pub skipped_fields: u64,
    /// Meters registered because nobody knew them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub registered: u64,
    /// Of a dry run: entities that would be registered, with ids of their own that mean nothing elsewhere.
    #[serde(skip)]
    pub unknown: Vec<(EntityId, String)>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Why a row was refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowError {
    /// 0-based index of the reading; for line protocol the 1-based line.
    pub row: u64,
    pub kind: Cow<'static, str>,
    pub message: String,
}

/// Registers what is unknown, one request at a time and not too fast.
#[derive(Debug)]
pub(crate) struct Registrar {
    /// One registration at a time, so that two requests with one new series make one meter.
    turn: Mutex<()>,
    /// Start of the current minute and registrations in it.
    window: SyncMutex<(Instant, u32)>,
}

impl Default for Registrar {
    fn default() -> Self {
        Self { turn: Mutex::default(), window: SyncMutex::new((Instant::now(), 0)) }
    }
}

/// The door of the engine: decode, check, store.
#[derive(Clone, Debug)]
pub struct Ingest {
    engine: Arc<Engine>,
    registrar: Arc<Registrar>,
}

impl Ingest {
    pub fn new(engine: Arc<Engine>) -> Self {
        Self { engine, registrar: Arc::default() }
    }

    /// Decodes a body and stores its good rows durably.
    ///
    /// # Errors
    /// When the body as a whole cannot be read, or storing fails; nothing is stored then. Bad rows are no error but in
    /// the report; with `is_atomic` nothing is stored when there is one.
    pub async fn ingest(&self, request: IngestRequest) -> Result<IngestReport> {
        let make = |engine: &Engine, readings: Readings| match readings.len() {
            ..BULK_ROWS_MIN => Write::Prepared(engine.prepare(readings)),
            _ => Write::Bulk(readings),
        };
        let (write, report) = self.decode(request, false, make).await?;
        match write {
            None => {}
            Some(Write::Prepared(write)) => self.engine.write_prepared(write).await?,
            Some(Write::Bulk(readings)) => {
                let mut bulk = self.engine.bulk_import();
                bulk.push(readings, String::new).await?;
                bulk.finish().await?;
            }
        }
        metrics::counter!("wattlake_readings_rejected_total").increment(report.rejected);
        Ok(report)
    }

    /// Decodes a part of a bulk import, which [`Ingest::push`] then takes. Several parts may be decoded at once. A dry run has readings as
    /// well, for [`BulkImport::preview`].
    ///
    /// # Errors
    /// As [`Ingest::ingest`].
    pub async fn decode_part(&self, request: IngestRequest) -> Result<(DecodedPart, IngestReport)> {
        let (readings, report) = self.decode(request, true, |_, readings| readings).await?;
        Ok((DecodedPart(readings), report))
    }

    /// Adds a part to a bulk import, in the order of the file. `state` tells how far the file was read with it.
    ///
    /// # Errors
    /// When sorting fails, for want of disk most likely; the import cannot go on then.
    pub async fn push(
        &self,
        bulk: &mut BulkImport,
        part: DecodedPart,
        state: impl FnOnce() -> String,
    ) -> Result<()> {
        match part.0 {
            Some(readings) => bulk.push(readings, state).await,
            None => Ok(()),
        }
    }

    /// Decodes a body; `make` gets its good rows, still on the thread that decoded them.
    async fn decode<T: Send + 'static>(
        &self,
        request: IngestRequest,
        is_part: bool,
        make: impl Fn(&Engine, Readings) -> T + Clone + Send + 'static,
    ) -> Result<(Option<T>, IngestReport)> {
        let context = Context::new(&self.engine, &request);
        let (is_atomic, is_dry_run) = (request.is_atomic, request.is_dry_run);
        let is_made = is_part || !is_dry_run;
        let site = request.site.clone();
        let (engine, make_complete) = (Arc::clone(&self.engine), make.clone());
        let is_short = request.is_short();
        let work = move || {
            let mut collector = Collector::new(context).with_errors(request.errors_max);
            decode::decode(&request, &mut collector)?;
            let is_complete = is_dry_run || !collector.has_unknown();
            Ok::<_, Error>(if is_complete {
                Decoded::Complete(finish(&engine, collector, is_atomic, is_made, make_complete))
            } else {
                Decoded::Unknown(Box::new(collector))
            })
        };
        let decoded = if is_short {
            work()?
        } else {
            // Decoding is CPU work and a damaged Arrow or Parquet body may panic in its library.
            let decoded = tokio::task::spawn_blocking(work).await;
            decoded.map_err(|_| Error::invalid("the body is damaged: its decoder failed"))??
        };
        Ok(match decoded {
            Decoded::Complete(complete) => complete,
            Decoded::Unknown(collector) if is_atomic && collector.rejected() > 0 => {
                (None, collector.into_nothing())
            }
            Decoded::Unknown(mut collector) => {
                let registered = self.register(&mut collector, &site).await?;
                let (made, mut report) = finish(&self.engine, *collector, is_atomic, is_made, make);
                report.registered = registered;
                (made, report)
            }
        })
    }

    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }
}

/// Bodies with at least so many rows become final files at once instead of going through log and memtable.
const BULK_ROWS_MIN: usize = 500_000;

/// The good rows of a part of a bulk import.
#[derive(Debug)]
pub struct DecodedPart(Option<Readings>);

impl DecodedPart {
    /// Adds what there is of each series: readings, and the times of the first and the last one.
    pub fn count_series(&self, engine: &Engine, counts: &mut BTreeMap<(EntityId, String), SeriesCount>) {
        let Some(readings) = &self.0 else { return };
        let mut by_channel: HashMap<ChannelId, SeriesCount> = HashMap::new();
        for (channel, ts) in readings.channel.iter().zip(&readings.ts) {
            by_channel.entry(*channel).or_default().add(SeriesCount { rows: 1, first: *ts, last: *ts });
        }
        for (channel, count) in by_channel {
            let key = {
                let interned = engine.series().read();
                Arc::clone(interned.key(interned.channel(channel).series))
            };
            counts.entry((key.entity, key.metric.to_string())).or_default().add(count);
        }
    }
}

/// What an import has of a series. Times in microseconds since 1970 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeriesCount {
    pub rows: u64,
    pub first: i64,
    pub last: i64,
}

impl SeriesCount {
    /// Takes others of the same series in.
    pub fn add(&mut self, other: Self) {
        if self.rows == 0 {
            *self = other;
            return;
        }
        self.rows += other.rows;
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
    }
}

/// How rows are stored.
enum Write {
    Prepared(PreparedWrite),
    Bulk(Readings),
}

/// A decoded body: ready, or with entities that nobody knows yet.
enum Decoded<T> {
    Complete((Option<T>, IngestReport)),
    Unknown(Box<Collector>),
}

/// What is to be written, if anything, and the report.
fn finish<T>(
    engine: &Engine,
    collector: Collector,
    is_atomic: bool,
    is_made: bool,
    make: impl Fn(&Engine, Readings) -> T,
) -> (Option<T>, IngestReport) {
    if is_atomic && collector.rejected() > 0 {
        return (None, collector.into_nothing());
    }
    let (readings, mut report) = collector.finish(engine.series());
    if is_atomic && report.rejected > 0 {
        report.accepted = 0;
        return (None, report);
    }
    let made = (is_made && !readings.is_empty()).then(|| make(engine, readings));
    (made, report)
}
