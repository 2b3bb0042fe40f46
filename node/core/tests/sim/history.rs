//! What clients asked and were told, and the promises that this has to keep.

use std::collections::BTreeMap;

use keystore_core::effect::{Answer, FailureReason};
use keystore_core::partition::RecordKey;
use keystore_core::record::{Body, Record};
use keystore_core::stamp::Stamp;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    Get,
    /// Every value is written once.
    Put(Vec<u8>),
    Delete,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    Read(Option<Record>),
    Written(Stamp),
    /// Nothing was applied.
    Failed,
    /// A write may or may not have been applied; a read has no answer.
    Unknown,
}

#[derive(Debug, Clone)]
pub(crate) struct Operation {
    pub(crate) key: RecordKey,
    pub(crate) asked: Asked,
    pub(crate) asked_at: u64,
    pub(crate) deadline: u64,
    pub(crate) told: Option<(u64, Told)>,
    /// The process that was asked stood still meanwhile, and answers late.
    pub(crate) excused: bool,
}

/// What protects a promise, named after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Checker {
    AcknowledgedWriteSurvives,
    QuorumReadsNeverGoBack,
    LaterWritesGetHigherStamps,
    ReadsAreOfWrites,
    FailedAppliedNothing,
    StampsAreUnique,
    StampsOfANodeGrow,
    RequestsEndByTheirDeadline,
    AcknowledgedIsSyncedOnAQuorum,
    AnsweredIsSyncedOnAQuorum,
    VisibleMeansSynced,
    DoubtHasAReason,
    ReplicasConverge,
    HealedClusterServes,
    CoreDoesNotPanic,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) checker: Checker,
    pub(crate) key: Option<RecordKey>,
    pub(crate) what: String,
}

impl Violation {
    pub(crate) fn new(checker: Checker, key: &RecordKey, what: String) -> Self {
        Self { checker, key: Some(key.clone()), what }
    }
}

pub(crate) fn told(answer: Answer) -> Told {
    match answer {
        Answer::Read(record) => Told::Read(record),
        Answer::Written { stamp, .. } => Told::Written(stamp),
        Answer::Failed(failure) => match failure.reason {
            FailureReason::OutcomeUnknown | FailureReason::DeadlineExceeded => Told::Unknown,
            FailureReason::QuorumUnreachable
            | FailureReason::Refused(_)
            | FailureReason::Overloaded
            | FailureReason::Draining
            | FailureReason::NotInitialized
            | FailureReason::KeyspaceUnknown => Told::Failed,
        },
        Answer::InitAccepted | Answer::InitRefused(_) => Told::Failed,
    }
}

/// Checks a whole history: operation B comes after A if it was asked after A was told, in simulated time.
pub(crate) fn check(history: &[Operation]) -> Result<(), Violation> {
    let mut by_key: BTreeMap<&RecordKey, Vec<&Operation>> = BTreeMap::new();
    for operation in history {
        by_key.entry(&operation.key).or_default().push(operation);
    }
    check_stamps_are_unique(history)?;
    for operation in history {
        check_deadline(operation)?;
    }
    for operations in by_key.values() {
        check_order(operations)?;
        check_reads_are_of_writes(operations)?;
    }
    Ok(())
}

fn violation(checker: Checker, operation: &Operation, what: String) -> Violation {
    Violation::new(checker, &operation.key, what)
}

fn check_deadline(operation: &Operation) -> Result<(), Violation> {
    match &operation.told {
        Some((at, _)) if *at <= operation.deadline || operation.excused => Ok(()),
        _ => Err(violation(Checker::RequestsEndByTheirDeadline, operation, format!("{operation:?}"))),
    }
}

fn check_stamps_are_unique(history: &[Operation]) -> Result<(), Violation> {
    let mut seen = BTreeMap::new();
    for operation in history {
        if let Some((_, Told::Written(stamp))) = operation.told
            && let Some(other) = seen.insert(stamp, operation)
        {
            let what = format!("{other:?} and {operation:?}");
            return Err(violation(Checker::StampsAreUnique, operation, what));
        }
    }
    Ok(())
}

/// The stamp up to which an operation proves that its key has come.
fn proven(operation: &Operation) -> Option<(u64, Stamp)> {
    match &operation.told {
        Some((at, Told::Written(stamp))) => Some((*at, *stamp)),
        Some((at, Told::Read(Some(record)))) => Some((*at, record.stamp)),
        _ => None,
    }
}

