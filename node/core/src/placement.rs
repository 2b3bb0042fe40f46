//! Placement: which nodes hold which partitions.
//!
//! [`place`] makes the first ring, deterministic in the members alone. Never two replicas of a partition on one node;
//! over `min(RF, zones)` zones; balanced by weight as far as the zones allow. Greedy: each partition takes the least
//! loaded node of a zone that it does not use yet, and once every zone is used, of any.
//!
//! [`rearrange()`] makes every later ring from the one before, exactly balanced and with the fewest moves.

mod flow;
mod share;
mod rearrange;

use std::cmp::Ordering;
use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::id::{Epoch, NodeId};
use crate::partition::{Partition, PartitionCount};
use crate::ring::{Replica, Ring};

pub use rearrange::rearrange;

/// A node as placement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub node: NodeId,
    pub zone: String,
    /// The share of partitions relative to others; at least 1.
    pub weight: u32,
}

struct Load<'a> {
    candidate: &'a Candidate,
    partitions: u64,
    first: u64,
    /// For the partition that is being placed.
    rank: u64,
}

impl Load<'_> {
    /// Orders by the load that one more partition would make, in parts of the weight; ties go by rank.
    fn cmp(&self, other: &Self) -> Ordering {
        let ours = (self.partitions + 1) * u64::from(other.candidate.weight);
        let theirs = (other.partitions + 1) * u64::from(self.candidate.weight);
        let rank = |load: &Self| (load.rank, load.candidate.node);
        ours.cmp(&theirs).then_with(|| rank(self).cmp(&rank(other)))
    }
}

/// Where a node comes among those that are equally good for a partition: another order for each partition. So a node
/// shares its partitions with many others, and all of them can take over when it leaves. Were they few, even the least
/// that can be moved would be more than the node held.
fn rank(partition: Partition, node: NodeId) -> u64 {
    xxh3_64_with_seed(&node.0, partition.0.into())
}

/// Whom a partition is given to, of `candidates` that hold so many already: whoever has the least for its weight first,
/// ties as in [`place`].
pub(crate) fn fewest_first(
    partition: Partition,
    candidates: &[Candidate],
    owned: &BTreeMap<NodeId, u64>,
) -> Vec<NodeId> {
    let held = |node| owned.get(&node).copied().unwrap_or(0);
    let mut loads: Vec<_> = candidates
        .iter()
        .map(|candidate| Load {
            candidate,
            partitions: held(candidate.node),
            first: 0,
            rank: rank(partition, candidate.node),
        })
        .collect();
    loads.sort_by(Load::cmp);
    loads.into_iter().map(|load| load.candidate.node).collect()
}

/// Places all partitions on `candidates`, each on `replication_factor` nodes or on all where there are fewer.
pub fn place(
    candidates: &[Candidate],
    partitions: PartitionCount,
    replication_factor: usize,
    since: Epoch,
) -> Ring {
    let mut loads: Vec<_> =
        candidates.iter().map(|candidate| Load { candidate, partitions: 0, first: 0, rank: 0 }).collect();
    loads.sort_by_key(|load| load.candidate.node);
    let place = |partition| {
        for load in &mut loads {
            load.rank = rank(partition, load.candidate.node);
        }
        place_one(&mut loads, replication_factor, since)
    };
    Ring::new(partitions.all().map(place).collect())
}

