//! Keyspaces in which the last writer wins, judged key by key.
//!
//! A *floor* is the least that a request has to see, because an operation that ended before it began has seen or
//! been promised that much; floors only grow.

use std::collections::BTreeMap;

use crate::Rules;
use crate::operation::{
    Action, Operation, Put, Puts, ReadOutcome, Removal, Seen, Stamp, WriteOutcome, puts_of,
};
use crate::promise::{Promise, Violation};

#[cfg(test)]
mod tests;

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
            Action::Put(_) => Promise::AcknowledgedIsReadable,
            Action::Delete(_) => Promise::DeletedStaysDeleted,
            Action::Get(_) if self.is_gone => Promise::DeletedStaysDeleted,
            Action::Get(_) => Promise::ReadsNeverGoBack,
        }
    }
}

/// Floors by the time from which each holds; both grow, operations being taken in the order of their answers.
#[derive(Default)]
struct Floors<'a>(Vec<(u64, Floor<'a>)>);

impl<'a> Floors<'a> {
    /// The highest floor left by the operations that ended before this one began.
    fn before(&self, operation: &Operation) -> Option<Floor<'a>> {
        let count = self.0.partition_point(|(since, _)| *since < operation.asked_at);
        Some(self.0.get(count.checked_sub(1)?)?.1)
    }

    fn raise(&mut self, operation: &Operation, floor: Floor<'a>) {
        if self.0.last().is_none_or(|(_, highest)| highest.rank() < floor.rank()) {
            self.0.push((operation.answered_at, floor));
        }
    }
}

/// What is known of one key so far, operations being taken in the order of their answers: whatever precedes an
/// operation has left its floor by the time that the operation is looked at.
struct KeyCheck<'a> {
    puts: Puts<'a>,
    deletes: Vec<&'a Operation>,
    floors: Floors<'a>,
    /// What each session has written itself.
    own: BTreeMap<u32, Floors<'a>>,
    sees_deletes: bool,
    violations: Vec<Violation>,
}

pub(crate) fn check_key(mut operations: Vec<&Operation>, rules: &Rules) -> Vec<Violation> {
    operations.sort_by_key(|operation| (operation.answered_at, operation.asked_at));
    let deletes = operations.iter().filter(|operation| matches!(operation.action, Action::Delete(_)));
    let mut check = KeyCheck {
        puts: puts_of(&operations),
        deletes: deletes.copied().collect(),
        floors: Floors::default(),
        own: BTreeMap::new(),
        sees_deletes: rules.sees_deletes,
        violations: Vec::new(),
    };
    for operation in operations {
        check.look_at(operation);
    }
    check.violations
}

impl<'a> KeyCheck<'a> {
    fn look_at(&mut self, operation: &'a Operation) {
        match &operation.action {
            Action::Put(Put { outcome, .. }) | Action::Delete(Removal { outcome, .. }) => match outcome {
                WriteOutcome::Done { stamp, .. } if operation.is_promised => self.write(operation, *stamp),
                WriteOutcome::Done { .. } | WriteOutcome::Failed(_) | WriteOutcome::Unknown { .. } => {}
            },
            Action::Get(ReadOutcome::Found(values)) => match &values[..] {
                [seen] => self.found(operation, seen),
                _ => self.broken(Promise::OneWriteOneValue, None, operation),
            },
            Action::Get(ReadOutcome::Missing) if operation.is_promised => self.missing(operation),
            Action::Get(ReadOutcome::Deleted(stamp)) => self.deleted(operation, *stamp),
            Action::Get(ReadOutcome::Missing | ReadOutcome::Unanswered(_)) => {}
        }
    }

    fn write(&mut self, write: &'a Operation, stamp: Stamp) {
        if let Some(floor) = self.floors.before(write).filter(|floor| stamp <= floor.stamp) {
            self.broken(Promise::LaterWritesWin, Some(floor.by), write);
        }
        let floor = Floor { stamp, is_gone: matches!(write.action, Action::Delete(_)), by: write };
        self.floors.raise(write, floor);
        self.own.entry(write.session).or_default().raise(write, floor);
    }

    fn found(&mut self, read: &'a Operation, seen: &'a Seen) {
        self.check_source(read, seen);
        if read.is_promised {
            self.see(read, Floor { stamp: seen.stamp, is_gone: false, by: read });
        }
    }

