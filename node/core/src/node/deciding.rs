//! How a node takes part in the decision on the next layout: as one of the voters, and as the proposer for an
//! administrator.

use super::{Node, PendingSave};
use crate::effect::{Answer, Effect, Now, ProposalError, RequestId, SavedState};
use crate::id::{Epoch, NodeId};
use crate::layout::Layout;
use crate::message::Message;
use crate::mutant::{Mutant, is_on};
use crate::paxos::{Ballot, Next, Outcome, Proposer, Say, Verdict, VoteError, Votes, check_vote};
use crate::succession::{Step, check_step};

/// How long the voters have to answer before they are asked again, under a higher ballot.
const BALLOT_MS: u64 = 1_000;
/// Proposers that outbid each other begin anew at different moments.
const STAGGER_MS: u64 = 40;
/// How long the decision may take before its outcome is called unknown.
const DECIDE_MS: u64 = 10_000;

/// A proposal under way.
#[derive(Debug)]
pub(super) struct Proposing {
    request: RequestId,
    proposer: Proposer,
    again_ms: u64,
    until_ms: u64,
}

impl Proposing {
    pub(super) fn next_wakeup_ms(&self) -> u64 {
        self.again_ms.min(self.until_ms)
    }

    pub(super) fn failed(self, error: ProposalError) -> Effect {
        Effect::Answer { request: self.request, answer: Answer::ProposalFailed(error) }
    }
}

/// What a proposer hears once our votes are on disk.
#[derive(Debug)]
pub(super) struct Voting {
    to: NodeId,
    epoch: Epoch,
    ballot: Ballot,
    say: Say,
}

impl Node {
    pub(super) fn propose(
        &mut self,
        request: RequestId,
        (expected, layout): (Epoch, &Layout),
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        match self.check_proposal(expected, layout) {
            Ok(proposer) => {
                let (again_ms, until_ms) = (now.mono_ms + BALLOT_MS, now.mono_ms + DECIDE_MS);
                self.proposing = Some(Proposing { request, proposer, again_ms, until_ms });
                self.say_to_voters();
            }
            Err(error) => {
                effects.push(Effect::Answer { request, answer: Answer::ProposalFailed(error) });
            }
        }
    }

    fn check_proposal(&mut self, expected: Epoch, layout: &Layout) -> Result<Proposer, ProposalError> {
        let now = self.membership.serving().ok_or(ProposalError::NotInitialized)?;
        if now.epoch != expected && !is_on(Mutant::AnyEpochIsExpected) {
            return Err(ProposalError::Epoch { now: now.epoch, expected });
        }
        if self.proposing.is_some() {
            return Err(ProposalError::Busy);
        }
        let evidence = self.known_standings();
        check_vote(now, layout, &evidence)?;
        let step = check_step(now, layout).map_err(VoteError::from)?;
        if matches!(step, Step::Begin | Step::Finish) && !is_on(Mutant::ReachableMembersAreNotAwaited) {
            let fences = self.fences();
            let least = if is_on(Mutant::EarlierEpochsAreAwaited) { now.phase_since } else { now.epoch };
            let is_late = |node: &NodeId| fences.get(node).is_none_or(|fence| *fence < least);
            let reachable =
                self.peers.connected().map(|(peer, _)| peer).filter(|peer| now.member(*peer).is_some());
            if let Some(node) = reachable.into_iter().find(is_late) {
                // It says so if it has it by now.
                let message = self.layout_message(now);
                self.messages.push_back((node, message));
                return Err(ProposalError::Unacknowledged { node, epoch: now.epoch });
            }
        }
        let is_short = now.members.iter().any(|member| member.is_lost && now.owned(member.node) > 0);
        if step == Step::Begin && !is_short && !is_on(Mutant::LeaversAreNotAwaited) {
            let drops = |node: &NodeId| evidence.get(node).is_some_and(|standing| standing.clears);
            let reached = self.peers.connected().map(|(peer, _)| peer).chain([self.me]);
            if let Some(node) = reached.filter(|node| now.member(*node).is_some()).find(drops) {
                if node != self.me {
                    let message = self.layout_message(now);
                    self.messages.push_back((node, message));
                }
                return Err(ProposalError::StillDrops { node });
            }
        }
        if let Some(node) = self.finds_needed(now, layout) {
            return Err(ProposalError::StillNeeded { node });
        }
        self.last_round += 1;
        let ballot = Ballot { round: self.last_round, proposer: self.me, generation: self.generation };
        Ok(Proposer::new(now, layout.clone(), evidence, ballot))
    }

    /// A member that is to go and still answers, though what it has left may be needed: it sets its data aside as soon as it
    /// hears that it is none any more.
    fn finds_needed(&self, now: &Layout, layout: &Layout) -> Option<NodeId> {
        let goes = |node: &NodeId| {
            now.member(*node).is_some_and(|member| !member.is_lost) && layout.member(*node).is_none()
        };
        let mut reached = self.peers.connected().map(|(peer, _)| peer).chain([self.me]);
        // Who goes as well, and does not answer, asks for nothing.
        let may_ask = |node: &NodeId| layout.member(*node).is_some() || self.peers.is_connected(*node);
        let is_needed = || {
            let ours = self.replica.doubts.partitions(now.partitions);
            self.unaware(now).any(|node| may_ask(&node))
                || !self.short_of_trust(now, now.partitions.all(), &ours).is_empty()
        };
        reached.find(goes).filter(|_| is_needed() && !is_on(Mutant::KeepersAreDismissed))
    }

