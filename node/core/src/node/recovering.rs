//! How a node goes on under the layout of a recovery: it accepts it durably in place of the one that it belongs to, and
//! serves under it once all that are left have.

use super::Node;
use crate::effect::{Answer, Effect, Now, ProposalError, RequestId};
use crate::init::Membership;
use crate::layout::{Layout, Member};
use crate::message::Hello;
use crate::mutant::{Mutant, is_on};
use crate::recovery::RecoveryRefusal;

impl Node {
    pub(super) fn recover(
        &mut self,
        request: RequestId,
        layout: Layout,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let answer = match self.judge_recovery(&layout) {
            Ok(true) => Answer::RecoveryAccepted,
            Ok(false) => return self.change(layout, Some(request), now, effects),
            Err(refusal) => Answer::RecoveryRefused(refusal),
        };
        effects.push(Effect::Answer { request, answer });
    }

    /// True if this node has accepted the very same before.
    fn judge_recovery(&self, layout: &Layout) -> Result<bool, RecoveryRefusal> {
        let ours = self.membership.layout().ok_or(RecoveryRefusal::NotInitialized)?;
        if ours.cluster != layout.cluster {
            return Err(RecoveryRefusal::OtherCluster(ours.cluster));
        }
        let is_named = |member: &Member| member.actor == self.actor && !member.is_lost;
        if !layout.member(self.me).is_some_and(is_named) {
            return Err(RecoveryRefusal::NoSurvivor(self.me));
        }
        if ours.digest() == layout.digest() {
            return Ok(true);
        }
        let (now, found) = (ours.incarnation.number, layout.incarnation.number);
        if found <= now && !is_on(Mutant::LowerAttemptsAreAccepted) {
            return Err(RecoveryRefusal::Incarnation { now, found });
        }
        if layout.epoch <= ours.epoch {
            return Err(RecoveryRefusal::Epoch { now: ours.epoch, found: layout.epoch });
        }
        if !layout.was_made_after(ours, self.membership.serving().is_some()) {
            return Err(RecoveryRefusal::Overtaken(ours.epoch));
        }
        // A first layout is not being accepted: there is one.
        if self.changing.is_some() || self.is_deciding {
            return Err(RecoveryRefusal::Busy);
        }
        Ok(false)
    }

    /// The layout is on disk. Whatever this node was part of is over, and nobody counts who still is.
    pub(super) fn accept_recovery(
        &mut self,
        request: RequestId,
        layout: Layout,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(proposing) = self.proposing.take() {
            effects.push(proposing.failed(ProposalError::Unknown));
        }
        let links = self.peers.disconnect_all();
        effects.extend(links.iter().map(|(_, link)| Effect::CloseLink { link: *link }));
        let lost: Vec<_> = links.iter().map(|(peer, _)| (*peer, true)).collect();
        self.lose(&lost, now, effects);
        if !is_on(Mutant::RequestsOutliveARecovery) {
            let ended = self.coordinator.abandon().into_iter();
            effects.extend(ended.map(|(request, answer)| Effect::Answer { request, answer }));
        }
        self.messages.clear();
        self.ahead = super::epochs::Ahead::default();
        self.evidence.clear();
        self.membership = Membership::accepted(layout, self.me);
        // What is being committed ends, and is answered to nobody.
        self.lend(now, effects, |node, context| {
            node.replica.begin_epoch(context);
            node.replica.answer_nobody();
            node.replica.doubts.begin_epoch(context);
        });
        effects.push(Effect::Answer { request, answer: Answer::RecoveryAccepted });
        if is_on(Mutant::SurvivorsServeAtOnce) {
            self.decide(effects);
        }
        self.decide_if_all_have_accepted(effects);
    }

    /// True for a hello of before a recovery that is in force here, by a node that was named lost then, or was no member
    /// as far as those knew that were left: it can only come back as a new one, with nothing of what it has. (A hello of
    /// one that has accepted since may be late.)
    pub(super) fn is_of_a_lost_past(&self, hello: &Hello) -> bool {
        let header = &hello.header;
        self.membership.serving().is_some_and(|layout| {
            header.cluster == layout.cluster
                && header.to == self.me
                && header.incarnation.number < layout.incarnation.number
                && layout.member(header.from).is_none_or(|member| member.is_lost)
                && !is_on(Mutant::TheLostHearNothing)
        })
    }
}
