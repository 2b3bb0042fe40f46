//! Clients that write, read and delete all along, and the history that they leave.
//!
//! Each client sends one request at a time: to keys of their own at first, then read by everybody, and to a few keys
//! that all contend for. Once stopped, every key that was written is read back at quorum. What the history shows is
//! the checker's and the report's to say. Invariant: every request sent is in the history, whatever became of it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::history::{Action, Operation, ReadOutcome, WriteOutcome};
use crate::store::Store;

mod report;
#[cfg(test)]
mod tests;

pub use report::{Allowance, Report, Summary};

/// A client stops early rather than let a history outgrow memory.
const OPERATIONS_MAX: usize = 400_000;
/// How many keys are read back at a time.
const READERS: u32 = 16;
/// Between two attempts to read a key back.
const READ_BACK_PAUSE: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub clients: u32,
    /// How many keys everybody writes, reads and deletes.
    pub contended_keys: u64,
    /// Between two requests of one client.
    pub pause: Duration,
    /// Of the choice of keys and requests.
    pub seed: u64,
    /// Within which every key has to be read back at the end.
    pub read_back_within: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            clients: 6,
            contended_keys: 4,
            pause: Duration::from_millis(20),
            seed: rand::random(),
            read_back_within: Duration::from_secs(60),
        }
    }
}

/// A load under way; dropping it ends it.
pub struct Load<S> {
    store: S,
    settings: Settings,
    recorder: Arc<Recorder>,
    stop: CancellationToken,
    clients: JoinSet<()>,
    faults_ns: Vec<u64>,
}

impl<S: Store> Load<S> {
    pub fn start(store: S, settings: Settings) -> Self {
        let recorder = Arc::new(Recorder::new());
        let stop = CancellationToken::new();
        let unique_keys = Arc::new(AtomicU64::new(0));
        let mut clients = JoinSet::new();
        for id in 0..settings.clients {
            let client = LoadClient {
                id,
                store: store.clone(),
                settings,
                recorder: recorder.clone(),
                unique_keys: unique_keys.clone(),
                random: StdRng::seed_from_u64(settings.seed.wrapping_add(id.into())),
                values: 0,
            };
            clients.spawn(client.run(stop.clone()));
        }
        Self { store, settings, recorder, stop, clients, faults_ns: Vec::new() }
    }

    /// How many writes have been acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.recorder.with(|operations| operations.iter().filter(|op| op.acknowledged().is_some()).count())
    }

    /// Notes that something is broken from now on, for which an [`Allowance`] may make up.
    pub fn note_fault(&mut self) {
        self.faults_ns.push(self.recorder.now_ns());
    }

    /// Lets every client finish its request, reads everything back and hands over the history.
    pub async fn stop(mut self) -> Report {
        self.stop.cancel();
        while let Some(ended) = self.clients.join_next().await {
            if let Err(error) = ended {
                // A panic of a client is a bug of this crate: nothing that it would have found may be missed.
                std::panic::resume_unwind(error.into_panic());
            }
        }
        let stopped_ns = self.recorder.now_ns();
        read_back(&self.store, &self.recorder, self.settings).await;
        let Self { settings, recorder, faults_ns, .. } = self;
        let operations = recorder.with(std::mem::take);
        Report { started: recorder.started, operations, faults_ns, stopped_ns, settings }
    }
}

/// Reads every key of the history until it is answered; says how many keys that were.
async fn read_back<S: Store>(store: &S, recorder: &Arc<Recorder>, settings: Settings) -> usize {
    let keys: BTreeSet<String> =
        recorder.with(|operations| operations.iter().map(|operation| operation.key.clone()).collect());
    let count = keys.len();
    let deadline = Instant::now() + settings.read_back_within;
    let keys = Arc::new(Mutex::new(keys.into_iter()));
    let mut readers = JoinSet::new();
    for reader in 0..READERS {
        let (store, recorder, keys) = (store.clone(), recorder.clone(), keys.clone());
        // Numbers that no client has.
        let id = settings.clients.saturating_add(reader);
        readers.spawn(async move {
            loop {
                let key = keys.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(key) = key else { break };
                while !recorder.get(id, &store, &key).await && Instant::now() < deadline {
                    tokio::time::sleep(READ_BACK_PAUSE).await;
                }
            }
        });
    }
    readers.join_all().await;
    count
}

