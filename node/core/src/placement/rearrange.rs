//! Rearrangement: the ring for other members that moves the least.
//!
//! Two questions, each of which is asked of a flow: which nodes hold a partition (moving a replica costs 1, keeping it
//! nothing), and which of them is first in its list (a new first costs 1). Fair shares, rounded down and up, are the
//! bounds of both, so that which nodes hold one partition more than others is decided by what moves the least too.
//! That a flow within them exists follows from the shares: cut into equal parts for all partitions they are a flow
//! within the same bounds, if not in whole numbers, and where bounds are whole numbers a flow in whole numbers exists.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{Epoch, NodeId};
use crate::partition::{Partition, PartitionCount};
use crate::ring::{Replica, Ring};

use super::flow::{ArcId, Bounds, Network, Vertex};
use super::share::{Demand, NodeShare, ZoneShare, fair_shares};
use super::{Candidate, rank};

/// The ring for `candidates` that keeps as many replicas where they are as is possible. It depends on the arguments
/// alone, and not on the order of the candidates.
///
/// - *Spread*: each partition has `replication_factor` nodes, or all where there are fewer, none of them twice, in as
///   many zones as there are replicas, or in all where there are fewer.
/// - *Balanced*: each node holds its fair share of all replicas, rounded down or up. Fair shares are by weight, up to
///   two limits: a node has each partition at most once, and a zone that by weight would have more than the spread
///   allows, or less, is bound to exactly one replica of each partition, which its nodes share by weight. What is cut
///   off at a limit goes to the others by weight, and what a bound zone needs is taken from them likewise. Put
///   otherwise: the largest load per weight is the least that is possible, then the second largest, and so on.
/// - *Least moved*: no ring that is so spread and so balanced has fewer replicas that are not in `current`. That can
///   be more than a leaving node held, where it shared its partitions with few others only.
///
/// Replicas that stay keep their `since`, new ones get the given one. If no replica comes or goes, `current` is
/// returned as it is. If any does, each node becomes the first of its part of the lists that it is in (one in
/// `replication_factor`, rounded down or up), of as few lists as possible in which it was not; behind the first, those
/// that stay keep their order, and new ones come last.
///
/// Each candidate is a node of its own.
///
/// Source of the method: Garage's layouts are computed as a flow of least cost through partitions, zones and nodes
/// (doc/optimal_layout_report in its repository). There the largest size of a partition is sought under capacities;
/// here weights set the bounds.
pub fn rearrange(
    current: &Ring,
    candidates: &[Candidate],
    partitions: PartitionCount,
    replication_factor: usize,
    since: Epoch,
) -> Ring {
    let partitions: Vec<_> = partitions.all().collect();
    Rearrangement { current, partitions: &partitions, since }.ring(candidates, replication_factor)
}

struct Rearrangement<'a> {
    current: &'a Ring,
    partitions: &'a [Partition],
    since: Epoch,
}

impl Rearrangement<'_> {
    fn ring(&self, candidates: &[Candidate], replication_factor: usize) -> Ring {
        let mut candidates: Vec<_> = candidates.iter().collect();
        candidates.sort_by_key(|candidate| candidate.node);
        candidates.dedup_by_key(|candidate| candidate.node);
        let replicas = replication_factor.min(candidates.len()) as u64;
        let shares = fair_shares(&candidates, Demand { partitions: self.partitions.len() as u64, replicas });

        let mut lists = self.choose_holders(&shares, replicas);
        let unordered = Ring::new(lists.clone());
        if unordered == *self.current {
            return unordered;
        }
        take_turns(&mut lists, replicas);
        Ring::new(lists)
    }

    /// The replicas of each partition: those that stay in their present order, then new ones.
    fn choose_holders(&self, shares: &[ZoneShare], replicas: u64) -> Vec<Vec<Replica>> {
        let mut network = Network::new();
        let is_only = shares.len() == 1;
        let zones: Vec<_> =
            shares.iter().map(|zone| ZoneVertices::new(zone, is_only, &mut network)).collect();
        let mut offer = |partition: &Partition| {
            let vertex = network.vertex();
            network.link_within(Network::SOURCE, vertex, Bounds::exactly(replicas));
            let mut zones: Vec<_> = zones.iter().map(|zone| zone.ranked(*partition)).collect();
            zones.sort_by_key(|zone| zone.nodes.first().map(|node| node.rank));
            let present = self.current.replicas(*partition);
            zones.iter().flat_map(|zone| zone.offer(&mut network, vertex, present)).collect::<Vec<_>>()
        };
        let offers: Vec<_> = self.partitions.iter().map(&mut offer).collect();
        network.fill();
        let chosen = |offers: Vec<Offer>| {
            offers.into_iter().filter(|offer| network.is_used(offer.arc)).map(|offer| offer.node).collect()
        };
        self.partitions.iter().zip(offers).map(|(p, offers)| self.in_order(*p, chosen(offers))).collect()
    }

    fn in_order(&self, partition: Partition, mut nodes: BTreeSet<NodeId>) -> Vec<Replica> {
        let mut list = self.current.replicas(partition).to_vec();
        list.retain(|replica| nodes.remove(&replica.node));
        list.extend(nodes.into_iter().map(|node| Replica { node, since: self.since }));
        list
    }
}

