//! What every engine has to do, and what is special about sled.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use keystore_core::id::Actor;
use keystore_core::partition::RecordKey;
use keystore_core::record::{Body, Record, VALUE_BYTES_MAX};
use keystore_core::stamp::Stamp;

use super::{DEADLINE, entry, key, memory_dir, record};
use crate::storage::engine::{EngineError, LoadError, Storage};
use crate::storage::sled_engine::SledEngine;
use crate::storage::sync_file_range;

const CACHE_BYTES: u64 = 8 << 20;

fn sled(directory: &Path) -> Arc<dyn Storage> {
    let begun = Instant::now();
    loop {
        // sled gives up its lock a moment after it was dropped.
        match SledEngine::open(directory, CACHE_BYTES) {
            Err(EngineError::Sled(sled::Error::Io(_))) if begun.elapsed() < DEADLINE => {
                std::thread::yield_now();
            }
            result => return Arc::new(result.unwrap()),
        }
    }
}

/// Runs the whole contract against an engine that `open` makes.
fn check(open: fn(&Path) -> Arc<dyn Storage>) {
    finds_what_was_applied(open);
    merges_in_any_order(open);
    keeps_values_of_every_size(open);
    keeps_what_was_flushed(open);
    shows_readers_whole_records_that_never_go_back(open);
}

#[test]
fn sled_keeps_the_contract() {
    check(sled);
}

fn load(engine: &Arc<dyn Storage>, key: &RecordKey) -> Option<Record> {
    engine.load(key).unwrap()
}

fn finds_what_was_applied(open: fn(&Path) -> Arc<dyn Storage>) {
    let directory = memory_dir();
    let engine = open(directory.path());
    assert_eq!(load(&engine, &key(1)), None);
    let deleted = (key(2), Record { stamp: Stamp::new(5, 1, Actor(3)), body: Body::Tombstone });
    assert_eq!(engine.apply(&[entry(1, 1), deleted.clone(), entry(3, 3)]).unwrap(), 0);
    for (key, record) in [entry(1, 1), deleted, entry(3, 3)] {
        assert_eq!(load(&engine, &key), Some(record));
    }
    let other = RecordKey::new("defaul", b"tkey-1").unwrap();
    assert_eq!(load(&engine, &other), None, "keyspace and key are told apart");
    engine.flush(1).unwrap();
    assert!(engine.bytes_on_disk().unwrap() > 0);
}

fn merges_in_any_order(open: fn(&Path) -> Arc<dyn Storage>) {
    let directory = memory_dir();
    let engine = open(directory.path());
    // Among them equal stamps with different contents, and sizes that change the form on disk.
    let versions: Vec<Record> = [(2, 10), (1, 100_000), (3, 40_000), (3, 40_001), (2, 11), (3, 1)]
        .map(|(millis, bytes)| record(millis, vec![b'v'; bytes]))
        .into();
    let expected = versions.iter().cloned().reduce(Record::merge).unwrap();
    for start in 0..versions.len() {
        let mut order = versions.clone();
        order.rotate_left(start);
        let name = key(start as u64);
        for record in &order {
            engine.apply(&[(name.clone(), record.clone())]).unwrap();
        }
        assert_eq!(load(&engine, &name).unwrap().version(), expected.version());
        let batch: Vec<_> = order.into_iter().map(|record| (key(50 + start as u64), record)).collect();
        engine.apply(&batch).unwrap();
        assert_eq!(load(&engine, &key(50 + start as u64)), Some(expected.clone()));
    }
}

fn keeps_values_of_every_size(open: fn(&Path) -> Arc<dyn Storage>) {
    let directory = memory_dir();
    let chunk = 16 << 10;
    let sizes =
        [0, 1, 21, 22, 23, 512, 513, chunk - 23, chunk - 22, chunk - 21, chunk, 2 * chunk, VALUE_BYTES_MAX];
    let longest = RecordKey::new(&"k".repeat(64), &[0xff; 1024]).unwrap();
    let entries: Vec<_> = (0..)
        .zip(sizes)
        .map(|(n, size)| (key(n), record(n, (0..size).map(|at| at as u8).collect::<Vec<_>>())))
        .chain([(longest, record(1, vec![1; VALUE_BYTES_MAX]))])
        .collect();
    let engine = open(directory.path());
    engine.apply(&entries).unwrap();
    engine.flush(1).unwrap();
    drop(engine);
    let engine = open(directory.path());
    for (key, record) in &entries {
        assert!(load(&engine, key).as_ref() == Some(record), "{} bytes", record.value_len());
    }
}

fn keeps_what_was_flushed(open: fn(&Path) -> Arc<dyn Storage>) {
    let directory = memory_dir();
    let engine = open(directory.path());
    assert_eq!(engine.flushed().unwrap(), 0);
    engine.apply(&[entry(1, 1)]).unwrap();
    engine.flush(17).unwrap();
    drop(engine);
    let engine = open(directory.path());
    assert_eq!(engine.flushed().unwrap(), 17);
    assert_eq!(load(&engine, &key(1)), Some(entry(1, 1).1));
}

