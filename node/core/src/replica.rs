//! A replica: merges writes into what is stored, makes them durable, and answers with what holds *after* that.
//!
//! Writes of one key are merged in the order in which they arrive, against the stored record or against what is
//! being committed; other keys do not wait. An answer that speaks of a record leaves only after the commit that
//! holds this record has ended: nothing is acknowledged, and nothing shown to a reader, that is not yet as durable
//! as was asked. Of a key for which it is in doubt, it says nothing but that.

mod answers;
mod highest;
mod in_doubt;
mod incoming;
mod pages;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::causal::{Dot, DotActor, Siblings};
use crate::context::Context;
use crate::doubt::Doubts;
use crate::effect::{Alarm, Commit, CommitId, Damaged, Effect, Entry, LoadId, NotCommitted};
use crate::held::Held;
use crate::id::{Epoch, NodeId};
use crate::message::{
    Call, Message, Mint, MintOutcome, Origin, ReadOutcome, Refusal, ScanRange, Want, Write, WriteOutcome,
};
use crate::mutant::{Mutant, is_on};
use crate::partition::RecordKey;
use crate::quorum::Durability;
use crate::record::{Body, Record};
use crate::stamp::Stamp;

use answers::{answer_of, read_outcome, refuse_read};
use highest::Highest;
use incoming::Incoming;

#[derive(Debug)]
pub(crate) struct Replica {
    keys: BTreeMap<RecordKey, KeyWrites>,
    loads: BTreeMap<LoadId, Load>,
    commits: BTreeMap<CommitId, PendingCommit>,
    /// What the writes under way take up, about.
    bytes: usize,
    /// How many writes wait for a record for which another one waits already.
    joined_loads: usize,
    /// How many pages are being read for others to take them over.
    given: usize,
    disk_full: bool,
    pub(crate) doubts: Doubts,
    /// Something was written that no sync has followed yet: what is stored is not on disk for sure.
    is_unsynced: bool,
    highest: Highest,
}

/// What an answer that waits takes up, beside a key and a value.
const ANSWER_BYTES: usize = 128;

/// The writes under way for one key.
#[derive(Debug)]
enum KeyWrites {
    /// They wait for the stored record.
    Loading(Vec<(NodeId, Incoming)>),
    /// The newest record is being committed by the `last` of so many commits under way, with this durability.
    Merging { newest: Record, commits: usize, last: CommitId, durability: Durability },
}

#[derive(Debug)]
enum Load {
    Write(RecordKey),
    Read {
        key: RecordKey,
        from: NodeId,
        call: Call,
        want: Want,
    },
    Scan {
        range: ScanRange,
        held: Option<Held>,
        from: NodeId,
        call: Call,
    },
    /// Whatever can be read of it.
    Salvage {
        range: ScanRange,
        from: NodeId,
        call: Call,
    },
}

#[derive(Debug)]
struct PendingCommit {
    key: RecordKey,
    /// Of the record that is committed.
    stamp: Stamp,
    durability: Durability,
    bytes: usize,
    answers: Vec<(NodeId, Call, Holding)>,
}

/// What an answer will say once the commit it waits for is durable.
#[derive(Debug, Clone)]
enum Holding {
    Ours,
    Superseding(Stamp),
    Minted { record: Record, dot: Option<Dot> },
}

impl Replica {
    /// No record that is stored has a stamp above this one, if it is known.
    pub(crate) fn new(highest: Option<Stamp>) -> Self {
        Self {
            keys: BTreeMap::new(),
            loads: BTreeMap::new(),
            commits: BTreeMap::new(),
            bytes: 0,
            joined_loads: 0,
            given: 0,
            disk_full: false,
            doubts: Doubts::default(),
            is_unsynced: false,
            highest: Highest::new(highest),
        }
    }

    pub(crate) fn is_disk_full(&self) -> bool {
        self.disk_full
    }

    pub(crate) fn set_disk_full(&mut self, full: bool) {
        self.disk_full = full;
    }

