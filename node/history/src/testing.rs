//! Short words for the operations of test histories, and the table that they go into.

use crate::operation::{
    Action, Context, Expiry, Key, Operation, Put, ReadOutcome, Removal, Seen, Stamp, WriteOutcome,
};
use crate::promise::Promise;
use crate::{History, Rules, check};

pub(crate) const CAUSAL: &str = "causal";

pub(crate) fn stamp(n: u8) -> Stamp {
    let mut bytes = [0; 16];
    bytes[15] = n;
    Stamp(bytes)
}

pub(crate) fn done(at: u8) -> WriteOutcome {
    WriteOutcome::Done { stamp: stamp(at), acks: 2 }
}

pub(crate) fn failed() -> WriteOutcome {
    WriteOutcome::Failed("refused".into())
}

pub(crate) fn unknown() -> WriteOutcome {
    WriteOutcome::Unknown { acks: 1, why: "timeout".into() }
}

/// An operation on key "k", from `times.0` to `times.1`. Each is a session of its own: the time that it began.
pub(crate) fn operation(times: (u64, u64), action: Action) -> Operation {
    Operation::new(u32::try_from(times.0).unwrap(), Key::new("default", b"k"), times, action)
}

pub(crate) fn write(times: (u64, u64), value: &str, outcome: WriteOutcome) -> Operation {
    operation(times, Action::Put(Put::new(value.as_bytes(), outcome)))
}

pub(crate) fn put(times: (u64, u64), value: &str, at: u8) -> Operation {
    write(times, value, done(at))
}

pub(crate) fn put_unknown(times: (u64, u64), value: &str) -> Operation {
    write(times, value, unknown())
}

pub(crate) fn put_failed(times: (u64, u64), value: &str) -> Operation {
    write(times, value, failed())
}

/// The same put, of a value that expires.
pub(crate) fn expiring(mut put: Operation, not_before: u64, not_after: u64) -> Operation {
    if let Action::Put(put) = &mut put.action {
        put.expiry = Some(Expiry { not_before, not_after });
    }
    put
}

pub(crate) fn remove(times: (u64, u64), context: Context, outcome: WriteOutcome) -> Operation {
    operation(times, Action::Delete(Removal { context, outcome }))
}

pub(crate) fn delete(times: (u64, u64), at: u8) -> Operation {
    remove(times, Context::WhateverIsThere, done(at))
}

pub(crate) fn delete_unknown(times: (u64, u64)) -> Operation {
    remove(times, Context::WhateverIsThere, unknown())
}

pub(crate) fn delete_failed(times: (u64, u64)) -> Operation {
    remove(times, Context::WhateverIsThere, failed())
}

pub(crate) fn seen(value: &str, at: u8) -> Seen {
    Seen { value: value.into(), stamp: stamp(at) }
}

pub(crate) fn found(times: (u64, u64), value: &str, at: u8) -> Operation {
    operation(times, Action::Get(ReadOutcome::Found(vec![seen(value, at)])))
}

pub(crate) fn missing(times: (u64, u64)) -> Operation {
    operation(times, Action::Get(ReadOutcome::Missing))
}

pub(crate) fn gone(times: (u64, u64), at: u8) -> Operation {
    operation(times, Action::Get(ReadOutcome::Deleted(stamp(at))))
}

pub(crate) fn read_error(times: (u64, u64)) -> Operation {
    operation(times, Action::Get(ReadOutcome::Unanswered("unreachable".into())))
}

/// The same operation, of which nothing was promised.
pub(crate) fn at_one(mut operation: Operation) -> Operation {
    operation.is_promised = false;
    operation
}

/// The promises that a history breaks, which must not depend on the order in which it was written down.
#[track_caller]
pub(crate) fn check_table(what: &str, operations: &[Operation], rules: &Rules, expected: &[Promise]) {
    let mut operations = operations.to_vec();
    for _ in 0..2 {
        operations.reverse();
        let violations = check(&History { operations: operations.clone(), scans: vec![] }, rules);
        let mut broken: Vec<_> = violations.iter().map(|violation| violation.promise).collect();
        broken.sort_unstable();
        assert_eq!(broken, expected, "{what}: {violations:#?}");
    }
}
