//! The Admin client against fake nodes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use keystore_client::fake::FakeCluster;
use keystore_client::{AdminClient, Error, KeyspaceMode, NodeState, Reason, init};
use keystore_core::id::ClusterId;
use keystore_core::partition::PartitionCount;

fn plan(cluster: u8) -> init::Plan {
    init::Plan {
        cluster: ClusterId([cluster; 16]),
        incarnation: 7,
        partitions: PartitionCount::new(64).unwrap(),
        replication_factor: 3,
        keyspaces: [("carts".to_owned(), KeyspaceMode::Siblings)].into(),
    }
}

#[tokio::test]
async fn a_cluster_serves_once_every_node_has_the_same_layout_and_takes_no_other() {
    let cluster = FakeCluster::uninitialized(3).unwrap();
    let mut admins = Vec::new();
    let mut statuses = Vec::new();
    for address in cluster.admin_endpoints() {
        let admin = AdminClient::connect(address).await.unwrap();
        let status = admin.get_status().await.unwrap();
        assert_eq!((status.state, status.cluster), (NodeState::Uninitialized, None));
        assert_eq!(admin.get_layout().await.unwrap(), None);
        statuses.push(status);
        admins.push(admin);
    }
    let layout = init::plan(plan(1), &statuses).unwrap();
    assert_eq!(admins[0].init(&layout).await.unwrap(), NodeState::Accepted);
    assert_eq!(admins[1].init(&layout).await.unwrap(), NodeState::Accepted);
    assert_eq!(admins[0].get_layout().await.unwrap(), Some((layout.clone(), false)));
    assert_eq!(admins[2].init(&layout).await.unwrap(), NodeState::Serving);
    assert_eq!(admins[1].init(&layout).await.unwrap(), NodeState::Serving, "the same again");
    let other = init::plan(plan(2), &statuses).unwrap();
    let error = admins[0].init(&other).await.unwrap_err();
    assert!(matches!(&error, Error::Refused(detail) if detail.reason == Reason::WRONG_CLUSTER), "{error}");
    let status = admins[2].get_status().await.unwrap();
    assert_eq!(status.cluster, Some(ClusterId([1; 16])));
    assert_eq!((status.epoch.0, status.partitions_available, status.peers.len()), (1, 64, 2));
    assert_eq!(admins[2].get_layout().await.unwrap(), Some((layout, true)));
}

#[tokio::test]
async fn a_node_that_is_not_there_cannot_be_connected_to() {
    let mut cluster = FakeCluster::uninitialized(1).unwrap();
    cluster.nodes[0].crash();
    let error = AdminClient::connect(cluster.nodes[0].admin_endpoint()).await.err().unwrap();
    assert!(matches!(error, Error::Connect(_)), "{error}");
}
