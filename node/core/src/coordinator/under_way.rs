//! An operation of whichever kind, as far as its coordinator treats all alike.

use crate::causal_write::CausalWrite;
use crate::context::Context;
use crate::effect::{Answer, Deadline, FailureReason, RequestId};
use crate::mutant::{Mutant, is_on};
use crate::partition::Partition;
use crate::quorum::ReplicaSets;
use crate::read::ReadOperation;
use crate::scan::ScanOperation;
use crate::write::WriteOperation;

#[derive(Debug)]
pub(super) enum UnderWay {
    Write(WriteOperation),
    Causal(Box<CausalWrite>),
    Read(ReadOperation),
    Scan(Box<ScanOperation>),
}

impl UnderWay {
    pub(super) fn is_write(&self) -> bool {
        match self {
            Self::Write(_) | Self::Causal(_) => true,
            Self::Read(_) | Self::Scan(_) => false,
        }
    }

    pub(super) fn write_bytes(&self) -> usize {
        match self {
            Self::Write(write) => write.bytes(),
            Self::Causal(write) => write.bytes(),
            Self::Read(_) | Self::Scan(_) => 0,
        }
    }

    pub(super) fn wants_stamp(&self) -> bool {
        match self {
            Self::Write(_) => true,
            Self::Causal(write) => write.wants_stamp(),
            Self::Read(_) | Self::Scan(_) => false,
        }
    }

    pub(super) fn request(&self) -> RequestId {
        match self {
            Self::Write(write) => write.request,
            Self::Causal(write) => write.request,
            Self::Read(read) => read.request,
            Self::Scan(scan) => scan.request,
        }
    }

    pub(super) fn deadline(&self) -> Deadline {
        match self {
            Self::Write(write) => write.deadline,
            Self::Causal(write) => write.deadline,
            Self::Read(read) => read.deadline,
            Self::Scan(scan) => scan.deadline,
        }
    }

    pub(super) fn partition(&self, context: &Context<'_>) -> Partition {
        match self {
            Self::Write(write) => context.partition(write.key()),
            Self::Causal(write) => context.partition(write.key()),
            Self::Read(read) => context.partition(read.key()),
            Self::Scan(scan) => scan.partition(),
        }
    }

    pub(super) fn sets(&self) -> &ReplicaSets {
        match self {
            Self::Write(write) => write.sets(),
            Self::Causal(write) => write.sets(),
            Self::Read(read) => read.sets(),
            Self::Scan(scan) => scan.sets(),
        }
    }

    pub(super) fn abandoned(&self, is_parked: bool) -> Answer {
        let unknown = FailureReason::OutcomeUnknown;
        match self {
            Self::Write(write) if write.is_unsent() => write.failed(FailureReason::Draining),
            Self::Causal(write) if write.is_unsent() && is_parked => write.failed(FailureReason::Draining),
            Self::Write(write) => write.failed(unknown),
            Self::Causal(write) => write.failed(unknown),
            Self::Read(read) => read.failed(FailureReason::QuorumUnreachable),
            Self::Scan(scan) => scan.failed(FailureReason::QuorumUnreachable),
        }
    }

    pub(super) fn timed_out(&self, is_parked: bool) -> Answer {
        let reason = FailureReason::DeadlineExceeded;
        match self {
            // It never got a stamp, so no replica was asked.
            Self::Write(write) if write.is_unsent() || is_on(Mutant::TimeoutIsCalledFailed) => {
                write.failed(FailureReason::Overloaded)
            }
            Self::Causal(write) if write.is_unsent() && is_parked => write.failed(FailureReason::Overloaded),
            Self::Write(write) => write.failed(reason),
            Self::Causal(write) => write.failed(reason),
            Self::Read(read) => read.failed(reason),
            Self::Scan(scan) => scan.failed(reason),
        }
    }
}
