//! Keyspaces that keep siblings, as clients of a cluster of real processes see them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::future::join_all;
use keystore_proto::v1;
use support::ask::{delete, get, put, reason};
use support::{CAUSAL, Cluster, wait_until};
use tonic::Code;

fn named(values: impl IntoIterator<Item = impl ToString>) -> BTreeSet<String> {
    values.into_iter().map(|value| value.to_string()).collect()
}

async fn check_everywhere(cluster: &Cluster, key: &str, expected: &BTreeSet<String>) {
    for node in &cluster.nodes {
        assert_eq!(node.siblings(key).await.values, *expected);
    }
}

#[tokio::test]
async fn what_twenty_clients_write_with_one_context_are_siblings_until_one_replaces_them() {
    let cluster = Cluster::serving(3).await;
    let seed = cluster.nodes[0].client().put(put(CAUSAL, "k", "seed")).await.unwrap().into_inner();
    for round in 0..3 {
        let writes = (0..20).map(|client| {
            let node = &cluster.nodes[client % 3];
            let context = seed.context.clone();
            let request = v1::PutRequest { context, ..put(CAUSAL, "k", &format!("{round}-{client}")) };
            async move { node.client().put(request).await.unwrap().into_inner() }
        });
        let written = join_all(writes).await;
        assert!(written.iter().all(|put| put.acks >= 2), "{written:?}");
        let stamps: BTreeSet<_> = written.iter().map(|put| put.stamp.clone()).collect();
        assert_eq!(stamps.len(), 20, "stamps are unique");
        let expected = named((0..=round).flat_map(|round| (0..20).map(move |n| format!("{round}-{n}"))));
        check_everywhere(&cluster, "k", &expected).await;
    }
    let all = cluster.nodes[1].siblings("k").await;
    let replaces = v1::PutRequest { context: all.context, ..put(CAUSAL, "k", "one") };
    let one = cluster.nodes[2].client().put(replaces).await.unwrap().into_inner();
    check_everywhere(&cluster, "k", &named(["one"])).await;
    // The context of a write stands for the write itself.
    let next = v1::PutRequest { context: one.context, ..put(CAUSAL, "k", "two") };
    cluster.nodes[0].client().put(next).await.unwrap();
    check_everywhere(&cluster, "k", &named(["two"])).await;
}

#[tokio::test]
async fn a_context_replaces_what_it_has_seen_and_nothing_else() {
    let cluster = Cluster::serving(3).await;
    let node = &cluster.nodes[0];
    node.client().put(put(CAUSAL, "k", "a")).await.unwrap();
    let seen = node.siblings("k").await.context;
    cluster.nodes[1].client().put(put(CAUSAL, "k", "b")).await.unwrap();
    let replaces_a = v1::PutRequest { context: seen, ..put(CAUSAL, "k", "c") };
    cluster.nodes[2].client().put(replaces_a).await.unwrap();
    check_everywhere(&cluster, "k", &named(["b", "c"])).await;
}

#[tokio::test]
async fn a_retry_under_one_operation_id_is_one_sibling_whoever_takes_it() {
    let cluster = Cluster::serving(3).await;
    for key in ["at-once", "one-after-the-other"] {
        let operation_id = Bytes::from(vec![7; 16]);
        let request = v1::PutRequest { operation_id, ..put(CAUSAL, key, "v") };
        let attempts = cluster.nodes.iter().cycle().take(6);
        let attempts = attempts.map(|node| {
            let request = request.clone();
            async move { node.client().put(request).await.unwrap() }
        });
        if key == "at-once" {
            join_all(attempts).await;
        } else {
            for attempt in attempts {
                attempt.await;
            }
        }
        check_everywhere(&cluster, key, &named(["v"])).await;
    }
}

#[tokio::test]
async fn a_delete_removes_what_its_context_has_seen_and_without_one_whatever_is_there() {
    let cluster = Cluster::serving(3).await;
    let [first, second, third] = &cluster.nodes[..] else { panic!("three nodes") };
    first.client().put(put(CAUSAL, "k", "a")).await.unwrap();
    let seen = second.siblings("k").await.context;
    third.client().put(put(CAUSAL, "k", "b")).await.unwrap();
    let removes_a = v1::DeleteRequest { context: seen, ..delete(CAUSAL, "k") };
    let deleted = first.client().delete(removes_a).await.unwrap().into_inner();
    assert!(deleted.acks >= 2, "{deleted:?}");
    check_everywhere(&cluster, "k", &named(["b"])).await;
    first.client().put(put(CAUSAL, "k", "c")).await.unwrap();
    second.client().delete(delete(CAUSAL, "k")).await.unwrap();
    check_everywhere(&cluster, "k", &BTreeSet::new()).await;
    let context = first.siblings("k").await.context;
    assert!(!context.is_empty(), "what is gone is known, so that a write can stand for having seen it");
    third.client().put(v1::PutRequest { context, ..put(CAUSAL, "k", "d") }).await.unwrap();
    check_everywhere(&cluster, "k", &named(["d"])).await;
}

