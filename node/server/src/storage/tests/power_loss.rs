//! Power cuts on the real files of log, engine and states: what was acknowledged as synced is there afterwards.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use keystore_core::effect::{SaveId, SavedState};
use keystore_core::partition::RecordKey;
use keystore_core::quorum::Durability;
use keystore_core::record::Record;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{DEADLINE, Running, key, memory_dir, open, options, put, record, run};
use crate::storage::engine::Storage;
use crate::storage::file::Operation;
use crate::storage::power::{Observer, PowerCut, watch};
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
        let entries: Vec<_> = (0..rng.random_range(1..12)).map(|_| self.next(rng)).collect();
        let durability = if rng.random_bool(0.7) { Durability::Synced } else { Durability::Periodic };
        for ((key, record), (_, outcome)) in
            entries.clone().into_iter().zip(running.commit(entries, durability))
        {
            if outcome == Ok(Durability::Synced) {
                self.acknowledged.insert(key, record);
            }
        }
    }

    fn check(&self, storage: &crate::storage::NodeStorage) {
        assert!(storage.found().stamp_ceiling_ms >= self.ceiling_ms, "the ceiling went back");
        let engine = storage.engine();
        for n in 0..KEYS {
            let found = engine.load(&key(n)).unwrap();
            if let Some(found) = &found {
                let written = self.written.get(&(key(n), found.stamp.millis()));
                assert!(written == Some(found), "key {n} has what nobody wrote");
            }
            let acknowledged = self.acknowledged.get(&key(n)).map(|record| record.stamp);
            assert!(found.map(|record| record.stamp) >= acknowledged, "key {n} lost an acknowledged write");
        }
    }
}

fn live_and_die(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut known = Known::default();
    let mut directory = memory_dir();
    for life in 1..=LIVES {
        let power = PowerCut::new(directory.path());
        let watched = watch(directory.path(), power.clone());
        let storage = open(&options(directory.path().to_owned()));
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
    known.check(&open(&options(directory.path().to_owned())));
}

#[test]
fn after_a_power_cut_every_synced_commit_is_there() {
    for seed in 0..40 {
        let result = std::panic::catch_unwind(|| live_and_die(seed));
        assert!(result.is_ok(), "seed {seed}");
    }
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

/// A node was killed and starts again: its log has a tail that was never synced. Cuts the power at each moment of
/// that start.
fn start_without_power(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut known = Known::default();
    let origin = memory_dir();
    let power = PowerCut::new(origin.path());
    let _watched = watch(origin.path(), power.clone());
    let mut settings = options(origin.path().to_owned());
    settings.sync_interval = DEADLINE;
    let running = run(open(&settings));
    for _ in 0..30 {
        known.commit(&running, &mut rng);
    }
    running.commit((0..20).map(|_| known.next(&mut rng)).collect(), Durability::Periodic);
    for at in 0.. {
        let (killed, after) = (memory_dir(), memory_dir());
        let observer = Arc::new(CutAt {
            power: power.kill(killed.path()),
            operations: AtomicUsize::new(0),
            at,
            rng: Mutex::new(StdRng::seed_from_u64(seed * 1000 + at as u64)),
            to: after.path().to_owned(),
        });
        let watched = watch(killed.path(), observer.clone());
        drop(open(&options(killed.path().to_owned())));
        drop(watched);
        if observer.operations.load(Ordering::SeqCst) <= at {
            assert!(at > 15, "a start has many operations, not {at}");
            return;
        }
        known.check(&open(&options(after.path().to_owned())));
    }
}

#[test]
fn a_power_cut_at_any_moment_of_a_start_loses_nothing() {
    for seed in 0..3 {
        let result = std::panic::catch_unwind(|| start_without_power(seed));
        assert!(result.is_ok(), "seed {seed}");
    }
}

/// What became of an engine after a power cut.
#[derive(Debug, PartialEq, Eq)]
enum Afterwards {
    /// It has everything that was flushed.
    Whole,
    /// sled gave up on its files: the node says so and does not start.
    Refused,
}

/// sled alone, with many more writes than it has data, so that it uses its segments again and again.
fn churn_and_die(seed: u64) -> Afterwards {
    const LIVE: u64 = 150;
    let mut rng = StdRng::seed_from_u64(seed);
    let directory = memory_dir();
    let power = PowerCut::new(directory.path());
    let watched = watch(directory.path(), power.clone());
    let engine = SledEngine::open(directory.path(), 4 << 20).unwrap();
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
    let opened = std::panic::catch_unwind(|| SledEngine::open(after.path(), 4 << 20));
    let Ok(Ok(engine)) = opened else { return Afterwards::Refused };
    assert!(engine.flushed().unwrap() >= flushed, "the note of the flush is gone");
    for n in 0..LIVE {
        let found = engine.load(&key(n)).unwrap().map_or(0, |record| record.stamp.millis());
        let last = (1..=flushed).rev().find(|round| [0, 1].iter().any(|part| (2 * round + part) % LIVE == n));
        assert!(found >= last.unwrap_or(0), "key {n} has round {found} after the flush of {flushed}");
    }
    Afterwards::Whole
}

/// Never silently less. sled 0.34.7 does panic on some of these cuts, which is refused as damage.
#[test]
fn after_a_power_cut_the_engine_has_what_was_flushed_or_is_refused() {
    const SEEDS: u64 = 8;
    let whole = (0..SEEDS).filter(|seed| churn_and_die(*seed) == Afterwards::Whole).count();
    assert!(whole as u64 > SEEDS / 2, "only {whole} of {SEEDS} engines could be opened");
}
