//! One read as its coordinator sees it: one full answer and digests from others, merged; written back to a quorum
//! before the answer where fewer hold it.

use std::collections::{BTreeMap, BTreeSet};

use crate::context::Context;
use crate::effect::{Answer, Deadline, Failure, FailureReason, RequestId, Values};
use crate::id::NodeId;
use crate::layout::KeyspaceMode;
use crate::message::{Call, Message, Origin, ReadOutcome, Want, Write, WriteOutcome};
use crate::mutant::{Mutant, is_on};
use crate::partition::RecordKey;
use crate::quorum::{Consistency, Durability, ReplicaSets};
use crate::record::{Record, Version};

/// The call of a repair whose answer nobody waits for.
pub(crate) const UNWATCHED: Call = Call { operation: 0, attempt: 0 };

/// The attempts of a read's calls: asking, and writing back.
const GATHER: u32 = 0;
const WRITE_BACK: u32 = 1;

/// How long a replica that was slow once is asked after the others.
const SLOW_MS: u64 = 1_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reply {
    Pending,
    /// It holds this version; `None`: nothing.
    Holds(Option<Version>),
    /// It refused, or its link broke.
    Failed,
}

/// What a replica has said of the write-back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WriteBack {
    Pending,
    /// It holds the result or something higher, durably.
    Holds,
    Failed,
}

#[derive(Debug)]
pub(crate) struct ReadOperation {
    pub(crate) request: RequestId,
    pub(crate) deadline: Deadline,
    key: RecordKey,
    level: Consistency,
    sets: ReplicaSets,
    replies: BTreeMap<NodeId, Reply>,
    mode: KeyspaceMode,
    /// Those that were asked and have not answered for so long that another one was asked in their place.
    overdue: BTreeSet<NodeId>,
    /// What came of the records received in full.
    best: Option<Record>,
    /// `None` while answers are gathered.
    write_back: Option<BTreeMap<NodeId, WriteBack>>,
    /// The wall clock by which it was decided what has expired: what expires while that is written back is answered
    /// still, since no mark of it was written.
    decided_ms: u64,
}

impl ReadOperation {
    pub(crate) fn new(
        request: RequestId,
        deadline: Deadline,
        (key, level, mode): (RecordKey, Consistency, KeyspaceMode),
        sets: ReplicaSets,
    ) -> Self {
        let level = if is_on(Mutant::OneReplicaIsRead) { level.min(Consistency::One) } else { level };
        Self {
            request,
            deadline,
            key,
            level,
            sets,
            replies: BTreeMap::new(),
            mode,
            overdue: BTreeSet::new(),
            best: None,
            write_back: None,
            decided_ms: 0,
        }
    }

    pub(crate) fn sets(&self) -> &ReplicaSets {
        &self.sets
    }

    /// What the read has come to.
    pub(crate) fn result(&self) -> Option<&Record> {
        self.best.as_ref()
    }

    /// True while replicas are asked: one that is slow may be given up in favour of another.
    pub(crate) fn is_gathering(&self) -> bool {
        self.write_back.is_none()
    }

    /// Those who should have answered by now are slow: asks others in their place, without forgetting them.
    pub(crate) fn speculate(&mut self, operation: u64, context: &mut Context<'_>) {
        let asked = self.replies.len();
        for (node, reply) in &self.replies {
            if *reply == Reply::Pending {
                self.overdue.insert(*node);
                context.slow.insert(*node, context.now.mono_ms + SLOW_MS);
            }
        }
        self.ask(operation, context);
        context.counters.speculative_reads += u64::from(self.replies.len() > asked);
    }

    pub(crate) fn note_read(&mut self, from: NodeId, outcome: ReadOutcome) {
        if self.write_back.is_some() {
            return;
        }
        let Some(reply) = self.replies.get_mut(&from) else {
            return;
        };
        *reply = match outcome {
            ReadOutcome::Missing => Reply::Holds(None),
            ReadOutcome::Digest(version) => Reply::Holds(Some(version)),
            ReadOutcome::Refused(_) => Reply::Failed,
            ReadOutcome::Full(record) => {
                let version = record.version();
                self.best = Some(match self.best.take() {
                    Some(best) => best.merge(record),
                    None => record,
                });
                Reply::Holds(Some(version))
            }
        };
    }

