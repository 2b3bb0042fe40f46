//! What a node has asked to be made durable, and how it goes on once that is on disk: not before, and only then.

use super::Node;
use super::deciding::Voting;
use crate::effect::{Alarm, Commit, Effect, LinkId, Now, SaveId, SavedState};
use crate::id::{Epoch, Generation};
use crate::init::Membership;
use crate::layout::Layout;
use crate::message::Hello;
use crate::mutant::{Mutant, is_on};
use crate::peers::{LinkRefusal, PeerIdentities, fits};
use crate::transfer::{Counting, Merges};

#[derive(Debug)]
pub(super) enum PendingSave {
    Ceiling(u64),
    Accepted,
    Decided,
    /// `link` is `None` once it was closed: the identity is kept all the same.
    Greeting {
        link: Option<LinkId>,
        hello: Hello,
    },
    /// To be raised to.
    Generation(Generation),
    /// Nothing else happens any more, for this reason.
    SetAside {
        alarm: Alarm,
    },
    /// Who the members are of a layout under which this node joins; it is looked at then.
    Joining {
        layout: Layout,
        known: PeerIdentities,
    },
    /// A layout that is decided, on its way into force.
    Layout,
    /// What is said once they are on disk.
    Votes(Voting),
    /// How far this node has come: which salvaged partitions count from then on, and what is dropped of others only then.
    Merges {
        counting: Counting,
        drops: Vec<Commit>,
    },
}

impl Node {
    pub(super) fn saved(&mut self, save: SaveId, now: Now, effects: &mut Vec<Effect>) {
        match self.saves.remove(&save) {
            None => {}
            Some(PendingSave::Ceiling(ceiling_ms)) => {
                self.clock.raise_ceiling(ceiling_ms);
                self.serve(now, effects, |node, context| node.coordinator.unpark(context));
            }
            Some(PendingSave::Accepted) => self.accepted(effects),
            Some(PendingSave::Decided) => {
                self.is_deciding = false;
                match &self.membership {
                    // There was none before that.
                    Membership::Accepted { layout, .. } if layout.epoch == Epoch(1) => {
                        self.put_in_force(layout.clone(), now, effects);
                    }
                    Membership::Accepted { layout, .. } => self.begin(layout.clone(), now, effects),
                    Membership::Uninitialised | Membership::Decided { .. } => {}
                }
            }
            Some(PendingSave::Greeting { link, hello }) => {
                self.peers.make_durable([(hello.header.from, hello.identity())]);
                let Some(link) = link else { return };
                let layout = self.membership.layout();
                // A recovery may have been accepted meanwhile.
                if layout.is_some_and(|layout| !fits(&hello.header, layout)) {
                    effects.push(Effect::RefuseLink { link, refusal: LinkRefusal::WrongCluster });
                } else if self.peers.is_current(&hello) {
                    self.accept_link(link, &hello, now, effects);
                } else {
                    effects.push(Effect::RefuseLink { link, refusal: LinkRefusal::StaleGeneration });
                }
            }
            Some(PendingSave::Generation(generation)) => self.raised(generation, now, effects),
            Some(PendingSave::SetAside { .. }) => {}
            Some(PendingSave::Merges { counting, drops }) => {
                self.transfer.note_counted(&counting);
                effects.extend(drops.into_iter().map(Effect::Commit));
            }
            Some(PendingSave::Joining { layout, known }) => {
                self.peers.make_durable(known);
                self.learn(layout, now, effects);
            }
            Some(PendingSave::Layout) => self.take_up(now, effects),
            Some(PendingSave::Votes(voting)) => self.voted(voting),
        }
    }

    /// Asks for a higher ceiling when writes are about to need one: an idle node writes nothing.
    pub(super) fn raise_ceiling(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if !self.coordinator.has_parked() && !self.coordinator.takes_stamps() {
            return;
        }
        if let Some(ceiling_ms) = self.clock.wanted_ceiling(now.wall_ms) {
            self.save(PendingSave::Ceiling(ceiling_ms), SavedState::StampCeiling(ceiling_ms), effects);
            if is_on(Mutant::CeilingCountsBeforeItIsSaved) {
                self.clock.raise_ceiling(ceiling_ms);
                self.serve(now, effects, |node, context| node.coordinator.unpark(context));
                self.deliver(now, effects);
            }
        }
    }

    pub(super) fn save_merges(&mut self, merges: Merges, drops: Vec<Commit>, effects: &mut Vec<Effect>) {
        let counting = self.transfer.counting().clone();
        self.save(PendingSave::Merges { counting, drops }, SavedState::Merges(merges), effects);
    }

    pub(super) fn save(&mut self, pending: PendingSave, state: SavedState, effects: &mut Vec<Effect>) {
        let save = SaveId(self.next_save);
        self.next_save += 1;
        self.saves.insert(save, pending);
        effects.push(Effect::Save { save, state });
    }
}
