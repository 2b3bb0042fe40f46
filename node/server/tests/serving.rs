//! What a client sees of a cluster of real processes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::{Duration, Instant};

use keystore_client::{Client, Reason, Routing, WriteOptions};
use keystore_proto::v1;
use rustix::process::Signal;
use support::{Cluster, wait_until};
use tonic::Code;
use tonic_types::StatusExt as _;

#[tokio::test]
async fn one_node_initialised_serves_put_get_and_delete() {
    let cluster = Cluster::serving(1).await;
    let node = &cluster.nodes[0];
    assert_eq!(node.get("k").await.unwrap(), None);
    let first = node.put("k", "1").await.unwrap();
    let second = node.put("k", "2").await.unwrap();
    assert!(second.stamp > first.stamp);
    assert_eq!((second.acks, second.durability()), (1, v1::Durability::Synced));
    assert_eq!(node.get("k").await.unwrap().as_deref(), Some("2"));
    let deleted = node.delete("k").await.unwrap();
    assert!(deleted.stamp > second.stamp);
    assert_eq!(node.get("k").await.unwrap(), None);
}

#[tokio::test]
async fn what_one_of_three_nodes_takes_every_one_reads() {
    let cluster = Cluster::serving(3).await;
    for (index, node) in cluster.nodes.iter().enumerate() {
        let put = node.put(&format!("key-{index}"), "value").await.unwrap();
        assert!(put.acks >= 2, "{put:?}");
    }
    for node in &cluster.nodes {
        for index in 0..3 {
            assert_eq!(node.get(&format!("key-{index}")).await.unwrap().as_deref(), Some("value"));
        }
    }
    cluster.nodes[1].delete("key-0").await.unwrap();
    assert_eq!(cluster.nodes[2].get("key-0").await.unwrap(), None);
}

#[tokio::test]
async fn every_consistency_and_durability_is_served() {
    let cluster = Cluster::serving(3).await;
    let node = &cluster.nodes[0];
    let levels = [v1::Consistency::One, v1::Consistency::Quorum, v1::Consistency::All];
    for (level, acks) in levels.into_iter().zip([1, 2, 3]) {
        for durability in [v1::Durability::Synced, v1::Durability::Periodic] {
            let put = v1::PutRequest {
                key: "k".into(),
                value: format!("{level:?}{durability:?}").into(),
                consistency: level.into(),
                durability: durability.into(),
                ..v1::PutRequest::default()
            };
            let value = put.value.clone();
            let written = node.client().put(put).await.unwrap().into_inner();
            assert!(written.acks >= acks, "{level:?} {written:?}");
            let get = v1::GetRequest {
                key: "k".into(),
                consistency: v1::Consistency::All.into(),
                ..v1::GetRequest::default()
            };
            let read = node.client().get(get).await.unwrap().into_inner();
            assert_eq!(read.values[0].value, value);
        }
    }
}

#[tokio::test]
async fn the_largest_value_goes_through_and_a_larger_one_is_refused() {
    let cluster = Cluster::serving(3).await;
    let put = |len: usize| {
        let request = v1::PutRequest {
            key: vec![b'k'; 1024].into(),
            value: vec![7; len].into(),
            ..v1::PutRequest::default()
        };
        let mut client = cluster.nodes[0].client();
        async move { client.put(request).await }
    };
    put(1 << 20).await.unwrap();
    let refused = put((1 << 20) + 1).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let get = v1::GetRequest { key: vec![b'k'; 1024].into(), ..v1::GetRequest::default() };
    let read = cluster.nodes[2].client().get(get).await.unwrap().into_inner();
    assert_eq!(read.values[0].value.len(), 1 << 20);
}

async fn check_error(node: &support::NodeProcess, request: v1::PutRequest, code: Code, reason: &str) {
    let status = node.client().put(request).await.unwrap_err();
    let info = status.get_details_error_info().expect("an ErrorInfo");
    assert_eq!((status.code(), info.reason.as_str()), (code, reason), "{status}");
    assert_eq!(info.domain, "keystore.dev");
}

