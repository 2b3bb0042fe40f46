//! Each rule broken on purpose, and the checker that notices: a promise whose breach nobody notices is not kept by
//! these tests.
//!
//! A mutant is hunted in a scenario of its own: the faults and the workload that bring it out, seed after seed, until
//! the checker of its line has spoken.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use keystore_core::mutant::{Mutant, switch};
use keystore_core::node::Settings;
use keystore_history::Promise::{
    AcknowledgedByQuorum, AcknowledgedIsReadable, AnsweredInTime, DeletedStaysDeleted, FailedIsNotApplied,
    OneWriteOneValue,
};

use crate::faults::Fault;
use crate::number;
use crate::plan::{Class, Delivery, Plan};
use crate::rng::Rng;
use crate::run::run_plan;
use crate::violation::Checker;
use crate::violation::Checker::{
    AcknowledgedIsSyncedOnAQuorum, AnsweredIsSyncedOnAQuorum, AnswersAreOfTheirEpoch, ClosedLinksStayClosed,
    CommitsHoldWhatIsStored, DoubtRaisesTheGeneration, DoubtsEnd, FencesAreDurable, HealedByEnough,
    HeldIsOnDisk, HintsDrain, HintsEndHeard, History, IdentitiesAreDurable, InDoubtSaysNothing,
    IncarnationsOnlyGrow, LateWritesAreRefused, LostStaysLost, MembersBeginEmpty, MissedIsHandedOver,
    MissingHasAReason, MissingIsMissing, MovesEnd, MovesKeepWhatWasPromised, MovesWaitForFences,
    NobodyAsksForWhatIsDropped, NotedIsDurable, OneDotIsOneWrite, OneLayoutAnEpoch, OneOperationIsOneDot,
    OnlyWhatDiffersMoves, QueuesStayWithinTheirBounds, RepairsAreNotRefusedForTheirAge, ReplicasDropNothing,
    SalvagedIsMergedFirst, ServingMeansAllAccepted, SetAsideHasAReason, SiblingsAreCapped,
    StaleDisksAreRefused, StampsAreAboveWhatWasAccepted, StampsAreBelowTheCeiling, StampsOfANodeGrow,
    StartsWaitForTheClock, StrayFramesAreIgnored, TimeGoesOn, VisibleMeansSynced, VotesAreDurable,
    VotesNeedPromises, WhatIsShortIsSalvaged, WhatIsSparedIsHeld,
};

/// In so many seeds a mutant has to be caught.
const SEEDS_MAX: u64 = 1_200;
/// How many seeds of each scenario that recovers run without a mutant.
const RECOVERIES: u64 = 50;

/// The mutant, who has to catch it, and where.
type Line = (Mutant, Checker, fn() -> Plan);

