//! One node on a bench: a test says what happens to it, and sees what it wants done.

#![allow(dead_code, reason = "each test uses a part of it")]

pub(crate) mod effects;
pub(crate) mod many;

use std::collections::BTreeMap;

use bytes::Bytes;
use keystore_core::causal::{Change, OperationId};
use keystore_core::effect::{
    Causal, ClientRequest, CommitId, Damaged, Deadline, Effect, Event, LinkId, LoadId, Now, Operation,
    RequestId, SaveId, SavedState,
};
use keystore_core::held::{Digests, Held};
use keystore_core::id::{Actor, ClusterId, Generation, Incarnation, NodeId, Nonce};
use keystore_core::layout::{FirstLayout, KeyspaceMode, Layout, Member};
use keystore_core::message::{Call, Header, Hello, Message, Mint, Origin, Write};
use keystore_core::node::{Node, Settings, Start};
use keystore_core::partition::{PartitionCount, RecordKey};
use keystore_core::quorum::{Consistency, Durability};
use keystore_core::record::{Body, Record};
use keystore_core::stamp::Stamp;

pub(crate) const WALL_MS: u64 = 1_700_000_000_000;
pub(crate) const ME: NodeId = NodeId([1; 16]);
pub(crate) const PEER: NodeId = NodeId([2; 16]);
pub(crate) const LINK: LinkId = LinkId(1);
/// Whoever takes a partition over says so of what it has nothing of.
pub(crate) const NOTHING_HELD: Held = Held { until: None, digests: Digests::Each(Vec::new()) };

pub(crate) struct Bench {
    pub(crate) node: Node,
    /// The time, since the node was started.
    pub(crate) at_ms: u64,
    /// How far its wall clock has jumped since.
    pub(crate) wall_jump_ms: u64,
    /// Of the other node.
    pub(crate) link: LinkId,
    calls: u64,
}

impl Bench {
    /// A node of two that serves, linked to the other.
    pub(crate) fn new() -> Self {
        Self::with(Settings::default())
    }

    pub(crate) fn with(settings: Settings) -> Self {
        let mut bench = Self::started(start(true, settings));
        let effects = bench.link();
        assert!(matches!(effects[0], Effect::AcceptLink { link: LINK, .. }));
        bench
    }

    /// Its process has just started: nobody is linked.
    pub(crate) fn started(start: Start) -> Self {
        Self { node: Node::new(start, now(0)), at_ms: 0, wall_jump_ms: 0, link: LINK, calls: 0 }
    }

    /// The other node is linked for the first time.
    pub(crate) fn link(&mut self) -> Vec<Effect> {
        let effects = self.step(Event::LinkOffered { link: LINK, hello: hello(7) });
        assert!(matches!(effects[..], [Effect::Save { save: SaveId(0), .. }]), "the identity is saved first");
        self.step(Event::Saved { save: SaveId(0) })
    }

    /// The other node is linked again.
    pub(crate) fn relink(&mut self) -> Vec<Effect> {
        self.link = LinkId(self.link.0 + 1);
        let effects = self.step(Event::LinkOffered { link: self.link, hello: hello(7) });
        assert!(matches!(effects[0], Effect::AcceptLink { .. }), "its identity is known: {effects:?}");
        effects
    }

    pub(crate) fn unlink(&mut self) -> Vec<Effect> {
        self.step(Event::LinkClosed { link: self.link })
    }

    /// Waits until the node wants to be woken, which has to be later than now.
    pub(crate) fn wake(&mut self) -> Vec<Effect> {
        let at_ms = self.node.next_wakeup_ms().unwrap();
        assert!(at_ms > self.at_ms, "the node would spin: {at_ms} at {}", self.at_ms);
        self.at_ms = at_ms;
        self.step(Event::Tick)
    }

    pub(crate) fn step(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        let Now { mono_ms, wall_ms } = now(self.at_ms);
        self.node.step(Now { mono_ms, wall_ms: wall_ms + self.wall_jump_ms }, event, &mut effects);
        effects
    }

    pub(crate) fn frame(&mut self, message: Message) -> Vec<Effect> {
        self.step(Event::Frame { link: self.link, header: header(7), messages: vec![message] })
    }

    /// The peer writes; returns the call and what the node wants done.
    pub(crate) fn write(&mut self, millis: u64, origin: Origin) -> (Call, Vec<Effect>) {
        self.calls += 1;
        let call = Call { operation: self.calls, attempt: 1 };
        let write =
            Write { call, key: key(), record: record(millis), origin, durability: Durability::Synced };
        (call, self.frame(Message::Write(write)))
    }

