//! Batches, sessions and scans: against fake nodes with scripted misbehaviour.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::Duration;

use futures::TryStreamExt;
use futures::future::join_all;
use keystore_client::fake::{FakeCluster, Misbehaviour, outcome};
use keystore_client::{
    Answer, Client, Entry, Error, Operation, ReadOptions, Reason, Routing, ScanOptions, WriteOptions,
};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

async fn client(cluster: &FakeCluster, mode: Routing) -> Client {
    Client::builder().endpoints(cluster.endpoints()).mode(mode).connect().await.unwrap()
}

fn get(key: &str) -> Operation {
    Operation::get("default", key.to_owned(), ReadOptions::default()).unwrap()
}

fn put(key: &str, value: &str) -> Operation {
    Operation::put("default", key.to_owned(), value.to_owned(), WriteOptions::default()).unwrap()
}

fn text(answer: Answer) -> Option<String> {
    match answer {
        Answer::Read(read) => read.value().map(|value| String::from_utf8(value.value.to_vec()).unwrap()),
        Answer::Written(_) => panic!("a write's answer"),
    }
}

async fn eventually(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "the condition did not come true");
        sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_batch_is_one_message_to_each_owner_and_its_outcomes_keep_their_order() {
    let cluster = FakeCluster::serving(3).unwrap();
    let client = client(&cluster, Routing::Direct).await;
    let keys: Vec<_> = (0..100).map(|n| format!("key-{n}")).collect();
    let written = client.batch(keys.iter().map(|key| put(key, key))).await.unwrap();
    assert!(written.iter().all(|outcome| matches!(outcome, Ok(Answer::Written(_)))));
    let mut expected = [0; 3];
    keys.iter().for_each(|key| expected[cluster.first_owner(key.as_bytes()).unwrap()] += 1);
    assert_eq!(cluster.nodes.iter().map(|node| node.requests()).collect::<Vec<_>>(), expected);
    assert_eq!(cluster.nodes.iter().map(|node| node.batches()).collect::<Vec<_>>(), [1, 1, 1]);
    let mixed = keys.iter().flat_map(|key| [get(key), get("nobody")]);
    let read = client.batch(mixed).await.unwrap();
    for (pair, key) in read.chunks(2).zip(&keys) {
        assert_eq!(text(pair[0].clone().unwrap()).as_ref(), Some(key));
        assert_eq!(text(pair[1].clone().unwrap()), None);
    }
}

#[tokio::test]
async fn each_operation_of_a_batch_has_its_own_outcome() {
    let cluster = FakeCluster::serving(1).unwrap();
    let client = client(&cluster, Routing::Proxy).await;
    let node = &cluster.nodes[0];
    node.misbehave(Misbehaviour::ApplyAndAnswer(outcome(Code::Unknown, "OUTCOME_UNKNOWN", 1, 2)));
    node.misbehave(Misbehaviour::Answer(outcome(Code::ResourceExhausted, "DISK_FULL", 0, 2)));
    let elsewhere = Operation::get("nowhere", "k", ReadOptions::default()).unwrap();
    let outcomes = client.batch([put("a", "1"), put("b", "2"), put("c", "3"), elsewhere]).await.unwrap();
    let reasons: Vec<_> =
        outcomes.iter().map(|outcome| outcome.as_ref().err().map(|error| error.reason().clone())).collect();
    assert_eq!(
        reasons,
        [Some(Reason::OUTCOME_UNKNOWN), Some(Reason::DISK_FULL), None, Some(Reason::KEYSPACE_UNKNOWN)]
    );
    assert!(matches!(&outcomes[0], Err(Error::Unknown(detail)) if detail.acks == Some(1)));
    assert_eq!(cluster.requests(), 4, "nothing of it may be sent again");
}

#[tokio::test]
async fn what_was_surely_not_applied_of_a_batch_is_sent_again_by_itself() {
    let cluster = FakeCluster::serving(3).unwrap();
    let client = client(&cluster, Routing::Proxy).await;
    for node in &cluster.nodes {
        node.misbehave(Misbehaviour::Answer(outcome(Code::ResourceExhausted, "OVERLOADED", 0, 0)));
    }
    let outcomes = client.batch([put("a", "1"), put("b", "2")]).await.unwrap();
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!(cluster.writes_applied(), 2);
}

