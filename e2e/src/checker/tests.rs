//! Good and bad histories, as data.

use super::*;

fn stamp(n: u8) -> Stamp {
    let mut bytes = [0; 16];
    bytes[15] = n;
    Stamp(bytes)
}

/// An operation on key "k" from `times.0` to `times.1`.
fn operation(times: (u64, u64), action: Action) -> Operation {
    Operation { client: 0, key: "k".into(), action, invoked_ns: times.0, returned_ns: times.1 }
}

fn put(times: (u64, u64), value: &str, at: u8) -> Operation {
    operation(times, Action::Put { value: value.into(), outcome: WriteOutcome::Done(stamp(at)) })
}

fn put_unknown(times: (u64, u64), value: &str) -> Operation {
    operation(times, Action::Put { value: value.into(), outcome: WriteOutcome::Unknown("timeout".into()) })
}

fn put_failed(times: (u64, u64), value: &str) -> Operation {
    operation(times, Action::Put { value: value.into(), outcome: WriteOutcome::Failed("refused".into()) })
}

fn delete(times: (u64, u64), at: u8) -> Operation {
    operation(times, Action::Delete { outcome: WriteOutcome::Done(stamp(at)) })
}

fn delete_unknown(times: (u64, u64)) -> Operation {
    operation(times, Action::Delete { outcome: WriteOutcome::Unknown("timeout".into()) })
}

fn delete_failed(times: (u64, u64)) -> Operation {
    operation(times, Action::Delete { outcome: WriteOutcome::Failed("refused".into()) })
}

fn found(times: (u64, u64), value: &str, at: u8) -> Operation {
    operation(times, Action::Get { outcome: ReadOutcome::Found { value: value.into(), stamp: stamp(at) } })
}

fn missing(times: (u64, u64)) -> Operation {
    operation(times, Action::Get { outcome: ReadOutcome::Missing })
}

fn read_error(times: (u64, u64)) -> Operation {
    operation(times, Action::Get { outcome: ReadOutcome::Error("unreachable".into()) })
}

/// The promises broken, in whatever order the operations are written down.
#[track_caller]
fn check_table(what: &str, history: &[Operation], expected: &[Promise]) {
    let mut reversed = history.to_vec();
    reversed.reverse();
    for history in [history, &reversed] {
        let broken: Vec<_> = check(history).into_iter().map(|violation| violation.promise).collect();
        assert_eq!(broken, expected, "{what}");
    }
}

#[test]
fn histories_that_keep_every_promise_pass() {
    let cases: &[(&str, &[Operation])] = &[
        ("nothing happened", &[]),
        ("a key that nobody wrote is missing", &[missing((0, 1))]),
        ("what was written is read", &[put((0, 1), "a", 1), found((2, 3), "a", 1)]),
        ("a later write is read", &[put((0, 1), "a", 1), put((2, 3), "b", 2), found((4, 5), "b", 2)]),
        (
            "a read beside a write sees the old",
            &[put((0, 1), "a", 1), put((2, 9), "b", 2), found((3, 4), "a", 1)],
        ),
        (
            "a read beside a write sees the new",
            &[put((0, 1), "a", 1), put((2, 9), "b", 2), found((3, 4), "b", 2)],
        ),
        ("a read beside the first write sees nothing", &[put((0, 9), "a", 1), missing((1, 2))]),
        (
            "two reads side by side may differ",
            &[put((0, 1), "a", 1), put((2, 9), "b", 2), found((3, 6), "b", 2), found((4, 7), "a", 1)],
        ),
        (
            "writes side by side may end in either order",
            &[put((0, 9), "a", 2), put((1, 8), "b", 1), found((10, 11), "a", 2)],
        ),
        ("what was deleted is missing", &[put((0, 1), "a", 1), delete((2, 3), 2), missing((4, 5))]),
        ("a delete under way may show", &[put((0, 1), "a", 1), delete((2, 9), 2), missing((3, 4))]),
        (
            "a deleted key is written again",
            &[put((0, 1), "a", 1), delete((2, 3), 2), put((4, 5), "b", 3), found((6, 7), "b", 3)],
        ),
        ("a delete of nothing", &[delete((0, 1), 1), missing((2, 3))]),
        (
            "an unknown write is there",
            &[put((0, 1), "a", 1), put_unknown((2, 3), "b"), found((4, 5), "b", 2)],
        ),
        (
            "an unknown write is not there",
            &[put((0, 1), "a", 1), put_unknown((2, 3), "b"), found((4, 5), "a", 1)],
        ),
        (
            "an unknown write shows late",
            &[put((0, 1), "a", 1), put_unknown((2, 3), "b"), found((4, 5), "a", 1), found((6, 7), "b", 2)],
        ),
        (
            "an unknown write loses to one acknowledged since",
            &[put_unknown((0, 1), "a"), put((2, 3), "b", 5), found((4, 5), "b", 5)],
        ),
        ("an unknown delete happened", &[put((0, 1), "a", 1), delete_unknown((2, 3)), missing((4, 5))]),
        ("an unknown delete did not", &[put((0, 1), "a", 1), delete_unknown((2, 3)), found((4, 5), "a", 1)]),
        (
            "an unknown delete is overwritten",
            &[
                put((0, 1), "a", 1),
                delete_unknown((2, 3)),
                missing((4, 5)),
                put((6, 7), "b", 3),
                found((8, 9), "b", 3),
            ],
        ),
        (
            "a failed write is not there",
            &[put((0, 1), "a", 1), put_failed((2, 3), "b"), found((4, 5), "a", 1)],
        ),
        ("a failed delete did nothing", &[put((0, 1), "a", 1), delete_failed((2, 3)), found((4, 5), "a", 1)]),
        (
            "a read without an answer says nothing",
            &[put((0, 1), "a", 1), read_error((2, 3)), found((4, 5), "a", 1)],
        ),
        (
            "a write stamped anew is seen at both stamps",
            &[put((0, 9), "a", 5), found((1, 2), "a", 1), found((3, 4), "a", 5), found((10, 11), "a", 5)],
        ),
        (
            "between the stamps of one write another is seen",
            &[
                put((0, 20), "a", 5),
                found((1, 2), "a", 1),
                put_unknown((3, 4), "b"),
                found((5, 6), "b", 3),
                found((21, 22), "a", 5),
            ],
        ),
        (
            "a delete stamped anew shows before a write that outlives its first stamp",
            &[
                put((0, 1), "a", 1),
                delete((2, 20), 9),
                missing((3, 4)),
                put_unknown((5, 6), "b"),
                found((7, 8), "b", 4),
                missing((21, 22)),
            ],
        ),
    ];
    for (what, history) in cases {
        check_table(what, history, &[]);
    }
}

