//! What one look at Kubernetes and at the nodes saw.
//!
//! Filled by the controller's observe step and by nothing else. A node that did not answer is `Unreachable`, which
//! says nothing about what it holds.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
pub use keystore_core::id::{Actor, ClusterId, Epoch, Incarnation, NodeId};
pub use keystore_core::layout::{Layout, Term};
use keystore_crds::KeyStoreCluster;

use crate::names::Names;

/// Everything a reconcile knows. Children are as they live in the API server, `None` where there is none.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    pub children: Children,
    /// By ordinal: every pod of the StatefulSet's range that exists.
    pub pods: BTreeMap<u32, Pod>,
    /// By ordinal: what each expected node said.
    pub answers: BTreeMap<u32, Answer>,
    /// By ordinal: the zone of the Kubernetes node that the pod runs on; absent where it has none or no label.
    pub zones: BTreeMap<u32, String>,
    /// The newest layout that any node holds.
    pub layout: Option<HeldLayout>,
}

#[derive(Debug, Clone, Default)]
pub struct Children {
    pub service_account: Option<ServiceAccount>,
    pub headless_service: Option<Service>,
    pub client_service: Option<Service>,
    pub budget: Option<PodDisruptionBudget>,
    pub stateful_set: Option<StatefulSet>,
    /// By name: all that are named as this cluster's and controlled by it, and the wanted one whoever owns it.
    pub config_maps: BTreeMap<String, ConfigMap>,
    /// The names of ConfigMaps that a ControllerRevision of the StatefulSet still needs.
    pub config_maps_in_use: Vec<String>,
}

/// What a node said when it was asked for its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Here(NodeAnswer),
    /// No pod, no address, no connection, no answer in time, or an answer from another node.
    Unreachable,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeAnswer {
    pub node: NodeId,
    pub actor: Actor,
    pub version: String,
    pub mode: NodeMode,
    /// The cluster that it belongs to, once it has accepted a first layout.
    pub cluster: Option<ClusterId>,
    /// Of the layout that it holds.
    pub incarnation: Incarnation,
    pub epoch: Epoch,
    /// Of how many partitions it reaches a write quorum of replicas, itself included.
    pub partitions_available: u32,
    /// The members that it has a link to.
    pub connected: BTreeSet<NodeId>,
    pub transfer: Transfer,
    /// Something that it holds is damaged, and counts for nothing until other nodes have healed it.
    pub is_in_doubt: bool,
    /// `None` where it does not say.
    pub disk: Option<Disk>,
}

/// How far a node has taken over what others hold, while data moves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transfer {
    /// How many partitions it has to take over, and of how many it has.
    pub partitions: u32,
    pub partitions_done: u32,
    /// What is missing at all nodes before the move can end, as far as this one has heard; `None` if nothing is.
    pub waits_for: Option<String>,
}

/// The file system that holds a node's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    pub total_bytes: u64,
    pub available_bytes: u64,
    /// Of what is in use, what the node will free when it needs the space.
    pub set_aside_bytes: u64,
    /// Past its limit: it takes nothing any more that would make it fuller.
    pub is_full: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeMode {
    Uninitialized,
    Accepted,
    Serving,
    Draining,
}

/// A layout as one node holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldLayout {
    pub layout: Layout,
    /// True once all members have accepted it: it is in force.
    pub decided: bool,
}

impl Answer {
    pub fn here(&self) -> Option<&NodeAnswer> {
        match self {
            Self::Here(answer) => Some(answer),
            Self::Unreachable => None,
        }
    }
}

impl NodeAnswer {
    /// Which layout of its store it holds; a later one is greater. Epochs alone do not tell: those whom a recovery left
    /// behind may have gone on by themselves.
    pub fn term(&self) -> Term {
        (self.incarnation, self.epoch)
    }

    /// True if it holds this layout.
    pub fn holds(&self, layout: &Layout) -> bool {
        self.cluster == Some(layout.cluster) && self.term() == layout.term()
    }
}

impl Observed {
    /// The nodes that answered, by ordinal.
    pub fn heard(&self) -> impl Iterator<Item = (u32, &NodeAnswer)> {
        self.answers.iter().filter_map(|(ordinal, answer)| Some((*ordinal, answer.here()?)))
    }

    /// True if the pod of this ordinal is reported ready, is to stay, and belongs to the StatefulSet that lives now
    /// (one of an earlier StatefulSet still has the name for a moment).
    pub fn is_ready(&self, ordinal: u32) -> bool {
        let conditions =
            |pod: &Pod| pod.status.clone().and_then(|status| status.conditions).unwrap_or_default();
        self.pods.get(&ordinal).is_some_and(|pod| {
            pod.metadata.deletion_timestamp.is_none()
                && self.is_of_the_set(pod)
                && conditions(pod).iter().any(|c| c.type_ == "Ready" && c.status == "True")
        })
    }

    /// False of a pod of an earlier StatefulSet.
    fn is_of_the_set(&self, pod: &Pod) -> bool {
        let set = self.children.stateful_set.as_ref().and_then(|set| set.metadata.uid.as_ref());
        let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
        owners.iter().all(|owner| owner.controller != Some(true) || Some(&owner.uid) == set)
    }

    /// True if there is no such pod, or it is about to be none.
    pub fn has_ended(&self, ordinal: u32) -> bool {
        self.pods.get(&ordinal).is_none_or(|pod| pod.metadata.deletion_timestamp.is_some())
    }

    /// True if there is such a pod, and it is to stay: the StatefulSet asks for it, its controller knows that, and nobody has
    /// told the pod to end. The StatefulSet is read before the pods, so one that its controller ended earlier is seen to end.
    pub fn stays(&self, ordinal: u32) -> bool {
        let is_known = self.children.stateful_set.as_ref().is_some_and(|set| {
            set.status.as_ref().and_then(|status| status.observed_generation) >= set.metadata.generation
        });
        is_known
            && self.live_replicas().is_some_and(|live| ordinal < live)
            && !self.has_ended(ordinal)
            && self.pods.get(&ordinal).is_some_and(|pod| self.is_of_the_set(pod))
    }

    /// How many pods the live StatefulSet asks for.
    pub fn live_replicas(&self) -> Option<u32> {
        let spec = self.children.stateful_set.as_ref()?.spec.as_ref()?;
        u32::try_from(spec.replicas.unwrap_or(1)).ok()
    }
}

/// How many nodes have to be asked before anything may be concluded from silence: those the spec asks for, those
/// that the StatefulSet runs, and those that once belonged.
pub fn expected_nodes(cluster: &KeyStoreCluster, names: &Names, live_replicas: Option<u32>) -> u32 {
    let asked = u32::try_from(cluster.spec.replicas).unwrap_or(0);
    let minted = cluster.status.as_ref().is_some_and(|status| status.cluster_id.is_some());
    let known = if minted { known_pods(cluster, names) } else { 0 };
    asked.max(live_replicas.unwrap_or(0)).max(known)
}

/// How many pods it took to run every node that the status names.
pub(crate) fn known_pods(cluster: &KeyStoreCluster, names: &Names) -> u32 {
    let nodes = cluster.status.as_ref().map(|status| status.nodes.as_slice()).unwrap_or_default();
    let ordinals = nodes.iter().filter_map(|node| names.ordinal(&node.pod));
    ordinals.max().map_or(0, |highest| highest.saturating_add(1)).min(PODS_MAX)
}

/// A status that was tampered with must not have thousands of pods asked.
const PODS_MAX: u32 = keystore_core::layout::MEMBERS_MAX as u32;
