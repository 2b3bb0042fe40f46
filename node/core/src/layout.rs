//! The layout: everything that is decided together under one epoch.
//!
//! A layout is an immutable value. It names the members, not their addresses; quorum sizes follow from it and
//! from nothing else. While data moves it has two rings, and every operation needs its quorum in each of them; readers
//! go through [`Layout::replica_sets`]. Which layout may follow which is said in [`crate::succession`].

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

use crate::id::{Actor, ClusterId, Epoch, Incarnation, NodeId};
use crate::mutant::{Mutant, is_on};
use crate::partition::{DEFAULT_KEYSPACE, KeyError, Partition, PartitionCount, RecordKey};
use crate::placement::{Candidate, place};
use crate::quorum::ReplicaSets;
use crate::ring::{Ring, RingError};

pub const REPLICATION_FACTOR_MAX: usize = 7;
/// Twice as many as hold data in the largest cluster that the operator makes: each of them may be lost and still be a
/// member when its successor joins.
pub const MEMBERS_MAX: usize = 128;

/// A node that belongs to the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub node: NodeId,
    pub actor: Actor,
    /// For people: the pod's name on Kubernetes.
    pub name: String,
    /// The failure domain; empty where none is known.
    pub zone: String,
    /// Its share of the data relative to others. 0: it holds none, and is given none before it is admitted anew.
    pub weight: u32,
    /// Dead for good, as somebody who can know has said: nobody waits for it any more, and it counts for nothing.
    pub is_lost: bool,
}

/// The rings in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    Stable(Ring),
    /// Data moves from one to the other: every operation needs its quorum in both.
    Joint {
        from: Ring,
        to: Ring,
    },
}

/// What becomes of concurrent writes of one key; fixed when the keyspace is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyspaceMode {
    /// The write with the highest stamp stays.
    Lww,
    /// All stay, as siblings, until a write that has seen them replaces them.
    Siblings,
}

/// How many keyspaces a layout may have.
pub const KEYSPACES_MAX: usize = 64;
/// How long the name of a new keyspace may be.
pub const KEYSPACE_NAME_MAX: usize = 63;

/// What a new keyspace may be called: it is typed into commands and labels of metrics. Up to [`KEYSPACE_NAME_MAX`]
/// lower-case letters, digits, `-` and `_`, with a letter or digit at both ends.
pub fn is_keyspace_name(name: &str) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let (first, last) = (name.as_bytes().first(), name.as_bytes().last());
    name.len() <= KEYSPACE_NAME_MAX
        && first.is_some_and(is_plain)
        && last.is_some_and(is_plain)
        && name.bytes().all(|byte| is_plain(&byte) || matches!(byte, b'-' | b'_'))
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    pub cluster: ClusterId,
    pub incarnation: Incarnation,
    pub epoch: Epoch,
    pub phase: Phase,
    /// The first epoch of the run of epochs that have these rings.
    pub phase_since: Epoch,
    pub partitions: PartitionCount,
    /// Of the ring that is to stay.
    pub replication_factor: usize,
    /// Ordered by UUID, each once.
    pub members: Vec<Member>,
    /// The members that decide on the next layout, ordered by UUID: an odd number of them.
    pub voters: Vec<NodeId>,
    /// Nodes that were members, and never will be again.
    pub departed: BTreeSet<NodeId>,
    /// Partitions of which a recovery found too few replicas to trust, with all members left that held some of it: each
    /// of its replicas counts for nothing until it has merged them all.
    pub salvaged: BTreeMap<Partition, BTreeSet<NodeId>>,
    /// Of the layout of a recovery alone: what was in force when it was made. (An attempt made from one that never came
    /// into force goes back to what that was made from.)
    pub recovered_from: Option<Term>,
    pub keyspaces: BTreeMap<String, KeyspaceMode>,
}

/// Which of two decided layouts is the later one.
pub type Term = (Incarnation, Epoch);