const LINES: &[Line] = &[
    (Mutant::SupersededCounts, History(AcknowledgedByQuorum), skewed),
    (Mutant::OneAckFewer, AcknowledgedIsSyncedOnAQuorum, busy),
    (Mutant::EarlierAttemptsCount, AcknowledgedIsSyncedOnAQuorum, skewed),
    (Mutant::SupersededIsCalledHeld, HeldIsOnDisk, skewed),
    (Mutant::NothingIsThereAtAStart, CommitsHoldWhatIsStored, clocks_back),
    (Mutant::OneMomentIsAnOrder, CommitsHoldWhatIsStored, skewed),
    (Mutant::StoredIsNotRemembered, CommitsHoldWhatIsStored, skewed),
    (Mutant::HealedIsNotRemembered, CommitsHoldWhatIsStored, rotten),
    (Mutant::NoWriteBack, AnsweredIsSyncedOnAQuorum, busy),
    (Mutant::WriteBackIsNotAwaited, AnsweredIsSyncedOnAQuorum, busy),
    (Mutant::FailedWriteBackIsAnswered, AnsweredIsSyncedOnAQuorum, lossy),
    (Mutant::DigestsAreIgnored, History(AcknowledgedIsReadable), digests),
    (Mutant::OneReplicaIsRead, AnsweredIsSyncedOnAQuorum, busy),
    (Mutant::ReadsSeeWhatIsBeingCommitted, VisibleMeansSynced, busy),
    (Mutant::HeldBeforeItIsSynced, HeldIsOnDisk, busy),
    (Mutant::SupersededBeforeItIsSynced, HeldIsOnDisk, skewed),
    (Mutant::LostIsCalledFailed, History(FailedIsNotApplied), breaking),
    (Mutant::TimeoutIsCalledFailed, History(FailedIsNotApplied), lossy),
    (Mutant::LateWritesAreTaken, LateWritesAreRefused, stalled),
    (Mutant::DeadlinesAreForgotten, History(AnsweredInTime), lossy),
    (Mutant::RefusedSiblingsAreAnsweredAtOnce, History(FailedIsNotApplied), by_turns),
    (Mutant::RefusedSiblingsWaitForTheLast, History(FailedIsNotApplied), long_by_turns),
    (Mutant::RefusedValuesAreAnsweredAtOnce, History(FailedIsNotApplied), loose_by_turns),
    (Mutant::OperationsAreForgotten, OneOperationIsOneDot, retried),
    (Mutant::OneOperationIsSeveralValues, History(OneWriteOneValue), retried),
    (Mutant::CeilingIsIgnored, StampsAreBelowTheCeiling, busy),
    (Mutant::CeilingCountsBeforeItIsSaved, StampsAreBelowTheCeiling, busy),
    (Mutant::StartsBelowTheCeiling, StampsOfANodeGrow, clocks_back),
    (Mutant::RepairsAreRefusedForTheirStamp, RepairsAreNotRefusedForTheirAge, clocks_back),
    (Mutant::AcceptedIsNotObserved, StampsAreAboveWhatWasAccepted, skewed),
    (Mutant::StartsDoNotWaitForTheClock, StartsWaitForTheClock, clocks_back),
    (Mutant::HintsCount, AcknowledgedIsSyncedOnAQuorum, cut_off),
    (Mutant::HintsAreUnbounded, QueuesStayWithinTheirBounds, small),
    (Mutant::HintsEndUnheard, HintsEndHeard, lossy),
    (Mutant::MissedIsNotHinted, MissedIsHandedOver, cut_off),
    (Mutant::RenewedHintsEnd, HintsEndHeard, cut_off_coordinators),
    (Mutant::RefusedHintsRestForEver, HintsDrain, cut_off_and_full),
    (Mutant::OneActorMintsForAll, OneDotIsOneWrite, carts),
    (Mutant::WritesReplaceTheUnseen, History(AcknowledgedIsReadable), carts),
    (Mutant::SiblingsAreNotMerged, CommitsHoldWhatIsStored, carts),
    (Mutant::ReplacedValuesReturn, HeldIsOnDisk, carts),
    (Mutant::SiblingsAreUncapped, SiblingsAreCapped, adds),
    (Mutant::BlindDeletesSeeOneReplica, History(DeletedStaysDeleted), retried),
    (Mutant::DotsAreGivenAgainAfterADoubt, OneDotIsOneWrite, carts_in_the_middle),
    (Mutant::NoExpiredMark, MissingHasAReason, expiring),
    (Mutant::ExpiredMarkLoses, MissingHasAReason, expiring),
    (Mutant::ExpiryByALaterClock, MissingHasAReason, expiring),
    (Mutant::PagesEndAtTheLargestKey, History(AcknowledgedIsReadable), scanned),
    (Mutant::ScansAreNotWrittenBack, AnsweredIsSyncedOnAQuorum, scanned),
    (Mutant::WrittenIsCalledSynced, HeldIsOnDisk, loose),
    (Mutant::JoinsLessDurableCommits, HeldIsOnDisk, loose),
    (Mutant::DamagedIsMissing, MissingIsMissing, rotten),
    (Mutant::DamagedCommitsAreHeld, HeldIsOnDisk, seldom_read),
    (Mutant::OneFewerHeals, HealedByEnough, rotten),
    (Mutant::HealsWithoutANewGeneration, DoubtRaisesTheGeneration, rotten),
    (Mutant::HealsAreTriedOnce, DoubtsEnd, heals_in_the_middle),
    (Mutant::EarlierGenerationsCount, AcknowledgedIsSyncedOnAQuorum, rotten_in_mid_write),
    (Mutant::NotedIsNotHeard, StrayFramesAreIgnored, spoken_of),
    (Mutant::NotedVoidsNothing, AnsweredIsSyncedOnAQuorum, heals_in_the_middle),
    (Mutant::HellosVoidNothingUntilSaved, AcknowledgedIsSyncedOnAQuorum, in_the_middle),
    (Mutant::ReadsCountEarlierGenerations, AnsweredIsSyncedOnAQuorum, in_the_middle),
    (Mutant::ScansCountEarlierGenerations, AnsweredIsSyncedOnAQuorum, scans_in_the_middle),
    (Mutant::WriteBacksCountEarlierGenerations, AnsweredIsSyncedOnAQuorum, in_the_middle),
    (Mutant::SiblingsCountEarlierGenerations, AcknowledgedIsSyncedOnAQuorum, carts_in_the_middle),
    (Mutant::HealsCountEarlierGenerations, HealedByEnough, heals_in_the_middle),
    (Mutant::RaisedBeforeItIsSaved, NotedIsDurable, rotten_in_mid_write),
    (Mutant::NotedBeforeItIsSaved, NotedIsDurable, in_the_middle),
    (Mutant::CommitsOutliveADoubt, HeldIsOnDisk, in_the_middle),
    (Mutant::WritesAreTakenInDoubt, HeldIsOnDisk, in_the_middle),
    (Mutant::ReadsSpeakOfKeysInDoubt, InDoubtSaysNothing, unreadable),
    (Mutant::ScansSpeakOfKeysInDoubt, InDoubtSaysNothing, unreadable),
    (Mutant::SecondNonceIsAccepted, IdentitiesAreDurable, cloned),
    (Mutant::LineageIsNotCompared, StaleDisksAreRefused, rolled_back),
    (Mutant::EarlierGenerationIsAccepted, IdentitiesAreDurable, rolled_back),
    (Mutant::EarlierRefusalsSetAside, SetAsideHasAReason, broken_in_the_middle),
    (Mutant::IdentityIsNotSavedFirst, IdentitiesAreDurable, busy),
    (Mutant::OvertakenIdentitiesAreAccepted, IdentitiesAreDurable, slowly_saved),
    (Mutant::ClosedLinksAreAccepted, ClosedLinksStayClosed, slowly_saved),
    (Mutant::StrayFramesCount, StrayFramesAreIgnored, misdirected),
    (Mutant::JoinersHearOfNobody, StaleDisksAreRefused, joining_beside_copies),
    (Mutant::RecordsOutliveMembership, MembersBeginEmpty, moving),
    (Mutant::ServesBeforeAllHaveAccepted, ServingMeansAllAccepted, busy),
    (Mutant::SecondInitIsAccepted, ServingMeansAllAccepted, busy),
    (Mutant::PromisesAreForgotten, OneLayoutAnEpoch, contested),
    (Mutant::PromisesHideVotes, OneLayoutAnEpoch, contested),
    (Mutant::FoundVotesAreIgnored, OneLayoutAnEpoch, contested),
    (Mutant::AnyBallotCounts, VotesNeedPromises, contested),
    (Mutant::OneVoteFewer, VotesNeedPromises, contested),
    (Mutant::VotesBeforeTheyAreSaved, VotesAreDurable, moving),
    (Mutant::OneRingIsEnough, MovesKeepWhatWasPromised, moving),
    (Mutant::TheNewRingIsEnough, History(AcknowledgedIsReadable), moving),
    (Mutant::FactorsChangeAtOnce, MissingHasAReason, varying),
    (Mutant::ChangesDoNotWaitForFences, MovesWaitForFences, moving),
    (Mutant::EarlierEpochsAreServed, AnswersAreOfTheirEpoch, moving),
    (Mutant::FencedBeforeItIsSaved, FencesAreDurable, moving),
    (Mutant::OperationsOutliveTheirEpoch, AnswersAreOfTheirEpoch, moving),
    (Mutant::MovesEndUnmerged, MovesKeepWhatWasPromised, moving),
    (Mutant::AQuorumMerges, MovesKeepWhatWasPromised, moving),
    (Mutant::OneFewerIsMerged, MovesKeepWhatWasPromised, moving),
    (Mutant::MergesOutliveTheirPhase, MovesKeepWhatWasPromised, moving),
    (Mutant::TheKeptNeedNotMerge, MovesKeepWhatWasPromised, moving),
    (Mutant::TombstonesStay, MovesKeepWhatWasPromised, moving),
    (Mutant::LeftIsClearedWhileDataMoves, ReplicasDropNothing, moving),
    (Mutant::LeftIsClearedUnheard, NobodyAsksForWhatIsDropped, moving),
    (Mutant::WhatIsHeldIsNotSaid, OnlyWhatDiffersMoves, moving),
    (Mutant::AllOfADifferentPageIsSent, OnlyWhatDiffersMoves, moving),
    (Mutant::DigestsAreNotCompared, WhatIsSparedIsHeld, moving),
    (Mutant::VersionsAreNotCompared, WhatIsSparedIsHeld, moving),
    (Mutant::MoreIsComparedThanWasRead, WhatIsSparedIsHeld, moving),
    (Mutant::HeldIsNotSynced, WhatIsSparedIsHeld, moving_what_is_not_synced),
    (Mutant::LowerAttemptsAreAccepted, IncarnationsOnlyGrow, recovering_again),
    (Mutant::SurvivorsServeAtOnce, ServingMeansAllAccepted, recovering),
    (Mutant::AnyIncarnationCounts, StrayFramesAreIgnored, recovering),
    (Mutant::ShortPartitionsStay, WhatIsShortIsSalvaged, recovering),
    (Mutant::WholePartitionsAreSalvaged, WhatIsShortIsSalvaged, recovering),
    (Mutant::TheNewRingKeepsTheLost, WhatIsShortIsSalvaged, recovering),
    (Mutant::SalvagedCountsAtOnce, SalvagedIsMergedFirst, recovering),
    (Mutant::OneSourceIsEnough, SalvagedIsMergedFirst, recovering_many),
    (Mutant::TheDoubtedAreNoSources, WhatIsShortIsSalvaged, recovering_in_doubt),
    (Mutant::TheLostAreWaitedFor, MovesEnd, recovering),
    (Mutant::TheLostAreSalvaged, WhatIsShortIsSalvaged, recovering),
    (Mutant::TheLostHearNothing, LostStaysLost, recovering),
    (Mutant::RequestsOutliveARecovery, TimeGoesOn, recovering),
    (Mutant::TheDamagedIsWaitedFor, MovesEnd, recovering_few_in_doubt),
    (Mutant::TheDamagedIsGivenAway, InDoubtSaysNothing, recovering_unreadable),
    (Mutant::RequestsAreUnbounded, QueuesStayWithinTheirBounds, small),
    (Mutant::WritesAreUnbounded, QueuesStayWithinTheirBounds, small),
];

