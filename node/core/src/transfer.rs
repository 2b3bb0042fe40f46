//! Takes over what the old replicas of a partition hold while data moves.
//!
//! Each replica of the new ring, new or not, merges as many replicas of the old one as share one with every quorum
//! (itself among them if it is one), each in a pass of its own over all of the partition's records, in the order of
//! their places. A pass begins under the phase's own epochs, so each source has fenced everything older by then: what
//! was acknowledged before is in it, and what is written since reaches the new ring by itself.
//!
//! Only what differs is moved. Page by page, this node reads what it holds itself and says so, in digests: most of what a
//! second source holds has come from the first, and a replica that stays one has nearly all. What is taken over is
//! merged like any repair, and is on disk before the pass goes on behind it, as is what was held already. How far each
//! pass has come is kept on disk as well, now and then.
//!
//! A partition that is in doubt as a whole (`doubt`) is merged anew in the same way, whether or not data moves:
//! from as many others, this node not among them.
//!
//! Nothing is done before this process has read all that it holds of the partition itself. A pass does that by the way;
//! what a process of before has merged is looked through once more. So what came into doubt before a start, or has
//! rotted since, is met before this node says that it is whole.

mod counting;
mod healing;
mod pass;
mod sources;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::context::Context;
use crate::effect::{Effect, LoadId};
use crate::held::Lacking;
use crate::id::{Epoch, Incarnation, NodeId};
use crate::layout::Layout;
use crate::message::{Call, Message, Origin, ScanOutcome, ScanRange, Write, WriteOutcome};
use crate::mutant::{Mutant, is_on};
use crate::partition::{Partition, RecordKey};
use crate::quorum::Durability;
use crate::record::Record;
use crate::succession::others_of_a_quorum;

pub(crate) use counting::Counting;
pub(crate) use pass::Holding;
use pass::{Pass, Stage, Storing};
use sources::Sources;

/// How many partitions are taken over at a time.
const PASSES_MAX: usize = 4;
/// How many records are asked for at a time: reading them holds up whatever else the source does.
const PAGE_RECORDS: u32 = 128;
/// How long a source has to answer.
const ANSWER_MS: u64 = 5_000;
/// How long a page that has come may take to be on disk. One that is given up before comes once more.
const STORED_MS: u64 = 30_000;
/// The pause after a refusal or a silence.
const PAUSE_MS: u64 = 250;
/// The same where what was merged could not be written, for what is there is damaged.
const HEAL_PAUSE_MS: u64 = 2_000;
/// The pause before a stretch that could not be read is read again.
const LOOK_AGAIN_MS: u64 = 15_000;
/// How often progress is saved.
const SAVE_EVERY_MS: u64 = 1_000;
/// What a record of a page costs beside its key and value: to read it there, to look what is held and to make it durable
/// here takes as long as to send so many bytes.
pub(crate) const RECORD_BYTES: usize = 512;
/// What it costs to look at one here and there, and to say that both have it.
pub(crate) const COMPARED_BYTES: usize = 128;