/// What the first layout is made from.
#[derive(Debug, Clone)]
pub struct FirstLayout {
    pub cluster: ClusterId,
    pub incarnation: Incarnation,
    pub partitions: PartitionCount,
    pub replication_factor: usize,
    pub members: Vec<Member>,
    /// Beside the default one, which is there always.
    pub keyspaces: BTreeMap<String, KeyspaceMode>,
}

/// Why a layout is refused. Whoever finds one leaves everything as it was.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LayoutError {
    #[error("a layout needs the cluster's UUID")]
    NoCluster,
    #[error("a layout's epoch is at least 1")]
    NoEpoch,
    #[error("a layout has 1 to {MEMBERS_MAX} members, this one has {0}")]
    Members(usize),
    #[error("the members are not ordered by UUID, or one is named twice")]
    MemberOrder,
    #[error("members {0} and {1} have the same actor")]
    SharedActor(NodeId, NodeId),
    #[error("member {0} has weight 0, and cannot hold data")]
    NoWeight(NodeId),
    #[error("{0} is no member, or is lost, and cannot vote")]
    Voter(NodeId),
    #[error("the voters are not ordered by UUID, or one is named twice")]
    VoterOrder,
    #[error("a layout has 1, 3, 5 or 7 voters, not {0}")]
    Voters(usize),
    #[error("node {0} was a member once and has departed: its disk can only join as a new node")]
    Departed(NodeId),
    #[error("partition {0} cannot be salvaged: there is none, or from nodes that are no members")]
    Salvaged(Partition),
    #[error("the phase cannot have begun with epoch {0}")]
    PhaseSince(Epoch),
    #[error(
        "a replication factor is 1 to {REPLICATION_FACTOR_MAX} and at most the number of members, not {0}"
    )]
    ReplicationFactor(usize),
    #[error("the keyspace \"{DEFAULT_KEYSPACE}\" is missing, or is not of mode lww")]
    NoDefaultKeyspace,
    #[error("a layout has at most {KEYSPACES_MAX} keyspaces, this one has {0}")]
    Keyspaces(usize),
    #[error("the keyspace \"{0}\" cannot be used: {1}")]
    Keyspace(String, KeyError),
    #[error(
        "a keyspace's name has up to {KEYSPACE_NAME_MAX} lower-case letters, digits, '-' and '_', with a letter or digit \
         at both ends, and \"{0}\" has not"
    )]
    KeyspaceName(String),
    #[error(transparent)]
    Ring(#[from] RingError),
}

impl Layout {
    /// Epoch 1: places all partitions on the given members.
    pub fn first(of: FirstLayout) -> Result<Self, LayoutError> {
        let FirstLayout { cluster, incarnation, partitions, replication_factor, mut members, mut keyspaces } =
            of;
        keyspaces.entry(DEFAULT_KEYSPACE.to_owned()).or_insert(KeyspaceMode::Lww);
        if let Some(name) = keyspaces.keys().find(|name| !is_keyspace_name(name)) {
            return Err(LayoutError::KeyspaceName(name.clone()));
        }
        members.sort_by_key(|member| member.node);
        if replication_factor > members.len() {
            return Err(LayoutError::ReplicationFactor(replication_factor));
        }
        let candidates: Vec<_> = members.iter().map(Member::candidate).collect();
        let voters = first_voters(&members);
        let layout = Self {
            cluster,
            incarnation,
            epoch: Epoch(1),
            phase: Phase::Stable(place(&candidates, partitions, replication_factor, Epoch(1))),
            phase_since: Epoch(1),
            partitions,
            replication_factor,
            members,
            voters,
            departed: BTreeSet::new(),
            salvaged: BTreeMap::new(),
            recovered_from: None,
            keyspaces,
        };
        layout.validate()?;
        Ok(layout)
    }