    pub(crate) fn client_write(&mut self, millis: u64) -> (Call, Vec<Effect>) {
        self.write(millis, Origin::Client { deadline_wall_ms: WALL_MS + 1_000 })
    }

    /// A client asks this node.
    pub(crate) fn request(&mut self, operation: Operation, level: Option<Consistency>) -> Vec<Effect> {
        request((operation, level), self.at_ms, |event| self.step(event))
    }

    pub(crate) fn loaded(&mut self, load: u64, record: Result<Option<Record>, Damaged>) -> Vec<Effect> {
        self.step(Event::Loaded { load: LoadId(load), record })
    }

    pub(crate) fn committed(&mut self, commit: u64) -> Vec<Effect> {
        self.step(Event::Committed { commit: CommitId(commit), outcome: Ok(Durability::Synced) })
    }
}

pub(crate) fn now(ms: u64) -> Now {
    Now { mono_ms: ms, wall_ms: WALL_MS + ms }
}

/// A client asks; if the node wants a ceiling saved before it issues a stamp, that is done.
pub(crate) fn request(
    (operation, consistency): (Operation, Option<Consistency>),
    at_ms: u64,
    mut step: impl FnMut(Event) -> Vec<Effect>,
) -> Vec<Effect> {
    let deadline = Deadline::after(now(at_ms), 5_000);
    let request = ClientRequest { id: RequestId(1), operation, consistency, durability: None, deadline };
    let mut effects = step(Event::Client(request));
    for effect in effects.clone() {
        if let Effect::Save { save, state: SavedState::StampCeiling(_) } = effect {
            effects.extend(step(Event::Saved { save }));
        }
    }
    effects
}

pub(crate) fn put(key: RecordKey) -> Operation {
    Operation::Put { key, value: Bytes::from_static(b"x"), ttl_ms: None, causal: Causal::default() }
}

pub(crate) fn key() -> RecordKey {
    key_of("k")
}

pub(crate) fn key_of(key: &str) -> RecordKey {
    RecordKey::new("default", key.as_bytes()).unwrap()
}

pub(crate) fn record(millis: u64) -> Record {
    let value = Bytes::from(millis.to_string());
    Record { stamp: Stamp::new(WALL_MS + millis, 0, Actor(2)), body: Body::Value(value) }
}

/// A write that is to become a sibling of what is under the key; each operation is another write.
pub(crate) fn mint(call: Call, key: RecordKey) -> Mint {
    let change = Change {
        stamp: record(1).stamp,
        operation: OperationId([call.operation as u8; 16]),
        context: Default::default(),
        value: Some(Bytes::from_static(b"x")),
        expires_ms: None,
    };
    Mint { call, key, change, deadline_wall_ms: WALL_MS + 60_000 }
}

pub(crate) fn layout() -> Layout {
    layout_of(2)
}

/// Each of the members holds everything; the first one is [`ME`].
pub(crate) fn layout_of(members: u8) -> Layout {
    first_layout(members, members.into())
}

pub(crate) fn first_layout(members: u8, replication_factor: usize) -> Layout {
    let member = |n: u8| Member {
        node: NodeId([n; 16]),
        actor: Actor(n.into()),
        name: String::new(),
        zone: String::new(),
        weight: 1,
        is_lost: false,
    };
    Layout::first(FirstLayout {
        cluster: ClusterId([9; 16]),
        incarnation: Incarnation { number: 1, id: 1 },
        partitions: PartitionCount::new(16).unwrap(),
        replication_factor,
        members: (1..=members).map(member).collect(),
        keyspaces: BTreeMap::from([("causal".to_owned(), KeyspaceMode::Siblings)]),
    })
    .unwrap()
}

pub(crate) fn start(decided: bool, settings: Settings) -> Start {
    Start {
        node: ME,
        actor: Actor(1),
        generation: Generation(1),
        lineage: Nonce(1).into(),
        stamp_ceiling_ms: 0,
        membership: Some((layout(), decided)),
        peers: Default::default(),
        votes: Default::default(),
        merges: Default::default(),
        trusted_since: Generation(0),
        hints: Vec::new(),
        highest: None,
        settings,
    }
}

pub(crate) fn header(generation: u64) -> Header {
    let Layout { cluster, incarnation, epoch, .. } = layout();
    Header { cluster, incarnation, epoch, from: PEER, to: ME, generation: Generation(generation) }
}

pub(crate) fn hello(generation: u64) -> Hello {
    Hello { header: header(generation), lineage: Nonce(generation).into() }
}