    /// How many writes wait for a record or a commit.
    pub(crate) fn under_way(&self) -> usize {
        self.loads.len() + self.joined_loads + self.commits.len()
    }

    /// Another layout is in force: nobody waits for what was asked before. What is being committed ends, unheard but for
    /// the dots that were given.
    pub(crate) fn begin_epoch(&mut self, context: &mut Context<'_>) {
        if is_on(Mutant::OperationsOutliveTheirEpoch) {
            return;
        }
        if !is_on(Mutant::ReadsOutliveTheirEpoch) {
            self.loads.clear();
        }
        self.given = 0;
        let mut dropped = Vec::new();
        self.keys.retain(|_, writes| match writes {
            KeyWrites::Loading(waiting) => {
                dropped.append(waiting);
                false
            }
            KeyWrites::Merging { .. } => true,
        });
        for (from, incoming) in dropped {
            self.bytes -= incoming.bytes();
            if matches!(incoming, Incoming::Mint(_)) {
                incoming.refuse(from, Refusal::StaleEpoch, context);
            }
        }
        self.joined_loads = 0;
        for commit in self.commits.values_mut() {
            commit.answers.retain(|(.., holding)| matches!(holding, Holding::Minted { .. }));
        }
    }

    /// A recovery was accepted: whoever has asked has given up, and no answer of before may speak of what is salvaged.
    pub(crate) fn answer_nobody(&mut self) {
        for commit in self.commits.values_mut() {
            commit.answers.clear();
        }
    }

    /// True once nothing that was asked of this replica is still to be written under these keys.
    pub(crate) fn has_settled(&self, of: impl Fn(&RecordKey) -> bool) -> bool {
        let committing = self.commits.values().map(|commit| &commit.key);
        !committing.chain(self.keys.keys()).chain(self.doubts.replacing()).any(of)
    }

    pub(crate) fn write(&mut self, from: NodeId, write: Write, context: &mut Context<'_>) {
        self.take(from, Incoming::Write(write), context);
    }

    pub(crate) fn mint(&mut self, from: NodeId, mint: Mint, context: &mut Context<'_>) {
        self.take(from, Incoming::Mint(mint), context);
    }

    fn take(&mut self, from: NodeId, incoming: Incoming, context: &mut Context<'_>) {
        if let Err(refusal) = self.check(&incoming, context) {
            return incoming.refuse(from, refusal, context);
        }
        self.bytes += incoming.bytes();
        if !is_on(Mutant::AcceptedIsNotObserved) {
            context.clock.observe(incoming.stamp());
        }
        match self.keys.get_mut(incoming.key()) {
            Some(KeyWrites::Loading(waiting)) => {
                waiting.push((from, incoming));
                self.joined_loads += 1;
            }
            Some(KeyWrites::Merging { newest, .. }) => {
                let newest = newest.clone();
                self.apply(from, incoming, Some(newest), context);
            }
            // Above all that is stored under the key, it takes the place of that, whatever it is.
            None if incoming.replaces() && self.highest.is_below(incoming.key(), incoming.stamp()) => {
                context.counters.written_unseen += 1;
                self.apply(from, incoming, None, context);
            }
            None => {
                let key = incoming.key().clone();
                let load = self.expect(Load::Write(key.clone()), context);
                context.effects.push(Effect::Load { load, key: key.clone() });
                self.keys.insert(key, KeyWrites::Loading(vec![(from, incoming)]));
            }
        }
    }

    pub(crate) fn read(
        &mut self,
        from: NodeId,
        call: Call,
        (key, want): (RecordKey, Want),
        context: &mut Context<'_>,
    ) {
        let partition = context.partition(&key);
        if !context.layout.is_replica(partition, context.me) {
            let outcome = ReadOutcome::Refused(Refusal::NotReplica);
            return context.send(from, Message::ReadAnswer { call, outcome, noted: Vec::new() });
        }
        if self.doubts.contains(&key) && !is_on(Mutant::ReadsSpeakOfKeysInDoubt) {
            return refuse_read(from, call, &key, context);
        }
        if is_on(Mutant::ReadsSeeWhatIsBeingCommitted)
            && let Some(KeyWrites::Merging { newest, .. }) = self.keys.get(&key)
        {
            let (outcome, noted) = (ReadOutcome::Full(newest.clone()), context.noted(partition));
            return context.send(from, Message::ReadAnswer { call, outcome, noted });
        }
        let load = self.expect(Load::Read { key: key.clone(), from, call, want }, context);
        context.effects.push(Effect::Load { load, key });
    }

