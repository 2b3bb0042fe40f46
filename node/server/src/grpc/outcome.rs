//! How a request's end is told in gRPC: status code and `google.rpc.ErrorInfo`.
//!
//! `UNAVAILABLE` is said only where surely nothing was applied, since stock clients send such a request again.

use std::collections::HashMap;

use keystore_core::effect::{Failure, FailureReason};
use keystore_core::message::Refusal;
use keystore_core::partition::KeyError;
use keystore_proto::client::{ERROR_DOMAIN, reason};
use keystore_proto::error::WireError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// An error as clients see it.
struct Told {
    code: Code,
    reason: &'static str,
    message: &'static str,
}

pub(super) fn failed(failure: Failure, is_read: bool) -> Status {
    let Failure { reason, acks, needed } = failure;
    let Told { code, reason, message } = told(reason, is_read);
    let counts = [("acks", acks), ("needed", needed)];
    let metadata: Vec<_> =
        counts.into_iter().map(|(name, count)| (name.to_owned(), count.to_string())).collect();
    let details =
        ErrorDetails::with_error_info(reason, ERROR_DOMAIN, metadata.into_iter().collect::<HashMap<_, _>>());
    let message = if needed > 0 { format!("{message} ({acks} of {needed})") } else { message.to_owned() };
    Status::with_error_details(code, message, details)
}

/// For what has no counts: refused before any replica was asked.
pub(super) fn refused(reason: FailureReason) -> Status {
    let failure = Failure { reason, acks: 0, needed: 0 };
    failed(failure, false)
}

pub(super) fn status(code: Code, reason: &str, message: impl Into<String>) -> Status {
    let details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, HashMap::new());
    Status::with_error_details(code, message, details)
}

/// The request was handed over and its answer is lost. A read has changed nothing, but has no answer either.
pub(super) fn lost(is_read: bool) -> Status {
    let failure = Failure { reason: FailureReason::OutcomeUnknown, acks: 0, needed: 0 };
    failed(failure, is_read)
}

pub(super) fn invalid(error: &WireError) -> Status {
    let code = match error {
        WireError::Key(KeyError::KeyLength(_) | KeyError::KeyspaceLength(_) | KeyError::Malformed)
        | WireError::Missing(_)
        | WireError::Length { .. }
        | WireError::UnknownValue { .. }
        | WireError::ValueLength { .. } => Code::InvalidArgument,
    };
    status(code, reason::INVALID_ARGUMENT, error.to_string())
}

fn told(failure: FailureReason, is_read: bool) -> Told {
    let (code, reason, message) = match failure {
        FailureReason::QuorumUnreachable => (
            Code::Unavailable,
            reason::QUORUM_UNREACHABLE,
            "too few replicas can be reached, nothing was applied",
        ),
        FailureReason::Refused(refusal) => return refused_by_replicas(refusal),
        FailureReason::Overloaded => (
            Code::ResourceExhausted,
            reason::OVERLOADED,
            "too many requests are under way on this node, nothing was applied",
        ),
        FailureReason::Draining => {
            (Code::Unavailable, reason::DRAINING, "this node is about to stop, nothing was applied")
        }
        FailureReason::NotInitialized => (
            Code::FailedPrecondition,
            reason::NOT_INITIALIZED,
            "this node does not serve: its cluster has not been initialised, or not all members have accepted",
        ),
        FailureReason::KeyspaceUnknown => {
            (Code::NotFound, reason::KEYSPACE_UNKNOWN, "there is no such keyspace")
        }
        FailureReason::OutcomeUnknown if is_read => (
            Code::Unknown,
            reason::OUTCOME_UNKNOWN,
            "the read ended without an answer that a quorum stands behind",
        ),
        FailureReason::OutcomeUnknown => {
            (Code::Unknown, reason::OUTCOME_UNKNOWN, "the write may or may not have been applied")
        }
        FailureReason::DeadlineExceeded if is_read => (
            Code::DeadlineExceeded,
            reason::DEADLINE_EXCEEDED,
            "too few replicas answered before the deadline",
        ),
        FailureReason::DeadlineExceeded => (
            Code::DeadlineExceeded,
            reason::DEADLINE_EXCEEDED,
            "the deadline came first: the write may or may not have been applied",
        ),
    };
    Told { code, reason, message }
}

/// Every replica asked has refused: nothing was applied.
fn refused_by_replicas(refusal: Refusal) -> Told {
    let (code, reason, message) = match refusal {
        Refusal::DiskFull => (
            Code::ResourceExhausted,
            reason::DISK_FULL,
            "the disks of the replicas are full, nothing was applied",
        ),
        Refusal::Overloaded => (
            Code::ResourceExhausted,
            reason::OVERLOADED,
            "the replicas have too much under way, nothing was applied",
        ),
        Refusal::DeadlinePassed => (
            Code::Unavailable,
            reason::QUORUM_UNREACHABLE,
            "the request reached the replicas after its deadline, nothing was applied",
        ),
        Refusal::ClockSkew => (
            Code::Unavailable,
            reason::QUORUM_UNREACHABLE,
            "this node's clock is too far ahead of the replicas', nothing was applied",
        ),
        Refusal::InDoubt => (
            Code::Unavailable,
            reason::QUORUM_UNREACHABLE,
            "the replicas cannot trust what they hold of this key, nothing was applied",
        ),
        Refusal::NotReplica | Refusal::NotInitialized => (
            Code::Unavailable,
            reason::QUORUM_UNREACHABLE,
            "the replicas asked do not serve this partition yet, nothing was applied",
        ),
    };
    Told { code, reason, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(reason: FailureReason, code: Code, word: &str) {
        let status = failed(Failure { reason, acks: 1, needed: 2 }, false);
        let info = status.get_details_error_info().unwrap();
        assert_eq!((status.code(), info.reason.as_str()), (code, word));
        assert_eq!(info.domain, "keystore.dev");
        assert_eq!((info.metadata["acks"].as_str(), info.metadata["needed"].as_str()), ("1", "2"));
    }

    #[test]
    fn every_outcome_has_the_code_that_the_documentation_says() {
        check(FailureReason::QuorumUnreachable, Code::Unavailable, "QUORUM_UNREACHABLE");
        check(FailureReason::Refused(Refusal::DiskFull), Code::ResourceExhausted, "DISK_FULL");
        check(FailureReason::Refused(Refusal::InDoubt), Code::Unavailable, "QUORUM_UNREACHABLE");
        check(FailureReason::Overloaded, Code::ResourceExhausted, "OVERLOADED");
        check(FailureReason::Draining, Code::Unavailable, "DRAINING");
        check(FailureReason::NotInitialized, Code::FailedPrecondition, "NOT_INITIALIZED");
        check(FailureReason::KeyspaceUnknown, Code::NotFound, "KEYSPACE_UNKNOWN");
        check(FailureReason::OutcomeUnknown, Code::Unknown, "OUTCOME_UNKNOWN");
        check(FailureReason::DeadlineExceeded, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    }

    #[test]
    fn a_lost_answer_is_never_told_as_unavailable() {
        assert_eq!(lost(false).code(), Code::Unknown);
        assert_eq!(lost(true).code(), Code::Unknown);
    }
}
