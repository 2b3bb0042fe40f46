//! How a request's end is told: a status with a `google.rpc.ErrorInfo` for a call of its own, the same words in an
//! item of a batch or a session.
//!
//! `UNAVAILABLE` is said only where surely nothing was applied, since stock clients send such a request again.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use keystore_core::effect::{Failure, FailureReason};
use keystore_core::layout::KeyspaceMode;
use keystore_core::message::Refusal;
use keystore_proto::client::{ERROR_DOMAIN, reason};
use keystore_proto::error::WireError;
use keystore_proto::v1;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::inbox::NotTaken;

/// How long a client that was told that there is too much to do is held back. Refusing is work too: clients that ask
/// again at once would take the time in which others are served.
pub(super) const REFUSED_PAUSE: Duration = Duration::from_millis(20);

/// A request that was not done, as clients are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) code: Code,
    reason: &'static str,
    message: Cow<'static, str>,
    acks: usize,
    needed: usize,
}

/// What a failed request was about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) keyspace: &'a str,
    /// `None` if there is no such keyspace.
    pub(super) mode: Option<KeyspaceMode>,
    pub(super) is_read: bool,
}

impl Failed {
    fn new(code: Code, reason: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, reason, message: message.into(), acks: 0, needed: 0 }
    }

    pub(super) fn by_core(failure: Failure, subject: Subject<'_>) -> Self {
        let Failure { reason, acks, needed } = failure;
        Self { acks, needed, ..told(reason, subject) }
    }

    pub(super) fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::InvalidArgument, reason::INVALID_ARGUMENT, message)
    }

    pub(super) fn overloaded(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::ResourceExhausted, reason::OVERLOADED, message)
    }

    /// True if there was too much to do.
    pub(super) fn is_overload(&self) -> bool {
        self.reason == reason::OVERLOADED
    }

    /// There is no room for one request more.
    pub(super) fn full() -> Self {
        Self::overloaded("too many requests are under way on this node, nothing was applied")
    }

    pub(super) fn not_initialized() -> Self {
        Self::new(
            Code::FailedPrecondition,
            reason::NOT_INITIALIZED,
            "this node does not serve: its cluster has not been initialised, or not all members have accepted",
        )
    }

    pub(super) fn draining() -> Self {
        Self::new(Code::Unavailable, reason::DRAINING, "this node is about to stop, nothing was applied")
    }

    /// The request did not come whole.
    pub(super) fn incomplete(within: Duration) -> Self {
        let message = format!("the request did not come whole within {within:?}, nothing was applied");
        Self::new(Code::DeadlineExceeded, reason::DEADLINE_EXCEEDED, message)
    }

    pub(super) fn deadline_exceeded(is_read: bool) -> Self {
        let message = match is_read {
            true => "too few replicas answered before the deadline",
            false => "the deadline came first: the write may or may not have been applied",
        };
        Self::new(Code::DeadlineExceeded, reason::DEADLINE_EXCEEDED, message)
    }

    /// A read has changed nothing, but has no answer either.
    pub(super) fn unknown(is_read: bool) -> Self {
        let message = match is_read {
            true => "the read ended without an answer that a quorum stands behind",
            false => "the write may or may not have been applied",
        };
        Self::new(Code::Unknown, reason::OUTCOME_UNKNOWN, message)
    }

    fn unreachable(message: &'static str) -> Self {
        Self::new(Code::Unavailable, reason::QUORUM_UNREACHABLE, message)
    }

    /// Says first what it happened to.
    pub(super) fn of(self, what: impl std::fmt::Display) -> Self {
        Self { message: format!("{what}: {}", self.message).into(), ..self }
    }

    /// With the counts, where there are any.
    fn full_message(&self) -> String {
        let Self { message, acks, needed, .. } = self;
        if *needed > 0 { format!("{message} ({acks} of {needed})") } else { message.clone().into_owned() }
    }
}

impl From<NotTaken> for Failed {
    fn from(why: NotTaken) -> Self {
        match why {
            NotTaken::Full => Self::full(),
            NotTaken::Closed => Self::draining(),
        }
    }
}

