//! [`Collector`]: takes decoded rows one by one and builds the columns of a batch.

use std::{collections::BTreeMap, sync::Arc};

use ahash::{HashMap, HashMapExt};
use hashbrown::HashTable;
use wattlake_catalog::{EntityId, EntityType, Fleet, Quality, SiteId};
use wattlake_config::LineMapping;

use super::{ERRORS_REPORTED_MAX, IngestReport, IngestRequest, RowError};
use crate::{
    BatchSeries, Conversion, Engine, MetricRegistry,
    batch::Readings,
    files::{HINTS, MeterHint},
    series::{ChannelId, SeriesTable, UNITS_MAX},
};

const METRIC_BYTES_MAX: usize = 128;
const UNIT_BYTES_MAX: usize = 32;
const METADATA_BYTES_MAX: usize = 4096;
/// Longest name of an unknown entity.
pub(super) const EXTERNAL_ID_CHARS_MAX: usize = 200;

/// What rows are checked against.
pub(crate) struct Context {
    pub engine: Arc<Engine>,
    pub fleet: Arc<Fleet>,
    /// Microseconds since 1970 UTC.
    pub now: i64,
    max_ts: i64,
    created_at: i64,
    auto_register: bool,
    pub allowed_sites: Vec<SiteId>,
}

impl Context {
    pub(super) fn new(engine: &Arc<Engine>, request: &IngestRequest) -> Self {
        let ingest = &engine.settings().ingest;
        let now = engine.clock().now_micros();
        let micros = |d: std::time::Duration| i64::try_from(d.as_micros()).unwrap_or(i64::MAX);
        let resolution = micros(ingest.created_at_resolution.0).max(1);
        Self {
            engine: Arc::clone(engine),
            fleet: engine.catalog().fleet(),
            now,
            max_ts: now.saturating_add(micros(ingest.max_future.0)),
            created_at: now - now.rem_euclid(resolution),
            auto_register: ingest.auto_register,
            allowed_sites: request.allowed_sites.clone(),
        }
    }

    pub(crate) fn mappings(&self) -> &[LineMapping] {
        &self.engine.settings().ingest.mappings
    }

    fn metrics(&self) -> &MetricRegistry {
        self.engine.metrics()
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
    code: u32,
    pub conversion: Conversion,
    /// Of an entity that is not known yet.
    is_unknown: bool,
}

/// Rows whose series is only known within the request carry its index with this bit; the others carry a channel.
const LOCAL: u32 = 1 << 31;

impl SeriesSlot {
    /// A series that is interned already.
    pub(crate) fn of_channel(channel: ChannelId, conversion: Conversion) -> Self {
        Self { code: channel.0, conversion, is_unknown: false }
    }
}

/// How rows of a table name a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SeriesName<'a> {
    /// A uuid or an external id.
    pub entity: &'a str,
    pub entity_type: Option<&'a str>,
    pub metric: &'a str,
    pub unit: Option<&'a str>,
}

/// A name that was understood before.
struct NamedSeries {
    hash: u64,
    entity: Box<str>,
    entity_type: Option<Box<str>>,
    metric: Box<str>,
    unit: Option<Box<str>>,
    slot: SeriesSlot,
    /// The place of the one that came after it: rows of most tables come in the same order again and again.
    next: u32,
}

impl NamedSeries {
    fn is(&self, name: &SeriesName<'_>) -> bool {
        *self.entity == *name.entity
            && *self.metric == *name.metric
            && self.unit.as_deref() == name.unit
            && self.entity_type.as_deref() == name.entity_type
    }
}

/// Collects the rows of one request.
pub(crate) struct Collector {
    pub context: Context,
    pub(super) slots: Vec<Slot>,
    slot_index: HashMap<String, u32>,
    series: Vec<(u32, String, String)>,
    series_index: HashMap<(u32, String, String), SeriesSlot>,
    /// Series by the texts that rows name them with.
    named: Vec<NamedSeries>,
    named_index: HashTable<u32>,
    /// The place of the last one.
    last_named: u32,
    hasher: ahash::RandomState,
    /// Channels may be local codes until [`Collector::finish`].
    rows: Readings,
    /// What a file tells of meters that may have to be registered, by their names.
    pub(super) hints: BTreeMap<String, MeterHint>,
    errors_max: usize,
    /// Row and row number in the request of those whose entity is not known yet.
    unknown_rows: Vec<(u32, u64)>,
    report: IngestReport,
}

