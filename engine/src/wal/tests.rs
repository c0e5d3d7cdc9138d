use std::{
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};

use tempfile::TempDir;
use wattlake_catalog::{EntityId, EntityType, Quality};

use super::{faulty::FaultyDisk, recover::Recovered, *};
use crate::{
    ErrorKind,
    batch::{Batch, BatchSeries, Readings, ReadingsDecoder},
    series::SeriesTable,
};

fn batch(n: i64) -> Batch {
    Batch {
        table: vec![BatchSeries {
            entity: EntityId(uuid::Uuid::from_u128(7)),
            entity_type: EntityType::Meter,
            metric: "power".into(),
            unit: "kW".into(),
        }],
        series: vec![0, 0],
        ts: vec![n * 10, n * 10 + 1],
        value: vec![n as f64, 0.5],
        quality: vec![Quality::Good, Quality::Estimated],
        metadata: vec![(1, "{}".into())],
        created_at: n,
        progress: Vec::new(),
    }
}

fn chunk_of(n: i64) -> Vec<u8> {
    let series = SeriesTable::default();
    let readings = batch(n).into_readings(&series);
    encode_chunk(|out| readings.encode(&series, out))
}

fn empty(next_sequence: u64) -> Recovered {
    Recovered { next_sequence, ..Recovered::default() }
}

fn open(dir: &Path, segment_bytes: u64, next_sequence: u64) -> Log {
    Log::new(dir, Box::new(DiskFiles), segment_bytes, empty(next_sequence))
}

/// Writes frames 1..=n, one batch each, and answers the segment files.
fn write_log(dir: &Path, frames: i64, segment_bytes: u64) -> Vec<PathBuf> {
    let mut log = open(dir, segment_bytes, 1);
    for n in 1..=frames {
        assert_eq!(log.append(&[chunk_of(n)]).expect("append"), n as u64);
        log.sync().expect("sync");
    }
    segment::list(dir).expect("list").into_iter().map(|(_, path)| path).collect()
}

fn decode(bytes: &[u8]) -> crate::Result<Readings> {
    ReadingsDecoder::new(&SeriesTable::default()).decode(bytes)
}

fn replay(dir: &Path, watermark: u64) -> crate::Result<(Vec<i64>, Recovered)> {
    let mut seen = Vec::new();
    let recovered =
        recover(dir, watermark, &mut decode, |_, batches| seen.extend(batches.iter().map(|b| b.created_at)))?;
    Ok((seen, recovered))
}

#[test]
fn frames_above_the_watermark_are_replayed_in_order() {
    let dir = TempDir::new().expect("dir");
    assert!(write_log(dir.path(), 20, 600).len() > 3, "several segments");
    let (seen, recovered) = replay(dir.path(), 5).expect("recovers");
    assert_eq!(seen, (6..=20).collect::<Vec<_>>());
    assert_eq!((recovered.next_sequence, recovered.torn_bytes), (21, 0));
    let mut log = Log::new(dir.path(), Box::new(DiskFiles), 600, recovered);
    log.append(&[chunk_of(21), chunk_of(22)]).expect("append");
    log.sync().expect("sync");
    assert_eq!(replay(dir.path(), 19).expect("recovers").0, [20, 21, 22]);
    log.release_through(20).expect("release");
    assert_eq!(replay(dir.path(), 20).expect("recovers").0, [21, 22]);
}

/// WAL-3: cut at every byte of the last three frames, exactly the whole frames survive.
#[test]
fn torn_tail_is_dropped_at_every_byte() {
    let dir = TempDir::new().expect("dir");
    let path = write_log(dir.path(), 8, 1 << 20).remove(0);
    let whole = std::fs::read(&path).expect("read");
    let mut ends = vec![segment::HEADER_BYTES];
    while let Ok(frame) = frame::read_frame(&whole[ends[ends.len() - 1]..]) {
        ends.push(ends[ends.len() - 1] + frame.len);
    }
    assert_eq!(ends.len(), 9);
    for cut in ends[5]..=whole.len() {
        let frames = ends.iter().filter(|end| **end <= cut).count() - 1;
        for tail in [&[][..], &[0; 64], &[0xa5; 64]] {
            std::fs::write(&path, [&whole[..cut], tail].concat()).expect("write");
            let (seen, recovered) = replay(dir.path(), 0).expect("recovers");
            assert_eq!(seen, (1..=frames as i64).collect::<Vec<_>>(), "cut at {cut}");
            assert_eq!(recovered.next_sequence, frames as u64 + 1);
            assert_eq!(replay(dir.path(), 0).expect("recovers again").1.torn_bytes, 0);
        }
    }
}

