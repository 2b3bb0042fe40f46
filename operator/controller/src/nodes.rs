//! Talking to storage nodes, behind a seam: the real thing speaks gRPC, tests say what they like.
//!
//! A node is dialled at its pod's address, which needs no DNS to have caught up. Addresses are used again by other
//! pods, so an answer counts only if it names the pod that was asked.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use keystore_client::{AdminClient, DiskStatus, NodeState};
use keystore_operator_core::names::Names;
use keystore_operator_core::observed::{Disk, Epoch, HeldLayout, Layout, NodeAnswer, NodeMode, Transfer};
use thiserror::Error;

/// A node that takes longer than this is treated as one that does not answer.
const TIMEOUT: Duration = Duration::from_secs(3);
/// A node gives up a proposal by itself a little earlier than this.
const PROPOSAL_TIMEOUT: Duration = Duration::from_secs(12);

#[derive(Debug, Error)]
pub(crate) enum NodeError {
    #[error("node {pod} at {address} did not answer")]
    Call {
        pod: String,
        address: String,
        #[source]
        source: keystore_client::Error,
    },
    #[error("at the address of {asked} answers {answered}")]
    Stranger { asked: String, answered: String },
    #[error("pod {pod} has no address")]
    Nowhere { pod: String },
}

/// Where a node is supposed to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeAddress {
    pub(crate) pod: String,
    pub(crate) ip: String,
}

impl NodeAddress {
    /// Of a pod that has ended the address may be another's by now.
    pub(crate) fn find(names: &Names, pods: &BTreeMap<u32, Pod>, ordinal: u32) -> Result<Self, NodeError> {
        let pod = names.pod(ordinal);
        let status = pods.get(&ordinal).and_then(|pod| pod.status.as_ref());
        let has_ended = |phase: &str| matches!(phase, "Succeeded" | "Failed");
        let status = status.filter(|status| !status.phase.as_deref().is_some_and(has_ended));
        match status.and_then(|status| status.pod_ip.clone()) {
            Some(ip) => Ok(Self { pod, ip }),
            None => Err(NodeError::Nowhere { pod }),
        }
    }
}

#[async_trait]
pub(crate) trait NodeClient: Send + Sync {
    async fn get_status(&self, node: &NodeAddress) -> Result<NodeAnswer, NodeError>;
    async fn get_layout(&self, node: &NodeAddress) -> Result<Option<HeldLayout>, NodeError>;
    async fn init(&self, node: &NodeAddress, layout: &Layout) -> Result<(), NodeError>;
    /// Has a layout decided that follows the one of this epoch; returns the one in force then, perhaps another one.
    async fn propose(
        &self,
        node: &NodeAddress,
        expected: Epoch,
        layout: &Layout,
    ) -> Result<Layout, NodeError>;
}

/// Each node's Admin service, at this port of its pod.
pub(crate) struct GrpcNodes {
    pub(crate) port: u16,
}

#[async_trait]
impl NodeClient for GrpcNodes {
    async fn get_status(&self, node: &NodeAddress) -> Result<NodeAnswer, NodeError> {
        let call = Call { node, port: self.port };
        let status = call.result(call.dial().await?.get_status().await)?;
        if status.name != node.pod {
            return Err(NodeError::Stranger { asked: node.pod.clone(), answered: status.name });
        }
        let linked = status.peers.iter().filter(|peer| peer.connected);
        let DiskStatus { total_bytes, available_bytes, full: is_full, set_aside_bytes } = status.disk;
        Ok(NodeAnswer {
            connected: linked.map(|peer| peer.node).collect(),
            transfer: Transfer {
                partitions: status.transfer.partitions,
                partitions_done: status.transfer.partitions_done,
                waits_for: status.transfer.waits_for,
            },
            is_in_doubt: status.doubted_keys > 0 || !status.doubted_partitions.is_empty(),
            disk: (total_bytes > 0).then_some(Disk {
                total_bytes,
                available_bytes,
                set_aside_bytes,
                is_full,
            }),
            node: status.node,
            actor: status.actor,
            version: status.version,
            mode: mode(status.state),
            cluster: status.cluster,
            incarnation: status.incarnation,
            epoch: status.epoch,
            partitions_available: status.partitions_available,
        })
    }

    async fn get_layout(&self, node: &NodeAddress) -> Result<Option<HeldLayout>, NodeError> {
        let call = Call { node, port: self.port };
        let held = call.result(call.dial().await?.get_layout().await)?;
        Ok(held.map(|(layout, decided)| HeldLayout { layout, decided }))
    }

    async fn init(&self, node: &NodeAddress, layout: &Layout) -> Result<(), NodeError> {
        let call = Call { node, port: self.port };
        call.result(call.dial().await?.init(layout).await).map(|_| ())
    }

    async fn propose(
        &self,
        node: &NodeAddress,
        expected: Epoch,
        layout: &Layout,
    ) -> Result<Layout, NodeError> {
        let call = Call { node, port: self.port };
        let admin = call.dial_within(PROPOSAL_TIMEOUT).await?;
        call.result(admin.propose_layout(expected, layout).await)
    }
}

struct Call<'a> {
    node: &'a NodeAddress,
    port: u16,
}

impl Call<'_> {
    fn address(&self) -> String {
        let NodeAddress { ip, .. } = self.node;
        if ip.contains(':') { format!("[{ip}]:{}", self.port) } else { format!("{ip}:{}", self.port) }
    }

    async fn dial(&self) -> Result<AdminClient, NodeError> {
        self.dial_within(TIMEOUT).await
    }

    async fn dial_within(&self, timeout: Duration) -> Result<AdminClient, NodeError> {
        self.result(AdminClient::connect_within(self.address(), timeout).await)
    }

    fn result<T>(&self, result: Result<T, keystore_client::Error>) -> Result<T, NodeError> {
        let (pod, address) = (self.node.pod.clone(), self.address());
        result.map_err(|source| NodeError::Call { pod, address, source })
    }
}

fn mode(state: NodeState) -> NodeMode {
    match state {
        NodeState::Uninitialized => NodeMode::Uninitialized,
        NodeState::Accepted => NodeMode::Accepted,
        NodeState::Serving => NodeMode::Serving,
        NodeState::Draining => NodeMode::Draining,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_that_has_ended_is_at_no_address() {
        let names = Names { namespace: "shop".to_owned(), cluster: "demo".to_owned() };
        for (status, is_there) in [
            (json!({"phase": "Running", "podIP": "10.0.0.1"}), true),
            (json!({"phase": "Pending", "podIP": "10.0.0.1"}), true),
            (json!({"phase": "Pending"}), false),
            (json!({"phase": "Failed", "podIP": "10.0.0.1"}), false),
            (json!({"phase": "Succeeded", "podIP": "10.0.0.1"}), false),
        ] {
            let pod: Pod = serde_json::from_value(json!({"status": status})).expect("a pod");
            let found = NodeAddress::find(&names, &BTreeMap::from([(4, pod)]), 4);
            assert_eq!(found.is_ok(), is_there, "{status}");
        }
    }
}
