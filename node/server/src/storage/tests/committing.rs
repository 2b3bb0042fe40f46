//! The committing thread: order, durability, checkpoints, a full disk, a disk that fails.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use keystore_core::effect::{Commit, CommitId, Entry, NotCommitted, SaveId, SavedState};
use keystore_core::quorum::Durability;

use super::{DEADLINE, ENGINES, entry, key, memory_dir, open, options, options_for, put, record, run};
use crate::storage::Options;
use crate::storage::engine::EngineKind;
use crate::storage::file::{self, Operation};
use crate::storage::log;
use crate::storage::power::{Faults, watch};

#[test]
fn commits_are_reported_in_order_and_only_once_they_can_be_loaded() {
    let directory = memory_dir();
    let storage = open(&options(directory.path().to_owned()));
    let engine = storage.engine();
    let counters = storage.counters();
    let running = run(storage);
    let handle = running.storage.handle();
    let commit = |n| {
        let (key, record) = entry(n, n);
        let durability = if n % 2 == 0 { Durability::Synced } else { Durability::Periodic };
        Commit { id: CommitId(n), entry: Entry::Record { key, record }, durability }
    };
    for n in 0..100 {
        handle.commit(&mut vec![commit(2 * n), commit(2 * n + 1)]);
    }
    let mut reported = Vec::new();
    while reported.len() < 200 {
        for (id, outcome) in running.committed.recv_timeout(DEADLINE).unwrap() {
            assert!(engine.load(&key(id.0)).unwrap().is_some());
            assert_eq!(outcome, Ok(Durability::Synced), "all went into synced batches");
            reported.push(id.0);
        }
    }
    assert_eq!(reported, (0..200).collect::<Vec<_>>());
    assert_eq!(counters.log_records.get(), 200);
    assert_eq!(counters.records_applied.get(), 200);
    assert!(counters.log_sync_seconds.count() <= counters.log_batches.get());
    running.storage.shutdown().unwrap();
}

#[test]
fn a_periodic_commit_is_reported_as_such_and_synced_soon() {
    let directory = memory_dir();
    let storage = open(&options(directory.path().to_owned()));
    let counters = storage.counters();
    let running = run(storage);
    let outcomes = running.commit(vec![entry(1, 1)], Durability::Periodic);
    assert_eq!(outcomes, [(CommitId(0), Ok(Durability::Periodic))]);
    let begun = Instant::now();
    while counters.log_sync_seconds.count() == 0 {
        assert!(begun.elapsed() < DEADLINE, "never synced");
        std::thread::yield_now();
    }
}

#[test]
fn after_a_clean_shutdown_nothing_is_replayed() {
    ENGINES.into_iter().for_each(check_clean_shutdown);
}

fn check_clean_shutdown(engine: EngineKind) {
    let directory = memory_dir();
    let options = options_for(engine, directory.path().to_owned());
    let running = run(open(&options));
    running.commit((0..50).map(|n| entry(n, n)).collect(), Durability::Synced);
    running.storage.handle().save(SaveId(5), SavedState::StampCeiling(77));
    running.storage.shutdown().unwrap();
    assert_eq!(running.saved.recv_timeout(DEADLINE).unwrap(), [SaveId(5)]);
    let storage = open(&options);
    assert_eq!(storage.counters().records_replayed.get(), 0);
    assert_eq!(storage.found().stamp_ceiling_ms, 77);
    assert_eq!(storage.engine().load(&key(49)).unwrap(), Some(entry(49, 49).1));
}

#[test]
fn checkpoints_remove_old_segments_and_shorten_replay() {
    ENGINES.into_iter().for_each(check_checkpoints);
}

fn check_checkpoints(engine: EngineKind) {
    let directory = memory_dir();
    let options = options_for(engine, directory.path().to_owned());
    let storage = open(&options);
    let counters = storage.counters();
    let running = run(storage);
    for n in 0..200 {
        running.commit(vec![(key(n % 10), record(n, vec![1; 8_000]))], Durability::Synced);
    }
    let log = directory.path().join("log");
    // Names only: a checkpoint may be removing files meanwhile.
    let segments = || file::list(&log).unwrap().len();
    let begun = Instant::now();
    while counters.checkpoints.get() < 4 || segments() > 6 {
        let found = segments();
        assert!(begun.elapsed() < DEADLINE, "{found} segments for 1.6 MB with a checkpoint each 256 KiB");
        running.commit(vec![(key(1), record(191, vec![1; 8_000]))], Durability::Synced);
    }
    drop(running);
    let storage = open(&options);
    assert_eq!(storage.counters().records_replayed.get(), 0);
    for n in 0..10 {
        assert_eq!(storage.engine().load(&key(n)).unwrap(), Some(record(190 + n, vec![1; 8_000])));
    }
}