impl Collector {
    pub(super) fn new(context: Context) -> Self {
        let rows = Readings { created_at: context.created_at, ..Readings::default() };
        Self {
            context,
            slots: Vec::new(),
            slot_index: HashMap::new(),
            series: Vec::new(),
            series_index: HashMap::new(),
            named: Vec::new(),
            named_index: HashTable::new(),
            last_named: 0,
            hasher: ahash::RandomState::new(),
            rows,
            hints: BTreeMap::new(),
            errors_max: ERRORS_REPORTED_MAX,
            unknown_rows: Vec::new(),
            report: IngestReport::default(),
        }
    }

    /// Reports so many errors in full.
    pub(super) fn with_errors(mut self, errors_max: usize) -> Self {
        self.errors_max = errors_max;
        self
    }

    /// Takes over what the schema of a table tells of meters.
    pub(crate) fn take_hints(&mut self, metadata: &std::collections::HashMap<String, String>) {
        let hints = metadata.get(HINTS).and_then(|text| serde_json::from_str::<BTreeMap<_, _>>(text).ok());
        self.hints.extend(hints.into_iter().flatten());
    }

    /// Makes room for about this many rows.
    pub(crate) fn reserve(&mut self, rows: usize) {
        self.rows.channel.reserve(rows);
        self.rows.ts.reserve(rows);
        self.rows.value.reserve(rows);
        self.rows.quality.reserve(rows);
    }

    /// Reports a bad row.
    pub(crate) fn refuse(&mut self, row: u64, kind: &'static str, message: impl Into<String>) {
        self.report.rejected += 1;
        if self.report.errors.len() < self.errors_max {
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
        let RawReading { entity, entity_type, metric, unit, .. } = *reading;
        let series = match self.named_series(&SeriesName { entity, entity_type, metric, unit }) {
            Ok(series) => series,
            Err((kind, message)) => return self.refuse(row, kind, message),
        };
        let quality = match parse_quality(reading.quality) {
            Ok(quality) => quality,
            Err(message) => return self.refuse(row, "invalid", message),
        };
        self.push_value(row, series, reading.ts, reading.value, quality, reading.metadata);
    }

    /// The series that a row of a table names.
    pub(crate) fn named_series(
        &mut self,
        name: &SeriesName<'_>,
    ) -> Result<SeriesSlot, (&'static str, String)> {
        let last = self.last_named as usize;
        let guess = self.named.get(last).and_then(|last| self.named.get(last.next as usize));
        if let Some(known) = guess.filter(|known| known.is(name)) {
            self.last_named = self.named[last].next;
            return Ok(known.slot);
        }
        let hash = self.hasher.hash_one(name);
        if let Some(place) = self.named_index.find(hash, |place| self.named[*place as usize].is(name)) {
            self.last_named = *place;
            self.named[last].next = *place;
            return Ok(self.named[*place as usize].slot);
        }
        let entity = self.structured_entity(name.entity, name.entity_type)?;
        let slot = self.series(entity, name.metric, name.unit)?;
        let named = NamedSeries {
            hash,
            entity: name.entity.into(),
            entity_type: name.entity_type.map(Box::from),
            metric: name.metric.into(),
            unit: name.unit.map(Box::from),
            slot,
            next: 0,
        };
        let place = self.named.len() as u32;
        self.named.push(named);
        self.named_index.insert_unique(hash, place, |place| self.named[*place as usize].hash);
        self.named[last].next = place;
        self.last_named = place;
        Ok(slot)
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
            self.rows.metadata.push((self.rows.ts.len() as u32, text.into()));
        }
        if series.is_unknown {
            self.unknown_rows.push((self.rows.ts.len() as u32, row));
        }
        self.rows.channel.push(ChannelId(series.code));
        self.rows.ts.push(ts);
        // -0.0 and 0.0 are one reading; keeping both would make a re-sent row a correction.
        self.rows.value.push(value + 0.0);
        self.rows.quality.push(quality);
    }

