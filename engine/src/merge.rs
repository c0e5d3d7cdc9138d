//! Merging sorted sources into final files: compaction, rewrites, and bulk imports.
//!
//! Sources are read side by side and hold one chunk each. Whole runs of rows are taken as they stand as long as no other
//! source has anything in between; rows of several sources that interleave are sorted together.

use std::{cmp::Ordering, ops::Range, sync::Arc};

use tokio::runtime::Handle;
use wattlake_catalog::NewDataFile;

use crate::{
    Error, Result, SeriesKey, Storage, UnitId,
    archive::{Chunk, DataFileEncoder, Level},
    meaning::Meanings,
    rows::Rows,
    series::SeriesTable,
};

/// Rows and bytes of one output file, about.
const FILE_ROWS_MAX: u64 = 32 << 20;
const FILE_BYTES_MAX: usize = 256 << 20;

/// Rows in the order of files, each key once.
pub(crate) type Source = Box<dyn Iterator<Item = Result<Chunk>> + Send>;

/// One of two rows with the same key.
#[derive(Clone, Copy)]
pub(crate) struct Side<'a> {
    /// Place of its source in the list.
    pub rank: usize,
    pub rows: &'a Rows,
    pub row: usize,
}

impl Side<'_> {
    /// Whether both rows say the same, so that storing the later one would change nothing.
    pub(crate) fn says_the_same(&self, other: &Side<'_>) -> bool {
        let (a, b) = (self.rows, other.rows);
        a.value[self.row].to_bits() == b.value[other.row].to_bits()
            && a.quality[self.row] == b.quality[other.row]
            && a.unit[self.row] == b.unit[other.row]
            && a.metadata_at(self.row) == b.metadata_at(other.row)
    }
}

/// Which of two rows with the same key is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Winner {
    /// The one whose source comes first in the list.
    Earlier,
    Later,
}

/// For sources that are live rows of one snapshot: two with one key cannot be (MAN-2).
pub(crate) fn never_equal(key: &SeriesKey, side: Side<'_>, _: Side<'_>) -> Result<Winner> {
    Err(Error::corrupt(format!(
        "two live rows for {} of entity {} at {} us (MAN-2)",
        key.metric, key.entity, side.rows.ts[side.row]
    )))
}

struct Cursor {
    source: Source,
    /// Place in the list of sources.
    rank: usize,
    key: Arc<SeriesKey>,
    rows: Rows,
    at: usize,
}

impl Cursor {
    fn order(&self, other: &Self) -> Ordering {
        self.key
            .sort_key()
            .cmp(&other.key.sort_key())
            .then_with(|| self.rows.ts[self.at].cmp(&other.rows.ts[other.at]))
            .then_with(|| self.rank.cmp(&other.rank))
    }

    /// Moves on to a row, fetching the next chunk when this one is used up; `false` at the end.
    fn advance(&mut self, to: usize) -> Result<bool> {
        self.at = to;
        while self.at == self.rows.len() {
            let Some(chunk) = self.source.next() else { return Ok(false) };
            let (key, rows) = chunk?;
            let Some(first) = rows.ts.first() else { continue };
            let before = self.rows.ts.last().map(|ts| (self.key.sort_key(), *ts));
            if before.is_some_and(|before| before >= (key.sort_key(), *first)) {
                return Err(Error::corrupt(format!(
                    "rows out of order: {} of entity {} at {first} us",
                    key.metric, key.entity
                )));
            }
            (self.key, self.rows, self.at) = (key, rows, 0);
        }
        Ok(true)
    }
}

/// Merges sources and hands over runs of rows in the order of files.
pub(crate) fn merge(
    sources: Vec<Source>,
    mut on_equal: impl FnMut(&SeriesKey, Side<'_>, Side<'_>) -> Result<Winner>,
    mut sink: impl FnMut(&SeriesKey, &Rows, Range<usize>) -> Result<()>,
) -> Result<()> {
    let nobody = Arc::new(SeriesKey {
        entity: wattlake_catalog::EntityId(uuid::Uuid::nil()),
        entity_type: wattlake_catalog::EntityType::Meter,
        metric: Arc::from(""),
    });
    // In descending order, so that the next one is taken off the end.
    let mut cursors: Vec<Box<Cursor>> = Vec::new();
    for (rank, source) in sources.into_iter().enumerate() {
        let cursor = Cursor { source, rank, key: Arc::clone(&nobody), rows: Rows::default(), at: 0 };
        put_back(&mut cursors, Box::new(cursor), 0)?;
    }
    let mut interleaved = Interleaved::default();
    while let Some(cursor) = cursors.pop() {
        let end = match cursors.last() {
            Some(next) if next.key.sort_key() == cursor.key.sort_key() => {
                let limit = next.rows.ts[next.at];
                cursor.at + cursor.rows.ts[cursor.at..].partition_point(|ts| *ts < limit)
            }
            _ => cursor.rows.len(),
        };
        if end == cursor.rows.len() || end - cursor.at >= RUN_ROWS_MIN {
            sink(&cursor.key, &cursor.rows, cursor.at..end)?;
            put_back(&mut cursors, cursor, end)?;
            continue;
        }
        let others = cursors.partition_point(|other| other.key.sort_key() > cursor.key.sort_key());
        let mut same: Vec<_> = cursors.drain(others..).collect();
        same.push(cursor);
        same.sort_by_key(|cursor| cursor.rank);
        let ends = interleaved.fill(&same, &mut on_equal)?;
        sink(&same[0].key, &interleaved.rows, 0..interleaved.rows.len())?;
        for (cursor, end) in same.into_iter().zip(ends) {
            put_back(&mut cursors, cursor, end)?;
        }
    }
    Ok(())
}

