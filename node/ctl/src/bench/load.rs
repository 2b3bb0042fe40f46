//! One thread of the load: its own runtime, its own connections, its share of the clients.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use hdrhistogram::Histogram;
use keystore_client::{Client, Error, Patience, ReadOptions, WriteOptions};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::args::{BenchArgs, Globals};
use crate::failure::Failure;
use crate::reach;

/// Latencies are kept to three digits, up to a minute.
const LATENCY_US_MAX: u64 = 60_000_000;

#[derive(Clone)]
pub(super) struct Load {
    pub globals: Globals,
    pub args: BenchArgs,
    pub addresses: Vec<String>,
    pub direct: bool,
    /// Counted from 0.
    pub thread: u32,
    pub stop: CancellationToken,
}

/// What became of the requests of one kind.
#[derive(Clone)]
pub(super) struct Outcomes {
    /// Of those that were done, in microseconds.
    pub latencies: Histogram<u64>,
    pub done: u64,
    /// Among those done: gets of a key that does not exist.
    pub missing: u64,
    pub failed: u64,
    pub unknown: u64,
    pub other: u64,
    /// The first failure, for people.
    pub example: Option<String>,
}

#[derive(Clone, Default)]
pub(super) struct Tally {
    pub gets: Outcomes,
    pub puts: Outcomes,
}

impl Default for Outcomes {
    fn default() -> Self {
        Self {
            latencies: Histogram::new_with_max(LATENCY_US_MAX, 3).expect("the bounds are valid"),
            done: 0,
            missing: 0,
            failed: 0,
            unknown: 0,
            other: 0,
            example: None,
        }
    }
}

impl Outcomes {
    fn note_done(&mut self, since: Instant) {
        self.done += 1;
        let us = u64::try_from(since.elapsed().as_micros()).unwrap_or(LATENCY_US_MAX);
        self.latencies.saturating_record(us);
    }

    fn note_error(&mut self, error: &Error) {
        match error {
            Error::Failed(_) | Error::Connect(_) => self.failed += 1,
            Error::DeadlineExceeded { sent_write: false, .. } => self.failed += 1,
            Error::Unknown(_) | Error::DeadlineExceeded { sent_write: true, .. } => self.unknown += 1,
            Error::Refused(_) | Error::BadRequest(_) => self.other += 1,
        }
        if self.example.is_none() {
            self.example = Some(error.to_string());
        }
    }

    fn add(&mut self, other: &Self) {
        self.latencies.add(&other.latencies).expect("the bounds are the same");
        self.done += other.done;
        self.missing += other.missing;
        self.failed += other.failed;
        self.unknown += other.unknown;
        self.other += other.other;
        self.example = self.example.take().or_else(|| other.example.clone());
    }
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.gets.add(&other.gets);
        self.puts.add(&other.puts);
    }
}

impl Load {
    /// Writes every key of this thread's share once. Unlike the measurement, it fails if a write does.
    pub(super) fn preload(&self) -> Result<Tally, Failure> {
        self.with_client(async |client| {
            let ours = |key: &u32| key % self.args.threads == self.thread;
            let keys = RefCell::new((0..self.args.keys).filter(ours));
            let workers = (0..self.clients()).map(async |_| {
                loop {
                    let Some(key) = keys.borrow_mut().next() else { return Ok::<_, Error>(()) };
                    client.put(&self.globals.keyspace, name(key), self.value(), self.write_options()).await?;
                }
            });
            try_join_all(workers).await?;
            Ok(Tally::default())
        })
    }

    /// Sends requests until it is stopped; those under way then are still waited for and counted.
    pub(super) fn measure(&self) -> Result<Tally, Failure> {
        self.with_client(async |client| {
            let tally = Rc::new(RefCell::new(Tally::default()));
            let value = self.value();
            join_all((0..self.clients()).map(|_| self.work(client, value.clone(), &tally))).await;
            Ok(tally.take())
        })
    }

    fn with_client(
        &self,
        part: impl AsyncFnOnce(&Client) -> Result<Tally, Failure>,
    ) -> Result<Tally, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::local("cannot start a runtime", &error))?;
        runtime.block_on(async {
            let addresses = (&self.addresses[..], self.direct);
            let client = reach::connect_to(&self.globals, addresses, Patience::Rounds).await?;
            let client = if self.args.session { client.session() } else { client };
            part(&client).await
        })
    }

    async fn work(&self, client: &Client, value: Bytes, tally: &RefCell<Tally>) {
        let mut random = SmallRng::from_os_rng();
        while !self.stop.is_cancelled() {
            let key = name(random.random_range(0..self.args.keys));
            let keyspace = &self.globals.keyspace;
            let start = Instant::now();
            if random.random_bool(self.args.read_share) {
                let result = client.get(keyspace, key, ReadOptions::default()).await;
                let gets = &mut tally.borrow_mut().gets;
                match result {
                    Ok(read) => {
                        gets.note_done(start);
                        gets.missing += u64::from(read.value().is_none());
                    }
                    Err(error) => gets.note_error(&error),
                }
            } else {
                let result = client.put(keyspace, key, value.clone(), self.write_options()).await;
                let puts = &mut tally.borrow_mut().puts;
                match result {
                    Ok(_) => puts.note_done(start),
                    Err(error) => puts.note_error(&error),
                }
            }
        }
    }

    /// This thread's share of the clients.
    fn clients(&self) -> u32 {
        let BenchArgs { clients, threads, .. } = self.args;
        clients / threads + u32::from(self.thread < clients % threads)
    }

    fn write_options(&self) -> WriteOptions {
        WriteOptions { durability: self.args.durability.map(Into::into), ..WriteOptions::default() }
    }

    /// Random, so that nothing can be gained by compressing it.
    fn value(&self) -> Bytes {
        let mut value = vec![0; self.args.value_bytes as usize];
        SmallRng::from_os_rng().fill_bytes(&mut value);
        value.into()
    }
}

fn name(key: u32) -> String {
    format!("bench/{key:010}")
}
