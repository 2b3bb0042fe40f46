//! The boundary of the store: what happens to a node ([`Event`]) and what it wants done ([`Effect`]).
//!
//! Whoever drives a [`crate::node::Node`] feeds it events one at a time and performs the effects in the order
//! given. Answers to effects come back as events; they may come at once or much later, in any order except where
//! a variant says otherwise. Losing an answer (a crash) must lose the whole node's memory with it.

use bytes::Bytes;

use crate::causal::OperationId;
use crate::id::{Epoch, Generation, Lineage, NodeId};
use crate::layout::Layout;
use crate::message::{Header, Hello, Message, Page, Refusal, ScanRange};
use crate::partition::{Partition, RecordKey};
use crate::paxos::Votes;
use crate::peers::{LinkRefusal, PeerIdentities};
use crate::quorum::{Consistency, Durability};
use crate::record::Record;
use crate::recovery::RecoveryRefusal;
use crate::stamp::Stamp;
use crate::transfer::Merges;

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
    /// An administrator wants this layout to follow the one of epoch `expected`.
    Propose { request: RequestId, expected: Epoch, layout: Box<Layout> },
    /// An administrator wants the cluster to go on under this layout, whatever it has lost.
    Recover { request: RequestId, layout: Box<Layout> },
    /// The other side of a new connection has said hello. Nothing more may be read from it until the node has
    /// answered with `AcceptLink` or `RefuseLink`.
    LinkOffered { link: LinkId, hello: Hello },
    /// A connection is gone; what was sent on it and not answered may or may not have arrived.
    LinkClosed { link: LinkId },
    /// A member has refused a connection on which we had said hello as this generation.
    HelloRefused { peer: NodeId, generation: Generation, refusal: LinkRefusal },
    /// Messages of one frame from an accepted connection.
    Frame { link: LinkId, header: Header, messages: Vec<Message> },
    /// The answer to `Load`.
    Loaded { load: LoadId, record: Result<Option<Record>, Damaged> },
    /// The answer to `Scan`.
    Scanned { load: LoadId, page: Result<Page, NoPage> },
    /// The answer to `Commit`; answers come in the order of the commits.
    Committed { commit: CommitId, outcome: Result<Durability, NotCommitted> },
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
    /// Read a page of records from the engine: only what was committed.
    Scan { load: LoadId, range: ScanRange },
    /// Append to the log, make it as durable as asked, store it, then say `Committed`.
    Commit(Commit),
    /// Replace a small durable file and sync it.
    Save { save: SaveId, state: SavedState },
    /// Something that cannot happen has happened, or a person should know.
    Alarm(Alarm),
}

/// What is to be appended to the log and stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    pub id: CommitId,
    pub entry: Entry,
    pub durability: Durability,
}

/// One input of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// What came of merging a write with what was stored under the key, or was being committed: it takes its place.
    /// Read once more from a log it is merged instead, since what is stored may be newer. Where the place itself is
    /// damaged, nothing changes, and the commit ends so.
    Record { key: RecordKey, record: Record },
    /// Takes the place of what is stored under the key, damaged or not; `None` leaves nothing there.
    Replace { key: RecordKey, record: Option<Record> },
    /// A hint to be kept; one for the same target and key takes its place.
    Hint(Hint),
    /// The hint of this target and key is no longer needed.
    HintDone { target: NodeId, key: RecordKey },
}

impl Entry {
    pub(crate) fn key(&self) -> &RecordKey {
        match self {
            Entry::Record { key, .. } | Entry::Replace { key, .. } | Entry::HintDone { key, .. } => key,
            Entry::Hint(hint) => &hint.key,
        }
    }
}

/// That a node may have missed a write of a key, which this node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    pub target: NodeId,
    pub key: RecordKey,
    /// Wall clock, milliseconds since the Unix epoch.
    pub since_ms: u64,
}

/// The small states that live in files of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SavedState {
    /// No stamp with these or later milliseconds has been issued.
    StampCeiling(u64),
    /// The layout that this node has accepted, and whether it is in force: no epoch before it counts here again.
    Layout { layout: Layout, decided: bool },
    /// What this node has promised and voted for.
    Votes(Votes),
    /// How far it has merged what others held before data moved.
    Merges(Merges),
    /// The highest identity seen of each peer.
    Peers(PeerIdentities),
    /// A generation that was raised while the process runs, and since which one nothing was lost.
    Generation { generation: Generation, trusted_since: Generation, lineage: Lineage },
    /// This data directory was rolled back or cloned: no process may start from it again.
    SetAside,
}

/// The engine holds something under a key that is not a whole record of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damaged;

/// Why the engine has no page of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoPage {
    /// The record of this key is damaged.
    Damaged(RecordKey),
    /// A stretch of the range cannot be read; nobody knows whose records are in it.
    Unreadable,
}