    /// Every rule that a layout keeps by itself, wherever it came from.
    pub fn validate(&self) -> Result<(), LayoutError> {
        if self.cluster.is_nil() {
            return Err(LayoutError::NoCluster);
        }
        if self.epoch == Epoch(0) {
            return Err(LayoutError::NoEpoch);
        }
        if !(Epoch(1)..=self.epoch).contains(&self.phase_since) {
            return Err(LayoutError::PhaseSince(self.phase_since));
        }
        if !(1..=MEMBERS_MAX).contains(&self.members.len()) {
            return Err(LayoutError::Members(self.members.len()));
        }
        if !self.members.is_sorted_by(|a, b| a.node < b.node) {
            return Err(LayoutError::MemberOrder);
        }
        if !(1..=REPLICATION_FACTOR_MAX.min(self.members.len())).contains(&self.replication_factor) {
            return Err(LayoutError::ReplicationFactor(self.replication_factor));
        }
        self.validate_keyspaces()?;
        self.validate_members()?;
        self.validate_voters()?;
        let members = self.members.iter().map(|member| member.node).collect();
        let partitions = usize::from(self.partitions.get());
        self.ring().validate(partitions, self.replication_factor, &members)?;
        if self.epoch == Epoch(1) {
            self.ring().check_full(self.replication_factor)?;
        }
        if let Phase::Joint { from, .. } = &self.phase {
            from.validate(partitions, REPLICATION_FACTOR_MAX, &members)?;
        }
        let is_right = |(partition, sources): &(&Partition, &BTreeSet<NodeId>)| {
            usize::from(partition.0) < partitions && sources.is_subset(&members)
        };
        match self.salvaged.iter().find(|salvaged| !is_right(salvaged)) {
            Some((partition, _)) => Err(LayoutError::Salvaged(*partition)),
            None => Ok(()),
        }
    }

    fn validate_voters(&self) -> Result<(), LayoutError> {
        if !VOTERS.contains(&self.voters.len()) {
            return Err(LayoutError::Voters(self.voters.len()));
        }
        let is_fit = |voter: &NodeId| self.member(*voter).is_some_and(|member| !member.is_lost);
        if let Some(voter) = self.voters.iter().find(|voter| !is_fit(voter)) {
            return Err(LayoutError::Voter(*voter));
        }
        if self.voters.is_sorted_by(|a, b| a < b) { Ok(()) } else { Err(LayoutError::VoterOrder) }
    }

    fn validate_keyspaces(&self) -> Result<(), LayoutError> {
        if self.keyspaces.len() > KEYSPACES_MAX {
            return Err(LayoutError::Keyspaces(self.keyspaces.len()));
        }
        for name in self.keyspaces.keys() {
            RecordKey::new(name, b"k").map_err(|error| LayoutError::Keyspace(name.clone(), error))?;
        }
        match self.keyspaces.get(DEFAULT_KEYSPACE) {
            Some(KeyspaceMode::Lww) => Ok(()),
            Some(KeyspaceMode::Siblings) | None => Err(LayoutError::NoDefaultKeyspace),
        }
    }

    fn validate_members(&self) -> Result<(), LayoutError> {
        let mut actors = BTreeMap::new();
        for member in &self.members {
            if member.weight == 0 && self.rings().any(|ring| ring.owned(member.node) > 0) {
                return Err(LayoutError::NoWeight(member.node));
            }
            if let Some(other) = actors.insert(member.actor, member.node) {
                return Err(LayoutError::SharedActor(other, member.node));
            }
            if self.departed.contains(&member.node) {
                return Err(LayoutError::Departed(member.node));
            }
        }
        Ok(())
    }

    pub fn term(&self) -> Term {
        (self.incarnation, self.epoch)
    }

    pub fn member(&self, node: NodeId) -> Option<&Member> {
        let index = self.members.binary_search_by_key(&node, |member| member.node).ok()?;
        self.members.get(index)
    }

