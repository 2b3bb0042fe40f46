//! One page of a scan as its coordinator sees it: pages of replicas, merged key by key; what fewer than a quorum
//! hold is written back before the answer, as in a read of one key.
//!
//! A replica whose answer was cut says nothing of what lies behind its last key, so the page ends at the smallest
//! last key among those.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::context::Context;
use crate::effect::{Answer, Deadline, FailureReason, RequestId};
use crate::gathering::{Gathering, Reply};
use crate::id::NodeId;
use crate::message::{Call, Message, Page, ScanOutcome, ScanRange, WriteOutcome};
use crate::mutant::{Mutant, is_on};
use crate::partition::{Partition, RecordKey};
use crate::quorum::{Consistency, ReplicaSets};
use crate::read::values_of;
use crate::record::{Record, Version};
use crate::write_back::WriteBack;

/// The attempts of a scan's calls: asking, and writing back the key of a number.
const GATHER: u32 = 0;
const WRITE_BACK_FROM: u32 = 1;

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
    gathering: Gathering<Page>,
    /// What the answer will be, once everything in it is held.
    result: Option<Answer>,
    /// By the attempt of their calls: the keys of the page, those that are being written back and those that need not be.
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
            gathering: Gathering::new(level, sets),
            result: None,
            write_backs: BTreeMap::new(),
        }
    }

    /// Begins from nothing, perhaps under another layout.
    pub(crate) fn reissue(&mut self, sets: ReplicaSets) {
        self.gathering.reissue(sets);
        self.result = None;
        self.write_backs.clear();
    }

    pub(crate) fn sets(&self) -> &ReplicaSets {
        self.gathering.sets()
    }

    pub(crate) fn partition(&self) -> Partition {
        self.range.partition
    }

    pub(crate) fn may_ask_others(&self) -> bool {
        self.result.is_none() && self.gathering.has_others()
    }

    /// Those who should have answered by now are slow: asks others in their place, without forgetting them.
    pub(crate) fn speculate(&mut self, operation: u64, context: &mut Context<'_>) {
        self.gathering.speculate(context, |_| question(operation, &self.range));
    }

    pub(crate) fn note_page(&mut self, from: NodeId, outcome: ScanOutcome) {
        if self.result.is_some() || !matches!(self.gathering.reply(from), Some(Reply::Pending)) {
            return;
        }
        let reply = match outcome {
            ScanOutcome::Page(page) => Reply::Said(page),
            // Nobody who scans for a client says what it holds.
            ScanOutcome::Lacking(_) | ScanOutcome::Differs | ScanOutcome::Refused(_) => Reply::Failed,
        };
        self.gathering.note(from, reply);
    }

    pub(crate) fn note_write_back(&mut self, from: NodeId, attempt: u32, outcome: WriteOutcome) {
        if let Some(write_back) = self.write_backs.get_mut(&attempt) {
            write_back.note(from, outcome);
        }
    }

    /// The link to a replica is gone; what a `restarted` one said before no longer counts.
    pub(crate) fn lose(&mut self, node: NodeId, restarted: bool) {
        self.gathering.lose(node, restarted && !is_on(Mutant::ScansCountEarlierGenerations));
        for write_back in self.write_backs.values_mut() {
            write_back.lose(node, restarted);
        }
    }

    /// True if what it has come to can no longer be held by a quorum: who held a key has lost it, and others have to be
    /// asked.
    pub(crate) fn is_void(&self) -> bool {
        self.result.is_some() && self.write_backs.values().any(|write_back| write_back.is_lost(self.sets()))
    }

    /// Does what is to be done next; the answer once there is one.
    pub(crate) fn advance(&mut self, operation: u64, context: &mut Context<'_>) -> Option<Answer> {
        if self.result.is_some() {
            return self.judge_write_backs();
        }
        if !self.gathering.ask(context, |_| question(operation, &self.range)) {
            return Some(self.failed(FailureReason::QuorumUnreachable));
        }
        if !self.gathering.is_enough() {
            return None;
        }
        self.conclude(operation, context);
        self.judge_write_backs()
    }

    pub(crate) fn failed(&self, reason: FailureReason) -> Answer {
        self.gathering.failed(reason)
    }

    /// Merges the pages, and begins to write back what too few hold.
    fn conclude(&mut self, operation: u64, context: &mut Context<'_>) {
        let (merged, next) = self.merge();
        let mut entries = Vec::new();
        for (number, Merged { key, record, held }) in (WRITE_BACK_FROM..).zip(merged) {
            let marked =
                record.expired(context.now.wall_ms).filter(|_| self.gathering.level() != Consistency::One);
            context.counters.expired_marks += u64::from(marked.is_some());
            let record = marked.unwrap_or(record);
            let version = record.version();
            let holds = held.iter().filter(|(_, held)| **held == version).map(|(node, _)| *node).collect();
            let is_needless = WriteBack::is_needless(&holds, &self.gathering);
            let enough = is_needless || is_on(Mutant::ScansAreNotWrittenBack);
            let call = (!enough).then_some(Call { operation, attempt: number });
            // Others of the page may have to be waited for, and who holds this one may lose it meanwhile.
            let watched = (is_needless && self.gathering.level() != Consistency::One)
                .then(|| WriteBack::held_by(holds.clone()));
            let write_back =
                WriteBack::send((call, &key, &record), holds, &self.gathering, context).or(watched);
            self.write_backs.extend(write_back.map(|write_back| (number, write_back)));
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
        for (node, reply) in self.gathering.replies() {
            let Reply::Said(page) = reply else { continue };
            if let Some(last) = &page.until
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
                        held.insert(node, version);
                        Merged { key, record: other.merge(record), held }
                    }
                    None => Merged { key, record, held: BTreeMap::from([(node, version)]) },
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

    fn judge_write_backs(&mut self) -> Option<Answer> {
        for write_back in self.write_backs.values() {
            if !write_back.is_held(self.sets()) {
                let is_lost = write_back.is_lost(self.sets());
                return is_lost.then(|| self.failed(FailureReason::QuorumUnreachable));
            }
        }
        self.result.take()
    }
}

fn question(operation: u64, range: &ScanRange) -> Message {
    Message::Scan { call: Call { operation, attempt: GATHER }, range: range.clone(), held: None }
}
