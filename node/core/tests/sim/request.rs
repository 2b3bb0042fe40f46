//! What clients asked and were told.

use std::collections::BTreeSet;

use bytes::Bytes;
use keystore_core::causal::OperationId;
use keystore_core::effect::{Answer, Causal, FailureReason, Operation, Values};
use keystore_core::message::ScanRange;
use keystore_core::partition::RecordKey;
use keystore_core::quorum::{Consistency, Durability};
use keystore_core::stamp::Stamp;

/// What a write in a keyspace that keeps siblings replaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Knows {
    pub(crate) token: Bytes,
    /// The values that the token stands for.
    pub(crate) values: Vec<Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    Get {
        key: RecordKey,
    },
    /// Every value is written once.
    Put {
        key: RecordKey,
        value: Vec<u8>,
        ttl_ms: Option<u64>,
        knows: Option<Knows>,
        operation: Option<OperationId>,
    },
    Delete {
        key: RecordKey,
        knows: Option<Knows>,
    },
    Scan {
        keyspace: &'static str,
        range: ScanRange,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    Read(Values),
    Written {
        stamp: Stamp,
        acks: usize,
        token: Option<Bytes>,
    },
    Scanned {
        entries: Vec<(RecordKey, Values)>,
        next: Option<RecordKey>,
    },
    /// Nothing was applied.
    Failed(FailureReason),
    /// A write may or may not have been applied; a read has no answer.
    Unknown,
}

#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) client: usize,
    /// Which machine was asked last.
    pub(crate) machine: usize,
    pub(crate) asked: Asked,
    pub(crate) level: Consistency,
    pub(crate) durability: Durability,
    /// In ticks, finer than milliseconds: see [`crate::world::World::tick`].
    pub(crate) asked_at: u64,
    /// In milliseconds; of the last time that it was sent.
    pub(crate) deadline_ms: u64,
    pub(crate) told: Option<(u64, Told)>,
    /// The process that was asked stood still meanwhile, and answers late.
    pub(crate) excused: bool,
    /// It was sent again, under the same operation id.
    pub(crate) is_repeated: bool,
    /// By wall clocks, the first and the last moment at which it may expire.
    pub(crate) expires_ms: Option<(u64, u64)>,
    /// The promises hold for it.
    pub(crate) is_promised: bool,
    /// Of these keys, what it was told was lost with more than the store can bear.
    pub(crate) lost: BTreeSet<RecordKey>,
    /// The stamp below which no answer may be, for what was promised before it was asked.
    pub(crate) floor: Option<Stamp>,
}

impl Asked {
    pub(crate) fn key(&self) -> Option<&RecordKey> {
        match self {
            Self::Get { key } | Self::Put { key, .. } | Self::Delete { key, .. } => Some(key),
            Self::Scan { .. } => None,
        }
    }

    pub(crate) fn is_write(&self) -> bool {
        matches!(self, Self::Put { .. } | Self::Delete { .. })
    }

    pub(crate) fn operation(&self) -> Operation {
        let context = |knows: &Option<Knows>| knows.as_ref().map(|knows| knows.token.clone());
        match self.clone() {
            Self::Get { key } => Operation::Get { key },
            Self::Put { key, value, ttl_ms, knows, operation } => {
                let causal = Causal { context: context(&knows), operation };
                Operation::Put { key, value: value.into(), ttl_ms, causal }
            }
            Self::Delete { key, knows } => {
                Operation::Delete { key, causal: Causal { context: context(&knows), operation: None } }
            }
            Self::Scan { keyspace, range } => Operation::Scan { keyspace: keyspace.to_owned(), range },
        }
    }
}

/// `None` for what clients never get.
pub(crate) fn told(answer: Answer) -> Option<Told> {
    match answer {
        Answer::Read(values) => Some(Told::Read(values)),
        Answer::Written { stamp, acks, durability: _, context } => {
            Some(Told::Written { stamp, acks, token: context })
        }
        Answer::Scanned { entries, next } => Some(Told::Scanned { entries, next }),
        Answer::Failed(failure) => Some(match failure.reason {
            FailureReason::OutcomeUnknown | FailureReason::DeadlineExceeded => Told::Unknown,
            reason @ (FailureReason::QuorumUnreachable
            | FailureReason::Refused(_)
            | FailureReason::Overloaded
            | FailureReason::Draining
            | FailureReason::NotInitialized
            | FailureReason::KeyspaceUnknown
            | FailureReason::BadContext) => Told::Failed(reason),
        }),
        Answer::InitAccepted
        | Answer::InitRefused(_)
        | Answer::Decided(_)
        | Answer::ProposalFailed(_)
        | Answer::RecoveryAccepted
        | Answer::RecoveryRefused(_) => None,
    }
}
