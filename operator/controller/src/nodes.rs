//! Talking to storage nodes, behind a seam: the real thing speaks gRPC, tests say what they like.
//!
//! A node is dialled at its pod's address, which needs no DNS to have caught up. Addresses are used again by other
//! pods, so an answer counts only if it names the pod that was asked.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use keystore_client::{AdminClient, DiskStatus, NodeState, NodeStatus};
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
        Ok(answer(status))
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

/// What the planner is told of a node's status.
fn answer(status: NodeStatus) -> NodeAnswer {
    let linked = status.peers.iter().filter(|peer| peer.connected);
    let DiskStatus { total_bytes, available_bytes, full: is_full, set_aside_bytes } = status.disk;
    NodeAnswer {
        connected: linked.map(|peer| peer.node).collect(),
        transfer: Transfer {
            partitions: status.transfer.partitions,
            partitions_done: status.transfer.partitions_done,
            waits_for: status.transfer.waits_for,
        },
        is_in_doubt: status.doubted_keys > 0 || !status.doubted_partitions.is_empty(),
        disk: (total_bytes > 0).then_some(Disk { total_bytes, available_bytes, set_aside_bytes, is_full }),
        node: status.node,
        actor: status.actor,
        version: status.version,
        mode: mode(status.state),
        cluster: status.cluster,
        incarnation: status.incarnation,
        epoch: status.epoch,
        partitions_available: status.partitions_available,
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
    use keystore_client::{ClusterId, DoubtedPartition, HintStatus, Incarnation, PeerStatus, TransferStatus};
    use keystore_core::id::{Actor, Generation};
    use serde_json::json;

    use super::*;

    /// Of a member that has all of its data.
    fn status() -> NodeStatus {
        let node = |byte: u8| keystore_client::NodeId([byte; 16]);
        let peer = |byte: u8| PeerStatus {
            node: node(byte),
            name: format!("demo-{byte}"),
            zone: String::new(),
            connected: byte != 3,
            alive: true,
            generation: Generation(1),
            epoch: Epoch(7),
            client_address: String::new(),
            peer_address: String::new(),
        };
        NodeStatus {
            node: node(1),
            actor: Actor(11),
            name: "demo-1".to_owned(),
            version: "0.1.0".to_owned(),
            state: NodeState::Draining,
            cluster: Some(ClusterId([9; 16])),
            incarnation: Incarnation { number: 2, id: 5 },
            epoch: Epoch(7),
            generation: Generation(1),
            partitions_owned: 30,
            partitions_available: 29,
            peers: vec![peer(2), peer(3)],
            disk: DiskStatus::default(),
            client_address: String::new(),
            peer_address: String::new(),
            engine: "sled".to_owned(),
            clock: None,
            doubted_keys: 0,
            doubted: Vec::new(),
            doubted_partitions: Vec::new(),
            hints: HintStatus::default(),
            transfer: TransferStatus::default(),
        }
    }

    #[test]
    fn the_planner_is_told_what_a_node_says() {
        let well = answer(status());
        let expected = NodeAnswer {
            node: keystore_client::NodeId([1; 16]),
            actor: Actor(11),
            version: "0.1.0".to_owned(),
            mode: NodeMode::Draining,
            cluster: Some(ClusterId([9; 16])),
            incarnation: Incarnation { number: 2, id: 5 },
            epoch: Epoch(7),
            partitions_available: 29,
            connected: [keystore_client::NodeId([2; 16])].into(),
            transfer: Transfer::default(),
            is_in_doubt: false,
            disk: None,
        };
        assert_eq!(well, expected);
        let doubted = DoubtedPartition { partition: 3, doubted_ms: 1 };
        for damaged in [
            NodeStatus { doubted_keys: 1, ..status() },
            NodeStatus { doubted_partitions: vec![doubted], ..status() },
        ] {
            assert!(answer(damaged).is_in_doubt);
        }
        let full = DiskStatus { total_bytes: 9, available_bytes: 2, full: true, set_aside_bytes: 1 };
        let disk = Disk { total_bytes: 9, available_bytes: 2, set_aside_bytes: 1, is_full: true };
        assert_eq!(answer(NodeStatus { disk: full, ..status() }).disk, Some(disk));
        let waits_for = Some("a pass".to_owned());
        let transfer = TransferStatus {
            partitions: 4,
            partitions_done: 3,
            waits_for: waits_for.clone(),
            ..TransferStatus::default()
        };
        let told = answer(NodeStatus { transfer, ..status() }).transfer;
        assert_eq!(told, Transfer { partitions: 4, partitions_done: 3, waits_for });
    }

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
