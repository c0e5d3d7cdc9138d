//! NEM12 and NEM13: interval and accumulation data of Australia's market (AEMO, Meter Data File Format).
//!
//! Times are those of the market, UTC+10 all year. A record 200 names a data stream, the records 300 after it hold a day each, and records
//! 400 after one of those say which quality its intervals have where that differs. Of two records of one day the one with the newer
//! update time counts, else the later one. A record 250 holds two reads of a register.
//!
//! A stream becomes a meter `NMI/SUFFIX`, since an NMI may have several of a direction: `E` is energy from the grid (`import_energy`), `B`
//! to the grid (`export_energy`), `Q` and `K` are reactive.

use std::{collections::HashMap, io::BufRead};

use jiff::{
    Timestamp,
    civil::{Date, DateTime},
    tz::{Offset, TimeZone},
};
use wattlake_catalog::{Category, Quality};

use super::{
    FileOptions, FileRows, RowReader,
    rows::FileSeries,
    text::{Lines, number},
};
use crate::{Error, Result};

/// The market's offset from UTC, hours.
const MARKET_HOURS: i8 = 10;
const MINUTE: i64 = 60_000_000;

pub(super) struct Reader<R> {
    lines: Lines<R>,
    /// Seconds from UTC.
    offset: Offset,
    stream: Option<Stream>,
    /// A day whose records 400 may still come.
    day: Option<Day>,
    /// The newest update time of each day of each stream.
    updates: HashMap<(String, Date), String>,
}

/// What a record 200 says.
struct Stream {
    entity: String,
    series: FileSeries,
    scale: f64,
    /// Minutes of an interval.
    length: i64,
}

/// A record 300.
struct Day {
    line: u64,
    date: Date,
    values: Vec<Option<f64>>,
    /// Of each interval; `None`: there is no reading.
    quality: Vec<Option<Quality>>,
    update: String,
}

/// Metric, unit and the factor to that unit, of a unit of measure and a direction.
fn measured(uom: &str, suffix: &str) -> Option<(&'static str, &'static str, f64)> {
    let direction = suffix.chars().next().map(|c| c.to_ascii_uppercase());
    let by_direction = |import, export, other| match direction {
        Some('E') => import,
        Some('B') => export,
        _ => other,
    };
    let energy = by_direction("import_energy", "export_energy", "energy");
    let power = by_direction("import_power", "export_power", "power");
    Some(match uom.to_ascii_uppercase().as_str() {
        "MWH" => (energy, "MWh", 1.0),
        "KWH" => (energy, "kWh", 1.0),
        "WH" => (energy, "Wh", 1.0),
        "MW" => (power, "MW", 1.0),
        "KW" => (power, "kW", 1.0),
        "W" => (power, "W", 1.0),
        "MVARH" => ("reactive_energy", "kvarh", 1e3),
        "KVARH" => ("reactive_energy", "kvarh", 1.0),
        "VARH" => ("reactive_energy", "kvarh", 1e-3),
        "MVAR" => ("reactive_power", "Mvar", 1.0),
        "KVAR" => ("reactive_power", "kvar", 1.0),
        "VAR" => ("reactive_power", "var", 1.0),
        "MVAH" => ("apparent_energy", "kVAh", 1e3),
        "KVAH" => ("apparent_energy", "kVAh", 1.0),
        "VAH" => ("apparent_energy", "kVAh", 1e-3),
        "MVA" => ("apparent_power", "MVA", 1.0),
        "KVA" => ("apparent_power", "kVA", 1.0),
        "VA" => ("apparent_power", "VA", 1.0),
        "KV" => ("voltage", "kV", 1.0),
        "V" => ("voltage", "V", 1.0),
        "KA" => ("current", "kA", 1.0),
        "A" => ("current", "A", 1.0),
        "PF" => ("power_factor", "", 1.0),
        _ => return None,
    })
}

/// What a method flag says of a reading: `A` actual, `S`, `F` substituted, `E` estimated; `N` is none. Those that do not keep to the rules
/// are not sure.
fn quality(method: &str) -> Option<Quality> {
    match method.trim().chars().next() {
        Some('A') => Some(Quality::Good),
        Some('N') => None,
        _ => Some(Quality::Estimated),
    }
}

/// `YYYYMMDD`.
fn date(text: &str) -> Option<Date> {
    let text = text.trim();
    (text.len() == 8).then(|| Date::strptime("%Y%m%d", text).ok())?
}

/// `YYYYMMDDhhmmss`.
fn date_time(text: &str) -> Option<DateTime> {
    let text = text.trim();
    (text.len() == 14).then(|| DateTime::strptime("%Y%m%d%H%M%S", text).ok())?
}

