//! A broken promise, and what noticed it.

use keystore_core::partition::RecordKey;
use keystore_history::Promise;

/// What protects a promise, named after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Checker {
    /// What clients were told does not fit together: see [`keystore_history`].
    History(Promise),
    // What the world sees in disks and messages at the very step at which it happens.
    /// A quorum has an acknowledged write, or what replaced it, on disk at the moment of the acknowledgement.
    AcknowledgedIsSyncedOnAQuorum,
    /// A quorum has what a read answers, or what replaced it, on disk at the moment of the answer.
    AnsweredIsSyncedOnAQuorum,
    /// No read finds a key missing without a mark, on a quorum, that is above all that was promised before.
    MissingHasAReason,
    /// A replica that says that it holds a write has it on disk.
    HeldIsOnDisk,
    /// What is committed is above all that is stored under the key: an engine puts it there unseen.
    CommitsHoldWhatIsStored,
    /// A replica shows nothing that it does not have on disk.
    VisibleMeansSynced,
    /// A replica says that it has nothing of a key only if that is so.
    MissingIsMissing,
    /// A replica gives a write one dot, however often it is asked.
    OneOperationIsOneDot,
    /// No dot names two writes.
    OneDotIsOneWrite,
    SiblingsAreCapped,
    /// A hint ends only once its target has what it may have missed.
    HintsEndHeard,
    /// Once faults have stopped, hints come to an end.
    HintsDrain,
    /// Once faults have stopped, keys in doubt are healed.
    DoubtsEnd,
    /// Once they have, whoever missed what was acknowledged has it, though nobody has read it.
    MissedIsHandedOver,
    /// A key in doubt is healed under a later generation than the one in which it came into doubt.
    DoubtRaisesTheGeneration,
    /// A key is healed only by what enough other replicas, in no doubt themselves, have said of it.
    HealedByEnough,
    /// What heals a key is not below what was promised before it came into doubt.
    HealedHoldsWhatWasPromised,
    /// A stamp is below the ceiling that its node has on disk.
    StampsAreBelowTheCeiling,
    StampsOfANodeGrow,
    /// What a node issues is above all that it has accepted.
    StampsAreAboveWhatWasAccepted,
    /// After a start no stamp is below the ceiling that was on disk, nor issued before the clock has had the time to
    /// come up to it.
    StartsWaitForTheClock,
    /// One stamp names one content.
    EqualStampsAreEqual,
    /// A replica takes no fresh write after its deadline.
    LateWritesAreRefused,
    /// What a replica has accepted is refused nowhere for its stamp or its age.
    RepairsAreNotRefusedForTheirAge,
    /// A link comes into use only once the identity behind it is on disk, and if no later one is known by then.
    IdentitiesAreDurable,
    /// No link comes into use that was closed before.
    ClosedLinksStayClosed,
    /// What a node says of generations, its own and others', is on its disk.
    NotedIsDurable,
    /// A replica that is in doubt for a key says nothing of it.
    InDoubtSaysNothing,
    /// A frame that is meant for somebody else, or comes from before a restart, changes nothing.
    StrayFramesAreIgnored,
    /// Nobody takes a link to a disk that was rolled back or cloned, however often it was started since.
    StaleDisksAreRefused,
    /// A node gives itself up only if its disk was rolled back or cloned.
    SetAsideHasAReason,
    /// A replica calls a record damaged only if it is.
    DoubtHasAReason,
    QueuesStayWithinTheirBounds,
    /// A member serves only once all members have accepted the layout, durably, and it never takes another one.
    ServingMeansAllAccepted,
    /// Two nodes never take up different layouts of one epoch, nor a node an earlier one than it had.
    OneLayoutAnEpoch,
    /// When a new ring stands alone, a quorum of it has all that was promised.
    MovesKeepWhatWasPromised,
    /// A replica drops nothing: what it was before it became one goes first, and the rest once it is none.
    ReplicasDropNothing,
    /// What is no replica's goes once all members that can be reached have acknowledged the layout that says so.
    NobodyAsksForWhatIsDropped,
    /// What its new owner holds is not sent to it.
    OnlyWhatDiffersMoves,
    /// What was not sent to a new owner is on its disk before it has merged the source.
    WhatIsSparedIsHeld,
    /// A replica holds nothing from before it became one.
    MembersBeginEmpty,
    /// What was asked under one layout gets no answer under another.
    AnswersAreOfTheirEpoch,
    /// What a voter says is on its disk.
    VotesAreDurable,
    /// A vote is asked for only under a ballot that a majority of the voters has promised.
    VotesNeedPromises,
    /// The layout that a node speaks under is on its disk.
    FencesAreDurable,
    /// Data moves only between rings whose earlier operations have ended: enough replicas have fenced the phase.
    MovesWaitForFences,
    /// Once faults have stopped, moves come to an end.
    MovesEnd,
    /// A node that has departed is told so, whatever it knew.
    TheDepartedHearOfIt,
    /// A node takes up another incarnation only by an attempt of a recovery, of a higher number, that nobody else took
    /// another one for.
    IncarnationsOnlyGrow,
    /// The layout of a recovery leaves each partition as it is that has a quorum to trust, and gives any other to what is
    /// left, with all that held some of it as its sources.
    WhatIsShortIsSalvaged,
    /// A replica of a salvaged partition says nothing of it before it has all that was left of it.
    SalvagedIsMergedFirst,
    /// Whoever was called lost and lives on learns of it, and does not come back as what it was.
    LostStaysLost,
    // What is looked at in the end.
    ReplicasConverge,
    HealedClusterServes,
    CoreDoesNotPanic,
    TimeGoesOn,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) checker: Checker,
    pub(crate) key: Option<RecordKey>,
    pub(crate) what: String,
    /// What happened later than this has nothing to do with it.
    pub(crate) until_ms: u64,
}

impl Violation {
    pub(crate) fn new(checker: Checker, key: &RecordKey, what: String) -> Self {
        Self { checker, key: Some(key.clone()), what, until_ms: u64::MAX }
    }

    pub(crate) fn of_the_world(checker: Checker, what: String) -> Self {
        Self { checker, key: None, what, until_ms: u64::MAX }
    }
}
