//! What this node holds from before it became a replica of a partition, and could not clear, for a stretch of it cannot be
//! read: it is tried again, and until then the partition is in doubt as a whole.
//!
//! The layout is taken up all the same: that some partitions are not cleared is on disk before the layout is
//! ([`crate::transfer::Merges`]), so nothing of theirs ever counts, whatever happens in between. What others hold is merged
//! only after, or what was deleted in the meantime would come up again.

use super::Node;
use crate::clearing::Clearing;
use crate::effect::{Effect, Now};

/// The pause between two attempts.
const AGAIN_MS: u64 = 60_000;
/// What it costs to look at a page.
const PAGE_BYTES: usize = 4_096;

impl Node {
    pub(super) fn uncleared_wakeup_ms(&self) -> Option<u64> {
        if self.membership.serving().is_none() || self.changing.is_some() {
            return None;
        }
        let from_ms = match &self.clearing_again {
            Some(clearing) => clearing.next_wakeup_ms()?,
            None => (!self.transfer.uncleared().is_empty()).then_some(self.clear_again_at_ms)?,
        };
        Some(from_ms.max(self.budget.ready_at_ms()))
    }

    pub(super) fn go_on_clearing_again(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.membership.serving().is_none() || self.changing.is_some() {
            return;
        }
        let uncleared = self.transfer.uncleared();
        if self.clearing_again.is_none() && !uncleared.is_empty() && now.mono_ms >= self.clear_again_at_ms {
            self.clearing_again = Some(Clearing::in_the_background(uncleared.iter().copied()));
        }
        let busy = self.busy();
        if let Some(clearing) = &mut self.clearing_again
            && clearing.is_due(now.mono_ms)
            && self.budget.allows(now.mono_ms, busy)
        {
            self.budget.spend(PAGE_BYTES);
            clearing.go_on(now.mono_ms, &mut self.effect_ids, effects);
        }
    }

    /// A page may have been read, or written: what is empty by now can be merged.
    pub(super) fn note_cleared_again(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let Some(clearing) = self.clearing_again.take_if(|clearing| clearing.is_done()) else { return };
        self.clear_again_at_ms = now.mono_ms + AGAIN_MS;
        self.counters.records_cleared += clearing.cleared();
        let tried = self.transfer.uncleared().clone();
        if let Some(merges) = self.transfer.note_uncleared(&tried, clearing.unreadable()) {
            self.save_merges(merges, Vec::new(), effects);
        }
        self.replica.doubts.healing().for_each(|partition| self.transfer.heal(partition));
    }
}
