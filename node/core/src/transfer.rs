//! Takes over what the old replicas of a partition hold while data moves.
//!
//! Each replica of the new ring, new or not, merges as many replicas of the old one as share one with every quorum
//! (itself among them if it is one), each in a pass of its own over all of the partition's records, in the order of
//! their places. A pass begins under the phase's own epochs, so each source has fenced everything older by then: what
//! was acknowledged before is in it, and what is written since reaches the new ring by itself.
//!
//! What is taken over is merged like any repair, and is on disk before the pass goes on behind it. How far each pass has
//! come is kept on disk as well, now and then.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::context::Context;
use crate::effect::SavedState;
use crate::id::{Epoch, NodeId};
use crate::layout::Layout;
use crate::message::{Call, Message, Origin, Page, ScanOutcome, ScanRange, Write, WriteOutcome};
use crate::mutant::{Mutant, is_on};
use crate::partition::{Partition, RecordKey};
use crate::quorum::Durability;
use crate::succession::others_of_a_quorum;

/// How many partitions are taken over at a time.
const PASSES_MAX: usize = 4;
/// How many records are asked for at a time: reading them holds up whatever else the source does.
const PAGE_RECORDS: u32 = 128;
/// How long a source has to answer, and the log to take what it said.
const ANSWER_MS: u64 = 5_000;
/// The pause after a refusal or a silence.
const PAUSE_MS: u64 = 250;
/// How often progress is saved.
const SAVE_EVERY_MS: u64 = 1_000;
/// What a record of a page costs beside its key and value.
const RECORD_BYTES: usize = 64;

/// How far a node has come in one phase.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Merges {
    /// The phase's first epoch: in any other phase, this says nothing.
    pub phase: Epoch,
    pub partitions: BTreeMap<Partition, Merge>,
}

/// What a node has merged of one partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Merge {
    /// The replicas whose records are all merged.
    pub sources: BTreeSet<NodeId>,
    /// The pass that is under way: up to which key the records of this source are merged.
    pub pass: Option<(NodeId, Option<RecordKey>)>,
}

/// How a move goes at one node, for people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TransferStatus {
    /// Partitions that this node has to take over, and those of which it has.
    pub partitions: usize,
    pub done: usize,
    /// Since this process started.
    pub records: u64,
    pub bytes: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Transfer {
    merges: Merges,
    /// What is left of the present phase.
    open: BTreeSet<Partition>,
    passes: BTreeMap<Partition, Pass>,
    /// By the operation of what was asked for or is being stored.
    operations: BTreeMap<u64, Partition>,
    paused: BTreeMap<Partition, u64>,
    save_at_ms: Option<u64>,
    status: TransferStatus,
}

#[derive(Debug)]
struct Pass {
    source: NodeId,
    operation: u64,
    due_ms: u64,
    /// What has come and is not on disk yet; `None` while it is being asked for.
    page: Option<Storing>,
}

#[derive(Debug)]
struct Storing {
    left: BTreeSet<u32>,
    last: Option<RecordKey>,
    is_cut: bool,
    has_failed: bool,
}

impl Transfer {
    pub(crate) fn new(merges: Merges) -> Self {
        Self { merges, ..Self::default() }
    }

    /// A layout is in force: what is under way belongs to an earlier epoch and ends. What was merged in the same phase
    /// stays merged.
    pub(crate) fn begin(&mut self, context: &Context<'_>) {
        self.passes.clear();
        self.operations.clear();
        self.paused.clear();
        let layout = context.layout;
        let is_of_this_phase =
            self.merges.phase == layout.phase_since || is_on(Mutant::MergesOutliveTheirPhase);
        if !is_of_this_phase {
            self.merges = Merges { phase: layout.phase_since, partitions: BTreeMap::new() };
        }
        self.merges.phase = layout.phase_since;
        let takes_over = |partition: &Partition| {
            layout.has_to_merge(*partition) && layout.ring().is_replica(*partition, context.me)
        };
        let all: Vec<_> = layout.partitions.all().filter(takes_over).collect();
        self.status.partitions = all.len();
        self.open = all.into_iter().filter(|partition| !self.is_merged(*partition, context)).collect();
        self.save_at_ms = None;
    }

    pub(crate) fn status(&self) -> TransferStatus {
        TransferStatus { done: self.status.partitions - self.open.len(), ..self.status }
    }

