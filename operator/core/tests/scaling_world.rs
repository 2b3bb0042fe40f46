//! A world of pods, volumes, nodes and layouts around the planner, in which anything may happen at any time: the operator
//! ends after any of its acts, nodes go down, come back, or are dead for good, and their pods never end, volumes are lost,
//! disks are damaged and healed, nodes are given up by others, an old status is planted, people change their minds; what was
//! proposed and not heard of again comes out later, whatever is proposed then. After each act of the planner what it must
//! never do is looked for, and that it says why where the spec is not reached and it does nothing; once everything is quiet
//! the spec is reached and nothing more is done.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's support may panic as the test itself")]

mod fixtures;

use std::collections::{BTreeMap, BTreeSet};

use fixtures::{CLUSTER, cluster, ending, plan_at, pod_since, remembers, settle, status_of};
use keystore_core::id::{Actor, Epoch, Incarnation, NodeId};
use keystore_core::layout::{FirstLayout, Layout, Member};
use keystore_core::partition::PartitionCount;
use keystore_core::quorum::Consistency;
use keystore_core::recovery::Losses;
use keystore_core::ring::{Replica, Ring};
use keystore_core::succession::{
    Change, Evidence, Standing, Step, check_gate, check_step, others_of_a_quorum,
};
use keystore_crds::{KeyStoreCluster, KeyStoreClusterStatus, Keyspace, KeyspaceMode};
use keystore_operator_core::children::{Kind, Write};
use keystore_operator_core::identity::Identity;
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
/// What `spec.replaceAfterSeconds` is at times, and what one round and one long silence take.
const REPLACE_AFTER_SECONDS: i32 = 300;
const ROUND_SECONDS: i64 = 40;
const SILENCE_SECONDS: i64 = 200;
/// How many machines may be dead for good.
const DEAD_MAX: usize = 2;