#[test]
fn every_broken_promise_is_caught_and_named() {
    use Promise::{
        AcknowledgedIsReadable, DeletedStaysDeleted, FailedIsNotApplied, LaterWritesWin, OnlyWrittenIsRead,
        ReadsNeverGoBack, StampsNameOneWrite,
    };
    let cases: &[(Promise, &str, &[Operation])] = &[
        (AcknowledgedIsReadable, "a write is lost", &[put((0, 1), "a", 1), missing((2, 3))]),
        (
            AcknowledgedIsReadable,
            "an overwrite is lost",
            &[put((0, 1), "a", 1), put((2, 3), "b", 2), found((4, 5), "a", 1)],
        ),
        (
            AcknowledgedIsReadable,
            "a write is lost to an unknown one of before",
            &[put_unknown((0, 1), "a"), put((2, 3), "b", 5), found((4, 5), "a", 4)],
        ),
        (
            AcknowledgedIsReadable,
            "a write is lost, and a failed delete is no excuse",
            &[put((0, 1), "a", 1), delete_failed((2, 3)), missing((4, 5))],
        ),
        (
            AcknowledgedIsReadable,
            "a write is lost, and a delete of before is no excuse",
            &[delete((0, 1), 1), put((2, 3), "a", 2), missing((4, 5))],
        ),
        (
            AcknowledgedIsReadable,
            "a write is lost before a delete begins",
            &[put((0, 1), "a", 1), missing((2, 3)), delete((4, 5), 2)],
        ),
        (
            AcknowledgedIsReadable,
            "a write stamped anew is seen at its old stamp after all",
            &[put((0, 1), "a", 5), found((2, 3), "a", 1)],
        ),
        (
            DeletedStaysDeleted,
            "a deleted value is back",
            &[put((0, 1), "a", 1), delete((2, 3), 2), found((4, 5), "a", 1)],
        ),
        (
            DeletedStaysDeleted,
            "it is back after it was seen to be gone",
            &[put((0, 1), "a", 1), delete((2, 9), 2), missing((3, 4)), found((5, 6), "a", 1)],
        ),
        (
            DeletedStaysDeleted,
            "it is back though the delete was unknown",
            &[put((0, 1), "a", 1), delete_unknown((2, 3)), missing((4, 5)), found((6, 7), "a", 1)],
        ),
        (
            DeletedStaysDeleted,
            "an unknown write of before the delete is back",
            &[put_unknown((0, 1), "a"), delete((2, 3), 5), found((4, 5), "a", 4)],
        ),
        (
            ReadsNeverGoBack,
            "a value that was seen is replaced by an older one",
            &[put((0, 1), "a", 1), put((2, 9), "b", 2), found((3, 4), "b", 2), found((5, 6), "a", 1)],
        ),
        (
            ReadsNeverGoBack,
            "an unknown write that was seen is gone",
            &[put((0, 1), "a", 1), put_unknown((2, 3), "b"), found((4, 5), "b", 2), found((6, 7), "a", 1)],
        ),
        (
            ReadsNeverGoBack,
            "a first write that was seen is missing",
            &[put_unknown((0, 9), "a"), found((1, 2), "a", 1), missing((3, 4))],
        ),
        (
            LaterWritesWin,
            "a later write is ordered before an earlier one",
            &[put((0, 1), "a", 5), put((2, 3), "b", 4), found((4, 5), "a", 5)],
        ),
        (
            LaterWritesWin,
            "a delete is ordered before the write that it follows",
            &[put((0, 1), "a", 5), delete((2, 3), 4), found((4, 5), "a", 5)],
        ),
        (
            LaterWritesWin,
            "a write is ordered before what a read had shown",
            &[put_unknown((0, 9), "a"), found((1, 2), "a", 5), put((3, 4), "b", 4)],
        ),
        (OnlyWrittenIsRead, "a value comes from nowhere", &[put((0, 1), "a", 1), found((2, 3), "x", 2)]),
        (
            OnlyWrittenIsRead,
            "a value is read before it is written",
            &[found((0, 1), "a", 1), put_unknown((2, 3), "a")],
        ),
        (FailedIsNotApplied, "a failed write is there", &[put_failed((0, 1), "a"), found((2, 3), "a", 1)]),
        (
            StampsNameOneWrite,
            "two values under one stamp",
            &[
                put_unknown((0, 9), "a"),
                put_unknown((0, 9), "b"),
                found((1, 4), "a", 1),
                found((2, 5), "b", 1),
            ],
        ),
        (
            StampsNameOneWrite,
            "two writes are acknowledged under one stamp",
            &[put((0, 4), "a", 1), put((1, 5), "b", 1)],
        ),
        (
            StampsNameOneWrite,
            "a value under the stamp of a delete",
            &[put_unknown((0, 3), "a"), delete((1, 5), 1), found((2, 4), "a", 1)],
        ),
        (
            StampsNameOneWrite,
            "a value above the stamp that it was acknowledged under",
            &[put((0, 1), "a", 1), found((2, 3), "a", 2)],
        ),
    ];
    for (promise, what, history) in cases {
        check_table(what, history, &[*promise]);
    }
}

