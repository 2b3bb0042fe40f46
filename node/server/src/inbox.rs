//! The queue into the core thread: many tasks put in, one thread takes everything at once.
//!
//! It is bounded where work comes from outside: clients are turned away at once when it is full, links wait for
//! room, so that their peers feel it. What answers the core's own effects is always taken, since the core bounds
//! how many of those are under way. One lock and at most one wake-up for a whole batch, however long.
//!
//! Tasks of one runtime do not wake the thread themselves: a task of its own does, [`Inbox::wake_in_turn`], which has
//! its turn after all that were ready before it. So everything that has come over the sockets together is taken
//! together, and nothing waits longer than it takes to read that.

use std::collections::VecDeque;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::Notify;

/// How much may wait before clients are turned away and links wait.
pub const INBOX_MAX: usize = 16_384;

/// Why nothing was put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotTaken {
    #[error("too much is waiting already")]
    Full,
    #[error("this node is about to stop")]
    Closed,
}

#[derive(Debug)]
pub struct Inbox<T> {
    queue: Mutex<Queue<T>>,
    filled: Condvar,
    emptied: Notify,
    /// The taker is to be woken, in turn.
    owed: Notify,
    has_waker: AtomicBool,
    len_max: usize,
}

#[derive(Debug)]
struct Queue<T> {
    items: VecDeque<T>,
    taker: Taker,
    is_closed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taker {
    Awake,
    Asleep,
    /// Asleep, and to be woken in turn.
    Called,
}

impl<T> Inbox<T> {
    pub fn new(len_max: usize) -> Self {
        Self {
            queue: Mutex::new(Queue { items: VecDeque::new(), taker: Taker::Awake, is_closed: false }),
            filled: Condvar::new(),
            emptied: Notify::new(),
            owed: Notify::new(),
            has_waker: AtomicBool::new(false),
            len_max,
        }
    }

    /// For what may be turned away.
    pub fn offer(&self, item: T) -> Result<(), NotTaken> {
        self.push_if_room(item)
            .map_err(|_| if self.lock().is_closed { NotTaken::Closed } else { NotTaken::Full })
    }

    /// For what may wait. Nobody waits for a closed inbox.
    pub async fn put(&self, mut item: T) {
        loop {
            // Made before the looks below: whatever changes after one of them wakes it, even if it was not polled.
            let emptied = self.emptied.notified();
            match self.push_if_room(item) {
                Ok(()) => return,
                Err(returned) => item = returned,
            }
            if self.lock().is_closed {
                return;
            }
            emptied.await;
        }
    }

    /// For what the taker waits for, which is never turned away.
    pub fn push(&self, item: T) {
        let mut queue = self.lock();
        if queue.is_closed {
            return;
        }
        queue.items.push_back(item);
        let was_awake = mem::replace(&mut queue.taker, Taker::Awake) == Taker::Awake;
        drop(queue);
        if !was_awake {
            self.filled.notify_one();
        }
    }

    /// From now on wakes the taker for tasks of this runtime, for ever.
    pub async fn wake_in_turn(&self) {
        self.has_waker.store(true, Ordering::Relaxed);
        loop {
            self.owed.notified().await;
            self.filled.notify_one();
        }
    }

    /// Swaps everything that waits into `batch`, which has to be empty; waits at most `timeout` for the first.
    pub fn take(&self, batch: &mut VecDeque<T>, timeout: Duration) {
        let mut queue = self.lock();
        if queue.items.is_empty() && !timeout.is_zero() {
            queue.taker = Taker::Asleep;
            (queue, _) = self
                .filled
                .wait_timeout_while(queue, timeout, |queue| queue.items.is_empty())
                .unwrap_or_else(PoisonError::into_inner);
            queue.taker = Taker::Awake;
        }
        let was_full = queue.items.len() >= self.len_max;
        mem::swap(&mut queue.items, batch);
        drop(queue);
        if was_full {
            self.emptied.notify_waiters();
        }
    }

    /// The last to be taken is what waits: drops what still comes, or turns it away where it may be turned away.
    #[must_use = "whoever waits for an answer to these gets none if they are dropped"]
    pub fn close(&self) -> VecDeque<T> {
        let mut queue = self.lock();
        queue.is_closed = true;
        let last = mem::take(&mut queue.items);
        drop(queue);
        self.emptied.notify_waiters();
        last
    }