#[tokio::test]
async fn errors_bear_the_documented_reasons() {
    let cluster = Cluster::start(1);
    let node = &cluster.nodes[0];
    node.wait_for_status().await;
    let request = |keyspace: &str, key: &'static str| v1::PutRequest {
        keyspace: keyspace.to_owned(),
        key: key.into(),
        ..v1::PutRequest::default()
    };
    check_error(node, request("", "k"), Code::FailedPrecondition, "NOT_INITIALIZED").await;
    let layout = cluster.first_layout().await;
    cluster.init(&layout).await;
    cluster.wait_until_all_serve().await;
    check_error(node, request("", ""), Code::InvalidArgument, "INVALID_ARGUMENT").await;
    check_error(node, request("nowhere", "k"), Code::NotFound, "KEYSPACE_UNKNOWN").await;
}

#[tokio::test]
async fn without_a_quorum_a_write_fails_at_once_and_applies_nothing() {
    let mut cluster = Cluster::serving(3).await;
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();
    let request = v1::PutRequest { key: "k".into(), ..v1::PutRequest::default() };
    let node = &cluster.nodes[0];
    wait_until("the node has noticed", || async {
        let status = node.client().put(request.clone()).await.unwrap_err();
        let info = status.get_details_error_info()?;
        assert!(["QUORUM_UNREACHABLE", "OUTCOME_UNKNOWN"].contains(&info.reason.as_str()), "{status}");
        (status.code() == Code::Unavailable).then_some(())
    })
    .await;
}

#[tokio::test]
async fn routing_names_every_owner_with_its_address() {
    let cluster = Cluster::serving(3).await;
    let mut client = cluster.nodes[0].client();
    let routing = wait_until("gossip knows all addresses", || {
        let mut client = client.clone();
        async move {
            let routing = client.get_routing(v1::GetRoutingRequest {}).await.unwrap().into_inner();
            routing.nodes.iter().all(|node| !node.client_address.is_empty()).then_some(routing)
        }
    })
    .await;
    assert_eq!((routing.epoch, routing.partitions, routing.owners.len()), (1, 16, 16));
    for owners in &routing.owners {
        let mut nodes = owners.node.clone();
        nodes.sort_unstable();
        assert_eq!(nodes, [0, 1, 2]);
    }
    let mut named: Vec<_> = routing.nodes.iter().map(|node| node.client_address.as_str()).collect();
    let mut expected: Vec<_> = cluster.nodes.iter().map(|node| node.setting("listen.client")).collect();
    named.sort_unstable();
    expected.sort_unstable();
    assert_eq!(named, expected);
    client.get_routing(v1::GetRoutingRequest {}).await.unwrap();
}

#[tokio::test]
async fn a_second_init_is_refused_unless_it_is_the_same() {
    let cluster = Cluster::serving(3).await;
    let layout = cluster.nodes[0].admin().get_layout(v1::GetLayoutRequest {}).await.unwrap().into_inner();
    assert!(layout.decided);
    cluster.nodes[1].init(layout.layout.unwrap()).await.unwrap();
    let foreign = cluster.first_layout().await;
    let refused = cluster.nodes[1].init(foreign).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(refused.get_details_error_info().unwrap().reason, "WRONG_CLUSTER");
    assert_eq!(cluster.nodes[1].put("k", "v").await.unwrap().durability(), v1::Durability::Synced);
}

