//! The payloads of the small states: what a node finds in its data directory.

use bytes::Bytes;
use keystore_core::effect::{Hint, SavedState};
use keystore_core::history::History;
use keystore_core::id::{Actor, Generation, Lineage, NodeId, Nonce};
use keystore_core::layout::Layout;
use keystore_core::paxos::Votes;
use keystore_core::peers::PeerIdentities;
use keystore_core::stamp::Stamp;
use keystore_core::transfer::Merges;
use keystore_proto::history::{history_from_wire, history_to_wire};
use keystore_proto::succession::{merges_from_wire, merges_to_wire, votes_from_wire, votes_to_wire};
use keystore_proto::v1;
use prost::Message as _;

use super::engine::EngineKind;
use super::log::Position;
use super::state::{Kind, StateError};

/// Who a data directory belongs to. Drawn at random for an empty one; never replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub node: NodeId,
    pub actor: Actor,
    /// The name under which the cluster's nodes find each other; a directory is of one cluster for ever.
    pub cluster_name: String,
}

/// What a node starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub identity: Identity,
    /// Of this start: one more than that of the start before.
    pub generation: Generation,
    /// The generation in which the node was last in doubt, 0 if it never was.
    pub trusted_since: Generation,
    /// With the nonce of this start.
    pub lineage: Lineage,
    pub stamp_ceiling_ms: u64,
    /// The accepted layout, and whether all members have accepted it.
    pub membership: Option<(Layout, bool)>,
    pub peers: PeerIdentities,
    pub votes: Votes,
    pub merges: Merges,
    /// For people: nothing follows from it.
    pub history: History,
    /// What the node keeps for others.
    pub hints: Vec<Hint>,
    /// No stored record has a stamp above this one; `None` if nobody knows.
    pub highest: Option<Stamp>,
}

const NO_LAYOUT: u8 = 0;
const LAYOUT_ACCEPTED: u8 = 1;
const LAYOUT_DECIDED: u8 = 2;

/// Takes fixed-size numbers from the front of a payload.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(StateError::Content("it is cut short"))?;
        self.0 = rest;
        Ok(*field)
    }

    fn number(&mut self) -> Result<u64, StateError> {
        self.take().map(u64::from_be_bytes)
    }

    fn end(self) -> Result<(), StateError> {
        if self.0.is_empty() { Ok(()) } else { Err(StateError::Content("it is too long")) }
    }
}

pub(super) fn encode_number(number: u64) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

pub(super) fn decode_number(payload: &[u8]) -> Result<u64, StateError> {
    let mut fields = Fields(payload);
    let number = fields.number()?;
    fields.end()?;
    Ok(number)
}

/// The generation, that of the last doubt, and the nonces of the lineage. Earlier releases wrote no nonces, and the
/// first one no second number: its node was never in doubt.
pub(super) fn encode_generation(
    generation: Generation,
    trusted_since: Generation,
    lineage: &Lineage,
) -> Vec<u8> {
    let nonces = lineage.iter().map(|nonce| nonce.0);
    [generation.0, trusted_since.0].into_iter().chain(nonces).flat_map(u64::to_be_bytes).collect()
}

pub(super) fn decode_generation(payload: &[u8]) -> Result<(Generation, Generation, Lineage), StateError> {
    let mut fields = Fields(payload);
    let generation = Generation(fields.number()?);
    let trusted_since = if fields.0.is_empty() { Generation(0) } else { Generation(fields.number()?) };
    let mut nonces = Vec::new();
    while !fields.0.is_empty() {
        nonces.push(Nonce(fields.number()?));
    }
    Ok((generation, trusted_since, nonces.into_iter().collect()))
}

pub(super) fn decode_engine(payload: &[u8]) -> Result<EngineKind, StateError> {
    EngineKind::from_name(payload)
        .ok_or(StateError::Content("it names an engine that this version does not have"))
}

pub(super) fn encode_identity(identity: &Identity) -> Vec<u8> {
    let mut out = identity.node.0.to_vec();
    out.extend_from_slice(&identity.actor.0.to_be_bytes());
    out.extend_from_slice(identity.cluster_name.as_bytes());
    out
}

pub(super) fn decode_identity(payload: &[u8]) -> Result<Identity, StateError> {
    let mut fields = Fields(payload);
    let node = NodeId(fields.take()?);
    let actor = Actor(fields.number()?);
    let name = std::str::from_utf8(fields.0);
    let cluster_name = name.map_err(|_| StateError::Content("the cluster's name is not UTF-8"))?;
    if node.is_nil() {
        return Err(StateError::Content("the node's UUID is nil"));
    }
    Ok(Identity { node, actor, cluster_name: cluster_name.to_owned() })
}

