//! Power cuts on the real files of log, engine and states: what was acknowledged as synced is there afterwards.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use keystore_core::effect::{SaveId, SavedState};
use keystore_core::partition::RecordKey;
use keystore_core::quorum::Durability;
use keystore_core::record::Record;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

use super::{DEADLINE, ENGINES, Running, key, memory_dir, open, options_for, put, record, run};
use crate::storage::buffered_engine::BufferedEngine;
use crate::storage::engine::{EngineKind, Storage};
use crate::storage::file::Operation;
use crate::storage::power::{Observer, PowerCut, Watch, watch};
use crate::storage::sled_engine::SledEngine;

const KEYS: u64 = 40;
const LIVES: usize = 4;

/// What a client knows.
#[derive(Default)]
struct Known {
    /// Acknowledged as synced: this or something newer must be found.
    acknowledged: BTreeMap<RecordKey, Record>,
    /// Everything that was ever handed over: nothing else may be found.
    written: BTreeMap<(RecordKey, u64), Record>,
    clock: u64,
    ceiling_ms: u64,
}

impl Known {
    fn next(&mut self, rng: &mut StdRng) -> (RecordKey, Record) {
        self.clock += 1;
        let bytes = match rng.random_range(0..20) {
            0 => rng.random_range(16_000..50_000),
            1..4 => rng.random_range(1_000..5_000),
            _ => rng.random_range(0..200),
        };
        let entry = (key(rng.random_range(0..KEYS)), record(self.clock, vec![self.clock as u8; bytes]));
        self.written.insert((entry.0.clone(), self.clock), entry.1.clone());
        entry
    }

    fn commit(&mut self, running: &Running, rng: &mut StdRng) {
        assert!(self.try_commit(running, rng), "{:?}", running.failed.try_recv());
    }

    /// False if the storage has failed; what was acknowledged before is known.
    fn try_commit(&mut self, running: &Running, rng: &mut StdRng) -> bool {
        let entries: Vec<_> = (0..rng.random_range(1..12)).map(|_| self.next(rng)).collect();
        let durability = if rng.random_bool(0.7) { Durability::Synced } else { Durability::Periodic };
        let outcomes = running.try_commit(put(entries.clone()), durability);
        for ((key, record), (_, outcome)) in entries.into_iter().zip(outcomes.iter().flatten()) {
            if *outcome == Ok(Durability::Synced) {
                self.acknowledged.insert(key, record);
            }
        }
        outcomes.is_some()
    }

    fn check(&self, storage: &crate::storage::NodeStorage) {
        assert!(storage.found().stamp_ceiling_ms >= self.ceiling_ms, "the ceiling went back");
        let engine = storage.engine();
        let highest = storage.found().highest;
        for n in 0..KEYS {
            let found = engine.load(&key(n)).unwrap();
            if let Some(found) = &found {
                let is_below = highest.is_none_or(|highest| found.stamp <= highest);
                assert!(is_below, "key {n} would be replaced by what is below it");
                let written = self.written.get(&(key(n), found.stamp.millis()));
                assert!(written == Some(found), "key {n} has what nobody wrote");
            }
            let acknowledged = self.acknowledged.get(&key(n)).map(|record| record.stamp);
            assert!(found.map(|record| record.stamp) >= acknowledged, "key {n} lost an acknowledged write");
        }
    }
}

fn live_and_die(engine: EngineKind, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut known = Known::default();
    let mut directory = memory_dir();
    for life in 1..=LIVES {
        let power = PowerCut::new(directory.path());
        let watched = watch(directory.path(), power.clone());
        let storage = open(&options_for(engine, directory.path().to_owned()));
        assert_eq!(storage.found().generation.0, life as u64);
        known.check(&storage);
        let running = run(storage);
        for _ in 0..rng.random_range(0..60) {
            known.commit(&running, &mut rng);
            if rng.random_bool(0.1) {
                known.ceiling_ms += 1;
                let save = SavedState::StampCeiling(known.ceiling_ms);
                running.storage.handle().save(SaveId(0), save);
                running.saved.recv_timeout(DEADLINE).unwrap();
            }
        }
        let after = memory_dir();
        power.cut(&mut rng, after.path());
        drop(running);
        drop(watched);
        directory = after;
    }
    known.check(&open(&options_for(engine, directory.path().to_owned())));
}

