//! One read as its coordinator sees it: one full answer and digests from others, merged; written back to a quorum
//! before the answer where fewer hold it.

use std::collections::BTreeSet;

use crate::context::Context;
use crate::effect::{Answer, Deadline, FailureReason, RequestId, Values};
use crate::gathering::{Gathering, Reply};
use crate::id::NodeId;
use crate::layout::KeyspaceMode;
use crate::message::{Call, Message, ReadOutcome, Want, WriteOutcome};
use crate::mutant::{Mutant, is_on};
use crate::partition::RecordKey;
use crate::quorum::{Consistency, ReplicaSets};
use crate::record::{Record, Version};
use crate::write_back::WriteBack;

/// The attempts of a read's calls: asking, and writing back.
const GATHER: u32 = 0;
const WRITE_BACK: u32 = 1;

#[derive(Debug)]
pub(crate) struct ReadOperation {
    pub(crate) request: RequestId,
    pub(crate) deadline: Deadline,
    key: RecordKey,
    mode: KeyspaceMode,
    /// Which version each replica holds; `None`: nothing.
    gathering: Gathering<Option<Version>>,
    /// What came of the records received in full.
    best: Option<Record>,
    /// `None` while answers are gathered.
    write_back: Option<WriteBack>,
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
            mode,
            gathering: Gathering::new(level, sets),
            best: None,
            write_back: None,
            decided_ms: 0,
        }
    }

    /// Begins from nothing under another layout.
    pub(crate) fn reissue(&mut self, sets: ReplicaSets) {
        self.gathering.reissue(sets);
        self.write_back = None;
        self.best = None;
    }

    pub(crate) fn sets(&self) -> &ReplicaSets {
        self.gathering.sets()
    }

    pub(crate) fn key(&self) -> &RecordKey {
        &self.key
    }

    /// What the read has come to.
    pub(crate) fn result(&self) -> Option<&Record> {
        self.best.as_ref()
    }

    /// True while replicas are asked: one that is slow may be given up in favour of another.
    pub(crate) fn may_ask_others(&self) -> bool {
        self.write_back.is_none() && self.gathering.has_others()
    }

    /// Those who should have answered by now are slow, and for a while asked last: asks others in their place.
    pub(crate) fn speculate(&mut self, operation: u64, context: &mut Context<'_>) {
        for (node, _) in self.gathering.replies().filter(|(_, reply)| **reply == Reply::Pending) {
            context.paces.mark_late(node, context.now.mono_ms);
        }
        let Self { key, mode, gathering, .. } = self;
        gathering.speculate(context, |gathering| question(operation, key, want(*mode, gathering)));
    }

    pub(crate) fn note_read(&mut self, from: NodeId, outcome: ReadOutcome, context: &mut Context<'_>) {
        if from != context.me
            && let Some(waited_ms) = self.gathering.waited_ms(from, context.now.mono_ms)
        {
            let patience_ms = context.patience_ms();
            context.paces.note(from, waited_ms, patience_ms);
        }
        if self.write_back.is_some() || self.gathering.reply(from).is_none() {
            return;
        }
        let reply = match outcome {
            ReadOutcome::Missing => Reply::Said(None),
            ReadOutcome::Digest(version) => Reply::Said(Some(version)),
            ReadOutcome::Refused(_) => Reply::Failed,
            ReadOutcome::Full(record) => {
                let version = record.version();
                self.best = Some(match self.best.take() {
                    Some(best) => best.merge(record),
                    None => record,
                });
                Reply::Said(Some(version))
            }
        };
        self.gathering.note(from, reply);
    }

    pub(crate) fn note_write_back(&mut self, from: NodeId, attempt: u32, outcome: WriteOutcome) {
        if let Some(write_back) = self.write_back.as_mut().filter(|_| attempt == WRITE_BACK) {
            write_back.note(from, outcome);
        }
    }

    /// The link to a replica is gone; what a `restarted` one said before no longer counts.
    pub(crate) fn lose(&mut self, node: NodeId, restarted: bool) {
        self.gathering.lose(node, restarted && !is_on(Mutant::ReadsCountEarlierGenerations));
        if let Some(write_back) = &mut self.write_back {
            write_back.lose(node, restarted);
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
        let Self { key, mode, gathering, .. } = self;
        if !gathering.ask(context, |gathering| question(operation, key, want(*mode, gathering))) {
            return Some(self.failed(FailureReason::QuorumUnreachable));
        }
        if !self.gathering.is_enough() {
            return None;
        }
        let Some(highest) = self.held().map(|(_, version)| version).max() else {
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
        self.gathering.failed(reason)
    }

    /// Who has said which version it holds.
    fn held(&self) -> impl Iterator<Item = (NodeId, Version)> {
        self.gathering.said().filter_map(|(node, version)| version.map(|version| (node, version)))
    }

    fn holders(&self, version: Version) -> BTreeSet<NodeId> {
        self.held().filter(|(_, held)| *held == version).map(|(node, _)| node).collect()
    }

    /// Asks one that holds the highest version for the whole record. False if none of them can be reached any more:
    /// what they have said is then of no use, and others have to be asked.
    fn fetch(&mut self, highest: Version, operation: u64, context: &mut Context<'_>) -> bool {
        let holders = self.holders(highest);
        let reachable = holders.iter().filter(|node| context.is_reachable(**node));
        let Some(holder) = reachable.min_by_key(|node| context.is_slow(**node)) else {
            for holder in holders {
                self.gathering.note(holder, Reply::Failed);
            }
            return false;
        };
        self.gathering.ask_one(*holder, context, question(operation, &self.key, Want::Full));
        true
    }

    /// Answers at once if enough hold the result; else writes it back first. What has expired is marked so first,
    /// and the mark written back: a clock that is behind must not see the value again.
    fn conclude(&mut self, best: Record, operation: u64, context: &mut Context<'_>) -> Option<Answer> {
        self.decided_ms = context.now.wall_ms;
        let marked = best
            .expired(self.decided_ms)
            .filter(|_| self.gathering.level() != Consistency::One && !is_on(Mutant::NoExpiredMark));
        context.counters.expired_marks += u64::from(marked.is_some());
        let best = marked.unwrap_or(best);
        let holds = self.holders(best.version());
        let enough = WriteBack::is_needless(&holds, &self.gathering) || is_on(Mutant::NoWriteBack);
        let call = (!enough).then_some(Call { operation, attempt: WRITE_BACK });
        let write_back = WriteBack::send((call, &self.key, &best), holds, &self.gathering, context);
        self.best = Some(best);
        self.write_back = write_back.filter(|_| !is_on(Mutant::WriteBackIsNotAwaited));
        if self.write_back.is_none() { Some(self.done()) } else { self.judge_write_back() }
    }

    fn done(&self) -> Answer {
        Answer::Read(values_of(&self.key, self.best.as_ref(), self.decided_ms))
    }

    fn judge_write_back(&self) -> Option<Answer> {
        let (write_back, sets) = (self.write_back.as_ref()?, self.sets());
        let is_lost = write_back.is_lost(sets);
        if write_back.is_held(sets) || is_lost && is_on(Mutant::FailedWriteBackIsAnswered) {
            return Some(self.done());
        }
        is_lost.then(|| self.failed(FailureReason::QuorumUnreachable))
    }
}

fn question(operation: u64, key: &RecordKey, want: Want) -> Message {
    Message::Read { call: Call { operation, attempt: GATHER }, key: key.clone(), want }
}

/// One whole record is enough where the highest stays; of siblings, each one may have some that no other has.
fn want(mode: KeyspaceMode, gathering: &Gathering<Option<Version>>) -> Want {
    match mode {
        KeyspaceMode::Lww if gathering.is_answered_soon() => Want::Digest,
        KeyspaceMode::Lww | KeyspaceMode::Siblings => Want::Full,
    }
}

/// What a client is told of a record.
pub(crate) fn values_of(key: &RecordKey, record: Option<&Record>, now_ms: u64) -> Values {
    let reading = record.map(|record| record.reading(now_ms)).unwrap_or_default();
    Values { values: reading.values, context: reading.context.map(|context| context.to_token(key)) }
}
