//! Which store the pods hold: none yet, one, or more than one.
//!
//! A cluster's identity is minted once, and only when every expected node has answered and none belongs to a store.
//! From then on the first layout is sent again, the very same, until all members have accepted it. Whatever a node
//! holds wins over a status that names no store. One that names another store than theirs is a conflict: a node that is
//! silent now may hold the one it names. Silence is never taken for emptiness.

use std::collections::{BTreeMap, BTreeSet};

use keystore_core::id::{ClusterId, Epoch, Incarnation, NodeId};
use keystore_core::layout::{FirstLayout, Layout, LayoutError, Member};

use crate::observed::{NodeAnswer, NodeMode, Observed};
use crate::validate::ValidCluster;

/// What the status remembers of earlier decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Remembered {
    /// Minted, and perhaps sent to some nodes.
    pub cluster: Option<ClusterId>,
    /// A layout has been in force.
    pub was_in_force: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// The layout is in force.
    InForce { layout: Layout },
    /// Some members have accepted this first layout; it takes force when all have.
    Accepting { layout: Layout },
    /// Every expected node answered and none belongs to a store; the UUID is in the status, this is the layout.
    Empty { layout: Layout },
    /// As `Empty`, but no UUID is in the status yet.
    Nameless,
    /// Nothing may be concluded until these ordinals answer.
    Unknown { silent: BTreeSet<u32> },
    /// The store has been in force, every node answers, and none holds it any more.
    AllReplaced,
    /// Nodes hold different stores, or another than the status names. Nothing may be touched.
    Conflict {
        /// What the nodes hold.
        clusters: BTreeSet<ClusterId>,
        /// What the status names, where no node that answers holds it.
        missing: Option<ClusterId>,
    },
    /// The layout that would be first cannot be made.
    Impossible { error: LayoutError },
}

/// Decides from what the nodes answered and from what the status remembers.
pub fn decide(cluster: &ValidCluster, observed: &Observed, remembered: Remembered) -> Identity {
    if let Some(conflict) = find_conflict(observed, remembered) {
        return conflict;
    }
    if let Some(held) = &observed.layout {
        let layout = held.layout.clone();
        // Members that do not know yet whether all have accepted, and a status that does; or a recovery on its way, which
        // goes on from what was in force.
        let was_in_force = remembered.was_in_force && remembered.cluster == Some(layout.cluster);
        let in_force = held.decided || was_in_force || layout.epoch > Epoch(1);
        return if in_force { Identity::InForce { layout } } else { Identity::Accepting { layout } };
    }
    let silent = silent(cluster, observed, remembered);
    if !silent.is_empty() {
        return Identity::Unknown { silent };
    }
    match remembered.cluster {
        _ if remembered.was_in_force => Identity::AllReplaced,
        None => Identity::Nameless,
        Some(id) => match first_layout(cluster, observed, id) {
            Ok(layout) => Identity::Empty { layout },
            Err(error) => Identity::Impossible { error },
        },
    }
}

/// That a UUID was minted and sent to no node cannot be proven while a node may have lost its volume since: a store
/// that the status names counts as one from the moment it is named. (A resource that is made anew names none, and
/// adopts.)
fn find_conflict(observed: &Observed, remembered: Remembered) -> Option<Identity> {
    let told = observed.heard().filter_map(|(_, answer)| answer.cluster);
    let clusters: BTreeSet<_> =
        told.chain(observed.layout.as_ref().map(|held| held.layout.cluster)).collect();
    let missing = remembered.cluster.filter(|id| !clusters.is_empty() && !clusters.contains(id));
    (clusters.len() > 1 || missing.is_some()).then_some(Identity::Conflict { clusters, missing })
}

