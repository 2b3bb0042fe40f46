//! A world of pods, volumes, nodes and layouts around the planner, in which anything may happen at any time: the operator
//! ends after any of its acts, nodes go down and come back, volumes are lost, people change their minds. After each act of
//! the planner what it must never do is looked for; once everything is quiet the spec is reached and nothing more is done.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's support may panic as the test itself")]

mod fixtures;

use std::collections::{BTreeMap, BTreeSet};

use fixtures::{CLUSTER, cluster, plan_of, pod, remembers, settle, status_of};
use keystore_core::id::{Actor, Epoch, Incarnation, NodeId};
use keystore_core::layout::{FirstLayout, Layout, Member};
use keystore_core::partition::PartitionCount;
use keystore_core::quorum::Consistency;
use keystore_core::ring::Ring;
use keystore_core::succession::{Evidence, Standing, Step, check_gate, check_step};
use keystore_crds::KeyStoreCluster;
use keystore_operator_core::children::{Kind, Write};
use keystore_operator_core::observed::{
    Answer, Children, HeldLayout, NodeAnswer, NodeMode, Observed, Transfer,
};
use keystore_operator_core::plan::{NodeStep, Plan};
use keystore_operator_core::scaling::Proposal;
use serde_json::json;

const FACTOR: u32 = 3;
const PODS_MAX: u64 = 6;
const SEEDS: u64 = 150;
const ACTIONS: usize = 300;
/// After this many rounds in which everything gets its turn the spec has to be reached.
const QUIET_ROUNDS: usize = 150;

/// xorshift64*: the same numbers for the same seed, everywhere.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % bound
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        if of.is_empty() { None } else { Some(of[self.below(of.len() as u64) as usize]) }
    }
}

/// A volume, and what its node has made durable there.
#[derive(Clone, Debug)]
struct Volume {
    node: NodeId,
    actor: Actor,
    held: Option<Layout>,
    /// It has merged what it needs in the phase that began with this epoch.
    whole: Epoch,
}

struct World {
    rng: Rng,
    resource: KeyStoreCluster,
    children: Children,
    pods: BTreeSet<u32>,
    down: BTreeSet<u32>,
    volumes: BTreeMap<u32, Volume>,
    layout: Layout,
    drawn: u32,
    seconds: i64,
    trace: Vec<String>,
    proposals: usize,
}

fn owners(ring: &Ring) -> BTreeSet<NodeId> {
    ring.iter().flat_map(|(_, replicas)| replicas.iter().map(|replica| replica.node)).collect()
}

impl World {
    fn new(seed: u64) -> Self {
        let node = |ordinal: u32| NodeId([ordinal as u8 + 1; 16]);
        let member = |ordinal: u32| Member {
            node: node(ordinal),
            actor: Actor(u64::from(ordinal) + 1),
            name: format!("demo-{ordinal}"),
            zone: format!("zone-{}", ordinal % 3),
            weight: 1,
            is_lost: false,
        };
        let layout = Layout::first(FirstLayout {
            cluster: CLUSTER,
            incarnation: Incarnation { number: 1, id: 1 },
            partitions: PartitionCount::new(16).unwrap(),
            replication_factor: FACTOR as usize,
            members: (0..FACTOR).map(member).collect(),
            keyspaces: BTreeMap::new(),
        })
        .unwrap();
        let volume = |ordinal: u32| Volume {
            node: node(ordinal),
            actor: Actor(u64::from(ordinal) + 1),
            held: Some(layout.clone()),
            whole: Epoch(0),
        };
        Self {
            rng: Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            resource: cluster(&json!({"replicas": FACTOR, "partitions": 16}), remembers(CLUSTER, Some(1))),
            children: Children::default(),
            pods: (0..FACTOR).collect(),
            down: BTreeSet::new(),
            volumes: (0..FACTOR).map(|ordinal| (ordinal, volume(ordinal))).collect(),
            layout,
            drawn: 100,
            seconds: 0,
            trace: Vec::new(),
            proposals: 0,
        }
    }

