//! Where a log ends: torn tails are cut, holes are damage, and a cut tail never comes back.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keystore_core::effect::Entry;
use tempfile::TempDir;

use super::{entry, memory_dir, put};
use crate::storage::log::{self, CommitLog, LogDamaged, Position, ReadError, Reason};

const SEGMENT_BYTES: u64 = 16 << 10;

fn begin(directory: &Path, end: Position) -> CommitLog {
    CommitLog::begin(directory, SEGMENT_BYTES, end, Arc::default()).unwrap()
}

fn read(directory: &Path, from: Position) -> Result<(Vec<Entry>, Position), LogDamaged> {
    let mut records = Vec::new();
    match log::read(directory, from, &mut |batch| records.extend_from_slice(batch)) {
        Ok(end) => Ok((records, end.position)),
        Err(ReadError::Damaged(damaged)) => Err(damaged),
        Err(ReadError::Disk(error)) => panic!("{error}"),
    }
}

/// A log of one segment: two synced batches, then one that is not, and where each begins.
fn three_batches() -> (TempDir, PathBuf, [Position; 4]) {
    let directory = memory_dir();
    let mut log = begin(directory.path(), Position::default());
    let mut positions = [log.position(); 4];
    for (index, batch) in [(1..4), (4..6), (6..11)].into_iter().enumerate() {
        log.append(&put(batch.map(|n| entry(n, n)))).unwrap();
        positions[index + 1] = log.position();
        if index < 2 {
            log.sync().unwrap();
        }
    }
    let path = log::path(directory.path(), 1);
    (directory, path, positions)
}

