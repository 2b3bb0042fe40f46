//! Sends requests and writes them down, with the times at which they left and were answered.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use keystore_history::{Action, Context, History, Key, Operation, Put, ReadOutcome, Removal, WriteOutcome};

use crate::store::{REQUEST_TIMEOUT, Store};

/// What a client may need beyond its deadline to notice that: on two cores, a task waits its turn.
const NOTICED_WITHIN: Duration = Duration::from_secs(2);

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

    fn add(&self, session: u32, key: &Key, asked_at: u64, action: Action) {
        let due = asked_at.saturating_add(micros(REQUEST_TIMEOUT + NOTICED_WITHIN));
        let times = (asked_at, self.now_us());
        let operation =
            Operation { deadline: Some(due), ..Operation::new(session, key.clone(), times, action) };
        self.with(|history| history.operations.push(operation));
    }

    pub async fn get(&self, session: u32, store: &impl Store, key: &Key) -> ReadOutcome {
        let asked_at = self.now_us();
        let outcome = store.get(key).await;
        self.add(session, key, asked_at, Action::Get(outcome.clone()));
        outcome
    }

    pub async fn put(&self, session: u32, store: &impl Store, key: &Key, value: String) -> WriteOutcome {
        let asked_at = self.now_us();
        let outcome = store.put(key, &value).await;
        self.add(session, key, asked_at, Action::Put(Put::new(value.as_bytes(), outcome.clone())));
        outcome
    }

    pub async fn delete(&self, session: u32, store: &impl Store, key: &Key) -> WriteOutcome {
        let asked_at = self.now_us();
        let outcome = store.delete(key).await;
        let removal = Removal { context: Context::WhateverIsThere, outcome: outcome.clone() };
        self.add(session, key, asked_at, Action::Delete(removal));
        outcome
    }
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
