//! One read as its coordinator sees it: one full answer and digests from others, merged; written back to a quorum
//! before the answer where fewer hold it.

use std::collections::BTreeMap;

use crate::context::Context;
use crate::effect::{Answer, Deadline, Failure, FailureReason, RequestId};
use crate::id::NodeId;
use crate::message::{Call, Message, Origin, ReadOutcome, Want, Write, WriteOutcome};
use crate::partition::RecordKey;
use crate::quorum::{Consistency, Durability, ReplicaSets};
use crate::record::{Record, Version};

/// The call of a repair whose answer nobody waits for.
const UNWATCHED: Call = Call { operation: 0, attempt: 0 };

/// The attempts of a read's calls: asking, and writing back.
const GATHER: u32 = 0;
const WRITE_BACK: u32 = 1;

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
    /// The highest record received in full.
    best: Option<Record>,
    /// `None` while answers are gathered.
    write_back: Option<BTreeMap<NodeId, WriteBack>>,
}

impl ReadOperation {
    pub(crate) fn new(
        request: RequestId,
        deadline: Deadline,
        (key, level): (RecordKey, Consistency),
        sets: ReplicaSets,
    ) -> Self {
        Self { request, deadline, key, level, sets, replies: BTreeMap::new(), best: None, write_back: None }
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
        if let Some(write_back) = &self.write_back {
            return self.judge_write_back(write_back);
        }
        if !self.ask(operation, context) {
            return Some(self.failed(FailureReason::QuorumUnreachable));
        }
        if !self.sets.satisfied(self.level, |node| matches!(self.replies.get(node), Some(Reply::Holds(_)))) {
            return None;
        }
        let Some(highest) = self.highest() else {
            return Some(Answer::Read(None));
        };
        let best = self.best.as_ref().filter(|best| best.version() >= highest).cloned();
        let Some(best) = best else {
            self.fetch(highest, operation, context);
            return None;
        };
        self.conclude(best, operation, context)
    }

    pub(crate) fn failed(&self, reason: FailureReason) -> Answer {
        let acks = self.replies.values().filter(|reply| matches!(reply, Reply::Holds(_))).count();
        Answer::Failed(Failure { reason, acks, needed: self.sets.needed(self.level) })
    }

    /// Asks as many replicas as can still make the level, ourselves first; false if too few are left.
    fn ask(&mut self, operation: u64, context: &mut Context<'_>) -> bool {
        let mut candidates = self.sets.nodes();
        candidates.sort_by_key(|node| *node != context.me);
        for node in candidates {
            let counts =
                |node: &NodeId| matches!(self.replies.get(node), Some(Reply::Pending | Reply::Holds(_)));
            if self.sets.satisfied(self.level, counts) {
                return true;
            }
            if self.replies.contains_key(&node) || !context.is_reachable(node) {
                continue;
            }
            let want = if self.replies.values().all(|reply| *reply == Reply::Failed) {
                Want::Full
            } else {
                Want::Digest
            };
            self.send_read(node, want, operation, context);
        }
        self.sets.satisfied(self.level, |node| {
            matches!(self.replies.get(node), Some(Reply::Pending | Reply::Holds(_)))
        })
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

    /// Asks one that holds the highest version for the whole record.
    fn fetch(&mut self, highest: Version, operation: u64, context: &mut Context<'_>) {
        let holder = self.replies.iter().find(|(_, reply)| **reply == Reply::Holds(Some(highest)));
        if let Some((holder, _)) = holder {
            self.send_read(*holder, Want::Full, operation, context);
        }
    }

    /// Answers at once if enough hold the result; else writes it back first.
    fn conclude(&mut self, best: Record, operation: u64, context: &mut Context<'_>) -> Option<Answer> {
        let version = best.version();
        let holds = |node: &NodeId| self.replies.get(node) == Some(&Reply::Holds(Some(version)));
        let enough = self.level == Consistency::One || self.sets.satisfied(Consistency::Quorum, holds);
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
                context.send(node, Message::Write(self.repair(call, best.clone())));
                write_back.insert(node, WriteBack::Pending);
            }
        }
        self.best = Some(best.clone());
        if enough {
            return Some(Answer::Read(Some(best)));
        }
        let answer = self.judge_write_back(&write_back);
        self.write_back = Some(write_back);
        answer
    }

    fn repair(&self, call: Call, record: Record) -> Write {
        Write { call, key: self.key.clone(), record, origin: Origin::Repair, durability: Durability::Synced }
    }

    fn judge_write_back(&self, replies: &BTreeMap<NodeId, WriteBack>) -> Option<Answer> {
        let makes = |counts: fn(&WriteBack) -> bool| {
            self.sets.satisfied(Consistency::Quorum, |node| replies.get(node).is_some_and(counts))
        };
        if makes(|reply| *reply == WriteBack::Holds) {
            return Some(Answer::Read(self.best.clone()));
        }
        if makes(|reply| *reply != WriteBack::Failed) {
            return None;
        }
        Some(self.failed(FailureReason::QuorumUnreachable))
    }
}
