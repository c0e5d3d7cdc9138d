//! Summing up the rows of a file while they are written.

use std::{ops::Range, sync::Arc};

use arrow::datatypes::Schema;
use jiff::tz::TimeZone;
use parquet::{
    arrow::{ArrowWriter, arrow_writer::ArrowWriterOptions},
    basic::{Compression, Encoding, ZstdLevel},
    file::properties::WriterProperties,
    schema::types::ColumnPath,
};

use super::{Columns, GROUP_ROWS, NUMBERS, Stretch, Written, milli_name, schema};
use crate::{
    Result, SeriesKey,
    archive::calendar::Calendar,
    meaning::{Meaning, Meanings},
    rows::Rows,
    summary::{HOLD_CADENCES, Point, Summary},
};

/// Summaries are few, so that this costs little.
const ZSTD_LEVEL: i32 = 15;
/// Days of fewer rows are summed up together with those after them, within a month, up to so many rows: a summary for each would be
/// nearly as large as its rows.
const SPARSE_DAY_ROWS: u64 = 64;
const JOINED_DAYS_ROWS_MAX: u64 = 512;
/// Hours of fewer rows are not summed up: these are read as fast.
const HOUR_ROWS_MIN: usize = 30;
/// So many hours that are not, by their rows, are told of together.
const JOINED_HOURS_ROWS_MAX: usize = 4096;
/// With fewer rows an hour than this, on average, no hour is looked at on its own.
const ROWS_AN_HOUR_MIN: usize = 8;
const HOUR: i64 = 3_600_000_000;

/// Makes the table of summaries by hour or by day.
pub(in crate::archive) struct SummaryWriter {
    stretch: Stretch,
    meanings: Arc<Meanings>,
    calendars: Vec<Calendar>,
    schema: Arc<Schema>,
    writer: ArrowWriter<Vec<u8>>,
    columns: Columns,
    open: Option<Open>,
    rows: u64,
    /// Whether any stretch was summed up.
    has_sums: bool,
}

/// An hour or a day, or several that have few rows.
struct Open {
    key: SeriesKey,
    meaning: Meaning,
    /// Place of its zone's calendar.
    calendar: usize,
    /// The last one of its hours or days.
    piece: Piece,
    rows: Range<u64>,
    rows_before_piece: u64,
    summary: Option<Summary>,
}

/// Hours or a day.
#[derive(Clone, Copy)]
struct Piece {
    /// Microseconds since 1970 UTC.
    end: i64,
    /// Year and month of a day in its zone.
    month: (i16, i8),
    is_summed_up: bool,
}

impl Piece {
    /// The hour of the first of some times, or, where there are few in many hours, as many of these as are told of together.
    fn of_hours(times: &[i64]) -> Self {
        let end_of = |ts: i64| ts.div_euclid(HOUR).saturating_add(1).saturating_mul(HOUR);
        let joined = &times[..times.len().min(JOINED_HOURS_ROWS_MAX)];
        let (first, last) = (joined.first().copied().unwrap_or(0), joined.last().copied().unwrap_or(0));
        let hours = last.div_euclid(HOUR) - first.div_euclid(HOUR) + 1;
        let piece = |end, is_summed_up| Self { end, month: (0, 0), is_summed_up };
        if (joined.len() as i64) < hours.saturating_mul(ROWS_AN_HOUR_MIN as i64) {
            return piece(end_of(last), false);
        }
        let end = end_of(first);
        piece(end, times.partition_point(|ts| *ts < end) >= HOUR_ROWS_MIN)
    }
}

