//! What a request's failure means to its caller.
//!
//! The variants answer the one question that matters after a failed write, whether it may be applied; reasons and
//! messages are for people and programs that want to know more.

use std::borrow::Cow;
use std::fmt;

use keystore_proto::client::reason;
use thiserror::Error;

/// Why, in one word: the reasons that nodes give, and those of the client's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason(Cow<'static, str>);

impl Reason {
    pub const QUORUM_UNREACHABLE: Self = Self::known(reason::QUORUM_UNREACHABLE);
    pub const DRAINING: Self = Self::known(reason::DRAINING);
    pub const OVERLOADED: Self = Self::known(reason::OVERLOADED);
    pub const DISK_FULL: Self = Self::known(reason::DISK_FULL);
    pub const TOO_MANY_SIBLINGS: Self = Self::known(reason::TOO_MANY_SIBLINGS);
    pub const OUTCOME_UNKNOWN: Self = Self::known(reason::OUTCOME_UNKNOWN);
    pub const NOT_INITIALIZED: Self = Self::known(reason::NOT_INITIALIZED);
    pub const WRONG_CLUSTER: Self = Self::known(reason::WRONG_CLUSTER);
    /// The layout in force is not the one that a proposal was to follow.
    pub const STALE_EPOCH: Self = Self::known(reason::STALE_EPOCH);
    /// A layout cannot follow the one in force, or not yet.
    pub const LAYOUT_REFUSED: Self = Self::known(reason::LAYOUT_REFUSED);
    pub const KEYSPACE_UNKNOWN: Self = Self::known(reason::KEYSPACE_UNKNOWN);
    /// The request is malformed.
    pub const INVALID_ARGUMENT: Self = Self::known(reason::INVALID_ARGUMENT);
    pub const DEADLINE_EXCEEDED: Self = Self::known(reason::DEADLINE_EXCEEDED);
    /// No node could be connected to.
    pub const CANNOT_CONNECT: Self = Self::known("CANNOT_CONNECT");
    /// The connection ended between the request and its answer.
    pub const BROKEN_STREAM: Self = Self::known("BROKEN_STREAM");
    /// The answer makes no sense: the other side is no node of a release that this client knows.
    pub const BAD_ANSWER: Self = Self::known("BAD_ANSWER");

    const fn known(name: &'static str) -> Self {
        Self(Cow::Borrowed(name))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A reason that a node has given, known here or not.
impl From<String> for Reason {
    fn from(name: String) -> Self {
        Self(Cow::Owned(name))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is known of a failure beyond its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detail {
    pub reason: Reason,
    /// One sentence; a node's own names the numbers below.
    pub message: String,
    /// How many replicas are known to hold the write, and how many had to; `None` where no node has said.
    pub acks: Option<u32>,
    pub needed: Option<u32>,
}

impl Detail {
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), acks: None, needed: None }
    }
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Error {
    /// Nothing was applied. The client has retried already as far as its policy goes.
    #[error("failed: {0}")]
    Failed(Detail),
    /// The write may be applied, now or later. Only the caller can decide whether to write again.
    #[error("the outcome is unknown: {0}")]
    Unknown(Detail),
    /// The deadline came first. `sent_write` is true if a write was on its way by then: it may be applied.
    #[error("{detail}")]
    DeadlineExceeded { sent_write: bool, detail: Detail },
    /// The node or the cluster is in no state to do this. Nothing was applied.
    #[error("refused: {0}")]
    Refused(Detail),
    /// The request itself is wrong. Nothing was applied.
    #[error("bad request: {0}")]
    BadRequest(Detail),
    /// No node could be connected to. Nothing was sent.
    #[error("cannot connect: {0}")]
    Connect(Detail),
}

impl Error {
    pub fn detail(&self) -> &Detail {
        match self {
            Self::Failed(detail)
            | Self::Unknown(detail)
            | Self::Refused(detail)
            | Self::BadRequest(detail)
            | Self::Connect(detail)
            | Self::DeadlineExceeded { detail, .. } => detail,
        }
    }

    pub fn reason(&self) -> &Reason {
        &self.detail().reason
    }

    pub(crate) fn invalid(problem: impl fmt::Display) -> Self {
        Self::BadRequest(Detail::new(Reason::INVALID_ARGUMENT, problem.to_string()))
    }

    /// True if no replica will ever show what was to be written. Always true of a read.
    pub fn surely_not_applied(&self) -> bool {
        match self {
            Self::Unknown(_) => false,
            Self::DeadlineExceeded { sent_write, .. } => !sent_write,
            Self::Failed(_) | Self::Refused(_) | Self::BadRequest(_) | Self::Connect(_) => true,
        }
    }
}
