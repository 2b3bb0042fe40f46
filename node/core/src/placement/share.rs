//! Fair shares: how many partitions each node would hold if partitions could be split.
//!
//! By weight, as far as two limits allow. A node holds no partition twice. And each partition is spread: where there
//! are at least as many zones as replicas, a zone has at most one replica of each partition; where there are fewer,
//! at least one. A zone that would have more than one by weight, or less, is *bound*: it has exactly one of each.
//! Within a bound zone weights decide, and what it leaves to the others, or takes from them, is again by weight.
//!
//! These are the shares whose largest load per weight is the least possible, then the second largest, and so on
//! (Fujishige, "Lexicographically optimal base of a polymatroid", 1980): no replica could go from a node to one that
//! has less for its weight. They depend on the candidates alone. Rounding them is the rearrangement's business.

use std::collections::BTreeMap;

use crate::id::NodeId;

use super::Candidate;
use super::flow::{Bounds, narrow};

/// What all shares are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Demand {
    pub(super) partitions: u64,
    /// Of each partition; at most one for each node.
    pub(super) replicas: u64,
}

/// A node's fair share: `amount / of` partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    amount: u64,
    of: u64,
}

impl Share {
    /// Rounded down and up.
    pub(super) fn bounds(self) -> Bounds {
        Bounds::rounding(self.amount, self.of)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeShare {
    pub(super) node: NodeId,
    pub(super) share: Share,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ZoneShare {
    /// How many replicas of each partition.
    pub(super) replicas: Bounds,
    /// Ordered by UUID.
    pub(super) nodes: Vec<NodeShare>,
}

/// The candidates of one zone and their weight together.
struct Zone<'a> {
    candidates: Vec<&'a Candidate>,
    weight: u64,
}

/// The shares of all nodes, zone by zone. Candidates are ordered by UUID, each once.
pub(super) fn fair_shares(candidates: &[&Candidate], demand: Demand) -> Vec<ZoneShare> {
    let zones = zones(candidates);
    let zone_count = zones.len() as u64;
    if demand.replicas <= zone_count {
        at_most_one_in_each(&zones, demand)
    } else {
        at_least_one_in_each(&zones, demand)
    }
}

fn zones<'a>(candidates: &[&'a Candidate]) -> Vec<Zone<'a>> {
    let mut zones: BTreeMap<&str, Zone<'a>> = BTreeMap::new();
    for candidate in candidates {
        let zone = zones.entry(&candidate.zone).or_insert(Zone { candidates: Vec::new(), weight: 0 });
        zone.candidates.push(candidate);
        zone.weight += weight(candidate);
    }
    zones.into_values().collect()
}

fn weight(candidate: &Candidate) -> u64 {
    candidate.weight.max(1).into()
}

fn at_most_one_in_each(zones: &[Zone<'_>], demand: Demand) -> Vec<ZoneShare> {
    let level = Level::of(zones.iter().map(|zone| zone.weight), demand.partitions, demand.replicas);
    let share = |zone: &Zone<'_>| {
        if level.is_above(zone.weight) {
            zone.bound(demand)
        } else {
            zone.by_level(level, Bounds { min: 0, max: 1 })
        }
    };
    zones.iter().map(share).collect()
}

fn at_least_one_in_each(zones: &[Zone<'_>], demand: Demand) -> Vec<ZoneShare> {
    // Each bound zone takes from the others, so that more of them may fall short.
    let mut bound = vec![false; zones.len()];
    loop {
        let free = || zones.iter().zip(&bound).filter(|(_, is_bound)| !**is_bound).map(|(zone, _)| zone);
        let bound_count = (zones.len() - free().count()) as u64;
        let weights = free().flat_map(|zone| &zone.candidates).map(|candidate| weight(candidate));
        let level = Level::of(weights, demand.partitions, demand.replicas - bound_count);
        let falls_short: Vec<_> = zones.iter().map(|zone| level.is_below(zone.weight)).collect();
        if falls_short.iter().zip(&bound).all(|(falls_short, is_bound)| *is_bound || !falls_short) {
            let replicas = Bounds { min: 1, max: narrow(demand.replicas - (zones.len() as u64 - 1)) };
            let share = |(zone, is_bound): (&Zone<'_>, &bool)| {
                if *is_bound { zone.bound(demand) } else { zone.by_level(level, replicas) }
            };
            return zones.iter().zip(&bound).map(share).collect();
        }
        for (is_bound, falls_short) in bound.iter_mut().zip(falls_short) {
            *is_bound |= falls_short;
        }
    }
}

impl Zone<'_> {
    /// One replica of each partition.
    fn bound(&self, demand: Demand) -> ZoneShare {
        let share = |weight| Share { amount: demand.partitions * weight, of: self.weight };
        self.shared(Bounds { min: 1, max: 1 }, share)
    }

    fn by_level(&self, level: Level, replicas: Bounds) -> ZoneShare {
        self.shared(replicas, |weight| level.share(weight))
    }

    fn shared(&self, replicas: Bounds, share: impl Fn(u64) -> Share) -> ZoneShare {
        let node =
            |candidate: &&Candidate| NodeShare { node: candidate.node, share: share(weight(candidate)) };
        ZoneShare { replicas, nodes: self.candidates.iter().map(node).collect() }
    }
}

/// How high partitions stand where they are poured over weights, none of which takes more than all of them once:
/// `amount / weight` for each unit of weight that is not full. 64 members, each of the greatest weight, and 4096
/// partitions stay far below 2^64 in all products.
#[derive(Debug, Clone, Copy)]
struct Level {
    amount: u64,
    weight: u64,
    full: u64,
}

