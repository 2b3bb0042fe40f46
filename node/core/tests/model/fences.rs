//! What a change of rings waits for: replicas take up layouts at different times, some skip some, and a coordinator at
//! an old one goes on.
//!
//! Whoever has taken up a move counts as having merged: merges are not what is looked at here.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use keystore_core::id::{Epoch, NodeId};
use keystore_core::layout::Layout;
use keystore_core::mutant::{Mutant, switch};
use keystore_core::partition::Partition;
use keystore_core::paxos::check_vote;
use keystore_core::quorum::Consistency;
use keystore_core::succession::{Change, Evidence, Standing, Step, check_step};
use stateright::{Model, Property};

use crate::cluster::node;
use crate::interned::{Interned, Number};

pub(crate) struct Fences {
    pub(crate) start: Layout,
    pub(crate) nodes: u8,
    pub(crate) changes: Vec<Change>,
    /// How many layouts follow the first.
    pub(crate) epochs: usize,
    pub(crate) mutant: Option<Mutant>,
    pub(crate) layouts: Mutex<Interned<Layout>>,
    pub(crate) seen: Arc<Mutex<BTreeSet<Seen>>>,
}

/// What of the model has happened anywhere: it shows that the model is not idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Seen {
    Began,
    Finished,
    Aborted,
    BeganAfterAnAbort,
    OldOperation,
    OldAcknowledgement,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    /// What was decided, one after the other.
    decided: Vec<Number>,
    /// Which of them each node has on disk.
    held: Vec<u8>,
    /// Operations of epochs below this one belong to a phase that is over: a change of rings was let through after the
    /// phase that followed.
    over: u64,
    operation: Option<Operation>,
}

/// One that began when its phase was over.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Operation {
    coordinator: u8,
    under: u8,
    acknowledged: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Decide(Change),
    TakeUp(u8, u8),
    Begin(u8),
    Acknowledge(u8),
}

impl Fences {
    fn layout(&self, state: &State, at: u8) -> Layout {
        self.layouts.lock().unwrap().get(state.decided[usize::from(at)]).clone()
    }

    fn note(&self, seen: Seen) {
        self.seen.lock().unwrap().insert(seen);
    }

    fn evidence(&self, state: &State) -> Evidence {
        let standing = |(n, at): (u8, &u8)| {
            let layout = self.layout(state, *at);
            let has_merged = |partition: &Partition| layout.ring().is_replica(*partition, node(n));
            let whole = layout.partitions.all().filter(has_merged).collect();
            (
                node(n),
                Standing { fence: layout.epoch, phase: layout.phase_since, whole, ..Standing::default() },
            )
        };
        (1..).zip(&state.held).map(standing).collect()
    }

    /// The change is decided, if it can follow and its gate is open.
    fn decide(&self, state: &mut State, change: &Change) -> Option<()> {
        let now = self.layout(state, u8::try_from(state.decided.len() - 1).unwrap());
        let next = now.next(change).ok()?;
        check_vote(&now, &next, &self.evidence(state)).ok()?;
        match check_step(&now, &next).unwrap() {
            Step::Same => {}
            Step::Abort => self.note(Seen::Aborted),
            step @ (Step::Begin | Step::Finish) => {
                state.over = state.over.max(now.phase_since.0);
                self.note(if step == Step::Begin { Seen::Began } else { Seen::Finished });
                if step == Step::Begin && now.phase_since > self.start.phase_since {
                    self.note(Seen::BeganAfterAnAbort);
                }
            }
        }
        state.decided.push(self.layouts.lock().unwrap().number(next));
        Some(())
    }

    fn is_done(&self, state: &State) -> bool {
        let Some(Operation { under, acknowledged, .. }) = &state.operation else { return false };
        let sets = self.layout(state, *under).replica_sets(Partition(0));
        let counts = |replica: &NodeId| acknowledged.contains(&replica.0[0]);
        sets.satisfied(Consistency::Quorum, counts)
    }
}

impl Model for Fences {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let first = self.layouts.lock().unwrap().number(self.start.clone());
        let held = vec![0; self.nodes.into()];
        vec![State { decided: vec![first], held, over: 0, operation: None }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.decided.len() <= self.epochs {
            actions.extend(self.changes.iter().cloned().map(Action::Decide));
        }
        for (n, at) in (1..).zip(&state.held) {
            let later = at + 1..u8::try_from(state.decided.len()).unwrap();
            actions.extend(later.map(|later| Action::TakeUp(n, later)));
            actions.extend([Action::Begin(n), Action::Acknowledge(n)]);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        switch(self.mutant);
        let mut state = last.clone();
        match action {
            Action::Decide(change) => self.decide(&mut state, &change)?,
            Action::TakeUp(n, at) => {
                self.layout(&state, at).member(node(n))?;
                state.held[usize::from(n) - 1] = at;
                // What it has under way begins from nothing.
                if state.operation.as_ref().is_some_and(|operation| operation.coordinator == n) {
                    state.operation = None;
                }
            }
            Action::Begin(coordinator) => {
                let under = state.held[usize::from(coordinator) - 1];
                let is_old = self.layout(&state, under).epoch < Epoch(state.over);
                if !is_old || state.operation.is_some() {
                    return None;
                }
                self.note(Seen::OldOperation);
                state.operation = Some(Operation { coordinator, under, acknowledged: Vec::new() });
            }
            Action::Acknowledge(n) => {
                let at = state.held[usize::from(n) - 1];
                let operation = state.operation.as_mut()?;
                // One that is behind catches up first, one that is ahead refuses.
                if operation.under != at || operation.acknowledged.contains(&n) {
                    return None;
                }
                self.note(Seen::OldAcknowledgement);
                operation.acknowledged.push(n);
                operation.acknowledged.sort_unstable();
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("no operation of a phase that is over has its quorum", |model, state| {
            !model.is_done(state)
        })]
    }
}
