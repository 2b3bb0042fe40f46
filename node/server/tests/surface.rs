//! Values that expire, batches and scans, as clients of a cluster of real processes see them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::join_all;
use keystore_proto::v1;
use keystore_proto::v1::operation::Operation;
use keystore_proto::v1::outcome::Outcome;
use support::ask::{delete, failure, get, put, reason, text};
use support::{CAUSAL, Cluster, NodeProcess, wait_until};
use tonic::Code;

#[tokio::test]
async fn a_value_with_a_time_to_live_is_there_before_and_gone_after_and_stays_gone() {
    let mut cluster = Cluster::serving(3).await;
    for keyspace in ["default", CAUSAL] {
        let begun = Instant::now();
        let ttl = Duration::from_millis(2_000);
        let request = v1::PutRequest { ttl_ms: 2_000, ..put(keyspace, "k", "v") };
        cluster.nodes[0].client().put(request).await.unwrap();
        let values = |node: &NodeProcess| {
            let mut client = node.client();
            async move { client.get(get(keyspace, "k")).await.unwrap().into_inner().values }
        };
        let found = values(&cluster.nodes[1]).await;
        assert!(begun.elapsed() > ttl || text(&found[0].value) == "v", "{found:?}");
        wait_until("it has expired", || async { values(&cluster.nodes[2]).await.is_empty().then_some(()) })
            .await;
        assert!(begun.elapsed() >= ttl, "gone after {:?}", begun.elapsed());
        let entries = cluster.nodes[1].scan(scan_of(keyspace)).await.unwrap();
        assert!(entries.is_empty(), "{entries:?}");
    }
    // A node whose clock is behind does not bring it back, nor does one that has only its disk.
    cluster.nodes[1].kill();
    cluster.nodes[1].set("clock.offset_ms", "-4000");
    cluster.nodes[1].start();
    cluster.wait_until_all_serve().await;
    for keyspace in ["default", CAUSAL] {
        for node in &cluster.nodes {
            let got = node.client().get(get(keyspace, "k")).await.unwrap().into_inner();
            assert!(got.values.is_empty(), "{got:?}");
            assert!(node.scan(scan_of(keyspace)).await.unwrap().is_empty());
        }
    }
}

#[tokio::test]
async fn a_value_without_a_time_to_live_replaces_one_that_expires() {
    let cluster = Cluster::serving(1).await;
    let node = &cluster.nodes[0];
    node.client().put(v1::PutRequest { ttl_ms: 300, ..put("default", "marker", "v") }).await.unwrap();
    node.client().put(v1::PutRequest { ttl_ms: 300, ..put("default", "k", "short") }).await.unwrap();
    node.put("k", "long").await.unwrap();
    wait_until("the time has passed", || async { node.get("marker").await.unwrap().is_none().then_some(()) })
        .await;
    assert_eq!(node.get("k").await.unwrap().as_deref(), Some("long"));
    let refused = node.client().put(v1::PutRequest { ttl_ms: u64::MAX, ..put("default", "k", "v") }).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn each_operation_of_a_batch_has_its_own_outcome_in_its_place() {
    let cluster = Cluster::serving(3).await;
    let node = &cluster.nodes[0];
    node.put("there", "value").await.unwrap();
    let outcomes = node.batch(vec![
        Operation::Get(get("", "there")),
        Operation::Get(get("", "not-there")),
        Operation::Put(put("", "", "a key has at least one byte")),
        Operation::Put(put("", "new", "v")),
        Operation::Put(put("nowhere", "k", "v")),
        Operation::Put(put(CAUSAL, "k", "v")),
        Operation::Put(v1::PutRequest { context: "x".into(), ..put("", "k", "v") }),
        Operation::Delete(delete("", "there")),
        Operation::Put(v1::PutRequest { consistency: 9, ..put("", "k", "v") }),
    ]);
    let outcomes = outcomes.await.unwrap();
    assert_eq!(outcomes.len(), 9);
    let Outcome::Got(there) = &outcomes[0] else { panic!("{outcomes:?}") };
    assert_eq!(text(&there.values[0].value), "value");
    assert!(matches!(&outcomes[1], Outcome::Got(got) if got.values.is_empty()));
    assert_eq!(failure(&outcomes[2]), (Code::InvalidArgument, "INVALID_ARGUMENT"));
    assert!(matches!(&outcomes[3], Outcome::Put(put) if put.acks >= 2 && put.stamp.len() == 16));
    assert_eq!(failure(&outcomes[4]), (Code::NotFound, "KEYSPACE_UNKNOWN"));
    assert!(matches!(&outcomes[5], Outcome::Put(put) if !put.context.is_empty()));
    assert_eq!(failure(&outcomes[6]), (Code::InvalidArgument, "INVALID_ARGUMENT"));
    assert!(matches!(&outcomes[7], Outcome::Deleted(deleted) if deleted.acks >= 2));
    assert_eq!(failure(&outcomes[8]), (Code::InvalidArgument, "INVALID_ARGUMENT"));
    assert_eq!(cluster.nodes[1].get("new").await.unwrap().as_deref(), Some("v"));
    assert_eq!(cluster.nodes[2].get("there").await.unwrap(), None);
    assert!(node.batch(vec![]).await.unwrap().is_empty());
    let (_, metrics) = node.http("/metrics").await.unwrap();
    for line in [
        "keystore_requests_total{operation=\"get\",outcome=\"done\"} 2",
        "keystore_requests_total{operation=\"put\",outcome=\"done\"} 3",
        "keystore_requests_total{operation=\"put\",outcome=\"invalid\"} 4",
        "keystore_requests_total{operation=\"delete\",outcome=\"done\"} 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is missing:\n{metrics}");
    }
}

