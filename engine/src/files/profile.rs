//! Tables of columns, as a profile says: ours for known vendors, or the user's own.

use std::{
    collections::{BTreeMap, HashMap},
    io::{BufRead, Read},
    sync::{Arc, LazyLock},
};

use csv::StringRecord;
use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use serde::{Deserialize, Serialize};
use wattlake_catalog::{Category, Quality};

use super::{
    DstPolicy, FileOptions, FileRows, RowReader,
    local::{LocalTimes, Placed},
    parse_zone,
    rows::FileSeries,
    text::number,
    utf8,
};
use crate::{Error, Result};

/// Rows before the header row.
const PREAMBLE_ROWS_MAX: u64 = 1000;
/// Meters of one file whose local times are told apart.
pub(super) const ENTITIES_MAX: usize = if cfg!(test) { 100 } else { 100_000 };
/// Cells that are no readings.
const NULL_VALUES: [&str; 10] =
    ["", "-", "NaN", "nan", "null", "NULL", "NA", "N/A", "unknown", "unavailable"];

/// How a table is read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Profile {
    /// Unknown meters are registered on the site of this name.
    pub site: Option<String>,
    delimiter: Option<char>,
    /// The point of numbers.
    decimal: Option<char>,
    /// Names of columns by which the header row is known; what comes before it is left out. Empty: the first row.
    header: Vec<String>,
    time: TimeSpec,
    /// The meter, from columns: `{EAN}`; without it the one that the import names, or the file.
    entity: Option<String>,
    values: Vec<ValueSpec>,
    /// A row is one reading, and says of what.
    long: Option<LongSpec>,
    quality: Option<QualitySpec>,
    /// Cells that are no readings, besides the usual ones.
    null_values: Vec<String>,
    /// Readings beyond these are bad.
    min: Option<f64>,
    max: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct TimeSpec {
    /// One column, or several with spaces between.
    columns: Vec<String>,
    /// `rfc3339`, `epoch_s`, `epoch_ms` or a strftime pattern.
    format: String,
    /// Of local times; `UTC` where the file says so.
    zone: Option<String>,
    label: Label,
    /// Seconds of an interval.
    length: Option<i64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Label {
    #[default]
    Start,
    End,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ValueSpec {
    /// Columns that are added; a name may end with `*`.
    columns: Vec<String>,
    /// 1-based, where names come twice.
    index: Option<usize>,
    metric: String,
    unit: Option<String>,
    category: Option<Category>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LongSpec {
    /// The column that says of what a reading is.
    series: String,
    /// Metrics by what that column says; empty: it says the metric.
    #[serde(default)]
    metrics: BTreeMap<String, String>,
    value: String,
    unit: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct QualitySpec {
    column: String,
    map: BTreeMap<String, QualityWord>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum QualityWord {
    Good,
    Estimated,
    Bad,
    /// There is no reading.
    Skip,
}

const PROFILES: [(&str, &str); 7] = [
    ("ameren", include_str!("profiles/ameren.json")),
    ("chronograf", include_str!("profiles/chronograf.json")),
    ("dsmr-reader", include_str!("profiles/dsmr-reader.json")),
    ("enphase", include_str!("profiles/enphase.json")),
    ("fluvius", include_str!("profiles/fluvius.json")),
    ("homewizard", include_str!("profiles/homewizard.json")),
    ("shelly", include_str!("profiles/shelly.json")),
];

static KNOWN: LazyLock<Vec<(&str, Profile)>> = LazyLock::new(|| {
    let read = |(name, text): &(&'static str, &str)| Some((*name, serde_json::from_str(text).ok()?));
    PROFILES.iter().filter_map(read).collect()
});

/// Whether a cell is a column of this name, which may end with `*`.
fn is_column(cell: &str, name: &str) -> bool {
    let cell = cell.trim();
    match name.strip_suffix('*') {
        Some(start) => cell.starts_with(start),
        None => cell == name,
    }
}

impl Profile {
    pub(super) fn names() -> impl Iterator<Item = &'static str> {
        PROFILES.iter().map(|(name, _)| *name)
    }

    pub(super) fn named(name: &str) -> Result<Self> {
        let known = KNOWN.iter().find(|(known, _)| *known == name).map(|(_, profile)| profile.clone());
        known.ok_or_else(|| Error::internal(format!("there is no profile {name}")))
    }

    /// The profile whose header row is among some lines.
    pub(super) fn of_header(lines: &[&str]) -> Option<&'static str> {
        KNOWN.iter().find_map(|(name, profile)| {
            let is_header = |line: &&&str| {
                let cells: Vec<&str> =
                    line.split(profile.delimiter()).map(|cell| cell.trim().trim_matches('"')).collect();
                profile.is_header(&cells)
            };
            lines.iter().find(is_header).map(|_| *name)
        })
    }

    fn is_header(&self, cells: &[&str]) -> bool {
        self.header.iter().all(|name| cells.iter().any(|cell| is_column(cell, name)))
    }

    fn delimiter(&self) -> char {
        self.delimiter.unwrap_or(',')
    }

    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// Naming the key and the valid choice.
    pub fn check(&self) -> Result<()> {
        let wrong = |words: &str| Err(Error::invalid(words.to_owned()));
        if self.time.columns.is_empty() || self.time.format.is_empty() {
            return wrong(
                "time: `columns` and `format` are required; a format is rfc3339, epoch_s, epoch_ms or for example %d.%m.%Y %H:%M",
            );
        }
        if self.values.is_empty() == self.long.is_none() {
            return wrong("either `values` or `long` says where the readings are");
        }
        if !self.delimiter().is_ascii() {
            return wrong("delimiter: one ASCII character");
        }
        if self.decimal.is_some_and(|decimal| ![',', '.'].contains(&decimal)) {
            return wrong("decimal: `.` or `,`");
        }
        if self.time.label == Label::End && self.time.length.is_none() {
            return wrong("time: with `label = \"end\"` the `length` of an interval is required, in seconds");
        }
        if self.values.iter().any(|value| value.columns.is_empty() == value.index.is_none()) {
            return wrong("values: each has either `columns` or an `index`");
        }
        self.time.zone.as_deref().map(parse_zone).transpose()?;
        Ok(())
    }
}

/// Where things are in a row.
struct Columns {
    time: Vec<usize>,
    entity: Vec<(String, usize)>,
    values: Vec<(usize, Vec<usize>)>,
    long: Option<(usize, usize, Option<usize>)>,
    quality: Option<usize>,
}

/// A row whose instant is looked for.
#[derive(Debug)]
struct Row {
    line: u64,
    readings: Vec<(FileSeries, f64, Quality)>,
}

pub(super) struct Reader {
    records: csv::Reader<Box<dyn Read + Send>>,
    profile: Arc<Profile>,
    columns: Option<Columns>,
    /// Of local times; `None`: times say their offset.
    zone: Option<TimeZone>,
    dst: DstPolicy,
    default_entity: String,
    /// By meter; all are one where the file names none.
    local: HashMap<String, LocalTimes<Row>>,
    record: StringRecord,
}

impl Reader {
    pub(super) fn new(
        source: impl BufRead + Send + 'static,
        profile: Arc<Profile>,
        options: &FileOptions,
    ) -> Result<Self> {
        let is_local = !["rfc3339", "epoch_s", "epoch_ms"].contains(&profile.time.format.as_str());
        let zone = match (&profile.time.zone, is_local) {
            (_, false) => None,
            // The zone that a vendor always writes, whatever that of other files of the same import is.
            (Some(zone), true) => Some(parse_zone(zone)?),
            (_, true) => Some(options.zone_of_local_times()?),
        };
        let source: Box<dyn Read + Send> = Box::new(utf8(source));
        let records = csv::ReaderBuilder::new()
            .delimiter(profile.delimiter() as u8)
            .flexible(true)
            .has_headers(false)
            .from_reader(source);
        Ok(Self {
            records,
            profile,
            columns: None,
            zone,
            dst: options.dst,
            default_entity: options.entity().to_owned(),
            local: HashMap::new(),
            record: StringRecord::new(),
        })
    }

    /// Reads the next record; false: there are no more.
    fn next(&mut self) -> Result<bool> {
        self.records.read_record(&mut self.record).map_err(|error| Error::invalid(format!("no CSV: {error}")))
    }

    fn line(&self) -> u64 {
        self.record.position().map_or(0, csv::Position::line)
    }

    /// Finds the header row and what is where in it.
    fn find_columns(&mut self) -> Result<Columns> {
        let profile = Arc::clone(&self.profile);
        for _ in 0..PREAMBLE_ROWS_MAX {
            if !self.next()? {
                break;
            }
            let cells: Vec<&str> = self.record.iter().collect();
            if profile.is_header(&cells) {
                return columns(&profile, &cells);
            }
        }
        Err(Error::invalid(format!("there is no header row with {}", profile.header.join(", "))))
    }

    /// The instant of a row, or its local time.
    fn time(&self, columns: &Columns) -> std::result::Result<Time, String> {
        let cells: Vec<&str> =
            columns.time.iter().map(|at| self.record.get(*at).unwrap_or_default().trim()).collect();
        let text = cells.join(" ");
        let epoch = |factor: f64| {
            let seconds = number(&text, '.').filter(|seconds| seconds.abs() < 1e13);
            seconds.map(|seconds| Time::Instant((seconds * factor).round() as i64))
        };
        let found = match self.profile.time.format.as_str() {
            "rfc3339" => text.parse::<Timestamp>().ok().map(|at| Time::Instant(at.as_microsecond())),
            "epoch_s" => epoch(1e6),
            "epoch_ms" => epoch(1e3),
            pattern => DateTime::strptime(pattern, &text).ok().map(Time::Local),
        };
        found.ok_or_else(|| {
            let text: String = text.chars().take(40).collect();
            format!("the time `{text}` is not of the form {}", self.profile.time.format)
        })
    }

    /// The readings of a row.
    fn readings(
        &self,
        columns: &Columns,
        entity: &str,
        line: u64,
        rows: &mut FileRows,
    ) -> Vec<(FileSeries, f64, Quality)> {
        let profile = &self.profile;
        let cell = |at: usize| self.record.get(at).unwrap_or_default().trim();
        let quality = match (&profile.quality, columns.quality) {
            (Some(spec), Some(at)) => match spec.map.get(cell(at)) {
                Some(QualityWord::Good) => Quality::Good,
                Some(QualityWord::Estimated) => Quality::Estimated,
                Some(QualityWord::Bad) => Quality::Bad,
                Some(QualityWord::Skip) => return Vec::new(),
                None => {
                    rows.refuse(line, format!("the quality `{}` is not known", cell(at)));
                    return Vec::new();
                }
            },
            _ => Quality::Good,
        };
        let is_null =
            |text: &str| NULL_VALUES.contains(&text) || profile.null_values.iter().any(|none| none == text);
        let decimal = profile.decimal.unwrap_or('.');
        // The sum of some cells, those that are no readings left out.
        // Of a register no part may be missing: it would seem to fall.
        let sum = |places: &[usize], needs_all: bool| -> std::result::Result<Option<f64>, String> {
            let mut sum = None;
            for text in places.iter().map(|at| cell(*at)) {
                if is_null(text) {
                    if needs_all {
                        return Ok(None);
                    }
                    continue;
                }
                let value = number(text, decimal).ok_or_else(|| format!("`{text}` is no number"))?;
                sum = Some(sum.unwrap_or(0.0) + value);
            }
            Ok(sum)
        };
        let judge = |value: f64| {
            let is_plausible =
                profile.min.is_none_or(|min| value >= min) && profile.max.is_none_or(|max| value <= max);
            if is_plausible { quality } else { Quality::Bad }
        };
        let mut found = Vec::new();
        if let (Some(spec), Some((series, value, unit))) = (&profile.long, columns.long) {
            let name = cell(series);
            let metric = match spec.metrics.get(name) {
                Some(metric) => metric.as_str(),
                None if spec.metrics.is_empty() => name,
                None => {
                    rows.refuse(line, format!("`{name}` in the column {} is not known", spec.series));
                    return Vec::new();
                }
            };
            match sum(&[value], false) {
                Ok(Some(value)) => {
                    let series = rows.series(entity, metric, unit.map_or("", cell));
                    found.push((series, value, judge(value)));
                }
                Ok(None) => {}
                Err(words) => rows.refuse(line, words),
            }
        }
        for (which, places) in &columns.values {
            let spec = &profile.values[*which];
            match sum(places, spec.metric.ends_with("_total")) {
                Ok(Some(value)) => {
                    let series = rows.series(entity, &spec.metric, spec.unit.as_deref().unwrap_or_default());
                    found.push((series, value, judge(value)));
                }
                Ok(None) => {}
                Err(words) => rows.refuse(line, format!("{}: {words}", spec.metric)),
            }
        }
        found
    }

    /// From the label of an interval back to its start, microseconds.
    fn shift(&self) -> i64 {
        match self.profile.time.label {
            Label::Start => 0,
            Label::End => self.profile.time.length.unwrap_or(0) * 1_000_000,
        }
    }

    /// The meter of a row.
    fn entity(&self, columns: &Columns) -> String {
        let Some(template) = &self.profile.entity else { return self.default_entity.clone() };
        columns.entity.iter().fold(template.clone(), |text, (name, at)| {
            text.replace(&format!("{{{name}}}"), plain(self.record.get(*at).unwrap_or_default()))
        })
    }

    /// Takes the record that was read last.
    fn take(&mut self, columns: &Columns, rows: &mut FileRows) -> Result<()> {
        let is_empty = self.record.iter().all(|cell| cell.trim().is_empty());
        let is_total = self.record.get(0).is_some_and(|cell| cell.trim().eq_ignore_ascii_case("total"));
        if is_empty || is_total {
            return Ok(());
        }
        let line = self.line();
        let time = match self.time(columns) {
            Ok(time) => time,
            Err(words) => {
                rows.refuse(line, words);
                return Ok(());
            }
        };
        let entity = self.entity(columns);
        let readings = self.readings(columns, &entity, line, rows);
        let category = self.profile.values.iter().find_map(|value| value.category);
        rows.hint(&entity, category.unwrap_or(Category::Cons), self.profile.time.length);
        let (row, shift) = (Row { line, readings }, self.shift());
        match (time, &self.zone) {
            (Time::Instant(at), _) => place(Placed::At(at), row, shift, rows),
            (Time::Local(_), None) => rows.refuse(line, "its zone is not known"),
            (Time::Local(local), Some(zone)) => {
                // In a long table rows of several series come at one time; a wide one has a row for each time.
                let key = match (&self.profile.long, row.readings.first()) {
                    (Some(_), Some((series, ..))) => format!("{series:?}"),
                    _ => entity,
                };
                if self.local.len() >= ENTITIES_MAX && !self.local.contains_key(&key) {
                    return Err(Error::invalid(format!(
                        "line {line}: local times of more than {ENTITIES_MAX} series; import them in parts"
                    )));
                }
                let (zone, dst) = (zone.clone(), self.dst);
                let times = self.local.entry(key).or_insert_with(|| LocalTimes::new(zone, dst));
                times.push(local, row, &mut |placed, row| place(placed, row, shift, rows));
            }
        }
        Ok(())
    }
}

enum Time {
    Instant(i64),
    Local(DateTime),
}

/// A cell without the disguise in which spreadsheets keep long numbers as text: `="123"`.
fn plain(cell: &str) -> &str {
    let cell = cell.trim();
    cell.strip_prefix("=\"").and_then(|rest| rest.strip_suffix('"')).unwrap_or(cell)
}

fn columns(profile: &Profile, cells: &[&str]) -> Result<Columns> {
    let find = |name: &str| cells.iter().position(|cell| is_column(cell, name));
    let need = |name: &str| {
        find(name).ok_or_else(|| {
            let there: Vec<_> = cells.iter().take(20).map(|cell| cell.trim()).collect();
            Error::invalid(format!("there is no column `{name}`; there are {}", there.join(", ")))
        })
    };
    let mut entity = Vec::new();
    let mut rest = profile.entity.as_deref().unwrap_or_default();
    while let Some((_, after)) = rest.split_once('{') {
        let Some((name, after)) = after.split_once('}') else {
            return Err(Error::invalid("entity: `}` is missing"));
        };
        entity.push((name.to_owned(), need(name)?));
        rest = after;
    }
    let mut values = Vec::new();
    for (which, spec) in profile.values.iter().enumerate() {
        if let Some(index) = spec.index {
            if index == 0 || index > cells.len() {
                return Err(Error::invalid(format!(
                    "values: there is no column {index}; there are {}",
                    cells.len()
                )));
            }
            values.push((which, vec![index - 1]));
            continue;
        }
        let places: Vec<usize> = spec.columns.iter().filter_map(|name| find(name)).collect();
        // Vendors leave columns out that the site has no meter for.
        if !places.is_empty() {
            values.push((which, places));
        }
    }
    if profile.long.is_none() && values.is_empty() {
        let names: Vec<_> =
            profile.values.iter().flat_map(|value| &value.columns).map(String::as_str).collect();
        return Err(Error::invalid(format!("it has none of the columns {}", names.join(", "))));
    }
    let long = profile.long.as_ref().map(|long| {
        Ok::<_, Error>((need(&long.series)?, need(&long.value)?, long.unit.as_deref().map(need).transpose()?))
    });
    Ok(Columns {
        time: profile.time.columns.iter().map(|name| need(name)).collect::<Result<_>>()?,
        entity,
        values,
        long: long.transpose()?,
        quality: profile.quality.as_ref().map(|quality| need(&quality.column)).transpose()?,
    })
}

impl RowReader for Reader {
    fn read(&mut self, rows: &mut FileRows) -> Result<bool> {
        let columns = match self.columns.take() {
            Some(columns) => columns,
            None => self.find_columns()?,
        };
        let is_there = self.next()?;
        if is_there {
            self.take(&columns, rows)?;
        } else {
            let shift = self.shift();
            for local in self.local.values_mut() {
                local.finish(&mut |placed, row| place(placed, row, shift, rows));
            }
        }
        self.columns = Some(columns);
        Ok(is_there)
    }
}

/// Takes the readings of a row whose instant is known.
fn place(placed: Placed, row: Row, shift: i64, rows: &mut FileRows) {
    let is_nothing = row.readings.iter().all(|(_, value, _)| *value == 0.0);
    for (series, value, quality) in row.readings {
        match placed.instant(quality, is_nothing) {
            Ok(Some((at, quality))) => rows.push(series, at - shift, value, quality, row.line),
            Ok(None) => {}
            // Once for the whole row.
            Err(words) => return rows.refuse(row.line, words),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_profiles_are_sound() {
        assert_eq!(KNOWN.len(), PROFILES.len());
        for (name, profile) in KNOWN.iter() {
            profile.check().unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(!profile.header.is_empty(), "{name}");
        }
    }
}
