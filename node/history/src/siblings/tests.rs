//! Good and bad histories of a causal key, as data.

use super::*;
use crate::Rules;
use crate::operation::Key;
use crate::testing::{
    CAUSAL, at_one, check_table, delete, delete_failed, delete_unknown, done, expiring, failed, missing,
    operation, put, put_failed, put_unknown, read_error, remove, seen, unknown,
};

fn context(values: &[&str]) -> Context {
    Context::Values(values.iter().map(|value| value.as_bytes().to_vec()).collect())
}

/// A put whose context stood for these values.
fn replace(times: (u64, u64), value: &str, values: &[&str], outcome: WriteOutcome) -> Operation {
    let context = context(values);
    operation(times, Action::Put(Put { context, ..Put::new(value.as_bytes(), outcome) }))
}

/// A read of these siblings, whose stamps are their numbers in the alphabet.
fn get(times: (u64, u64), values: &[&str]) -> Operation {
    let seen = values.iter().map(|value| seen(value, value.as_bytes()[0])).collect();
    operation(times, Action::Get(ReadOutcome::Found(seen)))
}

fn repeated(mut put: Operation) -> Operation {
    if let Action::Put(put) = &mut put.action {
        put.is_repeated = true;
    }
    put
}

#[track_caller]
fn check_causal(what: &str, history: &[Operation], expected: &[Promise]) {
    let rules = Rules { causal_keyspaces: BTreeSet::from([CAUSAL.to_owned()]), ..Rules::default() };
    let mut history = history.to_vec();
    for operation in &mut history {
        operation.key = Key::new(CAUSAL, b"k");
    }
    check_table(what, &history, &rules, expected);
}

#[test]
fn histories_that_keep_every_promise_pass() {
    let cases: &[(&str, &[Operation])] = &[
        ("nothing was written", &[missing((0, 1))]),
        ("one value", &[put((0, 1), "a", b'a'), get((2, 3), &["a"])]),
        (
            "writes without a context are siblings",
            &[put((0, 1), "a", b'a'), put((2, 3), "b", b'b'), get((4, 5), &["a", "b"])],
        ),
        (
            "writes with one context are siblings of each other and replace what it knew",
            &[
                put((0, 1), "a", b'a'),
                get((2, 3), &["a"]),
                replace((4, 6), "b", &["a"], done(b'b')),
                replace((4, 7), "c", &["a"], done(b'c')),
                replace((4, 8), "d", &["a"], unknown()),
                get((9, 10), &["b", "c"]),
                get((11, 12), &["b", "c", "d"]),
                replace((13, 14), "e", &["b", "c", "d"], done(b'e')),
                get((15, 16), &["e"]),
            ],
        ),
        (
            "a write under way may have replaced already",
            &[put((0, 1), "a", b'a'), replace((2, 9), "b", &["a"], done(b'b')), get((3, 4), &["b"])],
        ),
        (
            "a write under way may not have replaced yet",
            &[put((0, 1), "a", b'a'), replace((2, 9), "b", &["a"], done(b'b')), get((3, 4), &["a"])],
        ),
        (
            "an unknown write appears late and replaces",
            &[
                put((0, 1), "a", b'a'),
                replace((2, 3), "b", &["a"], unknown()),
                get((4, 5), &["a"]),
                get((6, 7), &["b"]),
            ],
        ),
        (
            "what replaced was replaced in turn before anybody read it",
            &[
                put((0, 1), "a", b'a'),
                replace((2, 3), "b", &["a"], unknown()),
                replace((4, 9), "c", &["b"], unknown()),
                get((5, 6), &["c"]),
            ],
        ),
        (
            "what replaced has expired",
            &[
                put((0, 1), "a", b'a'),
                expiring(replace((2, 3), "b", &["a"], done(b'b')), 10, 20),
                missing((12, 13)),
            ],
        ),
        (
            "a value that came beside a delete stays",
            &[
                put((0, 1), "a", b'a'),
                put((2, 9), "b", b'b'),
                remove((3, 4), context(&["a"]), done(1)),
                get((10, 11), &["b"]),
            ],
        ),
        ("a delete removes what is there", &[put((0, 1), "a", b'a'), delete((2, 3), 1), missing((4, 5))]),
        (
            "a delete without a context spares what comes beside it, or does not",
            &[
                put((0, 1), "a", b'a'),
                put((2, 9), "b", b'b'),
                put((2, 8), "c", b'c'),
                delete((3, 4), 1),
                get((10, 11), &["c"]),
            ],
        ),
        (
            "an unknown delete happens later",
            &[put((0, 1), "a", b'a'), delete_unknown((2, 3)), get((4, 5), &["a"]), missing((6, 7))],
        ),
        (
            "a failed delete did nothing",
            &[put((0, 1), "a", b'a'), delete_failed((2, 3)), get((4, 5), &["a"])],
        ),
        ("a failed put is not there", &[put_failed((0, 1), "a"), missing((2, 3))]),
        ("an unknown put is not there", &[put_unknown((0, 1), "a"), missing((2, 3))]),
        ("a read without an answer says nothing", &[put((0, 1), "a", b'a'), read_error((2, 3))]),
        ("what nobody promised may be lost", &[at_one(put((0, 1), "a", b'a')), missing((2, 3))]),
        (
            "a read that was promised nothing may miss",
            &[put((0, 1), "a", b'a'), at_one(missing((2, 3))), get((4, 5), &["a"])],
        ),
        (
            "a write that was sent twice comes up once more",
            &[
                repeated(put((0, 1), "a", b'a')),
                replace((2, 3), "b", &["a"], done(b'b')),
                get((4, 5), &["b"]),
                get((6, 7), &["a", "b"]),
            ],
        ),
    ];
    for (what, history) in cases {
        check_causal(what, history, &[]);
    }
}

