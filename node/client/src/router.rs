//! Which nodes a request can be sent to, in order of preference, and the table of routes behind that.
//!
//! In direct mode: the owners of the key, then the other nodes of the table, then the endpoints, so that a table
//! whose addresses cannot be reached from here costs time but fails nothing. As a proxy's client: the endpoints,
//! in turn.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use keystore_core::partition::RecordKey;
use keystore_proto::v1;
use rand::Rng;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::error::{Detail, Error, Reason};
use crate::execute::{Call, Unary};
use crate::node::Node;
use crate::options::{Patience, Routing, TIMEOUT_DEFAULT};
use crate::pool::Pool;
use crate::routes::Routes;
use crate::trail::{Trail, jittered};
use crate::verdict::{Kind, Verdict};

const GET_ROUTING: &str = "/keystore.v1.KeyStore/GetRouting";
/// Addresses change when nodes move: the table is fetched anew after a failure, and this often without one.
const REFRESH_INTERVAL: Duration = Duration::from_secs(30);
/// Between two fetches, however many requests fail.
const REFRESH_PAUSE: Duration = Duration::from_secs(1);

pub(crate) struct Router {
    pool: Pool,
    endpoints: Vec<Arc<Node>>,
    /// Counts up: which endpoint, or node, is next to be preferred.
    turn: AtomicUsize,
    table: ArcSwapOption<Table>,
    stale: Notify,
}

/// The routes with their nodes resolved; a node without an address is `None`.
struct Table {
    routes: Routes,
    nodes: Vec<Option<Arc<Node>>>,
}

/// The nodes for one attempt, the preferred ones first; some may come twice.
pub(crate) struct Candidates<'a> {
    table: Option<Arc<Table>>,
    key: Option<&'a RecordKey>,
    endpoints: &'a [Arc<Node>],
    turn: usize,
}

/// All of them, beginning with another one at each turn.
fn rotated<T>(all: &[T], turn: usize) -> impl Iterator<Item = &T> {
    all.iter().cycle().skip(turn % all.len().max(1)).take(all.len())
}

impl Candidates<'_> {
    fn iter(&self) -> impl Iterator<Item = &Arc<Node>> {
        let table = self.table.as_deref();
        let owners = match (table, self.key) {
            (Some(table), Some(key)) => table.routes.owners(table.routes.partition(key)),
            _ => &[],
        };
        let owners = owners.iter().filter_map(move |index| table?.nodes.get(*index)?.as_ref());
        // What no owner is preferred for is spread over all.
        let others = table.into_iter().flat_map(|table| rotated(&table.nodes, self.turn).flatten());
        owners.chain(others).chain(rotated(self.endpoints, self.turn))
    }

    /// The best node that was not asked in this round and has fared well lately; if there is none, one that was
    /// not asked; if there is none either, the best. `None` only without any endpoint.
    pub(crate) fn choose(&self, trail: &Trail) -> Option<&Arc<Node>> {
        let not_asked = || self.iter().filter(|node| !trail.has_asked(node));
        not_asked()
            .find(|node| !node.is_suspect())
            .or_else(|| not_asked().next())
            .or_else(|| self.iter().next())
    }

    /// The same for another key.
    pub(crate) fn of_key<'b>(&'b self, key: &'b RecordKey) -> Candidates<'b> {
        let Self { table, key: _, endpoints, turn } = self;
        Candidates { table: table.clone(), key: Some(key), endpoints, turn: *turn }
    }

    /// True if a request could go, at once, to another node than the chosen one.
    pub(crate) fn any_connected(&self, trail: &Trail) -> bool {
        self.iter().any(|node| !trail.has_asked(node) && node.is_connected())
    }

    pub(crate) fn any_not_asked(&self, trail: &Trail) -> bool {
        self.iter().any(|node| !trail.has_asked(node))
    }
}

impl Router {
    /// Connects to one endpoint at least.
    pub(crate) async fn connect(
        endpoints: &[String],
        mode: Routing,
        timeout: Duration,
    ) -> Result<Arc<Self>, Error> {
        if endpoints.is_empty() {
            return Err(Error::invalid("no endpoint was given"));
        }
        let pool = Pool::default();
        let router = Arc::new(Self {
            endpoints: endpoints.iter().map(|address| pool.node(address)).collect(),
            pool,
            turn: AtomicUsize::new(rand::rng().random_range(0..endpoints.len())),
            table: ArcSwapOption::empty(),
            stale: Notify::new(),
        });
        match mode {
            Routing::Direct => router.load_routes(timeout).await?,
            Routing::Proxy => router.connect_any(timeout).await?,
        }
        Ok(router)
    }

    async fn connect_any(&self, limit: Duration) -> Result<(), Error> {
        let mut last = Error::Connect(Detail::new(Reason::CANNOT_CONNECT, "no endpoint answered in time"));
        let deadline = Instant::now() + limit;
        // The first request finds its connection open: its turn is the same.
        let turn = self.turn.load(Ordering::Relaxed);
        for node in rotated(&self.endpoints, turn) {
            match timeout_at(deadline, node.connection()).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => {
                    node.note_failure();
                    last = Verdict::of_dial(&error).error;
                }
                Err(_) => break,
            }
        }
        Err(last)
    }

    pub(crate) fn candidates<'a>(&'a self, key: Option<&'a RecordKey>) -> Candidates<'a> {
        Candidates {
            table: self.table.load_full(),
            key,
            endpoints: &self.endpoints,
            turn: self.turn.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// A node has failed: its address may have changed.
    pub(crate) fn note_stale(&self) {
        self.stale.notify_one();
    }

    /// Keeps the routes fresh until it is dropped.
    pub(crate) async fn refresh_routes(self: Arc<Self>) {
        loop {
            // Elapsing is the other way to become due.
            let _ = timeout(jittered(REFRESH_INTERVAL), self.stale.notified()).await;
            if let Err(error) = self.load_routes(TIMEOUT_DEFAULT).await {
                tracing::debug!(%error, "routes not refreshed");
            }
            sleep(jittered(REFRESH_PAUSE)).await;
        }
    }

    async fn load_routes(&self, timeout: Duration) -> Result<(), Error> {
        let routes = self.fetch_routes(timeout).await?;
        let address = |address: &str| (!address.is_empty()).then(|| self.pool.node(address));
        let nodes: Vec<_> = routes.nodes.iter().map(|node| address(&node.client_address)).collect();
        let in_use = nodes.iter().flatten().chain(&self.endpoints);
        self.pool.retain(&in_use.map(|node| node.address()).collect::<BTreeSet<_>>());
        self.table.store(Some(Arc::new(Table { routes, nodes })));
        Ok(())
    }

    pub(crate) async fn fetch_routes(&self, timeout: Duration) -> Result<Routes, Error> {
        let call = Call { kind: Kind::Read, key: None, timeout, patience: Patience::OneRound, earlier: None };
        let request = v1::GetRoutingRequest {};
        let response: v1::GetRoutingResponse =
            self.execute(&Unary { path: GET_ROUTING, request: &request }, call).await?;
        Routes::from_proto(response).map_err(|problem| {
            Error::Failed(Detail::new(Reason::BAD_ANSWER, format!("the routing table has {problem}")))
        })
    }
}
