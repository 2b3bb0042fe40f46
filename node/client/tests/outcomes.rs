//! What callers are told, and what is sent again: against fake nodes with scripted misbehaviour.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::future::Future;
use std::time::Duration;

use keystore_client::fake::{FakeCluster, Misbehaviour, outcome};
use keystore_client::{Client, Error, ReadOptions, Reason, Routing, WriteOptions};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status};

const SHORT: Duration = Duration::from_millis(300);
/// No attempt and no number of rounds takes as long.
const LONG: Duration = Duration::from_secs(30);

async fn client(cluster: &FakeCluster, mode: Routing) -> Client {
    client_within(cluster, mode, Duration::from_secs(5)).await
}

async fn client_within(cluster: &FakeCluster, mode: Routing, timeout: Duration) -> Client {
    let builder = Client::builder().endpoints(cluster.endpoints()).mode(mode);
    builder.timeout(timeout).connect().await.unwrap()
}

async fn put(client: &Client, key: &str) -> Result<(), Error> {
    let written = client.put("default", key.to_owned(), "value", WriteOptions::default()).await;
    written.map(|_| ())
}

async fn get(client: &Client, key: &str) -> Result<Option<Vec<u8>>, Error> {
    let read = client.get("default", key.to_owned(), ReadOptions::default()).await?;
    Ok(read.value().map(|value| value.value.to_vec()))
}

async fn eventually(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "the condition did not come true");
        sleep(Duration::from_millis(2)).await;
    }
}

/// Runs `request` and, once it has reached a node, crashes that node.
async fn crash_under<T>(cluster: &mut FakeCluster, node: usize, request: impl Future<Output = T>) -> T {
    let (result, ()) = tokio::join!(request, async {
        eventually(|| cluster.nodes[node].requests() > 0).await;
        cluster.nodes[node].crash();
    });
    result
}

#[derive(Debug, PartialEq)]
enum Told {
    Failed,
    Unknown,
    Deadline,
    Refused,
    BadRequest,
    Connect,
}

fn told(error: &Error) -> Told {
    match error {
        Error::Failed(_) => Told::Failed,
        Error::Unknown(_) => Told::Unknown,
        Error::DeadlineExceeded { .. } => Told::Deadline,
        Error::Refused(_) => Told::Refused,
        Error::BadRequest(_) => Told::BadRequest,
        Error::Connect(_) => Told::Connect,
    }
}

