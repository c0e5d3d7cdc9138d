//! Metrics and units: what a metric's numbers mean, and the unit that they are stored in.
//!
//! Units are normalised at the door with the unit that the sender states. Power and energy are never converted into
//! each other.

use std::collections::BTreeMap;

use wattlake_config::{MetricDefinition, MetricKind};

/// How a metric is stored and combined.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    pub kind: MetricKind,
    /// The canonical unit.
    pub unit: String,
    /// Combine entities by a mean weighted with their capacity (state of charge).
    pub weight_by_capacity: bool,
}

/// A unit's dimension, and how to get to the dimension's base unit: `base = value * factor + offset`.
struct Unit {
    names: &'static [&'static str],
    dimension: &'static str,
    factor: f64,
    offset: f64,
}

const fn unit(names: &'static [&'static str], dimension: &'static str, factor: f64) -> Unit {
    Unit { names, dimension, factor, offset: 0.0 }
}

/// The first name of a unit is its canonical spelling.
const UNITS: &[Unit] = &[
    unit(&["kW"], "power", 1.0),
    unit(&["W"], "power", 1e-3),
    unit(&["mW"], "power", 1e-6),
    unit(&["MW"], "power", 1e3),
    unit(&["GW"], "power", 1e6),
    unit(&["kWh"], "energy", 1.0),
    unit(&["Wh"], "energy", 1e-3),
    unit(&["MWh"], "energy", 1e3),
    unit(&["GWh"], "energy", 1e6),
    unit(&["J"], "energy", 1.0 / 3.6e6),
    unit(&["kJ"], "energy", 1.0 / 3600.0),
    unit(&["MJ"], "energy", 1.0 / 3.6),
    unit(&["GJ"], "energy", 1000.0 / 3.6),
    unit(&["kvar"], "reactive power", 1.0),
    unit(&["var"], "reactive power", 1e-3),
    unit(&["Mvar"], "reactive power", 1e3),
    unit(&["kVA"], "apparent power", 1.0),
    unit(&["VA"], "apparent power", 1e-3),
    unit(&["MVA"], "apparent power", 1e3),
    unit(&["kvarh"], "reactive energy", 1.0),
    unit(&["kVAh"], "apparent energy", 1.0),
    unit(&["V"], "voltage", 1.0),
    unit(&["mV"], "voltage", 1e-3),
    unit(&["kV"], "voltage", 1e3),
    unit(&["A"], "current", 1.0),
    unit(&["mA"], "current", 1e-3),
    unit(&["kA"], "current", 1e3),
    unit(&["Hz"], "frequency", 1.0),
    unit(&["mHz"], "frequency", 1e-3),
    unit(&["%", "percent", "pct"], "share", 1.0),
    unit(&["ratio", "1"], "share", 100.0),
    unit(&["degC", "°C", "C", "celsius"], "temperature", 1.0),
    Unit { names: &["K", "kelvin"], dimension: "temperature", factor: 1.0, offset: -273.15 },
    Unit {
        names: &["degF", "°F", "F", "fahrenheit"],
        dimension: "temperature",
        factor: 5.0 / 9.0,
        offset: -160.0 / 9.0,
    },
    unit(&["W/m2", "W/m²"], "irradiance", 1.0),
    unit(&["kW/m2", "kW/m²"], "irradiance", 1e3),
    unit(&["m3", "m³"], "volume", 1.0),
    unit(&["l", "L"], "volume", 1e-3),
];

fn find_unit(name: &str) -> Option<&'static Unit> {
    UNITS.iter().find(|unit| unit.names.contains(&name))
}

/// A linear change of unit: `stored = stated * factor + offset`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conversion {
    factor: f64,
    offset: f64,
}

impl Conversion {
    pub const IDENTITY: Self = Self { factor: 1.0, offset: 0.0 };

    /// The conversion between two units of one dimension.
    pub fn between(from: &str, to: &str) -> Option<Self> {
        if from == to {
            return Some(Self::IDENTITY);
        }
        let (from, to) = (find_unit(from)?, find_unit(to)?);
        (from.dimension == to.dimension)
            .then(|| Self { factor: from.factor / to.factor, offset: (from.offset - to.offset) / to.factor })
    }

    pub fn apply(self, value: f64) -> f64 {
        if self == Self::IDENTITY { value } else { value * self.factor + self.offset }
    }
}

const EXTENSIVE: MetricKind = MetricKind::GaugeExtensive;
const INTENSIVE: MetricKind = MetricKind::GaugeIntensive;
const INTERVAL: MetricKind = MetricKind::Interval;
const REGISTER: MetricKind = MetricKind::Register;