/// True if of each partition so many of these are left that they share one with every quorum.
fn has_everything(layout: &Layout, is_left: impl Fn(NodeId) -> bool) -> bool {
    layout.source_ring().iter().all(|(_, replicas)| {
        let left = replicas.iter().filter(|replica| is_left(replica.node)).count();
        left >= others_of_a_quorum(replicas.len())
    })
}

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
    /// Pods whose machines are gone for good, with their volumes.
    dead: BTreeSet<u32>,
    /// Pods that were told to end, when, on machines that are dead.
    ending: BTreeMap<u32, i64>,
    /// Until when something at these nodes is damaged.
    doubting: BTreeMap<NodeId, i64>,
    /// Since when Kubernetes knows that a pod is not ready.
    unready_since: BTreeMap<u32, i64>,
    volumes: BTreeMap<u32, Volume>,
    /// What somebody may put in the place of the present one.
    old_status: Option<KeyStoreClusterStatus>,
    layout: Layout,
    /// What some have voted for, and what may be decided as the next layout all the same.
    undecided: Vec<Layout>,
    drawn: u32,
    seconds: i64,
    trace: Vec<String>,
    proposals: usize,
    /// How many partitions a recovery found without a quorum.
    salvaged: usize,
    /// How many layouts came out after their proposer was gone.
    surfaced: usize,
    /// How many members were given up because they were away.
    given_up: usize,
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
            dead: BTreeSet::new(),
            ending: BTreeMap::new(),
            doubting: BTreeMap::new(),
            unready_since: BTreeMap::new(),
            old_status: None,
            volumes: (0..FACTOR).map(|ordinal| (ordinal, volume(ordinal))).collect(),
            layout,
            undecided: Vec::new(),
            drawn: 100,
            seconds: 0,
            trace: Vec::new(),
            proposals: 0,
            salvaged: 0,
            surfaced: 0,
            given_up: 0,
        }
    }

    fn is_up(&self, ordinal: u32) -> bool {
        let is_there = self.pods.contains(&ordinal) && self.volumes.contains_key(&ordinal);
        is_there && !self.down.contains(&ordinal) && !self.dead.contains(&ordinal)
    }

    fn serves(&self, ordinal: u32) -> bool {
        self.is_up(ordinal) && self.volumes[&ordinal].held.is_some()
    }

    /// Time passes, and Kubernetes sees who is ready.
    fn pass(&mut self, seconds: i64) {
        self.seconds += seconds;
        let now = self.seconds;
        self.doubting.retain(|_, until| *until > now);
        for ordinal in self.pods.clone() {
            if self.serves(ordinal) {
                self.unready_since.remove(&ordinal);
            } else {
                self.unready_since.entry(ordinal).or_insert(self.seconds);
            }
        }
        let pods = self.pods.clone();
        self.unready_since.retain(|ordinal, _| pods.contains(ordinal));
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
        let waits = held.filter(|held| held.is_moving()).and_then(|held| self.gate(held, Step::Finish).err());
        Answer::Here(NodeAnswer {
            node: volume.node,
            actor: volume.actor,
            version: "0.1.0".to_owned(),
            mode: if held.is_some() { NodeMode::Serving } else { NodeMode::Uninitialized },
            cluster: held.map(|held| held.cluster),
            incarnation: held.map_or_else(Incarnation::default, |held| held.incarnation),
            epoch: held.map_or(Epoch(0), |held| held.epoch),
            is_in_doubt: self.doubting.contains_key(&volume.node),
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
        let pod = |ordinal: &u32| {
            let since = self.unready_since.get(ordinal);
            let pod = pod_since(self.serves(*ordinal), since.copied().unwrap_or(self.seconds));
            let told = self.ending.get(ordinal);
            (*ordinal, told.map_or_else(|| pod.clone(), |told| ending(pod.clone(), *told)))
        };
        Observed {
            children: self.children.clone(),
            pods: self.pods.iter().map(pod).collect(),
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
        self.pass(1);
        let observed = self.observe();
        let (live, seen) = (self.live(), (self.layout.clone(), self.volumes.clone()));
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

    /// Whoever does nothing says why, unless nothing is to be done.
    fn judge_silence(&self, plan: &Plan) {
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

    /// `known` and `seen` are how the layout and the volumes were at the time of the look.
    fn write(&mut self, plan: &Plan, (known, seen): &(Layout, BTreeMap<u32, Volume>)) {
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

    fn propose(&mut self, proposal: &Proposal, live: &BTreeSet<NodeId>, is_quiet: bool) {
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
    fn decide(&mut self, wanted: Layout, ordinal: u32, is_quiet: bool) {
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

    /// Who is given up has lost its volume, or is away for as long as the spec says, and then only one is at a time, while
    /// those that serve have all that it holds. `live` is who was up at the time of the look. True if one is away.
    fn judge_loss(&self, next: &Layout, live: &BTreeSet<NodeId>) -> bool {
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

    /// A move is turned back only while those that it came from have all that was acknowledged.
    fn judge_way_back(&self, next: &Layout) {
        let is_back = self.layout.is_joint() && !next.is_joint() && next.ring() == self.layout.source_ring();
        if is_back && next.ring() != self.layout.ring() {
            let is_there =
                |node: NodeId| !next.is_lost(node) && self.volumes.values().any(|volume| volume.node == node);
            assert!(has_everything(next, is_there), "what has moved is given up: {:#?}", self.trace);
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
        } else if volume.held.is_some()
            || self.layout.is_lost(volume.node)
            || self.layout.departed.contains(&volume.node)
        {
            *volume = fresh;
        }
    }

    fn merge(&mut self, ordinal: u32) {
        let live = self.live();
        let layout = self.layout.clone();
        let mut sources = layout.salvaged.values().flatten();
        if !sources.all(|source| live.contains(source) || layout.is_lost(*source)) {
            return;
        }
        let reached = layout.source_ring().iter().all(|(_, replicas)| {
            let there = replicas.iter().filter(|replica| live.contains(&replica.node)).count();
            there > replicas.len() - Consistency::Quorum.needed(replicas.len())
        });
        if let Some(volume) = self.volumes.get_mut(&ordinal).filter(|_| reached)
            && volume.held.as_ref() == Some(&layout)
            && layout.is_moving()
        {
            volume.whole = layout.phase_since;
        }
    }

    /// What the StatefulSet's controller does next: one pod comes or goes.
    fn run_pods(&mut self) {
        let replicas = self.live_replicas();
        let is_ending = |ordinal: &u32| self.ending.contains_key(ordinal);
        let ended = self.ending.keys().copied().find(|ordinal| !self.dead.contains(ordinal));
        let surplus = self.pods.iter().copied().rfind(|o| *o >= replicas && !is_ending(o));
        if let Some(ordinal) = ended.or(surplus) {
            if self.dead.contains(&ordinal) {
                self.ending.insert(ordinal, self.seconds);
                return;
            }
            self.ending.remove(&ordinal);
            self.pods.remove(&ordinal);
            self.down.remove(&ordinal);
        } else if let Some(ordinal) = (0..replicas).find(|ordinal| !self.pods.contains(ordinal)) {
            self.pods.insert(ordinal);
            let fresh = self.fresh_volume();
            self.volumes.entry(ordinal).or_insert(fresh);
        }
    }

    /// One at a time: only while all that was acknowledged is where it belongs.
    fn can_lose_one(&self) -> bool {
        if !self.layout.salvaged.is_empty() {
            return false;
        }
        let is_there = |(ordinal, volume): (&u32, &Volume)| {
            let is_lost = |layout: &Layout| layout.is_lost(volume.node);
            let is_counted =
                !self.dead.contains(ordinal) && !is_lost(&self.layout) && !self.undecided.iter().any(is_lost);
            is_counted.then_some(volume.node)
        };
        let there: BTreeSet<_> = self.volumes.iter().filter_map(is_there).collect();
        // After a recovery there are fewer copies and fewer voters, until others are made.
        let can_spare = |count: usize| others_of_a_quorum(count) < count;
        let is_spared = |ring: &Ring| ring.iter().all(|(_, replicas)| can_spare(replicas.len()));
        can_spare(self.layout.voters.len())
            && self.layout.voters.iter().all(|voter| there.contains(voter))
            && self.layout.rings().all(|ring| owners(ring).is_subset(&there) && is_spared(ring))
    }

    fn lose_volume(&mut self, ordinal: u32) {
        self.trace.push(format!("demo-{ordinal} loses its volume"));
        let fresh = self.fresh_volume();
        self.volumes.insert(ordinal, fresh);
    }

    fn die(&mut self, ordinal: u32) {
        if self.dead.len() < DEAD_MAX {
            self.trace.push(format!("demo-{ordinal} is dead"));
            self.dead.insert(ordinal);
        }
    }

    /// Somebody gives up a node by hand, whatever it does.
    fn lose_member(&mut self, ordinal: u32) {
        let Some(node) = self.volumes.get(&ordinal).map(|volume| volume.node) else { return };
        // Somebody who holds data has it decided, and knows first.
        let holds = |other: &u32| *other != ordinal && self.layout.owned(self.volumes[other].node) > 0;
        let Some(other) = self.up().into_iter().find(holds) else { return };
        if let Ok(next) = self.layout.next(&Change::Lose(BTreeSet::from([node]))) {
            self.trace.push(format!("demo-{ordinal} is given up by hand"));
            self.decide(next, other, false);
        }
    }

    /// A person names who is lost, and all others go on without them: some have lost their volumes, some their machines.
    fn recover(&mut self) {
        let live = self.live();
        let all = self.layout.members.clone();
        let is_there = |member: &&Member| live.contains(&member.node) && !member.is_lost;
        let left: Vec<_> = all.iter().filter(is_there).cloned().collect();
        let kept = self.rng.below(left.len() as u64) as usize;
        let is_left = |rng: &mut Rng, member: &Member| {
            member.node == left[kept].node || left.contains(member) && rng.below(3) == 0
        };
        let lost: BTreeSet<_> =
            all.iter().filter(|member| !is_left(&mut self.rng, member)).map(|member| member.node).collect();
        let incarnation = Incarnation { number: 2, id: 2 };
        let losses = Losses { nodes: lost.clone(), doubted: BTreeMap::new() };
        let layout = self.layout.recovered(incarnation, &losses).expect("somebody is left");
        self.trace.push(format!(
            "epoch {}: recovered without {lost:?}, {} partitions are salvaged",
            layout.epoch,
            layout.salvaged.len()
        ));
        self.salvaged += layout.salvaged.len();
        self.undecided.clear();
        for ordinal in self.volumes.keys().copied().collect::<Vec<_>>() {
            let volume = self.volumes.get_mut(&ordinal).unwrap();
            if layout.member(volume.node).is_some_and(|member| !member.is_lost) {
                volume.held = Some(layout.clone());
            } else if lost.contains(&volume.node) {
                match self.rng.below(3) {
                    0 => self.die(ordinal),
                    1 => self.lose_volume(ordinal),
                    _ => self.down.extend([ordinal]),
                }
            }
        }
        self.layout = layout;
    }

    /// A disk is damaged, and healed after a while.
    fn damage(&mut self, ordinal: u32) {
        let Some(volume) = self.volumes.get(&ordinal) else { return };
        let (node, seconds) = (volume.node, self.rng.below(SILENCE_SECONDS as u64) as i64);
        self.doubting.insert(node, self.seconds + seconds);
    }

    fn something_happens(&mut self) {
        let pods: Vec<_> = self.pods.iter().copied().collect();
        let Some(ordinal) = self.rng.pick(&pods) else { return self.run_pods() };
        match self.rng.below(20) {
            18 if self.rng.below(3) == 0 => self.damage(ordinal),
            // Kubernetes wants the pod of a machine that is gone to run elsewhere.
            19 if self.dead.contains(&ordinal) => drop(self.ending.entry(ordinal).or_insert(self.seconds)),
            0..=4 => self.learn(ordinal),
            5..=7 => self.merge(ordinal),
            8..=10 => self.run_pods(),
            11 if self.rng.below(3) == 0 => drop(self.down.insert(ordinal)),
            12 => drop(self.down.pop_first()),
            13 if self.rng.below(6) == 0 && self.can_lose_one() => self.lose_volume(ordinal),
            14 if self.rng.below(12) == 0 && self.can_lose_one() => self.die(ordinal),
            15 if self.rng.below(20) == 0 && self.can_lose_one() => self.lose_member(ordinal),
            16 if self.rng.below(8) == 0 => self.pass(SILENCE_SECONDS),
            17 if self.rng.below(8) == 0 => {
                self.resource.status = self.old_status.clone().or(self.resource.status.take());
            }
            _ => {}
        }
    }

    fn change_mind(&mut self) {
        match self.rng.below(8) {
            0 => {
                let seconds = if self.rng.below(3) == 0 { 0 } else { REPLACE_AFTER_SECONDS };
                self.trace.push(format!("spec.replaceAfterSeconds is {seconds}"));
                self.resource.spec.replace_after_seconds = seconds;
            }
            1 if self.resource.spec.keyspaces.len() < 3 => {
                let name = format!("more-{}", self.resource.spec.keyspaces.len());
                self.resource.spec.keyspaces.push(Keyspace { name, mode: KeyspaceMode::Lww });
            }
            _ => {
                let replicas = self.rng.below(PODS_MAX) + 1;
                self.ask_for(replicas);
            }
        }
    }

    fn ask_for(&mut self, replicas: u64) {
        self.trace.push(format!("spec.replicas is {replicas}"));
        self.resource.spec.replicas = i32::try_from(replicas).unwrap();
    }

    fn live_through(&mut self) {
        for _ in 0..ACTIONS {
            match self.rng.below(40) {
                0 => self.change_mind(),
                1..=12 => self.reconcile(false),
                _ => self.something_happens(),
            }
        }
    }

    fn come_to_rest(&mut self) {
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

    fn expect_rest(&mut self) {
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

#[test]
fn whatever_happens_the_spec_is_reached_and_no_copy_is_lost_on_the_way() {
    let (mut proposals, mut given_up, mut surfaced) = (0, 0, 0);
    for seed in 1..=SEEDS {
        let ended = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            world.live_through();
            world.come_to_rest();
            world.expect_rest();
            (world.proposals, world.given_up, world.surfaced)
        });
        let of_world = ended.unwrap_or_else(|_| panic!("seed {seed}"));
        proposals += of_world.0;
        given_up += of_world.1;
        surfaced += of_world.2;
    }
    assert!(proposals > 1_000, "the worlds hardly moved: {proposals} proposals");
    assert!(given_up > 30, "hardly anybody stayed away: {given_up} were given up");
    assert!(surfaced > 50, "hardly a vote came out later: {surfaced}");
}

#[test]
fn what_a_recovery_has_left_is_merged_and_filled_up_whatever_happens() {
    let (mut salvaged, mut joint) = (0, 0);
    for seed in 1..=SEEDS {
        let ended = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            world.live_through();
            world.down.clear();
            let is_joint = world.layout.is_joint();
            world.recover();
            world.live_through();
            world.come_to_rest();
            world.expect_rest();
            (world.salvaged, is_joint)
        });
        let of_world = ended.unwrap_or_else(|_| panic!("seed {seed}"));
        salvaged += of_world.0;
        joint += usize::from(of_world.1);
    }
    assert!(salvaged > 500, "hardly a quorum was lost: {salvaged} partitions were salvaged");
    assert!(joint > 10, "hardly a recovery in the middle of a move: {joint}");
}
