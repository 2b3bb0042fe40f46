//! One page of a scan as its coordinator sees it: pages of replicas, merged key by key; what fewer than a quorum
//! hold is written back before the answer, as in a read of one key.
//!
//! A replica whose answer was cut says nothing of what lies behind its last key, so the page ends at the smallest
//! last key among those.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::context::Context;
use crate::effect::{Answer, Deadline, Failure, FailureReason, RequestId};
use crate::id::NodeId;
use crate::message::{Call, Message, Origin, Page, ScanOutcome, ScanRange, Write, WriteOutcome};
use crate::mutant::{Mutant, is_on};
use crate::partition::RecordKey;
use crate::quorum::{Consistency, Durability, ReplicaSets};
use crate::read::{UNWATCHED, values_of};
use crate::record::{Record, Version};

/// The attempts of a scan's calls: asking, and writing back the key of a number.
const GATHER: u32 = 0;
const WRITE_BACK_FROM: u32 = 1;

#[derive(Debug)]
enum Reply {
    Pending,
    Page(Page),
    /// It refused, or its link broke.
    Failed,
}

/// A key of the page that is being written back.
#[derive(Debug)]
struct WriteBack {
    holds: BTreeSet<NodeId>,
    awaited: BTreeSet<NodeId>,
}

/// A key of the page: its place, what came of the replicas' records, and who has which version of it.
#[derive(Debug)]
struct Merged {
    key: RecordKey,
    record: Record,
    held: BTreeMap<NodeId, Version>,
}

#[derive(Debug)]
pub(crate) struct ScanOperation {
    pub(crate) request: RequestId,
    pub(crate) deadline: Deadline,
    range: ScanRange,
    level: Consistency,
    sets: ReplicaSets,
    replies: BTreeMap<NodeId, Reply>,
    overdue: BTreeSet<NodeId>,
    /// What the answer will be, once everything in it is held.
    result: Option<Answer>,
    write_backs: BTreeMap<u32, WriteBack>,
}

impl ScanOperation {
    pub(crate) fn new(
        request: RequestId,
        deadline: Deadline,
        (range, level): (ScanRange, Consistency),
        sets: ReplicaSets,
    ) -> Self {
        Self {
            request,
            deadline,
            range,
            level,
            sets,
            replies: BTreeMap::new(),
            overdue: BTreeSet::new(),
            result: None,
            write_backs: BTreeMap::new(),
        }
    }

    pub(crate) fn sets(&self) -> &ReplicaSets {
        &self.sets
    }

    pub(crate) fn is_gathering(&self) -> bool {
        self.result.is_none()
    }

    /// Those who should have answered by now are slow: asks others in their place, without forgetting them.
    pub(crate) fn speculate(&mut self, operation: u64, context: &mut Context<'_>) {
        let asked = self.replies.len();
        let pending = self.replies.iter().filter(|(_, reply)| matches!(reply, Reply::Pending));
        self.overdue.extend(pending.map(|(node, _)| *node));
        self.ask(operation, context);
        context.counters.speculative_reads += u64::from(self.replies.len() > asked);
    }

    pub(crate) fn note_page(&mut self, from: NodeId, outcome: ScanOutcome) {
        if self.result.is_some() {
            return;
        }
        if let Some(reply @ Reply::Pending) = self.replies.get_mut(&from) {
            *reply = match outcome {
                ScanOutcome::Page(page) => Reply::Page(page),
                ScanOutcome::Refused(_) => Reply::Failed,
            };
        }
    }

    pub(crate) fn note_write_back(&mut self, from: NodeId, attempt: u32, outcome: WriteOutcome) {
        let Some(write_back) = self.write_backs.get_mut(&attempt) else { return };
        if write_back.awaited.remove(&from)
            && matches!(outcome, WriteOutcome::Held(_) | WriteOutcome::Superseded(_))
        {
            write_back.holds.insert(from);
        }
    }

    /// The link to a replica is gone; what a `restarted` one said before no longer counts.
    pub(crate) fn lose(&mut self, node: NodeId, restarted: bool) {
        if let Some(reply) = self.replies.get_mut(&node)
            && (restarted || matches!(reply, Reply::Pending))
        {
            *reply = Reply::Failed;
        }
        for write_back in self.write_backs.values_mut() {
            write_back.awaited.remove(&node);
            if restarted {
                write_back.holds.remove(&node);
            }
        }
    }

    /// Does what is to be done next; the answer once there is one.
    pub(crate) fn advance(&mut self, operation: u64, context: &mut Context<'_>) -> Option<Answer> {
        if self.result.is_some() {
            return self.judge_write_backs();
        }
        if !self.ask(operation, context) {
            return Some(self.failed(FailureReason::QuorumUnreachable));
        }
        if !self.sets.satisfied(self.level, |node| matches!(self.replies.get(node), Some(Reply::Page(_)))) {
            return None;
        }
        self.conclude(operation, context);
        self.judge_write_backs()
    }

    pub(crate) fn failed(&self, reason: FailureReason) -> Answer {
        let acks = self.replies.values().filter(|reply| matches!(reply, Reply::Page(_))).count();
        Answer::Failed(Failure { reason, acks, needed: self.sets.needed(self.level) })
    }

