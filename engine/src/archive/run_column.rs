//! Text columns of sorted rows: runs of equal texts as dictionary-coded Parquet column chunks.
//!
//! Rows of a data file come series by series, so that its texts seldom change from row to row. Parquet's own writer hashes
//! and compares the text of each row; here that is done once a run. What is written is the same: a dictionary page, and
//! data pages (version 1) of keys in Parquet's hybrid of runs and bit-packed groups
//! (<https://parquet.apache.org/docs/file-format/data-pages/encodings/#RLE>).

use std::sync::Arc;

use ahash::HashMap;
use bytes::Bytes;
use parquet::{
    basic::{BoundaryOrder, Compression, Encoding, EncodingMask, PageType, ZstdLevel},
    column::{
        page::{CompressedPage, Page, PageWriter},
        writer::ColumnCloseResult,
    },
    data_type::ByteArray,
    file::{
        metadata::{ColumnChunkMetaData, ColumnIndexBuilder, OffsetIndexBuilder, PageEncodingStats},
        statistics::{Statistics, ValueStatistics},
        writer::{SerializedPageWriter, TrackedWrite},
    },
    schema::types::ColumnDescPtr,
};

use crate::{Error, Result};

/// A text column of one row group under construction; every row has a text.
#[derive(Debug, Default)]
pub(super) struct RunColumn {
    keys: HashMap<Arc<str>, u32>,
    dictionary: Vec<Arc<str>>,
    /// Of the dictionary, as its page has them.
    dictionary_bytes: usize,
    /// Key and number of rows; neighbours differ.
    runs: Vec<(u32, usize)>,
    rows: usize,
}

impl RunColumn {
    pub(super) fn push(&mut self, text: &str, rows: usize) {
        if rows == 0 {
            return;
        }
        self.rows += rows;
        if let Some((key, count)) = self.runs.last_mut()
            && *self.dictionary[*key as usize] == *text
        {
            *count += rows;
            return;
        }
        let key = match self.keys.get(text) {
            Some(key) => *key,
            None => {
                let (key, text) = (self.dictionary.len() as u32, Arc::<str>::from(text));
                self.dictionary_bytes += text.len() + 4;
                self.dictionary.push(Arc::clone(&text));
                self.keys.insert(text, key);
                key
            }
        };
        self.runs.push((key, rows));
    }

    /// The text of the row before once more.
    pub(super) fn push_again(&mut self, rows: usize) {
        if let Some((_, count)) = self.runs.last_mut() {
            *count += rows;
            self.rows += rows;
        }
    }

    /// About how many bytes the chunk will have.
    pub(super) fn bytes(&self) -> usize {
        self.dictionary_bytes + self.runs.len() * 2
    }

