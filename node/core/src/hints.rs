//! The hints of this node: which replicas may have missed a write of a key that this node holds, until they have it.
//!
//! A hint names a target and a key, not a value: what is handed over is the record as it is held by then, which has
//! whatever the target missed and more. A hint ends when the target has said that it holds that record or a higher
//! one. One that is asked for again while its record is on its way stays, and is handed over once more: the record
//! may have been read before the write that the target missed.
//!
//! Hints are bounded in bytes and in age. One that is dropped unheard marks its partition as wanted by repair, so
//! what is missing is known. Hints count towards nothing, so losing one (a log that had not been synced, a disk that
//! is full) loses no write.

mod index;

use std::collections::{BTreeMap, BTreeSet};

use self::index::{Awaits, Index, Kept, Number, Stage, Target, cost};
use crate::budget::Budget;
use crate::context::{Context, Settings};
use crate::coordinator::{Heard, news_in};
use crate::effect::{Commit, CommitId, Damaged, Effect, Entry, Hint, LoadId, NotCommitted, Now};
use crate::id::NodeId;
use crate::message::{Call, Message, Noted, Origin, Refusal, Write, WriteOutcome};
use crate::mutant::{Mutant, is_on};
use crate::partition::{Partition, RecordKey};
use crate::peers::Peers;
use crate::quorum::Durability;
use crate::record::Record;

/// How long after it was asked for a hint is handed over to a target that is linked: what the target is thought to
/// have missed may still be waiting there.
const FRESH_MS: u64 = 500;
/// How long a target has to answer before others are handed over in its place.
const ANSWER_MS_MAX: u64 = 5_000;
/// How long a hint rests whose record is in doubt here or there: healing is asked for elsewhere and takes its time.
const DOUBT_MS: u64 = 10_000;
/// How long a hint is kept after a start, whatever its age: the clock may have jumped while no process looked, and a
/// target that has been up for long has been waiting for just this start.
const GRACE_MS: u64 = 60_000;
/// How many commits of hints wait for the log at the most: it has a queue for all.
const COMMITS_MAX: usize = 1_024;

/// What is kept for other nodes, for people and metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HintStatus {
    pub pending: usize,
    /// In memory, about, keys included.
    pub bytes: usize,
    /// Hints and bytes of each node that has any.
    pub targets: BTreeMap<NodeId, (usize, usize)>,
    /// Partitions of which a hint was dropped since this process started: only repair finds what is missing.
    pub partitions_wanted_by_repair: usize,
}

#[derive(Debug)]
pub(crate) struct HintStore {
    bytes_max: usize,
    age_ms_max: u64,
    kept: Index,
    /// The target that was handed something last: the next in order has its turn.
    turn: NodeId,
    loads: BTreeMap<LoadId, Number>,
    calls: BTreeMap<u64, Number>,
    /// Commits under way, and of which hint they are; `None`: of one that is done with.
    commits: BTreeMap<CommitId, Option<Number>>,
    /// Hints that wait for room in the log's queue.
    unwritten: BTreeSet<Number>,
    /// Hints that the present layout has made needless, until the log has room for their ends.
    needless: BTreeSet<Number>,
    wanted_by_repair: BTreeSet<Partition>,
}

impl HintStore {
    /// Takes over what is on disk. Ages are measured by the monotonic clock as soon as there is one, since the wall
    /// clock may jump: it says only how old a hint was when the process started.
    pub(crate) fn new(mut hints: Vec<Hint>, settings: &Settings, now: Now) -> Self {
        let mut store = Self {
            bytes_max: settings.hint_bytes_max,
            age_ms_max: settings.hint_age_ms_max,
            kept: Index::default(),
            turn: NodeId::default(),
            loads: BTreeMap::new(),
            calls: BTreeMap::new(),
            commits: BTreeMap::new(),
            unwritten: BTreeSet::new(),
            needless: BTreeSet::new(),
            wanted_by_repair: BTreeSet::new(),
        };
        hints.sort_by_key(|hint| hint.since_ms);
        for Hint { target, key, since_ms } in hints {
            let age_ms = now.wall_ms.saturating_sub(since_ms);
            let left_ms = store.age_ms_max.saturating_sub(age_ms).max(GRACE_MS.min(store.age_ms_max));
            store.kept.insert((target, key.detached()), now.mono_ms.saturating_add(left_ms), Stage::Ready);
        }
        store
    }

