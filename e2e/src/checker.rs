//! Says which promises a history breaks. Pure: no I/O, no clock, nothing but the history.
//!
//! Everything is judged per key. A *floor* is the least that a request has to see, because an operation that ended
//! before it began has seen or been promised that much; floors only grow. What is not certain is never held against
//! the store: an unknown write may be there or not, at any stamp; a write that was stamped anew may be seen at any
//! of its stamps, and the one that it was acknowledged under is the highest. Failed writes are never there.
//! Invariant: a history of a store that keeps its promises has no violation, whatever was lost, late or repeated.

use std::collections::BTreeMap;
use std::fmt;

use crate::history::{Action, Operation, ReadOutcome, Stamp, WriteOutcome};

#[cfg(test)]
mod tests;

/// What the store promises of quorum requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// Every acknowledged write is readable, with its value or a later one.
    AcknowledgedIsReadable,
    /// Nothing deleted is back.
    DeletedStaysDeleted,
    /// No read goes back behind another that ended before it began.
    ReadsNeverGoBack,
    /// A write that is acknowledged comes, by stamp, after all that ended before it began.
    LaterWritesWin,
    /// A read returns nothing but what somebody wrote before the read ended.
    OnlyWrittenIsRead,
    /// What failed was applied nowhere.
    FailedIsNotApplied,
    /// One stamp names one write, and no write is seen above the stamp that it was acknowledged under.
    StampsNameOneWrite,
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AcknowledgedIsReadable => "every acknowledged write is readable",
            Self::DeletedStaysDeleted => "nothing deleted is back",
            Self::ReadsNeverGoBack => "no quorum read goes back",
            Self::LaterWritesWin => "a later write wins over an earlier one",
            Self::OnlyWrittenIsRead => "only what was written is read",
            Self::FailedIsNotApplied => "a failed write is applied nowhere",
            Self::StampsNameOneWrite => "a stamp names one write",
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

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {:?} breaks \"{}\": {}", self.later.key, self.promise, self.later)?;
        match &self.earlier {
            Some(earlier) => write!(f, "\n    against {earlier}"),
            None => Ok(()),
        }
    }
}

/// Every broken promise of a history of quorum requests, in whatever order its operations are.
pub fn check(history: &[Operation]) -> Vec<Violation> {
    by_key(history).into_values().flat_map(check_key).collect()
}

/// The keys with an acknowledged write that no read was answered after: where one is listed, a history without
/// violations does not yet show that nothing was lost.
pub fn unread_keys(history: &[Operation]) -> Vec<&str> {
    by_key(history).into_iter().filter(|(_, operations)| is_unread(operations)).map(|(key, _)| key).collect()
}

fn is_unread(operations: &[&Operation]) -> bool {
    let acknowledged = operations.iter().filter(|operation| operation.acknowledged().is_some());
    let Some(last_ns) = acknowledged.map(|write| write.returned_ns).max() else { return false };
    let mut reads = operations.iter().filter(|operation| matches!(operation.action, Action::Get { .. }));
    !reads.any(|read| read.error().is_none() && read.invoked_ns >= last_ns)
}

fn by_key(history: &[Operation]) -> BTreeMap<&str, Vec<&Operation>> {
    let mut keys: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in history {
        keys.entry(&operation.key).or_default().push(operation);
    }
    keys
}

/// The least that a request has to see.
#[derive(Clone, Copy)]
struct Floor<'a> {
    stamp: Stamp,
    /// True if the value at `stamp` is already known to be gone, false if it may still be there.
    is_gone: bool,
    /// Who saw it or was promised it.
    by: &'a Operation,
}

impl Floor<'_> {
    fn rank(&self) -> (Stamp, bool) {
        (self.stamp, self.is_gone)
    }

    /// The promise that a read below this floor breaks.
    fn promise(&self) -> Promise {
        match &self.by.action {
            Action::Put { .. } => Promise::AcknowledgedIsReadable,
            Action::Delete { .. } => Promise::DeletedStaysDeleted,
            Action::Get { .. } if self.is_gone => Promise::DeletedStaysDeleted,
            Action::Get { .. } => Promise::ReadsNeverGoBack,
        }
    }
}

/// What is known of one key so far, operations being taken in the order of their return: whatever precedes an
/// operation has left its floor by the time that the operation is looked at.
struct KeyCheck<'a> {
    puts: BTreeMap<&'a str, &'a Operation>,
    deletes: Vec<&'a Operation>,
    /// By the time from which each holds; both grow.
    floors: Vec<(u64, Floor<'a>)>,
    /// What each stamp was first seen with (none: a delete), and by whom.
    stamps: BTreeMap<Stamp, (Option<&'a str>, &'a Operation)>,
    violations: Vec<Violation>,
}

