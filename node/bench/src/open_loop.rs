//! Requests that arrive at a rate of their own, whatever becomes of those before them: how a store meets more than it
//! can do. A closed loop never shows that, since its clients wait.
//!
//! What a stream does not take is held back by its client, as flow control wants it: beyond [`LANE_MAX`] requests
//! without an answer, those that arrive are counted and not sent. A queue without an end would measure the memory of
//! the clients.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use hdrhistogram::Histogram;
use keystore_proto::v1;
use keystore_proto::v1::key_store_client::KeyStoreClient;
use keystore_proto::v1::operation::Operation;
use keystore_proto::v1::outcome::Outcome;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tonic::Streaming;
use tonic::transport::Channel;

use crate::measure::{Kind, Load, key, new_histogram, value};
use crate::meter::{Meter, Used};
use crate::servers::Servers;
use crate::statistics::arrivals_due;
use crate::target::{Failed, Levels};

/// How finely arrivals are spread: what comes within one is sent together, which clients need to be quick enough.
const TICK: Duration = Duration::from_millis(4);
/// How many requests of a stream may wait for an answer: several times what the store takes from one at once.
const LANE_MAX: usize = 1_024;
/// Until the store is as full as it gets, before anything counts.
const FILL_UP: Duration = Duration::from_secs(3);

/// What was counted between two moments; the latencies in microseconds, from the arrival of the request.
pub(crate) struct Counted {
    pub(crate) offered: u64,
    /// Of these, not sent.
    pub(crate) held_back: u64,
    pub(crate) served: Histogram<u64>,
    /// For overload, with nothing applied.
    pub(crate) refused: Histogram<u64>,
    pub(crate) failed: u64,
    pub(crate) example: Option<Failed>,
}

pub(crate) struct Offered {
    pub(crate) counted: Counted,
    pub(crate) used: Used,
}

impl Counted {
    fn new() -> Result<Self> {
        let (served, refused) = (new_histogram()?, new_histogram()?);
        Ok(Self { offered: 0, held_back: 0, served, refused, failed: 0, example: None })
    }

    fn note(&mut self, result: Result<(), Failed>, latency: Duration) {
        let latency_us = latency.as_micros() as u64;
        match result {
            Ok(()) => self.served.saturating_record(latency_us),
            Err(failed) if failed.is_overloaded() => self.refused.saturating_record(latency_us),
            Err(failed) => {
                self.failed += 1;
                self.example.get_or_insert(failed);
            }
        }
    }
}

/// One stream, with what waits for an answer there. No task and no future for a request: clients have to be several
/// times as quick as the store.
struct Lane {
    requests: UnboundedSender<v1::SessionRequest>,
    waiting: Rc<RefCell<HashMap<u64, Instant>>>,
}

/// `None` while nothing counts.
type Counting = Rc<RefCell<Option<Counted>>>;

impl Lane {
    async fn open(channel: Channel, counting: Counting) -> Result<Self, Failed> {
        let (requests, receiver) = unbounded();
        let answers = KeyStoreClient::new(channel).session(receiver).await?.into_inner();
        let waiting = Rc::default();
        tokio::task::spawn_local(take_answers(answers, Rc::clone(&waiting), counting));
        Ok(Self { requests, waiting })
    }

    /// What is sent after the stream has ended waits for ever.
    fn send(&self, id: u64, operation: Operation) {
        self.waiting.borrow_mut().insert(id, Instant::now());
        let operation = Some(v1::Operation { operation: Some(operation) });
        let _ended = self.requests.unbounded_send(v1::SessionRequest { id, timeout_ms: 0, operation });
    }
}

async fn take_answers(
    mut answers: Streaming<v1::SessionResponse>,
    waiting: Rc<RefCell<HashMap<u64, Instant>>>,
    counting: Counting,
) {
    while let Some(Ok(v1::SessionResponse { id, outcome })) = answers.next().await {
        let begun = waiting.borrow_mut().remove(&id);
        if let (Some(begun), Some(counted)) = (begun, counting.borrow_mut().as_mut()) {
            counted.note(result(outcome), begun.elapsed());
        }
    }
}

fn result(outcome: Option<v1::Outcome>) -> Result<(), Failed> {
    match outcome.and_then(|outcome| outcome.outcome) {
        Some(Outcome::Failed(failure)) => Err(failure.into()),
        Some(Outcome::Got(got)) if got.values.is_empty() => Err(Failed::not_found()),
        Some(_) => Ok(()),
        None => Err(tonic::Status::internal("an answer without an outcome").into()),
    }
}

