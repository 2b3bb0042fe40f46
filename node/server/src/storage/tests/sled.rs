//! sled under the contract, and what is special about it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use keystore_core::effect::Entry;
use keystore_core::message::ScanRange;
use keystore_core::partition::{Partition, RecordKey};
use keystore_core::record::{Record, VALUE_BYTES_MAX};

use super::contract::{self, Subject};
use super::{DEADLINE, entry, key, memory_dir, put, record};
use crate::storage::base::Base as _;
use crate::storage::buffered_engine::BufferedEngine;
use crate::storage::engine::{EngineError, LoadError, ScanError, Storage};
use crate::storage::file::Operation;
use crate::storage::memtable::Held;
use crate::storage::power::{Faults, watch};
use crate::storage::sled_engine::SledEngine;
use crate::storage::sync_file_range;

const CACHE_BYTES: u64 = 8 << 20;
/// Little, so that there are flushes.
const TABLE_BYTES: u64 = 256 << 10;

/// sled gives up its lock a moment after it was dropped.
fn open<T>(open: impl Fn() -> Result<T, EngineError>) -> T {
    let begun = Instant::now();
    loop {
        match open() {
            Err(EngineError::Sled(sled::Error::Io(_))) if begun.elapsed() < DEADLINE => {
                std::thread::yield_now();
            }
            result => return result.unwrap(),
        }
    }
}

fn engine(directory: &Path) -> Arc<dyn Storage> {
    Arc::new(BufferedEngine::new(Box::new(open(|| SledEngine::open(directory, CACHE_BYTES))), TABLE_BYTES))
}

/// What the engine has stored, without the engine.
fn database(directory: &Path) -> sled::Db {
    open(|| Ok(sled::Config::new().path(directory).segment_size(2 << 20).open()?))
}

#[test]
fn sled_keeps_the_contract() {
    contract::check(Subject { open: engine, spoil, knows_highest: false });
}

/// Flips a bit of the record of key 1 and takes one chunk of key 2 away.
fn spoil(directory: &Path) {
    let db = database(directory);
    let names: Vec<_> = db.iter().keys().map(Result::unwrap).collect();
    let first = names.iter().find(|name| name.ends_with(b"key-1")).unwrap();
    let mut value = db.get(first).unwrap().unwrap().to_vec();
    value[20] ^= 4;
    db.insert(first, value).unwrap();
    let chunk = names.iter().find(|name| name[0] & 0xf0 == 0x10).unwrap();
    db.remove(chunk).unwrap().unwrap();
    db.flush().unwrap();
}

