//! The coordinator: takes clients' requests, talks to the replicas, and ends each request within its deadline.
//!
//! What a single write or read does next is decided in [`crate::write`] and [`crate::read`]; here is which ones
//! are under way, whose answer belongs to which, and which of them wait for a stamp.

use std::collections::{BTreeMap, BTreeSet};

use crate::context::Context;
use crate::effect::{Answer, ClientRequest, Effect, Failure, FailureReason, Operation, RequestId};
use crate::id::{Generation, NodeId};
use crate::message::{Call, ReadOutcome, WriteOutcome};
use crate::read::ReadOperation;
use crate::record::Body;
use crate::write::{Verdict, WriteOperation, WriteOrder};

#[derive(Debug)]
enum UnderWay {
    Write(WriteOperation),
    Read(ReadOperation),
}

#[derive(Debug, Default)]
pub(crate) struct Coordinator {
    operations: BTreeMap<u64, UnderWay>,
    deadlines: BTreeSet<(u64, u64)>,
    /// Writes that wait for a stamp that may be issued, oldest first.
    parked: BTreeSet<u64>,
    /// The number of the last operation; see [`Coordinator::new`].
    last: u64,
    /// How many of the operations are writes.
    writes: usize,
}

impl Coordinator {
    /// Operations are numbered from one that no earlier process of this node has used: a replica may still be
    /// committing what was sent by one that is dead, and its answer comes over the link of its successor.
    pub(crate) fn new(generation: Generation) -> Self {
        Self { last: generation.0.wrapping_shl(40), ..Self::default() }
    }

    pub(crate) fn under_way(&self) -> usize {
        self.operations.len()
    }

    /// When the next request runs out of time, in milliseconds of the monotonic clock.
    pub(crate) fn next_deadline_ms(&self) -> Option<u64> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// True if writes wait for a stamp.
    pub(crate) fn has_parked(&self) -> bool {
        !self.parked.is_empty()
    }

    /// True while writes are under way: stamps are being used up.
    pub(crate) fn takes_stamps(&self) -> bool {
        self.writes > 0
    }

    pub(crate) fn start(&mut self, request: ClientRequest, context: &mut Context<'_>) {
        let ClientRequest { id, operation, consistency, durability, deadline } = request;
        let sets = context.layout.replica_sets(operation.key().partition(context.layout.partitions));
        let settings = context.settings;
        let level = consistency.unwrap_or(match operation {
            Operation::Get { .. } => settings.read,
            Operation::Put { .. } | Operation::Delete { .. } => settings.write,
        });
        if !sets.satisfied(level, |node| context.is_reachable(*node)) {
            let failure =
                Failure { reason: FailureReason::QuorumUnreachable, acks: 0, needed: sets.needed(level) };
            return end(id, Answer::Failed(failure), context);
        }
        let durability = durability.unwrap_or(settings.durability);
        let order = |key, body| WriteOrder { request: id, key, body, level, durability, deadline };
        let operation = match operation {
            Operation::Get { key } => UnderWay::Read(ReadOperation::new(id, deadline, (key, level), sets)),
            Operation::Put { key, value } => {
                UnderWay::Write(WriteOperation::new(order(key, Body::Value(value)), sets))
            }
            Operation::Delete { key } => {
                UnderWay::Write(WriteOperation::new(order(key, Body::Tombstone), sets))
            }
        };
        // 0 stands for a call that nobody waits for.
        self.last += 1;
        let number = self.last;
        self.deadlines.insert((deadline.mono_ms, number));
        let is_write = matches!(operation, UnderWay::Write(_));
        self.writes += usize::from(is_write);
        self.operations.insert(number, operation);
        if is_write {
            self.send_write(number, context);
        } else {
            self.advance(number, context);
        }
    }

