//! From JSON of any shape to readings, as a configuration says: which nodes are rows, where in them times, values and units are.
//!
//! Paths are JSONPath (RFC 9535) within a row; `$root...` begins at the document, `$parent(2)...` two levels above the row. `{key(-1)}`
//! is the last name or index of the path of the row, `{key(0)}` the first one.

use std::collections::BTreeSet;

use jiff::{Timestamp, civil::Date, civil::DateTime, tz::TimeZone};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;
use serde_json_path::{JsonPath, PathElement};
use wattlake_catalog::Quality;

use super::{
    SECOND,
    connector::{Point, Quantity, Role},
    failure::CallFailure,
    schedule,
};

/// Rows of one answer: more are an answer that cannot be read, not one that is cut short.
pub(crate) const ROWS_MAX: usize = 200_000;
/// Numbers that nobody took, shown to who writes a mapping.
const LEFT_MAX: usize = 100;

/// Where something is, seen from a row.
#[derive(Clone, Debug)]
enum Place {
    Row(JsonPath),
    Root(JsonPath),
    /// Levels above the row.
    Parent(usize, JsonPath),
}

impl Place {
    fn parse(text: &str) -> Result<Self, String> {
        let path =
            |text: &str| JsonPath::parse(text).map_err(|error| format!("`{text}` is no JSONPath: {error}"));
        if let Some(rest) = text.strip_prefix("$root") {
            return Ok(Self::Root(path(&format!("${rest}"))?));
        }
        if let Some(rest) = text.strip_prefix("$parent(") {
            let (levels, rest) = rest.split_once(')').ok_or_else(|| format!("`{text}`: `)` is missing"))?;
            let levels = levels.parse().map_err(|_| format!("`{text}`: a number of levels is expected"))?;
            return Ok(Self::Parent(levels, path(&format!("${rest}"))?));
        }
        Ok(Self::Row(path(text)?))
    }

    fn find<'a>(&self, root: &'a Value, row: &Row<'a>) -> Option<&'a Value> {
        match self {
            Self::Row(path) => path.query(row.node).first(),
            Self::Root(path) => path.query(root).first(),
            Self::Parent(levels, path) => {
                let depth = row.path.len().checked_sub(*levels)?;
                let above = row.path[..depth].iter().try_fold(root, |node, key| key.step(node))?;
                path.query(above).first()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// A step from a node to one below it.
#[derive(Clone, Debug)]
enum Key {
    Name(String),
    Index(usize),
}

impl Key {
    fn step<'a>(&self, node: &'a Value) -> Option<&'a Value> {
        match self {
            Self::Name(name) => node.get(name),
            Self::Index(index) => node.get(index),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Name(name) => name.clone(),
            Self::Index(index) => index.to_string(),
        }
    }
}

struct Row<'a> {
    node: &'a Value,
    path: Vec<Key>,
}

impl Row<'_> {
    /// Replaces `{key(n)}`, `{$.name}` by what the row has there, and `{topic(n)}` by a part of the topic of a message.
    fn fill(&self, template: &str, root: &Value) -> Option<String> {
        let mut out = String::new();
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}')?;
            if name.starts_with('$') {
                out.push_str(before);
                out.push_str(&as_text(Place::parse(name).ok()?.find(root, self)?)?);
                rest = after;
                continue;
            }
            let (name, index) = name.strip_suffix(')')?.split_once('(')?;
            let index: i64 = index.parse().ok()?;
            let place = |len: usize| usize::try_from(if index < 0 { len as i64 + index } else { index }).ok();
            out.push_str(before);
            match name {
                "key" => out.push_str(&self.path.get(place(self.path.len())?)?.text()),
                "topic" => {
                    let parts = root.get("topic")?.as_array()?;
                    out.push_str(parts.get(place(parts.len())?)?.as_str()?);
                }
                _ => return None,
            }
            rest = after;
        }
        Some(out + rest)
    }

    fn last_number(&self) -> Option<i64> {
        self.path.last()?.text().parse().ok()
    }
}

