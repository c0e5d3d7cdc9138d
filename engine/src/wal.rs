//! The write-ahead log: what was acknowledged and is not yet in files.
//!
//! A log is a folder of segments; a segment is a header and frames; a frame is one group commit, holding one or more
//! encoded batches under one checksum. A frame says whether the one before it was synced when it was written (always, in
//! durable mode). So a damaged frame with such a whole one behind it is real damage, and one without is the torn tail of a
//! crash (WAL-3).
//! `docs/formats/wal.md` gives the bytes. This module does plain file work; threads and group commit are in
//! [`crate::writer`].

#[cfg(test)]
pub(crate) mod faulty;
mod frame;
mod log;
mod recover;
mod segment;

pub(crate) use frame::encode_chunk;
pub(crate) use log::{AppendError, DiskFiles, Log};
pub(crate) use recover::{Damage, Recovered, recover, salvage};

#[cfg(test)]
mod tests;