    pub(crate) fn loaded(
        &mut self,
        load: LoadId,
        record: Result<Option<Record>, Damaged>,
        context: &mut Context<'_>,
    ) {
        let record = if is_on(Mutant::DamagedIsMissing) { record.or(Ok(None)) } else { record };
        match self.loads.remove(&load) {
            Some(Load::Write(key)) => self.loaded_for_write(&key, record, context),
            Some(Load::Read { key, from, call, want }) => match record {
                Ok(record) => {
                    let outcome = read_outcome(record, want, context.settings.digest_bytes_min);
                    let noted = context.noted(context.partition(&key));
                    context.send(from, Message::ReadAnswer { call, outcome, noted });
                }
                Err(Damaged) => {
                    self.doubt(&key, context);
                    refuse_read(from, call, &key, context);
                }
            },
            Some(Load::Scan { .. } | Load::Salvage { .. }) | None => {}
        }
    }

    /// The log has taken a commit, or refused it; or it has taken it, and the engine has met damage. Commits of one
    /// key end in their order, so whatever was merged onto a refused one is still under way.
    pub(crate) fn committed(
        &mut self,
        commit: CommitId,
        outcome: Result<Durability, NotCommitted>,
        context: &mut Context<'_>,
    ) {
        if let Ok(durability) = outcome {
            // Commits end in their order, and a sync covers all that was written before.
            self.is_unsynced = durability < Durability::Synced;
        }
        if self.doubts.replaced(commit, outcome.is_ok(), context) {
            return;
        }
        let outcome = match outcome {
            Err(NotCommitted::Damaged) if is_on(Mutant::DamagedCommitsAreHeld) => Ok(Durability::Synced),
            outcome => outcome,
        };
        if let (Err(NotCommitted::Damaged), Some(pending)) = (outcome, self.commits.get(&commit)) {
            let key = pending.key.clone();
            // Leaves nobody to be answered: it may come up after the next start.
            self.doubt(&key, context);
        }
        let Some(PendingCommit { key, stamp, bytes, answers, durability: _ }) = self.commits.remove(&commit)
        else {
            return;
        };
        self.bytes -= bytes;
        if let Some(KeyWrites::Merging { commits, newest, .. }) = self.keys.get_mut(&key) {
            *commits -= 1;
            if *commits == 0 {
                self.keys.remove(&key);
            } else if outcome.is_err() {
                let are_siblings = matches!(newest.body, Body::Siblings(_));
                let mut later = self.commits.range(commit..).filter(|(_, pending)| pending.key == key);
                let next = match is_on(Mutant::RefusedSiblingsWaitForTheLast) {
                    true => later.next_back(),
                    false => later.next(),
                };
                // What was refused may be part of what is committed next, as a sibling is, or be committed once more,
                // for somebody who wants it more durable: then it stands or falls with that.
                let carries = |pending: &PendingCommit| match are_siblings {
                    true => !is_on(Mutant::RefusedSiblingsAreAnsweredAtOnce),
                    false => pending.stamp == stamp && !is_on(Mutant::RefusedValuesAreAnsweredAtOnce),
                };
                if let Some(next) = next.filter(|(_, pending)| carries(pending)).map(|(next, _)| *next) {
                    for answer in answers {
                        self.wait_for(next, answer);
                    }
                    return;
                }
            }
        }
        for (to, call, holding) in answers {
            let noted = context.noted(context.partition(&key));
            context.send(to, answer_of(call, holding, outcome, noted));
        }
    }

