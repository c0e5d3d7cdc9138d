//! Merging sorted sources into final files: compaction, rewrites, and bulk imports.
//!
//! Sources are read side by side and hold one chunk each; whole runs of rows are taken as long as no other source has
//! anything in between.

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
    fn side(&self) -> Side<'_> {
        Side { rank: self.rank, rows: &self.rows, row: self.at }
    }

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
    let mut cursors: Vec<Cursor> = Vec::new();
    for (rank, source) in sources.into_iter().enumerate() {
        let mut cursor = Cursor { source, rank, key: Arc::clone(&nobody), rows: Rows::default(), at: 0 };
        if cursor.advance(0)? {
            insert(&mut cursors, cursor);
        }
    }
    while let Some(mut cursor) = cursors.pop() {
        let end = match cursors.last() {
            Some(next) if next.key.sort_key() == cursor.key.sort_key() => {
                let limit = next.rows.ts[next.at];
                cursor.at + cursor.rows.ts[cursor.at..].partition_point(|ts| *ts < limit)
            }
            _ => cursor.rows.len(),
        };
        if end > cursor.at {
            sink(&cursor.key, &cursor.rows, cursor.at..end)?;
            if cursor.advance(end)? {
                insert(&mut cursors, cursor);
            }
            continue;
        }
        // The next one has the same key, and a source that comes later in the list.
        let Some(mut next) = cursors.pop() else { continue };
        let loser = match on_equal(&cursor.key, cursor.side(), next.side())? {
            Winner::Earlier => &mut next,
            Winner::Later => &mut cursor,
        };
        let is_over = !loser.advance(loser.at + 1)?;
        let over = is_over.then_some(loser.rank);
        for cursor in [cursor, next] {
            if over != Some(cursor.rank) {
                insert(&mut cursors, cursor);
            }
        }
    }
    Ok(())
}

fn insert(cursors: &mut Vec<Cursor>, cursor: Cursor) {
    let at = cursors.partition_point(|other| other.order(&cursor) == Ordering::Greater);
    cursors.insert(at, cursor);
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
                Some(meanings) => DataFileEncoder::with_day_summaries(self.level, Arc::clone(meanings))?,
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
