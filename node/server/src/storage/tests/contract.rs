//! What every engine has to do.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::Instant;

use bytes::Bytes;
use keystore_core::effect::{Entry, Hint};
use keystore_core::id::{Actor, NodeId};
use keystore_core::message::{Page, ScanRange};
use keystore_core::partition::{Partition, PartitionCount, RecordKey, encoded_prefix};
use keystore_core::record::{Body, Record, VALUE_BYTES_MAX};
use keystore_core::stamp::Stamp;

use super::{DEADLINE, entry, key, memory_dir, put, record};
use crate::storage::engine::{LoadError, ScanError, Storage};

type Engine = Arc<dyn Storage>;

/// An engine under test.
#[derive(Clone, Copy)]
pub(super) struct Subject {
    pub(super) open: fn(&Path) -> Engine,
    /// Damages the records of keys 1 and 2 below a closed engine; 2 is a large one.
    pub(super) spoil: fn(&Path),
    pub(super) knows_highest: bool,
}

/// Runs the whole contract.
pub(super) fn check(subject: Subject) {
    finds_what_was_applied(subject);
    merges_in_any_order(subject);
    keeps_values_of_every_size(subject);
    keeps_what_was_flushed(subject);
    replaces_and_removes(subject);
    knows_a_stamp_that_nothing_is_above(subject);
    keeps_hints_until_they_are_done(subject);
    scans_in_the_order_of_places(subject);
    merges_what_was_flushed_with_what_was_not(subject);
    cuts_pages_by_count_and_by_bytes(subject);
    reports_damage_until_something_takes_its_place(subject);
    shows_readers_whole_records_that_never_go_back(subject);
}

fn load(engine: &Engine, key: &RecordKey) -> Option<Record> {
    engine.load(key).unwrap()
}

fn finds_what_was_applied(Subject { open, .. }: Subject) {
    let directory = memory_dir();
    let engine = open(directory.path());
    assert_eq!(load(&engine, &key(1)), None);
    let of = |n, body| (key(n), Record { stamp: Stamp::new(5, 1, Actor(3)), body });
    let records = [
        entry(1, 1),
        of(2, Body::Tombstone),
        of(3, Body::Expired),
        of(4, Body::Expiring { value: "soon gone".into(), expires_ms: 77 }),
        entry(5, 3),
    ];
    assert_eq!(engine.apply(&put(records.clone())).unwrap(), Vec::<usize>::new());
    for (key, record) in records {
        assert_eq!(load(&engine, &key), Some(record));
    }
    let other = RecordKey::new("defaul", b"tkey-1").unwrap();
    assert_eq!(load(&engine, &other), None, "keyspace and key are told apart");
    engine.flush(1).unwrap();
    assert!(engine.size().unwrap().disk_bytes > 0);
}

fn merges_in_any_order(Subject { open, .. }: Subject) {
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
            engine.replay(&put([(name.clone(), record.clone())])).unwrap();
        }
        assert_eq!(load(&engine, &name).unwrap().version(), expected.version());
        let batch = put(order.into_iter().map(|record| (key(50 + start as u64), record)));
        engine.replay(&batch).unwrap();
        assert_eq!(load(&engine, &key(50 + start as u64)), Some(expected.clone()));
    }
}

fn keeps_values_of_every_size(Subject { open, .. }: Subject) {
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
    engine.apply(&put(entries.clone())).unwrap();
    engine.flush(1).unwrap();
    drop(engine);
    let engine = open(directory.path());
    for (key, record) in &entries {
        assert!(load(&engine, key).as_ref() == Some(record), "{} bytes", record.value_len());
    }
}

fn keeps_what_was_flushed(Subject { open, .. }: Subject) {
    let directory = memory_dir();
    let engine = open(directory.path());
    assert_eq!(engine.flushed().unwrap(), 0);
    for round in 1..4 {
        engine.apply(&put([entry(round, round)])).unwrap();
        engine.flush(16 + round).unwrap();
    }
    drop(engine);
    let engine = open(directory.path());
    assert_eq!(engine.flushed().unwrap(), 19);
    for round in 1..4 {
        assert_eq!(load(&engine, &key(round)), Some(entry(round, round).1));
    }
    // After a power cut the numbers of entries that the log has lost are given again.
    engine.apply(&put([entry(9, 9)])).unwrap();
    engine.flush(19).unwrap();
    drop(engine);
    assert_eq!(load(&open(directory.path()), &key(9)), Some(entry(9, 9).1));
}