/// That a node may hold a partition.
struct Offer {
    arc: ArcId,
    node: NodeId,
}

/// A zone's part of the network that all partitions have in common.
struct ZoneVertices {
    /// How many replicas of each partition; `None` where the bounds of the nodes say as much.
    replicas: Option<Bounds>,
    nodes: Vec<(NodeId, Vertex)>,
}

impl ZoneVertices {
    fn new(zone: &ZoneShare, is_only: bool, network: &mut Network) -> Self {
        let mut node = |node: &NodeShare| {
            let vertex = network.vertex();
            network.link_within(vertex, Network::SINK, node.share.bounds());
            (node.node, vertex)
        };
        let nodes: Vec<_> = zone.nodes.iter().map(&mut node).collect();
        Self { replicas: (!is_only && nodes.len() > 1).then_some(zone.replicas), nodes }
    }

    fn ranked(&self, partition: Partition) -> RankedZone {
        let ranked = |(node, vertex): &(NodeId, Vertex)| RankedNode {
            rank: rank(partition, *node),
            node: *node,
            vertex: *vertex,
        };
        let mut nodes: Vec<_> = self.nodes.iter().map(ranked).collect();
        nodes.sort_by_key(|node| (node.rank, node.node));
        RankedZone { replicas: self.replicas, nodes }
    }
}

/// A zone, and its nodes by rank: of all rings that move equally little, the flow finds one that follows the ranks.
struct RankedZone {
    replicas: Option<Bounds>,
    nodes: Vec<RankedNode>,
}

struct RankedNode {
    rank: u64,
    node: NodeId,
    vertex: Vertex,
}

impl RankedZone {
    /// Lets the nodes of this zone have a partition: for nothing where they are among its present replicas.
    fn offer(&self, network: &mut Network, partition: Vertex, present: &[Replica]) -> Vec<Offer> {
        let from = match self.replicas {
            Some(replicas) => {
                let zone = network.vertex();
                network.link_within(partition, zone, replicas);
                zone
            }
            None => partition,
        };
        let offer = |to: &RankedNode| {
            let is_present = present.iter().any(|replica| replica.node == to.node);
            Offer { arc: network.link(from, to.vertex, (!is_present).into()), node: to.node }
        };
        self.nodes.iter().map(offer).collect()
    }
}