    /// When there is something to do, in milliseconds of the monotonic clock.
    pub(crate) fn next_wakeup_ms(&self, peers: &Peers, budget: &Budget) -> Option<u64> {
        let first = |times: &BTreeSet<(u64, Number)>| times.first().map(|(time, _)| *time);
        // The log's answer comes by itself.
        let dropping = match self.kept.hints.first_key_value().filter(|_| self.may_commit()) {
            Some(_) if self.kept.bytes > self.bytes_max || !self.needless.is_empty() => Some(0),
            oldest => oldest.map(|(_, kept)| kept.expires_ms),
        };
        let linked = self.kept.targets.iter().filter(|(node, _)| peers.is_connected(**node));
        let times = linked.flat_map(|(_, target)| {
            let may_go = self.may_commit() && target.has_room();
            let handing_over = may_go.then_some(target.paused_until_ms.max(budget.ready_at_ms()));
            [handing_over, first(&target.resting), first(&target.under_way)]
        });
        times.chain([dropping]).flatten().min()
    }

    pub(crate) fn status(&self) -> HintStatus {
        let of = |target: &Target| (target.len(), target.bytes);
        HintStatus {
            pending: self.kept.hints.len(),
            bytes: self.kept.bytes,
            targets: self.kept.targets.iter().map(|(node, target)| (*node, of(target))).collect(),
            partitions_wanted_by_repair: self.wanted_by_repair.len(),
        }
    }

    /// The target may have missed a write of this key.
    pub(crate) fn note(&mut self, target: NodeId, key: &RecordKey, context: &mut Context<'_>) {
        if !fits(target, key, context) {
            return;
        }
        let key = key.detached();
        if let Some(number) = self.kept.numbers.get(&(target, key.clone())) {
            if let Some(kept) = self.kept.hints.get_mut(number) {
                kept.is_renewed = kept.awaits != Awaits::Nothing;
            }
            return;
        }
        if self.kept.bytes + cost(&key) > self.bytes_max && !is_on(Mutant::HintsAreUnbounded) {
            return self.overflow(&key, context);
        }
        let stage = match context.peers.is_connected(target) {
            true => Stage::Resting(context.now.mono_ms + FRESH_MS),
            false => Stage::Ready,
        };
        let expires_ms = context.now.mono_ms.saturating_add(self.age_ms_max);
        let number = self.kept.insert((target, key), expires_ms, stage);
        self.unwritten.insert(number);
        self.write(context);
    }

    /// Appends hints to the log, as many as it has room for.
    fn write(&mut self, context: &mut Context<'_>) {
        while self.may_commit()
            && let Some(number) = self.unwritten.pop_first()
        {
            let Some(Kept { target, key, .. }) = self.kept.hints.get(&number) else { continue };
            context.counters.hints_stored += 1;
            let hint = Hint { target: *target, key: key.clone(), since_ms: context.now.wall_ms };
            self.commit(Entry::Hint(hint), Some(number), context);
        }
    }

    fn may_commit(&self) -> bool {
        self.commits.len() < COMMITS_MAX
    }

    /// The target can be reached (again): all that is kept for it may go.
    pub(crate) fn linked(&mut self, node: NodeId, context: &mut Context<'_>) {
        self.recall(node);
        self.hand_over(context);
    }

    /// The target can no longer be reached. An answer that comes over its next link still counts.
    pub(crate) fn lost(&mut self, node: NodeId) {
        self.recall(node);
    }

