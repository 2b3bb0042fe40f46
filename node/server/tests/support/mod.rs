//! Clusters of real node processes on loopback: started, initialised, killed, and asked over gRPC.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its own part of this")]

pub mod ask;
pub mod load;
pub mod node;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{TcpListener, UdpSocket};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use keystore_core::id::{ClusterId, Incarnation};
use keystore_core::layout::{FirstLayout, KeyspaceMode, Layout};
use keystore_core::partition::PartitionCount;
use keystore_proto::v1;

pub use node::NodeProcess;

/// The keyspace of these clusters that keeps siblings.
pub const CAUSAL: &str = "causal";

/// How long a condition may take that takes a second on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Node processes that know each other as seeds. Each is killed when dropped.
pub struct Cluster {
    pub nodes: Vec<NodeProcess>,
}

/// Ports that are free now. They lie below those that the kernel gives to outgoing connections, or any of these
/// could take one before its node has. No port is given twice to the tests of a process, which run side by side.
pub fn free_ports<const N: usize>() -> [u16; N] {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut held = Vec::new();
    while held.len() < N {
        let port = rand::random_range(10_000..32_000);
        if !GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port) {
            continue;
        }
        let sockets = (TcpListener::bind(("127.0.0.1", port)), UdpSocket::bind(("127.0.0.1", port)));
        if let (Ok(tcp), Ok(udp)) = sockets {
            held.push((port, tcp, udp));
        }
    }
    std::array::from_fn(|index| held[index].0)
}

impl Cluster {
    /// Starts `count` nodes that belong to no cluster yet.
    pub fn start(count: usize) -> Self {
        Self::start_with(count, &[])
    }

    pub fn start_with(count: usize, settings: &[(&str, &str)]) -> Self {
        let nodes = (0..count).map(|index| NodeProcess::new(&format!("node-{index}"))).collect();
        let mut cluster = Self { nodes };
        cluster.tell_seeds();
        for node in &mut cluster.nodes {
            for (name, value) in settings {
                node.set(name, value);
            }
            node.start();
        }
        cluster
    }

    /// Every node finds the others where they are now, from its next start on.
    pub fn tell_seeds(&mut self) {
        let seeds: Vec<_> = self.nodes.iter().map(NodeProcess::gossip_address).collect();
        for node in &mut self.nodes {
            node.set("gossip.seeds", &seeds.join(","));
        }
    }

    /// Starts, initialises and waits until all serve.
    pub async fn serving(count: usize) -> Self {
        Self::serving_with(count, &[]).await
    }

    pub async fn serving_with(count: usize, settings: &[(&str, &str)]) -> Self {
        let cluster = Self::start_with(count, settings);
        let layout = cluster.first_layout().await;
        cluster.init(&layout).await;
        cluster.wait_until_all_serve().await;
        cluster
    }

    /// A first layout of these very nodes, as an administrator makes it.
    pub async fn first_layout(&self) -> v1::Layout {
        let mut members = Vec::new();
        for node in &self.nodes {
            members.push(node.member().await);
        }
        let layout = Layout::first(FirstLayout {
            cluster: ClusterId(rand::random()),
            incarnation: Incarnation { number: 1, id: rand::random() },
            partitions: PartitionCount::new(16).unwrap(),
            replication_factor: members.len().min(3),
            members,
            keyspaces: BTreeMap::from([(CAUSAL.to_owned(), KeyspaceMode::Siblings)]),
        });
        v1::Layout::from(&layout.unwrap())
    }

    pub async fn init(&self, layout: &v1::Layout) {
        for node in &self.nodes {
            node.init(layout.clone()).await.unwrap();
        }
    }

    pub async fn wait_until_all_serve(&self) {
        for node in &self.nodes {
            node.wait_until_it_serves().await;
        }
        self.wait_until_connected().await;
    }

    /// Until every running node has a link to every other one.
    pub async fn wait_until_connected(&self) {
        let running = self.nodes.iter().filter(|node| node.is_running()).count();
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            wait_until("a node has all its links", || async {
                let status = node.status().await.ok()?;
                let connected = status.peers.iter().filter(|peer| peer.connected).count();
                (connected == running - 1).then_some(())
            })
            .await;
        }
    }
}

/// Polls until there is a result; fails after [`PATIENCE`].
pub async fn wait_until<T, F: Future<Output = Option<T>>>(what: &str, mut attempt: impl FnMut() -> F) -> T {
    let started = Instant::now();
    loop {
        if let Some(result) = attempt().await {
            return result;
        }
        assert!(started.elapsed() < PATIENCE, "still not so after {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The settings of a node as a file would hold them.
pub type Settings = BTreeMap<String, String>;
