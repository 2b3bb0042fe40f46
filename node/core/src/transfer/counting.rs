//! When a partition is done with; and a salvaged one, of which nobody can be asked what it counted for: it counts here once all
//! that was left is merged, nothing of it is damaged, and that it counts is on disk. Before, what is damaged of it goes, since
//! it may be among what is merged; from then on it may have been acknowledged with this node, and is healed.

use std::collections::{BTreeMap, BTreeSet};

use super::{Merges, PAUSE_MS, Transfer};
use crate::context::Context;
use crate::id::NodeId;
use crate::layout::Layout;
use crate::mutant::{Mutant, is_on};
use crate::partition::Partition;

/// Partitions that are about to count, each under a number: what is saved of an earlier attempt says nothing of a later one.
pub(crate) type Counting = BTreeMap<Partition, u64>;

impl Transfer {
    /// True for a salvaged partition that has counted here.
    pub(crate) fn has_counted(&self, partition: Partition) -> bool {
        self.merges.counted.contains(&partition) && !self.counting.contains_key(&partition)
    }

    /// What was left of a salvaged partition is asked for, whoever has it. Once this node has counted for it, what it loses
    /// is healed as any other doubt is.
    pub(super) fn salvage_sources<'a>(
        &self,
        partition: Partition,
        layout: &'a Layout,
    ) -> Option<&'a BTreeSet<NodeId>> {
        let heals = self.healing.contains(&partition) && self.has_counted(partition);
        let heals = heals && !is_on(Mutant::TheCountedAreSalvagedAgain);
        layout.salvaged.get(&partition).filter(|_| !heals)
    }

    pub(super) fn close_if_done(&mut self, partition: Partition, context: &Context<'_>) {
        if !self.is_done(partition, (context.layout, context.me)) {
            return;
        }
        if !context.layout.salvaged.contains_key(&partition) || self.has_counted(partition) {
            return self.close(partition);
        }
        if is_on(Mutant::CountsBeforeThatIsSaved) {
            self.merges.counted.insert(partition);
            return self.close(partition);
        }
        self.ready.insert(partition);
        self.ready_from_ms = context.now.mono_ms;
    }

    /// What is whole by now counts once that is on disk; not while a key of it is damaged, which goes first.
    pub(super) fn begin_counting(&mut self, doubted: &BTreeSet<Partition>, now_ms: u64) {
        let is_whole =
            |partition: &Partition| !doubted.contains(partition) || is_on(Mutant::CountsWithWhatIsDamaged);
        for partition in self.ready.iter().copied().filter(is_whole).collect::<Vec<_>>() {
            self.ready.remove(&partition);
            self.merges.counted.insert(partition);
            self.counts_begun += 1;
            self.counting.insert(partition, self.counts_begun);
            self.save_at_ms = Some(now_ms);
        }
        self.ready_from_ms = now_ms + PAUSE_MS;
    }

    fn close(&mut self, partition: Partition) {
        self.open.remove(&partition);
        if self.healing.remove(&partition) {
            self.healed.push(partition);
        }
    }

    /// It is on disk that these have counted here: from now on they may.
    pub(crate) fn note_counted(&mut self, saved: &Counting) {
        let is_saved = |(partition, number): &(&Partition, &u64)| saved.get(partition) == Some(number);
        let counted = self.counting.iter().filter(is_saved).map(|(partition, _)| *partition);
        for partition in counted.collect::<Vec<_>>() {
            self.counting.remove(&partition);
            self.close(partition);
        }
    }

    pub(crate) fn counting(&self) -> &Counting {
        &self.counting
    }

    /// Something of these partitions, for which this node has not counted yet, is about to be dropped: all that others have
    /// is merged after that. What is to be on disk first.
    pub(crate) fn merge_again_all(&mut self, partitions: &BTreeSet<Partition>) -> Merges {
        for partition in partitions {
            self.begin_anew(*partition);
        }
        self.merges.clone()
    }
}