#[tokio::test]
async fn nothing_is_served_before_all_members_have_accepted() {
    let cluster = Cluster::start(3);
    let layout = cluster.first_layout().await;
    for node in &cluster.nodes[..2] {
        node.init(layout.clone()).await.unwrap();
    }
    for node in &cluster.nodes {
        assert_eq!(node.put("k", "v").await.unwrap_err().code(), Code::FailedPrecondition);
        let (status, why) = node.http("/readyz").await.unwrap();
        assert_eq!(status, 503, "{why}");
        assert!(why.contains("init") || why.contains("accepted"), "{why}");
        assert_eq!(node.http("/livez").await.unwrap().0, 200);
    }
    cluster.nodes[2].init(layout).await.unwrap();
    cluster.wait_until_all_serve().await;
    cluster.nodes[0].put("k", "v").await.unwrap();
}

#[tokio::test]
async fn health_says_what_readyz_says_and_the_process_is_alive_before() {
    let cluster = Cluster::start(1);
    let node = &cluster.nodes[0];
    node.wait_for_status().await;
    for service in ["", "keystore.v1.KeyStore"] {
        assert_eq!(node.health(false, service).await, Some(false), "{service}");
    }
    assert_eq!(node.health(true, "").await, Some(true));
    assert_eq!(node.health(true, "keystore.v1.Admin").await, Some(true));
    let layout = cluster.first_layout().await;
    cluster.init(&layout).await;
    cluster.wait_until_all_serve().await;
    for service in ["", "keystore.v1.KeyStore"] {
        wait_until("health follows readiness", || async {
            (node.health(false, service).await == Some(true)).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn metrics_count_what_was_done_in_both_formats() {
    let cluster = Cluster::serving(1).await;
    let node = &cluster.nodes[0];
    node.put("k", "v").await.unwrap();
    node.get("k").await.unwrap();
    let (status, text) = node.http("/metrics").await.unwrap();
    assert_eq!(status, 200);
    for line in [
        "# TYPE keystore_requests_total counter",
        "keystore_requests_total{operation=\"put\",outcome=\"done\"} 1",
        "keystore_requests_total{operation=\"get\",outcome=\"done\"} 1",
        "keystore_request_duration_seconds_count{operation=\"put\"} 1",
        "keystore_commitlog_records_total 1",
        "keystore_partitions_owned 16",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing:\n{text}");
    }
    wait_until("the view shows the layout", || async {
        let (_, text) = node.http("/metrics").await?;
        text.lines().any(|line| line == "keystore_epoch 1").then_some(())
    })
    .await;
    let accept = "Accept: application/openmetrics-text;version=1.0.0\r\n";
    let (_, text) = node.http_with("/metrics", accept).await.unwrap();
    assert!(text.ends_with("# EOF\n"), "{text}");
}

#[tokio::test]
async fn a_deadline_is_kept_and_told_when_replicas_are_silent() {
    let cluster = Cluster::serving(3).await;
    for node in &cluster.nodes[1..] {
        node.signal(Signal::STOP);
    }
    // This client waits for the node's own word at the deadline; a stock one would end the call by itself.
    let client = Client::builder()
        .endpoints([cluster.nodes[0].setting("listen.client")])
        .mode(Routing::Proxy)
        .timeout(Duration::from_millis(300));
    let client = client.connect().await.unwrap();
    let started = Instant::now();
    let error = client.put("default", "k", "v", WriteOptions::default()).await.unwrap_err();
    assert_eq!(error.reason(), &Reason::from("DEADLINE_EXCEEDED".to_owned()), "{error}");
    assert_eq!(error.detail().needed, Some(2), "the node says so itself");
    assert!(!error.surely_not_applied());
    assert!(started.elapsed() >= Duration::from_millis(250));
    // Silent members are given up, and then a write fails at once.
    wait_until("the links to silent members are down", || async {
        let status = cluster.nodes[0].put("k", "v").await.unwrap_err();
        (status.code() == Code::Unavailable).then_some(())
    })
    .await;
    for node in &cluster.nodes[1..] {
        node.signal(Signal::CONT);
    }
    wait_until("the members are back", || async { cluster.nodes[0].put("k", "v").await.ok() }).await;
}