impl Level {
    /// Pours `times` all partitions. At most as often as there are weights.
    fn of(weights: impl Iterator<Item = u64>, partitions: u64, times: u64) -> Self {
        let mut weights: Vec<_> = weights.collect();
        weights.sort_unstable_by(|a, b| b.cmp(a));
        let mut level = Self { amount: partitions * times, weight: weights.iter().sum(), full: partitions };
        for weight in weights {
            if !level.is_above(weight) {
                break;
            }
            level.amount -= level.full;
            level.weight -= weight;
        }
        level
    }

    /// True if a weight would take more than all partitions once.
    fn is_above(self, weight: u64) -> bool {
        weight * self.amount > self.full * self.weight
    }

    /// True if a weight would take less than all partitions once.
    fn is_below(self, weight: u64) -> bool {
        weight * self.amount < self.full * self.weight
    }

    fn share(self, weight: u64) -> Share {
        if self.is_above(weight) {
            Share { amount: self.full, of: 1 }
        } else {
            Share { amount: weight * self.amount, of: self.weight }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidates(traits: &[(u8, u32)]) -> Vec<Candidate> {
        let candidate = |(number, (zone, weight)): (usize, &(u8, u32))| Candidate {
            node: NodeId([number as u8; 16]),
            zone: format!("zone-{zone}"),
            weight: *weight,
        };
        traits.iter().enumerate().map(candidate).collect()
    }

    /// Node number, zone and share in partitions.
    fn shares(traits: &[(u8, u32)], partitions: u64, replicas: u64) -> Vec<(usize, usize, f64)> {
        let candidates = candidates(traits);
        let shares = fair_shares(&candidates.iter().collect::<Vec<_>>(), Demand { partitions, replicas });
        let of_zone = |(zone, of): (usize, ZoneShare)| {
            let share = move |node: NodeShare| {
                (node.node.0[0].into(), zone, node.share.amount as f64 / node.share.of as f64)
            };
            of.nodes.into_iter().map(share)
        };
        shares.into_iter().enumerate().flat_map(of_zone).collect()
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-6
    }

    proptest! {
        /// The shares are within the limits, and nothing could go to a node that has less for its weight.
        #[test]
        fn no_other_shares_are_fairer(
            traits in prop::collection::vec((0u8..5, prop_oneof![1u32..4, 1u32..1000]), 1..12), replicas in 1u64..8,
        ) {
            let replicas = replicas.min(traits.len() as u64);
            let shares = shares(&traits, 64, replicas);
            prop_assert!(close(shares.iter().map(|(_, _, share)| share).sum(), 64.0 * replicas as f64));
            let of_zone = |zone| shares.iter().filter(|(_, z, _)| *z == zone).map(|(_, _, share)| share).sum::<f64>();
            let zone_count = traits.iter().map(|(zone, _)| zone).collect::<std::collections::BTreeSet<_>>().len();
            let at_most_one = replicas <= zone_count as u64;
            let per_weight = |node: usize, share: f64| share / f64::from(traits[node].1);
            for (node, zone, share) in &shares {
                prop_assert!(*share <= 64.0 + 1e-6);
                let is_spread =
                    if at_most_one { of_zone(*zone) < 64.0 + 1e-6 } else { of_zone(*zone) > 64.0 - 1e-6 };
                prop_assert!(is_spread);
                for (other, other_zone, others) in &shares {
                    let fits_zone = zone == other_zone
                        || !close(of_zone(if at_most_one { *other_zone } else { *zone }), 64.0);
                    if !close(*others, 64.0) && fits_zone {
                        let (ours, theirs) = (per_weight(*node, *share), per_weight(*other, *others));
                        prop_assert!(ours < theirs + 1e-6, "{:?}", shares);
                    }
                }
            }
        }
    }

    fn check(traits: &[(u8, u32)], replicas: u64, expected: &[u32], zones: &[(u32, u32)]) {
        let candidates = candidates(traits);
        let shares = fair_shares(&candidates.iter().collect::<Vec<_>>(), Demand { partitions: 12, replicas });
        let bounds = |share: &NodeShare| (share.share.bounds().min, share.share.bounds().max);
        let found: Vec<_> = shares.iter().flat_map(|zone| &zone.nodes).map(bounds).collect();
        assert_eq!(found, expected.iter().map(|e| (*e, *e)).collect::<Vec<_>>(), "{traits:?}");
        let found: Vec<_> = shares.iter().map(|zone| (zone.replicas.min, zone.replicas.max)).collect();
        assert_eq!(found, zones, "{traits:?}");
    }

    #[test]
    fn shares_follow_weights_up_to_the_limits() {
        // By weight alone; a node that could use more than all; all that there are.
        check(&[(0, 1), (0, 2), (0, 3)], 1, &[2, 4, 6], &[(0, 1)]);
        check(&[(0, 9), (0, 1), (0, 1)], 2, &[12, 6, 6], &[(1, 2)]);
        check(&[(0, 9), (0, 1), (0, 1)], 3, &[12, 12, 12], &[(1, 3)]);
        // A zone that would have more than one of each partition, and one that would have less.
        check(&[(0, 2), (0, 2), (1, 1), (2, 1)], 2, &[6, 6, 6, 6], &[(1, 1), (0, 1), (0, 1)]);
        check(&[(0, 1), (1, 2), (1, 2), (1, 2)], 3, &[12, 8, 8, 8], &[(1, 1), (1, 2)]);
        check(&[(0, 1), (0, 1), (1, 2), (1, 2)], 2, &[6, 6, 6, 6], &[(0, 1), (1, 1)]);
    }
}