    /// The entity, metric and normalised unit of a series of this request whose entity is known.
    pub(crate) fn known_series(&self, series: SeriesSlot) -> Option<BatchSeries> {
        let (entity, metric, unit) = &self.series[(series.code & !LOCAL) as usize];
        match self.slots[*entity as usize] {
            Slot::Known(entity, entity_type) => {
                Some(BatchSeries { entity, entity_type, metric: metric.clone(), unit: unit.clone() })
            }
            Slot::Unknown(_) | Slot::Refused { .. } => None,
        }
    }

    /// The entity that JSON, CSV, Arrow and Parquet name by uuid or external id.
    fn structured_entity(
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
            self.context.metrics().normalise(metric, unit).map_err(|message| ("unknown_unit", message))?;
        let unit = unit.to_owned();
        if !self.context.engine.series().takes_unit(&unit) {
            let message = format!("unit `{unit}` is new and there are {UNITS_MAX} different ones already");
            return Err(("too_many_units", message));
        }
        let is_unknown = matches!(self.slots[entity as usize], Slot::Unknown(_));
        let series = SeriesSlot { code: self.series.len() as u32 | LOCAL, conversion, is_unknown };
        self.series.push((entity, metric.to_owned(), unit));
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

    /// The rows whose entities are known by now, and the report. Entities that are still unknown are only checked (dry
    /// run): their rows count as good.
    pub(super) fn finish(mut self, series: &SeriesTable) -> (Readings, IngestReport) {
        let mut rows = std::mem::take(&mut self.rows);
        // Registration may have refused some entities after their rows were taken.
        let mut refused = Vec::new();
        for (row, number) in std::mem::take(&mut self.unknown_rows) {
            let (entity, ..) = self.series[(rows.channel[row as usize].0 & !LOCAL) as usize];
            if let Slot::Refused { kind, message } = &self.slots[entity as usize] {
                let (kind, message) = (*kind, message.clone());
                self.refuse(number, kind, message);
                refused.push(row);
            }
        }
        if !refused.is_empty() {
            rows = without(rows, &refused);
        }
        let mut unknown = Vec::new();
        for slot in &mut self.slots {
            if let Slot::Unknown(entity) = slot {
                // Of a dry run: an id that other parts of the same import give it as well.
                let id = EntityId(uuid::Uuid::new_v5(&uuid::Uuid::nil(), entity.name.as_bytes()));
                unknown.push((id, entity.name.clone()));
                *slot = Slot::Known(id, EntityType::Meter);
            }
        }
        let nobody = (EntityId(uuid::Uuid::nil()), EntityType::Meter);
        let table: Vec<_> = std::mem::take(&mut self.series)
            .into_iter()
            .map(|(entity, metric, unit)| {
                let (entity, entity_type) = match self.slots[entity as usize] {
                    Slot::Known(id, entity_type) => (id, entity_type),
                    Slot::Unknown(_) | Slot::Refused { .. } => nobody,
                };
                BatchSeries { entity, entity_type, metric, unit }
            })
            .collect();
        if !table.is_empty() {
            let channels = series.intern(&table);
            for channel in &mut rows.channel {
                if channel.0 & LOCAL != 0 {
                    *channel = channels[(channel.0 & !LOCAL) as usize];
                }
            }
        }
        self.report.accepted = rows.len() as u64;
        self.report.unknown = unknown;
        (rows, self.report)
    }
}

/// Rows without some of them; `removed` ascends.
fn without(rows: Readings, removed: &[u32]) -> Readings {
    fn column<T>(mut values: Vec<T>, removed: &[u32]) -> Vec<T> {
        let mut row = 0;
        values.retain(|_| {
            row += 1;
            removed.binary_search(&(row - 1)).is_err()
        });
        values
    }
    let new_row = |row: u32| row - removed.partition_point(|r| *r < row) as u32;
    Readings {
        channel: column(rows.channel, removed),
        ts: column(rows.ts, removed),
        value: column(rows.value, removed),
        quality: column(rows.quality, removed),
        metadata: rows
            .metadata
            .into_iter()
            .filter(|(row, _)| removed.binary_search(row).is_err())
            .map(|(row, text)| (new_row(row), text))
            .collect(),
        created_at: rows.created_at,
        progress: rows.progress,
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
