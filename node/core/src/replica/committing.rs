//! What a replica commits: who waits for it, and what they hear once it has ended.

use super::answers::answer_of;
use super::{Holding, KeyWrites, PendingCommit, Replica};
use crate::context::Context;
use crate::effect::{Commit, CommitId, Effect, Entry, NotCommitted};
use crate::id::NodeId;
use crate::message::Call;
use crate::mutant::{Mutant, is_on};
use crate::partition::RecordKey;
use crate::quorum::Durability;
use crate::record::{Body, Record};

/// What an answer that waits takes up, beside a key and a value.
pub(super) const ANSWER_BYTES: usize = 128;

impl Replica {
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

    pub(super) fn commit(
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
    pub(super) fn has_room_for(&self, record: &Record, bytes_max: usize) -> bool {
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
    pub(super) fn durability_of(&self, key: &RecordKey) -> Durability {
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
    pub(super) fn wait_for(&mut self, commit: CommitId, answer: (NodeId, Call, Holding)) -> bool {
        let Some(commit) = self.commits.get_mut(&commit) else { return false };
        commit.answers.push(answer);
        commit.bytes += ANSWER_BYTES;
        self.bytes += ANSWER_BYTES;
        true
    }
}

/// What a commit writes beside what was asked for.
fn whole_bytes(record: &Record) -> usize {
    match &record.body {
        Body::Siblings(_) => record.value_len(),
        Body::Value(_) | Body::Expiring { .. } | Body::Tombstone | Body::Expired => 0,
    }
}
