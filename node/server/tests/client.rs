//! The client library with real nodes: siblings, batches, sessions and scans, and what they say of a node that dies
//! in the middle of them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use keystore_client::{Answer, Client, Operation, ReadOptions, Reason, Routing, ScanOptions, WriteOptions};
use support::{CAUSAL, Cluster};

async fn client(cluster: &Cluster, mode: Routing) -> Client {
    let endpoints: Vec<_> =
        cluster.nodes.iter().map(|node| node.setting("listen.client").to_owned()).collect();
    Client::builder().endpoints(endpoints).mode(mode).connect().await.unwrap()
}

fn name(n: usize) -> String {
    format!("key-{n:04}")
}

async fn fill(client: &Client, count: usize) -> BTreeSet<String> {
    let puts =
        (0..count).map(|n| Operation::put("default", name(n), name(n), WriteOptions::default()).unwrap());
    let outcomes = client.batch(puts).await.unwrap();
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    (0..count).map(name).collect()
}

async fn next_key(scan: &mut keystore_client::Scan) -> Option<String> {
    let entry = scan.next().await.unwrap()?;
    assert_eq!(entry.read.value().unwrap().value, entry.key);
    Some(String::from_utf8(entry.key.to_vec()).unwrap())
}

#[tokio::test]
async fn batches_sessions_and_scans_bring_back_what_was_written() {
    let cluster = Cluster::serving(3).await;
    for mode in [Routing::Direct, Routing::Proxy] {
        let client = client(&cluster, mode).await;
        let expected = fill(&client, 500).await;
        let gets = (0..500).map(|n| Operation::get("default", name(n), ReadOptions::default()).unwrap());
        for (n, outcome) in client.batch(gets).await.unwrap().into_iter().enumerate() {
            let Ok(Answer::Read(read)) = outcome else { panic!("{outcome:?}") };
            assert_eq!(read.value().unwrap().value, name(n));
        }
        let session = client.session();
        let reads = (0..500).map(|n| session.get("default", name(n), ReadOptions::default()));
        for (n, read) in join_all(reads).await.into_iter().enumerate() {
            assert_eq!(read.unwrap().value().unwrap().value, name(n));
        }
        let mut scan = client.scan("default", ScanOptions::default()).unwrap();
        let mut order = Vec::new();
        while let Some(key) = next_key(&mut scan).await {
            order.push(key);
        }
        assert_eq!((order.len(), order.iter().cloned().collect::<BTreeSet<_>>()), (500, expected));
        let after = Some(order[250].clone().into());
        let rest = ScanOptions { after, limit: Some(10), prefix: "key-".into(), ..ScanOptions::default() };
        let mut scan = client.scan("default", rest).unwrap();
        for expected in &order[251..261] {
            assert_eq!(next_key(&mut scan).await.as_ref(), Some(expected));
        }
        assert_eq!(next_key(&mut scan).await, None);
    }
}

#[tokio::test]
async fn contexts_expiry_and_refusals_are_those_of_the_nodes() {
    let cluster = Cluster::serving(3).await;
    let client = client(&cluster, Routing::Direct).await;
    for n in 0..5 {
        client.put(CAUSAL, "k", name(n), WriteOptions::causal()).await.unwrap();
    }
    let read = client.get(CAUSAL, "k", ReadOptions::default()).await.unwrap();
    assert_eq!(read.values.len(), 5);
    let context = read.context.unwrap();
    client.session().put(CAUSAL, "k", "one", WriteOptions::replacing(context.clone())).await.unwrap();
    let read = client.get(CAUSAL, "k", ReadOptions::default()).await.unwrap();
    assert_eq!((read.values.len(), &read.value().unwrap().value[..]), (1, &b"one"[..]));
    for (keyspace, key) in [(CAUSAL, "other"), ("default", "k")] {
        let options = WriteOptions::replacing(context.clone());
        let error = client.put(keyspace, key, "v", options).await.unwrap_err();
        assert_eq!(*error.reason(), Reason::INVALID_ARGUMENT, "{error}");
        assert!(error.detail().needed.is_some(), "a node has said so");
    }
    let error = client.put("default", "k", "v", WriteOptions::causal()).await.unwrap_err();
    assert_eq!(*error.reason(), Reason::INVALID_ARGUMENT, "an lww write is never sent again: {error}");
    let error = client.get("nowhere", "k", ReadOptions::default()).await.unwrap_err();
    assert!(
        *error.reason() == Reason::KEYSPACE_UNKNOWN && error.to_string().contains("\"nowhere\""),
        "{error}"
    );
    let ttl = Some(Duration::from_millis(100));
    client.put("default", "short", "v", WriteOptions { ttl, ..WriteOptions::default() }).await.unwrap();
    support::wait_until("the value is gone", || async {
        let read = client.get("default", "short", ReadOptions::default()).await.unwrap();
        read.values.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn when_a_node_is_killed_reads_and_scans_go_on_and_no_acknowledged_write_is_lost() {
    let mut cluster = Cluster::serving(3).await;
    let client = client(&cluster, Routing::Direct).await;
    let expected = fill(&client, 900).await;
    let mut scan = client.scan("default", ScanOptions::default()).unwrap();
    let mut scanned = vec![next_key(&mut scan).await.unwrap()];
    let session = client.session();
    let writes = (0..300).map(|n| session.put("default", name(n), name(n), WriteOptions::default()));
    let causal = (0..100).map(|n| session.put(CAUSAL, name(n), name(n), WriteOptions::causal()));
    let reads = (0..300).map(|n| session.get("default", name(n), ReadOptions::default()));
    let killing = async {
        tokio::task::yield_now().await;
        cluster.nodes[1].kill();
    };
    let (writes, causal, reads, ()) =
        tokio::join!(join_all(writes), join_all(causal), join_all(reads), killing);
    for written in writes {
        assert!(written.is_ok() || !written.as_ref().unwrap_err().surely_not_applied(), "{written:?}");
    }
    for (n, read) in reads.into_iter().enumerate() {
        assert_eq!(read.unwrap().value().unwrap().value, name(n));
    }
    while let Some(key) = next_key(&mut scan).await {
        scanned.push(key);
    }
    assert_eq!((scanned.len(), scanned.into_iter().collect::<BTreeSet<_>>()), (900, expected));
    for (n, written) in causal.into_iter().enumerate() {
        written.unwrap();
        let read = client.get(CAUSAL, name(n), ReadOptions::default()).await.unwrap();
        assert_eq!((read.values.len(), &read.value().unwrap().value[..]), (1, name(n).as_bytes()));
    }
}
