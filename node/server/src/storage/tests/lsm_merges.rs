//! The tree of tables where merges are slow, fail, find no space, or outlive what they belong to.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::{DEADLINE, entry, key, memory_dir, record};
use crate::storage::base::Base as _;
use crate::storage::buffered_engine::BufferedEngine;
use crate::storage::data_dir::DataDir;
use crate::storage::engine::EngineError;
use crate::storage::file::Operation;
use crate::storage::lsm_engine::LsmEngine;
use crate::storage::memtable::Memtable;
use crate::storage::power::{Faults, Watch, watch};

const KEYS: u64 = 20;
/// What a list of runs takes before writers wait.
const RUNS_MAX: usize = 16;
/// What it takes at all.
const RUNS_TOO_MANY: usize = 128;

fn open(directory: &Path) -> LsmEngine {
    LsmEngine::open(directory, 1 << 20).unwrap()
}

/// A run that overlaps each other one.
fn write(engine: &LsmEngine, round: u64) -> Result<(), EngineError> {
    let mut table = Memtable::default();
    for n in 0..KEYS {
        table.merge(&key(n), &record(round, vec![round as u8; 1_000]), None);
    }
    // A key of its own.
    let (own, value) = entry(KEYS + round, round);
    table.merge(&own, &value, None);
    engine.write_down(&table, Some(round)).map(drop)
}

/// Everything up to this round is there.
fn check(engine: &LsmEngine, last: u64) {
    for n in 0..KEYS {
        assert_eq!(engine.load(&key(n)).unwrap(), Some(record(last, vec![last as u8; 1_000])));
    }
    for round in 1..=last {
        assert_eq!(engine.load(&key(KEYS + round)).unwrap(), Some(entry(KEYS + round, round).1));
    }
    assert_eq!(engine.flushed().unwrap(), last);
}

fn is_sync(operation: Operation) -> bool {
    matches!(operation, Operation::SyncByLibrary | Operation::SyncDirectory)
}

fn is_merging() -> bool {
    thread::current().name() == Some("merge")
}

fn no_space() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOSPC)
}

/// Calls this before each sync of a merge.
fn before_syncs_of_merges(
    directory: &Path,
    call: impl Fn() -> io::Result<()> + Send + Sync + 'static,
) -> Watch {
    let observer =
        move |operation, _: &Path| if is_sync(operation) && is_merging() { call() } else { Ok(()) };
    watch(directory, Arc::new(Faults(observer)))
}

/// Calls this before each merge. It holds no lock then, as for most of its time.
fn before_merges(directory: &Path, call: impl Fn() + Send + Sync + 'static) -> Watch {
    let observer = move |operation, _: &Path| {
        if operation == Operation::Merge {
            call();
        }
        Ok(())
    };
    watch(directory, Arc::new(Faults(observer)))
}

/// True if there is no such sync.
fn write_without_space_at(at: usize, is_killed: bool) -> bool {
    let directory = memory_dir();
    let engine = open(directory.path());
    write(&engine, 1).unwrap();
    let syncs = Arc::new(AtomicUsize::new(0));
    let (seen, writer) = (syncs.clone(), thread::current().id());
    let observer = move |operation, _: &Path| {
        let counts = is_sync(operation) && thread::current().id() == writer;
        if counts && seen.fetch_add(1, Ordering::SeqCst) == at { Err(no_space()) } else { Ok(()) }
    };
    let watched = watch(directory.path(), Arc::new(Faults(observer)));
    let result = write(&engine, 2);
    drop(watched);
    if syncs.load(Ordering::SeqCst) <= at {
        result.unwrap();
        return true;
    }
    assert!(matches!(result, Err(EngineError::NoSpace(_))), "sync {at}: {result:?}");
    check(&engine, 1);
    if is_killed {
        drop(engine);
        let engine = open(directory.path());
        // The list of tables may have had its name already.
        check(&engine, engine.flushed().unwrap().clamp(1, 2));
        return false;
    }
    for round in [2, 3] {
        write(&engine, round).unwrap();
        check(&engine, round);
    }
    drop(engine);
    check(&open(directory.path()), 3);
    false
}

#[test]
fn a_table_that_finds_no_space_at_any_of_its_syncs_loses_nothing_and_is_written_later() {
    for is_killed in [false, true] {
        let syncs = (0..).find(|at| write_without_space_at(*at, is_killed));
        assert!(syncs > Some(3), "a table, its directory and the list of tables: {syncs:?} syncs");
    }
}

#[test]
fn a_merge_that_finds_no_space_at_any_of_its_syncs_loses_nothing_and_is_done_later() {
    for at in 0.. {
        let directory = memory_dir();
        let engine = open(directory.path());
        let syncs = Arc::new(AtomicUsize::new(0));
        let seen = syncs.clone();
        let watched = before_syncs_of_merges(directory.path(), move || {
            if seen.fetch_add(1, Ordering::SeqCst) == at { Err(no_space()) } else { Ok(()) }
        });
        let begun = Instant::now();
        let mut round = 0;
        // A merge takes away more runs than one write adds.
        let mut runs = (0, 0);
        while syncs.load(Ordering::SeqCst) <= at + 1 || runs.1 >= runs.0 {
            assert!(begun.elapsed() < DEADLINE, "no merge after the one without space, sync {at}");
            round += 1;
            write(&engine, round).unwrap();
            runs = (runs.1, engine.runs());
        }
        drop(watched);
        check(&engine, round);
        drop(engine);
        check(&open(directory.path()), round);
        if at == 8 {
            return;
        }
    }
}

