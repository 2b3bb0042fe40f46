//! Sends requests and writes them down, with the times at which they left and were answered.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use keystore_history::{
    Action, Context, Expiry, History, Key, KeyRange, Operation, Put, ReadOutcome, Removal, Scan, ScanOutcome,
    WriteOutcome,
};
use tokio::time::Instant;

use crate::store::{CAUSAL_KEYSPACE, Known, REQUEST_TIMEOUT, Reply, Request, Store};

/// What a client may need beyond its deadline to notice that: on two cores, a task waits its turn.
const NOTICED_WITHIN: Duration = Duration::from_secs(2);
/// How far the clocks of machines may be apart, the one that this process counts by among them.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(1);

/// The session of requests that a scenario sends itself, and judges itself.
pub const SCENARIO: u32 = u32::MAX;

/// The history as it grows. Its unit of time is the microsecond.
pub struct Recorder {
    pub(super) started: Instant,
    history: Mutex<History>,
}

impl Recorder {
    pub(super) fn new() -> Self {
        Self::resume(Instant::now(), History::default())
    }

    /// Goes on with a history whose times count from `started`.
    pub(super) fn resume(started: Instant, history: History) -> Self {
        Self { started, history: Mutex::new(history) }
    }

    pub(super) fn now_us(&self) -> u64 {
        micros(self.started.elapsed())
    }

    pub(super) fn with<T>(&self, look: impl FnOnce(&mut History) -> T) -> T {
        look(&mut self.history.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, operation: Operation) {
        self.with(|history| history.operations.push(operation));
    }

    pub async fn get(&self, session: u32, store: &impl Store, key: &Key) -> ReadOutcome {
        match self.ask(session, store, key, &Request::Get).await {
            Reply::Read(outcome, _) => outcome,
            Reply::Written(..) => ReadOutcome::Unanswered("the answer is one to a write".to_owned()),
        }
    }

    /// One request for one key.
    pub async fn ask(&self, session: u32, store: &impl Store, key: &Key, request: &Request) -> Reply {
        let asked_at = self.now_us();
        let reply = store.ask(key, request).await;
        let times = (asked_at, self.now_us());
        self.add(operation(session, key, times, action(asked_at, key, request, &reply)));
        reply
    }

    /// Several requests in one message.
    pub async fn batch(&self, session: u32, store: &impl Store, requests: &[(Key, Request)]) -> Vec<Reply> {
        let asked_at = self.now_us();
        let replies = store.batch(requests).await;
        let times = (asked_at, self.now_us());
        for ((key, request), reply) in requests.iter().zip(&replies) {
            self.add(operation(session, key, times, action(asked_at, key, request, reply)));
        }
        replies
    }

    pub async fn scan(&self, session: u32, store: &impl Store, keyspace: &str, prefix: &[u8]) {
        let asked_at = self.now_us();
        let outcome = store.scan(keyspace, prefix).await;
        let answered_at = self.now_us();
        if let ScanOutcome::Unanswered(why) = &outcome {
            // A request that failed, as any other, if of no key. It has no deadline as a whole.
            let action = Action::Get(ReadOutcome::Unanswered(format!("scan: {why}")));
            return self.add(Operation::new(
                session,
                Key::new(keyspace, prefix),
                (asked_at, answered_at),
                action,
            ));
        }
        let scan = Scan {
            session,
            keyspace: keyspace.to_owned(),
            range: KeyRange::prefix(prefix),
            asked_at,
            answered_at,
            deadline: None,
            is_promised: true,
            outcome,
        };
        self.with(|history| history.scans.push(scan));
    }
}

fn operation(session: u32, key: &Key, times: (u64, u64), action: Action) -> Operation {
    let due = times.0.saturating_add(micros(REQUEST_TIMEOUT + NOTICED_WITHIN));
    Operation { deadline: Some(due), ..Operation::new(session, key.clone(), times, action) }
}

fn action(asked_at: u64, key: &Key, request: &Request, reply: &Reply) -> Action {
    let outcome = match reply {
        Reply::Read(outcome, _) => return Action::Get(outcome.clone()),
        Reply::Written(outcome, _) => outcome.clone(),
    };
    match request {
        Request::Get => Action::Get(ReadOutcome::Unanswered("the answer is one to a write".to_owned())),
        Request::Put { value, ttl, known } => Action::Put(Put {
            context: replaced(known),
            expiry: ttl.map(|ttl| expiry(asked_at, ttl)),
            ..Put::new(value.as_bytes(), outcome)
        }),
        Request::Delete { known } => {
            let is_blind = key.keyspace != CAUSAL_KEYSPACE || known.context.is_none();
            let context = if is_blind { Context::WhateverIsThere } else { replaced(known) };
            Action::Delete(Removal { context, outcome })
        }
    }
}

/// What was seen without a context cannot be told to the store, and stays.
fn replaced(known: &Known) -> Context {
    if known.context.is_some() { Context::Values(known.values.clone()) } else { Context::NONE }
}

/// A value's life begins when a node takes the write, which it does not after the deadline.
fn expiry(asked_at: u64, ttl: Duration) -> Expiry {
    let ends_us = asked_at.saturating_add(micros(ttl));
    Expiry {
        not_before: ends_us.saturating_sub(micros(CLOCK_SKEW_MAX)),
        not_after: ends_us.saturating_add(micros(REQUEST_TIMEOUT + CLOCK_SKEW_MAX)),
    }
}

/// What the answer to a request has shown of its key, for a later write in the causal keyspace.
pub fn known(request: &Request, reply: Reply) -> Option<Known> {
    match reply {
        Reply::Read(ReadOutcome::Found(seen), context) => {
            Some(Known { values: seen.into_iter().map(|seen| seen.value).collect(), context })
        }
        Reply::Read(ReadOutcome::Missing | ReadOutcome::Deleted(_), context) => {
            Some(Known { values: Vec::new(), context })
        }
        Reply::Written(WriteOutcome::Done { .. }, context) => match request {
            Request::Put { value, known, .. } => {
                let mut values = known.values.clone();
                values.push(value.as_bytes().to_vec());
                Some(Known { values, context })
            }
            Request::Delete { known } => Some(Known { values: known.values.clone(), context }),
            Request::Get => None,
        },
        Reply::Read(ReadOutcome::Unanswered(_), _) | Reply::Written(..) => None,
    }
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
