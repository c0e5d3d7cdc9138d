//! InfluxDB line protocol: `measurement[,tag=value...] field=value[,field=value...] [timestamp]`.
//!
//! A line whose series is known goes the short way ([`fast`]): its bytes up to the fields are hashed, its numbers read, and
//! nothing else is looked at. Any other line goes the long way, which understands everything and finds the words for
//! what is wrong. Escapes: `\,` and `\ ` in the measurement, `\,` `\=` `\ ` in tags and field names, `\"` and `\\` in
//! strings; a backslash before anything else stands for itself.

mod fast;

use std::{borrow::Cow, sync::Arc};

use ahash::{HashMap, HashMapExt};
use wattlake_catalog::Quality;

use self::fast::FastLines;
use crate::{
    TimePrecision,
    ingest::{Collector, IngestRequest, LearnedLine, LineSeriesCache, SeriesSlot, parse_quality},
};

/// The start of a body, whose lines say how many rows the whole has.
const SAMPLE_BYTES: usize = 16 << 10;

/// Decodes every line; a bad line is reported and the others are kept.
pub(super) fn decode(request: &IngestRequest, body: &[u8], collector: &mut Collector) {
    let precision = request.precision.unwrap_or(TimePrecision::Nanoseconds);
    let engine = Arc::clone(&collector.context.engine);
    let cache = engine.line_cache().of(&collector.context.fleet, &request.site);
    let sample = &body[..body.len().min(SAMPLE_BYTES)];
    let lines = memchr::memchr_iter(b'\n', sample).count() + 1;
    collector.reserve((lines * body.len()).div_ceil(sample.len().max(1)));
    let learned = {
        let fast = FastLines::new(&cache, precision, &collector.context.allowed_sites);
        let mut slow = Decoder {
            site: &request.site,
            precision,
            series: HashMap::new(),
            cache: &cache,
            learned: Vec::new(),
            collector,
        };
        let mut number = 1;
        if memchr::memchr(b'"', body).is_none() {
            // Without strings a line ends at its newline.
            let mut start = 0;
            for end in memchr::memchr_iter(b'\n', body).chain([body.len()]) {
                let line = &body[start..end];
                if !fast.decode(number, line, slow.collector) {
                    slow.decode(number, line);
                }
                start = end + 1;
                number += 1;
                if start > body.len() {
                    break;
                }
            }
        } else {
            let mut rest = body;
            while !rest.is_empty() {
                let Split { line, tail, newlines, .. } = split_line(rest);
                if !fast.decode(number, line, slow.collector) {
                    slow.decode(number, line);
                }
                number += newlines;
                rest = tail;
            }
        }
        slow.learned()
    };
    cache.learn(learned);
}

/// The longest string that is looked for beyond the end of a part.
const STRING_BYTES_MAX: usize = 64 << 10;

/// A line and what comes after it.
struct Split<'a> {
    line: &'a [u8],
    tail: &'a [u8],
    /// Newlines in the line and at its end.
    newlines: u64,
    /// Whether a string in it does not close.
    is_open: bool,
}

/// Splits off a line; a newline inside a string does not end it.
fn split_line(bytes: &[u8]) -> Split<'_> {
    let end = memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
    let split = |end: usize, newlines, is_open| Split {
        line: &bytes[..end],
        tail: bytes.get(end + 1..).unwrap_or_default(),
        newlines,
        is_open,
    };
    if memchr::memchr(b'"', &bytes[..end]).is_none() {
        return split(end, 1, false);
    }
    let mut is_quoted = false;
    let mut newlines = 1;
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'\\' => i += 1,
            b'"' => is_quoted = !is_quoted,
            b'\n' if !is_quoted => break,
            b'\n' => newlines += 1,
            _ => {}
        }
        i += 1;
    }
    // A quote that never closes damages its own line only.
    if is_quoted { split(end, 1, true) } else { split(i.min(bytes.len()), newlines, false) }
}