#[tokio::test]
async fn a_batch_whose_node_dies_leaves_its_writes_unknown_and_its_reads_answered() {
    let mut cluster = FakeCluster::serving(2).unwrap();
    let client = client(&cluster, Routing::Direct).await;
    let owner = cluster.first_owner(b"k").unwrap();
    cluster.nodes[owner].misbehave(Misbehaviour::ApplyAndHang);
    let batch = client.batch([put("k", "v"), get("k")]);
    let (outcomes, ()) = tokio::join!(batch, async {
        eventually(|| cluster.nodes[owner].requests() > 0).await;
        cluster.nodes[owner].crash();
    });
    let outcomes = outcomes.unwrap();
    assert!(matches!(&outcomes[0], Err(Error::Unknown(_))), "{outcomes:?}");
    assert_eq!(text(outcomes[1].clone().unwrap()).as_deref(), Some("v"));
    assert_eq!(cluster.writes_applied(), 1);
}

#[tokio::test]
async fn a_batch_that_is_too_large_is_not_sent() {
    let cluster = FakeCluster::serving(1).unwrap();
    let client = client(&cluster, Routing::Proxy).await;
    assert!(matches!(client.batch((0..1001).map(|_| get("k"))).await, Err(Error::BadRequest(_))));
    let value = "v".repeat(1 << 20);
    assert!(matches!(client.batch((0..3).map(|_| put("k", &value))).await, Err(Error::BadRequest(_))));
    assert_eq!(client.batch([]).await.unwrap(), []);
    assert_eq!(cluster.requests(), 0);
}

#[tokio::test]
async fn operations_of_a_session_share_one_stream_to_each_owner() {
    let cluster = FakeCluster::serving(3).unwrap();
    let client = client(&cluster, Routing::Direct).await.session();
    let keys: Vec<_> = (0..2000).map(|n| format!("key-{n}")).collect();
    let puts =
        keys.iter().map(|key| client.put("default", key.clone(), key.clone(), WriteOptions::default()));
    assert!(join_all(puts).await.iter().all(Result::is_ok));
    let gets = keys.iter().map(|key| client.get("default", key.clone(), ReadOptions::default()));
    for (read, key) in join_all(gets).await.into_iter().zip(&keys) {
        assert_eq!(read.unwrap().value().unwrap().value, key.as_bytes());
    }
    assert_eq!(cluster.nodes.iter().map(|node| node.sessions()).collect::<Vec<_>>(), [1, 1, 1]);
    assert_eq!((cluster.writes_applied(), cluster.requests()), (2000, 4000));
    let large = vec![7; 1 << 20];
    client.put("default", "large", large.clone(), WriteOptions::default()).await.unwrap();
    let read = client.get("default", "large", ReadOptions::default()).await.unwrap();
    assert_eq!(read.value().unwrap().value, large, "larger than any piece or window");
}

#[tokio::test]
async fn an_answer_of_a_session_is_the_outcome_of_its_operation_alone() {
    let cluster = FakeCluster::serving(1).unwrap();
    let client = client(&cluster, Routing::Proxy).await.session();
    cluster.nodes[0].misbehave(Misbehaviour::Hang);
    let timeout = Some(Duration::from_millis(300));
    let hanging = client.put("default", "a", "v", WriteOptions { timeout, ..WriteOptions::default() });
    let (hanging, done) = tokio::join!(hanging, async {
        eventually(|| cluster.requests() > 0).await;
        client.put("default", "b", "v", WriteOptions::default()).await
    });
    assert!(matches!(hanging, Err(Error::DeadlineExceeded { sent_write: true, .. })), "{hanging:?}");
    done.unwrap();
    cluster.nodes[0].misbehave(Misbehaviour::Answer(outcome(Code::Unknown, "OUTCOME_UNKNOWN", 1, 2)));
    let error = client.put("default", "c", "v", WriteOptions::default()).await.unwrap_err();
    assert_eq!((error.reason(), error.detail().needed), (&Reason::OUTCOME_UNKNOWN, Some(2)));
    assert_eq!(cluster.nodes[0].sessions(), 1, "the stream goes on");
}