    /// The rings in force, each of which an operation has to satisfy: first the one whose replicas have everything.
    pub fn rings(&self) -> impl Iterator<Item = &Ring> {
        let (first, second) = match &self.phase {
            Phase::Stable(ring) => (ring, None),
            Phase::Joint { from, to } => (from, Some(to)),
        };
        std::iter::once(first).chain(second)
    }

    /// The ring that is to stay.
    pub fn ring(&self) -> &Ring {
        match &self.phase {
            Phase::Stable(ring) | Phase::Joint { to: ring, .. } => ring,
        }
    }

    /// The ring that this phase shares with the one before it: its replicas have everything.
    pub fn source_ring(&self) -> &Ring {
        match &self.phase {
            Phase::Stable(ring) | Phase::Joint { from: ring, .. } => ring,
        }
    }

    pub fn is_joint(&self) -> bool {
        matches!(self.phase, Phase::Joint { .. })
    }

    /// True while some replicas have to take over what others hold.
    pub fn is_moving(&self) -> bool {
        self.is_joint() || !self.salvaged.is_empty()
    }

    /// Whose word decides on the next layout.
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.binary_search(&node).is_ok()
    }

    /// How many have to vote: as many as those that hold data and are not lost allow.
    pub fn voters_wanted(&self) -> usize {
        let holds_data = |member: &&Member| !member.is_lost && self.stake(member.node) < Stake::Nothing;
        voters_among(self.members.iter().filter(holds_data).count())
    }

    /// What a node has to do with the rings in force.
    pub(crate) fn stake(&self, node: NodeId) -> Stake {
        match self.rings().map(|ring| ring.owned(node) > 0).collect::<Vec<_>>() {
            held if held.iter().all(|holds| *holds) => Stake::Lasting,
            held if held.contains(&true) => Stake::Passing,
            _ => Stake::Nothing,
        }
    }

    pub fn is_lost(&self, node: NodeId) -> bool {
        self.member(node).is_some_and(|member| member.is_lost)
    }

    /// Every replica of a partition once, in the order of [`ReplicaSets::nodes`].
    pub fn replicas(&self, partition: Partition) -> Vec<NodeId> {
        let mut nodes = Vec::with_capacity(REPLICATION_FACTOR_MAX);
        for replica in self.rings().flat_map(|ring| ring.replicas(partition)) {
            if !nodes.contains(&replica.node) {
                nodes.push(replica.node);
            }
        }
        nodes
    }

    pub fn replica_sets(&self, partition: Partition) -> ReplicaSets {
        let nodes = |ring: &Ring| ring.nodes(partition);
        let rings = if is_on(Mutant::OneRingIsEnough) { 1 } else { 2 };
        ReplicaSets::new(self.rings().take(rings).map(nodes).collect())
    }

    /// Since which epoch a node has been a replica of a partition without a break; the latest of all rings in force.
    pub fn since(&self, partition: Partition, node: NodeId) -> Option<Epoch> {
        let replicas = self.rings().flat_map(|ring| ring.replicas(partition));
        replicas.filter(|replica| replica.node == node).map(|replica| replica.since).max()
    }

    pub fn is_replica(&self, partition: Partition, node: NodeId) -> bool {
        self.rings().any(|ring| ring.is_replica(partition, node))
    }

    /// How many partitions a node holds in any ring in force.
    /// What the store says speaks of nodes by their UUIDs, and people of names, as far as a member has one of its own.
    pub fn with_names(&self, text: &str) -> String {
        let is_alone = |name: &str| self.members.iter().filter(|member| member.name == name).count() == 1;
        let named = self.members.iter().filter(|member| !member.name.is_empty() && is_alone(&member.name));
        named.fold(text.to_owned(), |text, member| text.replace(&member.node.to_string(), &member.name))
    }

    pub fn owned(&self, node: NodeId) -> usize {
        self.partitions.all().filter(|partition| self.is_replica(*partition, node)).count()
    }

    /// Tells two layouts apart without sending them: xxh3 over a fixed encoding of all fields, so that nodes of
    /// different versions agree.
    pub fn digest(&self) -> u64 {
        let mut out = Vec::new();
        out.extend_from_slice(&self.cluster.0);
        for number in
            [self.incarnation.number, self.incarnation.id, self.epoch.0, self.replication_factor as u64]
        {
            out.extend_from_slice(&number.to_be_bytes());
        }
        for member in &self.members {
            out.extend_from_slice(&member.node.0);
            out.extend_from_slice(&member.actor.0.to_be_bytes());
            out.extend_from_slice(&member.weight.to_be_bytes());
            put_text(&mut out, &member.name);
            put_text(&mut out, &member.zone);
        }
        for (keyspace, mode) in &self.keyspaces {
            put_text(&mut out, keyspace);
            // The first release had this mode alone, and wrote nothing for it.
            if *mode == KeyspaceMode::Siblings {
                put_text(&mut out, "siblings");
            }
        }
        for ring in self.rings() {
            for (partition, replicas) in ring.iter() {
                out.extend_from_slice(&partition.0.to_be_bytes());
                for replica in replicas {
                    out.extend_from_slice(&replica.node.0);
                    out.extend_from_slice(&replica.since.0.to_be_bytes());
                }
            }
        }
        // What follows is the same in all first layouts, and the first release knew no others.
        if self.epoch > Epoch(1) {
            out.extend_from_slice(&self.phase_since.0.to_be_bytes());
            for node in self.voters.iter().chain(&self.departed) {
                out.extend_from_slice(&node.0);
            }
            out.extend(self.members.iter().map(|member| u8::from(member.is_lost)));
            for count in [self.voters.len(), self.departed.len()] {
                out.extend_from_slice(&(count as u64).to_be_bytes());
            }
            for (partition, sources) in &self.salvaged {
                out.extend_from_slice(&partition.0.to_be_bytes());
                out.extend_from_slice(&(sources.len() as u64).to_be_bytes());
                sources.iter().for_each(|source| out.extend_from_slice(&source.0));
            }
            if let Some((incarnation, epoch)) = self.recovered_from {
                for number in [incarnation.number, incarnation.id, epoch.0] {
                    out.extend_from_slice(&number.to_be_bytes());
                }
            }
        }
        xxh3_64(&out)
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// How many voters a layout may have.
const VOTERS: [usize; 4] = [7, 5, 3, 1];

/// So many members vote where so many hold data.
fn voters_among(holders: usize) -> usize {
    VOTERS.into_iter().find(|count| *count <= holders).unwrap_or(1)
}

/// The voters of a first layout.
pub fn first_voters(members: &[Member]) -> Vec<NodeId> {
    choose_voters(members, &[], |_| Stake::Lasting, |_| false)
}

/// What a node has to do with the rings in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stake {
    /// It holds data in each of them.
    Lasting,
    /// It holds data in one of them.
    Passing,
    Nothing,
}

