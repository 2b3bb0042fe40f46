//! The words in which a run is written down.
//!
//! Says nothing of whether the store did well. Invariant: an operation's `asked_at` is taken before its request
//! leaves and its `answered_at` after the answer came, so an operation that is answered before another one is asked
//! has ended before that one began.

use std::collections::BTreeMap;
use std::fmt;

/// A write's place in the total order of writes: 16 bytes, big-endian, as the store answers it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(pub [u8; 16]);

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// A key within its keyspace.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub keyspace: String,
    pub key: Vec<u8>,
}

impl Key {
    pub fn new(keyspace: &str, key: &[u8]) -> Self {
        Self { keyspace: keyspace.to_owned(), key: key.to_vec() }
    }
}

/// `default/greeting`
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.keyspace, self.key.escape_ascii())
    }
}

/// What a write in a causal keyspace knew, and so replaces. Of no meaning elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Context {
    /// The values that the given context stood for: those of the read that handed it out, or of the write that did,
    /// with that write's own. Empty: none was given, and a put becomes one more sibling.
    Values(Vec<Vec<u8>>),
    /// What the store itself finds when it takes the write: a delete without a context.
    WhateverIsThere,
}

impl Context {
    pub const NONE: Self = Self::Values(Vec::new());
}

/// When a value that expires vanishes, by the clock of the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// No read that ended before this may miss it. The slowest clock, and the first stamp, decide.
    pub not_before: u64,
    /// No read that began after this may see it. The fastest clock, and the last stamp, decide.
    pub not_after: u64,
}

/// How a put or a delete ended.
#[derive(Clone, PartialEq, Eq)]
pub enum WriteOutcome {
    /// Acknowledged by so many replicas, under this stamp.
    Done { stamp: Stamp, acks: u32 },
    /// Surely not applied anywhere. Says why.
    Failed(String),
    /// Applied, or not, or later; so many replicas are known to have it. Says why.
    Unknown { acks: u32, why: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// Unique among the puts of its key.
    pub value: Vec<u8>,
    pub context: Context,
    pub expiry: Option<Expiry>,
    /// True if the request may have reached the store more than once (a retry under one operation id, in a causal
    /// keyspace): what a replica took alone may come up once more after the value was replaced.
    pub is_repeated: bool,
    pub outcome: WriteOutcome,
}

impl Put {
    /// Without a context and for ever, sent once.
    pub fn new(value: &[u8], outcome: WriteOutcome) -> Self {
        Self { value: value.to_vec(), context: Context::NONE, expiry: None, is_repeated: false, outcome }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    pub context: Context,
    pub outcome: WriteOutcome,
}

/// One value of a key, as a read shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Seen {
    pub value: Vec<u8>,
    pub stamp: Stamp,
}

/// How a read ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// One value, or in a causal keyspace all siblings.
    Found(Vec<Seen>),
    /// The key has no value.
    Missing,
    /// The key has no value, and the harness can see that it was deleted, or expired, under this stamp.
    Deleted(Stamp),
    /// No answer, which says nothing about the key. Says why.
    Unanswered(String),
}

impl ReadOutcome {
    pub fn is_answered(&self) -> bool {
        !matches!(self, Self::Unanswered(_))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Put(Put),
    Delete(Removal),
    Get(ReadOutcome),
}

/// One request for one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Whose it is. Requests of one session may run side by side.
    pub session: u32,
    pub key: Key,
    pub asked_at: u64,
    pub answered_at: u64,
    /// When it had to be answered.
    pub deadline: Option<u64>,
    /// At quorum or above, and a write synced.
    pub is_promised: bool,
    pub action: Action,
}

impl Operation {
    /// A promised operation without a deadline; `times` are when it was asked and answered.
    pub fn new(session: u32, key: Key, times: (u64, u64), action: Action) -> Self {
        let (asked_at, answered_at) = times;
        Self { session, key, asked_at, answered_at, deadline: None, is_promised: true, action }
    }

