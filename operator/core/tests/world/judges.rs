//! What must never be, and what must be in the end.

use std::collections::BTreeSet;

use keystore_core::id::NodeId;
use keystore_core::layout::{Layout, Member};
use keystore_core::ring::Replica;
use keystore_operator_core::hold::HoldReason;
use keystore_operator_core::identity::Identity;
use keystore_operator_core::plan::{NodeStep, Plan};
use serde_json::json;

use crate::fixtures::plan_at;
use crate::world::{FACTOR, World, has_everything, owners};

impl World {
    /// Whoever does nothing says why, unless nothing is to be done.
    pub(crate) fn judge_silence(&self, plan: &Plan) {
        let is_busy = !plan.writes.is_empty() || plan.node_step != NodeStep::Nothing;
        let says_why = plan.progress.is_some() || plan.hold.is_some();
        let is_seen = matches!(&plan.identity, Identity::InForce { layout } if *layout == self.layout);
        if is_busy || says_why || !is_seen {
            return;
        }
        let members = self.layout.members.iter().filter(|member| !member.is_lost);
        let holders = owners(self.layout.ring());
        let pods =
            holders.iter().map(|node| self.layout.member(*node).unwrap().name["demo-".len()..].parse());
        let pods: u32 = pods.map(Result::unwrap).max().unwrap();
        assert!(!self.layout.is_moving(), "data moves, and nobody says so: {:#?}", self.trace);
        assert_eq!(
            (holders.len() as i32, members.count(), self.live_replicas()),
            (self.resource.spec.replicas, holders.len(), pods + 1),
            "the spec is not reached, and nobody says why: {:#?}",
            self.trace
        );
        let is_lost = holders.iter().any(|node| self.layout.is_lost(*node));
        assert!(!is_lost, "copies are missing, and nobody says why: {:#?}", self.trace);
    }

    /// Who is given up has lost its volume, or is away for as long as the spec says, and then only one is at a time, while
    /// those that serve have all that it holds. `live` is who was up at the time of the look. True if one is away.
    pub(crate) fn judge_loss(&self, next: &Layout, live: &BTreeSet<NodeId>) -> bool {
        self.judge_way_back(next);
        let is_new = |member: &&Member| member.is_lost && !self.layout.is_lost(member.node);
        let mut away = 0;
        for member in next.members.iter().filter(is_new) {
            let mut sources = self.layout.salvaged.values().flatten();
            assert!(sources.all(|source| *source != member.node), "{}: {:#?}", member.name, self.trace);
            let there = self.volumes.iter().find(|(_, volume)| volume.node == member.node);
            let Some((ordinal, _)) = there else { continue };
            away += 1;
            let seconds = i64::from(self.resource.spec.replace_after_seconds);
            let since = self.unready_since.get(ordinal).copied().unwrap_or(self.seconds);
            let is_overdue = seconds > 0 && self.seconds - since >= seconds;
            let is_silent = !live.contains(&member.node);
            assert!(is_overdue && is_silent, "{} is given up: {:#?}", member.name, self.trace);
            let left = |node: NodeId| live.contains(&node) && !next.is_lost(node);
            assert!(has_everything(&self.layout, left), "too few are left: {:#?}", self.trace);
        }
        assert!(away <= 1, "two at a time: {:#?}", self.trace);
        let is_there =
            |node: NodeId| !next.is_lost(node) && self.volumes.values().any(|volume| volume.node == node);
        assert!(has_everything(&self.layout, is_there), "data is lost: {:#?}", self.trace);
        away > 0
    }

