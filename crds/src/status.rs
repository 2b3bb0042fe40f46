//! `KeyStoreCluster`'s status: what the operator saw last.
//!
//! Nothing here is a usage figure (metrics have those), so the status of an idle cluster never changes. Status is
//! a report: the operator decides from the nodes and their layout.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct KeyStoreClusterStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// How many pods exist.
    #[serde(default)]
    pub replicas: i32,

    /// How many pods serve.
    #[serde(default)]
    pub ready_replicas: i32,

    /// The label selector of the pods, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,

    /// The image of the storage nodes: the spec's, or the operator's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,

    /// The identity of the store, minted once before its nodes are initialised and kept in their volumes.
    #[serde(default, rename = "clusterID", skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,

    /// The number of the layout in force; it only grows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<i64>,

    /// The phase of the layout in force: stable, or joint while data moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout_phase: Option<LayoutPhase>,

    /// The long-running change that the operator is driving; absent when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,

    /// The storage nodes, by pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["pod"]))]
    pub nodes: Vec<NodeStatus>,

    /// Ready, Available, Progressing, Degraded, Stalled and UpdatePending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// The condition types of a KeyStoreCluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    Ready,
    Available,
    Progressing,
    Degraded,
    Stalled,
    UpdatePending,
}

impl ConditionType {
    pub const ALL: [Self; 6] =
        [Self::Ready, Self::Available, Self::Progressing, Self::Degraded, Self::Stalled, Self::UpdatePending];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Available => "Available",
            Self::Progressing => "Progressing",
            Self::Degraded => "Degraded",
            Self::Stalled => "Stalled",
            Self::UpdatePending => "UpdatePending",
        }
    }
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LayoutPhase {
    Stable,
    Joint,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
pub struct Operation {
    /// What is being done: Create, ScaleUp, ScaleDown or Replace (of nodes that are lost).
    pub kind: OperationKind,

    /// How many nodes held the data, or were about to, when it began; absent for Create.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<i32>,

    /// How many nodes are to hold the data; absent for Create.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<i32>,

    /// How far it is. Create: WaitingForNames, WaitingForNodes, Initializing or WaitingForPods. The others: StartingPods,
    /// GivingUp, Joining, Moving, Salvaging, Finishing, TurningBack, Dismissing or RemovingPods.
    pub phase: String,

    /// When it began.
    pub since: Time,

    /// What it is doing or waiting for.
    pub message: String,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationKind {
    Create,
    ScaleUp,
    ScaleDown,
    Replace,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// The pod that the node runs in.
    pub pod: String,

    /// The node's identity, kept in its volume.
    #[serde(default, rename = "nodeID", skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,

    /// The zone that the layout names for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,

    /// The version of its binary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,

    /// joining (it does not hold all of its data yet), serving, draining (it is about to stop, or data moves away from
    /// it), down, or lost (it has been given up, and its data is rebuilt elsewhere).
    pub state: NodeState,

    /// Since when neither the operator nor any other node has reached it; of a lost node, since when its pod is away.
    #[serde(default, rename = "downSince", skip_serializing_if = "Option::is_none")]
    pub down_since: Option<Time>,

    /// How many partitions it holds a copy of.
    #[serde(default)]
    pub partitions: i32,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    Joining,
    Serving,
    Draining,
    Down,
    Lost,
}