    /// What is refused before anything is read or written. Repairs are refused for want of space only by the log
    /// itself: they live on the reserve above the hard limit.
    fn check(&self, incoming: &Incoming, context: &Context<'_>) -> Result<(), Refusal> {
        if !context.layout.is_replica(context.partition(incoming.key()), context.me) {
            return Err(Refusal::NotReplica);
        }
        if self.doubts.contains(incoming.key()) && !is_on(Mutant::WritesAreTakenInDoubt) {
            return Err(Refusal::InDoubt);
        }
        let settings = context.settings;
        let is_within = |reserve: usize| {
            is_on(Mutant::WritesAreUnbounded)
                || self.under_way() < settings.writes_max + settings.writes_max / 4 * reserve
                    && self.bytes < settings.write_bytes_max + settings.write_bytes_max / 4 * reserve
        };
        let skew_ms_max = context.settings.skew_ms_max;
        let is_ahead = context.clock.is_too_far_ahead(incoming.stamp(), context.now.wall_ms, skew_ms_max);
        if is_on(Mutant::RepairsAreRefusedForTheirStamp) && is_ahead {
            return Err(Refusal::ClockSkew);
        }
        let Some(deadline_wall_ms) = incoming.client_deadline_ms() else {
            return if is_within(1) { Ok(()) } else { Err(Refusal::Overloaded) };
        };
        // The coordinator's clock may be that much ahead of ours, or behind it.
        let is_late = context.now.wall_ms > deadline_wall_ms.saturating_add(skew_ms_max);
        if is_late && !is_on(Mutant::LateWritesAreTaken) {
            return Err(Refusal::DeadlinePassed);
        }
        if is_ahead {
            return Err(Refusal::ClockSkew);
        }
        // What is deleted takes no space for long: deletes live on the reserve, as repairs do.
        if self.disk_full && incoming.takes_space() {
            return Err(Refusal::DiskFull);
        }
        if is_within(0) { Ok(()) } else { Err(Refusal::Overloaded) }
    }

    fn expect(&mut self, purpose: Load, context: &mut Context<'_>) -> LoadId {
        let load = context.next_load();
        self.loads.insert(load, purpose);
        load
    }

    fn loaded_for_write(
        &mut self,
        key: &RecordKey,
        record: Result<Option<Record>, Damaged>,
        context: &mut Context<'_>,
    ) {
        let stored = match record {
            Ok(stored) => stored,
            Err(Damaged) => return self.doubt(key, context),
        };
        let Some(KeyWrites::Loading(waiting)) = self.keys.remove(key) else {
            return;
        };
        self.joined_loads -= waiting.len() - 1;
        // What is held was accepted once: a write above it is not too far ahead, whatever our clock says.
        if let Some(stored) = &stored {
            context.clock.observe(stored.stamp);
        }
        for (from, incoming) in waiting {
            let newest = match self.keys.get(key) {
                Some(KeyWrites::Merging { newest, .. }) => Some(newest.clone()),
                Some(KeyWrites::Loading(_)) | None => stored.clone(),
            };
            self.apply(from, incoming, newest, context);
        }
    }

    fn apply(&mut self, from: NodeId, incoming: Incoming, newest: Option<Record>, context: &mut Context<'_>) {
        let bytes = incoming.bytes();
        match incoming {
            Incoming::Write(write) => self.merge(from, write, (newest, bytes), context),
            Incoming::Mint(mint) => self.give_dot(from, mint, (newest, bytes), context),
        }
    }

