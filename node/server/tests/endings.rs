//! How a node ends, and with which exit status.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use keystore_proto::unseen::was_unseen;
use keystore_proto::v1;
use keystore_proto::v1::key_store_client::KeyStoreClient;
use rustix::process::Signal;
use support::load::{Load, judge_everywhere};
use support::{Cluster, NodeProcess, ask};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tower::service_fn;

/// Every file below a directory with its content.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    found
}

#[tokio::test]
async fn a_node_told_to_stop_under_load_drains_and_loses_nothing() {
    let mut cluster = Cluster::serving(3).await;
    let load = Load::start("load", &cluster.nodes, 2);
    load.progress(100).await;
    cluster.nodes[0].signal(Signal::TERM);
    let ended = cluster.nodes[0].wait_for_end();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
    load.progress(100).await;
    let mut history = load.stop().await;
    judge_everywhere(&cluster, &mut history).await;
    cluster.nodes[0].start();
    cluster.wait_until_all_serve().await;
    judge_everywhere(&cluster, &mut history).await;
}

/// Whoever goes on asking a node that drains is refused to the last: nobody is left to guess about a write that was
/// never begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_outcome_is_unknown_because_a_node_was_told_to_stop() {
    let mut cluster = Cluster::serving(1).await;
    let node = &mut cluster.nodes[0];
    let mut clients = JoinSet::new();
    for client in 0..100 {
        let mut channel = node.client();
        clients.spawn(async move {
            let mut failures = BTreeSet::new();
            loop {
                let key = format!("k{client}").into();
                let put = v1::PutRequest { key, value: "v".into(), ..v1::PutRequest::default() };
                let Err(status) = channel.put(put).await else { continue };
                if was_unseen(&status) {
                    continue;
                }
                // Not a node's word: there is none any more.
                let Some(info) = status.get_details_error_info() else { return failures };
                failures.insert(info.reason);
            }
        });
    }
    node.put("begun", "v").await.unwrap();
    node.signal(Signal::TERM);
    let ended = node.wait_for_end();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
    let failures: BTreeSet<_> = clients.join_all().await.into_iter().flatten().collect();
    let refusals = BTreeSet::from(["DRAINING", "OVERLOADED"].map(str::to_owned));
    assert!(failures.contains("DRAINING") && failures.is_subset(&refusals), "{failures:?}");
}

/// A client that knows nothing of this store's ways: one address, behind which another node answers once the first is to
/// be left, and no retries but those of every gRPC library but tonic.
struct StockClient {
    client: KeyStoreClient<Channel>,
    connections: Arc<AtomicUsize>,
}

