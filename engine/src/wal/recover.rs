//! Reading the log at start: whole frames are replayed, the torn tail of the last segment is cut off, any other damage
//! stops start-up (WAL-3).

use std::{
    fs::OpenOptions,
    path::{Path, PathBuf},
};

use memchr::memmem;

use super::{
    frame::{MAGIC, read_frame},
    segment::{self, Segment},
};
use crate::{Error, Result};

/// What a recovery found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// The segments that still hold frames above the watermark, or that wait to be released.
    pub segments: Vec<Segment>,
    /// Files of released segments.
    pub spares: Vec<PathBuf>,
    pub next_sequence: u64,
    /// Frames above the watermark.
    pub replayed_frames: u64,
    /// Bytes cut off the end of the last segment.
    pub torn_bytes: u64,
}

/// Replays every frame above `watermark` in order, its batches as `decode` reads them.
///
/// # Errors
/// Damage anywhere but in the torn tail, or missing segments, naming file and offset. Nothing is changed then.
pub(crate) fn recover<B>(
    dir: &Path,
    watermark: u64,
    decode: &mut dyn FnMut(&[u8]) -> Result<B>,
    apply: impl FnMut(u64, Vec<B>),
) -> Result<Recovered> {
    recover_with(dir, watermark, &mut |damage| Err(damage.error), decode, apply)
}

/// A place where the log is not what was written.
#[derive(Debug)]
pub(crate) struct Damage<'a> {
    pub segment: &'a Path,
    /// What a strict recovery stops with.
    pub error: Error,
}

/// Replays every frame above `watermark` that is whole, whatever is damaged around it. Each damaged segment is reported
/// before anything is changed.
pub(crate) fn salvage<B>(
    dir: &Path,
    watermark: u64,
    on_damage: &mut dyn FnMut(Damage<'_>) -> Result<()>,
    decode: &mut dyn FnMut(&[u8]) -> Result<B>,
    apply: impl FnMut(u64, Vec<B>),
) -> Result<Recovered> {
    recover_with(dir, watermark, on_damage, decode, apply)
}

fn recover_with<B>(
    dir: &Path,
    watermark: u64,
    on_damage: &mut dyn FnMut(Damage<'_>) -> Result<()>,
    decode: &mut dyn FnMut(&[u8]) -> Result<B>,
    mut apply: impl FnMut(u64, Vec<B>),
) -> Result<Recovered> {
    let listed = segment::list(dir)?;
    let spares = segment::list_spares(dir)?;
    let mut found = Recovered { next_sequence: watermark + 1, spares, ..Recovered::default() };
    let mut expected: Option<u64> = None;
    // Why the segment before ended where it did, in case the next one does not go on from there.
    let mut ended: Option<Error> = None;
    let count = listed.len();
    for (i, (named_first, path)) in listed.into_iter().enumerate() {
        let bytes = std::fs::read(&path).map_err(|error| Error::io("read", &path, &error))?;
        let is_last = i + 1 == count;
        let damaged = |offset: usize, what: &str| {
            Error::corrupt(format!(
                "wal segment {} at offset {offset}: {what}; restore the file, or run `wattlake repair`, which keeps what \
                 is whole and sets the file aside",
                path.display()
            ))
        };
        let mut report = |error: Error| on_damage(Damage { segment: &path, error });
        let first = match segment::read_header(&bytes) {
            Ok(first) => first,
            // A crash while the segment was being made: no frame can be in it yet.
            Err(_) if is_last && whole_frame_after(&bytes, 0, named_first).is_none() => {
                std::fs::remove_file(&path).map_err(|error| Error::io("delete", &path, &error))?;
                found.torn_bytes = bytes.len() as u64;
                break;
            }
            Err(what) => {
                report(damaged(0, &what))?;
                named_first
            }
        };
        match expected {
            Some(expected) if first != expected => {
                report(ended.take().unwrap_or_else(|| {
                    damaged(0, &format!("starts with frame {first} where {expected} should follow"))
                }))?;
            }
            None if first > watermark + 1 => {
                report(damaged(
                    0,
                    &format!("starts with frame {first}, but the catalog has only those up to {watermark}"),
                ))?;
            }
            _ => {}
        }
        ended = None;
        let mut sequence = first;
        let mut offset = segment::HEADER_BYTES;
        while offset < bytes.len() {
            let frame = match read_frame(&bytes[offset..]) {
                Ok(frame) if frame.sequence == sequence => frame,
                Ok(frame) if frame.sequence > sequence => {
                    report(damaged(
                        offset,
                        &format!("frame {} where {sequence} should follow", frame.sequence),
                    ))?;
                    frame
                }
                // What this file held before it was written over, or the torn tail.
                earlier_or_torn => {
                    let what = earlier_or_torn.err();
                    if let Some(next) = whole_frame_after(&bytes, offset + 1, sequence) {
                        report(damaged(offset, what.as_deref().unwrap_or("an earlier frame")))?;
                        offset = next;
                        continue;
                    }
                    if is_last {
                        // Bytes of an earlier use of the file are no loss.
                        if what.is_some() && bytes[offset..].iter().zip(&MAGIC).all(|(a, b)| a == b) {
                            found.torn_bytes = (bytes.len() - offset) as u64;
                        }
                        truncate(&path, offset as u64)?;
                    }
                    ended = what.map(|what| damaged(offset, &what));
                    break;
                }
            };
            sequence = frame.sequence;
            if sequence > watermark {
                match frame.decode(decode) {
                    Ok(batches) => {
                        apply(sequence, batches);
                        found.replayed_frames += 1;
                    }
                    Err(error) => report(damaged(offset, &error.message))?,
                }
            }
            offset += frame.len;
            sequence += 1;
        }
        expected = Some(sequence);
        found.next_sequence = found.next_sequence.max(sequence);
        // One without frames is written next, under the same name: it must not be released as one of earlier frames.
        let is_next = sequence == first && first == found.next_sequence;
        if !is_next {
            found.segments.push(Segment { path, first, last: sequence - 1 });
        }
    }
    Ok(found)
}

/// Where a whole frame of this or a later sequence starts at or after `from` that was written when everything before it
/// was synced: what stands damaged in front of it is no torn tail.
fn whole_frame_after(bytes: &[u8], from: usize, sequence: u64) -> Option<usize> {
    let tail = bytes.get(from..)?;
    memmem::find_iter(tail, &MAGIC)
        .map(|at| from + at)
        .find(|at| read_frame(&bytes[*at..]).is_ok_and(|frame| frame.sequence >= sequence && !frame.is_early))
}

fn truncate(path: &Path, len: u64) -> Result<()> {
    let cut = || {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(len)?;
        file.sync_all()
    };
    cut().map_err(|error| Error::io("truncate", path, &error))
}
