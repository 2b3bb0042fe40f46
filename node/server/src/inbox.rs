//! The queue into the core thread: many tasks put in, one thread takes everything at once.
//!
//! It is bounded where work comes from outside: clients are turned away at once when it is full, links wait for
//! room, so that their peers feel it. What answers the core's own effects is always taken, since the core bounds
//! how many of those are under way. One lock and at most one wake-up for a whole batch, however long.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::Notify;

/// How much may wait before clients are turned away and links wait.
pub const INBOX_MAX: usize = 16_384;

/// The queue is full: nothing was put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("too much is waiting already")]
pub struct Full;

#[derive(Debug)]
pub struct Inbox<T> {
    queue: Mutex<Queue<T>>,
    filled: Condvar,
    emptied: Notify,
    len_max: usize,
}

#[derive(Debug)]
struct Queue<T> {
    items: VecDeque<T>,
    is_taker_asleep: bool,
    is_closed: bool,
}

impl<T> Inbox<T> {
    pub fn new(len_max: usize) -> Self {
        Self {
            queue: Mutex::new(Queue { items: VecDeque::new(), is_taker_asleep: false, is_closed: false }),
            filled: Condvar::new(),
            emptied: Notify::new(),
            len_max,
        }
    }

    /// For what may be turned away.
    pub fn offer(&self, item: T) -> Result<(), Full> {
        self.push_if_room(item).map_err(|_| Full)
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
        self.push_into(self.lock(), item);
    }

    /// Swaps everything that waits into `batch`, which has to be empty; waits at most `timeout` for the first.
    pub fn take(&self, batch: &mut VecDeque<T>, timeout: Duration) {
        let mut queue = self.lock();
        if queue.items.is_empty() && !timeout.is_zero() {
            queue.is_taker_asleep = true;
            (queue, _) = self
                .filled
                .wait_timeout_while(queue, timeout, |queue| queue.items.is_empty())
                .unwrap_or_else(PoisonError::into_inner);
            queue.is_taker_asleep = false;
        }
        let was_full = queue.items.len() >= self.len_max;
        std::mem::swap(&mut queue.items, batch);
        drop(queue);
        if was_full {
            self.emptied.notify_waiters();
        }
    }

    /// Nobody takes any more: drops what waits and what still comes, turns away what may be turned away.
    pub fn close(&self) {
        let mut queue = self.lock();
        queue.is_closed = true;
        let dropped = std::mem::take(&mut queue.items);
        drop(queue);
        drop(dropped);
        self.emptied.notify_waiters();
    }

    fn push_if_room(&self, item: T) -> Result<(), T> {
        let queue = self.lock();
        if queue.is_closed || queue.items.len() >= self.len_max {
            return Err(item);
        }
        self.push_into(queue, item);
        Ok(())
    }

    fn push_into(&self, mut queue: MutexGuard<'_, Queue<T>>, item: T) {
        if queue.is_closed {
            return;
        }
        queue.items.push_back(item);
        // Only the first one has to wake the taker, and only if it sleeps.
        let wake = std::mem::take(&mut queue.is_taker_asleep);
        drop(queue);
        if wake {
            self.filled.notify_one();
        }
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
        assert_eq!(inbox.offer(3), Err(Full));
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

    #[test]
    fn a_closed_inbox_keeps_nothing() {
        let inbox = Inbox::new(2);
        inbox.push(1);
        inbox.close();
        inbox.push(2);
        assert_eq!(inbox.offer(3), Err(Full));
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
        inbox.close();
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
