//! What the engines cost: records applied, written down and read, with few records and with many.
//!
//! `cargo bench -p keystore-node --bench storage`; CI compiles it and runs it not.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use keystore_core::effect::Entry;
use keystore_core::id::{Actor, NodeId};
use keystore_core::message::ScanRange;
use keystore_core::partition::{Partition, PartitionCount, RecordKey};
use keystore_core::record::{Body, Record};
use keystore_core::stamp::Stamp;
use keystore_node::storage::{EngineKind, Identity, NodeStorage, Options, Storage};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tempfile::TempDir;

const ENGINES: [EngineKind; 3] = [EngineKind::Sled, EngineKind::Lsm, EngineKind::Memory];
const BATCH: u64 = 100;
const VALUE_BYTES: usize = 100;
/// With a few thousand in each of 64 partitions.
const SCANNED_KEYS: u64 = 300_000;
const CHECKPOINT_BYTES: u64 = 64 << 20;

fn engine(kind: EngineKind) -> (TempDir, Arc<dyn Storage>) {
    let directory = tempfile::tempdir().unwrap();
    let options = Options {
        data_dir: directory.path().to_owned(),
        new_identity: Identity { node: NodeId([1; 16]), actor: Actor(1), cluster_name: "bench".into() },
        engine: kind,
        segment_bytes: 16 << 20,
        checkpoint_bytes: CHECKPOINT_BYTES,
        cache_bytes: 64 << 20,
        sync_interval: Duration::from_secs(1),
        lock_patience: Duration::ZERO,
    };
    let engine = NodeStorage::open(&options).unwrap().engine();
    (directory, engine)
}

fn key(n: u64) -> RecordKey {
    RecordKey::new("default", format!("bench/{n:010}").as_bytes()).unwrap()
}

fn batch(random: &mut SmallRng, keys: u64, millis: u64) -> Vec<Entry> {
    let record = Record {
        stamp: Stamp::new(millis, 0, Actor(1)),
        body: Body::Value(vec![random.random::<u8>(); VALUE_BYTES].into()),
    };
    let entry = |_| Entry::Record { key: key(random.random_range(0..keys)), record: record.clone() };
    (0..BATCH).map(entry).collect()
}

fn fill(engine: &Arc<dyn Storage>, keys: u64) {
    for first in (0..keys).step_by(10_000) {
        let record =
            Record { stamp: Stamp::new(1, 0, Actor(1)), body: Body::Value(vec![7; VALUE_BYTES].into()) };
        let entries: Vec<_> =
            (first..first + 10_000).map(|n| Entry::Record { key: key(n), record: record.clone() }).collect();
        engine.apply(&entries).unwrap();
    }
    engine.flush(1).unwrap();
}

/// Applied alone, and with what it costs to write the table down again and again.
fn apply(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("apply");
    group.throughput(Throughput::Elements(BATCH)).sample_size(20);
    for kind in ENGINES {
        let (_directory, engine) = engine(kind);
        let (mut random, mut millis) = (SmallRng::seed_from_u64(1), 1);
        let mut next = || {
            millis += 1;
            batch(&mut random, 10_000, millis)
        };
        group.bench_function(BenchmarkId::new("batch", kind), |bencher| {
            bencher.iter_batched(&mut next, |entries| engine.apply(&entries).unwrap(), BatchSize::LargeInput);
        });
        group.bench_function(BenchmarkId::new("batch, every 100th flushed", kind), |bencher| {
            let mut batches = 0;
            let apply = |entries: Vec<Entry>| {
                batches += 1;
                engine.apply(&entries).unwrap();
                if batches % 100 == 0 {
                    engine.flush(batches).unwrap();
                }
            };
            bencher.iter_batched(&mut next, apply, BatchSize::LargeInput);
        });
    }
}

fn load(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("load");
    group.sample_size(20);
    for kind in ENGINES {
        for keys in [10_000, 1_000_000] {
            let (_directory, engine) = engine(kind);
            fill(&engine, keys);
            let mut random = SmallRng::seed_from_u64(1);
            group.bench_function(BenchmarkId::new(kind.name(), keys), |bencher| {
                bencher.iter_batched(
                    || key(random.random_range(0..keys)),
                    |key| assert!(black_box(engine.load(&key)).unwrap().is_some()),
                    BatchSize::SmallInput,
                );
            });
        }
    }
}

/// A page of a partition, and of one of which everything was removed that is not written down yet: whoever takes back
/// what it has just given up reads those.
fn scan(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scan");
    group.sample_size(20);
    let count = PartitionCount::new(64).unwrap();
    let range = |partition| ScanRange { partition, prefix: Bytes::new(), after: None, limit: 128 };
    let (whole, removed) = (Partition(1), Partition(2));
    for kind in ENGINES {
        let (_directory, engine) = engine(kind);
        fill(&engine, SCANNED_KEYS);
        let gone = (0..SCANNED_KEYS).map(key).filter(|key| key.partition(count) == removed);
        let gone: Vec<_> = gone.map(|key| Entry::Replace { key, record: None }).collect();
        engine.apply(&gone).unwrap();
        for (name, partition, entries) in [("a page", whole, 128), ("all was removed", removed, 0)] {
            group.bench_function(BenchmarkId::new(name, kind), |bencher| {
                bencher.iter(|| {
                    let page = engine.scan(count.slots(partition), &range(partition)).unwrap();
                    assert_eq!(page.entries.len(), entries);
                });
            });
        }
    }
}

criterion_group!(benches, apply, load, scan);
criterion_main!(benches);
