//! What a node holds of partitions that it is no replica of any more goes, little by little, once nobody can ask for it.
//!
//! Only under a layout in which no data moves, and only while every member that is not lost has acknowledged these rings:
//! from then on nobody counts on what was left. And of each partition only while a quorum of its replicas is there and in no
//! doubt: until then, what is left may be the last copy that can be read. One page at a time, as far as the budget of
//! the background allows; a later layout ends it, and whatever is left then is looked for once more. That is done before
//! the layout is taken up where it makes this node a replica again, and holds up what is asked of that: so no data is moved
//! while somebody is still dropping some ([`Node::drops_what_it_left`]).

use std::collections::BTreeSet;

use super::Node;
use crate::clearing::Clearing;
use crate::effect::{Effect, Now};
use crate::id::{Epoch, NodeId};
use crate::layout::Layout;
use crate::mutant::{Mutant, is_on};
use crate::partition::Partition;
use crate::quorum::Consistency;

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
    /// Since when somebody is waited for who is away; `None` if nobody is.
    waits_since_ms: Option<u64>,
    /// That has taken too long for others to wait as well.
    waits_long: bool,
}

impl Leaving {
    fn note_away(&mut self, is_away: bool, restart_ms: u64, now_ms: u64) {
        let since = self.waits_since_ms.filter(|_| is_away);
        self.waits_since_ms = is_away.then(|| since.unwrap_or(now_ms));
        self.waits_long =
            self.waits_since_ms.is_some_and(|since_ms| now_ms.saturating_sub(since_ms) >= restart_ms);
    }
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
        let leaving = Leaving {
            clearing,
            counted: 0,
            look_at_ms: now.mono_ms,
            waits_since_ms: None,
            waits_long: false,
        };
        self.leaving = (!is_needless).then_some(leaving);
    }

    pub(super) fn leaving_wakeup_ms(&self) -> Option<u64> {
        let Leaving { clearing, look_at_ms, .. } = self.leaving.as_ref()?;
        let from_ms = clearing.next_wakeup_ms()?;
        Some(from_ms.max(*look_at_ms).max(self.budget.ready_at_ms()))
    }

    /// Somebody has said what this may have waited for.
    pub(super) fn look_at_what_left(&mut self) {
        if let Some(leaving) = &mut self.leaving {
            leaving.look_at_ms = 0;
        }
    }

    /// Looks at the next page, if this is the time for it.
    pub(super) fn go_on_leaving(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let Some(layout) = self.membership.serving() else { return };
        if self.leaving.as_ref().is_none_or(|leaving| now.mono_ms < leaving.look_at_ms) {
            return;
        }
        let is_known_to_all = self.unaware(layout).next().is_none() || is_on(Mutant::LeftIsClearedUnheard);
        let is_away = self.unaware(layout).any(|node| !self.peers.is_connected(node));
        let needed = self.perhaps_the_last(layout);
        let busy = self.busy();
        let Some(leaving) = &mut self.leaving else { return };
        leaving.note_away(is_away, self.settings.restart_ms, now.mono_ms);
        let Leaving { clearing, look_at_ms, .. } = leaving;
        let may_go = |partition| !needed.contains(&partition) || is_on(Mutant::TheLastCopyGoes);
        if !is_known_to_all || !clearing.turn_to(may_go) {
            *look_at_ms = now.mono_ms + LOOK_EVERY_MS;
            return;
        }
        if clearing.is_due(now.mono_ms) && self.budget.allows(now.mono_ms, busy) {
            self.budget.spend(RECORD_BYTES);
            clearing.go_on(now.mono_ms, &mut self.effect_ids, effects);
        }
    }

    /// Members that have not acknowledged any layout of these rings: what comes after the first one changes nothing of them.
    pub(super) fn unaware(&self, layout: &Layout) -> impl Iterator<Item = NodeId> {
        let fences = self.fences();
        let members = layout.members.iter().filter(|member| !member.is_lost).map(|member| member.node);
        members.filter(move |node| fences.get(node).is_none_or(|fence| *fence < layout.phase_since))
    }

    /// What was left of these may be the last copy that can be read: too few of their replicas are there and in no doubt.
    fn perhaps_the_last(&self, layout: &Layout) -> BTreeSet<Partition> {
        let Some(Leaving { clearing, .. }) = &self.leaving else { return BTreeSet::new() };
        self.short_of_trust(layout, clearing.partitions(), &BTreeSet::new())
    }

    /// Those of these partitions of which no quorum of replicas is left, and in no doubt. This node is in doubt of `ours`.
    pub(super) fn short_of_trust(
        &self,
        layout: &Layout,
        of: impl Iterator<Item = Partition>,
        ours: &BTreeSet<Partition>,
    ) -> BTreeSet<Partition> {
        let says_nothing_of_doubts = self.evidence.values().all(|standing| standing.doubted.is_empty());
        let is_nothing_lost = layout.members.iter().all(|member| !member.is_lost);
        if says_nothing_of_doubts && ours.is_empty() && is_nothing_lost {
            return BTreeSet::new();
        }
        let is_trusted = |partition: Partition, node: &NodeId| {
            let theirs = self.evidence.get(node).map(|standing| &standing.doubted);
            let doubted = if *node == self.me { Some(ours) } else { theirs };
            !layout.is_lost(*node) && doubted.is_none_or(|doubted| !doubted.contains(&partition))
        };
        let is_short = |partition: &Partition| {
            let sets = layout.replica_sets(*partition);
            !sets.satisfied(Consistency::Quorum, |node| is_trusted(*partition, node))
        };
        of.filter(is_short).collect()
    }

    /// True while what was left goes, and nobody who is away for long, and nothing that is damaged, is waited for: it will be
    /// gone soon.
    pub(super) fn drops_what_it_left(&self, layout: &Layout) -> bool {
        let is_away = |node| !self.peers.is_connected(node);
        self.leaving.as_ref().is_some_and(|leaving| {
            let needed = self.perhaps_the_last(layout);
            let waits_long = leaving.waits_long && self.unaware(layout).any(is_away);
            !self.replica.is_disk_full()
                && !waits_long
                && leaving.clearing.partitions().any(|partition| !needed.contains(&partition))
        })
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