/// Many clients for one key, and nothing that goes wrong but delays.
fn busy() -> Plan {
    Plan {
        clients: 6,
        keys: vec![Class::Strict],
        delay_ms_max: 30,
        think_ms_max: 10,
        duration_ms: 1_500,
        ..Plan::calm()
    }
}

/// Some coordinators are no replicas, and hear of higher stamps only from those.
fn skewed() -> Plan {
    Plan { nodes: 5, skew_ms_max: 450, slow_disk_percent: 5, ..busy() }
}

fn lossy() -> Plan {
    let delivery = Delivery::Datagrams { drop_percent: 20, duplicate_percent: 0 };
    Plan { delivery, faults: vec![Fault::LinkBreak], fault_every_ms: 100, duration_ms: 3_000, ..busy() }
}

/// Every answer is a digest if that was asked for.
fn digests() -> Plan {
    Plan { settings: Settings { digest_bytes_min: 0, ..Settings::default() }, ..lossy() }
}

/// Links break under coordinators that are no replicas, so that they hold nothing themselves.
fn breaking() -> Plan {
    let faults = vec![Fault::LinkBreak];
    Plan { nodes: 5, faults, fault_every_ms: 20, duration_ms: 3_000, ..busy() }
}

fn stalled() -> Plan {
    let faults = vec![Fault::LongPause, Fault::CutOff, Fault::PairCut];
    Plan { faults, fault_every_ms: 200, duration_ms: 6_000, ..busy() }
}