/// The voters among members: as many as those that hold data allow, over as many zones as there are. Where that leaves a
/// choice, first those with the more lasting stake, then those that are not away, then those that vote already.
pub(crate) fn choose_voters(
    members: &[Member],
    present: &[NodeId],
    stake: impl Fn(NodeId) -> Stake,
    is_away: impl Fn(NodeId) -> bool,
) -> Vec<NodeId> {
    let mut left: Vec<_> = members.iter().filter(|member| !member.is_lost).collect();
    let count = voters_among(left.iter().filter(|member| stake(member.node) < Stake::Nothing).count());
    left.sort_by_key(|member| (!present.contains(&member.node), member.node));
    let mut chosen: Vec<&Member> = Vec::with_capacity(count);
    while chosen.len() < count {
        let in_zone = |zone: &str| chosen.iter().filter(|member| member.zone == zone).count();
        // One that does not stay, or is away, would have to be replaced soon, however well it lies.
        let is_away = |node| is_away(node) && !is_on(Mutant::TheAwayVoteOn);
        let rank = |member: &Member| (stake(member.node), is_away(member.node), in_zone(&member.zone));
        let Some((next, _)) = left.iter().enumerate().min_by_key(|(at, member)| (rank(member), *at)) else {
            break;
        };
        chosen.push(left.remove(next));
    }
    let mut voters: Vec<_> = chosen.into_iter().map(|member| member.node).collect();
    voters.sort_unstable();
    voters
}

