//! The life of one link after its stream is open, the same on both sides: hello, verdict, frames, end.

use std::sync::Arc;
use std::time::Duration;

use keystore_core::effect::{Event, LinkId};
use keystore_core::id::NodeId;
use keystore_core::message::Hello;
use keystore_core::node::alarm_of;
use keystore_core::peers::LinkRefusal;
use keystore_proto::error::WireError;
use keystore_proto::peer::{Content, Frame};
use keystore_proto::v1;
use thiserror::Error;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use super::links::{Links, NewLink};
use crate::handle::CoreHandle;

/// A node that is alive says hello at once.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// The core may have to sync the peer's identity to disk first.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(10);

/// How a task that keeps a link has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkEnd {
    Closed,
    /// The peer has seen a later generation of this node than its own.
    WeAreStale(NodeId),
}

/// Why a link has closed. The messages on it may or may not have arrived.
#[derive(Debug, Error)]
enum LinkError {
    #[error("the other side did not say hello in time")]
    NoHello,
    #[error("the first frame is no hello")]
    HelloExpected,
    #[error("this node did not judge the hello in time")]
    NoVerdict,
    #[error("the other side refuses the link: {refusal}")]
    RefusedByPeer { peer: NodeId, refusal: LinkRefusal },
    #[error("this node refuses the link")]
    RefusedByUs,
    #[error("the other side has closed the link")]
    Ended,
    #[error("the stream broke: {0}")]
    Broken(#[from] Box<Status>),
    #[error("a frame is malformed: {0}")]
    Malformed(#[from] WireError),
}

/// One side of an open stream.
pub(super) struct Link {
    pub(super) core: CoreHandle,
    pub(super) links: Arc<Links>,
    pub(super) outgoing: NewLink,
    pub(super) incoming: Streaming<v1::PeerFrame>,
    /// What this side has said first; `None` on the accepting side, which answers.
    pub(super) said: Option<Hello>,
}

impl Link {
    /// Returns when the link has closed, with whether it had been accepted.
    pub(super) async fn run(self, cancelled: CancellationToken) -> (LinkEnd, bool) {
        let Self { core, links, outgoing, mut incoming, said } = self;
        let first = tokio::select! {
            () = cancelled.cancelled() => return (LinkEnd::Closed, false),
            first = read_hello(&mut incoming) => first,
        };
        let hello = match first {
            Ok(hello) => hello,
            Err(error) => return (end_of(&error, said.as_ref()), false),
        };
        let peer = hello.header.from;
        let (link, verdict) = links.register(outgoing, hello.clone(), said.is_none(), cancelled.clone());
        core.tell(Event::LinkOffered { link, hello });
        let accepted = tokio::select! {
            () = cancelled.cancelled() => false,
            verdict = timeout(VERDICT_TIMEOUT, verdict) => matches!(verdict, Ok(Ok(true))),
        };
        let error = if accepted {
            info!(%peer, link = link.0, "link to a member is up");
            tokio::select! {
                () = cancelled.cancelled() => LinkError::Ended,
                error = read_frames(&core, link, &mut incoming) => error,
            }
        } else if cancelled.is_cancelled() {
            LinkError::NoVerdict
        } else {
            LinkError::RefusedByUs
        };
        links.remove(link);
        core.tell(Event::LinkClosed { link });
        if accepted {
            warn!(%peer, link = link.0, %error, "link to a member is down");
        }
        (end_of(&error, said.as_ref()), accepted)
    }
}

async fn read_hello(incoming: &mut Streaming<v1::PeerFrame>) -> Result<Hello, LinkError> {
    let frame = timeout(HELLO_TIMEOUT, read_frame(incoming)).await.map_err(|_| LinkError::NoHello)??;
    match frame.content {
        Content::Hello(nonce) => Ok(Hello { header: frame.header, nonce }),
        Content::Refusal(refusal) => Err(refused(&frame, refusal)),
        Content::Messages(_) => Err(LinkError::HelloExpected),
    }
}

/// Hands frame after frame to the core, at the pace at which it takes them.
async fn read_frames(core: &CoreHandle, link: LinkId, incoming: &mut Streaming<v1::PeerFrame>) -> LinkError {
    loop {
        let frame = match read_frame(incoming).await {
            Ok(frame) => frame,
            Err(error) => return error,
        };
        match frame.content {
            Content::Messages(messages) => core.frame(link, frame.header, messages).await,
            Content::Refusal(refusal) => return refused(&frame, refusal),
            Content::Hello(_) => return LinkError::HelloExpected,
        }
    }
}

async fn read_frame(incoming: &mut Streaming<v1::PeerFrame>) -> Result<Frame, LinkError> {
    match incoming.message().await {
        Ok(Some(frame)) => Ok(Frame::try_from(frame)?),
        Ok(None) => Err(LinkError::Ended),
        Err(status) => Err(LinkError::Broken(Box::new(status))),
    }
}

fn refused(frame: &Frame, refusal: LinkRefusal) -> LinkError {
    LinkError::RefusedByPeer { peer: frame.header.from, refusal }
}

/// A refusal counts only from whom it was that we greeted.
fn end_of(error: &LinkError, said: Option<&Hello>) -> LinkEnd {
    debug!(%error, "link ended");
    match (error, said) {
        (LinkError::RefusedByPeer { peer, refusal }, said)
            if said.is_none_or(|said| said.header.to == *peer) && alarm_of(*refusal, *peer).is_some() =>
        {
            LinkEnd::WeAreStale(*peer)
        }
        _ => LinkEnd::Closed,
    }
}