#[test]
fn keys_are_judged_apart() {
    let mut other = found((2, 3), "a", 1);
    other.key = "other".into();
    let history = [put((0, 1), "a", 1), found((2, 3), "a", 1), other];
    let violations = check(&history);
    assert_eq!(violations.len(), 1, "{violations:?}");
    assert_eq!(violations[0].promise, Promise::OnlyWrittenIsRead, "the value of another key");
}

#[test]
fn a_violation_names_the_key_both_operations_and_the_promise() {
    let [violation] = &check(&[put((0, 1_000_000_000), "a", 1), missing((2_000_000_000, 2_500_000_000))])[..]
    else {
        panic!("one violation");
    };
    assert_eq!(
        violation.to_string(),
        "key \"k\" breaks \"every acknowledged write is readable\": [client 0, 2.000000s to 2.500000s] get \"k\": Missing\n    \
         against [client 0, 0.000000s to 1.000000s] put \"k\" = \"a\": Done(00000000000000000000000000000001)"
    );
}

#[test]
fn keys_that_nobody_read_after_their_last_write_are_listed() {
    let unread: &[(&str, &[Operation])] = &[
        ("never read", &[put((0, 1), "a", 1)]),
        ("read before the last write", &[put((0, 1), "a", 1), found((2, 3), "a", 1), delete((4, 5), 2)]),
        ("read beside the last write", &[put((0, 3), "a", 1), found((2, 4), "a", 1)]),
        ("the read had no answer", &[put((0, 1), "a", 1), read_error((2, 3))]),
    ];
    for (what, history) in unread {
        assert_eq!(unread_keys(history), ["k"], "{what}");
    }
    let read: &[(&str, &[Operation])] = &[
        ("read after", &[put((0, 1), "a", 1), found((2, 3), "a", 1)]),
        ("found to be missing", &[delete((0, 1), 1), missing((2, 3))]),
        ("nothing was acknowledged", &[put_unknown((0, 1), "a"), put_failed((2, 3), "b")]),
    ];
    for (what, history) in read {
        assert!(unread_keys(history).is_empty(), "{what}");
    }
}