fn period<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let text = String::deserialize(deserializer)?;
    schedule::seconds(&text)
        .ok_or_else(|| D::Error::custom(format!("`{text}` is no length of time, as 15min or 1d")))
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Label {
    #[default]
    Start,
    End,
}

/// When a reading was.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Time {
    path: Place,
    /// `epoch_s`, `epoch_ms`, `rfc3339`, or a pattern of strftime for local times.
    format: String,
    /// A row without a time is about now.
    #[serde(default)]
    or_now: bool,
    /// Whether it is the start or the end of an interval.
    #[serde(default)]
    label: Label,
    /// Seconds of an interval; only needed where its end is told.
    #[serde(default, deserialize_with = "period")]
    length: i64,
    /// The row's last key counts these from the time: seconds where nothing else is said.
    #[serde(default)]
    plus_key: bool,
    /// What the key counts, seconds; days are those of the site.
    #[serde(default = "one", deserialize_with = "period")]
    step: i64,
}

fn one() -> i64 {
    1
}

impl Time {
    /// Microseconds since 1970 UTC.
    fn read(&self, root: &Value, row: &Row<'_>, zone: &TimeZone, now: i64) -> Option<i64> {
        let value = self.path.find(root, row)?;
        let mut ts = match self.format.as_str() {
            "epoch_s" => (number(value, Parse::Number)? * 1e6).round() as i64,
            "epoch_ms" => (number(value, Parse::Number)? * 1e3).round() as i64,
            "rfc3339" => value.as_str()?.parse::<Timestamp>().ok()?.as_microsecond(),
            pattern => {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let local = DateTime::strptime(pattern, &text)
                    .or_else(|_| {
                        Date::strptime(pattern, &text).map(|date| date.to_datetime(Default::default()))
                    })
                    .ok()?;
                local_instant(local, zone, now)?
            }
        };
        if self.plus_key {
            let count = row.last_number()?;
            ts = if self.step % 86_400 == 0 {
                let days = jiff::Span::new().try_days(count.checked_mul(self.step / 86_400)?).ok()?;
                let start = Timestamp::from_microsecond(ts).ok()?.to_zoned(zone.clone());
                start.checked_add(days).ok()?.timestamp().as_microsecond()
            } else {
                ts.checked_add(count.checked_mul(self.step)?.checked_mul(SECOND)?)?
            };
        }
        Some(if self.label == Label::End { ts - self.length * SECOND } else { ts })
    }
}

/// A local time as an instant; of two that look the same the last one that is not in the future.
fn local_instant(local: DateTime, zone: &TimeZone, now: i64) -> Option<i64> {
    let ambiguous = zone.to_ambiguous_zoned(local);
    let (earlier, later) = (ambiguous.clone().earlier().ok()?, ambiguous.later().ok()?);
    let later = later.timestamp().as_microsecond();
    Some(if later <= now { later } else { earlier.timestamp().as_microsecond() })
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Parse {
    #[default]
    Number,
    /// `97%`, `12.5 kWh`.
    NumberPrefix,
    /// The bits of a float of 32 bits in hexadecimal, as `fl_42C80000`.
    HexF32,
}

/// The number that a node holds; `None`: none.
fn number(value: &Value, parse: Parse) -> Option<f64> {
    if let Some(number) = value.as_f64() {
        return Some(number);
    }
    let text = value.as_str()?.trim();
    match parse {
        Parse::Number => text.parse().ok(),
        Parse::NumberPrefix => {
            let end = text.find(|c: char| !(c.is_ascii_digit() || "+-.".contains(c))).unwrap_or(text.len());
            text[..end].parse().ok()
        }
        Parse::HexF32 => {
            let hex = text.rsplit('_').next()?;
            Some(f64::from(f32::from_bits(u32::from_str_radix(hex, 16).ok()?)))
        }
    }
}

/// One value of a row.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ValueSpec {
    /// May hold `{key(n)}`.
    metric: String,
    path: Option<Place>,
    /// Where `path` finds nothing: the sum of these, all of which must be there.
    #[serde(default)]
    or_sum: Vec<Place>,
    /// Of a table with a header: the sum of these columns.
    #[serde(default)]
    columns: Vec<String>,
    unit: Option<String>,
    unit_path: Option<Place>,
    #[serde(default)]
    parse: Parse,
    scale: Option<f64>,
    /// What stands for nothing.
    #[serde(default)]
    null_values: Vec<Value>,
    /// Values beyond these are bad.
    min: Option<f64>,
    max: Option<f64>,
    #[serde(default)]
    role: Option<Role>,
}

