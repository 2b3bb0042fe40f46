//! What a node holds of partitions that it is no replica of any more goes, little by little, once nobody can ask for it.
//!
//! Only under a layout in which no data moves, and only while every member that is not lost has acknowledged that layout:
//! from then on nobody counts on what was left. One page at a time, as far as the budget of the background allows; a later
//! layout ends it, and whatever is left then is looked for once more.

use super::Node;
use crate::clearing::Clearing;
use crate::effect::{Effect, Now};
use crate::id::Epoch;
use crate::layout::Layout;
use crate::mutant::{Mutant, is_on};
use crate::partition::Partition;

/// How often a node looks whether the others have acknowledged the layout.
const LOOK_EVERY_MS: u64 = 1_000;
/// What it costs to drop a record, or to find that there is none.
const RECORD_BYTES: usize = 64;

/// What is left to do under the layout in force.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) clearing: Clearing,
    /// How much of what it has dropped is counted.
    counted: u64,
    look_at_ms: u64,
}

impl Node {
    /// Another layout is in force, or the process has started under one.
    pub(super) fn begin_leaving(&mut self, now: Now) {
        let Some(layout) = self.membership.serving() else { return };
        let moves = layout.is_moving() && !is_on(Mutant::LeftIsClearedWhileDataMoves);
        let is_left = |partition: &Partition| match layout.is_joint() {
            true => !layout.ring().is_replica(*partition, self.me),
            false => !layout.is_replica(*partition, self.me),
        };
        let left: Vec<_> = layout.partitions.all().filter(is_left).collect();
        // Before the first layout, nobody held anything.
        let is_needless = moves || left.is_empty() || layout.epoch == Epoch(1);
        let clearing = Clearing::in_the_background(left);
        let leaving = Leaving { clearing, counted: 0, look_at_ms: now.mono_ms };
        self.leaving = (!is_needless).then_some(leaving);
    }

    pub(super) fn leaving_wakeup_ms(&self) -> Option<u64> {
        let Leaving { clearing, look_at_ms, .. } = self.leaving.as_ref()?;
        let from_ms = clearing.next_wakeup_ms()?;
        Some(from_ms.max(*look_at_ms).max(self.budget.ready_at_ms()))
    }

    /// Looks at the next page, if this is the time for it.
    pub(super) fn go_on_leaving(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let Some(layout) = self.membership.serving() else { return };
        let is_known_to_all = self.is_acknowledged_by_all(layout) || is_on(Mutant::LeftIsClearedUnheard);
        let busy = self.busy();
        let Some(Leaving { clearing, look_at_ms, .. }) = &mut self.leaving else { return };
        if now.mono_ms < *look_at_ms {
            return;
        }
        if !is_known_to_all {
            *look_at_ms = now.mono_ms + LOOK_EVERY_MS;
            return;
        }
        if self.budget.allows(now.mono_ms, busy) {
            self.budget.spend(RECORD_BYTES);
            clearing.go_on(now.mono_ms, &mut self.effect_ids, effects);
        }
    }

    fn is_acknowledged_by_all(&self, layout: &Layout) -> bool {
        let fences = self.fences();
        let has = |node| fences.get(&node).is_some_and(|fence| *fence >= layout.epoch);
        layout.members.iter().filter(|member| !member.is_lost).all(|member| has(member.node))
    }

    /// A page may have been read.
    pub(super) fn note_left(&mut self) {
        let Some(Leaving { clearing, counted, .. }) = &mut self.leaving else { return };
        let gone = clearing.cleared() - *counted;
        *counted = clearing.cleared();
        self.budget.spend(RECORD_BYTES * usize::try_from(gone).unwrap_or(usize::MAX));
        self.counters.records_left += gone;
        if clearing.is_done() {
            // What could not be read of them takes up its space, until the next layout or start at the least.
            self.leaving = None;
        }
    }
}
