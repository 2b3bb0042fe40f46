//! The identity under which a node speaks: raised where it may have lost something, given up for ever where its disk is
//! not the one that the others know.

use super::{Node, PendingSave};
use crate::effect::{
    Alarm, Answer, Commit, Effect, Event, Failure, FailureReason, Now, ProposalError, SavedState,
};
use crate::id::{Generation, NodeId};
use crate::layout::Layout;
use crate::mutant::{Mutant, is_on};
use crate::peers::LinkRefusal;
use crate::recovery::RecoveryRefusal;

/// The pause between two generations of one process, each of which closes all links and serves for all keys that have
/// come into doubt since the last: doubled from one to the next up to the second, where much is damaged.
const RAISE_PAUSE_MS: (u64, u64) = (1_000, 30_000);
/// After so long without a new generation, the next pause is the shortest again.
const RAISE_CALM_MS: u64 = 60_000;

impl Node {
    /// True if a generation is to be raised, now or a little later. Not while no peer takes us, unless there is none: nobody
    /// is there to be healed from then, and a disk that was rolled back must not outgrow what its peers have seen of it unheard.
    pub(super) fn wants_generation(&self) -> bool {
        let is_raising = || self.saves.values().any(|save| matches!(save, PendingSave::Generation(_)));
        let is_alone =
            |layout: &Layout| layout.members.iter().all(|member| member.is_lost || member.node == self.me);
        let is_heard =
            || self.peers.connected().next().is_some() || self.membership.serving().is_some_and(is_alone);
        self.replica.doubts.want_generation() && is_heard() && !is_raising()
    }

    /// Makes a new generation durable if one is wanted, and does what is due for keys in doubt.
    pub(super) fn raise_generation(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.tell_of_doubts(now, effects);
        if self.wants_generation() && now.mono_ms >= self.raise_from_ms {
            let is_calm = now.mono_ms >= self.raise_from_ms + RAISE_CALM_MS;
            let doubled_ms = (self.raise_pause_ms * 2).clamp(RAISE_PAUSE_MS.0, RAISE_PAUSE_MS.1);
            self.raise_pause_ms = if is_calm { RAISE_PAUSE_MS.0 } else { doubled_ms };
            self.raise_from_ms = now.mono_ms + self.raise_pause_ms;
            self.replica.doubts.raise_began();
            let generation = Generation(self.generation.0 + 1);
            let mut lineage = self.lineage.clone();
            // The same process goes on.
            lineage.begin(self.lineage.present());
            let state = SavedState::Generation { generation, trusted_since: generation, lineage };
            self.save(PendingSave::Generation(generation), state, effects);
            if is_on(Mutant::RaisedBeforeItIsSaved) {
                self.raised(generation, now, effects);
            }
        }
        self.drop_what_nobody_else_has(now, effects);
        let is_due = self.replica.doubts.next_due_ms().is_some_and(|due_ms| due_ms <= now.mono_ms);
        if is_due && !self.is_clearing() {
            let mut drops = Vec::new();
            self.serve(now, effects, |node, context| {
                let layout = context.layout;
                let is_salvaging = |partition| {
                    let has_counted = node.transfer.has_counted(partition);
                    let has_counted = has_counted && !is_on(Mutant::TheCountedDropWhatIsDamaged);
                    layout.salvaged.contains_key(&partition) && !has_counted
                };
                let number = || node.coordinator.next_number();
                drops = node.replica.doubts.tend(number, is_salvaging, context);
            });
            self.drop_what_is_salvaged(drops, effects);
            self.deliver(now, effects);
        }
    }

    /// What is damaged of partitions for which this node does not count yet goes, and after that all that others have of them
    /// is merged: it may be among that. Where it could not go, nothing of it was merged since.
    fn drop_what_is_salvaged(&mut self, drops: Vec<(Commit, bool)>, effects: &mut Vec<Effect>) {
        let Some(layout) = self.membership.serving() else { return };
        let (again, first): (Vec<_>, Vec<_>) = drops.into_iter().partition(|(_, again)| *again);
        effects.extend(again.into_iter().map(|(commit, _)| Effect::Commit(commit)));
        let first: Vec<_> = first.into_iter().map(|(commit, _)| commit).collect();
        if !first.is_empty() {
            let of = first.iter().map(|commit| commit.entry.key().partition(layout.partitions)).collect();
            let merges = self.transfer.merge_again_all(&of);
            self.save_merges(merges, first, effects);
        }
    }

    /// A damaged record of a salvaged partition of which nobody else has anything, and that has not counted since: whoever
    /// named this node to be accepted in doubt has given it up.
    fn drop_what_nobody_else_has(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let Some(layout) = self.membership.serving() else { return };
        if layout.salvaged.is_empty() || self.replica.doubts.is_empty() {
            return;
        }
        self.serve(now, effects, |node, context| {
            let (layout, me) = (context.layout, context.me);
            let is_alone = |partition| {
                let replicas = layout.replicas(partition);
                let mut others = layout.salvaged.get(&partition).into_iter().flatten().chain(&replicas);
                layout.salvaged.contains_key(&partition)
                    && !node.transfer.has_counted(partition)
                    && others.all(|other| *other == me || layout.is_lost(*other))
            };
            node.replica.doubts.drop_keys(is_alone, context);
        });
    }