    fn push_if_room(&self, item: T) -> Result<(), T> {
        let mut queue = self.lock();
        if queue.is_closed || queue.items.len() >= self.len_max {
            return Err(item);
        }
        queue.items.push_back(item);
        if queue.taker == Taker::Asleep {
            let has_waker = self.has_waker.load(Ordering::Relaxed);
            queue.taker = if has_waker { Taker::Called } else { Taker::Awake };
            drop(queue);
            if has_waker { self.owed.notify_one() } else { self.filled.notify_one() }
        }
        Ok(())
    }

    /// The queue is whole after each operation, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;

    fn take(inbox: &Inbox<u32>, timeout_ms: u64) -> Vec<u32> {
        let mut batch = VecDeque::new();
        inbox.take(&mut batch, Duration::from_millis(timeout_ms));
        batch.into()
    }

    #[test]
    fn everything_is_taken_at_once_and_in_order() {
        let inbox = Inbox::new(2);
        inbox.offer(1).unwrap();
        inbox.offer(2).unwrap();
        assert_eq!(inbox.offer(3), Err(NotTaken::Full));
        inbox.push(4);
        assert_eq!(take(&inbox, 0), [1, 2, 4]);
        assert!(take(&inbox, 1).is_empty());
    }

    #[test]
    fn a_sleeping_taker_is_woken() {
        let inbox = Arc::new(Inbox::new(2));
        let other = Arc::clone(&inbox);
        let started = Instant::now();
        let pushing = std::thread::spawn(move || other.push(7));
        assert_eq!(take(&inbox, 60_000), [7]);
        assert!(started.elapsed() < Duration::from_secs(30));
        pushing.join().unwrap();
    }

    #[tokio::test]
    async fn tasks_have_the_taker_woken_once_all_of_them_had_their_turn() {
        let inbox = Arc::new(Inbox::new(100));
        let (waker, other) = (Arc::clone(&inbox), Arc::clone(&inbox));
        let waking = tokio::spawn(async move { waker.wake_in_turn().await });
        tokio::task::yield_now().await;
        let taking = std::thread::spawn(move || take(&other, 60_000));
        let until = async |state| {
            while inbox.lock().taker != state {
                std::thread::yield_now();
            }
        };
        until(Taker::Asleep).await;
        for item in 0..10 {
            let inbox = Arc::clone(&inbox);
            tokio::spawn(async move { inbox.offer(item) });
        }
        tokio::task::yield_now().await;
        while !taking.is_finished() {
            tokio::task::yield_now().await;
        }
        assert_eq!(taking.join().unwrap(), (0..10).collect::<Vec<_>>(), "not woken by the first one");
        let other = Arc::clone(&inbox);
        let taking = std::thread::spawn(move || take(&other, 60_000));
        until(Taker::Asleep).await;
        inbox.offer(1).unwrap();
        until(Taker::Called).await;
        inbox.push(2);
        assert_eq!(taking.join().unwrap(), [1, 2], "another thread does not wait for the turn");
        waking.abort();
    }

    #[test]
    fn a_closed_inbox_gives_back_what_waits_and_keeps_nothing() {
        let inbox = Inbox::new(2);
        inbox.push(1);
        assert_eq!(inbox.close(), [1]);
        inbox.push(2);
        assert_eq!(inbox.offer(3), Err(NotTaken::Closed));
        assert!(take(&inbox, 0).is_empty());
    }

    #[tokio::test]
    async fn nobody_waits_for_a_closed_inbox() {
        let inbox = Arc::new(Inbox::new(1));
        inbox.put(1).await;
        let other = Arc::clone(&inbox);
        let waiting = tokio::spawn(async move { other.put(2).await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        assert_eq!(inbox.close(), [1]);
        waiting.await.unwrap();
        inbox.put(3).await;
        assert!(take(&inbox, 0).is_empty());
    }

    #[tokio::test]
    async fn what_may_wait_gets_in_once_there_is_room() {
        let inbox = Arc::new(Inbox::new(1));
        inbox.put(1).await;
        let other = Arc::clone(&inbox);
        let waiting = tokio::spawn(async move { other.put(2).await });
        tokio::task::yield_now().await;
        assert_eq!(take(&inbox, 0), [1]);
        waiting.await.unwrap();
        assert_eq!(take(&inbox, 0), [2]);
    }
}
