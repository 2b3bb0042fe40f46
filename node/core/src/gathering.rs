//! What the replicas of a partition answer to one question, as the coordinator of a read or a scan gathers it.
//!
//! As few are asked as can still make the level: those first that are in both rings while data moves, then ourselves, and
//! slow ones last. Who is overdue is no longer waited for, but may still answer. What a replica said before it was known
//! as a later generation does not count.

use std::cmp::Reverse;

use crate::context::Context;
use crate::effect::{Answer, Failure, FailureReason};
use crate::id::NodeId;
use crate::layout::REPLICATION_FACTOR_MAX;
use crate::message::Message;
use crate::mutant::{Mutant, is_on};
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
    /// All that were asked, in that order.
    asked: Vec<Asked<T>>,
}

#[derive(Debug)]
struct Asked<T> {
    node: NodeId,
    /// When it was asked last.
    at_ms: u64,
    /// It has not answered for so long that another one was asked in its place.
    is_overdue: bool,
    reply: Reply<T>,
}

impl<T> Gathering<T> {
    pub(crate) fn new(level: Consistency, sets: ReplicaSets) -> Self {
        Self { level, sets, asked: Vec::with_capacity(REPLICATION_FACTOR_MAX) }
    }

    /// Nobody has said anything yet, and these are to be asked.
    pub(crate) fn reissue(&mut self, sets: ReplicaSets) {
        self.sets = sets;
        if !is_on(Mutant::OperationsOutliveTheirEpoch) {
            self.asked.clear();
        }
    }

    pub(crate) fn level(&self) -> Consistency {
        self.level
    }

    pub(crate) fn sets(&self) -> &ReplicaSets {
        &self.sets
    }

    /// `None` of a node that was not asked.
    pub(crate) fn reply(&self, node: NodeId) -> Option<&Reply<T>> {
        self.asked(node).map(|asked| &asked.reply)
    }

    fn asked(&self, node: NodeId) -> Option<&Asked<T>> {
        self.asked.iter().find(|asked| asked.node == node)
    }

    fn asked_mut(&mut self, node: NodeId) -> Option<&mut Asked<T>> {
        self.asked.iter_mut().find(|asked| asked.node == node)
    }

    pub(crate) fn said(&self) -> impl Iterator<Item = (NodeId, &T)> {
        self.asked.iter().filter_map(|asked| match &asked.reply {
            Reply::Said(said) => Some((asked.node, said)),
            Reply::Pending | Reply::Failed => None,
        })
    }

    pub(crate) fn replies(&mut self) -> impl Iterator<Item = (NodeId, &mut Reply<T>)> {
        self.asked.iter_mut().map(|asked| (asked.node, &mut asked.reply))
    }

    pub(crate) fn has_said(&self, node: NodeId) -> bool {
        matches!(self.reply(node), Some(Reply::Said(_)))
    }

    /// How long a node that was asked and has not answered has been waited for.
    pub(crate) fn waited_ms(&self, node: NodeId, now_ms: u64) -> Option<u64> {
        let asked = self.asked(node).filter(|asked| matches!(asked.reply, Reply::Pending));
        asked.map(|asked| now_ms.saturating_sub(asked.at_ms))
    }

    /// True if another replica could be asked as well.
    pub(crate) fn has_others(&self) -> bool {
        self.sets.nodes().any(|node| self.asked(node).is_none())
    }

    /// True if the answers make the level.
    pub(crate) fn is_enough(&self) -> bool {
        self.makes(|asked| matches!(asked.reply, Reply::Said(_)))
    }

    /// True if somebody has answered or may soon.
    pub(crate) fn is_answered_soon(&self) -> bool {
        self.asked.iter().any(|asked| !matches!(asked.reply, Reply::Failed) && !asked.is_overdue)
    }

    /// Asks as few replicas as can still make the level; false if too few are left.
    pub(crate) fn ask(&mut self, context: &mut Context<'_>, question: impl Fn(&Self) -> Message) -> bool {
        let mut candidates: Vec<_> = self.sets.nodes().collect();
        let order =
            |node: NodeId| (context.is_slow(node), Reverse(self.sets.memberships(node)), node != context.me);
        candidates.sort_by_key(|node| order(*node));
        for node in candidates {
            let counts = |asked: &Asked<T>| match asked.reply {
                Reply::Pending => !asked.is_overdue,
                Reply::Said(_) => true,
                Reply::Failed => false,
            };
            if self.makes(counts) {
                return true;
            }
            let is_missed =
                self.sets.is_missed(node, self.level, |node| self.asked(*node).is_some_and(counts));
            if is_missed && self.asked(node).is_none() && context.is_reachable(node) {
                let question = question(self);
                self.ask_one(node, context, question);
            }
        }
        self.makes(|asked| !matches!(asked.reply, Reply::Failed))
    }

    /// Asks one, whatever it has said before.
    pub(crate) fn ask_one(&mut self, node: NodeId, context: &mut Context<'_>, question: Message) {
        let asked = Asked { node, at_ms: context.now.mono_ms, is_overdue: false, reply: Reply::Pending };
        match self.asked_mut(node) {
            Some(before) => *before = asked,
            None => self.asked.push(asked),
        }
        context.send(node, question);
    }

    /// Those who should have answered by now are slow: asks others in their place, without forgetting them.
    pub(crate) fn speculate(&mut self, context: &mut Context<'_>, question: impl Fn(&Self) -> Message) {
        let before = self.asked.len();
        for asked in &mut self.asked {
            asked.is_overdue |= matches!(asked.reply, Reply::Pending);
        }
        self.ask(context, question);
        context.counters.speculative_reads += u64::from(self.asked.len() > before);
    }

    /// Takes down the reply of a node that was asked.
    pub(crate) fn note(&mut self, from: NodeId, said: Reply<T>) {
        if let Some(asked) = self.asked_mut(from) {
            asked.reply = said;
        }
    }

    /// The link to a replica is gone; what a `restarted` one said before no longer counts.
    pub(crate) fn lose(&mut self, node: NodeId, restarted: bool) {
        if let Some(asked) = self.asked_mut(node)
            && (restarted || matches!(asked.reply, Reply::Pending))
        {
            asked.reply = Reply::Failed;
        }
    }

    pub(crate) fn failed(&self, reason: FailureReason) -> Answer {
        Answer::Failed(Failure { reason, acks: self.said().count(), needed: self.sets.needed(self.level) })
    }

    fn makes(&self, counts: impl Fn(&Asked<T>) -> bool) -> bool {
        self.sets.satisfied(self.level, |node| self.asked(*node).is_some_and(&counts))
    }
}
