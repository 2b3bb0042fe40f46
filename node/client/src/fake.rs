//! A cluster of fake nodes in this process, for tests: real sockets and services over one shared map of records,
//! with misbehaviour on demand. It has the keyspaces "default" of mode lww and "siblings" of mode siblings.
//!
//! It replicates nothing and decides nothing; what it is good for is showing a client every outcome that a real
//! node can have, and telling the test which writes were applied.

mod records;
mod layouts;
mod admin;
mod keystore;

use std::collections::{BTreeMap, VecDeque};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use keystore_core::history::{Changes, Entry, History};
use keystore_core::id::{Actor, ClusterId, Epoch, NodeId};
use keystore_core::layout::{KeyspaceMode, Layout};
use keystore_core::partition::{DEFAULT_KEYSPACE, PartitionCount, RecordKey};
use keystore_core::succession::Change;
use keystore_proto::client::ERROR_DOMAIN;
use keystore_proto::v1::admin_server::AdminServer;
use keystore_proto::v1::key_store_server::KeyStoreServer;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::NodeState;
pub use layouts::{first_layout, member};

/// The keyspaces of every fake cluster.
const KEYSPACES: [(&str, KeyspaceMode); 2] =
    [(DEFAULT_KEYSPACE, KeyspaceMode::Lww), ("siblings", KeyspaceMode::Siblings)];

/// What a node does with the next get, put, delete or scan instead of serving it, also in a batch or a session. A
/// scan gets its first page all the same.
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

/// What becomes of the next proposal of a layout, whichever node it reaches.
#[derive(Debug, Clone)]
pub enum Fate {
    /// It is answered this, and not decided.
    Answer(Status),
    /// It is answered this though it is decided.
    DecideAndAnswer(Status),
    /// Somebody else makes this change before it comes.
    TooLate(Change),
    /// Somebody else makes this change while it is voted upon.
    Outvoted(Change),
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
    records: records::Records,
    layout: Option<Layout>,
    history: History,
    /// By node, who has accepted the layout.
    accepted: BTreeMap<NodeId, bool>,
    layouts: layouts::Layouts,
    /// Where clients are told that a node is.
    addresses: BTreeMap<NodeId, String>,
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
    batches: Mutex<usize>,
    sessions: Mutex<usize>,
    /// The partitions of which it says that it may have lost something.
    doubted: Mutex<Vec<u32>>,
    /// How sessions end, once they do.
    session_end: watch::Sender<Option<Status>>,
}