    /// Another layout is in force: what was on its way under the one before is handed over once more, whatever is said of
    /// it, and what is kept for nodes that no longer need it, or of what is no longer ours, ends.
    pub(crate) fn begin_epoch(&mut self, context: &Context<'_>) {
        if is_on(Mutant::HintsOutliveTheirEpoch) {
            return;
        }
        let is_needless = |kept: &Kept| !fits(kept.target, &kept.key, context);
        let needless = self.kept.hints.iter().filter(|(_, kept)| is_needless(kept));
        self.needless = needless.map(|(number, _)| *number).collect();
        for node in self.kept.targets.keys().copied().collect::<Vec<_>>() {
            self.recall(node);
        }
        for number in std::mem::take(&mut self.calls).into_values() {
            if let Some(kept) = self.kept.hints.get_mut(&number) {
                kept.awaits = Awaits::Nothing;
            }
        }
    }

    /// Does what its time has come for.
    pub(crate) fn tick(&mut self, context: &mut Context<'_>) {
        if self.kept.hints.is_empty() {
            return;
        }
        self.drop_unwanted(context);
        let now_ms = context.now.mono_ms;
        for node in self.kept.targets.keys().copied().collect::<Vec<_>>() {
            if context.peers.is_connected(node) {
                self.give_up_waiting(node, now_ms);
                self.wake_rested(node, now_ms);
            }
        }
        self.hand_over(context);
    }

    /// The key of the hint for which this load was asked; `None` if it was not asked for a hint.
    pub(crate) fn loading(&self, load: LoadId) -> Option<&RecordKey> {
        let number = self.loads.get(&load)?;
        self.kept.hints.get(number).map(|kept| &kept.key)
    }

    /// True if a record was handed over under this call.
    pub(crate) fn awaits(&self, call: Call) -> bool {
        self.calls.contains_key(&call.operation)
    }

    /// The record of a hint is here: sends it, under a call of its own. Where there is nothing to send, the target
    /// has missed nothing that still exists.
    pub(crate) fn loaded(
        &mut self,
        load: LoadId,
        record: Result<Option<Record>, Damaged>,
        call: u64,
        context: &mut Context<'_>,
    ) {
        let Some(number) = self.loads.remove(&load) else { return };
        let Some(kept) = self.kept.hints.get_mut(&number) else { return };
        kept.awaits = Awaits::Nothing;
        match record {
            Err(Damaged) => self.rest(number, context.now.mono_ms + DOUBT_MS),
            Ok(None) => self.finish(number, context),
            Ok(Some(record)) => {
                kept.awaits = Awaits::Answer(call);
                self.calls.insert(call, number);
                context.budget.spend(record.value_len());
                let write = Write {
                    call: Call { operation: call, attempt: 0 },
                    key: kept.key.clone(),
                    record,
                    origin: Origin::Repair,
                    durability: Durability::Synced,
                };
                context.send(kept.target, Message::Write(write));
                if is_on(Mutant::HintsEndUnheard) {
                    self.calls.remove(&call);
                    self.finish(number, context);
                }
            }
        }
        self.hand_over(context);
    }

    /// What a target says of a record that was handed over.
    pub(crate) fn answered(
        &mut self,
        from: NodeId,
        call: Call,
        (outcome, noted): (WriteOutcome, Noted),
        context: &mut Context<'_>,
    ) -> Heard {
        let Some(number) = self.calls.get(&call.operation).copied() else { return Vec::new() };
        let Some(kept) = self.kept.hints.get_mut(&number).filter(|kept| kept.target == from) else {
            return Vec::new();
        };
        let sets = context.layout.replica_sets(context.partition(&kept.key));
        let heard = news_in(noted, &sets, context);
        self.calls.remove(&call.operation);
        kept.awaits = Awaits::Nothing;
        match outcome {
            WriteOutcome::Held(_) | WriteOutcome::Superseded(_) => self.took(number, context),
            WriteOutcome::Refused(Refusal::NotReplica) => self.finish(number, context),
            WriteOutcome::Refused(refusal) => {
                let least_ms = if refusal == Refusal::InDoubt { DOUBT_MS } else { 0 };
                self.refused(number, least_ms, context.now.mono_ms);
            }
        }
        self.hand_over(context);
        heard
    }

