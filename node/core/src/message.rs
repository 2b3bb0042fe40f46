//! What nodes say to each other. A frame bears the identity of both ends and many messages.
//!
//! The wire form lives in `keystore-proto`; who accepts which frame is decided in [`crate::peers`].

use crate::id::{ClusterId, Epoch, Generation, Incarnation, NodeId, Nonce};
use crate::partition::RecordKey;
use crate::quorum::Durability;
use crate::record::{Record, Version};
use crate::stamp::Stamp;

/// The first thing each side says on a new link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub header: Header,
    pub nonce: Nonce,
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

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Write(Write),
    WriteAnswer {
        call: Call,
        outcome: WriteOutcome,
    },
    Read {
        call: Call,
        key: RecordKey,
        want: Want,
    },
    ReadAnswer {
        call: Call,
        outcome: ReadOutcome,
    },
    /// "I have durably accepted the first layout of this digest." Asks for the same in return if so marked;
    /// `decided`: "and I know that all members have".
    InitAccepted {
        digest: u64,
        reply_wanted: bool,
        decided: bool,
    },
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
}