fn clocks_back() -> Plan {
    let faults = vec![Fault::ClockJump, Fault::ClocksBack, Fault::Crash, Fault::LinkBreak];
    Plan { faults, fault_every_ms: 150, duration_ms: 4_000, ..lossy() }
}

fn cut_off() -> Plan {
    Plan { faults: vec![Fault::CutOff, Fault::LinkBreak], fault_every_ms: 200, duration_ms: 3_000, ..busy() }
}

fn small() -> Plan {
    let settings = Settings { requests_max: 2, writes_max: 4, hint_bytes_max: 800, ..Settings::default() };
    let keys = vec![Class::Strict; 6];
    Plan { settings, keys, clients: 12, slow_disk_percent: 20, ..cut_off() }
}

fn carts() -> Plan {
    Plan { keys: vec![Class::Cart], ..busy() }
}

fn retried() -> Plan {
    Plan { keys: vec![Class::Cart], ..lossy() }
}

/// Coordinators that are no replicas, so that others see what is minted.
fn adds() -> Plan {
    let keys = vec![Class::Cart];
    Plan { nodes: 5, keys, only_adds: true, clients: 12, think_ms_max: 1, duration_ms: 6_000, ..busy() }
}

fn expiring() -> Plan {
    Plan { ttl_percent: 80, skew_ms_max: 450, slow_disk_percent: 5, ..busy() }
}

