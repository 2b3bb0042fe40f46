//! What clients asked of the store and were told, and which of the store's promises that breaks.
//!
//! One judge for everything that runs the store: the simulation of the core, real processes, and a real Kubernetes.
//! A harness writes down a [`History`], [`check`] names each broken [`Promise`]. Pure: no I/O, no clock, nothing but
//! the history, and nothing of the store's own code, which might share a mistake with what it judges.
//! Invariant: the history of a store that keeps its promises has no violation, whatever was lost, late or repeated.
//!
//! # How to write a history
//! - Times count from anywhere in any unit, but all by one clock: the operation asked at 5 began after another that
//!   was answered at 4, and may have run beside one that was answered at 5.
//! - Every value is written to its key once, so that a read tells which write it saw. Batches are written down as
//!   their single operations, all with the times of the batch.
//! - A request that nobody answered is an operation too: a write is [`WriteOutcome::Unknown`], a read is
//!   [`ReadOutcome::Unanswered`], and `answered_at` is when the client gave up (or `u64::MAX`).
//! - `is_promised` is true of requests at quorum or above, writes among them synced. Of the others, only what holds
//!   of any request is checked.
//!
//! ```
//! use keystore_history::{Action, History, Key, Operation, Promise, ReadOutcome, Rules, Stamp, check};
//! use keystore_history::{Put, WriteOutcome};
//!
//! let key = Key::new("default", b"k");
//! let put = Put::new(b"v", WriteOutcome::Done { stamp: Stamp([1; 16]), acks: 2 });
//! let operations = vec![
//!     Operation::new(1, key.clone(), (0, 10), Action::Put(put)),
//!     Operation::new(2, key, (20, 30), Action::Get(ReadOutcome::Missing)),
//! ];
//! let violations = check(&History { operations, scans: vec![] }, &Rules::default());
//! assert_eq!(violations[0].promise, Promise::AcknowledgedIsReadable);
//! ```
//!
//! # What is never held against the store
//! An unknown write may be there or not, and may appear at any later time. A write that found a higher stamp in its
//! way is stamped anew and may be seen at each of its stamps, of which the acknowledged one is the highest. What
//! expires may vanish from the beginning of its [`Expiry`] on.
//!
//! Modules in reading order; each uses only those before it.

mod operation;
mod promise;
mod scan;
mod evidence;
mod single;
mod registers;
mod siblings;
#[cfg(test)]
mod testing;

use std::collections::{BTreeMap, BTreeSet};

pub use operation::{
    Action, Context, Expiry, Key, Operation, Put, ReadOutcome, Removal, Seen, Stamp, WriteOutcome,
};
pub use promise::{Promise, Violation};
pub use scan::{KeyRange, Scan, ScanOutcome};

/// Everything that clients asked, in any order.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub operations: Vec<Operation>,
    pub scans: Vec<Scan>,
}

/// What the checkers have to know of the store and of the harness.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Keyspaces with causal contexts, where a key holds siblings; in all others it holds one value.
    pub causal_keyspaces: BTreeSet<String>,
    /// True if reads say [`ReadOutcome::Deleted`] wherever a mark of a delete or of an expiry is stored, and such
    /// marks are never removed: then a key with history that is [`ReadOutcome::Missing`] has lost it.
    pub sees_deletes: bool,
    /// How many replicas a promised write has to be acknowledged by; none: not checked.
    pub write_quorum: Option<u32>,
}

/// Every broken promise of a history.
pub fn check(history: &History, rules: &Rules) -> Vec<Violation> {
    let seen_in_scans = scan::observations(history);
    let mut violations = scan::check_keys(&history.scans);
    let operations: Vec<&Operation> = history.operations.iter().chain(&seen_in_scans).collect();
    violations.extend(single::check(&operations, rules));
    for (key, operations) in by_key(operations) {
        violations.extend(if rules.causal_keyspaces.contains(&key.keyspace) {
            siblings::check_key(operations)
        } else {
            registers::check_key(operations, rules)
        });
    }
    violations
}

/// The keys with an acknowledged write that no promised read was answered after: where one is listed, a history
/// without violations does not yet show that nothing was lost.
pub fn unread_keys(history: &History) -> Vec<Key> {
    let seen_in_scans = scan::observations(history);
    let keys = by_key(history.operations.iter().chain(&seen_in_scans).collect());
    keys.into_iter().filter(|(_, operations)| is_unread(operations)).map(|(key, _)| key.clone()).collect()
}

fn is_unread(operations: &[&Operation]) -> bool {
    let acknowledged = operations.iter().filter(|operation| operation.acknowledged().is_some());
    let Some(last) = acknowledged.map(|write| write.answered_at).max() else { return false };
    let is_late_read = |read: &&&Operation| {
        matches!(&read.action, Action::Get(outcome) if outcome.is_answered())
            && read.is_promised
            && read.asked_at > last
    };
    !operations.iter().any(|operation| is_late_read(&operation))
}

fn by_key(operations: Vec<&Operation>) -> BTreeMap<&Key, Vec<&Operation>> {
    let mut keys: BTreeMap<&Key, Vec<&Operation>> = BTreeMap::new();
    for operation in operations {
        keys.entry(&operation.key).or_default().push(operation);
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::testing::{delete, found, missing, put, put_failed, put_unknown, read_error};
    use super::*;

    #[test]
    fn keys_are_judged_apart() {
        let mut other = found((2, 3), "a", 1);
        other.key = Key::new("default", b"other");
        let operations = vec![put((0, 1), "a", 1), found((2, 3), "a", 1), other];
        let violations = check(&History { operations, scans: vec![] }, &Rules::default());
        let broken: BTreeSet<_> = violations.iter().map(|violation| violation.promise).collect();
        assert!(broken.contains(&Promise::OnlyWrittenIsRead), "the value of another key: {violations:?}");
    }

    #[test]
    fn keys_that_nobody_read_after_their_last_write_are_listed() {
        let unread: &[(&str, &[Operation])] = &[
            ("never read", &[put((0, 1), "a", 1)]),
            ("read before the last write", &[put((0, 1), "a", 1), found((2, 3), "a", 1), delete((4, 5), 2)]),
            ("read beside the last write", &[put((0, 3), "a", 1), found((2, 4), "a", 1)]),
            ("the read had no answer", &[put((0, 1), "a", 1), read_error((2, 3))]),
        ];
        let list = |operations: &[Operation]| {
            unread_keys(&History { operations: operations.to_vec(), scans: vec![] })
        };
        for (what, operations) in unread {
            assert_eq!(list(operations), [Key::new("default", b"k")], "{what}");
        }
        let read: &[(&str, &[Operation])] = &[
            ("read after", &[put((0, 1), "a", 1), found((2, 3), "a", 1)]),
            ("found to be missing", &[delete((0, 1), 1), missing((2, 3))]),
            ("nothing was acknowledged", &[put_unknown((0, 1), "a"), put_failed((2, 3), "b")]),
        ];
        for (what, operations) in read {
            assert!(list(operations).is_empty(), "{what}");
        }
    }
}
