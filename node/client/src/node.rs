//! One address that requests can be sent to: its connection, dialled once for all who wait for it, and how it has
//! fared lately.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::connection::{Connection, DialError};

/// For how long a node that failed is asked only if all others failed too: doubled with each failure in a row.
const SUSPECT_MS_FIRST: u64 = 100;
const SUSPECT_MS_MAX: u64 = 3_000;

type Dial = Shared<BoxFuture<'static, Result<Arc<Connection>, DialError>>>;

pub(crate) struct Node {
    address: String,
    live: ArcSwapOption<Connection>,
    dial: Mutex<Option<Dial>>,
    origin: Instant,
    /// Milliseconds since `origin`.
    suspect_until_ms: AtomicU64,
    failures: AtomicU32,
}

impl Node {
    pub(crate) fn new(address: String) -> Arc<Self> {
        Arc::new(Self {
            address,
            live: ArcSwapOption::empty(),
            dial: Mutex::new(None),
            origin: Instant::now(),
            suspect_until_ms: AtomicU64::new(0),
            failures: AtomicU32::new(0),
        })
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The open connection, or a new one.
    pub(crate) async fn connection(&self) -> Result<Arc<Connection>, DialError> {
        match self.open() {
            Some(connection) => Ok(connection),
            None => self.shared_dial().await,
        }
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.open().is_some()
    }

    /// True if a look-up stands between the address and a connection.
    pub(crate) fn is_named(&self) -> bool {
        self.address.parse::<SocketAddr>().is_err()
    }

    fn open(&self) -> Option<Arc<Connection>> {
        self.live.load_full().filter(|connection| connection.is_open())
    }

    /// All who need a connection at the same time wait for the same one; who gives up waiting stops nobody.
    async fn shared_dial(&self) -> Result<Arc<Connection>, DialError> {
        let dial = {
            let mut slot = self.dial.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(connection) = self.open() {
                return Ok(connection);
            }
            // The old connection ends with the requests that are still under way on it.
            self.live.store(None);
            slot.get_or_insert_with(|| start_dial(self.address.clone())).clone()
        };
        let result = dial.clone().await;
        let mut slot = self.dial.lock().unwrap_or_else(PoisonError::into_inner);
        // Only the first to come back finds its own dial here; a later dial is not to be forgotten.
        if slot.as_ref().is_some_and(|current| current.ptr_eq(&dial)) {
            *slot = None;
            if let Ok(connection) = &result {
                self.live.store(Some(connection.clone()));
            }
        }
        result
    }

    /// True while others are to be preferred. When the time is up, one caller finds out for all whether the node is
    /// back: to that one it is not suspect.
    pub(crate) fn is_suspect(&self) -> bool {
        if self.failures.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let (until_ms, now_ms) = (self.suspect_until_ms.load(Ordering::Relaxed), self.now_ms());
        let extended = now_ms + SUSPECT_MS_MAX;
        let claim = || {
            let ordering = Ordering::Relaxed;
            self.suspect_until_ms.compare_exchange(until_ms, extended, ordering, ordering)
        };
        now_ms < until_ms || claim().is_err()
    }

    pub(crate) fn note_failure(&self) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).min(10);
        let suspect_ms = (SUSPECT_MS_FIRST << failures).min(SUSPECT_MS_MAX);
        self.suspect_until_ms.store(self.now_ms() + suspect_ms, Ordering::Relaxed);
    }

    pub(crate) fn note_success(&self) {
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    fn now_ms(&self) -> u64 {
        let elapsed: Duration = self.origin.elapsed();
        u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
    }
}

fn start_dial(address: String) -> Dial {
    let target = address.clone();
    let task =
        AbortOnDropHandle::new(tokio::spawn(async move { Connection::dial(&target).await.map(Arc::new) }));
    async move {
        match task.await {
            Ok(result) => result,
            // Only a runtime that shuts down ends the task early.
            Err(_) => Err(DialError::Timeout { address }),
        }
    }
    .boxed()
    .shared()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_node_that_failed_is_tried_by_one_caller_at_a_time_until_it_succeeds() {
        let node = Node::new("127.0.0.1:1".to_owned());
        assert!(!node.is_suspect());
        node.note_failure();
        assert!(node.is_suspect());
        tokio::time::advance(Duration::from_millis(SUSPECT_MS_FIRST)).await;
        assert!(!node.is_suspect(), "one caller may try");
        assert!(node.is_suspect(), "the others wait for it");
        node.note_success();
        assert!(!node.is_suspect());
        for _ in 0..70 {
            node.note_failure();
        }
        tokio::time::advance(Duration::from_millis(SUSPECT_MS_MAX - 1)).await;
        assert!(node.is_suspect());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!node.is_suspect(), "however often it failed");
    }
}
