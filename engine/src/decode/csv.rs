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

pub(super) fn decode(request: &IngestRequest, body: &[u8], collector: &mut Collector) -> Result<()> {
    let mapping = request.mapping.as_deref();
    let delimiter = mapping.map_or(b',', TableMapping::delimiter);
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let mut reader = reader(body, delimiter);
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
    let mut rows = RowDecoder { plan: &plan, columns, times: TimeReader::new(request)?, row: 0, collector };
    let rest = usize::try_from(reader.position().byte()).ok().and_then(|at| body.get(at..));
    if let Some(records) = rest.and_then(|rest| PlainRecords::new(rest, delimiter)) {
        let mut cells = Vec::with_capacity(header.len());
        for line in records.lines() {
            cells.clear();
            records.cells(line, &mut cells);
            rows.decode(cells.len(), header.len(), |i| Ok(trim(cells[i])));
        }
        return Ok(());
    }
    while read(&mut reader, &mut record)? {
        if record.len() == 1 && record[0].is_empty() {
            continue;
        }
        rows.decode(record.len(), header.len(), |i| {
            std::str::from_utf8(&record[i])
                .map(str::trim)
                .map_err(|_| ("invalid", format!("cell {i} is not valid UTF-8")))
        });
    }
    Ok(())
}

/// Records without quotes, which need no state machine: lines, cut at each delimiter.
struct PlainRecords<'a> {
    text: &'a str,
    delimiter: u8,
}

impl<'a> PlainRecords<'a> {
    /// `None` where quotes, lone carriage returns or bytes that are no text ask for a closer look.
    fn new(bytes: &'a [u8], delimiter: u8) -> Option<Self> {
        let is_plain = !matches!(delimiter, b'"' | b'\r' | b'\n')
            && memchr::memchr(b'"', bytes).is_none()
            && memchr::memchr_iter(b'\r', bytes).all(|at| bytes.get(at + 1) == Some(&b'\n'));
        let text = is_plain.then(|| std::str::from_utf8(bytes).ok())??;
        Some(Self { text, delimiter })
    }

    /// Lines that are not empty, without their ends.
    fn lines(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let text = self.text;
        let mut start = 0;
        let ends = memchr::memchr_iter(b'\n', text.as_bytes()).chain([text.len()]);
        ends.filter_map(move |end| {
            let line = &text[start..end];
            start = (end + 1).min(text.len());
            Some(line.strip_suffix('\r').unwrap_or(line)).filter(|line| !line.is_empty())
        })
    }

    /// Appends the cells of a line. They are short, so that eight bytes at once are looked at rather than a whole vector.
    fn cells<'l>(&self, line: &'l str, cells: &mut Vec<&'l str>) {
        const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
        let pattern = u64::from_le_bytes([self.delimiter; 8]);
        let (words, tail) = line.as_bytes().as_chunks::<8>();
        let mut start = 0;
        let mut cut = |at: usize| {
            cells.push(&line[start..at]);
            start = at + 1;
        };
        for (i, word) in words.iter().enumerate() {
            let word = u64::from_le_bytes(*word) ^ pattern;
            // The highest bit of each byte that is a delimiter, which is 0 now.
            let mut hits = !(((word & LOW) + LOW) | word | LOW);
            while hits != 0 {
                cut(i * 8 + hits.trailing_zeros() as usize / 8);
                hits &= hits - 1;
            }
        }
        for (i, byte) in tail.iter().enumerate() {
            if *byte == self.delimiter {
                cut(words.len() * 8 + i);
            }
        }
        cut(line.len());
    }
}

/// [`str::trim`], which looks for all of Unicode's spaces, only where there may be one.
fn trim(cell: &str) -> &str {
    let is_visible = |byte: Option<&u8>| byte.is_some_and(|byte| (b'!'..=b'~').contains(byte));
    let bytes = cell.as_bytes();
    if is_visible(bytes.first()) && is_visible(bytes.last()) { cell } else { cell.trim() }
}

/// A cell, or why it has none.
type Cell<'a> = Result<&'a str, (&'static str, String)>;

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

/// Takes records, one reading or several each, into the collector.
struct RowDecoder<'p, 'c> {
    plan: &'p TablePlan,
    columns: Columns,
    times: TimeReader,
    row: u64,
    collector: &'c mut Collector,
}

impl RowDecoder<'_, '_> {
    /// Takes the next record, of which `cell` answers the cells without spaces around them.
    fn decode<'a>(&mut self, cells: usize, expected: usize, cell: impl Fn(usize) -> Cell<'a>) {
        if cells != expected {
            let message = format!("{cells} cells where the header has {expected}");
            self.collector.refuse(self.row, "invalid", message);
        } else if let Err((kind, message)) = self.try_decode(cell) {
            self.collector.refuse(self.row, kind, message);
        }
        self.row += 1;
    }

    fn try_decode<'a>(&mut self, cell: impl Fn(usize) -> Cell<'a>) -> Result<(), (&'static str, String)> {
        let Self { plan, columns, times, row, collector } = self;
        let row = *row;
        let optional = |i: Option<usize>| -> Result<Option<&str>, (&'static str, String)> {
            Ok(i.map(&cell).transpose()?.filter(|text| !text.is_empty()))
        };
        let entity = match columns.entity {
            Some(i) => cell(i)?,
            None => plan.entity_name.as_deref().unwrap_or_default(),
        };
        let entity_type = optional(columns.entity_type)?;
        let metric = columns.long.map_or(Ok(""), |(metric, ..)| cell(metric))?;
        let ts =
            times.read(cell(columns.timestamp)?, entity, metric).map_err(|message| ("invalid", message))?;
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
                    Err((kind, message)) => {
                        collector.refuse(row, kind, format!("{}: {message}", value.column));
                    }
                }
            }
        }
        Ok(())
    }
}

fn number(text: &str) -> Result<f64, (&'static str, String)> {
    text.parse().map_err(|_| ("invalid", format!("value `{text}` is not a number")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        /// The short way finds the same cells as the long one, or leaves the text to it.
        #[test]
        fn plain_records_are_read_the_same(text in "([ab,;é \"\n\r]|\r\n){0,40}", semicolon: bool) {
            let delimiter = if semicolon { b';' } else { b',' };
            let mut reader = reader(text.as_bytes(), delimiter);
            let records: Vec<_> = reader.byte_records().collect::<Result<_, _>>().expect("records");
            let is_odd = text.contains('"') || text.replace("\r\n", "").contains('\r');
            let Some(plain) = PlainRecords::new(text.as_bytes(), delimiter) else {
                prop_assert!(is_odd);
                return Ok(());
            };
            prop_assert!(!is_odd);
            let cells = |line| {
                let mut cells = Vec::new();
                plain.cells(line, &mut cells);
                cells.into_iter().map(str::as_bytes).collect()
            };
            let plain: Vec<Vec<_>> = plain.lines().map(cells).collect();
            let records: Vec<Vec<_>> = records.iter().map(|record| record.iter().collect()).collect();
            prop_assert_eq!(plain, records);
        }

        #[test]
        fn cells_are_trimmed_as_text_is(cell in "[ a\t\u{a0}é]{0,6}") {
            prop_assert_eq!(trim(&cell), cell.trim());
        }
    }
}