/// Where the last line begins, which may break off at the end of `text`; `None` when there is only one.
pub(super) fn last_line(text: &[u8]) -> Option<usize> {
    let last = memchr::memrchr(b'\n', text).map(|i| i + 1);
    if memchr::memchr(b'"', text).is_none() {
        return last;
    }
    let mut rest = text;
    while !rest.is_empty() {
        let Split { tail, is_open, .. } = split_line(rest);
        let start = text.len() - rest.len();
        if start > 0 && is_open && rest.len() <= STRING_BYTES_MAX {
            return Some(start);
        }
        if tail.is_empty() && !text.ends_with(b"\n") && start > 0 {
            return Some(start);
        }
        rest = tail;
    }
    last
}

/// The long way.
struct Decoder<'a> {
    site: &'a str,
    precision: TimePrecision,
    /// By measurement and tags as the line writes them.
    series: HashMap<&'a [u8], LineSeries>,
    cache: &'a LineSeriesCache,
    /// Series of lines that could go the short way next time.
    learned: Vec<Lesson<'a>>,
    collector: &'a mut Collector,
}

/// What a line wrote before its fields, a field's name, and the series that they mean.
type Lesson<'a> = (&'a [u8], Box<[u8]>, SeriesSlot);

/// A measurement with its tags.
struct LineSeries {
    measurement: String,
    tags: Vec<(String, String)>,
    /// The entity that the tags name, when no mapping says otherwise.
    entity: u32,
    /// What fields with a unit of the line became.
    fields: HashMap<(Vec<u8>, Vec<u8>), SeriesSlot>,
}

/// A field's value.
enum FieldValue<'a> {
    Number(f64),
    Text(Cow<'a, str>),
    Boolean,
}

impl<'a> Decoder<'a> {
    /// What the cache should know: series of entities that the catalog has.
    fn learned(&self) -> Vec<LearnedLine> {
        let context = &self.collector.context;
        let learned = self.learned.iter().filter_map(|(key, field, slot)| {
            let series = self.collector.known_series(*slot)?;
            let site = context.fleet.site_of(series.entity)?.id;
            let channel = *context.engine.series().intern(&[series]).first()?;
            Some(LearnedLine::new(self.cache, key, field, channel, slot.conversion, site))
        });
        learned.collect()
    }

    fn decode(&mut self, number: u64, line: &'a [u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start();
        if !line.is_empty()
            && line[0] != b'#'
            && let Err(message) = self.decode_line(number, line)
        {
            self.collector.refuse(number, "invalid", message);
        }
    }

    fn decode_line(&mut self, number: u64, line: &'a [u8]) -> Result<(), String> {
        let key_end = unescaped(line, 0, b" ").ok_or("a line needs a measurement and at least one field")?;
        let key = &line[..key_end];
        let fields_start = key_end + line[key_end..].iter().take_while(|b| **b == b' ').count();
        let fields_end = end_of_fields(line, fields_start);
        let timestamp = line[fields_end..].trim_ascii();
        let ts = match timestamp {
            [] => self.collector.context.now,
            digits => std::str::from_utf8(digits)
                .ok()
                .and_then(|text| text.parse::<i64>().ok())
                .and_then(|n| self.precision.to_micros(n))
                .ok_or_else(|| {
                    format!("timestamp `{}` is not an integer", String::from_utf8_lossy(digits))
                })?,
        };
        let fields = split_fields(&line[fields_start..fields_end])?;
        if !self.series.contains_key(key) {
            let series = self.parse_series(key)?;
            self.series.insert(key, series);
        }
        // `quality` and `unit` speak for the whole line, wherever they stand.
        let mut unit = None;
        let mut quality = Quality::Good;
        for (name, value) in &fields {
            match (&**name, value) {
                ("unit", FieldValue::Text(text)) => unit = Some(text.as_ref()),
                ("quality", FieldValue::Text(text)) => quality = parse_quality(Some(text))?,
                _ => {}
            }
        }
        for (name, value) in &fields {
            match value {
                FieldValue::Number(value) => match self.field_series(key, name, unit) {
                    Ok(series) => self.collector.push_value(number, series, ts, *value, quality, None),
                    Err((kind, message)) => self.collector.refuse(number, kind, message),
                },
                FieldValue::Text(_) if matches!(&**name, "unit" | "quality") => {}
                FieldValue::Text(_) | FieldValue::Boolean => self.collector.skip_field(),
            }
        }
        Ok(())
    }