#[tokio::test]
async fn a_context_that_means_nothing_here_is_refused_with_a_sentence_that_helps() {
    let cluster = Cluster::serving(1).await;
    let node = &cluster.nodes[0];
    let context = node.client().put(put(CAUSAL, "other", "v")).await.unwrap().into_inner().context;
    let mut damaged = node.client().put(put(CAUSAL, "k", "v")).await.unwrap().into_inner().context.to_vec();
    damaged[3] ^= 1;
    for (keyspace, context, hint) in [
        (CAUSAL, context.clone(), "another key"),
        (CAUSAL, damaged.into(), "damaged"),
        (CAUSAL, Bytes::from_static(b"x"), "read this key"),
        ("default", context, "mode lww"),
    ] {
        let request = v1::PutRequest { context: context.clone(), ..put(keyspace, "k", "w") };
        let refused = node.client().put(request).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::InvalidArgument, "INVALID_ARGUMENT"));
        assert!(refused.message().contains(hint), "{hint}: {}", refused.message());
        let request = v1::DeleteRequest { context, ..delete(keyspace, "k") };
        assert_eq!(node.client().delete(request).await.unwrap_err().code(), Code::InvalidArgument);
    }
    assert_eq!(node.siblings("k").await.values, named(["v"]));
    let refused = node.client().put(put("nowhere", "k", "v")).await.unwrap_err();
    assert!(refused.message().contains("\"nowhere\""), "{}", refused.message());
}

fn large(name: char) -> String {
    std::iter::repeat_n(name, 1 << 20).collect()
}

#[tokio::test]
async fn siblings_beyond_the_cap_are_refused_and_a_write_that_has_seen_them_is_taken() {
    let cluster = Cluster::serving(3).await;
    let node = &cluster.nodes[0];
    for name in ['a', 'b'] {
        node.client().put(put(CAUSAL, "k", &large(name))).await.unwrap();
    }
    let refused = node.client().put(put(CAUSAL, "k", &large('c'))).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "TOO_MANY_SIBLINGS"));
    for number in 0..128 {
        node.client().put(put(CAUSAL, "many", &number.to_string())).await.unwrap();
    }
    let refused = node.client().put(put(CAUSAL, "many", "128")).await.unwrap_err();
    assert_eq!(reason(&refused), "TOO_MANY_SIBLINGS");
    assert_eq!(node.siblings("many").await.values, named(0..128));
    // A client that takes 4 MiB, as they do unless told otherwise, can read and replace them.
    let got = cluster.nodes[1].client().get(get(CAUSAL, "k")).await.unwrap().into_inner();
    assert_eq!(got.values.len(), 2);
    let replaces = v1::PutRequest { context: got.context, ..put(CAUSAL, "k", "small") };
    cluster.nodes[2].client().put(replaces).await.unwrap();
    check_everywhere(&cluster, "k", &named(["small"])).await;
}

/// Every replica takes large values of its own at the same moment, so that the merged record is larger than the cap,
/// and small ones on top of it, each of which is a write of the whole.
#[tokio::test]
async fn the_largest_siblings_cost_no_link_and_no_node_and_are_there_after_a_restart() {
    let mut cluster = Cluster::serving(3).await;
    let names = ('a'..='l').collect::<Vec<_>>();
    let writes = names.iter().enumerate().map(|(index, name)| {
        let mut client = cluster.nodes[index % 3].client();
        async move { (large(*name), client.put(put(CAUSAL, "k", &large(*name))).await) }
    });
    let mut acknowledged = BTreeSet::new();
    for (value, outcome) in join_all(writes).await {
        match outcome {
            Ok(_) => assert!(acknowledged.insert(value)),
            Err(status) => assert_eq!(reason(&status), "TOO_MANY_SIBLINGS", "{status}"),
        }
    }
    assert!(acknowledged.len() >= 2, "each replica takes two by itself");
    let node = &cluster.nodes[0];
    let before = node.siblings("k").await;
    assert!(before.values.is_superset(&acknowledged), "{} of {}", before.values.len(), acknowledged.len());
    // Each that is taken adds a few bytes to a record of megabytes, which is written as a whole again and again.
    let writes = (0..120).map(|number| {
        let mut client = cluster.nodes[number % 3].client();
        let request = put(CAUSAL, "k", &number.to_string());
        async move { client.put(request).await }
    });
    for outcome in join_all(writes).await {
        if let Err(status) = outcome {
            assert!(["TOO_MANY_SIBLINGS", "OVERLOADED"].contains(&reason(&status).as_str()), "{status}");
        }
    }
    for node in &cluster.nodes {
        assert!(!node.log().contains("link to a member is down"), "{}", node.log());
    }
    for node in &mut cluster.nodes {
        node.kill();
        node.start();
    }
    cluster.wait_until_all_serve().await;
    let after = wait_until("a quorum is back", || async {
        let mut client = cluster.nodes[2].client().max_decoding_message_size(64 << 20);
        client.get(get(CAUSAL, "k")).await.ok()
    });
    let values = after.await.into_inner().values;
    let values: BTreeSet<_> = values.iter().map(|value| support::ask::text(&value.value)).collect();
    assert!(values.is_superset(&before.values), "{} of {}", values.len(), before.values.len());
}
