//! The coordinator: takes clients' requests, talks to the replicas, and ends each request within its deadline.
//!
//! What a single operation does next is decided in [`crate::write`], [`crate::causal_write`], [`crate::read`] and
//! [`crate::scan`]; here is which ones are under way, whose answer belongs to which, which of them wait for a stamp,
//! and which replicas missed a write that was answered.

mod under_way;

use std::collections::{BTreeMap, BTreeSet};

use crate::causal;
use crate::causal_write::{CausalOrder, CausalWrite};
use crate::context::Context;
use crate::effect::{Answer, Causal, ClientRequest, Effect, Failure, FailureReason, Operation, RequestId};
use crate::id::{Generation, NodeId};
use crate::layout::KeyspaceMode;
use crate::message::{Call, Message, MintOutcome, Noted, ReadOutcome, ScanOutcome, WriteOutcome};
use crate::mutant::{Mutant, is_on};
use crate::partition::RecordKey;
use crate::quorum::ReplicaSets;
use crate::read::ReadOperation;
use crate::record::Body;
use crate::scan::ScanOperation;
use crate::write::{Verdict, WriteOperation, WriteOrder};

use under_way::UnderWay;

/// How many writes that were answered wait for their slowest replicas, to see who missed them. Those beyond are
/// taken as missed at once, which costs a hint too many and nothing else.
const LINGERING_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Coordinator {
    operations: BTreeMap<u64, UnderWay>,
    deadlines: BTreeSet<(u64, u64)>,
    /// When reads ask another replica in place of one that has not answered.
    speculations: BTreeSet<(u64, u64)>,
    /// Writes that wait for a stamp that may be issued, oldest first.
    parked: BTreeSet<u64>,
    /// Writes that were answered and wait for replicas that have not.
    answered: BTreeSet<u64>,
    /// The number of the last operation; see [`Coordinator::new`].
    last: u64,
    /// How many of the operations are writes that were not answered, and the bytes of their keys and values.
    writes: usize,
    write_bytes: usize,
}

impl Coordinator {
    /// Operations are numbered from one that no earlier process of this node has used: a replica may still be
    /// committing what was sent by one that is dead, and its answer comes over the link of its successor.
    pub(crate) fn new(generation: Generation) -> Self {
        Self { last: generation.0.wrapping_shl(40), ..Self::default() }
    }

    /// How many requests wait for an answer.
    pub(crate) fn under_way(&self) -> usize {
        self.operations.len() - self.answered.len()
    }

    /// How many of these are writes, and the bytes of their keys and values.
    pub(crate) fn writes_under_way(&self) -> (usize, usize) {
        (self.writes, self.write_bytes)
    }

    /// When something runs out of time, in milliseconds of the monotonic clock.
    pub(crate) fn next_deadline_ms(&self) -> Option<u64> {
        let first = |times: &BTreeSet<(u64, u64)>| times.first().map(|(time, _)| *time);
        [first(&self.deadlines), first(&self.speculations)].into_iter().flatten().min()
    }

    /// True if writes wait for a stamp.
    pub(crate) fn has_parked(&self) -> bool {
        !self.parked.is_empty()
    }

    /// True while writes are under way: stamps are being used up.
    pub(crate) fn takes_stamps(&self) -> bool {
        self.writes > 0
    }

    /// Names an operation: 0 stands for a call that nobody waits for.
    pub(crate) fn next_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    pub(crate) fn start(&mut self, request: ClientRequest, context: &mut Context<'_>) {
        let (id, deadline) = (request.id, request.deadline);
        let mode = context.layout.keyspaces.get(request.operation.keyspace()).copied();
        let operation = match mode {
            None => Err(Failure { reason: FailureReason::KeyspaceUnknown, acks: 0, needed: 0 }),
            Some(mode) => operation(request, mode, context),
        };
        let operation = match operation {
            Ok(operation) => operation,
            Err(failure) => return end(id, Answer::Failed(failure), context),
        };
        let number = self.next_number();
        self.deadlines.insert((deadline.mono_ms, number));
        self.writes += usize::from(operation.is_write());
        self.write_bytes += operation.write_bytes();
        let wants_stamp = operation.wants_stamp();
        self.operations.insert(number, operation);
        if wants_stamp {
            self.send_write(number, context);
        } else {
            self.advance(number, context);
        }
        self.speculate_later(number, context);
    }