/// Over a stream on each of these connections in turn. Of the load, the number of clients means nothing.
pub(crate) async fn offer(
    servers: &Servers,
    channels: Vec<Channel>,
    (load, levels): (&Load, Levels),
    per_second: f64,
) -> Result<Offered> {
    let counting = Counting::default();
    let mut lanes = Vec::new();
    for channel in channels {
        lanes.push(Lane::open(channel, Rc::clone(&counting)).await?);
    }
    let arrivals = Arrivals {
        lanes,
        load: *load,
        levels,
        value: value(load.value_bytes),
        next: Cell::new(0),
        sent: Cell::new(0),
    };
    arrivals.offer_for(per_second, FILL_UP).await;
    let (meter, first, sent) = (Meter::start(servers)?, arrivals.next.get(), arrivals.sent.get());
    counting.replace(Some(Counted::new()?));
    arrivals.offer_for(per_second, load.time).await;
    let counted = counting.take();
    let used = meter.read(servers)?;
    let offered = arrivals.next.get() - first;
    let held_back = offered - (arrivals.sent.get() - sent);
    let counted = Counted { offered, held_back, ..counted.map_or_else(Counted::new, Ok)? };
    Ok(Offered { counted, used })
}

struct Arrivals {
    lanes: Vec<Lane>,
    load: Load,
    levels: Levels,
    value: Bytes,
    /// How many have arrived, and how many of them were sent.
    next: Cell<u64>,
    sent: Cell<u64>,
}

impl Arrivals {
    async fn offer_for(&self, per_second: f64, time: Duration) {
        let mut random = SmallRng::from_os_rng();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let (begun, mut sent) = (Instant::now(), 0);
        while begun.elapsed() < time {
            ticks.tick().await;
            let due = arrivals_due(begun.elapsed().min(time).as_secs_f64(), per_second);
            let key = || key(random.random_range(0..self.load.keys));
            self.send(due - sent, key);
            sent = due;
        }
    }

    /// In shares, so that what goes to one stream goes in one piece.
    fn send(&self, count: u64, mut key: impl FnMut() -> Bytes) {
        let lanes = self.lanes.len() as u64;
        for (number, lane) in self.lanes.iter().enumerate() {
            for _ in 0..share(count, lanes, number as u64) {
                let id = self.next.replace(self.next.get() + 1);
                if lane.waiting.borrow().len() >= LANE_MAX {
                    continue;
                }
                self.sent.set(self.sent.get() + 1);
                let operation = match self.load.kind {
                    Kind::Put => Operation::Put(self.levels.put(key(), self.value.clone())),
                    Kind::Get => Operation::Get(self.levels.get(key())),
                };
                lane.send(id, operation);
            }
        }
    }
}

/// Of so many, what one of several gets.
fn share(count: u64, of: u64, number: u64) -> u64 {
    count / of + u64::from(number < count % of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keystore_proto::client::reason;

    #[test]
    fn shares_are_alike_and_add_up() {
        let shares = |count| (0..4).map(|number| share(count, 4, number)).collect::<Vec<_>>();
        assert_eq!(shares(0), [0, 0, 0, 0]);
        assert_eq!(shares(10), [3, 3, 2, 2]);
        assert_eq!(shares(8), [2, 2, 2, 2]);
    }

    #[test]
    fn what_is_served_refused_and_failed_is_told_apart() {
        let mut counted = Counted::new().unwrap();
        let failure = |code: tonic::Code, reason: &str| -> Failed {
            v1::Failure { code: code.into(), reason: reason.to_owned(), ..v1::Failure::default() }.into()
        };
        counted.note(Ok(()), Duration::from_micros(50));
        counted.note(Ok(()), Duration::from_micros(70));
        counted
            .note(Err(failure(tonic::Code::ResourceExhausted, reason::OVERLOADED)), Duration::from_micros(9));
        counted
            .note(Err(failure(tonic::Code::ResourceExhausted, reason::DISK_FULL)), Duration::from_micros(5));
        let Counted { served, refused, failed, example, .. } = counted;
        assert_eq!((served.len(), served.max()), (2, 70));
        assert_eq!((refused.len(), refused.max()), (1, 9));
        assert_eq!(failed, 1);
        assert!(example.unwrap().to_string().contains(reason::DISK_FULL));
    }
}
