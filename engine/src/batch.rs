//! A batch: the accepted readings of one request, in columns. The unit of acknowledgement, of the log and of
//! atomicity (WAL-2).
//!
//! [`Batch`] names its series itself, as the log does; [`Readings`] is the same with interned series, as memory holds it.

use hashbrown::HashTable;
use wattlake_catalog::{EntityId, EntityType, Progress, Quality};

use crate::{
    Error, Result,
    series::{ChannelId, SeriesTable},
};

/// A series as a batch names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BatchSeries {
    pub entity: EntityId,
    pub entity_type: EntityType,
    pub metric: String,
    pub unit: String,
}

/// Readings in columns of equal length; `series` indexes `table`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    pub table: Vec<BatchSeries>,
    pub series: Vec<u32>,
    /// Microseconds since 1970 UTC.
    pub ts: Vec<i64>,
    pub value: Vec<f64>,
    pub quality: Vec<Quality>,
    /// Row and JSON text of the few rows that carry metadata, in row order.
    pub metadata: Vec<(u32, String)>,
    /// When the batch was accepted, microseconds since 1970 UTC.
    pub created_at: i64,
    /// What came about with these readings, such as the cursor of their source (WAL-5).
    pub progress: Vec<Progress>,
}

const ROW_BYTES: usize = 4 + 8 + 8 + 1;

/// A batch whose series are interned, in columns of equal length.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Readings {
    pub channel: Vec<ChannelId>,
    /// Microseconds since 1970 UTC.
    pub ts: Vec<i64>,
    pub value: Vec<f64>,
    pub quality: Vec<Quality>,
    /// Row and JSON text of the few rows that carry metadata, in row order.
    pub metadata: Vec<(u32, Box<str>)>,
    /// When the batch was accepted, microseconds since 1970 UTC.
    pub created_at: i64,
    pub progress: Vec<Progress>,
}

impl Readings {
    pub(crate) fn len(&self) -> usize {
        self.ts.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ts.is_empty() && self.progress.is_empty()
    }

    /// About how much memory the rows take.
    pub(crate) fn memory_bytes(&self) -> usize {
        let metadata: usize = self.metadata.iter().map(|(_, text)| text.len() + 40).sum();
        let progress: usize = self.progress.iter().map(|one| one.key.len() + one.state.len() + 80).sum();
        self.len() * crate::memtable::ROW_BYTES + metadata + progress
    }

    /// Appends the batch as the log stores it; `docs/formats/wal.md` describes the bytes.
    pub(crate) fn encode(&self, series: &SeriesTable, out: &mut Vec<u8>) {
        let interned = series.read();
        // The batch's own numbers of its channels, in the order in which they come.
        let mut local = vec![u32::MAX; interned.channels().len()];
        let mut used = Vec::new();
        for channel in &self.channel {
            let local = &mut local[channel.0 as usize];
            if *local == u32::MAX {
                *local = used.len() as u32;
                used.push(*channel);
            }
        }
        out.reserve(16 + used.len() * 40 + self.len() * ROW_BYTES);
        out.extend_from_slice(&self.created_at.to_le_bytes());
        put_len(out, used.len());
        for channel in used {
            let channel = interned.channel(channel);
            let key = interned.key(channel.series);
            put_series(out, key.entity, key.entity_type, &key.metric, interned.unit(channel.unit));
        }
        drop(interned);
        put_len(out, self.len());
        put_words(out, self.channel.iter().map(|channel| local[channel.0 as usize].to_le_bytes()));
        put_words(out, self.ts.iter().map(|v| v.to_le_bytes()));
        put_words(out, self.value.iter().map(|v| v.to_le_bytes()));
        out.extend(self.quality.iter().map(|v| quality_code(*v)));
        put_len(out, self.metadata.len());
        for (row, text) in &self.metadata {
            out.extend_from_slice(&row.to_le_bytes());
            put_text(out, text);
        }
        // Batches of before this was there end here.
        if !self.progress.is_empty() {
            put_len(out, self.progress.len());
            for Progress { key, state } in &self.progress {
                put_text(out, key);
                put_text(out, state);
            }
        }
    }
}