impl<R: BufRead> Reader<R> {
    pub(super) fn new(source: R, options: &FileOptions) -> Self {
        // The market's time never changes: of a zone its standard time counts.
        let standard = |zone: &TimeZone| {
            let january: Timestamp = "2024-01-15T00:00:00Z".parse().ok()?;
            let july: Timestamp = "2024-07-15T00:00:00Z".parse().ok()?;
            Some(zone.to_offset(january).min(zone.to_offset(july)))
        };
        let offset =
            options.market_zone.as_ref().and_then(standard).unwrap_or(Offset::constant(MARKET_HOURS));
        Self { lines: Lines::new(source), offset, stream: None, day: None, updates: HashMap::new() }
    }

    fn instant(&self, local: DateTime) -> Option<i64> {
        self.offset.to_timestamp(local).ok().map(Timestamp::as_microsecond)
    }

    fn stream(&mut self, fields: &[String], rows: &mut FileRows) -> std::result::Result<(), String> {
        self.stream = None;
        let field = |i: usize| fields.get(i).map_or("", String::as_str);
        let (nmi, suffix, uom) = (field(1), field(4), field(7));
        if nmi.is_empty() || suffix.is_empty() {
            return Err("a record 200 has an NMI in its second field and a suffix in its fifth".to_owned());
        }
        let length: i64 =
            field(8).parse().ok().filter(|length| [1, 5, 10, 15, 30, 60].contains(length)).ok_or_else(
                || {
                    format!(
                        "`{}` is no length of an interval; there are 1, 5, 10, 15, 30 and 60 minutes",
                        field(8)
                    )
                },
            )?;
        // Files of some networks leave it out.
        let uom = if uom.is_empty() { "kWh" } else { uom };
        let (metric, unit, scale) =
            measured(uom, suffix).ok_or_else(|| format!("the unit `{uom}` is not known"))?;
        let entity = format!("{nmi}/{suffix}");
        let category = if suffix.starts_with(['B', 'b']) { Category::Inj } else { Category::Cons };
        rows.hint(&entity, category, Some(length * 60));
        let series = rows.series(&entity, metric, unit);
        self.stream = Some(Stream { entity, series, scale, length });
        Ok(())
    }

    fn day(&mut self, fields: &[String]) -> std::result::Result<(), String> {
        let stream = self.stream.as_ref().ok_or("a record 300 before any sound record 200")?;
        let text = fields.get(1).map_or("", String::as_str);
        let date = date(text).ok_or_else(|| format!("`{text}` is no date as 20240131"))?;
        let count = (1440 / stream.length) as usize;
        let values = fields.get(2..2 + count).ok_or_else(|| {
            format!(
                "{count} values of {} minutes are expected, and {} fields follow the date",
                stream.length,
                fields.len().saturating_sub(2)
            )
        })?;
        let method = fields.get(2 + count).map_or("", String::as_str);
        if number(method, '.').is_some() {
            return Err(format!(
                "more than the {count} values of {} minutes that its record 200 tells of",
                stream.length
            ));
        }
        let values = values
            .iter()
            .enumerate()
            .map(|(n, text)| match number(text, '.') {
                _ if text.is_empty() => Ok(None),
                Some(value) => Ok(Some(value * stream.scale)),
                None => Err(format!("value {} is `{text}`, which is no number", n + 1)),
            })
            .collect::<std::result::Result<Vec<_>, _>>()?;
        // Where it varies, the records 400 tell; what they leave out is not sure.
        let quality = if method.starts_with('V') { Some(Quality::Estimated) } else { quality(method) };
        let update = fields.get(5 + count).cloned().unwrap_or_default();
        self.day = Some(Day { line: self.lines.number, date, values, quality: vec![quality; count], update });
        Ok(())
    }

    fn range(&mut self, fields: &[String]) -> std::result::Result<(), String> {
        let day = self.day.as_mut().ok_or("a record 400 that follows no sound record 300")?;
        let count = day.values.len();
        let place = |i: usize| {
            let text = fields.get(i).map_or("", String::as_str);
            let place = text.parse().ok().filter(|place| (1..=count).contains(place));
            place.ok_or_else(|| format!("`{text}` is no interval from 1 to {count}"))
        };
        let (start, end) = (place(1)?, place(2)?);
        if start > end {
            return Err(format!("intervals {start} to {end} are in the wrong order"));
        }
        let quality = quality(fields.get(3).map_or("", String::as_str));
        day.quality[start - 1..end].fill(quality);
        Ok(())
    }

