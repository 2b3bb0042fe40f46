//! What the state machines of one node share while they handle an event: the time, the layout, the clock that
//! issues stamps, and the place where messages and effects go.

use std::collections::VecDeque;

use crate::budget::Budget;
use crate::counters::Counters;
use crate::effect::{CommitId, Effect, LoadId, Now};
use crate::id::{Actor, Generation, NodeId};
use crate::layout::Layout;
use crate::message::{Message, Noted};
use crate::pace::Paces;
use crate::partition::{Partition, RecordKey};
use crate::peers::Peers;
use crate::quorum::{Consistency, Durability};
use crate::stamp::HybridClock;
use crate::succession::Evidence;

/// What an administrator may choose; the same for the life of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How far ahead of our clocks a fresh write's stamp may be. Larger than the clocks of one cluster ever
    /// differ; smaller than what a person would notice in an order of writes.
    pub skew_ms_max: u64,
    /// How many requests may be under way at one coordinator before more are refused.
    pub requests_max: usize,
    /// How many writes may be under way at one replica before more of clients are refused; repairs have a quarter
    /// more. A coordinator takes its share of that.
    pub writes_max: usize,
    /// How many bytes of keys and values these may have, with the same quarter for repairs.
    pub write_bytes_max: usize,
    /// How often a write may be stamped anew before its outcome is called unknown.
    pub restamps_max: u32,
    /// Values of at most this many bytes are sent whole where a digest was asked for.
    pub digest_bytes_min: usize,
    /// How long a read waits for a replica at least before it asks another one as well.
    pub speculate_ms: u64,
    /// How many bytes of memory the hints of a node may take up, about; what exceeds them is left to repair.
    pub hint_bytes_max: usize,
    /// How long a hint is kept.
    pub hint_age_ms_max: u64,
    /// How much a second work of the background may move between nodes while clients want little.
    pub background_bytes_per_s: u64,
    /// How many records of a page that is taken over are written at a time: whatever else this node does waits for those of
    /// one step.
    pub stored_at_once: usize,
    /// How long data that is to move waits for a member that is away and may be restarting.
    pub restart_ms: u64,
    /// The levels of requests that name none.
    pub read: Consistency,
    pub write: Consistency,
    pub durability: Durability,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            skew_ms_max: 500,
            requests_max: 8192,
            writes_max: 8192,
            write_bytes_max: 64 << 20,
            restamps_max: 20,
            digest_bytes_min: 1024,
            speculate_ms: 20,
            hint_bytes_max: 32 << 20,
            hint_age_ms_max: 3 * 3_600_000,
            background_bytes_per_s: 8 << 20,
            stored_at_once: 32,
            restart_ms: 30_000,
            read: Consistency::Quorum,
            write: Consistency::Quorum,
            durability: Durability::Synced,
        }
    }
}

/// Names loads and commits, whoever of the state machines asks for them: each knows its own by what it has kept.
#[derive(Debug, Default)]
pub(crate) struct EffectIds {
    load: u64,
    commit: u64,
}

impl EffectIds {
    pub(crate) fn next_load(&mut self) -> LoadId {
        self.load += 1;
        LoadId(self.load - 1)
    }

    pub(crate) fn next_commit(&mut self) -> CommitId {
        self.commit += 1;
        CommitId(self.commit - 1)
    }
}

/// Borrowed by a state machine for one event.
pub(crate) struct Context<'a> {
    pub(crate) now: Now,
    pub(crate) me: NodeId,
    pub(crate) layout: &'a Layout,
    pub(crate) settings: &'a Settings,
    pub(crate) peers: &'a Peers,
    /// What the members have said of themselves.
    pub(crate) evidence: &'a Evidence,
    pub(crate) clock: &'a mut HybridClock,
    /// Our own generation, durable.
    pub(crate) generation: Generation,
    /// See [`crate::id::Actor::minting`].
    pub(crate) trusted_since: Generation,
    pub(crate) actor: Actor,
    pub(crate) paces: &'a mut Paces,
    pub(crate) counters: &'a mut Counters,
    pub(crate) budget: &'a mut Budget,
    /// How many requests and writes are under way at this node: work of the background gives way to them.
    pub(crate) busy: usize,
    pub(crate) ids: &'a mut EffectIds,
    /// No stamp is issued before this moment: see [`crate::node::Start`].
    pub(crate) stamps_from_ms: u64,
    /// Messages to other nodes and to this one, delivered after the event.
    pub(crate) messages: &'a mut VecDeque<(NodeId, Message)>,
    pub(crate) effects: &'a mut Vec<Effect>,
}

impl Context<'_> {
    pub(crate) fn is_reachable(&self, node: NodeId) -> bool {
        node == self.me || self.peers.is_connected(node)
    }

    /// True if a replica of the new ring says that it has what the old one held.
    pub(crate) fn has_taken_over(&self, node: NodeId, partition: Partition) -> bool {
        self.evidence.get(&node).is_some_and(|standing| {
            standing.phase == self.layout.phase_since && standing.whole.contains(&partition)
        })
    }

    pub(crate) fn is_slow(&self, node: NodeId) -> bool {
        self.paces.is_slow(node, self.now.mono_ms)
    }

    /// How long a read waits for a replica before it asks another one as well.
    pub(crate) fn patience_ms(&self) -> u64 {
        self.paces.patience_ms(self.settings.speculate_ms, |node| self.is_reachable(node))
    }

    /// What answers about a partition carry; see [`Noted`].
    pub(crate) fn noted(&self, partition: Partition) -> Noted {
        let noted = |node: NodeId| if node == self.me { self.generation } else { self.peers.noted(node) };
        self.layout.replicas(partition).into_iter().map(noted).collect()
    }

    pub(crate) fn partition(&self, key: &RecordKey) -> Partition {
        key.partition(self.layout.partitions)
    }

    pub(crate) fn next_load(&mut self) -> LoadId {
        self.ids.next_load()
    }

    pub(crate) fn next_commit(&mut self) -> CommitId {
        self.ids.next_commit()
    }

    pub(crate) fn send(&mut self, to: NodeId, message: Message) {
        self.messages.push_back((to, message));
    }
}