/// A crash while a segment is created leaves less than a header.
#[test]
fn torn_segment_header_is_dropped() {
    let dir = TempDir::new().expect("dir");
    let paths = write_log(dir.path(), 6, 600);
    let last = paths.last().expect("segments").clone();
    let next = segment::path(dir.path(), 7);
    for len in 0..segment::HEADER_BYTES {
        std::fs::write(&next, &segment::header(7)[..len]).expect("write");
        let (seen, recovered) = replay(dir.path(), 0).expect("recovers");
        assert_eq!((seen.len(), recovered.next_sequence), (6, 7));
        assert!(!next.exists() && last.exists());
    }
}

/// Every single flipped bit before the last frame stops start-up with file and offset, and changes nothing on disk.
#[test]
fn flipped_bits_are_damage_not_tail() {
    let dir = TempDir::new().expect("dir");
    let paths = write_log(dir.path(), 6, 600);
    for (i, path) in paths.iter().enumerate() {
        let whole = std::fs::read(path).expect("read");
        let is_last = i + 1 == paths.len();
        let last_frame = if is_last { (whole.len() - segment::HEADER_BYTES) / 2 } else { 0 };
        for bit in 0..(whole.len() - last_frame) * 8 {
            let in_unused_bytes = (12..16).contains(&(bit / 8)) || (28..32).contains(&(bit / 8));
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(path, &flipped).expect("write");
            match replay(dir.path(), 0) {
                Err(error) => {
                    assert_eq!(error.kind, ErrorKind::Corrupt);
                    assert!(error.message.contains("offset") && error.message.contains(".wal"), "{error}");
                    assert_eq!(std::fs::read(path).expect("read"), flipped);
                }
                Ok((seen, _)) => {
                    assert!(in_unused_bytes, "bit {bit} of {} was accepted", path.display());
                    assert_eq!(seen.len(), 6);
                }
            }
        }
        std::fs::write(path, &whole).expect("write");
    }
    assert_eq!(replay(dir.path(), 0).expect("recovers").0.len(), 6);
}

/// In `fast` mode several frames wait for one sync and a power cut may keep the later of them: that is a tail, too.
#[test]
fn unsynced_frames_are_one_torn_tail() {
    let dir = TempDir::new().expect("dir");
    let mut log = open(dir.path(), 1 << 20, 1);
    for n in 1..=2 {
        log.append(&[chunk_of(n)]).expect("append");
        log.sync().expect("sync");
    }
    let path = segment::list(dir.path()).expect("list")[0].1.clone();
    let synced = std::fs::metadata(&path).expect("size").len() as usize;
    for n in 3..=5 {
        log.append(&[chunk_of(n)]).expect("append");
    }
    let whole = std::fs::read(&path).expect("read");
    let third = frame::read_frame(&whole[synced..]).expect("frame").len;
    let mut damaged = whole.clone();
    // The third frame was synced in front of nothing: the fourth and fifth say so, the third does not.
    damaged[synced + third + 40] ^= 1;
    std::fs::write(&path, &damaged).expect("write");
    assert_eq!(replay(dir.path(), 0).expect("a tail").0, [1, 2, 3]);
    damaged.clone_from(&whole);
    damaged[synced - 5] ^= 1;
    std::fs::write(&path, &damaged).expect("write");
    assert_eq!(replay(dir.path(), 0).expect_err("damage").kind, ErrorKind::Corrupt);
}

