//! Answers of version 1 of SolarEdge's API, which was switched off in November 2026: dumps that users have kept.
//!
//! Times are local, or say their offset after an abbreviation (`2024-07-01 00:00:00 CEST+0200`). On days of a clock change the vendor gives
//! 24 hours all the same: of the hour that comes twice only the second, and one that the clock skips as well. A value is `null`, or
//! left out, where there is none.

use std::io::{BufRead, Read};

use jiff::{civil::DateTime, tz::Offset};
use serde_json::Value;
use wattlake_catalog::{Category, Quality};

use super::{
    FileOptions, FileRows, RowReader,
    local::{LocalTimes, Placed},
    rows::FileSeries,
};
use crate::{Error, Result};

/// Bytes of a file, which is read as a whole and takes some ten times as much memory.
pub(super) const FILE_BYTES_MAX: u64 = if cfg!(test) { 1 << 20 } else { 64 << 20 };
/// Names of answers that have readings.
const ROOTS: [&str; 5] = ["energy", "power", "energyDetails", "powerDetails", "storageData"];

/// Whether a text begins as such an answer does.
pub(super) fn is_answer(text: &str) -> bool {
    let start: String = text.chars().take(2000).filter(|c| !c.is_whitespace()).collect();
    let has_root = ROOTS.iter().any(|root| start.contains(&format!("\"{root}\":{{")));
    has_root
        && (start.contains("\"timeUnit\"") || start.contains("\"batteries\"") || start.contains("\"values\""))
}

pub(super) struct Reader<R> {
    source: Option<R>,
    options: FileOptions,
    answers: std::vec::IntoIter<Value>,
    /// Values of all answers so far.
    count: u64,
}

impl<R: BufRead> Reader<R> {
    pub(super) fn new(source: R, options: &FileOptions) -> Result<Self> {
        Ok(Self { source: Some(source), options: options.clone(), answers: Vec::new().into_iter(), count: 0 })
    }
}

/// Metric and category of what a kind of meter tells of energy or power.
fn of_meter(kind: &str, is_energy: bool) -> Option<(&'static str, Category)> {
    Some(match (kind, is_energy) {
        ("Production", true) => ("energy", Category::Prod),
        ("Production", false) => ("power", Category::Prod),
        ("Consumption", true) => ("consumption_energy", Category::Prod),
        ("Consumption", false) => ("consumption_power", Category::Prod),
        ("FeedIn", true) => ("export_energy", Category::Prod),
        ("FeedIn", false) => ("export_power", Category::Prod),
        ("Purchased", true) => ("import_energy", Category::Prod),
        ("Purchased", false) => ("import_power", Category::Prod),
        ("SelfConsumption", true) => ("self_consumption_energy", Category::Prod),
        ("SelfConsumption", false) => ("self_consumption_power", Category::Prod),
        _ => return None,
    })
}

/// Seconds of an interval.
fn length(unit: Option<&str>) -> Option<i64> {
    match unit? {
        "QUARTER_OF_AN_HOUR" => Some(900),
        "HOUR" => Some(3600),
        "DAY" => Some(86_400),
        "WEEK" => Some(7 * 86_400),
        _ => None,
    }
}

/// A time as an answer writes it.
enum Time {
    Local(DateTime),
    At(i64),
}

fn time(text: &str) -> Option<Time> {
    let (local, rest) = text.trim().split_at_checked(19).unwrap_or((text.trim(), ""));
    let local = DateTime::strptime("%Y-%m-%d %H:%M:%S", local).ok()?;
    let rest = rest.trim();
    if rest.is_empty() {
        return Some(Time::Local(local));
    }
    let at = rest.find(['+', '-'])?;
    let (hours, minutes) = (rest.get(at + 1..at + 3)?, rest.get(at + 3..at + 5)?);
    let seconds = hours.parse::<i32>().ok()? * 3600 + minutes.parse::<i32>().ok()? * 60;
    let sign = if rest[at..].starts_with('-') { -1 } else { 1 };
    let offset = Offset::from_seconds(sign * seconds).ok()?;
    Some(Time::At(offset.to_timestamp(local).ok()?.as_microsecond()))
}

