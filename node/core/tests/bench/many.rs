//! One node of a cluster of several on the bench, driven from the seats of all others.

use std::collections::BTreeMap;

use keystore_core::effect::{CommitId, Damaged, Effect, Event, LinkId, SaveId, SavedState};
use keystore_core::held::Held;
use keystore_core::id::{Generation, NodeId, Nonce};
use keystore_core::layout::Layout;
use keystore_core::message::{
    Call, Header, Hello, Message, Noted, Origin, ReadOutcome, ScanRange, Want, Write,
};
use keystore_core::node::{Node, Settings, Start};
use keystore_core::partition::encoded_prefix;
use keystore_core::quorum::{Consistency, Durability};
use keystore_core::record::Record;

use super::effects::{commit_in, load_in};
use super::{ME, key_of, layout_of, mint, now, put, record, request, start};

pub(crate) const A: NodeId = NodeId([2; 16]);
pub(crate) const B: NodeId = NodeId([3; 16]);

/// Links of its peers come and go one by one, and time is told.
pub(crate) struct Bench {
    pub(crate) node: Node,
    members: u8,
    pub(crate) now_ms: u64,
    generation: u64,
    /// Of each peer the link in use, and the generation that it speaks as.
    pub(crate) links: BTreeMap<NodeId, (LinkId, u64)>,
    last_link: u64,
    pub(crate) calls: u64,
}

impl Bench {
    /// The node of three serves, linked to both others.
    pub(crate) fn new() -> Self {
        Self::of(3)
    }

    pub(crate) fn of(members: u8) -> Self {
        let start =
            Start { membership: Some((layout_of(members), true)), ..start(true, Settings::default()) };
        let node = Node::new(start, now(0));
        let mut bench =
            Self { node, members, now_ms: 0, generation: 1, links: BTreeMap::new(), last_link: 0, calls: 0 };
        for n in 2..=members {
            bench.link(NodeId([n; 16]), 7);
        }
        bench
    }

    pub(crate) fn step(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.node.step(now(self.now_ms), event, &mut effects);
        effects
    }

    pub(crate) fn header(&self, from: NodeId, generation: u64) -> Header {
        let Layout { cluster, incarnation, epoch, .. } = layout_of(self.members);
        Header { cluster, incarnation, epoch, from, to: ME, generation: Generation(generation) }
    }

    pub(crate) fn hello(&self, from: NodeId, generation: u64) -> Hello {
        Hello { header: self.header(from, generation), lineage: Nonce(generation).into() }
    }

    /// A peer says hello, and its identity is saved if it has to be. Returns all effects but saves.
    pub(crate) fn link(&mut self, peer: NodeId, generation: u64) -> Vec<Effect> {
        self.last_link += 1;
        let link = LinkId(self.last_link);
        self.links.insert(peer, (link, generation));
        let hello = self.hello(peer, generation);
        let mut effects = self.step(Event::LinkOffered { link, hello });
        let mut done = Vec::new();
        while let Some(effect) = (!effects.is_empty()).then(|| effects.remove(0)) {
            match effect {
                Effect::Save { save, state: SavedState::Peers(_) } => {
                    effects.extend(self.step(Event::Saved { save }));
                }
                other => done.push(other),
            }
        }
        done
    }

    pub(crate) fn frame(&mut self, from: NodeId, message: Message) -> Vec<Effect> {
        let (link, generation) = self.links[&from];
        let header = self.header(from, generation);
        self.step(Event::Frame { link, header, messages: vec![message] })
    }

    pub(crate) fn call(&mut self) -> Call {
        self.calls += 1;
        Call { operation: self.calls, attempt: 1 }
    }

    pub(crate) fn write(&mut self, key: &str, millis: u64, durability: Durability) -> (Call, Vec<Effect>) {
        let (call, key, record) = (self.call(), key_of(key), record(millis));
        let write = Write { call, key, record, origin: Origin::Repair, durability };
        (call, self.frame(A, Message::Write(write)))
    }

    pub(crate) fn read(&mut self, key: &str) -> (Call, Vec<Effect>) {
        let call = self.call();
        (call, self.frame(A, Message::Read { call, key: key_of(key), want: Want::Full }))
    }

    /// A write that is to become a sibling of what is under the key, each time another one.
    pub(crate) fn mint(&mut self, key: &str) -> (Call, Vec<Effect>) {
        let call = self.call();
        (call, self.frame(A, Message::Mint(mint(call, key_of(key)))))
    }

