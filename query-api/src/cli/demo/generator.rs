//! Plausible readings as a function of time alone: the same moment always gives the same reading.

use std::{collections::HashMap, f64::consts::TAU};

use jiff::{Timestamp, tz::TimeZone};
use wattlake_catalog::{Category, EntityId, EntityType, Fleet, Quality, SiteId};
use wattlake_engine::{Batch, BatchSeries};

use super::fleet::id;

/// One reading in so many is an estimate.
const ESTIMATED_EVERY: u64 = 97;

/// One entity that reports.
struct Device {
    id: EntityId,
    entity_type: EntityType,
    site: SiteId,
    zone: TimeZone,
    role: Role,
}

/// What an entity's power is made of.
#[derive(Clone, Copy)]
enum Role {
    /// A share of the site's load.
    Load {
        peak: f64,
        share: f64,
        hash: u64,
    },
    /// The whole load with what no meter below explains.
    Main {
        peak: f64,
    },
    Solar {
        peak: f64,
        hash: u64,
    },
    /// Solar power that the load does not take.
    FeedIn {
        solar: f64,
        load: f64,
    },
    Battery {
        capacity: f64,
    },
}

pub(super) struct Generator {
    devices: Vec<Device>,
    counts: (usize, usize, usize),
}

impl Generator {
    pub(super) fn new(fleet: &Fleet) -> Self {
        let mut devices = Vec::new();
        for site in fleet.sites() {
            let zone = site.zone_name().and_then(|name| TimeZone::get(name).ok()).unwrap_or(TimeZone::UTC);
            let capacity_of = |name: &str| {
                let meter = fleet.meter(EntityId(id(&format!("{}/{name}", site.name))));
                meter.and_then(|meter| meter.capacity).unwrap_or(0.0)
            };
            let (load, solar) = (capacity_of("Grid connection"), capacity_of("Solar"));
            for meter in fleet.site_meters(site.id).iter().filter_map(|id| fleet.meter(*id)) {
                let capacity = meter.capacity.unwrap_or(0.0);
                let role_of = |id: EntityId, capacity: f64| match meter.category {
                    Category::Cons if meter.name == "Grid connection" => Role::Main { peak: load },
                    Category::Cons => {
                        Role::Load { peak: load, share: capacity / load, hash: hash(&id.to_string()) }
                    }
                    Category::Prod => Role::Solar { peak: capacity, hash: hash(&id.to_string()) },
                    Category::Inj => Role::FeedIn { solar, load },
                    Category::Stor => Role::Battery { capacity },
                };
                let sources = fleet.sources_of(meter.id);
                let mut add = |id: EntityId, entity_type: EntityType, capacity: f64| {
                    let role = role_of(id, capacity);
                    devices.push(Device { id, entity_type, site: site.id, zone: zone.clone(), role });
                };
                // Solar and battery report by their devices; the others by their meters.
                if matches!(meter.category, Category::Prod | Category::Stor) {
                    for source in sources.iter().filter_map(|id| fleet.source(*id)) {
                        add(source.id, EntityType::EnergySource, source.capacity.unwrap_or(0.0));
                    }
                } else {
                    add(meter.id, EntityType::Meter, capacity);
                }
            }
        }
        let counts = (fleet.sites().count(), fleet.meters().count(), fleet.sources().count());
        Self { devices, counts }
    }

    /// Sites, meters, energy sources.
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        self.counts
    }

    /// Power, interval energy and registers from `from` to `to`, in seconds since 1970.
    pub(super) fn history(&self, from: i64, to: i64, step: i64, created_at: i64) -> Batch {
        let mut rows = Rows { batch: Batch { created_at, ..Batch::default() }, series: HashMap::new() };
        for device in &self.devices {
            let mut at = from;
            while at < to {
                let power = device.power(at);
                let is_estimated = hash(&format!("{}{at}", device.site)).is_multiple_of(ESTIMATED_EVERY);
                let quality = if is_estimated { Quality::Estimated } else { Quality::Good };
                rows.push(device, "power", "kW", at, power, quality);
                match device.role {
                    Role::Battery { .. } => {
                        let hours = step as f64 / 3600.0;
                        rows.push(device, "charge_energy", "kWh", at, power.max(0.0) * hours, quality);
                        rows.push(device, "discharge_energy", "kWh", at, (-power).max(0.0) * hours, quality);
                        rows.push(device, "soc", "%", at, device.state_of_charge(at), quality);
                    }
                    _ => rows.push(device, "energy", "kWh", at, power * step as f64 / 3600.0, quality),
                }
                at += step;
            }
        }
        rows.batch
    }

    /// Power now.
    pub(super) fn live(&self, at: i64) -> Batch {
        let mut rows =
            Rows { batch: Batch { created_at: at * 1_000_000, ..Batch::default() }, series: HashMap::new() };
        for device in &self.devices {
            rows.push(device, "power", "kW", at, device.power(at), Quality::Good);
            if matches!(device.role, Role::Battery { .. }) {
                rows.push(device, "soc", "%", at, device.state_of_charge(at), Quality::Good);
            }
        }
        rows.batch
    }
}