impl SummaryWriter {
    pub(in crate::archive) fn new(stretch: Stretch, meanings: Arc<Meanings>) -> Result<Self> {
        let schema = Arc::new(schema());
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL).unwrap_or_default()))
            .set_max_row_group_row_count(Some(GROUP_ROWS));
        let milli = NUMBERS.iter().map(|name| milli_name(name));
        let numbers = NUMBERS.iter().map(|name| (*name).to_owned());
        for name in milli.chain(numbers) {
            properties = properties
                .set_column_dictionary_enabled(ColumnPath::from(name.as_str()), false)
                .set_column_encoding(ColumnPath::from(name), Encoding::BYTE_STREAM_SPLIT);
        }
        properties = properties
            .set_column_dictionary_enabled(ColumnPath::from("first_ts"), false)
            .set_column_encoding(ColumnPath::from("first_ts"), Encoding::DELTA_BINARY_PACKED);
        let options =
            ArrowWriterOptions::new().with_properties(properties.build()).with_skip_arrow_metadata(true);
        let writer = ArrowWriter::try_new_with_options(Vec::new(), Arc::clone(&schema), options)?;
        Ok(Self {
            stretch,
            meanings,
            calendars: Vec::new(),
            schema,
            writer,
            columns: Columns::default(),
            open: None,
            rows: 0,
            has_sums: false,
        })
    }

    /// Takes the next rows of the file.
    pub(in crate::archive) fn append(
        &mut self,
        key: &SeriesKey,
        rows: &Rows,
        range: Range<usize>,
    ) -> Result<()> {
        let mut start = range.start;
        while start < range.end {
            let times = &rows.ts[start..range.end];
            match &mut self.open {
                Some(open) if open.key == *key && times[0] < open.piece.end => {}
                Some(open) if open.key == *key => {
                    let (calendar, stretch) = (open.calendar, self.stretch);
                    let piece = piece_at(stretch, &mut self.calendars[calendar], times);
                    if !open.join(stretch, piece) {
                        let next = Open::new(key, open.meaning.clone(), calendar, piece, self.rows);
                        self.close()?;
                        self.open = Some(next);
                    }
                }
                _ => {
                    self.close()?;
                    let meaning = self.meanings.of(key);
                    let calendar = self.calendar_of(&meaning.zone);
                    let piece = piece_at(self.stretch, &mut self.calendars[calendar], times);
                    self.open = Some(Open::new(key, meaning, calendar, piece, self.rows));
                }
            }
            let Some(open) = &mut self.open else { continue };
            let stop = start + times.partition_point(|ts| *ts < open.piece.end);
            open.push(rows, start..stop);
            self.rows += (stop - start) as u64;
            start = stop;
        }
        Ok(())
    }

    fn calendar_of(&mut self, zone: &TimeZone) -> usize {
        self.calendars.iter().position(|calendar| calendar.is_of(zone)).unwrap_or_else(|| {
            self.calendars.push(Calendar::new(zone.clone()));
            self.calendars.len() - 1
        })
    }

    fn close(&mut self) -> Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        self.has_sums |= open.piece.is_summed_up;
        self.columns.append(&Written {
            key: &open.key,
            kind: open.meaning.kind,
            cadence: open.meaning.cadence / 1_000_000,
            rows: open.rows,
            is_summed_up: open.piece.is_summed_up,
            summary: open.summary,
        });
        if self.columns.len == GROUP_ROWS {
            self.write_group()?;
        }
        Ok(())
    }

    fn write_group(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.columns).finish(&self.schema)?;
        Ok(self.writer.write(&batch)?)
    }

    /// The table; `None` when it would say nothing.
    pub(in crate::archive) fn finish(mut self) -> Result<Option<Vec<u8>>> {
        self.close()?;
        if !self.has_sums {
            return Ok(None);
        }
        self.write_group()?;
        Ok(Some(self.writer.into_inner()?))
    }
}

/// The hours or the day that some times of a series begin with.
fn piece_at(stretch: Stretch, calendar: &mut Calendar, times: &[i64]) -> Piece {
    match stretch {
        Stretch::Hour => Piece::of_hours(times),
        Stretch::Day => {
            let day = calendar.day_of(times[0]);
            Piece { end: day.end, month: day.month, is_summed_up: true }
        }
    }
}

impl Open {
    fn new(key: &SeriesKey, meaning: Meaning, calendar: usize, piece: Piece, row: u64) -> Self {
        let rows = row..row;
        Self { key: key.clone(), meaning, calendar, piece, rows, rows_before_piece: row, summary: None }
    }

    /// Goes on with what comes after its own hours or days, if these have few rows.
    fn join(&mut self, stretch: Stretch, next: Piece) -> bool {
        let rows = self.rows.end - self.rows.start;
        let is_joined = match stretch {
            Stretch::Hour => {
                !self.piece.is_summed_up && !next.is_summed_up && rows < JOINED_HOURS_ROWS_MAX as u64
            }
            Stretch::Day => {
                rows < JOINED_DAYS_ROWS_MAX
                    && self.rows.end - self.rows_before_piece < SPARSE_DAY_ROWS
                    && next.month == self.piece.month
            }
        };
        if is_joined {
            self.piece = next;
            self.rows_before_piece = self.rows.end;
        }
        is_joined
    }

    fn push(&mut self, rows: &Rows, range: Range<usize>) {
        self.rows.end += range.len() as u64;
        if !self.piece.is_summed_up {
            let (first, last) = (range.start, range.end - 1);
            let point = |row: usize| Point { ts: rows.ts[row], value: rows.value[row] };
            let times = self.summary.get_or_insert_with(|| Summary::of(point(first), false));
            times.last = point(last);
            times.count = self.rows.end - self.rows.start;
            return;
        }
        let hold = self.meaning.cadence * HOLD_CADENCES;
        for row in range {
            Summary::take_row(&mut self.summary, rows, row, self.meaning.kind, hold);
        }
    }
}
