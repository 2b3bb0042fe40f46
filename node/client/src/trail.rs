//! The attempts at one request: who has been asked in this round, how many rounds there were, and when the next
//! attempt may start.
//!
//! Rounds are bounded by number and by the deadline, with a jittered pause between them that doubles: a cluster in
//! trouble is not buried under the retries of its clients.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;

use crate::node::Node;
use crate::options::Patience;
use crate::verdict::Retry;

/// With the pauses below, about two seconds of trying: longer than the gap that the death of a node leaves.
const ROUNDS_MAX: u32 = 8;
const PAUSE_FIRST: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_millis(500);

pub(crate) struct Trail {
    asked: Vec<Arc<Node>>,
    rounds: u32,
    rounds_max: u32,
}

/// What follows a failed attempt.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    GiveUp,
    TryAfter(Duration),
}

impl Trail {
    pub(crate) fn new(patience: Patience) -> Self {
        Self {
            asked: Vec::new(),
            rounds: 0,
            rounds_max: match patience {
                Patience::OneRound => 1,
                Patience::Rounds => ROUNDS_MAX,
            },
        }
    }

    pub(crate) fn has_asked(&self, node: &Arc<Node>) -> bool {
        self.asked.iter().any(|asked| Arc::ptr_eq(asked, node))
    }

    pub(crate) fn note(&mut self, node: Arc<Node>) {
        self.asked.push(node);
    }

    /// `others_left`: nodes remain that were not asked in this round.
    pub(crate) fn next(&mut self, retry: Retry, others_left: bool) -> Next {
        match retry {
            Retry::Never => Next::GiveUp,
            Retry::Elsewhere | Retry::ElsewhereOnce if others_left => Next::TryAfter(Duration::ZERO),
            Retry::ElsewhereOnce => Next::GiveUp,
            Retry::Elsewhere | Retry::Later => self.pause(others_left),
        }
    }

    fn pause(&mut self, others_left: bool) -> Next {
        self.rounds += 1;
        if self.rounds >= self.rounds_max {
            return Next::GiveUp;
        }
        if !others_left {
            self.asked.clear();
        }
        let pause = (PAUSE_FIRST * 2u32.pow(self.rounds - 1)).min(PAUSE_MAX);
        Next::TryAfter(jittered(pause))
    }
}

/// Half to one and a half times as long, so that clients that failed together do not return together.
pub(crate) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..1.5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_come_to_an_end() {
        let mut trail = Trail::new(Patience::Rounds);
        let mut pauses = Vec::new();
        while let Next::TryAfter(pause) = trail.next(Retry::Elsewhere, false) {
            pauses.push(pause);
        }
        assert_eq!(pauses.len(), 7);
        assert!(pauses.iter().all(|pause| *pause > Duration::ZERO && *pause < PAUSE_MAX * 2));
        let total: Duration = pauses.iter().sum();
        assert!(total < Duration::from_secs(3), "{total:?}");
    }

    #[test]
    fn whoever_was_not_asked_is_asked_at_once() {
        let mut trail = Trail::new(Patience::Rounds);
        assert_eq!(trail.next(Retry::Elsewhere, true), Next::TryAfter(Duration::ZERO));
        assert_eq!(trail.next(Retry::ElsewhereOnce, true), Next::TryAfter(Duration::ZERO));
        assert_eq!(trail.next(Retry::ElsewhereOnce, false), Next::GiveUp);
        assert_eq!(trail.next(Retry::Never, true), Next::GiveUp);
        let pause = trail.next(Retry::Later, true);
        assert!(matches!(pause, Next::TryAfter(pause) if !pause.is_zero()), "{pause:?}");
    }
}
