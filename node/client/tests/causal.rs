//! Siblings, contexts, operation ids and expiry: against fake nodes that keep them by the rules of core.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::Duration;

use keystore_client::fake::{FakeCluster, Misbehaviour, outcome};
use keystore_client::{
    Causal, Client, Context, Error, OperationId, Patience, Read, ReadOptions, Reason, Routing, WriteOptions,
};
use tokio::time::{Instant, sleep};
use tonic::Code;

const SIBLINGS: &str = "siblings";

async fn client(cluster: &FakeCluster) -> Client {
    Client::builder().endpoints(cluster.endpoints()).mode(Routing::Proxy).connect().await.unwrap()
}

async fn get(client: &Client, key: &'static str) -> Read {
    client.get(SIBLINGS, key, ReadOptions::default()).await.unwrap()
}

fn texts(read: &Read) -> Vec<&str> {
    read.values.iter().map(|value| std::str::from_utf8(&value.value).unwrap()).collect()
}

/// Twenty clients with one context, each at a node of its own choice: every value is a sibling until a write that
/// has seen them all replaces them.
#[tokio::test]
async fn concurrent_writes_become_siblings_until_one_replaces_them() {
    let cluster = FakeCluster::serving(3).unwrap();
    let client = client(&cluster).await;
    client.put(SIBLINGS, "k", "first", WriteOptions::causal()).await.unwrap();
    let seen = get(&client, "k").await;
    for n in 0..20 {
        let options = WriteOptions::replacing(seen.context.clone().unwrap());
        client.put(SIBLINGS, "k", format!("{n:02}"), options).await.unwrap();
    }
    let siblings = get(&client, "k").await;
    assert_eq!(texts(&siblings), (0..20).map(|n| format!("{n:02}")).collect::<Vec<_>>());
    assert!(siblings.values.is_sorted_by_key(|value| value.stamp));
    assert_eq!(siblings.value(), siblings.values.last(), "the one with the highest stamp");
    let options = WriteOptions::replacing(siblings.context.unwrap());
    let written = client.put(SIBLINGS, "k", "one", options).await.unwrap();
    assert_eq!(texts(&get(&client, "k").await), ["one"]);
    let deleted =
        client.delete(SIBLINGS, "k", WriteOptions::replacing(written.context.unwrap())).await.unwrap();
    assert!(get(&client, "k").await.values.is_empty());
    assert!(deleted.context.is_some());
}

#[tokio::test]
async fn a_causal_write_of_unknown_outcome_is_sent_again_and_is_one_sibling() {
    let unknown = outcome(Code::Unknown, "OUTCOME_UNKNOWN", 1, 2);
    for in_session in [false, true] {
        let cluster = FakeCluster::serving(3).unwrap();
        let client = client(&cluster).await;
        let client = if in_session { client.session() } else { client };
        for node in &cluster.nodes {
            node.misbehave(Misbehaviour::ApplyAndAnswer(unknown.clone()));
        }
        client.put(SIBLINGS, "k", "v", WriteOptions::causal()).await.unwrap();
        assert_eq!((cluster.requests(), texts(&get(&client, "k").await)), (4, vec!["v"]));
    }
}

#[tokio::test]
async fn a_causal_write_that_may_be_applied_stays_unknown_whatever_the_last_attempt_says() {
    let cluster = FakeCluster::serving(1).unwrap();
    let client = client(&cluster).await;
    let unknown = outcome(Code::Unknown, "OUTCOME_UNKNOWN", 1, 2);
    cluster.nodes[0].misbehave(Misbehaviour::ApplyAndAnswer(unknown));
    let failed = outcome(Code::Unavailable, "QUORUM_UNREACHABLE", 0, 2);
    (0..20).for_each(|_| cluster.nodes[0].misbehave(Misbehaviour::Answer(failed.clone())));
    let error = client.put(SIBLINGS, "k", "v", WriteOptions::causal()).await.unwrap_err();
    assert!(matches!(&error, Error::Unknown(_)), "{error}");
    assert!(cluster.requests() > 1, "it was sent again");
}

#[tokio::test]
async fn a_delete_without_a_context_is_not_sent_again() {
    let cluster = FakeCluster::serving(1).unwrap();
    let client = client(&cluster).await;
    let unknown = outcome(Code::Unknown, "OUTCOME_UNKNOWN", 1, 2);
    cluster.nodes[0].misbehave(Misbehaviour::ApplyAndAnswer(unknown.clone()));
    let error = client.delete(SIBLINGS, "k", WriteOptions::causal()).await.unwrap_err();
    assert!(matches!(&error, Error::Unknown(_)), "{error}");
    assert_eq!(cluster.requests(), 1, "it might remove what came after it");
    let seen = get(&client, "k").await;
    cluster.nodes[0].misbehave(Misbehaviour::ApplyAndAnswer(unknown));
    client.delete(SIBLINGS, "k", WriteOptions::replacing(seen.context.unwrap())).await.unwrap();
}