#[tokio::test]
async fn the_largest_batch_goes_through_and_of_a_larger_one_nothing_is_applied() {
    let cluster = Cluster::serving(3).await;
    let node = &cluster.nodes[0];
    let puts = |count: usize, value: &str| -> Vec<_> {
        (0..count).map(|n| Operation::Put(put("", &format!("{count}/{n}"), value))).collect()
    };
    let outcomes = node.batch(puts(1_000, "v")).await.unwrap();
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Put(_))));
    let gets = (0..1_000).map(|n| Operation::Get(get("", &format!("1000/{n}")))).collect();
    let outcomes = cluster.nodes[1].batch(gets).await.unwrap();
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Got(got) if got.values.len() == 1)));
    assert_eq!(node.batch(puts(1_001, "v")).await.unwrap_err().code(), Code::InvalidArgument);
    let large = "x".repeat((1 << 20) - 16);
    assert_eq!(node.batch(puts(4, &large)).await.unwrap_err().code(), Code::InvalidArgument);
    for key in ["1001/0", "4/0"] {
        assert_eq!(node.get(key).await.unwrap(), None);
    }
    let outcomes = node.batch(puts(3, &large)).await.unwrap();
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Put(_))), "{outcomes:?}");
    // What does not fit into an answer is said, and the rest is there.
    let gets = (0..6).map(|n| Operation::Get(get("", &format!("3/{}", n % 3)))).collect();
    let outcomes = node.batch(gets).await.unwrap();
    let fitting = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Got(_))).count();
    assert_eq!(fitting, 2, "{fitting}");
    assert_eq!(failure(&outcomes[5]), (Code::ResourceExhausted, "OVERLOADED"));
}

#[tokio::test]
async fn a_batch_without_a_quorum_says_so_of_each_operation() {
    let mut cluster = Cluster::serving(3).await;
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();
    wait_until("the node has noticed", || async {
        let operations = vec![Operation::Put(put("", "a", "v")), Operation::Get(get("", "b"))];
        let outcomes = cluster.nodes[0].batch(operations).await.unwrap();
        let Outcome::Failed(failed) = &outcomes[0] else { panic!("{outcomes:?}") };
        assert_eq!(failed.needed, 2);
        let unreachable = (Code::Unavailable, "QUORUM_UNREACHABLE");
        outcomes.iter().all(|outcome| failure(outcome) == unreachable).then_some(())
    })
    .await;
}

fn scan_of(keyspace: &str) -> v1::ScanRequest {
    v1::ScanRequest { keyspace: keyspace.to_owned(), ..v1::ScanRequest::default() }
}

fn keys(entries: &[v1::ScanEntry]) -> Vec<String> {
    entries.iter().map(|entry| text(&entry.key)).collect()
}

/// What there is: of `users` and `orders` together, less what was deleted or has expired.
async fn fill(cluster: &Cluster) -> BTreeMap<String, String> {
    let mut expected = BTreeMap::new();
    let mut writes = Vec::new();
    for number in 0..700 {
        let name = if number % 3 == 0 { "orders" } else { "users" };
        let (key, value) = (format!("{name}/{number}"), format!("value-{number}"));
        let mut client = cluster.nodes[number % 3].client();
        let ttl_ms = if number % 10 == 7 { 1 } else { 0 };
        let is_deleted = number % 10 == 3;
        if ttl_ms == 0 && !is_deleted {
            expected.insert(key.clone(), value.clone());
        }
        writes.push(async move {
            client.put(v1::PutRequest { ttl_ms, ..put("", &key, &value) }).await.unwrap();
            if is_deleted {
                client.delete(delete("", &key)).await.unwrap();
            }
        });
    }
    join_all(writes).await;
    expected
}

