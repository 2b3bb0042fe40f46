//! Sessions, as clients of a cluster of real processes see them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use keystore_proto::v1;
use keystore_proto::v1::operation::Operation;
use keystore_proto::v1::outcome::Outcome;
use rustix::process::Signal;
use support::ask::{Session, delete, failure, get, put, reason, text};
use support::{CAUSAL, Cluster};
use tonic::Code;

/// The ids of so many answers, all of which have to be of the kind asked for.
async fn answers(
    session: &mut Session,
    count: usize,
    is_right: impl Fn(u64, &Outcome) -> bool,
) -> BTreeSet<u64> {
    let mut ids = BTreeSet::new();
    for _ in 0..count {
        let (id, outcome) = session.answer().await.unwrap().unwrap();
        assert!(is_right(id, &outcome), "{id}: {outcome:?}");
        assert!(ids.insert(id), "{id} was answered twice");
    }
    ids
}

#[tokio::test]
async fn a_thousand_operations_in_flight_are_each_answered_by_their_id() {
    let cluster = Cluster::serving(3).await;
    let mut session = cluster.nodes[0].session().await;
    for id in 0..1_000 {
        session.send(id, 0, Operation::Put(put("", &format!("k{id}"), &format!("v{id}"))));
    }
    let all = (0..1_000).collect::<BTreeSet<u64>>();
    let put_done = |_, outcome: &Outcome| matches!(outcome, Outcome::Put(put) if put.acks >= 2);
    assert_eq!(answers(&mut session, 1_000, put_done).await, all);
    for id in 0..1_000 {
        session.send(id, 0, Operation::Get(get("", &format!("k{id}"))));
    }
    let got = |id, outcome: &Outcome| matches!(outcome, Outcome::Got(got) if text(&got.values[0].value) == format!("v{id}"));
    assert_eq!(answers(&mut session, 1_000, got).await, all);
    session.half_close();
    assert!(session.answer().await.is_none(), "it ends when everything is answered");
    let (_, metrics) = cluster.nodes[0].http("/metrics").await.unwrap();
    for operation in ["get", "put"] {
        let line = format!("keystore_requests_total{{operation=\"{operation}\",outcome=\"done\"}} 1000");
        assert!(metrics.lines().any(|found| found == line), "{line} is missing:\n{metrics}");
    }
}

#[tokio::test]
async fn a_client_that_sends_without_reading_is_not_read_from_and_is_answered_when_it_reads() {
    let cluster = Cluster::serving(1).await;
    let mut session = cluster.nodes[0].session().await;
    let value = "x".repeat(10_000);
    for id in 0..5_000 {
        session.send(id, 60_000, Operation::Put(put("", &format!("k{id}"), &value)));
    }
    session.half_close();
    // Another client is served meanwhile.
    cluster.nodes[0].put("other", "v").await.unwrap();
    let done = |_, outcome: &Outcome| matches!(outcome, Outcome::Put(_));
    assert_eq!(answers(&mut session, 5_000, done).await.len(), 5_000);
    assert!(session.answer().await.is_none());
}

#[tokio::test]
async fn a_client_that_sends_far_ahead_of_a_stalled_store_is_held_back_and_not_cut_off() {
    const SENT: u64 = 60_000;
    let cluster = Cluster::serving(3).await;
    let mut session = cluster.nodes[0].session().await;
    for node in &cluster.nodes[1..] {
        node.signal(Signal::STOP);
    }
    for id in 0..SENT {
        session.send(id, 60_000, Operation::Get(get("", "k")));
    }
    session.half_close();
    // Until the others are given up: the node has taken all that it takes by then.
    let (first, _) = session.answer().await.unwrap().unwrap();
    for node in &cluster.nodes[1..] {
        node.signal(Signal::CONT);
    }
    let mut answered = answers(&mut session, SENT as usize - 1, |_, _| true).await;
    assert!(
        answered.insert(first) && session.answer().await.is_none(),
        "each is answered, whatever came of it"
    );
}

