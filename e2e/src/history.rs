//! What clients asked of the store and what they were told, as a log.
//!
//! Holds the words in which a run is written down; whether the store kept its promises is the checker's question.
//! Invariant: an operation's `invoked_ns` is taken before its request leaves and `returned_ns` after its answer
//! came, both from one monotonic clock, so `a.returned_ns <= b.invoked_ns` proves that `a` ended before `b` began.

use std::fmt;

/// A write's place in the total order of writes: 16 bytes, big-endian, as the store answers it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(pub [u8; 16]);

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// How a put or a delete ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// Acknowledged at quorum, under this stamp. The write may have borne lower stamps before: one that finds a
    /// higher stamp in its way is stamped anew, and may be seen at each of its stamps.
    Done(Stamp),
    /// Surely not applied anywhere. Says why.
    Failed(String),
    /// Applied, or not, or later. Says why.
    Unknown(String),
}

/// How a quorum read ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    Found {
        value: String,
        stamp: Stamp,
    },
    Missing,
    /// No answer, which says nothing about the key. Says why.
    Error(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// `value` is unique in the history, so that a read tells which write it saw.
    Put {
        value: String,
        outcome: WriteOutcome,
    },
    Delete {
        outcome: WriteOutcome,
    },
    Get {
        outcome: ReadOutcome,
    },
}

/// One request of one client, at quorum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Which client sent it; one client has one request under way at a time.
    pub client: u32,
    pub key: String,
    pub action: Action,
    pub invoked_ns: u64,
    pub returned_ns: u64,
}

impl Operation {
    /// The outcome of a put or a delete.
    pub fn write_outcome(&self) -> Option<&WriteOutcome> {
        match &self.action {
            Action::Put { outcome, .. } | Action::Delete { outcome } => Some(outcome),
            Action::Get { .. } => None,
        }
    }

    /// The stamp of an acknowledged write.
    pub fn acknowledged(&self) -> Option<Stamp> {
        match self.write_outcome()? {
            WriteOutcome::Done(stamp) => Some(*stamp),
            WriteOutcome::Failed(_) | WriteOutcome::Unknown(_) => None,
        }
    }

    /// Why the client got no answer, or no certain one.
    pub fn error(&self) -> Option<&str> {
        match &self.action {
            Action::Put { outcome, .. } | Action::Delete { outcome } => match outcome {
                WriteOutcome::Done(_) => None,
                WriteOutcome::Failed(why) | WriteOutcome::Unknown(why) => Some(why),
            },
            Action::Get { outcome } => match outcome {
                ReadOutcome::Found { .. } | ReadOutcome::Missing => None,
                ReadOutcome::Error(why) => Some(why),
            },
        }
    }

    /// True if this ended before `other` began.
    pub fn precedes(&self, other: &Self) -> bool {
        self.returned_ns <= other.invoked_ns
    }
}

/// `[client 3, 1.204s to 1.209s] put "k" = "v": done 0…1f`
impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |ns: u64| ns as f64 / 1e9;
        write!(
            f,
            "[client {}, {:.6}s to {:.6}s] ",
            self.client,
            seconds(self.invoked_ns),
            seconds(self.returned_ns)
        )?;
        match &self.action {
            Action::Put { value, outcome } => write!(f, "put {:?} = {value:?}: {outcome:?}", self.key),
            Action::Delete { outcome } => write!(f, "delete {:?}: {outcome:?}", self.key),
            Action::Get { outcome } => write!(f, "get {:?}: {outcome:?}", self.key),
        }
    }
}
