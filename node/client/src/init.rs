//! The first layout of a cluster, made from what its nodes say of themselves.

use std::collections::BTreeMap;

use keystore_core::id::{ClusterId, Incarnation};
use keystore_core::layout::{FirstLayout, KeyspaceMode, Layout, LayoutError, Member};
use keystore_core::partition::PartitionCount;

use crate::status::NodeStatus;

/// What is decided once for a cluster's life.
#[derive(Debug, Clone)]
pub struct Plan {
    pub cluster: ClusterId,
    /// Random, drawn together with the cluster's UUID.
    pub incarnation: u64,
    pub partitions: PartitionCount,
    pub replication_factor: usize,
    /// By name; the default one is added where it is not among them.
    pub keyspaces: BTreeMap<String, KeyspaceMode>,
}

/// Epoch 1 on exactly these nodes, all of the same weight and in no known zone. To be sent, the same, to each.
pub fn plan(plan: Plan, nodes: &[NodeStatus]) -> Result<Layout, LayoutError> {
    let members = nodes
        .iter()
        .map(|node| Member {
            node: node.node,
            actor: node.actor,
            name: node.name.clone(),
            zone: String::new(),
            weight: 1,
            is_lost: false,
        })
        .collect();
    Layout::first(FirstLayout {
        cluster: plan.cluster,
        incarnation: Incarnation { number: 1, id: plan.incarnation },
        partitions: plan.partitions,
        replication_factor: plan.replication_factor,
        members,
        keyspaces: plan.keyspaces,
    })
}
