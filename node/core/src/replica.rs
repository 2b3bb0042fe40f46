//! A replica: merges writes into what is stored, makes them durable, and answers with what holds *after* that.
//!
//! Writes of one key are merged in the order in which they arrive, against the stored record or against what is
//! being committed; other keys do not wait. An answer that speaks of a record leaves only after the commit that
//! holds this record has ended: nothing is acknowledged, and nothing shown to a reader, that is not yet as durable
//! as was asked. Of a key for which it is in doubt, it says nothing but that.

mod answers;
mod committing;
mod highest;
mod in_doubt;
mod incoming;
mod merging;
mod pages;

use std::collections::BTreeMap;

use crate::causal::Dot;
use crate::context::Context;
use crate::doubt::Doubts;
use crate::effect::{CommitId, Damaged, Effect, LoadId};
use crate::held::Held;
use crate::id::NodeId;
use crate::message::{Call, Message, Mint, ReadOutcome, Refusal, ScanRange, Want, Write};
use crate::mutant::{Mutant, is_on};
use crate::partition::RecordKey;
use crate::quorum::Durability;
use crate::record::Record;
use crate::stamp::Stamp;

use answers::{read_outcome, refuse_read};
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
}