    pub(crate) fn note_write_back(&mut self, from: NodeId, attempt: u32, outcome: WriteOutcome) {
        if attempt != WRITE_BACK {
            return;
        }
        if let Some(reply @ WriteBack::Pending) =
            self.write_back.as_mut().and_then(|replies| replies.get_mut(&from))
        {
            *reply = match outcome {
                WriteOutcome::Held(_) | WriteOutcome::Superseded(_) => WriteBack::Holds,
                WriteOutcome::Refused(_) => WriteBack::Failed,
            };
        }
    }

    /// The link to a replica is gone; what a `restarted` one said before no longer counts.
    pub(crate) fn lose(&mut self, node: NodeId, restarted: bool) {
        match self.replies.get_mut(&node) {
            Some(reply @ Reply::Pending) => *reply = Reply::Failed,
            Some(reply @ Reply::Holds(_)) if restarted => *reply = Reply::Failed,
            _ => {}
        }
        match self.write_back.as_mut().and_then(|replies| replies.get_mut(&node)) {
            Some(reply @ WriteBack::Pending) => *reply = WriteBack::Failed,
            Some(reply @ WriteBack::Holds) if restarted => *reply = WriteBack::Failed,
            _ => {}
        }
    }

    /// Does what is to be done next; the answer once there is one.
    pub(crate) fn advance(&mut self, operation: u64, context: &mut Context<'_>) -> Option<Answer> {
        if self.write_back.is_some() {
            if is_on(Mutant::ExpiryByALaterClock) {
                self.decided_ms = context.now.wall_ms;
            }
            return self.judge_write_back();
        }
        if !self.ask(operation, context) {
            return Some(self.failed(FailureReason::QuorumUnreachable));
        }
        if !self.sets.satisfied(self.level, |node| matches!(self.replies.get(node), Some(Reply::Holds(_)))) {
            return None;
        }
        let Some(highest) = self.highest() else {
            return Some(Answer::Read(Values::default()));
        };
        // Siblings are asked for in full, so what they come to is here.
        let are_equal = self.mode == KeyspaceMode::Siblings || is_on(Mutant::DigestsAreIgnored);
        let is_full = |best: &&Record| are_equal || best.version() >= highest;
        let best = self.best.as_ref().filter(is_full).cloned();
        let Some(best) = best else {
            let is_asked = self.fetch(highest, operation, context);
            // Those that held it count no longer, so this ends.
            return if is_asked { None } else { self.advance(operation, context) };
        };
        self.conclude(best, operation, context)
    }

    pub(crate) fn failed(&self, reason: FailureReason) -> Answer {
        let acks = self.replies.values().filter(|reply| matches!(reply, Reply::Holds(_))).count();
        Answer::Failed(Failure { reason, acks, needed: self.sets.needed(self.level) })
    }

    /// Asks as many replicas as can still make the level, ourselves first and slow ones last; false if too few are
    /// left.
    fn ask(&mut self, operation: u64, context: &mut Context<'_>) -> bool {
        let mut candidates = self.sets.nodes();
        candidates.sort_by_key(|node| (context.is_slow(*node), *node != context.me));
        for node in candidates {
            let counts = |node: &NodeId| match self.replies.get(node) {
                Some(Reply::Pending) => !self.overdue.contains(node),
                Some(Reply::Holds(_)) => true,
                Some(Reply::Failed) | None => false,
            };
            if self.sets.satisfied(self.level, counts) {
                return true;
            }
            if self.replies.contains_key(&node) || !context.is_reachable(node) {
                continue;
            }
            let want = self.want();
            self.send_read(node, want, operation, context);
        }
        self.sets.satisfied(self.level, |node| {
            matches!(self.replies.get(node), Some(Reply::Pending | Reply::Holds(_)))
        })
    }

    /// One whole record is enough where the highest stays; of siblings, each one may have some that no other has.
    fn want(&self) -> Want {
        let is_answering =
            |(node, reply): (&NodeId, &Reply)| *reply != Reply::Failed && !self.overdue.contains(node);
        match self.mode {
            KeyspaceMode::Lww if self.replies.iter().any(is_answering) => Want::Digest,
            KeyspaceMode::Lww | KeyspaceMode::Siblings => Want::Full,
        }
    }

    fn send_read(&mut self, node: NodeId, want: Want, operation: u64, context: &mut Context<'_>) {
        self.replies.insert(node, Reply::Pending);
        let call = Call { operation, attempt: GATHER };
        context.send(node, Message::Read { call, key: self.key.clone(), want });
    }