    fn is_up(&self, ordinal: u32) -> bool {
        self.pods.contains(&ordinal) && !self.down.contains(&ordinal) && self.volumes.contains_key(&ordinal)
    }

    fn up(&self) -> Vec<u32> {
        self.pods.iter().copied().filter(|ordinal| self.is_up(*ordinal)).collect()
    }

    fn live(&self) -> BTreeSet<NodeId> {
        self.up().into_iter().map(|ordinal| self.volumes[&ordinal].node).collect()
    }

    fn live_replicas(&self) -> u32 {
        let spec = self.children.stateful_set.as_ref().and_then(|set| set.spec.as_ref());
        spec.and_then(|spec| spec.replicas).map_or(FACTOR, |replicas| u32::try_from(replicas).unwrap())
    }

    /// How many copies are live beyond a quorum, where that is least.
    fn has_quorums(&self, layout: &Layout, live: &BTreeSet<NodeId>) -> bool {
        let is_met = |p| {
            layout
                .replica_sets(p)
                .satisfied(Consistency::Quorum, |node| live.contains(node) && !layout.is_lost(*node))
        };
        layout.partitions.all().all(is_met)
    }

    fn answer(&self, ordinal: u32) -> Answer {
        if !self.is_up(ordinal) {
            return Answer::Unreachable;
        }
        let volume = &self.volumes[&ordinal];
        let held = volume.held.as_ref();
        let waits = held.filter(|held| held.is_joint()).and_then(|held| self.gate(held, Step::Finish).err());
        Answer::Here(NodeAnswer {
            node: volume.node,
            actor: volume.actor,
            version: "0.1.0".to_owned(),
            mode: if held.is_some() { NodeMode::Serving } else { NodeMode::Uninitialized },
            cluster: held.map(|held| held.cluster),
            epoch: held.map_or(0, |held| held.epoch.0),
            partitions_available: 16,
            connected: self.live().into_iter().filter(|peer| *peer != volume.node).collect(),
            transfer: Transfer { waits_for: waits, ..Transfer::default() },
            disk: None,
        })
    }

    fn observe(&self) -> Observed {
        let members = self.layout.members.iter().filter_map(|m| m.name.strip_prefix("demo-")?.parse().ok());
        let asked = (0..self.resource.spec.replicas as u32).chain(0..self.live_replicas());
        let asked: BTreeSet<u32> = asked.chain(members).chain(self.pods.iter().copied()).collect();
        let answers: BTreeMap<_, _> =
            asked.into_iter().map(|ordinal| (ordinal, self.answer(ordinal))).collect();
        let held = answers.keys().filter(|ordinal| self.is_up(**ordinal));
        let held = held.filter_map(|ordinal| self.volumes[ordinal].held.clone());
        let serves = |ordinal: &u32| self.is_up(*ordinal) && self.volumes[ordinal].held.is_some();
        Observed {
            children: self.children.clone(),
            pods: self.pods.iter().map(|ordinal| (*ordinal, pod(serves(ordinal)))).collect(),
            zones: self.pods.iter().map(|ordinal| (*ordinal, format!("zone-{}", ordinal % 3))).collect(),
            layout: held.max_by_key(|l| l.epoch).map(|layout| HeldLayout { layout, decided: true }),
            answers,
        }
    }

    fn gate(&self, layout: &Layout, step: Step) -> Result<(), String> {
        let standing = |volume: &Volume| {
            let held = volume.held.as_ref()?;
            let is_whole = volume.whole == held.phase_since;
            let whole = if is_whole { held.partitions.all().collect() } else { BTreeSet::new() };
            Some((volume.node, Standing { fence: held.epoch, phase: held.phase_since, whole }))
        };
        let evidence: Evidence = self.volumes.values().filter_map(standing).collect();
        check_gate(layout, step, &evidence).map_err(|error| error.to_string())
    }

