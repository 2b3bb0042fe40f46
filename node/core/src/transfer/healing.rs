//! Partitions that are merged anew, for they are in doubt as a whole; and the look at what this node holds itself, without
//! which no partition counts as merged.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::pass::{Pass, Stage};
use super::{ANSWER_MS, Merges, PAGE_RECORDS, Transfer};
use crate::context::Context;
use crate::effect::{Effect, LoadId};
use crate::id::NodeId;
use crate::message::ScanRange;
use crate::mutant::{Mutant, is_on};
use crate::partition::{Partition, RecordKey};

impl Transfer {
    /// This partition has come into doubt as a whole: what was merged before says nothing.
    pub(crate) fn forget(&mut self, partition: Partition, context: &Context<'_>) {
        self.healing.remove(&partition);
        self.barred.insert(partition);
        if self.begin_anew(partition) {
            self.save_at_ms.get_or_insert(context.now.mono_ms);
        }
        let layout = context.layout;
        if layout.has_to_merge(partition) && layout.ring().is_replica(partition, context.me) {
            self.open.insert(partition);
        }
    }

    /// Nothing of this partition is merged. True if something was.
    pub(super) fn begin_anew(&mut self, partition: Partition) -> bool {
        self.end_pass(partition);
        self.ready.remove(&partition);
        if self.counting.remove(&partition).is_some() {
            self.merges.counted.remove(&partition);
        }
        self.seen.remove(&partition);
        self.differing.remove(&partition);
        self.sources.forget(partition);
        !is_on(Mutant::MergesOutliveADoubt) && self.merges.partitions.remove(&partition).is_some()
    }

    /// Whoever is asked for it from now on has noted the generation since which this partition is in doubt.
    pub(crate) fn heal(&mut self, partition: Partition) {
        self.barred.remove(&partition);
        self.healing.insert(partition);
    }

    /// The partitions that were merged anew since this was asked last.
    pub(crate) fn take_healed(&mut self) -> Vec<Partition> {
        std::mem::take(&mut self.healed)
    }

    pub(crate) fn is_healing(&self) -> bool {
        !self.healing.is_empty()
    }

    /// What is left to be merged, or to be looked at.
    pub(super) fn wanted(&self) -> impl Iterator<Item = Partition> {
        self.open.union(&self.healing).copied().filter(|partition| !self.is_barred(*partition))
    }

    fn is_barred(&self, partition: Partition) -> bool {
        self.barred.contains(&partition)
            || self.merges.uncleared.contains(&partition)
            || self.ready.contains(&partition)
            || self.counting.contains_key(&partition)
    }

    pub(crate) fn uncleared(&self) -> &BTreeSet<Partition> {
        &self.merges.uncleared
    }

    /// Of the partitions that were to be cleared, these could not be. What there is to be saved, if that is news.
    pub(crate) fn note_uncleared(
        &mut self,
        tried: &BTreeSet<Partition>,
        unreadable: &BTreeSet<Partition>,
    ) -> Option<Merges> {
        let before = self.merges.uncleared.clone();
        self.merges.uncleared.retain(|partition| !tried.contains(partition));
        self.merges.uncleared.extend(unreadable);
        (self.merges.uncleared != before).then(|| self.merges.clone())
    }

    /// Others have met a node as a later generation than we have: whoever has said what is merged of it may have been a copy
    /// of its disk. Of what is not whole yet, all that it holds is merged once more.
    pub(crate) fn overtaken(&mut self, node: NodeId, now_ms: u64) {
        if !is_on(Mutant::OvertakenSourcesCount) {
            self.merge_again(node, self.open.clone(), now_ms);
        }
    }

    /// What was merged of a node says nothing for these partitions.
    pub(super) fn merge_again(&mut self, node: NodeId, partitions: BTreeSet<Partition>, now_ms: u64) {
        for partition in partitions {
            if let Some(merge) = self.merges.partitions.get_mut(&partition) {
                merge.sources.remove(&node);
                merge.pass.take_if(|(source, _)| *source == node);
                self.save_at_ms = Some(now_ms);
            }
            self.sources.forget(partition);
            if self.passes.get(&partition).is_some_and(|pass| pass.source == node) {
                self.pause(partition, now_ms);
            }
        }
    }

    /// Enough is merged: reads on in what this node holds itself.
    pub(super) fn look(&mut self, partition: Partition, operation: u64, context: &mut Context<'_>) {
        let after = self.seen.get(&partition).cloned().flatten();
        let range = ScanRange { partition, prefix: Bytes::new(), after, limit: PAGE_RECORDS };
        let load = context.next_load();
        context.effects.push(Effect::Scan { load, range: range.clone() });
        self.operations.insert(operation, partition);
        let (source, due_ms) = (context.me, context.now.mono_ms + ANSWER_MS);
        self.passes.insert(partition, Pass { source, operation, due_ms, range, stage: Stage::Looking(load) });
    }

    /// A page was read up to this key, or (`Some(None)`) to the end; `None` if it could not be read.
    pub(crate) fn note_seen(&mut self, load: LoadId, until: Option<Option<RecordKey>>) {
        let Some(partition) = self.reads(load) else { return };
        let Some(until) = until else {
            self.unread.insert(partition);
            self.seen.remove(&partition);
            return;
        };
        self.unread.remove(&partition);
        let Some(Pass { range, .. }) = self.passes.get(&partition) else { return };
        let goes_on = match (&range.after, self.seen.get(&partition)) {
            (_, Some(None)) => false,
            (None, None) => true,
            (Some(_), None) => is_on(Mutant::WhatIsSkippedCountsAsRead),
            (after, Some(Some(seen))) => {
                let is_behind = |key: &RecordKey| key.place() > seen.place();
                !after.as_ref().is_some_and(is_behind) && until.as_ref().is_none_or(is_behind)
            }
        };
        if goes_on {
            self.seen.insert(partition, until.as_ref().map(RecordKey::detached));
        }
    }
}
