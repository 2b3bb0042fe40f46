//! The boundary of the store: what happens to a node ([`Event`]) and what it wants done ([`Effect`]).
//!
//! Whoever drives a [`crate::node::Node`] feeds it events one at a time and performs the effects in the order
//! given. Answers to effects come back as events; they may come at once or much later, in any order except where
//! a variant says otherwise. Losing an answer (a crash) must lose the whole node's memory with it.

use bytes::Bytes;

use crate::id::NodeId;
use crate::layout::Layout;
use crate::message::{Header, Hello, Message, Refusal};
use crate::partition::RecordKey;
use crate::peers::{LinkRefusal, PeerIdentities};
use crate::quorum::{Consistency, Durability};
use crate::record::Record;
use crate::stamp::Stamp;

/// The time at which an event is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// Milliseconds of a clock that never goes back, from any origin; compared within one process only.
    pub mono_ms: u64,
    /// Milliseconds since the Unix epoch by the wall clock, which may jump.
    pub wall_ms: u64,
}

/// Names a client's or administrator's request; chosen by the driver, unique among those under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Names a connection to another node; chosen by the driver, never used again in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LoadId(pub u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitId(pub u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SaveId(pub u64);

/// Something that happened to the node.
#[derive(Debug, Clone)]
pub enum Event {
    /// A client asks for something.
    Client(ClientRequest),
    /// An administrator gives the cluster its first layout.
    Init { request: RequestId, layout: Layout },
    /// The other side of a new connection has said hello. Nothing more may be read from it until the node has
    /// answered with `AcceptLink` or `RefuseLink`.
    LinkOffered { link: LinkId, hello: Hello },
    /// A connection is gone; what was sent on it and not answered may or may not have arrived.
    LinkClosed { link: LinkId },
    /// Messages of one frame from an accepted connection.
    Frame { link: LinkId, header: Header, messages: Vec<Message> },
    /// The answer to `Load`.
    Loaded { load: LoadId, record: Result<Option<Record>, Damaged> },
    /// The answer to `Commit`; answers come in the order of the commits.
    Committed { commit: CommitId, outcome: Result<Durability, CommitRefused> },
    /// The answer to `Save`: it is on disk, synced.
    Saved { save: SaveId },
    /// The disk has gone past its hard limit, or is below it again.
    DiskFull(bool),
    /// The process is about to stop: no new client requests, what is under way goes on.
    Drain,
    /// The time that [`crate::node::Node::next_wakeup_ms`] named has come.
    Tick,
}

/// What the node wants done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// The end of a request.
    Answer { request: RequestId, answer: Answer },
    /// Send on an accepted link. If it cannot be queued, close the link and say `LinkClosed`.
    Send { link: LinkId, header: Header, message: Message },
    /// The other side may be talked to; it is answered with this hello unless it has had ours already.
    AcceptLink { link: LinkId, hello: Hello },
    /// Say why and close.
    RefuseLink { link: LinkId, refusal: LinkRefusal },
    /// Close a link that a newer one has replaced, or whose frames do not fit; `LinkClosed` need not follow.
    CloseLink { link: LinkId },
    /// Read a record from the engine: only what was committed.
    Load { load: LoadId, key: RecordKey },
    /// Append to the log, make it as durable as asked, store it, then say `Committed`.
    Commit(Commit),
    /// Replace a small durable file and sync it.
    Save { save: SaveId, state: SavedState },
    /// Something that cannot happen has happened, or a person should know.
    Alarm(Alarm),
}

/// A record that replaces what is stored under its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    pub id: CommitId,
    pub key: RecordKey,
    pub record: Record,
    pub durability: Durability,
}

/// The small states that live in files of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SavedState {
    /// No stamp with these or later milliseconds has been issued.
    StampCeiling(u64),
    /// The layout that this node has accepted, and whether all members have.
    Layout { layout: Layout, decided: bool },
    /// The highest identity seen of each peer.
    Peers(PeerIdentities),
}

/// The engine holds something under a key that is not a whole record of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damaged;

/// Nothing of the commit was written: the disk is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitRefused;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alarm {
    /// Two different records of one key bear one stamp.
    EqualStamps { key: RecordKey, stamp: Stamp },
    /// A record failed its checksum.
    DamagedRecord { key: RecordKey },
    /// A peer says that our generation is older than one it has seen: our disk was rolled back or cloned.
    StaleGeneration { peer: NodeId },
}

#[derive(Debug, Clone)]
pub struct ClientRequest {
    pub id: RequestId,
    pub operation: Operation,
    /// `None`: the node's default for this kind of operation.
    pub consistency: Option<Consistency>,
    /// `None`: the node's default. Reads have none.
    pub durability: Option<Durability>,
    pub deadline: Deadline,
}

/// One moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    pub mono_ms: u64,
    pub wall_ms: u64,
}

impl Deadline {
    pub fn after(now: Now, timeout_ms: u64) -> Self {
        Self {
            mono_ms: now.mono_ms.saturating_add(timeout_ms),
            wall_ms: now.wall_ms.saturating_add(timeout_ms),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    Get { key: RecordKey },
    Put { key: RecordKey, value: Bytes },
    Delete { key: RecordKey },
}

impl Operation {
    pub fn key(&self) -> &RecordKey {
        match self {
            Self::Get { key } | Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The merged record; a tombstone is a missing key.
    Read(Option<Record>),
    Written {
        stamp: Stamp,
        acks: usize,
        durability: Durability,
    },
    Failed(Failure),
    /// The first layout is accepted.
    InitAccepted,
    InitRefused(InitRefusal),
}

/// A request that did not do what was asked; what may have been applied follows from the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    pub reason: FailureReason,
    pub acks: usize,
    pub needed: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureReason {
    /// Nothing was applied: too few replicas can be reached.
    QuorumUnreachable,
    /// Nothing was applied: every replica asked refused, this being the first reason given.
    Refused(Refusal),
    /// Nothing was applied: too many requests are under way here.
    Overloaded,
    /// Nothing was applied: this node is about to stop.
    Draining,
    NotInitialized,
    KeyspaceUnknown,
    /// A write whose fate cannot be told.
    OutcomeUnknown,
    /// The deadline came first: a read has no answer, a write may or may not have been applied.
    DeadlineExceeded,
}

/// Why a first layout was not accepted. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InitRefusal {
    #[error("this node has accepted another first layout, of cluster {0}")]
    OtherCluster(crate::id::ClusterId),
    #[error("this node, {0}, is no member of that layout, or is named with another actor")]
    NoMember(NodeId),
    #[error("the first layout has epoch 1, not {0}")]
    NotFirst(crate::id::Epoch),
    #[error(transparent)]
    Invalid(#[from] crate::layout::LayoutError),
}