fn flip(path: &Path, offset: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[offset as usize] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_was_appended_reads_back_in_order() {
    let (directory, _, positions) = three_batches();
    let (records, end) = read(directory.path(), Position::default()).unwrap();
    assert_eq!(records, put((1..11).map(|n| entry(n, n))));
    assert_eq!(end, positions[3]);
    let (records, end) = read(directory.path(), positions[1]).unwrap();
    assert_eq!(records, put((4..11).map(|n| entry(n, n))));
    assert_eq!(end, positions[3]);
}

#[test]
fn a_crash_at_every_byte_of_the_last_batch_is_a_torn_tail() {
    let (directory, path, positions) = three_batches();
    let whole = fs::read(&path).unwrap();
    let (begin, end) = (positions[2].offset as usize, positions[3].offset as usize);
    let last_of_batch = whole[..end].iter().rposition(|byte| *byte != 0).unwrap();
    for cut in begin..=end {
        for filler in [0, 0x5a] {
            let mut torn = whole.clone();
            torn[cut..end].fill(filler);
            fs::write(&path, torn).unwrap();
            let (records, found) = read(directory.path(), Position::default()).unwrap();
            let is_whole = cut > last_of_batch;
            let expected = if is_whole { positions[3] } else { positions[2] };
            assert_eq!(found, expected, "cut at {cut} of {begin}..{end}, filled with {filler}");
            assert_eq!(records.len() as u64, expected.sequence);
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_in_a_batch_that_a_later_one_calls_synced_is_damage() {
    let (directory, path, positions) = three_batches();
    let whole = fs::read(&path).unwrap();
    for offset in positions[0].offset..positions[1].offset {
        fs::write(&path, &whole).unwrap();
        flip(&path, offset);
        let result = read(directory.path(), Position::default());
        let is_padding = whole[offset as usize] == 0 && result.is_ok();
        if is_padding {
            // The zeros that align a batch carry nothing.
            assert!(offset >= positions[1].offset - 7);
            continue;
        }
        let damaged = result.unwrap_err();
        assert_eq!(damaged.reason, Reason::SyncedBatch, "byte {offset}");
        assert_eq!((damaged.offset, damaged.sequence), (positions[0].offset, 1));
    }
}

#[test]
fn a_page_that_was_lost_in_the_middle_is_damage_only_if_it_had_been_synced() {
    let (directory, path, positions) = three_batches();
    let whole = fs::read(&path).unwrap();
    let zeroed = |from: Position, to: Position| {
        let mut bytes = whole.clone();
        bytes[from.offset as usize..to.offset as usize].fill(0);
        fs::write(&path, bytes).unwrap();
        read(directory.path(), Position::default())
    };
    assert_eq!(zeroed(positions[0], positions[1]).unwrap_err().reason, Reason::SyncedBatch);
    assert_eq!(zeroed(positions[2], positions[3]).unwrap().1, positions[2]);
    // The second batch was synced, but nothing that is left says so: the third was written after that sync.
    assert_eq!(zeroed(positions[1], positions[2]).unwrap_err().sequence, 4);
    assert_eq!(zeroed(positions[1], positions[3]).unwrap().1, positions[1]);
}

#[test]
fn batches_written_without_a_sync_between_them_are_a_torn_tail_together() {
    let directory = memory_dir();
    let mut log = begin(directory.path(), Position::default());
    let first = log.position();
    for n in 1..4 {
        log.append(&put([entry(n, n)])).unwrap();
    }
    flip(&log::path(directory.path(), 1), first.offset + 60);
    let (records, end) = read(directory.path(), Position::default()).unwrap();
    assert_eq!((records.len(), end), (0, first));
}

#[test]
fn the_mark_of_a_clean_shutdown_makes_a_bad_last_batch_damage() {
    let (directory, path, positions) = three_batches();
    let mut log = begin(directory.path(), positions[3]);
    log.append(&put([entry(11, 11)])).unwrap();
    let before = log.position();
    log.sync().unwrap();
    let second = log::path(directory.path(), 2);
    flip(&second, before.offset - 30);
    assert_eq!(read(directory.path(), positions[3]).unwrap().1.sequence, 10, "without the mark");
    flip(&second, before.offset - 30);
    log.mark_clean_shutdown().unwrap();
    assert_eq!(read(directory.path(), positions[3]).unwrap().1, log.position());
    flip(&second, before.offset - 30);
    assert_eq!(read(directory.path(), positions[3]).unwrap_err().reason, Reason::SyncedBatch);
    drop(path);
}

#[test]
fn a_torn_tail_that_was_cut_never_comes_back() {
    let (directory, path, positions) = three_batches();
    let whole = fs::read(&path).unwrap();
    flip(&path, positions[3].offset - 20);
    let (_, end) = read(directory.path(), Position::default()).unwrap();
    assert_eq!(end, positions[2]);
    let mut log = begin(directory.path(), end);
    log.append(&put([entry(100, 100)])).unwrap();
    log.sync().unwrap();
    // The lost page turns up again, as if the disk had remembered it.
    fs::write(&path, whole).unwrap();
    let (records, end) = read(directory.path(), Position::default()).unwrap();
    assert_eq!(end, log.position());
    assert_eq!(records.len(), 6);
    assert_eq!(records.last(), put([entry(100, 100)]).last());
}

#[test]
fn a_log_of_many_segments_reads_back_and_a_missing_or_short_one_is_damage() {
    let directory = memory_dir();
    let mut log = begin(directory.path(), Position::default());
    let mut n = 0;
    while log.position().segment < 4 {
        n += 1;
        log.append(&put([entry(n, n), entry(n, n + 1)])).unwrap();
    }
    log.sync().unwrap();
    assert_eq!(log::ids(directory.path()).unwrap(), [1, 2, 3, 4]);
    let (records, end) = read(directory.path(), Position::default()).unwrap();
    assert_eq!((records.len() as u64, end), (2 * n, log.position()));

    let second = log::path(directory.path(), 2);
    let whole = fs::read(&second).unwrap();
    // The last batch of a segment that another one follows.
    let tail = whole.iter().rposition(|byte| *byte != 0).unwrap() as u64;
    flip(&second, tail);
    assert_eq!(read(directory.path(), Position::default()).unwrap_err().reason, Reason::NextSegment);
    fs::write(&second, &whole).unwrap();
    flip(&second, 9);
    assert_eq!(read(directory.path(), Position::default()).unwrap_err().reason, Reason::SegmentHeader);
    fs::remove_file(&second).unwrap();
    let damaged = read(directory.path(), Position::default()).unwrap_err();
    assert_eq!((damaged.reason, damaged.segment), (Reason::SegmentMissing, second));
}

#[test]
fn a_value_that_looks_like_a_batch_proves_nothing() {
    let directory = memory_dir();
    let mut log = begin(directory.path(), Position::default());
    log.append(&put([entry(1, 1)])).unwrap();
    log.sync().unwrap();
    log.append(&put([entry(2, 2)])).unwrap();
    let path = log::path(directory.path(), 1);
    // All of the segment as the value of a record in a new segment, whose batch is then torn at its beginning.
    let stolen = fs::read(&path).unwrap()[4096..5000].to_vec();
    let end = log.position();
    // Two logs in one directory would prepare their next segments under one name.
    drop(log);
    let mut log = begin(directory.path(), end);
    let start = log.position();
    log.append(&put([(super::key(3), super::record(3, stolen))])).unwrap();
    flip(&log::path(directory.path(), 2), start.offset + 5);
    assert_eq!(read(directory.path(), end).unwrap().1, start);
}
