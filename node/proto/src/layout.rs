//! The layout on the wire and on disk: one message for both.
//!
//! Whatever is read is validated as a layout before anybody sees it, so a layout that came from a peer, an
//! administrator or a file keeps the same rules as one that was made here.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use keystore_core::id::{Actor, ClusterId, Epoch, NodeId};
use keystore_core::layout::{KeyspaceMode, Layout, LayoutError, Member, Phase, first_voters};
use keystore_core::partition::{Partition, PartitionCount, PartitionCountError};
use keystore_core::ring::{Replica, Ring};
use thiserror::Error;

use crate::error::WireError;
use crate::{field, v1};

/// Why a message is no layout. Nothing of it has been used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LayoutWireError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Partitions(#[from] PartitionCountError),
    #[error("the layout's phase is {0}, which this version does not know")]
    Phase(i32),
    #[error("a replica or voter is member number {index}, but there are {members}")]
    MemberIndex { index: u32, members: usize },
    #[error("the mode of a keyspace is {0}, which this version does not know")]
    KeyspaceMode(i32),
    #[error("the keyspace \"{0}\" is named twice")]
    KeyspaceTwice(String),
    #[error(transparent)]
    Invalid(#[from] LayoutError),
}

impl From<&Layout> for v1::Layout {
    fn from(layout: &Layout) -> Self {
        let Layout {
            cluster,
            incarnation,
            epoch,
            phase,
            phase_since,
            partitions,
            replication_factor,
            members,
            voters,
            departed,
            salvaged,
            recovered_from,
            keyspaces,
        } = layout;
        let (phase, ring, next_ring) = match phase {
            Phase::Stable(ring) => (v1::LayoutPhase::Stable, ring, None),
            Phase::Joint { from, to } => (v1::LayoutPhase::Joint, from, Some(to)),
        };
        Self {
            cluster_id: field::uuid_bytes(&cluster.0),
            incarnation: Some((*incarnation).into()),
            epoch: epoch.0,
            phase: phase.into(),
            partitions: partitions.get().into(),
            replication_factor: u32::try_from(*replication_factor)
                .expect("a valid layout's replication factor is below 8"),
            members: members.iter().map(v1::Member::from).collect(),
            keyspaces: keyspaces.iter().map(|(name, mode)| keyspace_to_wire(name, *mode)).collect(),
            ring: ring_to_wire(ring, members),
            next_ring: next_ring.map_or_else(Vec::new, |ring| ring_to_wire(ring, members)),
            phase_since: phase_since.0,
            voters: voters.iter().map(|voter| index_of(*voter, members)).collect(),
            departed: departed.iter().map(|node| field::uuid_bytes(&node.0)).collect(),
            salvaged: salvaged.iter().map(|salvaged| salvaged_to_wire(salvaged, members)).collect(),
            recovered_from: recovered_from.map(|(incarnation, epoch)| v1::RecoveredFrom {
                incarnation: Some(incarnation.into()),
                epoch: epoch.0,
            }),
        }
    }
}

impl TryFrom<v1::Layout> for Layout {
    type Error = LayoutWireError;

