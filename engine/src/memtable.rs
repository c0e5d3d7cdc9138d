//! The memtable: acknowledged readings that are not yet in files, in columns.
//!
//! Rows are kept in blocks in the order of acknowledgement; taking a large batch only hands over its columns. Duplicates
//! stay until rows are read or flushed: then they are sorted into series by counting, and the newest arrival of a key
//! wins. A reader takes the sealed blocks and a copy of the small open one, so that it sees the same rows however long
//! it works and never holds up the writer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::RwLock;
use wattlake_catalog::Quality;

use crate::{
    batch::Readings,
    rows::{Rows, SeriesRows},
    series::{ChannelId, SeriesId, SeriesKey, SeriesTable},
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
    pub(crate) fn apply(&self, readings: Readings) {
        let mut inner = self.inner.write();
        let inner = &mut *inner;
        inner.first_row_at.get_or_insert_with(Instant::now);
        inner.rows += readings.len();
        inner.bytes += readings.memory_bytes();
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

/// Sorts blocks, oldest first, into series in the order of files; of each series the rows that `span_of` asks for, merged.
pub(crate) fn sort_blocks(
    blocks: &[Arc<Block>],
    series: &SeriesTable,
    span_of: impl Fn(SeriesId, &SeriesKey) -> Span,
) -> Vec<SeriesRows> {
    const NOT_WANTED: u32 = u32::MAX;
    // One look at the table: rows then need neither locks nor hashing.
    let (channels, mut slots) = {
        let interned = series.read();
        let mut spans: Vec<Option<Span>> = Vec::new();
        let mut slot_of: Vec<u32> = Vec::new();
        let mut slots: Vec<Slot> = Vec::new();
        let channels = interned.channels().to_vec();
        spans.resize(channels.iter().map(|c| c.series.0 as usize + 1).max().unwrap_or(0), None);
        slot_of.resize(spans.len(), NOT_WANTED);
        let channels: Vec<_> = channels
            .into_iter()
            .map(|channel| {
                let at = channel.series.0 as usize;
                let key = interned.key(channel.series);
                if let Some((from, to)) = *spans[at].get_or_insert_with(|| span_of(channel.series, key))
                    && slot_of[at] == NOT_WANTED
                {
                    slot_of[at] = slots.len() as u32;
                    let rows = SeriesRows { id: channel.series, key: Arc::clone(key), rows: Rows::default() };
                    slots.push(Slot { from, to, count: 0, rows });
                }
                (slot_of[at], channel.unit)
            })
            .collect();
        (channels, slots)
    };
    let wanted = |block: &Block, row: usize, slots: &[Slot]| {
        let (slot, unit) = channels[block.channel[row].0 as usize];
        let slot = (slot != NOT_WANTED).then_some(slot as usize)?;
        (slots[slot].from <= block.ts[row] && block.ts[row] < slots[slot].to).then_some((slot, unit))
    };
    for block in blocks {
        for row in 0..block.ts.len() {
            if let Some((slot, _)) = wanted(block, row, &slots) {
                slots[slot].count += 1;
            }
        }
    }
    slots.iter_mut().for_each(|slot| slot.rows.rows = Rows::with_capacity(slot.count));
    for block in blocks {
        let mut metadata = block.metadata.iter().peekable();
        let mut row = 0;
        for (end, created_at) in &block.batches {
            while row < *end as usize {
                let text = metadata.next_if(|(at, _)| *at as usize == row).map(|(_, text)| text);
                if let Some((slot, unit)) = wanted(block, row, &slots) {
                    let rows = &mut slots[slot].rows.rows;
                    rows.metadata.extend(text.map(|text| (rows.ts.len() as u32, text.clone())));
                    rows.ts.push(block.ts[row]);
                    rows.value.push(block.value[row]);
                    rows.quality.push(block.quality[row]);
                    rows.unit.push(unit);
                    rows.created_at.push(*created_at);
                }
                row += 1;
            }
        }
    }
    let mut out: Vec<_> = slots
        .into_iter()
        .filter(|slot| slot.count > 0)
        .map(|slot| SeriesRows { rows: slot.rows.rows.merge_newest_wins(), ..slot.rows })
        .collect();
    out.sort_by(|a, b| a.key.sort_key().cmp(&b.key.sort_key()));
    out
}

/// A wanted series under construction.
struct Slot {
    from: i64,
    to: i64,
    count: usize,
    rows: SeriesRows,
}