    /// A page of the partition of a key, for a reader or for whoever takes it over and holds so much of it.
    pub(crate) fn scan(&mut self, key: &str, held: Option<Held>) -> (Call, Vec<Effect>) {
        let call = self.call();
        let partition = key_of(key).partition(layout_of(self.members).partitions);
        let prefix = encoded_prefix("default", b"").unwrap();
        let range = ScanRange { partition, prefix, after: None, limit: 10 };
        let mut effects = self.frame(A, Message::Scan { call, range, held });
        if effects.is_empty() {
            effects = self.step(Event::Tick);
        }
        (call, effects)
    }

    /// What was asked for among the effects is read; returns what follows.
    pub(crate) fn loaded(
        &mut self,
        effects: &[Effect],
        record: Result<Option<Record>, Damaged>,
    ) -> Vec<Effect> {
        self.step(Event::Loaded { load: load_in(effects), record })
    }

    /// What was to be committed among the effects is synced; returns what follows.
    pub(crate) fn synced(&mut self, effects: &[Effect]) -> Vec<Effect> {
        self.committed(commit_in(effects).unwrap().id, Durability::Synced)
    }

    /// A read meets a damaged record; returns what follows.
    pub(crate) fn damage(&mut self, key: &str) -> Vec<Effect> {
        let (_, effects) = self.read(key);
        self.loaded(&effects, Err(Damaged))
    }

    /// As `damage`, and the generation that follows is saved.
    pub(crate) fn raise(&mut self, key: &str) -> Vec<Effect> {
        let effects = self.damage(key);
        let (save, generation) = raise_in(&effects).unwrap();
        self.generation = generation;
        self.step(Event::Saved { save })
    }

    /// As `raise`, and both peers are linked again: returns the call by which they are asked.
    pub(crate) fn ask(&mut self, key: &str) -> Call {
        self.raise(key);
        self.link(A, 7);
        let effects = self.link(B, 7);
        let asked = asked_in(&effects);
        assert_eq!(asked.len(), 2, "both others are asked: {effects:?}");
        asked[0].1
    }

    pub(crate) fn answer(&mut self, from: NodeId, call: Call, outcome: ReadOutcome) -> Vec<Effect> {
        self.frame(from, Message::ReadAnswer { call, outcome, noted: Vec::new() })
    }

    pub(crate) fn tick(&mut self) -> Vec<Effect> {
        self.now_ms = self.now_ms.max(self.node.next_wakeup_ms().unwrap());
        self.step(Event::Tick)
    }

    pub(crate) fn committed(&mut self, commit: CommitId, durability: Durability) -> Vec<Effect> {
        self.step(Event::Committed { commit, outcome: Ok(durability) })
    }

    pub(crate) fn put(&mut self, key: &str, level: Consistency) -> Vec<Effect> {
        request((put(key_of(key)), Some(level)), self.now_ms, |event| self.step(event))
    }

    pub(crate) fn doubted(&self) -> usize {
        self.node.status(now(self.now_ms)).doubted_keys
    }
}

/// What somebody has noted of the replicas of a key: 7 of all but these.
pub(crate) fn noted(key: &str, but: &[(NodeId, u64)]) -> Noted {
    let layout = layout_of(3);
    let replicas = layout.replicas(key_of(key).partition(layout.partitions)).into_iter();
    let generation = |node| but.iter().find(|(of, _)| *of == node).map_or(7, |(_, generation)| *generation);
    replicas.map(|node| Generation(generation(node))).collect()
}

/// The save of a new generation.
pub(crate) fn raise_in(effects: &[Effect]) -> Option<(SaveId, u64)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Save { save, state: SavedState::Generation { generation, trusted_since, lineage } } => {
            assert_eq!(generation, trusted_since);
            assert_eq!(lineage.iter().count() as u64, generation.0, "one nonce for each");
            Some((*save, generation.0))
        }
        _ => None,
    })
}

/// Who is asked for what it holds.
pub(crate) fn asked_in(effects: &[Effect]) -> Vec<(NodeId, Call, Generation)> {
    let asked = |effect: &Effect| match effect {
        Effect::Send { header, message: Message::Read { call, want: Want::Full, .. }, .. } => {
            Some((header.to, *call, header.generation))
        }
        _ => None,
    };
    effects.iter().filter_map(asked).collect()
}
