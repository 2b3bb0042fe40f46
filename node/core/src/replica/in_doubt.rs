//! What a replica does when a record turns out to be damaged, and once others have said what they hold.

use super::answers::refuse_read;
use super::{KeyWrites, Load, Replica};
use crate::context::Context;
use crate::effect::Effect;
use crate::id::NodeId;
use crate::message::{Call, ReadOutcome, Refusal};
use crate::mutant::{Mutant, is_on};
use crate::partition::{Partition, RecordKey};

impl Replica {
    /// Nothing that is under way for the key is answered as if it counted. What waits for its record is refused, and
    /// has changed nothing. Of what is being committed nobody is told: it may be in the log, and is not in the store
    /// while what is there is damaged; the links to whoever waits for it close with the new generation.
    pub(crate) fn doubt(&mut self, key: &RecordKey, context: &mut Context<'_>) {
        let (partition, partitions) = (context.partition(key), context.layout.partitions);
        let was_covered = self.doubts.cover(partition);
        self.doubts.enter(key, context);
        // With one key too many, it is its partition.
        let is_covered = self.doubts.cover(partition) && !was_covered;
        let is_doubted = |of: &RecordKey| of == key || is_covered && of.partition(partitions) == partition;
        self.drop_under_way(is_doubted, context);
    }

    /// The same for all keys of a partition of which something cannot be read.
    pub(crate) fn doubt_partition(&mut self, partition: Partition, context: &mut Context<'_>) {
        let partitions = context.layout.partitions;
        if self.doubts.enter_whole(partition, context) {
            self.drop_under_way(|of| of.partition(partitions) == partition, context);
        }
    }

    fn drop_under_way(&mut self, is_doubted: impl Fn(&RecordKey) -> bool, context: &mut Context<'_>) {
        for commit in self.commits.values_mut().filter(|commit| is_doubted(&commit.key)) {
            if !is_on(Mutant::CommitsOutliveADoubt) {
                commit.answers.clear();
            }
        }
        // Results that come later are of before, and say nothing any more.
        let mut readers = Vec::new();
        self.loads.retain(|_, load| match load {
            Load::Read { key, from, call, .. } if is_doubted(key) => {
                readers.push((key.clone(), *from, *call));
                false
            }
            Load::Write(key) => !is_doubted(key),
            Load::Read { .. } | Load::Scan { .. } | Load::Salvage { .. } => true,
        });
        for (key, from, call) in readers {
            refuse_read(from, call, &key, context);
        }
        let mut refused = Vec::new();
        self.keys.retain(|key, writes| match writes {
            KeyWrites::Loading(waiting) if is_doubted(key) => {
                self.joined_loads -= waiting.len() - 1;
                refused.append(waiting);
                false
            }
            KeyWrites::Loading(_) | KeyWrites::Merging { .. } => true,
        });
        for (from, incoming) in refused {
            self.bytes -= incoming.bytes();
            incoming.refuse(from, Refusal::InDoubt, context);
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
