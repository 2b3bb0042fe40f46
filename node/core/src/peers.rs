//! Who the other nodes are: which connections and frames are accepted, and over which link a peer is reached.
//!
//! Of each UUID the highest (generation, nonce) ever seen is durable before a link with it is accepted. An older
//! generation, or another nonce than the one that was seen, in the same generation or in the history of a later one, is
//! a rolled-back or cloned disk and is refused. A frame counts
//! only on the link that its sender's present generation opened, so an acknowledgement given before a loss never
//! counts after it.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::effect::LinkId;
use crate::id::{Generation, NodeId, Nonce};
use crate::layout::Layout;
use crate::message::{Header, Hello};
use crate::mutant::{Mutant, is_on};

/// The highest identity seen of each peer: a small durable state.
pub type PeerIdentities = BTreeMap<NodeId, (Generation, Nonce)>;

/// Why a link is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LinkRefusal {
    #[error("this node has not been initialised")]
    NotInitialized,
    #[error("the other side belongs to another cluster or incarnation")]
    WrongCluster,
    #[error("the hello is meant for another node, or comes from a node that is no member")]
    WrongNode,
    #[error(
        "the generation is older than one seen before, or does not come after it: a rolled-back or cloned disk"
    )]
    StaleGeneration,
    #[error("the sender was a member and is none any more: its disk can only join as a new node")]
    Departed,
}

/// What a hello changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Greeting {
    /// The identity is known: the link may be used.
    Known,
    /// The identity has to be durable first.
    Newer,
}

/// The links in use and the identities behind them.
#[derive(Debug, Default)]
pub struct Peers {
    identities: PeerIdentities,
    durable: PeerIdentities,
    links: BTreeMap<NodeId, (LinkId, Generation)>,
    /// The highest generation of each peer that others have spoken of.
    heard: BTreeMap<NodeId, Generation>,
    /// What members have said of the others before this node joined them.
    adopted: PeerIdentities,
}

impl Peers {
    pub fn new(identities: PeerIdentities) -> Self {
        Self { durable: identities.clone(), identities, ..Self::default() }
    }

    /// Judges a hello, and notes a newer identity: whatever its sender said as an earlier one counts no longer. One that
    /// is ahead of us may be no member as far as we know; it has a layout for us. So has whoever speaks to a node that
    /// belongs to no cluster yet.
    pub fn greet(
        &mut self,
        hello: &Hello,
        layout: Option<&Layout>,
        me: NodeId,
    ) -> Result<Greeting, LinkRefusal> {
        let header = &hello.header;
        if layout.is_some_and(|layout| !fits(header, layout)) {
            return Err(LinkRefusal::WrongCluster);
        }
        let is_for_us = header.to == me || is_on(Mutant::StrayFramesCount);
        if !is_for_us || header.from == me {
            return Err(LinkRefusal::WrongNode);
        }
        let is_behind = |layout: &&Layout| header.epoch <= layout.epoch;
        if let Some(layout) = layout.filter(is_behind)
            && layout.member(header.from).is_none_or(|member| member.is_lost)
            && !is_on(Mutant::TheDepartedAreTaken)
        {
            let has_departed = layout.departed.contains(&header.from) || layout.is_lost(header.from);
            return Err(if has_departed { LinkRefusal::Departed } else { LinkRefusal::WrongNode });
        }
        let is_taken = is_on(Mutant::EarlierGenerationIsAccepted);
        if self.heard(header.from) > header.generation && !is_taken {
            return Err(LinkRefusal::StaleGeneration);
        }
        let offered = hello.identity();
        match self.identities.get(&header.from) {
            Some(known) if *known == offered => {
                let is_durable = self.durable.get(&header.from) == Some(&offered);
                let is_durable = is_durable || is_on(Mutant::IdentityIsNotSavedFirst);
                Ok(if is_durable { Greeting::Known } else { Greeting::Newer })
            }
            Some((generation, _))
                if *generation == header.generation && is_on(Mutant::SecondNonceIsAccepted) =>
            {
                Ok(Greeting::Known)
            }
            Some((generation, _))
                if *generation > header.generation && is_on(Mutant::EarlierGenerationIsAccepted) =>
            {
                Ok(Greeting::Known)
            }
            Some((generation, _)) if *generation >= header.generation => Err(LinkRefusal::StaleGeneration),
            // A copy that has outgrown, unseen by us, what we know of the original.
            Some((generation, nonce))
                if hello.nonce_at(*generation).is_some_and(|its| its != *nonce)
                    && !is_on(Mutant::LineageIsNotCompared) =>
            {
                Err(LinkRefusal::StaleGeneration)
            }
            _ => {
                self.identities.insert(header.from, offered);
                let is_early = is_on(Mutant::IdentityIsNotSavedFirst);
                Ok(if is_early { Greeting::Known } else { Greeting::Newer })
            }
        }
    }