fn replaces_and_removes(Subject { open, .. }: Subject) {
    let directory = memory_dir();
    let engine = open(directory.path());
    let large = |millis| record(millis, vec![millis as u8; 40_000]);
    let replace = |record: Option<Record>| Entry::Replace { key: key(1), record };
    for before in [None, Some(entry(1, 9).1), Some(large(9))] {
        for after in [None, Some(entry(1, 2).1), Some(large(2))] {
            engine.apply(&[replace(before.clone())]).unwrap();
            assert_eq!(load(&engine, &key(1)), before);
            engine.apply(&[replace(after.clone())]).unwrap();
            assert_eq!(load(&engine, &key(1)), after, "an older record takes the place of a newer one");
        }
    }
    engine.apply(&[replace(None)]).unwrap();
    engine.flush(1).unwrap();
    drop(engine);
    assert_eq!(load(&open(directory.path()), &key(1)), None);
}

fn knows_a_stamp_that_nothing_is_above(Subject { open, knows_highest, .. }: Subject) {
    let directory = memory_dir();
    let highest = |engine: &Engine| engine.highest().unwrap().map(Stamp::millis);
    let engine = open(directory.path());
    if !knows_highest {
        return assert_eq!(engine.highest().unwrap(), None);
    }
    assert_eq!(engine.highest().unwrap(), Some(Stamp::LOWEST), "there is none");
    engine.apply(&put([entry(1, 7), entry(2, 9)])).unwrap();
    assert_eq!(highest(&engine), Some(9));
    engine.flush(2).unwrap();
    engine.replay(&put([entry(1, 8)])).unwrap();
    engine.flush(3).unwrap();
    drop(engine);
    let engine = open(directory.path());
    assert_eq!(highest(&engine), Some(9));
    let replaced = Entry::Replace { key: key(2), record: Some(entry(2, 12).1) };
    engine.replay(&[replaced, Entry::Record { key: key(1), record: entry(1, 11).1 }]).unwrap();
    assert_eq!(highest(&engine), Some(12));
    engine.apply(&[Entry::Replace { key: key(2), record: None }]).unwrap();
    engine.flush(4).unwrap();
    drop(engine);
    assert!(highest(&open(directory.path())) >= Some(11));
}

fn keeps_hints_until_they_are_done(Subject { open, .. }: Subject) {
    let directory = memory_dir();
    let engine = open(directory.path());
    let hint = |target, n, since_ms| Hint { target: NodeId([target; 16]), key: key(n), since_ms };
    let all = [hint(1, 1, 10), hint(1, 2, 20), hint(2, 1, 30), hint(0xff, 3, 40)];
    engine.apply(&all.clone().map(Entry::Hint)).unwrap();
    assert_eq!(engine.hints().unwrap(), all);
    assert_eq!(load(&engine, &key(1)), None, "a hint is no record");
    engine.apply(&[Entry::Hint(hint(2, 1, 31))]).unwrap();
    let done = |target, n| Entry::HintDone { target: NodeId([target; 16]), key: key(n) };
    engine.apply(&[done(1, 1), done(1, 3), done(7, 1)]).unwrap();
    let left = [hint(1, 2, 20), hint(2, 1, 31), hint(0xff, 3, 40)];
    assert_eq!(engine.hints().unwrap(), left);
    engine.flush(1).unwrap();
    drop(engine);
    let engine = open(directory.path());
    assert_eq!(engine.hints().unwrap(), left);
    // Done where it is on disk: gone at once, and for ever.
    engine.apply(&[done(2, 1)]).unwrap();
    let left = [hint(1, 2, 20), hint(0xff, 3, 40)];
    assert_eq!(engine.hints().unwrap(), left);
    engine.flush(2).unwrap();
    assert_eq!(engine.hints().unwrap(), left);
    drop(engine);
    assert_eq!(open(directory.path()).hints().unwrap(), left);
}

const PARTITIONS: u32 = 16;

fn range(partition: u16, prefix: Bytes, limit: u32) -> ScanRange {
    ScanRange { partition: Partition(partition), prefix, after: None, limit }
}

fn scan(engine: &Engine, range: &ScanRange) -> Page {
    let count = PartitionCount::new(PARTITIONS).unwrap();
    engine.scan(count.slots(range.partition), range).unwrap()
}

/// Every page of a range, one after the other.
fn scan_all(engine: &Engine, mut range: ScanRange) -> Vec<(RecordKey, Record)> {
    let mut found = Vec::new();
    loop {
        let page = scan(engine, &range);
        assert!(page.entries.len() <= range.limit as usize);
        found.extend(page.entries);
        match page.until {
            None => return found,
            behind => range.after = behind,
        }
    }
}