#[test]
fn every_broken_promise_is_caught_and_named() {
    use Promise::{
        AcknowledgedIsReadable, DeletedStaysDeleted, ExpiredIsGone, FailedIsNotApplied, OneWriteOneValue,
        OnlyWrittenIsRead, ReadsNeverGoBack, ReplacedStaysReplaced, StampsNameOneWrite,
    };
    let cases: &[(Promise, &str, &[Operation])] = &[
        (AcknowledgedIsReadable, "a value is lost", &[put((0, 1), "a", b'a'), missing((2, 3))]),
        (
            AcknowledgedIsReadable,
            "the last writer wins",
            &[put((0, 1), "a", b'a'), put((2, 3), "b", b'b'), get((4, 5), &["b"])],
        ),
        (
            AcknowledgedIsReadable,
            "of twenty with one context, one is lost",
            &[
                put((0, 1), "a", b'a'),
                replace((2, 5), "b", &["a"], done(b'b')),
                replace((2, 6), "c", &["a"], done(b'c')),
                get((7, 8), &["c"]),
            ],
        ),
        (
            AcknowledgedIsReadable,
            "a write replaces what its context did not know",
            &[
                put((0, 1), "a", b'a'),
                put((2, 3), "b", b'b'),
                replace((4, 5), "c", &["a"], done(b'c')),
                get((6, 7), &["c"]),
            ],
        ),
        (
            AcknowledgedIsReadable,
            "what was to replace is not there, and what it knew is gone",
            &[put((0, 1), "a", b'a'), replace((2, 3), "b", &["a"], unknown()), missing((4, 5))],
        ),
        (
            AcknowledgedIsReadable,
            "a failed delete is no excuse",
            &[put((0, 1), "a", b'a'), remove((2, 3), context(&["a"]), failed()), missing((4, 5))],
        ),
        (
            AcknowledgedIsReadable,
            "nor is a delete that knew something else",
            &[put((0, 1), "a", b'a'), remove((2, 3), context(&["b"]), done(1)), missing((4, 5))],
        ),
        (
            AcknowledgedIsReadable,
            "nor one that had ended before",
            &[delete((0, 1), 1), put((2, 3), "a", b'a'), missing((4, 5))],
        ),
        (
            AcknowledgedIsReadable,
            "nor one that begins later",
            &[put((0, 1), "a", b'a'), missing((2, 3)), delete((4, 5), 1)],
        ),
        (
            AcknowledgedIsReadable,
            "it vanishes before it expires",
            &[expiring(put((0, 1), "a", b'a'), 10, 20), missing((2, 9))],
        ),
        (
            ReadsNeverGoBack,
            "an unknown value that was seen is gone",
            &[put_unknown((0, 1), "a"), get((2, 3), &["a"]), missing((4, 5))],
        ),
        (
            ReadsNeverGoBack,
            "a value that a read missed is back",
            &[put((0, 1), "a", b'a'), delete_unknown((2, 3)), missing((4, 5)), get((6, 7), &["a"])],
        ),
        (
            ReplacedStaysReplaced,
            "a value comes back when what replaced it has expired",
            &[
                put((0, 1), "a", b'a'),
                expiring(replace((2, 3), "b", &["a"], done(b'b')), 4, 20),
                get((5, 6), &["a"]),
            ],
        ),
        (
            ReplacedStaysReplaced,
            "a value stands beside what replaced it, for a read that was promised nothing",
            &[
                put((0, 1), "a", b'a'),
                replace((2, 9), "b", &["a"], done(b'b')),
                at_one(get((3, 4), &["a", "b"])),
            ],
        ),
        (
            ReplacedStaysReplaced,
            "a value stands beside what replaced that which replaced it",
            &[
                put((0, 1), "a", b'a'),
                replace((2, 3), "b", &["a"], unknown()),
                replace((4, 9), "c", &["b"], unknown()),
                get((5, 6), &["a", "c"]),
            ],
        ),
        (
            DeletedStaysDeleted,
            "a deleted value is back",
            &[put((0, 1), "a", b'a'), delete((2, 3), 1), get((4, 5), &["a"])],
        ),
        (
            DeletedStaysDeleted,
            "a value deleted with a context is back",
            &[put((0, 1), "a", b'a'), remove((2, 3), context(&["a"]), done(1)), get((4, 5), &["a"])],
        ),
        (
            ExpiredIsGone,
            "a value outlives its expiry",
            &[expiring(put((0, 1), "a", b'a'), 2, 5), get((6, 7), &["a"])],
        ),
        (OnlyWrittenIsRead, "a value comes from nowhere", &[get((0, 1), &["a"])]),
        (
            OnlyWrittenIsRead,
            "a value is read before it is written",
            &[get((0, 1), &["a"]), put_unknown((2, 3), "a")],
        ),
        (FailedIsNotApplied, "a failed write is there", &[put_failed((0, 1), "a"), get((2, 3), &["a"])]),
        (
            OneWriteOneValue,
            "a write that was sent twice is two siblings",
            &[repeated(put((0, 1), "a", b'a')), get((2, 3), &["a", "a"])],
        ),
        (
            StampsNameOneWrite,
            "two siblings under one stamp",
            &[
                put((0, 1), "a", b'a'),
                put_unknown((0, 1), "b"),
                operation((2, 3), Action::Get(ReadOutcome::Found(vec![seen("a", b'a'), seen("b", b'a')]))),
            ],
        ),
    ];
    for (promise, what, history) in cases {
        check_causal(what, history, &[*promise]);
    }
}

#[test]
fn a_session_reads_its_own_writes() {
    let mut history = [put((0, 1), "a", b'a'), missing((2, 3))];
    for operation in &mut history {
        operation.session = 7;
    }
    let broken = [Promise::AcknowledgedIsReadable, Promise::ReadYourWrites];
    check_causal("its own write is lost", &history, &broken);
}
