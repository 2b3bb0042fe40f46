//! What comes of a write and what is stored: a value that supersedes, or siblings with one more among them.

use std::sync::Arc;

use super::{Holding, KeyWrites, PendingCommit, Replica};
use crate::causal::{DotActor, Siblings};
use crate::context::Context;
use crate::effect::{Alarm, Effect};
use crate::id::{Epoch, NodeId};
use crate::message::{Call, Message, Mint, MintOutcome, Origin, Refusal, Write, WriteOutcome};
use crate::mutant::{Mutant, is_on};
use crate::partition::RecordKey;
use crate::quorum::Durability;
use crate::record::{Body, Record};
use crate::stamp::Stamp;

impl Replica {
    /// Commits what comes of the stored record and the write's; or says what supersedes it, once that is durable.
    pub(super) fn merge(
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
    pub(super) fn give_dot(
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
