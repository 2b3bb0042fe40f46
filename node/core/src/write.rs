//! One write as its coordinator sees it: which replicas hold it, and what follows from that.

use std::collections::BTreeMap;

use crate::context::Context;
use crate::effect::{Answer, Deadline, Failure, FailureReason, RequestId};
use crate::id::NodeId;
use crate::message::{Call, Message, Origin, Refusal, Write, WriteOutcome};
use crate::mutant::{Mutant, is_on};
use crate::partition::RecordKey;
use crate::quorum::{Consistency, Durability, ReplicaSets};
use crate::record::{Body, Record};
use crate::stamp::{CeilingReached, Stamp};

/// What a replica has said of the present attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reply {
    /// It could not be reached when the attempt began.
    NotAsked,
    Pending,
    Held(Durability),
    Superseded(Stamp),
    Refused(Refusal),
    /// Its link broke: it may or may not have applied the write.
    Lost,
}

#[derive(Debug)]
pub(crate) struct WriteOperation {
    pub(crate) request: RequestId,
    pub(crate) deadline: Deadline,
    key: RecordKey,
    body: Body,
    level: Consistency,
    durability: Durability,
    sets: ReplicaSets,
    replies: BTreeMap<NodeId, Reply>,
    /// 0 until the first stamp is issued.
    attempt: u32,
    stamp: Option<Stamp>,
}

/// What is to be done about a write after something changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Wait,
    /// A higher stamp stands in the way: stamp anew, above it.
    StampAnew,
    End(Answer),
}

/// What a client wants written.
pub(crate) struct WriteOrder {
    pub(crate) request: RequestId,
    pub(crate) key: RecordKey,
    pub(crate) body: Body,
    pub(crate) level: Consistency,
    pub(crate) durability: Durability,
    pub(crate) deadline: Deadline,
}

impl WriteOperation {
    pub(crate) fn new(order: WriteOrder, sets: ReplicaSets) -> Self {
        let WriteOrder { request, key, body, level, durability, deadline } = order;
        Self {
            request,
            deadline,
            key,
            body,
            level,
            durability,
            sets,
            replies: BTreeMap::new(),
            attempt: 0,
            stamp: None,
        }
    }

    pub(crate) fn sets(&self) -> &ReplicaSets {
        &self.sets
    }

    /// Of key and value; the same until the client is answered.
    pub(crate) fn bytes(&self) -> usize {
        self.key.encoded().len() + self.body.payload_len()
    }

    pub(crate) fn key(&self) -> &RecordKey {
        &self.key
    }

    /// The client was answered: what is left to be seen is who missed it, and that takes no value.
    pub(crate) fn forget_value(&mut self) {
        self.body = Body::Tombstone;
    }

    /// The replicas that may have missed it, now that nobody waits for it, and one that holds it, ourselves if we do.
    pub(crate) fn missed(&self, context: &Context<'_>) -> Option<(NodeId, Vec<NodeId>)> {
        let holds = |reply: &Reply| matches!(reply, Reply::Held(_) | Reply::Superseded(_));
        let holders = self.replies.iter().filter(|(_, reply)| matches!(reply, Reply::Held(_)));
        let holder = holders
            .map(|(node, _)| *node)
            .min_by_key(|node| (*node != context.me, !context.is_reachable(*node)))?;
        let missed = self.replies.iter().filter(|(_, reply)| !holds(reply));
        Some((holder, missed.map(|(node, _)| *node).collect()))
    }

    /// True while a replica may still say that it holds the write.
    pub(crate) fn is_awaited(&self) -> bool {
        self.replies.values().any(|reply| *reply == Reply::Pending)
    }

    /// True until the write has been sent for the first time.
    pub(crate) fn is_unsent(&self) -> bool {
        self.attempt == 0
    }

    /// Stamps the write and sends it to every replica that can be reached. Fails while no stamp may be issued.
    pub(crate) fn send(&mut self, operation: u64, context: &mut Context<'_>) -> Result<(), CeilingReached> {
        if context.now.mono_ms < context.stamps_from_ms {
            return Err(CeilingReached);
        }
        let stamp = context.clock.issue(context.now.wall_ms)?;
        self.stamp = Some(stamp);
        self.attempt += 1;
        context.counters.stamped_anew += u64::from(self.attempt > 1);
        self.replies.clear();
        self.spread(stamp, operation, context);
        Ok(())
    }

