//! A replica: merges writes into what is stored, makes them durable, and answers with what holds *after* that.
//!
//! Writes of one key are merged in the order in which they arrive, against the stored record or against what is
//! being committed; other keys do not wait. An answer that speaks of a record leaves only after the commit that
//! holds this record has ended: nothing is acknowledged, and nothing shown to a reader, that is not yet as durable
//! as was asked.

use std::collections::BTreeMap;

use crate::context::Context;
use crate::effect::{Alarm, Commit, CommitId, CommitRefused, Damaged, Effect, LoadId};
use crate::id::NodeId;
use crate::message::{Call, Message, Origin, ReadOutcome, Refusal, Want, Write, WriteOutcome};
use crate::partition::RecordKey;
use crate::quorum::Durability;
use crate::record::{Body, Record};
use crate::stamp::Stamp;

#[derive(Debug, Default)]
pub(crate) struct Replica {
    keys: BTreeMap<RecordKey, KeyWrites>,
    loads: BTreeMap<LoadId, Load>,
    commits: BTreeMap<CommitId, PendingCommit>,
    next_load: u64,
    next_commit: u64,
    /// What the writes under way take up, about.
    bytes: usize,
    disk_full: bool,
}

/// What an answer that waits takes up, beside a key and a value.
const ANSWER_BYTES: usize = 128;

/// The writes under way for one key.
#[derive(Debug)]
enum KeyWrites {
    /// They wait for the stored record.
    Loading(Vec<(NodeId, Write)>),
    /// The newest record is being committed by the `last` of so many commits under way, with this durability.
    Merging { newest: Record, commits: usize, last: CommitId, durability: Durability },
}

#[derive(Debug)]
enum Load {
    Write(RecordKey),
    Read { key: RecordKey, from: NodeId, call: Call, want: Want },
}

#[derive(Debug)]
struct PendingCommit {
    key: RecordKey,
    bytes: usize,
    answers: Vec<(NodeId, Call, Holding)>,
}

/// What an answer will say once the commit it waits for is durable.
#[derive(Debug, Clone, Copy)]
enum Holding {
    Ours,
    Superseding(Stamp),
}

impl Replica {
    pub(crate) fn set_disk_full(&mut self, full: bool) {
        self.disk_full = full;
    }

    /// How many writes wait for a record or a commit.
    pub(crate) fn under_way(&self) -> usize {
        self.loads.len() + self.commits.len()
    }

