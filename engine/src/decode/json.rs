//! JSON arrays and objects, and one JSON object a line.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::time::parse_timestamp;
use crate::{
    Error, Result, TimePrecision,
    ingest::{Collector, IngestRequest, RawReading},
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct JsonReading<'a> {
    #[serde(borrow)]
    entity_id: Cow<'a, str>,
    #[serde(borrow, default)]
    entity_type: Option<Cow<'a, str>>,
    #[serde(borrow)]
    timestamp: &'a RawValue,
    #[serde(borrow)]
    metric: Cow<'a, str>,
    value: f64,
    #[serde(borrow, default)]
    unit: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    quality: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    metadata: Option<&'a RawValue>,
}

pub(super) fn decode_json(request: &IngestRequest, body: &[u8], collector: &mut Collector) -> Result<()> {
    let text = as_text(body)?;
    let malformed = |error: serde_json::Error| Error::invalid(format!("the body is not valid JSON: {error}"));
    match text.trim_start().as_bytes().first() {
        None => Err(Error::invalid("the body is empty; send a reading or an array of readings")),
        Some(b'[') => {
            let rows: Vec<&RawValue> = serde_json::from_str(text).map_err(malformed)?;
            for (row, raw) in (0..).zip(rows) {
                decode_row(row, raw.get(), request.precision, collector);
            }
            Ok(())
        }
        Some(_) => {
            let raw: &RawValue = serde_json::from_str(text).map_err(malformed)?;
            decode_row(0, raw.get(), request.precision, collector);
            Ok(())
        }
    }
}

pub(super) fn decode_ndjson(request: &IngestRequest, body: &[u8], collector: &mut Collector) -> Result<()> {
    let mut row = 0;
    for line in body.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        match std::str::from_utf8(line) {
            Ok(text) => decode_row(row, text, request.precision, collector),
            Err(_) => collector.refuse(row, "invalid", "the line is not valid UTF-8"),
        }
        row += 1;
    }
    if row == 0 {
        return Err(Error::invalid("the body is empty; send one JSON reading a line"));
    }
    Ok(())
}

fn decode_row(row: u64, text: &str, precision: Option<TimePrecision>, collector: &mut Collector) {
    let reading: JsonReading<'_> = match serde_json::from_str(text) {
        Ok(reading) => reading,
        Err(error) => {
            // Line and column are those of one reading; they would mislead.
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or_default();
            return collector.refuse(row, "invalid", message.to_owned());
        }
    };
    let timestamp = match serde_json::from_str::<Cow<'_, str>>(reading.timestamp.get()) {
        Ok(text) => parse_timestamp(&text, precision),
        Err(_) => parse_timestamp(reading.timestamp.get(), precision),
    };
    let ts = match timestamp {
        Ok(ts) => ts,
        Err(message) => return collector.refuse(row, "invalid", message),
    };
    let metadata = reading.metadata.map(RawValue::get).filter(|text| *text != "null");
    if metadata.is_some_and(|text| !text.starts_with('{')) {
        return collector.refuse(row, "invalid", "metadata: a JSON object");
    }
    collector.push(
        row,
        &RawReading {
            entity: &reading.entity_id,
            entity_type: reading.entity_type.as_deref(),
            ts,
            metric: &reading.metric,
            value: reading.value,
            unit: reading.unit.as_deref(),
            quality: reading.quality.as_deref(),
            metadata,
        },
    );
}

fn as_text(body: &[u8]) -> Result<&str> {
    std::str::from_utf8(body).map_err(|error| {
        Error::invalid(format!("the body is not valid UTF-8 at byte {}", error.valid_up_to()))
    })
}
