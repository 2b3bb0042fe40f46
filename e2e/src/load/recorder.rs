//! Sends requests and writes them down, with the times at which they left and were answered.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use keystore_history::{Action, Context, History, Key, Operation, Put, Removal, WriteOutcome};

use crate::store::{REQUEST_TIMEOUT, Store};

/// What a client may need beyond its deadline to notice that: on two cores, a task waits its turn.
const NOTICED_WITHIN: Duration = Duration::from_secs(2);

/// The history as it grows. Its unit of time is the microsecond.
pub(super) struct Recorder {
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

    /// True if the read was answered.
    pub(super) async fn get(&self, session: u32, store: &impl Store, key: &Key) -> bool {
        let asked_at = self.now_us();
        let outcome = store.get(key).await;
        let is_answered = outcome.is_answered();
        self.add(session, key, asked_at, Action::Get(outcome));
        is_answered
    }

    /// True if the write was acknowledged.
    pub(super) async fn put(&self, session: u32, store: &impl Store, key: &Key, value: String) -> bool {
        let asked_at = self.now_us();
        let outcome = store.put(key, &value).await;
        let is_done = matches!(outcome, WriteOutcome::Done { .. });
        self.add(session, key, asked_at, Action::Put(Put::new(value.as_bytes(), outcome)));
        is_done
    }

    pub(super) async fn delete(&self, session: u32, store: &impl Store, key: &Key) {
        let asked_at = self.now_us();
        let outcome = store.delete(key).await;
        let removal = Removal { context: Context::WhateverIsThere, outcome };
        self.add(session, key, asked_at, Action::Delete(removal));
    }
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
