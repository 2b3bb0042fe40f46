//! What was acknowledged survives the death of processes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use support::load::{Load, check, check_everywhere};
use support::{Cluster, NodeProcess};

/// `KEYSTORE_TEST_CRASHES=50` makes the long test as long as one wants.
fn crashes() -> usize {
    std::env::var("KEYSTORE_TEST_CRASHES").map_or(3, |count| count.parse().unwrap())
}

#[tokio::test]
async fn two_of_three_nodes_serve_on_when_one_is_killed() {
    let mut cluster = Cluster::serving(3).await;
    let load = Load::start("load", &cluster.nodes, 2);
    load.progress(100).await;
    cluster.nodes[2].kill();
    load.progress(200).await;
    let histories = load.stop().await;
    check_everywhere(&cluster, &histories).await;
    cluster.nodes[2].start();
    cluster.wait_until_all_serve().await;
    check(&cluster.nodes[2], &histories).await;
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_all_nodes_were_killed_at_once() {
    let mut cluster = Cluster::serving(3).await;
    let mut histories = Vec::new();
    for crash in 0..crashes() {
        let load = Load::start(&format!("crash-{crash}"), &cluster.nodes, 3);
        load.progress(150).await;
        cluster.nodes.iter_mut().for_each(NodeProcess::kill);
        let written = load.stop().await;
        cluster.nodes.iter_mut().for_each(NodeProcess::start);
        cluster.wait_until_all_serve().await;
        check(&cluster.nodes[crash % 3], &written).await;
        histories.extend(written);
    }
    check_everywhere(&cluster, &histories).await;
}

#[tokio::test]
async fn a_restarted_node_takes_its_place_again() {
    let mut cluster = Cluster::serving(3).await;
    for round in 0..3 {
        let node = &mut cluster.nodes[round];
        let before = node.status().await.unwrap();
        node.kill();
        node.start();
        cluster.wait_until_all_serve().await;
        let after = cluster.nodes[round].status().await.unwrap();
        assert_eq!(after.node_id, before.node_id);
        assert_eq!(after.generation, before.generation + 1);
        cluster.nodes[round].put(&format!("round-{round}"), "v").await.unwrap();
    }
}

#[tokio::test]
async fn a_node_that_comes_back_elsewhere_is_found_again() {
    let mut cluster = Cluster::serving(3).await;
    // Each in turn: whoever has the lowest UUID dials the others, whoever has the highest is dialled.
    for index in 0..3 {
        cluster.nodes[index].kill();
        cluster.nodes[index].relocate();
        cluster.tell_seeds();
        cluster.nodes[index].start();
        cluster.wait_until_all_serve().await;
        cluster.nodes[index].put("k", "v").await.unwrap();
    }
}

#[tokio::test]
async fn a_cluster_whose_nodes_all_come_back_elsewhere_forms_again() {
    let mut cluster = Cluster::serving(3).await;
    cluster.nodes[0].put("k", "v").await.unwrap();
    cluster.nodes.iter_mut().for_each(NodeProcess::kill);
    cluster.nodes.iter_mut().for_each(NodeProcess::relocate);
    cluster.tell_seeds();
    cluster.nodes.iter_mut().for_each(NodeProcess::start);
    cluster.wait_until_all_serve().await;
    assert_eq!(cluster.nodes[2].get_when_possible("k").await.as_deref(), Some("v"));
}