    /// One look and what comes of it. The operator may end after any act, and the world moves between look and act.
    fn reconcile(&mut self, is_quiet: bool) {
        let observed = self.observe();
        let (live, seen) = (self.live(), self.volumes.clone());
        let plan = plan_of(&self.resource, &observed);
        self.seconds += 1;
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
            self.propose(proposal, &live, is_quiet);
        }
        if acts > 2 {
            self.resource.status = Some(status_of(&self.resource, &observed, self.seconds));
        }
    }

    /// `seen` is how the volumes were at the time of the look.
    fn write(&mut self, plan: &Plan, seen: &BTreeMap<u32, Volume>) {
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
            let owned = self.layout.owned(volume.node);
            assert_eq!(owned, 0, "demo-{ordinal} holds data and is taken away: {:#?}", self.trace);
        }
        for member in self.layout.members.iter().filter(|member| !member.is_lost) {
            let volume = seen.values().find(|volume| volume.node == member.node);
            let fence = volume.and_then(|volume| volume.held.as_ref()).map(|held| held.epoch);
            let stays = self.layout.owned(member.node) > 0;
            assert!(
                !stays || fence == Some(self.layout.epoch),
                "pods go before {} has acknowledged: {:#?}",
                member.name,
                self.trace
            );
        }
    }

    fn propose(&mut self, proposal: &Proposal, live: &BTreeSet<NodeId>, is_quiet: bool) {
        let Proposal { ordinal, expected, layout: next } = proposal;
        if !self.is_up(*ordinal) || *expected != self.layout.epoch {
            return;
        }
        let step = check_step(&self.layout, next).expect("what is proposed may follow");
        for member in next.members.iter().filter(|member| member.is_lost && !self.layout.is_lost(member.node))
        {
            let is_there = self.volumes.values().any(|volume| volume.node == member.node);
            assert!(!is_there, "{} is silent, and given up: {:#?}", member.name, self.trace);
        }
        let voters = self.layout.voters.iter().filter(|voter| self.live().contains(voter)).count();
        if self.gate(&self.layout, step).is_err() || voters * 2 <= self.layout.voters.len() {
            return;
        }
        if self.has_quorums(&self.layout, live) {
            assert!(self.has_quorums(next, live), "no quorum is left by {step:?}: {:#?}", self.trace);
        }
        // Decided, or nobody will ever know.
        if is_quiet || self.rng.below(5) > 0 {
            self.trace.push(format!("epoch {}: {step:?}", next.epoch));
            self.layout = next.clone();
            self.proposals += 1;
            // Whoever has it decided knows first.
            self.learn(*ordinal);
        }
    }

    fn fresh_volume(&mut self) -> Volume {
        self.drawn += 1;
        // Of any order among the others.
        let mut id = [self.rng.below(256) as u8; 16];
        id[8..12].copy_from_slice(&self.drawn.to_be_bytes());
        Volume { node: NodeId(id), actor: Actor(u64::from(self.drawn)), held: None, whole: Epoch(0) }
    }

    /// A node hears of the newest layout, if anybody is there to tell it.
    fn learn(&mut self, ordinal: u32) {
        if !self.is_up(ordinal) {
            return;
        }
        let fresh = self.fresh_volume();
        let volume = self.volumes.get_mut(&ordinal).unwrap();
        let is_member = self.layout.member(volume.node).is_some_and(|member| !member.is_lost);
        if is_member {
            volume.held = Some(self.layout.clone());
        } else if volume.held.is_some() || self.layout.is_lost(volume.node) {
            *volume = fresh;
        }
    }

    fn merge(&mut self, ordinal: u32) {
        let live = self.live();
        let layout = self.layout.clone();
        let reached = layout.source_ring().iter().all(|(_, replicas)| {
            let there = replicas.iter().filter(|replica| live.contains(&replica.node)).count();
            there > replicas.len() - Consistency::Quorum.needed(replicas.len())
        });
        if let Some(volume) = self.volumes.get_mut(&ordinal).filter(|_| reached)
            && volume.held.as_ref() == Some(&layout)
            && layout.is_joint()
        {
            volume.whole = layout.phase_since;
        }
    }

    /// What the StatefulSet's controller does next: one pod comes or goes.
    fn run_pods(&mut self) {
        let replicas = self.live_replicas();
        let surplus = self.pods.iter().copied().next_back().filter(|ordinal| *ordinal >= replicas);
        if let Some(ordinal) = surplus {
            self.pods.remove(&ordinal);
            self.down.remove(&ordinal);
        } else if let Some(ordinal) = (0..replicas).find(|ordinal| !self.pods.contains(ordinal)) {
            self.pods.insert(ordinal);
            let fresh = self.fresh_volume();
            self.volumes.entry(ordinal).or_insert(fresh);
        }
    }

    /// One volume at a time: only while all that was acknowledged is where it belongs.
    fn lose_volume(&mut self) {
        let there: BTreeSet<_> = self.volumes.values().map(|volume| volume.node).collect();
        if !self.layout.rings().all(|ring| owners(ring).is_subset(&there)) {
            return;
        }
        let pods: Vec<_> = self.pods.iter().copied().collect();
        if let Some(ordinal) = self.rng.pick(&pods) {
            self.trace.push(format!("demo-{ordinal} loses its volume"));
            let fresh = self.fresh_volume();
            self.volumes.insert(ordinal, fresh);
        }
    }

    fn something_happens(&mut self) {
        let pods: Vec<_> = self.pods.iter().copied().collect();
        let Some(ordinal) = self.rng.pick(&pods) else { return self.run_pods() };
        match self.rng.below(14) {
            0..=4 => self.learn(ordinal),
            5..=7 => self.merge(ordinal),
            8..=10 => self.run_pods(),
            11 if self.rng.below(3) == 0 => drop(self.down.insert(ordinal)),
            12 => drop(self.down.pop_first()),
            13 if self.rng.below(6) == 0 => self.lose_volume(),
            _ => {}
        }
    }

    fn ask_for(&mut self, replicas: u64) {
        self.trace.push(format!("spec.replicas is {replicas}"));
        self.resource.spec.replicas = i32::try_from(replicas).unwrap();
    }

    fn live_through(&mut self) {
        for _ in 0..ACTIONS {
            match self.rng.below(40) {
                0 => {
                    let replicas = self.rng.below(PODS_MAX) + 1;
                    self.ask_for(replicas);
                }
                1..=12 => self.reconcile(false),
                _ => self.something_happens(),
            }
        }
    }

    fn come_to_rest(&mut self) {
        let replicas = u64::from(FACTOR) + self.rng.below(PODS_MAX - u64::from(FACTOR) + 1);
        self.ask_for(replicas);
        self.down.clear();
        let mut still = 0;
        for _ in 0..QUIET_ROUNDS {
            let before = self.resource.status.clone();
            self.reconcile(true);
            still = if before == self.resource.status { still + 1 } else { 0 };
            // Longer than anything that is under way looks the same.
            if still == 8 {
                break;
            }
            self.run_pods();
            for ordinal in 0..PODS_MAX as u32 {
                self.learn(ordinal);
                self.merge(ordinal);
            }
        }
    }

    fn expect_rest(&mut self) {
        let wanted: BTreeSet<u32> = (0..self.resource.spec.replicas as u32).collect();
        let status = self.resource.status.clone().unwrap();
        let context = format!("{:#?} {:#?} {:#?}", self.trace, status.operation, status.conditions);
        let names: Vec<_> = wanted.iter().map(|ordinal| format!("demo-{ordinal}")).collect();
        let holders = owners(self.layout.ring());
        let held: BTreeSet<_> =
            holders.iter().map(|node| self.layout.member(*node).unwrap().name.clone()).collect();
        assert!(!self.layout.is_joint(), "data still moves: {context}");
        assert_eq!(held.into_iter().collect::<Vec<_>>(), names, "{context}");
        assert_eq!((self.layout.members.len(), &self.pods), (names.len(), &wanted), "{context}");
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

#[test]
fn whatever_happens_the_spec_is_reached_and_no_copy_is_lost_on_the_way() {
    let mut proposals = 0;
    for seed in 1..=SEEDS {
        let ended = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            world.live_through();
            world.come_to_rest();
            world.expect_rest();
            world.proposals
        });
        proposals += ended.unwrap_or_else(|_| panic!("seed {seed}"));
    }
    assert!(proposals > 1_000, "the worlds hardly moved: {proposals} proposals");
}
