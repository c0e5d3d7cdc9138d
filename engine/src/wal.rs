//! The write-ahead log: what was acknowledged and is not yet in files.
//!
//! A log is a folder of segments; a segment is a header and frames; a frame is one group commit, holding one or more
//! encoded batches under one checksum. A frame is written only after the one before it was synced, so a damaged frame
//! with a whole one behind it is real damage, and one with nothing behind it is the torn tail of a crash (WAL-3).
//! `docs/formats/wal.md` gives the bytes. This module does plain file work; threads and group commit are in
//! [`crate::writer`].

mod frame;
mod log;
mod recover;
mod segment;

pub(crate) use frame::encode_chunk;
pub(crate) use log::{AppendError, DiskFiles, Log};
pub(crate) use recover::recover;

#[cfg(test)]
mod tests;
