//! Tests of the disk side as a whole: real files, damaged, cut short, or without power.

mod committing;
mod contract;
mod full_disk;
mod histories;
mod log_ends;
mod lsm;
mod lsm_merges;
mod memory;
mod mutants;
mod power_loss;
mod refusals;
mod rot;
mod samples;
mod sled;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use keystore_core::effect::{Commit, CommitId, Entry, SaveId};
use keystore_core::id::{Actor, NodeId};
use keystore_core::partition::RecordKey;
use keystore_core::quorum::Durability;
use keystore_core::record::{Body, Record};
use keystore_core::stamp::Stamp;
use tempfile::TempDir;

use super::file;
use super::{Committed, EngineKind, Identity, NodeStorage, OpenError, Options, Reports, RunningStorage};

/// Nothing here takes longer unless it hangs.
const DEADLINE: Duration = Duration::from_secs(20);

/// A directory in memory: syncs cost nothing, and numbers of inodes are not used twice.
fn memory_dir() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

pub(super) fn key(n: u64) -> RecordKey {
    RecordKey::new("default", format!("key-{n}").as_bytes()).unwrap()
}

pub(super) fn record(millis: u64, value: impl Into<bytes::Bytes>) -> Record {
    Record { stamp: Stamp::new(millis, 0, Actor(7)), body: Body::Value(value.into()) }
}

pub(super) fn entry(n: u64, millis: u64) -> (RecordKey, Record) {
    (key(n), record(millis, format!("value-{n}-{millis}")))
}

/// Records to be merged.
pub(super) fn put(records: impl IntoIterator<Item = (RecordKey, Record)>) -> Vec<Entry> {
    records.into_iter().map(|(key, record)| Entry::Record { key, record }).collect()
}

fn identity() -> Identity {
    Identity { node: NodeId([7; 16]), actor: Actor(7), cluster_name: "test/demo".into() }
}

const ENGINES: [EngineKind; 3] = [EngineKind::Sled, EngineKind::Lsm, EngineKind::Memory];

fn options(data_dir: PathBuf) -> Options {
    options_for(EngineKind::Sled, data_dir)
}

fn options_for(engine: EngineKind, data_dir: PathBuf) -> Options {
    Options {
        data_dir,
        new_identity: identity(),
        engine,
        segment_bytes: 128 << 10,
        checkpoint_bytes: 256 << 10,
        cache_bytes: 8 << 20,
        sync_interval: Duration::from_millis(20),
        lock_patience: Duration::ZERO,
    }
}

/// sled gives up its lock a moment after it was dropped, and a tree the directory once its tables are merged.
fn open(options: &Options) -> NodeStorage {
    let begun = Instant::now();
    loop {
        match NodeStorage::open_checked(options) {
            Err(OpenError::Engine(_) | OpenError::InUse(_)) if begun.elapsed() < DEADLINE => {
                std::thread::yield_now();
            }
            result => return result.unwrap(),
        }
    }
}

/// Running storage and its reports.
struct Running {
    storage: RunningStorage,
    committed: Receiver<Vec<Committed>>,
    saved: Receiver<Vec<SaveId>>,
    failed: Receiver<String>,
}

fn run(storage: NodeStorage) -> Running {
    let (tell_committed, committed) = channel();
    let (tell_saved, saved) = channel();
    let (tell_failed, failed) = channel();
    let storage = storage
        .run(Reports {
            committed: Box::new(move |outcomes| drop(tell_committed.send(outcomes))),
            saved: Box::new(move |ids| drop(tell_saved.send(ids))),
            fatal: Arc::new(move |error| drop(tell_failed.send(error.to_string()))),
        })
        .unwrap();
    Running { storage, committed, saved, failed }
}

impl Running {
    /// Commits and waits for all outcomes.
    fn commit(&self, records: Vec<(RecordKey, Record)>, durability: Durability) -> Vec<Committed> {
        self.commit_entries(put(records), durability)
    }

    fn commit_entries(&self, entries: Vec<Entry>, durability: Durability) -> Vec<Committed> {
        let outcomes = self.try_commit(entries, durability);
        outcomes.unwrap_or_else(|| panic!("no outcome: {:?}", self.failed.try_recv()))
    }

    /// `None` if the storage has failed before it has committed all.
    fn try_commit(&self, entries: Vec<Entry>, durability: Durability) -> Option<Vec<Committed>> {
        let commit = |(id, entry)| Commit { id: CommitId(id), entry, durability };
        let mut commits: Vec<Commit> = (0..).zip(entries).map(commit).collect();
        let expected = commits.len();
        self.storage.handle().commit(&mut commits);
        let mut outcomes = Vec::new();
        while outcomes.len() < expected {
            outcomes.extend(self.committed.recv_timeout(DEADLINE).ok()?);
        }
        Some(outcomes)
    }
}

/// Every file below a directory with its content. What a thread removes meanwhile counts as not there.
fn contents(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.push((entry.path(), Vec::new()));
            found.extend(contents(&entry.path()));
        } else if let Some(content) = file::read(&entry.path()).unwrap() {
            found.push((entry.path(), content));
        }
    }
    found.sort();
    found
}

fn copy_dir(from: &Path, to: &Path) {
    for (path, content) in contents(from) {
        let target = to.join(path.strip_prefix(from).unwrap());
        if path.is_dir() {
            std::fs::create_dir_all(&target).unwrap();
        } else {
            std::fs::create_dir_all(target.parent().unwrap()).unwrap();
            std::fs::write(target, content).unwrap();
        }
    }
}