    /// True while no newer identity than this hello's is known of: asked again once it is durable.
    pub fn is_current(&self, hello: &Hello) -> bool {
        let Header { from, generation, .. } = hello.header;
        let is_newest =
            self.identities.get(&from) == Some(&hello.identity()) && self.heard(from) <= generation;
        is_newest || is_on(Mutant::OvertakenIdentitiesAreAccepted)
    }

    /// These identities have been synced to disk.
    pub fn make_durable(&mut self, synced: impl IntoIterator<Item = (NodeId, (Generation, Nonce))>) {
        self.durable.extend(synced);
    }

    /// Takes what a member knows of the others in place of what we have made of their hellos while we belonged to no
    /// cluster, and of what several members know the latest. Returns those whom we know as somebody else now: what links
    /// them to us has to be opened anew.
    pub fn adopt(&mut self, known: &PeerIdentities) -> Vec<NodeId> {
        let mut others = Vec::new();
        for (node, identity) in known {
            if self.adopted.get(node).is_some_and(|(generation, _)| *generation >= identity.0) {
                continue;
            }
            self.adopted.insert(*node, *identity);
            let before = self.identities.insert(*node, *identity);
            others.extend(before.filter(|before| before != identity).map(|_| *node));
        }
        others
    }

    /// The identity of a peer that is on our disk.
    pub fn noted_identity(&self, peer: NodeId) -> Option<(Generation, Nonce)> {
        let known = if is_on(Mutant::NotedBeforeItIsSaved) { &self.identities } else { &self.durable };
        known.get(&peer).copied()
    }

    /// The generation of a peer that is on our disk, 0 if none is.
    pub fn noted(&self, peer: NodeId) -> Generation {
        self.noted_identity(peer).map_or(Generation(0), |(generation, _)| generation)
    }

    /// True for a generation of a peer that is later than any we know of: what the peer said before does not count.
    pub fn is_news(&self, peer: NodeId, generation: Generation) -> bool {
        generation > self.newest(peer) && !is_on(Mutant::NotedIsNotHeard)
    }

    /// Another node has noted this generation of a peer.
    pub fn hear(&mut self, peer: NodeId, generation: Generation) {
        if self.is_news(peer, generation) {
            self.heard.insert(peer, generation);
        }
    }

    /// The highest generation of a peer that we know of.
    fn newest(&self, peer: NodeId) -> Generation {
        let met = self.identities.get(&peer).map_or(Generation(0), |(generation, _)| *generation);
        self.heard(peer).max(met)
    }

    fn heard(&self, peer: NodeId) -> Generation {
        self.heard.get(&peer).copied().unwrap_or_default()
    }

    pub fn identities(&self) -> &PeerIdentities {
        &self.identities
    }

    /// Takes a link into use and returns the one that it replaces.
    pub fn connect(&mut self, link: LinkId, header: &Header) -> Option<LinkId> {
        self.links.insert(header.from, (link, header.generation)).map(|(old, _)| old)
    }

    /// Forgets a link and returns the peer that is no longer reached.
    pub fn disconnect(&mut self, link: LinkId) -> Option<NodeId> {
        let peer = self.links.iter().find(|(_, (used, _))| *used == link).map(|(peer, _)| *peer)?;
        self.links.remove(&peer);
        Some(peer)
    }

    /// Forgets all links and returns them.
    pub fn disconnect_all(&mut self) -> Vec<(NodeId, LinkId)> {
        std::mem::take(&mut self.links).into_iter().map(|(peer, (link, _))| (peer, link)).collect()
    }

    pub fn link(&self, peer: NodeId) -> Option<LinkId> {
        self.links.get(&peer).map(|(link, _)| *link)
    }

    pub fn is_connected(&self, peer: NodeId) -> bool {
        self.links.contains_key(&peer)
    }