    fn field_series(
        &mut self,
        key: &'a [u8],
        field: &str,
        unit: Option<&str>,
    ) -> Result<SeriesSlot, (&'static str, String)> {
        let Some(series) = self.series.get_mut(key) else { return Err(("invalid", "no series".to_owned())) };
        let cached = (field.as_bytes().to_vec(), unit.unwrap_or_default().as_bytes().to_vec());
        if let Some(slot) = series.fields.get(&cached) {
            return Ok(*slot);
        }
        let rule = self.collector.context.mappings().iter().find(|rule| {
            rule.measurement == series.measurement
                && (rule.field.is_empty() || rule.field == field)
                && rule
                    .tags
                    .iter()
                    .all(|(name, value)| series.tags.iter().any(|(n, v)| n == name && v == value))
        });
        let rule = rule.cloned().unwrap_or_default();
        let metric = match (rule.metric.as_str(), field) {
            ("", "value") => series.measurement.as_str(),
            ("", field) => field,
            (metric, _) => metric,
        };
        let stated_unit = unit;
        let unit = unit.or((!rule.unit.is_empty()).then_some(rule.unit.as_str()));
        let entity = if rule.entity.is_empty() {
            series.entity
        } else {
            self.collector.line_entity(Some(&rule.entity), String::new(), rule.entity.clone())
        };
        let slot = self.collector.series(entity, metric, unit)?;
        series.fields.insert(cached, slot);
        // The short way compares bytes, so what is escaped never matches there.
        if stated_unit.is_none() && !key.contains(&b'\\') && !field.contains('\\') {
            self.learned.push((key, field.as_bytes().into(), slot));
        }
        Ok(slot)
    }

    fn parse_series(&mut self, key: &[u8]) -> Result<LineSeries, String> {
        let mut parts = split_unescaped(key, b',').into_iter();
        let measurement = parts.next().map(|part| unescape(part, b", ")).transpose()?.unwrap_or_default();
        if measurement.is_empty() {
            return Err("the measurement is empty".to_owned());
        }
        let mut tags = Vec::new();
        for part in parts {
            let at = unescaped(part, 0, b"=")
                .ok_or_else(|| format!("tag `{}` has no value", String::from_utf8_lossy(part)))?;
            let (name, value) = (unescape(&part[..at], b",= ")?, unescape(&part[at + 1..], b",= ")?);
            if name.is_empty() || value.is_empty() {
                return Err(format!("tag `{name}={value}` has an empty name or value"));
            }
            tags.push((name.into_owned(), value.into_owned()));
        }
        tags.sort();
        let text: String = tags.iter().map(|(name, value)| format!(",{name}={value}")).collect();
        let named = tags.iter().find(|(name, _)| name == "entity_id").map(|(_, value)| value.as_str());
        let external_id = shorten(format!("{}/{measurement}{text}", self.site));
        let name = match named {
            Some(named) if named.parse::<wattlake_catalog::EntityId>().is_err() => named.to_owned(),
            _ => shorten(format!("{measurement}{text}")),
        };
        let entity = self.collector.line_entity(named, external_id, name);
        Ok(LineSeries { measurement: measurement.into_owned(), tags, entity, fields: HashMap::new() })
    }
}

/// Long series names end in a hash instead of their tail.
fn shorten(name: String) -> String {
    const KEEP: usize = 150;
    if name.chars().count() <= KEEP {
        return name;
    }
    let head: String = name.chars().take(KEEP).collect();
    format!("{head}#{}", &blake3::hash(name.as_bytes()).to_hex()[..16])
}