fn shows_readers_whole_records_that_never_go_back(open: fn(&Path) -> Arc<dyn Storage>) {
    let directory = memory_dir();
    let engine = open(directory.path());
    // Small and chunked forms in turn, always replaced while they are read.
    let version = |n: u64| record(n, vec![n as u8; if n.is_multiple_of(3) { 20 } else { 60_000 }]);
    engine.apply(&[(key(1), version(1))]).unwrap();
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut last = 0;
            let mut loads = 0_u64;
            while !is_done.load(Ordering::Acquire) {
                let found = engine.load(&key(1)).unwrap().unwrap();
                assert!(found.stamp.millis() >= last, "a load went back");
                last = found.stamp.millis();
                assert!(found == version(last));
                loads += 1;
            }
            loads
        });
        for n in 2..400 {
            engine.apply(&[(key(1), version(n))]).unwrap();
        }
        is_done.store(true, Ordering::Release);
        assert!(reader.join().unwrap() > 0);
    });
}

#[test]
fn a_damaged_record_is_reported_and_never_overwritten() {
    let directory = memory_dir();
    let engine = sled(directory.path());
    engine.apply(&[entry(1, 1), (key(2), record(2, vec![0; 50_000])), entry(3, 3)]).unwrap();
    engine.flush(3).unwrap();
    drop(engine);
    spoil(directory.path());
    let engine = sled(directory.path());
    for n in [1, 2] {
        assert!(matches!(engine.load(&key(n)), Err(LoadError::Damaged)), "key {n}");
    }
    let newer: Vec<_> = [1, 2, 3].map(|n| entry(n, 10)).into();
    assert_eq!(engine.apply(&newer).unwrap(), 2);
    for n in [1, 2] {
        assert!(matches!(engine.load(&key(n)), Err(LoadError::Damaged)), "key {n}");
    }
    assert_eq!(load(&engine, &key(3)), Some(entry(3, 10).1));
}

/// Flips a bit of the record of key 1 and takes one chunk of key 2 away, below the engine.
fn spoil(directory: &Path) {
    let begun = Instant::now();
    let db = loop {
        match sled::Config::new().path(directory).segment_size(2 << 20).open() {
            Err(sled::Error::Io(_)) if begun.elapsed() < DEADLINE => std::thread::yield_now(),
            result => break result.unwrap(),
        }
    };
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
fn replaced_chunks_are_gone_and_nothing_becomes_a_blob_file() {
    let directory = memory_dir();
    let engine = sled(directory.path());
    for n in 0..40 {
        let batch: Vec<_> =
            (0..8).map(|k| (key(k), record(n, vec![n as u8; 20_000 + 3_000 * k as usize]))).collect();
        engine.apply(&batch).unwrap();
    }
    let small: Vec<_> = (0..8).map(|k| entry(k, 100)).collect();
    engine.apply(&small).unwrap();
    engine.flush(1).unwrap();
    drop(engine);
    assert_eq!(std::fs::read_dir(directory.path().join("blobs")).unwrap().count(), 0);
    let begun = Instant::now();
    let db = loop {
        match sled::Config::new().path(directory.path()).segment_size(2 << 20).open() {
            Err(sled::Error::Io(_)) if begun.elapsed() < DEADLINE => std::thread::yield_now(),
            result => break result.unwrap(),
        }
    };
    assert_eq!(db.iter().count(), 8 + 1, "eight records and the note of the flush");
}

#[test]
fn the_largest_items_never_become_blob_files() {
    let directory = memory_dir();
    let engine = sled(directory.path());
    let name = |n: u64| {
        RecordKey::new(&"k".repeat(64), &[&[n as u8 % 64; 1000][..], &n.to_be_bytes()].concat()).unwrap()
    };
    for round in 1..4 {
        for n in 0..120 {
            engine.apply(&[(name(n), record(round, vec![round as u8; 16_300]))]).unwrap();
        }
    }
    engine.apply(&[(name(0), record(9, vec![9; VALUE_BYTES_MAX]))]).unwrap();
    engine.flush(1).unwrap();
    assert_eq!(std::fs::read_dir(directory.path().join("blobs")).unwrap().count(), 0);
}

#[test]
fn the_syncs_of_sled_go_through_our_own_function() {
    let directory = memory_dir();
    let db = sled::Config::new().path(directory.path()).flush_every_ms(None).open().unwrap();
    let before = sync_file_range::calls();
    for n in 0..10_u64 {
        db.insert(n.to_be_bytes(), vec![1; 100]).unwrap();
        db.flush().unwrap();
    }
    let calls = sync_file_range::calls() - before;
    assert!(calls >= 10, "{calls} calls for 10 flushes: the C library's function was linked instead");
}
