//! Readings of one series in columns, and the one merge rule.

use std::{ops::Range, sync::Arc};

use wattlake_catalog::Quality;

use crate::series::{SeriesId, SeriesKey, UnitId};

/// Readings of one series in columns of equal length, by time, each time once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// Microseconds since 1970 UTC.
    pub ts: Vec<i64>,
    pub value: Vec<f64>,
    pub quality: Vec<Quality>,
    pub(crate) unit: Vec<UnitId>,
    /// Microseconds since 1970 UTC.
    pub created_at: Vec<i64>,
    /// Row and JSON text of the few rows that carry metadata, in row order.
    pub metadata: Vec<(u32, Box<str>)>,
}

/// The readings of one series that one view or file holds.
#[derive(Clone, Debug)]
pub struct SeriesRows {
    /// Only readings from memory have interned series.
    pub(crate) id: SeriesId,
    pub key: Arc<SeriesKey>,
    pub rows: Rows,
}

impl Rows {
    pub fn len(&self) -> usize {
        self.ts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ts.is_empty()
    }

    pub(crate) fn with_capacity(rows: usize) -> Self {
        Self {
            ts: Vec::with_capacity(rows),
            value: Vec::with_capacity(rows),
            quality: Vec::with_capacity(rows),
            unit: Vec::with_capacity(rows),
            created_at: Vec::with_capacity(rows),
            metadata: Vec::new(),
        }
    }

    /// The metadata of every row, in order.
    pub fn metadata(&self) -> impl Iterator<Item = Option<&str>> {
        self.metadata_of(0..self.len())
    }

    /// The metadata of some rows, in order.
    pub(crate) fn metadata_of(&self, rows: Range<usize>) -> impl Iterator<Item = Option<&str>> {
        let from = self.metadata.partition_point(|(at, _)| (*at as usize) < rows.start);
        let mut entries = self.metadata[from..].iter().peekable();
        rows.map(move |row| entries.next_if(|(at, _)| *at as usize == row).map(|(_, text)| &**text))
    }

    /// The metadata of one row.
    pub(crate) fn metadata_at(&self, row: usize) -> Option<&str> {
        let at = self.metadata.binary_search_by_key(&(row as u32), |(at, _)| *at).ok()?;
        Some(&self.metadata[at].1)
    }

    /// Rows with `from <= ts < to`.
    pub(crate) fn range(&self, from: i64, to: i64) -> Range<usize> {
        let start = self.ts.partition_point(|ts| *ts < from);
        start..self.ts.partition_point(|ts| *ts < to).max(start)
    }

    /// Appends rows of another one.
    pub(crate) fn extend_from(&mut self, other: &Self, rows: Range<usize>) {
        let (base, first) = (self.len() as u32, rows.start as u32);
        let from = other.metadata.partition_point(|(at, _)| *at < first);
        let to = other.metadata.partition_point(|(at, _)| (*at as usize) < rows.end);
        self.metadata
            .extend(other.metadata[from..to].iter().map(|(at, text)| (at - first + base, text.clone())));
        self.ts.extend_from_slice(&other.ts[rows.clone()]);
        self.value.extend_from_slice(&other.value[rows.clone()]);
        self.quality.extend_from_slice(&other.quality[rows.clone()]);
        self.unit.extend_from_slice(&other.unit[rows.clone()]);
        self.created_at.extend_from_slice(&other.created_at[rows]);
    }

    /// Appends one row of another one.
    pub(crate) fn push_row(&mut self, other: &Self, row: usize) {
        if !other.metadata.is_empty()
            && let Some(text) = other.metadata_at(row)
        {
            self.metadata.push((self.len() as u32, text.into()));
        }
        self.ts.push(other.ts[row]);
        self.value.push(other.value[row]);
        self.quality.push(other.quality[row]);
        self.unit.push(other.unit[row]);
        self.created_at.push(other.created_at[row]);
    }

    /// Forgets all rows and keeps their memory.
    pub(crate) fn clear(&mut self) {
        self.ts.clear();
        self.value.clear();
        self.quality.clear();
        self.unit.clear();
        self.created_at.clear();
        self.metadata.clear();
    }

    /// The rows with these indexes, in this order.
    pub(crate) fn pick(&self, rows: &[u32]) -> Self {
        let mut metadata = Vec::new();
        if !self.metadata.is_empty() {
            for (new, row) in rows.iter().enumerate() {
                metadata.extend(self.metadata_at(*row as usize).map(|text| (new as u32, text.into())));
            }
        }
        let at = |row: &u32| *row as usize;
        Self {
            ts: rows.iter().map(|row| self.ts[at(row)]).collect(),
            value: rows.iter().map(|row| self.value[at(row)]).collect(),
            quality: rows.iter().map(|row| self.quality[at(row)]).collect(),
            unit: rows.iter().map(|row| self.unit[at(row)]).collect(),
            created_at: rows.iter().map(|row| self.created_at[at(row)]).collect(),
            metadata,
        }
    }

    /// The one merge rule: of rows with one time the newest arrival wins. Rows come in the order of arrival and leave
    /// ordered by time, each time once.
    pub(crate) fn merge_newest_wins(self) -> Self {
        if self.ts.is_sorted_by(|a, b| a < b) {
            return self;
        }
        let mut order: Vec<u32> = (0..self.len() as u32).collect();
        order.sort_by_key(|row| self.ts[*row as usize]);
        let time = |row: &u32| self.ts[*row as usize];
        let newest: Vec<u32> =
            order.chunk_by(|a, b| time(a) == time(b)).filter_map(|same| same.last().copied()).collect();
        self.pick(&newest)
    }
}
