//! What nodes say to each other. A frame bears the identity of both ends and many messages.
//!
//! The wire form lives in `keystore-proto`; who accepts which frame is decided in [`crate::peers`].

use bytes::Bytes;

use crate::causal::{Change, Dot};
use crate::held::{Held, Lacking};
use crate::id::{ClusterId, Epoch, Generation, Incarnation, Lineage, NodeId, Nonce};
use crate::layout::Layout;
use crate::partition::{Partition, PartitionCount, RecordKey};
use crate::paxos::{Ballot, Say};
use crate::quorum::Durability;
use crate::record::{Record, Version};
use crate::stamp::Stamp;
use crate::succession::Standing;

/// The first thing each side says on a new link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub header: Header,
    pub lineage: Lineage,
}

impl Hello {
    /// Who its sender is, whatever it was before.
    pub fn identity(&self) -> (Generation, Nonce) {
        (self.header.generation, self.lineage.present())
    }

    /// Under which nonce its sender was this generation; `None` if it has forgotten that, or was not there yet.
    pub fn nonce_at(&self, generation: Generation) -> Option<Nonce> {
        self.lineage.before(self.header.generation.0.checked_sub(generation.0)?)
    }
}

/// Borne by every frame: refused unless it fits the receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub cluster: ClusterId,
    pub incarnation: Incarnation,
    pub epoch: Epoch,
    pub from: NodeId,
    pub to: NodeId,
    /// The sender's generation: what it said before it may have lost something does not count after.
    pub generation: Generation,
}

/// Names a request among all that one coordinator has under way, and the attempt within it: an answer to an
/// earlier attempt (an earlier stamp) never counts towards a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    pub operation: u64,
    pub attempt: u32,
}

/// What the sender of an answer has durably noted of the partition's replicas, in the order of
/// [`crate::quorum::ReplicaSets::nodes`]: their generations, 0 where it has met none, its own among them. What a
/// replica said as an earlier generation does not count after this.
pub type Noted = Vec<Generation>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Write(Write),
    WriteAnswer {
        call: Call,
        outcome: WriteOutcome,
        noted: Noted,
    },
    /// A client's write in a keyspace that keeps siblings: the receiver gives it a dot.
    Mint(Mint),
    MintAnswer {
        call: Call,
        outcome: MintOutcome,
        noted: Noted,
    },
    Read {
        call: Call,
        key: RecordKey,
        want: Want,
    },
    ReadAnswer {
        call: Call,
        outcome: ReadOutcome,
        noted: Noted,
    },
    /// `held`: what the asker holds of the range, which it need not be sent.
    Scan {
        call: Call,
        range: ScanRange,
        held: Option<Held>,
    },
    ScanAnswer {
        call: Call,
        outcome: ScanOutcome,
        noted: Noted,
    },
    /// Asks for a page of whatever is left of a partition that is salvaged, of a node that may be in doubt itself; a
    /// `ScanAnswer` follows.
    Salvage {
        call: Call,
        range: ScanRange,
    },
    /// "Keep in mind that the target may have missed a write of this key, which you hold."
    Hint {
        target: NodeId,
        key: RecordKey,
    },
    /// "I have durably accepted the first layout of this digest." Asks for the same in return if so marked;
    /// `decided`: "and I know that all members have".
    InitAccepted {
        digest: u64,
        reply_wanted: bool,
        decided: bool,
    },
    /// A layout that is decided, and the identities of its members that its sender has durably noted, in their order:
    /// whoever joins has met none of them.
    Layout {
        layout: Box<Layout>,
        identities: Vec<(Generation, Nonce)>,
    },
    /// What the sender says of itself, as evidence for the layouts to come.
    Standing(Standing),
    /// About the decision on the layout of this epoch.
    Paxos {
        epoch: Epoch,
        ballot: Ballot,
        say: Box<Say>,
    },
}

impl Message {
    /// True of what is said about layouts: it counts whatever the epoch of its frame.
    pub fn is_of_layouts(&self) -> bool {
        match self {
            Self::InitAccepted { .. } | Self::Layout { .. } | Self::Standing(_) | Self::Paxos { .. } => true,
            Self::Write(_)
            | Self::WriteAnswer { .. }
            | Self::Mint(_)
            | Self::MintAnswer { .. }
            | Self::Read { .. }
            | Self::ReadAnswer { .. }
            | Self::Scan { .. }
            | Self::ScanAnswer { .. }
            | Self::Salvage { .. }
            | Self::Hint { .. } => false,
        }
    }

    /// Of which partition, out of so many, a replica is asked; `None` for what is no request.
    pub fn asks_of(&self, partitions: PartitionCount) -> Option<Partition> {
        match self {
            Self::Write(Write { key, .. }) | Self::Mint(Mint { key, .. }) | Self::Read { key, .. } => {
                Some(key.partition(partitions))
            }
            Self::Scan { range, .. } | Self::Salvage { range, .. } => Some(range.partition),
            _ => None,
        }
    }