fn scanned() -> Plan {
    Plan { keys: vec![Class::Strict; 12], scan_percent: 50, clients: 10, ..lossy() }
}

fn loose() -> Plan {
    Plan { keys: vec![Class::Loose], ..lossy() }
}

fn rotten() -> Plan {
    Plan { faults: vec![Fault::BitRot], fault_every_ms: 200, duration_ms: 4_000, ..lossy() }
}

fn rotten_in_mid_write() -> Plan {
    let delivery = Delivery::Stream;
    Plan {
        faults: vec![Fault::BitRot],
        fault_every_ms: 50,
        slow_disk_percent: 40,
        delivery,
        clients: 12,
        ..rotten()
    }
}

/// Two members do not reach each other for a while: what one has sent comes late, when the other has heard from a
/// third one that it is known as a later generation.
fn spoken_of() -> Plan {
    let faults = vec![Fault::BitRot, Fault::PairCut, Fault::OneWayCut, Fault::BitRot];
    Plan {
        delivery: Delivery::Stream,
        faults,
        fault_every_ms: 60,
        clients: 12,
        duration_ms: 5_000,
        ..rotten()
    }
}

/// A replica loses what it has just read, or written, while others are slow.
fn in_the_middle() -> Plan {
    Plan {
        nodes: 5,
        faults: vec![Fault::InTheMiddle, Fault::SlowLink],
        fault_every_ms: 40,
        clients: 12,
        duration_ms: 5_000,
        ..busy()
    }
}

fn carts_in_the_middle() -> Plan {
    Plan { keys: vec![Class::Cart], ..in_the_middle() }
}

fn scans_in_the_middle() -> Plan {
    Plan { keys: vec![Class::Strict; 4], scan_percent: 70, ..in_the_middle() }
}

/// Nobody else meets what has rotted before a write does.
fn seldom_read() -> Plan {
    Plan { keys: vec![Class::Strict; 24], clients: 6, ..in_the_middle() }
}

/// Who dials anew has raised its generation when that comes to be heard.
fn broken_in_the_middle() -> Plan {
    let faults = vec![Fault::InTheMiddle, Fault::LinkBreak, Fault::OneWayCut, Fault::SlowLink];
    Plan { nodes: 3, faults, ..in_the_middle() }
}

/// Saving who has said hello takes so long that its link has closed by then, or that others know more of it.
fn slowly_saved() -> Plan {
    let faults = vec![Fault::BitRot, Fault::BitRot, Fault::LinkBreak, Fault::Crash];
    Plan { faults, slow_disk_percent: 20, ..in_the_middle() }
}

/// Of five replicas two may be in doubt at a time, and one of them may be asked by the other.
fn heals_in_the_middle() -> Plan {
    let faults = vec![Fault::InTheMiddle, Fault::BitRot, Fault::SlowLink];
    Plan { replication_factor: 5, faults, slow_disk_percent: 5, ..in_the_middle() }
}

/// What could not be read once is read again while the replica is in doubt.
fn unreadable() -> Plan {
    let keys = vec![Class::Strict; 4];
    Plan { faults: vec![Fault::ReadError], keys, scan_percent: 40, ..in_the_middle() }
}

fn by_turns() -> Plan {
    Plan {
        faults: vec![Fault::FullByTurns],
        fault_every_ms: 200,
        clients: 12,
        think_ms_max: 3,
        slow_disk_percent: 20,
        duration_ms: 4_000,
        ..carts()
    }
}