    pub(crate) fn write_answered(
        &mut self,
        from: NodeId,
        call: Call,
        (outcome, noted): (WriteOutcome, Noted),
        context: &mut Context<'_>,
    ) -> Heard {
        let Some(operation) = self.operations.get_mut(&call.operation) else { return Vec::new() };
        match operation {
            UnderWay::Write(write) => write.note(from, call.attempt, outcome),
            UnderWay::Causal(write) => match write.reading() {
                Some(read) => read.note_write_back(from, call.attempt, outcome),
                None => write.note_merged(from, call, outcome),
            },
            UnderWay::Read(read) => read.note_write_back(from, call.attempt, outcome),
            UnderWay::Scan(scan) => scan.note_write_back(from, call.attempt, outcome),
        }
        self.answered_by(call, noted, context)
    }

    pub(crate) fn mint_answered(
        &mut self,
        from: NodeId,
        call: Call,
        (outcome, noted): (MintOutcome, Noted),
        context: &mut Context<'_>,
    ) -> Heard {
        let Some(UnderWay::Causal(write)) = self.operations.get_mut(&call.operation) else {
            return Vec::new();
        };
        write.note_minted(from, call, outcome, context);
        self.answered_by(call, noted, context)
    }

    pub(crate) fn read_answered(
        &mut self,
        from: NodeId,
        call: Call,
        (outcome, noted): (ReadOutcome, Noted),
        context: &mut Context<'_>,
    ) -> Heard {
        match self.operations.get_mut(&call.operation) {
            Some(UnderWay::Read(read)) => read.note_read(from, outcome, context),
            Some(UnderWay::Causal(write)) => {
                if let Some(read) = write.reading() {
                    read.note_read(from, outcome, context);
                }
            }
            Some(UnderWay::Write(_) | UnderWay::Scan(_)) | None => return Vec::new(),
        }
        self.answered_by(call, noted, context)
    }

    pub(crate) fn scan_answered(
        &mut self,
        from: NodeId,
        call: Call,
        (outcome, noted): (ScanOutcome, Noted),
        context: &mut Context<'_>,
    ) -> Heard {
        let Some(UnderWay::Scan(scan)) = self.operations.get_mut(&call.operation) else {
            return Vec::new();
        };
        scan.note_page(from, outcome);
        self.answered_by(call, noted, context)
    }

    /// Before anything is concluded from an answer: what a replica said as an earlier generation than the sender
    /// has noted of it does not count.
    fn answered_by(&mut self, call: Call, noted: Noted, context: &mut Context<'_>) -> Heard {
        let heard = match self.operations.get(&call.operation) {
            Some(operation) => news_in(noted, operation.sets(), context),
            None => Vec::new(),
        };
        if heard.is_empty() {
            self.advance(call.operation, context);
        }
        heard
    }

    /// The links to some nodes are gone: nobody waits for them any longer. Each comes with whether it is known as a
    /// later generation. Nothing is concluded before all of that is taken in.
    pub(crate) fn lose(&mut self, nodes: &[(NodeId, bool)], context: &mut Context<'_>) {
        for (node, restarted) in nodes.iter().copied() {
            for operation in self.operations.values_mut() {
                match operation {
                    UnderWay::Write(write) => write.lose(node, restarted),
                    UnderWay::Causal(write) => write.lose(node, restarted),
                    UnderWay::Read(read) => read.lose(node, restarted),
                    UnderWay::Scan(scan) => scan.lose(node, restarted),
                }
            }
        }
        for number in self.operations.keys().copied().collect::<Vec<_>>() {
            match self.operations.get(&number) {
                Some(UnderWay::Scan(scan)) if scan.is_void() => self.begin_anew(number, context),
                _ => self.advance(number, context),
            }
        }
    }

