//! Talking to storage nodes, behind a seam: the real thing speaks gRPC, tests say what they like.
//!
//! A node is dialled at its pod's address, which needs no DNS to have caught up. Addresses are used again by other
//! pods, so an answer counts only if it names the pod that was asked.

use std::time::Duration;

use async_trait::async_trait;
use keystore_client::{AdminClient, NodeState};
use keystore_operator_core::observed::{HeldLayout, Layout, NodeAnswer, NodeMode};
use thiserror::Error;

/// A node that takes longer than this is treated as one that does not answer.
const TIMEOUT: Duration = Duration::from_secs(3);

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
}

/// Where a node is supposed to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeAddress {
    pub(crate) pod: String,
    pub(crate) ip: String,
}

#[async_trait]
pub(crate) trait NodeClient: Send + Sync {
    async fn get_status(&self, node: &NodeAddress) -> Result<NodeAnswer, NodeError>;
    async fn get_layout(&self, node: &NodeAddress) -> Result<Option<HeldLayout>, NodeError>;
    async fn init(&self, node: &NodeAddress, layout: &Layout) -> Result<(), NodeError>;
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
        Ok(NodeAnswer {
            node: status.node,
            actor: status.actor,
            version: status.version,
            mode: mode(status.state),
            cluster: status.cluster,
            epoch: status.epoch.0,
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
        self.result(AdminClient::connect_within(self.address(), TIMEOUT).await)
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