/// How far a node has come in one phase.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Merges {
    /// The phase's first epoch: in any other phase, this says nothing.
    pub phase: Epoch,
    pub partitions: BTreeMap<Partition, Merge>,
    /// Partitions that may hold something from before this node became a replica of them, for that could not be cleared,
    /// in whatever phase. Nothing is merged into these, and nothing of them counts.
    pub uncleared: BTreeSet<Partition>,
    /// Salvaged partitions for which this node counts, or has counted, since the recovery of this incarnation: what it loses
    /// of them from then on may have been acknowledged with it.
    pub counted: BTreeSet<Partition>,
    pub counted_in: Incarnation,
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
    /// What has come since this process started; the bytes of keys and values.
    pub records: u64,
    pub bytes: u64,
    /// About how many records did not have to come, for they were held already.
    pub records_held: u64,
    /// How long what is left will take at the pace of this node so far; `None` while nobody can tell.
    pub remaining_ms: Option<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct Transfer {
    merges: Merges,
    /// What is left of the present phase.
    open: BTreeSet<Partition>,
    passes: BTreeMap<Partition, Pass>,
    /// By the operation of what was asked for or is being stored.
    operations: BTreeMap<u64, Partition>,
    /// Of which the last page was not the same as ours, so that the next may not be either.
    differing: BTreeSet<Partition>,
    paused: BTreeMap<Partition, u64>,
    /// Partitions in doubt of which nobody may be asked yet, those that are merged anew, and those of which that is done.
    barred: BTreeSet<Partition>,
    healing: BTreeSet<Partition>,
    healed: Vec<Partition>,
    /// Salvaged partitions of which all is merged, and when these are looked at; those that do not count before that is on
    /// disk.
    ready: BTreeSet<Partition>,
    ready_from_ms: u64,
    counting: Counting,
    /// Numbers these.
    counts_begun: u64,
    /// Up to which key this process has read what it holds; `None`: all of it.
    seen: BTreeMap<Partition, Option<RecordKey>>,
    /// What it read last of these could not be read.
    unread: BTreeSet<Partition>,
    sources: Sources,
    save_at_ms: Option<u64>,
    status: TransferStatus,
    /// When it began under the layout in force, and with how much left.
    begun: (u64, usize),
}

impl Transfer {
    pub(crate) fn new(merges: Merges) -> Self {
        Self { merges, ..Self::default() }
    }

    /// A layout is in force: what is under way belongs to an earlier epoch and ends. What was merged in the same phase
    /// stays merged.
    pub(crate) fn begin(&mut self, context: &Context<'_>) {
        if !is_on(Mutant::TransfersOutliveTheirEpoch) {
            self.passes.clear();
            self.operations.clear();
        }
        self.paused.clear();
        self.healing.clear();
        self.barred.clear();
        self.sources = Sources::default();
        self.differing.clear();
        let layout = context.layout;
        let is_of_this_phase =
            self.merges.phase == layout.phase_since || is_on(Mutant::MergesOutliveTheirPhase);
        self.merges.uncleared.retain(|partition| layout.is_replica(*partition, context.me));
        for partition in std::mem::take(&mut self.counting).into_keys() {
            self.merges.counted.remove(&partition);
        }
        self.ready.clear();
        let is_of_this_recovery =
            self.merges.counted_in == layout.incarnation || is_on(Mutant::CountedOutlivesARecovery);
        let stays = |partition: &Partition| is_of_this_recovery && layout.salvaged.contains_key(partition);
        self.merges.counted.retain(stays);
        self.merges.counted_in = layout.incarnation;
        if !is_of_this_phase {
            self.merges.partitions.clear();
        }
        self.merges.phase = layout.phase_since;
        let takes_over = |partition: &Partition| {
            layout.has_to_merge(*partition) && layout.ring().is_replica(*partition, context.me)
        };
        let all: Vec<_> = layout.partitions.all().filter(takes_over).collect();
        self.status.partitions = all.len();
        let counts = |partition: &Partition| {
            !layout.salvaged.contains_key(partition) || self.merges.counted.contains(partition)
        };
        let about = (layout, context.me);
        let is_over = |partition: &Partition| self.is_done(*partition, about) && counts(partition);
        self.open = all.into_iter().filter(|partition| !is_over(partition)).collect();
        self.begun = (context.now.mono_ms, self.open.len());
        self.save_at_ms = None;
    }