    /// Another layout is in force: all that is under way begins from nothing under it, by other numbers, so that no answer
    /// to what was asked before belongs to it (but a dot that a replica may be giving a write). What was answered is settled: who has not said that it holds a write may
    /// have missed it.
    pub(crate) fn reissue(&mut self, context: &mut Context<'_>) {
        for number in self.answered.iter().copied().collect::<Vec<_>>() {
            self.settle(number, context);
        }
        self.speculations.clear();
        for number in self.operations.keys().copied().collect::<Vec<_>>() {
            context.counters.reissued += 1;
            self.begin_anew(number, context);
        }
    }

    /// An operation begins from nothing, under the layout in force.
    fn begin_anew(&mut self, old: u64, context: &mut Context<'_>) {
        let Some(mut operation) = self.operations.remove(&old) else { return };
        let keeps_its_number = match &operation {
            UnderWay::Causal(write) => write.is_minting(),
            UnderWay::Write(_) | UnderWay::Read(_) | UnderWay::Scan(_) => false,
        };
        let number = match keeps_its_number || is_on(Mutant::OperationsOutliveTheirEpoch) {
            true => old,
            false => self.next_number(),
        };
        self.deadlines.remove(&(operation.deadline().mono_ms, old));
        self.deadlines.insert((operation.deadline().mono_ms, number));
        if self.parked.remove(&old) {
            self.parked.insert(number);
        }
        let sets = context.layout.replica_sets(operation.partition(context));
        match &mut operation {
            UnderWay::Write(write) => write.reissue(sets, number, context),
            UnderWay::Causal(write) => write.reissue(sets, number, context),
            UnderWay::Read(read) => read.reissue(sets),
            UnderWay::Scan(scan) => scan.reissue(sets),
        }
        self.operations.insert(number, operation);
        self.advance(number, context);
        self.speculate_later(number, context);
    }

    /// This node takes part in nothing any more: ends all that waits for an answer.
    pub(crate) fn abandon(&mut self) -> Vec<(RequestId, Answer)> {
        let answered = std::mem::take(&mut self.answered);
        let parked = std::mem::take(&mut self.parked);
        self.deadlines.clear();
        self.speculations.clear();
        (self.writes, self.write_bytes) = (0, 0);
        let waiting = std::mem::take(&mut self.operations).into_iter();
        let waiting = waiting.filter(|(number, _)| !answered.contains(number));
        waiting
            .map(|(number, operation)| (operation.request(), operation.abandoned(parked.contains(&number))))
            .collect()
    }

    /// Stamps may be issued again: sends what waited for one.
    pub(crate) fn unpark(&mut self, context: &mut Context<'_>) {
        for number in std::mem::take(&mut self.parked) {
            self.send_write(number, context);
        }
    }

    /// Ends every request whose deadline has come, and lets slow reads ask others.
    pub(crate) fn expire(&mut self, context: &mut Context<'_>) {
        while let Some((deadline, number)) = self.deadlines.first().copied() {
            if deadline > context.now.mono_ms {
                break;
            }
            self.deadlines.pop_first();
            if is_on(Mutant::DeadlinesAreForgotten) {
                continue;
            }
            if self.answered.contains(&number) {
                self.settle(number, context);
                continue;
            }
            let is_parked = self.parked.contains(&number);
            let Some(operation) = self.operations.get(&number) else { continue };
            let answer = operation.timed_out(is_parked);
            self.finish(number, answer, context);
        }
        while let Some((time, number)) = self.speculations.first().copied() {
            if time > context.now.mono_ms {
                return;
            }
            self.speculations.pop_first();
            match self.operations.get_mut(&number) {
                Some(UnderWay::Read(read)) => read.speculate(number, context),
                Some(UnderWay::Scan(scan)) => scan.speculate(number, context),
                Some(UnderWay::Causal(write)) => {
                    if let Some(read) = write.reading() {
                        read.speculate(number, context);
                    }
                }
                Some(UnderWay::Write(_)) | None => {}
            }
            self.speculate_later(number, context);
        }
    }