    /// The partitions of the new ring of which enough is merged.
    pub(crate) fn merged(&self, layout: &Layout, me: NodeId) -> BTreeSet<Partition> {
        let takes_over = |partition: &Partition| {
            layout.has_to_merge(*partition) && layout.ring().is_replica(*partition, me)
        };
        let is_merged =
            |partition: &Partition| self.merges.phase == layout.phase_since && !self.open.contains(partition);
        layout.partitions.all().filter(takes_over).filter(is_merged).collect()
    }

    /// True for a partition of which nothing is left to be merged.
    pub(crate) fn has_merged(&self, partition: Partition) -> bool {
        !self.open.contains(&partition)
    }

    fn is_merged(&self, partition: Partition, context: &Context<'_>) -> bool {
        let old = context.layout.source_ring().replicas(partition);
        let is_merged = |node: NodeId| {
            node == context.me
                || self.merges.partitions.get(&partition).is_some_and(|merge| merge.sources.contains(&node))
        };
        if let Some(sources) = context.layout.salvaged.get(&partition) {
            let is_enough = |node: &NodeId| is_merged(*node) || context.layout.is_lost(*node);
            return sources.iter().all(is_enough);
        }
        let merged = old.iter().filter(|replica| is_merged(replica.node)).count();
        merged + usize::from(is_on(Mutant::OneFewerIsMerged)) >= others_of_a_quorum(old.len())
    }

    pub(crate) fn next_wakeup_ms(&self, ready_at_ms: u64) -> Option<u64> {
        let due = self.passes.values().map(|pass| pass.due_ms).min();
        let has_room = self.passes.len() < PASSES_MAX;
        let waiting = self.open.iter().filter(|partition| !self.passes.contains_key(partition));
        let next = waiting.map(|partition| self.paused.get(partition).copied().unwrap_or(0)).min();
        let next = next.filter(|_| has_room).map(|from_ms| from_ms.max(ready_at_ms));
        [due, next, self.save_at_ms].into_iter().flatten().min()
    }

    /// Of which partition an operation of ours is.
    pub(crate) fn partition_of(&self, operation: u64) -> Partition {
        self.operations.get(&operation).copied().unwrap_or(Partition(0))
    }

    /// True if an answer to this operation is for us.
    pub(crate) fn awaits(&self, operation: u64) -> bool {
        self.operations.contains_key(&operation)
    }

    /// Gives up what takes too long, saves, and asks for as much as the budget allows. `number` names an operation.
    pub(crate) fn tend(
        &mut self,
        mut number: impl FnMut() -> u64,
        context: &mut Context<'_>,
    ) -> Option<SavedState> {
        let now_ms = context.now.mono_ms;
        let late: Vec<_> = self
            .passes
            .iter()
            .filter(|(_, pass)| pass.due_ms <= now_ms)
            .map(|(partition, _)| *partition)
            .collect();
        for partition in late {
            self.pause(partition, now_ms);
        }
        for partition in self.open.iter().copied().collect::<Vec<_>>() {
            if self.passes.len() >= PASSES_MAX || !context.budget.allows(now_ms, context.busy) {
                break;
            }
            let is_paused = self.paused.get(&partition).is_some_and(|until_ms| *until_ms > now_ms);
            if !self.passes.contains_key(&partition) && !is_paused {
                self.ask(partition, number(), context);
            }
        }
        let is_due = self.save_at_ms.is_some_and(|at_ms| at_ms <= now_ms);
        is_due.then(|| {
            self.save_at_ms = None;
            SavedState::Merges(self.merges.clone())
        })
    }

