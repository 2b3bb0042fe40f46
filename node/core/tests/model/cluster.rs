//! Made-up nodes and layouts.

use std::collections::{BTreeMap, BTreeSet};

use keystore_core::id::{Actor, ClusterId, Incarnation, NodeId};
use keystore_core::layout::{FirstLayout, KeyspaceMode, Layout, Member};
use keystore_core::partition::PartitionCount;
use keystore_core::succession::Change;

pub(crate) fn node(n: u8) -> NodeId {
    NodeId([n; 16])
}

pub(crate) fn nodes(numbers: &[u8]) -> BTreeSet<NodeId> {
    numbers.iter().copied().map(node).collect()
}

pub(crate) fn members(numbers: &[u8]) -> Vec<Member> {
    let member = |n: &u8| Member {
        node: node(*n),
        actor: Actor(u64::from(*n)),
        name: format!("demo-{n}"),
        zone: String::new(),
        weight: 1,
        is_lost: false,
    };
    numbers.iter().map(member).collect()
}

/// Every partition is on each of these nodes.
pub(crate) fn first(numbers: &[u8]) -> Layout {
    Layout::first(FirstLayout {
        cluster: ClusterId([9; 16]),
        incarnation: Incarnation { number: 1, id: 5 },
        partitions: PartitionCount::new(16).unwrap(),
        replication_factor: numbers.len(),
        members: members(numbers),
        keyspaces: BTreeMap::new(),
    })
    .unwrap()
}

pub(crate) fn keyspace(name: &str) -> Change {
    Change::Keyspaces([(name.to_owned(), KeyspaceMode::Lww)].into())
}

/// Every partition is to be on each of these nodes.
pub(crate) fn to(numbers: &[u8]) -> Change {
    Change::Move { members: members(numbers), replication_factor: numbers.len() }
}
