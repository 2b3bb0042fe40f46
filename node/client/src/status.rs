//! What a node says of itself and its peers, checked.

use bytes::Bytes;
use keystore_core::id::{Actor, ClusterId, Epoch, Generation, Incarnation, NodeId};
use keystore_core::node::NodeState;
use keystore_core::stamp::Stamp;
use keystore_proto::admin::node_state_from_wire;
use keystore_proto::v1;

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
    /// For how many keys the node is in doubt: a record was damaged and has not been healed yet.
    pub doubted_keys: u32,
    /// Those that have been in doubt for the longest time, the oldest first, a few at most.
    pub doubted: Vec<DoubtedKey>,
    /// The partitions in which the node counts for nothing, for something of them cannot be read there.
    pub doubted_partitions: Vec<DoubtedPartition>,
    pub hints: HintStatus,
    pub transfer: TransferStatus,
}

/// How far a node has taken over what others hold, while data moves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TransferStatus {
    /// How many partitions it has to take over, and of how many it has.
    pub partitions: u32,
    pub partitions_done: u32,
    /// Since its process started.
    pub records: u64,
    pub bytes: u64,
    /// About how many records did not have to come, for the node held them already; since its process started.
    pub records_held: u64,
    /// How long what is left will take at the pace so far; `None` while nobody can tell, or if nothing is left.
    pub remaining_ms: Option<u64>,
    /// What is missing at all nodes before the move can end, as far as this one has heard; `None` if nothing is.
    pub waits_for: Option<String>,
}

/// A key for which a node is in doubt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DoubtedKey {
    pub keyspace: String,
    pub key: Bytes,
    pub doubted_ms: u64,
}

/// A partition of which something cannot be read at a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DoubtedPartition {
    pub partition: u32,
    pub doubted_ms: u64,
}

/// That other nodes may have missed writes of keys that this node holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HintStatus {
    pub pending: u64,
    /// What they take up in memory, about.
    pub bytes: u64,
    /// For each node that has any, how many.
    pub targets: Vec<(NodeId, u64)>,
    /// Partitions of which a hint was dropped, so that repair alone finds what is missing there.
    pub partitions_wanted_by_repair: u32,
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
    /// The latest epoch that it has acknowledged, as far as the node has heard; 0 if it has not.
    pub epoch: Epoch,
    pub client_address: String,
    pub peer_address: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskStatus {
    pub total_bytes: u64,
    pub available_bytes: u64,
    /// True past the hard limit: client writes are refused.
    pub full: bool,
    /// Of what is used, what is kept of a node that the directory is not any more: it goes when it is in the way.
    pub set_aside_bytes: u64,
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
            state: node_state_from_wire(status.state()).ok_or("the node's state is not known")?,
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
                set_aside_bytes: disk.set_aside_bytes,
            },
            clock: Stamp::from_slice(&status.clock),
            doubted_keys: status.doubted_keys,
            doubted: status.doubted.into_iter().map(DoubtedKey::from).collect(),
            doubted_partitions: status
                .doubted_partitions
                .into_iter()
                .map(|doubted| DoubtedPartition {
                    partition: doubted.partition,
                    doubted_ms: doubted.doubted_ms,
                })
                .collect(),
            hints: status.hints.unwrap_or_default().try_into()?,
            transfer: status.transfer.unwrap_or_default().into(),
            name: status.name,
            version: status.version,
            client_address: status.client_address,
            peer_address: status.peer_address,
            engine: status.engine,
        })
    }
}

impl From<v1::TransferStatus> for TransferStatus {
    fn from(transfer: v1::TransferStatus) -> Self {
        let v1::TransferStatus {
            partitions,
            partitions_done,
            records,
            bytes,
            waits_for,
            records_held,
            remaining_ms,
        } = transfer;
        let waits_for = (!waits_for.is_empty()).then_some(waits_for);
        Self { partitions, partitions_done, records, bytes, records_held, remaining_ms, waits_for }
    }
}

impl From<v1::DoubtedKey> for DoubtedKey {
    fn from(v1::DoubtedKey { keyspace, key, doubted_ms }: v1::DoubtedKey) -> Self {
        Self { keyspace, key, doubted_ms }
    }
}

impl TryFrom<v1::HintStatus> for HintStatus {
    type Error = &'static str;

    fn try_from(hints: v1::HintStatus) -> Result<Self, &'static str> {
        let v1::HintStatus { pending, bytes, targets, partitions_wanted_by_repair } = hints;
        let target = |target: v1::HintTarget| {
            let node = NodeId::from_slice(&target.node_id).ok_or("a hint's target has no valid UUID")?;
            Ok::<_, &'static str>((node, target.pending))
        };
        let targets = targets.into_iter().map(target).collect::<Result<_, _>>()?;
        Ok(Self { pending, bytes, targets, partitions_wanted_by_repair })
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
            epoch: Epoch(peer.epoch),
            client_address: peer.client_address,
            peer_address: peer.peer_address,
        })
    }
}