impl Member {
    pub(crate) fn candidate(&self) -> Candidate {
        Candidate { node: self.node, zone: self.zone.clone(), weight: self.weight }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn member(n: u8) -> Member {
        Member {
            node: NodeId([n; 16]),
            actor: Actor(n.into()),
            name: format!("demo-{n}"),
            zone: String::new(),
            weight: 1,
            is_lost: false,
        }
    }

    pub(crate) fn first(members: Vec<Member>, replication_factor: usize) -> Result<Layout, LayoutError> {
        Layout::first(FirstLayout {
            cluster: ClusterId([9; 16]),
            incarnation: Incarnation { number: 1, id: 5 },
            partitions: PartitionCount::new(16).unwrap(),
            replication_factor,
            members,
            keyspaces: BTreeMap::new(),
        })
    }

    #[test]
    fn the_first_layout_places_every_partition() {
        let layout = first(vec![member(3), member(1), member(2)], 3).unwrap();
        assert_eq!(layout.epoch, Epoch(1));
        for partition in layout.partitions.all() {
            assert_eq!(layout.replica_sets(partition).nodes().count(), 3);
        }
        assert_eq!(layout.owned(NodeId([2; 16])), 16);
        assert_eq!(layout.member(NodeId([3; 16])), Some(&member(3)));
    }

    #[test]
    fn a_new_keyspace_has_a_name_that_can_be_typed() {
        let longest = "a".repeat(KEYSPACE_NAME_MAX);
        for name in ["a", "carts", "carts-2", "a_b", "0", &longest] {
            assert!(is_keyspace_name(name), "{name}");
        }
        for name in ["", "A", "a b", "-a", "a-", "_", "é", "a/b", "a=b", &format!("{longest}a")] {
            assert!(!is_keyspace_name(name), "{name}");
        }
    }

    #[test]
    fn what_breaks_a_rule_is_refused() {
        let clone = Member { node: NodeId([2; 16]), ..member(1) };
        let cases = [
            (first(vec![member(1)], 3), LayoutError::ReplicationFactor(3)),
            (first(vec![member(1)], 0), LayoutError::ReplicationFactor(0)),
            (first(vec![], 0), LayoutError::Members(0)),
            (first(vec![member(1), member(1)], 1), LayoutError::MemberOrder),
            (first(vec![member(1), clone], 1), LayoutError::SharedActor(NodeId([1; 16]), NodeId([2; 16]))),
            (first(vec![Member { weight: 0, ..member(1) }], 1), LayoutError::NoWeight(NodeId([1; 16]))),
        ];
        for (result, error) in cases {
            assert_eq!(result, Err(error));
        }
        let mut other = first(vec![member(1), member(2)], 2).unwrap();
        other.members.pop();
        assert_eq!(other.validate(), Err(LayoutError::ReplicationFactor(2)));
    }

    #[test]
    fn the_digest_tells_layouts_apart_and_never_changes() {
        let layout = first(vec![member(1), member(2), member(3)], 3).unwrap();
        let renamed = first(vec![member(1), member(2), Member { name: "x".into(), ..member(3) }], 3).unwrap();
        assert_ne!(layout.digest(), renamed.digest());
        assert_eq!(layout.digest(), DIGEST_OF_THE_FIRST_RELEASE);
    }

    const DIGEST_OF_THE_FIRST_RELEASE: u64 = 0xf91d0c534f22f3a6;
}
