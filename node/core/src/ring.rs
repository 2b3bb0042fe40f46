//! The ring: partition → ordered list of replicas, an immutable value, and its checks.

use std::collections::BTreeSet;

use thiserror::Error;

use crate::id::{Epoch, NodeId};
use crate::partition::Partition;

/// A node's part in one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replica {
    pub node: NodeId,
    /// Since which epoch the node has been a replica of this partition without a break.
    pub since: Epoch,
}

/// Which nodes hold which partition. Partition `p` is entry `p`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ring {
    partitions: Vec<Vec<Replica>>,
}

/// Why a list of replicas is no ring.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RingError {
    #[error("the ring has {found} partitions, not {expected}")]
    Partitions { found: usize, expected: usize },
    #[error("partition {partition} has {found} replicas, not {expected}")]
    Replicas { partition: Partition, found: usize, expected: usize },
    #[error("partition {partition} names node {node} twice")]
    Twice { partition: Partition, node: NodeId },
    #[error("partition {partition} names node {node}, which is no member")]
    NoMember { partition: Partition, node: NodeId },
}

impl Ring {
    pub fn new(partitions: Vec<Vec<Replica>>) -> Self {
        Self { partitions }
    }

    /// The replicas of a partition, the preferred one first; none for a partition that does not exist.
    pub fn replicas(&self, partition: Partition) -> &[Replica] {
        self.partitions.get(usize::from(partition.0)).map_or(&[], Vec::as_slice)
    }

    pub fn iter(&self) -> impl Iterator<Item = (Partition, &[Replica])> {
        (0..).map(Partition).zip(self.partitions.iter().map(Vec::as_slice))
    }

    pub fn nodes(&self, partition: Partition) -> Vec<NodeId> {
        self.replicas(partition).iter().map(|replica| replica.node).collect()
    }

    pub fn is_replica(&self, partition: Partition, node: NodeId) -> bool {
        self.replicas(partition).iter().any(|replica| replica.node == node)
    }

    /// How many replicas each partition has, or would have if none of them had been lost.
    pub fn replication_factor(&self) -> usize {
        self.partitions.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// How many partitions a node holds.
    pub fn owned(&self, node: NodeId) -> usize {
        self.partitions.iter().filter(|replicas| replicas.iter().any(|replica| replica.node == node)).count()
    }

    /// Checks the number of partitions, that each has a replica and not too many, and that each of them is one member,
    /// named once.
    pub fn validate(
        &self,
        partitions: usize,
        replicas: usize,
        members: &BTreeSet<NodeId>,
    ) -> Result<(), RingError> {
        if self.partitions.len() != partitions {
            return Err(RingError::Partitions { found: self.partitions.len(), expected: partitions });
        }
        for (partition, list) in self.iter() {
            if !(1..=replicas).contains(&list.len()) {
                return Err(RingError::Replicas { partition, found: list.len(), expected: replicas });
            }
            let mut seen = BTreeSet::new();
            for Replica { node, .. } in list {
                if !seen.insert(*node) {
                    return Err(RingError::Twice { partition, node: *node });
                }
                if !members.contains(node) {
                    return Err(RingError::NoMember { partition, node: *node });
                }
            }
        }
        Ok(())
    }

    /// Only a recovery leaves partitions with fewer replicas than are wanted.
    pub fn check_full(&self, replicas: usize) -> Result<(), RingError> {
        match self.iter().find(|(_, list)| list.len() != replicas) {
            Some((partition, list)) => {
                Err(RingError::Replicas { partition, found: list.len(), expected: replicas })
            }
            None => Ok(()),
        }
    }
}