/// A table: names of columns, then rows of numbers at equal steps of time.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Table {
    /// Names of the columns, from the document.
    header: Place,
    /// The rows of a block.
    rows: Place,
    /// When a block begins, seconds since 1970.
    start: Place,
    /// Seconds between its rows.
    step: Place,
}

/// How one kind of node becomes readings.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Mapping {
    #[serde(default = "whole", deserialize_with = "json_path")]
    rows: JsonPath,
    time: Option<Time>,
    table: Option<Table>,
    /// The serial number of the device that rows are of; may hold `{key(n)}`.
    device: Option<String>,
    values: Vec<ValueSpec>,
}

fn whole() -> JsonPath {
    JsonPath::default()
}

fn json_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<JsonPath, D::Error> {
    let text = String::deserialize(deserializer)?;
    JsonPath::parse(&text).map_err(|error| D::Error::custom(format!("`{text}` is no JSONPath: {error}")))
}

/// What mappings made of a document.
#[derive(Debug, Default)]
pub(crate) struct Mapped {
    pub points: Vec<Point>,
    /// Paths and columns that were not found in any row.
    pub unmatched: Vec<String>,
    /// There were more rows than [`ROWS_MAX`].
    pub is_too_long: bool,
    /// Nodes with numbers that nobody took.
    taken: BTreeSet<String>,
}