fn check_order(operations: &[&Operation]) -> Result<(), Violation> {
    for earlier in operations {
        let Some((told_at, floor)) = proven(earlier) else {
            continue;
        };
        for later in operations.iter().filter(|later| later.asked_at > told_at) {
            let what = || format!("{earlier:?}, and then {later:?}");
            match &later.told {
                Some((_, Told::Read(read))) if read.as_ref().is_none_or(|record| record.stamp < floor) => {
                    let checker = match earlier.asked {
                        Asked::Get => Checker::QuorumReadsNeverGoBack,
                        Asked::Put(_) | Asked::Delete => Checker::AcknowledgedWriteSurvives,
                    };
                    return Err(violation(checker, later, what()));
                }
                Some((_, Told::Written(stamp))) if *stamp <= floor => {
                    return Err(violation(Checker::LaterWritesGetHigherStamps, later, what()));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn check_reads_are_of_writes(operations: &[&Operation]) -> Result<(), Violation> {
    for read in operations {
        let Some((told_at, Told::Read(Some(record)))) = &read.told else {
            continue;
        };
        let wrote = |operation: &&&Operation| match (&operation.asked, &record.body) {
            (Asked::Put(value), Body::Value(read)) => value == read,
            (Asked::Delete, Body::Tombstone) => true,
            _ => false,
        };
        let mut writes =
            operations.iter().filter(wrote).filter(|write| write.asked_at <= *told_at).peekable();
        if writes.peek().is_none() {
            return Err(violation(Checker::ReadsAreOfWrites, read, format!("{read:?}")));
        }
        if writes.all(|write| matches!(write.told, Some((_, Told::Failed)))) {
            return Err(violation(Checker::FailedAppliedNothing, read, format!("{read:?}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use keystore_core::id::Actor;

    fn stamp(n: u64) -> Stamp {
        Stamp::new(n, 0, Actor(1))
    }

    fn operation(asked: Asked, asked_at: u64, told: Told) -> Operation {
        let key = RecordKey::new("default", b"k").unwrap();
        Operation {
            key,
            asked,
            asked_at,
            deadline: asked_at + 100,
            told: Some((asked_at + 5, told)),
            excused: false,
        }
    }

    fn put(value: u8, at: u64, told: Told) -> Operation {
        operation(Asked::Put(vec![value]), at, told)
    }

    fn get(at: u64, read: Option<(u8, u64)>) -> Operation {
        let record = read.map(|(value, n)| Record { stamp: stamp(n), body: Body::Value(vec![value].into()) });
        operation(Asked::Get, at, Told::Read(record))
    }

    #[test]
    fn a_good_history_passes() {
        let history = [
            put(1, 0, Told::Written(stamp(1))),
            get(10, Some((1, 1))),
            put(2, 12, Told::Unknown),
            get(14, Some((1, 1))),
            get(20, Some((2, 9))),
            operation(Asked::Delete, 30, Told::Written(stamp(10))),
            operation(Asked::Get, 40, Told::Read(Some(Record { stamp: stamp(10), body: Body::Tombstone }))),
        ];
        assert_eq!(check(&history), Ok(()));
    }

    #[test]
    fn each_broken_promise_is_noticed() {
        let written = |n| Told::Written(stamp(n));
        let cases = [
            (vec![put(1, 0, written(1)), get(10, None)], Checker::AcknowledgedWriteSurvives),
            (
                vec![put(1, 0, written(1)), put(2, 6, written(2)), get(20, Some((1, 1)))],
                Checker::AcknowledgedWriteSurvives,
            ),
            (
                vec![put(1, 0, Told::Unknown), get(10, Some((1, 1))), get(20, None)],
                Checker::QuorumReadsNeverGoBack,
            ),
            (vec![put(1, 0, written(5)), put(2, 10, written(4))], Checker::LaterWritesGetHigherStamps),
            (vec![get(10, Some((1, 1)))], Checker::ReadsAreOfWrites),
            (vec![put(1, 0, Told::Failed), get(10, Some((1, 1)))], Checker::FailedAppliedNothing),
            (vec![put(1, 0, written(1)), put(2, 0, written(1))], Checker::StampsAreUnique),
            (vec![Operation { deadline: 1, ..put(1, 0, written(1)) }], Checker::RequestsEndByTheirDeadline),
        ];
        for (history, checker) in cases {
            let violation = check(&history).expect_err("a broken promise");
            assert_eq!(violation.checker, checker, "{violation:?}");
        }
    }
}
