//! What a replica does when a record turns out to be damaged, and once others have said what they hold.

use super::answers::refuse_read;
use super::{KeyWrites, Load, Replica};
use crate::context::Context;
use crate::effect::Effect;
use crate::id::NodeId;
use crate::message::{Call, ReadOutcome, Refusal};
use crate::mutant::{Mutant, is_on};
use crate::partition::RecordKey;

impl Replica {
    /// Nothing that is under way for the key is answered as if it counted. What waits for its record is refused, and
    /// has changed nothing. Of what is being committed nobody is told: it may be in the log, and is not in the store
    /// while what is there is damaged; the links to whoever waits for it close with the new generation.
    pub(crate) fn doubt(&mut self, key: &RecordKey, context: &mut Context<'_>) {
        self.doubts.enter(key, context);
        for commit in self.commits.values_mut().filter(|commit| commit.key == *key) {
            if !is_on(Mutant::CommitsOutliveADoubt) {
                commit.answers.clear();
            }
        }
        // Results that come later are of before, and say nothing any more.
        let mut readers = Vec::new();
        self.loads.retain(|_, load| match load {
            Load::Read { key: of, from, call, .. } if of == key => {
                readers.push((*from, *call));
                false
            }
            Load::Write(of) => of != key,
            Load::Read { .. } | Load::Scan { .. } | Load::Salvage { .. } => true,
        });
        for (from, call) in readers {
            refuse_read(from, call, key, context);
        }
        if matches!(self.keys.get(key), Some(KeyWrites::Loading(_)))
            && let Some(KeyWrites::Loading(waiting)) = self.keys.remove(key)
        {
            self.joined_loads -= waiting.len() - 1;
            for (from, incoming) in waiting {
                self.bytes -= incoming.bytes();
                incoming.refuse(from, Refusal::InDoubt, context);
            }
        }
    }

    /// Another replica has said what it holds of a key in doubt.
    pub(crate) fn heal(&mut self, from: NodeId, call: Call, outcome: ReadOutcome, context: &mut Context<'_>) {
        if let Some((key, record)) = self.doubts.answered(from, call, outcome, context) {
            if let Some(record) = &record
                && !is_on(Mutant::HealedIsNotRemembered)
            {
                self.highest.raise(&key, record.stamp);
            }
            let commit = self.doubts.replace(context.next_commit(), key, record);
            context.effects.push(Effect::Commit(commit));
        }
    }
}
