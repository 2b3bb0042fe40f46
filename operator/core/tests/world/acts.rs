//! The operator in the world, and rounds of it.

use std::collections::{BTreeMap, BTreeSet};

use keystore_core::id::NodeId;
use keystore_core::layout::Layout;
use keystore_core::succession::{Evidence, Standing, Step, check_gate, check_step};
use keystore_operator_core::children::{Kind, Write};
use keystore_operator_core::observed::Observed;
use keystore_operator_core::plan::{NodeStep, Plan};
use keystore_operator_core::scaling::Proposal;

use crate::fixtures::{plan_at, settle, status_of};
use crate::world::{
    ACTIONS, FACTOR, PODS_MAX, QUIET_ROUNDS, REPLACE_AFTER_SECONDS, ROUND_SECONDS, Volume, World,
};

impl World {
    pub(crate) fn gate(&self, layout: &Layout, step: Step) -> Result<(), String> {
        let standing = |volume: &Volume| {
            let held = volume.held.as_ref()?;
            let is_whole = volume.whole == held.phase_since;
            let whole = if is_whole { held.partitions.all().collect() } else { BTreeSet::new() };
            Some((
                volume.node,
                Standing { fence: held.epoch, phase: held.phase_since, whole, ..Standing::default() },
            ))
        };
        let evidence: Evidence = self.volumes.values().filter_map(standing).collect();
        check_gate(layout, step, &evidence).map_err(|error| error.to_string())
    }

    /// One look and what comes of it. The operator may end after any act, and the world moves between look and act.
    pub(crate) fn reconcile(&mut self, is_quiet: bool) {
        self.pass(1);
        let observed = self.observe();
        let (live, seen) = (self.live(), (self.layout.clone(), self.volumes.clone()));
        let ending: BTreeSet<u32> = self.ending.keys().copied().collect();
        let plan = plan_at(&self.resource, &observed, self.seconds);
        self.judge_silence(&plan);
        let acts = if is_quiet { 3 } else { self.rng.below(4) };
        if !is_quiet && self.rng.below(3) == 0 {
            self.something_happens();
        }
        if acts > 0 {
            self.write(&plan, &seen);
        }
        if acts > 1
            && let NodeStep::Propose(proposal) = &plan.node_step
        {
            // What follows an earlier layout comes to nothing.
            if proposal.expected == self.layout.epoch {
                self.judge_gains(&proposal.layout, &ending);
            }
            self.propose(proposal, &live, is_quiet);
        }
        if acts > 2 {
            let status = status_of(&self.resource, &observed, self.seconds);
            if self.rng.below(10) == 0 {
                self.old_status = Some(status.clone());
            }
            self.resource.status = Some(status);
        }
    }

    /// `known` and `seen` are how the layout and the volumes were at the time of the look.
    pub(crate) fn write(&mut self, plan: &Plan, (known, seen): &(Layout, BTreeMap<u32, Volume>)) {
        let before = self.live_replicas();
        let mut observed = Observed { children: self.children.clone(), ..Observed::default() };
        settle(&mut observed, plan);
        self.children = observed.children;
        let is_set = |write: &Write| matches!(write, Write::Apply { kind: Kind::StatefulSet, .. });
        if !plan.writes.iter().any(is_set) || self.live_replicas() >= before {
            return;
        }
        let now = self.live_replicas();
        self.trace.push(format!("StatefulSet from {before} to {now}"));
        for (ordinal, volume) in self.volumes.range(now..) {
            for layout in self.undecided.iter().chain([&self.layout]) {
                let (owned, epoch) = (layout.owned(volume.node), layout.epoch);
                assert_eq!(
                    owned, 0,
                    "demo-{ordinal} is taken away, and epoch {epoch} gives it data: {:#?}",
                    self.trace
                );
            }
        }
        for member in known.members.iter().filter(|member| !member.is_lost) {
            let volume = seen.values().find(|volume| volume.node == member.node);
            let fence = volume.and_then(|volume| volume.held.as_ref()).map(|held| held.epoch);
            let stays = known.owned(member.node) > 0;
            assert!(
                !stays || fence == Some(known.epoch),
                "pods go before {} has acknowledged: {:#?}",
                member.name,
                self.trace
            );
        }
    }

    pub(crate) fn propose(&mut self, proposal: &Proposal, live: &BTreeSet<NodeId>, is_quiet: bool) {
        let Proposal { ordinal, expected, layout: next, needs_writes: _ } = proposal;
        if !self.is_up(*ordinal) || *expected != self.layout.epoch {
            return;
        }
        let step = check_step(&self.layout, next).expect("what is proposed may follow");
        let is_given_up = self.judge_loss(next, live);
        let voters = self.layout.voters.iter().filter(|voter| self.live().contains(voter)).count();
        if self.gate(&self.layout, step).is_err() || voters * 2 <= self.layout.voters.len() {
            return;
        }
        if self.has_quorums(&self.layout, live) {
            assert!(self.has_quorums(next, live), "no quorum is left by {step:?}: {:#?}", self.trace);
        }
        // Decided, or nobody knows whether it is.
        if is_quiet || self.rng.below(5) > 0 {
            self.proposals += 1;
            self.given_up += usize::from(is_given_up);
            self.decide(next.clone(), *ordinal, is_quiet);
        } else {
            self.undecided.push(next.clone());
        }
    }

    /// Whoever is in this pod has the next layout decided, and knows first: this one, or one that was voted for before.
    pub(crate) fn decide(&mut self, wanted: Layout, ordinal: u32, is_quiet: bool) {
        let votes = std::mem::take(&mut self.undecided);
        let is_found = !votes.is_empty() && (is_quiet || self.rng.below(2) == 0);
        let found = votes.get(self.rng.below(votes.len().max(1) as u64) as usize).filter(|_| is_found);
        self.surfaced += usize::from(found.is_some());
        let decided = found.cloned().unwrap_or(wanted);
        let step = check_step(&self.layout, &decided);
        let how = if is_found { "comes out" } else { "is decided" };
        self.trace.push(format!("epoch {} {how}: {step:?}", decided.epoch));
        self.layout = decided;
        self.learn(ordinal);
    }

    pub(crate) fn live_through(&mut self) {
        for _ in 0..ACTIONS {
            match self.rng.below(40) {
                0 => self.change_mind(),
                1..=12 => self.reconcile(false),
                _ => self.something_happens(),
            }
        }
    }

    pub(crate) fn come_to_rest(&mut self) {
        let replicas = u64::from(FACTOR) + self.rng.below(PODS_MAX - u64::from(FACTOR) + 1);
        self.ask_for(replicas);
        self.down.clear();
        self.resource.spec.replace_after_seconds = REPLACE_AFTER_SECONDS;
        let mut still = 0;
        for _ in 0..QUIET_ROUNDS {
            // A claim that is bound to a dead machine, and of which the layout knows nothing, is a person's to delete.
            let names: Vec<_> = self.layout.members.iter().map(|member| member.name.clone()).collect();
            self.dead.retain(|ordinal| names.contains(&format!("demo-{ordinal}")));
            let before = self.resource.status.clone();
            self.reconcile(true);
            still = if before == self.resource.status { still + 1 } else { 0 };
            // Longer than anything that is under way looks the same.
            if still == 10 {
                break;
            }
            self.run_pods();
            for ordinal in self.volumes.keys().copied().collect::<Vec<_>>() {
                self.learn(ordinal);
                self.merge(ordinal);
            }
            self.pass(ROUND_SECONDS);
        }
    }
}
