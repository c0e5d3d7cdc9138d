//! What a simulated system measures, and when its vendor knows it: both a function of the system and of time alone.

use std::f64::consts::TAU;

use jiff::{Timestamp, tz::TimeZone};

use super::{System, Vendor};

const SECOND: i64 = 1_000_000;
const HOUR: i64 = 3600 * SECOND;
const DAY: i64 = 24 * HOUR;
/// Between two readings.
pub(crate) const QUARTER: i64 = 900 * SECOND;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    /// Wh of a quarter of an hour.
    Energy,
    /// W, the mean of a quarter of an hour.
    Power,
    /// Wh of a quarter of an hour.
    Consumption,
}

#[derive(Clone, Debug)]
pub(crate) struct Plant {
    seed: u64,
    peak: f64,
    pub zone: TimeZone,
    vendor: Vendor,
}

/// FNV-1a and a finish that spreads its bits: small, and the same on every machine.
fn hash(parts: &[u64]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in parts.iter().flat_map(|part| part.to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

impl Plant {
    pub(super) fn new(system: &System) -> Self {
        let seed = system.id.bytes().fold(7, |seed, byte| hash(&[seed, u64::from(byte)]));
        let zone = TimeZone::get(&system.zone).unwrap_or(TimeZone::UTC);
        Self { seed, peak: system.peak, zone, vendor: system.vendor }
    }

    fn chance(&self, what: u64, n: i64) -> u64 {
        hash(&[self.seed, what, n as u64])
    }

    /// Hours of the local day of an instant.
    fn hour(&self, ts: i64) -> f64 {
        let at = Timestamp::from_microsecond(ts).unwrap_or_default();
        let seconds = ts / SECOND + i64::from(self.zone.to_offset(at).seconds());
        seconds.rem_euclid(86_400) as f64 / 3600.0
    }

    /// What was measured in the quarter that begins at `ts`; `None`: nothing, for good.
    pub(crate) fn measured(&self, measure: Measure, ts: i64) -> Option<f64> {
        let quarter = ts.div_euclid(QUARTER);
        // A meter that was off for an hour or two, once in some weeks.
        if self.chance(1, quarter.div_euclid(7)).is_multiple_of(400) {
            return None;
        }
        let hour = self.hour(ts);
        let sun = (TAU * (hour - 6.0) / 24.0).sin().max(0.0);
        // Before the first light of a day SolarEdge has nothing, after the last one zeros.
        if self.vendor == Vendor::SolarEdge && measure != Measure::Consumption && hour < 6.0 {
            return None;
        }
        let noise = 0.6 + 0.4 * (self.chance(2 + measure as u64, quarter) % 1000) as f64 / 1000.0;
        let watts = match measure {
            Measure::Energy | Measure::Power => self.peak * 1000.0 * sun * noise,
            Measure::Consumption => 300.0 + 900.0 * noise,
        };
        let value = if measure == Measure::Power { watts } else { watts / 4.0 };
        Some((value * 10.0).round() / 10.0)
    }

    /// What the vendor shows at a time for the quarter that begins at `ts`.
    pub(crate) fn shown(&self, measure: Measure, ts: i64, now: i64) -> Option<f64> {
        let value = self.measured(measure, ts)?;
        if self.known_at(ts) > now {
            return None;
        }
        let quarter = ts.div_euclid(QUARTER);
        let is_corrected = self.chance(11, quarter).is_multiple_of(50);
        let corrected_after = 6 * HOUR + (self.chance(12, quarter) % 54) as i64 * HOUR;
        match is_corrected && now < ts + corrected_after {
            true => Some((value * 9.0).round() / 10.0),
            false => Some(value),
        }
    }

    /// When the vendor comes to know of the quarter that begins at `ts`.
    pub(crate) fn known_at(&self, ts: i64) -> i64 {
        let end = ts + QUARTER;
        let lag = match self.vendor {
            Vendor::SolarEdge => 30 * SECOND,
            Vendor::Enphase => 240 * SECOND,
        };
        // The gateway is offline, and sends everything when it is back.
        let back = [0, 1].into_iter().filter_map(|before| {
            let (from, to) = self.outage(ts.div_euclid(10 * DAY) - before)?;
            (from..to).contains(&ts).then_some(to)
        });
        let back = back.max().unwrap_or(end);
        // Two hours that come much later than what follows them.
        let block = ts.div_euclid(2 * HOUR);
        let late = match self.chance(21, block).is_multiple_of(60) {
            true => (5 + self.chance(22, block) % 55) as i64 * HOUR,
            false => 0,
        };
        back.max(end) + lag + late
    }

    /// Whether an inverter is switched off, for a few hours or for two days. The other ones go on.
    pub(crate) fn is_away(&self, inverter: usize, ts: i64) -> bool {
        let what = 41 + inverter as u64;
        [0, 1].into_iter().any(|before| {
            let period = ts.div_euclid(5 * DAY) - before;
            let from = period * 5 * DAY + (self.chance(what, period) % (120 * 60)) as i64 * 60 * SECOND;
            let length = [3, 9, 30, 50][(self.chance(what + 2, period) % 4) as usize];
            (from..from + length * HOUR).contains(&ts)
        })
    }

    /// The outage of ten days, in two of three.
    fn outage(&self, period: i64) -> Option<(i64, i64)> {
        let chance = self.chance(31, period);
        if chance.is_multiple_of(3) {
            return None;
        }
        let from = period * 10 * DAY + (self.chance(32, period) % (240 * 60)) as i64 * 60 * SECOND;
        let length = 1 + self.chance(33, period) % 50;
        Some((from, from + length as i64 * HOUR))
    }

    /// The end of the last quarter that the vendor knows of.
    pub(crate) fn heard_until(&self, now: i64) -> i64 {
        let newest = now.div_euclid(QUARTER) * QUARTER;
        let known = (1..=60 * 96).map(|n| newest - n * QUARTER).find(|ts| self.known_at(*ts) <= now);
        known.map_or(0, |ts| ts + QUARTER)
    }
}
