//! What a single operation has to keep to, and what the stamps of all of them have to.

use std::collections::{BTreeMap, BTreeSet};

use crate::Rules;
use crate::operation::{Action, Key, Operation, Put, ReadOutcome, Removal, Stamp, WriteOutcome};
use crate::promise::{Promise, Violation};

pub(crate) fn check(operations: &[&Operation], rules: &Rules) -> Vec<Violation> {
    let mut violations = check_stamps(operations);
    for operation in operations {
        let broken = |promise| Violation::new(promise, None, operation);
        if operation.deadline.is_some_and(|deadline| operation.answered_at > deadline) {
            violations.push(broken(Promise::AnsweredInTime));
        }
        if let Some(WriteOutcome::Done { acks, .. }) = operation.write_outcome()
            && operation.is_promised
            && rules.write_quorum.is_some_and(|quorum| *acks < quorum)
        {
            violations.push(broken(Promise::AcknowledgedByQuorum));
        }
    }
    violations
}

/// What a stamp was seen with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Named<'a> {
    Value(&'a [u8]),
    /// An acknowledged delete, by its place in the history: no two are one.
    Delete(usize),
    /// The mark that a delete or an expiry has left.
    Mark,
}

impl Named<'_> {
    /// True if both may be one write. A mark bears the stamp of the delete, or of the put that expired.
    fn is_same(self, other: Self, can_expire: bool) -> bool {
        match (self, other) {
            (Self::Mark, Self::Value(_)) | (Self::Value(_), Self::Mark) => can_expire,
            (Self::Mark, Self::Delete(_)) | (Self::Delete(_), Self::Mark) => true,
            _ => self == other,
        }
    }
}

/// One stamp, one write, over all keys and keyspaces.
fn check_stamps(operations: &[&Operation]) -> Vec<Violation> {
    let mut sorted: Vec<_> = operations.iter().enumerate().collect();
    sorted.sort_by_key(|(_, operation)| (operation.answered_at, operation.asked_at));
    let mut expiring: BTreeSet<&Key> = BTreeSet::new();
    for operation in operations {
        if matches!(&operation.action, Action::Put(put) if put.expiry.is_some()) {
            expiring.insert(&operation.key);
        }
    }
    let mut first: BTreeMap<Stamp, (&Key, Named<'_>, &Operation)> = BTreeMap::new();
    let mut violations = Vec::new();
    for (index, operation) in sorted {
        for (stamp, named) in named(index, operation) {
            let (key, other, earlier) = *first.entry(stamp).or_insert((&operation.key, named, operation));
            let can_expire = expiring.contains(key);
            if *key != operation.key || !named.is_same(other, can_expire) {
                violations.push(Violation::new(Promise::StampsNameOneWrite, Some(earlier), operation));
            }
        }
    }
    violations
}

fn named(index: usize, operation: &Operation) -> Vec<(Stamp, Named<'_>)> {
    match &operation.action {
        Action::Put(Put { value, outcome: WriteOutcome::Done { stamp, .. }, .. }) => {
            vec![(*stamp, Named::Value(value))]
        }
        Action::Delete(Removal { outcome: WriteOutcome::Done { stamp, .. }, .. }) => {
            vec![(*stamp, Named::Delete(index))]
        }
        Action::Get(ReadOutcome::Found(values)) => {
            values.iter().map(|seen| (seen.stamp, Named::Value(seen.value.as_slice()))).collect()
        }
        Action::Get(ReadOutcome::Deleted(stamp)) => vec![(*stamp, Named::Mark)],
        Action::Put(_)
        | Action::Delete(_)
        | Action::Get(ReadOutcome::Missing | ReadOutcome::Unanswered(_)) => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_table, delete, delete_unknown, put};

    #[test]
    fn a_request_is_answered_by_its_deadline() {
        let due = |deadline| Operation { deadline: Some(deadline), ..put((0, 5), "a", 1) };
        check_table("in time", &[due(5)], &Rules::default(), &[]);
        check_table("late", &[due(4)], &Rules::default(), &[Promise::AnsweredInTime]);
        let never = Operation { answered_at: u64::MAX, ..due(4) };
        check_table("never", &[never], &Rules::default(), &[Promise::AnsweredInTime]);
    }

    #[test]
    fn an_acknowledgement_is_that_of_a_quorum() {
        let needs = |write_quorum| Rules { write_quorum: Some(write_quorum), ..Rules::default() };
        check_table("two of two", &[put((0, 1), "a", 1)], &needs(2), &[]);
        check_table("two of three", &[put((0, 1), "a", 1)], &needs(3), &[Promise::AcknowledgedByQuorum]);
        let at_one = Operation { is_promised: false, ..put((0, 1), "a", 1) };
        check_table("nothing promised", &[at_one], &needs(3), &[]);
    }

    #[test]
    fn a_stamp_is_of_one_key_and_one_write() {
        let other = |mut operation: Operation| {
            operation.key = Key::new("other", b"k");
            operation
        };
        let broken = [Promise::StampsNameOneWrite];
        let (a, b) = (put((0, 2), "a", 1), put((1, 3), "b", 1));
        check_table("another keyspace", &[a.clone(), other(b)], &Rules::default(), &broken);
        let deletes = [delete((0, 2), 1), delete((1, 3), 1)];
        check_table("two deletes", &deletes, &Rules::default(), &broken);
        check_table("one of two is unknown", &[a, delete_unknown((1, 3))], &Rules::default(), &[]);
    }
}