impl Batch {
    pub fn len(&self) -> usize {
        self.ts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ts.is_empty() && self.progress.is_empty()
    }

    /// The same with interned series.
    pub(crate) fn into_readings(self, series: &SeriesTable) -> Readings {
        let channels = series.intern(&self.table);
        Readings {
            channel: self.series.iter().map(|index| channels[*index as usize]).collect(),
            ts: self.ts,
            value: self.value,
            quality: self.quality,
            metadata: self.metadata.into_iter().map(|(row, text)| (row, text.into())).collect(),
            created_at: self.created_at,
            progress: self.progress,
        }
    }
}

impl BatchSeries {
    fn decode(bytes: &[u8]) -> Result<Self> {
        let mut input = Input { bytes };
        Ok(Self {
            entity: EntityId(uuid::Uuid::from_bytes(input.array()?)),
            entity_type: match input.array()? {
                [0] => EntityType::Meter,
                [1] => EntityType::EnergySource,
                [code] => return Err(Error::corrupt(format!("batch: entity type code {code}"))),
            },
            metric: input.text()?,
            unit: input.text()?,
        })
    }
}

/// Decodes many batches of one log: a series that came before is known by its bytes, and not looked at again.
pub(crate) struct ReadingsDecoder<'a> {
    series: &'a SeriesTable,
    known: Vec<KnownSeries>,
    index: HashTable<u32>,
    hasher: ahash::RandomState,
    /// Place of the last one.
    last: u32,
}

struct KnownSeries {
    bytes: Box<[u8]>,
    channel: ChannelId,
    /// The place of the one that came after it: batches name their series in much the same order.
    next: u32,
}

impl<'a> ReadingsDecoder<'a> {
    pub(crate) fn new(series: &'a SeriesTable) -> Self {
        let (known, index, hasher) = (Vec::new(), HashTable::new(), ahash::RandomState::new());
        Self { series, known, index, hasher, last: 0 }
    }

    /// Reads one encoded batch back.
    ///
    /// # Errors
    /// A text saying what does not fit; never panics, whatever the bytes.
    pub(crate) fn decode(&mut self, bytes: &[u8]) -> Result<Readings> {
        let mut input = Input { bytes };
        let created_at = i64::from_le_bytes(input.array()?);
        let count = input.len(SERIES_BYTES_MIN)?;
        let mut channels = Vec::with_capacity(count);
        for _ in 0..count {
            channels.push(self.channel_of(input.series()?)?);
        }
        let rows = input.len(ROW_BYTES)?;
        let series = input.column(rows, u32::from_le_bytes)?;
        let channel = series.iter().map(|at| channels.get(*at as usize).copied());
        let channel = channel.collect::<Option<Vec<_>>>().ok_or_else(|| {
            Error::corrupt(format!("batch: a row of a series beyond its {} ones", channels.len()))
        })?;
        let ts = input.column(rows, i64::from_le_bytes)?;
        let value = input.column(rows, f64::from_le_bytes)?;
        let quality = input.take(rows)?.iter().map(|code| quality_of(*code)).collect::<Option<Vec<_>>>();
        let quality = quality.ok_or_else(|| Error::corrupt("batch: unknown quality code"))?;
        let mut metadata = Vec::new();
        for _ in 0..input.len(8)? {
            let row = u32::from_le_bytes(input.array()?);
            if row as usize >= rows {
                return Err(Error::corrupt(format!("batch: metadata of row {row} of {rows}")));
            }
            metadata.push((row, input.text()?.into()));
        }
        let mut progress = Vec::new();
        if !input.bytes.is_empty() {
            for _ in 0..input.len(8)? {
                progress.push(Progress { key: input.text()?, state: input.text()? });
            }
        }
        if !input.bytes.is_empty() {
            return Err(Error::corrupt(format!("batch: {} bytes too many", input.bytes.len())));
        }
        Ok(Readings { channel, ts, value, quality, metadata, created_at, progress })
    }