impl<R> Reader<R> {
    fn take(&mut self, answer: &Value, rows: &mut FileRows) -> Result<()> {
        let Some(root) = ROOTS.iter().find(|root| answer.get(**root).is_some_and(Value::is_object)) else {
            let names: Vec<_> =
                answer.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).take(5).collect();
            rows.refuse(
                self.count + 1,
                format!("an answer with {} has no readings that are known", names.join(", ")),
            );
            return Ok(());
        };
        let body = &answer[*root];
        let text = |name: &str| body.get(name).and_then(Value::as_str);
        let is_energy = root.starts_with("energy");
        let length = length(text("timeUnit"));
        let unit = text("unit").unwrap_or(if is_energy { "Wh" } else { "W" }).to_owned();
        let entity = self.options.entity().to_owned();
        // Totals of days are other numbers than the sum of quarter hours.
        let named = |metric: &str| match length {
            Some(86_400..) if is_energy && metric == "energy" => "day_energy".to_owned(),
            Some(86_400..) if is_energy => format!("day_{metric}"),
            _ => metric.to_owned(),
        };
        match *root {
            "storageData" => {
                for battery in list(body, "batteries") {
                    self.battery(battery, rows)?;
                }
            }
            "energy" | "power" if body.get("values").is_none() => {
                rows.refuse(
                    self.count + 1,
                    "answers about several sites at once are not read; split them by site",
                );
            }
            "energy" | "power" => {
                let (metric, category) =
                    of_meter("Production", is_energy).unwrap_or(("energy", Category::Prod));
                rows.hint(&entity, category, length);
                let series = rows.series(&entity, &named(metric), &unit);
                self.values(list(body, "values"), series, rows)?;
            }
            _ => {
                for meter in list(body, "meters") {
                    let kind = meter.get("type").and_then(Value::as_str).unwrap_or_default();
                    let Some((metric, category)) = of_meter(kind, is_energy) else {
                        rows.refuse(self.count + 1, format!("the kind of meter `{kind}` is not known"));
                        continue;
                    };
                    rows.hint(&entity, category, length);
                    let series = rows.series(&entity, &named(metric), &unit);
                    self.values(list(meter, "values"), series, rows)?;
                }
            }
        }
        Ok(())
    }

    fn values(&mut self, values: &[Value], series: FileSeries, rows: &mut FileRows) -> Result<()> {
        let readings = values.iter().map(|value| (value.get("date"), value.get("value"))).collect::<Vec<_>>();
        self.place(readings, series, 1.0, rows)
    }

    fn battery(&mut self, battery: &Value, rows: &mut FileRows) -> Result<()> {
        const CHANNELS: [(&str, &str, &str, f64); 4] = [
            // Charging is above zero there, and below it with us.
            ("power", "battery_power", "W", -1.0),
            ("lifeTimeEnergyCharged", "charge_energy_total", "Wh", 1.0),
            ("lifeTimeEnergyDischarged", "discharge_energy_total", "Wh", 1.0),
            ("stateOfCharge", "soc", "%", 1.0),
        ];
        let serial = battery.get("serialNumber").and_then(Value::as_str).filter(|serial| !serial.is_empty());
        let entity = serial.map_or_else(|| format!("{}/battery", self.options.entity()), str::to_owned);
        rows.hint(&entity, Category::Stor, Some(300));
        let telemetries = list(battery, "telemetries");
        for (name, metric, unit, factor) in CHANNELS {
            let series = rows.series(&entity, metric, unit);
            let readings =
                telemetries.iter().map(|one| (one.get("timeStamp"), one.get(name))).collect::<Vec<_>>();
            self.place(readings, series, factor, rows)?;
        }
        Ok(())
    }

    /// Takes the readings of one series, in the order of the answer.
    fn place(
        &mut self,
        readings: Vec<(Option<&Value>, Option<&Value>)>,
        series: FileSeries,
        factor: f64,
        rows: &mut FileRows,
    ) -> Result<()> {
        let mut local = None;
        let out = |placed: Placed, (place, value): (u64, f64), rows: &mut FileRows| match placed
            .instant(Quality::Good, value == 0.0)
        {
            Ok(Some((at, quality))) => rows.push(series, at, value, quality, place),
            Ok(None) => {}
            Err(words) => rows.refuse(place, words),
        };
        for (date, value) in readings {
            self.count += 1;
            let place = self.count;
            let Some(value) = value.filter(|value| !value.is_null()) else { continue };
            let Some(number) = value.as_f64() else {
                rows.refuse(place, "the value is no number");
                continue;
            };
            let reading = (place, number * factor);
            match date.and_then(Value::as_str).and_then(time) {
                None => rows.refuse(place, "the date is not of the form 2024-01-31 12:00:00"),
                Some(Time::At(at)) => out(Placed::At(at), reading, rows),
                Some(Time::Local(at)) => {
                    let times = match &mut local {
                        Some(times) => times,
                        None => local
                            .insert(LocalTimes::new(self.options.zone_of_local_times()?, self.options.dst)),
                    };
                    times.push(at, reading, &mut |placed, reading| out(placed, reading, rows));
                }
            }
        }
        if let Some(times) = &mut local {
            times.finish(&mut |placed, reading| out(placed, reading, rows));
        }
        Ok(())
    }
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

impl<R: BufRead + Send> RowReader for Reader<R> {
    fn read(&mut self, rows: &mut FileRows) -> Result<bool> {
        if let Some(source) = self.source.take() {
            let mut text = Vec::new();
            let read = source.take(FILE_BYTES_MAX + 1).read_to_end(&mut text);
            read.map_err(|error| Error::invalid(format!("cannot be read: {error}")))?;
            if text.len() as u64 > FILE_BYTES_MAX {
                return Err(Error::invalid(format!("it is larger than {FILE_BYTES_MAX} bytes")));
            }
            // One answer, a list of them, or one after the other.
            let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
            let mut answers = Vec::new();
            for value in serde_json::Deserializer::from_slice(text).into_iter::<Value>() {
                match value.map_err(|error| Error::invalid(format!("no JSON: {error}")))? {
                    Value::Array(list) => answers.extend(list),
                    one => answers.push(one),
                }
            }
            self.answers = answers.into_iter();
            return Ok(true);
        }
        let Some(answer) = self.answers.next() else { return Ok(false) };
        self.take(&answer, rows)?;
        Ok(true)
    }
}