/// Released segments are written over; what they held before is neither replayed nor taken for damage, wherever the new
/// frames end.
#[test]
fn segments_are_written_over_and_old_frames_stay_dead() {
    let dir = TempDir::new().expect("dir");
    let mut log = open(dir.path(), 700, 1);
    let mut n = 0;
    for _ in 0..40 {
        n += 1;
        log.append(&[chunk_of(n)]).expect("append");
        log.sync().expect("sync");
        if n % 5 == 0 {
            log.release_through(n as u64 - 2).expect("release");
        }
        let watermark = (n / 5 * 5 - 2).max(0);
        let copy = TempDir::new().expect("copy");
        for entry in std::fs::read_dir(dir.path()).expect("folder") {
            let entry = entry.expect("entry");
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("copy");
        }
        let (seen, recovered) = replay(copy.path(), watermark as u64).expect("recovers");
        assert_eq!(seen, (watermark + 1..=n).collect::<Vec<_>>());
        assert_eq!(recovered.torn_bytes, 0, "old frames are no torn tail");
    }
    assert!(!segment::list_spares(dir.path()).expect("list").is_empty(), "files are kept to be written over");
    // A torn frame in front of old ones is a tail; a damaged one in front of a new one is damage.
    let (_, path) = segment::list(dir.path()).expect("list").pop().expect("a segment");
    let whole = std::fs::read(&path).expect("read");
    let mut ends = vec![segment::HEADER_BYTES];
    let first = frame::read_frame(&whole[ends[0]..]).expect("frame").sequence;
    while let Ok(frame) = frame::read_frame(&whole[ends[ends.len() - 1]..])
        && frame.sequence == first + ends.len() as u64 - 1
    {
        ends.push(ends[ends.len() - 1] + frame.len);
    }
    assert!(ends.len() > 2 && ends[ends.len() - 1] < whole.len(), "new frames in front of old ones");
    let flip = |at: usize| {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        std::fs::write(&path, damaged).expect("write");
        replay(dir.path(), 38)
    };
    assert_eq!(flip(ends[ends.len() - 3] + 40).expect_err("damage").kind, ErrorKind::Corrupt);
    let (seen, recovered) = flip(ends[ends.len() - 1] - 5).expect("a tail");
    assert_eq!((seen, recovered.next_sequence), (vec![39], 40));
    assert!(recovered.torn_bytes > 0);
}

/// Under its old name again after a power cut, a segment with a new header would be damage.
#[test]
fn segments_are_written_over_only_under_a_durable_name() {
    let dir = TempDir::new().expect("dir");
    let disk = FaultyDisk::default();
    let mut log = Log::new(dir.path(), Box::new(disk.clone()), 300, empty(1));
    for n in 1..60 {
        log.append(&[chunk_of(n)]).expect("append");
        log.sync().expect("sync");
        if n % 7 == 0 {
            log.release_through(n as u64 - 2).expect("release");
        }
    }
    let reused = disk.reused.lock();
    assert!(reused.len() > 5, "{reused:?}");
    for name in &*reused {
        let is_spare = name.as_ref().is_some_and(|name| name.extension() == Some(segment::SPARE.as_ref()));
        assert!(is_spare, "{reused:?}");
    }
}

/// Whatever single bit is flipped, salvage loses at most the one frame that it is in, and says so.
#[test]
fn salvage_loses_only_what_is_damaged() {
    let dir = TempDir::new().expect("dir");
    let paths = write_log(dir.path(), 6, 600);
    for path in &paths {
        let whole = std::fs::read(path).expect("read");
        for bit in (0..whole.len() * 8).step_by(7) {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(path, &flipped).expect("write");
            let mut damage = Vec::new();
            let mut seen = Vec::new();
            let recovered = salvage(
                dir.path(),
                0,
                &mut |found| {
                    damage.push(found.error.message);
                    Ok(())
                },
                &mut decode,
                |_, batches| seen.extend(batches.iter().map(|b| b.created_at)),
            );
            recovered.expect("salvaged");
            assert!(seen.len() >= 5 && seen.is_sorted(), "bit {bit} of {}: {seen:?}", path.display());
            let is_torn_tail = path == &paths[paths.len() - 1] && seen == [1, 2, 3, 4, 5];
            assert!(seen.len() == 6 || !damage.is_empty() || is_torn_tail, "{seen:?} and no word of it");
            std::fs::write(path, &whole).expect("write");
        }
    }
}