impl Mapping {
    /// Takes readings out of a document; those without a time are of `now`.
    pub(crate) fn apply(&self, root: &Value, zone: &TimeZone, now: i64, out: &mut Mapped) {
        let mut rows = Vec::new();
        let located_rows = self.rows.query_located(root);
        out.is_too_long |= located_rows.len() > ROWS_MAX;
        for located in located_rows.iter().take(ROWS_MAX) {
            let key = |element: &PathElement<'_>| match (element.as_name(), element.as_index()) {
                (Some(name), _) => Key::Name(name.to_owned()),
                (None, index) => Key::Index(index.unwrap_or(0)),
            };
            rows.push(Row { node: located.node(), path: located.location().iter().map(key).collect() });
        }
        if rows.is_empty() {
            out.unmatched.push(format!("rows {}", self.rows));
        }
        let mut found = vec![false; self.values.len()];
        for row in &rows {
            match &self.table {
                Some(table) => self.take_table(table, root, row, out, &mut found),
                None => self.take_row(root, row, zone, now, out, &mut found),
            }
        }
        for (spec, _) in self.values.iter().zip(found).filter(|(_, found)| !found && !rows.is_empty()) {
            out.unmatched.push(format!("the value of {}", spec.metric));
        }
    }

    fn take_row(
        &self,
        root: &Value,
        row: &Row<'_>,
        zone: &TimeZone,
        now: i64,
        out: &mut Mapped,
        found: &mut [bool],
    ) {
        let ts = match &self.time {
            None => now,
            Some(time) if time.or_now && time.path.find(root, row).is_none() => now,
            Some(time) => match time.read(root, row, zone, now) {
                Some(ts) => ts,
                None => {
                    if !out.unmatched.iter().any(|what| what == "the time") {
                        out.unmatched.push("the time".to_owned());
                    }
                    return;
                }
            },
        };
        for (spec, found) in self.values.iter().zip(found) {
            let first = spec.path.as_ref().and_then(|path| path.find(root, row));
            let nodes = match first {
                Some(node) => vec![node],
                None => spec.or_sum.iter().filter_map(|path| path.find(root, row)).collect(),
            };
            if nodes.is_empty() || first.is_none() && nodes.len() < spec.or_sum.len() {
                continue;
            }
            *found = true;
            out.taken.extend(nodes.iter().map(|node| address(node)));
            if let Some(values) = nodes.iter().map(|node| spec.value(node)).collect::<Option<Vec<_>>>() {
                self.push(spec, values.iter().sum(), ts, root, row, out);
            }
        }
    }

    fn take_table(&self, table: &Table, root: &Value, row: &Row<'_>, out: &mut Mapped, found: &mut [bool]) {
        let names = table.header.find(root, row).and_then(Value::as_array);
        let start = table.start.find(root, row).and_then(Value::as_i64);
        let step = table.step.find(root, row).and_then(Value::as_i64);
        let rows = table.rows.find(root, row).and_then(Value::as_array);
        let (Some(names), Some(start), Some(step), Some(rows)) = (names, start, step, rows) else {
            out.unmatched.push("the header, start, step or rows of the table".to_owned());
            return;
        };
        out.is_too_long |= rows.len() > ROWS_MAX;
        for (spec, found) in self.values.iter().zip(found) {
            let columns: Vec<usize> = spec
                .columns
                .iter()
                .filter_map(|column| names.iter().position(|name| name.as_str() == Some(column)))
                .collect();
            if columns.is_empty() || columns.len() < spec.columns.len() {
                continue;
            }
            *found = true;
            for (n, cells) in rows.iter().take(ROWS_MAX).enumerate() {
                let cells = columns.iter().map(|column| cells.get(column).and_then(|cell| spec.value(cell)));
                let Some(cells) = cells.collect::<Option<Vec<_>>>() else { continue };
                let ts = (n as i64)
                    .checked_mul(step)
                    .and_then(|shift| start.checked_add(shift)?.checked_mul(SECOND));
                if let Some(ts) = ts {
                    self.push(spec, cells.iter().sum(), ts, root, row, out);
                }
            }
        }
    }

    fn push(&self, spec: &ValueSpec, value: f64, ts: i64, root: &Value, row: &Row<'_>, out: &mut Mapped) {
        let stated = spec.unit_path.as_ref().and_then(|path| path.find(root, row)).and_then(Value::as_str);
        let unit = spelled(stated.or(spec.unit.as_deref()).unwrap_or_default());
        let Some(metric) = row.fill(&spec.metric, root).and_then(|metric| intern_answered(&metric)) else {
            return;
        };
        let is_plausible = spec.min.is_none_or(|min| value >= min) && spec.max.is_none_or(|max| value <= max);
        out.points.push(Point {
            quantity: Quantity::named(metric, spec.role),
            device: self.device.as_ref().and_then(|device| row.fill(device, root)),
            ts,
            value,
            unit: intern_answered(&unit).unwrap_or_default(),
            quality: if is_plausible { Quality::Good } else { Quality::Bad },
        });
    }
}

impl ValueSpec {
    fn value(&self, node: &Value) -> Option<f64> {
        if node.is_null() || self.null_values.contains(node) {
            return None;
        }
        let value = number(node, self.parse)?;
        // A sentinel may be written with a point or without.
        if self.null_values.iter().any(|none| none.as_f64() == Some(value)) {
            return None;
        }
        Some(value * self.scale.unwrap_or(1.0))
    }
}

/// A word or a number, as a text.
pub(crate) fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A unit as we spell it: vendors write WH and kwh.
fn spelled(unit: &str) -> String {
    const SPELLINGS: [&str; 9] = ["W", "kW", "Wh", "kWh", "MWh", "GWh", "V", "A", "Hz"];
    // mW and MW are told apart by their sender only.
    let known = SPELLINGS.iter().find(|known| known.eq_ignore_ascii_case(unit));
    known.map_or_else(|| unit.to_owned(), |known| (*known).to_owned())
}

/// Texts of configurations, kept for as long as the process runs: there are as many as somebody has written.
pub(crate) fn intern(text: &str) -> &'static str {
    static KNOWN: parking_lot::Mutex<BTreeSet<&'static str>> = parking_lot::Mutex::new(BTreeSet::new());
    let mut known = KNOWN.lock();
    if let Some(found) = known.get(text) {
        return found;
    }
    let text: &'static str = Box::leak(text.to_owned().into_boxed_str());
    known.insert(text);
    text
}

