//! The tree of tables under the contract, and what is special about it.

use std::path::Path;
use std::sync::Arc;

use keystore_core::effect::Entry;
use keystore_core::message::ScanRange;
use keystore_core::partition::Partition;

use super::contract::{self, Subject};
use super::{contents, entry, key, memory_dir, put, record};
use crate::storage::buffered_engine::BufferedEngine;
use crate::storage::engine::{LoadError, ScanError, Storage};
use crate::storage::item;
use crate::storage::lsm_engine::{HIGHEST_KEY, LsmEngine};

const CACHE_BYTES: u64 = 1 << 20;
/// Little, so that there are flushes.
const TABLE_BYTES: u64 = 256 << 10;

fn engine(directory: &Path) -> Arc<dyn Storage> {
    let base = LsmEngine::open(directory, CACHE_BYTES).unwrap();
    Arc::new(BufferedEngine::new(Box::new(base), TABLE_BYTES))
}

#[test]
fn lsm_keeps_the_contract() {
    contract::check(Subject { open: engine, spoil, knows_highest: true });
}

/// Puts what is no record in the place of those of keys 1 and 2.
fn spoil(directory: &Path) {
    let base = LsmEngine::open(directory, CACHE_BYTES).unwrap();
    for n in [1, 2] {
        let name = item::record_name(&key(n));
        let mut stored = base.raw(&name).unwrap();
        stored[20] ^= 4;
        base.put_raw(&name, &stored);
    }
}

/// As in a directory of an earlier release, which noted nothing.
#[test]
fn without_a_note_no_stamp_is_above_all_records_for_ever() {
    let directory = memory_dir();
    let first = engine(directory.path());
    first.apply(&put([entry(1, 7)])).unwrap();
    first.flush(1).unwrap();
    drop(first);
    LsmEngine::open(directory.path(), CACHE_BYTES).unwrap().remove_raw(HIGHEST_KEY);
    for round in 2..4 {
        let engine = engine(directory.path());
        assert_eq!(engine.highest().unwrap(), None);
        engine.apply(&put([entry(round, 1)])).unwrap();
        engine.flush(round).unwrap();
    }
    let base = LsmEngine::open(directory.path(), CACHE_BYTES).unwrap();
    assert_eq!(base.raw(HIGHEST_KEY).as_deref(), Some(&b""[..]), "nor is an older note believed again");
    base.put_raw(HIGHEST_KEY, b"spoilt");
    drop(base);
    assert_eq!(engine(directory.path()).highest().unwrap(), None);
}

/// Many small tables that overlap, and more of what is replaced than of what stays.
#[test]
fn tables_are_merged_and_give_their_space_back() {
    let directory = memory_dir();
    let engine = engine(directory.path());
    for round in 1..=60 {
        let batch = (0..40).map(|n| (key(n), record(round, vec![round as u8; 5_000])));
        engine.apply(&put(batch)).unwrap();
        engine.flush(round).unwrap();
    }
    drop(engine);
    let base = LsmEngine::open(directory.path(), CACHE_BYTES).unwrap();
    assert!(base.runs() < 16, "{} runs", base.runs());
    let engine = BufferedEngine::new(Box::new(base), TABLE_BYTES);
    let stored = engine.size().unwrap().disk_bytes;
    assert!(stored < 20 * 200_000, "{stored} bytes for 200,000");
    for n in 0..40 {
        assert_eq!(engine.load(&key(n)).unwrap(), Some(record(60, vec![60; 5_000])));
    }
    assert_eq!(engine.flushed().unwrap(), 60);
}

#[test]
fn a_list_of_tables_with_any_flipped_bit_is_refused_and_nothing_is_removed() {
    let directory = memory_dir();
    let first = engine(directory.path());
    first.apply(&put((0..50).map(|n| entry(n, 1)))).unwrap();
    first.flush(1).unwrap();
    drop(first);
    let before = contents(directory.path());
    let current = std::fs::read(directory.path().join("current")).unwrap();
    let list = format!("v{}", u64::from_le_bytes(*current.first_chunk().unwrap()));
    for name in ["current", &list] {
        let path = directory.path().join(name);
        let whole = std::fs::read(&path).unwrap();
        // What stands behind the checksum says how it was made, and there is one way.
        let checked = if name == "current" { 24 } else { whole.len() };
        for bit in 0..checked * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, flipped).unwrap();
            assert!(LsmEngine::open(directory.path(), CACHE_BYTES).is_err(), "{name}, bit {bit}");
        }
        std::fs::write(&path, whole).unwrap();
    }
    assert_eq!(contents(directory.path()), before);
    assert_eq!(engine(directory.path()).load(&key(7)).unwrap(), Some(entry(7, 1).1));
}

/// The library finds by a checksum of its own that a block is not what it wrote.
#[test]
fn a_block_that_cannot_be_read_is_damage_of_its_records() {
    let directory = memory_dir();
    let first = engine(directory.path());
    first.apply(&put((0..2_000).map(|n| (key(n), record(1, vec![n as u8; 1_000]))))).unwrap();
    first.flush(1).unwrap();
    drop(first);
    for table in std::fs::read_dir(directory.path().join("tables")).unwrap().flatten() {
        let mut bytes = std::fs::read(table.path()).unwrap();
        // Blocks lie before what is known of them.
        let blocks = bytes.len() / 2;
        for byte in bytes[..blocks].iter_mut().step_by(100_000) {
            *byte ^= 1;
        }
        std::fs::write(table.path(), bytes).unwrap();
    }
    let engine = engine(directory.path());
    let (mut found, mut damaged) = (0, Vec::new());
    for n in 0..2_000 {
        match engine.load(&key(n)) {
            Ok(stored) => {
                assert_eq!(stored, Some(record(1, vec![n as u8; 1_000])));
                found += 1;
            }
            Err(LoadError::Damaged) => damaged.push(n),
            Err(LoadError::Io(error)) => panic!("{error}"),
        }
    }
    assert!(found > 0 && !damaged.is_empty(), "{found} found, {damaged:?} damaged");
    let unreadable = || (0..2_000).filter(|n| !is_scanned(&engine, *n)).count();
    assert!(unreadable() > 0, "nobody knows whose records are in there");
    let healed = damaged.iter().map(|n| Entry::Replace { key: key(*n), record: Some(entry(*n, 9).1) });
    assert_eq!(engine.apply(&healed.collect::<Vec<_>>()).unwrap(), Vec::<usize>::new());
    engine.flush(2).unwrap();
    for n in damaged {
        assert_eq!(engine.load(&key(n)).unwrap(), Some(entry(n, 9).1));
    }
    assert!(unreadable() > 0, "a scan reads what is below, whatever is above: no write mends that");
}

/// False if a page of the key's slot cannot be read.
fn is_scanned(engine: &Arc<dyn Storage>, n: u64) -> bool {
    let slot = u32::from(key(n).slot());
    let range = ScanRange { partition: Partition(0), prefix: Default::default(), after: None, limit: 100 };
    match engine.scan(slot..slot + 1, &range) {
        Ok(_) => true,
        Err(ScanError::Unreadable(_)) => false,
        Err(error) => panic!("{error}"),
    }
}