    fn channel_of(&mut self, bytes: &[u8]) -> Result<ChannelId> {
        let last = self.last as usize;
        let guess = self.known.get(last).map(|last| last.next);
        let is_right =
            |place: u32| self.known.get(place as usize).is_some_and(|known| *known.bytes == *bytes);
        let place = match guess.filter(|place| is_right(*place)) {
            Some(place) => place,
            None => {
                let hash = self.hasher.hash_one(bytes);
                let found = self.index.find(hash, |place| is_right(*place)).copied();
                let place = match found {
                    Some(place) => place,
                    None => self.learn(hash, bytes)?,
                };
                self.known[last].next = place;
                place
            }
        };
        self.last = place;
        Ok(self.known[place as usize].channel)
    }

    fn learn(&mut self, hash: u64, bytes: &[u8]) -> Result<u32> {
        let channels = self.series.intern(&[BatchSeries::decode(bytes)?]);
        let channel = *channels.first().ok_or_else(|| Error::internal("a series without a channel"))?;
        let place = self.known.len() as u32;
        self.known.push(KnownSeries { bytes: bytes.into(), channel, next: 0 });
        let (known, hasher) = (&self.known, &self.hasher);
        self.index.insert_unique(hash, place, |place| hasher.hash_one(&*known[*place as usize].bytes));
        Ok(place)
    }
}

/// Entity, its type, and the lengths of two texts.
const SERIES_BYTES_MIN: usize = 25;

/// The one-byte form of a quality, in the log and in memory.
pub(crate) const fn quality_code(quality: Quality) -> u8 {
    match quality {
        Quality::Good => 0,
        Quality::Bad => 1,
        Quality::Estimated => 2,
    }
}

pub(crate) const fn quality_of(code: u8) -> Option<Quality> {
    match code {
        0 => Some(Quality::Good),
        1 => Some(Quality::Bad),
        2 => Some(Quality::Estimated),
        _ => None,
    }
}

fn put_series(out: &mut Vec<u8>, entity: EntityId, entity_type: EntityType, metric: &str, unit: &str) {
    out.extend_from_slice(entity.0.as_bytes());
    out.push(match entity_type {
        EntityType::Meter => 0,
        EntityType::EnergySource => 1,
    });
    put_text(out, metric);
    put_text(out, unit);
}

fn put_words<const N: usize>(out: &mut Vec<u8>, words: impl Iterator<Item = [u8; N]>) {
    words.for_each(|word| out.extend_from_slice(&word));
}

fn put_len(out: &mut Vec<u8>, len: usize) {
    // Bodies are limited far below 4 GiB.
    out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_len(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

struct Input<'a> {
    bytes: &'a [u8],
}

impl<'a> Input<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, tail) =
            self.bytes.split_at_checked(n).ok_or_else(|| Error::corrupt("batch: bytes are missing"))?;
        self.bytes = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| Error::corrupt("batch: bytes are missing"))
    }

    /// A count of things that take at least `each` bytes, checked before anything is allocated.
    fn len(&mut self, each: usize) -> Result<usize> {
        let n = u32::from_le_bytes(self.array()?) as usize;
        if n > self.bytes.len() / each {
            return Err(Error::corrupt(format!("batch: count {n} exceeds the record")));
        }
        Ok(n)
    }

    /// The bytes of a series.
    fn series(&mut self) -> Result<&'a [u8]> {
        let whole = self.bytes;
        self.take(17)?;
        for _ in 0..2 {
            let text = self.len(1)?;
            self.take(text)?;
        }
        Ok(&whole[..whole.len() - self.bytes.len()])
    }

    fn text(&mut self) -> Result<String> {
        let n = self.len(1)?;
        let text = std::str::from_utf8(self.take(n)?);
        text.map(str::to_owned).map_err(|_| Error::corrupt("batch: text is not UTF-8"))
    }

    fn column<T, const N: usize>(&mut self, rows: usize, read: fn([u8; N]) -> T) -> Result<Vec<T>> {
        let (chunks, _) = self.take(rows * N)?.as_chunks::<N>();
        Ok(chunks.iter().map(|chunk| read(*chunk)).collect())
    }
}

#[cfg(test)]
mod tests;
