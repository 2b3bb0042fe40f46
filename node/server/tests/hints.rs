//! What a node missed while it was away is handed over to it, though its holders died in between.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use keystore_proto::v1;
use support::{Cluster, NodeProcess, wait_until};

const KEYS: usize = 200;

fn key(n: usize) -> String {
    format!("key-{n}")
}

/// What a node holds itself, which is what it answers where one replica is enough.
async fn held(node: &NodeProcess, key: &str) -> Option<Vec<u8>> {
    let request = v1::GetRequest {
        key: key.to_owned().into(),
        consistency: v1::Consistency::One.into(),
        ..v1::GetRequest::default()
    };
    let values = node.client().get(request).await.unwrap().into_inner().values;
    values.first().map(|value| value.value.to_vec())
}

async fn hints(node: &NodeProcess) -> Option<v1::HintStatus> {
    node.status().await.ok()?.hints
}

async fn wait_until_handed_over(node: &NodeProcess) {
    wait_until("all hints are handed over", || async {
        (hints(node).await?.pending == 0 && node.metric("keystore_hints_pending").await? == 0).then_some(())
    })
    .await;
}

async fn what_was_missed_is_handed_over(engine: &str) {
    let mut cluster = Cluster::serving_with(3, &[("storage.engine", engine)]).await;
    cluster.nodes[0].put(&key(1), "before").await.unwrap();
    cluster.nodes[2].kill();
    for n in 0..KEYS {
        cluster.nodes[n % 2].put(&key(n), "first").await.unwrap();
        cluster.nodes[n % 2].put(&key(n), "missed").await.unwrap();
    }
    cluster.nodes[1].delete(&key(0)).await.unwrap();
    for node in &mut cluster.nodes[..2] {
        let missing = wait_until("hints are kept", || async {
            let hints = hints(node).await?;
            (hints.pending >= KEYS as u64 / 2).then_some(hints)
        })
        .await;
        let [target] = &missing.targets[..] else { panic!("{missing:?}") };
        assert_eq!((target.pending, target.bytes), (missing.pending, missing.bytes));
        assert!(missing.pending <= KEYS as u64, "one for a key, however often it was written: {missing:?}");
        node.kill();
        node.start();
    }
    for node in &cluster.nodes[..2] {
        node.wait_until_it_serves().await;
        let found = hints(node).await.unwrap();
        assert!(found.pending >= KEYS as u64 / 2, "they are on disk: {found:?}");
    }
    cluster.nodes[2].start();
    cluster.wait_until_all_serve().await;
    wait_until_handed_over(&cluster.nodes[0]).await;
    wait_until_handed_over(&cluster.nodes[1]).await;
    assert_eq!(held(&cluster.nodes[2], &key(0)).await, None);
    for n in 1..KEYS {
        assert_eq!(held(&cluster.nodes[2], &key(n)).await.as_deref(), Some(&b"missed"[..]), "{n}");
    }
    let node = &mut cluster.nodes[0];
    assert!(node.metric("keystore_hints_handed_over_total").await.unwrap() >= KEYS as u64 / 2);
    node.kill();
    node.start();
    node.wait_until_it_serves().await;
    assert_eq!(hints(node).await.unwrap().pending, 0, "nothing of them is left on disk");
}

#[tokio::test]
async fn a_node_that_was_away_gets_what_it_missed_from_holders_that_died_meanwhile() {
    what_was_missed_is_handed_over("sled").await;
}

#[tokio::test]
async fn the_memory_engine_keeps_hints_as_well() {
    what_was_missed_is_handed_over("memory").await;
}

#[tokio::test]
async fn more_hints_than_may_be_kept_are_counted_and_left_to_repair() {
    let limit = 10_000;
    let mut cluster = Cluster::serving_with(3, &[("limits.hint_bytes", "10000")]).await;
    cluster.nodes[2].kill();
    let node = &cluster.nodes[0];
    for n in 0..KEYS {
        node.put(&key(n), "missed").await.unwrap();
    }
    let overflowed = wait_until("hints overflow", || async {
        let kept = node.metric("keystore_hints_pending").await?;
        let overflowed = node.metric("keystore_hints_overflowed_total").await?;
        (kept + overflowed == KEYS as u64).then_some(overflowed)
    })
    .await;
    let hints = hints(node).await.unwrap();
    assert!(overflowed >= KEYS as u64 / 2 && hints.pending > 10, "{overflowed}, {hints:?}");
    assert!(hints.bytes <= limit && node.metric("keystore_hints_bytes").await.unwrap() <= limit);
    assert!(hints.partitions_wanted_by_repair > 10, "of 16: {hints:?}");
}