/// The first of `stops` at or after `from` that no backslash escapes.
fn unescaped(bytes: &[u8], from: usize, stops: &[u8]) -> Option<usize> {
    let mut i = from;
    while i < bytes.len() {
        match bytes[i] {
            b'\\' => i += 1,
            byte if stops.contains(&byte) => return Some(i),
            _ => {}
        }
        i += 1;
    }
    None
}

fn split_unescaped(bytes: &[u8], stop: u8) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let mut start = 0;
    while let Some(at) = unescaped(bytes, start, &[stop]) {
        parts.push(&bytes[start..at]);
        start = at + 1;
    }
    parts.push(&bytes[start..]);
    parts
}

/// Removes backslashes before the characters that need them; others stand for themselves.
fn unescape<'a>(bytes: &'a [u8], special: &[u8]) -> Result<Cow<'a, str>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "the line is not valid UTF-8".to_owned())?;
    if memchr::memchr(b'\\', bytes).is_none() {
        return Ok(Cow::Borrowed(text));
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let escapes =
            c == '\\' && chars.peek().is_some_and(|next| next.is_ascii() && special.contains(&(*next as u8)));
        if !escapes {
            out.push(c);
        } else if let Some(next) = chars.next() {
            out.push(next);
        }
    }
    Ok(Cow::Owned(out))
}

/// Where the fields end: at the first space outside of a string.
fn end_of_fields(line: &[u8], start: usize) -> usize {
    let mut is_quoted = false;
    let mut i = start;
    while i < line.len() {
        match line[i] {
            b'\\' => i += 1,
            b'"' => is_quoted = !is_quoted,
            b' ' if !is_quoted => return i,
            _ => {}
        }
        i += 1;
    }
    line.len()
}

fn split_fields(bytes: &[u8]) -> Result<Vec<(Cow<'_, str>, FieldValue<'_>)>, String> {
    let mut fields = Vec::with_capacity(1);
    let mut rest = bytes;
    loop {
        let at = unescaped(rest, 0, b"=")
            .ok_or_else(|| format!("field `{}` has no value", String::from_utf8_lossy(rest)))?;
        let name = unescape(&rest[..at], b",= ")?;
        if name.is_empty() {
            return Err("a field has no name".to_owned());
        }
        let value = &rest[at + 1..];
        let end = if value.first() == Some(&b'"') {
            let close = unescaped(value, 1, b"\"").ok_or("a string does not end")?;
            close + 1
        } else {
            memchr::memchr(b',', value).unwrap_or(value.len())
        };
        fields.push((name, field_value(&value[..end])?));
        match value.get(end) {
            None => return Ok(fields),
            Some(b',') => rest = &value[end + 1..],
            Some(_) => return Err("text follows the end of a string".to_owned()),
        }
    }
}

fn field_value(bytes: &[u8]) -> Result<FieldValue<'_>, String> {
    if let Some(inner) = bytes.strip_prefix(b"\"").and_then(|b| b.strip_suffix(b"\"")) {
        return Ok(FieldValue::Text(unescape(inner, b"\"\\")?));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "the line is not valid UTF-8".to_owned())?;
    match text {
        "t" | "T" | "true" | "True" | "TRUE" | "f" | "F" | "false" | "False" | "FALSE" => {
            return Ok(FieldValue::Boolean);
        }
        _ => {}
    }
    let invalid = || format!("value `{text}` is neither a number, a string in quotes nor a boolean");
    if let Some(digits) = text.strip_suffix('i') {
        return digits.parse::<i64>().map(|n| FieldValue::Number(n as f64)).map_err(|_| invalid());
    }
    if let Some(digits) = text.strip_suffix('u') {
        return digits.parse::<u64>().map(|n| FieldValue::Number(n as f64)).map_err(|_| invalid());
    }
    // Rust also reads `inf`, `nan` and a leading `+`; line protocol has no such numbers.
    if !text.bytes().next().is_some_and(|b| b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'+')) {
        return Err(invalid());
    }
    text.parse::<f64>().map(FieldValue::Number).map_err(|_| invalid())
}
