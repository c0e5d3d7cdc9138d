//! Readings for benchmarks: a fleet that reports power every 15 minutes, the same on every machine.

use std::fmt::Write;

/// 2025-01-01T00:00:00Z in seconds.
const START: u64 = 1_735_689_600;
const STEP_SECONDS: u64 = 900;

/// A made-up fleet, in the order in which its readings arrive: by time, then by device.
#[derive(Clone, Copy, Debug)]
pub struct Fleet {
    pub devices: u64,
}

impl Fleet {
    /// Entity of a device, as line protocol names it.
    pub fn serial(device: u64) -> String {
        format!("bench-{device:05}")
    }

    /// kW with three decimals: a day's curve with some noise, zero at night.
    pub fn value(device: u64, slot: u64) -> f64 {
        let hour = (slot % 96) as f64 / 4.0;
        let curve = (std::f64::consts::TAU * (hour - 6.0) / 24.0).sin().max(0.0);
        let noise = (slot * 2_654_435_761 + device * 40_503) % 1000;
        (curve * (50.0 + (device % 50) as f64) * (0.9 + noise as f64 / 5000.0) * 1000.0).round() / 1000.0
    }

    /// Readings `from..from + count` as line protocol with times in nanoseconds.
    pub fn lines(self, from: u64, count: u64) -> String {
        let mut text = String::with_capacity(count as usize * 64);
        for n in from..from + count {
            let (device, slot) = (n % self.devices, n / self.devices);
            let time = START + slot * STEP_SECONDS;
            let _ = writeln!(
                text,
                "power,entity_id={} value={} {time}000000000",
                Self::serial(device),
                Self::value(device, slot)
            );
        }
        text
    }

    /// The same readings as one JSON object a line.
    pub fn ndjson(self, from: u64, count: u64) -> String {
        let mut text = String::new();
        for n in from..from + count {
            let (device, slot) = (n % self.devices, n / self.devices);
            let _ = writeln!(
                text,
                r#"{{"entityId":"{}","timestamp":"{}","metric":"power","value":{},"unit":"kW"}}"#,
                Self::serial(device),
                START + slot * STEP_SECONDS,
                Self::value(device, slot)
            );
        }
        text
    }

    /// The same readings as CSV.
    pub fn csv(self, from: u64, count: u64) -> String {
        let mut text = "entity_id,timestamp,metric,value,unit\n".to_owned();
        for n in from..from + count {
            let (device, slot) = (n % self.devices, n / self.devices);
            let (serial, value) = (Self::serial(device), Self::value(device, slot));
            let _ = writeln!(text, "{serial},{},power,{value},kW", START + slot * STEP_SECONDS);
        }
        text
    }
}
