//! The cheapest of the largest flows through a network: what a rearrangement is reduced to.
//!
//! Primal-dual method: find the shortest distances from the source, make all arcs on shortest paths free, fill the
//! free part of the network, repeat until the sink is out of reach (Ahuja, Magnanti and Orlin, "Network Flows",
//! sections 9.7 and 9.8; the free part is filled as in Dinitz's algorithm). What arcs mean is the caller's business.
//!
//! Invariant: once distances have been taken from the costs, no arc with room left has a cost below zero. So the flow
//! is the cheapest of its size at any time.

use std::collections::BTreeMap;

/// What each unit within an arc's lower bound earns: more than any path costs, so that lower bounds are met before
/// anything is saved, wherever a largest flow can meet them all.
const REWARD: i64 = 1 << 32;
const OUT_OF_REACH: i64 = i64::MAX;
const NO_LEVEL: u32 = u32::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Vertex(usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ArcId(usize);

/// How little and how much an arc may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) min: u32,
    pub(super) max: u32,
}

impl Bounds {
    pub(super) fn exactly(number: u64) -> Self {
        Self { min: narrow(number), max: narrow(number) }
    }

    /// A fraction, rounded down and up.
    pub(super) fn rounding(amount: u64, of: u64) -> Self {
        let of = of.max(1);
        Self { min: narrow(amount / of), max: narrow(amount.div_ceil(of)) }
    }
}

/// Numbers of partitions and replicas are far smaller.
pub(super) fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// One direction of an arc.
#[derive(Debug, Clone, Copy)]
struct Arc {
    to: usize,
    /// How much more it can carry.
    room: u32,
    /// Of one unit, less what the distances of its ends from the source differ by.
    cost: i64,
}

#[derive(Debug, Default)]
pub(super) struct Network {
    /// The arcs that begin at each vertex.
    out: Vec<Vec<usize>>,
    /// Each is followed by its way back, whose room is what it carries: `id ^ 1` is the other one of the two.
    arcs: Vec<Arc>,
}

impl Network {
    pub(super) const SOURCE: Vertex = Vertex(0);
    pub(super) const SINK: Vertex = Vertex(1);

    /// Source and sink, and no arc between them.
    pub(super) fn new() -> Self {
        Self { out: vec![Vec::new(), Vec::new()], arcs: Vec::new() }
    }

    pub(super) fn vertex(&mut self) -> Vertex {
        self.out.push(Vec::new());
        Vertex(self.out.len() - 1)
    }

    /// An arc for one unit, at the given cost.
    pub(super) fn link(&mut self, from: Vertex, to: Vertex, cost: u32) -> ArcId {
        self.add(from, Arc { to: to.0, room: 1, cost: cost.into() })
    }

    /// A free arc. The lower bound is kept if all lower bounds of the network can be kept by a largest flow.
    pub(super) fn link_within(&mut self, from: Vertex, to: Vertex, bounds: Bounds) {
        let Bounds { min, max } = bounds;
        for (room, cost) in [(min, -REWARD), (max.saturating_sub(min), 0)] {
            if room > 0 {
                self.add(from, Arc { to: to.0, room, cost });
            }
        }
    }

    fn add(&mut self, from: Vertex, arc: Arc) -> ArcId {
        let id = self.arcs.len();
        self.arcs.extend([arc, Arc { to: from.0, room: 0, cost: -arc.cost }]);
        for (vertex, id) in [(from.0, id), (arc.to, id + 1)] {
            if let Some(out) = self.out.get_mut(vertex) {
                out.push(id);
            }
        }
        ArcId(id)
    }

    /// Sends as much as possible from the source to the sink, at the least cost.
    pub(super) fn fill(&mut self) {
        while let Some(distances) = self.distances() {
            self.reprice(&distances);
            while let Some(levels) = self.levels() {
                self.fill_levels(&levels);
            }
        }
    }

    /// True if an arc made by [`Network::link`] carries its unit.
    pub(super) fn is_used(&self, ArcId(id): ArcId) -> bool {
        self.arcs.get(id).is_some_and(|arc| arc.room == 0)
    }