#[test]
fn what_cannot_be_read_any_more_is_damage_and_not_the_end_of_the_engine() {
    let directory = memory_dir();
    let value = |n: u64| record(1, vec![n as u8; 1_000]);
    let first = engine(directory.path());
    for n in 0..2_000 {
        first.apply(&put([(key(n), value(n))])).unwrap();
    }
    first.flush(1).unwrap();
    drop(first);
    // So small a cache keeps hardly anything of what it has read before the disk goes bad.
    let sled = open(|| SledEngine::open(directory.path(), 64 << 10));
    let engine = BufferedEngine::new(Box::new(sled), TABLE_BYTES);
    let path = directory.path().join("db");
    let whole = std::fs::read(&path).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    for (at, byte) in whole.iter().enumerate().step_by(256 << 10) {
        file.write_all_at(&[byte ^ 1], at as u64).unwrap();
    }
    let (mut found, mut damaged, mut unreadable) = (0, Vec::new(), 0);
    for n in 0..2_000 {
        match engine.load(&key(n)) {
            Ok(record) => {
                assert_eq!(record, Some(value(n)));
                found += 1;
            }
            Err(LoadError::Damaged) => damaged.push(n),
            Err(LoadError::Io(error)) => panic!("{error}"),
        }
        let slot = u32::from(key(n).slot());
        let range =
            ScanRange { partition: Partition(0), prefix: Default::default(), after: None, limit: 100 };
        match engine.scan(slot..slot + 1, &range) {
            // It ends before what cannot be read, if there is anything before that.
            Ok(page) if page.is_cut() => assert!(!page.entries.is_empty()),
            Ok(page) => assert!(page.entries.contains(&(key(n), value(n))), "a page leaves nothing out"),
            Err(ScanError::Unreadable(_)) => unreadable += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(found > 0 && !damaged.is_empty() && unreadable > 0, "{found}, {damaged:?}, {unreadable}");
    let replaced = |n: &u64| Entry::Replace { key: key(*n), record: Some(value(*n)) };
    engine.apply(&damaged.iter().map(replaced).collect::<Vec<_>>()).unwrap();
    engine.flush(2).unwrap();
    let mut refused = 0;
    for n in &damaged {
        let left_out = engine.apply(&[replaced(n)]).unwrap();
        assert_eq!(left_out.is_empty(), engine.load(&key(*n)).is_ok(), "key {n}");
        refused += left_out.len();
    }
    assert!(refused > 0, "a page that cannot be read takes nothing");
}

fn blob_files(directory: &Path) -> usize {
    std::fs::read_dir(directory.join("blobs")).unwrap().count()
}

#[test]
fn replaced_chunks_are_gone_and_nothing_becomes_a_blob_file() {
    let directory = memory_dir();
    let engine = engine(directory.path());
    for n in 0..40 {
        let batch = (0..8).map(|k| (key(k), record(n, vec![n as u8; 20_000 + 3_000 * k as usize])));
        engine.apply(&put(batch)).unwrap();
    }
    engine.apply(&put((0..8).map(|k| entry(k, 100)))).unwrap();
    engine.flush(1).unwrap();
    drop(engine);
    assert_eq!(blob_files(directory.path()), 0);
    let items = database(directory.path()).iter().count();
    assert_eq!(items, 8 + 1, "eight records and the note of the flush");
}

#[test]
fn the_largest_items_never_become_blob_files() {
    let directory = memory_dir();
    let engine = engine(directory.path());
    let name = |n: u64| {
        RecordKey::new(&"k".repeat(64), &[&[n as u8 % 64; 1000][..], &n.to_be_bytes()].concat()).unwrap()
    };
    for round in 1..4 {
        for n in 0..120 {
            engine.apply(&put([(name(n), record(round, vec![round as u8; 16_300]))])).unwrap();
        }
    }
    engine.apply(&put([(name(0), record(9, vec![9; VALUE_BYTES_MAX]))])).unwrap();
    engine.flush(1).unwrap();
    assert_eq!(blob_files(directory.path()), 0);
}

/// Without waiting, sled would fill its memory and a disk many times the size of what is stored, and stop for ever
/// once all its threads wait for each other.
#[test]
fn sled_is_never_far_ahead_of_a_slow_disk() {
    let directory = memory_dir();
    let one_at_a_time = Mutex::new(());
    let slow = Faults(move |operation, _: &Path| {
        if operation == Operation::SyncByLibrary {
            let _turn = one_at_a_time.lock().unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    });
    let _watched = watch(directory.path(), Arc::new(slow));
    let engine = engine(directory.path());
    for round in 0..400 {
        // Now and then all of them shrink, so that sled gives its last segments back.
        let bytes = if round % 40 == 39 { 0 } else { 20_000 };
        let batch = (0..8).map(|k| (key(k), record(round, vec![round as u8; bytes * (1 + k as usize)])));
        engine.apply(&put(batch)).unwrap();
        engine.flush(round).unwrap();
        let stored = engine.size().unwrap().disk_bytes;
        assert!(stored < 100 << 20, "{stored} bytes of disk for one megabyte, round {round}");
    }
}

/// What a crash leaves of a change of chunks: each prefix of what sled is told.
#[test]
fn a_crash_in_the_middle_of_a_change_leaves_no_chunks_behind() {
    let [large, other, small] =
        [(1, 40_000), (2, 50_000), (3, 10)].map(|(n, bytes)| record(n, vec![7; bytes]));
    let held = |record: Option<&Record>| Held {
        record: record.map(|record| record.encode(&key(1))),
        is_whole: true,
    };
    let changes = [(&large, Some(&other)), (&large, Some(&small)), (&small, Some(&large)), (&large, None)];
    for (before, after) in changes {
        for steps in 1.. {
            let directory = memory_dir();
            let engine = open(|| SledEngine::open(directory.path(), CACHE_BYTES));
            engine.write_record(&key(1), &held(Some(before))).unwrap();
            engine.changes_left.store(steps, Ordering::Relaxed);
            let is_whole = engine.write_record(&key(1), &held(after)).is_ok();
            drop(engine);
            let engine = open(|| SledEngine::open(directory.path(), CACHE_BYTES));
            let found = engine.load(&key(1)).unwrap();
            assert!(found.as_ref() == Some(before) || found.as_ref() == after, "after {steps} steps");
            engine.write_record(&key(1), &held(None)).unwrap();
            drop(engine);
            assert_eq!(database(directory.path()).len(), 0, "after {steps} steps");
            if is_whole {
                break;
            }
        }
    }
}

#[test]
fn the_syncs_of_sled_go_through_our_own_function() {
    let directory = memory_dir();
    let calls = Arc::new(AtomicUsize::new(0));
    let seen = calls.clone();
    let count = Faults(move |operation, path: &Path| {
        if operation == Operation::SyncByLibrary && path.ends_with("db") {
            seen.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    });
    let _watched = watch(directory.path(), Arc::new(count));
    let db = sled::Config::new().path(directory.path()).flush_every_ms(None).open().unwrap();
    let before = calls.load(Ordering::SeqCst);
    for n in 0..10_u64 {
        db.insert(n.to_be_bytes(), vec![1; 100]).unwrap();
        db.flush().unwrap();
    }
    let calls = calls.load(Ordering::SeqCst) - before;
    assert!(calls >= 10, "{calls} calls for 10 flushes: the C library's function was linked instead");
    assert!(sync_file_range::calls() >= calls as u64);
}
