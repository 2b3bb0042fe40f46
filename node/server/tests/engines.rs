//! Other engines than sled under real processes: checkpoints under load, killed nodes, and no way back to sled.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use keystore_history::History;
use support::load::{Load, append, judge_everywhere, kill_all_under};
use support::{Cluster, wait_until};

#[tokio::test]
async fn nodes_that_keep_records_in_memory_lose_nothing_when_all_are_killed_amid_snapshots() {
    // The least that is allowed, so that there are snapshots soon.
    let settings = [("storage.engine", "memory"), ("storage.checkpoint_bytes", "1048576")];
    let mut cluster = Cluster::serving_with(3, &settings).await;
    let filler = "x".repeat(100_000);
    let mut all = History::default();
    for crash in 0..2 {
        let load = Load::start(&format!("memory-{crash}"), &cluster.nodes, 3);
        let before = cluster.nodes[0].metric("keystore_storage_checkpoints_total").await.unwrap();
        for number in 0..60 {
            cluster.nodes[number % 3].put(&format!("filler-{}", number % 5), &filler).await.unwrap();
        }
        let node = &cluster.nodes[0];
        wait_until("a snapshot was written under load", || async {
            let is_written = node.metric("keystore_storage_checkpoints_total").await.unwrap() > before;
            // Looked at once a second.
            let is_known = node.metric("keystore_storage_engine_memory_bytes").await.unwrap() > 100_000;
            (is_written && is_known).then_some(())
        })
        .await;
        load.progress(100).await;
        append(&mut all, kill_all_under(load, &mut cluster, crash % 3).await);
    }
    judge_everywhere(&cluster, &mut all).await;
}

#[tokio::test]
async fn nodes_with_a_tree_of_tables_lose_nothing_when_all_are_killed_amid_checkpoints() {
    let settings = [("storage.engine", "lsm"), ("storage.checkpoint_bytes", "1048576")];
    let mut cluster = Cluster::serving_with(3, &settings).await;
    let filler = "x".repeat(100_000);
    let mut all = History::default();
    for crash in 0..3 {
        let load = Load::start(&format!("lsm-{crash}"), &cluster.nodes, 3);
        let before = cluster.nodes[0].metric("keystore_storage_checkpoints_total").await.unwrap();
        for number in 0..60 {
            cluster.nodes[number % 3].put(&format!("filler-{}", number % 5), &filler).await.unwrap();
        }
        let node = &cluster.nodes[0];
        wait_until("checkpoints were written under load", || async {
            let checkpoints = node.metric("keystore_storage_checkpoints_total").await.unwrap();
            (checkpoints > before + 2).then_some(())
        })
        .await;
        load.progress(100).await;
        append(&mut all, kill_all_under(load, &mut cluster, crash % 3).await);
    }
    judge_everywhere(&cluster, &mut all).await;
}

#[tokio::test]
async fn a_data_directory_stays_with_its_engine() {
    let mut cluster = Cluster::serving_with(1, &[("storage.engine", "memory")]).await;
    let node = &mut cluster.nodes[0];
    node.put("k", "v").await.unwrap();
    node.kill();
    node.set("storage.engine", "sled");
    node.start();
    let ended = node.wait_for_end();
    assert_eq!(ended.status.code(), Some(3), "{}", ended.log);
    assert!(ended.log.contains("was made with the storage engine"), "{}", ended.log);
    node.set("storage.engine", "memory");
    node.start();
    cluster.wait_until_all_serve().await;
    assert_eq!(cluster.nodes[0].get("k").await.unwrap().as_deref(), Some("v"));
}
