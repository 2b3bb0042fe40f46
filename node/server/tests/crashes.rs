//! What was acknowledged survives the death, the sleep and the damage of processes, and no read goes back.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use keystore_history::History;
use rustix::process::Signal;
use support::Cluster;
use support::load::{Load, append, judge, judge_everywhere, kill_all_under};

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
    let mut history = load.stop().await;
    judge_everywhere(&cluster, &mut history).await;
    cluster.nodes[2].start();
    cluster.wait_until_all_serve().await;
    judge(&[&cluster.nodes[2]], &mut history).await;
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_all_nodes_were_killed_at_once() {
    let mut cluster = Cluster::serving(3).await;
    let mut all = History::default();
    for crash in 0..crashes() {
        let load = Load::start(&format!("crash-{crash}"), &cluster.nodes, 3);
        load.progress(150).await;
        append(&mut all, kill_all_under(load, &mut cluster, crash % 3).await);
    }
    judge_everywhere(&cluster, &mut all).await;
}

#[tokio::test]
async fn five_nodes_are_killed_and_started_in_turn_under_load() {
    let mut cluster = Cluster::serving(5).await;
    let load = Load::start("turns", &cluster.nodes, 1);
    for turn in 0..5 {
        load.progress(100).await;
        cluster.nodes[turn].kill();
        load.progress(100).await;
        cluster.nodes[turn].start();
        cluster.wait_until_all_serve().await;
    }
    let mut history = load.stop().await;
    judge_everywhere(&cluster, &mut history).await;
}

#[tokio::test]
async fn a_node_that_sleeps_holds_nobody_up_and_goes_on_where_it_was() {
    let cluster = Cluster::serving(3).await;
    let load = Load::start("sleep", &cluster.nodes[..2], 3);
    for _ in 0..3 {
        load.progress(100).await;
        cluster.nodes[2].signal(Signal::STOP);
        load.progress(400).await;
        cluster.nodes[2].signal(Signal::CONT);
        cluster.wait_until_connected().await;
    }
    let mut history = load.stop().await;
    judge_everywhere(&cluster, &mut history).await;
}

#[tokio::test]
async fn nodes_whose_clocks_differ_keep_the_order_of_writes() {
    let mut cluster = Cluster::start(3);
    for (index, offset_ms) in ["-400", "0", "400"].into_iter().enumerate() {
        let node = &mut cluster.nodes[index];
        node.kill();
        node.set("clock.offset_ms", offset_ms);
        node.start();
    }
    let layout = cluster.first_layout().await;
    cluster.init(&layout).await;
    cluster.wait_until_all_serve().await;
    let load = Load::start("clocks", &cluster.nodes, 2);
    load.progress(300).await;
    // A clock that is set back by more than is allowed between nodes, while its node is away.
    cluster.nodes[2].kill();
    cluster.nodes[2].set("clock.offset_ms", "-1200");
    cluster.nodes[2].start();
    cluster.wait_until_all_serve().await;
    load.progress(300).await;
    let mut history = load.stop().await;
    judge_everywhere(&cluster, &mut history).await;
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