#[tokio::test]
async fn a_scan_tells_what_was_written_in_an_order_that_is_always_the_same() {
    let mut cluster = Cluster::serving(3).await;
    let expected = fill(&cluster).await;
    let all = wait_until("what expires at once is gone", || async {
        let all = cluster.nodes[0].scan(scan_of("")).await.unwrap();
        (all.len() == expected.len()).then_some(all)
    })
    .await;
    let found: BTreeMap<_, _> =
        all.iter().map(|entry| (text(&entry.key), text(&entry.values[0].value))).collect();
    assert_eq!(found, expected);
    let order = keys(&all);
    check_scans(&cluster.nodes[1], &order).await;
    cluster.nodes[0].kill();
    for node in &cluster.nodes[1..] {
        check_scans(node, &order).await;
    }
    cluster.nodes[1].kill();
    let unreachable = wait_until("the last node has noticed", || async {
        let status = cluster.nodes[2].scan(scan_of("")).await.unwrap_err();
        (status.code() == Code::Unavailable).then_some(status)
    })
    .await;
    assert_eq!(reason(&unreachable), "QUORUM_UNREACHABLE");
    let one = v1::ScanRequest { consistency: v1::Consistency::One.into(), ..scan_of("") };
    assert!(cluster.nodes[2].scan(one).await.is_ok(), "at level one a single replica is enough");
}

/// The parts of a scan are the parts of the whole.
async fn check_scans(node: &NodeProcess, order: &[String]) {
    let scan = |prefix: &str, after: &str, limit: u32| {
        let (prefix, after) = (prefix.to_owned().into(), after.to_owned().into());
        let request = v1::ScanRequest { prefix, after, limit, ..v1::ScanRequest::default() };
        async move { keys(&node.scan(request).await.unwrap()) }
    };
    assert_eq!(scan("", "", 0).await, order);
    for prefix in ["users/", "orders/1", "none"] {
        let expected: Vec<_> = order.iter().filter(|key| key.starts_with(prefix)).cloned().collect();
        assert_eq!(scan(prefix, "", 0).await, expected);
        let half = expected.len() / 2;
        if half > 0 {
            assert_eq!(scan(prefix, &expected[half - 1], 0).await, expected[half..]);
            assert_eq!(scan(prefix, &expected[half - 1], 5).await, expected[half..half + 5]);
        }
    }
    let (mut pieces, mut after) = (Vec::new(), String::new());
    loop {
        let piece = scan("", &after, 97).await;
        let Some(last) = piece.last() else { break };
        after.clone_from(last);
        assert!(piece.len() == 97 || pieces.len() + piece.len() == order.len());
        pieces.extend(piece);
    }
    assert_eq!(pieces, order);
}

#[tokio::test]
async fn a_scan_shows_siblings_with_a_context_that_replaces_them() {
    let cluster = Cluster::serving(3).await;
    for value in ["a", "b"] {
        cluster.nodes[0].client().put(put(CAUSAL, "k", value)).await.unwrap();
    }
    let entries = cluster.nodes[1].scan(scan_of(CAUSAL)).await.unwrap();
    assert_eq!(keys(&entries), ["k"]);
    let values: Vec<_> = entries[0].values.iter().map(|value| text(&value.value)).collect();
    assert_eq!(values, ["a", "b"]);
    let replaces = v1::PutRequest { context: entries[0].context.clone(), ..put(CAUSAL, "k", "c") };
    cluster.nodes[2].client().put(replaces).await.unwrap();
    let entries = cluster.nodes[0].scan(scan_of(CAUSAL)).await.unwrap();
    assert_eq!(text(&entries[0].values[0].value), "c");
    assert!(cluster.nodes[0].scan(scan_of("")).await.unwrap().is_empty(), "another keyspace");
}

#[tokio::test]
async fn large_values_are_scanned_in_messages_that_every_client_takes() {
    let cluster = Cluster::serving(3).await;
    let large = "x".repeat(700 << 10);
    for number in 0..12 {
        cluster.nodes[number % 3].put(&format!("k{number}"), &large).await.unwrap();
    }
    let entries = cluster.nodes[0].scan(scan_of("")).await.unwrap();
    assert_eq!(entries.len(), 12);
    assert!(entries.iter().all(|entry| entry.values[0].value.len() == large.len()));
}

#[tokio::test]
async fn a_scan_that_is_wrong_says_so() {
    let cluster = Cluster::serving(1).await;
    let node = &cluster.nodes[0];
    let unknown = node.scan(scan_of("nowhere")).await.unwrap_err();
    assert_eq!((unknown.code(), reason(&unknown).as_str()), (Code::NotFound, "KEYSPACE_UNKNOWN"));
    let long = v1::ScanRequest { after: vec![7; 1025].into(), ..scan_of("") };
    assert_eq!(node.scan(long).await.unwrap_err().code(), Code::InvalidArgument);
    let (_, metrics) = node.http("/metrics").await.unwrap();
    let counted = "keystore_requests_total{operation=\"scan\",outcome=\"invalid\"} 2";
    assert!(metrics.lines().any(|line| line == counted), "{metrics}");
}