#[tokio::test]
async fn a_session_that_breaks_leaves_writes_unknown_and_reads_answered() {
    let mut cluster = FakeCluster::serving(2).unwrap();
    let client = client(&cluster, Routing::Direct).await.session();
    client.put("default", "k", "v", WriteOptions::default()).await.unwrap();
    let owner = cluster.first_owner(b"k").unwrap();
    (0..20).for_each(|_| cluster.nodes[owner].misbehave(Misbehaviour::Hang));
    let writes = (0..10).map(|_| client.put("default", "k", "w", WriteOptions::default()));
    let reads = (0..10).map(|_| client.get("default", "k", ReadOptions::default()));
    let (writes, reads, ()) = tokio::join!(join_all(writes), join_all(reads), async {
        eventually(|| cluster.nodes[owner].requests() == 21).await;
        cluster.nodes[owner].crash();
    });
    for written in writes {
        let error = written.unwrap_err();
        assert!(matches!(&error, Error::Unknown(_)), "{error}");
        assert_eq!(*error.reason(), Reason::BROKEN_STREAM);
    }
    assert!(reads.iter().all(|read| read.as_ref().unwrap().value().unwrap().value == "v"));
    assert_eq!(cluster.writes_applied(), 1, "no write was sent again");
    client.put("default", "k", "x", WriteOptions::default()).await.unwrap();
}

/// A node ends its sessions when it has answered all that it has taken up.
#[tokio::test]
async fn what_a_node_leaves_unanswered_when_it_ends_a_session_is_judged_by_what_it_says() {
    let cases = [
        (outcome(Code::Unavailable, "DRAINING", 0, 0), true),
        (Status::unavailable("a proxy says so"), false),
        (Status::ok(""), false),
    ];
    for (status, is_proof) in cases {
        let cluster = FakeCluster::serving(2).unwrap();
        let client = client(&cluster, Routing::Direct).await.session();
        let owner = cluster.first_owner(b"k").unwrap();
        (0..5).for_each(|_| cluster.nodes[owner].misbehave(Misbehaviour::Hang));
        let writes = (0..5).map(|_| client.put("default", "k", "v", WriteOptions::default()));
        let (writes, ()) = tokio::join!(join_all(writes), async {
            eventually(|| cluster.requests() == 5).await;
            cluster.nodes[owner].end_sessions(status.clone());
        });
        for written in writes {
            match written {
                Ok(_) => assert!(is_proof, "{status:?}"),
                Err(error) => assert!(matches!(error, Error::Unknown(_)) && !is_proof, "{status:?}: {error}"),
            }
        }
        assert_eq!(cluster.writes_applied(), if is_proof { 5 } else { 0 });
    }
}

#[tokio::test]
async fn a_session_goes_on_with_a_node_that_returns() {
    let mut cluster = FakeCluster::serving(1).unwrap();
    let client = client(&cluster, Routing::Proxy).await.session();
    client.put("default", "k", "v", WriteOptions::default()).await.unwrap();
    cluster.nodes[0].crash();
    cluster.nodes[0].restart().unwrap();
    let read = client.get("default", "k", ReadOptions::default()).await.unwrap();
    assert_eq!(read.value().unwrap().value, "v");
}

async fn fill(client: &Client, count: usize) -> Vec<String> {
    let keys: Vec<_> = (0..count).map(|n| format!("key-{n}")).collect();
    let written = client.batch(keys.iter().map(|key| put(key, key))).await.unwrap();
    assert!(written.iter().all(Result::is_ok));
    keys
}

async fn scan(client: &Client, options: ScanOptions) -> Vec<String> {
    let mut scan = client.scan("default", options).unwrap();
    let mut keys = Vec::new();
    while let Some(Entry { key, read }) = scan.next().await.unwrap() {
        assert_eq!(read.value().unwrap().value, key);
        keys.push(String::from_utf8(key.to_vec()).unwrap());
    }
    assert_eq!(scan.next().await.unwrap(), None, "an end stays one");
    keys
}

