//! The memtable: acknowledged readings that are not yet in files, in columns.
//!
//! Rows are kept in blocks in the order of acknowledgement; taking a large batch only hands over its columns. Duplicates
//! stay until rows are read or flushed: then they are sorted into series by counting, and the newest arrival of a key
//! wins. A reader takes the sealed blocks and a copy of the small open one, so that it sees the same rows however long
//! it works and never holds up the writer.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::RwLock;
use wattlake_catalog::{Progress, Quality};

use crate::{
    batch::Readings,
    latest::LatestReading,
    rows::{Rows, SeriesRows},
    series::{ChannelId, SeriesId, SeriesKey, SeriesTable, UnitId},
};

/// Memory of one row: the columns of [`Block`] and some slack of growing vectors.
pub(crate) const ROW_BYTES: usize = 24;
/// Batches of at least this many rows become blocks of their own.
const OWN_BLOCK_ROWS: usize = 1024;
/// The open block is sealed at this size: readers copy it.
const OPEN_BLOCK_ROWS: usize = 8192;

/// Readings of a span of WAL sequence numbers.
#[derive(Debug, Default)]
pub(crate) struct Memtable {
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    sealed: Vec<Arc<Block>>,
    open: Block,
    rows: usize,
    bytes: usize,
    first_row_at: Option<Instant>,
    /// The newest states.
    progress: BTreeMap<String, String>,
}

/// Rows of one or more batches in the order of arrival.
#[derive(Clone, Debug, Default)]
pub(crate) struct Block {
    channel: Vec<ChannelId>,
    ts: Vec<i64>,
    value: Vec<f64>,
    quality: Vec<Quality>,
    metadata: Vec<(u32, Box<str>)>,
    /// End row and `created_at` of each batch.
    batches: Vec<(u32, i64)>,
}

impl Block {
    /// A block of one batch.
    pub(crate) fn of(readings: Readings) -> Self {
        let mut block = Self::default();
        block.push(readings);
        block
    }

    pub(crate) fn rows(&self) -> usize {
        self.ts.len()
    }

    pub(crate) fn oldest(&self) -> Option<i64> {
        self.ts.iter().copied().min()
    }

    fn push(&mut self, readings: Readings) {
        let first = self.ts.len() as u32;
        self.metadata.extend(readings.metadata.into_iter().map(|(row, text)| (row + first, text)));
        if first == 0 {
            self.channel = readings.channel;
            self.ts = readings.ts;
            self.value = readings.value;
            self.quality = readings.quality;
        } else {
            self.channel.extend_from_slice(&readings.channel);
            self.ts.extend_from_slice(&readings.ts);
            self.value.extend_from_slice(&readings.value);
            self.quality.extend_from_slice(&readings.quality);
        }
        self.batches.push((self.ts.len() as u32, readings.created_at));
    }
}

impl Memtable {
    /// Takes a batch; all of it becomes visible at once.
    pub(crate) fn apply(&self, mut readings: Readings) {
        let mut inner = self.inner.write();
        let inner = &mut *inner;
        inner.first_row_at.get_or_insert_with(Instant::now);
        inner.rows += readings.len();
        inner.bytes += readings.memory_bytes();
        for Progress { key, state } in readings.progress.drain(..) {
            inner.progress.insert(key, state);
        }
        if readings.is_empty() {
            return;
        }
        let has_own_block = readings.len() >= OWN_BLOCK_ROWS;
        if has_own_block && !inner.open.ts.is_empty() {
            inner.sealed.push(Arc::new(std::mem::take(&mut inner.open)));
        }
        inner.open.push(readings);
        if has_own_block || inner.open.ts.len() >= OPEN_BLOCK_ROWS {
            inner.sealed.push(Arc::new(std::mem::take(&mut inner.open)));
        }
    }

    /// The rows that are here now, oldest first.
    pub(crate) fn blocks(&self) -> Vec<Arc<Block>> {
        let inner = self.inner.read();
        let mut blocks = inner.sealed.clone();
        if !inner.open.ts.is_empty() {
            blocks.push(Arc::new(inner.open.clone()));
        }
        blocks
    }