    /// Nobody is given a weight or data whose pod was told to end at the time of the look: it would be gone in a moment.
    pub(crate) fn judge_gains(&self, next: &Layout, ending: &BTreeSet<u32>) {
        let begins = next.is_joint() && !self.layout.is_joint();
        for member in &next.members {
            let before = self.layout.member(member.node);
            let is_raised = member.weight > 0 && before.is_none_or(|before| before.weight == 0);
            let gains = is_raised || begins && next.owned(member.node) > self.layout.owned(member.node);
            let ordinal = member.name["demo-".len()..].parse().unwrap();
            assert!(
                !gains || !ending.contains(&ordinal),
                "{} ends, and is given data: {:#?}",
                member.name,
                self.trace
            );
        }
    }

    /// A move is turned back only while those that it came from have all that was acknowledged.
    pub(crate) fn judge_way_back(&self, next: &Layout) {
        let is_back = self.layout.is_joint() && !next.is_joint() && next.ring() == self.layout.source_ring();
        if is_back && next.ring() != self.layout.ring() {
            let is_there =
                |node: NodeId| !next.is_lost(node) && self.volumes.values().any(|volume| volume.node == node);
            assert!(has_everything(next, is_there), "what has moved is given up: {:#?}", self.trace);
        }
    }

    /// Nothing moves and no copy is missing, whether the spec is reached or not, and nothing more is done.
    pub(crate) fn expect_calm(&mut self) {
        let is_lost = owners(self.layout.ring()).iter().any(|node| self.layout.is_lost(*node));
        assert!(!self.layout.is_moving() && !is_lost, "{:#?}", self.trace);
        let before = self.layout.epoch;
        self.reconcile(true);
        assert_eq!(self.layout.epoch, before, "{:#?}", self.trace);
    }

    /// Whether the spec asks for what there is no room for.
    pub(crate) fn is_held(&self) -> bool {
        let plan = plan_at(&self.resource, &self.observe(), self.seconds);
        plan.hold.is_some_and(|hold| hold.reason == HoldReason::InsufficientSpace)
    }

    pub(crate) fn expect_rest(&mut self) {
        let is_full = |(_, replicas): (_, &[Replica])| {
            let left = replicas.iter().filter(|replica| !self.layout.is_lost(replica.node));
            left.count() == FACTOR as usize
        };
        // Who is dead is replaced in the next pod.
        let replicas = self.resource.spec.replicas as usize;
        let wanted: BTreeSet<u32> = (0..).filter(|o| !self.dead.contains(o)).take(replicas).collect();
        let pods: BTreeSet<u32> = (0..=*wanted.last().unwrap()).collect();
        let status = self.resource.status.clone().unwrap();
        let context = format!("{:#?} {:#?} {:#?}", self.trace, status.operation, status.conditions);
        let names: Vec<_> = wanted.iter().map(|ordinal| format!("demo-{ordinal}")).collect();
        let holders = owners(self.layout.ring());
        let held: BTreeSet<_> =
            holders.iter().map(|node| self.layout.member(*node).unwrap().name.clone()).collect();
        assert!(!self.layout.is_moving(), "data still moves: {context}");
        assert!(self.layout.ring().iter().all(is_full), "copies are missing: {context}");
        assert_eq!(held, names.iter().cloned().collect(), "{context}");
        let others: BTreeSet<u32> = self.dead.intersection(&pods).copied().collect();
        let lost = self.layout.members.iter().filter(|member| member.is_lost);
        let lost: BTreeSet<u32> = lost.map(|member| member.name["demo-".len()..].parse().unwrap()).collect();
        let members = self.layout.members.iter().filter(|member| !member.is_lost).count();
        assert_eq!((members, &lost, &self.pods), (names.len(), &others, &pods), "{context}");
        assert_eq!(status.operation, None, "{context}");
        let (epoch, writes) = (self.layout.epoch, self.children.clone());
        self.reconcile(true);
        let later = self.resource.status.clone().unwrap();
        assert_eq!((self.layout.epoch, later), (epoch, status), "something is done at rest: {context}");
        assert_eq!(
            json!(writes.stateful_set),
            json!(self.children.stateful_set),
            "something is written at rest: {context}"
        );
    }
}