impl StockClient {
    fn new(first: &NodeProcess, then: &NodeProcess) -> Self {
        let connections = Arc::new(AtomicUsize::new(0));
        let (count, addresses) =
            (connections.clone(), [first, then].map(|node| node.setting("listen.client")));
        let addresses = addresses.map(str::to_owned);
        let connector = service_fn(move |_: Uri| {
            let address = addresses[count.fetch_add(1, Ordering::SeqCst).min(1)].clone();
            async move { TcpStream::connect(address).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://service").connect_with_connector_lazy(connector);
        Self { client: KeyStoreClient::new(channel), connections }
    }

    async fn put(&mut self, key: &str) -> Result<(), Status> {
        let mut outcome = self.client.put(ask::put("default", key, "v")).await;
        for _ in 0..3 {
            match outcome {
                Err(status) if was_unseen(&status) => {
                    outcome = self.client.put(ask::put("default", key, "v")).await;
                }
                outcome => return outcome.map(drop),
            }
        }
        outcome.map(drop)
    }
}

/// Through the Service nobody is sent to a node that is not ready: those that are connected to it are what is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_told_to_stop_refuses_no_client_that_goes_when_asked_to() {
    let mut cluster = Cluster::serving_with(3, &[("drain.grace_ms", "2000")]).await;
    let stopped = CancellationToken::new();
    let mut clients = JoinSet::new();
    for id in 0..20 {
        let mut client = StockClient::new(&cluster.nodes[0], &cluster.nodes[1]);
        let stopped = stopped.clone();
        clients.spawn(async move {
            while !stopped.is_cancelled() {
                client.put(&format!("k{id}")).await?;
                // Some are idle when they are asked to go, as most clients are.
                tokio::time::sleep(Duration::from_millis(id * 10)).await;
            }
            Ok::<_, Status>(client.connections.load(Ordering::SeqCst))
        });
    }
    cluster.nodes[0].signal(Signal::TERM);
    let ended = tokio::task::block_in_place(|| cluster.nodes[0].wait_for_end());
    stopped.cancel();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
    for outcome in clients.join_all().await {
        assert_eq!(outcome.unwrap(), 2, "each has gone elsewhere, once");
    }
}

#[tokio::test]
async fn a_draining_node_is_not_ready_and_serves_for_its_grace() {
    let mut cluster = Cluster::serving_with(1, &[("drain.grace_ms", "60000")]).await;
    let node = &mut cluster.nodes[0];
    node.signal(Signal::TERM);
    support::wait_until("the node is not ready", || async {
        (node.http("/readyz").await?.0 == 503).then_some(())
    })
    .await;
    node.put("k", "still served").await.unwrap();
    node.signal(Signal::TERM);
    let ended = node.wait_for_end();
    assert_eq!(ended.status.code(), Some(1), "a second signal ends it at once: {}", ended.log);
}

#[tokio::test]
async fn a_bad_configuration_lists_every_problem_and_touches_nothing() {
    let mut node = NodeProcess::new("bad");
    node.set("storage.enigne", "sled");
    node.set("storage.hard_limit_percent", "200");
    node.set("listen.client", "nowhere");
    node.start();
    let ended = node.wait_for_end();
    assert_eq!(ended.status.code(), Some(2));
    for problem in ["storage.enigne", "storage.hard_limit_percent", "listen.client"] {
        assert!(ended.log.contains(problem), "{}", ended.log);
    }
    assert!(!node.data_dir().exists());
}

/// A node that has stored a little and was stopped: settings and data directory to start it with again.
async fn stopped_node() -> Cluster {
    let mut cluster = Cluster::serving(1).await;
    for number in 0..100 {
        cluster.nodes[0].put(&format!("k{number}"), "v").await.unwrap();
    }
    cluster.nodes[0].kill();
    cluster
}

/// How much of a segment is in use: what was not written yet is zeros.
fn written(segment: &[u8]) -> usize {
    segment.iter().rposition(|byte| *byte != 0).unwrap_or_default()
}

/// Starts it once more: it has to refuse the directory and leave every byte of it.
fn check_refused(node: &mut NodeProcess, word: &str) {
    let before = contents(&node.data_dir());
    node.start();
    let ended = node.wait_for_end();
    assert_eq!(ended.status.code(), Some(3), "{}", ended.log);
    assert!(ended.log.contains(word), "{}", ended.log);
    assert!(contents(&node.data_dir()) == before, "something was touched");
}

#[tokio::test]
async fn a_data_directory_of_another_cluster_is_refused() {
    let mut cluster = stopped_node().await;
    cluster.nodes[0].set("gossip.cluster", "other/cluster");
    check_refused(&mut cluster.nodes[0], "other/cluster");
}

#[tokio::test]
async fn a_commit_log_that_is_damaged_in_its_middle_is_refused() {
    let mut cluster = stopped_node().await;
    let node = &mut cluster.nodes[0];
    let log = contents(&node.data_dir().join("log")).into_iter();
    let (path, mut bytes) = log.max_by_key(|(_, bytes)| written(bytes)).unwrap();
    let middle = written(&bytes) / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(path, bytes).unwrap();
    check_refused(node, "log");
}

#[tokio::test]
async fn a_copied_disk_is_noticed_and_refused() {
    let mut cluster = Cluster::serving(3).await;
    let original = &mut cluster.nodes[0];
    original.kill();
    let copy = original.directory().join("copy");
    let copied =
        std::process::Command::new("cp").arg("-a").args([&original.data_dir(), &copy]).status().unwrap();
    assert!(copied.success());
    original.start();
    cluster.wait_until_all_serve().await;
    let original = &mut cluster.nodes[0];
    original.kill();
    // The copy knows nothing of the start that has just ended.
    original.set("data_dir", copy.to_str().unwrap());
    original.start();
    let ended = original.wait_for_end();
    assert_eq!(ended.status.code(), Some(3), "{}", ended.log);
    assert!(ended.log.contains("rolled back or cloned"), "{}", ended.log);
}

/// A small file system of its own, gone when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(megabytes: usize) -> Result<Self, String> {
        let directory = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "none"])
            .arg(directory.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Ok(Self(directory)),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Fills all but a hundredth of it with one file, beside a node that takes and gives back room meanwhile.
    fn fill(&self, filler: &Path) {
        let usage = || rustix::fs::statvfs(self.0.path()).unwrap();
        let mut filler = std::fs::File::create(filler).unwrap();
        while usage().f_bavail > usage().f_blocks / 100 {
            match filler.write_all(&[1; 4096]) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the node's files may still be open for a moment.
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_reads_go_on() {
    let disk = match SmallDisk::mount(128) {
        Ok(disk) => disk,
        Err(why) => return println!("skipped: no small file system can be mounted: {why}"),
    };
    let data = disk.0.path().join("data");
    let cluster = Cluster::serving_with(1, &[("data_dir", data.to_str().unwrap())]).await;
    let node = &cluster.nodes[0];
    node.put("before", "kept").await.unwrap();
    let filler = disk.0.path().join("filler");
    disk.fill(&filler);
    let refused =
        support::wait_until("writes are refused", || async { node.put("k", "v").await.err() }).await;
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    use tonic_types::StatusExt as _;
    assert_eq!(refused.get_details_error_info().unwrap().reason, "DISK_FULL");
    assert_eq!(node.get("before").await.unwrap().as_deref(), Some("kept"));
    std::fs::remove_file(&filler).unwrap();
    support::wait_until("writes are accepted again", || async { node.put("k", "v").await.ok() }).await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_a_clear_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut node = NodeProcess::new("unlucky");
    let address = taken.local_addr().unwrap().to_string();
    node.set("listen.client", &address);
    node.start();
    let ended = node.wait_for_end();
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.log.contains(&address), "{}", ended.log);
}