/// The history as it grows.
struct Recorder {
    started: Instant,
    operations: Mutex<Vec<Operation>>,
}

impl Recorder {
    fn new() -> Self {
        Self::resume(Instant::now(), Vec::new())
    }

    /// Goes on with a history whose times count from `started`.
    fn resume(started: Instant, operations: Vec<Operation>) -> Self {
        Self { started, operations: Mutex::new(operations) }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn with<T>(&self, look: impl FnOnce(&mut Vec<Operation>) -> T) -> T {
        look(&mut self.operations.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, client: u32, key: &str, invoked_ns: u64, action: Action) {
        // At least one apart, so that no operation precedes itself.
        let returned_ns = self.now_ns().max(invoked_ns + 1);
        let operation = Operation { client, key: key.to_owned(), action, invoked_ns, returned_ns };
        self.with(|operations| operations.push(operation));
    }

    /// True if the read was answered.
    async fn get(&self, client: u32, store: &impl Store, key: &str) -> bool {
        let invoked_ns = self.now_ns();
        let outcome = store.get(key).await;
        let is_answered = !matches!(outcome, ReadOutcome::Error(_));
        self.add(client, key, invoked_ns, Action::Get { outcome });
        is_answered
    }

    async fn put(&self, client: u32, store: &impl Store, key: &str, value: String) -> bool {
        let invoked_ns = self.now_ns();
        let outcome = store.put(key, &value).await;
        let is_done = matches!(outcome, WriteOutcome::Done(_));
        self.add(client, key, invoked_ns, Action::Put { value, outcome });
        is_done
    }

    async fn delete(&self, client: u32, store: &impl Store, key: &str) {
        let invoked_ns = self.now_ns();
        let outcome = store.delete(key).await;
        self.add(client, key, invoked_ns, Action::Delete { outcome });
    }
}

/// One client of the load.
struct LoadClient<S> {
    id: u32,
    store: S,
    settings: Settings,
    recorder: Arc<Recorder>,
    /// How many keys beside the contended ones exist, over all clients.
    unique_keys: Arc<AtomicU64>,
    random: StdRng,
    values: u64,
}

impl<S: Store> LoadClient<S> {
    async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() && self.recorder.with(|operations| operations.len()) < OPERATIONS_MAX {
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
                self.recorder.get(self.id, &self.store, &key).await;
            }
            60..65 => {
                let (key, value) = (self.some_key(), self.next_value());
                self.recorder.put(self.id, &self.store, &key, value).await;
            }
            65..70 => {
                let key = self.some_key();
                self.recorder.delete(self.id, &self.store, &key).await;
            }
            _ => self.contend().await,
        }
    }

    async fn put_new(&mut self) {
        let key = format!("unique-{}", self.unique_keys.fetch_add(1, Ordering::Relaxed));
        let value = self.next_value();
        if self.recorder.put(self.id, &self.store, &key, value).await {
            self.recorder.get(self.id, &self.store, &key).await;
        }
    }

    async fn contend(&mut self) {
        let key = format!("contended-{}", self.random.random_range(0..self.settings.contended_keys.max(1)));
        match self.random.random_range(0..10) {
            0..5 => drop(self.recorder.get(self.id, &self.store, &key).await),
            5..9 => {
                let value = self.next_value();
                self.recorder.put(self.id, &self.store, &key, value).await;
            }
            _ => self.recorder.delete(self.id, &self.store, &key).await,
        }
    }

    /// Somebody's key, which may be about to be written.
    fn some_key(&mut self) -> String {
        let count = self.unique_keys.load(Ordering::Relaxed).max(1);
        format!("unique-{}", self.random.random_range(0..count))
    }

    fn next_value(&mut self) -> String {
        self.values += 1;
        format!("client {} value {}", self.id, self.values)
    }
}
