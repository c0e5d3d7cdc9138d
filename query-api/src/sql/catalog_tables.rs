//! The fleet as SQL tables: `sites`, `meters`, `energy_sources`, `meter_tree`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use arrow::{
    array::{
        ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringViewArray,
        TimestampMicrosecondArray,
    },
    error::ArrowError,
};
use datafusion::{catalog::TableProvider, datasource::MemTable, error::Result};
use jiff::Timestamp;
use wattlake_catalog::{Access, Fleet};

type Columns = Vec<(&'static str, ArrayRef, bool)>;

/// The tables of the newest fleet, as those see them who see all: they are not made again for each query.
#[derive(Default)]
pub(crate) struct FleetTables(Mutex<Option<Kept>>);

/// Of one state of the fleet.
struct Kept {
    fleet: Arc<Fleet>,
    tables: HashMap<String, Arc<dyn TableProvider>>,
}

impl FleetTables {
    /// `None`: there is no such table.
    pub(super) fn table(
        &self,
        name: &str,
        fleet: &Arc<Fleet>,
        access: &Access,
    ) -> Result<Option<Arc<dyn TableProvider>>> {
        let sees_all = access.sites.is_empty();
        if sees_all && let Some(table) = self.kept(name, fleet) {
            return Ok(Some(table));
        }
        let batch = match name {
            "sites" => sites(fleet, access)?,
            "meters" => meters(fleet, access)?,
            "energy_sources" => energy_sources(fleet, access)?,
            "meter_tree" => meter_tree(fleet, access)?,
            _ => return Ok(None),
        };
        let table: Arc<dyn TableProvider> = Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?);
        if sees_all {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.as_ref().is_none_or(|kept| !Arc::ptr_eq(&kept.fleet, fleet)) {
                *kept = Some(Kept { fleet: Arc::clone(fleet), tables: HashMap::new() });
            }
            kept.iter_mut().for_each(|kept| {
                kept.tables.insert(name.to_owned(), Arc::clone(&table));
            });
        }
        Ok(Some(table))
    }

    fn kept(&self, name: &str, fleet: &Arc<Fleet>) -> Option<Arc<dyn TableProvider>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = kept.as_ref().filter(|kept| Arc::ptr_eq(&kept.fleet, fleet))?;
        kept.tables.get(name).cloned()
    }
}

fn text<T: AsRef<str>>(values: impl Iterator<Item = Option<T>>) -> ArrayRef {
    Arc::new(StringViewArray::from_iter(values))
}

fn required<T: ToString>(values: impl Iterator<Item = T>) -> ArrayRef {
    Arc::new(StringViewArray::from_iter_values(values.map(|value| value.to_string())))
}

fn numbers(values: impl Iterator<Item = Option<f64>>) -> ArrayRef {
    Arc::new(values.collect::<Float64Array>())
}

fn booleans(values: impl Iterator<Item = bool>) -> ArrayRef {
    Arc::new(values.map(Some).collect::<BooleanArray>())
}

fn times(values: impl Iterator<Item = Timestamp>) -> ArrayRef {
    let micros = values.map(|time| time.as_microsecond());
    Arc::new(TimestampMicrosecondArray::from_iter_values(micros).with_timezone("UTC"))
}

fn batch(columns: Columns) -> std::result::Result<RecordBatch, ArrowError> {
    RecordBatch::try_from_iter_with_nullable(columns)
}

pub(super) fn sites(fleet: &Fleet, access: &Access) -> std::result::Result<RecordBatch, ArrowError> {
    let all = || fleet.sites().filter(|site| access.allows_site(site.id));
    batch(vec![
        ("id", required(all().map(|s| s.id)), false),
        ("name", required(all().map(|s| &s.name)), false),
        ("location", text(all().map(|s| s.location.as_deref())), true),
        ("industry_type", text(all().map(|s| s.industry_type.map(|t| t.as_str()))), true),
        ("description", text(all().map(|s| s.description.as_deref())), true),
        ("time_zone", text(all().map(|s| s.zone_name())), true),
        ("metadata", required(all().map(|s| serde_json::Value::Object(s.metadata.clone()))), false),
        ("active", booleans(all().map(|s| s.active)), false),
        ("created_at", times(all().map(|s| s.created_at)), false),
        ("updated_at", times(all().map(|s| s.updated_at)), false),
    ])
}

pub(super) fn meters(fleet: &Fleet, access: &Access) -> std::result::Result<RecordBatch, ArrowError> {
    let all = || fleet.meters().filter(|meter| access.allows_site(meter.site_id));
    batch(vec![
        ("id", required(all().map(|m| m.id)), false),
        ("site_id", required(all().map(|m| m.site_id)), false),
        ("parent_meter_id", text(all().map(|m| m.parent_meter_id.map(|id| id.to_string()))), true),
        ("name", required(all().map(|m| &m.name)), false),
        ("category", required(all().map(|m| m.category)), false),
        ("reading_frequency", required(all().map(|m| m.reading_frequency)), false),
        ("capacity", numbers(all().map(|m| m.capacity)), true),
        ("description", text(all().map(|m| m.description.as_deref())), true),
        ("metadata", required(all().map(|m| serde_json::Value::Object(m.metadata.clone()))), false),
        ("active", booleans(all().map(|m| m.active)), false),
        ("created_at", times(all().map(|m| m.created_at)), false),
        ("updated_at", times(all().map(|m| m.updated_at)), false),
    ])
}

pub(super) fn energy_sources(fleet: &Fleet, access: &Access) -> std::result::Result<RecordBatch, ArrowError> {
    let all = || {
        fleet
            .sources()
            .filter(|source| fleet.site_of(source.id).is_some_and(|site| access.allows_site(site.id)))
    };
    batch(vec![
        ("id", required(all().map(|s| s.id)), false),
        ("meter_id", required(all().map(|s| s.meter_id)), false),
        ("name", required(all().map(|s| &s.name)), false),
        ("source_type", required(all().map(|s| &s.source_type)), false),
        ("capacity", numbers(all().map(|s| s.capacity)), true),
        ("metadata", required(all().map(|s| serde_json::Value::Object(s.metadata.clone()))), false),
        ("active", booleans(all().map(|s| s.active)), false),
        ("created_at", times(all().map(|s| s.created_at)), false),
        ("updated_at", times(all().map(|s| s.updated_at)), false),
    ])
}

/// Every meter with itself (depth 0) and everything below it.
pub(super) fn meter_tree(fleet: &Fleet, access: &Access) -> std::result::Result<RecordBatch, ArrowError> {
    let mut rows = Vec::new();
    for meter in fleet.meters().filter(|meter| access.allows_site(meter.site_id)) {
        let mut level = vec![meter.id];
        let mut depth = 0i64;
        while !level.is_empty() {
            rows.extend(level.iter().map(|below| (meter.id, *below, depth)));
            level = level.iter().flat_map(|id| fleet.children(*id)).copied().collect();
            depth += 1;
        }
    }
    batch(vec![
        ("ancestor", required(rows.iter().map(|row| row.0)), false),
        ("descendant", required(rows.iter().map(|row| row.1)), false),
        ("depth", Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.2))), false),
    ])
}
