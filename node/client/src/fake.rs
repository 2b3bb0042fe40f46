//! A cluster of fake nodes in this process, for tests: real sockets and services over one shared map of records,
//! with misbehaviour on demand.
//!
//! It replicates nothing and decides nothing; what it is good for is showing a client every outcome that a real
//! node can have, and telling the test which writes were applied.

mod admin;
mod keystore;

use std::collections::{BTreeMap, VecDeque};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use keystore_core::id::{Actor, ClusterId, NodeId};
use keystore_core::layout::Layout;
use keystore_core::partition::{PartitionCount, RecordKey};
use keystore_core::stamp::Stamp;
use keystore_proto::client::ERROR_DOMAIN;
use keystore_proto::v1::admin_server::AdminServer;
use keystore_proto::v1::key_store_server::KeyStoreServer;
use tokio::runtime::Runtime;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::status::NodeState;

/// What a node does with the next get, put or delete instead of serving it.
#[derive(Debug, Clone)]
pub enum Misbehaviour {
    /// Answers this and applies nothing.
    Answer(Status),
    /// Applies a write and answers this.
    ApplyAndAnswer(Status),
    /// Applies nothing and never answers.
    Hang,
    /// Applies a write and never answers.
    ApplyAndHang,
}

/// The status that a real node answers: with an ErrorInfo of our domain, and acks of needed.
pub fn outcome(code: Code, reason: &str, acks: u32, needed: u32) -> Status {
    let metadata = [("acks", acks), ("needed", needed)].map(|(name, n)| (name.to_owned(), n.to_string()));
    let details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, metadata);
    Status::with_error_details(code, format!("the fake says {reason}"), details)
}

/// What all nodes have in common.
#[derive(Default)]
struct Shared {
    records: BTreeMap<RecordKey, (Stamp, Option<Bytes>)>,
    last_stamp: u64,
    layout: Option<Layout>,
    /// By node, who has accepted the layout.
    accepted: BTreeMap<NodeId, bool>,
    addresses: BTreeMap<NodeId, SocketAddr>,
    writes_applied: usize,
}

/// What is one node's own.
struct Own {
    node: NodeId,
    actor: Actor,
    name: String,
    client_address: SocketAddr,
    admin_address: SocketAddr,
    script: Mutex<VecDeque<Misbehaviour>>,
    requests: Mutex<usize>,
}

type SharedRef = Arc<Mutex<Shared>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Some fake nodes that share their records.
pub struct FakeCluster {
    shared: SharedRef,
    pub nodes: Vec<FakeNode>,
}

/// One fake node. Dropping it stops it.
pub struct FakeNode {
    own: Arc<Own>,
    shared: SharedRef,
    runtime: Option<Runtime>,
}

impl FakeCluster {
    /// Nodes that belong to no cluster yet.
    pub fn uninitialized(count: u8) -> std::io::Result<Self> {
        let shared = SharedRef::default();
        let nodes =
            (1..=count).map(|number| FakeNode::start(number, shared.clone())).collect::<Result<_, _>>()?;
        Ok(Self { shared, nodes })
    }

    /// Nodes that serve, with 16 partitions and each a replica of all.
    pub fn serving(count: u8) -> std::io::Result<Self> {
        let cluster = Self::uninitialized(count)?;
        let statuses: Vec<_> = cluster.nodes.iter().map(FakeNode::status).collect();
        let plan = crate::init::Plan {
            cluster: ClusterId([0xc1; 16]),
            incarnation: 1,
            partitions: PartitionCount::new(16).expect("16 is a power of two"),
            replication_factor: cluster.nodes.len(),
        };
        let layout = crate::init::plan(plan, &statuses).expect("nodes differ");
        {
            let mut shared = lock(&cluster.shared);
            shared.accepted = layout.members.iter().map(|member| (member.node, true)).collect();
            shared.layout = Some(layout);
        }
        Ok(cluster)
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(FakeNode::endpoint).collect()
    }