    /// The outcome of a put or a delete.
    pub fn write_outcome(&self) -> Option<&WriteOutcome> {
        match &self.action {
            Action::Put(Put { outcome, .. }) | Action::Delete(Removal { outcome, .. }) => Some(outcome),
            Action::Get(_) => None,
        }
    }

    /// The stamp of an acknowledged write.
    pub fn acknowledged(&self) -> Option<Stamp> {
        match self.write_outcome()? {
            WriteOutcome::Done { stamp, .. } => Some(*stamp),
            WriteOutcome::Failed(_) | WriteOutcome::Unknown { .. } => None,
        }
    }

    /// Why the client got no answer, or no certain one.
    pub fn error(&self) -> Option<&str> {
        match &self.action {
            Action::Get(ReadOutcome::Unanswered(why)) => Some(why),
            Action::Get(_) => None,
            Action::Put(_) | Action::Delete(_) => match self.write_outcome()? {
                WriteOutcome::Done { .. } => None,
                WriteOutcome::Failed(why) | WriteOutcome::Unknown { why, .. } => Some(why),
            },
        }
    }

    /// True if this ended before `other` began.
    pub fn precedes(&self, other: &Self) -> bool {
        self.answered_at < other.asked_at
    }

    pub(crate) fn has_failed(&self) -> bool {
        matches!(self.write_outcome(), Some(WriteOutcome::Failed(_)))
    }
}

/// `[session 3, 1204 to 1209] put default/k = "v": done 0…1f (2 acks)`
/// The puts of one key by their values, with the operations that they belong to.
pub(crate) type Puts<'a> = BTreeMap<&'a [u8], (&'a Put, &'a Operation)>;

pub(crate) fn puts_of<'a>(operations: &[&'a Operation]) -> Puts<'a> {
    let mut puts = Puts::new();
    for operation in operations {
        if let Action::Put(put) = &operation.action {
            let before = puts.insert(&put.value, (put, operation));
            assert!(before.is_none(), "a harness writes each value once: {operation}");
        }
    }
    puts
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { session, key, asked_at, answered_at, deadline, is_promised, action } = self;
        write!(f, "[session {session}, {asked_at} to {answered_at}")?;
        if let Some(deadline) = deadline {
            write!(f, ", due {deadline}")?;
        }
        f.write_str(if *is_promised { "] " } else { ", no promise] " })?;
        match action {
            Action::Put(put) => {
                write!(f, "put {key:?} = {}{}", Quoted(&put.value), Replacing(&put.context))?;
                if let Some(Expiry { not_before, not_after }) = put.expiry {
                    write!(f, ", expires {not_before} to {not_after}")?;
                }
                write!(f, ": {:?}", put.outcome)
            }
            Action::Delete(Removal { context, outcome }) => {
                write!(f, "delete {key:?}{}: {outcome:?}", Replacing(context))
            }
            Action::Get(outcome) => write!(f, "get {key:?}: {outcome:?}"),
        }
    }
}

impl fmt::Debug for WriteOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done { stamp, acks } => write!(f, "done {stamp:?} ({acks} acks)"),
            Self::Failed(why) => write!(f, "failed ({why})"),
            Self::Unknown { acks, why } => write!(f, "unknown ({acks} acks; {why})"),
        }
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:?}", Quoted(&self.value), self.stamp)
    }
}

struct Quoted<'a>(&'a [u8]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

struct Replacing<'a>(&'a Context);

impl fmt::Display for Replacing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Context::Values(values) if values.is_empty() => Ok(()),
            Context::Values(values) => {
                let values: Vec<_> = values.iter().map(|value| Quoted(value).to_string()).collect();
                write!(f, " replacing {}", values.join(", "))
            }
            Context::WhateverIsThere => f.write_str(" replacing whatever is there"),
        }
    }
}
