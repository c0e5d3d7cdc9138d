//! CSV, NDJSON and line protocol, cut between records.

use std::io::Read;

use bytes::Bytes;
use csv::ByteRecord;

use super::{Part, no_cut};
use crate::{
    BodyFormat, Error, Result,
    decode::{body::decompressed, csv::reader, line_protocol::last_line, time::LocalClock},
    ingest::TableMapping,
};

/// The longest header row of CSV.
const HEADER_BYTES_MAX: usize = 1 << 20;

pub(super) struct TextParts {
    reader: Box<dyn Read + Send>,
    format: BodyFormat,
    delimiter: u8,
    bytes_max: usize,
    clock: Option<LocalClock>,
    /// Known from the first part on.
    header: Option<Header>,
    /// What comes after the last cut.
    rest: Vec<u8>,
    is_done: bool,
    row: u64,
}

/// The header row of CSV; empty for other formats.
#[derive(Default)]
struct Header {
    text: Vec<u8>,
    /// Position of the column with the time that a clock is to be asked about.
    time: Option<usize>,
}

impl TextParts {
    pub(super) fn new(
        source: impl Read + Send + 'static,
        format: BodyFormat,
        mapping: Option<&TableMapping>,
        bytes_max: usize,
    ) -> Result<Self> {
        if !matches!(format, BodyFormat::Csv | BodyFormat::NdJson | BodyFormat::LineProtocol) {
            return Err(Error::invalid("a file of text is csv, ndjson or line-protocol"));
        }
        Ok(Self {
            reader: decompressed(source).map_err(unreadable)?,
            format,
            delimiter: mapping.map_or(b',', TableMapping::delimiter),
            bytes_max,
            clock: LocalClock::of(mapping)?,
            header: None,
            rest: Vec::new(),
            is_done: false,
            row: 0,
        })
    }

    pub(super) fn next(&mut self) -> Result<Option<Part>> {
        if self.is_done {
            return Ok(None);
        }
        let mut text = Vec::with_capacity(self.bytes_max + 1);
        text.append(&mut self.rest);
        let wanted = self.bytes_max.saturating_sub(text.len()) as u64;
        self.reader.by_ref().take(wanted).read_to_end(&mut text).map_err(unreadable)?;
        self.is_done = text.len() < self.bytes_max;
        if self.header.is_none() {
            self.header = Some(self.take_header(&mut text)?);
        }
        if text.is_empty() && self.row > 0 {
            return Ok(None);
        }
        let first_row = self.row;
        if !self.is_done {
            let (cut, rows) = self.cut(&text)?;
            self.rest = text.split_off(cut);
            self.row += rows as u64;
        }
        let header = self.header.as_ref().map_or(&[][..], |header| &header.text);
        let body = if header.is_empty() { text } else { [header, &text].concat() };
        Ok(Some(Part {
            body: Bytes::from(body).into(),
            format: self.format,
            first_row,
            lines: None,
            refused: Vec::new(),
        }))
    }

    /// Takes the header row of CSV off the front.
    fn take_header(&self, text: &mut Vec<u8>) -> Result<Header> {
        if self.format != BodyFormat::Csv {
            return Ok(Header::default());
        }
        if text.starts_with(b"\xef\xbb\xbf") {
            text.drain(..3);
        }
        let mut reader = reader(text, self.delimiter);
        let mut record = ByteRecord::new();
        reader.read_byte_record(&mut record).map_err(malformed)?;
        let end = usize::try_from(reader.position().byte()).unwrap_or(usize::MAX);
        if end > HEADER_BYTES_MAX {
            return Err(Error::invalid(format!(
                "the header row is longer than {HEADER_BYTES_MAX} bytes; is a quote in it not closed?"
            )));
        }
        let time = self
            .clock
            .as_ref()
            .and_then(|clock| record.iter().position(|cell| cell.trim_ascii() == clock.column.as_bytes()));
        let rest = text.split_off(end);
        let mut text = std::mem::replace(text, rest);
        if !text.ends_with(b"\n") {
            // Where lines end in CR LF, the LF is left for the next row.
            text.push(b'\n');
        }
        Ok(Header { text, time })
    }

    /// Where the rest begins, and how many rows come before: at the last record, which may not be whole, or an earlier
    /// one where the clock asks for that.
    fn cut(&self, text: &[u8]) -> Result<(usize, usize)> {
        match self.format {
            BodyFormat::LineProtocol => {
                let cut = self.choose(text, last_line(text).into_iter())?;
                Ok((cut, memchr::memchr_iter(b'\n', &text[..cut]).count()))
            }
            // Cells may hold line ends.
            BodyFormat::Csv if memchr::memchr(b'"', text).is_some() => {
                let starts = self.record_starts(text)?;
                // The first one starts the part.
                let cut = self.choose(text, starts.iter().skip(1).rev().copied())?;
                Ok((cut, starts.partition_point(|start| *start < cut)))
            }
            _ => {
                let cut = self.choose(text, memchr::memrchr_iter(b'\n', text).map(|i| i + 1))?;
                Ok((cut, count_lines(&text[..cut])))
            }
        }
    }

    /// The last of the starts, given from the end, before which the text may be cut.
    fn choose(&self, text: &[u8], mut starts: impl Iterator<Item = usize>) -> Result<usize> {
        let column = self.header.as_ref().and_then(|header| header.time);
        let Some((column, clock)) = column.zip(self.clock.as_ref()) else {
            return starts.next().ok_or_else(|| {
                Error::invalid(format!(
                    "a row after row {} is longer than {} bytes; is a quote in it not closed?",
                    self.row, self.bytes_max
                ))
            });
        };
        let mut record = ByteRecord::new();
        let mut is_repeated = |start: usize| {
            let is_read = reader(&text[start..], self.delimiter).read_byte_record(&mut record);
            let cell = record.get(column).and_then(|cell| std::str::from_utf8(cell).ok());
            is_read.is_ok() && cell.is_some_and(|cell| clock.is_repeated(cell))
        };
        let cut = starts.skip(1).find(|start| !is_repeated(*start));
        cut.ok_or_else(|| no_cut(&format!("{} bytes", self.bytes_max)))
    }

    fn record_starts(&self, text: &[u8]) -> Result<Vec<usize>> {
        let mut reader = reader(text, self.delimiter);
        let mut record = ByteRecord::new();
        let mut starts = Vec::new();
        while reader.read_byte_record(&mut record).map_err(malformed)? {
            starts.extend(record.position().and_then(|position| usize::try_from(position.byte()).ok()));
        }
        Ok(starts)
    }
}

/// Lines that are not blank.
fn count_lines(text: &[u8]) -> usize {
    let mut start = 0;
    let ends = memchr::memchr_iter(b'\n', text).chain([text.len()]);
    ends.filter(|end| !text[std::mem::replace(&mut start, end + 1).min(*end)..*end].trim_ascii().is_empty())
        .count()
}

fn unreadable(error: std::io::Error) -> Error {
    Error::invalid(format!("the file cannot be read: {error}"))
}

fn malformed(error: csv::Error) -> Error {
    Error::invalid(format!("this is not valid CSV: {error}"))
}
