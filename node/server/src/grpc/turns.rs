//! How many streams of a kind a node works on at once, and what becomes of one that its client does not read.
//!
//! A stream holds its turn between its messages as well, with what it has read ahead. Invariant: one whose client has
//! taken nothing for [`UNREAD`] keeps its turn only as long as nobody waits for it; then it is dropped, and its
//! client, should it come back, is told so.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

/// After this long without its client a stream may lose its turn.
pub(super) const UNREAD: Duration = Duration::from_secs(30);
/// How often one that waits for its turn looks for such streams.
const LOOK: Duration = Duration::from_secs(1);

/// The turns of streams, whose work between messages is `W` and is kept here.
#[derive(Debug)]
pub(super) struct Turns<W> {
    free: Arc<Semaphore>,
    parked: Mutex<Parked<W>>,
}

#[derive(Debug)]
struct Parked<W> {
    next: u64,
    works: BTreeMap<u64, Waiting<W>>,
}

/// A work that waits for its client.
#[derive(Debug)]
struct Waiting<W> {
    since: Instant,
    work: W,
    turn: Turn,
}

/// Dropped at the end of the work.
#[derive(Debug)]
pub(super) struct Turn {
    _permit: OwnedSemaphorePermit,
}

/// The side of a parked work that its stream holds: the work ends with it.
#[derive(Debug)]
pub(super) struct Ticket<W> {
    turns: Arc<Turns<W>>,
    number: u64,
}

impl<W> Turns<W> {
    pub(super) fn new(max: usize) -> Arc<Self> {
        let parked = Parked { next: 0, works: BTreeMap::new() };
        Arc::new(Self { free: Arc::new(Semaphore::new(max)), parked: Mutex::new(parked) })
    }

    /// `None` if none has come within this time.
    pub(super) async fn take(&self, patience: Duration) -> Option<Turn> {
        let ends = Instant::now() + patience;
        let mut turn = pin!(Arc::clone(&self.free).acquire_owned());
        loop {
            if self.free.available_permits() == 0 {
                self.drop_unread();
            }
            let left = ends.saturating_duration_since(Instant::now());
            if let Ok(permit) = timeout(left.min(LOOK), &mut turn).await {
                return permit.ok().map(|permit| Turn { _permit: permit });
            }
            if left <= LOOK {
                return None;
            }
        }
    }

    /// Puts a work aside until its client comes for more.
    pub(super) fn park(self: Arc<Self>, work: W, turn: Turn) -> Ticket<W> {
        let mut parked = self.lock();
        let number = parked.next;
        parked.next += 1;
        parked.works.insert(number, Waiting { since: Instant::now(), work, turn });
        drop(parked);
        Ticket { turns: self, number }
    }

    fn drop_unread(&self) {
        let mut parked = self.lock();
        let before = parked.works.len();
        parked.works.retain(|_, waiting| waiting.since.elapsed() < UNREAD);
        let streams = before - parked.works.len();
        drop(parked);
        if streams > 0 {
            tracing::warn!(streams, "streams that nobody reads have lost their turns");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Parked<W>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<W> Ticket<W> {
    /// `None` if the work has lost its turn.
    pub(super) fn resume(self) -> Option<(W, Turn)> {
        let waiting = self.turns.lock().works.remove(&self.number);
        waiting.map(|Waiting { work, turn, .. }| (work, turn))
    }

    /// Of a work that has lost its turn.
    #[cfg(test)]
    pub(super) fn lost() -> Self {
        Self { turns: Turns::new(1), number: 0 }
    }

    pub(super) fn turns(&self) -> Arc<Turns<W>> {
        Arc::clone(&self.turns)
    }
}

impl<W> Drop for Ticket<W> {
    fn drop(&mut self) {
        self.turns.lock().works.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    async fn take<W>(turns: &Turns<W>) -> Turn {
        turns.take(PATIENCE).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_work_that_nobody_comes_for_gives_way_to_one_that_waits() {
        let turns = Turns::new(2);
        let turn = take(&turns).await;
        let read = turns.clone().park("read", turn);
        let turn = take(&turns).await;
        let unread = turns.clone().park("unread", turn);
        assert!(turns.take(PATIENCE).await.is_none(), "both may still be read");
        tokio::time::sleep(UNREAD - PATIENCE).await;
        let (work, turn) = read.resume().unwrap();
        let read = turns.clone().park(work, turn);
        let turn = turns.take(Duration::from_millis(1)).await.expect("even for the impatient");
        assert!(unread.resume().is_none(), "it has lost its turn");
        assert!(turns.take(PATIENCE).await.is_none(), "there are two turns, and not three");
        assert_eq!(read.resume().unwrap().0, "read");
        drop(turn);
        take(&turns).await;
    }

    #[tokio::test(start_paused = true)]
    async fn as_long_as_there_are_turns_a_work_may_wait_for_ever() {
        let turns = Turns::new(2);
        let turn = take(&turns).await;
        let unread = turns.clone().park("unread", turn);
        tokio::time::sleep(100 * UNREAD).await;
        drop(take(&turns).await);
        assert_eq!(unread.resume().unwrap().0, "unread");
    }

    #[tokio::test]
    async fn a_client_that_goes_away_takes_its_work_and_its_turn_with_it() {
        let work = Arc::new(());
        let turns = Turns::new(1);
        let turn = take(&turns).await;
        drop(turns.clone().park(Arc::clone(&work), turn));
        assert_eq!(Arc::strong_count(&work), 1);
        take(&turns).await;
    }
}