fn check_key(mut operations: Vec<&Operation>) -> Vec<Violation> {
    operations.sort_by_key(|operation| (operation.returned_ns, operation.invoked_ns));
    let mut check = KeyCheck {
        puts: BTreeMap::new(),
        deletes: Vec::new(),
        floors: Vec::new(),
        stamps: BTreeMap::new(),
        violations: Vec::new(),
    };
    for operation in &operations {
        match &operation.action {
            Action::Put { value, .. } => drop(check.puts.insert(value, operation)),
            Action::Delete { .. } => check.deletes.push(operation),
            Action::Get { .. } => {}
        }
    }
    for operation in operations {
        match &operation.action {
            Action::Put { value, outcome: WriteOutcome::Done(stamp) } => {
                check.write(operation, *stamp, Some(value));
            }
            Action::Delete { outcome: WriteOutcome::Done(stamp) } => check.write(operation, *stamp, None),
            Action::Get { outcome: ReadOutcome::Found { value, stamp } } => {
                check.found(operation, value, *stamp);
            }
            Action::Get { outcome: ReadOutcome::Missing } => check.missing(operation),
            Action::Put { outcome: WriteOutcome::Failed(_) | WriteOutcome::Unknown(_), .. }
            | Action::Delete { outcome: WriteOutcome::Failed(_) | WriteOutcome::Unknown(_) }
            | Action::Get { outcome: ReadOutcome::Error(_) } => {}
        }
    }
    check.violations
}

impl<'a> KeyCheck<'a> {
    /// An acknowledged write; `value` is none for a delete.
    fn write(&mut self, write: &'a Operation, stamp: Stamp, value: Option<&'a str>) {
        if let Some(floor) = self.floor(write).filter(|floor| stamp <= floor.stamp) {
            self.broken(Promise::LaterWritesWin, Some(floor.by), write);
        }
        self.saw(stamp, value, write);
        self.raise(write, Floor { stamp, is_gone: value.is_none(), by: write });
    }

    fn found(&mut self, read: &'a Operation, value: &'a str, stamp: Stamp) {
        self.check_source(read, value, stamp);
        if let Some(floor) = self.floor(read).filter(|floor| (stamp, false) < floor.rank()) {
            self.broken(floor.promise(), Some(floor.by), read);
        }
        self.saw(stamp, Some(value), read);
        self.raise(read, Floor { stamp, is_gone: false, by: read });
    }

    /// A missing key is fine below a delete, and shows that what was below is gone.
    fn missing(&mut self, read: &'a Operation) {
        let Some(floor) = self.floor(read) else { return };
        if !floor.is_gone && !self.may_be_deleted(floor.stamp, read) {
            self.broken(floor.promise(), Some(floor.by), read);
        }
        self.raise(read, Floor { is_gone: true, by: read, ..floor });
    }

    /// That the value was written, by a write that may have borne the stamp.
    fn check_source(&mut self, read: &'a Operation, value: &str, stamp: Stamp) {
        let Some(put) = self.puts.get(value).copied() else {
            return self.broken(Promise::OnlyWrittenIsRead, None, read);
        };
        if read.precedes(put) {
            self.broken(Promise::OnlyWrittenIsRead, Some(put), read);
        }
        match put.write_outcome() {
            Some(WriteOutcome::Done(highest)) if stamp > *highest => {
                self.broken(Promise::StampsNameOneWrite, Some(put), read);
            }
            Some(WriteOutcome::Failed(_)) => self.broken(Promise::FailedIsNotApplied, Some(put), read),
            Some(WriteOutcome::Done(_) | WriteOutcome::Unknown(_)) | None => {}
        }
    }

    /// True if some delete that had begun when `read` returned may bear a stamp above `stamp`.
    fn may_be_deleted(&self, stamp: Stamp, read: &Operation) -> bool {
        self.deletes.iter().filter(|delete| !read.precedes(delete)).any(|delete| {
            match delete.write_outcome() {
                Some(WriteOutcome::Done(highest)) => *highest > stamp,
                Some(WriteOutcome::Unknown(_)) => true,
                Some(WriteOutcome::Failed(_)) | None => false,
            }
        })
    }

    fn saw(&mut self, stamp: Stamp, value: Option<&'a str>, by: &'a Operation) {
        let (first, who) = *self.stamps.entry(stamp).or_insert((value, by));
        if first != value {
            self.broken(Promise::StampsNameOneWrite, Some(who), by);
        }
    }

    /// The highest floor left by the operations that ended before this one began.
    fn floor(&self, operation: &Operation) -> Option<Floor<'a>> {
        let count = self.floors.partition_point(|(since_ns, _)| *since_ns <= operation.invoked_ns);
        Some(self.floors.get(count.checked_sub(1)?)?.1)
    }

    fn raise(&mut self, operation: &Operation, floor: Floor<'a>) {
        if self.floors.last().is_none_or(|(_, highest)| highest.rank() < floor.rank()) {
            self.floors.push((operation.returned_ns, floor));
        }
    }

    fn broken(&mut self, promise: Promise, earlier: Option<&Operation>, later: &Operation) {
        self.violations.push(Violation { promise, earlier: earlier.cloned(), later: later.clone() });
    }
}