    /// Commits what comes of the stored record and the write's; or says what supersedes it, once that is durable.
    fn merge(
        &mut self,
        from: NodeId,
        write: Write,
        (newest, bytes): (Option<Record>, usize),
        context: &mut Context<'_>,
    ) {
        let Write { call, key, record, origin, durability } = write;
        if let Some(newest) = &newest {
            if newest.conflicts_with(&record) {
                let alarm = Alarm::EqualStamps { key: key.clone(), stamp: record.stamp };
                context.effects.push(Effect::Alarm(alarm));
            }
            if newest.supersedes(&record) {
                if is_on(Mutant::SupersededIsCalledHeld) {
                    self.bytes -= bytes;
                    let (outcome, noted) =
                        (WriteOutcome::Held(durability), context.noted(context.partition(&key)));
                    return context.send(from, Message::WriteAnswer { call, outcome, noted });
                }
                // Whoever repairs goes by it that the record, or what supersedes it, is as durable as was asked.
                if origin == Origin::Repair && self.durability_of(&key) < durability {
                    let answers = vec![(from, call, Holding::Superseding(newest.stamp))];
                    let pending = PendingCommit { key, stamp: newest.stamp, durability, bytes, answers };
                    context.counters.synced_anew += 1;
                    return self.commit(pending, newest.clone(), Some(newest), context);
                }
                self.bytes -= bytes;
                return self.answer_superseded((from, call), &key, newest.stamp, context);
            }
        }
        let merged = match newest.clone() {
            Some(newest) if !is_on(Mutant::SiblingsAreNotMerged) => newest.merge(record),
            Some(_) | None => record,
        };
        if !self.has_room_for(&merged, context.settings.write_bytes_max / 4 * 5) {
            self.bytes -= bytes;
            let noted = context.noted(context.partition(&key));
            let outcome = WriteOutcome::Refused(Refusal::Overloaded);
            return context.send(from, Message::WriteAnswer { call, outcome, noted });
        }
        let answers = vec![(from, call, Holding::Ours)];
        let mut pending = PendingCommit { key, stamp: merged.stamp, durability, bytes, answers };
        if is_on(Mutant::HeldBeforeItIsSynced) {
            pending.answers.clear();
            let (outcome, noted) =
                (WriteOutcome::Held(durability), context.noted(context.partition(&pending.key)));
            context.send(from, Message::WriteAnswer { call, outcome, noted });
        }
        self.commit(pending, merged, newest.as_ref(), context);
    }

    /// Adds the write to the siblings of its key, under a dot of ours. That is synced before anybody hears of it:
    /// a dot that were forgotten would be given again.
    fn give_dot(
        &mut self,
        from: NodeId,
        mint: Mint,
        (newest, bytes): (Option<Record>, usize),
        context: &mut Context<'_>,
    ) {
        let Mint { call, key, change, .. } = mint;
        let mut siblings = match newest.as_ref().map(|record| &record.body) {
            Some(Body::Siblings(siblings)) => Siblings::clone(siblings),
            _ => Siblings::default(),
        };
        let partition = context.partition(&key);
        let since = context.layout.since(partition, context.me).unwrap_or(Epoch(0));
        let actor = match is_on(Mutant::OneActorMintsForAll) {
            true => DotActor(1),
            false if is_on(Mutant::DotsAreGivenAgainAfterADoubt) => DotActor(context.actor.0),
            false => DotActor(context.actor.minting(context.trusted_since, since)),
        };
        let stamp = newest.as_ref().map_or(change.stamp, |newest| newest.stamp.max(change.stamp));
        let known = siblings.values().any(|(_, sibling)| sibling.operation == change.operation);
        context.counters.operations_met_again += u64::from(known);
        let Ok(dot) = siblings.mint(actor, change) else {
            self.bytes -= bytes;
            context.counters.sibling_caps += 1;
            let (outcome, noted) = (MintOutcome::Refused(Refusal::TooManySiblings), context.noted(partition));
            return context.send(from, Message::MintAnswer { call, outcome, noted });
        };
        let record = Record { stamp, body: Body::Siblings(Arc::new(siblings)) };
        if !self.has_room_for(&record, context.settings.write_bytes_max) {
            self.bytes -= bytes;
            let (outcome, noted) = (MintOutcome::Refused(Refusal::Overloaded), context.noted(partition));
            return context.send(from, Message::MintAnswer { call, outcome, noted });
        }
        context.counters.minted += 1;
        let holding = Holding::Minted { record: record.clone(), dot };
        let durability = Durability::Synced;
        let answers = vec![(from, call, holding)];
        let pending = PendingCommit { key, stamp, durability, bytes, answers };
        self.commit(pending, record, newest.as_ref(), context);
    }

