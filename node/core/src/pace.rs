//! How quickly the other nodes answer reads: who is asked last for a while, and how long a read waits for one replica
//! before it asks another as well.
//!
//! Asking again after what is usual (Dean and Barroso, The Tail at Scale, 2013) helps against one replica that is slow.
//! Where all are slow since there is too much to do, it would only add to that: so what is usual is what the quickest
//! of the others needs.

use std::collections::BTreeMap;

use crate::id::NodeId;

/// How long a replica that was late once is asked after the others, unless it answers in time meanwhile: one that stops
/// again and again costs little more than one that stopped for good.
const SLOW_MS: u64 = 5_000;
/// A read waits for so many times what is usual.
const PATIENCE: u64 = 2;
/// What is usual follows each answer by one part in so many.
const SMOOTHING: u64 = 8;
/// Of what is kept, a millisecond.
const MS: u64 = 64;

#[derive(Debug, Default)]
pub(crate) struct Paces(BTreeMap<NodeId, Pace>);

#[derive(Debug, Default)]
struct Pace {
    /// How long its answers take, smoothed; `None` before the first.
    usual: Option<u64>,
    slow_until_ms: u64,
}

impl Paces {
    /// A node has answered a read after so long, where one waits for `patience_ms`.
    pub(crate) fn note(&mut self, node: NodeId, waited_ms: u64, patience_ms: u64) {
        let pace = self.0.entry(node).or_default();
        if waited_ms <= patience_ms {
            pace.slow_until_ms = 0;
        }
        let waited = waited_ms.saturating_mul(MS);
        pace.usual = Some(match pace.usual {
            None => waited,
            Some(usual) => usual - usual / SMOOTHING + waited / SMOOTHING,
        });
    }

    /// A node should have answered by now.
    pub(crate) fn mark_late(&mut self, node: NodeId, now_ms: u64) {
        self.0.entry(node).or_default().slow_until_ms = now_ms + SLOW_MS;
    }

    pub(crate) fn is_slow(&self, node: NodeId, now_ms: u64) -> bool {
        self.0.get(&node).is_some_and(|pace| pace.slow_until_ms > now_ms)
    }

    /// How long to wait for an answer, at least `least_ms`, where these may answer.
    pub(crate) fn patience_ms(&self, least_ms: u64, may_answer: impl Fn(NodeId) -> bool) -> u64 {
        let usual = self.0.iter().filter(|(node, _)| may_answer(**node)).filter_map(|(_, pace)| pace.usual);
        usual.min().map_or(least_ms, |usual| least_ms.max(PATIENCE * usual / MS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId([1; 16]);
    const B: NodeId = NodeId([2; 16]);

    fn paces(of_a: u64, of_b: u64) -> Paces {
        let mut paces = Paces::default();
        for _ in 0..100 {
            paces.note(A, of_a, 20);
            paces.note(B, of_b, 20);
        }
        paces
    }

    #[test]
    fn one_slow_replica_is_not_waited_for() {
        assert_eq!(Paces::default().patience_ms(20, |_| true), 20);
        assert_eq!(paces(1, 500).patience_ms(20, |_| true), 20);
        assert_eq!(paces(500, 1).patience_ms(20, |_| true), 20);
    }

    #[test]
    fn where_all_are_slow_nobody_else_is_asked_earlier() {
        let patience_ms = paces(100, 300).patience_ms(20, |_| true);
        assert!((190..=200).contains(&patience_ms), "{patience_ms}");
        let of_b = paces(1, 300).patience_ms(20, |node| node == B);
        assert!((590..=600).contains(&of_b), "one that cannot answer says nothing of what is usual: {of_b}");
    }

    #[test]
    fn what_is_usual_comes_back_after_an_overload() {
        let mut paces = paces(1_000, 1_000);
        for _ in 0..50 {
            paces.note(A, 1, 20);
        }
        assert_eq!(paces.patience_ms(20, |_| true), 20);
    }

    #[test]
    fn a_late_replica_is_slow_until_it_answers_in_time_or_for_a_while() {
        let mut paces = Paces::default();
        paces.mark_late(A, 10);
        assert!(paces.is_slow(A, 10) && !paces.is_slow(B, 10));
        assert!(!paces.is_slow(A, 10 + SLOW_MS));
        paces.note(A, 21, 20);
        assert!(paces.is_slow(A, 10), "late once more");
        paces.note(A, 20, 20);
        assert!(!paces.is_slow(A, 10));
    }
}
