//! A disk that returns what was not written, and one that is not what the others know: what is lost is said to be, and
//! healed by those that have it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;
use std::process::Command;

use keystore_core::partition::RecordKey;
use keystore_proto::v1;
use rustix::process::Signal;
use support::{Cluster, NodeProcess, wait_until};

/// Flips a bit of what sled holds under a key of the default keyspace: only the record's own checksum can tell.
fn damage(data_dir: &Path, key: &str) {
    let key = RecordKey::new("default", key.as_bytes()).unwrap();
    let (slot, encoded) = key.place();
    let name = [&slot.to_be_bytes()[..], encoded].concat();
    // The size of sled's segments is part of its files.
    let db = sled::Config::new().path(data_dir.join("engine")).segment_size(2 << 20).open().unwrap();
    let mut stored = db.get(&name).unwrap().expect("the record is in the engine").to_vec();
    *stored.last_mut().unwrap() ^= 1;
    db.insert(&name, stored).unwrap();
    db.flush().unwrap();
}

fn stop(node: &mut NodeProcess) {
    node.signal(Signal::TERM);
    let ended = node.wait_for_end();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
}

async fn put_everywhere(node: &NodeProcess, key: &str, value: &str) {
    let request = v1::PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        consistency: v1::Consistency::All.into(),
        ..v1::PutRequest::default()
    };
    node.client().put(request).await.unwrap();
}

async fn get_one(node: &NodeProcess, key: &str) -> Result<Vec<Vec<u8>>, tonic::Status> {
    let request = v1::GetRequest {
        key: key.to_owned().into(),
        consistency: v1::Consistency::One.into(),
        ..v1::GetRequest::default()
    };
    let values = node.client().get(request).await?.into_inner().values;
    Ok(values.into_iter().map(|value| value.value.to_vec()).collect())
}

#[tokio::test]
async fn a_record_that_rotted_on_one_disk_is_healed_from_the_others() {
    let mut cluster = Cluster::serving(3).await;
    put_everywhere(&cluster.nodes[0], "k", "v").await;
    put_everywhere(&cluster.nodes[0], "other", "w").await;
    let node = &mut cluster.nodes[2];
    let generation = node.status().await.unwrap().generation;
    stop(node);
    damage(&node.data_dir(), "k");
    node.start();
    cluster.wait_until_all_serve().await;
    let node = &cluster.nodes[2];
    // What it cannot read itself it asks others for. A read that its new generation overtakes, with new links to them, fails and
    // is made again, as clients do.
    let values = wait_until("others are asked", || async { get_one(node, "k").await.ok() }).await;
    assert_eq!(values, [b"v"]);
    wait_until("the key is healed", || async {
        (node.metric("keystore_heals_total").await == Some(1)).then_some(())
    })
    .await;
    assert_eq!(node.metric("keystore_doubted_keys").await, Some(0));
    assert_eq!(node.status().await.unwrap().generation, generation + 2, "its start, and the doubt");
    cluster.wait_until_connected().await;
    assert_eq!(cluster.nodes[2].get("k").await.unwrap().as_deref(), Some("v"));
    // Nobody else is left to ask: what it says now is what it holds.
    cluster.nodes[0].kill();
    cluster.nodes[1].kill();
    assert_eq!(get_one(&cluster.nodes[2], "k").await.unwrap(), [b"v"]);
    // And it holds it after a start as well, whose generation is later than the one of the doubt.
    stop(&mut cluster.nodes[2]);
    cluster.nodes.iter_mut().for_each(NodeProcess::start);
    cluster.wait_until_all_serve().await;
    let node = &cluster.nodes[2];
    assert_eq!(node.status().await.unwrap().generation, generation + 3);
    assert_eq!(get_one(node, "k").await.unwrap(), [b"v"]);
    assert_eq!(node.status().await.unwrap().doubted_keys, 0);
}

#[tokio::test]
async fn what_nobody_else_can_heal_stays_in_doubt_and_says_so() {
    let mut cluster = Cluster::serving(3).await;
    put_everywhere(&cluster.nodes[0], "k", "v").await;
    put_everywhere(&cluster.nodes[0], "other", "w").await;
    stop(&mut cluster.nodes[2]);
    damage(&cluster.nodes[2].data_dir(), "k");
    cluster.nodes[1].kill();
    cluster.nodes[2].start();
    cluster.wait_until_connected().await;
    let node = &cluster.nodes[2];
    node.wait_until_it_serves().await;
    // A quorum needs this node, and it counts for nothing for the key.
    let refused = node.get("k").await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    assert_eq!(node.get_when_possible("other").await.as_deref(), Some("w"));
    let status = wait_until("the node says so", || async {
        node.status().await.ok().filter(|status| status.doubted_keys == 1)
    })
    .await;
    let doubted = status.doubted.first().unwrap();
    assert_eq!((&doubted.keyspace[..], &doubted.key[..]), ("default", &b"k"[..]));
    assert_eq!(node.metric("keystore_doubted_keys").await, Some(1));
    cluster.nodes[1].start();
    let node = &cluster.nodes[2];
    wait_until("the key is healed", || async { (node.status().await.ok()?.doubted_keys == 0).then_some(()) })
        .await;
    assert_eq!(node.get_when_possible("k").await.as_deref(), Some("v"));
}

#[tokio::test]
async fn a_disk_that_was_rolled_back_is_never_used_again() {
    let mut cluster = Cluster::serving(3).await;
    let node = &mut cluster.nodes[0];
    node.kill();
    let image = node.directory().join("image");
    let copied = Command::new("cp").arg("-a").args([&node.data_dir(), &image]).status().unwrap();
    assert!(copied.success());
    node.start();
    cluster.wait_until_all_serve().await;
    let node = &mut cluster.nodes[0];
    node.kill();
    std::fs::remove_dir_all(node.data_dir()).unwrap();
    std::fs::rename(&image, node.data_dir()).unwrap();
    node.start();
    let ended = node.wait_for_end();
    assert_eq!(ended.status.code(), Some(3), "{}", ended.log);
    assert!(ended.log.contains("rolled back or cloned"), "{}", ended.log);
    // Its next start is that of a new node, which belongs to no cluster.
    node.start();
    assert_eq!(node.wait_for_status().await.state(), v1::NodeState::Uninitialized);
    assert!(node.data_dir().join("set-aside.d").join("identity").is_file());
    cluster.nodes[1].put("k", "v").await.unwrap();
}