    pub fn admin_endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(FakeNode::admin_endpoint).collect()
    }

    pub fn writes_applied(&self) -> usize {
        lock(&self.shared).writes_applied
    }

    /// Gets, puts and deletes that reached any node.
    pub fn requests(&self) -> usize {
        self.nodes.iter().map(FakeNode::requests).sum()
    }

    /// The node that direct requests for this key of keyspace "default" go to first.
    pub fn first_owner(&self, key: &[u8]) -> Option<usize> {
        let shared = lock(&self.shared);
        let layout = shared.layout.as_ref()?;
        let key = RecordKey::new("default", key).ok()?;
        let ring = layout.rings().next()?;
        let owner = ring.replicas(key.partition(layout.partitions)).first()?.node;
        self.nodes.iter().position(|node| node.own.node == owner)
    }
}

impl FakeNode {
    fn start(number: u8, shared: SharedRef) -> std::io::Result<Self> {
        let (client, admin) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
        // Two clusters of one test have no node in common: ports differ.
        let port = client.local_addr()?.port();
        let mut node = [number; 16];
        node[14..].copy_from_slice(&port.to_be_bytes());
        let own = Own {
            node: NodeId(node),
            actor: Actor(port.into()),
            name: format!("fake-{}", number - 1),
            client_address: client.local_addr()?,
            admin_address: admin.local_addr()?,
            script: Mutex::default(),
            requests: Mutex::default(),
        };
        lock(&shared).addresses.insert(own.node, own.client_address);
        let mut node = Self { own: Arc::new(own), shared, runtime: None };
        node.serve(client, admin)?;
        Ok(node)
    }

    fn serve(&mut self, client: TcpListener, admin: TcpListener) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let keystore = keystore::FakeKeyStore { own: self.own.clone(), shared: self.shared.clone() };
        let administration = admin::FakeAdmin { own: self.own.clone(), shared: self.shared.clone() };
        let _context = runtime.enter();
        let clients = Server::builder().add_service(KeyStoreServer::new(keystore));
        runtime.spawn(clients.serve_with_incoming(incoming(client)?));
        let admins = Server::builder().add_service(AdminServer::new(administration));
        runtime.spawn(admins.serve_with_incoming(incoming(admin)?));
        self.runtime = Some(runtime);
        Ok(())
    }

    pub fn endpoint(&self) -> String {
        self.own.client_address.to_string()
    }

    pub fn admin_endpoint(&self) -> String {
        self.own.admin_address.to_string()
    }

    /// Queues a misbehaviour for one request.
    pub fn misbehave(&self, misbehaviour: Misbehaviour) {
        lock(&self.own.script).push_back(misbehaviour);
    }

    /// Gets, puts and deletes that have reached this node.
    pub fn requests(&self) -> usize {
        *lock(&self.own.requests)
    }

    /// Closes all connections in the middle of whatever goes on, and accepts no more. All that is done on return.
    pub fn crash(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A runtime may not be dropped where another one runs, as in a test.
            let ended = std::thread::spawn(move || drop(runtime)).join();
            ended.expect("a runtime ends without panic");
        }
    }

    /// Listens again at the same addresses, after a crash.
    pub fn restart(&mut self) -> std::io::Result<()> {
        let listeners =
            (TcpListener::bind(self.own.client_address)?, TcpListener::bind(self.own.admin_address)?);
        self.serve(listeners.0, listeners.1)
    }

    fn status(&self) -> crate::NodeStatus {
        admin::status(&self.own, &lock(&self.shared)).try_into().expect("a fake's status is valid")
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.crash();
    }
}

impl Shared {
    fn state(&self, node: NodeId) -> NodeState {
        let accepted = |node: &NodeId| self.accepted.get(node) == Some(&true);
        match &self.layout {
            Some(layout) if layout.members.iter().all(|member| accepted(&member.node)) => NodeState::Serving,
            Some(_) if accepted(&node) => NodeState::Accepted,
            _ => NodeState::Uninitialized,
        }
    }
}

fn incoming(listener: TcpListener) -> std::io::Result<TcpIncoming> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    Ok(TcpIncoming::from(listener).with_nodelay(Some(true)))
}