impl From<WireError> for Failed {
    fn from(error: WireError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<Failed> for Status {
    fn from(failed: Failed) -> Self {
        let message = failed.full_message();
        let Failed { code, reason, acks, needed, .. } = failed;
        let counts = [("acks", acks), ("needed", needed)];
        let metadata: HashMap<_, _> =
            counts.into_iter().map(|(name, count)| (name.to_owned(), count.to_string())).collect();
        Self::with_error_details(code, message, ErrorDetails::with_error_info(reason, ERROR_DOMAIN, metadata))
    }
}

impl From<Failed> for v1::Outcome {
    fn from(failed: Failed) -> Self {
        let message = failed.full_message();
        let Failed { code, reason, acks, needed, .. } = failed;
        let failure = v1::Failure {
            code: code.into(),
            reason: reason.to_owned(),
            message,
            acks: saturated(acks),
            needed: saturated(needed),
        };
        Self { outcome: Some(v1::outcome::Outcome::Failed(failure)) }
    }
}

/// For administrators, whose errors have no counts.
pub(super) fn status(code: Code, reason: &str, message: impl Into<String>) -> Status {
    let details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, HashMap::new());
    Status::with_error_details(code, message, details)
}

pub(super) fn saturated(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn told(failure: FailureReason, subject: Subject<'_>) -> Failed {
    let Subject { keyspace, mode, is_read } = subject;
    match failure {
        FailureReason::QuorumUnreachable => {
            Failed::unreachable("too few replicas can be reached, nothing was applied")
        }
        FailureReason::Refused(refusal) => refused_by_replicas(refusal),
        FailureReason::Overloaded => Failed::full(),
        FailureReason::Draining => Failed::draining(),
        FailureReason::NotInitialized => Failed::not_initialized(),
        FailureReason::KeyspaceUnknown => {
            let message = format!("there is no keyspace \"{}\"", keyspace.escape_debug());
            Failed::new(Code::NotFound, reason::KEYSPACE_UNKNOWN, message)
        }
        FailureReason::BadContext if mode == Some(KeyspaceMode::Lww) => Failed::invalid(format!(
            "the keyspace \"{}\" has mode lww: its writes bear neither context nor operation id, since the last \
             one replaces all others",
            keyspace.escape_debug()
        )),
        FailureReason::BadContext => Failed::invalid(
            "the context is damaged, or was given for another key: read this key, and write with the context of \
             that answer, unchanged",
        ),
        FailureReason::OutcomeUnknown => Failed::unknown(is_read),
        FailureReason::DeadlineExceeded => Failed::deadline_exceeded(is_read),
    }
}

/// Every replica asked has refused: nothing was applied.
fn refused_by_replicas(refusal: Refusal) -> Failed {
    match refusal {
        Refusal::DiskFull => Failed::new(
            Code::ResourceExhausted,
            reason::DISK_FULL,
            "the disks of the replicas are full, nothing was applied",
        ),
        Refusal::Overloaded => {
            Failed::overloaded("the replicas have too much under way, nothing was applied")
        }
        Refusal::TooManySiblings => Failed::new(
            Code::ResourceExhausted,
            reason::TOO_MANY_SIBLINGS,
            "the key has too many siblings, nothing was applied: read it, and write with the context of that answer",
        ),
        Refusal::DeadlinePassed => {
            Failed::unreachable("the request reached the replicas after its deadline, nothing was applied")
        }
        Refusal::ClockSkew => {
            Failed::unreachable("this node's clock is too far ahead of the replicas', nothing was applied")
        }
        Refusal::InDoubt => {
            Failed::unreachable("the replicas cannot trust what they hold of this key, nothing was applied")
        }
        Refusal::NotReplica | Refusal::NotInitialized | Refusal::StaleEpoch => {
            Failed::unreachable("the replicas asked do not serve this partition yet, nothing was applied")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBJECT: Subject<'_> =
        Subject { keyspace: "letters", mode: Some(KeyspaceMode::Siblings), is_read: false };

    fn failed(reason: FailureReason) -> Failed {
        Failed::by_core(Failure { reason, acks: 1, needed: 2 }, SUBJECT)
    }

    fn check(reason: FailureReason, code: Code, word: &str) {
        let status = Status::from(failed(reason));
        let info = status.get_details_error_info().unwrap();
        assert_eq!((status.code(), info.reason.as_str()), (code, word));
        assert_eq!(info.domain, "keystore.dev");
        assert_eq!((info.metadata["acks"].as_str(), info.metadata["needed"].as_str()), ("1", "2"));
        let Some(v1::outcome::Outcome::Failed(failure)) = v1::Outcome::from(failed(reason)).outcome else {
            panic!("an item of a batch says something else than a call");
        };
        assert_eq!((failure.code, failure.reason.as_str()), (i32::from(code), word));
        assert_eq!((failure.acks, failure.needed, failure.message.as_str()), (1, 2, status.message()));
    }

    #[test]
    fn who_stops_is_not_called_overloaded() {
        for (why, code, word) in [
            (NotTaken::Full, Code::ResourceExhausted, "OVERLOADED"),
            (NotTaken::Closed, Code::Unavailable, "DRAINING"),
        ] {
            let status = Status::from(Failed::from(why));
            let info = status.get_details_error_info().unwrap();
            assert_eq!((status.code(), info.reason.as_str()), (code, word));
        }
    }

    #[test]
    fn every_outcome_has_the_code_that_the_documentation_says() {
        check(FailureReason::QuorumUnreachable, Code::Unavailable, "QUORUM_UNREACHABLE");
        check(FailureReason::Refused(Refusal::DiskFull), Code::ResourceExhausted, "DISK_FULL");
        check(FailureReason::Refused(Refusal::InDoubt), Code::Unavailable, "QUORUM_UNREACHABLE");
        let siblings = FailureReason::Refused(Refusal::TooManySiblings);
        check(siblings, Code::ResourceExhausted, "TOO_MANY_SIBLINGS");
        check(FailureReason::Overloaded, Code::ResourceExhausted, "OVERLOADED");
        check(FailureReason::Draining, Code::Unavailable, "DRAINING");
        check(FailureReason::NotInitialized, Code::FailedPrecondition, "NOT_INITIALIZED");
        check(FailureReason::KeyspaceUnknown, Code::NotFound, "KEYSPACE_UNKNOWN");
        check(FailureReason::BadContext, Code::InvalidArgument, "INVALID_ARGUMENT");
        check(FailureReason::OutcomeUnknown, Code::Unknown, "OUTCOME_UNKNOWN");
        check(FailureReason::DeadlineExceeded, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    }

    #[test]
    fn an_unknown_keyspace_and_one_without_contexts_are_named() {
        for (reason, mode) in
            [(FailureReason::KeyspaceUnknown, None), (FailureReason::BadContext, Some(KeyspaceMode::Lww))]
        {
            let failed = Failed::by_core(Failure { reason, acks: 0, needed: 0 }, Subject { mode, ..SUBJECT });
            assert!(failed.full_message().contains("\"letters\""), "{failed:?}");
        }
    }

    #[test]
    fn a_lost_answer_is_never_told_as_unavailable() {
        assert_eq!(Failed::unknown(false).code, Code::Unknown);
        assert_eq!(Failed::unknown(true).code, Code::Unknown);
    }
}
