//! Sorted runs of a bulk import on disk: written once, read once by the process that wrote them or by [another](super::resume), and gone
//! with the import.
//!
//! A run is one file of parts, month by month in the order of data files. A part holds rows of one series as plain columns,
//! of which those that repeat (the steps between times, qualities, units, times of acceptance) shrink to runs.

use std::{
    fs::File,
    io::{BufWriter, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use ahash::HashMap;

use crate::{
    Error, Result,
    archive::Chunk,
    batch::{quality_code, quality_of},
    rows::Rows,
    series::{SeriesId, SeriesTable, UnitId},
};

/// A folder for spilled runs, deleted with the import.
#[derive(Debug)]
pub(super) struct SpillFolder(PathBuf);

impl SpillFolder {
    pub(super) fn create(path: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&path).map_err(|error| Error::io("create", &path, &error))?;
        Ok(Self(path))
    }
}

impl Drop for SpillFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Series, rows, bytes and checksum in front of each part.
const HEADER_BYTES: usize = 16;
/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;
/// Rows of a part: a reader holds one.
const PART_ROWS_MAX: usize = 16 << 10;

/// A run under construction.
pub(super) struct SpillWriter {
    folder: Arc<SpillFolder>,
    path: PathBuf,
    out: BufWriter<File>,
    bytes: u64,
    part: Vec<u8>,
}

impl SpillWriter {
    pub(super) fn create(folder: &Arc<SpillFolder>) -> Result<Self> {
        let path = folder.0.join(uuid::Uuid::now_v7().simple().to_string());
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(|error| Error::io("create", &path, &error))?;
        let out = BufWriter::with_capacity(1 << 20, file);
        Ok(Self { folder: Arc::clone(folder), path, out, bytes: 0, part: Vec::new() })
    }

    /// Bytes so far: where the next part starts.
    pub(super) fn position(&self) -> u64 {
        self.bytes
    }

    pub(super) fn append(
        &mut self,
        series: SeriesId,
        rows: &Rows,
        range: std::ops::Range<usize>,
    ) -> Result<()> {
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start + PART_ROWS_MAX);
            self.append_part(series, rows, start..end)?;
            start = end;
        }
        Ok(())
    }

    fn append_part(&mut self, series: SeriesId, rows: &Rows, range: std::ops::Range<usize>) -> Result<()> {
        let part = &mut self.part;
        part.clear();
        let ts = &rows.ts[range.clone()];
        let step = |i: usize| if i == 0 { ts[0] } else { ts[i].wrapping_sub(ts[i - 1]) };
        put_column(part, ts.len(), 8, |i| step(i) as u64);
        for value in &rows.value[range.clone()] {
            part.extend_from_slice(&value.to_le_bytes());
        }
        let quality = &rows.quality[range.clone()];
        put_column(part, ts.len(), 1, |i| u64::from(quality_code(quality[i])));
        let unit = &rows.unit[range.clone()];
        put_column(part, ts.len(), 4, |i| u64::from(unit[i].0));
        let created_at = &rows.created_at[range.clone()];
        put_column(part, ts.len(), 8, |i| created_at[i] as u64);
        if !rows.metadata.is_empty() {
            for (row, text) in rows.metadata_of(range).enumerate() {
                let Some(text) = text else { continue };
                part.extend_from_slice(&(row as u32).to_le_bytes());
                part.extend_from_slice(&(text.len() as u32).to_le_bytes());
                part.extend_from_slice(text.as_bytes());
            }
        }
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&series.0.to_le_bytes());
        header[4..8].copy_from_slice(&(ts.len() as u32).to_le_bytes());
        header[8..12].copy_from_slice(&(part.len() as u32).to_le_bytes());
        let sum = sum_of(&header[..12], part);
        header[12..].copy_from_slice(&sum.to_le_bytes());
        let written = self.out.write_all(&header).and_then(|()| self.out.write_all(part));
        written.map_err(|error| Error::io("write", &self.path, &error))?;
        self.bytes += (HEADER_BYTES + part.len()) as u64;
        Ok(())
    }

    /// The file, which is read while the import lives.
    pub(super) fn finish(self) -> Result<SpillFile> {
        let Self { folder, path, out, .. } = self;
        let file = out.into_inner().map_err(|error| Error::io("write", &path, &error.into_error()))?;
        Ok(SpillFile { _folder: folder, path, file, names: None })
    }
}