const BUILT_IN: &[(&str, MetricKind, &str)] = &[
    ("power", EXTENSIVE, "kW"),
    ("consumption_power", EXTENSIVE, "kW"),
    ("grid_power", EXTENSIVE, "kW"),
    ("battery_power", EXTENSIVE, "kW"),
    ("import_power", EXTENSIVE, "kW"),
    ("export_power", EXTENSIVE, "kW"),
    ("charge_power", EXTENSIVE, "kW"),
    ("discharge_power", EXTENSIVE, "kW"),
    ("reactive_power", EXTENSIVE, "kvar"),
    ("apparent_power", EXTENSIVE, "kVA"),
    ("self_consumption_power", EXTENSIVE, "kW"),
    ("soc", INTENSIVE, "%"),
    ("temperature", INTENSIVE, "degC"),
    ("voltage", INTENSIVE, "V"),
    ("current", INTENSIVE, "A"),
    ("frequency", INTENSIVE, "Hz"),
    ("irradiance", INTENSIVE, "W/m2"),
    ("energy", INTERVAL, "kWh"),
    ("consumption_energy", INTERVAL, "kWh"),
    ("import_energy", INTERVAL, "kWh"),
    ("export_energy", INTERVAL, "kWh"),
    ("charge_energy", INTERVAL, "kWh"),
    ("discharge_energy", INTERVAL, "kWh"),
    ("net_energy", INTERVAL, "kWh"),
    ("gas_energy", INTERVAL, "kWh"),
    ("self_consumption_energy", INTERVAL, "kWh"),
    ("reactive_energy", INTERVAL, "kvarh"),
    ("apparent_energy", INTERVAL, "kVAh"),
    ("gas_volume", INTERVAL, "m3"),
    ("water_volume", INTERVAL, "m3"),
    ("day_net_energy", INTERVAL, "kWh"),
    ("day_self_consumption_energy", INTERVAL, "kWh"),
    ("day_energy", INTERVAL, "kWh"),
    ("day_consumption_energy", INTERVAL, "kWh"),
    ("day_import_energy", INTERVAL, "kWh"),
    ("day_export_energy", INTERVAL, "kWh"),
    ("day_charge_energy", INTERVAL, "kWh"),
    ("day_discharge_energy", INTERVAL, "kWh"),
    ("energy_total", REGISTER, "kWh"),
    ("consumption_energy_total", REGISTER, "kWh"),
    ("import_energy_total", REGISTER, "kWh"),
    ("export_energy_total", REGISTER, "kWh"),
    ("charge_energy_total", REGISTER, "kWh"),
    ("discharge_energy_total", REGISTER, "kWh"),
    ("net_energy_total", REGISTER, "kWh"),
    ("reactive_energy_total", REGISTER, "kvarh"),
    ("gas_total", REGISTER, "m3"),
    ("water_total", REGISTER, "m3"),
];

/// The metrics that have a kind and a canonical unit; all others are intensive gauges with the unit as given.
#[derive(Clone, Debug)]
pub struct MetricRegistry {
    known: BTreeMap<String, Metric>,
}

impl MetricRegistry {
    /// The built-in metrics and those of the configuration, which may redefine built-in ones.
    pub fn new(configured: &BTreeMap<String, MetricDefinition>) -> Self {
        let built_in = BUILT_IN.iter().map(|(name, kind, unit)| {
            let metric = Metric { kind: *kind, unit: (*unit).to_owned(), weight_by_capacity: *name == "soc" };
            ((*name).to_owned(), metric)
        });
        let own = configured.iter().map(|(name, definition)| {
            let MetricDefinition { kind, unit } = definition.clone();
            (name.clone(), Metric { kind, unit, weight_by_capacity: name == "soc" })
        });
        Self { known: built_in.chain(own).collect() }
    }

    pub fn get(&self, name: &str) -> Option<&Metric> {
        self.known.get(name)
    }

    /// The kind that a metric is combined by.
    pub fn kind(&self, name: &str) -> MetricKind {
        self.get(name).map_or(INTENSIVE, |metric| metric.kind)
    }

    /// The unit to store a reading in, and the way there from the unit that its sender states.
    ///
    /// # Errors
    /// A text naming the valid units when the stated one does not fit the metric.
    pub fn normalise<'a>(
        &'a self,
        metric: &str,
        stated: Option<&'a str>,
    ) -> Result<(&'a str, Conversion), String> {
        let Some(known) = self.get(metric) else {
            return Ok((stated.unwrap_or_default(), Conversion::IDENTITY));
        };
        let Some(stated) = stated.filter(|unit| !unit.is_empty()) else {
            return Ok((&known.unit, Conversion::IDENTITY));
        };
        match Conversion::between(stated, &known.unit) {
            Some(conversion) => Ok((&known.unit, conversion)),
            None => {
                let dimension = find_unit(&known.unit).map(|unit| unit.dimension);
                let valid: Vec<_> =
                    UNITS.iter().filter(|u| Some(u.dimension) == dimension).map(|u| u.names[0]).collect();
                let valid = if valid.is_empty() { known.unit.clone() } else { valid.join(", ") };
                Err(format!("unit `{stated}` does not fit metric `{metric}`; valid are {valid}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_normalised_and_wrong_ones_refused() {
        let registry = MetricRegistry::new(&BTreeMap::new());
        let convert = |metric: &str, unit: &str, value: f64| {
            registry.normalise(metric, Some(unit)).map(|(unit, c)| (unit.to_owned(), c.apply(value)))
        };
        assert_eq!(convert("power", "W", 1500.0), Ok(("kW".into(), 1.5)));
        assert_eq!(convert("energy", "MWh", 2.0), Ok(("kWh".into(), 2000.0)));
        assert_eq!(convert("soc", "ratio", 0.5), Ok(("%".into(), 50.0)));
        let (unit, kelvin) = convert("temperature", "K", 300.0).expect("valid");
        assert!(unit == "degC" && (kelvin - 26.85).abs() < 1e-9);
        let (_, fahrenheit) = convert("temperature", "degF", 212.0).expect("valid");
        assert!((fahrenheit - 100.0).abs() < 1e-9);
        assert_eq!(registry.normalise("power", None).map(|n| n.0), Ok("kW"));
        let error = convert("power", "kWh", 1.0).expect_err("power is not energy");
        assert!(error.contains("`kWh`") && error.contains("kW, W"), "{error}");
        assert_eq!(convert("fan_speed", "rpm", 900.0), Ok(("rpm".into(), 900.0)));
        assert_eq!(registry.kind("fan_speed"), MetricKind::GaugeIntensive);
    }
}