/// The first replica is asked first by reads: gives each node its part of the firsts, changing as few as possible.
fn take_turns(lists: &mut [Vec<Replica>], replicas: u64) {
    let mut held: BTreeMap<NodeId, u64> = BTreeMap::new();
    for replica in lists.iter().flatten() {
        *held.entry(replica.node).or_default() += 1;
    }
    let mut network = Network::new();
    let vertices: BTreeMap<_, _> = held
        .into_iter()
        .map(|(node, held)| {
            let vertex = network.vertex();
            network.link_within(vertex, Network::SINK, Bounds::rounding(held, replicas));
            (node, vertex)
        })
        .collect();
    let mut offer = |list: &Vec<Replica>| {
        let vertex = network.vertex();
        network.link(Network::SOURCE, vertex, 0);
        let costs = std::iter::once(0).chain(std::iter::repeat(1));
        let nodes = list.iter().filter_map(|replica| vertices.get(&replica.node)).zip(costs);
        nodes.map(|(node, cost)| network.link(vertex, *node, cost)).collect::<Vec<_>>()
    };
    let offers: Vec<_> = lists.iter().map(&mut offer).collect();
    network.fill();
    for (list, offers) in lists.iter_mut().zip(offers) {
        if let Some(first) = offers.iter().position(|arc| network.is_used(*arc)) {
            let first = list.remove(first);
            list.insert(0, first);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SINCE: Epoch = Epoch(7);

    fn node(number: usize) -> NodeId {
        NodeId([number as u8 + 1; 16])
    }

    fn candidate(number: usize, zone: u8, weight: u32) -> Candidate {
        Candidate { node: node(number), zone: format!("zone-{zone}"), weight }
    }

    /// Of the given numbers, in one zone, of equal weight.
    fn equals(numbers: impl IntoIterator<Item = usize>) -> Vec<Candidate> {
        numbers.into_iter().map(|number| candidate(number, 0, 1)).collect()
    }

    /// The ring that is under test, and what it was asked for.
    struct Case {
        current: Ring,
        candidates: Vec<Candidate>,
        partitions: Vec<Partition>,
        replicas: usize,
        zone_count: usize,
        shares: Vec<ZoneShare>,
        ring: Ring,
    }

    impl Case {
        fn new(current: &Ring, candidates: &[Candidate], partitions: u16, replication_factor: usize) -> Self {
            let partitions: Vec<_> = (0..partitions).map(Partition).collect();
            let ring = Rearrangement { current, partitions: &partitions, since: SINCE }
                .ring(candidates, replication_factor);
            let mut sorted: Vec<_> = candidates.iter().collect();
            sorted.sort_by_key(|candidate| candidate.node);
            let replicas = replication_factor.min(candidates.len());
            let demand = Demand { partitions: partitions.len() as u64, replicas: replicas as u64 };
            Self {
                current: current.clone(),
                candidates: candidates.to_vec(),
                partitions,
                replicas,
                zone_count: candidates.iter().map(|c| &c.zone).collect::<BTreeSet<_>>().len(),
                shares: fair_shares(&sorted, demand),
                ring,
            }
        }

        fn moves(&self) -> usize {
            let new = |(p, replicas): (Partition, &[Replica])| {
                replicas.iter().filter(|replica| !self.current.is_replica(p, replica.node)).count()
            };
            self.ring.iter().map(new).sum()
        }

        fn loads(&self) -> Vec<usize> {
            self.candidates.iter().map(|candidate| self.ring.owned(candidate.node)).collect()
        }

        /// True if nodes of these indices can hold a partition together.
        fn is_spread(&self, holders: &[usize]) -> bool {
            let zones: BTreeSet<_> = holders.iter().map(|i| &self.candidates[*i].zone).collect();
            holders.len() == self.replicas && zones.len() == self.replicas.min(self.zone_count)
        }

        fn is_balanced(&self, loads: &[usize]) -> bool {
            let load = |node| loads[self.candidates.iter().position(|c| c.node == node).unwrap()];
            let within = |share: &NodeShare| {
                let Bounds { min, max } = share.share.bounds();
                (min as usize..=max as usize).contains(&load(share.node))
            };
            self.shares.iter().all(|zone| {
                let sum: usize = zone.nodes.iter().map(|share| load(share.node)).sum();
                let is_bound = zone.replicas == Bounds::exactly(1);
                zone.nodes.iter().all(within) && (!is_bound || sum == self.partitions.len())
            })
        }

        fn check(&self) {
            assert_eq!(self.ring.iter().count(), self.partitions.len());
            for (partition, list) in self.ring.iter() {
                let index = |r: &Replica| self.candidates.iter().position(|c| c.node == r.node).unwrap();
                let holders: BTreeSet<_> = list.iter().map(index).collect();
                assert_eq!(holders.len(), list.len());
                assert!(self.is_spread(&holders.into_iter().collect::<Vec<_>>()), "{list:?}");
                for replica in list {
                    let before = self.current.replicas(partition).iter().find(|r| r.node == replica.node);
                    assert_eq!(replica.since, before.map_or(SINCE, |before| before.since));
                }
            }
            assert!(self.is_balanced(&self.loads()), "{:?} of {:?}", self.loads(), self.shares);
            self.check_order();
        }

        fn check_order(&self) {
            if self.ring == self.current {
                return;
            }
            for candidate in &self.candidates {
                let firsts = self.ring.iter().filter(|(_, list)| list[0].node == candidate.node).count();
                let part = Bounds::rounding(self.ring.owned(candidate.node) as u64, self.replicas as u64);
                assert!(
                    (part.min as usize..=part.max as usize).contains(&firsts),
                    "{firsts} not in {part:?}"
                );
            }
            for (partition, list) in self.ring.iter() {
                let present: Vec<_> = self.current.replicas(partition).iter().map(|r| r.node).collect();
                let position = |r: &Replica| present.iter().position(|node| *node == r.node);
                let order: Vec<_> = list[1..].iter().map(|r| position(r).unwrap_or(usize::MAX)).collect();
                assert!(order.is_sorted(), "{order:?}");
            }
        }

        /// Every load that a spread ring can put on the candidates, with the fewest moves that lead to it: all ways
        /// to place one partition, for one partition after the other.
        fn oracle(&self) -> BTreeMap<Vec<usize>, usize> {
            let indices = |set: u32| (0..self.candidates.len()).filter(move |i| set & (1 << i) != 0);
            let sets: Vec<Vec<usize>> =
                (0..1 << self.candidates.len()).map(|set| indices(set).collect()).collect();
            let mut reached = BTreeMap::from([(vec![0; self.candidates.len()], 0)]);
            for partition in &self.partitions {
                let mut next = BTreeMap::new();
                for (loads, moves) in &reached {
                    for set in sets.iter().filter(|set| self.is_spread(set)) {
                        let is_new =
                            |i: &&usize| !self.current.is_replica(*partition, self.candidates[**i].node);
                        let moves = moves + set.iter().filter(is_new).count();
                        let mut loads = loads.clone();
                        set.iter().for_each(|i| loads[*i] += 1);
                        let least = next.entry(loads).or_insert(moves);
                        *least = moves.min(*least);
                    }
                }
                reached = next;
            }
            reached
        }
    }

    fn descending(loads: &[usize]) -> Vec<usize> {
        let mut loads = loads.to_vec();
        loads.sort_by(|a, b| b.cmp(a));
        loads
    }

    /// Candidates with numbers of their own, in up to four zones.
    fn any_candidates(numbers: usize, weight_max: u32) -> impl Strategy<Value = Vec<Candidate>> {
        let all: Vec<_> = (0..numbers).collect();
        let some = prop::sample::subsequence(all, 1..=numbers).prop_shuffle();
        let traits = prop::collection::vec((0u8..4, 1..=weight_max), numbers);
        (some, traits).prop_map(|(some, traits)| {
            some.into_iter()
                .zip(traits)
                .map(|(number, (zone, weight))| candidate(number, zone, weight))
                .collect()
        })
    }

    /// A ring of no order at all, on nodes of which some may not be candidates.
    fn any_ring(numbers: usize, partitions: usize) -> impl Strategy<Value = Ring> {
        let all: Vec<_> = (0..numbers).collect();
        let list = prop::sample::subsequence(all, 0..=numbers.min(4)).prop_shuffle();
        prop::collection::vec(list, partitions).prop_map(|lists| {
            let replica = |number| Replica { node: node(number), since: Epoch(number as u64) };
            Ring::new(lists.into_iter().map(|list| list.into_iter().map(replica).collect()).collect())
        })
    }

    /// One change of the members.
    #[derive(Debug, Clone)]
    enum Change {
        Add(u8, u32),
        Remove(prop::sample::Index),
        Weigh(prop::sample::Index, u32),
        Replicate(usize),
    }

    fn any_change() -> impl Strategy<Value = Change> {
        prop_oneof![
            (0u8..3, 1u32..5).prop_map(|(zone, weight)| Change::Add(zone, weight)),
            any::<prop::sample::Index>().prop_map(Change::Remove),
            (any::<prop::sample::Index>(), 1u32..5).prop_map(|(index, weight)| Change::Weigh(index, weight)),
            (1usize..5).prop_map(Change::Replicate),
        ]
    }

    proptest! {
        #[test]
        fn nothing_is_better_balanced_nor_moves_less(
            current in any_ring(5, 4),
            candidates in prop_oneof![any_candidates(4, 1), any_candidates(4, 5), any_candidates(5, 40)],
            rf in 1usize..4,
        ) {
            let case = Case::new(&current, &candidates, 4, rf);
            case.check();
            let oracle = case.oracle();
            let least = oracle.iter().filter(|(loads, _)| case.is_balanced(loads)).map(|(_, moves)| *moves).min();
            prop_assert_eq!(Some(case.moves()), least);
            if candidates.iter().all(|c| c.weight == candidates[0].weight) {
                let flattest = oracle.keys().map(|loads| descending(loads)).min();
                prop_assert_eq!(Some(descending(&case.loads())), flattest);
            }
        }

        #[test]
        fn what_is_best_already_is_returned_as_it_is(
            current in any_ring(8, 16), candidates in any_candidates(8, 4), rf in 1usize..6,
        ) {
            let ring = Case::new(&current, &candidates, 16, rf).ring;
            // In whatever order the lists are.
            let lists = ring.iter().map(|(_, list)| list.iter().rev().copied().collect());
            for best in [Ring::new(lists.collect()), ring] {
                prop_assert_eq!(Case::new(&best, &candidates, 16, rf).ring, best);
            }
        }

        #[test]
        fn the_order_of_candidates_does_not_matter(
            current in any_ring(8, 16),
            (one, other) in any_candidates(8, 4).prop_flat_map(|c| (Just(c.clone()), Just(c).prop_shuffle())),
            rf in 1usize..6,
        ) {
            prop_assert_eq!(Case::new(&current, &one, 16, rf).ring, Case::new(&current, &other, 16, rf).ring);
        }

        #[test]
        fn every_clause_holds_through_any_changes(changes in prop::collection::vec(any_change(), 1..20)) {
            let (mut candidates, mut rf, mut ring) = (equals(0..3), 3, Ring::new(Vec::new()));
            for (number, change) in (3..).zip(changes) {
                let count = candidates.len();
                match change {
                    Change::Add(zone, weight) => candidates.push(candidate(number, zone, weight)),
                    Change::Remove(index) if count > 1 => _ = candidates.remove(index.index(count)),
                    Change::Remove(_) => {}
                    Change::Weigh(index, weight) => candidates[index.index(count)].weight = weight,
                    Change::Replicate(replicas) => rf = replicas,
                }
                let case = Case::new(&ring, &candidates, 32, rf);
                case.check();
                ring = case.ring;
            }
        }
    }

    #[test]
    fn among_equals_only_what_a_node_receives_or_leaves_is_moved() {
        for (count, rf) in (1..10).flat_map(|count| (1..6).map(move |rf| (count, rf))) {
            let before = Case::new(&Ring::new(Vec::new()), &equals(0..count), 256, rf).ring;
            let joined = Case::new(&before, &equals(0..=count), 256, rf);
            let received = Bounds::rounding(256 * joined.replicas as u64, count as u64 + 1);
            assert_eq!(joined.moves(), joined.ring.owned(node(count)));
            assert!((received.min as usize..=received.max as usize).contains(&joined.moves()));
            for leaving in 0..=count {
                let left = Case::new(&joined.ring, &equals((0..=count).filter(|n| *n != leaving)), 256, rf);
                let held = if rf <= count { joined.ring.owned(node(leaving)) } else { 0 };
                assert_eq!(left.moves(), held, "node {leaving} of {count} + 1, {rf} replicas");
            }
        }
    }

    fn check_moves(replication_factor: usize, steps: &[(usize, usize)]) {
        let mut ring = Ring::new(Vec::new());
        for (count, moves) in steps {
            let case = Case::new(&ring, &equals(0..*count), 256, replication_factor);
            case.check();
            assert_eq!(case.moves(), *moves, "at {count} nodes");
            ring = case.ring;
        }
    }

    #[test]
    fn a_node_that_comes_back_takes_what_it_had_left() {
        // 768 replicas: 153 or 154 on each of five nodes.
        check_moves(3, &[(5, 768), (4, 154), (5, 153)]);
        check_moves(3, &[(3, 768), (5, 306), (3, 306)]);
    }

    #[test]
    fn without_candidates_there_are_no_replicas() {
        let ring = Case::new(&Ring::new(Vec::new()), &[], 16, 3).ring;
        assert!(ring.iter().all(|(_, list)| list.is_empty()));
    }

    #[test]
    fn more_and_fewer_replicas_move_no_more_than_they_must() {
        let three = Case::new(&Ring::new(Vec::new()), &equals(0..6), 256, 3);
        let five = Case::new(&three.ring, &equals(0..6), 256, 5);
        assert_eq!(five.moves(), 512);
        assert_eq!(Case::new(&five.ring, &equals(0..6), 256, 3).moves(), 0);
    }
}
