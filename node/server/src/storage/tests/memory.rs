//! The memory engine under the contract, and its snapshots.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use keystore_core::effect::{Entry, Hint};
use keystore_core::id::NodeId;

use super::contract::{self, Subject};
use super::{DEADLINE, entry, key, memory_dir, put, record};
use crate::storage::engine::{EngineError, Storage};
use crate::storage::file::Operation;
use crate::storage::memory_engine::MemoryEngine;
use crate::storage::power::{Faults, watch};
use crate::storage::snapshot;

fn engine(directory: &Path) -> Arc<dyn Storage> {
    Arc::new(MemoryEngine::open(directory).unwrap())
}

type Item = (Vec<u8>, Vec<u8>);

fn items(directory: &Path) -> Result<(u64, Vec<Item>), EngineError> {
    let mut items = Vec::new();
    let read = snapshot::read(directory, &mut |name, value| items.push((name.to_vec(), value.to_vec())))?;
    Ok((read.unwrap().sequence, items))
}

/// Flips a bit of the records of keys 1 and 2 where no checksum but their own tells.
fn spoil(directory: &Path) {
    let (sequence, mut items) = items(directory).unwrap();
    for (name, value) in &mut items {
        if name.ends_with(b"key-1") || name.ends_with(b"key-2") {
            value[20] ^= 4;
        }
    }
    let items = items.iter().map(|(name, value)| (&name[..], &value[..]));
    snapshot::write(directory, sequence, items, |_| {}).unwrap();
}

#[test]
fn memory_keeps_the_contract() {
    contract::check(Subject { open: engine, spoil, knows_highest: true });
}

/// What the checked-in snapshot holds.
fn sample() -> Vec<Entry> {
    let mut entries = put([entry(1, 1), entry(2, 2), (key(3), record(3, vec![3; 40]))]);
    entries.push(Entry::Hint(Hint { target: NodeId([8; 16]), key: key(1), since_ms: 9 }));
    entries
}

const SAMPLE: &[u8] = include_bytes!("../../../tests/data/storage-v2/snapshot");

#[test]
fn a_snapshot_of_its_first_format_still_reads_and_is_still_written() {
    let directory = memory_dir();
    let path = snapshot::path(directory.path());
    let written = engine(directory.path());
    written.apply(&sample()).unwrap();
    written.flush(21).unwrap();
    assert!(fs::read(&path).unwrap() == SAMPLE);
    fs::write(&path, SAMPLE).unwrap();
    let engine = engine(directory.path());
    assert_eq!(engine.flushed().unwrap(), 21);
    for (key, record) in [entry(1, 1), entry(2, 2), (key(3), record(3, vec![3; 40]))] {
        assert_eq!(engine.load(&key).unwrap(), Some(record));
    }
    assert_eq!(engine.hints().unwrap().len(), 1);
}

#[test]
fn every_flipped_missing_or_added_byte_of_a_snapshot_is_noticed() {
    let directory = memory_dir();
    let path = snapshot::path(directory.path());
    let refused = |content: &[u8], what: &str| {
        fs::write(&path, content).unwrap();
        let result = MemoryEngine::open(directory.path());
        assert!(matches!(result, Err(EngineError::Snapshot { .. })), "{what}: {result:?}");
    };
    for byte in 0..SAMPLE.len() {
        let mut flipped = SAMPLE.to_vec();
        flipped[byte] ^= 0x10;
        refused(&flipped, &format!("byte {byte}"));
        refused(&SAMPLE[..byte], &format!("cut at {byte}"));
    }
    refused(&[SAMPLE, &[0]].concat(), "a byte more");
    refused(&[SAMPLE, SAMPLE].concat(), "twice");
}

#[test]
fn blocks_of_a_snapshot_cannot_be_left_out_or_change_places() {
    let directory = memory_dir();
    let engine = engine(directory.path());
    engine.apply(&put((0..30).map(|n| (key(n), record(1, vec![n as u8; 30_000]))))).unwrap();
    engine.flush(1).unwrap();
    let path = snapshot::path(directory.path());
    let whole = fs::read(&path).unwrap();
    let (header, mut rest) = whole.split_at(20);
    let mut blocks = Vec::new();
    while !rest.is_empty() {
        let length = 8 + u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
        blocks.push(&rest[..length]);
        rest = &rest[length..];
    }
    assert!(blocks.len() > 3, "{} blocks", blocks.len());
    for at in 0..blocks.len() {
        let mut fewer = blocks.clone();
        fewer.remove(at);
        fs::write(&path, [header, &fewer.concat()].concat()).unwrap();
        assert!(items(directory.path()).is_err(), "without block {at}");
        let mut swapped = blocks.clone();
        swapped.swap(at, (at + 1) % blocks.len());
        fs::write(&path, [header, &swapped.concat()].concat()).unwrap();
        assert!(items(directory.path()).is_err(), "block {at} elsewhere");
    }
}

