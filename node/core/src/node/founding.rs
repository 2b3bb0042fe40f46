//! How a node becomes one of a cluster: it accepts a first layout, and serves once all members have.

use super::{Accepting, Node, PendingSave, Proposal};
use crate::effect::{Answer, Effect, InitRefusal, RequestId, SavedState};
use crate::id::NodeId;
use crate::init::Membership;
use crate::layout::Layout;
use crate::message::{Message, Refusal};
use crate::mutant::{Mutant, is_on};

impl Node {
    pub(super) fn init(&mut self, request: RequestId, layout: Layout, effects: &mut Vec<Effect>) {
        let answer = |answer| Effect::Answer { request, answer };
        if let Some(accepting) = &mut self.accepting {
            if accepting.layout == layout {
                accepting.requests.push(request);
            } else {
                let refusal = InitRefusal::OtherCluster(accepting.layout.cluster);
                effects.push(answer(Answer::InitRefused(refusal)));
            }
            return;
        }
        // A later layout of some cluster is on its way into force: this node is a member of that one.
        if let (Membership::Uninitialised, Some(joined)) = (&self.membership, &self.changing) {
            return effects.push(answer(Answer::InitRefused(InitRefusal::OtherCluster(joined.cluster()))));
        }
        match self.membership.judge(&layout, self.me, self.actor) {
            Proposal::AlreadyAccepted => effects.push(answer(Answer::InitAccepted)),
            Proposal::Refuse(refusal) => effects.push(answer(Answer::InitRefused(refusal))),
            Proposal::Accept => {
                self.accepting = Some(Accepting { layout: layout.clone(), requests: vec![request] });
                self.save(PendingSave::Accepted, SavedState::Layout { layout, decided: false }, effects);
            }
        }
    }

    /// All members have accepted: makes that durable, then serves. Not once a later layout is on its way to the disk:
    /// nobody goes back. Nor while something of before a recovery is being committed: of an acknowledged write this may be
    /// all that is left, and nobody who salvages would be given it before it is in the store.
    pub(super) fn decide(&mut self, effects: &mut Vec<Effect>) {
        if let Membership::Accepted { layout, .. } = &self.membership
            && !self.is_deciding
            && self.changing.is_none()
            && (self.replica.has_settled(|_| true) || is_on(Mutant::InForceInMidCommit))
        {
            self.is_deciding = true;
            let state = SavedState::Layout { layout: layout.clone(), decided: true };
            self.save(PendingSave::Decided, state, effects);
        }
    }

    pub(super) fn accepted(&mut self, effects: &mut Vec<Effect>) {
        let Some(Accepting { layout, requests }) = self.accepting.take() else {
            return;
        };
        self.membership = Membership::accepted(layout, self.me);
        let answers =
            requests.into_iter().map(|request| Effect::Answer { request, answer: Answer::InitAccepted });
        effects.extend(answers);
        self.decide_if_all_have_accepted(effects);
    }

    /// A node that is alone hears of nobody else; nor does it after a start.
    pub(super) fn decide_if_all_have_accepted(&mut self, effects: &mut Vec<Effect>) {
        if let Membership::Accepted { digest, .. } = self.membership
            && self.membership.note_accepted(self.me, digest, false)
        {
            self.decide(effects);
        }
    }

    /// Another member serves already, this one does not know yet that all have accepted.
    pub(super) fn refuse_uninitialized(&mut self, from: NodeId, message: Message) {
        if let Some(answer) = message.refused(Refusal::NotInitialized) {
            self.messages.push_back((from, answer));
        }
    }
}
