//! Which node owns which partition, as the cluster told it last.
//!
//! Only a hint about where a request is served with one hop less: a stale table costs time, never correctness.

use keystore_core::id::NodeId;
use keystore_core::partition::{Partition, PartitionCount, RecordKey};
use keystore_proto::v1::GetRoutingResponse;

/// A node as the cluster announces it to clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteNode {
    pub node: NodeId,
    pub name: String,
    /// host:port; empty while the cluster does not know it.
    pub client_address: String,
}

/// The map partition → owners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routes {
    pub epoch: u64,
    pub partitions: PartitionCount,
    pub nodes: Vec<RouteNode>,
    /// Entry p: indexes into `nodes`, the preferred owner first.
    owners: Vec<Vec<usize>>,
}

impl Routes {
    /// Checks that every partition has owners and that they exist.
    pub(crate) fn from_proto(response: GetRoutingResponse) -> Result<Self, String> {
        let partitions = PartitionCount::new(response.partitions).map_err(|error| error.to_string())?;
        if response.owners.len() != usize::from(partitions.get()) {
            return Err(format!("owners of {} of {} partitions", response.owners.len(), partitions.get()));
        }
        let nodes = response
            .nodes
            .into_iter()
            .map(|node| {
                Ok(RouteNode {
                    node: NodeId::from_slice(&node.node_id).ok_or("a node without a UUID")?,
                    name: node.name,
                    client_address: node.client_address,
                })
            })
            .collect::<Result<Vec<_>, String>>()?;
        let index = |index: u32| {
            usize::try_from(index)
                .ok()
                .filter(|index| *index < nodes.len())
                .ok_or_else(|| format!("an owner with number {index} of {}", nodes.len()))
        };
        let owners = response
            .owners
            .into_iter()
            .map(|owners| owners.node.into_iter().map(index).collect())
            .collect::<Result<Vec<Vec<usize>>, String>>()?;
        Ok(Self { epoch: response.epoch, partitions, nodes, owners })
    }

    pub fn partition(&self, key: &RecordKey) -> Partition {
        key.partition(self.partitions)
    }

    /// Indexes into `nodes` of the owners of a partition, the preferred one first.
    pub fn owners(&self, partition: Partition) -> &[usize] {
        self.owners.get(usize::from(partition.0)).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keystore_proto::v1::{PartitionOwners, RoutingNode};

    fn response(owners: Vec<u32>) -> GetRoutingResponse {
        let node = |n: u8| RoutingNode {
            node_id: vec![n; 16].into(),
            name: format!("node-{n}"),
            client_address: String::new(),
        };
        GetRoutingResponse {
            epoch: 1,
            partitions: 16,
            nodes: vec![node(1), node(2)],
            owners: vec![PartitionOwners { node: owners }; 16],
        }
    }

    #[test]
    fn owners_keep_their_order() {
        let routes = Routes::from_proto(response(vec![1, 0])).unwrap();
        assert_eq!(routes.owners(Partition(15)), [1, 0]);
        assert!(routes.owners(Partition(16)).is_empty());
    }

    #[test]
    fn a_table_that_contradicts_itself_is_refused() {
        assert!(Routes::from_proto(response(vec![2])).is_err(), "an owner that does not exist");
        let mut odd = response(vec![0]);
        odd.partitions = 17;
        assert!(Routes::from_proto(odd).is_err(), "no power of two");
        let mut short = response(vec![0]);
        short.owners.pop();
        assert!(Routes::from_proto(short).is_err(), "a partition without an entry");
        let mut nameless = response(vec![0]);
        nameless.nodes[0].node_id = vec![1; 15].into();
        assert!(Routes::from_proto(nameless).is_err(), "no UUID");
    }
}