    /// The column chunk as it stands in a file, its offsets counted from its own start.
    pub(super) fn finish(
        self,
        column: &ColumnDescPtr,
        zstd: ZstdLevel,
        page_rows: usize,
    ) -> Result<(Bytes, ColumnCloseResult)> {
        if column.max_rep_level() > 0 || column.max_def_level() > 1 || self.rows == 0 {
            return Err(Error::internal(format!("column {} cannot be written as runs", column.name())));
        }
        let mut sink = TrackedWrite::new(Vec::new());
        let mut chunk = ChunkWriter {
            pages: SerializedPageWriter::new(&mut sink),
            zstd: zstd::bulk::Compressor::new(zstd.compression_level())
                .map_err(|error| Error::internal(format!("zstd: {error}")))?,
            uncompressed: 0,
            compressed: 0,
        };
        let mut plain = Vec::with_capacity(self.dictionary_bytes);
        for text in &self.dictionary {
            plain.extend_from_slice(&(text.len() as u32).to_le_bytes());
            plain.extend_from_slice(text.as_bytes());
        }
        chunk.write(&plain, |buf| Page::DictionaryPage {
            buf,
            num_values: self.dictionary.len() as u32,
            encoding: Encoding::PLAIN,
            is_sorted: false,
        })?;
        let first_data_page = chunk.compressed;

        let mut columns = ColumnIndexBuilder::new(column.physical_type());
        let mut offsets = OffsetIndexBuilder::new();
        let mut bounds = Vec::new();
        let mut runs = Runs { runs: self.runs.iter(), rest: (0, 0) };
        let mut row = 0;
        let mut page = Vec::new();
        while row < self.rows {
            let rows = page_rows.min(self.rows - row);
            page.clear();
            if column.max_def_level() > 0 {
                put_levels(rows, &mut page);
            }
            let (min, max) = self.put_keys(&mut runs, rows, &mut page)?;
            let (at, size) = chunk.write(&page, |buf| Page::DataPage {
                buf,
                num_values: rows as u32,
                encoding: Encoding::RLE_DICTIONARY,
                def_level_encoding: Encoding::RLE,
                rep_level_encoding: Encoding::RLE,
                statistics: None,
            })?;
            columns.append(false, min.as_bytes().to_vec(), max.as_bytes().to_vec(), 0);
            offsets.append_row_count(rows as i64);
            offsets.append_offset_and_size(at as i64, size as i32);
            bounds.push((min, max));
            row += rows;
        }
        columns.set_boundary_order(order_of(&bounds));

        let ChunkWriter { uncompressed, compressed, .. } = chunk;
        let text = |text: Option<&str>| text.map(|text| ByteArray::from(text.as_bytes().to_vec()));
        let statistics = ValueStatistics::new(
            text(bounds.iter().map(|(min, _)| *min).min()),
            text(bounds.iter().map(|(_, max)| *max).max()),
            None,
            Some(0),
            false,
        );
        let encodings = [Encoding::PLAIN, Encoding::RLE, Encoding::RLE_DICTIONARY];
        let pages_of = |page_type, encoding, count| PageEncodingStats { page_type, encoding, count };
        let metadata = ColumnChunkMetaData::builder(Arc::clone(column))
            .set_compression(Compression::ZSTD(zstd))
            .set_encodings_mask(EncodingMask::new_from_encodings(encodings.iter()))
            .set_page_encoding_stats(vec![
                pages_of(PageType::DICTIONARY_PAGE, Encoding::PLAIN, 1),
                pages_of(PageType::DATA_PAGE, Encoding::RLE_DICTIONARY, bounds.len() as i32),
            ])
            .set_total_compressed_size(compressed as i64)
            .set_total_uncompressed_size(uncompressed as i64)
            .set_num_values(self.rows as i64)
            .set_dictionary_page_offset(Some(0))
            .set_data_page_offset(first_data_page as i64)
            .set_statistics(Statistics::ByteArray(statistics.with_min_is_exact(true).with_max_is_exact(true)))
            .build()?;
        let close = ColumnCloseResult {
            bytes_written: compressed,
            rows_written: self.rows as u64,
            metadata,
            bloom_filter: None,
            column_index: Some(columns.build()?),
            offset_index: Some(offsets.build()),
        };
        Ok((Bytes::from(sink.into_inner()?), close))
    }

    /// Appends the keys of the next rows; answers the smallest and the largest text of them.
    fn put_keys(&self, runs: &mut Runs<'_>, rows: usize, page: &mut Vec<u8>) -> Result<(&str, &str)> {
        let mut keys = HybridEncoder::new(bit_width(self.dictionary.len()), page);
        let mut bounds: Option<(&str, &str)> = None;
        let mut missing = rows;
        while missing > 0 {
            let run = runs.next(missing);
            let (key, count) = run.ok_or_else(|| Error::internal("runs end before their rows"))?;
            keys.put(key, count);
            missing -= count;
            let text = &*self.dictionary[key as usize];
            bounds = Some(bounds.map_or((text, text), |(min, max)| (min.min(text), max.max(text))));
        }
        keys.finish();
        bounds.ok_or_else(|| Error::internal("a page without rows"))
    }
}

/// What is left of the runs of a column.
struct Runs<'a> {
    runs: std::slice::Iter<'a, (u32, usize)>,
    /// Of the run that the last page ended in.
    rest: (u32, usize),
}

