//! One client: which request it sends next.
//!
//! It sends one request at a time: to keys of its own at first, then read by everybody, and to a few keys that all
//! contend for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keystore_client::DEFAULT_KEYSPACE;
use keystore_history::{Key, WriteOutcome};
use rand::Rng;
use rand::rngs::StdRng;
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::recorder::Recorder;
use crate::store::Store;

/// A client stops early rather than let a history outgrow memory.
const OPERATIONS_MAX: usize = 400_000;

fn key(kind: &str, number: u64) -> Key {
    Key::new(DEFAULT_KEYSPACE, format!("{kind}-{number}").as_bytes())
}

/// One client of the load.
pub(super) struct LoadClient<S> {
    pub(super) id: u32,
    pub(super) store: S,
    pub(super) settings: Settings,
    pub(super) recorder: Arc<Recorder>,
    /// How many keys beside the contended ones exist, over all clients.
    pub(super) unique_keys: Arc<AtomicU64>,
    pub(super) random: StdRng,
    pub(super) values: u64,
}

impl<S: Store> LoadClient<S> {
    pub(super) async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() && self.recorder.with(|history| history.operations.len()) < OPERATIONS_MAX
        {
            self.send_one().await;
            // The pace of the load.
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(self.settings.pause) => {}
            }
        }
    }

    /// Of a hundred requests 35 write a new key (and read it back), 25 read and 10 change some older one, and 30 go
    /// to the contended keys.
    async fn send_one(&mut self) {
        match self.random.random_range(0..100) {
            0..35 => self.put_new().await,
            35..60 => {
                let key = self.some_key();
                drop(self.recorder.get(self.id, &self.store, &key).await);
            }
            60..65 => {
                let (key, value) = (self.some_key(), self.next_value());
                drop(self.recorder.put(self.id, &self.store, &key, value).await);
            }
            65..70 => {
                let key = self.some_key();
                drop(self.recorder.delete(self.id, &self.store, &key).await);
            }
            _ => self.contend().await,
        }
    }

    async fn put_new(&mut self) {
        let key = key("unique", self.unique_keys.fetch_add(1, Ordering::Relaxed));
        let value = self.next_value();
        let outcome = self.recorder.put(self.id, &self.store, &key, value).await;
        if matches!(outcome, WriteOutcome::Done { .. }) {
            drop(self.recorder.get(self.id, &self.store, &key).await);
        }
    }

    async fn contend(&mut self) {
        let key = key("contended", self.random.random_range(0..self.settings.contended_keys.max(1)));
        match self.random.random_range(0..10) {
            0..5 => drop(self.recorder.get(self.id, &self.store, &key).await),
            5..9 => {
                let value = self.next_value();
                drop(self.recorder.put(self.id, &self.store, &key, value).await);
            }
            _ => drop(self.recorder.delete(self.id, &self.store, &key).await),
        }
    }

    /// Somebody's key, which may be about to be written.
    fn some_key(&mut self) -> Key {
        let count = self.unique_keys.load(Ordering::Relaxed).max(1);
        key("unique", self.random.random_range(0..count))
    }

    fn next_value(&mut self) -> String {
        self.values += 1;
        format!("client {} value {}", self.id, self.values)
    }
}