/// Moves a cursor on, and puts it back in its place unless it is at its end.
#[expect(clippy::vec_box, reason = "cursors are large and change places with every chunk")]
fn put_back(cursors: &mut Vec<Box<Cursor>>, mut cursor: Box<Cursor>, at: usize) -> Result<()> {
    if cursor.advance(at)? {
        let place = cursors.partition_point(|other| other.order(&cursor) == Ordering::Greater);
        cursors.insert(place, cursor);
    }
    Ok(())
}

/// Rows of one source before those of the others that are handed over as they stand; shorter stretches are put together.
const RUN_ROWS_MIN: usize = 32;
/// Rows that are put together at once, about.
const INTERLEAVED_ROWS: usize = 64 << 10;

/// The next rows of several sources at one series, put in order. The memory is used again.
#[derive(Default)]
struct Interleaved {
    /// Time, place in the list of sources, and row.
    order: Vec<(i64, u32, u32)>,
    rows: Rows,
}

impl Interleaved {
    /// Takes the rows up to the time to which all sources are known, each key once; answers where each source goes on.
    /// Sources come by their rank.
    fn fill(
        &mut self,
        sources: &[Box<Cursor>],
        on_equal: &mut impl FnMut(&SeriesKey, Side<'_>, Side<'_>) -> Result<Winner>,
    ) -> Result<Vec<usize>> {
        let share = (INTERLEAVED_ROWS / sources.len()).max(RUN_ROWS_MIN);
        let known = |cursor: &Cursor| cursor.rows.ts[cursor.rows.len().min(cursor.at + share) - 1];
        let limit = sources.iter().map(|cursor| known(cursor)).min().unwrap_or(i64::MAX);
        self.order.clear();
        let mut ends = Vec::with_capacity(sources.len());
        for (place, cursor) in sources.iter().enumerate() {
            let times = &cursor.rows.ts[cursor.at..];
            let count = times.partition_point(|ts| *ts <= limit);
            let row = |i: usize| (cursor.at + i) as u32;
            self.order.extend(times[..count].iter().enumerate().map(|(i, ts)| (*ts, place as u32, row(i))));
            ends.push(cursor.at + count);
        }
        // Stable: rows with one time stay in the order of their sources.
        self.order.sort_by_key(|(ts, ..)| *ts);
        self.rows.clear();
        for same in self.order.chunk_by(|a, b| a.0 == b.0) {
            let side = |(_, place, row): (i64, u32, u32)| {
                let cursor = &sources[place as usize];
                Side { rank: cursor.rank, rows: &cursor.rows, row: row as usize }
            };
            let mut winner = side(same[0]);
            for later in &same[1..] {
                let later = side(*later);
                if on_equal(&sources[0].key, winner, later)? == Winner::Later {
                    winner = later;
                }
            }
            self.rows.push_row(winner.rows, winner.row);
        }
        Ok(ends)
    }
}

/// Takes merged rows of one month and stores them as files.
pub(crate) struct FileSink<'a> {
    pub handle: &'a Handle,
    pub storage: &'a Storage,
    pub series: &'a SeriesTable,
    pub level: Level,
    /// UTC month, `2026-01`.
    pub month: &'a str,
    meanings: Option<Arc<Meanings>>,
    encoder: Option<DataFileEncoder>,
    files: Vec<NewDataFile>,
}

impl<'a> FileSink<'a> {
    pub(crate) fn new(
        handle: &'a Handle,
        storage: &'a Storage,
        series: &'a SeriesTable,
        level: Level,
        month: &'a str,
    ) -> Self {
        // Files of a flush are soon merged into others.
        let meanings = (level > Level::Flush).then(|| series.meanings()).flatten();
        Self { handle, storage, series, level, month, meanings, encoder: None, files: Vec::new() }
    }

    pub(crate) fn append(&mut self, key: &SeriesKey, rows: &Rows, range: Range<usize>) -> Result<()> {
        if self.encoder.as_ref().is_some_and(|e| e.rows() >= FILE_ROWS_MAX || e.bytes() >= FILE_BYTES_MAX) {
            self.close()?;
        }
        let encoder = match &mut self.encoder {
            Some(encoder) => encoder,
            None => self.encoder.insert(match &self.meanings {
                Some(meanings) => DataFileEncoder::with_summaries(self.level, Arc::clone(meanings))?,
                None => DataFileEncoder::new(self.level)?,
            }),
        };
        let series = self.series;
        encoder.append(key, rows, range, &|unit: UnitId| series.unit(unit))
    }

    fn close(&mut self) -> Result<()> {
        let Some(encoder) = self.encoder.take() else { return Ok(()) };
        let encoded = encoder.finish(self.month)?;
        self.handle.block_on(self.storage.put(&encoded.file.stored.path, encoded.bytes))?;
        self.files.push(encoded.file);
        Ok(())
    }

    /// The stored files; none when there was no row.
    pub(crate) fn finish(mut self) -> Result<Vec<NewDataFile>> {
        self.close()?;
        Ok(self.files)
    }
}

#[cfg(test)]
mod tests;
