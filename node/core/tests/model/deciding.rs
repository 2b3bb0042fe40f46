//! The decision on layouts, of nodes that treat what they hear as `node/deciding.rs` does: acceptors save before they
//! speak, proposers are lost in a crash, and whoever holds a decided layout tells it.
//!
//! What was sent once stays sent, and may arrive at any time, as often as it likes, or never: that is loss, duplication
//! and reordering in one. A node that is down is one that nothing reaches.

mod step;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use keystore_core::id::Epoch;
use keystore_core::layout::Layout;
use keystore_core::mutant::{Mutant, switch};
use keystore_core::paxos::{Ballot, Next, Outcome, Proposer, Say, Verdict, Votes};
use keystore_core::succession::{Change, Evidence, Standing};
use stateright::{Model, Property};

use self::step::Stepping;
use crate::cluster::{node, nodes};
use crate::interned::{Interned, Number};

/// How many writes of votes are under way at once.
const SAVES_MAX: usize = 2;

/// What somebody wants while a layout is in force.
pub(crate) struct Want {
    pub(crate) change: Change,
    pub(crate) away: &'static [u8],
    /// It is proposed whatever its evidence, which is none: the voters have to see to it.
    pub(crate) is_rash: bool,
}

impl Want {
    pub(crate) fn of(change: Change) -> Self {
        Self { change, away: &[], is_rash: false }
    }
}

pub(crate) struct Scenario {
    pub(crate) start: Layout,
    /// Its nodes are 1 to this.
    pub(crate) nodes: u8,
    /// What a node wants, one after the other; what cannot follow is left out.
    pub(crate) wants: fn(u8, &Layout) -> Vec<Want>,
    /// So many layouts are decided, one after the other.
    pub(crate) epochs: u64,
    /// How many ballots each node may begin while one layout is in force.
    pub(crate) ballots: &'static [u8],
    pub(crate) crashes: u8,
    /// Other things may happen before a vote is on disk.
    pub(crate) saves_take_time: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Machine {
    /// On disk.
    layout: Number,
    /// On disk.
    votes: Number,
    /// On their way there, in this order, and what is said then.
    saving: Vec<(Number, Option<Number>)>,
    /// On disk.
    generation: u8,
    proposer: Option<Number>,
    last_round: u8,
    ballots: u8,
    proposals: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    machines: Vec<Machine>,
    sent: Vec<Number>,
    crashes: u8,
    /// What somebody took for decided.
    decided: Vec<Number>,
    /// What a majority of the voters has voted for under one ballot.
    chosen: Vec<Number>,
    wanted: Vec<Number>,
    broken: Vec<Broken>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Broken {
    /// Decided or chosen, it cannot follow the layout that its voters held, or its gate was shut by its evidence.
    Illegal,
    /// Its evidence says of a node what is not so.
    Untrue,
    WentBack,
    /// Two proposals under one ballot.
    BallotTwice,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Deliver(Number, u8),
    Synced(u8),
    Propose(u8),
    Bid(u8),
    Crash(u8),
}

/// What of the model has happened anywhere: it shows that the model is not idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Seen {
    Outbid,
    Refused,
    FoundAndProposed,
    SkippedAnEpoch,
    CrashedWhileSaving,
    Decided(Number),
}

#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "each is kept once")]
enum Message {
    Layout(Number),
    /// To all voters, if to nobody by name.
    Paxos {
        from: u8,
        to: Option<u8>,
        epoch: Epoch,
        ballot: Ballot,
        say: Say,
    },
}

/// What a message is, at a glance.
#[derive(Debug, Clone, Copy)]
struct Label {
    to: Option<u8>,
    epoch: Epoch,
    ballot: Ballot,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Layout(Number),
    Prepare,
    Promise,
    Accept,
    Accepted,
    Outbid,
    Refused,
}

#[derive(Debug, Clone)]
enum Judged {
    Nothing,
    Say(Number),
    Save(Number, Number),
}

#[derive(Debug, Clone)]
enum Heard {
    Wait,
    Say,
    Decided(Number),
    Refused,
}

#[derive(Debug, Default)]
pub(crate) struct Tables {
    layouts: Interned<Layout>,
    votes: Interned<Votes>,
    proposers: Interned<Proposer>,
    messages: Interned<Message>,
    labels: Vec<Label>,
    judged: BTreeMap<(u8, Number, Number, Number), Judged>,
    heard: BTreeMap<(Number, Number), (Number, Heard)>,
    nexts: BTreeMap<(u8, Number), Vec<(Number, bool)>>,
    pub(crate) seen: BTreeSet<Seen>,
}

pub(crate) struct Deciding {
    scenario: Scenario,
    mutant: Option<Mutant>,
    tables: Arc<Mutex<Tables>>,
}

impl Deciding {
    pub(crate) fn new(scenario: Scenario, mutant: Option<Mutant>) -> Self {
        Self { scenario, mutant, tables: Arc::default() }
    }