/// What numbers in a run of another process mean here.
#[derive(Debug)]
pub(super) struct Names {
    pub series: HashMap<u32, SeriesId>,
    /// Indexed by the other process' numbers.
    pub units: Vec<UnitId>,
}

/// A run on disk.
#[derive(Debug)]
pub(super) struct SpillFile {
    _folder: Arc<SpillFolder>,
    path: PathBuf,
    file: File,
    names: Option<Names>,
}

impl SpillFile {
    /// Opens a run of another process; `None`: it is not there, or not of so many bytes.
    pub(super) fn open(folder: &Arc<SpillFolder>, name: &str, bytes: u64, names: Names) -> Option<Self> {
        let path = folder.0.join(name);
        let file = File::open(&path).ok()?;
        let is_whole = file.metadata().ok()?.len() == bytes;
        is_whole.then(|| Self { _folder: Arc::clone(folder), path, file, names: Some(names) })
    }

    /// Its name in the folder.
    pub(super) fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// The parts of one month.
pub(super) struct SpillReader {
    file: Arc<SpillFile>,
    series: Arc<SeriesTable>,
    /// What is not in `buffer` yet.
    next: std::ops::Range<u64>,
    buffer: Vec<u8>,
    at: usize,
}

impl SpillReader {
    /// Reads the parts between two positions of [`SpillWriter::position`].
    pub(super) fn new(file: Arc<SpillFile>, series: Arc<SeriesTable>, parts: std::ops::Range<u64>) -> Self {
        Self { file, series, next: parts, buffer: Vec::new(), at: 0 }
    }

    /// The next bytes, `None` where the range ends.
    fn take(&mut self, bytes: usize) -> Result<Option<&[u8]>> {
        let have = self.buffer.len() - self.at;
        if have < bytes {
            let missing = (bytes - have) as u64;
            let left = self.next.end - self.next.start;
            if left < missing {
                return if have == 0 && left == 0 { Ok(None) } else { Err(self.damaged()) };
            }
            self.buffer.drain(..self.at);
            self.at = 0;
            let read = missing.max(READ_BYTES as u64).min(left) as usize;
            self.buffer.resize(have + read, 0);
            let result = self.file.file.read_exact_at(&mut self.buffer[have..], self.next.start);
            result.map_err(|error| Error::io("read", self.file.path(), &error))?;
            self.next.start += read as u64;
        }
        self.at += bytes;
        Ok(Some(&self.buffer[self.at - bytes..self.at]))
    }

    fn damaged(&self) -> Error {
        Error::corrupt(format!("spilled rows in {} are damaged; import again", self.file.path().display()))
    }