    /// Asks as many replicas as can still make the level; false if too few are left.
    fn ask(&mut self, operation: u64, context: &mut Context<'_>) -> bool {
        let mut candidates = self.sets.nodes();
        candidates.sort_by_key(|node| (context.is_slow(*node), *node != context.me));
        for node in candidates {
            let counts = |node: &NodeId| match self.replies.get(node) {
                Some(Reply::Pending) => !self.overdue.contains(node),
                Some(Reply::Page(_)) => true,
                Some(Reply::Failed) | None => false,
            };
            if self.sets.satisfied(self.level, counts) {
                return true;
            }
            if !self.replies.contains_key(&node) && context.is_reachable(node) {
                self.replies.insert(node, Reply::Pending);
                let call = Call { operation, attempt: GATHER };
                context.send(node, Message::Scan { call, range: self.range.clone() });
            }
        }
        self.sets.satisfied(self.level, |node| {
            matches!(self.replies.get(node), Some(Reply::Pending | Reply::Page(_)))
        })
    }

    /// Merges the pages, and begins to write back what too few hold.
    fn conclude(&mut self, operation: u64, context: &mut Context<'_>) {
        let (merged, next) = self.merge();
        let mut entries = Vec::new();
        for (number, Merged { key, record, held }) in (WRITE_BACK_FROM..).zip(merged) {
            let marked = record.expired(context.now.wall_ms).filter(|_| self.level != Consistency::One);
            context.counters.expired_marks += u64::from(marked.is_some());
            let record = marked.unwrap_or(record);
            self.write_back(Call { operation, attempt: number }, (&key, &record), &held, context);
            let values = values_of(&key, Some(&record), context.now.wall_ms);
            if !values.values.is_empty() {
                entries.push((key, values));
            }
        }
        self.result = Some(Answer::Scanned { entries, next });
    }

    /// Each key up to where the page ends, in the order of their places, and after which one the next page begins.
    fn merge(&mut self) -> (Vec<Merged>, Option<RecordKey>) {
        let mut end: Option<RecordKey> = None;
        let mut merged: BTreeMap<(u16, Bytes), Merged> = BTreeMap::new();
        for (node, reply) in &mut self.replies {
            let Reply::Page(page) = reply else { continue };
            if page.is_cut
                && let Some((last, _)) = page.entries.last()
                && end
                    .as_ref()
                    .is_none_or(|end| (last.place() < end.place()) != is_on(Mutant::PagesEndAtTheLargestKey))
            {
                end = Some(last.clone());
            }
            for (key, record) in std::mem::take(&mut page.entries) {
                let version = record.version();
                let (slot, bytes) = key.place();
                let place = (slot, bytes.clone());
                let entry = match merged.remove(&place) {
                    Some(Merged { key, record: other, mut held }) => {
                        held.insert(*node, version);
                        Merged { key, record: other.merge(record), held }
                    }
                    None => Merged { key, record, held: BTreeMap::from([(*node, version)]) },
                };
                merged.insert(place, entry);
            }
        }
        let mut merged: Vec<_> = merged.into_values().collect();
        if let Some(end) = &end {
            merged.retain(|entry| entry.key.place() <= end.place());
        }
        let limit = usize::try_from(self.range.limit).unwrap_or(usize::MAX).max(1);
        if merged.len() > limit {
            merged.truncate(limit);
            end = merged.last().map(|entry| entry.key.clone());
        }
        (merged, end)
    }

    fn write_back(
        &mut self,
        call: Call,
        (key, record): (&RecordKey, &Record),
        held: &BTreeMap<NodeId, Version>,
        context: &mut Context<'_>,
    ) {
        let version = record.version();
        let holds: BTreeSet<_> =
            held.iter().filter(|(_, held)| **held == version).map(|(node, _)| *node).collect();
        let enough = self.level == Consistency::One
            || self.sets.satisfied(Consistency::Quorum, |node| holds.contains(node));
        let enough = enough || is_on(Mutant::ScansAreNotWrittenBack);
        let call = if enough { UNWATCHED } else { call };
        let mut awaited = BTreeSet::new();
        for node in self.sets.nodes() {
            let answered = matches!(self.replies.get(&node), Some(Reply::Page(_)));
            if holds.contains(&node) || !context.is_reachable(node) || (enough && !answered) {
                continue;
            }
            context.counters.read_repairs += u64::from(enough);
            awaited.insert(node);
            let (key, record) = (key.clone(), record.clone());
            let (origin, durability) = (Origin::Repair, Durability::Synced);
            context.send(node, Message::Write(Write { call, key, record, origin, durability }));
        }
        if !enough {
            context.counters.write_backs += 1;
            self.write_backs.insert(call.attempt, WriteBack { holds, awaited });
        }
    }

    fn judge_write_backs(&mut self) -> Option<Answer> {
        for write_back in self.write_backs.values() {
            let makes = |counts: &dyn Fn(&NodeId) -> bool| self.sets.satisfied(Consistency::Quorum, counts);
            if makes(&|node| write_back.holds.contains(node)) {
                continue;
            }
            let may = makes(&|node| write_back.holds.contains(node) || write_back.awaited.contains(node));
            return (!may).then(|| self.failed(FailureReason::QuorumUnreachable));
        }
        self.result.take()
    }
}
