//! The dialling side: keeps one link to one member, for as long as it is one.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use keystore_core::id::{Generation, NodeId};
use keystore_proto::v1::peer_client::PeerClient;
use rand::Rng as _;
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tracing::debug;

use super::link::Link;
use super::links::{Links, outgoing};
use crate::grpc::{FRAME_DECODED_BYTES_MAX, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, PEER_WINDOWS};
use crate::handle::CoreHandle;
use crate::view::View;

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Where a member is, and which start of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) address: SocketAddr,
    pub(super) generation: Generation,
}

/// Why no stream was opened. Nothing was said.
#[derive(Debug, Error)]
enum DialError {
    #[error("this node has accepted no layout")]
    NoLayout,
    #[error(transparent)]
    Connect(#[from] tonic::transport::Error),
    #[error("the member refuses the stream: {0}")]
    Exchange(#[from] Box<tonic::Status>),
}

pub(super) struct Dialler {
    pub(super) core: CoreHandle,
    pub(super) links: Arc<Links>,
    pub(super) me: NodeId,
    pub(super) peer: NodeId,
    pub(super) target: watch::Receiver<Target>,
}

impl Dialler {
    /// Dials again and again until cancelled.
    pub(super) async fn run(mut self, cancelled: CancellationToken) {
        let mut backoff = BACKOFF_MIN;
        loop {
            tokio::select! {
                () = self.wait_until_apart() => {}
                () = cancelled.cancelled() => return,
            }
            let target = *self.target.borrow_and_update();
            let link_cancelled = cancelled.child_token();
            let accepted = {
                // Never dropped half-way: the core has to hear that the link is closed.
                let mut keeping = pin!(self.keep(target, link_cancelled.clone()));
                tokio::select! {
                    ended = &mut keeping => ended,
                    () = moved(self.target.clone(), target.address) => {
                        link_cancelled.cancel();
                        keeping.await
                    }
                }
            };
            if cancelled.is_cancelled() {
                return;
            }
            backoff = if accepted { BACKOFF_MIN } else { (backoff * 2).min(BACKOFF_MAX) };
            tokio::select! {
                () = tokio::time::sleep(jittered(backoff)) => {}
                // It has moved or has started anew: no reason to wait.
                Ok(()) = self.target.changed() => backoff = BACKOFF_MIN,
                () = cancelled.cancelled() => return,
            }
        }
    }

    /// Returns while there is no link to the member: it may have dialled us, and another link would take the place of
    /// that one, with all that is under way on it.
    async fn wait_until_apart(&self) {
        let mut view = self.core.watch_view();
        let is_apart = |view: &Arc<View>| view.connected.iter().all(|(connected, _)| *connected != self.peer);
        // It fails only once the core has ended.
        let _ = view.wait_for(is_apart).await;
    }

    /// One link, unless none can be opened; after that, a pause.
    pub(super) async fn run_once(self, cancelled: CancellationToken) {
        let target = *self.target.borrow();
        if !self.keep(target, cancelled.clone()).await {
            tokio::select! {
                () = tokio::time::sleep(jittered(BACKOFF_MAX / 4)) => {}
                () = cancelled.cancelled() => {}
            }
        }
    }

    /// One link from its first byte to its last: true if it had been accepted.
    async fn keep(&self, target: Target, cancelled: CancellationToken) -> bool {
        let opened = tokio::select! {
            () = cancelled.cancelled() => return false,
            opened = self.open(target.address) => opened,
        };
        match opened {
            Ok(link) => link.run(cancelled).await,
            Err(error) => {
                debug!(node = %self.me, peer = %self.peer, address = %target.address, %error, "dialling failed");
                false
            }
        }
    }

    async fn open(&self, address: SocketAddr) -> Result<Link, DialError> {
        let channel = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(PEER_WINDOWS.stream)
            .initial_connection_window_size(PEER_WINDOWS.connection)
            .connect()
            .await?;
        let hello = self.core.hello_to(self.peer).await.ok_or(DialError::NoLayout)?;
        let (outgoing, frames) = outgoing();
        outgoing.say_hello(&hello);
        let mut client = PeerClient::new(channel).max_decoding_message_size(FRAME_DECODED_BYTES_MAX);
        let incoming = client.exchange(frames).await.map_err(Box::new)?.into_inner();
        Ok(Link {
            core: self.core.clone(),
            links: Arc::clone(&self.links),
            outgoing,
            incoming,
            said: Some(hello),
        })
    }
}

/// Returns when the member is somewhere else; a new start at the same address needs no new dialling by itself.
async fn moved(mut target: watch::Receiver<Target>, from: SocketAddr) {
    if target.wait_for(|target| target.address != from).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Between half and the whole of it, so that members that lost each other do not dial in step.
fn jittered(backoff: Duration) -> Duration {
    backoff.mul_f64(rand::rng().random_range(0.5..1.0))
}
