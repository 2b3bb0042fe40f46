//! The world as it is, what the planner sees of it, and what pods and nodes do by themselves.

use std::collections::{BTreeMap, BTreeSet};

use keystore_core::id::{Actor, Epoch, Incarnation, NodeId};
use keystore_core::layout::{FirstLayout, Layout, Member};
use keystore_core::partition::PartitionCount;
use keystore_core::quorum::Consistency;
use keystore_core::ring::Ring;
use keystore_core::succession::{Step, others_of_a_quorum};
use keystore_crds::{KeyStoreCluster, KeyStoreClusterStatus};
use keystore_operator_core::observed::{
    Answer, Children, Disk, HeldLayout, NodeAnswer, NodeMode, Observed, Transfer,
};
use serde_json::json;

use crate::fixtures::{CLUSTER, cluster, ending, pod_since, remembers};

pub(crate) const FACTOR: u32 = 3;
pub(crate) const PODS_MAX: u64 = 6;
pub(crate) const ACTIONS: usize = 300;
/// After this many rounds in which everything gets its turn the spec has to be reached.
pub(crate) const QUIET_ROUNDS: usize = 150;
/// What `spec.replaceAfterSeconds` is at times, and what one round and one long silence take.
pub(crate) const REPLACE_AFTER_SECONDS: i32 = 300;
pub(crate) const ROUND_SECONDS: i64 = 40;
pub(crate) const SILENCE_SECONDS: i64 = 200;
/// How many of 48 copies fit onto one disk: some worlds need five nodes, some three.
pub(crate) const ROOMS: std::ops::Range<u64> = 10..17;
const COPY_BYTES: u64 = 32 << 20;
/// How many machines may be dead for good.
pub(crate) const DEAD_MAX: usize = 2;

/// True if of each partition so many of these are left that they share one with every quorum.
pub(crate) fn has_everything(layout: &Layout, is_left: impl Fn(NodeId) -> bool) -> bool {
    layout.source_ring().iter().all(|(_, replicas)| {
        let left = replicas.iter().filter(|replica| is_left(replica.node)).count();
        left >= others_of_a_quorum(replicas.len())
    })
}

/// xorshift64*: the same numbers for the same seed, everywhere.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % bound
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        if of.is_empty() { None } else { Some(of[self.below(of.len() as u64) as usize]) }
    }
}

/// A volume, and what its node has made durable there.
#[derive(Clone, Debug)]
pub(crate) struct Volume {
    pub(crate) node: NodeId,
    pub(crate) actor: Actor,
    pub(crate) held: Option<Layout>,
    /// It has merged what it needs in the phase that began with this epoch.
    pub(crate) whole: Epoch,
}

pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) resource: KeyStoreCluster,
    pub(crate) children: Children,
    pub(crate) pods: BTreeSet<u32>,
    pub(crate) down: BTreeSet<u32>,
    /// Pods whose machines are gone for good, with their volumes.
    pub(crate) dead: BTreeSet<u32>,
    /// Pods that were told to end, when, on machines that are dead.
    pub(crate) ending: BTreeMap<u32, i64>,
    /// Until when something at these nodes is damaged.
    pub(crate) doubting: BTreeMap<NodeId, i64>,
    /// Since when Kubernetes knows that a pod is not ready.
    pub(crate) unready_since: BTreeMap<u32, i64>,
    pub(crate) volumes: BTreeMap<u32, Volume>,
    /// What somebody may put in the place of the present one.
    pub(crate) old_status: Option<KeyStoreClusterStatus>,
    pub(crate) layout: Layout,
    /// What some have voted for, and what may be decided as the next layout all the same.
    pub(crate) undecided: Vec<Layout>,
    pub(crate) drawn: u32,
    pub(crate) seconds: i64,
    /// How many copies of partitions there is room for on each disk; nobody says so where it is `None`.
    pub(crate) room: Option<u64>,
    pub(crate) trace: Vec<String>,
    pub(crate) proposals: usize,
    /// How many partitions a recovery found without a quorum.
    pub(crate) salvaged: usize,
    /// How many layouts came out after their proposer was gone.
    pub(crate) surfaced: usize,
    /// How many members were given up because they were away.
    pub(crate) given_up: usize,
}