    fn say_to_voters(&mut self) {
        let Some(Proposing { proposer, .. }) = &self.proposing else { return };
        let (epoch, ballot, say) = (proposer.epoch(), proposer.ballot(), proposer.say());
        self.last_round = self.last_round.max(ballot.round);
        for voter in proposer.voters() {
            self.messages.push_back((*voter, Message::Paxos { epoch, ballot, say: Box::new(say.clone()) }));
        }
    }

    pub(super) fn paxos(
        &mut self,
        from: NodeId,
        (epoch, ballot, say): (Epoch, Ballot, Say),
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        match say {
            Say::Prepare | Say::Accept { .. } => self.vote(from, (epoch, ballot), &say, effects),
            Say::Promise { .. } | Say::Accepted | Say::Outbid { .. } | Say::Refused { .. } => {
                self.hear_vote(from, (epoch, ballot, say), now, effects);
            }
        }
    }

    fn vote(&mut self, from: NodeId, (epoch, ballot): (Epoch, Ballot), say: &Say, effects: &mut Vec<Effect>) {
        let Some(layout) = self.membership.serving() else { return };
        if epoch <= layout.epoch {
            // Decided, and perhaps more than that.
            if is_on(Mutant::DecidedIsNotTold) {
                return;
            }
            let message = self.layout_message(layout);
            return self.messages.push_back((from, message));
        }
        // Whoever is behind hears of the layout in force soon, and is asked again.
        let is_next = epoch.0 == layout.epoch.0 + 1 || is_on(Mutant::TheBehindVote);
        if !is_next || !layout.is_voter(self.me) && !is_on(Mutant::StrangersVote) {
            return;
        }
        match self.votes.judge(layout, ballot, say) {
            None => {}
            Some(Verdict::Say(say)) => {
                self.messages.push_back((from, Message::Paxos { epoch, ballot, say: Box::new(say) }));
            }
            Some(Verdict::SaveThenSay(votes, say)) => {
                self.votes = Votes::clone(&votes);
                let voting = Voting { to: from, epoch, ballot, say };
                if is_on(Mutant::VotesBeforeTheyAreSaved) {
                    let Voting { to, epoch, ballot, say } = voting;
                    return self
                        .messages
                        .push_back((to, Message::Paxos { epoch, ballot, say: Box::new(say) }));
                }
                self.save(PendingSave::Votes(voting), SavedState::Votes(*votes), effects);
            }
        }
    }

    /// Our votes are on disk.
    pub(super) fn voted(&mut self, Voting { to, epoch, ballot, say }: Voting) {
        self.messages.push_back((to, Message::Paxos { epoch, ballot, say: Box::new(say) }));
    }

    fn hear_vote(
        &mut self,
        from: NodeId,
        (epoch, ballot, say): (Epoch, Ballot, Say),
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let Some(proposing) = self.proposing.as_mut().filter(|proposing| proposing.proposer.epoch() == epoch)
        else {
            return;
        };
        match proposing.proposer.hear(from, ballot, say) {
            Next::Wait => {
                if proposing.proposer.is_outbid() {
                    let wait_ms = STAGGER_MS * u64::from(self.me.0[15] % 8);
                    proposing.again_ms = proposing.again_ms.min(now.mono_ms + wait_ms);
                }
            }
            Next::Say(_) => {
                proposing.again_ms = now.mono_ms + BALLOT_MS;
                self.say_to_voters();
            }
            Next::End(Outcome::Refused(why)) => {
                if let Some(proposing) = self.proposing.take() {
                    effects.push(proposing.failed(ProposalError::Voted(why)));
                }
            }
            Next::End(Outcome::Decided(layout)) => {
                let peers: Vec<_> = self.peers.connected().map(|(peer, _)| peer).collect();
                for peer in peers {
                    let message = self.layout_message(&layout);
                    self.messages.push_back((peer, message));
                }
                // It may say that we are no member any more.
                self.deliver(now, effects);
                self.learn(*layout, now, effects);
            }
        }
    }

    /// A layout has come into force here: ends the proposal for its epoch.
    pub(super) fn concluded(&mut self, effects: &mut Vec<Effect>) {
        let Some(layout) = self.membership.serving() else { return };
        if let Some(Proposing { request, .. }) =
            self.proposing.take_if(|proposing| proposing.proposer.epoch() <= layout.epoch)
        {
            let answer = Answer::Decided(Box::new(layout.clone()));
            effects.push(Effect::Answer { request, answer });
        }
    }

    /// Asks the voters again, or gives up.
    pub(super) fn go_on_proposing(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let Some(proposing) = &mut self.proposing else { return };
        if proposing.until_ms <= now.mono_ms {
            if let Some(proposing) = self.proposing.take() {
                effects.push(proposing.failed(ProposalError::Unknown));
            }
            return;
        }
        if proposing.again_ms <= now.mono_ms {
            self.counters.ballots_repeated += 1;
            proposing.proposer.bid();
            proposing.again_ms = now.mono_ms + BALLOT_MS;
            self.say_to_voters();
            self.deliver(now, effects);
        }
    }
}