    /// The arcs from a vertex that can carry more.
    fn open(&self, vertex: usize) -> impl Iterator<Item = &Arc> {
        let ids = self.out.get(vertex).into_iter().flatten();
        ids.filter_map(|id| self.arcs.get(*id)).filter(|arc| arc.room > 0)
    }

    /// How far each vertex is from the source; `None` if no path leads to the sink.
    fn distances(&self) -> Option<Vec<i64>> {
        let mut distances = vec![OUT_OF_REACH; self.out.len()];
        *distances.get_mut(Self::SOURCE.0)? = 0;
        // Few distances occur, and most arcs are free: a bucket for each, in place of a heap of vertices.
        let mut buckets = BTreeMap::from([(0, vec![Self::SOURCE.0])]);
        while let Some((distance, mut bucket)) = buckets.pop_first() {
            while let Some(vertex) = bucket.pop() {
                if distances.get(vertex) != Some(&distance) {
                    continue;
                }
                for arc in self.open(vertex) {
                    let through = distance + arc.cost;
                    match distances.get_mut(arc.to) {
                        Some(known) if through < *known => *known = through,
                        Some(_) | None => continue,
                    }
                    if through == distance {
                        bucket.push(arc.to);
                    } else {
                        buckets.entry(through).or_default().push(arc.to);
                    }
                }
            }
        }
        distances.get(Self::SINK.0).is_some_and(|sink| *sink != OUT_OF_REACH).then_some(distances)
    }

    /// Takes from each arc's cost what it adds to the distance: nothing remains of it on shortest paths. What is out of
    /// reach stays so.
    fn reprice(&mut self, distances: &[i64]) {
        let in_reach = |distance: &&i64| **distance != OUT_OF_REACH;
        for (ids, from) in self.out.iter().zip(distances).filter(|(_, from)| in_reach(from)) {
            for id in ids {
                if let Some(arc) = self.arcs.get_mut(*id)
                    && let Some(to) = distances.get(arc.to).filter(in_reach)
                {
                    arc.cost += from - to;
                }
            }
        }
    }

    /// How many free arcs away from the source each vertex is; `None` if they do not lead to the sink.
    fn levels(&self) -> Option<Vec<u32>> {
        let mut levels = vec![NO_LEVEL; self.out.len()];
        *levels.get_mut(Self::SOURCE.0)? = 0;
        let mut frontier = vec![Self::SOURCE.0];
        for level in 1.. {
            let mut next = Vec::new();
            for vertex in frontier {
                for arc in self.open(vertex).filter(|arc| arc.cost == 0) {
                    if let Some(known) = levels.get_mut(arc.to).filter(|known| **known == NO_LEVEL) {
                        *known = level;
                        next.push(arc.to);
                    }
                }
            }
            if next.is_empty() || levels.get(Self::SINK.0) == Some(&level) {
                break;
            }
            frontier = next;
        }
        levels.get(Self::SINK.0).is_some_and(|level| *level != NO_LEVEL).then_some(levels)
    }

    /// Sends flow along free arcs, each from one level to the next, until no path is left on which all have room.
    fn fill_levels(&mut self, levels: &[u32]) {
        // How many arcs of each vertex are known to lead nowhere.
        let mut tried = vec![0; self.out.len()];
        let mut path = Vec::new();
        loop {
            let vertex = path.last().map_or(Self::SOURCE.0, |arc| self.end(*arc));
            if vertex == Self::SINK.0 {
                self.send_along(&path);
                path.clear();
            } else if let Some(arc) = self.advance(vertex, levels, &mut tried) {
                path.push(arc);
            } else if let Some(arc) = path.pop() {
                if let Some(tried) = tried.get_mut(self.end(arc ^ 1)) {
                    *tried += 1;
                }
            } else {
                return;
            }
        }
    }

    fn end(&self, arc: usize) -> usize {
        self.arcs.get(arc).map_or(Self::SOURCE.0, |arc| arc.to)
    }