    pub(crate) fn tables(&self) -> Arc<Mutex<Tables>> {
        self.tables.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap()
    }

    /// The proposals a node can make of its wants, and whether they are rash.
    fn nexts(&self, tables: &mut Tables, n: u8, layout: Number) -> Vec<(Number, bool)> {
        if let Some(known) = tables.nexts.get(&(n, layout)) {
            return known.clone();
        }
        let now = tables.layouts.get(layout).clone();
        let legal = |want: Want| {
            let next = now.next_without(&want.change, &nodes(want.away)).ok()?;
            Some((tables.layouts.number(next), want.is_rash))
        };
        let is_over = now.epoch.0 >= self.scenario.start.epoch.0 + self.scenario.epochs;
        let wants = if is_over { Vec::new() } else { (self.scenario.wants)(n, &now) };
        let nexts: Vec<_> = wants.into_iter().filter_map(legal).collect();
        tables.nexts.insert((n, layout), nexts.clone());
        nexts
    }
}

impl Tables {
    fn epoch(&self, layout: Number) -> Epoch {
        self.layouts.get(layout).epoch
    }

    fn label(&self, message: Number) -> Label {
        self.labels[usize::from(message)]
    }

    fn message(&mut self, message: Message) -> Number {
        let label = match &message {
            Message::Layout(layout) => Label {
                to: None,
                epoch: self.epoch(*layout),
                ballot: Ballot::default(),
                kind: Kind::Layout(*layout),
            },
            Message::Paxos { to, epoch, ballot, say, .. } => {
                let kind = match say {
                    Say::Prepare => Kind::Prepare,
                    Say::Promise { .. } => Kind::Promise,
                    Say::Accept { .. } => Kind::Accept,
                    Say::Accepted => Kind::Accepted,
                    Say::Outbid { .. } => Kind::Outbid,
                    Say::Refused { .. } => Kind::Refused,
                };
                Label { to: *to, epoch: *epoch, ballot: *ballot, kind }
            }
        };
        let number = self.messages.number(message);
        if usize::from(number) == self.labels.len() {
            self.labels.push(label);
        }
        number
    }

    /// What all nodes could say of themselves. Whoever has taken up a move has merged all that it has to.
    fn standings(&self, state: &State) -> Evidence {
        let standing = |(n, machine): (u8, &Machine)| {
            let layout = self.layouts.get(machine.layout);
            let has_merged =
                |partition: &_| layout.is_joint() && layout.ring().is_replica(*partition, node(n));
            let whole = layout.partitions.all().filter(has_merged).collect();
            (
                node(n),
                Standing { fence: layout.epoch, phase: layout.phase_since, whole, ..Standing::default() },
            )
        };
        (1..).zip(&state.machines).map(standing).collect()
    }

    fn judge(&mut self, n: u8, machine: &Machine, number: Number) -> Judged {
        let votes = machine.saving.last().map_or(machine.votes, |(votes, _)| *votes);
        let key = (n, machine.layout, votes, number);
        if let Some(known) = self.judged.get(&key) {
            return known.clone();
        }
        let Message::Paxos { from, epoch, ballot, say, .. } = self.messages.get(number).clone() else {
            return Judged::Nothing;
        };
        let answer = |say| Message::Paxos { from: n, to: Some(from), epoch, ballot, say };
        let layout = self.layouts.get(machine.layout);
        let judged = match self.votes.get(votes).judge(layout, ballot, &say) {
            None => Judged::Nothing,
            Some(Verdict::Say(say)) => {
                self.seen.insert(if matches!(say, Say::Outbid { .. }) {
                    Seen::Outbid
                } else {
                    Seen::Refused
                });
                Judged::Say(self.message(answer(say)))
            }
            Some(Verdict::SaveThenSay(votes, say)) => {
                Judged::Save(self.votes.number(*votes), self.message(answer(say)))
            }
        };
        self.judged.insert(key, judged.clone());
        judged
    }