#[test]
fn a_record_larger_than_a_segment_gets_a_segment_of_its_own() {
    for engine in ENGINES {
        let (directory, killed) = (memory_dir(), memory_dir());
        // No checkpoint takes the log away before it is looked at.
        let options =
            Options { checkpoint_bytes: 1 << 30, ..options_for(engine, directory.path().to_owned()) };
        let running = run(open(&options));
        let large = |n| (key(n), record(n, vec![n as u8; 300_000 + 1_000 * n as usize]));
        let entries = [entry(1, 1), large(2), entry(3, 3), large(4), large(5), entry(6, 6)];
        for entry in &entries {
            assert!(running.commit(vec![entry.clone()], Durability::Synced)[0].1.is_ok());
        }
        super::copy_dir(&directory.path().join("log"), &killed.path().join("log"));
        let mut found = Vec::new();
        let begin = log::Position::default();
        log::read(&killed.path().join("log"), begin, &mut |batch| found.extend_from_slice(batch)).unwrap();
        assert_eq!(found, put(entries.clone()));
        drop(running);
        let storage = open(&options);
        for (key, record) in entries {
            assert_eq!(storage.engine().load(&key).unwrap(), Some(record));
        }
    }
}

#[test]
fn a_full_disk_refuses_commits_before_anything_is_written_and_recovers() {
    let directory = memory_dir();
    let is_full = Arc::new(AtomicBool::new(false));
    let full = is_full.clone();
    let fault = Faults(move |operation, _: &Path| match operation {
        Operation::Reserve if full.load(Ordering::SeqCst) => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
        _ => Ok(()),
    });
    let storage = open(&options(directory.path().to_owned()));
    let (counters, engine) = (storage.counters(), storage.engine());
    let _watched = watch(directory.path(), Arc::new(fault));
    let running = run(storage);
    is_full.store(true, Ordering::SeqCst);
    let begun = Instant::now();
    let mut n = 0;
    let refused = loop {
        assert!(begun.elapsed() < DEADLINE, "never full");
        n += 1;
        let outcomes = running.commit(vec![(key(n), record(1, vec![1; 10_000]))], Durability::Synced);
        if outcomes == [(CommitId(0), Err(NotCommitted::Refused))] {
            break n;
        }
    };
    assert!(refused > 10, "there was room in the segment in use");
    assert_eq!(engine.load(&key(refused)).unwrap(), None);
    assert_eq!(counters.log_refused.get(), 1);
    assert!(engine.load(&key(1)).unwrap().is_some());
    is_full.store(false, Ordering::SeqCst);
    let outcomes = running.commit(vec![entry(refused, 2)], Durability::Synced);
    assert_eq!(outcomes, [(CommitId(0), Ok(Durability::Synced))]);
    running.storage.shutdown().unwrap();
}

#[test]
fn a_sync_that_fails_ends_everything_and_acknowledges_nothing() {
    let directory = memory_dir();
    let fault = Faults(|operation, path: &Path| match operation {
        Operation::SyncData if path.extension().is_some_and(|end| end == "log") => {
            Err(io::Error::from_raw_os_error(libc::EIO))
        }
        _ => Ok(()),
    });
    let storage = open(&options(directory.path().to_owned()));
    let engine = storage.engine();
    let _watched = watch(directory.path(), Arc::new(fault));
    let running = run(storage);
    let (name, record) = entry(1, 1);
    let merged = Entry::Record { key: name, record };
    let commit = Commit { id: CommitId(1), entry: merged, durability: Durability::Synced };
    running.storage.handle().commit(&mut vec![commit]);
    let error = running.failed.recv_timeout(DEADLINE).unwrap();
    assert!(error.starts_with("cannot sync") && error.contains(".log"), "{error}");
    assert_eq!(engine.load(&key(1)).unwrap(), None, "visible means synced");
    assert!(running.storage.shutdown().is_err());
    assert!(running.committed.try_recv().is_err(), "something was acknowledged");
}

#[test]
fn a_state_that_cannot_be_saved_ends_everything() {
    let directory = memory_dir();
    let storage = open(&options(directory.path().to_owned()));
    let fault = Faults(|operation, _: &Path| match operation {
        Operation::Rename => Err(io::Error::from_raw_os_error(libc::EIO)),
        _ => Ok(()),
    });
    let _watched = watch(directory.path(), Arc::new(fault));
    let running = run(storage);
    running.storage.handle().save(SaveId(1), SavedState::StampCeiling(1));
    assert!(running.failed.recv_timeout(DEADLINE).unwrap().starts_with("cannot rename"));
    assert!(running.saved.try_recv().is_err());
}