#[test]
fn missing_segments_stop_start_up() {
    let dir = TempDir::new().expect("dir");
    let paths = write_log(dir.path(), 9, 200);
    std::fs::remove_file(&paths[0]).expect("remove");
    assert_eq!(replay(dir.path(), 0).expect_err("gap").kind, ErrorKind::Corrupt);
    let first = segment::list(dir.path()).expect("list")[0].0;
    assert!(replay(dir.path(), first - 1).is_ok(), "what is in files may be gone");
    std::fs::remove_file(&paths[2]).expect("remove");
    assert_eq!(replay(dir.path(), first - 1).expect_err("gap").kind, ErrorKind::Corrupt);
}

#[test]
fn full_disk_refuses_the_write_and_the_log_goes_on() {
    let dir = TempDir::new().expect("dir");
    let disk = FaultyDisk::default();
    let mut log = Log::new(dir.path(), Box::new(disk.clone()), 1 << 20, empty(1));
    log.append(&[chunk_of(1)]).expect("append");
    disk.fail_append.store(true, Ordering::Relaxed);
    match log.append(&[chunk_of(2)]) {
        Err(AppendError::Refused(error)) => assert_eq!(error.kind, ErrorKind::StorageFull),
        other => panic!("{other:?}"),
    }
    disk.fail_append.store(false, Ordering::Relaxed);
    assert_eq!(log.append(&[chunk_of(3)]).expect("append"), 2);
    log.sync().expect("sync");
    assert_eq!(replay(dir.path(), 0).expect("recovers").0, [1, 3]);
    // Half a frame that cannot be taken back, as on a disk that became read-only: the next segment goes on.
    disk.fail_append.store(true, Ordering::Relaxed);
    disk.fail_truncate.store(true, Ordering::Relaxed);
    assert!(matches!(log.append(&[chunk_of(4)]), Err(AppendError::Refused(_))));
    disk.fail_append.store(false, Ordering::Relaxed);
    assert_eq!(log.append(&[chunk_of(5)]).expect("append"), 3);
    assert_eq!(replay(dir.path(), 0).expect("recovers").0, [1, 3, 5]);
    // Behind a frame that is not synced nobody knows what is on disk.
    disk.fail_append.store(true, Ordering::Relaxed);
    assert!(matches!(log.append(&[chunk_of(6)]), Err(AppendError::Broken(_))));
}

/// A segment that took no frame on a full disk is started again under its name, and nothing releases it then.
#[test]
fn a_segment_without_frames_is_not_released_under_its_successor() {
    let dir = TempDir::new().expect("dir");
    let disk = FaultyDisk::default();
    let mut log = Log::new(dir.path(), Box::new(disk.clone()), 1 << 20, empty(1));
    log.append(&[chunk_of(1)]).expect("append");
    log.sync().expect("sync");
    log.rotate();
    disk.fail_frames.store(true, Ordering::Relaxed);
    assert!(matches!(log.append(&[chunk_of(2)]), Err(AppendError::Refused(_))));
    log.rotate();
    disk.fail_frames.store(false, Ordering::Relaxed);
    log.append(&[chunk_of(3)]).expect("append");
    log.sync().expect("sync");
    log.release_through(1).expect("release");
    assert_eq!(replay(dir.path(), 1).expect("recovers").0, [3]);
}

/// A process that died when it had made a segment and written nothing: the next one writes that segment, and what it
/// writes outlives the release of everything before.
#[test]
fn a_segment_that_a_dead_process_has_begun_is_not_released_under_its_successor() {
    let dir = TempDir::new().expect("dir");
    write_log(dir.path(), 5, 1 << 20);
    std::fs::write(segment::path(dir.path(), 6), segment::header(6)).expect("a header");
    let (seen, recovered) = replay(dir.path(), 0).expect("recovers");
    assert_eq!((seen.len(), recovered.next_sequence), (5, 6));
    let mut log = Log::new(dir.path(), Box::new(DiskFiles), 1 << 20, recovered);
    log.append(&[chunk_of(6)]).expect("append");
    log.sync().expect("sync");
    log.release_through(5).expect("released");
    let (seen, recovered) = replay(dir.path(), 5).expect("recovers");
    assert_eq!((seen, recovered.next_sequence), (vec![6], 7));
}