#[test]
fn a_disk_that_fails_a_merge_fails_every_later_table() {
    let directory = memory_dir();
    let engine = open(directory.path());
    let watched = before_syncs_of_merges(directory.path(), || Err(io::Error::from_raw_os_error(libc::EIO)));
    let begun = Instant::now();
    let failed = (1..).find(|round| {
        assert!(begun.elapsed() < DEADLINE, "no merge has failed");
        write(&engine, *round).is_err()
    });
    drop(watched);
    let failed = failed.unwrap();
    for _ in 0..3 {
        assert!(matches!(write(&engine, failed), Err(EngineError::Lsm(lsm_tree::Error::Io(_)))));
    }
    check(&engine, failed - 1);
    drop(engine);
    let engine = open(directory.path());
    write(&engine, failed).unwrap();
    check(&engine, failed);
}

#[test]
fn whoever_writes_tables_waits_for_merges_that_are_slow() {
    let directory = memory_dir();
    let engine = open(directory.path());
    let _watched = before_merges(directory.path(), || thread::sleep(Duration::from_millis(100)));
    let mut most = 0;
    for round in 1..=120 {
        write(&engine, round).unwrap();
        most = most.max(engine.runs());
        assert!(most < RUNS_MAX, "{most} runs after round {round}");
    }
    assert!(most > RUNS_MAX / 2, "{most} runs at most: merges were not slow");
    check(&engine, 120);
}

#[test]
fn an_engine_whose_tables_cannot_be_merged_fails_before_there_are_too_many() {
    let directory = memory_dir();
    let engine = open(directory.path());
    write(&engine, 1).unwrap();
    drop(engine);
    for table in std::fs::read_dir(directory.path().join("tables")).unwrap().flatten() {
        let mut bytes = std::fs::read(table.path()).unwrap();
        bytes[100] ^= 1;
        std::fs::write(table.path(), bytes).unwrap();
    }
    let engine = open(directory.path());
    let failed = (2..=2 * RUNS_TOO_MANY as u64).find_map(|round| Some((round, write(&engine, round).err()?)));
    let Some((round, EngineError::GaveUp(_))) = failed else { panic!("{failed:?}") };
    assert!(engine.runs() == RUNS_TOO_MANY, "{} runs", engine.runs());
    assert!(write(&engine, round).is_err());
    let last = round - 1;
    for n in 0..KEYS {
        assert_eq!(engine.load(&key(n)).unwrap(), Some(record(last, vec![last as u8; 1_000])));
    }
}

#[test]
fn nothing_is_merged_any_more_once_an_engine_is_dropped_and_its_directory_is_free() {
    let directory = memory_dir();
    let locked = Arc::new(DataDir::lock(directory.path(), Duration::ZERO).unwrap());
    let tree = directory.path().join("engine");
    std::fs::create_dir(&tree).unwrap();
    let engine = open(&tree);
    let is_dropping = Arc::new(AtomicBool::new(false));
    let (merging_thread, free_while_merging) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(None)));
    let _watched = before_merges(directory.path(), {
        let (is_dropping, merging_thread) = (is_dropping.clone(), merging_thread.clone());
        let (path, free_while_merging) = (directory.path().to_owned(), free_while_merging.clone());
        move || {
            let link = std::fs::read_link("/proc/thread-self").unwrap();
            let id = link.file_name().unwrap().to_str().unwrap().parse().unwrap();
            if merging_thread.swap(id, Ordering::SeqCst) == 0 {
                let begun = Instant::now();
                while !is_dropping.load(Ordering::SeqCst) && begun.elapsed() < DEADLINE {
                    thread::yield_now();
                }
                // Long enough for an engine that does not wait for this to be gone.
                let taken = DataDir::lock(&path, Duration::from_millis(300));
                *free_while_merging.lock().unwrap() = Some(taken.is_ok());
            }
        }
    });
    let begun = Instant::now();
    for round in 1.. {
        assert!(begun.elapsed() < DEADLINE, "nothing was merged");
        write(&engine, round).unwrap();
        if merging_thread.load(Ordering::SeqCst) != 0 {
            break;
        }
    }
    let engine = BufferedEngine::new(Box::new(engine), 1 << 20).in_locked(locked);
    is_dropping.store(true, Ordering::SeqCst);
    drop(engine);
    assert_eq!(*free_while_merging.lock().unwrap(), Some(false), "somebody else had it while it was merged");
    DataDir::lock(directory.path(), Duration::ZERO).unwrap();
    // The kernel takes a thread off its list a moment after it was joined.
    let begun = Instant::now();
    let task = format!("/proc/self/task/{}", merging_thread.load(Ordering::SeqCst));
    while Path::new(&task).exists() {
        assert!(begun.elapsed() < DEADLINE, "the thread that merges lives on");
        thread::yield_now();
    }
}
