//! Clients that write, read and delete all along, and the history that they leave.
//!
//! Once stopped, every key that was written is read back at quorum. What the history shows is keystore-history's and
//! the report's to say. Invariant: every request sent is in the history, whatever became of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keystore_history::{Action, History, Key, Operation};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::store::{CAUSAL_KEYSPACE, Store};

mod recorder;
mod client;
mod report;
mod stock;
#[cfg(test)]
mod tests;

use client::LoadClient;
use recorder::micros;
pub use recorder::{Recorder, SCENARIO, known};
pub use report::{Allowance, Report, Summary};
pub use stock::StockClients;

/// How many keys are read back at a time.
const READERS: u32 = 16;
/// Between two attempts to read a key back.
const READ_BACK_PAUSE: Duration = Duration::from_millis(200);
/// How long after a fault, or after the end of one, answers may be lost.
const REPEATED_WITHIN: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub clients: u32,
    /// How many keys everybody writes, reads and deletes.
    pub contended_keys: u64,
    /// Between two requests of one client, until [`Load::set_pause`] says otherwise.
    pub pause: Duration,
    /// Of the choice of keys and requests.
    pub seed: u64,
    /// Within which every key has to be read back at the end.
    pub read_back_within: Duration,
    /// How many replicas acknowledge a write.
    pub write_quorum: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            clients: 6,
            contended_keys: 4,
            pause: Duration::from_millis(20),
            seed: rand::random(),
            read_back_within: Duration::from_secs(60),
            write_quorum: 2,
        }
    }
}

/// A load under way; dropping it ends it.
pub struct Load<S> {
    store: S,
    settings: Settings,
    recorder: Arc<Recorder>,
    stop: CancellationToken,
    pause: watch::Sender<Duration>,
    clients: JoinSet<()>,
    faults_us: Vec<u64>,
}

impl<S: Store> Load<S> {
    pub fn start(store: S, settings: Settings) -> Self {
        let recorder = Arc::new(Recorder::new());
        let stop = CancellationToken::new();
        let pause = watch::Sender::new(settings.pause);
        let unique_keys = Arc::new(AtomicU64::new(0));
        let mut clients = JoinSet::new();
        for id in 0..settings.clients {
            let client = LoadClient {
                id,
                store: store.clone(),
                settings,
                pause: pause.subscribe(),
                recorder: recorder.clone(),
                unique_keys: unique_keys.clone(),
                random: StdRng::seed_from_u64(settings.seed.wrapping_add(id.into())),
                values: 0,
                known: BTreeMap::new(),
            };
            clients.spawn(client.run(stop.clone()));
        }
        Self { store, settings, recorder, stop, pause, clients, faults_us: Vec::new() }
    }

    /// Makes the load heavier or lighter from now on.
    pub fn set_pause(&self, pause: Duration) {
        self.pause.send_replace(pause);
    }

    /// How many writes have been acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        let is_done = |operation: &&Operation| operation.acknowledged().is_some();
        self.recorder.with(|history| history.operations.iter().filter(is_done).count())
    }

    /// How many requests have failed so far, or may have.
    pub fn failed(&self) -> usize {
        let has_failed = |operation: &&Operation| operation.error().is_some();
        self.recorder.with(|history| history.operations.iter().filter(has_failed).count())
    }

    /// How many keys have been asked for so far.
    pub fn keys(&self) -> usize {
        let keys = |history: &mut History| {
            history.operations.iter().map(|operation| &operation.key).collect::<BTreeSet<_>>().len()
        };
        self.recorder.with(keys)
    }

    /// For requests that a scenario sends itself, as part of the same history, in session [`SCENARIO`].
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Notes that something is broken from now on, for which an [`Allowance`] may make up.
    pub fn note_fault(&mut self) {
        self.faults_us.push(self.recorder.now_us());
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
        let stopped_us = self.recorder.now_us();
        read_back(&self.store, &self.recorder, self.settings).await;
        let Self { settings, recorder, faults_us, .. } = self;
        let mut history = recorder.with(std::mem::take);
        mark_repeated(&mut history, &faults_us);
        Report { started: recorder.started, history, faults_us, stopped_us, settings }
    }
}

/// The client sends a causal put again whose answer a fault has cost, under one operation id; it does not tell.
fn mark_repeated(history: &mut History, faults_us: &[u64]) {
    for operation in &mut history.operations {
        let (asked_at, answered_at) = (operation.asked_at, operation.answered_at);
        let is_near = |fault_us: &u64| {
            answered_at >= *fault_us && asked_at <= fault_us.saturating_add(micros(REPEATED_WITHIN))
        };
        if let Action::Put(put) = &mut operation.action {
            put.is_repeated = operation.key.keyspace == CAUSAL_KEYSPACE && faults_us.iter().any(is_near);
        }
    }
}

/// Reads every key of the history until it is answered; says how many keys that were.
async fn read_back<S: Store>(store: &S, recorder: &Arc<Recorder>, settings: Settings) -> usize {
    let keys: BTreeSet<Key> =
        recorder.with(|history| history.operations.iter().map(|operation| operation.key.clone()).collect());
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
                while !recorder.get(id, &store, &key).await.is_answered() && Instant::now() < deadline {
                    tokio::time::sleep(READ_BACK_PAUSE).await;
                }
            }
        });
    }
    readers.join_all().await;
    count
}
