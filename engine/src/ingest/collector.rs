//! [`Collector`]: takes decoded rows one by one and builds the columns of a batch.

use std::sync::Arc;

use ahash::{HashMap, HashMapExt};
use wattlake_catalog::{EntityId, EntityType, Fleet, Quality, SiteId};
use wattlake_config::LineMapping;

use super::{ERRORS_REPORTED_MAX, IngestReport, IngestRequest, RowError};
use crate::{Batch, BatchSeries, Conversion, Engine, MetricRegistry};

const METRIC_BYTES_MAX: usize = 128;
const UNIT_BYTES_MAX: usize = 32;
const METADATA_BYTES_MAX: usize = 4096;
/// Longest name of an unknown entity.
pub(super) const EXTERNAL_ID_CHARS_MAX: usize = 200;

/// What rows are checked against.
pub(crate) struct Context {
    pub fleet: Arc<Fleet>,
    pub metrics: MetricRegistry,
    pub mappings: Vec<LineMapping>,
    /// Microseconds since 1970 UTC.
    pub now: i64,
    max_ts: i64,
    created_at: i64,
    auto_register: bool,
    allowed_sites: Vec<SiteId>,
}

impl Context {
    pub(super) fn new(engine: &Engine, request: &IngestRequest) -> Self {
        let ingest = &engine.settings().ingest;
        let now = engine.clock().now_micros();
        let micros = |d: std::time::Duration| i64::try_from(d.as_micros()).unwrap_or(i64::MAX);
        let resolution = micros(ingest.created_at_resolution.0).max(1);
        Self {
            fleet: engine.catalog().fleet(),
            metrics: engine.metrics().clone(),
            mappings: ingest.mappings.clone(),
            now,
            max_ts: now.saturating_add(micros(ingest.max_future.0)),
            created_at: now - now.rem_euclid(resolution),
            auto_register: ingest.auto_register,
            allowed_sites: request.allowed_sites.clone(),
        }
    }
}

/// A row as a decoder found it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawReading<'a> {
    /// A uuid or an external id.
    pub entity: &'a str,
    pub entity_type: Option<&'a str>,
    /// Microseconds since 1970 UTC.
    pub ts: i64,
    pub metric: &'a str,
    pub value: f64,
    pub unit: Option<&'a str>,
    pub quality: Option<&'a str>,
    /// JSON text.
    pub metadata: Option<&'a str>,
}

/// An entity as the request names it.
#[derive(Clone, Debug)]
pub(super) enum Slot {
    Known(EntityId, EntityType),
    Unknown(Unknown),
    Refused { kind: &'static str, message: String },
}

/// An entity to be registered as a meter.
#[derive(Clone, Debug)]
pub(super) struct Unknown {
    /// The uuid that the client gave it.
    pub id: Option<EntityId>,
    pub external_id: Option<String>,
    pub name: String,
}

/// A series of the request, ready to take readings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SeriesSlot {
    index: u32,
    conversion: Conversion,
}

/// Collects the rows of one request.
pub(crate) struct Collector {
    pub context: Context,
    pub(super) slots: Vec<Slot>,
    slot_index: HashMap<String, u32>,
    series: Vec<(u32, String, String)>,
    series_index: HashMap<(u32, String, String), SeriesSlot>,
    rows: Batch,
    row_numbers: Vec<u64>,
    report: IngestReport,
}

impl Collector {
    pub(super) fn new(context: Context) -> Self {
        let rows = Batch { created_at: context.created_at, ..Batch::default() };
        Self {
            context,
            slots: Vec::new(),
            slot_index: HashMap::new(),
            series: Vec::new(),
            series_index: HashMap::new(),
            rows,
            row_numbers: Vec::new(),
            report: IngestReport::default(),
        }
    }

    /// Reports a bad row.
    pub(crate) fn refuse(&mut self, row: u64, kind: &'static str, message: impl Into<String>) {
        self.report.rejected += 1;
        if self.report.errors.len() < ERRORS_REPORTED_MAX {
            self.report.errors.push(RowError { row, kind: kind.into(), message: message.into() });
        }
    }

    pub(crate) fn skip_field(&mut self) {
        self.report.skipped_fields += 1;
    }

    pub(super) fn rejected(&self) -> u64 {
        self.report.rejected
    }

    /// Takes a reading, or reports why it cannot be stored.
    pub(crate) fn push(&mut self, row: u64, reading: &RawReading<'_>) {
        let entity = match self.structured_entity(reading.entity, reading.entity_type) {
            Ok(entity) => entity,
            Err((kind, message)) => return self.refuse(row, kind, message),
        };
        let series = match self.series(entity, reading.metric, reading.unit) {
            Ok(series) => series,
            Err((kind, message)) => return self.refuse(row, kind, message),
        };
        let quality = match parse_quality(reading.quality) {
            Ok(quality) => quality,
            Err(message) => return self.refuse(row, "invalid", message),
        };
        self.push_value(row, series, reading.ts, reading.value, quality, reading.metadata);
    }