pub(crate) fn owners(ring: &Ring) -> BTreeSet<NodeId> {
    ring.iter().flat_map(|(_, replicas)| replicas.iter().map(|replica| replica.node)).collect()
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
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
            room: None,
            trace: Vec::new(),
            proposals: 0,
            salvaged: 0,
            surfaced: 0,
            given_up: 0,
        }
    }

    pub(crate) fn is_up(&self, ordinal: u32) -> bool {
        let is_there = self.pods.contains(&ordinal) && self.volumes.contains_key(&ordinal);
        is_there && !self.down.contains(&ordinal) && !self.dead.contains(&ordinal)
    }

    pub(crate) fn serves(&self, ordinal: u32) -> bool {
        self.is_up(ordinal) && self.volumes[&ordinal].held.is_some()
    }

    /// Time passes, and Kubernetes sees who is ready.
    pub(crate) fn pass(&mut self, seconds: i64) {
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

    pub(crate) fn up(&self) -> Vec<u32> {
        self.pods.iter().copied().filter(|ordinal| self.is_up(*ordinal)).collect()
    }

    pub(crate) fn live(&self) -> BTreeSet<NodeId> {
        self.up().into_iter().map(|ordinal| self.volumes[&ordinal].node).collect()
    }

    pub(crate) fn live_replicas(&self) -> u32 {
        let spec = self.children.stateful_set.as_ref().and_then(|set| set.spec.as_ref());
        spec.and_then(|spec| spec.replicas).map_or(FACTOR, |replicas| u32::try_from(replicas).unwrap())
    }

    /// How many copies are live beyond a quorum, where that is least.
    pub(crate) fn has_quorums(&self, layout: &Layout, live: &BTreeSet<NodeId>) -> bool {
        let is_met = |p| {
            layout
                .replica_sets(p)
                .satisfied(Consistency::Quorum, |node| live.contains(node) && !layout.is_lost(*node))
        };
        layout.partitions.all().all(is_met)
    }

    pub(crate) fn answer(&self, ordinal: u32) -> Answer {
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
            disk: self.room.map(|room| self.disk(volume, room)),
        })
    }

    fn disk(&self, volume: &Volume, room: u64) -> Disk {
        let held = volume.held.as_ref();
        // While data moves, some of it is there twice.
        let (old, new) = held
            .map_or((0, 0), |held| (held.source_ring().owned(volume.node), held.ring().owned(volume.node)));
        let used = if volume.whole == self.layout.phase_since { old.max(new) } else { old };
        let total_bytes = room * COPY_BYTES * 10 / 9;
        Disk {
            total_bytes,
            available_bytes: total_bytes.saturating_sub(used as u64 * COPY_BYTES),
            set_aside_bytes: 0,
            is_full: used as u64 >= room,
        }
    }

    pub(crate) fn observe(&self) -> Observed {
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

    pub(crate) fn fresh_volume(&mut self) -> Volume {
        self.drawn += 1;
        // Of any order among the others.
        let mut id = [self.rng.below(256) as u8; 16];
        id[8..12].copy_from_slice(&self.drawn.to_be_bytes());
        Volume { node: NodeId(id), actor: Actor(u64::from(self.drawn)), held: None, whole: Epoch(0) }
    }

    /// A node hears of the newest layout, if anybody is there to tell it.
    pub(crate) fn learn(&mut self, ordinal: u32) {
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

    pub(crate) fn merge(&mut self, ordinal: u32) {
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
    pub(crate) fn run_pods(&mut self) {
        let replicas = self.live_replicas();
        let is_ending = |ordinal: &u32| self.ending.contains_key(ordinal);
        let ended = self.ending.keys().copied().find(|ordinal| !self.dead.contains(ordinal));
        let surplus = self.pods.iter().copied().rfind(|o| *o >= replicas && !is_ending(o));
        if let Some(ordinal) = ended.or(surplus) {
            // It is told to end, and answers for as long as it has not.
            if ended.is_none() {
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
}
