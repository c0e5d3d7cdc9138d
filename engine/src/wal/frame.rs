//! Frames: bytes of one group commit.

use crate::{Error, Result};

pub(super) const MAGIC: [u8; 4] = *b"WLF1";
pub(super) const HEADER_BYTES: usize = 32;
/// Larger than any frame that is written: a body is at most a few hundred MiB.
const CHUNK_RAW_MAX: usize = 1 << 30;

/// Compresses one encoded batch for [`append_frame`]; done by the request's own task.
pub(crate) fn encode_chunk(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut raw = Vec::new();
    encode(&mut raw);
    let mut chunk = vec![0; 8 + lz4_flex::block::get_maximum_output_size(raw.len())];
    // The buffer is as large as any output may be.
    let stored = lz4_flex::block::compress_into(&raw, &mut chunk[8..]).unwrap_or(0);
    chunk.truncate(8 + stored);
    chunk[..4].copy_from_slice(&(stored as u32).to_le_bytes());
    chunk[4..8].copy_from_slice(&(raw.len() as u32).to_le_bytes());
    chunk
}

/// Appends a whole frame to `out`; `is_early` when the frame before it is not synced yet.
pub(super) fn append_frame(sequence: u64, is_early: bool, chunks: &[Vec<u8>], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + HEADER_BYTES, 0);
    chunks.iter().for_each(|chunk| out.extend_from_slice(chunk));
    let payload = &out[start + HEADER_BYTES..];
    let (payload_bytes, payload_crc) = (payload.len() as u32, crc32c::crc32c(payload));
    let header = &mut out[start..start + HEADER_BYTES];
    header[..4].copy_from_slice(&MAGIC);
    header[4..8].copy_from_slice(&payload_bytes.to_le_bytes());
    header[8..16].copy_from_slice(&sequence.to_le_bytes());
    header[16..20].copy_from_slice(&(chunks.len() as u32).to_le_bytes());
    header[20..24].copy_from_slice(&u32::from(is_early).to_le_bytes());
    header[24..28].copy_from_slice(&payload_crc.to_le_bytes());
    let header_crc = crc32c::crc32c(&header[..28]);
    header[28..32].copy_from_slice(&header_crc.to_le_bytes());
}

/// A frame found in a segment.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    pub sequence: u64,
    pub batches: u32,
    /// Written before the frame in front of it was synced: it proves nothing about that one.
    pub is_early: bool,
    pub payload: &'a [u8],
    /// Bytes of the whole frame.
    pub len: usize,
}

/// Reads the frame that starts at the first byte, checking both checksums.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn read_frame(bytes: &[u8]) -> Result<Frame<'_>, String> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Err(format!("{} bytes are too few for a frame header", bytes.len()));
    };
    if header[..4] != MAGIC {
        return Err(format!("no frame starts here, found bytes {:02x?}", &header[..4]));
    }
    let (expected, found) = (read_u32(header, 28), crc32c::crc32c(&header[..28]));
    if expected != found {
        return Err(format!("frame header crc mismatch, expected {expected:08x}, found {found:08x}"));
    }
    let payload_bytes = read_u32(header, 4) as usize;
    let Some(payload) = bytes[HEADER_BYTES..].get(..payload_bytes) else {
        return Err(format!("frame of {payload_bytes} bytes ends after {}", bytes.len() - HEADER_BYTES));
    };
    let (expected, found) = (read_u32(header, 24), crc32c::crc32c(payload));
    if expected != found {
        return Err(format!("frame crc mismatch, expected {expected:08x}, found {found:08x}"));
    }
    let sequence = u64::from(read_u32(header, 8)) | u64::from(read_u32(header, 12)) << 32;
    Ok(Frame {
        sequence,
        batches: read_u32(header, 16),
        is_early: read_u32(header, 20) != 0,
        payload,
        len: HEADER_BYTES + payload_bytes,
    })
}

impl Frame<'_> {
    /// The batches of the frame, in order, as `decode` reads them.
    pub(super) fn decode<B>(&self, decode: &mut dyn FnMut(&[u8]) -> Result<B>) -> Result<Vec<B>> {
        let mut rest = self.payload;
        let mut batches = Vec::new();
        while !rest.is_empty() {
            let (head, tail) =
                rest.split_at_checked(8).ok_or_else(|| Error::corrupt("frame ends inside a chunk header"))?;
            let (stored, raw) = (read_u32(head, 0) as usize, read_u32(head, 4) as usize);
            let (chunk, tail) =
                tail.split_at_checked(stored).ok_or_else(|| Error::corrupt("frame ends inside a chunk"))?;
            if raw > CHUNK_RAW_MAX {
                return Err(Error::corrupt(format!("chunk of {raw} bytes exceeds {CHUNK_RAW_MAX}")));
            }
            let decoded = lz4_flex::block::decompress(chunk, raw)
                .map_err(|error| Error::corrupt(format!("chunk does not decompress: {error}")))?;
            batches.push(decode(&decoded)?);
            rest = tail;
        }
        if batches.len() != self.batches as usize {
            return Err(Error::corrupt(format!("frame holds {} of {} batches", batches.len(), self.batches)));
        }
        Ok(batches)
    }
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |chunk| u32::from_le_bytes(*chunk))
}