    pub(crate) fn write_answered(
        &mut self,
        from: NodeId,
        call: Call,
        outcome: WriteOutcome,
        context: &mut Context<'_>,
    ) {
        match self.operations.get_mut(&call.operation) {
            Some(UnderWay::Write(write)) => write.note(from, call.attempt, outcome),
            Some(UnderWay::Read(read)) => read.note_write_back(from, call.attempt, outcome),
            None => return,
        }
        self.advance(call.operation, context);
    }

    pub(crate) fn read_answered(
        &mut self,
        from: NodeId,
        call: Call,
        outcome: ReadOutcome,
        context: &mut Context<'_>,
    ) {
        let Some(UnderWay::Read(read)) = self.operations.get_mut(&call.operation) else {
            return;
        };
        read.note_read(from, outcome);
        self.advance(call.operation, context);
    }

    /// The link to a node is gone: nobody waits for it any longer. `restarted`: it is back as a later generation.
    pub(crate) fn lose(&mut self, node: NodeId, restarted: bool, context: &mut Context<'_>) {
        for operation in self.operations.values_mut() {
            match operation {
                UnderWay::Write(write) => write.lose(node, restarted),
                UnderWay::Read(read) => read.lose(node, restarted),
            }
        }
        for number in self.operations.keys().copied().collect::<Vec<_>>() {
            self.advance(number, context);
        }
    }

    /// Stamps may be issued again: sends what waited for one.
    pub(crate) fn unpark(&mut self, context: &mut Context<'_>) {
        for number in std::mem::take(&mut self.parked) {
            self.send_write(number, context);
        }
    }

    /// Ends every request whose deadline has come.
    pub(crate) fn expire(&mut self, context: &mut Context<'_>) {
        while let Some((deadline, number)) = self.deadlines.first().copied() {
            if deadline > context.now.mono_ms {
                return;
            }
            self.deadlines.pop_first();
            let answer = match self.operations.get(&number) {
                // It never got a stamp, so no replica was asked.
                Some(UnderWay::Write(write)) if write.is_unsent() => write.failed(FailureReason::Overloaded),
                Some(UnderWay::Write(write)) => write.failed(FailureReason::DeadlineExceeded),
                Some(UnderWay::Read(read)) => read.failed(FailureReason::DeadlineExceeded),
                None => continue,
            };
            self.finish(number, answer, context);
        }
    }

    fn send_write(&mut self, number: u64, context: &mut Context<'_>) {
        let Some(UnderWay::Write(write)) = self.operations.get_mut(&number) else {
            return;
        };
        match write.send(number, context) {
            Ok(()) => self.advance(number, context),
            Err(_ceiling_reached) => {
                self.parked.insert(number);
            }
        }
    }

    fn advance(&mut self, number: u64, context: &mut Context<'_>) {
        let answer = match self.operations.get_mut(&number) {
            None => return,
            Some(UnderWay::Read(read)) => read.advance(number, context),
            Some(UnderWay::Write(_)) if self.parked.contains(&number) => return,
            Some(UnderWay::Write(write)) => match write.judge(context.settings.restamps_max) {
                Verdict::Wait => return,
                Verdict::End(answer) => Some(answer),
                Verdict::StampAnew => {
                    if let Some(stamp) = write.superseded_by() {
                        context.clock.observe(stamp);
                    }
                    return self.send_write(number, context);
                }
            },
        };
        if let Some(answer) = answer {
            self.finish(number, answer, context);
        }
    }

    fn finish(&mut self, number: u64, answer: Answer, context: &mut Context<'_>) {
        let (request, deadline) = match self.operations.remove(&number) {
            Some(UnderWay::Write(write)) => {
                self.writes -= 1;
                (write.request, write.deadline)
            }
            Some(UnderWay::Read(read)) => (read.request, read.deadline),
            None => return,
        };
        self.deadlines.remove(&(deadline.mono_ms, number));
        self.parked.remove(&number);
        end(request, answer, context);
    }
}

fn end(request: RequestId, answer: Answer, context: &mut Context<'_>) {
    context.effects.push(Effect::Answer { request, answer });
}