    /// Rows, before duplicates are merged.
    pub(crate) fn rows(&self) -> usize {
        self.inner.read().rows
    }

    /// Whether there is nothing to flush.
    pub(crate) fn is_empty(&self) -> bool {
        let inner = self.inner.read();
        inner.rows == 0 && inner.progress.is_empty()
    }

    /// What came about with the rows.
    pub(crate) fn progress(&self) -> Vec<Progress> {
        let inner = self.inner.read();
        let states = inner.progress.iter();
        states.map(|(key, state)| Progress { key: key.clone(), state: state.clone() }).collect()
    }

    /// About how much memory the rows take.
    pub(crate) fn bytes(&self) -> usize {
        self.inner.read().bytes
    }

    /// How long the oldest row has been here.
    pub(crate) fn age(&self) -> Duration {
        self.inner.read().first_row_at.map_or(Duration::ZERO, |at| at.elapsed())
    }
}

/// Which rows of a series are wanted: `from <= ts < to`, or none of them.
pub(crate) type Span = Option<(i64, i64)>;

/// Rows of the blocks that are sorted at once, at least: what is read in the order of series should stay in the cache.
const SORTED_ROWS: usize = 64 << 10;

/// Sorts blocks, oldest first, into series in the order of files; of each series the rows that `span_of` asks for, merged.
///
/// Some blocks at a time are sorted by counting, and their rows appended to their series in short runs.
pub(crate) fn sort_blocks(
    blocks: &[Arc<Block>],
    series: &SeriesTable,
    span_of: impl Fn(SeriesId, &SeriesKey) -> Span,
) -> Vec<SeriesRows> {
    let (slots, mut out) = Slots::new(series, span_of);
    let mut counts = vec![0usize; out.len()];
    blocks.iter().for_each(|block| slots.count(block, &mut counts));
    out.iter_mut().zip(&counts).for_each(|(series, rows)| series.rows = Rows::with_capacity(*rows));
    let mut order: Vec<Place> = Vec::new();
    let mut rest = blocks;
    while !rest.is_empty() {
        let (mut rows, mut take) = (0, 0);
        // As many rows as there are series, so that going through those is worth it.
        while take < rest.len() && rows < SORTED_ROWS.max(out.len()) {
            rows += rest[take].ts.len();
            take += 1;
        }
        let group;
        (group, rest) = rest.split_at(take);
        counts.fill(0);
        group.iter().for_each(|block| slots.count(block, &mut counts));
        let mut start = 0;
        for count in &mut counts {
            (*count, start) = (start, start + *count);
        }
        order.clear();
        order.resize(start, Place::default());
        for (b, block) in group.iter().enumerate() {
            slots.for_each(block, |row, slot| {
                order[counts[slot]] = Place { block: b as u32, row: row as u32 };
                counts[slot] += 1;
            });
        }
        // Each count is the end of its series now.
        let mut start = 0;
        for (series, end) in out.iter_mut().zip(&counts) {
            append_places(&mut series.rows, group, &order[start..*end], &slots);
            start = *end;
        }
    }
    out.retain(|series| !series.rows.is_empty());
    for series in &mut out {
        series.rows = std::mem::take(&mut series.rows).merge_newest_wins();
    }
    out.sort_by(|a, b| a.key.sort_key().cmp(&b.key.sort_key()));
    out
}

