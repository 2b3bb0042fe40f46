//! What a node says of itself and its peers, checked.

use std::fmt;

use keystore_core::id::{Actor, ClusterId, Epoch, Generation, Incarnation, NodeId};
use keystore_core::stamp::Stamp;
use keystore_proto::v1;

/// How far a node has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeState {
    /// Belongs to no cluster yet.
    Uninitialized,
    /// Has accepted a first layout and waits until all members have.
    Accepted,
    Serving,
    /// Ends what is under way and is about to stop.
    Draining,
}

impl NodeState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Uninitialized => "uninitialized",
            Self::Accepted => "accepted",
            Self::Serving => "serving",
            Self::Draining => "draining",
        }
    }

    pub(crate) fn from_proto(state: v1::NodeState) -> Option<Self> {
        match state {
            v1::NodeState::Unspecified => None,
            v1::NodeState::Uninitialized => Some(Self::Uninitialized),
            v1::NodeState::Accepted => Some(Self::Accepted),
            v1::NodeState::Serving => Some(Self::Serving),
            v1::NodeState::Draining => Some(Self::Draining),
        }
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    pub node: NodeId,
    pub actor: Actor,
    pub name: String,
    pub version: String,
    pub state: NodeState,
    /// `None` before init.
    pub cluster: Option<ClusterId>,
    pub incarnation: Incarnation,
    pub epoch: Epoch,
    pub generation: Generation,
    pub partitions_owned: u32,
    /// How many partitions have a write quorum among the replicas that this node reaches.
    pub partitions_available: u32,
    /// Every other member of the layout.
    pub peers: Vec<PeerStatus>,
    pub disk: DiskStatus,
    /// host:port, as announced to others.
    pub client_address: String,
    pub peer_address: String,
    pub engine: String,
    /// The highest stamp that the node has issued or seen.
    pub clock: Option<Stamp>,
}

/// What a node says of another member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    pub node: NodeId,
    pub name: String,
    pub zone: String,
    /// True while a link to it is up.
    pub connected: bool,
    /// True if gossip believes it to be alive.
    pub alive: bool,
    pub generation: Generation,
    pub client_address: String,
    pub peer_address: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskStatus {
    pub total_bytes: u64,
    pub available_bytes: u64,
    /// True past the hard limit: client writes are refused.
    pub full: bool,
}

/// The error is what is wrong with the answer.
impl TryFrom<v1::GetStatusResponse> for NodeStatus {
    type Error = &'static str;

    fn try_from(status: v1::GetStatusResponse) -> Result<Self, &'static str> {
        let cluster = match status.cluster_id.len() {
            0 => None,
            _ => Some(ClusterId::from_slice(&status.cluster_id).ok_or("the cluster has no valid UUID")?),
        };
        let disk = status.disk.unwrap_or_default();
        let incarnation = status.incarnation.unwrap_or_default();
        Ok(Self {
            node: NodeId::from_slice(&status.node_id).ok_or("the node has no valid UUID")?,
            actor: Actor(status.actor),
            state: NodeState::from_proto(status.state()).ok_or("the node's state is not known")?,
            cluster,
            incarnation: incarnation.into(),
            epoch: Epoch(status.epoch),
            generation: Generation(status.generation),
            partitions_owned: status.partitions_owned,
            partitions_available: status.partitions_available,
            peers: status.peers.into_iter().map(PeerStatus::try_from).collect::<Result<_, _>>()?,
            disk: DiskStatus {
                total_bytes: disk.total_bytes,
                available_bytes: disk.available_bytes,
                full: disk.full,
            },
            clock: Stamp::from_slice(&status.clock),
            name: status.name,
            version: status.version,
            client_address: status.client_address,
            peer_address: status.peer_address,
            engine: status.engine,
        })
    }
}

impl TryFrom<v1::PeerStatus> for PeerStatus {
    type Error = &'static str;

    fn try_from(peer: v1::PeerStatus) -> Result<Self, &'static str> {
        Ok(Self {
            node: NodeId::from_slice(&peer.node_id).ok_or("a peer has no valid UUID")?,
            name: peer.name,
            zone: peer.zone,
            connected: peer.connected,
            alive: peer.alive,
            generation: Generation(peer.generation),
            client_address: peer.client_address,
            peer_address: peer.peer_address,
        })
    }
}
