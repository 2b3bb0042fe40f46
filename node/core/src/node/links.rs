//! Links to other members: whose hello is taken, and whose frames count.

use super::{Node, PendingSave};
use crate::effect::{Effect, LinkId, Now, SavedState};
use crate::id::{Epoch, NodeId};
use crate::message::{Header, Hello, Message};
use crate::mutant::{Mutant, is_on};
use crate::peers::{Greeting, LinkRefusal};

impl Node {
    pub(super) fn link_offered(&mut self, link: LinkId, hello: Hello, now: Now, effects: &mut Vec<Effect>) {
        if self.is_of_a_lost_past(&hello) {
            return effects.push(Effect::RefuseLink { link, refusal: LinkRefusal::Departed });
        }
        match self.peers.greet(&hello, self.membership.layout(), self.me) {
            Err(refusal) => effects.push(Effect::RefuseLink { link, refusal }),
            Ok(Greeting::Known) => self.accept_link(link, &hello, now, effects),
            Ok(Greeting::Newer) => {
                // From here on, not only once it is durable: what others say of it is no news any more.
                if !is_on(Mutant::HellosVoidNothingUntilSaved) {
                    self.lose(&[(hello.header.from, true)], now, effects);
                }
                let state = SavedState::Peers(self.peers.identities().clone());
                self.save(PendingSave::Greeting { link: Some(link), hello }, state, effects);
            }
        }
    }

    /// A link that closes while its hello is being saved must not come into use afterwards: nobody would say that
    /// it is closed a second time.
    pub(super) fn forget_greeting(&mut self, closed: LinkId) {
        for save in self.saves.values_mut() {
            if let PendingSave::Greeting { link, .. } = save
                && *link == Some(closed)
                && !is_on(Mutant::ClosedLinksAreAccepted)
            {
                *link = None;
            }
        }
    }

    /// Lets a peer greet anew whose hello is being saved: nothing is said about its disk.
    pub(super) fn refuse_greeting(&mut self, peer: NodeId, effects: &mut Vec<Effect>) {
        for save in self.saves.values_mut() {
            if let PendingSave::Greeting { link, hello } = save
                && hello.header.from == peer
                && let Some(link) = link.take()
            {
                effects.push(Effect::RefuseLink { link, refusal: LinkRefusal::NotInitialized });
            }
        }
    }

    pub(super) fn accept_link(&mut self, link: LinkId, hello: &Hello, now: Now, effects: &mut Vec<Effect>) {
        let peer = hello.header.from;
        // Without a layout there is nothing to say, but that somebody may go on who has one for us.
        let lineage = self.lineage.clone();
        let header =
            Header { epoch: Epoch(0), from: self.me, to: peer, generation: self.generation, ..hello.header };
        let ours = self.hello(peer).unwrap_or(Hello { header, lineage });
        let replaced = self.peers.connect(link, &hello.header);
        effects.push(Effect::AcceptLink { link, hello: ours });
        if let Some(link) = replaced {
            effects.push(Effect::CloseLink { link });
            self.lose(&[(peer, false)], now, effects);
        }
        self.replica.doubts.linked(now.mono_ms);
        self.serve(now, effects, |node, context| node.hints.linked(peer, context));
        if let Some(message) = self.membership.announcement(peer) {
            self.messages.push_back((peer, message));
        }
        self.greet_with_layout(peer, hello.header.epoch);
    }

    pub(super) fn frame(
        &mut self,
        (link, header): (LinkId, Header),
        messages: Vec<Message>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        if !self.peers.admits(link, &header, self.membership.layout(), self.me) {
            effects.push(Effect::CloseLink { link });
            if let Some(peer) = self.peers.disconnect(link) {
                self.lose(&[(peer, false)], now, effects);
            }
            return;
        }
        self.sort_out((link, header), messages, now, effects);
    }
}