fn scans_in_the_order_of_places(Subject { open, .. }: Subject) {
    let directory = memory_dir();
    let engine = open(directory.path());
    let mut all = BTreeMap::new();
    let names = ["a", "ab", "ab\u{7f}", "abc", "b", "\u{0}", "zzz"];
    for keyspace in ["default", "other"] {
        for n in 0..60 {
            for name in names {
                let mut name = name.as_bytes().to_vec();
                name.extend_from_slice(if n % 7 == 0 { &[0xff, 0xff] } else { b"" });
                name.extend_from_slice(n.to_string().as_bytes());
                let key = RecordKey::new(keyspace, &name).unwrap();
                let bytes = if n == 3 { 20_000 } else { n };
                let (slot, encoded) = key.place();
                all.insert((slot, encoded.clone()), (key.clone(), record(1, vec![7; bytes])));
            }
        }
    }
    engine.apply(&put(all.values().cloned())).unwrap();
    engine.apply(&[Entry::Hint(Hint { target: NodeId([0; 16]), key: key(1), since_ms: 1 })]).unwrap();
    let prefixes = [
        Bytes::new(),
        encoded_prefix("default", b"").unwrap(),
        encoded_prefix("default", b"ab").unwrap(),
        encoded_prefix("default", b"ab\xff\xff").unwrap(),
        encoded_prefix("other", b"none such").unwrap(),
    ];
    let count = PartitionCount::new(PARTITIONS).unwrap();
    for (prefix, limit) in prefixes.iter().flat_map(|prefix| [1, 2, 7, u32::MAX].map(|limit| (prefix, limit)))
    {
        let mut found = 0;
        for partition in count.all() {
            let expected: Vec<_> = all
                .values()
                .filter(|(key, _)| key.partition(count) == partition && key.encoded().starts_with(prefix))
                .cloned()
                .collect();
            let pages = scan_all(&engine, range(partition.0, prefix.clone(), limit));
            assert!(pages == expected, "partition {partition}, prefix {prefix:?}, limit {limit}");
            found += pages.len();
        }
        assert!(found > 0 || prefix.ends_with(b"none such"));
    }
}

/// Every way in which a key's last change and the ones before may lie on both sides of a flush.
fn merges_what_was_flushed_with_what_was_not(Subject { open, .. }: Subject) {
    let directory = memory_dir();
    let engine = open(directory.path());
    let merge = |n, (key, record): (RecordKey, Record)| (n, Entry::Record { key, record });
    let replace = |n, record| (n, Entry::Replace { key: key(n), record });
    let changes: [fn(u64) -> Option<Record>; 4] =
        [|_| None, |n| Some(entry(n, 5).1), |n| Some(entry(n, 9).1), |_| Some(record(7, vec![7; 40_000]))];
    let (mut first, mut second, mut expected) = (Vec::new(), Vec::new(), BTreeMap::new());
    let mut n = 0;
    for below in changes {
        for above in changes {
            for is_replaced in [false, true] {
                n += 1;
                first.extend(below(n).map(|record| merge(n, (key(n), record)).1));
                let holds = if is_replaced {
                    second.push(replace(n, above(n)).1);
                    above(n)
                } else {
                    second.extend(above(n).map(|record| merge(n, (key(n), record)).1));
                    below(n).into_iter().chain(above(n)).reduce(Record::merge)
                };
                expected.insert((key(n).slot(), key(n)), holds);
            }
        }
    }
    engine.replay(&first).unwrap();
    engine.flush(1).unwrap();
    engine.replay(&second).unwrap();
    let count = PartitionCount::new(PARTITIONS).unwrap();
    for step in 0..3 {
        // Loads remember what they have merged: once before, once after.
        for limit in [1, 3, 100] {
            let found: Vec<_> = count
                .all()
                .flat_map(|partition| scan_all(&engine, range(partition.0, Bytes::new(), limit)))
                .collect();
            let held = expected.iter().filter_map(|((_, key), holds)| Some((key.clone(), holds.clone()?)));
            assert!(found == held.collect::<Vec<_>>(), "step {step}, limit {limit}");
        }
        for ((_, key), holds) in &expected {
            assert!(load(&engine, key) == *holds, "{key:?}, step {step}");
        }
        if step == 1 {
            engine.flush(2).unwrap();
        }
    }
}