#[tokio::test]
async fn a_scan_returns_each_key_once_and_goes_on_after_any_of_them() {
    let cluster = FakeCluster::serving(3).unwrap();
    let client = client(&cluster, Routing::Direct).await;
    let mut keys = fill(&client, 40).await;
    client.put("default", "other", "other", WriteOptions::default()).await.unwrap();
    let all = scan(&client, ScanOptions { prefix: "key-".into(), ..ScanOptions::default() }).await;
    let mut sorted = all.clone();
    sorted.sort();
    keys.sort();
    assert_eq!(sorted, keys);
    assert_eq!(scan(&client, ScanOptions::default()).await.len(), 41);
    for (start, limit) in [(0, 7), (10, 1), (30, 100), (39, 5)] {
        let options = ScanOptions {
            prefix: "key-".into(),
            after: Some(all[start].clone().into()),
            limit: Some(limit),
            ..ScanOptions::default()
        };
        let end = all.len().min(start + 1 + limit as usize);
        assert_eq!(scan(&client, options).await, all[start + 1..end]);
    }
    assert!(scan(&client, ScanOptions { limit: Some(0), ..ScanOptions::default() }).await.is_empty());
    let stream = client.scan("default", ScanOptions::default()).unwrap().into_stream();
    assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap().len(), 41);
}

#[tokio::test]
async fn a_scan_goes_on_at_another_node_after_the_last_key_that_it_returned() {
    let mut cluster = FakeCluster::serving(3).unwrap();
    let client = client(&cluster, Routing::Proxy).await;
    fill(&client, 20).await;
    let all = scan(&client, ScanOptions::default()).await;
    for node in &cluster.nodes {
        node.misbehave(Misbehaviour::Answer(outcome(Code::Unavailable, "DRAINING", 0, 0)));
    }
    assert_eq!(scan(&client, ScanOptions::default()).await, all, "told by each node after one page");
    let before: Vec<_> = cluster.nodes.iter().map(|node| node.requests()).collect();
    cluster.nodes.iter().for_each(|node| node.misbehave(Misbehaviour::Hang));
    let (keys, ()) = tokio::join!(scan(&client, ScanOptions::default()), async {
        let asked = || (0..3).find(|n| cluster.nodes[*n].requests() > before[*n]);
        eventually(|| asked().is_some()).await;
        let asked = asked().unwrap();
        cluster.nodes[asked].crash();
        // The others hang after their first pages too.
        let others: Vec<_> = (0..3).filter(|n| *n != asked).collect();
        eventually(|| others.iter().any(|n| cluster.nodes[*n].requests() > before[*n])).await;
        let second = *others.iter().find(|n| cluster.nodes[**n].requests() > before[**n]).unwrap();
        cluster.nodes[second].crash();
        let third = others.into_iter().find(|n| *n != second).unwrap();
        eventually(|| cluster.nodes[third].requests() > before[third]).await;
        cluster.nodes[third].crash();
        cluster.nodes[third].restart().unwrap();
    });
    assert_eq!(keys, all);
}

#[tokio::test]
async fn scans_are_spread_over_the_nodes() {
    let cluster = FakeCluster::serving(3).unwrap();
    let only = Client::builder().endpoints([cluster.nodes[0].endpoint()]).connect().await.unwrap();
    for _ in 0..9 {
        scan(&only, ScanOptions::default()).await;
    }
    assert_eq!(cluster.nodes.iter().map(|node| node.requests()).collect::<Vec<_>>(), [3, 3, 3]);
}

#[tokio::test]
async fn a_scan_of_a_keyspace_that_does_not_exist_is_a_bad_request() {
    let cluster = FakeCluster::serving(1).unwrap();
    let client = client(&cluster, Routing::Proxy).await;
    let mut scan = client.scan("nowhere", ScanOptions::default()).unwrap();
    assert!(matches!(scan.next().await, Err(Error::BadRequest(_))));
    assert_eq!(cluster.requests(), 1);
}

/// As names of pods are, outside their Kubernetes: here one that is resolved, and then leads to silence.
#[tokio::test]
async fn a_node_whose_name_leads_nowhere_delays_nobody() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let cluster = FakeCluster::serving(3).unwrap();
    let address = format!("localhost:{}", silent.local_addr().unwrap().port());
    cluster.nodes[1..].iter().for_each(|node| node.announce(address.clone()));
    let only = Client::builder().endpoints([cluster.nodes[0].endpoint()]).connect().await.unwrap();
    let keys = (0..100).map(|n| format!("key-{n}"));
    let key = keys.into_iter().find(|key| cluster.first_owner(key.as_bytes()) == Some(1)).unwrap();
    let start = Instant::now();
    only.put("default", key, "v", WriteOptions::default()).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(cluster.nodes[0].requests(), 1);
}
