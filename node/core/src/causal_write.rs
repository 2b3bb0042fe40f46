//! One write in a keyspace that keeps siblings, as its coordinator sees it: a replica gives it a dot, and what has
//! come of that is sent to the others.
//!
//! One replica alone is asked for a dot, ourselves if we are one: a second dot for one write would be a second
//! sibling to whoever has seen only the first. Another one is asked only if the first has surely applied nothing.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::causal::{Change, Context as CausalContext, Dot, OperationId};
use crate::context::Context;
use crate::effect::{Answer, Deadline, Failure, FailureReason, RequestId};
use crate::id::{Epoch, NodeId};
use crate::layout::KeyspaceMode;
use crate::message::{Call, Message, Mint, MintOutcome, Origin, Refusal, Write, WriteOutcome};
use crate::mutant::{Mutant, is_on};
use crate::partition::RecordKey;
use crate::quorum::{Consistency, Durability, ReplicaSets};
use crate::read::ReadOperation;
use crate::record::Record;
use crate::stamp::{CeilingReached, Stamp};
use crate::write::Verdict;

/// The attempts of such a write's calls: what it reads first has [`crate::read`]'s.
const MINT: u32 = 2;
const MERGE: u32 = 3;

/// What a replica has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reply {
    /// It could not be reached.
    NotAsked,
    /// Asked for a dot.
    Minting,
    /// It has given none, being about to take up another layout: that is waited for.
    Changing,
    /// Asked to merge.
    Merging,
    Held(Durability),
    /// It applied nothing of what it was asked last.
    Refused(Refusal),
    /// Its link broke: it may or may not have applied what it was asked.
    Lost,
}

/// What a client wants written.
pub(crate) struct CausalOrder {
    pub(crate) request: RequestId,
    pub(crate) key: RecordKey,
    pub(crate) value: Option<Bytes>,
    pub(crate) expires_ms: Option<u64>,
    /// `None` for a delete that is to remove whatever a quorum holds.
    pub(crate) context: Option<CausalContext>,
    pub(crate) operation: Option<OperationId>,
    pub(crate) level: Consistency,
    pub(crate) durability: Durability,
    pub(crate) deadline: Deadline,
}

#[derive(Debug)]
pub(crate) struct CausalWrite {
    pub(crate) request: RequestId,
    pub(crate) deadline: Deadline,
    key: RecordKey,
    value: Option<Bytes>,
    expires_ms: Option<u64>,
    context: CausalContext,
    operation: Option<OperationId>,
    level: Consistency,
    durability: Durability,
    sets: ReplicaSets,
    /// What the write is to remove, while that is being read.
    read: Option<ReadOperation>,
    stamp: Option<Stamp>,
    /// It was sent under an earlier layout: it may have been applied, whatever is said under this one.
    was_reissued: bool,
    /// The epoch in which a dot was asked for last.
    asked_in: Epoch,
    replies: BTreeMap<NodeId, Reply>,
    minted: Option<(Record, Option<Dot>)>,
}

impl CausalWrite {
    pub(crate) fn new(order: CausalOrder, sets: ReplicaSets) -> Self {
        let CausalOrder { request, key, value, expires_ms, context, operation, level, durability, deadline } =
            order;
        let read = context.is_none().then(|| {
            let level = match is_on(Mutant::BlindDeletesSeeOneReplica) {
                true => Consistency::One,
                false => Consistency::Quorum,
            };
            let what = (key.clone(), level, KeyspaceMode::Siblings);
            ReadOperation::new(request, deadline, what, sets.clone())
        });
        let context = context.unwrap_or_default();
        Self {
            request,
            deadline,
            key,
            value,
            expires_ms,
            context,
            operation,
            level,
            durability,
            sets,
            read,
            stamp: None,
            was_reissued: false,
            asked_in: Epoch(0),
            replies: BTreeMap::new(),
            minted: None,
        }
    }

    pub(crate) fn sets(&self) -> &ReplicaSets {
        &self.sets
    }

    /// Of key and value; the same until the client is answered.
    pub(crate) fn bytes(&self) -> usize {
        self.key.encoded().len() + self.value.as_ref().map_or(0, Bytes::len)
    }

    pub(crate) fn key(&self) -> &RecordKey {
        &self.key
    }

    /// The read that comes first, while it is under way.
    pub(crate) fn reading(&mut self) -> Option<&mut ReadOperation> {
        self.read.as_mut()
    }

    /// True until a replica was asked to apply something.
    pub(crate) fn is_unsent(&self) -> bool {
        self.stamp.is_none()
    }

    /// True if the next thing to do is to be stamped and given a dot.
    pub(crate) fn wants_stamp(&self) -> bool {
        self.read.is_none() && self.stamp.is_none()
    }

    /// The client was answered: what is left to be seen is who missed it, and that takes no value.
    pub(crate) fn forget_value(&mut self) {
        self.value = None;
        self.context = CausalContext::default();
        self.minted = None;
    }

