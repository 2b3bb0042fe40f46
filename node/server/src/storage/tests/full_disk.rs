//! Disks that are full, or nearly so: what is refused, what only waits, and that it ends once there is space.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use keystore_core::effect::{CommitId, Entry, Hint, NotCommitted};
use keystore_core::message::{Page, ScanRange};
use keystore_core::partition::RecordKey;
use keystore_core::quorum::Durability;
use keystore_core::record::Record;
use keystore_core::stamp::Stamp;
use tempfile::TempDir;

use super::{
    DEADLINE, ENGINES, contents, copy_dir, entry, key, memory_dir, open, options, options_for, put, record,
    run,
};
use crate::storage::Options;
use crate::storage::buffered_engine::BufferedEngine;
use crate::storage::disk_usage::DiskUsage;
use crate::storage::engine::{EngineError, EngineKind, EngineSize, LoadError, ScanError, Storage};
use crate::storage::file::{DiskError, Operation};
use crate::storage::lsm_engine::LsmEngine;
use crate::storage::memory_engine::MemoryEngine;
use crate::storage::power::{Faults, watch};

/// A file system of its own, gone when dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount(bytes: u64) -> Option<Self> {
        let directory = memory_dir();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(directory.path());
        let is_mounted = command.output().is_ok_and(|output| output.status.success());
        is_mounted.then(|| Self(directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn on_a_disk_that_is_really_full_commits_are_refused_and_nothing_is_lost() {
    ENGINES.into_iter().for_each(check_full_disk);
}

fn check_full_disk(engine: EngineKind) {
    let Some(disk) = SmallDisk::mount(48 << 20) else {
        println!("skipped: a small file system cannot be mounted here");
        return;
    };
    let options = options_for(engine, disk.0.path().join("data"));
    let storage = open(&options);
    let running = run(storage);
    let mut acknowledged = Vec::new();
    let begun = Instant::now();
    for n in 0.. {
        assert!(begun.elapsed() < DEADLINE, "never full");
        let outcomes = running.commit(vec![(key(n), record(1, vec![n as u8; 15_000]))], Durability::Synced);
        match outcomes[..] {
            [(_, Ok(_))] => acknowledged.push(n),
            _ => break,
        }
    }
    assert!(acknowledged.len() > 100, "{} commits", acknowledged.len());
    drop(running);
    let storage = open(&options);
    for n in acknowledged {
        assert_eq!(storage.engine().load(&key(n)).unwrap(), Some(record(1, vec![n as u8; 15_000])));
    }
}

/// Many times what the disk takes, and of the log alone more than the disk has: without flushes that come early, and
/// commits that wait for them, some would be refused.
#[test]
fn on_a_small_disk_what_a_flush_gives_back_refuses_nothing() {
    for engine in [EngineKind::Sled, EngineKind::Lsm] {
        let Some(disk) = SmallDisk::mount(128 << 20) else {
            println!("skipped: a small file system cannot be mounted here");
            return;
        };
        let options = Options {
            checkpoint_bytes: 1 << 30,
            segment_bytes: 4 << 20,
            ..options_for(engine, disk.0.path().join("data"))
        };
        let storage = open(&options);
        let counters = storage.counters();
        let running = run(storage);
        for round in 1..=30 {
            let batch = (0..800).map(|n| (key(n), record(round, vec![round as u8; 10_000])));
            let outcomes = running.commit(batch.collect(), Durability::Periodic);
            let refused = outcomes.iter().filter(|(_, outcome)| outcome.is_err()).count();
            assert_eq!(refused, 0, "{engine}, round {round}");
        }
        assert!(counters.checkpoints.get() > 4, "{} checkpoints", counters.checkpoints.get());
    }
}

/// An engine as another one, on a disk that seems full.
#[derive(Debug)]
struct Crowded {
    engine: Arc<dyn Storage>,
    /// Until a flush finds space.
    is_full: AtomicBool,
    /// How many flushes find none, and when they were.
    flushes_without_space: usize,
    tried: Mutex<Vec<Instant>>,
    /// No flush comes to a good end.
    is_broken: bool,
    /// From so many bytes on, what is unwritten seems more than any disk has.
    unwritten_max: u64,
}

impl Storage for Crowded {
    fn load(&self, key: &RecordKey) -> Result<Option<Record>, LoadError> {
        self.engine.load(key)
    }

    fn scan(&self, slots: Range<u32>, range: &ScanRange) -> Result<Page, ScanError> {
        self.engine.scan(slots, range)
    }

    fn hints(&self) -> Result<Vec<Hint>, EngineError> {
        self.engine.hints()
    }

    fn replay(&self, entries: &[Entry]) -> Result<Vec<usize>, EngineError> {
        self.engine.replay(entries)
    }

    fn apply(&self, entries: &[Entry]) -> Result<Vec<usize>, EngineError> {
        self.engine.apply(entries)
    }

    fn highest(&self) -> Result<Option<Stamp>, EngineError> {
        self.engine.highest()
    }

    fn flush(&self, sequence: u64) -> Result<(), EngineError> {
        if self.is_broken {
            return Err(EngineError::GaveUp("a test has it fail here".into()));
        }
        if self.is_full.load(Ordering::SeqCst) {
            let mut tried = self.tried.lock().unwrap();
            tried.push(Instant::now());
            if tried.len() <= self.flushes_without_space {
                let error = io::ErrorKind::StorageFull.into();
                return Err(EngineError::NoSpace(DiskError::new("write to", Path::new("/nowhere"), error)));
            }
            self.is_full.store(false, Ordering::SeqCst);
        }
        self.engine.flush(sequence)
    }

    fn flushed(&self) -> Result<u64, EngineError> {
        self.engine.flushed()
    }

    fn flush_bytes(&self) -> u64 {
        self.engine.flush_bytes()
    }

    fn reserve_bytes(&self) -> u64 {
        if self.is_full.load(Ordering::SeqCst) { u64::MAX } else { self.engine.reserve_bytes() }
    }

    fn unwritten_bytes(&self) -> u64 {
        let bytes = self.engine.unwritten_bytes();
        if bytes < self.unwritten_max { bytes } else { u64::MAX }
    }

    fn wants_flush(&self) -> bool {
        self.engine.wants_flush()
    }

    fn size(&self) -> Result<EngineSize, EngineError> {
        self.engine.size()
    }
}

#[test]
fn a_checkpoint_that_found_no_space_is_tried_again_while_commits_are_refused_and_ends_that() {
    let directory = memory_dir();
    let mut storage = open(&options(directory.path().to_owned()));
    let engine = Arc::new(Crowded {
        engine: storage.engine(),
        is_full: AtomicBool::new(false),
        flushes_without_space: 2,
        tried: Mutex::default(),
        is_broken: false,
        unwritten_max: u64::MAX,
    });
    storage.checkpoints.engine = engine.clone();
    let running = run(storage);
    let commit = |n| running.commit(vec![entry(n, 1)], Durability::Synced)[0].1;
    assert_eq!(commit(0), Ok(Durability::Synced));
    engine.is_full.store(true, Ordering::SeqCst);
    let begun = Instant::now();
    let mut outcomes = vec![commit(1)];
    while outcomes.iter().all(Result::is_ok) || outcomes.last().is_some_and(Result::is_err) {
        assert!(begun.elapsed() < DEADLINE, "{} tries", engine.tried.lock().unwrap().len());
        outcomes.push(commit(outcomes.len() as u64 + 1));
    }
    let tried = engine.tried.lock().unwrap();
    assert_eq!(tried.len(), 3);
    assert!(tried.windows(2).all(|two| two[1] - two[0] >= Duration::from_secs(1)), "{tried:?}");
    let refused = outcomes.iter().skip_while(|outcome| outcome.is_ok()).position(Result::is_ok);
    assert!(refused > Some(0), "refused until there was space, and then no more");
    for (n, outcome) in (1..).zip(outcomes) {
        let found = engine.load(&key(n)).unwrap();
        match outcome {
            Ok(_) => assert_eq!(found, Some(entry(n, 1).1)),
            Err(NotCommitted::Refused) => assert_eq!(found, None),
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[test]
fn where_a_flush_gives_room_commits_wait_for_it_and_none_is_refused() {
    let directory = memory_dir();
    let mut storage = open(&Options {
        checkpoint_bytes: 1 << 30,
        segment_bytes: 16 << 20,
        sync_interval: DEADLINE,
        ..options(directory.path().to_owned())
    });
    let counters = storage.counters();
    storage.checkpoints.engine = Arc::new(Crowded {
        engine: storage.engine(),
        is_full: AtomicBool::new(false),
        flushes_without_space: 0,
        tried: Mutex::default(),
        is_broken: false,
        unwritten_max: 4 << 20,
    });
    let (checkpoints, syncs) = (counters.checkpoints.get(), counters.log_sync_seconds.count());
    let running = run(storage);
    for n in 0..800 {
        let outcomes = running.commit(vec![(key(n), record(1, vec![1; 10_000]))], Durability::Periodic);
        assert_eq!(outcomes, [(CommitId(0), Ok(Durability::Periodic))], "commit {n}");
    }
    let written = counters.checkpoints.get() - checkpoints;
    assert!((3..50).contains(&written), "{written} checkpoints of 32 MB unwritten, 4 MiB at a time");
    let synced = counters.log_sync_seconds.count() - syncs;
    assert!(synced >= written, "{synced} syncs: who waits for a flush does not wait without a sync");
}

#[test]
fn nobody_waits_for_room_that_a_broken_engine_will_never_give() {
    let directory = memory_dir();
    let mut storage = open(&options(directory.path().to_owned()));
    storage.checkpoints.engine = Arc::new(Crowded {
        engine: storage.engine(),
        is_full: AtomicBool::new(false),
        flushes_without_space: 0,
        tried: Mutex::default(),
        is_broken: true,
        unwritten_max: 1,
    });
    let running = run(storage);
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < DEADLINE, "there is always room");
        let Some(outcomes) = running.try_commit(put([entry(1, 1)]), Durability::Synced) else {
            // Its threads would be waited for.
            std::mem::forget(running);
            panic!("a commit waits for ever");
        };
        if outcomes == [(CommitId(0), Err(NotCommitted::Refused))] {
            break;
        }
    }
    assert!(running.failed.recv_timeout(DEADLINE).unwrap().contains("a test has it fail"));
    assert!(running.storage.shutdown().is_err());
}

/// What a write leaves that finds the disk full on its way would take up the last space.
#[test]
fn what_will_not_fit_is_not_begun() {
    let Some(disk) = SmallDisk::mount(24 << 20) else {
        println!("skipped: a small file system cannot be mounted here");
        return;
    };
    let filler = disk.0.path().join("filler");
    for kind in [EngineKind::Lsm, EngineKind::Memory] {
        let directory = disk.0.path().join(kind.name());
        std::fs::create_dir(&directory).unwrap();
        let engine: Box<dyn Storage> = match kind {
            EngineKind::Memory => Box::new(MemoryEngine::open(&directory).unwrap()),
            EngineKind::Lsm | EngineKind::Sled => {
                let base = LsmEngine::open(&directory, 1 << 20).unwrap();
                Box::new(BufferedEngine::new(Box::new(base), 64 << 20))
            }
        };
        engine.apply(&put((0..400).map(|n| (key(n), record(1, vec![n as u8; 10_000]))))).unwrap();
        let available = DiskUsage::of(&directory).unwrap().available;
        std::fs::write(&filler, vec![0; usize::try_from(available).unwrap() - (2 << 20)]).unwrap();
        let before = (DiskUsage::of(&directory).unwrap(), contents(&directory));
        for _ in 0..3 {
            assert!(matches!(engine.flush(1), Err(EngineError::NoSpace(_))), "{kind}");
            assert!(before == (DiskUsage::of(&directory).unwrap(), contents(&directory)), "{kind}");
        }
        let is_written = Arc::new(AtomicBool::new(false));
        let seen = is_written.clone();
        let note = Faults(move |_, _: &Path| {
            seen.store(true, Ordering::SeqCst);
            Ok(())
        });
        let watched = watch(&directory, Arc::new(note));
        assert!(matches!(engine.flush(1), Err(EngineError::NoSpace(_))), "{kind}");
        drop(watched);
        assert!(!is_written.load(Ordering::SeqCst), "{kind}");
        std::fs::remove_file(&filler).unwrap();
        // A process that another test starts just now may have it open until it is that other program.
        let begun = Instant::now();
        while DiskUsage::of(&directory).unwrap().available < available {
            assert!(begun.elapsed() < DEADLINE, "the space of a removed file does not come back");
            thread::yield_now();
        }
        engine.flush(1).unwrap();
        assert_eq!(
            (engine.flushed().unwrap(), engine.load(&key(7)).unwrap()),
            (1, Some(record(1, vec![7; 10_000])))
        );
        drop(engine);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}

#[test]
fn a_tree_without_space_for_its_tables_goes_on_and_loses_nothing() {
    let (directory, killed) = (memory_dir(), memory_dir());
    let options = options_for(EngineKind::Lsm, directory.path().to_owned());
    let storage = open(&options);
    let (counters, engine) = (storage.counters(), storage.engine());
    let is_full = Arc::new(AtomicBool::new(true));
    let full = is_full.clone();
    // What the log needs there is.
    let fault = Faults(move |operation, _: &Path| {
        let is_sync = matches!(operation, Operation::SyncByLibrary | Operation::SyncDirectory);
        let is_of_engine = ["checkpoint", "merge"].map(Some).contains(&thread::current().name());
        match is_sync && is_of_engine && full.load(Ordering::SeqCst) {
            true => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            false => Ok(()),
        }
    });
    let watched = watch(directory.path(), Arc::new(fault));
    let running = run(storage);
    let written = counters.checkpoints.get();
    let value = |n: u64| record(1, vec![n as u8; 10_000]);
    let commit = |n| {
        let outcomes = running.commit(vec![(key(n), value(n))], Durability::Synced);
        assert_eq!(outcomes, [(CommitId(0), Ok(Durability::Synced))], "commit {n}");
    };
    (0..100).for_each(commit);
    assert_eq!(counters.checkpoints.get(), written, "there was no space for one");
    copy_dir(directory.path(), killed.path());
    is_full.store(false, Ordering::SeqCst);
    let begun = Instant::now();
    let mut n = 100;
    while counters.checkpoints.get() == written {
        assert!(begun.elapsed() < DEADLINE, "no checkpoint once there is space");
        commit(n);
        n += 1;
    }
    running.storage.shutdown().unwrap();
    drop((watched, engine));
    let after_shutdown = open(&options);
    assert_eq!(after_shutdown.counters().records_replayed.get(), 0);
    let after_a_kill = open(&options_for(EngineKind::Lsm, killed.path().to_owned()));
    for (storage, keys) in [(after_shutdown, 0..n), (after_a_kill, 0..100)] {
        for n in keys {
            assert_eq!(storage.engine().load(&key(n)).unwrap(), Some(value(n)), "key {n}");
        }
    }
    // What was begun without an end is gone: less than twice what is stored.
    let stored: usize =
        contents(directory.path().join("engine").as_path()).iter().map(|(_, it)| it.len()).sum();
    assert!(stored < 2 * 10_000 * n as usize, "{stored} bytes");
}