    pub(crate) fn write(&mut self, from: NodeId, write: Write, context: &mut Context<'_>) {
        if let Err(refusal) = self.check(&write, context) {
            return answer(context, from, write.call, WriteOutcome::Refused(refusal));
        }
        self.bytes += bytes_of(&write);
        context.clock.observe(write.record.stamp);
        match self.keys.get_mut(&write.key) {
            Some(KeyWrites::Loading(waiting)) => waiting.push((from, write)),
            Some(KeyWrites::Merging { newest, .. }) => {
                let newest = newest.clone();
                self.merge(from, write, Some(newest), context);
            }
            None => {
                let key = write.key.clone();
                self.load(Load::Write(key.clone()), key.clone(), context);
                self.keys.insert(key, KeyWrites::Loading(vec![(from, write)]));
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
        if !context.layout.is_replica(key.partition(context.layout.partitions), context.me) {
            let outcome = ReadOutcome::Refused(Refusal::NotReplica);
            return context.send(from, Message::ReadAnswer { call, outcome });
        }
        self.load(Load::Read { key: key.clone(), from, call, want }, key, context);
    }

    pub(crate) fn loaded(
        &mut self,
        load: LoadId,
        record: Result<Option<Record>, Damaged>,
        context: &mut Context<'_>,
    ) {
        match self.loads.remove(&load) {
            Some(Load::Write(key)) => self.loaded_for_write(&key, record, context),
            Some(Load::Read { key, from, call, want }) => {
                let outcome = read_outcome(record, want, context.settings.digest_bytes_min);
                if outcome == ReadOutcome::Refused(Refusal::InDoubt) {
                    context.effects.push(Effect::Alarm(Alarm::DamagedRecord { key }));
                }
                context.send(from, Message::ReadAnswer { call, outcome });
            }
            None => {}
        }
    }

    /// The log has taken a commit, or refused it. Commits of one key end in their order, so whatever was merged
    /// onto a refused one is still under way and stands for itself.
    pub(crate) fn committed(
        &mut self,
        commit: CommitId,
        outcome: Result<Durability, CommitRefused>,
        context: &mut Context<'_>,
    ) {
        let Some(PendingCommit { key, bytes, answers }) = self.commits.remove(&commit) else {
            return;
        };
        self.bytes -= bytes;
        if let Some(KeyWrites::Merging { commits, .. }) = self.keys.get_mut(&key) {
            *commits -= 1;
            if *commits == 0 {
                self.keys.remove(&key);
            }
        }
        for (to, call, holding) in answers {
            let outcome = match (outcome, holding) {
                (Ok(durability), Holding::Ours) => WriteOutcome::Held(durability),
                (Ok(_), Holding::Superseding(stamp)) => WriteOutcome::Superseded(stamp),
                (Err(CommitRefused), _) => WriteOutcome::Refused(Refusal::DiskFull),
            };
            answer(context, to, call, outcome);
        }
    }

    /// What is refused before anything is read or written. Repairs are refused for want of space only by the log
    /// itself: they live on the reserve above the hard limit.
    fn check(&self, write: &Write, context: &Context<'_>) -> Result<(), Refusal> {
        if !context.layout.is_replica(write.key.partition(context.layout.partitions), context.me) {
            return Err(Refusal::NotReplica);
        }
        let settings = context.settings;
        let is_within = |reserve: usize| {
            self.under_way() < settings.writes_max + settings.writes_max / 4 * reserve
                && self.bytes < settings.write_bytes_max + settings.write_bytes_max / 4 * reserve
        };
        let Origin::Client { deadline_wall_ms } = write.origin else {
            return if is_within(1) { Ok(()) } else { Err(Refusal::Overloaded) };
        };
        let skew_ms_max = context.settings.skew_ms_max;
        // The coordinator's clock may be that much ahead of ours, or behind it.
        if context.now.wall_ms > deadline_wall_ms.saturating_add(skew_ms_max) {
            return Err(Refusal::DeadlinePassed);
        }
        if context.clock.is_too_far_ahead(write.record.stamp, context.now.wall_ms, skew_ms_max) {
            return Err(Refusal::ClockSkew);
        }
        // What is deleted takes no space for long: deletes live on the reserve, as repairs do.
        if self.disk_full && matches!(write.record.body, Body::Value(_)) {
            return Err(Refusal::DiskFull);
        }
        if is_within(0) { Ok(()) } else { Err(Refusal::Overloaded) }
    }

    fn load(&mut self, purpose: Load, key: RecordKey, context: &mut Context<'_>) {
        let load = LoadId(self.next_load);
        self.next_load += 1;
        self.loads.insert(load, purpose);
        context.effects.push(Effect::Load { load, key });
    }

    fn loaded_for_write(
        &mut self,
        key: &RecordKey,
        record: Result<Option<Record>, Damaged>,
        context: &mut Context<'_>,
    ) {
        let Some(KeyWrites::Loading(waiting)) = self.keys.remove(key) else {
            return;
        };
        let stored = match record {
            Ok(stored) => stored,
            Err(Damaged) => {
                context.effects.push(Effect::Alarm(Alarm::DamagedRecord { key: key.clone() }));
                for (from, write) in waiting {
                    self.bytes -= bytes_of(&write);
                    answer(context, from, write.call, WriteOutcome::Refused(Refusal::InDoubt));
                }
                return;
            }
        };
        // What is held was accepted once: a write above it is not too far ahead, whatever our clock says.
        if let Some(stored) = &stored {
            context.clock.observe(stored.stamp);
        }
        for (from, write) in waiting {
            let newest = match self.keys.get(key) {
                Some(KeyWrites::Merging { newest, .. }) => Some(newest.clone()),
                Some(KeyWrites::Loading(_)) | None => stored.clone(),
            };
            self.merge(from, write, newest, context);
        }
    }

    /// Commits the write's record if it is the newest now; else says what supersedes it, once that is durable.
    fn merge(&mut self, from: NodeId, write: Write, newest: Option<Record>, context: &mut Context<'_>) {
        let bytes = bytes_of(&write);
        let Write { call, key, record, durability, .. } = write;
        if let Some(newest) = newest {
            if newest.conflicts_with(&record) {
                context
                    .effects
                    .push(Effect::Alarm(Alarm::EqualStamps { key: key.clone(), stamp: record.stamp }));
            }
            if newest.supersedes(&record) {
                self.bytes -= bytes;
                return self.answer_superseded((from, call), &key, newest.stamp, context);
            }
            if newest == record && self.join((from, call), &key, durability) {
                self.bytes -= bytes;
                return;
            }
        }
        let id = CommitId(self.next_commit);
        self.next_commit += 1;
        self.commits.insert(
            id,
            PendingCommit { key: key.clone(), bytes, answers: vec![(from, call, Holding::Ours)] },
        );
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
        context.effects.push(Effect::Commit(Commit { id, key, record, durability }));
    }

    /// The very record is being committed already: its commit serves for this write too, unless it is to be less
    /// durable.
    fn join(&mut self, (to, call): (NodeId, Call), key: &RecordKey, wanted: Durability) -> bool {
        let Some(KeyWrites::Merging { last, durability, .. }) = self.keys.get(key) else { return false };
        if *durability < wanted {
            return false;
        }
        let last = *last;
        self.wait_for(last, (to, call, Holding::Ours))
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
            if self.wait_for(last, (to, call, Holding::Superseding(by))) {
                return;
            }
        }
        answer(context, to, call, WriteOutcome::Superseded(by));
    }
}

fn bytes_of(write: &Write) -> usize {
    ANSWER_BYTES + write.key.encoded().len() + write.record.value_len()
}

fn answer(context: &mut Context<'_>, to: NodeId, call: Call, outcome: WriteOutcome) {
    context.send(to, Message::WriteAnswer { call, outcome });
}

fn read_outcome(record: Result<Option<Record>, Damaged>, want: Want, digest_bytes_min: usize) -> ReadOutcome {
    match (record, want) {
        (Err(Damaged), _) => ReadOutcome::Refused(Refusal::InDoubt),
        (Ok(None), _) => ReadOutcome::Missing,
        (Ok(Some(record)), Want::Digest) if record.value_len() > digest_bytes_min => {
            ReadOutcome::Digest(record.version())
        }
        (Ok(Some(record)), Want::Digest | Want::Full) => ReadOutcome::Full(record),
    }
}