    fn try_from(message: v1::Layout) -> Result<Self, LayoutWireError> {
        let v1::Layout {
            cluster_id,
            incarnation,
            epoch,
            phase,
            partitions,
            replication_factor,
            members,
            keyspaces,
            ring,
            next_ring,
            phase_since,
            voters,
            departed,
            salvaged,
            recovered_from,
        } = message;
        let members = members.into_iter().map(Member::try_from).collect::<Result<Vec<_>, _>>()?;
        let mut modes = BTreeMap::new();
        for v1::Keyspace { name, mode } in keyspaces {
            if modes.insert(name.clone(), keyspace_mode(mode)?).is_some() {
                return Err(LayoutWireError::KeyspaceTwice(name));
            }
        }
        let from = ring_from_wire(&ring, &members)?;
        let phase = match v1::LayoutPhase::try_from(phase) {
            Ok(v1::LayoutPhase::Stable) => Phase::Stable(from),
            Ok(v1::LayoutPhase::Joint) => Phase::Joint { from, to: ring_from_wire(&next_ring, &members)? },
            Ok(v1::LayoutPhase::Unspecified) | Err(_) => return Err(LayoutWireError::Phase(phase)),
        };
        let voters = match voters.is_empty() {
            true => first_voters(&members),
            false => voters.iter().map(|index| member_of(*index, &members)).collect::<Result<_, _>>()?,
        };
        let departed = departed.iter().map(|node| Ok(NodeId(field::sixteen("departed", node)?)));
        let salvaged = salvaged.iter().map(|salvaged| salvaged_from_wire(salvaged, &members));
        let salvaged = salvaged.collect::<Result<_, _>>()?;
        let recovered_from = recovered_from.map(|v1::RecoveredFrom { incarnation, epoch }| {
            let incarnation = incarnation.ok_or(WireError::Missing("recovered_from.incarnation"))?;
            Ok::<_, WireError>((incarnation.into(), Epoch(epoch)))
        });
        let layout = Self {
            cluster: ClusterId(field::sixteen("cluster_id", &cluster_id)?),
            incarnation: incarnation.ok_or(WireError::Missing("incarnation"))?.into(),
            epoch: Epoch(epoch),
            phase,
            phase_since: Epoch(phase_since.max(1)),
            partitions: PartitionCount::new(partitions)?,
            replication_factor: usize::try_from(replication_factor).unwrap_or(usize::MAX),
            members,
            voters,
            departed: departed.collect::<Result<_, WireError>>()?,
            salvaged,
            recovered_from: recovered_from.transpose()?,
            keyspaces: modes,
        };
        layout.validate()?;
        Ok(layout)
    }
}

fn keyspace_to_wire(name: &str, mode: KeyspaceMode) -> v1::Keyspace {
    let mode = match mode {
        KeyspaceMode::Lww => v1::KeyspaceMode::Lww,
        KeyspaceMode::Siblings => v1::KeyspaceMode::Siblings,
    };
    v1::Keyspace { name: name.to_owned(), mode: mode.into() }
}

fn keyspace_mode(mode: i32) -> Result<KeyspaceMode, LayoutWireError> {
    match v1::KeyspaceMode::try_from(mode) {
        Ok(v1::KeyspaceMode::Unspecified | v1::KeyspaceMode::Lww) => Ok(KeyspaceMode::Lww),
        Ok(v1::KeyspaceMode::Siblings) => Ok(KeyspaceMode::Siblings),
        Err(_) => Err(LayoutWireError::KeyspaceMode(mode)),
    }
}

impl From<&Member> for v1::Member {
    fn from(member: &Member) -> Self {
        let Member { node, actor, name, zone, weight, is_lost } = member;
        Self {
            node_id: Bytes::copy_from_slice(&node.0),
            actor: actor.0,
            name: name.clone(),
            zone: zone.clone(),
            weight: *weight,
            lost: *is_lost,
        }
    }
}

impl TryFrom<v1::Member> for Member {
    type Error = WireError;

    fn try_from(message: v1::Member) -> Result<Self, WireError> {
        let v1::Member { node_id, actor, name, zone, weight, lost } = message;
        Ok(Self {
            node: NodeId(field::sixteen("node_id", &node_id)?),
            actor: Actor(actor),
            name,
            zone,
            weight,
            is_lost: lost,
        })
    }
}

fn index_of(node: NodeId, members: &[Member]) -> u32 {
    let index = members.iter().position(|member| member.node == node);
    let index = index.expect("a valid layout's replicas and voters are members");
    u32::try_from(index).expect("a valid layout has few members")
}

fn ring_to_wire(ring: &Ring, members: &[Member]) -> Vec<v1::PartitionReplicas> {
    let replica = |replica: &Replica| v1::Replica {
        member: index_of(replica.node, members),
        since_epoch: replica.since.0,
    };
    ring.iter()
        .map(|(_, replicas)| v1::PartitionReplicas { replicas: replicas.iter().map(replica).collect() })
        .collect()
}