    fn spread(&mut self, stamp: Stamp, operation: u64, context: &mut Context<'_>) {
        for node in self.sets.nodes() {
            if matches!(self.replies.get(&node), Some(Reply::Held(_))) {
                continue;
            }
            if !context.is_reachable(node) {
                self.replies.insert(node, Reply::NotAsked);
                continue;
            }
            self.replies.insert(node, Reply::Pending);
            let write = Write {
                call: Call { operation, attempt: self.attempt },
                key: self.key.clone(),
                record: Record { stamp, body: self.body.clone() },
                origin: Origin::Client { deadline_wall_ms: self.deadline.wall_ms },
                durability: self.durability,
            };
            context.send(node, Message::Write(write));
        }
    }

    /// Begins from nothing under another layout, with the stamp that it has: what was said before counts no longer.
    pub(crate) fn reissue(&mut self, sets: ReplicaSets, operation: u64, context: &mut Context<'_>) {
        self.sets = sets;
        let Some(mut stamp) = self.stamp else { return };
        if is_on(Mutant::ReissuedAreStampedAnew)
            && let Ok(another) = context.clock.issue(context.now.wall_ms)
        {
            stamp = another;
        }
        if is_on(Mutant::ReissuedLastLonger) {
            self.deadline.wall_ms += 1_000;
        }
        if !is_on(Mutant::OperationsOutliveTheirEpoch) {
            self.replies.clear();
        }
        self.attempt += 1;
        self.spread(stamp, operation, context);
    }

    /// Notes an answer, unless it belongs to an earlier attempt: another stamp's acknowledgements do not count.
    pub(crate) fn note(&mut self, from: NodeId, attempt: u32, outcome: WriteOutcome) {
        if attempt != self.attempt && !is_on(Mutant::EarlierAttemptsCount) {
            return;
        }
        if let Some(reply @ (Reply::Pending | Reply::Lost)) = self.replies.get_mut(&from) {
            *reply = match outcome {
                WriteOutcome::Held(durability) => Reply::Held(durability),
                WriteOutcome::Superseded(stamp) => Reply::Superseded(stamp),
                WriteOutcome::Refused(refusal) => Reply::Refused(refusal),
            };
        }
    }

    /// The link to a replica is gone; `restarted` if it came back as a later generation, whose earlier
    /// acknowledgements no longer count.
    pub(crate) fn lose(&mut self, node: NodeId, restarted: bool) {
        match self.replies.get_mut(&node) {
            Some(reply @ Reply::Pending) => *reply = Reply::Lost,
            Some(reply @ Reply::Held(_)) if restarted && !is_on(Mutant::EarlierGenerationsCount) => {
                *reply = Reply::Lost;
            }
            _ => {}
        }
    }

    /// The highest stamp that stands in the way.
    pub(crate) fn superseded_by(&self) -> Option<Stamp> {
        let stamp = |reply: &Reply| {
            if let Reply::Superseded(stamp) = reply { Some(*stamp) } else { None }
        };
        self.replies.values().filter_map(stamp).max()
    }

    pub(crate) fn judge(&self, restamps_max: u32) -> Verdict {
        use Reply::{Held, NotAsked, Pending, Superseded};
        let makes = |counts: fn(&Reply) -> bool| {
            self.sets.satisfied(self.level, |node| self.replies.get(node).is_some_and(counts))
        };
        let is_one_short = is_on(Mutant::OneAckFewer) && self.acks() + 1 >= self.sets.needed(self.level);
        let counts_more = is_on(Mutant::SupersededCounts)
            && makes(|reply| matches!(reply, Held(_) | Superseded(_)))
            || is_on(Mutant::HintsCount) && makes(|reply| matches!(reply, Held(_) | NotAsked));
        if makes(|reply| matches!(reply, Held(_))) || is_one_short && self.acks() > 0 || counts_more {
            return Verdict::End(self.done());
        }
        if makes(|reply| matches!(reply, Held(_) | Pending)) {
            return Verdict::Wait;
        }
        let would_do = makes(|reply| matches!(reply, Held(_) | Pending | Superseded(_)));
        if would_do && self.attempt <= restamps_max {
            return Verdict::StampAnew;
        }
        self.judge_failed()
    }