    /// The harness sees the mark of a delete or of an expiry.
    fn deleted(&mut self, read: &'a Operation, stamp: Stamp) {
        if !self.may_be_gone(read, |highest| stamp <= highest, |highest| stamp <= highest) {
            let failed = self.deletes.iter().copied().find(|delete| delete.has_failed());
            let promise =
                if failed.is_some() { Promise::FailedIsNotApplied } else { Promise::OnlyWrittenIsRead };
            self.broken(promise, failed, read);
        }
        if read.is_promised {
            self.see(read, Floor { stamp, is_gone: true, by: read });
        }
    }

    /// A missing key is fine below a delete or an expiry, and shows that what was below is gone.
    fn missing(&mut self, read: &'a Operation) {
        let Some(floor) = self.floors.before(read) else { return };
        let is_fine = |floor: Floor<'_>| {
            !self.sees_deletes
                && (floor.is_gone
                    || self.may_be_gone(
                        read,
                        |deleted| floor.stamp < deleted,
                        |expired| floor.stamp <= expired,
                    ))
        };
        let own = self.own_floor(read).filter(|floor| !is_fine(*floor));
        if !is_fine(floor) {
            self.broken(floor.promise(), Some(floor.by), read);
        }
        if let Some(own) = own {
            self.broken(Promise::ReadYourWrites, Some(own.by), read);
        }
        self.floors.raise(read, Floor { is_gone: true, by: read, ..floor });
    }

    /// What a promised read sees must not be below what was promised before.
    fn see(&mut self, read: &'a Operation, seen: Floor<'a>) {
        let is_below = |floor: &Floor<'_>| seen.rank() < floor.rank();
        if let Some(floor) = self.floors.before(read).filter(is_below) {
            self.broken(floor.promise(), Some(floor.by), read);
        }
        if let Some(own) = self.own_floor(read).filter(is_below) {
            self.broken(Promise::ReadYourWrites, Some(own.by), read);
        }
        self.floors.raise(read, seen);
    }

    fn own_floor(&self, read: &Operation) -> Option<Floor<'a>> {
        self.own.get(&read.session)?.before(read)
    }

    /// That the value was written, by a write that may have borne the stamp.
    fn check_source(&mut self, read: &'a Operation, seen: &Seen) {
        let Some((put, operation)) = self.puts.get(seen.value.as_slice()).copied() else {
            return self.broken(Promise::OnlyWrittenIsRead, None, read);
        };
        if read.precedes(operation) {
            self.broken(Promise::OnlyWrittenIsRead, Some(operation), read);
        }
        if put.expiry.is_some_and(|expiry| expiry.not_after < read.asked_at) {
            self.broken(Promise::ExpiredIsGone, Some(operation), read);
        }
        match put.outcome {
            WriteOutcome::Done { stamp: highest, .. } if seen.stamp > highest => {
                self.broken(Promise::StampsNameOneWrite, Some(operation), read);
            }
            WriteOutcome::Failed(_) => self.broken(Promise::FailedIsNotApplied, Some(operation), read),
            WriteOutcome::Done { .. } | WriteOutcome::Unknown { .. } => {}
        }
    }

    /// True if a delete, or a put that may have expired, had begun when `read` was answered and may have left the
    /// key without a value, by the highest stamp that it may bear.
    fn may_be_gone(
        &self,
        read: &Operation,
        is_deleted_at: impl Fn(Stamp) -> bool,
        is_expired_at: impl Fn(Stamp) -> bool,
    ) -> bool {
        let may_bear = |write: &Operation, is_enough: &dyn Fn(Stamp) -> bool| match write.write_outcome() {
            Some(WriteOutcome::Done { stamp, .. }) => is_enough(*stamp),
            Some(WriteOutcome::Unknown { .. }) => true,
            Some(WriteOutcome::Failed(_)) | None => false,
        };
        let has_begun = |write: &Operation| !read.precedes(write);
        let is_over = |put: &Put| put.expiry.is_some_and(|expiry| expiry.not_before <= read.answered_at);
        self.deletes.iter().any(|delete| has_begun(delete) && may_bear(delete, &is_deleted_at))
            || self.puts.values().any(|(put, operation)| {
                is_over(put) && has_begun(operation) && may_bear(operation, &is_expired_at)
            })
    }

    fn broken(&mut self, promise: Promise, earlier: Option<&Operation>, later: &Operation) {
        self.violations.push(Violation::new(promise, earlier, later));
    }
}