/// Texts of answers that were kept; they are never let go.
struct Answered(BTreeSet<&'static str>);

impl Answered {
    const CHARS_MAX: usize = 128;
    const TEXTS_MAX: usize = 20_000;

    /// `None`: it is too long, or there are too many already.
    fn intern(&mut self, text: &str) -> Option<&'static str> {
        if let Some(found) = self.0.get(text) {
            return Some(found);
        }
        if text.is_empty() || text.len() > Self::CHARS_MAX || self.0.len() >= Self::TEXTS_MAX {
            return None;
        }
        let text = intern(text);
        self.0.insert(text);
        Some(text)
    }
}

/// As [`intern`], for texts of answers, of which there may be too many.
fn intern_answered(text: &str) -> Option<&'static str> {
    static ANSWERED: parking_lot::Mutex<Answered> = parking_lot::Mutex::new(Answered(BTreeSet::new()));
    ANSWERED.lock().intern(text)
}

/// A reading as a program yields it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Yielded {
    metric: String,
    /// Seconds since 1970, or a text of RFC 3339; now unless said.
    time: Option<Value>,
    value: Option<f64>,
    #[serde(default)]
    unit: String,
    quality: Option<Quality>,
    device: Option<String>,
    role: Option<Role>,
}

/// The readings of a list that a program yields.
///
/// # Errors
/// `BadPayload`, with the place of what is no reading.
pub(crate) fn yielded(list: &Value, now: i64) -> Result<Mapped, CallFailure> {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    let mut mapped = Mapped { is_too_long: list.len() > ROWS_MAX, ..Mapped::default() };
    for (place, value) in list.iter().take(ROWS_MAX).enumerate() {
        let wrong = |words: String| {
            let words = format!("value {} of the jq program is no reading: {words}", place + 1);
            CallFailure::bad_payload(words, value.to_string().as_bytes())
        };
        let found = Yielded::deserialize(value).map_err(|error| wrong(error.to_string()))?;
        let ts = match &found.time {
            None | Some(Value::Null) => Some(now),
            Some(Value::Number(seconds)) => seconds.as_f64().map(|seconds| (seconds * 1e6).round() as i64),
            Some(Value::String(text)) => text.parse::<Timestamp>().ok().map(Timestamp::as_microsecond),
            Some(_) => None,
        };
        let ts = ts.ok_or_else(|| wrong("`time` is neither seconds since 1970 nor RFC 3339".into()))?;
        let metric = intern_answered(&found.metric).ok_or_else(|| wrong("`metric` is no name".into()))?;
        let Some(value) = found.value else { continue };
        let unit = spelled(&found.unit);
        mapped.points.push(Point {
            quantity: Quantity::named(metric, found.role),
            device: found.device,
            ts,
            value,
            unit: intern_answered(&unit).unwrap_or_default(),
            quality: found.quality.unwrap_or(Quality::Good),
        });
    }
    Ok(mapped)
}

/// Tells a node from all others of its document.
fn address(node: &Value) -> String {
    format!("{:p}", std::ptr::from_ref(node))
}

/// The paths of numbers that no value of a mapping took.
pub(crate) fn left_over(root: &Value, mapped: &Mapped) -> Vec<String> {
    let mut left = Vec::new();
    let mut nodes = vec![(String::from("$"), root)];
    while let Some((path, node)) = nodes.pop() {
        if left.len() >= LEFT_MAX {
            break;
        }
        match node {
            Value::Object(members) => {
                nodes.extend(members.iter().rev().map(|(name, node)| (format!("{path}['{name}']"), node)));
            }
            // One element shows what all are like.
            Value::Array(elements) => {
                nodes.extend(elements.iter().take(1).map(|node| (format!("{path}[0]"), node)));
            }
            Value::Number(_) if !mapped.taken.contains(&address(node)) => left.push(path),
            _ => {}
        }
    }
    left
}

#[cfg(test)]
mod tests;
