//! Partitions for which this replica is in doubt as a whole: some of what it held cannot be read, and nobody knows whose
//! records that was.
//!
//! It is the same doubt as that of a key, with the same two steps: a new generation, and then N - W + 1 others, here by
//! passes over all that they hold (see [`crate::transfer`]). It ends only once this process has read all that it holds
//! of the partition itself: as long as a stretch of it stays unreadable, so does the doubt.

use std::collections::BTreeMap;

use super::Doubts;
use crate::context::Context;
use crate::effect::{Alarm, Effect};
use crate::partition::Partition;

#[derive(Debug)]
pub(super) struct Doubted {
    since_ms: u64,
    stage: Stage,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// No generation has been raised since it came into doubt.
    Unraised,
    /// One is being saved.
    Raising,
    /// What others hold is being merged, over links on which they have noted it.
    Healing,
}

pub(super) type Partitions = BTreeMap<Partition, Doubted>;

impl Doubts {
    /// True if this partition is in doubt as a whole.
    pub(crate) fn cover(&self, partition: Partition) -> bool {
        self.partitions.contains_key(&partition)
    }

    /// The partitions that are in doubt as a whole, and for how many milliseconds.
    pub(crate) fn covered(&self, now_ms: u64) -> impl Iterator<Item = (Partition, u64)> {
        let for_ms = move |doubted: &Doubted| now_ms.saturating_sub(doubted.since_ms);
        self.partitions.iter().map(move |(partition, doubted)| (*partition, for_ms(doubted)))
    }

    /// Those of which what others hold may be merged.
    pub(crate) fn healing(&self) -> impl Iterator<Item = Partition> {
        let is_healing = |(_, doubted): &(&Partition, &Doubted)| doubted.stage == Stage::Healing;
        self.partitions.iter().filter(is_healing).map(|(partition, _)| *partition)
    }

    /// Something of this partition cannot be read, or cannot be kept in mind. False if it is in doubt already, or is not
    /// ours.
    pub(crate) fn enter_whole(&mut self, partition: Partition, context: &mut Context<'_>) -> bool {
        if self.cover(partition) || !context.layout.is_replica(partition, context.me) {
            return false;
        }
        let doubted = Doubted { since_ms: context.now.mono_ms, stage: Stage::Unraised };
        self.partitions.insert(partition, doubted);
        self.entered.push(partition);
        self.wants_generation = true;
        context.counters.doubted_partitions += 1;
        context.effects.push(Effect::Alarm(Alarm::DoubtedPartition { partition }));
        true
    }

    /// The partitions that have come into doubt since this was asked last: what was merged of them before says nothing.
    pub(crate) fn take_entered(&mut self) -> Vec<Partition> {
        std::mem::take(&mut self.entered)
    }

    /// Enough others are merged, and all that is held was read.
    pub(crate) fn leave_whole(&mut self, partition: Partition, context: &mut Context<'_>) {
        if self.partitions.remove(&partition).is_some() {
            context.counters.healed_partitions += 1;
            context.effects.push(Effect::Alarm(Alarm::HealedPartition { partition }));
        }
    }

    pub(super) fn raise_of_partitions_began(&mut self) {
        for doubted in self.partitions.values_mut() {
            if doubted.stage == Stage::Unraised {
                doubted.stage = Stage::Raising;
            }
        }
    }

    pub(super) fn raised_for_partitions(&mut self) {
        for doubted in self.partitions.values_mut() {
            if doubted.stage == Stage::Raising {
                doubted.stage = Stage::Healing;
            }
        }
    }
}
