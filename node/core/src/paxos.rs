//! The layout of the next epoch is decided by one instance of single-decree Paxos, whose acceptors are the voters of
//! the layout in force (Lamport, "Paxos Made Simple", 2001).
//!
//! An acceptor makes durable what it promises and accepts before it says so, and knows one instance: that of the epoch
//! after the layout that it holds. It votes only for a layout that may follow that one ([`crate::succession`]), whose
//! gate is open by the evidence that comes with it. A proposer that finds an earlier vote proposes that instead of
//! its own, so a layout that a majority has accepted is the only one that can ever be decided.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::id::{Epoch, Generation, NodeId};
use crate::layout::Layout;
use crate::mutant::{Mutant, is_on};
use crate::succession::{Evidence, GateError, SuccessionError, check_gate, check_step};

/// The number of an attempt: used once, since a process never uses a round twice, nor a generation after its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Ballot {
    pub round: u64,
    pub proposer: NodeId,
    pub generation: Generation,
}

/// A vote: for a layout, and for its gate being open by this evidence, which stays true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vote {
    pub ballot: Ballot,
    pub layout: Layout,
    pub evidence: Evidence,
}

/// What an acceptor has on disk of one instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Votes {
    /// The epoch that is decided on.
    pub epoch: Epoch,
    pub promised: Ballot,
    pub accepted: Option<Vote>,
}

/// What the parties of one instance say to each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Say {
    /// "Vote for nothing below this ballot; what have you voted for?"
    Prepare,
    Promise {
        accepted: Option<Vote>,
    },
    /// "Vote for this."
    Accept {
        layout: Layout,
        evidence: Evidence,
    },
    Accepted,
    /// "I have promised a higher ballot."
    Outbid {
        promised: Ballot,
    },
    /// "That layout cannot follow, as far as I can see", and why.
    Refused {
        why: String,
    },
}

/// What an acceptor does about a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Say this at once.
    Say(Say),
    /// Make these durable, then say this.
    SaveThenSay(Box<Votes>, Say),
}

/// Why a vote is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum VoteError {
    #[error(transparent)]
    Succession(#[from] SuccessionError),
    #[error(transparent)]
    Gate(#[from] GateError),
}

/// True if a layout may follow the one in force now.
pub fn check_vote(now: &Layout, layout: &Layout, evidence: &Evidence) -> Result<(), VoteError> {
    let step = check_step(now, layout)?;
    Ok(check_gate(now, step, evidence)?)
}

impl Votes {
    /// What is remembered of the instance that comes after a layout.
    fn of(&self, now: &Layout) -> Votes {
        let epoch = Epoch(now.epoch.0 + 1);
        if self.epoch == epoch { self.clone() } else { Votes { epoch, ..Votes::default() } }
    }

    /// Judges what a proposer says under a ballot, about the epoch after the layout in force. The votes as they are in
    /// memory may be ahead of the disk: what was begun to be saved counts.
    pub fn judge(&self, now: &Layout, ballot: Ballot, say: &Say) -> Option<Verdict> {
        let votes = self.of(now);
        if ballot < votes.promised && !is_on(Mutant::PromisesAreForgotten) {
            return Some(Verdict::Say(Say::Outbid { promised: votes.promised }));
        }
        match say {
            Say::Prepare => {
                let accepted = votes.accepted.clone().filter(|_| !is_on(Mutant::PromisesHideVotes));
                Some(Verdict::SaveThenSay(
                    Box::new(Votes { promised: ballot, ..votes }),
                    Say::Promise { accepted },
                ))
            }
            Say::Accept { layout, evidence } => {
                if let Err(error) = check_vote(now, layout, evidence)
                    && !is_on(Mutant::AcceptorsDoNotJudge)
                {
                    return Some(Verdict::Say(Say::Refused { why: error.to_string() }));
                }
                let accepted = Some(Vote { ballot, layout: layout.clone(), evidence: evidence.clone() });
                let promised = if is_on(Mutant::VotesPromiseNothing) { votes.promised } else { ballot };
                Some(Verdict::SaveThenSay(Box::new(Votes { promised, accepted, ..votes }), Say::Accepted))
            }
            Say::Promise { .. } | Say::Accepted | Say::Outbid { .. } | Say::Refused { .. } => None,
        }
    }
}

/// How a proposal ended, for whoever wanted it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// This layout is decided: the one that was proposed, or one that was voted for before.
    Decided(Box<Layout>),
    /// No layout can be decided now; this one may be decided later all the same if votes were asked for.
    Refused(String),
}