fn long_by_turns() -> Plan {
    Plan { duration_ms: 10_000, fault_every_ms: 100, ..by_turns() }
}

/// What was to be synced later is committed once more for a read that finds it on one replica only.
fn loose_by_turns() -> Plan {
    Plan { keys: vec![Class::Loose], slow_disk_percent: 5, think_ms_max: 3, ..by_turns() }
}

/// Others than those who keep the hints see who has missed what.
fn cut_off_coordinators() -> Plan {
    let faults = vec![Fault::CutOff, Fault::PairCut, Fault::OneWayCut, Fault::SlowLink];
    Plan { nodes: 5, faults, fault_every_ms: 60, clients: 12, duration_ms: 4_000, ..busy() }
}

/// What has missed something has no room for it when it is back.
fn cut_off_and_full() -> Plan {
    let faults = vec![Fault::CutOff, Fault::FullDisk, Fault::FullByTurns];
    Plan { faults, fault_every_ms: 100, duration_ms: 4_000, ..busy() }
}

fn cloned() -> Plan {
    Plan { faults: vec![Fault::Clone], fault_every_ms: 500, duration_ms: 4_000, ..busy() }
}

fn rolled_back() -> Plan {
    Plan { faults: vec![Fault::Crash, Fault::RollBack], fault_every_ms: 300, duration_ms: 4_000, ..busy() }
}

fn misdirected() -> Plan {
    let faults = vec![Fault::LinkBreak];
    Plan { nodes: 5, misdirected_percent: 50, faults, fault_every_ms: 100, duration_ms: 3_000, ..busy() }
}

/// Nodes join and leave all the time, and what they hold with them.
fn moving() -> Plan {
    let faults = vec![Fault::Crash, Fault::LinkBreak, Fault::PairCut, Fault::SlowLink, Fault::Pause];
    Plan {
        nodes: 5,
        spares: 2,
        move_every_ms: 30,
        keys: vec![Class::Strict; 8],
        faults,
        fault_every_ms: 150,
        slow_disk_percent: 5,
        duration_ms: 6_000,
        settings: Settings { restart_ms: 0, ..Settings::default() },
        ..busy()
    }
}

/// And there are to be now more replicas, now fewer, of members that do not weigh the same.
fn varying() -> Plan {
    Plan { zones: 2, varies: true, ..moving() }
}

fn moving_what_is_not_synced() -> Plan {
    Plan { keys: vec![Class::Loose; 40], faults: vec![Fault::LinkBreak], think_ms_max: 3, ..moving() }
}

/// Copies of disks that all members know run while others join.
fn joining_beside_copies() -> Plan {
    let faults = vec![Fault::Crash, Fault::RollBack, Fault::Clone];
    Plan { faults, fault_every_ms: 200, keys: vec![Class::Strict], ..moving() }
}

/// Several nodes propose different layouts at a time, and lose what they say to each other.
fn contested() -> Plan {
    let delivery = Delivery::Datagrams { drop_percent: 20, duplicate_percent: 10 };
    let faults = vec![Fault::Crash, Fault::LinkBreak, Fault::PairCut, Fault::OneWayCut, Fault::Pause];
    Plan { nodes: 3, move_every_ms: 15, delivery, faults, fault_every_ms: 60, ..moving() }
}

/// More is lost than the store can bear, and what is left goes on without that.
fn recovering() -> Plan {
    let faults = vec![Fault::Crash, Fault::LinkBreak, Fault::PairCut];
    Plan { great_losses: 1, move_every_ms: 100, faults, ..moving() }
}

/// And once more, while the first recovery is under way, perhaps.
fn recovering_again() -> Plan {
    Plan { great_losses: 3, move_every_ms: 30, ..recovering() }
}

/// A replica has several others to merge.
fn recovering_many() -> Plan {
    Plan { replication_factor: 5, ..recovering() }
}

fn recovering_in_doubt() -> Plan {
    Plan { faults: vec![Fault::BitRot, Fault::LinkBreak], ..recovering() }
}

/// With so few that nobody is left from whom what is damaged could be healed.
fn recovering_few_in_doubt() -> Plan {
    Plan { nodes: 3, spares: 1, faults: vec![Fault::BitRot], fault_every_ms: 60, ..recovering() }
}