    /// What a request that is not taken is answered with; `None` for what is no request.
    pub fn refused(self, refusal: Refusal) -> Option<Message> {
        let noted = Noted::new();
        Some(match self {
            Self::Write(write) => {
                Self::WriteAnswer { call: write.call, outcome: WriteOutcome::Refused(refusal), noted }
            }
            Self::Mint(mint) => {
                Self::MintAnswer { call: mint.call, outcome: MintOutcome::Refused(refusal), noted }
            }
            Self::Read { call, .. } => {
                Self::ReadAnswer { call, outcome: ReadOutcome::Refused(refusal), noted }
            }
            Self::Scan { call, .. } | Self::Salvage { call, .. } => {
                Self::ScanAnswer { call, outcome: ScanOutcome::Refused(refusal), noted }
            }
            Self::WriteAnswer { .. }
            | Self::MintAnswer { .. }
            | Self::ReadAnswer { .. }
            | Self::ScanAnswer { .. }
            | Self::Hint { .. }
            | Self::InitAccepted { .. }
            | Self::Layout { .. }
            | Self::Standing(_)
            | Self::Paxos { .. } => return None,
        })
    }

    /// Why a replica has not done what it was asked; `None` if it has, or if this is no answer.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::WriteAnswer { outcome: WriteOutcome::Refused(refusal), .. }
            | Self::MintAnswer { outcome: MintOutcome::Refused(refusal), .. }
            | Self::ReadAnswer { outcome: ReadOutcome::Refused(refusal), .. }
            | Self::ScanAnswer { outcome: ScanOutcome::Refused(refusal), .. } => Some(*refusal),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mint {
    pub call: Call,
    pub key: RecordKey,
    pub change: Change,
    pub deadline_wall_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MintOutcome {
    /// It is synced here: the record that has come of it, which is what the other replicas are to merge, and the
    /// dot of the write, if it has one.
    Minted { record: Record, dot: Option<Dot> },
    /// Nothing was applied.
    Refused(Refusal),
}

/// Which records of a partition are wanted: those whose encoded key begins with the prefix, in the order of
/// [`RecordKey::place`], beginning after a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanRange {
    pub partition: Partition,
    /// See [`crate::partition::encoded_prefix`]; empty for all.
    pub prefix: Bytes,
    pub after: Option<RecordKey>,
    /// How many records at most.
    pub limit: u32,
}

/// How many bytes of keys and values a page has at most, unless its first record alone has more.
pub const PAGE_BYTES_MAX: usize = 1 << 20;

/// The records at the beginning of a range, in its order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    pub entries: Vec<(RecordKey, Record)>,
    /// Up to this key, it included, these are all; `None`: to the end of the range. Where much was removed lately, an
    /// engine may come no further than that without finding anything.
    pub until: Option<RecordKey>,
}

impl Page {
    /// All of a range.
    pub fn whole(entries: Vec<(RecordKey, Record)>) -> Self {
        Self { entries, until: None }
    }

    /// Ends with its last record; the range goes on behind that.
    pub fn cut(entries: Vec<(RecordKey, Record)>) -> Self {
        let until = entries.last().map(|(key, _)| key.clone());
        Self { entries, until }
    }

    /// True if the range goes on behind it.
    pub fn is_cut(&self) -> bool {
        self.until.is_some()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScanOutcome {
    Page(Page),
    /// All that the asker has not said that it holds.
    Lacking(Lacking),
    /// What the asker holds is not the same: one digest of each of its records would tell what differs.
    Differs,
    Refused(Refusal),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    pub call: Call,
    pub key: RecordKey,
    pub record: Record,
    pub origin: Origin,
    pub durability: Durability,
}

/// Why a record is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A client's write, refused after its deadline (wall clock, milliseconds since the Unix epoch) or when its
    /// stamp is too far ahead.
    Client { deadline_wall_ms: u64 },
    /// A record that some replica has accepted before: never refused for its stamp or its age.
    Repair,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOutcome {
    /// It is held with this durability, and nothing higher was held.
    Held(Durability),
    /// A higher version is held, with this stamp.
    Superseded(Stamp),
    /// Nothing was applied.
    Refused(Refusal),
}

/// How much of a record a reader wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    Full,
    /// The version alone, unless the value is so small that the whole is as cheap.
    Digest,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadOutcome {
    Missing,
    Digest(Version),
    Full(Record),
    Refused(Refusal),
}

/// Why a replica applied or answered nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The write's deadline had passed.
    DeadlinePassed,
    /// The write's stamp is further ahead of the replica's clocks than is allowed.
    ClockSkew,
    /// The replica's record of this key, or its disk, cannot be trusted.
    InDoubt,
    /// The disk is past its hard limit or full.
    DiskFull,
    /// Too many writes are under way.
    Overloaded,
    /// The replica does not hold this partition.
    NotReplica,
    /// The replica has not been initialised, or not all members have accepted.
    NotInitialized,
    /// The write would leave more siblings than a key may have.
    TooManySiblings,
    /// The request is of an earlier epoch than the replica's, or the replica is about to take up a later one: its
    /// sender will learn of that, and ask again under it.
    StaleEpoch,
}