impl Shared {
    /// All nodes do, a second after they have taken up the one before.
    fn take_up(&mut self, layout: Layout) {
        let changes =
            self.layout.as_ref().map_or_else(Changes::of_first, |now| Changes::between(now, &layout));
        let at_ms = 1_700_000_000_000 + 1_000 * layout.epoch.0;
        self.history.note(Entry::new(&layout, Some(changes), Some(at_ms)));
        self.layout = Some(layout);
    }
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
        Self::with_spares(count, 0)
    }

    /// Nodes that serve as [`FakeCluster::serving`] has it, and behind them some that belong to no cluster and can join.
    pub fn with_spares(count: u8, spares: u8) -> std::io::Result<Self> {
        let cluster = Self::uninitialized(count + spares)?;
        let statuses: Vec<_> = cluster.nodes.iter().take(count.into()).map(FakeNode::status).collect();
        let plan = crate::init::Plan {
            cluster: ClusterId([0xc1; 16]),
            incarnation: 1,
            partitions: PartitionCount::new(16).expect("16 is a power of two"),
            replication_factor: usize::from(count),
            keyspaces: KEYSPACES.map(|(name, mode)| (name.to_owned(), mode)).into(),
        };
        let layout = crate::init::plan(plan, &statuses).expect("nodes differ");
        {
            let mut shared = lock(&cluster.shared);
            shared.accepted = layout.members.iter().map(|member| (member.node, true)).collect();
            shared.take_up(layout);
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
        lock(&self.shared).records.writes_applied
    }

    /// The keyspaces of the layout that the cluster was given, each with its mode. Served are always the same.
    pub fn keyspaces(&self) -> Vec<String> {
        let shared = lock(&self.shared);
        let mode = |mode: &KeyspaceMode| match mode {
            KeyspaceMode::Lww => "lww",
            KeyspaceMode::Siblings => "siblings",
        };
        let layout = shared.layout.iter().flat_map(|layout| &layout.keyspaces);
        layout.map(|(name, of)| format!("{name}={}", mode(of))).collect()
    }

    /// The layout that was decided last.
    pub fn layout(&self) -> Option<Layout> {
        lock(&self.shared).layout.clone()
    }

    /// Has somebody make a change, as far as layouts can follow each other.
    pub fn change(&self, change: &Change) -> Result<(), String> {
        layouts::change(&mut lock(&self.shared), change)
    }

    /// Queues what becomes of one proposal.
    pub fn fate_of_proposal(&self, fate: Fate) {
        lock(&self.shared).layouts.fates.push_back(fate);
    }

    /// Each time a node is asked how it is, it has taken over so many partitions more. By default all, at once.
    pub fn take_over(&self, partitions_per_status: usize) {
        lock(&self.shared).layouts.pace = Some(partitions_per_status);
    }

    /// All nodes have taken over all that they have to.
    pub fn take_over_all(&self) {
        lock(&self.shared).layouts.pace = None;
    }

    /// How often nodes were asked how they are.
    pub fn statuses(&self) -> usize {
        lock(&self.shared).layouts.statuses
    }

    /// Makes it another cluster than all other fake ones are.
    pub fn found_anew(&self) {
        if let Some(layout) = &mut lock(&self.shared).layout {
            layout.cluster = ClusterId([0xc2; 16]);
        }
    }

    /// Gets, puts, deletes and scans that reached any node.
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
            batches: Mutex::default(),
            sessions: Mutex::default(),
            doubted: Mutex::default(),
            session_end: watch::Sender::default(),
        };
        lock(&shared).addresses.insert(own.node, own.client_address.to_string());
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

    /// Tells clients that this node is somewhere else.
    pub fn announce(&self, address: impl Into<String>) {
        lock(&self.shared).addresses.insert(self.own.node, address.into());
    }

    pub fn node_id(&self) -> NodeId {
        self.own.node
    }

    /// Acknowledges no later epoch than this from now on; any, if `None`.
    pub fn hold_at(&self, epoch: Option<Epoch>) {
        let mut shared = lock(&self.shared);
        match epoch {
            Some(epoch) => shared.layouts.held.insert(self.own.node, epoch),
            None => shared.layouts.held.remove(&self.own.node),
        };
    }

    /// Has no link to any other node from now on.
    pub fn cut_off(&self) {
        lock(&self.shared).layouts.cut_off.insert(self.own.node);
    }

    /// Says from now on that it may have lost something of these partitions.
    pub fn doubt(&self, partitions: impl IntoIterator<Item = u32>) {
        lock(&self.own.doubted).extend(partitions);
    }

    /// Queues a misbehaviour for one request.
    pub fn misbehave(&self, misbehaviour: Misbehaviour) {
        lock(&self.own.script).push_back(misbehaviour);
    }

    /// Gets, puts, deletes and scans that have reached this node.
    pub fn requests(&self) -> usize {
        *lock(&self.own.requests)
    }

    /// Batches that have reached this node.
    pub fn batches(&self) -> usize {
        *lock(&self.own.batches)
    }

    /// Session streams that were opened to this node.
    pub fn sessions(&self) -> usize {
        *lock(&self.own.sessions)
    }

    /// Ends all sessions with this status, whatever is in flight on them.
    pub fn end_sessions(&self, status: Status) {
        self.own.session_end.send_replace(Some(status));
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
            Some(layout) if layout.departed.contains(&node) => NodeState::Draining,
            Some(layout) if self.layouts.fence(layout, node) == Epoch(0) => NodeState::Uninitialized,
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
