//! One client: which request it sends next.
//!
//! It has one request, batch or scan under way at a time: to keys of its own at first, then read by everybody, and to a
//! few keys that all contend for, of which some keep siblings.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keystore_client::DEFAULT_KEYSPACE;
use keystore_history::Key;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::recorder::{Recorder, known as known_from};
use crate::store::{CAUSAL_KEYSPACE, Known, Reply, Request, Store};

/// A client stops early rather than let a history outgrow memory.
const OPERATIONS_MAX: usize = 400_000;
/// How long values live that expire.
const TTL_MS: Range<u64> = 500..30_000;
/// As many as one request may fail for.
const BATCH_OPERATIONS: usize = 8;

fn key(kind: &str, number: u64) -> Key {
    Key::new(DEFAULT_KEYSPACE, format!("{kind}-{number}").as_bytes())
}

/// One client of the load.
pub(super) struct LoadClient<S> {
    pub(super) id: u32,
    pub(super) store: S,
    pub(super) settings: Settings,
    pub(super) pause: watch::Receiver<Duration>,
    pub(super) recorder: Arc<Recorder>,
    /// How many keys beside the contended ones exist, over all clients.
    pub(super) unique_keys: Arc<AtomicU64>,
    pub(super) random: StdRng,
    pub(super) values: u64,
    /// What this client has seen of the causal keys.
    pub(super) known: BTreeMap<Key, Known>,
}

impl<S: Store> LoadClient<S> {
    pub(super) async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() && self.recorder.with(|history| history.operations.len()) < OPERATIONS_MAX
        {
            self.send_one().await;
            // The pace of the load.
            let pause = *self.pause.borrow_and_update();
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
                // A long pause is not waited for when there is to be another one.
                Ok(()) = self.pause.changed() => {}
            }
        }
    }

    /// Of a hundred turns 30 write a new key and read it back, 25 read, change or delete some older one, 25 go to the
    /// contended keys, 15 to those with siblings; the others are batches and scans.
    async fn send_one(&mut self) {
        match self.random.random_range(0..100) {
            0..30 => self.put_new().await,
            30..45 => {
                let key = self.some_key();
                self.ask(&key, &Request::Get).await;
            }
            45..50 => {
                let (key, request) = (self.some_key(), self.put());
                self.ask(&key, &request).await;
            }
            50..55 => {
                let key = self.some_key();
                self.ask(&key, &Request::delete()).await;
            }
            55..80 => {
                let (key, request) = self.contend();
                self.ask(&key, &request).await;
            }
            80..95 => self.ask_causal().await,
            95..98 => self.batch().await,
            _ => self.scan().await,
        }
    }

    async fn ask(&self, key: &Key, request: &Request) -> Reply {
        self.recorder.ask(self.id, &self.store, key, request).await
    }

    /// One in eight expires, some soon and some when it is read back at the end.
    async fn put_new(&mut self) {
        let key = key("unique", self.unique_keys.fetch_add(1, Ordering::Relaxed));
        let ttl = (self.random.random_range(0..8) == 0)
            .then(|| Duration::from_millis(self.random.random_range(TTL_MS)));
        let request = Request::Put { value: self.next_value(), ttl, known: Known::default() };
        if self.ask(&key, &request).await.is_done() {
            self.ask(&key, &Request::Get).await;
        }
    }

    fn contend(&mut self) -> (Key, Request) {
        let key = key("contended", self.random.random_range(0..self.settings.contended_keys.max(1)));
        let request = match self.random.random_range(0..10) {
            0..5 => Request::Get,
            5..9 => self.put(),
            _ => Request::delete(),
        };
        (key, request)
    }

    /// Most writes replace what this client saw last of the key, however long ago: others have written meanwhile, and
    /// what they wrote has to stay.
    async fn ask_causal(&mut self) {
        let number = self.random.random_range(0..self.settings.contended_keys.max(1));
        let key = Key::new(CAUSAL_KEYSPACE, format!("causal-{number}").as_bytes());
        let known = self.known.get(&key).cloned();
        let request = match (self.random.random_range(0..20), known) {
            (0..8, _) | (8..18, None) => Request::Get,
            (8..16, Some(known)) => Request::Put { value: self.next_value(), ttl: None, known },
            (16, Some(known)) => Request::Delete { known },
            (17, Some(_)) => Request::delete(),
            _ => self.put(),
        };
        let reply = self.ask(&key, &request).await;
        if let Some(known) = known_from(&request, reply) {
            self.known.insert(key, known);
        }
    }

    /// No key twice: operations of one batch have no order among themselves, so nothing could be said of them.
    async fn batch(&mut self) {
        let mut requests = BTreeMap::new();
        for _ in 0..BATCH_OPERATIONS {
            let (key, request) = if self.random.random_range(0..2) == 0 {
                self.contend()
            } else {
                (key("unique", self.unique_keys.fetch_add(1, Ordering::Relaxed)), self.put())
            };
            requests.insert(key, request);
        }
        let requests: Vec<_> = requests.into_iter().collect();
        drop(self.recorder.batch(self.id, &self.store, &requests).await);
    }

    async fn scan(&mut self) {
        let prefix = match self.random.random_range(0..4) {
            0 => "contended".to_owned(),
            _ => format!("unique-{}", self.random.random_range(10..100)),
        };
        self.recorder.scan(self.id, &self.store, DEFAULT_KEYSPACE, prefix.as_bytes()).await;
    }

    /// Somebody's key, which may be about to be written.
    fn some_key(&mut self) -> Key {
        let count = self.unique_keys.load(Ordering::Relaxed).max(1);
        key("unique", self.random.random_range(0..count))
    }

    fn put(&mut self) -> Request {
        Request::put(self.next_value())
    }

    fn next_value(&mut self) -> String {
        self.values += 1;
        format!("client {} value {}", self.id, self.values)
    }
}
