//! What the replicas of a partition answer to one question, as the coordinator of a read or a scan gathers it.
//!
//! As many are asked as can still make the level, ourselves first and slow ones last. Who is overdue is no longer
//! waited for, but may still answer. What a replica said before it was known as a later generation does not count.

use std::collections::{BTreeMap, BTreeSet};

use crate::context::Context;
use crate::effect::{Answer, Failure, FailureReason};
use crate::id::NodeId;
use crate::message::Message;
use crate::quorum::{Consistency, ReplicaSets};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply<T> {
    Pending,
    Said(T),
    /// It refused, or its link broke.
    Failed,
}

#[derive(Debug)]
pub(crate) struct Gathering<T> {
    level: Consistency,
    sets: ReplicaSets,
    /// Of all that were asked.
    replies: BTreeMap<NodeId, Reply<T>>,
    /// Those that were asked and have not answered for so long that another one was asked in their place.
    overdue: BTreeSet<NodeId>,
}

impl<T> Gathering<T> {
    pub(crate) fn new(level: Consistency, sets: ReplicaSets) -> Self {
        Self { level, sets, replies: BTreeMap::new(), overdue: BTreeSet::new() }
    }

    pub(crate) fn level(&self) -> Consistency {
        self.level
    }

    pub(crate) fn sets(&self) -> &ReplicaSets {
        &self.sets
    }

    /// `None` of a node that was not asked.
    pub(crate) fn reply(&self, node: NodeId) -> Option<&Reply<T>> {
        self.replies.get(&node)
    }

    pub(crate) fn said(&self) -> impl Iterator<Item = (NodeId, &T)> {
        self.replies.iter().filter_map(|(node, reply)| match reply {
            Reply::Said(said) => Some((*node, said)),
            Reply::Pending | Reply::Failed => None,
        })
    }

    pub(crate) fn replies(&mut self) -> impl Iterator<Item = (NodeId, &mut Reply<T>)> {
        self.replies.iter_mut().map(|(node, reply)| (*node, reply))
    }

    pub(crate) fn has_said(&self, node: NodeId) -> bool {
        matches!(self.reply(node), Some(Reply::Said(_)))
    }

    /// True if the answers make the level.
    pub(crate) fn is_enough(&self) -> bool {
        self.makes(|_, reply| matches!(reply, Reply::Said(_)))
    }

    /// True if somebody has answered or may soon.
    pub(crate) fn is_answered_soon(&self) -> bool {
        let may_answer =
            |(node, reply): (_, &_)| !matches!(reply, Reply::Failed) && !self.overdue.contains(node);
        self.replies.iter().any(may_answer)
    }

    /// Asks as many replicas as can still make the level; false if too few are left.
    pub(crate) fn ask(&mut self, context: &mut Context<'_>, question: impl Fn(&Self) -> Message) -> bool {
        let mut candidates: Vec<_> = self.sets.nodes().collect();
        candidates.sort_by_key(|node| (context.is_slow(*node), *node != context.me));
        for node in candidates {
            let counts = |node: &NodeId, reply: &Reply<T>| match reply {
                Reply::Pending => !self.overdue.contains(node),
                Reply::Said(_) => true,
                Reply::Failed => false,
            };
            if self.makes(counts) {
                return true;
            }
            if !self.replies.contains_key(&node) && context.is_reachable(node) {
                let question = question(self);
                self.ask_one(node, context, question);
            }
        }
        self.makes(|_, reply| !matches!(reply, Reply::Failed))
    }

    /// Asks one, whatever it has said before.
    pub(crate) fn ask_one(&mut self, node: NodeId, context: &mut Context<'_>, question: Message) {
        self.overdue.remove(&node);
        self.replies.insert(node, Reply::Pending);
        context.send(node, question);
    }

    /// Those who should have answered by now are slow: asks others in their place, without forgetting them.
    pub(crate) fn speculate(&mut self, context: &mut Context<'_>, question: impl Fn(&Self) -> Message) {
        let asked = self.replies.len();
        let pending = self.replies.iter().filter(|(_, reply)| matches!(reply, Reply::Pending));
        self.overdue.extend(pending.map(|(node, _)| *node));
        self.ask(context, question);
        context.counters.speculative_reads += u64::from(self.replies.len() > asked);
    }

    /// Takes down the reply of a node that was asked.
    pub(crate) fn note(&mut self, from: NodeId, said: Reply<T>) {
        if let Some(reply) = self.replies.get_mut(&from) {
            *reply = said;
        }
    }

    /// The link to a replica is gone; what a `restarted` one said before no longer counts.
    pub(crate) fn lose(&mut self, node: NodeId, restarted: bool) {
        if let Some(reply) = self.replies.get_mut(&node)
            && (restarted || matches!(reply, Reply::Pending))
        {
            *reply = Reply::Failed;
        }
    }

    pub(crate) fn failed(&self, reason: FailureReason) -> Answer {
        let acks = self.replies.values().filter(|reply| matches!(reply, Reply::Said(_))).count();
        Answer::Failed(Failure { reason, acks, needed: self.sets.needed(self.level) })
    }

    fn makes(&self, counts: impl Fn(&NodeId, &Reply<T>) -> bool) -> bool {
        self.sets
            .satisfied(self.level, |node| self.replies.get(node).is_some_and(|reply| counts(node, reply)))
    }
}
