//! CSV with a header row, plain or mapped.

use csv::{ByteRecord, ReaderBuilder};

use super::{
    table::{Readings, TablePlan},
    time::TimeReader,
};
use crate::{
    Error, Result,
    ingest::{Collector, IngestRequest, RawReading, TableMapping},
};

/// Cells that mean "no reading" in a wide table.
const NULL_CELLS: &[&str] = &["", "-", "null", "NULL", "NaN", "nan", "NA", "N/A"];

/// Records as they stand, the header row among them.
pub(super) fn reader(text: &[u8], delimiter: u8) -> csv::Reader<&[u8]> {
    ReaderBuilder::new().delimiter(delimiter).flexible(true).has_headers(false).from_reader(text)
}

pub(super) fn decode(request: &IngestRequest, collector: &mut Collector) -> Result<()> {
    let mapping = request.mapping.as_deref();
    let body = request.body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&request.body);
    let mut reader = reader(body, mapping.map_or(b',', TableMapping::delimiter));
    let mut record = ByteRecord::new();
    let read = |reader: &mut csv::Reader<&[u8]>, record: &mut ByteRecord| {
        reader
            .read_byte_record(record)
            .map_err(|error| Error::invalid(format!("the body is not valid CSV: {error}")))
    };
    if !read(&mut reader, &mut record)? {
        return Err(Error::invalid("the body is empty; send a header row and readings"));
    }
    let header = record
        .iter()
        .map(|cell| std::str::from_utf8(cell).map(|text| text.trim().to_owned()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| Error::invalid("the header row is not valid UTF-8"))?;
    let plan = TablePlan::new(&header, mapping)?;
    let columns = Columns::new(&plan, &header);
    let mut times = TimeReader::new(request)?;
    let mut row = 0;
    while read(&mut reader, &mut record)? {
        if record.len() == 1 && record[0].is_empty() {
            continue;
        }
        if record.len() != header.len() {
            let message = format!("{} cells where the header has {}", record.len(), header.len());
            collector.refuse(row, "invalid", message);
        } else if let Err((kind, message)) = decode_row(row, &record, &plan, &columns, &mut times, collector)
        {
            collector.refuse(row, kind, message);
        }
        row += 1;
    }
    Ok(())
}

/// Positions of the planned columns.
struct Columns {
    entity: Option<usize>,
    entity_type: Option<usize>,
    timestamp: usize,
    quality: Option<usize>,
    metadata: Option<usize>,
    /// Metric, value and unit of a long table.
    long: Option<(usize, usize, Option<usize>)>,
    wide: Vec<usize>,
}

impl Columns {
    fn new(plan: &TablePlan, header: &[String]) -> Self {
        // The plan found every name in the header.
        let at = |name: &str| header.iter().position(|column| column == name).unwrap_or(usize::MAX);
        let optional = |name: &Option<String>| name.as_deref().map(at);
        let (long, wide) = match &plan.readings {
            Readings::Long { metric, value, unit } => {
                (Some((at(metric), at(value), optional(unit))), Vec::new())
            }
            Readings::Wide(values) => (None, values.iter().map(|value| at(&value.column)).collect()),
        };
        Self {
            entity: optional(&plan.entity),
            entity_type: optional(&plan.entity_type),
            timestamp: at(&plan.timestamp),
            quality: optional(&plan.quality),
            metadata: optional(&plan.metadata),
            long,
            wide,
        }
    }
}

fn decode_row(
    row: u64,
    record: &ByteRecord,
    plan: &TablePlan,
    columns: &Columns,
    times: &mut TimeReader,
    collector: &mut Collector,
) -> Result<(), (&'static str, String)> {
    let cell = |i: usize| {
        std::str::from_utf8(&record[i])
            .map(str::trim)
            .map_err(|_| ("invalid", format!("cell {i} is not valid UTF-8")))
    };
    let optional = |i: Option<usize>| -> Result<Option<&str>, (&'static str, String)> {
        Ok(i.map(cell).transpose()?.filter(|text| !text.is_empty()))
    };
    let entity = match columns.entity {
        Some(i) => cell(i)?,
        None => plan.entity_name.as_deref().unwrap_or_default(),
    };
    let entity_type = optional(columns.entity_type)?;
    let metric = columns.long.map_or(Ok(""), |(metric, ..)| cell(metric))?;
    let ts = times.read(cell(columns.timestamp)?, entity, metric).map_err(|message| ("invalid", message))?;
    let metadata = optional(columns.metadata)?;
    if metadata.is_some_and(|text| serde_json::from_str::<serde_json::Map<_, _>>(text).is_err()) {
        return Err(("invalid", "metadata: a JSON object".to_owned()));
    }
    let mut reading = RawReading {
        entity,
        entity_type,
        ts,
        metric,
        value: 0.0,
        unit: None,
        quality: optional(columns.quality)?,
        metadata,
    };
    if let Some((_, value, unit)) = columns.long {
        reading.value = number(cell(value)?)?;
        reading.unit = optional(unit)?;
        collector.push(row, &reading);
    }
    if let Readings::Wide(values) = &plan.readings {
        for (value, &i) in values.iter().zip(&columns.wide) {
            let text = cell(i)?;
            if NULL_CELLS.contains(&text) {
                continue;
            }
            reading.metric = &value.metric;
            reading.unit = value.unit.as_deref();
            match number(text) {
                Ok(number) => collector.push(row, &RawReading { value: number, ..reading }),
                Err((kind, message)) => collector.refuse(row, kind, format!("{}: {message}", value.column)),
            }
        }
    }
    Ok(())
}

fn number(text: &str) -> Result<f64, (&'static str, String)> {
    text.parse().map_err(|_| ("invalid", format!("value `{text}` is not a number")))
}