/// Runs a test with each engine and each seed.
fn for_all(seeds: Range<u64>, test: fn(EngineKind, u64)) {
    for (engine, seed) in ENGINES.into_iter().flat_map(|engine| seeds.clone().map(move |seed| (engine, seed)))
    {
        let result = std::panic::catch_unwind(|| test(engine, seed));
        assert!(result.is_ok(), "{engine}, seed {seed}");
    }
}

#[test]
fn after_a_power_cut_every_synced_commit_is_there() {
    for_all(0..30, live_and_die);
}

/// Cuts the power before one of our operations.
struct CutAt {
    power: Arc<PowerCut>,
    operations: AtomicUsize,
    at: usize,
    rng: Mutex<StdRng>,
    to: PathBuf,
}

impl Observer for CutAt {
    fn before(&self, operation: Operation, path: &Path) -> io::Result<()> {
        if self.operations.fetch_add(1, Ordering::SeqCst) == self.at {
            self.power.cut(&mut self.rng.lock().unwrap(), &self.to);
        }
        self.power.before(operation, path)
    }
}

/// A node that is dead and has a log with a tail, of which nothing is durable but what it had synced.
struct Dead {
    _directory: TempDir,
    _watched: Watch,
    running: Option<Running>,
    power: Arc<PowerCut>,
    known: Known,
}

/// Its last commits were periodic.
fn killed(engine: EngineKind, seed: u64) -> Dead {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut known = Known::default();
    let directory = memory_dir();
    let power = PowerCut::new(directory.path());
    let watched = watch(directory.path(), power.clone());
    let mut settings = options_for(engine, directory.path().to_owned());
    settings.sync_interval = DEADLINE;
    let running = run(open(&settings));
    for _ in 0..30 {
        known.commit(&running, &mut rng);
    }
    running.commit((0..20).map(|_| known.next(&mut rng)).collect(), Durability::Periodic);
    Dead { _directory: directory, _watched: watched, running: Some(running), power, known }
}

/// Fails every sync from one on.
struct FailingSyncs {
    power: Arc<PowerCut>,
    left: AtomicI64,
}

impl Observer for FailingSyncs {
    fn before(&self, operation: Operation, path: &Path) -> io::Result<()> {
        let is_sync = matches!(operation, Operation::SyncData | Operation::SyncByLibrary);
        if is_sync && self.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.power.before(operation, path)
    }
}

/// Its disk failed a sync, of the log or of the engine.
fn ended_by_a_failed_sync(engine: EngineKind, seed: u64) -> Dead {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut known = Known::default();
    let directory = memory_dir();
    let power = PowerCut::new(directory.path());
    let syncs = 60 + rng.random_range(0..60);
    let failing = FailingSyncs { power: power.clone(), left: AtomicI64::new(syncs) };
    let watched = watch(directory.path(), Arc::new(failing));
    let running = run(open(&options_for(engine, directory.path().to_owned())));
    while known.try_commit(&running, &mut rng) {}
    Dead { _directory: directory, _watched: watched, running: Some(running), power, known }
}

/// A dead node starts again: cuts the power at each moment of that start.
fn start_without_power(Dead { _directory, _watched, mut running, power, known }: Dead, setting: &Setting) {
    let Setting { engine, seed, failed_sync } = *setting;
    for at in 0.. {
        let (killed, after) = (memory_dir(), memory_dir());
        let observer = Arc::new(CutAt {
            power: power.kill(killed.path(), failed_sync),
            operations: AtomicUsize::new(0),
            at,
            rng: Mutex::new(StdRng::seed_from_u64(seed * 1000 + at as u64)),
            to: after.path().to_owned(),
        });
        let watched = watch(killed.path(), observer.clone());
        drop(open(&options_for(engine, killed.path().to_owned())));
        drop(watched);
        if observer.operations.load(Ordering::SeqCst) <= at {
            assert!(at > 15, "a start has many operations, not {at}");
            running.take();
            return;
        }
        known.check(&open(&options_for(engine, after.path().to_owned())));
    }
}