    /// What was merged of a partition before it came into doubt says nothing, and what was merged after ends it.
    fn tell_of_doubts(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let entered = self.replica.doubts.take_entered();
        let healed = self.transfer.take_healed();
        if entered.is_empty() && healed.is_empty() {
            return;
        }
        self.serve(now, effects, |node, context| {
            for partition in entered {
                node.transfer.forget(partition, context);
            }
            for partition in healed {
                node.replica.doubts.leave_whole(partition, context);
            }
        });
    }

    /// A new generation is durable. What we said as the one before counts neither here nor, once they have noted it,
    /// elsewhere.
    pub(super) fn raised(&mut self, generation: Generation, now: Now, effects: &mut Vec<Effect>) {
        self.generation = generation;
        self.lineage.begin(self.lineage.present());
        self.trusted_since = generation;
        self.counters.generations_raised += 1;
        let mut lost = vec![(self.me, true)];
        for (peer, link) in self.peers.disconnect_all() {
            effects.push(Effect::CloseLink { link });
            lost.push((peer, false));
        }
        self.lose(&lost, now, effects);
        self.replica.doubts.raised(now.mono_ms);
        self.replica.doubts.healing().for_each(|partition| self.transfer.heal(partition));
    }

    /// A peer speaks of later generations than we have heard of. What is later than our own we never were: the peer
    /// has met somebody else who uses our identity.
    pub(super) fn hear(
        &mut self,
        from: NodeId,
        heard: &[(NodeId, Generation)],
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        if heard.iter().any(|(node, _)| *node == self.me) {
            return self.set_aside(Alarm::StaleGeneration { peer: from }, effects);
        }
        for (peer, generation) in heard {
            self.counters.generations_heard += 1;
            self.peers.hear(*peer, *generation);
        }
        let is_void = !is_on(Mutant::NotedVoidsNothing);
        let lost: Vec<_> = heard.iter().map(|(peer, _)| (*peer, is_void)).collect();
        self.lose(&lost, now, effects);
        self.serve(now, effects, |node, context| {
            for (peer, _) in heard {
                node.transfer.overtaken(*peer, context.now.mono_ms);
            }
        });
    }

    /// Only a refusal of the generation that we have now says something about our disk: one of an earlier generation
    /// may have been on its way while this process raised it. A node that belongs to no cluster may have been a member of
    /// one without ever hearing of it: as that it is taken by nobody any more, and it has nothing to lose.
    pub(super) fn hello_refused(
        &mut self,
        (peer, generation): (NodeId, Generation),
        refusal: LinkRefusal,
        effects: &mut Vec<Effect>,
    ) {
        let is_unaware = !is_on(Mutant::TheUnawareWait);
        let ours = self.membership.layout();
        let is_of_ours = ours.map_or(is_unaware, |layout| layout.member(peer).is_some());
        // Whoever took the place of a node that has departed may be a member that it has never heard of.
        let is_of_ours = is_of_ours || refusal == LinkRefusal::Departed && !is_on(Mutant::TheUnawareWait);
        let is_of_now = generation == self.generation || is_on(Mutant::EarlierRefusalsSetAside);
        let alarm = match refusal {
            LinkRefusal::StaleGeneration if is_of_now => Alarm::StaleGeneration { peer },
            // Whoever has departed never comes back, in whichever generation.
            LinkRefusal::Departed => Alarm::Departed { epoch: self.epoch() },
            _ => return,
        };
        if is_of_ours {
            self.set_aside(alarm, effects);
        }
    }

    /// The disk was rolled back or cloned, or this node has departed: nothing that is on it counts, and no process may
    /// start from it again. It might outgrow by its starts what the others have seen, and be taken for a node that has
    /// lost nothing.
    pub(super) fn set_aside(&mut self, alarm: Alarm, effects: &mut Vec<Effect>) {
        self.is_set_aside = true;
        if let Some(proposing) = self.proposing.take() {
            effects.push(proposing.failed(ProposalError::Unknown));
        }
        self.messages.clear();
        let ended = self.coordinator.abandon().into_iter();
        effects.extend(ended.map(|(request, answer)| Effect::Answer { request, answer }));
        for (_, link) in self.peers.disconnect_all() {
            effects.push(Effect::CloseLink { link });
        }
        self.save(PendingSave::SetAside { alarm }, SavedState::SetAside, effects);
    }

    /// All that still happens once the disk is set aside: the driver is told as soon as that is durable.
    pub(super) fn step_aside(&mut self, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Client(request) => {
                let answer = Answer::Failed(Failure { reason: FailureReason::Draining, acks: 0, needed: 0 });
                effects.push(Effect::Answer { request: request.id, answer });
            }
            Event::LinkOffered { link, .. } => effects.push(Effect::CloseLink { link }),
            Event::Saved { save } => {
                if let Some(PendingSave::SetAside { alarm }) = self.saves.remove(&save) {
                    effects.push(Effect::Alarm(alarm));
                }
            }
            Event::Propose { request, .. } => {
                let answer = Answer::ProposalFailed(ProposalError::NotInitialized);
                effects.push(Effect::Answer { request, answer });
            }
            Event::Recover { request, .. } => {
                let answer = Answer::RecoveryRefused(RecoveryRefusal::NotInitialized);
                effects.push(Effect::Answer { request, answer });
            }
            Event::Init { .. }
            | Event::LinkClosed { .. }
            | Event::HelloRefused { .. }
            | Event::Frame { .. }
            | Event::Loaded { .. }
            | Event::Scanned { .. }
            | Event::Committed { .. }
            | Event::DiskFull(_)
            | Event::Drain
            | Event::Tick => {}
        }
    }
}