/// Why a commit is not held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotCommitted {
    /// Nothing of it was written: the disk is full.
    Refused,
    /// It is in the log, and the engine has not taken it, for what it holds under the key is damaged.
    Damaged,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alarm {
    /// Two different records of one key bear one stamp.
    EqualStamps { key: RecordKey, stamp: Stamp },
    /// A record failed its checksum: this replica is in doubt for the key.
    DamagedRecord { key: RecordKey },
    /// What other replicas hold has taken the place of a damaged record.
    Healed { key: RecordKey },
    /// Something of this partition cannot be read, or more is damaged than can be kept in mind: this replica is in doubt
    /// for all of it.
    DoubtedPartition { partition: Partition },
    /// What enough other replicas hold of it is merged, and all that is held can be read.
    HealedPartition { partition: Partition },
    /// A peer has seen a later start of our data directory, or another process that uses a copy of it: the disk was
    /// rolled back or cloned. It is set aside by now, and this process has to end.
    StaleGeneration { peer: NodeId },
    /// This node is no member any more, or was given up as lost: its disk is set aside by now, and this process has to
    /// end.
    Departed { epoch: Epoch },
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
    Get {
        key: RecordKey,
    },
    /// `ttl_ms`: how long the value is to live, from now on.
    Put {
        key: RecordKey,
        value: Bytes,
        ttl_ms: Option<u64>,
        causal: Causal,
    },
    Delete {
        key: RecordKey,
        causal: Causal,
    },
    /// One page of one partition.
    Scan {
        keyspace: String,
        range: ScanRange,
    },
}

/// What a write in a keyspace that keeps siblings may bear.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Causal {
    /// The token of an earlier answer: what the client has seen, and replaces.
    pub context: Option<Bytes>,
    /// The same for each retry of one write.
    pub operation: Option<OperationId>,
}

impl Answer {
    /// About how much memory it takes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Read(values) => values.bytes(),
            Self::Scanned { entries, .. } => {
                entries.iter().map(|(key, values)| key.encoded().len() + values.bytes()).sum()
            }
            Self::Written { context, .. } => context.as_ref().map_or(0, Bytes::len),
            Self::Failed(_)
            | Self::InitAccepted
            | Self::InitRefused(_)
            | Self::Decided(_)
            | Self::ProposalFailed(_)
            | Self::RecoveryAccepted
            | Self::RecoveryRefused(_) => 0,
        }
    }
}

impl Values {
    fn bytes(&self) -> usize {
        let values: usize = self.values.iter().map(|(value, _)| value.len()).sum();
        values + self.context.as_ref().map_or(0, Bytes::len)
    }
}

impl Operation {
    pub fn keyspace(&self) -> &str {
        match self {
            Self::Get { key } | Self::Put { key, .. } | Self::Delete { key, .. } => key.keyspace(),
            Self::Scan { keyspace, .. } => keyspace,
        }
    }

    pub fn is_write(&self) -> bool {
        match self {
            Self::Put { .. } | Self::Delete { .. } => true,
            Self::Get { .. } | Self::Scan { .. } => false,
        }
    }
}

/// What a reader sees of one key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Values {
    /// In the order of their stamps; none if there is no such key.
    pub values: Vec<(Bytes, Stamp)>,
    /// In a keyspace that keeps siblings: the token for a write that replaces these.
    pub context: Option<Bytes>,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Read(Values),
    Written {
        stamp: Stamp,
        acks: usize,
        durability: Durability,
        /// In a keyspace that keeps siblings: the token for a write that replaces this one and what it replaced.
        context: Option<Bytes>,
    },
    /// The keys that have values, in the order of [`RecordKey::place`], and after which key the next page begins;
    /// `None` where the partition has no more.
    Scanned {
        entries: Vec<(RecordKey, Values)>,
        next: Option<RecordKey>,
    },
    Failed(Failure),
    /// The first layout is accepted.
    InitAccepted,
    InitRefused(InitRefusal),
    /// This layout is decided: the one that was proposed, or one that was voted for before.
    Decided(Box<Layout>),
    ProposalFailed(ProposalError),
    /// The layout is accepted; it is in force once all that are left have accepted it.
    RecoveryAccepted,
    RecoveryRefused(RecoveryRefusal),
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
    /// The context is none that was given for this key, or the keyspace keeps no siblings.
    BadContext,
    /// A write whose fate cannot be told.
    OutcomeUnknown,
    /// The deadline came first: a read has no answer, a write may or may not have been applied.
    DeadlineExceeded,
}

/// Why a proposed layout is not known to be decided.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposalError {
    #[error("this node serves no cluster yet")]
    NotInitialized,
    #[error("the layout in force has epoch {now}, not {expected}")]
    Epoch { now: Epoch, expected: Epoch },
    #[error("another proposal is under way here")]
    Busy,
    /// Nobody was asked.
    #[error("the layout cannot follow: {0}")]
    Refused(#[from] crate::paxos::VoteError),
    #[error(
        "the layout cannot follow yet: epoch {epoch} is not acknowledged by {node}, which can be reached"
    )]
    Unacknowledged { node: NodeId, epoch: Epoch },
    #[error("the layout cannot follow yet: {node} still drops what it holds of partitions that it has left")]
    StillDrops { node: NodeId },
    #[error(
        "the layout cannot follow yet: what {node} has left may still be asked for, or be the last copy that can be read"
    )]
    StillNeeded { node: NodeId },
    #[error("the voters refuse the layout: {0}")]
    Voted(String),
    /// It may be decided all the same, by what the voters that were asked have on disk.
    #[error("too few of the voters have answered in time: the layout may be decided later")]
    Unknown,
}

/// Why a first layout was not accepted. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InitRefusal {
    #[error("this node has accepted another first layout, of cluster {0}")]
    OtherCluster(crate::id::ClusterId),
    #[error("this node, {0}, is no member of that layout, or is named with another actor")]
    NoMember(NodeId),
    #[error("the first layout has epoch 1, not {0}")]
    NotFirst(Epoch),
    #[error(transparent)]
    Invalid(#[from] crate::layout::LayoutError),
}