/// The newest row of each series of some blocks, oldest first, in the order of files; of several at one time the newest arrival.
pub(crate) fn newest_rows(blocks: &[Arc<Block>], series: &SeriesTable) -> Vec<LatestReading> {
    // Copied, so that nobody waits for the lock while all rows are looked at.
    let channels = series.read().channels().to_vec();
    let mut newest: Vec<Option<(i64, Place)>> = Vec::new();
    for (b, block) in blocks.iter().enumerate() {
        for (row, (channel, ts)) in block.channel.iter().zip(&block.ts).enumerate() {
            let at = channels[channel.0 as usize].series.0 as usize;
            if newest.len() <= at {
                newest.resize(at + 1, None);
            }
            if newest[at].is_none_or(|(known, _)| *ts >= known) {
                newest[at] = Some((*ts, Place { block: b as u32, row: row as u32 }));
            }
        }
    }
    let interned = series.read();
    let mut out: Vec<_> = newest
        .into_iter()
        .flatten()
        .map(|(ts, place)| {
            let (block, row) = (&blocks[place.block as usize], place.row as usize);
            let channel = channels[block.channel[row].0 as usize];
            LatestReading {
                key: Arc::clone(interned.key(channel.series)),
                ts,
                value: block.value[row],
                unit: Arc::clone(interned.unit(channel.unit)),
                quality: block.quality[row],
            }
        })
        .collect();
    drop(interned);
    out.sort_by(|a, b| a.key.sort_key().cmp(&b.key.sort_key()));
    out
}

/// A row of some blocks.
#[derive(Clone, Copy, Default)]
struct Place {
    block: u32,
    row: u32,
}

/// Where the rows of each channel go.
struct Slots {
    /// By channel: the place of its series, or `NOT_WANTED`, and its unit.
    channels: Vec<(u32, UnitId)>,
    /// By series: the times that are wanted of it, from and before.
    spans: Vec<(i64, i64)>,
}

const NOT_WANTED: u32 = u32::MAX;

impl Slots {
    /// Looks at the table once: rows then need neither locks nor hashing. Answers the wanted series, too.
    fn new(series: &SeriesTable, span_of: impl Fn(SeriesId, &SeriesKey) -> Span) -> (Self, Vec<SeriesRows>) {
        let interned = series.read();
        let mut slot_of: Vec<Option<u32>> = Vec::new();
        let mut spans = Vec::new();
        let mut out: Vec<SeriesRows> = Vec::new();
        let channels = interned.channels().iter().map(|channel| {
            let at = channel.series.0 as usize;
            if slot_of.len() <= at {
                slot_of.resize(at + 1, None);
            }
            let slot = *slot_of[at].get_or_insert_with(|| {
                let key = interned.key(channel.series);
                let Some(span) = span_of(channel.series, key) else { return NOT_WANTED };
                spans.push(span);
                out.push(SeriesRows { id: channel.series, key: Arc::clone(key), rows: Rows::default() });
                out.len() as u32 - 1
            });
            (slot, channel.unit)
        });
        let channels = channels.collect();
        drop(interned);
        (Self { channels, spans }, out)
    }

    /// The wanted rows of a block with the places of their series.
    fn for_each(&self, block: &Block, mut take: impl FnMut(usize, usize)) {
        for (row, (channel, ts)) in block.channel.iter().zip(&block.ts).enumerate() {
            let (slot, _) = self.channels[channel.0 as usize];
            if slot != NOT_WANTED && (self.spans[slot as usize].0..self.spans[slot as usize].1).contains(ts) {
                take(row, slot as usize);
            }
        }
    }

    fn count(&self, block: &Block, counts: &mut [usize]) {
        self.for_each(block, |_, slot| counts[slot] += 1);
    }
}

fn append_places(rows: &mut Rows, blocks: &[Arc<Block>], places: &[Place], slots: &Slots) {
    let of = |place: &Place| (&*blocks[place.block as usize], place.row as usize);
    let first = rows.len() as u32;
    for (i, place) in places.iter().enumerate() {
        let (block, row) = of(place);
        let at = block.metadata.binary_search_by_key(&place.row, |(at, _)| *at);
        rows.metadata.extend(at.ok().map(|at| (first + i as u32, block.metadata[at].1.clone())));
        rows.ts.push(block.ts[row]);
    }
    rows.value.extend(places.iter().map(|place| of(place).0.value[place.row as usize]));
    rows.quality.extend(places.iter().map(|place| of(place).0.quality[place.row as usize]));
    rows.unit.extend(places.iter().map(|place| {
        let (block, row) = of(place);
        slots.channels[block.channel[row].0 as usize].1
    }));
    rows.created_at.extend(places.iter().map(|place| {
        let (block, row) = of(place);
        block.batches[block.batches.partition_point(|(end, _)| *end as usize <= row)].1
    }));
}