    pub fn connected(&self) -> impl Iterator<Item = (NodeId, Generation)> {
        self.links.iter().map(|(peer, (_, generation))| (*peer, *generation))
    }

    /// True if a frame with this header may be handled: it comes over its sender's link, of the highest generation
    /// heard of, and is meant for us, in our cluster and incarnation if we have one.
    pub fn admits(&self, link: LinkId, header: &Header, layout: Option<&Layout>, me: NodeId) -> bool {
        let is_newest =
            self.newest(header.from) <= header.generation || is_on(Mutant::EarlierGenerationIsAccepted);
        layout.is_none_or(|layout| fits(header, layout))
            && (header.to == me || is_on(Mutant::StrayFramesCount))
            && is_newest
            && self.links.get(&header.from) == Some(&(link, header.generation))
    }
}

/// True for what comes from a node of the same cluster and incarnation.
pub(crate) fn fits(header: &Header, layout: &Layout) -> bool {
    let is_of_cluster = header.cluster == layout.cluster || is_on(Mutant::OtherClustersCount);
    let is_of_now = header.incarnation == layout.incarnation || is_on(Mutant::AnyIncarnationCounts);
    is_of_cluster && is_of_now
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{ClusterId, Epoch};
    use crate::layout::tests::{first, member};

    const ME: NodeId = NodeId([1; 16]);
    const PEER: NodeId = NodeId([2; 16]);

    fn layout() -> Layout {
        first(vec![member(1), member(2)], 2).unwrap()
    }

    fn hello(generation: u64, nonce: u64) -> Hello {
        let Layout { cluster, incarnation, epoch, .. } = layout();
        let header =
            Header { cluster, incarnation, epoch, from: PEER, to: ME, generation: Generation(generation) };
        Hello { header, lineage: Nonce(nonce).into() }
    }

    fn knowing(generation: u64, nonce: u64) -> Peers {
        Peers::new(BTreeMap::from([(PEER, (Generation(generation), Nonce(nonce)))]))
    }

    #[test]
    fn a_hello_is_judged_by_what_was_seen_of_its_sender() {
        let cases = [
            (5, 50, Ok(Greeting::Known), "the same process"),
            (6, 60, Ok(Greeting::Newer), "a later start"),
            (4, 40, Err(LinkRefusal::StaleGeneration), "a disk that was rolled back"),
            (5, 51, Err(LinkRefusal::StaleGeneration), "a disk that was cloned"),
        ];
        for (generation, nonce, expected, what) in cases {
            assert_eq!(
                knowing(5, 50).greet(&hello(generation, nonce), Some(&layout()), ME),
                expected,
                "{what}"
            );
        }
    }

    #[test]
    fn a_later_generation_has_to_come_after_the_one_that_was_seen() {
        let later = |nonces: &[u64]| {
            let lineage = nonces.iter().map(|nonce| Nonce(*nonce)).collect();
            knowing(5, 50).greet(&Hello { lineage, ..hello(7, 0) }, Some(&layout()), ME)
        };
        assert_eq!(later(&[70, 60, 50, 40]), Ok(Greeting::Newer));
        assert_eq!(
            later(&[70, 60, 51, 40]),
            Err(LinkRefusal::StaleGeneration),
            "a copy that has started twice"
        );
        assert_eq!(later(&[70, 60]), Ok(Greeting::Newer), "it has forgotten");
    }

    #[test]
    fn a_hello_of_another_cluster_or_for_another_node_is_refused() {
        let spoil = |change: fn(&mut Header)| {
            let mut hello = hello(5, 50);
            change(&mut hello.header);
            Peers::default().greet(&hello, Some(&layout()), ME)
        };
        assert_eq!(spoil(|_| {}), Ok(Greeting::Newer));
        assert_eq!(spoil(|h| h.cluster = ClusterId([8; 16])), Err(LinkRefusal::WrongCluster));
        assert_eq!(spoil(|h| h.incarnation.number += 1), Err(LinkRefusal::WrongCluster));
        assert_eq!(spoil(|h| h.incarnation.id += 1), Err(LinkRefusal::WrongCluster));
        assert_eq!(spoil(|h| h.epoch = Epoch(2)), Ok(Greeting::Newer), "it has a layout for us");
        assert_eq!(spoil(|h| h.to = PEER), Err(LinkRefusal::WrongNode));
        assert_eq!(spoil(|h| h.from = ME), Err(LinkRefusal::WrongNode));
        assert_eq!(spoil(|h| h.from = NodeId([7; 16])), Err(LinkRefusal::WrongNode));
        let ahead = spoil(|h| (h.from, h.epoch) = (NodeId([7; 16]), Epoch(2)));
        assert_eq!(ahead, Ok(Greeting::Newer), "a member that we have not heard of");
    }

    #[test]
    fn a_joiner_takes_over_the_latest_that_any_member_knows() {
        let mut peers = knowing(9, 90);
        let said = |generation, nonce| BTreeMap::from([(PEER, (Generation(generation), Nonce(nonce)))]);
        assert_eq!(peers.adopt(&said(5, 50)), [PEER], "what it has said itself is nothing");
        assert_eq!(peers.adopt(&said(4, 40)), [], "another member has not heard of that yet");
        assert_eq!(peers.identities(), &said(5, 50));
        assert_eq!(peers.adopt(&said(6, 60)), [PEER]);
    }

    #[test]
    fn an_identity_counts_as_known_only_once_it_is_durable() {
        let mut peers = Peers::default();
        assert_eq!(peers.greet(&hello(5, 50), Some(&layout()), ME), Ok(Greeting::Newer));
        assert_eq!(peers.greet(&hello(5, 50), Some(&layout()), ME), Ok(Greeting::Newer), "not durable yet");
        peers.make_durable([(PEER, (Generation(5), Nonce(50)))]);
        assert_eq!(peers.greet(&hello(5, 50), Some(&layout()), ME), Ok(Greeting::Known));
    }

    #[test]
    fn a_frame_counts_only_on_the_link_of_the_newest_generation() {
        let mut peers = knowing(5, 50);
        let (old, new) = (LinkId(1), LinkId(2));
        peers.connect(old, &hello(5, 50).header);
        assert!(peers.admits(old, &hello(5, 50).header, Some(&layout()), ME));
        assert!(!peers.admits(new, &hello(5, 50).header, Some(&layout()), ME));
        peers.greet(&hello(6, 60), Some(&layout()), ME).unwrap();
        assert!(
            !peers.admits(old, &hello(5, 50).header, Some(&layout()), ME),
            "a later generation was heard of"
        );
        assert_eq!(peers.connect(new, &hello(6, 60).header), Some(old));
        assert!(peers.admits(new, &hello(6, 60).header, Some(&layout()), ME));
        assert_eq!(peers.disconnect(new), Some(PEER));
    }

    #[test]
    fn a_frame_counts_only_in_our_cluster_and_incarnation_and_if_it_is_meant_for_us() {
        let mut peers = knowing(5, 50);
        let link = LinkId(1);
        peers.connect(link, &hello(5, 50).header);
        type Spoil = fn(&mut Header);
        let cases: [(&str, Spoil, bool); 7] = [
            ("as it is", |_| {}, true),
            ("another epoch", |h| h.epoch = Epoch(2), true),
            ("another cluster", |h| h.cluster = ClusterId([8; 16]), false),
            ("another recovery", |h| h.incarnation.number += 1, false),
            ("another attempt at it", |h| h.incarnation.id += 1, false),
            ("another node", |h| h.to = PEER, false),
            ("a later generation than that of its link", |h| h.generation.0 += 1, false),
        ];
        for (what, spoil, counts) in cases {
            let mut header = hello(5, 50).header;
            spoil(&mut header);
            assert_eq!(peers.admits(link, &header, Some(&layout()), ME), counts, "{what}");
        }
    }

    #[test]
    fn a_generation_that_was_only_heard_of_makes_earlier_ones_stale() {
        let mut peers = knowing(5, 50);
        assert!(!peers.is_news(PEER, Generation(5)));
        assert_eq!(peers.greet(&hello(6, 60), Some(&layout()), ME), Ok(Greeting::Newer));
        peers.hear(PEER, Generation(7));
        assert!(!peers.is_news(PEER, Generation(7)), "heard once");
        assert!(!peers.is_current(&hello(6, 60)), "it was overtaken while it was being saved");
        for (generation, nonce) in [(5, 50), (6, 60)] {
            let stale = Err(LinkRefusal::StaleGeneration);
            assert_eq!(peers.greet(&hello(generation, nonce), Some(&layout()), ME), stale);
        }
        assert_eq!(peers.greet(&hello(7, 70), Some(&layout()), ME), Ok(Greeting::Newer));
    }
}
