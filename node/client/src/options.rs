//! What a request may ask for, and what it brings back.

use std::time::Duration;

use bytes::Bytes;
use keystore_core::causal::OperationId;
use keystore_core::quorum::{Consistency, Durability};
use keystore_core::stamp::Stamp;

/// The deadline of requests where neither they nor the client name one.
pub(crate) const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// Which nodes requests are sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Routing {
    /// To an owner of the key, whose address the cluster tells: one hop less. Every node has to be reachable.
    #[default]
    Direct,
    /// To the given endpoints only: any node coordinates. For clients behind a Service or a port-forward.
    Proxy,
}

/// How long a client goes on with a request that may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Patience {
    /// All nodes in turn, again and again with growing pauses, for about two seconds: longer than the gap that the
    /// death of a node leaves. For services.
    #[default]
    Rounds,
    /// Each node once: for a person who waits.
    OneRound,
}

/// `None` means the client's default, and in the end the cluster's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadOptions {
    pub consistency: Option<Consistency>,
    pub timeout: Option<Duration>,
}

/// `None` means the client's default, and in the end the cluster's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WriteOptions {
    pub consistency: Option<Consistency>,
    pub durability: Option<Durability>,
    pub timeout: Option<Duration>,
    /// How long the value lives, from 1 ms to 10 years; `None`: for ever. A delete has none.
    pub ttl: Option<Duration>,
    /// Of a write in a keyspace of mode siblings.
    pub causal: Option<Causal>,
}

impl WriteOptions {
    /// For a write in a keyspace of mode siblings that replaces nothing: it becomes a sibling of what is there.
    pub fn causal() -> Self {
        Self { causal: Some(Causal::default()), ..Self::default() }
    }

    /// For a write in a keyspace of mode siblings that replaces what an earlier answer has shown.
    pub fn replacing(context: Context) -> Self {
        let causal = Causal { context: Some(context), operation: None };
        Self { causal: Some(causal), ..Self::default() }
    }
}

/// That a write is one of a keyspace of mode siblings, which the client cannot know by itself: it then bears an
/// operation id, by which nodes tell a retry from another write, and is sent again even where its outcome is
/// unknown. Not so a delete without a context: it removes whatever it finds, the second time perhaps what was
/// written after the first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Causal {
    /// What the write replaces. `None`: a put replaces nothing, and a delete removes whatever a quorum holds.
    pub context: Option<Context>,
    /// `None`: the client draws one for each write. To be given where a program itself repeats a write, and never
    /// for two different ones: of those only the first would be kept.
    pub operation: Option<OperationId>,
}

/// What a client has seen of one key, in a form that only nodes understand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context(Bytes);

impl Context {
    /// From the bytes of an earlier one; whether they make sense is for a node to say.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }

    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// On the wire no context is an empty one.
    pub(crate) fn from_wire(bytes: Bytes) -> Option<Self> {
        (!bytes.is_empty()).then_some(Self(bytes))
    }
}

/// A value and its place in the order of all writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StampedValue {
    pub value: Bytes,
    pub stamp: Stamp,
}

/// The answer to a get: none where the key is missing; more than one only in a keyspace of mode siblings, in the
/// order of their stamps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Read {
    pub values: Vec<StampedValue>,
    /// In a keyspace of mode siblings: for a write that replaces these values.
    pub context: Option<Context>,
}

impl Read {
    /// The one with the highest stamp.
    pub fn value(&self) -> Option<&StampedValue> {
        self.values.last()
    }
}

/// The answer to a put or delete that was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub stamp: Stamp,
    /// How many replicas are known to hold it.
    pub acks: u32,
    /// The least durable of those.
    pub durability: Durability,
    /// In a keyspace of mode siblings: for a write that replaces this one, and what this one replaced.
    pub context: Option<Context>,
}

/// What an operation of a batch brings back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Read(Read),
    Written(Written),
}

/// Which keys a scan returns, and how.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScanOptions {
    /// Only keys that begin with this.
    pub prefix: Bytes,
    /// Goes on after this key, which need not exist.
    pub after: Option<Bytes>,
    /// How many keys at most; `None`: all.
    pub limit: Option<u32>,
    pub consistency: Option<Consistency>,
    /// How long to wait for more keys before the scan fails; the client's default by default.
    pub timeout: Option<Duration>,
}

/// One key of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: Bytes,
    pub read: Read,
}
