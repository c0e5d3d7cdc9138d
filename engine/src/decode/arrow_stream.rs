//! Arrow IPC streams are looked over before they are decoded: lengths in them are claims, and a decoder takes the memory that is claimed.
//!
//! The layout is that of <https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc>: messages of a
//! continuation marker, the length of the metadata, the metadata and the body; a length of zero ends the stream.

use arrow::ipc::{Message, RecordBatch, root_as_message};

use super::table::{ROW_BYTES, check_decoded};
use crate::{Error, Result};

const CONTINUATION: [u8; 4] = [0xff; 4];

fn cut_off() -> Error {
    Error::invalid(
        "the body is not an Arrow IPC stream: it is cut off, or claims lengths that it does not have",
    )
}

/// Refuses a stream that claims more than it has, or that would decode to far more than it is.
pub(super) fn check(stream: &[u8]) -> Result<()> {
    let mut rest = stream;
    let mut decoded = 0i64;
    while let Some((message, body)) = next(&mut rest)? {
        let dictionary = || message.header_as_dictionary_batch()?.data();
        let Some(batch) = message.header_as_record_batch().or_else(dictionary) else { continue };
        decoded = decoded.saturating_add(bytes_of(&batch, body));
        check_decoded("the Arrow IPC stream", decoded, stream.len())?;
    }
    Ok(())
}

/// The next message and its body; `None` at the end.
fn next<'a>(rest: &mut &'a [u8]) -> Result<Option<(Message<'a>, &'a [u8])>> {
    if rest.is_empty() {
        return Ok(None);
    }
    let mut word = || rest.split_off(..4).and_then(|word| word.first_chunk().copied()).ok_or_else(cut_off);
    let mut length = word()?;
    // Streams of before version 0.15 have no marker.
    if length == CONTINUATION {
        length = word()?;
    }
    let length = u32::from_le_bytes(length) as usize;
    if length == 0 {
        return Ok(None);
    }
    let metadata = rest.split_off(..length).ok_or_else(cut_off)?;
    let message = root_as_message(metadata)
        .map_err(|error| Error::invalid(format!("the body is not an Arrow IPC stream: {error}")))?;
    let length = usize::try_from(message.bodyLength()).map_err(|_| cut_off())?;
    let body = rest.split_off(..length).ok_or_else(cut_off)?;
    Ok(Some((message, body)))
}

/// What a batch takes in memory, as it claims.
fn bytes_of(batch: &RecordBatch<'_>, body: &[u8]) -> i64 {
    let rows = batch.length().saturating_mul(ROW_BYTES);
    if batch.compression().is_none() {
        return rows.max(body.len() as i64);
    }
    let buffers = batch.buffers().into_iter().flatten().filter_map(|buffer| {
        // The length without compression stands before each buffer; -1: it is not compressed.
        let place = usize::try_from(buffer.offset()).ok()?;
        let length = body.get(place..)?.first_chunk()?;
        Some(i64::from_le_bytes(*length).max(0))
    });
    buffers.fold(rows.max(0), i64::saturating_add)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{Float64Array, RecordBatch},
        ipc::writer::StreamWriter,
    };

    use super::check;
    use crate::ErrorKind;

    fn stream() -> Vec<u8> {
        let column = Arc::new(Float64Array::from(vec![1.5; 1000])) as _;
        let batch = RecordBatch::try_from_iter([("value", column)]).expect("a batch");
        let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).expect("a writer");
        writer.write(&batch).expect("written");
        writer.into_inner().expect("a stream")
    }

    /// Every place of a number in a stream becomes another number.
    fn with(from: i64, to: i64) -> Vec<u8> {
        let mut stream = stream();
        let places: Vec<_> =
            (0..stream.len() - 7).filter(|place| stream[*place..place + 8] == from.to_le_bytes()).collect();
        assert!(!places.is_empty());
        for place in places {
            stream[place..place + 8].copy_from_slice(&to.to_le_bytes());
        }
        stream
    }

    #[test]
    fn sound_streams_are_fine_and_cut_ones_are_not() {
        let stream = stream();
        check(&stream).expect("sound");
        // The end of the stream may be missing, nothing else.
        check(&stream[..stream.len() - 8]).expect("sound");
        for length in [1, 7, 100, stream.len() - 9] {
            assert_eq!(check(&stream[..length]).expect_err("cut off").kind, ErrorKind::Invalid, "{length}");
        }
    }

    /// Compressed streams are tried in `tests/e2e/test_http.py`.
    #[test]
    fn what_is_claimed_takes_no_memory() {
        for claimed in [-5, 1 << 33, 1 << 46, i64::MAX] {
            let error = check(&with(8000, claimed)).expect_err("a body that is not there");
            assert_eq!(error.kind, ErrorKind::Invalid, "{claimed}");
        }
        let error = check(&with(1000, 1 << 40)).expect_err("rows that are not there");
        assert!(error.kind == ErrorKind::TooLarge && error.message.contains("would decode to"), "{error}");
    }
}