/// What a proposer does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    Wait,
    /// Say this to all voters, ourselves included.
    Say(Box<Say>),
    End(Outcome),
}

/// One attempt to have a layout decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposer {
    epoch: Epoch,
    voters: Vec<NodeId>,
    ballot: Ballot,
    /// What is wanted, and what is proposed in its place if somebody has voted for something.
    layout: Layout,
    evidence: Evidence,
    promised: BTreeSet<NodeId>,
    /// The vote with the highest ballot among the promises.
    found: Option<Vote>,
    accepted: BTreeSet<NodeId>,
    refused: BTreeMap<NodeId, String>,
    /// The highest ballot that another proposer was promised.
    outbid: Option<Ballot>,
}

impl Proposer {
    pub fn new(now: &Layout, layout: Layout, evidence: Evidence, ballot: Ballot) -> Self {
        Self {
            epoch: Epoch(now.epoch.0 + 1),
            voters: now.voters.clone(),
            ballot,
            layout,
            evidence,
            promised: BTreeSet::new(),
            found: None,
            accepted: BTreeSet::new(),
            refused: BTreeMap::new(),
            outbid: None,
        }
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub fn ballot(&self) -> Ballot {
        self.ballot
    }

    pub fn voters(&self) -> &[NodeId] {
        &self.voters
    }

    /// What is wanted of the voters at the moment.
    pub fn say(&self) -> Say {
        if self.has(&self.promised) {
            Say::Accept { layout: self.layout.clone(), evidence: self.evidence.clone() }
        } else {
            Say::Prepare
        }
    }

    /// Begins anew under a higher ballot; what was voted for is found again.
    pub fn bid(&mut self) {
        self.ballot.round = self.outbid.map_or(0, |ballot| ballot.round).max(self.ballot.round) + 1;
        self.promised.clear();
        self.accepted.clear();
        self.refused.clear();
        self.found = None;
        self.outbid = None;
    }

    pub fn is_outbid(&self) -> bool {
        self.outbid.is_some()
    }

    /// A voter has answered something said under a ballot.
    pub fn hear(&mut self, from: NodeId, ballot: Ballot, say: Say) -> Next {
        let is_voter = self.voters.contains(&from) || is_on(Mutant::StrangersVotesCount);
        if !is_voter || ballot != self.ballot && !is_on(Mutant::AnyBallotCounts) {
            return Next::Wait;
        }
        match say {
            Say::Promise { accepted } => {
                let had = self.has(&self.promised);
                self.promised.insert(from);
                let ballot = |vote: &Option<Vote>| vote.as_ref().map(|vote| vote.ballot);
                if ballot(&accepted) > ballot(&self.found) {
                    self.found = accepted;
                }
                if had || !self.has(&self.promised) {
                    return Next::Wait;
                }
                if let Some(vote) = self.found.clone().filter(|_| !is_on(Mutant::FoundVotesAreIgnored)) {
                    self.layout = vote.layout;
                    self.evidence = vote.evidence;
                }
                Next::Say(Box::new(self.say()))
            }
            Say::Accepted => {
                self.accepted.insert(from);
                if self.has(&self.accepted) {
                    Next::End(Outcome::Decided(Box::new(self.layout.clone())))
                } else {
                    Next::Wait
                }
            }
            Say::Outbid { promised } => {
                self.outbid = self.outbid.max(Some(promised));
                Next::Wait
            }
            Say::Refused { why } => {
                self.refused.insert(from, why.clone());
                let left = self.voters.len() - self.refused.len();
                if left < self.majority() { Next::End(Outcome::Refused(why)) } else { Next::Wait }
            }
            Say::Prepare | Say::Accept { .. } => Next::Wait,
        }
    }

    fn majority(&self) -> usize {
        self.voters.len() / 2 + 1 - usize::from(is_on(Mutant::OneVoteFewer))
    }

    fn has(&self, voters: &BTreeSet<NodeId>) -> bool {
        voters.len() >= self.majority()
    }
}
