//! The client of the KeyStore service: requests in, typed outcomes out.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use keystore_core::quorum::{Consistency, Durability};
use tokio_util::task::AbortOnDropHandle;

use crate::error::{Detail, Error, Reason};
use crate::execute::Call;
use crate::operation::{InSession, Levels, Operation, Single};
use crate::options::{Answer, Patience, Read, ReadOptions, Routing, TIMEOUT_DEFAULT, WriteOptions, Written};
use crate::router::Router;
use crate::routes::Routes;

/// A client of one cluster. Clones share connections; the last one to be dropped closes them.
#[derive(Clone)]
pub struct Client {
    pub(crate) router: Arc<Router>,
    pub(crate) defaults: Defaults,
    way: Way,
    /// Keeps the routing table fresh.
    _refresher: Option<Arc<AbortOnDropHandle<()>>>,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Defaults {
    timeout: Option<Duration>,
    pub levels: Levels,
    pub patience: Patience,
}

impl Defaults {
    pub(crate) fn timeout(&self, named: Option<Duration>) -> Duration {
        named.or(self.timeout).unwrap_or(TIMEOUT_DEFAULT)
    }
}

/// How a get, put or delete is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By a call of its own.
    Calls,
    /// On the stream that all of them to one node share.
    Session,
}

/// What a client is made from.
#[derive(Debug, Clone, Default)]
pub struct ClientBuilder {
    endpoints: Vec<String>,
    mode: Routing,
    defaults: Defaults,
}

impl ClientBuilder {
    /// host:port of any nodes, or of a Service in front of them.
    pub fn endpoints<I: IntoIterator<Item = impl Into<String>>>(mut self, endpoints: I) -> Self {
        self.endpoints = endpoints.into_iter().map(Into::into).collect();
        self
    }

    pub fn mode(mut self, mode: Routing) -> Self {
        self.mode = mode;
        self
    }

    /// The deadline of requests that name none; 5 s by default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.defaults.timeout = Some(timeout);
        self
    }

    /// For requests that name none; the cluster's default by default.
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.defaults.levels.consistency = Some(consistency);
        self
    }

    /// For writes that name none; the cluster's default by default.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.defaults.levels.durability = Some(durability);
        self
    }

    /// How often nodes are asked again.
    pub fn patience(mut self, patience: Patience) -> Self {
        self.defaults.patience = patience;
        self
    }

    /// Connects to one endpoint, whichever answers, and in direct mode learns the routes from it. Fails when none
    /// can be connected to, or the cluster does not serve yet: each endpoint is asked once.
    pub async fn connect(self) -> Result<Client, Error> {
        let timeout = self.defaults.timeout(None);
        let router = Router::connect(&self.endpoints, self.mode, timeout).await?;
        let refresher = match self.mode {
            Routing::Direct => {
                let task = tokio::spawn(router.clone().refresh_routes());
                Some(Arc::new(AbortOnDropHandle::new(task)))
            }
            Routing::Proxy => None,
        };
        Ok(Client { router, defaults: self.defaults, way: Way::Calls, _refresher: refresher })
    }
}

impl Client {
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// The same client, whose gets, puts and deletes share one stream to each node: many in flight, each answered
    /// as it ends. For programs that send many at a time, which then cost both sides less. Outcomes are the same;
    /// a stream that breaks leaves each write unknown that was on its way.
    pub fn session(&self) -> Self {
        Self { way: Way::Session, ..self.clone() }
    }

    pub async fn get(
        &self,
        keyspace: &str,
        key: impl Into<Bytes>,
        options: ReadOptions,
    ) -> Result<Read, Error> {
        match self.perform(Operation::get(keyspace, key, options)?).await? {
            Answer::Read(read) => Ok(read),
            Answer::Written(_) => Err(Error::Failed(other_kind())),
        }
    }

    /// In a keyspace of mode siblings, with a context from an earlier answer:
    ///
    /// ```no_run
    /// # async fn example(client: keystore_client::Client) -> Result<(), keystore_client::Error> {
    /// use keystore_client::{ReadOptions, WriteOptions};
    /// let cart = client.get("carts", "alice", ReadOptions::default()).await?;
    /// let merged: Vec<u8> = cart.values.iter().flat_map(|sibling| sibling.value.to_vec()).collect();
    /// let options = cart.context.map_or_else(WriteOptions::causal, WriteOptions::replacing);
    /// client.put("carts", "alice", merged, options).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn put(
        &self,
        keyspace: &str,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        options: WriteOptions,
    ) -> Result<Written, Error> {
        self.write(Operation::put(keyspace, key, value, options)?).await
    }

    /// Done whether or not the key exists.
    pub async fn delete(
        &self,
        keyspace: &str,
        key: impl Into<Bytes>,
        options: WriteOptions,
    ) -> Result<Written, Error> {
        self.write(Operation::delete(keyspace, key, options)?).await
    }

    async fn write(&self, operation: Operation) -> Result<Written, Error> {
        match self.perform(operation).await? {
            Answer::Written(written) => Ok(written),
            Answer::Read(_) => Err(Error::Unknown(other_kind())),
        }
    }

    async fn perform(&self, operation: Operation) -> Result<Answer, Error> {
        let operation = operation.or_levels(self.defaults.levels);
        let timeout = self.defaults.timeout(operation.timeout);
        self.perform_within(&operation, timeout, None).await
    }

    /// `earlier`: what became of an attempt at this operation that was made already.
    pub(crate) async fn perform_within(
        &self,
        operation: &Operation,
        timeout: Duration,
        earlier: Option<Error>,
    ) -> Result<Answer, Error> {
        let key = Some(&operation.key);
        let call = Call { kind: operation.kind, key, timeout, patience: self.defaults.patience, earlier };
        let outcome = match self.way {
            Way::Calls => self.router.execute(&Single(&operation.wire), call).await,
            Way::Session => self.router.execute(&InSession(&operation.wire), call).await,
        };
        operation.answer(outcome?)
    }

    /// Asks the cluster for the map of partitions to owners.
    pub async fn routes(&self) -> Result<Routes, Error> {
        self.router.fetch_routes(self.defaults.timeout(None)).await
    }
}

fn other_kind() -> Detail {
    Detail::new(Reason::BAD_ANSWER, "the answer is one to another kind of request")
}