fn place_one(loads: &mut [Load<'_>], replication_factor: usize, since: Epoch) -> Vec<Replica> {
    let mut chosen: Vec<usize> = Vec::with_capacity(replication_factor);
    while chosen.len() < replication_factor.min(loads.len()) {
        let zone_is_used = |load: &Load<'_>| {
            chosen.iter().filter_map(|i| loads.get(*i)).any(|c| c.candidate.zone == load.candidate.zone)
        };
        let free = || loads.iter().enumerate().filter(|(i, _)| !chosen.contains(i));
        let best = free()
            .filter(|(_, load)| !zone_is_used(load))
            .min_by(|(_, a), (_, b)| a.cmp(b))
            .or_else(|| free().min_by(|(_, a), (_, b)| a.cmp(b)));
        let Some((index, _)) = best else { break };
        chosen.push(index);
    }
    // The first replica is asked first by reads: take turns at it as at everything else.
    chosen.sort_by_key(|i| loads.get(*i).map(|load| (load.first, load.candidate.node)));
    for (position, index) in chosen.iter().enumerate() {
        if let Some(load) = loads.get_mut(*index) {
            load.partitions += 1;
            load.first += u64::from(position == 0);
        }
    }
    chosen
        .iter()
        .filter_map(|i| loads.get(*i))
        .map(|load| Replica { node: load.candidate.node, since })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn candidates(zones: &[u8]) -> Vec<Candidate> {
        let candidate = |(i, zone): (usize, &u8)| Candidate {
            node: NodeId([i as u8 + 1; 16]),
            zone: format!("zone-{zone}"),
            weight: 1,
        };
        zones.iter().enumerate().map(candidate).collect()
    }

    fn place_on(candidates: &[Candidate], rf: usize) -> Ring {
        place(candidates, PartitionCount::new(256).unwrap(), rf, Epoch(1))
    }

    proptest! {
        #[test]
        fn replicas_are_distinct_and_spread_over_zones(zones in prop::collection::vec(0u8..4, 1..9), rf in 1usize..6) {
            let candidates = candidates(&zones);
            let count = zones.iter().collect::<BTreeSet<_>>().len();
            let zone_of = |node| &candidates.iter().find(|c| c.node == node).unwrap().zone;
            for (_, replicas) in place_on(&candidates, rf).iter() {
                let nodes: BTreeSet<_> = replicas.iter().map(|r| r.node).collect();
                prop_assert_eq!(nodes.len(), rf.min(zones.len()));
                let zones: BTreeSet<_> = replicas.iter().map(|r| zone_of(r.node)).collect();
                prop_assert_eq!(zones.len(), count.min(nodes.len()));
            }
        }

        #[test]
        fn without_zones_nodes_differ_by_one_partition_at_most(nodes in 1usize..12, rf in 1usize..6) {
            let candidates = candidates(&vec![0; nodes]);
            let ring = place_on(&candidates, rf);
            let owned: Vec<_> = candidates.iter().map(|c| ring.owned(c.node)).collect();
            prop_assert!(owned.iter().max().unwrap() - owned.iter().min().unwrap() <= 1, "{:?}", owned);
        }

        #[test]
        fn the_order_of_members_does_not_matter(zones in prop::collection::vec(0u8..4, 1..9)) {
            let mut candidates = candidates(&zones);
            let ring = place_on(&candidates, 3);
            candidates.reverse();
            prop_assert_eq!(place_on(&candidates, 3), ring);
        }
    }

    #[test]
    fn equal_zones_are_balanced_and_take_turns_at_being_first() {
        let candidates = candidates(&[1, 2, 3, 1, 2, 3]);
        let ring = place_on(&candidates, 3);
        for c in &candidates {
            assert_eq!(ring.owned(c.node), 128);
            let first = ring.iter().filter(|(_, replicas)| replicas[0].node == c.node).count();
            assert!((38..=48).contains(&first), "{first}");
        }
    }

    #[test]
    fn a_node_shares_its_partitions_with_all_others() {
        let candidates = candidates(&[0; 9]);
        let ring = place_on(&candidates, 3);
        for c in &candidates {
            let shared = ring.iter().filter(|(partition, _)| ring.is_replica(*partition, c.node));
            let others: BTreeSet<_> = shared.flat_map(|(_, replicas)| replicas).map(|r| r.node).collect();
            assert_eq!(others.len(), 9);
            let rest: Vec<_> = candidates.iter().filter(|other| other.node != c.node).cloned().collect();
            let left = rearrange(&ring, &rest, PartitionCount::new(256).unwrap(), 3, Epoch(2));
            let new = left.iter().flat_map(|(_, replicas)| replicas).filter(|r| r.since == Epoch(2)).count();
            assert_eq!(new, ring.owned(c.node));
        }
    }

    #[test]
    fn a_heavier_node_holds_more() {
        let mut candidates = candidates(&[0, 0, 0, 0]);
        candidates[0].weight = 2;
        let ring = place_on(&candidates, 1);
        let owned: Vec<_> = candidates.iter().map(|c| ring.owned(c.node)).collect();
        assert!(owned[0].abs_diff(102) <= 1 && owned[1..].iter().all(|o| o.abs_diff(51) <= 1), "{owned:?}");
    }
}