    fn hear(&mut self, proposer: Number, number: Number) -> (Number, Heard) {
        if let Some(known) = self.heard.get(&(proposer, number)) {
            return known.clone();
        }
        let Message::Paxos { from, ballot, say, .. } = self.messages.get(number).clone() else {
            return (proposer, Heard::Wait);
        };
        let mut heard = self.proposers.get(proposer).clone();
        let found = match &say {
            Say::Promise { accepted: Some(vote) } => Some(vote.layout.clone()),
            _ => None,
        };
        let next = match heard.hear(node(from), ballot, say) {
            Next::Wait => Heard::Wait,
            Next::Say(say) => {
                if matches!(*say, Say::Accept { layout, .. } if Some(&layout) == found.as_ref()) {
                    self.seen.insert(Seen::FoundAndProposed);
                }
                Heard::Say
            }
            Next::End(Outcome::Refused(_)) => Heard::Refused,
            Next::End(Outcome::Decided(layout)) => Heard::Decided(self.layouts.number(*layout)),
        };
        let known = (self.proposers.number(heard), next);
        self.heard.insert((proposer, number), known.clone());
        known
    }
}

impl Model for Deciding {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut tables = self.lock();
        let machine = Machine {
            layout: tables.layouts.number(self.scenario.start.clone()),
            votes: tables.votes.number(Votes::default()),
            saving: Vec::new(),
            generation: 1,
            proposer: None,
            last_round: 0,
            ballots: 0,
            proposals: 0,
        };
        vec![State {
            machines: vec![machine; self.scenario.nodes.into()],
            sent: Vec::new(),
            crashes: 0,
            decided: Vec::new(),
            chosen: Vec::new(),
            wanted: Vec::new(),
            broken: Vec::new(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let tables = self.lock();
        for (n, machine) in (1..).zip(&state.machines) {
            let epoch = tables.epoch(machine.layout);
            for number in &state.sent {
                let Label { to, epoch: of, kind, .. } = tables.label(*number);
                let concerns = match (kind, to) {
                    (Kind::Layout(_), _) => of > epoch,
                    (_, None) => of.0 == epoch.0 + 1,
                    (_, Some(to)) => to == n && machine.proposer.is_some(),
                };
                if concerns {
                    actions.push(Action::Deliver(*number, n));
                }
            }
            if !machine.saving.is_empty() {
                actions.push(Action::Synced(n));
            }
            if machine.ballots < self.scenario.ballots[usize::from(n) - 1] {
                actions.push(Action::Propose(n));
                if machine.proposer.is_some() {
                    actions.push(Action::Bid(n));
                }
            }
            let has_memory = !machine.saving.is_empty() || machine.last_round > 0;
            if has_memory && state.crashes < self.scenario.crashes {
                actions.push(Action::Crash(n));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        switch(self.mutant);
        let mut tables = self.lock();
        let mut step = Stepping { of: self, tables: &mut tables, state: last.clone() };
        match action {
            Action::Deliver(number, n) => step.deliver(number, n),
            Action::Synced(n) => step.synced(n),
            Action::Propose(n) => step.propose(n),
            Action::Bid(n) => step.bid(n),
            Action::Crash(n) => step.crash(n),
        }
        step.tidy();
        Some(step.state).filter(|state| state != last)
    }

    fn format_action(&self, action: &Action) -> String {
        match action {
            Action::Deliver(number, n) => {
                let tables = self.lock();
                match tables.messages.get(*number) {
                    Message::Layout(layout) => format!("{n} learns layout #{layout}"),
                    Message::Paxos { from, epoch, ballot, say, .. } => {
                        let said = format!("{say:?}");
                        let said = said.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
                        let under = (ballot.round, ballot.proposer.0[0], ballot.generation.0);
                        format!("{n} hears {said} of {from} for epoch {epoch} under {under:?}")
                    }
                }
            }
            other => format!("{other:?}"),
        }
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn one_an_epoch(model: &Deciding, layouts: &[Number]) -> bool {
            let tables = model.lock();
            let epochs: BTreeSet<_> = layouts.iter().map(|layout| tables.epoch(*layout)).collect();
            epochs.len() == layouts.len()
        }
        vec![
            Property::always("one layout is decided an epoch", |model, state: &State| {
                one_an_epoch(model, &state.decided)
            }),
            Property::always("one layout an epoch has a majority", |model, state: &State| {
                one_an_epoch(model, &state.chosen)
            }),
            Property::always("what is decided has a majority", |_, state: &State| {
                state.decided.iter().all(|layout| state.chosen.contains(layout))
            }),
            Property::always("what has a majority was proposed", |_, state: &State| {
                state.chosen.iter().all(|layout| state.wanted.contains(layout))
            }),
            Property::always("what has a majority may follow", |_, state: &State| {
                !state.broken.contains(&Broken::Illegal)
            }),
            Property::always("evidence is true", |_, state: &State| !state.broken.contains(&Broken::Untrue)),
            Property::always("no node goes back", |_, state: &State| {
                !state.broken.contains(&Broken::WentBack)
            }),
            Property::always("a ballot has one proposal", |_, state: &State| {
                !state.broken.contains(&Broken::BallotTwice)
            }),
        ]
    }
}