    /// Asks a source for its next page: the one of the pass under way, or one that is not merged yet.
    fn ask(&mut self, partition: Partition, operation: u64, context: &mut Context<'_>) {
        self.paused.remove(&partition);
        let merge = self.merges.partitions.entry(partition).or_default();
        let is_open = |node: NodeId| {
            node != context.me
                && !merge.sources.contains(&node)
                && context.is_reachable(node)
                && !context.layout.is_lost(node)
        };
        let begun = merge.pass.clone().filter(|(source, _)| is_open(*source));
        let salvaged = context.layout.salvaged.get(&partition);
        let old = match salvaged {
            Some(sources) => sources.iter().copied().collect(),
            None => context.layout.source_ring().nodes(partition),
        };
        let fresh = || {
            let sources = old.iter().copied().filter(|node| is_open(*node));
            sources.min_by_key(|node| context.is_slow(*node)).map(|source| (source, None))
        };
        let now_ms = context.now.mono_ms;
        let Some((source, after)) = begun.or_else(fresh) else { return self.pause(partition, now_ms) };
        merge.pass = Some((source, after.clone()));
        let range = ScanRange { partition, prefix: Bytes::new(), after, limit: PAGE_RECORDS };
        let call = Call { operation, attempt: 0 };
        let message = match salvaged {
            Some(_) => Message::Salvage { call, range },
            None => Message::Scan { call, range },
        };
        context.send(source, message);
        self.operations.insert(operation, partition);
        self.passes.insert(partition, Pass { source, operation, due_ms: now_ms + ANSWER_MS, page: None });
    }

    /// A source has said what it holds.
    pub(crate) fn page(&mut self, from: NodeId, call: Call, outcome: ScanOutcome, context: &mut Context<'_>) {
        let now_ms = context.now.mono_ms;
        let Some(partition) = self.operations.get(&call.operation).copied() else { return };
        let Some(pass) = self.passes.get_mut(&partition) else { return };
        if pass.source != from || pass.page.is_some() {
            return;
        }
        let ScanOutcome::Page(page) = outcome else { return self.pause(partition, now_ms) };
        let last = page.entries.last().map(|(key, _)| key.detached());
        let Page { entries, is_cut } = page;
        let left = (0..).take(entries.len()).collect();
        pass.due_ms = now_ms + ANSWER_MS;
        pass.page = Some(Storing { left, last, is_cut, has_failed: false });
        for (attempt, (key, record)) in (0..).zip(entries) {
            let bytes = RECORD_BYTES + key.encoded().len() + record.value_len();
            context.budget.spend(bytes);
            self.status.records += 1;
            self.status.bytes += bytes as u64;
            let call = Call { attempt, ..call };
            let (origin, durability) = (Origin::Repair, Durability::Synced);
            context.send(context.me, Message::Write(Write { call, key, record, origin, durability }));
        }
        self.stored(partition, context);
    }

    /// A record of a page is on disk here, or is not.
    pub(crate) fn written(&mut self, call: Call, outcome: WriteOutcome, context: &mut Context<'_>) {
        let Some(partition) = self.operations.get(&call.operation).copied() else { return };
        let Some(Pass { page: Some(page), .. }) = self.passes.get_mut(&partition) else { return };
        page.left.remove(&call.attempt);
        page.has_failed |= matches!(outcome, WriteOutcome::Refused(_));
        self.stored(partition, context);
    }

    /// Goes on behind a page once all of it is on disk.
    fn stored(&mut self, partition: Partition, context: &Context<'_>) {
        let Some(Pass { source, operation, page: Some(page), .. }) = self.passes.get(&partition) else {
            return;
        };
        if !page.left.is_empty() {
            return;
        }
        let (source, operation) = (*source, *operation);
        if page.has_failed {
            return self.pause(partition, context.now.mono_ms);
        }
        let behind = page.is_cut.then(|| page.last.clone()).flatten();
        self.operations.remove(&operation);
        self.passes.remove(&partition);
        self.save_at_ms.get_or_insert(context.now.mono_ms + SAVE_EVERY_MS);
        let merge = self.merges.partitions.entry(partition).or_default();
        if let Some(behind) = behind {
            merge.pass = Some((source, Some(behind)));
            return;
        }
        merge.pass = None;
        merge.sources.insert(source);
        if self.is_merged(partition, context) {
            self.open.remove(&partition);
        }
    }

    /// The link to a node is gone, or it is known as a later generation.
    pub(crate) fn lose(&mut self, node: NodeId, now_ms: u64) {
        let lost = self.passes.iter().filter(|(_, pass)| pass.source == node && pass.page.is_none());
        for partition in lost.map(|(partition, _)| *partition).collect::<Vec<_>>() {
            self.pause(partition, now_ms);
        }
    }

    fn pause(&mut self, partition: Partition, now_ms: u64) {
        if let Some(pass) = self.passes.remove(&partition) {
            self.operations.remove(&pass.operation);
        }
        self.paused.insert(partition, now_ms + PAUSE_MS);
    }
}