#[tokio::test]
async fn a_program_that_repeats_a_write_with_its_operation_id_leaves_one_sibling() {
    let cluster = FakeCluster::serving(1).unwrap();
    let client = client(&cluster).await;
    let causal = Causal { context: None, operation: Some(OperationId([7; 16])) };
    let options = WriteOptions { causal: Some(causal), ..WriteOptions::default() };
    for _ in 0..3 {
        client.put(SIBLINGS, "k", "v", options.clone()).await.unwrap();
    }
    assert_eq!(texts(&get(&client, "k").await), ["v"]);
    for _ in 0..2 {
        client.put(SIBLINGS, "k", "w", WriteOptions::causal()).await.unwrap();
    }
    assert_eq!(texts(&get(&client, "k").await), ["v", "w", "w"], "the client's own ids differ");
}

#[tokio::test]
async fn a_context_that_no_node_has_given_is_refused() {
    let cluster = FakeCluster::serving(1).unwrap();
    let client = client(&cluster).await;
    let other = client.put(SIBLINGS, "other", "v", WriteOptions::causal()).await.unwrap();
    for (keyspace, context) in [
        (SIBLINGS, Context::from_bytes("made up")),
        (SIBLINGS, other.context.clone().unwrap()),
        ("default", other.context.clone().unwrap()),
    ] {
        let error = client.put(keyspace, "k", "v", WriteOptions::replacing(context)).await.unwrap_err();
        assert!(matches!(&error, Error::BadRequest(_)), "{error}");
    }
    let error = client.put("default", "k", "v", WriteOptions::causal()).await.unwrap_err();
    assert!(
        matches!(&error, Error::BadRequest(_)),
        "nor may one be sent again where it would not stay one: {error}"
    );
    assert_eq!(cluster.writes_applied(), 1);
}

#[tokio::test]
async fn a_write_that_would_be_one_sibling_too_many_has_failed() {
    let cluster = FakeCluster::serving(1).unwrap();
    let client = client(&cluster).await;
    let error = loop {
        match client.put(SIBLINGS, "k", "v", WriteOptions::causal()).await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    let applied = cluster.writes_applied();
    assert!(matches!(&error, Error::Failed(detail) if detail.reason == Reason::TOO_MANY_SIBLINGS), "{error}");
    assert!(error.surely_not_applied());
    assert_eq!(get(&client, "k").await.values.len(), applied);
    assert_eq!(cluster.requests(), applied + 2, "it was not sent again: the last put and the get");
}

#[tokio::test]
async fn a_value_is_gone_when_its_time_is_up() {
    let cluster = FakeCluster::serving(1).unwrap();
    let client = client(&cluster).await;
    let life = Duration::from_millis(300);
    let ttl = Some(life);
    for keyspace in ["default", SIBLINGS] {
        let options = WriteOptions { ttl, ..WriteOptions::default() };
        let start = Instant::now();
        client.put(keyspace, "k", "v", options).await.unwrap();
        let there = client.get(keyspace, "k", ReadOptions::default()).await.unwrap();
        assert!(there.value().is_some() || start.elapsed() >= life);
        while client.get(keyspace, "k", ReadOptions::default()).await.unwrap().value().is_some() {
            assert!(start.elapsed() < Duration::from_secs(5), "it lives on");
            sleep(Duration::from_millis(2)).await;
        }
        assert!(start.elapsed() >= life - Duration::from_millis(1), "{:?}", start.elapsed());
    }
    let requests = cluster.requests();
    let instant = WriteOptions { ttl: Some(Duration::from_micros(999)), ..WriteOptions::default() };
    assert!(matches!(client.put("default", "k", "v", instant).await, Err(Error::BadRequest(_))));
    let delete = WriteOptions { ttl, ..WriteOptions::default() };
    assert!(matches!(client.delete("default", "k", delete).await, Err(Error::BadRequest(_))));
    assert_eq!(cluster.requests(), requests, "no node was asked");
}

#[tokio::test]
async fn whoever_does_not_wait_asks_each_node_once() {
    let cluster = FakeCluster::serving(3).unwrap();
    let builder = Client::builder().endpoints(cluster.endpoints()).mode(Routing::Proxy);
    let client = builder.patience(Patience::OneRound).connect().await.unwrap();
    let failed = outcome(Code::Unavailable, "QUORUM_UNREACHABLE", 1, 2);
    for node in &cluster.nodes {
        (0..5).for_each(|_| node.misbehave(Misbehaviour::Answer(failed.clone())));
    }
    let error = client.put("default", "k", "v", WriteOptions::default()).await.unwrap_err();
    assert_eq!(*error.reason(), Reason::QUORUM_UNREACHABLE);
    assert!(cluster.nodes.iter().all(|node| node.requests() == 1));
}
