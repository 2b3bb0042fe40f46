//! Frames between nodes: to the wire and back.
//!
//! A frame that breaks any rule is refused whole: its sender runs other code or is no node at all.

use keystore_core::id::{ClusterId, Epoch, Generation, Lineage, Nonce};
use keystore_core::message::{Header, Message};
use keystore_core::peers::LinkRefusal;

use crate::error::WireError;
use crate::field::{node, sixteen, uuid_bytes};
use crate::v1;
use crate::v1::peer_frame::Kind;

/// What one side sends to the other on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub header: Header,
    pub content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The first frame of each side.
    Hello {
        lineage: Lineage,
        unpacks: bool,
    },
    /// The last frame of a side that does not want the link.
    Refusal(LinkRefusal),
    Messages(Vec<Message>),
}

impl From<Frame> for v1::PeerFrame {
    fn from(Frame { header, content }: Frame) -> Self {
        let kind = match content {
            Content::Hello { lineage, unpacks } => Kind::Hello(v1::PeerHello {
                nonce: lineage.present().0,
                earlier_nonces: lineage.iter().skip(1).map(|nonce| nonce.0).collect(),
                unpacks,
            }),
            Content::Refusal(refusal) => {
                Kind::Refusal(v1::PeerRefusal { reason: refusal_to_wire(refusal).into() })
            }
            Content::Messages(messages) => {
                Kind::Messages(v1::PeerMessages { messages: messages.into_iter().map(Into::into).collect() })
            }
        };
        Self { header: Some(header_to_wire(&header)), kind: Some(kind) }
    }
}

impl TryFrom<v1::PeerFrame> for Frame {
    type Error = WireError;

    fn try_from(frame: v1::PeerFrame) -> Result<Self, WireError> {
        let v1::PeerFrame { header, kind } = frame;
        let header = header_from_wire(&header.ok_or(WireError::Missing("header"))?)?;
        let content = match kind.ok_or(WireError::Missing("kind"))? {
            Kind::Hello(v1::PeerHello { nonce, earlier_nonces, unpacks }) => {
                let lineage = [nonce].into_iter().chain(earlier_nonces).map(Nonce).collect();
                Content::Hello { lineage, unpacks }
            }
            Kind::Packed(_) => return Err(WireError::Packed("they still are".to_owned())),
            Kind::Refusal(v1::PeerRefusal { reason }) => Content::Refusal(refusal_from_wire(reason)?),
            Kind::Messages(v1::PeerMessages { messages }) => {
                let messages = messages.into_iter().map(Message::try_from);
                Content::Messages(messages.collect::<Result<_, _>>()?)
            }
        };
        Ok(Self { header, content })
    }
}

fn header_to_wire(header: &Header) -> v1::PeerHeader {
    let Header { cluster, incarnation, epoch, from, to, generation } = header;
    v1::PeerHeader {
        cluster_id: uuid_bytes(&cluster.0),
        incarnation: Some((*incarnation).into()),
        epoch: epoch.0,
        from: uuid_bytes(&from.0),
        to: uuid_bytes(&to.0),
        generation: generation.0,
    }
}

fn header_from_wire(header: &v1::PeerHeader) -> Result<Header, WireError> {
    let v1::PeerHeader { cluster_id, incarnation, epoch, from, to, generation } = header;
    Ok(Header {
        cluster: ClusterId(sixteen("cluster_id", cluster_id)?),
        incarnation: incarnation.ok_or(WireError::Missing("incarnation"))?.into(),
        epoch: Epoch(*epoch),
        from: node("from", from)?,
        to: node("to", to)?,
        generation: Generation(*generation),
    })
}

fn refusal_to_wire(refusal: LinkRefusal) -> v1::PeerRefusalReason {
    match refusal {
        LinkRefusal::NotInitialized => v1::PeerRefusalReason::NotInitialized,
        LinkRefusal::WrongCluster => v1::PeerRefusalReason::WrongCluster,
        LinkRefusal::WrongNode => v1::PeerRefusalReason::WrongNode,
        LinkRefusal::StaleGeneration => v1::PeerRefusalReason::StaleGeneration,
        LinkRefusal::Departed => v1::PeerRefusalReason::Departed,
    }
}

fn refusal_from_wire(reason: i32) -> Result<LinkRefusal, WireError> {
    match v1::PeerRefusalReason::try_from(reason) {
        Ok(v1::PeerRefusalReason::NotInitialized) => Ok(LinkRefusal::NotInitialized),
        Ok(v1::PeerRefusalReason::WrongCluster) => Ok(LinkRefusal::WrongCluster),
        Ok(v1::PeerRefusalReason::WrongNode) => Ok(LinkRefusal::WrongNode),
        Ok(v1::PeerRefusalReason::StaleGeneration) => Ok(LinkRefusal::StaleGeneration),
        Ok(v1::PeerRefusalReason::Departed) => Ok(LinkRefusal::Departed),
        Ok(v1::PeerRefusalReason::Unspecified) | Err(_) => {
            Err(WireError::UnknownValue { field: "reason", found: reason })
        }
    }
}
