//! The memtable: acknowledged readings that are not yet in files, in per-series columns.
//!
//! Rows are only ever appended, in the order of acknowledgement; duplicates stay until they are read or flushed, when
//! the newest arrival of a key wins. Each row knows its batch, so that a reader who notes how many batches there are
//! sees the same rows however long its query takes.

use std::time::{Duration, Instant};

use ahash::HashMap;
use parking_lot::RwLock;
use wattlake_catalog::Quality;

use crate::{
    batch::{Batch, quality_code, quality_of},
    series::{SeriesId, UnitId},
};

/// Memory of one row: the columns of [`SeriesRows`] and some slack of growing vectors.
pub(crate) const ROW_BYTES: usize = 36;

/// Readings of a span of WAL sequence numbers.
#[derive(Debug, Default)]
pub(crate) struct Memtable {
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    series: HashMap<SeriesId, SeriesRows>,
    /// `created_at` of each batch.
    batches: Vec<i64>,
    rows: usize,
    bytes: usize,
    first_row_at: Option<Instant>,
}

/// The rows of one series in order of arrival.
#[derive(Clone, Debug, Default)]
struct SeriesRows {
    ts: Vec<i64>,
    value: Vec<f64>,
    quality: Vec<u8>,
    unit: Vec<UnitId>,
    batch: Vec<u32>,
    metadata: Vec<(u32, Box<str>)>,
    min_ts: i64,
    /// Timestamps strictly ascend, so there is nothing to sort or to deduplicate.
    is_ordered: bool,
}

/// How much of a memtable a reader sees: this many batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Visible(u32);

/// One reading of a series, as it left the memtable.
#[derive(Clone, Debug, PartialEq)]
pub struct HotRow {
    /// Microseconds since 1970 UTC.
    pub ts: i64,
    pub value: f64,
    pub quality: Quality,
    pub unit: UnitId,
    pub metadata: Option<Box<str>>,
    pub created_at: i64,
}

impl Memtable {
    /// Takes a batch whose series have been interned; the whole batch becomes visible at once.
    pub(crate) fn apply(&self, batch: &Batch, interned: &[(SeriesId, UnitId)]) {
        let mut inner = self.inner.write();
        let inner = &mut *inner;
        let number = inner.batches.len() as u32;
        inner.batches.push(batch.created_at);
        inner.first_row_at.get_or_insert_with(Instant::now);
        inner.rows += batch.len();
        inner.bytes += batch.memory_bytes();
        let mut metadata = batch.metadata.iter().peekable();
        // Readings of one series come in runs; the map is asked once a run.
        let mut row = 0;
        while row < batch.len() {
            let series = batch.series[row];
            let run = batch.series[row..].iter().take_while(|s| **s == series).count();
            let (id, unit) = interned[series as usize];
            let rows = inner.series.entry(id).or_insert_with(|| SeriesRows {
                is_ordered: true,
                min_ts: i64::MAX,
                ..SeriesRows::default()
            });
            for i in row..row + run {
                let ts = batch.ts[i];
                rows.is_ordered &= rows.ts.last().is_none_or(|last| *last < ts);
                rows.min_ts = rows.min_ts.min(ts);
                if let Some((_, text)) = metadata.next_if(|(at, _)| *at as usize == i) {
                    rows.metadata.push((rows.ts.len() as u32, text.as_str().into()));
                }
                rows.ts.push(ts);
            }
            rows.value.extend_from_slice(&batch.value[row..row + run]);
            rows.quality.extend(batch.quality[row..row + run].iter().map(|q| quality_code(*q)));
            rows.unit.extend(std::iter::repeat_n(unit, run));
            rows.batch.extend(std::iter::repeat_n(number, run));
            row += run;
        }
    }

    /// What is visible now.
    pub(crate) fn visible(&self) -> Visible {
        Visible(self.inner.read().batches.len() as u32)
    }

    /// Rows, before duplicates are merged.
    pub(crate) fn rows(&self) -> usize {
        self.inner.read().rows
    }

    /// About how much memory the rows take.
    pub(crate) fn bytes(&self) -> usize {
        self.inner.read().bytes
    }

    /// How long the oldest row has been here.
    pub(crate) fn age(&self) -> Duration {
        self.inner.read().first_row_at.map_or(Duration::ZERO, |at| at.elapsed())
    }

    /// The series with a visible row, each with its earliest timestamp.
    pub(crate) fn series(&self) -> Vec<(SeriesId, i64)> {
        self.inner.read().series.iter().map(|(id, rows)| (*id, rows.min_ts)).collect()
    }

    /// The visible rows of one series with `from <= ts < to`, in order of arrival.
    pub(crate) fn rows_of(&self, id: SeriesId, visible: Visible, from: i64, to: i64) -> Vec<HotRow> {
        let inner = self.inner.read();
        let Some(rows) = inner.series.get(&id) else { return Vec::new() };
        let end = rows.batch.partition_point(|batch| *batch < visible.0);
        let (start, end) = if rows.is_ordered {
            let ts = &rows.ts[..end];
            (ts.partition_point(|ts| *ts < from), ts.partition_point(|ts| *ts < to))
        } else {
            (0, end)
        };
        let mut metadata = {
            let skip = rows.metadata.partition_point(|(at, _)| (*at as usize) < start);
            rows.metadata[skip..].iter().peekable()
        };
        let mut out = Vec::with_capacity(end.saturating_sub(start));
        for i in start..end {
            let metadata = metadata.next_if(|(at, _)| *at as usize == i).map(|(_, text)| text.clone());
            if rows.ts[i] < from || rows.ts[i] >= to {
                continue;
            }
            out.push(HotRow {
                ts: rows.ts[i],
                value: rows.value[i],
                quality: quality_of(rows.quality[i]).unwrap_or(Quality::Bad),
                unit: rows.unit[i],
                metadata,
                created_at: inner.batches[rows.batch[i] as usize],
            });
        }
        out
    }
}

/// The one merge rule: of rows with one key the newest arrival wins. `rows` come oldest arrival first and leave
/// ordered by time, each time once.
pub fn merge_newest_wins(mut rows: Vec<HotRow>) -> Vec<HotRow> {
    if rows.is_sorted_by(|a, b| a.ts < b.ts) {
        return rows;
    }
    rows.sort_by_key(|row| row.ts);
    let mut merged: Vec<HotRow> = Vec::with_capacity(rows.len());
    for row in rows {
        match merged.last_mut() {
            Some(last) if last.ts == row.ts => *last = row,
            _ => merged.push(row),
        }
    }
    merged
}
