//! One node that is linked to others, each of which speaks under an epoch of its own.

use keystore_core::effect::{Effect, Event, LinkId, RequestId, SaveId, SavedState};
use keystore_core::id::{Epoch, NodeId, Nonce};
use keystore_core::layout::Layout;
use keystore_core::message::{Header, Hello, Message};
use keystore_core::node::{Node, Settings, Start};

use crate::bench::{header, now, start};

pub(crate) struct Linked {
    pub(crate) node: Node,
}

impl Linked {
    pub(crate) fn new(membership: (Layout, bool), peers: &[(NodeId, u64)]) -> Self {
        Self::started(Start { membership: Some(membership), ..start(true, Settings::default()) }, peers)
    }

    pub(crate) fn started(start: Start, peers: &[(NodeId, u64)]) -> Self {
        let mut linked = Self { node: Node::new(start, now(0)) };
        for (peer, epoch) in peers {
            linked.greet(Self::header(*peer, *epoch));
        }
        linked
    }

    /// A peer says hello; what is to be saved first is.
    pub(crate) fn greet(&mut self, header: Header) -> Vec<Effect> {
        let hello = Hello { header, lineage: Nonce(header.generation.0).into() };
        let mut effects = self.step(Event::LinkOffered { link: Self::link(header.from), hello });
        for (save, _) in saves(&effects) {
            effects.extend(self.step(Event::Saved { save }));
        }
        effects
    }

    pub(crate) fn link(peer: NodeId) -> LinkId {
        LinkId(peer.0[0].into())
    }

    pub(crate) fn header(from: NodeId, epoch: u64) -> Header {
        Header { epoch: Epoch(epoch), from, ..header(7) }
    }

    pub(crate) fn step(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.node.step(now(1), event, &mut effects);
        effects
    }

    pub(crate) fn tick(&mut self, at_ms: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.node.step(now(at_ms), Event::Tick, &mut effects);
        effects
    }

    pub(crate) fn frame(&mut self, (from, epoch): (NodeId, u64), message: Message) -> Vec<Effect> {
        let header = Self::header(from, epoch);
        self.step(Event::Frame { link: Self::link(from), header, messages: vec![message] })
    }

    pub(crate) fn propose(&mut self, expected: Epoch, layout: &Layout) -> Vec<Effect> {
        self.step(Event::Propose { request: RequestId(8), expected, layout: Box::new(layout.clone()) })
    }

    pub(crate) fn learn(&mut self, from: (NodeId, u64), layout: &Layout) -> Vec<Effect> {
        self.frame(from, Message::Layout { layout: Box::new(layout.clone()), identities: Vec::new() })
    }
}

pub(crate) fn saves(effects: &[Effect]) -> Vec<(SaveId, SavedState)> {
    let save = |effect: &Effect| match effect {
        Effect::Save { save, state } => Some((*save, state.clone())),
        _ => None,
    };
    effects.iter().filter_map(save).collect()
}