    /// The log has taken a commit of ours, or refused it; false if it is not one of ours. A refused end of a hint
    /// leaves it on disk: after the next start it is handed over once more.
    pub(crate) fn committed(
        &mut self,
        commit: CommitId,
        outcome: Result<Durability, NotCommitted>,
        context: &mut Context<'_>,
    ) -> bool {
        let Some(number) = self.commits.remove(&commit) else { return false };
        if let (Err(_), Some(number)) = (outcome, number)
            && let Some(kept) = self.remove(number)
        {
            self.overflow(&kept.key, context);
        }
        self.write(context);
        self.drop_unwanted(context);
        self.hand_over(context);
        true
    }

    /// Begins as much as windows, pauses, the budget and the log allow; targets take turns.
    fn hand_over(&mut self, context: &mut Context<'_>) {
        while self.may_commit()
            && let Some(node) = self.next_target(context)
        {
            if !context.budget.allows(context.now.mono_ms, context.busy)
                && !is_on(Mutant::HintsHaveTheirOwnBudget)
            {
                return;
            }
            self.turn = node;
            self.begin(node, context);
        }
    }

    fn next_target(&self, context: &Context<'_>) -> Option<NodeId> {
        let may_go = |(node, target): &(&NodeId, &Target)| {
            target.has_room()
                && target.paused_until_ms <= context.now.mono_ms
                && context.peers.is_connected(**node)
        };
        let mut after = self.kept.targets.iter().filter(|(node, _)| **node > self.turn);
        let mut before = self.kept.targets.iter().filter(|(node, _)| **node <= self.turn);
        after.find(may_go).or_else(|| before.find(may_go)).map(|(node, _)| *node)
    }

    /// Asks for the record of the oldest hint that is ready.
    fn begin(&mut self, node: NodeId, context: &mut Context<'_>) {
        let Some(number) = self.kept.targets.get(&node).and_then(|target| target.ready.first()).copied()
        else {
            return;
        };
        let Some(kept) = self.kept.hints.get_mut(&number) else { return };
        if !fits(node, &kept.key, context) {
            return self.finish(number, context);
        }
        if let Awaits::Answer(call) = kept.awaits {
            self.calls.remove(&call);
        }
        let load = context.next_load();
        kept.awaits = Awaits::Record(load);
        kept.is_renewed = false;
        context.budget.spend(cost(&kept.key));
        context.effects.push(Effect::Load { load, key: kept.key.clone() });
        self.loads.insert(load, number);
        self.kept.stage(number, Stage::UnderWay(context.now.mono_ms + ANSWER_MS_MAX));
    }

    fn took(&mut self, number: Number, context: &mut Context<'_>) {
        let Some(kept) = self.kept.hints.get_mut(&number) else { return };
        if let Some(target) = self.kept.targets.get_mut(&kept.target) {
            target.failures = 0;
            target.paused_until_ms = 0;
        }
        if std::mem::take(&mut kept.is_renewed) && !is_on(Mutant::RenewedHintsEnd) {
            return self.kept.stage(number, Stage::Ready);
        }
        context.counters.hints_handed_over += 1;
        self.finish(number, context);
    }

    /// The target did not take a record, or is silent: leaves it alone for a while, and this hint twice as long, so
    /// that one which is never taken does not stand before all others.
    fn refused(&mut self, number: Number, least_ms: u64, now_ms: u64) {
        let Some(target) =
            self.kept.hints.get(&number).and_then(|kept| self.kept.targets.get_mut(&kept.target))
        else {
            return;
        };
        // All that was under way when the target began to refuse is one failure.
        if target.failures == 0 || target.paused_until_ms <= now_ms {
            target.failures = (target.failures + 1).min(16);
            target.paused_until_ms = now_ms + target.pause_ms();
        }
        let rest_ms = least_ms.max(2 * target.pause_ms());
        let rest_ms = if is_on(Mutant::RefusedHintsRestForEver) { u64::MAX / 2 } else { rest_ms };
        self.rest(number, now_ms + rest_ms);
    }

