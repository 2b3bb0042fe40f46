//! The client of one node's Admin service. Nothing is retried: whoever administers decides what to do next.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use keystore_core::history::History;
use keystore_core::id::Epoch;
use keystore_core::layout::Layout;
use keystore_core::node::NodeState;
use keystore_core::partition::Partition;
use keystore_proto::admin::node_state_from_wire;
use keystore_proto::history::history_from_wire;
use keystore_proto::v1;
use prost::Message;
use tokio::time::{Instant, timeout_at};

use crate::error::{Detail, Error, Reason};
use crate::node::Node;
use crate::options::TIMEOUT_DEFAULT;
use crate::status::NodeStatus;
use crate::verdict::{Kind, Verdict};

const GET_STATUS: &str = "/keystore.v1.Admin/GetStatus";
const INIT: &str = "/keystore.v1.Admin/Init";
const PROPOSE_LAYOUT: &str = "/keystore.v1.Admin/ProposeLayout";
const RECOVER: &str = "/keystore.v1.Admin/Recover";
const GET_LAYOUT: &str = "/keystore.v1.Admin/GetLayout";
const GET_LAYOUT_HISTORY: &str = "/keystore.v1.Admin/GetLayoutHistory";

/// Clones share the connection, which is opened anew when it has broken.
#[derive(Clone)]
pub struct AdminClient {
    node: Arc<Node>,
    timeout: Duration,
}

impl AdminClient {
    /// Connects to `address`, host:port of a node's Admin service.
    pub async fn connect(address: impl Into<String>) -> Result<Self, Error> {
        Self::connect_within(address, TIMEOUT_DEFAULT).await
    }

    /// `timeout` is for this and for each request afterwards.
    pub async fn connect_within(address: impl Into<String>, timeout: Duration) -> Result<Self, Error> {
        let node = Node::new(address.into());
        match timeout_at(Instant::now() + timeout, node.connection()).await {
            Ok(Ok(_)) => Ok(Self { node, timeout }),
            Ok(Err(error)) => Err(Verdict::of_dial(&error).error),
            Err(_) => Err(Error::Connect(Detail::new(
                Reason::CANNOT_CONNECT,
                format!("{} did not answer in time", node.address()),
            ))),
        }
    }

    /// The same connection, with another timeout for each request.
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { node: self.node.clone(), timeout }
    }

    pub fn address(&self) -> &str {
        self.node.address()
    }

    pub async fn get_status(&self) -> Result<NodeStatus, Error> {
        let response: v1::GetStatusResponse =
            self.call(Kind::Read, GET_STATUS, &v1::GetStatusRequest {}).await?;
        NodeStatus::try_from(response).map_err(|problem| self.bad_answer(problem))
    }

    /// Gives the node its first layout. Giving it the same one again is answered alike; another one is refused
    /// with `WRONG_CLUSTER`.
    pub async fn init(&self, layout: &Layout) -> Result<NodeState, Error> {
        let request = v1::InitRequest { layout: Some(v1::Layout::from(layout)) };
        let response: v1::InitResponse = self.call(Kind::Write, INIT, &request).await?;
        node_state_from_wire(response.state()).ok_or_else(|| self.bad_answer("the node's state is not known"))
    }

    /// Has a layout decided that follows the one of this epoch; returns the one that is in force then, which may be
    /// another one.
    pub async fn propose_layout(&self, expected: Epoch, layout: &Layout) -> Result<Layout, Error> {
        let request =
            v1::ProposeLayoutRequest { expected_epoch: expected.0, layout: Some(v1::Layout::from(layout)) };
        let response: v1::ProposeLayoutResponse = self.call(Kind::Write, PROPOSE_LAYOUT, &request).await?;
        let layout = response.layout.ok_or_else(|| self.bad_answer("it has no layout"))?;
        Layout::try_from(layout).map_err(|problem| self.bad_answer(problem))
    }

    /// The layout that the node has accepted, and whether all members have; `None` before init.
    pub async fn get_layout(&self) -> Result<Option<(Layout, bool)>, Error> {
        Ok(self.what_is_left().await?.map(|(layout, decided, _)| (layout, decided)))
    }

    /// The same, and in which partitions the node is in doubt of some keys.
    pub async fn what_is_left(&self) -> Result<Option<(Layout, bool, BTreeSet<Partition>)>, Error> {
        let response: v1::GetLayoutResponse =
            self.call(Kind::Read, GET_LAYOUT, &v1::GetLayoutRequest {}).await?;
        let layout = response.layout.map(Layout::try_from).transpose();
        let layout = layout.map_err(|problem| self.bad_answer(problem))?;
        let doubted =
            response.doubted_partitions.into_iter().map(|number| u16::try_from(number).map(Partition));
        let doubted = doubted.collect::<Result<_, _>>().map_err(|problem| self.bad_answer(problem))?;
        Ok(layout.map(|layout| (layout, response.decided, doubted)))
    }

    /// The last layouts that the node has taken up.
    pub async fn get_layout_history(&self) -> Result<History, Error> {
        let request = v1::GetLayoutHistoryRequest {};
        let response: v1::GetLayoutHistoryResponse =
            self.call(Kind::Read, GET_LAYOUT_HISTORY, &request).await?;
        history_from_wire(response.history.unwrap_or_default()).map_err(|problem| self.bad_answer(problem))
    }

    /// Has the node go on under this layout, in place of the one that it belongs to. The same one again is answered alike.
    pub async fn recover(&self, layout: &Layout) -> Result<NodeState, Error> {
        let request = v1::RecoverRequest { layout: Some(v1::Layout::from(layout)) };
        let response: v1::RecoverResponse = self.call(Kind::Write, RECOVER, &request).await?;
        node_state_from_wire(response.state()).ok_or_else(|| self.bad_answer("the node's state is not known"))
    }

    async fn call<Q: Message, A: Message + Default>(
        &self,
        kind: Kind,
        path: &'static str,
        request: &Q,
    ) -> Result<A, Error> {
        let deadline = Instant::now() + self.timeout;
        let silence = |kind| Verdict::of_silence(kind, self.address()).error;
        let connection = timeout_at(deadline, self.node.connection())
            .await
            .map_err(|_| silence(Kind::Read))?
            .map_err(|error| Verdict::of_dial(&error).error)?;
        let left = deadline.saturating_duration_since(Instant::now());
        timeout_at(deadline, connection.call(path, request, left))
            .await
            .map_err(|_| silence(kind))?
            .map_err(|error| Verdict::of_call(kind, self.address(), error).error)
    }

    fn bad_answer(&self, problem: impl std::fmt::Display) -> Error {
        let message = format!("the answer of {} makes no sense: {problem}", self.address());
        Error::Failed(Detail::new(Reason::BAD_ANSWER, message))
    }
}