#[tokio::test]
async fn items_fail_by_themselves_and_the_session_goes_on() {
    let cluster = Cluster::serving(3).await;
    let mut session = cluster.nodes[1].session().await;
    session.send(1, 0, Operation::Put(put("nowhere", "k", "v")));
    session.send(2, 0, Operation::Put(put("", "", "v")));
    session.send(3, 0, Operation::Put(v1::PutRequest { context: "x".into(), ..put(CAUSAL, "k", "v") }));
    session.send(4, 0, Operation::Put(put(CAUSAL, "k", "v")));
    session.send(5, 0, Operation::Delete(delete("", "k")));
    let right = |id, outcome: &Outcome| match id {
        1 => failure(outcome) == (Code::NotFound, "KEYSPACE_UNKNOWN"),
        2 | 3 => failure(outcome) == (Code::InvalidArgument, "INVALID_ARGUMENT"),
        4 => matches!(outcome, Outcome::Put(put) if !put.context.is_empty()),
        _ => matches!(outcome, Outcome::Deleted(_)),
    };
    answers(&mut session, 5, right).await;
}

#[tokio::test]
async fn each_item_has_its_own_deadline_and_an_id_is_used_once_at_a_time() {
    let cluster = Cluster::serving(3).await;
    let mut session = cluster.nodes[0].session().await;
    for node in &cluster.nodes[1..] {
        node.signal(Signal::STOP);
    }
    let begun = Instant::now();
    session.send(7, 1_500, Operation::Put(put("", "k", "slow")));
    session.send(8, 300, Operation::Put(put("", "l", "fast")));
    session.send(7, 300, Operation::Put(put("", "k", "again")));
    let (id, refused) = session.answer().await.unwrap().unwrap();
    assert_eq!((id, failure(&refused)), (7, (Code::InvalidArgument, "INVALID_ARGUMENT")));
    let (id, fast) = session.answer().await.unwrap().unwrap();
    assert_eq!((id, failure(&fast)), (8, (Code::DeadlineExceeded, "DEADLINE_EXCEEDED")));
    // The node counts whole milliseconds.
    assert!(begun.elapsed() >= Duration::from_millis(299));
    let (id, slow) = session.answer().await.unwrap().unwrap();
    assert_eq!((id, failure(&slow)), (7, (Code::DeadlineExceeded, "DEADLINE_EXCEEDED")));
    assert!(begun.elapsed() >= Duration::from_millis(1_499));
    for node in &cluster.nodes[1..] {
        node.signal(Signal::CONT);
    }
}

#[tokio::test]
async fn a_draining_node_answers_what_is_in_flight_and_refuses_what_is_new() {
    let mut cluster = Cluster::serving(3).await;
    let mut session = cluster.nodes[0].session().await;
    for node in &cluster.nodes[1..] {
        node.signal(Signal::STOP);
    }
    session.send(0, 2_000, Operation::Put(put("", "k", "v")));
    // New items are done, or time out, until the drain begins, and are refused from then on.
    let mut id = 0;
    let refused = loop {
        id += 1;
        session.send(id, 1, Operation::Get(get("", "k")));
        let (answered, outcome) = session.answer().await.unwrap().unwrap();
        assert_eq!(answered, id, "the first one is still in flight");
        if failure(&outcome).1 != "DEADLINE_EXCEEDED" {
            break outcome;
        }
        // By now, the first one has arrived.
        if id == 1 {
            cluster.nodes[0].signal(Signal::TERM);
        }
    };
    assert_eq!(failure(&refused), (Code::Unavailable, "DRAINING"));
    let (answered, outcome) = session.answer().await.unwrap().unwrap();
    assert_eq!((answered, failure(&outcome).1), (0, "DEADLINE_EXCEEDED"));
    for node in &cluster.nodes[1..] {
        node.signal(Signal::CONT);
    }
    let end = session.answer().await.unwrap().unwrap_err();
    assert_eq!((end.code(), reason(&end).as_str()), (Code::Unavailable, "DRAINING"));
    assert!(session.answer().await.is_none());
    assert!(cluster.nodes[0].wait_for_end().status.success());
}