fn member_of(index: u32, members: &[Member]) -> Result<NodeId, LayoutWireError> {
    let member = usize::try_from(index).ok().and_then(|index| members.get(index));
    member.map(|member| member.node).ok_or(LayoutWireError::MemberIndex { index, members: members.len() })
}

fn salvaged_to_wire(
    (partition, sources): (&Partition, &BTreeSet<NodeId>),
    members: &[Member],
) -> v1::SalvagedPartition {
    let sources = sources.iter().map(|source| index_of(*source, members)).collect();
    v1::SalvagedPartition { partition: partition.0.into(), sources }
}

fn salvaged_from_wire(
    wire: &v1::SalvagedPartition,
    members: &[Member],
) -> Result<(Partition, BTreeSet<NodeId>), LayoutWireError> {
    let v1::SalvagedPartition { partition, sources } = wire;
    let partition = u16::try_from(*partition).map_err(|_| WireError::Partition(*partition))?;
    let sources = sources.iter().map(|index| member_of(*index, members));
    Ok((Partition(partition), sources.collect::<Result<_, _>>()?))
}

fn ring_from_wire(ring: &[v1::PartitionReplicas], members: &[Member]) -> Result<Ring, LayoutWireError> {
    let replica = |wire: &v1::Replica| {
        Ok(Replica { node: member_of(wire.member, members)?, since: Epoch(wire.since_epoch) })
    };
    let partitions = ring.iter().map(|partition| partition.replicas.iter().map(replica).collect());
    Ok(Ring::new(partitions.collect::<Result<Vec<_>, LayoutWireError>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use keystore_core::id::Incarnation;
    use keystore_core::layout::FirstLayout;
    use prost::Message as _;

    fn layout() -> Layout {
        let member = |n: u8| Member {
            node: NodeId([n; 16]),
            actor: Actor(u64::from(n) << 40),
            name: format!("demo-{n}"),
            zone: format!("zone-{}", n % 2),
            weight: n.into(),
            is_lost: false,
        };
        Layout::first(FirstLayout {
            cluster: ClusterId([9; 16]),
            incarnation: Incarnation { number: 1, id: 77 },
            partitions: PartitionCount::new(32).unwrap(),
            replication_factor: 3,
            members: (1..=4).map(member).collect(),
            keyspaces: BTreeMap::from([("causal".to_owned(), KeyspaceMode::Siblings)]),
        })
        .unwrap()
    }

    #[test]
    fn a_layout_reads_back_from_its_bytes() {
        let bytes = v1::Layout::from(&layout()).encode_to_vec();
        let message = v1::Layout::decode(bytes.as_slice()).unwrap();
        let read = Layout::try_from(message).unwrap();
        assert_eq!(read, layout());
        assert_eq!(read.digest(), layout().digest());
    }

    #[test]
    fn a_message_that_is_no_layout_is_refused() {
        type Spoil = fn(&mut v1::Layout);
        let cases: [(Spoil, LayoutWireError); 7] = [
            (|it| it.phase = 7, LayoutWireError::Phase(7)),
            (|it| it.incarnation = None, WireError::Missing("incarnation").into()),
            (|it| it.partitions = 33, LayoutWireError::Partitions(PartitionCountError(33))),
            (|it| it.ring[0].replicas[0].member = 4, LayoutWireError::MemberIndex { index: 4, members: 4 }),
            (
                |it| it.keyspaces.push(it.keyspaces[0].clone()),
                LayoutWireError::KeyspaceTwice("causal".into()),
            ),
            (
                |it| it.cluster_id = Bytes::from_static(b"short"),
                WireError::Length { field: "cluster_id", found: 5, expected: 16 }.into(),
            ),
            (|it| it.epoch = 0, LayoutWireError::Invalid(LayoutError::NoEpoch)),
        ];
        for (spoil, error) in cases {
            let mut message = v1::Layout::from(&layout());
            spoil(&mut message);
            assert_eq!(Layout::try_from(message), Err(error));
        }
    }
}