    fn speculate_later(&mut self, number: u64, context: &Context<'_>) {
        let has_others = match self.operations.get_mut(&number) {
            Some(UnderWay::Read(read)) => read.may_ask_others(),
            Some(UnderWay::Scan(scan)) => scan.may_ask_others(),
            Some(UnderWay::Causal(write)) => write.reading().is_some_and(|read| read.may_ask_others()),
            Some(UnderWay::Write(_)) | None => false,
        };
        if has_others {
            self.speculations.insert((context.now.mono_ms + context.patience_ms(), number));
        }
    }

    fn send_write(&mut self, number: u64, context: &mut Context<'_>) {
        let sent = match self.operations.get_mut(&number) {
            Some(UnderWay::Write(write)) => write.send(number, context),
            Some(UnderWay::Causal(write)) => write.send(number, context),
            Some(UnderWay::Read(_) | UnderWay::Scan(_)) | None => return,
        };
        match sent {
            Ok(()) => self.advance(number, context),
            Err(_ceiling_reached) => {
                context.counters.parked += u64::from(self.parked.insert(number));
            }
        }
    }

    fn advance(&mut self, number: u64, context: &mut Context<'_>) {
        if self.parked.contains(&number) {
            return;
        }
        if self.answered.contains(&number) {
            return self.settle_if_known(number, context);
        }
        let answer = match self.operations.get_mut(&number) {
            None => return,
            Some(UnderWay::Read(read)) => read.advance(number, context),
            Some(UnderWay::Scan(scan)) => scan.advance(number, context),
            Some(UnderWay::Causal(write)) => match write.advance_read(number, context) {
                Some(failed) => Some(failed),
                None if write.reading().is_some() => None,
                None if write.wants_stamp() => return self.send_write(number, context),
                None => match write.judge(number, context) {
                    Verdict::Wait | Verdict::StampAnew => None,
                    Verdict::End(answer) => Some(answer),
                },
            },
            Some(UnderWay::Write(write)) => match write.judge(context.settings.restamps_max) {
                Verdict::Wait => None,
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

    /// Answers the client. A write that was applied anywhere stays until it is known who missed it.
    fn finish(&mut self, number: u64, answer: Answer, context: &mut Context<'_>) {
        self.parked.remove(&number);
        let (request, deadline) = match self.operations.get(&number) {
            Some(operation) => (operation.request(), operation.deadline()),
            None => return,
        };
        end(request, answer, context);
        let is_write = self.operations.get(&number).is_some_and(UnderWay::is_write);
        self.writes -= usize::from(is_write);
        self.write_bytes -= self.operations.get(&number).map_or(0, UnderWay::write_bytes);
        if !is_write {
            self.deadlines.remove(&(deadline.mono_ms, number));
            self.operations.remove(&number);
            return;
        }
        self.answered.insert(number);
        match self.operations.get_mut(&number) {
            Some(UnderWay::Write(write)) => write.forget_value(),
            Some(UnderWay::Causal(write)) => write.forget_value(),
            Some(UnderWay::Read(_) | UnderWay::Scan(_)) | None => {}
        }
        if self.answered.len() > LINGERING_MAX || deadline.mono_ms <= context.now.mono_ms {
            self.settle(number, context);
        } else {
            self.settle_if_known(number, context);
        }
    }

    fn settle_if_known(&mut self, number: u64, context: &mut Context<'_>) {
        let is_awaited = match self.operations.get(&number) {
            Some(UnderWay::Write(write)) => write.is_awaited(),
            Some(UnderWay::Causal(write)) => write.is_awaited(),
            Some(UnderWay::Read(_) | UnderWay::Scan(_)) | None => false,
        };
        if !is_awaited {
            self.settle(number, context);
        }
    }

    /// Forgets a write, and asks one that holds it to keep a hint for each replica that may have missed it.
    fn settle(&mut self, number: u64, context: &mut Context<'_>) {
        self.answered.remove(&number);
        let Some(operation) = self.operations.remove(&number) else { return };
        let (deadline, key, missed) = match &operation {
            UnderWay::Write(write) => (write.deadline, write.key(), write.missed(context)),
            UnderWay::Causal(write) => (write.deadline, write.key(), write.missed(context)),
            UnderWay::Read(_) | UnderWay::Scan(_) => return,
        };
        self.deadlines.remove(&(deadline.mono_ms, number));
        if let Some((holder, targets)) = missed.filter(|_| !is_on(Mutant::MissedIsNotHinted)) {
            for target in targets {
                context.send(holder, Message::Hint { target, key: key.clone() });
            }
        }
    }
}

/// Nodes of which an answer has brought the news that they are back as a later generation.
pub(crate) type Heard = Vec<(NodeId, Generation)>;

/// What an answer's sender has noted that we have not heard of; of ourselves, a generation that we have not reached.
pub(crate) fn news_in(noted: Noted, sets: &ReplicaSets, context: &Context<'_>) -> Heard {
    let is_news = |(node, generation): &(NodeId, Generation)| {
        if *node == context.me {
            *generation > context.generation
        } else {
            context.peers.is_news(*node, *generation)
        }
    };
    sets.nodes().zip(noted).filter(is_news).collect()
}

/// What a request becomes, or why it fails at once.
fn operation(request: ClientRequest, mode: KeyspaceMode, context: &Context<'_>) -> Result<UnderWay, Failure> {
    let ClientRequest { id, operation, consistency, durability, deadline } = request;
    let settings = context.settings;
    let (partition, default) = match &operation {
        Operation::Get { key } => (context.partition(key), settings.read),
        Operation::Scan { range, .. } => (range.partition, settings.read),
        Operation::Put { key, .. } | Operation::Delete { key, .. } => {
            (context.partition(key), settings.write)
        }
    };
    let sets = context.layout.replica_sets(partition);
    let level = consistency.unwrap_or(default);
    if !sets.satisfied(level, |node| context.is_reachable(*node)) {
        let needed = sets.needed(level);
        return Err(Failure { reason: FailureReason::QuorumUnreachable, acks: 0, needed });
    }
    let (key, value, ttl_ms, causal) = match operation {
        Operation::Get { key } => {
            return Ok(UnderWay::Read(ReadOperation::new(id, deadline, (key, level, mode), sets)));
        }
        Operation::Scan { keyspace: _, range } => {
            return Ok(UnderWay::Scan(Box::new(ScanOperation::new(id, deadline, (range, level), sets))));
        }
        Operation::Put { key, value, ttl_ms, causal } => (key, Some(value), ttl_ms, causal),
        Operation::Delete { key, causal } => (key, None, None, causal),
    };
    let durability = durability.unwrap_or(settings.durability);
    let expires_ms = ttl_ms.map(|ttl_ms| context.now.wall_ms.saturating_add(ttl_ms));
    if mode == KeyspaceMode::Lww {
        // A client that names its write may send it again, taking it for one that stays one: here it would not.
        if causal.context.is_some() || causal.operation.is_some() {
            return Err(Failure { reason: FailureReason::BadContext, acks: 0, needed: 0 });
        }
        let body = match (value, expires_ms) {
            (None, _) => Body::Tombstone,
            (Some(value), None) => Body::Value(value),
            (Some(value), Some(expires_ms)) => Body::Expiring { value, expires_ms },
        };
        let order = WriteOrder { request: id, key, body, level, durability, deadline };
        return Ok(UnderWay::Write(WriteOperation::new(order, sets)));
    }
    let Causal { context: token, operation } = causal;
    let is_delete = value.is_none();
    let context = seen(token, &key, is_delete)?;
    let order =
        CausalOrder { request: id, key, value, expires_ms, context, operation, level, durability, deadline };
    Ok(UnderWay::Causal(Box::new(CausalWrite::new(order, sets))))
}

/// What a write in a keyspace that keeps siblings replaces; `None` for a delete that has to find that out.
fn seen(
    token: Option<bytes::Bytes>,
    key: &RecordKey,
    is_delete: bool,
) -> Result<Option<causal::Context>, Failure> {
    match token {
        None if is_delete => Ok(None),
        None => Ok(Some(causal::Context::default())),
        Some(token) => match causal::Context::from_token(key, &token) {
            Ok(context) => Ok(Some(context)),
            Err(_) => Err(Failure { reason: FailureReason::BadContext, acks: 0, needed: 0 }),
        },
    }
}

fn end(request: RequestId, answer: Answer, context: &mut Context<'_>) {
    context.effects.push(Effect::Answer { request, answer });
}
