//! What a node says of itself.

use std::collections::{BTreeMap, BTreeSet};

use super::Node;
use crate::counters::Counters;
use crate::effect::Now;
use crate::hints::HintStatus;
use crate::id::{Epoch, Generation, NodeId};
use crate::init::Membership;
use crate::layout::Layout;
use crate::partition::{Partition, RecordKey};
use crate::quorum::Consistency;
use crate::stamp::Stamp;
use crate::transfer::TransferStatus;

/// How many of the keys in doubt a status names.
pub const DOUBTS_NAMED_MAX: usize = 8;

/// Where a node stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeState {
    Uninitialized,
    Accepted,
    Serving,
    Draining,
}

/// What a node knows of itself, for people and probes.
#[derive(Debug, Clone)]
pub struct Status<'a> {
    pub state: NodeState,
    /// True if this node serves requests now.
    pub ready: bool,
    pub layout: Option<&'a Layout>,
    /// Raised at each start, and whenever something turns out to be lost.
    pub generation: Generation,
    pub connected: Vec<(NodeId, Generation)>,
    pub partitions_owned: usize,
    /// Partitions of which this node reaches a write quorum.
    pub partitions_available: usize,
    pub requests_under_way: usize,
    pub writes_under_way: usize,
    pub stamp_ceiling_ms: u64,
    /// The highest stamp that this node has issued or seen.
    pub latest_stamp: Stamp,
    /// How many keys this node is in doubt for: it may have lost something of them.
    pub doubted_keys: usize,
    /// Those that have been in doubt for the longest time, at most [`DOUBTS_NAMED_MAX`], and for how many milliseconds.
    pub doubted: Vec<(RecordKey, u64)>,
    /// The partitions that these keys are of, and those that are in doubt as a whole.
    pub doubted_partitions: BTreeSet<Partition>,
    /// The partitions that are in doubt as a whole, for something of them cannot be read, and for how many milliseconds.
    pub doubted_wholly: Vec<(Partition, u64)>,
    pub hints: HintStatus,
    /// The latest epoch that each member has acknowledged, as far as this node has heard.
    pub fences: BTreeMap<NodeId, Epoch>,
    pub transfer: TransferStatus,
    /// What is missing before the move that is under way can end; `None` if nothing is, or nothing moves.
    pub move_waits_for: Option<String>,
    pub counters: Counters,
}

impl Node {
    pub fn status(&self, now: Now) -> Status<'_> {
        let layout = self.membership.layout();
        let state = match self.membership {
            Membership::Uninitialised => NodeState::Uninitialized,
            Membership::Accepted { .. } => NodeState::Accepted,
            Membership::Decided { .. } if self.draining || self.is_set_aside => NodeState::Draining,
            Membership::Decided { .. } => NodeState::Serving,
        };
        Status {
            state,
            ready: state == NodeState::Serving && now.mono_ms >= self.stamps_from_ms.max(self.warm_from_ms),
            layout,
            generation: self.generation,
            connected: self.peers.connected().collect(),
            partitions_owned: layout.map_or(0, |layout| layout.owned(self.me)),
            partitions_available: self.membership.serving().map_or(0, |layout| self.available(layout)),
            requests_under_way: self.coordinator.under_way(),
            writes_under_way: self.replica.under_way(),
            stamp_ceiling_ms: self.clock.ceiling_ms(),
            latest_stamp: self.clock.latest(),
            doubted_keys: self.replica.doubts.len(),
            doubted: self.replica.doubts.oldest(DOUBTS_NAMED_MAX, now.mono_ms),
            doubted_partitions: layout
                .map_or_else(BTreeSet::new, |layout| self.replica.doubts.partitions(layout.partitions)),
            doubted_wholly: self.replica.doubts.covered(now.mono_ms).collect(),
            hints: self.hints.status(),
            fences: self.fences(),
            transfer: self.transfer.status(now.mono_ms),
            move_waits_for: self.move_waits_for(),
            counters: self.counters,
        }
    }

    /// How many partitions have a write quorum of replicas that this node reaches, and that count: not those that are
    /// still salvaging it.
    pub(super) fn available(&self, layout: &Layout) -> usize {
        let is_reachable = |node: NodeId| node == self.me || self.peers.is_connected(node);
        let has_merged = |p: Partition, node: NodeId| match node == self.me {
            true => self.transfer.has_merged(p),
            false => self
                .evidence
                .get(&node)
                .is_some_and(|standing| standing.phase == layout.phase_since && standing.whole.contains(&p)),
        };
        let counts = |p: Partition, node: NodeId| {
            is_reachable(node) && (!layout.salvaged.contains_key(&p) || has_merged(p, node))
        };
        let makes_quorum = |p| layout.replica_sets(p).satisfied(Consistency::Quorum, |node| counts(p, *node));
        layout.partitions.all().filter(|p| makes_quorum(*p)).count()
    }

    pub(super) fn is_warm(&self) -> bool {
        let all = |layout: &Layout| self.available(layout) == usize::from(layout.partitions.get());
        self.membership.serving().is_some_and(all)
    }
}