/// A status that every attempt meets, what it tells a writer and a reader, and whether a write is sent again.
#[tokio::test]
async fn every_status_becomes_the_outcome_that_it_proves() {
    let failed = |reason| outcome(Code::Unavailable, reason, 1, 2);
    let cases = [
        (failed("QUORUM_UNREACHABLE"), Told::Failed, Told::Failed, true),
        (failed("A_REASON_OF_A_LATER_RELEASE"), Told::Failed, Told::Failed, true),
        (outcome(Code::ResourceExhausted, "OVERLOADED", 0, 2), Told::Failed, Told::Failed, true),
        (outcome(Code::ResourceExhausted, "DISK_FULL", 0, 2), Told::Failed, Told::Failed, false),
        (outcome(Code::Unknown, "OUTCOME_UNKNOWN", 1, 2), Told::Unknown, Told::Failed, false),
        (outcome(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", 1, 2), Told::Deadline, Told::Deadline, false),
        (outcome(Code::FailedPrecondition, "NOT_INITIALIZED", 0, 0), Told::Refused, Told::Refused, false),
        (outcome(Code::NotFound, "KEYSPACE_UNKNOWN", 0, 0), Told::BadRequest, Told::BadRequest, false),
        (Status::invalid_argument("bad"), Told::BadRequest, Told::BadRequest, false),
        (Status::unavailable("a proxy says so"), Told::Unknown, Told::Failed, false),
        (Status::resource_exhausted("a proxy says so"), Told::Unknown, Told::Failed, false),
        (Status::failed_precondition("a proxy says so"), Told::Unknown, Told::Failed, false),
        (Status::internal("a proxy says so"), Told::Unknown, Told::Failed, false),
        (Status::cancelled("a proxy says so"), Told::Unknown, Told::Failed, false),
        (Status::unknown("a proxy says so"), Told::Unknown, Told::Failed, false),
    ];
    // All at once, since each may last through all rounds: they, and not the deadline, have to end it.
    let mut running = JoinSet::new();
    for (status, writer, reader, write_is_sent_again) in cases {
        running.spawn(async move {
            let cluster = FakeCluster::serving(1).unwrap();
            let client = client_within(&cluster, Routing::Proxy, LONG).await;
            let always =
                || (0..20).for_each(|_| cluster.nodes[0].misbehave(Misbehaviour::Answer(status.clone())));
            always();
            let error = put(&client, "k").await.unwrap_err();
            assert_eq!(told(&error), writer, "{status:?}: {error}");
            assert_eq!(
                error.surely_not_applied(),
                matches!(writer, Told::Failed | Told::Refused | Told::BadRequest)
            );
            assert_eq!(cluster.requests() > 1, write_is_sent_again, "{status:?}");
            always();
            let error = get(&client, "k").await.unwrap_err();
            assert_eq!(told(&error), reader, "{status:?}: {error}");
            assert!(error.surely_not_applied());
        });
    }
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test]
async fn what_a_node_says_of_its_replicas_reaches_the_caller() {
    let cluster = FakeCluster::serving(1).unwrap();
    let client = client(&cluster, Routing::Proxy).await;
    cluster.nodes[0].misbehave(Misbehaviour::Answer(outcome(Code::Unknown, "OUTCOME_UNKNOWN", 1, 2)));
    let error = put(&client, "k").await.unwrap_err();
    assert_eq!(*error.reason(), Reason::OUTCOME_UNKNOWN);
    assert_eq!((error.detail().acks, error.detail().needed), (Some(1), Some(2)));
}

#[tokio::test]
async fn a_value_comes_back_with_the_stamp_of_its_write_until_it_is_deleted() {
    let cluster = FakeCluster::serving(3).unwrap();
    for mode in [Routing::Direct, Routing::Proxy] {
        let client = client(&cluster, mode).await;
        let value = vec![7; 1 << 20];
        let options = WriteOptions::default();
        let written = client.put("default", "k", value.clone(), options.clone()).await.unwrap();
        let read = client.get("default", "k", ReadOptions::default()).await.unwrap();
        assert_eq!(read.value().unwrap().value, value);
        assert_eq!(read.value().unwrap().stamp, written.stamp);
        let deleted = client.delete("default", "k", options).await.unwrap();
        assert!(deleted.stamp > written.stamp);
        assert_eq!(get(&client, "k").await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_read_goes_to_another_node_when_its_stream_breaks() {
    let mut cluster = FakeCluster::serving(3).unwrap();
    let client = client(&cluster, Routing::Direct).await;
    put(&client, "k").await.unwrap();
    let owner = cluster.first_owner(b"k").unwrap();
    let before = cluster.nodes[owner].requests();
    assert_eq!(before, 1);
    cluster.nodes[owner].misbehave(Misbehaviour::Hang);
    let read = crash_under(&mut cluster, owner, get(&client, "k")).await;
    assert_eq!(read.unwrap().as_deref(), Some(&b"value"[..]));
}

#[tokio::test]
async fn a_read_that_a_node_leaves_unanswered_goes_to_another_one_in_time() {
    let cluster = FakeCluster::serving(3).unwrap();
    let client = client_within(&cluster, Routing::Direct, Duration::from_secs(1)).await;
    put(&client, "k").await.unwrap();
    let owner = cluster.first_owner(b"k").unwrap();
    cluster.nodes[owner].misbehave(Misbehaviour::Hang);
    assert!(get(&client, "k").await.unwrap().is_some());
    assert_eq!(cluster.nodes[owner].requests(), 2, "the put and the unanswered get");
}

#[tokio::test]
async fn a_write_whose_stream_breaks_is_unknown_and_never_sent_again() {
    for misbehaviour in [Misbehaviour::Hang, Misbehaviour::ApplyAndHang] {
        let applied = usize::from(matches!(misbehaviour, Misbehaviour::ApplyAndHang));
        let mut cluster = FakeCluster::serving(3).unwrap();
        let client = client(&cluster, Routing::Direct).await;
        let owner = cluster.first_owner(b"k").unwrap();
        cluster.nodes[owner].misbehave(misbehaviour);
        let error = crash_under(&mut cluster, owner, put(&client, "k")).await.unwrap_err();
        assert_eq!(told(&error), Told::Unknown, "{error}");
        assert_eq!(*error.reason(), Reason::BROKEN_STREAM);
        assert!(!error.surely_not_applied());
        assert_eq!(cluster.requests(), 1);
        assert_eq!(cluster.writes_applied(), applied);
    }
}

#[tokio::test]
async fn a_write_without_an_answer_at_its_deadline_may_be_applied() {
    let cluster = FakeCluster::serving(3).unwrap();
    let client = client_within(&cluster, Routing::Direct, SHORT).await;
    let owner = cluster.first_owner(b"k").unwrap();
    cluster.nodes[owner].misbehave(Misbehaviour::ApplyAndHang);
    let start = Instant::now();
    let error = put(&client, "k").await.unwrap_err();
    assert!((SHORT..SHORT * 4).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert_eq!(told(&error), Told::Deadline, "{error}");
    assert!(!error.surely_not_applied());
    assert_eq!((cluster.requests(), cluster.writes_applied()), (1, 1));
}

#[tokio::test]
async fn a_write_that_was_surely_not_applied_is_sent_again_and_applied_once() {
    for status in [
        outcome(Code::Unavailable, "QUORUM_UNREACHABLE", 0, 2),
        outcome(Code::Unavailable, "DRAINING", 0, 0),
        outcome(Code::ResourceExhausted, "OVERLOADED", 0, 0),
    ] {
        let cluster = FakeCluster::serving(3).unwrap();
        let client = client(&cluster, Routing::Direct).await;
        for node in &cluster.nodes {
            node.misbehave(Misbehaviour::Answer(status.clone()));
        }
        put(&client, "k").await.unwrap();
        assert_eq!((cluster.requests(), cluster.writes_applied()), (4, 1), "{status:?}");
    }
}

#[tokio::test]
async fn what_a_node_says_is_told_rather_than_that_others_are_down() {
    let mut cluster = FakeCluster::serving(3).unwrap();
    // Connected to the one that stays: on a connection that has just died a write would be unknown.
    let client = Client::builder().endpoints([cluster.nodes[2].endpoint()]).connect().await.unwrap();
    cluster.nodes[0].crash();
    cluster.nodes[1].crash();
    let unreachable = outcome(Code::Unavailable, "QUORUM_UNREACHABLE", 1, 2);
    (0..20).for_each(|_| cluster.nodes[2].misbehave(Misbehaviour::Answer(unreachable.clone())));
    let error = put(&client, "k").await.unwrap_err();
    assert_eq!((told(&error), error.reason()), (Told::Failed, &Reason::QUORUM_UNREACHABLE));
}

#[tokio::test]
async fn requests_go_to_the_first_owner_and_past_it_when_it_is_down() {
    let mut cluster = FakeCluster::serving(3).unwrap();
    let client = client(&cluster, Routing::Direct).await;
    let keys: Vec<_> = (0..60).map(|n| format!("key-{n}")).collect();
    let mut expected = [0; 3];
    for key in &keys {
        expected[cluster.first_owner(key.as_bytes()).unwrap()] += 1;
        put(&client, key).await.unwrap();
    }
    let requests: Vec<_> = cluster.nodes.iter().map(|node| node.requests()).collect();
    assert_eq!(requests, expected);
    cluster.nodes[1].crash();
    for key in &keys {
        // A connection that is dying under a write makes that one write unknown.
        match put(&client, key).await {
            Ok(()) => {}
            Err(error) => assert_eq!(told(&error), Told::Unknown, "{error}"),
        }
    }
    assert!(cluster.requests() >= 2 * keys.len() - 1);
    for key in &keys {
        assert!(get(&client, key).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn a_node_that_returns_is_used_again() {
    let mut cluster = FakeCluster::serving(1).unwrap();
    let client = client(&cluster, Routing::Proxy).await;
    put(&client, "k").await.unwrap();
    cluster.nodes[0].crash();
    let error = loop {
        let error = put(&client, "k").await.unwrap_err();
        if error.surely_not_applied() {
            break error;
        }
    };
    assert_eq!(told(&error), Told::Connect, "{error}");
    cluster.nodes[0].restart().unwrap();
    put(&client, "k").await.unwrap();
    assert_eq!(cluster.writes_applied(), 2);
}

#[tokio::test]
async fn a_proxys_client_dials_the_given_endpoints_only() {
    let cluster = FakeCluster::serving(3).unwrap();
    let only = cluster.nodes[2].endpoint();
    let client = Client::builder().endpoints([only]).mode(Routing::Proxy).connect().await.unwrap();
    for n in 0..20 {
        put(&client, &format!("key-{n}")).await.unwrap();
    }
    assert_eq!(cluster.nodes[2].requests(), 20);
    assert_eq!(cluster.requests(), 20);
}

#[tokio::test]
async fn a_client_without_anything_to_connect_to_says_so_at_once() {
    let mut cluster = FakeCluster::serving(2).unwrap();
    cluster.nodes.iter_mut().for_each(|node| node.crash());
    for mode in [Routing::Direct, Routing::Proxy] {
        let connecting = Client::builder().endpoints(cluster.endpoints()).mode(mode).connect();
        let result = timeout(Duration::from_secs(3), connecting).await.expect("no waiting");
        let error = result.err().expect("nobody listens");
        assert_eq!(told(&error), Told::Connect, "{error}");
    }
    for bad in ["no-port", "", "a b:1"] {
        let error = Client::builder().endpoints([bad]).connect().await.err().unwrap();
        assert_eq!(told(&error), Told::Connect, "{error}");
    }
}

#[tokio::test]
async fn a_cluster_that_was_not_initialised_refuses() {
    let cluster = FakeCluster::uninitialized(2).unwrap();
    let error = Client::builder().endpoints(cluster.endpoints()).connect().await.err().unwrap();
    assert_eq!(told(&error), Told::Refused, "{error}");
    let client = client(&cluster, Routing::Proxy).await;
    let error = put(&client, "k").await.unwrap_err();
    assert_eq!(*error.reason(), Reason::NOT_INITIALIZED);
    assert_eq!(cluster.requests(), 2, "each node is asked once");
}

#[tokio::test]
async fn a_request_that_breaks_a_limit_is_not_even_sent() {
    let cluster = FakeCluster::serving(1).unwrap();
    let client = client(&cluster, Routing::Direct).await;
    for key in [String::new(), "k".repeat(1025)] {
        let error = put(&client, &key).await.unwrap_err();
        assert_eq!(told(&error), Told::BadRequest, "{error}");
    }
    let large = vec![0; keystore_client::VALUE_BYTES_MAX + 1];
    let error = client.put("default", "k", large, WriteOptions::default()).await.unwrap_err();
    assert_eq!(told(&error), Told::BadRequest, "{error}");
    assert_eq!(cluster.requests(), 0);
}

#[tokio::test]
async fn many_requests_share_one_connection_and_all_are_answered() {
    let cluster = FakeCluster::serving(1).unwrap();
    let client = client(&cluster, Routing::Proxy).await;
    let mut tasks = JoinSet::new();
    for n in 0..500 {
        let client = client.clone();
        tasks.spawn(async move { put(&client, &format!("key-{n}")).await });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap().unwrap();
    }
    assert_eq!(cluster.writes_applied(), 500);
}

/// As behind a kernel that accepts for a frozen process, or a forwarder that accepts for one that is gone.
#[tokio::test]
async fn a_write_is_not_sent_to_whoever_accepts_a_connection_but_says_nothing() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let cluster = FakeCluster::serving(1).unwrap();
    let endpoints = [silent.local_addr().unwrap().to_string(), cluster.nodes[0].endpoint()];
    let builder = Client::builder().endpoints(endpoints.clone()).mode(Routing::Proxy);
    let client = builder.connect().await.unwrap();
    for key in ["a", "b"] {
        put(&client, key).await.unwrap();
    }
    assert_eq!(cluster.writes_applied(), 2);
    let only = Client::builder().endpoints(&endpoints[..1]).mode(Routing::Proxy).timeout(SHORT);
    let error = only.connect().await.err().unwrap();
    assert_eq!(told(&error), Told::Connect, "{error}");
}