/// What could not be read once is in doubt, and is read again when others merge it.
fn recovering_unreadable() -> Plan {
    let faults = vec![Fault::ReadError, Fault::BitRot, Fault::LinkBreak];
    let keys = vec![Class::Strict; 24];
    Plan { faults, fault_every_ms: 60, keys, scan_percent: 30, ..recovering() }
}

/// The seed in which the mutant was caught, or what others have noticed of it.
fn hunt((mutant, checker, scenario): &Line) -> Result<u64, BTreeMap<Checker, u64>> {
    let mut others = BTreeMap::new();
    for seed in 0..SEEDS_MAX {
        switch(Some(*mutant));
        let outcome = run_plan(seed, Rng::new(seed), scenario(), false);
        switch(None);
        match outcome.violation {
            Some(violation) if violation.checker == *checker => return Ok(seed),
            Some(violation) => *others.entry(violation.checker).or_default() += 1,
            None => {}
        }
    }
    Err(others)
}

#[test]
fn each_mutant_is_caught_by_its_checker() {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut missed = Vec::new();
        while let Some(line) = LINES.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (mutant, checker, _) = line;
            let rule = mutant.rule();
            match hunt(line) {
                Ok(seed) => println!("rule {rule}: {mutant:?} is caught by {checker:?} in seed {seed}"),
                Err(others) => {
                    missed.push(format!("rule {rule}: {mutant:?} by {checker:?}, but by {others:?}"));
                }
            }
        }
        missed
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let missed: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(missed.is_empty(), "not caught:\n{}", missed.join("\n"));
}

/// The scenarios themselves break nothing.
#[test]
fn without_a_mutant_nothing_is_caught() {
    for (mutant, _, scenario) in LINES {
        for seed in 0..3 {
            let violation = run_plan(seed, Rng::new(seed), scenario(), false).violation;
            assert_eq!(violation, None, "the scenario of {mutant:?}, seed {seed}");
        }
    }
}

/// The scenarios in which a person recovers what is left are the only ones that draw a great loss each time:
/// `KEYSTORE_SIM_RUNS=N` runs the first N seeds of each, and `KEYSTORE_SIM_SEED=N` one.
#[test]
fn without_a_mutant_recoveries_break_nothing() {
    type Scenario = (&'static str, fn() -> Plan);
    let scenarios: [Scenario; 6] = [
        ("recovering", recovering),
        ("recovering again", recovering_again),
        ("recovering many", recovering_many),
        ("recovering in doubt", recovering_in_doubt),
        ("recovering few in doubt", recovering_few_in_doubt),
        ("recovering unreadable", recovering_unreadable),
    ];
    let seeds = match number("KEYSTORE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("KEYSTORE_SIM_RUNS").unwrap_or(RECOVERIES),
    };
    let search = |(name, scenario): Scenario| -> Vec<String> {
        let found = seeds
            .clone()
            .filter(|seed| run_plan(*seed, Rng::new(*seed), scenario(), false).violation.is_some());
        let story = |seed| run_plan(seed, Rng::new(seed), scenario(), true).story;
        found.map(|seed| format!("{name}, seed {seed}\n{}", story(seed))).collect()
    };
    let found: Vec<_> = std::thread::scope(|scope| {
        let workers = scenarios.map(|scenario| scope.spawn(move || search(scenario)));
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(found.is_empty(), "{} runs broke something\n{}", found.len(), found.join("\n"));
}

#[test]
fn every_rule_has_its_mutants() {
    let listed: Vec<_> = LINES.iter().map(|(mutant, _, _)| *mutant).collect();
    let ours = Mutant::ALL.iter().copied().filter(|mutant| !mutant.is_shown_by_a_case());
    assert_eq!(listed, ours.collect::<Vec<_>>(), "each mutant has one line, here or among the cases");
    assert!(Mutant::ALL.len() >= 45);
    let of = |rule: u8| Mutant::ALL.iter().filter(|mutant| mutant.rule() == rule).count();
    // Rules 12 and 13 are broken where they are kept, in the storage of keystore-node.
    for rule in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 15, 18, 19, 20, 21, 22, 23, 24, 27] {
        assert!(of(rule) >= 2, "rule {rule} has {} mutants", of(rule));
    }
}
