//! What the failure of one attempt means: which error it is, and whether another attempt may follow.
//!
//! The rule: a read may always be tried again, and so may a write that nodes know again by its operation id; any
//! other write only if the failure proves that nothing was applied. Proof
//! is a connection that never carried the request, a stream that the other side refused unseen, or a node's own
//! word, which is an ErrorInfo of its domain. A bare status code may come from whatever stands between and proves
//! nothing, save those that find fault with the request itself.

use keystore_proto::client::ERROR_DOMAIN;
use keystore_proto::v1;
use tonic::{Code, Status};
use tonic_types::{ErrorInfo, StatusExt};

use crate::connection::DialError;
use crate::error::{Detail, Error, Reason};
use crate::grpc::CallError;

/// What a request does to the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    /// Sent again only if it was surely not applied.
    Write,
    /// A write that nodes know again: it may be sent again whatever became of it.
    RepeatableWrite,
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

/// How an attempt ended without an answer.
#[derive(Debug, Clone)]
pub(crate) enum Miss {
    /// There is no connection.
    Dial(DialError),
    /// There is none yet, and another node has one.
    SlowDial,
    /// There was none when the time for this attempt was up.
    LateDial,
    /// The request was sent, and the time for this attempt was up before an answer came.
    Silence,
    Call(CallError),
}

#[derive(Debug)]
pub(crate) struct Verdict {
    pub error: Error,
    pub retry: Retry,
    /// True if the node itself failed, so that others are to be preferred for a while.
    pub blames_node: bool,
}

impl Verdict {
    /// Of an attempt of this kind at the node of this address.
    pub(crate) fn of(kind: Kind, address: &str, miss: Miss) -> Self {
        match miss {
            Miss::Dial(error) => Self::of_dial(&error),
            Miss::SlowDial => Self::unconnected(format!("{address} could not be connected to at once"), true),
            // Nothing was sent: running out of time here is no unknown outcome.
            Miss::LateDial => Self::of_silence(Kind::Read, address),
            Miss::Silence => Self::of_silence(kind, address),
            Miss::Call(error) => Self::of_call(kind, address, error),
        }
    }

    pub(crate) fn of_dial(error: &DialError) -> Self {
        Self::unconnected(error.to_string(), true)
    }

    fn unconnected(message: String, blames_node: bool) -> Self {
        let error = Error::Connect(Detail::new(Reason::CANNOT_CONNECT, message));
        Self { error, retry: Retry::Elsewhere, blames_node }
    }

    /// Of a node that did not answer in time.
    pub(crate) fn of_silence(kind: Kind, address: &str) -> Self {
        let message = match kind {
            Kind::Read => format!("{address} did not answer in time"),
            Kind::Write | Kind::RepeatableWrite => {
                format!("{address} did not answer in time: the write may or may not have been applied")
            }
        };
        let detail = Detail::new(Reason::DEADLINE_EXCEEDED, message);
        Self {
            error: Error::DeadlineExceeded { sent_write: kind != Kind::Read, detail },
            retry: kind.retry_if_repeatable(Retry::Elsewhere),
            blames_node: true,
        }
    }

    pub(crate) fn of_call(kind: Kind, address: &str, error: CallError) -> Self {
        let message = format!("{address}: {error}");
        match error {
            CallError::NotSent(_) => Self::unconnected(message, false),
            CallError::Broken(_) => Self {
                error: kind.unclear(Detail::new(Reason::BROKEN_STREAM, message)),
                retry: kind.retry_if_repeatable(Retry::Elsewhere),
                blames_node: true,
            },
            CallError::BadAnswer(_) => Self {
                error: kind.unclear(Detail::new(Reason::BAD_ANSWER, message)),
                retry: kind.retry_if_repeatable(Retry::ElsewhereOnce),
                blames_node: true,
            },
            CallError::Status(status) => of_told(kind, Told::from(&status)),
            CallError::Failure(failure) => of_told(kind, Told::from(failure)),
        }
    }
}