/// Stops in the middle of a snapshot until told to go on, and fails it if told so.
fn stopping_flush(check: impl FnOnce(&Arc<dyn Storage>)) {
    let directory = memory_dir();
    let engine = engine(directory.path());
    engine.apply(&put((0..40).map(|n| (key(n), record(1, vec![n as u8; 30_000]))))).unwrap();
    let (reached, is_reached) = channel();
    let (go_on, may_go_on) = channel();
    let (writes, may_go_on) = (AtomicUsize::new(0), std::sync::Mutex::new(may_go_on));
    let stop = Faults(move |operation, _: &Path| {
        if operation == Operation::Write && writes.fetch_add(1, Ordering::SeqCst) == 2 {
            reached.send(()).unwrap();
            may_go_on.lock().unwrap().recv_timeout(DEADLINE).unwrap();
        }
        Ok(())
    });
    let _watched = watch(directory.path(), Arc::new(stop));
    std::thread::scope(|scope| {
        let flushing = scope.spawn(|| engine.flush(40));
        is_reached.recv_timeout(DEADLINE).unwrap();
        check(&engine);
        go_on.send(()).unwrap();
        flushing.join().unwrap().unwrap();
    });
    let engine = self::engine(directory.path());
    assert_eq!(engine.flushed().unwrap(), 40);
    for n in 0..40 {
        assert_eq!(
            engine.load(&key(n)).unwrap(),
            Some(record(1, vec![n as u8; 30_000])),
            "as it was, key {n}"
        );
    }
}

#[test]
fn reads_and_writes_go_on_in_the_middle_of_a_snapshot_which_holds_one_moment() {
    stopping_flush(|engine| {
        let reserve = engine.reserve_bytes();
        assert!((600_000..1_100_000).contains(&reserve), "{reserve} bytes of 1.2 MB are still to be written");
        for n in 0..80 {
            engine.apply(&put([entry(n, 5)])).unwrap();
            assert_eq!(engine.load(&key(n)).unwrap(), Some(entry(n, 5).1));
        }
        engine.apply(&[Entry::Replace { key: key(3), record: None }]).unwrap();
        assert_eq!(engine.load(&key(3)).unwrap(), None);
    });
}

#[test]
fn a_snapshot_without_space_leaves_the_one_before_and_the_next_one_may_succeed() {
    let directory = memory_dir();
    let engine = engine(directory.path());
    engine.apply(&put([entry(1, 1)])).unwrap();
    engine.flush(1).unwrap();
    let before = fs::read(snapshot::path(directory.path())).unwrap();
    engine.apply(&put([entry(2, 2)])).unwrap();
    for failing in [Operation::Write, Operation::SyncData] {
        let fault = Faults(move |operation, _: &Path| match operation == failing {
            true => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            false => Ok(()),
        });
        let watched = watch(directory.path(), Arc::new(fault));
        assert!(matches!(engine.flush(2), Err(EngineError::NoSpace(_))), "{failing:?}");
        drop(watched);
        assert_eq!(engine.flushed().unwrap(), 1);
        let names: Vec<_> = fs::read_dir(directory.path()).unwrap().flatten().collect();
        assert_eq!(names.len(), 1, "what was begun is gone");
        assert!(fs::read(snapshot::path(directory.path())).unwrap() == before);
    }
    engine.flush(2).unwrap();
    assert_eq!(self::engine(directory.path()).load(&key(2)).unwrap(), Some(entry(2, 2).1));
}

#[test]
fn nothing_is_written_where_nothing_has_changed() {
    let directory = memory_dir();
    let engine = engine(directory.path());
    engine.apply(&put([entry(1, 1)])).unwrap();
    engine.flush(1).unwrap();
    let is_written = Arc::new(AtomicBool::new(false));
    let seen = is_written.clone();
    let fault = Faults(move |_, _: &Path| {
        seen.store(true, Ordering::SeqCst);
        Ok(())
    });
    let _watched = watch(directory.path(), Arc::new(fault));
    engine.flush(1).unwrap();
    self::engine(directory.path()).flush(1).unwrap();
    assert!(!is_written.load(Ordering::SeqCst));
    engine.flush(2).unwrap();
    assert!(is_written.load(Ordering::SeqCst), "a later number has to be noted");
}

#[test]
fn the_size_follows_what_is_stored() {
    let directory = memory_dir();
    let engine = engine(directory.path());
    let empty = engine.size().unwrap().memory_bytes;
    engine.apply(&put([(key(1), record(1, vec![1; 10_000])), (key(2), record(1, vec![1; 5_000]))])).unwrap();
    let both = engine.size().unwrap().memory_bytes;
    assert!((15_000..16_000).contains(&(both - empty)), "{both} bytes");
    engine.apply(&put([(key(1), record(2, vec![1; 100]))])).unwrap();
    let smaller = engine.size().unwrap().memory_bytes;
    assert_eq!(both - smaller, 9_900);
    engine.apply(&[1, 2].map(|n| Entry::Replace { key: key(n), record: None })).unwrap();
    assert_eq!(engine.size().unwrap().memory_bytes, empty);
}
