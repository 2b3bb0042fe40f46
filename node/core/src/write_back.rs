//! What a read or a scan has come to, brought to replicas that do not hold it.
//!
//! Where fewer than a quorum hold it, it is written back to all in reach, and nothing is answered before a quorum holds
//! it. Where enough do, those that are known to be behind are sent it, and nobody waits.

use std::collections::BTreeSet;

use crate::context::Context;
use crate::gathering::Gathering;
use crate::id::NodeId;
use crate::message::{Call, Message, Origin, Write, WriteOutcome};
use crate::mutant::{Mutant, is_on};
use crate::partition::RecordKey;
use crate::quorum::{Consistency, Durability, ReplicaSets};
use crate::record::Record;

/// The call of a repair whose answer nobody waits for.
const UNWATCHED: Call = Call { operation: 0, attempt: 0 };

#[derive(Debug)]
pub(crate) struct WriteBack {
    /// Those that hold the result or something higher, durably.
    holds: BTreeSet<NodeId>,
    /// Those that may still say that they do.
    awaited: BTreeSet<NodeId>,
}

impl WriteBack {
    /// True if nothing has to be written back before the answer: the level asks for no quorum, or it is held by one.
    pub(crate) fn is_needless<T>(holds: &BTreeSet<NodeId>, gathering: &Gathering<T>) -> bool {
        gathering.level() == Consistency::One
            || gathering.sets().satisfied(Consistency::Quorum, |node| holds.contains(node))
    }

    /// Nothing is sent: these hold it, and are to hold it still when the answer is given.
    pub(crate) fn held_by(holds: BTreeSet<NodeId>) -> Self {
        Self { holds, awaited: BTreeSet::new() }
    }

    /// Sends the result to those that do not hold it. Without a call, since enough do, there is nothing to wait for.
    pub(crate) fn send<T>(
        (call, key, record): (Option<Call>, &RecordKey, &Record),
        holds: BTreeSet<NodeId>,
        gathering: &Gathering<T>,
        context: &mut Context<'_>,
    ) -> Option<Self> {
        let mut awaited = BTreeSet::new();
        for node in gathering.sets().nodes() {
            // Those that answered are known to be behind; the others are written to only if they are needed.
            let is_wanted = call.is_some() || gathering.has_said(node);
            if holds.contains(&node) || !context.is_reachable(node) || !is_wanted {
                continue;
            }
            awaited.insert(node);
            let (call, key, record) = (call.unwrap_or(UNWATCHED), key.clone(), record.clone());
            let (origin, durability) = (Origin::Repair, Durability::Synced);
            context.send(node, Message::Write(Write { call, key, record, origin, durability }));
        }
        if call.is_none() {
            context.counters.read_repairs += awaited.len() as u64;
            return None;
        }
        context.counters.write_backs += 1;
        Some(Self { holds, awaited })
    }

    pub(crate) fn note(&mut self, from: NodeId, outcome: WriteOutcome) {
        if self.awaited.remove(&from)
            && matches!(outcome, WriteOutcome::Held(_) | WriteOutcome::Superseded(_))
        {
            self.holds.insert(from);
        }
    }

    /// The link to a replica is gone; what a `restarted` one said before no longer counts.
    pub(crate) fn lose(&mut self, node: NodeId, restarted: bool) {
        self.awaited.remove(&node);
        if restarted && !is_on(Mutant::WriteBacksCountEarlierGenerations) {
            self.holds.remove(&node);
        }
    }

    pub(crate) fn is_held(&self, sets: &ReplicaSets) -> bool {
        sets.satisfied(Consistency::Quorum, |node| self.holds.contains(node))
    }

    /// True once a quorum cannot be reached any more.
    pub(crate) fn is_lost(&self, sets: &ReplicaSets) -> bool {
        let may_hold = |node: &NodeId| self.holds.contains(node) || self.awaited.contains(node);
        !sets.satisfied(Consistency::Quorum, may_hold)
    }
}