    /// Takes a reading of a series that is known already.
    pub(crate) fn push_value(
        &mut self,
        row: u64,
        series: SeriesSlot,
        ts: i64,
        value: f64,
        quality: Quality,
        metadata: Option<&str>,
    ) {
        if ts < 0 {
            return self.refuse(row, "invalid", "timestamp lies before 1970-01-01; check ?precision=");
        }
        if ts > self.context.max_ts {
            let message =
                "timestamp lies too far in the future (ingest.max_future); check the clock and ?precision=";
            return self.refuse(row, "future_timestamp", message);
        }
        let value = series.conversion.apply(value);
        if !value.is_finite() {
            return self.refuse(row, "invalid", format!("value {value} is not a finite number"));
        }
        if let Some(text) = metadata {
            if text.len() > METADATA_BYTES_MAX {
                let message = format!("metadata: at most {METADATA_BYTES_MAX} bytes, found {}", text.len());
                return self.refuse(row, "invalid", message);
            }
            self.rows.metadata.push((self.rows.ts.len() as u32, text.to_owned()));
        }
        self.rows.series.push(series.index);
        self.rows.ts.push(ts);
        // -0.0 and 0.0 are one reading; keeping both would make a re-sent row a correction.
        self.rows.value.push(value + 0.0);
        self.rows.quality.push(quality);
        self.row_numbers.push(row);
    }

    /// The entity that JSON, CSV, Arrow and Parquet name by uuid or external id.
    pub(crate) fn structured_entity(
        &mut self,
        text: &str,
        entity_type: Option<&str>,
    ) -> Result<u32, (&'static str, String)> {
        let slot = match self.slot_index.get(text) {
            Some(slot) => *slot,
            None => {
                let slot = match text.parse::<EntityId>() {
                    Ok(id) if self.context.fleet.entity(id).is_none() => Slot::Refused {
                        kind: "unknown_entity",
                        message: format!(
                            "entity {id} is not in the catalog; create the meter or energy source first"
                        ),
                    },
                    Ok(id) => self.known(id),
                    Err(_) => match self.context.fleet.by_external_id(text) {
                        Some(id) => self.known(id),
                        None if text.trim().is_empty() => {
                            return Err(("invalid", "entity id is empty".to_owned()));
                        }
                        None => self.unknown(Unknown {
                            id: None,
                            external_id: Some(text.to_owned()),
                            name: text.to_owned(),
                        }),
                    },
                };
                self.add_slot(text, slot)
            }
        };
        if let Some(stated) = entity_type
            && let Slot::Known(id, actual) = &self.slots[slot as usize]
        {
            let stated: EntityType = stated.parse().map_err(|error| ("invalid", format!("{error}")))?;
            if stated != *actual {
                return Err(("invalid", format!("entity {id} is a {actual}, not a {stated}")));
            }
        }
        Ok(slot)
    }

    /// The entity of a line: by uuid or external id, else to be registered under `external_id`.
    pub(crate) fn line_entity(&mut self, named: Option<&str>, external_id: String, name: String) -> u32 {
        let key = named.unwrap_or(&external_id).to_owned();
        if let Some(slot) = self.slot_index.get(&key) {
            return *slot;
        }
        let fleet = &self.context.fleet;
        let slot = match named.map(str::parse::<EntityId>) {
            Some(Ok(id)) if fleet.entity(id).is_some() => self.known(id),
            Some(Ok(id)) => self.unknown(Unknown { id: Some(id), external_id: None, name }),
            Some(Err(_)) | None => match fleet.by_external_id(&key) {
                Some(id) => self.known(id),
                None => self.unknown(Unknown { id: None, external_id: Some(key.clone()), name }),
            },
        };
        self.add_slot(&key, slot)
    }

    fn add_slot(&mut self, key: &str, slot: Slot) -> u32 {
        let index = self.slots.len() as u32;
        self.slots.push(slot);
        self.slot_index.insert(key.to_owned(), index);
        index
    }

    fn known(&self, id: EntityId) -> Slot {
        let fleet = &self.context.fleet;
        let allowed = &self.context.allowed_sites;
        if !allowed.is_empty() && !fleet.site_of(id).is_some_and(|site| allowed.contains(&site.id)) {
            let message = format!("entity {id} is not on a site that this token may write to");
            return Slot::Refused { kind: "forbidden", message };
        }
        match fleet.entity(id) {
            Some(entity) => Slot::Known(id, entity.entity_type()),
            None => Slot::Refused { kind: "unknown_entity", message: format!("entity {id} was deleted") },
        }
    }

    fn unknown(&self, unknown: Unknown) -> Slot {
        let name = unknown.external_id.clone().unwrap_or_else(|| format!("{:?}", unknown.id));
        if !self.context.auto_register {
            let message = format!("entity `{name}` is not in the catalog and ingest.auto_register is off");
            return Slot::Refused { kind: "unknown_entity", message };
        }
        if !self.context.allowed_sites.is_empty() {
            let message = format!("entity `{name}` is not in the catalog and this token may not register it");
            return Slot::Refused { kind: "forbidden", message };
        }
        if name.chars().any(char::is_control) || name.chars().count() > EXTERNAL_ID_CHARS_MAX {
            let message = format!(
                "an external id has at most {EXTERNAL_ID_CHARS_MAX} characters, no control characters"
            );
            return Slot::Refused { kind: "invalid", message };
        }
        Slot::Unknown(unknown)
    }

