//! Who may send a request, and since when it is due: the tickets that all clients take theirs from.
//!
//! In a closed loop a ticket is there for whoever comes. In an open loop tickets appear as they are due, let out by
//! a thread of its own, since tokio's timers are as coarse as many a latency; whoever takes one late still has to
//! count from when it was due, so that a store which stalls cannot hide it by holding its clients up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::schedule::Schedule;

/// Tickets are let out at most so often; several at a time if need be.
const PAUSE_MIN: Duration = Duration::from_micros(50);
/// How long it may go unnoticed that all is over.
const PAUSE_MAX: Duration = Duration::from_millis(50);

pub(super) struct Tickets {
    begun: Instant,
    operations_max: u64,
    taken: AtomicU64,
    pace: Option<Pace>,
    stop: CancellationToken,
}

struct Pace {
    schedule: Schedule,
    due: Semaphore,
    let_out: AtomicU64,
}

impl Tickets {
    /// They begin now. With a schedule somebody has to [`Tickets::let_out`].
    pub(super) fn new(operations_max: u64, schedule: Option<Schedule>, stop: CancellationToken) -> Self {
        let pace = |schedule| Pace { schedule, due: Semaphore::new(0), let_out: AtomicU64::new(0) };
        Self {
            begun: Instant::now(),
            operations_max,
            taken: AtomicU64::new(0),
            pace: schedule.map(pace),
            stop,
        }
    }

    /// Since when a request is due that is to be sent now; `None` once there are to be no more.
    pub(super) async fn next(&self) -> Option<Instant> {
        if self.stop.is_cancelled() {
            return None;
        }
        if let Some(pace) = &self.pace {
            pace.due.acquire().await.ok()?.forget();
        }
        let number = self.taken.fetch_add(1, Ordering::Relaxed);
        if number >= self.operations_max {
            return None;
        }
        Some(match &self.pace {
            Some(pace) => self.begun + pace.schedule.due(number),
            None => Instant::now(),
        })
    }

    /// Lets tickets out as they are due, until there are to be no more. Blocks its thread.
    pub(super) fn let_out(&self) {
        let Some(Pace { schedule, due, let_out }) = &self.pace else { return };
        let mut count = 0;
        while !self.stop.is_cancelled() && count < self.operations_max {
            let elapsed = self.begun.elapsed();
            let more = schedule.due_by(elapsed).min(self.operations_max) - count;
            count += more;
            // Before they can be taken.
            let_out.store(count, Ordering::Relaxed);
            due.add_permits(usize::try_from(more).expect("no schedule has more in one pause"));
            let until_next = schedule.due(count).saturating_sub(elapsed);
            thread::sleep(until_next.clamp(PAUSE_MIN, PAUSE_MAX));
        }
        if self.stop.is_cancelled() {
            due.close();
        } else {
            // Whoever waits finds that there are no more.
            due.add_permits(Semaphore::MAX_PERMITS / 2);
        }
    }

    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed).min(self.operations_max)
    }

    /// How many are due and were not taken: all clients are waiting for answers.
    pub(super) fn overdue(&self) -> u64 {
        let let_out = |pace: &Pace| pace.let_out.load(Ordering::Relaxed);
        self.pace.as_ref().map_or(0, let_out).saturating_sub(self.taken())
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(super) fn are_over(&self) -> bool {
        self.stop.is_cancelled() || self.taken() == self.operations_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn there_are_as_many_tickets_as_operations() {
        let tickets = Tickets::new(3, None, CancellationToken::new());
        for _ in 0..3 {
            assert!(!tickets.are_over());
            assert!(tickets.next().await.is_some());
        }
        assert!(tickets.next().await.is_none());
        assert!(tickets.next().await.is_none());
        assert_eq!((tickets.taken(), tickets.overdue(), tickets.are_over()), (3, 0, true));
    }

    #[tokio::test]
    async fn whoever_takes_a_ticket_late_counts_from_when_it_was_due() {
        let tickets = Arc::new(Tickets::new(5, Some(Schedule::new(1e6)), CancellationToken::new()));
        let letting_out = tokio::task::spawn_blocking({
            let tickets = tickets.clone();
            move || tickets.let_out()
        });
        letting_out.await.unwrap();
        assert_eq!((tickets.taken(), tickets.overdue()), (0, 5), "all are due, and nobody has come");
        for number in 0..5 {
            let due = tickets.next().await.unwrap();
            assert_eq!(due - tickets.begun, Duration::from_micros(number));
        }
        assert!(tickets.next().await.is_none());
        assert_eq!((tickets.taken(), tickets.overdue()), (5, 0));
    }

    #[tokio::test]
    async fn nobody_waits_for_a_ticket_once_it_is_over() {
        let stop = CancellationToken::new();
        let tickets = Arc::new(Tickets::new(u64::MAX, Some(Schedule::new(0.001)), stop.clone()));
        let letting_out = tokio::task::spawn_blocking({
            let tickets = tickets.clone();
            move || tickets.let_out()
        });
        assert!(tickets.next().await.is_some(), "the first is due at once");
        let (second, ()) = tokio::join!(tickets.next(), async { stop.cancel() });
        assert!(second.is_none());
        letting_out.await.unwrap();
    }
}