    /// The first arc not yet tried that leads from this vertex to the next level.
    fn advance(&self, vertex: usize, levels: &[u32], tried: &mut [usize]) -> Option<usize> {
        let (out, tried) = (self.out.get(vertex)?, tried.get_mut(vertex)?);
        let next_level = levels.get(vertex)? + 1;
        let leads_on = |id: &usize| {
            let is_next = |arc: &Arc| levels.get(arc.to) == Some(&next_level);
            self.arcs.get(*id).is_some_and(|arc| arc.room > 0 && arc.cost == 0 && is_next(arc))
        };
        let rest = out.iter().skip(*tried);
        *tried = rest.clone().position(leads_on).map_or(out.len(), |ahead| *tried + ahead);
        out.get(*tried).copied()
    }

    /// Sends as much along a path as there is room for.
    fn send_along(&mut self, path: &[usize]) {
        let rooms = path.iter().filter_map(|id| self.arcs.get(*id)).map(|arc| arc.room);
        let amount = rooms.min().unwrap_or(0);
        for id in path {
            if let Some(arc) = self.arcs.get_mut(*id) {
                arc.room -= amount;
            }
            if let Some(back) = self.arcs.get_mut(id ^ 1) {
                back.room += amount;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Agents and tasks: each agent takes one task, each task is taken by as many agents as its bounds say.
    fn assign(costs: &[Vec<u32>], bounds: &[Bounds]) -> Vec<Option<usize>> {
        let mut network = Network::new();
        let tasks: Vec<_> = bounds
            .iter()
            .map(|bounds| {
                let task = network.vertex();
                network.link_within(task, Network::SINK, *bounds);
                task
            })
            .collect();
        let arcs: Vec<Vec<_>> = costs
            .iter()
            .map(|costs| {
                let agent = network.vertex();
                network.link(Network::SOURCE, agent, 0);
                costs.iter().zip(&tasks).map(|(cost, task)| network.link(agent, *task, *cost)).collect()
            })
            .collect();
        network.fill();
        arcs.iter().map(|arcs| arcs.iter().position(|arc| network.is_used(*arc))).collect()
    }

    /// The least cost at which all agents can be assigned, found by trying everything.
    fn least_cost(costs: &[Vec<u32>], bounds: &[Bounds], taken: &mut Vec<u32>) -> Option<u32> {
        let Some((agent, others)) = costs.split_first() else {
            return taken.iter().zip(bounds).all(|(t, b)| (b.min..=b.max).contains(t)).then_some(0);
        };
        let mut best = None;
        for (task, cost) in agent.iter().enumerate() {
            taken[task] += 1;
            let found = least_cost(others, bounds, taken).map(|rest| rest + cost);
            taken[task] -= 1;
            best = [best, found].into_iter().flatten().min();
        }
        best
    }

    proptest! {
        #[test]
        fn an_assignment_costs_the_least_within_its_bounds(
            costs in prop::collection::vec(prop::collection::vec(0u32..5, 3), 1..6),
            bounds in prop::collection::vec((0u32..3, 0u32..3), 3),
        ) {
            let bounds: Vec<_> =
                bounds.into_iter().map(|(min, more)| Bounds { min, max: min + more }).collect();
            if let Some(least) = least_cost(&costs, &bounds, &mut vec![0; 3]) {
                let tasks = assign(&costs, &bounds);
                let cost: u32 = costs.iter().zip(&tasks).map(|(costs, task)| costs[task.unwrap()]).sum();
                prop_assert_eq!(cost, least);
                for (task, bounds) in bounds.iter().enumerate() {
                    let taken = tasks.iter().filter(|t| **t == Some(task)).count() as u32;
                    prop_assert!((bounds.min..=bounds.max).contains(&taken));
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_left_over() {
        let tasks = assign(&vec![vec![0]; 3], &[Bounds { min: 1, max: 2 }]);
        assert_eq!(tasks.iter().flatten().count(), 2);
    }

    #[test]
    fn a_lower_bound_is_met_though_a_way_around_it_is_cheaper() {
        let mut network = Network::new();
        let (start, middle) = (network.vertex(), network.vertex());
        network.link_within(Network::SOURCE, start, Bounds { min: 0, max: 1 });
        network.link_within(start, middle, Bounds { min: 1, max: 1 });
        let through = network.link(middle, Network::SINK, 9);
        let around = network.link(start, Network::SINK, 0);
        network.fill();
        assert!(network.is_used(through) && !network.is_used(around));
    }

    #[test]
    fn an_empty_network_carries_nothing() {
        Network::new().fill();
    }
}