    fn commit(
        &mut self,
        mut pending: PendingCommit,
        record: Record,
        newest: Option<&Record>,
        context: &mut Context<'_>,
    ) {
        let (key, durability) = (pending.key.clone(), pending.durability);
        if newest == Some(&record) && self.join(&mut pending) {
            self.bytes -= pending.bytes;
            return;
        }
        if !is_on(Mutant::StoredIsNotRemembered) {
            self.highest.raise(&key, record.stamp);
        }
        let extra = whole_bytes(&record);
        pending.bytes += extra;
        self.bytes += extra;
        let id = context.next_commit();
        self.commits.insert(id, pending);
        match self.keys.get_mut(&key) {
            Some(KeyWrites::Merging { newest, commits, last, durability: of_last }) => {
                *newest = record.clone();
                *commits += 1;
                *last = id;
                *of_last = durability;
            }
            Some(KeyWrites::Loading(_)) | None => {
                let merging = KeyWrites::Merging { newest: record.clone(), commits: 1, last: id, durability };
                self.keys.insert(key.clone(), merging);
            }
        }
        let entry = Entry::Record { key, record };
        context.effects.push(Effect::Commit(Commit { id, entry, durability }));
    }

    /// Siblings are written as a whole, however little was added to them; one such record always has room.
    fn has_room_for(&self, record: &Record, bytes_max: usize) -> bool {
        let whole = whole_bytes(record);
        whole == 0 || self.commits.is_empty() || self.bytes + whole <= bytes_max
    }

    /// The very record is being committed already: its commit serves for this write too, unless it is to be less
    /// durable.
    fn join(&mut self, pending: &mut PendingCommit) -> bool {
        let Some(KeyWrites::Merging { last, durability, .. }) = self.keys.get(&pending.key) else {
            return false;
        };
        let last = *last;
        if *durability < pending.durability && !is_on(Mutant::JoinsLessDurableCommits)
            || !self.commits.contains_key(&last)
        {
            return false;
        }
        std::mem::take(&mut pending.answers).into_iter().all(|answer| self.wait_for(last, answer))
    }

    /// How durable what is held under a key surely is, or will be once its last commit has ended.
    fn durability_of(&self, key: &RecordKey) -> Durability {
        match self.keys.get(key) {
            Some(KeyWrites::Merging { durability, .. }) => *durability,
            Some(KeyWrites::Loading(_)) | None if self.is_unsynced => Durability::Periodic,
            Some(KeyWrites::Loading(_)) | None => Durability::Synced,
        }
    }

    /// True if the engine may show what no sync has followed yet.
    pub(crate) fn shows_unsynced(&self) -> bool {
        self.is_unsynced || self.commits.values().any(|commit| commit.durability < Durability::Synced)
    }

    /// Answers when a commit ends; false if it has ended.
    fn wait_for(&mut self, commit: CommitId, answer: (NodeId, Call, Holding)) -> bool {
        let Some(commit) = self.commits.get_mut(&commit) else { return false };
        commit.answers.push(answer);
        commit.bytes += ANSWER_BYTES;
        self.bytes += ANSWER_BYTES;
        true
    }

    fn answer_superseded(
        &mut self,
        (to, call): (NodeId, Call),
        key: &RecordKey,
        by: Stamp,
        context: &mut Context<'_>,
    ) {
        if let Some(KeyWrites::Merging { last, .. }) = self.keys.get(key) {
            let last = *last;
            let is_early = is_on(Mutant::SupersededBeforeItIsSynced);
            if !is_early && self.wait_for(last, (to, call, Holding::Superseding(by))) {
                return;
            }
        }
        let noted = context.noted(context.partition(key));
        context.send(to, Message::WriteAnswer { call, outcome: WriteOutcome::Superseded(by), noted });
    }
}

/// What a commit writes beside what was asked for.
fn whole_bytes(record: &Record) -> usize {
    match &record.body {
        Body::Siblings(_) => record.value_len(),
        Body::Value(_) | Body::Expiring { .. } | Body::Tombstone | Body::Expired => 0,
    }
}
