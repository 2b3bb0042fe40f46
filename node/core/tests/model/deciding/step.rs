//! One step of one node, as `node/deciding.rs` and `node/epochs.rs` take it, and what is counted beside.

use keystore_core::id::{Epoch, Generation};
use keystore_core::mutant::{Mutant, switch};
use keystore_core::paxos::{Ballot, Proposer, Say, check_vote};
use keystore_core::succession::{Evidence, Standing};

use super::{Broken, Deciding, Heard, Judged, Kind, Label, Machine, Message, SAVES_MAX, Seen, State, Tables};
use crate::cluster::node;
use crate::interned::{Number, add};

/// One step.
pub(super) struct Stepping<'a> {
    pub(super) of: &'a Deciding,
    pub(super) tables: &'a mut Tables,
    pub(super) state: State,
}

impl Stepping<'_> {
    fn machine(&mut self, n: u8) -> &mut Machine {
        &mut self.state.machines[usize::from(n) - 1]
    }

    fn epoch(&self, n: u8) -> Epoch {
        self.tables.epoch(self.state.machines[usize::from(n) - 1].layout)
    }

    fn broken(&mut self, broken: Broken) {
        add(&mut self.state.broken, broken);
    }

    pub(super) fn deliver(&mut self, number: Number, n: u8) {
        let Label { epoch, kind, .. } = self.tables.label(number);
        match kind {
            Kind::Layout(layout) => self.learn(n, layout),
            Kind::Prepare | Kind::Accept => self.vote(n, epoch, number),
            Kind::Promise | Kind::Accepted | Kind::Outbid | Kind::Refused => self.hear(n, epoch, number),
        }
    }

    /// As `Node::vote`; that others hold the layout in force was said before.
    fn vote(&mut self, n: u8, epoch: Epoch, number: Number) {
        let machine = self.machine(n).clone();
        let layout = self.tables.layouts.get(machine.layout);
        if epoch.0 != layout.epoch.0 + 1 || !layout.is_voter(node(n)) {
            return;
        }
        match self.tables.judge(n, &machine, number) {
            Judged::Nothing => {}
            Judged::Say(answer) => self.send(answer),
            // The disk is busy: it comes again.
            Judged::Save(..) if machine.saving.len() >= SAVES_MAX => {}
            Judged::Save(votes, answer) => {
                // What changes nothing on the disk is written and said after whatever was begun before all the same.
                let is_early = self.of.mutant == Some(Mutant::VotesBeforeTheyAreSaved);
                self.machine(n).saving.push((votes, Some(answer).filter(|_| !is_early)));
                if is_early {
                    self.send(answer);
                }
                if !self.of.scenario.saves_take_time {
                    self.synced(n);
                }
            }
        }
    }

    pub(super) fn synced(&mut self, n: u8) {
        let machine = self.machine(n);
        if machine.saving.is_empty() {
            return;
        }
        let (votes, answer) = machine.saving.remove(0);
        machine.votes = votes;
        if let Some(answer) = answer {
            self.send(answer);
        }
    }

    /// As `Node::hear_vote`.
    fn hear(&mut self, n: u8, epoch: Epoch, number: Number) {
        let Some(proposer) = self.machine(n).proposer else { return };
        if self.tables.proposers.get(proposer).epoch() != epoch {
            return;
        }
        let (proposer, next) = self.tables.hear(proposer, number);
        self.machine(n).proposer = Some(proposer);
        match next {
            Heard::Wait => {}
            Heard::Say => self.say_to_voters(n),
            Heard::Refused => self.machine(n).proposer = None,
            Heard::Decided(layout) => {
                add(&mut self.state.decided, layout);
                self.tables.seen.insert(Seen::Decided(layout));
                let number = self.tables.message(Message::Layout(layout));
                add(&mut self.state.sent, number);
            }
        }
    }

    /// As `Node::learn`, `Node::take_up` and `Node::concluded`; the layout is on disk at once.
    fn learn(&mut self, n: u8, layout: Number) {
        let (ours, epoch) = (self.epoch(n), self.tables.epoch(layout));
        if epoch <= ours {
            return;
        }
        if epoch.0 > ours.0 + 1 {
            self.tables.seen.insert(Seen::SkippedAnEpoch);
        }
        let proposer = self.machine(n).proposer;
        let is_concluded =
            proposer.is_some_and(|proposer| self.tables.proposers.get(proposer).epoch() <= epoch);
        let machine = self.machine(n);
        (machine.layout, machine.ballots, machine.proposals) = (layout, 0, 0);
        machine.proposer = proposer.filter(|_| !is_concluded);
        if self.epoch(n) < ours {
            self.broken(Broken::WentBack);
        }
    }

    /// As `Node::propose`: by an administrator who knows the epoch, and asks anew when nothing came of it.
    pub(super) fn propose(&mut self, n: u8) {
        let layout = self.machine(n).layout;
        let nexts = self.of.nexts(self.tables, n, layout);
        if nexts.is_empty() {
            return;
        }
        let first = usize::from(self.machine(n).proposals) % nexts.len();
        let standings = self.tables.standings(&self.state);
        let now = self.tables.layouts.get(layout).clone();
        let can_be = |(number, is_rash): &&(Number, bool)| {
            *is_rash || check_vote(&now, self.tables.layouts.get(*number), &standings).is_ok()
        };
        let in_turn = nexts[first..].iter().chain(&nexts[..first]);
        let Some((next, is_rash)) = in_turn.clone().find(can_be) else { return };
        let evidence = if *is_rash { Evidence::new() } else { standings };
        let value = self.tables.layouts.get(*next).clone();
        let machine = self.machine(n);
        machine.last_round += 1;
        machine.ballots += 1;
        machine.proposals += 1;
        let generation = Generation(machine.generation.into());
        let ballot = Ballot { round: machine.last_round.into(), proposer: node(n), generation };
        let proposer = self.tables.proposers.number(Proposer::new(&now, value, evidence, ballot));
        self.machine(n).proposer = Some(proposer);
        add(&mut self.state.wanted, *next);
        self.say_to_voters(n);
    }

    /// As `Node::go_on_proposing`, which may come at any time.
    pub(super) fn bid(&mut self, n: u8) {
        let Some(proposer) = self.machine(n).proposer else { return };
        let mut proposer = self.tables.proposers.get(proposer).clone();
        proposer.bid();
        let round = u8::try_from(proposer.ballot().round).unwrap();
        let proposer = self.tables.proposers.number(proposer);
        let machine = self.machine(n);
        machine.ballots += 1;
        machine.last_round = machine.last_round.max(round);
        machine.proposer = Some(proposer);
        self.say_to_voters(n);
    }

    fn say_to_voters(&mut self, n: u8) {
        let Some(proposer) = self.machine(n).proposer else { return };
        let proposer = self.tables.proposers.get(proposer);
        let (epoch, ballot, say) = (proposer.epoch(), proposer.ballot(), proposer.say());
        let number = self.tables.message(Message::Paxos { from: n, to: None, epoch, ballot, say });
        self.send(number);
    }

    /// Memory is lost.
    pub(super) fn crash(&mut self, n: u8) {
        self.state.crashes += 1;
        let machine = self.machine(n);
        let was_saving = !machine.saving.is_empty();
        machine.saving.clear();
        machine.proposer = None;
        machine.last_round = 0;
        machine.generation += 1;
        if was_saving {
            self.tables.seen.insert(Seen::CrashedWhileSaving);
        }
    }

    fn send(&mut self, number: Number) {
        let Label { epoch, ballot, kind, .. } = self.tables.label(number);
        if self.state.sent.contains(&number) {
            return;
        }
        if kind == Kind::Accept && self.said(epoch, ballot, Kind::Accept).next().is_some() {
            self.broken(Broken::BallotTwice);
        }
        add(&mut self.state.sent, number);
        if kind == Kind::Accepted {
            self.count(epoch, ballot);
        }
    }

    /// What was said of this kind under a ballot.
    fn said(&self, of: Epoch, under: Ballot, kind: Kind) -> impl Iterator<Item = Number> {
        self.state.sent.iter().copied().filter(move |number| {
            let label = self.tables.label(*number);
            (label.epoch, label.ballot, label.kind) == (of, under, kind)
        })
    }

    /// A vote was given: it may be the one that makes a majority.
    fn count(&mut self, of: Epoch, under: Ballot) {
        let votes = self.said(of, under, Kind::Accepted).count();
        let proposal = self.said(of, under, Kind::Accept).next();
        let Some(Message::Paxos { say: Say::Accept { layout, evidence }, .. }) =
            proposal.map(|number| self.tables.messages.get(number).clone())
        else {
            return;
        };
        let start = &self.of.scenario.start;
        let now = {
            let decided = self.state.decided.iter().map(|number| self.tables.layouts.get(*number));
            let before = decided.chain([start]).find(|layout| layout.epoch.0 + 1 == of.0);
            before.cloned().expect("whoever votes holds the layout before")
        };
        if votes <= now.voters.len() / 2 {
            return;
        }
        let chosen = self.tables.layouts.number(layout.clone());
        add(&mut self.state.chosen, chosen);
        switch(None);
        if check_vote(&now, &layout, &evidence).is_err() {
            self.broken(Broken::Illegal);
        }
        switch(self.of.mutant);
        let standings = self.tables.standings(&self.state);
        let is_so = |(node, said): (_, &Standing)| {
            standings.get(node).is_some_and(|now| {
                said.fence <= now.fence && (said.phase < now.phase || said.whole.is_subset(&now.whole))
            })
        };
        if !evidence.iter().all(is_so) {
            self.broken(Broken::Untrue);
        }
    }

    /// Forgets what can change nothing any more, so that states which differ in nothing else are one.
    pub(super) fn tidy(&mut self) {
        let epochs: Vec<_> = (1..=self.of.scenario.nodes).map(|n| self.epoch(n)).collect();
        let least = epochs.iter().min().copied().unwrap_or_default();
        let machines = &self.state.machines;
        let is_dead = |number: &Number| {
            let Label { to, epoch, ballot, kind } = self.tables.label(*number);
            // Votes are counted.
            if epoch <= least || kind == Kind::Accepted {
                return epoch <= least;
            }
            let Some(to) = to else { return false };
            let at = usize::from(to) - 1;
            let machine = &machines[at];
            let present = machine.proposer.map(|proposer| self.tables.proposers.get(proposer));
            let is_present = present.is_some_and(|proposer| proposer.ballot() == ballot);
            let was = (ballot.generation.0, ballot.round);
            let is_over = !is_present && was <= (machine.generation.into(), machine.last_round.into());
            // A promise after a majority of them is nothing, and whoever may not bid need not know how high.
            let is_late =
                kind == Kind::Promise && present.is_some_and(|proposer| proposer.say() != Say::Prepare);
            let is_vain = kind == Kind::Outbid && machine.ballots >= self.of.scenario.ballots[at];
            let may_count = self.of.mutant == Some(Mutant::AnyBallotCounts);
            epoch <= epochs[at] || is_vain || !may_count && (is_over || is_present && is_late)
        };
        self.state.sent.retain(|number| !is_dead(number));
    }
}