    /// Takes the readings of a day whose records have all come.
    fn end_day(&mut self, rows: &mut FileRows) {
        let (Some(day), Some(stream)) = (self.day.take(), &self.stream) else { return };
        let Some(start) = self.instant(day.date.to_datetime(Default::default())) else {
            return rows.refuse(day.line, "its day is out of range");
        };
        let key = (stream.entity.clone(), day.date);
        if let Some(newest) = self.updates.get(&key)
            && !day.update.is_empty()
            && *newest > day.update
        {
            return rows
                .refuse(day.line, format!("an earlier record of this day was updated later, at {newest}"));
        }
        if !day.update.is_empty() {
            self.updates.insert(key, day.update);
        }
        for (n, (value, quality)) in day.values.into_iter().zip(day.quality).enumerate() {
            if let (Some(value), Some(quality)) = (value, quality) {
                rows.push(stream.series, start + n as i64 * stream.length * MINUTE, value, quality, day.line);
            }
        }
    }

    /// A record 250: two reads of a register. Where the quantity is not their difference, the meter has a multiplier.
    fn register(&self, fields: &[String], rows: &mut FileRows) -> std::result::Result<(), String> {
        let field = |i: usize| fields.get(i).map_or("", String::as_str);
        let (nmi, suffix, uom) = (field(1), field(4), field(19));
        let (metric, unit, scale) =
            measured(uom, "").ok_or_else(|| format!("the unit `{uom}` is not known"))?;
        let metric = match (metric, field(7)) {
            ("energy", "E") => "import_energy_total",
            ("energy", "I") => "export_energy_total",
            ("reactive_energy", _) => "reactive_energy_total",
            (_, direction) => return Err(format!("the direction `{direction}` is neither E nor I")),
        };
        let reading = |at: usize| {
            let value =
                number(field(at), '.').ok_or_else(|| format!("the read `{}` is no number", field(at)))?;
            let time = date_time(field(at + 1)).and_then(|local| self.instant(local));
            let time = time.ok_or_else(|| format!("`{}` is no time as 20240131093000", field(at + 1)))?;
            Ok::<_, String>((time, value, quality(field(at + 2))))
        };
        let reads = [reading(8)?, reading(13)?];
        let quantity =
            number(field(18), '.').ok_or_else(|| format!("the quantity `{}` is no number", field(18)))?;
        let difference = reads[1].1 - reads[0].1;
        let multiplier = quantity / difference;
        let multiplier = match multiplier {
            _ if (quantity - difference).abs() <= 0.01 => 1.0,
            _ if multiplier.is_finite() && multiplier > 0.0 => multiplier,
            _ => {
                return Err(format!(
                    "the quantity {quantity} does not follow from the reads {} and {}",
                    reads[0].1, reads[1].1
                ));
            }
        };
        let entity = format!("{nmi}/{suffix}");
        let category = if field(7) == "I" { Category::Inj } else { Category::Cons };
        rows.hint(&entity, category, None);
        let series = rows.series(&entity, metric, unit);
        for (time, value, quality) in reads {
            if let Some(quality) = quality {
                rows.push(series, time, value * multiplier * scale, quality, self.lines.number);
            }
        }
        Ok(())
    }
}

impl<R: BufRead + Send> RowReader for Reader<R> {
    fn read(&mut self, rows: &mut FileRows) -> Result<bool> {
        let Some(line) = self.lines.next()? else {
            self.end_day(rows);
            return Ok(false);
        };
        if line.is_empty() {
            return Ok(true);
        }
        let fields: Vec<String> = line.split(',').map(|field| field.trim().to_owned()).collect();
        if fields[0] != "400" {
            self.end_day(rows);
        }
        let outcome = match fields[0].as_str() {
            "100"
                if self.lines.number > 1
                    || ["NEM12", "NEM13"].contains(&fields.get(1).map_or("", String::as_str)) =>
            {
                Ok(())
            }
            "100" => {
                return Err(Error::invalid(format!(
                    "line 1: `{}` is neither NEM12 nor NEM13",
                    fields.get(1).map_or("", String::as_str)
                )));
            }
            "200" => self.stream(&fields, rows),
            "300" => self.day(&fields),
            "400" => self.range(&fields),
            "250" => self.register(&fields, rows),
            // Reads for control, and the end of a block.
            "500" | "550" | "900" => Ok(()),
            other => {
                let other: String = other.chars().take(20).collect();
                Err(format!("`{other}` is no record; there are 100, 200, 250, 300, 400, 500, 550 and 900"))
            }
        };
        if let Err(message) = outcome {
            rows.refuse(self.lines.number, message);
        }
        Ok(true)
    }
}