    /// The quorum can no longer be reached: did nobody apply anything, or can that not be told?
    fn judge_failed(&self) -> Verdict {
        let untouched = |reply: &Reply| {
            matches!(reply, Reply::NotAsked | Reply::Refused(_))
                || is_on(Mutant::LostIsCalledFailed) && *reply == Reply::Lost
        };
        let pending = |reply: &Reply| matches!(reply, Reply::Pending);
        if self.attempt > 1 || !self.replies.values().all(|reply| untouched(reply) || pending(reply)) {
            return Verdict::End(self.failed(FailureReason::OutcomeUnknown));
        }
        if self.replies.values().any(pending) {
            // Those may refuse as well, and then nothing was applied: worth the wait within the deadline.
            return Verdict::Wait;
        }
        let refusal = self.replies.values().find_map(|reply| match reply {
            Reply::Refused(refusal) => Some(*refusal),
            _ => None,
        });
        Verdict::End(self.failed(refusal.map_or(FailureReason::QuorumUnreachable, FailureReason::Refused)))
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
        match self.stamp {
            Some(stamp) => {
                let durability = held.min().unwrap_or_default();
                Answer::Written { stamp, acks: self.acks(), durability, context: None }
            }
            None => self.failed(FailureReason::OutcomeUnknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Actor;

    fn node(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    fn operation(attempt: u32, replies: [Reply; 3]) -> WriteOperation {
        let order = WriteOrder {
            request: RequestId(1),
            key: RecordKey::new("default", b"k").unwrap(),
            body: Body::Tombstone,
            level: Consistency::Quorum,
            durability: Durability::Synced,
            deadline: Deadline { mono_ms: 0, wall_ms: 0 },
        };
        let sets = ReplicaSets::new(vec![vec![node(1), node(2), node(3)]]);
        let replies = [node(1), node(2), node(3)].into_iter().zip(replies).collect();
        WriteOperation { attempt, stamp: Some(stamp(5)), replies, ..WriteOperation::new(order, sets) }
    }

    fn stamp(millis: u64) -> Stamp {
        Stamp::new(millis, 0, Actor(1))
    }

    #[test]
    fn a_write_is_judged_by_what_its_replicas_said() {
        use Reply::{Lost, NotAsked, Pending};
        let held = Reply::Held(Durability::Synced);
        let higher = Reply::Superseded(stamp(9));
        let full = Reply::Refused(Refusal::DiskFull);
        let failed = |reason, acks| Verdict::End(Answer::Failed(Failure { reason, acks, needed: 2 }));
        let unknown = |acks| failed(FailureReason::OutcomeUnknown, acks);
        let done =
            Answer::Written { stamp: stamp(5), acks: 2, durability: Durability::Synced, context: None };
        let cases = [
            (1, [Pending, Pending, Pending], Verdict::Wait),
            (1, [held, Pending, Pending], Verdict::Wait),
            (1, [held, held, Pending], Verdict::End(done)),
            (1, [held, Lost, Pending], Verdict::Wait),
            (1, [held, Lost, Lost], unknown(1)),
            (1, [held, full, full], unknown(1)),
            (1, [Lost, Pending, NotAsked], unknown(0)),
            (1, [full, full, Pending], Verdict::Wait),
            (1, [full, full, full], failed(FailureReason::Refused(Refusal::DiskFull), 0)),
            (1, [full, full, NotAsked], failed(FailureReason::Refused(Refusal::DiskFull), 0)),
            (1, [higher, higher, Pending], Verdict::StampAnew),
            (1, [higher, held, Lost], Verdict::StampAnew),
            (1, [higher, Lost, Lost], unknown(0)),
            (9, [higher, higher, higher], unknown(0)),
            (2, [full, full, full], unknown(0)),
        ];
        for (attempt, replies, verdict) in cases {
            assert_eq!(operation(attempt, replies).judge(5), verdict, "{attempt} {replies:?}");
        }
    }

    #[test]
    fn the_reply_names_the_least_durability_that_counted() {
        let replies = [Reply::Held(Durability::Synced), Reply::Held(Durability::Periodic), Reply::Pending];
        let Verdict::End(Answer::Written { durability, .. }) = operation(1, replies).judge(5) else {
            panic!()
        };
        assert_eq!(durability, Durability::Periodic);
    }

    #[test]
    fn an_answer_to_an_earlier_attempt_does_not_count() {
        let mut write = operation(2, [Reply::Pending; 3]);
        write.note(node(1), 1, WriteOutcome::Held(Durability::Synced));
        write.note(node(2), 2, WriteOutcome::Held(Durability::Synced));
        assert_eq!(write.acks(), 1);
    }

    #[test]
    fn an_acknowledgement_of_an_earlier_generation_does_not_count() {
        let held = Reply::Held(Durability::Synced);
        let mut write = operation(1, [held, Reply::Pending, Reply::Pending]);
        write.lose(node(1), false);
        assert_eq!(write.acks(), 1, "a broken link takes no acknowledgement back");
        write.lose(node(1), true);
        assert_eq!(write.acks(), 0);
    }
}