    /// The series of an entity, with its unit normalised.
    pub(crate) fn series(
        &mut self,
        entity: u32,
        metric: &str,
        unit: Option<&str>,
    ) -> Result<SeriesSlot, (&'static str, String)> {
        if let Slot::Refused { kind, message } = &self.slots[entity as usize] {
            return Err((*kind, message.clone()));
        }
        let key = (entity, metric.to_owned(), unit.unwrap_or_default().to_owned());
        if let Some(series) = self.series_index.get(&key) {
            return Ok(*series);
        }
        check_text("metric", metric, METRIC_BYTES_MAX)?;
        if let Some(unit) = unit.filter(|unit| !unit.is_empty()) {
            check_text("unit", unit, UNIT_BYTES_MAX)?;
        }
        let (unit, conversion) =
            self.context.metrics.normalise(metric, unit).map_err(|message| ("unknown_unit", message))?;
        let series = SeriesSlot { index: self.series.len() as u32, conversion };
        self.series.push((entity, metric.to_owned(), unit.to_owned()));
        self.series_index.insert(key, series);
        Ok(series)
    }

    pub(super) fn has_unknown(&self) -> bool {
        self.slots.iter().any(|slot| matches!(slot, Slot::Unknown(_)))
    }

    /// The report of a request of which nothing is stored.
    pub(super) fn into_nothing(self) -> IngestReport {
        IngestReport { accepted: 0, ..self.report }
    }

    /// The batch of the rows whose entities are known by now, and the report.
    pub(super) fn finish(mut self) -> (Batch, IngestReport) {
        // Entities that are still unknown are only checked (dry run): their rows count as good.
        let entities: Vec<_> = self
            .slots
            .iter()
            .map(|slot| match slot {
                Slot::Known(id, entity_type) => Ok((*id, *entity_type)),
                Slot::Unknown(_) => Ok((EntityId(uuid::Uuid::nil()), EntityType::Meter)),
                Slot::Refused { kind, message } => Err((*kind, message.clone())),
            })
            .collect();
        let rows = std::mem::take(&mut self.rows);
        let is_good = |row: usize| entities[self.series[rows.series[row] as usize].0 as usize].is_ok();
        let good: Vec<bool> = (0..rows.len()).map(is_good).collect();
        let mut batch = rows;
        if good.iter().any(|good| !good) {
            for (row, _) in good.iter().enumerate().filter(|(_, good)| !**good) {
                let entity = self.series[batch.series[row] as usize].0;
                if let Err((kind, message)) = &entities[entity as usize] {
                    self.refuse(self.row_numbers[row], kind, message.clone());
                }
            }
            batch = keep(batch, &good);
        }
        batch.table = self
            .series
            .into_iter()
            .map(|(entity, metric, unit)| {
                let (entity, entity_type) = entities[entity as usize]
                    .clone()
                    .unwrap_or((EntityId(uuid::Uuid::nil()), EntityType::Meter));
                BatchSeries { entity, entity_type, metric, unit }
            })
            .collect();
        self.report.accepted = batch.len() as u64;
        (batch, self.report)
    }
}

/// The rows of a batch that are marked.
fn keep(batch: Batch, good: &[bool]) -> Batch {
    fn column<T>(values: Vec<T>, good: &[bool]) -> Vec<T> {
        values.into_iter().zip(good).filter(|(_, good)| **good).map(|(value, _)| value).collect()
    }
    let new_row: Vec<u32> = good
        .iter()
        .scan(0, |next, good| {
            let row = *next;
            *next += u32::from(*good);
            Some(row)
        })
        .collect();
    Batch {
        series: column(batch.series, good),
        ts: column(batch.ts, good),
        value: column(batch.value, good),
        quality: column(batch.quality, good),
        metadata: batch
            .metadata
            .into_iter()
            .filter(|(row, _)| good[*row as usize])
            .map(|(row, text)| (new_row[row as usize], text))
            .collect(),
        ..batch
    }
}

/// The quality that a text names; good when there is none.
pub(crate) fn parse_quality(text: Option<&str>) -> Result<Quality, String> {
    match text {
        None | Some("") => Ok(Quality::Good),
        Some(text) => text.parse().map_err(|error: wattlake_catalog::Error| error.message),
    }
}

fn check_text(what: &str, text: &str, max: usize) -> Result<(), (&'static str, String)> {
    if text.is_empty() || text.len() > max || text.chars().any(char::is_control) {
        let message = format!("{what}: 1 to {max} bytes without control characters, found {}", text.len());
        return Err(("invalid", message));
    }
    Ok(())
}
