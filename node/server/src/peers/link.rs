//! The life of one link after its stream is open, the same on both sides: hello, verdict, frames, end.

use std::sync::Arc;
use std::time::Duration;

use keystore_core::effect::{Event, LinkId};
use keystore_core::message::{Header, Hello};
use keystore_core::peers::LinkRefusal;
use keystore_proto::error::WireError;
use keystore_proto::peer::{Content, Frame};
use keystore_proto::v1;
use thiserror::Error;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use super::links::{Links, NewLink, refusal_header};
use super::packing::unpack;
use crate::handle::CoreHandle;

/// A node that is alive says hello at once.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// The core may have to sync the peer's identity to disk first.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(10);

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
    RefusedByPeer { header: Header, refusal: LinkRefusal },
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
    /// Returns when the link has closed: true if it had been accepted.
    pub(super) async fn run(self, cancelled: CancellationToken) -> bool {
        let Self { core, links, outgoing, mut incoming, said } = self;
        let first = tokio::select! {
            () = cancelled.cancelled() => return false,
            first = read_hello(&mut incoming) => first,
        };
        let (hello, unpacks) = match first {
            Ok(first) => first,
            Err(error) => {
                debug!(%error, "link ended");
                report_refusal(&core, &error, said.as_ref());
                return false;
            }
        };
        if unpacks {
            outgoing.pack();
        }
        let peer = hello.header.from;
        let (link, verdict) = links.register(outgoing, hello.clone(), said.is_none(), cancelled.clone());
        core.tell(Event::LinkOffered { link, hello });
        let ours = tokio::select! {
            () = cancelled.cancelled() => None,
            verdict = timeout(VERDICT_TIMEOUT, verdict) => verdict.ok().and_then(Result::ok).flatten(),
        };
        // The core may have raised its generation since our hello was asked for: the peer would refuse every frame.
        let is_current =
            |ours: &Hello| said.as_ref().is_none_or(|said| said.header.generation == ours.header.generation);
        let ours = ours.filter(is_current);
        let accepted = ours.is_some();
        let said = said.or(ours);
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
        debug!(%error, "link ended");
        report_refusal(&core, &error, said.as_ref());
        accepted
    }
}

/// The other side's hello, and whether it can unpack.
async fn read_hello(incoming: &mut Streaming<v1::PeerFrame>) -> Result<(Hello, bool), LinkError> {
    let frame = timeout(HELLO_TIMEOUT, read_frame(incoming)).await.map_err(|_| LinkError::NoHello)??;
    match frame.content {
        Content::Hello { lineage, unpacks } => Ok((Hello { header: frame.header, lineage }, unpacks)),
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
            Content::Hello { .. } => return LinkError::HelloExpected,
        }
    }
}

async fn read_frame(incoming: &mut Streaming<v1::PeerFrame>) -> Result<Frame, LinkError> {
    match incoming.message().await {
        Ok(Some(frame)) => Ok(Frame::try_from(unpack(frame)?)?),
        Ok(None) => Err(LinkError::Ended),
        Err(status) => Err(LinkError::Broken(Box::new(status))),
    }
}

fn refused(frame: &Frame, refusal: LinkRefusal) -> LinkError {
    LinkError::RefusedByPeer { header: frame.header, refusal }
}

fn report_refusal(core: &CoreHandle, error: &LinkError, said: Option<&Hello>) {
    if let Some(event) = refusal_of_us(error, said) {
        core.tell(event);
    }
}

/// A refusal is a verdict about us only if it answers the very hello that we have said on this link: then it names
/// our cluster, a member, us, and our generation. What follows from it is for the core to decide.
fn refusal_of_us(error: &LinkError, said: Option<&Hello>) -> Option<Event> {
    let LinkError::RefusedByPeer { header, refusal } = error else { return None };
    let is_answer = *header == refusal_header(&said?.header);
    is_answer.then_some(Event::HelloRefused {
        peer: header.from,
        generation: header.generation,
        refusal: *refusal,
    })
}

#[cfg(test)]
mod tests {
    use keystore_core::id::{ClusterId, Epoch, Generation, Incarnation, NodeId, Nonce};

    use super::*;

    const ME: NodeId = NodeId([1; 16]);
    const PEER: NodeId = NodeId([2; 16]);
    const SAID: Header = Header {
        cluster: ClusterId([9; 16]),
        incarnation: Incarnation { number: 1, id: 2 },
        epoch: Epoch(1),
        from: ME,
        to: PEER,
        generation: Generation(3),
    };

    fn verdict(header: Header, refusal: LinkRefusal, said: Option<Header>) -> Option<(NodeId, Generation)> {
        let said = said.map(|header| Hello { header, lineage: Nonce(4).into() });
        match refusal_of_us(&LinkError::RefusedByPeer { header, refusal }, said.as_ref())? {
            Event::HelloRefused { peer, generation, refusal: told } if told == refusal => {
                Some((peer, generation))
            }
            event => panic!("{event:?}"),
        }
    }

    #[test]
    fn only_the_answer_to_our_own_hello_is_a_verdict_about_us() {
        let stale = LinkRefusal::StaleGeneration;
        let answer = Header { from: PEER, to: ME, ..SAID };
        for refusal in [stale, LinkRefusal::WrongCluster] {
            assert_eq!(verdict(answer, refusal, Some(SAID)), Some((PEER, Generation(3))));
        }
        assert_eq!(verdict(answer, stale, None), None, "nothing was said that could be refused");
        for forged in [
            Header { from: NodeId([3; 16]), ..answer },
            Header { to: NodeId([3; 16]), ..answer },
            Header { cluster: ClusterId([8; 16]), ..answer },
            Header { incarnation: Incarnation { number: 1, id: 3 }, ..answer },
            Header { generation: Generation(2), ..answer },
        ] {
            assert_eq!(verdict(forged, stale, Some(SAID)), None, "{forged:?}");
        }
    }
}