fn cuts_pages_by_count_and_by_bytes(Subject { open, .. }: Subject) {
    let directory = memory_dir();
    let engine = open(directory.path());
    let mut same_partition =
        (0..).map(key).filter(|key| key.partition(PartitionCount::new(PARTITIONS).unwrap()).0 == 3);
    let mut large = || (same_partition.next().unwrap(), record(1, vec![1; 400_000]));
    engine.apply(&put([large(), large(), large()])).unwrap();
    let page = scan(&engine, &range(3, Bytes::new(), 100));
    assert_eq!((page.entries.len(), page.is_cut()), (2, true), "a third one makes a page too large");
    let mut rest = range(3, Bytes::new(), 100);
    rest.after = Some(page.entries[1].0.clone());
    let page = scan(&engine, &rest);
    assert_eq!((page.entries.len(), page.is_cut()), (1, false));
    let whole = scan(&engine, &range(3, Bytes::new(), 0));
    assert_eq!((whole.entries.len(), whole.is_cut()), (1, true), "a page that is cut has an entry");
    let page = scan(&engine, &range(4, Bytes::new(), 0));
    assert_eq!(page, Page::default());
}

fn reports_damage_until_something_takes_its_place(Subject { open, spoil, .. }: Subject) {
    let directory = memory_dir();
    let engine = open(directory.path());
    let others = (4..8).map(|n| entry(n, n));
    engine.apply(&put([entry(1, 1), (key(2), record(2, vec![0; 50_000])), entry(3, 3)])).unwrap();
    engine.apply(&put(others)).unwrap();
    engine.flush(3).unwrap();
    drop(engine);
    spoil(directory.path());
    let engine = open(directory.path());
    let count = PartitionCount::new(PARTITIONS).unwrap();
    let page_of = |n| {
        let range = range(key(n).partition(count).0, Bytes::new(), 10);
        engine.scan(count.slots(range.partition), &range)
    };
    for n in [1, 2] {
        assert!(matches!(engine.load(&key(n)), Err(LoadError::Damaged)), "key {n}");
        assert!(matches!(page_of(n), Err(ScanError::Damaged(found)) if found == key(n)), "key {n}");
    }
    let removed = Entry::Replace { key: key(2), record: None };
    let changes = [put([entry(1, 10), entry(3, 10)]), vec![removed]].concat();
    assert_eq!(engine.apply(&changes).unwrap(), Vec::<usize>::new());
    for _ in 0..2 {
        for n in [1, 3] {
            assert_eq!(load(&engine, &key(n)), Some(entry(n, 10).1));
            assert!(page_of(n).unwrap().entries.contains(&entry(n, 10)));
        }
        assert_eq!(load(&engine, &key(2)), None);
        assert!(page_of(2).is_ok());
        engine.flush(4).unwrap();
    }
}

fn shows_readers_whole_records_that_never_go_back(Subject { open, .. }: Subject) {
    let directory = memory_dir();
    let engine = open(directory.path());
    // Small and chunked forms in turn, always replaced while they are read.
    let version = |n: u64| (key(1), record(n, vec![n as u8; if n.is_multiple_of(3) { 20 } else { 60_000 }]));
    engine.apply(&put([version(1)])).unwrap();
    let is_done = AtomicBool::new(false);
    let (loads, flushes) = (AtomicU64::new(0), AtomicU64::new(0));
    let partition = key(1).partition(PartitionCount::new(PARTITIONS).unwrap()).0;
    let read = || {
        let mut last = 0;
        while !is_done.load(Ordering::Acquire) {
            let found = match loads.fetch_add(1, Ordering::Relaxed) % 2 {
                0 => engine.load(&key(1)).unwrap().unwrap(),
                _ => scan(&engine, &range(partition, Bytes::new(), 1)).entries[0].1.clone(),
            };
            assert!(found.stamp.millis() >= last, "a load went back");
            last = found.stamp.millis();
            assert!(found == version(last).1);
        }
    };
    let flush = || {
        while !is_done.load(Ordering::Acquire) {
            engine.flush(flushes.fetch_add(1, Ordering::Relaxed)).unwrap();
        }
    };
    std::thread::scope(|scope| {
        let others = [scope.spawn(read), scope.spawn(flush)];
        let begun = Instant::now();
        let mut n = 1;
        let is_enough = |n| {
            n >= 400 && loads.load(Ordering::Relaxed) > 100 && flushes.load(Ordering::Relaxed) > 10
                || others.iter().any(ScopedJoinHandle::is_finished)
        };
        while !is_enough(n) && begun.elapsed() < DEADLINE {
            n += 1;
            engine.apply(&put([version(n)])).unwrap();
        }
        is_done.store(true, Ordering::Release);
        assert!(begun.elapsed() < DEADLINE, "nobody reads or flushes");
    });
}
