//! Bit rot in any file of a data directory, below the checksums of records: what was acknowledged is found, or said
//! to be damaged, or the directory is refused. An older record in its place would be the loss that nobody notices.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use keystore_core::quorum::Durability;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{ENGINES, contents, copy_dir, key, memory_dir, open, options_for, record, run};
use crate::storage::engine::{EngineKind, LoadError};
use crate::storage::{NodeStorage, OpenError};

const KEYS: u64 = 500;
const LIVES: u64 = 3;
const BATCHES: u64 = 40;
const BATCH: u64 = 20;
/// How many bits are flipped in each file, each in a copy of its own.
const FLIPS: usize = 24;

/// The stamp of the newest record of each key.
type Newest = BTreeMap<u64, u64>;

/// A directory that was closed in order, with records that were replaced in several lives.
fn lived(engine: EngineKind, directory: &Path, rng: &mut StdRng) -> Newest {
    let mut newest = Newest::new();
    let mut clock = 0;
    for _ in 0..LIVES {
        let running = run(open(&options_for(engine, directory.to_owned())));
        for _ in 0..BATCHES {
            let mut next = || {
                clock += 1;
                let n = rng.random_range(0..KEYS);
                newest.insert(n, clock);
                let value: Vec<u8> = (0..rng.random_range(0..1_000)).map(|_| rng.random()).collect();
                (key(n), record(clock, value))
            };
            let batch = (0..BATCH).map(|_| next()).collect();
            running.commit(batch, Durability::Synced);
        }
        running.storage.shutdown().unwrap();
    }
    newest
}

/// Flips a bit of what a file uses; preallocated zeros behind that mean nothing.
fn flip(path: &Path, rng: &mut StdRng) {
    let mut bytes = std::fs::read(path).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes[rng.random_range(0..used)] ^= 1 << rng.random_range(0..8);
    std::fs::write(path, bytes).unwrap();
}

/// False if the directory is refused; everything else than the newest records must be said to be damaged.
fn is_served(engine: EngineKind, directory: &Path, newest: &Newest) -> bool {
    let storage = match NodeStorage::open_checked(&options_for(engine, directory.to_owned())) {
        Ok(storage) => storage,
        Err(OpenError::InUse(path)) => panic!("{} is in use", path.display()),
        Err(_refused) => return false,
    };
    let engine = storage.engine();
    for (n, stamp) in newest {
        match engine.load(&key(*n)) {
            Ok(found) => assert_eq!(found.map(|record| record.stamp.millis()), Some(*stamp), "key {n}"),
            Err(LoadError::Damaged | LoadError::Io(_)) => {}
        }
    }
    true
}

#[test]
fn a_flipped_bit_in_any_file_never_brings_back_an_older_record() {
    for engine in ENGINES {
        let mut rng = StdRng::seed_from_u64(11);
        let directory = memory_dir();
        let newest = lived(engine, directory.path(), &mut rng);
        let whole = memory_dir();
        copy_dir(directory.path(), whole.path());
        assert!(is_served(engine, whole.path(), &newest), "{engine}: as it was left");
        let files = contents(directory.path()).into_iter();
        let files: Vec<PathBuf> =
            files.filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0)).map(|(path, _)| path).collect();
        let mut refused = 0;
        for file in files.iter().flat_map(|file| [file; FLIPS]) {
            let rotten = memory_dir();
            copy_dir(directory.path(), rotten.path());
            let name = file.strip_prefix(directory.path()).unwrap();
            flip(&rotten.path().join(name), &mut rng);
            let checked = std::panic::catch_unwind(|| is_served(engine, rotten.path(), &newest));
            let served = checked.unwrap_or_else(|_| panic!("{engine}: {}", name.display()));
            refused += usize::from(!served);
        }
        assert!(refused > 0, "{engine}: no flip was noticed");
    }
}