    pub(crate) fn status(&self, now_ms: u64) -> TransferStatus {
        let left = self.open.len();
        let (begun_ms, open_then) = self.begun;
        let elapsed_ms = now_ms.saturating_sub(begun_ms);
        let done = open_then.saturating_sub(left) as u64;
        let remaining_ms = elapsed_ms.saturating_mul(left as u64).checked_div(done).filter(|_| left > 0);
        TransferStatus { done: self.status.partitions - left, remaining_ms, ..self.status }
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

    fn is_merged(&self, partition: Partition, (layout, me): (&Layout, NodeId)) -> bool {
        let is_salvaged = layout.salvaged.contains_key(&partition) && !is_on(Mutant::CountedIsMergedAgain);
        if is_salvaged && self.has_counted(partition) && !self.healing.contains(&partition) {
            // It does not move: where it counts, it does whichever ring is to stay, and whoever is away by now.
            return true;
        }
        let old = layout.source_ring().replicas(partition);
        let salvaged = self.salvage_sources(partition, layout);
        let counts_itself = salvaged.is_some() || !self.healing.contains(&partition);
        let is_merged = |node: NodeId| match node == me {
            true => counts_itself,
            false => {
                self.merges.partitions.get(&partition).is_some_and(|merge| merge.sources.contains(&node))
            }
        };
        if let Some(sources) = salvaged {
            let is_merged_elsewhere = |node: &NodeId| *node != me && is_merged(*node);
            let is_enough = |node: &NodeId| is_merged(*node) || layout.is_lost(*node);
            if is_on(Mutant::OneSourceIsEnough) && sources.iter().any(is_merged_elsewhere) {
                return true;
            }
            return sources.iter().all(is_enough);
        }
        let merged = old.iter().filter(|replica| is_merged(replica.node)).count();
        merged + usize::from(is_on(Mutant::OneFewerIsMerged)) >= others_of_a_quorum(old.len())
    }

    fn is_done(&self, partition: Partition, about: (&Layout, NodeId)) -> bool {
        self.is_merged(partition, about) && self.seen.get(&partition) == Some(&None)
    }

    /// True for a partition that this node gains, and for which its disk has no room: what came of it would be refused, and
    /// come again. Of one that it has, little differs, and that it is whole may be what makes room.
    fn finds_no_room(&self, partition: Partition, is_disk_full: bool, about: (&Layout, NodeId)) -> bool {
        let (layout, me) = about;
        is_disk_full
            && !layout.source_ring().is_replica(partition, me)
            && !layout.salvaged.contains_key(&partition)
            && !self.is_merged(partition, about)
            && !is_on(Mutant::TheFullAskForMore)
    }

    pub(crate) fn next_wakeup_ms(
        &self,
        ready_at_ms: u64,
        is_disk_full: bool,
        about: (&Layout, NodeId),
    ) -> Option<u64> {
        let due = self.passes.values().map(|pass| pass.due_ms).min();
        let has_room = self.passes.len() < PASSES_MAX;
        let ready = (!self.ready.is_empty()).then_some(self.ready_from_ms);
        let waiting = self.wanted().filter(|partition| !self.passes.contains_key(partition));
        let waiting = waiting.filter(|partition| !self.finds_no_room(*partition, is_disk_full, about));
        let next = waiting.map(|partition| self.paused.get(&partition).copied().unwrap_or(0)).min();
        let next = next.filter(|_| has_room).map(|from_ms| from_ms.max(ready_at_ms));
        [due, next, ready, self.save_at_ms].into_iter().flatten().min()
    }

    /// How many records are being made durable here.
    pub(crate) fn storing(&self) -> usize {
        let left = |pass: &Pass| if let Stage::Storing(page) = &pass.stage { page.written.len() } else { 0 };
        self.passes.values().map(left).sum()
    }

    /// Of which partition an operation of ours is.
    pub(crate) fn partition_of(&self, operation: u64) -> Partition {
        self.operations.get(&operation).copied().unwrap_or(Partition(0))
    }

    /// True if an answer to this operation is for us.
    pub(crate) fn awaits(&self, operation: u64) -> bool {
        self.operations.contains_key(&operation)
    }

    /// Gives up what takes too long, saves, and goes on with one partition if the budget allows it: what comes in between two
    /// ticks has its turn. `number` names an operation.
    pub(crate) fn tend(
        &mut self,
        mut number: impl FnMut() -> u64,
        (doubted, is_disk_full): (impl FnOnce() -> BTreeSet<Partition>, bool),
        context: &mut Context<'_>,
    ) -> Option<Merges> {
        let now_ms = context.now.mono_ms;
        if !self.ready.is_empty() {
            self.begin_counting(&doubted(), now_ms);
        }
        let late: Vec<_> = self
            .passes
            .iter()
            .filter(|(_, pass)| pass.due_ms <= now_ms)
            .map(|(partition, _)| *partition)
            .collect();
        for partition in late {
            if let Some(silent) = self.passes.get(&partition).filter(|pass| pass.is_asking()) {
                self.sources.shun(silent.source, None, now_ms);
            }
            self.pause(partition, now_ms);
        }
        for partition in self.wanted().collect::<Vec<_>>() {
            let is_affordable =
                context.budget.allows(now_ms, context.busy) || is_on(Mutant::TransfersHaveTheirOwnBudget);
            if self.passes.len() >= PASSES_MAX || !is_affordable {
                break;
            }
            if self.finds_no_room(partition, is_disk_full, (context.layout, context.me)) {
                continue;
            }
            let is_paused = self.paused.get(&partition).is_some_and(|until_ms| *until_ms > now_ms);
            if !self.passes.contains_key(&partition) && !is_paused {
                self.ask(partition, number(), context);
                if self.passes.contains_key(&partition) {
                    break;
                }
            }
        }
        let is_due = self.save_at_ms.is_some_and(|at_ms| at_ms <= now_ms);
        (is_due && !is_on(Mutant::CursorsAreNotSaved)).then(|| {
            self.save_at_ms = None;
            self.merges.clone()
        })
    }

    /// Asks a source for its next page: the one of the pass under way, or one that is not merged yet.
    fn ask(&mut self, partition: Partition, operation: u64, context: &mut Context<'_>) {
        self.paused.remove(&partition);
        if self.is_merged(partition, (context.layout, context.me)) {
            return self.look(partition, operation, context);
        }
        let salvaged = self.salvage_sources(partition, context.layout);
        let merge = self.merges.partitions.entry(partition).or_default();
        let is_open = |node: NodeId| {
            node != context.me
                && !merge.sources.contains(&node)
                && context.is_reachable(node)
                && (!context.layout.is_lost(node) || is_on(Mutant::TheLostAreSources))
        };
        let old = match salvaged {
            Some(sources) => sources.iter().copied().collect(),
            None => context.layout.source_ring().nodes(partition),
        };
        let now_ms = context.now.mono_ms;
        let open = old.into_iter().filter(|node| is_open(*node));
        let sources: Vec<_> = open.map(|node| (self.sources.ready_at_ms(node, partition), node)).collect();
        let begun = merge.pass.clone();
        let goes_on = |source: NodeId| begun.as_ref().is_some_and(|(begun, _)| *begun == source);
        let ready = sources.iter().filter(|(ready_at_ms, _)| *ready_at_ms <= now_ms);
        let next = ready.min_by_key(|(_, node)| (!goes_on(*node), context.is_slow(*node)));
        let Some((_, source)) = next.copied() else {
            self.pause(partition, now_ms);
            if let Some((ready_at_ms, _)) = sources.iter().min() {
                self.paused.insert(partition, *ready_at_ms);
            }
            return;
        };
        let after = match begun {
            Some((begun, after)) if begun == source => after,
            Some((begun, after)) => {
                let theirs = after.clone();
                self.sources.leave_off(partition, begun, after);
                let ours = self.sources.resume(partition, source);
                if is_on(Mutant::AnotherSourcesCursorCounts) { theirs } else { ours }
            }
            None => self.sources.resume(partition, source),
        };
        merge.pass = Some((source, after.clone()));
        let range = ScanRange { partition, prefix: Bytes::new(), after, limit: PAGE_RECORDS };
        if salvaged.is_some() {
            // Whatever is left is asked for, and what is held here says nothing.
            let stage = Stage::Asking { holding: Holding::default(), says_each: false };
            let pass = Pass { source, operation, due_ms: now_ms + ANSWER_MS, range: range.clone(), stage };
            context.send(source, Message::Salvage { call: pass.call(), range });
            self.operations.insert(operation, partition);
            self.passes.insert(partition, pass);
            return;
        }
        let load = context.next_load();
        context.effects.push(Effect::Scan { load, range: range.clone() });
        self.operations.insert(operation, partition);
        let (due_ms, stage) = (now_ms + ANSWER_MS, Stage::Reading(load));
        self.passes.insert(partition, Pass { source, operation, due_ms, range, stage });
    }

    /// The partition for which this was read, if it was for us.
    pub(crate) fn reads(&self, load: LoadId) -> Option<Partition> {
        let mut passes = self.passes.iter();
        passes.find(|(_, pass)| pass.reads(load)).map(|(partition, _)| *partition)
    }

    /// This is what this node holds of a page.
    pub(crate) fn read(&mut self, load: LoadId, holding: Holding, context: &mut Context<'_>) {
        let Some(partition) = self.reads(load) else { return };
        context.budget.spend(COMPARED_BYTES * holding.each.len());
        if self.passes.get(&partition).is_some_and(|pass| matches!(pass.stage, Stage::Looking(_))) {
            self.end_pass(partition);
            if self.unread.contains(&partition) {
                self.paused.insert(partition, context.now.mono_ms + LOOK_AGAIN_MS);
            }
            return self.close_if_done(partition, context);
        }
        self.ask_source(partition, (holding, self.differing.contains(&partition)), context);
    }

    fn ask_source(
        &mut self,
        partition: Partition,
        (holding, says_each): (Holding, bool),
        context: &mut Context<'_>,
    ) {
        let Some(pass) = self.passes.get_mut(&partition) else { return };
        let held = Some(holding.said(says_each));
        pass.due_ms = context.now.mono_ms + ANSWER_MS;
        pass.stage = Stage::Asking { holding, says_each };
        context.send(pass.source, Message::Scan { call: pass.call(), range: pass.range.clone(), held });
    }

    /// Nothing is concluded from an answer: what it was about is asked for once more.
    pub(crate) fn ask_again(&mut self, call: Call, now_ms: u64) {
        if let Some(partition) = self.operations.get(&call.operation) {
            self.pause(*partition, now_ms);
        }
    }

    /// A source has said what it holds.
    pub(crate) fn page(&mut self, from: NodeId, call: Call, outcome: ScanOutcome, context: &mut Context<'_>) {
        let now_ms = context.now.mono_ms;
        let Some(partition) = self.operations.get(&call.operation).copied() else { return };
        let Some(pass) = self.passes.get_mut(&partition) else { return };
        if pass.source != from || pass.call() != call {
            return;
        }
        let Stage::Asking { holding, says_each } = &mut pass.stage else { return };
        let (holding, says_each) = (std::mem::take(holding), *says_each);
        match outcome {
            ScanOutcome::Differs if !says_each => {
                self.differing.insert(partition);
                self.ask_source(partition, (holding, true), context);
            }
            ScanOutcome::Differs | ScanOutcome::Refused(_) => {
                self.sources.shun(from, Some(partition), now_ms);
                self.pause(partition, now_ms);
            }
            // Of a salvaged partition, whatever is left is asked for.
            ScanOutcome::Page(page) => {
                self.sources.answered(from, partition);
                let until = page.until.as_ref().map(RecordKey::detached);
                self.store(partition, (page.entries, until), None, context);
            }
            ScanOutcome::Lacking(Lacking { entries, until }) => {
                self.sources.answered(from, partition);
                if entries.is_empty() {
                    self.differing.remove(&partition);
                }
                let held = holding.each.len().saturating_sub(entries.len());
                self.status.records_held += held as u64;
                let until = until.as_ref().map(RecordKey::detached);
                self.store(partition, (entries, until), holding.unsynced, context);
            }
        }
    }

    /// Writes what has come, and `again` what is held and not synced.
    fn store(
        &mut self,
        partition: Partition,
        (entries, until): (Vec<(RecordKey, Record)>, Option<RecordKey>),
        again: Option<(RecordKey, Record)>,
        context: &mut Context<'_>,
    ) {
        let Some(pass) = self.passes.get_mut(&partition) else { return };
        for (key, record) in &entries {
            let bytes = key.encoded().len() + record.value_len();
            context.budget.spend(RECORD_BYTES + bytes);
            self.status.records += 1;
            self.status.bytes += bytes as u64;
        }
        let left = (0..).zip(entries.into_iter().chain(again)).collect();
        pass.due_ms = context.now.mono_ms + STORED_MS;
        pass.stage = Stage::Storing(Storing { left, written: BTreeSet::new(), until, has_failed: false });
        self.stored(partition, context);
    }

    /// A record of a page is on disk here, or is not.
    pub(crate) fn written(&mut self, call: Call, outcome: WriteOutcome, context: &mut Context<'_>) {
        let Some(partition) = self.operations.get(&call.operation).copied() else { return };
        let Some(Pass { stage: Stage::Storing(page), .. }) = self.passes.get_mut(&partition) else { return };
        page.written.remove(&call.attempt);
        page.has_failed |= matches!(outcome, WriteOutcome::Refused(_));
        self.stored(partition, context);
    }

    /// Goes on with a page, and behind it once all of it is on disk.
    fn stored(&mut self, partition: Partition, context: &mut Context<'_>) {
        let Some(Pass { source, operation, stage: Stage::Storing(page), .. }) =
            self.passes.get_mut(&partition)
        else {
            return;
        };
        if !page.written.is_empty() {
            return;
        }
        let (source, operation) = (*source, *operation);
        if !page.left.is_empty() && (!page.has_failed || is_on(Mutant::FailedPagesCount)) {
            let part = page.left.len().min(context.settings.stored_at_once);
            for (attempt, (key, record)) in page.left.drain(..part) {
                page.written.insert(attempt);
                let call = Call { operation, attempt };
                let (origin, durability) = (Origin::Repair, Durability::Synced);
                context.send(context.me, Message::Write(Write { call, key, record, origin, durability }));
            }
            return;
        }
        if page.has_failed && !is_on(Mutant::FailedPagesCount) {
            self.pause(partition, context.now.mono_ms);
            if self.healing.contains(&partition) {
                // What is damaged heals key by key, and that takes longer.
                self.paused.insert(partition, context.now.mono_ms + HEAL_PAUSE_MS);
            }
            return;
        }
        let behind = page.until.clone();
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
        self.differing.remove(&partition);
        self.close_if_done(partition, context);
    }

    /// The link to a node is gone, or (`restarted`) it is known as a later generation: what heals a partition is then
    /// merged from it once more, for whoever has said it may have been a copy of that node.
    pub(crate) fn lose(&mut self, node: NodeId, restarted: bool, now_ms: u64) {
        if restarted {
            self.merge_again(node, self.healing.clone(), now_ms);
        }
        let lost = self.passes.iter().filter(|(_, pass)| pass.source == node && pass.is_asking());
        for partition in lost.map(|(partition, _)| *partition).collect::<Vec<_>>() {
            self.pause(partition, now_ms);
        }
    }

    fn end_pass(&mut self, partition: Partition) {
        if let Some(pass) = self.passes.remove(&partition) {
            self.operations.remove(&pass.operation);
        }
    }

    fn pause(&mut self, partition: Partition, now_ms: u64) {
        self.end_pass(partition);
        self.paused.insert(partition, now_ms + PAUSE_MS);
    }
}