struct Setting {
    engine: EngineKind,
    seed: u64,
    failed_sync: bool,
}

#[test]
fn a_power_cut_at_any_moment_of_a_start_loses_nothing() {
    for_all(0..3, |engine, seed| {
        start_without_power(killed(engine, seed), &Setting { engine, seed, failed_sync: false });
    });
}

#[test]
fn a_power_cut_at_any_moment_of_the_start_after_a_failed_sync_loses_nothing() {
    for_all(0..3, |engine, seed| {
        let dead = ended_by_a_failed_sync(engine, seed);
        start_without_power(dead, &Setting { engine, seed, failed_sync: true });
    });
}

/// The tail of the log may be what no disk holds, in every start.
#[test]
fn a_tail_that_no_disk_holds_is_made_durable_before_the_log_goes_on_behind_it() {
    for_all(0..3, |engine, seed| {
        start_without_power(killed(engine, seed), &Setting { engine, seed, failed_sync: true });
    });
}

/// What became of an engine after a power cut.
#[derive(Debug, PartialEq, Eq)]
enum Afterwards {
    /// It has everything that was flushed.
    Whole,
    /// It does not open, or has less.
    Spoilt,
}

/// sled alone, with many more writes than it has data, so that it uses its segments again and again.
fn churn_and_die(seed: u64, power_cut: fn(&Path) -> Arc<PowerCut>) -> Afterwards {
    const LIVE: u64 = 150;
    let mut rng = StdRng::seed_from_u64(seed);
    let directory = memory_dir();
    std::fs::create_dir(directory.path().join("engine")).unwrap();
    let power = power_cut(directory.path());
    let watched = watch(directory.path(), power.clone());
    let open = |root: &Path| {
        SledEngine::open(&root.join("engine"), 4 << 20)
            .map(|sled| BufferedEngine::new(Box::new(sled), 64 << 10))
    };
    let engine = open(directory.path()).unwrap();
    let mut flushed = 0;
    let rounds = rng.random_range(1200..1800);
    for round in 1..=rounds {
        let names = (0..2).map(|part| (2 * round + part) % LIVE);
        engine.apply(&put(names.map(|n| (key(n), record(round, vec![round as u8; 12_000]))))).unwrap();
        if round % 500 == 0 {
            engine.flush(round).unwrap();
            flushed = round;
        }
    }
    let after = memory_dir();
    power.cut(&mut rng, after.path());
    drop(engine);
    drop(watched);
    let Ok(Ok(engine)) = std::panic::catch_unwind(|| open(after.path())) else { return Afterwards::Spoilt };
    let is_whole = (0..LIVE).all(|n| {
        let found = engine.load(&key(n)).unwrap().map_or(0, |record| record.stamp.millis());
        let last = (1..=flushed).rev().find(|round| [0, 1].iter().any(|part| (2 * round + part) % LIVE == n));
        found >= last.unwrap_or(0)
    });
    if is_whole && engine.flushed().unwrap() >= flushed { Afterwards::Whole } else { Afterwards::Spoilt }
}

/// Of these seeds most spoil an engine whose own syncs do nothing.
const CHURNS: [u64; 6] = [6, 12, 26, 33, 40, 41];

#[test]
fn after_a_power_cut_sled_has_what_was_flushed() {
    for seed in CHURNS {
        assert_eq!(churn_and_die(seed, PowerCut::new), Afterwards::Whole, "seed {seed}");
    }
}

#[test]
fn a_sled_whose_own_syncs_do_nothing_is_found_out() {
    let is_spoilt = |seed: &u64| churn_and_die(*seed, PowerCut::blind_to_libraries) == Afterwards::Spoilt;
    assert!(CHURNS.iter().any(is_spoilt), "the cuts hit nothing that matters");
}