/// The expected nodes that did not answer, or that hold a store but not its layout. Before a UUID exists, a person
/// may still change their mind about the number of nodes, so only those of the spec are waited for.
fn silent(cluster: &ValidCluster, observed: &Observed, remembered: Remembered) -> BTreeSet<u32> {
    let asked = observed.answers.keys().next_back().map_or(0, |last| last + 1);
    let expected = if remembered.cluster.is_some() { asked.max(cluster.replicas) } else { cluster.replicas };
    let heard: BTreeMap<_, _> = observed.heard().collect();
    // One that says both that it belongs to a store and that it was never initialised is not believed the latter.
    let is_empty = |answer: &NodeAnswer| answer.mode == NodeMode::Uninitialized && answer.cluster.is_none();
    let speaks = |ordinal: &u32| heard.get(ordinal).is_some_and(|answer| is_empty(answer));
    let holders = heard.iter().filter(|(_, answer)| !is_empty(answer)).map(|(ordinal, _)| *ordinal);
    (0..expected).filter(|ordinal| !speaks(ordinal)).chain(holders).collect()
}

/// The same answers, zones and UUID always make the same layout, so that an interrupted init can be repeated.
fn first_layout(cluster: &ValidCluster, observed: &Observed, id: ClusterId) -> Result<Layout, LayoutError> {
    let member = |(ordinal, answer): (u32, &NodeAnswer)| Member {
        node: answer.node,
        actor: answer.actor,
        name: cluster.names.pod(ordinal),
        zone: observed.zones.get(&ordinal).cloned().unwrap_or_default(),
        weight: 1,
        is_lost: false,
    };
    let [a, b, c, d, e, f, g, h, ..] = id.0;
    Layout::first(FirstLayout {
        cluster: id,
        // Tells lives of one cluster apart; the first life's id follows from the cluster's own random UUID.
        incarnation: Incarnation { number: 1, id: u64::from_be_bytes([a, b, c, d, e, f, g, h]) },
        partitions: cluster.partitions,
        replication_factor: cluster.replication_factor,
        members: observed.heard().filter(|(ordinal, _)| *ordinal < cluster.replicas).map(member).collect(),
        keyspaces: cluster.keyspaces.clone(),
    })
}

impl Identity {
    /// The layout that is in force or on its way there.
    pub fn layout(&self) -> Option<&Layout> {
        match self {
            Self::InForce { layout } | Self::Accepting { layout } | Self::Empty { layout } => Some(layout),
            Self::Nameless
            | Self::Unknown { .. }
            | Self::AllReplaced
            | Self::Conflict { .. }
            | Self::Impossible { .. } => None,
        }
    }

    /// The members that the nodes themselves have agreed on, by ordinal; `None` while none is known.
    pub fn held_layout(&self) -> Option<&Layout> {
        match self {
            Self::InForce { layout } | Self::Accepting { layout } => Some(layout),
            Self::Empty { .. }
            | Self::Nameless
            | Self::Unknown { .. }
            | Self::AllReplaced
            | Self::Conflict { .. }
            | Self::Impossible { .. } => None,
        }
    }
}

/// True if every member answered in this look, each where the layout names it.
pub fn is_complete(cluster: &ValidCluster, layout: &Layout, observed: &Observed) -> bool {
    let heard: BTreeMap<_, _> = observed.heard().collect();
    layout.members.iter().all(|member| {
        let answer = cluster.names.ordinal(&member.name).and_then(|ordinal| heard.get(&ordinal));
        answer.is_some_and(|answer| answer.node == member.node)
    })
}

/// The ordinals whose node is another one than the layout names there: its volume was lost or exchanged.
pub fn replaced(cluster: &ValidCluster, layout: &Layout, observed: &Observed) -> BTreeMap<u32, NodeId> {
    let heard: BTreeMap<_, _> = observed.heard().collect();
    let named =
        layout.members.iter().filter_map(|member| Some((cluster.names.ordinal(&member.name)?, member.node)));
    // Where two members have one name, the one that answers has come for the other.
    let is_other = |(ordinal, node): &(u32, NodeId)| {
        heard.get(ordinal).is_some_and(|answer| {
            let is_successor =
                layout.member(answer.node).is_some_and(|member| member.name == cluster.names.pod(*ordinal));
            answer.node != *node && !is_successor
        })
    };
    named.filter(is_other).collect()
}