pub(super) fn encode_membership(membership: Option<(&Layout, bool)>) -> Vec<u8> {
    let Some((layout, decided)) = membership else { return vec![NO_LAYOUT] };
    let mut out = vec![if decided { LAYOUT_DECIDED } else { LAYOUT_ACCEPTED }];
    v1::Layout::from(layout).encode(&mut out).expect("a Vec grows as needed");
    out
}

pub(super) fn decode_membership(payload: &[u8]) -> Result<Option<(Layout, bool)>, StateError> {
    let (state, message) = payload.split_first().ok_or(StateError::Content("it is empty"))?;
    let decided = match *state {
        NO_LAYOUT if message.is_empty() => return Ok(None),
        LAYOUT_ACCEPTED => false,
        LAYOUT_DECIDED => true,
        _ => return Err(StateError::Content("whether the layout is decided cannot be told")),
    };
    let message = v1::Layout::decode(Bytes::copy_from_slice(message));
    let message = message.map_err(|_| StateError::Content("the layout cannot be parsed"))?;
    let layout = Layout::try_from(message).map_err(|_| StateError::Content("the layout breaks a rule"))?;
    Ok(Some((layout, decided)))
}

pub(super) fn encode_peers(peers: &PeerIdentities) -> Vec<u8> {
    let mut out = Vec::with_capacity(peers.len() * 32);
    for (node, (generation, nonce)) in peers {
        out.extend_from_slice(&node.0);
        out.extend_from_slice(&generation.0.to_be_bytes());
        out.extend_from_slice(&nonce.0.to_be_bytes());
    }
    out
}

pub(super) fn decode_peers(payload: &[u8]) -> Result<PeerIdentities, StateError> {
    let mut fields = Fields(payload);
    let mut peers = PeerIdentities::new();
    while !fields.0.is_empty() {
        let node = NodeId(fields.take()?);
        let known = (Generation(fields.number()?), Nonce(fields.number()?));
        if peers.insert(node, known).is_some() {
            return Err(StateError::Content("a peer is named twice"));
        }
    }
    Ok(peers)
}

pub(super) fn encode_votes(votes: &Votes) -> Vec<u8> {
    votes_to_wire(votes).encode_to_vec()
}

pub(super) fn decode_votes(payload: &[u8]) -> Result<Votes, StateError> {
    let message = v1::PaxosVotes::decode(payload).map_err(|_| StateError::Content("it cannot be parsed"))?;
    votes_from_wire(message).map_err(|_| StateError::Content("it breaks a rule"))
}

pub(super) fn encode_merges(merges: &Merges) -> Vec<u8> {
    merges_to_wire(merges).encode_to_vec()
}

pub(super) fn decode_merges(payload: &[u8]) -> Result<Merges, StateError> {
    let message = v1::Merges::decode(payload).map_err(|_| StateError::Content("it cannot be parsed"))?;
    merges_from_wire(message).map_err(|_| StateError::Content("it breaks a rule"))
}

pub(super) fn encode_history(history: &History) -> Vec<u8> {
    history_to_wire(history).encode_to_vec()
}

pub(super) fn decode_history(payload: &[u8]) -> Result<History, StateError> {
    let message =
        v1::LayoutHistory::decode(payload).map_err(|_| StateError::Content("it cannot be parsed"))?;
    history_from_wire(message).map_err(|_| StateError::Content("it breaks a rule"))
}

pub(super) fn encode_position(position: Position) -> Vec<u8> {
    let Position { segment, offset, sequence, chain } = position;
    let mut out = Vec::with_capacity(28);
    for number in [segment, offset, sequence] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    out.extend_from_slice(&chain.to_be_bytes());
    out
}

pub(super) fn decode_position(payload: &[u8]) -> Result<Position, StateError> {
    let mut fields = Fields(payload);
    let (segment, offset, sequence) = (fields.number()?, fields.number()?, fields.number()?);
    let chain = u32::from_be_bytes(fields.take()?);
    fields.end()?;
    Ok(Position { segment, offset, sequence, chain })
}

/// The file and the payload of a state that core wants saved.
pub(super) fn encode_saved(state: &SavedState) -> (Kind, Vec<u8>) {
    match state {
        SavedState::StampCeiling(ceiling_ms) => (Kind::StampCeiling, encode_number(*ceiling_ms)),
        SavedState::Layout { layout, decided } => (Kind::Layout, encode_membership(Some((layout, *decided)))),
        SavedState::Peers(peers) => (Kind::Peers, encode_peers(peers)),
        SavedState::Generation { generation, trusted_since, lineage } => {
            (Kind::Generation, encode_generation(*generation, *trusted_since, lineage))
        }
        SavedState::SetAside => (Kind::SetAside, Vec::new()),
        SavedState::Votes(votes) => (Kind::Votes, encode_votes(votes)),
        SavedState::Merges(merges) => (Kind::Merges, encode_merges(merges)),
    }
}
