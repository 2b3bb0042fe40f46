//! The accepting side: the gRPC service that other members dial.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use keystore_proto::v1;
use keystore_proto::v1::peer_server::Peer;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::link::Link;
use super::links::{Links, NewLink, outgoing};
use crate::handle::CoreHandle;

/// A stream that a peer has opened and that has no task yet.
#[derive(Debug)]
pub(super) struct Accepted {
    outgoing: NewLink,
    incoming: Streaming<v1::PeerFrame>,
}

impl Accepted {
    pub(super) async fn run(self, core: CoreHandle, links: Arc<Links>, cancelled: CancellationToken) {
        let link = Link { core, links, outgoing: self.outgoing, incoming: self.incoming, said: None };
        link.run(cancelled).await;
    }
}

#[derive(Debug, Clone)]
pub struct PeerService {
    accepting: mpsc::Sender<Accepted>,
}

impl PeerService {
    pub(super) fn new(accepting: mpsc::Sender<Accepted>) -> Self {
        Self { accepting }
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<v1::PeerFrame, Status>> + Send>>;

    async fn exchange(
        &self,
        request: Request<Streaming<v1::PeerFrame>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let (outgoing, frames) = outgoing();
        let accepted = Accepted { outgoing, incoming: request.into_inner() };
        self.accepting.send(accepted).await.map_err(|_| Status::unavailable("this node is about to stop"))?;
        Ok(Response::new(Box::pin(frames.map(Ok))))
    }
}
