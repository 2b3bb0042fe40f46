//! One thread of the load: its own runtime, its own connections, its share of the clients.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use keystore_client::{Client, Error, Patience, ReadOptions, WriteOptions};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::Runtime;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::load::Load;
use super::tally::{Done, Kind, Tally};
use super::tickets::Tickets;
use crate::args::Globals;
use crate::failure::Failure;
use crate::reach;

/// How often a key is tried that has to be written or deleted, each time for as long as the client tries, and how
/// long it waits before the second time.
const TRIES: u32 = 5;
const PAUSE_FIRST: Duration = Duration::from_millis(100);

/// Where the store is.
#[derive(Clone)]
pub(super) struct Place {
    pub globals: Globals,
    pub addresses: Vec<String>,
    pub direct: bool,
}

pub(super) struct Worker {
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    client: Client,
    clients: u32,
    keyspace: String,
    load: Arc<Load>,
    /// What has ended since somebody has last looked.
    recent: Mutex<Tally>,
}

/// Something to be done once with each of many keys, by whichever client comes next.
pub(super) struct Pass {
    pub action: Action,
    pub total: u64,
    pub done: AtomicU64,
    pub stop: CancellationToken,
    /// From which key on they are still to be done.
    rest: Mutex<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// All keys.
    Write,
    /// Those that were written.
    Delete,
}

impl Pass {
    pub(super) fn new(action: Action, load: &Load, stop: CancellationToken) -> Self {
        let total = match action {
            Action::Write => load.args.keys.into(),
            Action::Delete => load.written().map_or(0, |written| written.len()),
        };
        Self { action, total, done: AtomicU64::new(0), stop, rest: Mutex::new(0) }
    }

    fn next(&self, load: &Load) -> Option<u32> {
        if self.stop.is_cancelled() {
            return None;
        }
        let mut rest = lock(&self.rest);
        let key = match self.action {
            Action::Write => Some(*rest).filter(|key| *key < load.args.keys),
            Action::Delete => load.written().and_then(|written| written.next(*rest)),
        }?;
        *rest = key.saturating_add(1);
        Some(key)
    }
}

impl Worker {
    /// Blocks until it is connected. `number` counts workers from 0.
    pub(super) fn start(place: &Place, load: Arc<Load>, number: u32) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::local("cannot start a runtime", &error))?;
        let addresses = (&place.addresses[..], place.direct);
        let client = runtime.block_on(reach::connect_to(&place.globals, addresses, Patience::Rounds))?;
        let (clients, threads) = (load.args.clients, load.args.threads.min(load.args.clients));
        Ok(Self {
            runtime: Some(runtime),
            client: if load.args.session { client.session() } else { client },
            clients: clients / threads + u32::from(number < clients % threads),
            keyspace: place.globals.keyspace.clone(),
            load,
            recent: Mutex::default(),
        })
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("it is there until it is dropped")
    }

    /// Does the same to one key after the other. What fails is tried again: twice is the same as once.
    pub(super) fn pass(&self, pass: &Pass) -> Result<(), Failure> {
        let clients = (0..self.clients).map(async |_| {
            let mut random = SmallRng::from_os_rng();
            while let Some(key) = pass.next(&self.load) {
                self.insist(key, pass, &mut random).await?;
                pass.done.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, Error>(())
        });
        self.runtime().block_on(try_join_all(clients))?;
        Ok(())
    }

    async fn insist(&self, key: u32, pass: &Pass, random: &mut SmallRng) -> Result<(), Error> {
        let mut pause = PAUSE_FIRST;
        for tried in 1.. {
            let result = match pass.action {
                Action::Write => self.put(key, random).await.map(|_| ()),
                Action::Delete => self.delete(key).await,
            };
            match result {
                Err(error) if may_pass(&error) && tried < TRIES && !pass.stop.is_cancelled() => {
                    sleep(pause.mul_f64(random.random_range(0.5..1.5))).await;
                    pause *= 2;
                }
                result => return result,
            }
        }
        Ok(())
    }

    /// Sends requests as long as there are tickets; those under way then are still waited for and counted.
    pub(super) fn measure(&self, tickets: &Tickets) {
        let clients = (0..self.clients).map(async |_| {
            let mut random = SmallRng::from_os_rng();
            while let Some(due) = tickets.next().await {
                let (key, kind) = (self.load.draw_key(&mut random), self.load.draw_kind(&mut random));
                let result = match kind {
                    Kind::Get => self.get(key).await,
                    Kind::Put => self.put(key, &mut random).await,
                };
                let latency = due.elapsed();
                let mut recent = lock(&self.recent);
                recent.note(kind, latency, &result);
                if self.load.hottest() == Some(key) {
                    recent.note_hottest(latency, &result);
                }
            }
        });
        self.runtime().block_on(join_all(clients));
    }

    /// What has ended since the last time.
    pub(super) fn take_recent(&self) -> Tally {
        let empty = Tally::default();
        std::mem::replace(&mut *lock(&self.recent), empty)
    }

    async fn get(&self, key: u32) -> Result<Done, Error> {
        let key = self.load.name(key);
        let read = self.client.get(&self.keyspace, key, ReadOptions::default()).await?;
        let bytes = read.values.iter().map(|value| value.value.len() as u64).sum();
        Ok(Done { bytes, is_missing: read.values.is_empty() })
    }

    async fn put(&self, key: u32, random: &mut SmallRng) -> Result<Done, Error> {
        let value = self.load.draw_value(random);
        let bytes = value.len() as u64;
        self.load.note_written(key);
        self.client.put(&self.keyspace, self.load.name(key), value, self.write_options()).await?;
        Ok(Done { bytes, is_missing: false })
    }

    async fn delete(&self, key: u32) -> Result<(), Error> {
        self.client.delete(&self.keyspace, self.load.name(key), self.write_options()).await?;
        Ok(())
    }

    fn write_options(&self) -> WriteOptions {
        let durability = self.load.args.durability.map(Into::into);
        WriteOptions { durability, ..WriteOptions::default() }
    }
}

impl Drop for Worker {
    /// A runtime that is dropped waits for its threads, which is not allowed within another one.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn may_pass(error: &Error) -> bool {
    match error {
        Error::Failed(_) | Error::Unknown(_) | Error::DeadlineExceeded { .. } | Error::Connect(_) => true,
        Error::Refused(_) | Error::BadRequest(_) => false,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