impl CallError {
    /// True if the request may have been served, and its node has not said how.
    pub(crate) fn proves_nothing(&self) -> bool {
        match self {
            Self::NotSent(_) | Self::Failure(_) => false,
            Self::Status(status) => node_info(status).is_none(),
            Self::Broken(_) | Self::BadAnswer(_) => true,
        }
    }
}

impl Kind {
    fn retry_if_repeatable(self, retry: Retry) -> Retry {
        match self {
            Self::Read | Self::RepeatableWrite => retry,
            Self::Write => Retry::Never,
        }
    }

    /// A failure that proves nothing.
    pub(crate) fn unclear(self, detail: Detail) -> Error {
        match self {
            Self::Read => Error::Failed(detail),
            Self::Write | Self::RepeatableWrite => Error::Unknown(detail),
        }
    }
}

/// What the other side has said of a request that it did not do.
struct Told {
    code: Code,
    /// True if it is surely a node that has said so.
    from_node: bool,
    detail: Detail,
}

/// The ErrorInfo of our domain, which only a node's own answer has.
fn node_info(status: &Status) -> Option<ErrorInfo> {
    status.get_details_error_info().filter(|info| info.domain == ERROR_DOMAIN)
}

impl From<&Status> for Told {
    fn from(status: &Status) -> Self {
        let info = node_info(status);
        let count = |name: &str| info.as_ref()?.metadata.get(name)?.parse().ok();
        let (acks, needed) = (count("acks"), count("needed"));
        let from_node = info.is_some();
        let reason = info.map_or_else(|| reason_of_code(status.code()), |info| Reason::from(info.reason));
        let message = match (status.message(), status.code()) {
            ("", Code::Unimplemented) => {
                "no such call is served there: is it the port for clients?".to_owned()
            }
            ("", _) => reason.to_string(),
            (message, _) => message.to_owned(),
        };
        Self { code: status.code(), from_node, detail: Detail { reason, message, acks, needed } }
    }
}

impl From<v1::Failure> for Told {
    fn from(failure: v1::Failure) -> Self {
        let v1::Failure { code, reason, message, acks, needed } = failure;
        let detail = Detail { reason: Reason::from(reason), message, acks: Some(acks), needed: Some(needed) };
        Self { code: Code::from_i32(code), from_node: true, detail }
    }
}

fn of_told(kind: Kind, told: Told) -> Verdict {
    let Told { code, from_node, detail } = told;
    let retry = retry_after(kind, code, &detail.reason, from_node);
    let error = match code {
        Code::Unavailable | Code::ResourceExhausted if from_node => Error::Failed(detail),
        Code::FailedPrecondition if from_node => Error::Refused(detail),
        // Said before a handler runs, or by one that has looked at the request only.
        Code::InvalidArgument | Code::NotFound | Code::Unimplemented => Error::BadRequest(detail),
        Code::DeadlineExceeded => Error::DeadlineExceeded { sent_write: kind != Kind::Read, detail },
        _ => kind.unclear(detail),
    };
    Verdict { error, retry, blames_node: retry == Retry::Elsewhere }
}

fn retry_after(kind: Kind, code: Code, reason: &Reason, from_node: bool) -> Retry {
    match code {
        Code::InvalidArgument | Code::NotFound | Code::Unimplemented => Retry::Never,
        Code::ResourceExhausted if from_node && *reason == Reason::OVERLOADED => Retry::Later,
        // A full disk stays full, and a key with too many siblings has them, whoever coordinates.
        Code::ResourceExhausted if from_node => Retry::Never,
        // Another node may reach more replicas, or is not about to stop.
        Code::Unavailable if from_node => Retry::Elsewhere,
        Code::FailedPrecondition if from_node => Retry::ElsewhereOnce,
        _ => kind.retry_if_repeatable(Retry::Later),
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