struct Rows {
    batch: Batch,
    series: HashMap<(EntityId, &'static str), u32>,
}

impl Rows {
    fn push(
        &mut self,
        device: &Device,
        metric: &'static str,
        unit: &str,
        at: i64,
        value: f64,
        quality: Quality,
    ) {
        let batch = &mut self.batch;
        let index = *self.series.entry((device.id, metric)).or_insert_with(|| {
            batch.table.push(BatchSeries {
                entity: device.id,
                entity_type: device.entity_type,
                metric: metric.into(),
                unit: unit.into(),
            });
            (batch.table.len() - 1) as u32
        });
        batch.series.push(index);
        batch.ts.push(at * 1_000_000);
        batch.value.push((value * 1000.0).round() / 1000.0);
        batch.quality.push(quality);
    }
}

impl Device {
    /// Hours of the local day, and its number.
    fn local(&self, at: i64) -> (f64, i64) {
        let Ok(time) = Timestamp::from_second(at) else { return (0.0, 0) };
        let seconds = at + i64::from(self.zone.to_offset(time).seconds());
        (seconds.rem_euclid(86_400) as f64 / 3600.0, seconds.div_euclid(86_400))
    }

    /// kW; of a battery positive when it charges.
    fn power(&self, at: i64) -> f64 {
        let (hour, day) = self.local(at);
        match self.role {
            Role::Main { peak } => load_shape(hour, day) * peak * noise(day as u64, at),
            Role::Load { peak, share, hash } => load_shape(hour, day) * peak * share * 0.95 * noise(hash, at),
            Role::Solar { peak, hash } => solar_shape(hour, day) * peak * noise(hash, at).min(1.0),
            Role::FeedIn { solar, load } => {
                (solar_shape(hour, day) * solar - load_shape(hour, day) * load).max(0.0)
            }
            Role::Battery { capacity } => battery_shape(hour) * capacity,
        }
    }

    /// Percent: the integral of the battery's shape over the day.
    fn state_of_charge(&self, at: i64) -> f64 {
        let (hour, _) = self.local(at);
        let steps = (hour * 12.0) as u32;
        let stored: f64 = (0..steps).map(|i| battery_shape(f64::from(i) / 12.0) / 12.0).sum();
        (15.0 + stored * 100.0).clamp(5.0, 100.0)
    }
}

/// Share of the peak load by the hour; weekends are calmer.
fn load_shape(hour: f64, day: i64) -> f64 {
    let peak = |at: f64, width: f64| (-((hour - at) / width).powi(2)).exp();
    let weekday = if (day + 3).rem_euclid(7) >= 5 { 0.7 } else { 1.0 };
    weekday * (0.25 + 0.45 * peak(9.0, 2.5) + 0.55 * peak(18.5, 2.5))
}

/// Share of the peak sun by the hour; some days are cloudy.
fn solar_shape(hour: f64, day: i64) -> f64 {
    let clouds = 0.35 + 0.65 * (hash(&day.to_string()) % 1000) as f64 / 1000.0;
    (TAU * (hour - 6.0) / 24.0).sin().max(0.0).powf(1.3) * clouds
}

/// Charging around noon, discharging in the evening, per kWh of capacity.
fn battery_shape(hour: f64) -> f64 {
    match hour {
        h if (10.0..14.0).contains(&h) => 0.18,
        h if (17.0..21.0).contains(&h) => -0.18,
        _ => 0.0,
    }
}

/// A factor around one that changes every minute.
fn noise(seed: u64, at: i64) -> f64 {
    let minute = at.div_euclid(60);
    0.95 + 0.1 * (hash(&format!("{seed}/{minute}")) % 10_000) as f64 / 10_000.0
}

/// FNV-1a: small, and the same on every machine.
fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
