//! What the failure of one attempt means: which error it is, and whether another attempt may follow.
//!
//! The rule: a read may always be tried again, a write only if the failure proves that nothing was applied. Proof
//! is a connection that never carried the request, a stream that the other side refused unseen, or a node's own
//! word, which is an ErrorInfo of its domain. A bare status code may come from whatever stands between and proves
//! nothing, save those that find fault with the request itself.

use tonic::{Code, Status};
use tonic_types::ErrorInfo;

use crate::connection::DialError;
use crate::error::{Detail, Error, Reason};
use crate::grpc::CallError;

/// What a request does to the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
}

/// How to go on after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    Never,
    /// Each other node may be asked once, at once.
    ElsewhereOnce,
    /// Another node at once; when all have been asked, all again after a pause.
    Elsewhere,
    /// Any node, another one first, after a pause.
    Later,
}

#[derive(Debug)]
pub(crate) struct Verdict {
    pub error: Error,
    pub retry: Retry,
    /// True if the node itself failed, so that others are to be preferred for a while.
    pub blames_node: bool,
}

impl Verdict {
    pub(crate) fn of_dial(error: &DialError) -> Self {
        let detail = Detail::new(Reason::CANNOT_CONNECT, error.to_string());
        Self { error: Error::Connect(detail), retry: Retry::Elsewhere, blames_node: true }
    }

    /// Of a node that did not answer in time.
    pub(crate) fn of_silence(kind: Kind, address: &str) -> Self {
        let message = match kind {
            Kind::Read => format!("{address} did not answer in time"),
            Kind::Write => {
                format!("{address} did not answer in time: the write may or may not have been applied")
            }
        };
        let detail = Detail::new(Reason::DEADLINE_EXCEEDED, message);
        Self {
            error: Error::DeadlineExceeded { sent_write: kind == Kind::Write, detail },
            retry: kind.retry_if_read(Retry::Elsewhere),
            blames_node: true,
        }
    }

    pub(crate) fn of_call(kind: Kind, address: &str, error: CallError) -> Self {
        let message = format!("{address}: {error}");
        let info = error.node_info();
        match error {
            CallError::NotSent(_) => Self {
                error: Error::Connect(Detail::new(Reason::CANNOT_CONNECT, message)),
                retry: Retry::Elsewhere,
                blames_node: false,
            },
            CallError::Broken(_) => Self {
                error: kind.unclear(Detail::new(Reason::BROKEN_STREAM, message)),
                retry: kind.retry_if_read(Retry::Elsewhere),
                blames_node: true,
            },
            CallError::BadAnswer(_) => Self {
                error: kind.unclear(Detail::new(Reason::BAD_ANSWER, message)),
                retry: kind.retry_if_read(Retry::ElsewhereOnce),
                blames_node: true,
            },
            CallError::Status(status) => of_status(kind, &status, info),
        }
    }
}

impl Kind {
    fn retry_if_read(self, retry: Retry) -> Retry {
        match self {
            Self::Read => retry,
            Self::Write => Retry::Never,
        }
    }

    /// A failure that proves nothing.
    fn unclear(self, detail: Detail) -> Error {
        match self {
            Self::Read => Error::Failed(detail),
            Self::Write => Error::Unknown(detail),
        }
    }
}

fn of_status(kind: Kind, status: &Status, info: Option<ErrorInfo>) -> Verdict {
    let count = |name: &str| info.as_ref()?.metadata.get(name)?.parse().ok();
    let (acks, needed) = (count("acks"), count("needed"));
    let from_node = info.is_some();
    let reason = info.map_or_else(|| reason_of_code(status.code()), |info| Reason::from(info.reason));
    let message = match status.message() {
        "" => reason.to_string(),
        message => message.to_owned(),
    };
    let detail = Detail { reason, message, acks, needed };
    let retry = retry_after(kind, status.code(), &detail.reason, from_node);
    let error = match status.code() {
        Code::Unavailable | Code::ResourceExhausted if from_node => Error::Failed(detail),
        Code::FailedPrecondition if from_node => Error::Refused(detail),
        // Said before a handler runs, or by one that has looked at the request only.
        Code::InvalidArgument | Code::NotFound | Code::Unimplemented => Error::BadRequest(detail),
        Code::DeadlineExceeded => Error::DeadlineExceeded { sent_write: kind == Kind::Write, detail },
        _ => kind.unclear(detail),
    };
    Verdict { error, retry, blames_node: retry == Retry::Elsewhere }
}

fn retry_after(kind: Kind, code: Code, reason: &Reason, from_node: bool) -> Retry {
    match code {
        Code::InvalidArgument | Code::NotFound | Code::Unimplemented => Retry::Never,
        Code::ResourceExhausted if from_node && *reason == Reason::OVERLOADED => Retry::Later,
        // A full disk stays full, whoever coordinates.
        Code::ResourceExhausted if from_node => Retry::Never,
        // Another node may reach more replicas, or is not about to stop.
        Code::Unavailable if from_node => Retry::Elsewhere,
        Code::FailedPrecondition if from_node => Retry::ElsewhereOnce,
        _ => kind.retry_if_read(Retry::Later),
    }
}

fn reason_of_code(code: Code) -> Reason {
    match code {
        Code::InvalidArgument => Reason::INVALID_ARGUMENT,
        Code::DeadlineExceeded => Reason::DEADLINE_EXCEEDED,
        // Debug is the one form that Code has: "Unavailable".
        code => Reason::from(format!("{code:?}").to_uppercase()),
    }
}