    fn give_up_waiting(&mut self, node: NodeId, now_ms: u64) {
        while let Some((until, number)) =
            self.kept.targets.get(&node).and_then(|target| target.under_way.first()).copied()
            && until <= now_ms
        {
            if let Some(kept) = self.kept.hints.get_mut(&number)
                && let Awaits::Record(load) = kept.awaits
            {
                kept.awaits = Awaits::Nothing;
                self.loads.remove(&load);
            }
            self.refused(number, 0, now_ms);
        }
    }

    fn wake_rested(&mut self, node: NodeId, now_ms: u64) {
        while let Some((until, number)) =
            self.kept.targets.get(&node).and_then(|target| target.resting.first()).copied()
            && until <= now_ms
        {
            self.kept.stage(number, Stage::Ready);
        }
    }

    /// All that is kept for a target is ready, and nothing is waited for but answers.
    fn recall(&mut self, node: NodeId) {
        let Some(target) = self.kept.targets.get_mut(&node) else { return };
        target.failures = 0;
        target.paused_until_ms = 0;
        let recalled: Vec<_> =
            target.resting.iter().chain(&target.under_way).map(|(_, number)| *number).collect();
        for number in recalled {
            if let Some(kept) = self.kept.hints.get_mut(&number)
                && let Awaits::Record(load) = kept.awaits
            {
                kept.awaits = Awaits::Nothing;
                self.loads.remove(&load);
            }
            self.kept.stage(number, Stage::Ready);
        }
    }

    /// Drops what has become too old, and the newest of what is too much (the bound was lowered before the start).
    fn drop_unwanted(&mut self, context: &mut Context<'_>) {
        while self.may_commit()
            && let Some(number) = self.needless.pop_first()
        {
            self.finish(number, context);
        }
        while self.may_commit() {
            let oldest = self.kept.hints.first_key_value();
            let expired = oldest.filter(|(_, kept)| kept.expires_ms <= context.now.mono_ms);
            let number = match (expired, self.kept.hints.last_key_value()) {
                (Some((number, _)), _) => {
                    context.counters.hints_expired += 1;
                    *number
                }
                (None, Some((number, _)))
                    if self.kept.bytes > self.bytes_max && !is_on(Mutant::HintsAreUnbounded) =>
                {
                    context.counters.hints_overflowed += 1;
                    *number
                }
                (None, _) => return,
            };
            if let Some(kept) = self.kept.hints.get(&number) {
                self.wanted_by_repair.insert(context.partition(&kept.key));
            }
            self.finish(number, context);
        }
    }

    fn overflow(&mut self, key: &RecordKey, context: &mut Context<'_>) {
        context.counters.hints_overflowed += 1;
        self.wanted_by_repair.insert(context.partition(key));
    }

    /// Nothing more is to be done about a hint.
    fn finish(&mut self, number: Number, context: &mut Context<'_>) {
        let is_written = !self.unwritten.remove(&number);
        if let Some(Kept { target, key, .. }) = self.remove(number)
            && is_written
        {
            self.commit(Entry::HintDone { target, key }, None, context);
        }
    }

    /// Hints are not worth a sync of their own: they are synced with what comes after them.
    fn commit(&mut self, entry: Entry, number: Option<Number>, context: &mut Context<'_>) {
        let id = context.next_commit();
        self.commits.insert(id, number);
        context.effects.push(Effect::Commit(Commit { id, entry, durability: Durability::Periodic }));
    }

    fn remove(&mut self, number: Number) -> Option<Kept> {
        let kept = self.kept.remove(number)?;
        match kept.awaits {
            Awaits::Nothing => {}
            Awaits::Record(load) => drop(self.loads.remove(&load)),
            Awaits::Answer(call) => drop(self.calls.remove(&call)),
        }
        Some(kept)
    }

    fn rest(&mut self, number: Number, until_ms: u64) {
        self.kept.stage(number, Stage::Resting(until_ms));
    }
}

/// Only a replica keeps hints, and only for another one that may come back.
fn fits(target: NodeId, key: &RecordKey, context: &Context<'_>) -> bool {
    let partition = context.partition(key);
    target != context.me
        && context.layout.is_replica(partition, context.me)
        && context.layout.is_replica(partition, target)
        && !context.layout.is_lost(target)
}
