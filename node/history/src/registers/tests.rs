//! Good and bad histories, as data.

use super::*;
use crate::testing::{
    at_one, check_table, delete, delete_failed, delete_unknown, expiring, found, gone, missing, operation,
    put, put_failed, put_unknown, read_error, seen,
};
use crate::{History, check};

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
        ("what nobody promised may be lost", &[at_one(put((0, 1), "a", 1)), missing((2, 3))]),
        (
            "a read that was promised nothing may go back",
            &[put((0, 1), "a", 1), at_one(missing((2, 3))), found((4, 5), "a", 1)],
        ),
        (
            "a value that expires is there before, and may be gone after",
            &[
                expiring(put((0, 1), "a", 1), 10, 20),
                found((2, 9), "a", 1),
                found((11, 14), "a", 1),
                missing((15, 16)),
                missing((30, 31)),
            ],
        ),
        (
            "a read that was asked before the expiry and answered after it may miss the value",
            &[expiring(put((0, 1), "a", 1), 10, 20), missing((5, 11))],
        ),
        (
            "an unknown write hides the value before it, and expires",
            &[put((0, 1), "a", 1), expiring(put_unknown((2, 3), "b"), 10, 20), missing((12, 13))],
        ),
    ];
    for (what, history) in cases {
        check_table(what, history, &Rules::default(), &[]);
    }
}

#[test]
fn every_broken_promise_is_caught_and_named() {
    use Promise::{
        AcknowledgedIsReadable, DeletedStaysDeleted, ExpiredIsGone, FailedIsNotApplied, LaterWritesWin,
        OneWriteOneValue, OnlyWrittenIsRead, ReadsNeverGoBack, StampsNameOneWrite,
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
        (
            AcknowledgedIsReadable,
            "a value vanishes before it expires",
            &[expiring(put((0, 1), "a", 1), 10, 20), missing((5, 9))],
        ),
        (
            AcknowledgedIsReadable,
            "a value vanishes because an older one has expired",
            &[expiring(put((0, 1), "a", 1), 2, 3), put((4, 5), "b", 2), missing((6, 7))],
        ),
        (
            DeletedStaysDeleted,
            "an expired value is back",
            &[expiring(put((0, 1), "a", 1), 2, 30), missing((3, 4)), found((5, 6), "a", 1)],
        ),
        (
            ExpiredIsGone,
            "a value outlives its expiry",
            &[expiring(put((0, 1), "a", 1), 2, 5), found((6, 7), "a", 1)],
        ),
        (
            FailedIsNotApplied,
            "a failed write is there, for a read that was promised nothing",
            &[put_failed((0, 1), "a"), at_one(found((2, 3), "a", 1))],
        ),
        (
            OneWriteOneValue,
            "siblings where the last writer wins",
            &[
                put((0, 3), "a", 1),
                put((1, 4), "b", 2),
                operation((5, 6), Action::Get(ReadOutcome::Found(vec![seen("a", 1), seen("b", 2)]))),
            ],
        ),
    ];
    for (promise, what, history) in cases {
        check_table(what, history, &Rules::default(), &[*promise]);
    }
}

#[test]
fn a_session_reads_its_own_writes() {
    let of = |session, mut operation: Operation| {
        operation.session = session;
        operation
    };
    let lost = [of(1, put((0, 1), "a", 1)), of(1, missing((2, 3)))];
    check_table(
        "its own write is lost",
        &lost,
        &Rules::default(),
        &[Promise::AcknowledgedIsReadable, Promise::ReadYourWrites],
    );
    let older = [of(1, put((0, 1), "a", 1)), of(2, put((2, 3), "b", 2)), of(1, found((4, 5), "a", 1))];
    check_table(
        "its own write is there, another one is lost",
        &older,
        &Rules::default(),
        &[Promise::AcknowledgedIsReadable],
    );
}

#[test]
fn marks_of_deletes_are_judged_where_they_can_be_seen() {
    let rules = Rules { sees_deletes: true, ..Rules::default() };
    let cases: &[(&str, &[Operation], &[Promise])] = &[
        ("a delete is seen", &[put((0, 1), "a", 1), delete((2, 3), 2), gone((4, 5), 2)], &[]),
        ("an unknown delete is seen", &[put((0, 1), "a", 1), delete_unknown((2, 3)), gone((4, 5), 7)], &[]),
        ("an expiry is seen", &[expiring(put((0, 1), "a", 1), 2, 9), gone((4, 5), 1)], &[]),
        ("nothing was there", &[missing((0, 1)), put((2, 3), "a", 1)], &[]),
        (
            "the mark is lost",
            &[put((0, 1), "a", 1), delete((2, 3), 2), missing((4, 5))],
            &[Promise::DeletedStaysDeleted],
        ),
        (
            "the mark of an unknown delete is lost after it was seen",
            &[delete_unknown((0, 1)), gone((2, 3), 2), missing((4, 5))],
            &[Promise::DeletedStaysDeleted],
        ),
        (
            "an older mark comes back",
            &[delete((0, 1), 1), delete((2, 3), 2), gone((4, 5), 1)],
            &[Promise::DeletedStaysDeleted],
        ),
        ("nobody deleted", &[put((0, 1), "a", 1), gone((2, 3), 2)], &[Promise::OnlyWrittenIsRead]),
        (
            "a failed delete is there",
            &[put((0, 1), "a", 1), delete_failed((2, 3)), gone((4, 5), 2)],
            &[Promise::FailedIsNotApplied],
        ),
        (
            "it expires too early",
            &[expiring(put((0, 1), "a", 1), 10, 20), gone((4, 5), 1)],
            &[Promise::OnlyWrittenIsRead],
        ),
    ];
    for (what, history, expected) in cases {
        check_table(what, history, &rules, expected);
    }
}

#[test]
fn a_violation_names_the_key_both_operations_and_the_promise() {
    let operations = vec![put((0, 1000), "a", 1), missing((2000, 2500))];
    let [violation] = &check(&History { operations, scans: vec![] }, &Rules::default())[..] else {
        panic!("one violation");
    };
    assert_eq!(
        violation.to_string(),
        "key default/k breaks \"every acknowledged write is readable\": [session 2000, 2000 to 2500] get default/k: \
         Missing\n    against [session 0, 0 to 1000] put default/k = \"a\": \
         done 00000000000000000000000000000001 (2 acks)"
    );
}