    fn read(&mut self) -> Result<Option<Chunk>> {
        let Some(header) = self.take(HEADER_BYTES)? else { return Ok(None) };
        let (words, _) = header.as_chunks::<4>();
        let word = |i: usize| words.get(i).map_or(0, |word| u32::from_le_bytes(*word));
        let (series, rows, bytes, sum) = (word(0), word(1) as usize, word(2) as usize, word(3));
        let head = [word(0), word(1), word(2)].map(u32::to_le_bytes);
        let part = match self.take(bytes)? {
            Some(part) if sum_of(head.as_flattened(), part) == sum => decode_part(part, rows),
            _ => None,
        };
        let mut rows = part.ok_or_else(|| self.damaged())?;
        let mut series = SeriesId(series);
        if let Some(names) = &self.file.names {
            series = *names.series.get(&series.0).ok_or_else(|| self.damaged())?;
            for unit in &mut rows.unit {
                *unit = *names.units.get(unit.0 as usize).ok_or_else(|| self.damaged())?;
            }
        }
        let key = Arc::clone(self.series.read().key(series));
        Ok(Some((key, rows)))
    }
}

impl Iterator for SpillReader {
    type Item = Result<Chunk>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

/// Checksum of a part and what stands before it.
fn sum_of(header: &[u8], part: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(header), part)
}

fn decode_part(mut part: &[u8], rows: usize) -> Option<Rows> {
    let mut time = 0i64;
    let ts = take_column(&mut part, rows, 8, |step| {
        time = time.wrapping_add(step as i64);
        Some(time)
    })?;
    let (values, rest) = part.split_at_checked(rows.checked_mul(8)?)?;
    part = rest;
    let value = values.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
    let quality = take_column(&mut part, rows, 1, |code| quality_of(code as u8))?;
    let unit = take_column(&mut part, rows, 4, |unit| Some(UnitId(unit as u32)))?;
    let created_at = take_column(&mut part, rows, 8, |time| Some(time as i64))?;
    let mut metadata = Vec::new();
    while !part.is_empty() {
        let row = u32::from_le_bytes(*part.split_off(..4)?.first_chunk()?);
        let len = u32::from_le_bytes(*part.split_off(..4)?.first_chunk()?);
        let text = std::str::from_utf8(part.split_off(..len as usize)?).ok()?;
        metadata.push((row, text.into()));
    }
    Some(Rows { ts, value, quality, unit, created_at, metadata })
}

const PLAIN: u8 = 0;
const RUNS: u8 = 1;
/// Word and number of rows.
const RUN_BYTES: usize = 12;

/// Appends words of `width` bytes, as runs where that is shorter.
fn put_column(out: &mut Vec<u8>, rows: usize, width: usize, word: impl Fn(usize) -> u64) {
    let runs_max = rows * width / RUN_BYTES;
    let start = out.len();
    out.extend_from_slice(&[RUNS, 0, 0, 0, 0]);
    let (mut row, mut runs) = (0, 0);
    while row < rows && runs < runs_max {
        let first = word(row);
        let mut end = row + 1;
        while end < rows && word(end) == first {
            end += 1;
        }
        out.extend_from_slice(&first.to_le_bytes());
        out.extend_from_slice(&((end - row) as u32).to_le_bytes());
        (row, runs) = (end, runs + 1);
    }
    if row == rows {
        out[start + 1..start + 5].copy_from_slice(&(runs as u32).to_le_bytes());
        return;
    }
    out.truncate(start);
    out.push(PLAIN);
    for row in 0..rows {
        out.extend_from_slice(&word(row).to_le_bytes()[..width]);
    }
}

fn take_column<T: Clone>(
    part: &mut &[u8],
    rows: usize,
    width: usize,
    mut make: impl FnMut(u64) -> Option<T>,
) -> Option<Vec<T>> {
    let mut out = Vec::with_capacity(rows);
    match *part.split_off_first()? {
        PLAIN => {
            for word in part.split_off(..rows.checked_mul(width)?)?.chunks_exact(width) {
                let mut bytes = [0; 8];
                bytes[..width].copy_from_slice(word);
                out.push(make(u64::from_le_bytes(bytes))?);
            }
        }
        RUNS => {
            let runs = u32::from_le_bytes(*part.split_off(..4)?.first_chunk()?) as usize;
            for run in part.split_off(..runs.checked_mul(RUN_BYTES)?)?.chunks_exact(RUN_BYTES) {
                let word = u64::from_le_bytes(*run.first_chunk()?);
                let count = u32::from_le_bytes(*run.last_chunk()?) as usize;
                if count > rows - out.len() {
                    return None;
                }
                for _ in 0..count {
                    out.push(make(word)?);
                }
            }
        }
        _ => return None,
    }
    (out.len() == rows).then_some(out)
}

#[cfg(test)]
mod tests;
