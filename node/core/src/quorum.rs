//! How many replicas an operation needs, counted in every ring in force.
//!
//! Quorum sizes come from the layout alone. An operation has its quorum when each replica set has it, and one
//! node may count in several sets; it has become impossible as soon as one set can no longer reach its size.

use crate::id::NodeId;
use crate::mutant::{Mutant, is_on};

/// What a request asks for; `Quorum` is a majority of the replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Consistency {
    One,
    #[default]
    Quorum,
    All,
}

/// What an acknowledged write has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Durability {
    /// Written to the log, synced soon: it survives the process, not the machine's power.
    Periodic,
    /// Synced to disk.
    #[default]
    Synced,
}

impl Consistency {
    /// How many of `replicas` make this level; never more than there are, and at least one.
    pub fn needed(self, replicas: usize) -> usize {
        match self {
            Self::One => 1,
            Self::Quorum => replicas / 2 + 1,
            Self::All => replicas.max(1),
        }
    }
}

/// The replica sets that an operation on one partition has to satisfy: one, or two while data moves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplicaSets(Vec<Vec<NodeId>>);

impl ReplicaSets {
    pub fn new(sets: Vec<Vec<NodeId>>) -> Self {
        Self(sets)
    }

    /// Every replica once, in the order of the sets.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.0.iter().enumerate().flat_map(move |(at, set)| {
            let is_new = move |node: &&NodeId| !self.0.iter().take(at).any(|earlier| earlier.contains(node));
            set.iter().filter(is_new).copied()
        })
    }

    /// True if the nodes for which `counts` holds make the level in every set.
    pub fn satisfied(&self, level: Consistency, counts: impl Fn(&NodeId) -> bool) -> bool {
        let ignored = usize::from(self.0.len() > 1 && is_on(Mutant::TheNewRingIsEnough));
        let mut counted = self.0.iter().skip(ignored);
        counted.all(|set| set.iter().filter(|node| counts(node)).count() >= level.needed(set.len()))
    }

    /// In how many sets a node is: while data moves, one that is in both counts twice.
    pub fn memberships(&self, node: NodeId) -> usize {
        self.0.iter().filter(|set| set.contains(&node)).count()
    }

    /// True if a node is in a set in which those for which `counts` holds do not make the level yet.
    pub fn is_missed(&self, node: NodeId, level: Consistency, counts: impl Fn(&NodeId) -> bool) -> bool {
        let lacks =
            |set: &&Vec<NodeId>| set.iter().filter(|node| counts(node)).count() < level.needed(set.len());
        self.0.iter().filter(lacks).any(|set| set.contains(&node))
    }

    /// True if the nodes for which `counts` holds, `of` never among them, share a replica with whatever else made a
    /// quorum together with it: N - W + 1 others of the first set, whose replicas have everything. All of them together
    /// know what it may have lost: while data moves, whatever was acknowledged has a quorum there as well. So has it in the
    /// second set, of which those know the same that have taken over (`has_taken_over`) what the first one held.
    pub fn makes_whole(
        &self,
        of: NodeId,
        counts: impl Fn(&NodeId) -> bool,
        has_taken_over: impl Fn(&NodeId) -> bool,
    ) -> bool {
        self.0.iter().enumerate().any(|(at, set)| {
            let knows = |node: &NodeId| at == 0 || has_taken_over(node) || is_on(Mutant::NewcomersHeal);
            let others = set.iter().filter(|node| **node != of && counts(node) && knows(node)).count();
            let spare = set.len() - Consistency::Quorum.needed(set.len());
            others > spare || is_on(Mutant::OneFewerHeals) && others == spare
        })
    }

    /// The largest number that any set needs: what error messages call `needed`.
    pub fn needed(&self, level: Consistency) -> usize {
        self.0.iter().map(|set| level.needed(set.len())).max().unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    #[test]
    fn levels_of_common_sizes() {
        for (replicas, quorum) in [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4)] {
            assert_eq!(Consistency::One.needed(replicas), 1);
            assert_eq!(Consistency::Quorum.needed(replicas), quorum);
            assert_eq!(Consistency::All.needed(replicas), replicas);
        }
    }

    #[test]
    fn every_set_has_to_be_satisfied() {
        let sets = ReplicaSets::new(vec![vec![node(1), node(2), node(3)], vec![node(3), node(4), node(5)]]);
        assert_eq!(sets.nodes().collect::<Vec<_>>(), [1, 2, 3, 4, 5].map(node));
        assert!(!sets.satisfied(Consistency::Quorum, |n| [node(1), node(2)].contains(n)));
        assert!(sets.satisfied(Consistency::Quorum, |n| [node(1), node(3), node(4)].contains(n)));
    }

    proptest! {
        #[test]
        fn what_makes_a_replica_whole_meets_every_quorum_that_it_was_in(replicas in 1usize..8, a in any::<u8>(), b in any::<u8>()) {
            let sets = ReplicaSets::new(vec![(0..replicas).map(|n| node(n as u8)).collect()]);
            let [a, b] = [a | 1, b].map(|bits| move |n: &NodeId| bits & 1 << n.0[0] != 0);
            let of = node(0);
            if sets.satisfied(Consistency::Quorum, a) && sets.makes_whole(of, b, |_| false) {
                prop_assert!((1..replicas).any(|n| a(&node(n as u8)) && b(&node(n as u8))));
            }
        }

        #[test]
        fn two_quorums_share_a_replica(replicas in 1usize..8, a in any::<u8>(), b in any::<u8>()) {
            let sets = ReplicaSets::new(vec![(0..replicas).map(|n| node(n as u8)).collect()]);
            let [a, b] = [a, b].map(|bits| move |n: &NodeId| bits & 1 << n.0[0] != 0);
            if sets.satisfied(Consistency::Quorum, a) && sets.satisfied(Consistency::Quorum, b) {
                prop_assert!((0..replicas).any(|n| a(&node(n as u8)) && b(&node(n as u8))));
            }
        }
    }
}
