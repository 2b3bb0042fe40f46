//! Placement: which nodes hold which partitions of a new ring.
//!
//! Deterministic in the members alone. Never two replicas of a partition on one node; over `min(RF, zones)`
//! zones; balanced by weight as far as the zones allow. Greedy: each partition takes the least loaded node of a
//! zone that it does not use yet, and once every zone is used, of any. Moving a ring to other members is another
//! computation and does not live here.

use std::cmp::Ordering;

use crate::id::{Epoch, NodeId};
use crate::partition::PartitionCount;
use crate::ring::{Replica, Ring};

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
}

impl Load<'_> {
    /// Orders by the load that one more partition would make, in parts of the weight; ties go to the lower UUID.
    fn cmp(&self, other: &Self) -> Ordering {
        let ours = (self.partitions + 1) * u64::from(other.candidate.weight);
        let theirs = (other.partitions + 1) * u64::from(self.candidate.weight);
        ours.cmp(&theirs).then_with(|| self.candidate.node.cmp(&other.candidate.node))
    }
}

/// Places all partitions on `candidates`, each on `replication_factor` nodes or on all where there are fewer.
pub fn place(
    candidates: &[Candidate],
    partitions: PartitionCount,
    replication_factor: usize,
    since: Epoch,
) -> Ring {
    let mut loads: Vec<_> =
        candidates.iter().map(|candidate| Load { candidate, partitions: 0, first: 0 }).collect();
    loads.sort_by_key(|load| load.candidate.node);
    let ring = partitions.all().map(|_| place_one(&mut loads, replication_factor, since)).collect();
    Ring::new(ring)
}

/// Stand-in.
pub fn rearrange(
    current: &Ring,
    candidates: &[Candidate],
    partitions: PartitionCount,
    replication_factor: usize,
    since: Epoch,
) -> Ring {
    let fresh = place(candidates, partitions, replication_factor, since);
    let kept = |partition, replica: &Replica| {
        let before = current.replicas(partition).iter().find(|before| before.node == replica.node);
        before.copied().unwrap_or(*replica)
    };
    Ring::new(fresh.iter().map(|(p, replicas)| replicas.iter().map(|r| kept(p, r)).collect()).collect())
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
    fn a_heavier_node_holds_more() {
        let mut candidates = candidates(&[0, 0, 0, 0]);
        candidates[0].weight = 2;
        let ring = place_on(&candidates, 1);
        let owned: Vec<_> = candidates.iter().map(|c| ring.owned(c.node)).collect();
        assert!(owned[0].abs_diff(102) <= 1 && owned[1..].iter().all(|o| o.abs_diff(51) <= 1), "{owned:?}");
    }
}
