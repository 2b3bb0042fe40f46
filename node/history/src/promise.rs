//! The promises, and what breaking one looks like.

use std::fmt;

use crate::operation::Operation;

/// What the store promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// Every acknowledged write is readable, with its value or a later one; in a causal keyspace, an acknowledged
    /// value is among the siblings until a write that knew it was asked for.
    AcknowledgedIsReadable,
    /// A session sees what it has written itself, or something later.
    ReadYourWrites,
    /// No read goes back behind another that ended before it began.
    ReadsNeverGoBack,
    /// A write that is acknowledged comes, by stamp, after all that ended before it began.
    LaterWritesWin,
    /// Nothing deleted is back.
    DeletedStaysDeleted,
    /// A value does not come back, nor stand beside what replaced it, once a write that knew it is there.
    ReplacedStaysReplaced,
    /// A value is not read after it has expired.
    ExpiredIsGone,
    /// A read returns nothing but what somebody wrote before the read ended.
    OnlyWrittenIsRead,
    /// What failed was applied nowhere.
    FailedIsNotApplied,
    /// One stamp names one write, and no write is seen above the stamp that it was acknowledged under.
    StampsNameOneWrite,
    /// One value a key, in a causal keyspace one sibling a write, however often that was sent.
    OneWriteOneValue,
    /// A promised write is acknowledged by a quorum.
    AcknowledgedByQuorum,
    /// No request outlives its deadline.
    AnsweredInTime,
    /// A scan returns each key once, and none beyond its range.
    ScansFindKeysOnce,
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AcknowledgedIsReadable => "every acknowledged write is readable",
            Self::ReadYourWrites => "a session reads its own writes",
            Self::ReadsNeverGoBack => "no quorum read goes back",
            Self::LaterWritesWin => "a later write wins over an earlier one",
            Self::DeletedStaysDeleted => "nothing deleted is back",
            Self::ReplacedStaysReplaced => "what was replaced does not come back",
            Self::ExpiredIsGone => "what has expired is gone",
            Self::OnlyWrittenIsRead => "only what was written is read",
            Self::FailedIsNotApplied => "a failed write is applied nowhere",
            Self::StampsNameOneWrite => "a stamp names one write",
            Self::OneWriteOneValue => "one write is one value",
            Self::AcknowledgedByQuorum => "an acknowledgement is that of a quorum",
            Self::AnsweredInTime => "no request outlives its deadline",
            Self::ScansFindKeysOnce => "a scan finds each key of its range once",
        })
    }
}

/// A broken promise: `later` contradicts `earlier`, or everything before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub promise: Promise,
    pub earlier: Option<Operation>,
    pub later: Operation,
}

impl Violation {
    pub(crate) fn new(promise: Promise, earlier: Option<&Operation>, later: &Operation) -> Self {
        Self { promise, earlier: earlier.cloned(), later: later.clone() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {:?} breaks \"{}\": {}", self.later.key, self.promise, self.later)?;
        match &self.earlier {
            Some(earlier) => write!(f, "\n    against {earlier}"),
            None => Ok(()),
        }
    }
}