    /// The replicas that may have missed it, now that nobody waits for it, and one that holds it, ourselves if we do.
    pub(crate) fn missed(&self, context: &Context<'_>) -> Option<(NodeId, Vec<NodeId>)> {
        let holders = self.replies.iter().filter(|(_, reply)| matches!(reply, Reply::Held(_)));
        let holder = holders
            .map(|(node, _)| *node)
            .min_by_key(|node| (*node != context.me, !context.is_reachable(*node)))?;
        let missed = self.replies.iter().filter(|(_, reply)| !matches!(reply, Reply::Held(_)));
        Some((holder, missed.map(|(node, _)| *node).collect()))
    }

    /// True while a replica may still say that it holds the write.
    pub(crate) fn is_awaited(&self) -> bool {
        self.replies.values().any(|reply| matches!(reply, Reply::Minting | Reply::Merging))
    }

    /// Goes on with the read that comes first; an answer if the write ends with it.
    pub(crate) fn advance_read(&mut self, operation: u64, context: &mut Context<'_>) -> Option<Answer> {
        match self.read.as_mut()?.advance(operation, context)? {
            Answer::Read(_) => {
                let read = self.read.take()?;
                if let Some(seen) = read.result().and_then(|record| record.reading(0).context) {
                    self.context = seen;
                }
                None
            }
            failed => Some(failed),
        }
    }

    /// Draws a stamp and asks for a dot. Fails while no stamp may be issued.
    pub(crate) fn send(&mut self, operation: u64, context: &mut Context<'_>) -> Result<(), CeilingReached> {
        if context.now.mono_ms < context.stamps_from_ms {
            return Err(CeilingReached);
        }
        self.stamp = Some(context.clock.issue(context.now.wall_ms)?);
        for node in self.sets.nodes() {
            self.replies.insert(node, Reply::NotAsked);
        }
        self.ask_for_dot(operation, context);
        Ok(())
    }

    /// True while a replica may be giving it a dot.
    pub(crate) fn is_minting(&self) -> bool {
        self.replies.values().any(|reply| *reply == Reply::Minting)
    }

    /// Begins from nothing under another layout. Only a dot is waited for further, whatever the epoch in which it is
    /// given: a second one would be a second sibling. It counts for nothing by itself.
    pub(crate) fn reissue(&mut self, sets: ReplicaSets, operation: u64, context: &mut Context<'_>) {
        self.sets = sets.clone();
        if let Some(read) = &mut self.read {
            read.reissue(sets);
        }
        if self.stamp.is_none() {
            return;
        }
        self.was_reissued = true;
        if !is_on(Mutant::OperationsOutliveTheirEpoch) {
            self.replies.retain(|_, reply| *reply == Reply::Minting);
        }
        for node in self.sets.nodes() {
            self.replies.entry(node).or_insert(Reply::NotAsked);
        }
        if let Some((record, _)) = self.minted.clone() {
            self.spread(operation, &record, context);
        }
    }

    /// Asks the next replica that was not asked; false if there is none.
    fn ask_for_dot(&mut self, operation: u64, context: &mut Context<'_>) -> bool {
        let is_open =
            |node: &NodeId| self.replies.get(node) == Some(&Reply::NotAsked) && context.is_reachable(*node);
        let open = self.sets.nodes().filter(is_open);
        let chosen = open.min_by_key(|node| (context.is_slow(*node), *node != context.me));
        let (Some(node), Some(stamp)) = (chosen, self.stamp) else { return false };
        self.replies.insert(node, Reply::Minting);
        self.asked_in = context.layout.epoch;
        let change = Change {
            stamp,
            // Nobody else has this stamp, so a write whose client has named none is told from all others by it.
            operation: self.operation.unwrap_or(OperationId(stamp.to_bytes())),
            context: self.context.clone(),
            value: self.value.clone(),
            expires_ms: self.expires_ms,
        };
        let call = Call { operation, attempt: MINT };
        let mint = Mint { call, key: self.key.clone(), change, deadline_wall_ms: self.deadline.wall_ms };
        context.send(node, Message::Mint(mint));
        true
    }

    pub(crate) fn note_minted(
        &mut self,
        from: NodeId,
        call: Call,
        outcome: MintOutcome,
        context: &mut Context<'_>,
    ) {
        if call.attempt != MINT {
            return;
        }
        let Some(reply @ (Reply::Minting | Reply::Lost)) = self.replies.get_mut(&from) else { return };
        match outcome {
            // Nothing was applied, and under the next layout it may be.
            MintOutcome::Refused(Refusal::StaleEpoch) => {
                let is_of_now = self.asked_in == context.layout.epoch;
                *reply = if is_of_now { Reply::Changing } else { Reply::NotAsked };
            }
            MintOutcome::Refused(refusal) => *reply = Reply::Refused(refusal),
            MintOutcome::Minted { record, dot } => {
                *reply = match self.was_reissued && !is_on(Mutant::OperationsOutliveTheirEpoch) {
                    true => Reply::NotAsked,
                    false => Reply::Held(Durability::Synced),
                };
                self.minted = Some((record.clone(), dot));
                self.spread(call.operation, &record, context);
            }
        }
    }