impl Runs<'_> {
    /// Some rows of one key, at most `rows`.
    fn next(&mut self, rows: usize) -> Option<(u32, usize)> {
        if self.rest.1 == 0 {
            self.rest = *self.runs.next()?;
        }
        let take = self.rest.1.min(rows);
        self.rest.1 -= take;
        Some((self.rest.0, take))
    }
}

/// Appends the definition levels of rows that all have a value.
fn put_levels(rows: usize, page: &mut Vec<u8>) {
    let start = page.len();
    page.extend_from_slice(&[0; 4]);
    put_run(1, rows, 1, page);
    let bytes = (page.len() - start - 4) as u32;
    page[start..start + 4].copy_from_slice(&bytes.to_le_bytes());
}

/// Writes the pages of one chunk.
struct ChunkWriter<'a> {
    pages: SerializedPageWriter<'a, Vec<u8>>,
    zstd: zstd::bulk::Compressor<'static>,
    /// Bytes of the pages so far, with their headers.
    uncompressed: u64,
    compressed: u64,
}

impl ChunkWriter<'_> {
    /// Answers where the page starts, and its size with its header.
    fn write(&mut self, plain: &[u8], make: impl FnOnce(Bytes) -> Page) -> Result<(u64, usize)> {
        let packed = self.zstd.compress(plain).map_err(|error| Error::internal(format!("zstd: {error}")))?;
        let spec = self.pages.write_page(CompressedPage::new(make(Bytes::from(packed)), plain.len()))?;
        self.uncompressed += spec.uncompressed_size as u64;
        self.compressed += spec.compressed_size as u64;
        Ok((spec.offset, spec.compressed_size))
    }
}

fn order_of(bounds: &[(&str, &str)]) -> BoundaryOrder {
    let ascends = |a: &(&str, &str), b: &(&str, &str)| a.0 <= b.0 && a.1 <= b.1;
    if bounds.is_sorted_by(ascends) {
        BoundaryOrder::ASCENDING
    } else if bounds.is_sorted_by(|a, b| ascends(b, a)) {
        BoundaryOrder::DESCENDING
    } else {
        BoundaryOrder::UNORDERED
    }
}

/// Bits of the keys of a dictionary.
fn bit_width(values: usize) -> u32 {
    usize::BITS - values.saturating_sub(1).leading_zeros()
}

/// Encodes keys of one page: a byte with their width, then long runs as such, and everything between them in groups of
/// eight, bit-packed.
struct HybridEncoder<'a> {
    width: u32,
    /// Keys that no run has taken yet; groups of eight but for the last.
    packed: Vec<u32>,
    out: &'a mut Vec<u8>,
}

const GROUP: usize = 8;

impl<'a> HybridEncoder<'a> {
    fn new(width: u32, out: &'a mut Vec<u8>) -> Self {
        out.push(width as u8);
        Self { width, packed: Vec::new(), out }
    }

    fn put(&mut self, key: u32, mut count: usize) {
        let open = self.packed.len().next_multiple_of(GROUP) - self.packed.len();
        let fill = open.min(count);
        self.packed.extend(std::iter::repeat_n(key, fill));
        count -= fill;
        if count >= GROUP {
            self.flush();
            put_run(key, count, self.width, self.out);
        } else {
            self.packed.extend(std::iter::repeat_n(key, count));
        }
    }

    fn flush(&mut self) {
        if self.packed.is_empty() {
            return;
        }
        let groups = self.packed.len().div_ceil(GROUP);
        // Readers know the number of values and ignore what fills up the last group.
        self.packed.resize(groups * GROUP, 0);
        put_varint((groups << 1 | 1) as u64, self.out);
        let (mut bits, mut count) = (0u64, 0);
        for key in self.packed.drain(..) {
            bits |= u64::from(key) << count;
            count += self.width;
            while count >= 8 {
                self.out.push(bits as u8);
                bits >>= 8;
                count -= 8;
            }
        }
    }

    fn finish(mut self) {
        self.flush();
    }
}

fn put_run(value: u32, count: usize, width: u32, out: &mut Vec<u8>) {
    put_varint((count as u64) << 1, out);
    out.extend_from_slice(&value.to_le_bytes()[..width.div_ceil(8) as usize]);
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests;
