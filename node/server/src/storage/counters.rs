//! What the disk side counts, for whoever exports it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that only this crate's storage changes: a counter, or a gauge where its comment says so.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(super) fn subtract(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    pub(super) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }
}

/// Upper bounds, in seconds, of the buckets of [`Histogram`]; one more bucket takes the rest.
pub const SECONDS_BOUNDS: [f64; 12] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0];

/// How long something took: not cumulative, one count for each bucket.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Count; SECONDS_BOUNDS.len() + 1],
    nanoseconds: Count,
}

impl Histogram {
    pub(super) fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let index = SECONDS_BOUNDS.partition_point(|bound| *bound < seconds);
        if let Some(bucket) = self.buckets.get(index) {
            bucket.add(1);
        }
        self.nanoseconds.add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// The count of each bucket, the last one being what lies above all bounds.
    pub fn buckets(&self) -> impl Iterator<Item = u64> {
        self.buckets.iter().map(Count::get)
    }

    pub fn count(&self) -> u64 {
        self.buckets().sum()
    }

    pub fn sum_seconds(&self) -> f64 {
        Duration::from_nanos(self.nanoseconds.get()).as_secs_f64()
    }
}

/// `keystore_commitlog_*` and `keystore_storage_*`.
#[derive(Debug, Default)]
pub struct Counters {
    pub log_appended_bytes: Count,
    pub log_batches: Count,
    pub log_records: Count,
    pub log_sync_seconds: Histogram,
    /// Gauge: segments that a start would have to read, or that wait to be removed.
    pub log_segments: Count,
    /// Gauge: the number of the last record written to the log, over the whole life of the data directory.
    pub log_sequence: Count,
    /// Commits refused because the disk is full.
    pub log_refused: Count,
    pub checkpoints: Count,
    pub checkpoint_seconds: Histogram,
    /// Records merged into the engine, those of the start among them.
    pub records_applied: Count,
    /// Records read from the log at the start.
    pub records_replayed: Count,
    /// Records found damaged in the engine, by reads and by merges.
    pub records_damaged: Count,
    pub states_saved: Count,
}