    /// Sends what has come of the write to everybody else.
    fn spread(&mut self, operation: u64, record: &Record, context: &mut Context<'_>) {
        for (node, reply) in &mut self.replies {
            if matches!(reply, Reply::Held(_)) || !context.is_reachable(*node) {
                continue;
            }
            *reply = Reply::Merging;
            let write = Write {
                call: Call { operation, attempt: MERGE },
                key: self.key.clone(),
                record: record.clone(),
                // A replica has accepted it: nobody may refuse it for its stamp.
                origin: Origin::Repair,
                durability: self.durability,
            };
            context.send(*node, Message::Write(write));
        }
    }

    pub(crate) fn note_merged(&mut self, from: NodeId, call: Call, outcome: WriteOutcome) {
        if call.attempt != MERGE {
            return;
        }
        if let Some(reply @ (Reply::Merging | Reply::Lost)) = self.replies.get_mut(&from) {
            *reply = match outcome {
                WriteOutcome::Held(durability) => Reply::Held(durability),
                // Siblings are never superseded; whoever says so holds something else under this key.
                WriteOutcome::Superseded(_) => Reply::Refused(Refusal::InDoubt),
                WriteOutcome::Refused(refusal) => Reply::Refused(refusal),
            };
        }
    }

    /// The link to a replica is gone; what a `restarted` one said before no longer counts.
    pub(crate) fn lose(&mut self, node: NodeId, restarted: bool) {
        if let Some(read) = &mut self.read {
            read.lose(node, restarted);
        }
        match self.replies.get_mut(&node) {
            Some(reply @ (Reply::Minting | Reply::Merging)) => *reply = Reply::Lost,
            Some(reply @ Reply::Held(_)) if restarted && !is_on(Mutant::SiblingsCountEarlierGenerations) => {
                *reply = Reply::Lost;
            }
            _ => {}
        }
    }

    /// What follows from what the replicas have said.
    pub(crate) fn judge(&mut self, operation: u64, context: &mut Context<'_>) -> Verdict {
        if self.minted.is_none() {
            return self.judge_unminted(operation, context);
        }
        let makes = |counts: fn(&Reply) -> bool| {
            self.sets.satisfied(self.level, |node| self.replies.get(node).is_some_and(counts))
        };
        if makes(|reply| matches!(reply, Reply::Held(_))) {
            return Verdict::End(self.done());
        }
        if makes(|reply| matches!(reply, Reply::Held(_) | Reply::Merging)) {
            return Verdict::Wait;
        }
        Verdict::End(self.failed(FailureReason::OutcomeUnknown))
    }

    fn judge_unminted(&mut self, operation: u64, context: &mut Context<'_>) -> Verdict {
        if self.replies.values().any(|reply| matches!(reply, Reply::Minting | Reply::Changing)) {
            return Verdict::Wait;
        }
        if self.replies.values().any(|reply| *reply == Reply::Lost) {
            return Verdict::End(self.failed(FailureReason::OutcomeUnknown));
        }
        let refusal = self.replies.values().find_map(|reply| match reply {
            Reply::Refused(refusal) => Some(*refusal),
            _ => None,
        });
        // Too many siblings are too many everywhere.
        let is_final = refusal == Some(Refusal::TooManySiblings);
        if !is_final && self.ask_for_dot(operation, context) {
            return Verdict::Wait;
        }
        let reason = refusal.map_or(FailureReason::QuorumUnreachable, FailureReason::Refused);
        Verdict::End(self.failed(if self.was_reissued { FailureReason::OutcomeUnknown } else { reason }))
    }

    pub(crate) fn failed(&self, reason: FailureReason) -> Answer {
        Answer::Failed(Failure { reason, acks: self.acks(), needed: self.sets.needed(self.level) })
    }

    fn acks(&self) -> usize {
        self.replies.values().filter(|reply| matches!(reply, Reply::Held(_))).count()
    }

    fn done(&self) -> Answer {
        let held = self.replies.values().filter_map(|reply| match reply {
            Reply::Held(durability) => Some(*durability),
            _ => None,
        });
        let (Some(stamp), Some((_, dot))) = (self.stamp, &self.minted) else {
            return self.failed(FailureReason::OutcomeUnknown);
        };
        let mut seen = self.context.clone();
        if let Some(dot) = dot {
            seen.insert(*dot);
        }
        let context = Some(seen.to_token(&self.key));
        Answer::Written { stamp, acks: self.acks(), durability: held.min().unwrap_or_default(), context }
    }
}