    fn highest(&self) -> Option<Version> {
        let version = |reply: &Reply| {
            if let Reply::Holds(version) = reply { *version } else { None }
        };
        self.replies.values().filter_map(version).max()
    }

    /// Asks one that holds the highest version for the whole record. False if none of them can be reached any more:
    /// what they have said is then of no use, and others have to be asked.
    fn fetch(&mut self, highest: Version, operation: u64, context: &mut Context<'_>) -> bool {
        let holders = self.replies.iter().filter(|(_, reply)| **reply == Reply::Holds(Some(highest)));
        let holders: Vec<_> = holders.map(|(node, _)| *node).collect();
        let reachable = holders.iter().filter(|node| context.is_reachable(**node));
        let Some(holder) = reachable.min_by_key(|node| context.is_slow(**node)).copied() else {
            self.replies.extend(holders.into_iter().map(|node| (node, Reply::Failed)));
            return false;
        };
        self.overdue.remove(&holder);
        self.send_read(holder, Want::Full, operation, context);
        true
    }

    /// Answers at once if enough hold the result; else writes it back first. What has expired is marked so first,
    /// and the mark written back: a clock that is behind must not see the value again.
    fn conclude(&mut self, best: Record, operation: u64, context: &mut Context<'_>) -> Option<Answer> {
        self.decided_ms = context.now.wall_ms;
        let marked = best
            .expired(self.decided_ms)
            .filter(|_| self.level != Consistency::One && !is_on(Mutant::NoExpiredMark));
        context.counters.expired_marks += u64::from(marked.is_some());
        let best = marked.unwrap_or(best);
        let version = best.version();
        let holds = |node: &NodeId| self.replies.get(node) == Some(&Reply::Holds(Some(version)));
        let enough = self.level == Consistency::One || self.sets.satisfied(Consistency::Quorum, holds);
        let enough = enough || is_on(Mutant::NoWriteBack);
        let behind: Vec<_> = self.sets.nodes().into_iter().filter(|node| !holds(node)).collect();
        let call = if enough { UNWATCHED } else { Call { operation, attempt: WRITE_BACK } };
        let mut write_back: BTreeMap<_, _> = self
            .sets
            .nodes()
            .into_iter()
            .map(|node| (node, if holds(&node) { WriteBack::Holds } else { WriteBack::Failed }))
            .collect();
        for node in behind {
            // Those that answered are known to be behind; the others are written to only if they are needed.
            let answered = matches!(self.replies.get(&node), Some(Reply::Holds(_)));
            if context.is_reachable(node) && (answered || !enough) {
                context.counters.read_repairs += u64::from(enough);
                context.send(node, Message::Write(self.repair(call, best.clone())));
                write_back.insert(node, WriteBack::Pending);
            }
        }
        self.best = Some(best);
        if enough || is_on(Mutant::WriteBackIsNotAwaited) {
            return Some(self.done());
        }
        context.counters.write_backs += 1;
        self.write_back = Some(write_back);
        self.judge_write_back()
    }

    fn repair(&self, call: Call, record: Record) -> Write {
        Write { call, key: self.key.clone(), record, origin: Origin::Repair, durability: Durability::Synced }
    }

    fn done(&self) -> Answer {
        Answer::Read(values_of(&self.key, self.best.as_ref(), self.decided_ms))
    }

    fn judge_write_back(&self) -> Option<Answer> {
        let replies = self.write_back.as_ref()?;
        let makes = |counts: fn(&WriteBack) -> bool| {
            self.sets.satisfied(Consistency::Quorum, |node| replies.get(node).is_some_and(counts))
        };
        let is_failed = !makes(|reply| *reply != WriteBack::Failed);
        if makes(|reply| *reply == WriteBack::Holds) || is_failed && is_on(Mutant::FailedWriteBackIsAnswered)
        {
            return Some(self.done());
        }
        if makes(|reply| *reply != WriteBack::Failed) {
            return None;
        }
        Some(self.failed(FailureReason::QuorumUnreachable))
    }
}

/// What a client is told of a record.
pub(crate) fn values_of(key: &RecordKey, record: Option<&Record>, now_ms: u64) -> Values {
    let reading = record.map(|record| record.reading(now_ms)).unwrap_or_default();
    Values { values: reading.values, context: reading.context.map(|context| context.to_token(key)) }
}
