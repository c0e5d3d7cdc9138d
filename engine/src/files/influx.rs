//! Exports of InfluxDB as line protocol: annotated CSV (`influx query --raw`), and dumps (`influx_inspect export`), which have statements
//! of InfluxQL between their lines.
//!
//! Each line of the file becomes one line, so that an error names the right one.

use std::io::{self, BufRead, Read};

use csv::StringRecord;

/// Bytes of a line.
const LINE_BYTES_MAX: u64 = 4 << 20;

/// Columns of a table that are no tags.
struct Columns {
    names: Vec<String>,
    measurement: usize,
    field: usize,
    value: usize,
    time: usize,
    tags: Vec<usize>,
}

/// Reads line protocol out of annotated CSV.
pub(crate) struct AnnotatedCsv<R> {
    source: R,
    line: Vec<u8>,
    types: Vec<String>,
    columns: Option<Columns>,
    out: Vec<u8>,
    taken: usize,
}

impl<R: BufRead> AnnotatedCsv<R> {
    pub(crate) fn new(source: R) -> Self {
        Self { source, line: Vec::new(), types: Vec::new(), columns: None, out: Vec::new(), taken: 0 }
    }

    /// Turns the next line into one of line protocol; false: there are none.
    fn turn(&mut self) -> io::Result<bool> {
        self.line.clear();
        if (&mut self.source).take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut self.line)? == 0 {
            return Ok(false);
        }
        if self.line.len() as u64 > LINE_BYTES_MAX {
            return Err(io::Error::other(format!("a line is longer than {LINE_BYTES_MAX} bytes")));
        }
        let mut record = StringRecord::new();
        let mut reader =
            csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(self.line.as_slice());
        let is_there = reader.read_record(&mut record).map_err(io::Error::other)?;
        let first = record.get(0).unwrap_or_default();
        if !is_there || record.iter().all(str::is_empty) {
            self.columns = None;
        } else if first.starts_with("#datatype") {
            self.types = record.iter().map(str::to_owned).collect();
            self.columns = None;
        } else if first.starts_with('#') {
            self.columns = None;
        } else if let Some(columns) = &self.columns {
            let line = line_of(columns, &self.types, &record);
            self.out.extend_from_slice(line.as_bytes());
        } else {
            self.columns = columns(&record);
            if self.columns.is_none() {
                return Err(io::Error::other(
                    "a table without the columns _time, _value, _field and _measurement; pivoted tables cannot be read",
                ));
            }
        }
        self.out.push(b'\n');
        Ok(true)
    }
}

fn columns(record: &StringRecord) -> Option<Columns> {
    let names: Vec<String> = record.iter().map(str::to_owned).collect();
    let find = |name: &str| names.iter().position(|column| column == name);
    let tags = (0..names.len()).filter(|at| {
        let name = names[*at].as_str();
        !name.is_empty() && !name.starts_with('_') && !["result", "table"].contains(&name)
    });
    Some(Columns {
        measurement: find("_measurement")?,
        field: find("_field")?,
        value: find("_value")?,
        time: find("_time")?,
        tags: tags.collect(),
        names,
    })
}

/// A text with what separates the parts of a line behind backslashes.
fn escaped(text: &str, separators: &[char]) -> String {
    text.chars().flat_map(|c| separators.contains(&c).then_some('\\').into_iter().chain([c])).collect()
}

fn line_of(columns: &Columns, types: &[String], record: &StringRecord) -> String {
    let cell = |at: usize| record.get(at).unwrap_or_default();
    let (value, time) = (cell(columns.value), cell(columns.time));
    if value.is_empty() {
        return "# no value".to_owned();
    }
    let mut line = escaped(cell(columns.measurement), &[',', ' ']);
    for at in &columns.tags {
        if !cell(*at).is_empty() {
            line += &format!(
                ",{}={}",
                escaped(&columns.names[*at], &[',', ' ', '=']),
                escaped(cell(*at), &[',', ' ', '='])
            );
        }
    }
    let field = escaped(cell(columns.field), &[',', ' ', '=']);
    let value = match types.get(columns.value).map(String::as_str) {
        Some("long") => format!("{value}i"),
        Some("unsignedLong") => format!("{value}u"),
        Some("string") => format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"")),
        _ => value.to_owned(),
    };
    // What is no time stands in the line, and is refused there.
    let time =
        time.parse::<jiff::Timestamp>().map_or_else(|_| time.to_owned(), |at| at.as_nanosecond().to_string());
    format!("{line} {field}={value} {time}")
}

impl<R: BufRead> Read for AnnotatedCsv<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken >= self.out.len() {
            self.out.clear();
            self.taken = 0;
            if !self.turn()? {
                return Ok(0);
            }
        }
        let count = buffer.len().min(self.out.len() - self.taken);
        buffer[..count].copy_from_slice(&self.out[self.taken..self.taken + count]);
        self.taken += count;
        Ok(count)
    }
}

/// Reads a dump, its statements as comments.
pub(crate) struct Dump<R> {
    source: R,
    line: Vec<u8>,
    taken: usize,
}

impl<R: BufRead> Dump<R> {
    pub(crate) fn new(source: R) -> Self {
        Self { source, line: Vec::new(), taken: 0 }
    }
}

impl<R: BufRead> Read for Dump<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.taken >= self.line.len() {
            self.line.clear();
            self.taken = 0;
            (&mut self.source).take(LINE_BYTES_MAX).read_until(b'\n', &mut self.line)?;
            if self.line.starts_with(b"CREATE DATABASE ")
                || self.line.starts_with(b"CREATE RETENTION POLICY ")
            {
                self.line[0] = b'#';
            }
        }
        let count = buffer.len().min(self.line.len() - self.taken);
        buffer[..count].copy_from_slice(&self.line[self.taken..self.taken + count]);
        self.taken += count;
        Ok(count)
    }
}
