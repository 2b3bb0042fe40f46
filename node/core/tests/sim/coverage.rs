//! How often rare things happened: a wide run in which one of them never does proves nothing of it, and fails.

use std::collections::BTreeMap;
use std::fmt;

use keystore_core::node::Counters;

macro_rules! paths {
    ($($(#[$meta:meta])* $name:ident,)*) => {
        /// Something that the store or the world does rarely.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Path {
            $($(#[$meta])* $name,)*
        }

        impl Path {
            pub(crate) const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

paths! {
    Acknowledged,
    Unknown,
    Failed,
    ReadAnswered,
    FoundMissing,
    Scanned,
    PeriodicAcknowledged,
    RetriedUnderItsOperation,
    /// A replica held something higher than what it was to write.
    Superseded,
    RefusedAfterItsDeadline,
    RefusedForClockSkew,
    RefusedForWantOfSpace,
    RefusedInDoubt,
    RefusedForItsEpoch,
    RefusedForManyWrites,
    RefusedForManyRequests,
    /// A link was replaced by a newer one before its end was heard.
    LinkReplaced,
    /// A link was refused to a process of a rolled-back or cloned disk.
    StaleGenerationRefused,
    MisdirectedLinkRefused,
    // How layouts followed each other.
    MoveBegun,
    MoveFinished,
    MoveAborted,
    /// A move has ended in the new ring, or gone back, in which a machine with data had died for good.
    MoveEndedAfterADeath,
    /// A page that is taken over is not the same as what is held, and it is asked what differs.
    PageDiffers,
    /// What is taken over was held already.
    RecordsSpared,
    MemberLost,
    MemberDismissed,
    /// A node has learnt that it is no member any more, and its machine joins as a new one.
    Departed,
    /// A proposal has ended with another layout than the one that was proposed.
    AnotherWasDecided,
    ProposalFailed,
    // What else of the layout changed.
    KeyspaceAdded,
    KeyspaceAddedInAMove,
    /// A member was given another zone or weight.
    MemberPlacedAnew,
    /// A member without data that is to go is given none any more; it is wanted after all; it is no member any more.
    LeaverClosed,
    LeaverReopened,
    ClosedWasDismissed,
    /// A move has ended with another number of replicas than it began with.
    MoreReplicas,
    FewerReplicas,
    /// One to another number of replicas has gone back.
    ReplicasAborted,
    // How it went on after more was lost than the store can bear.
    RecoveryBegun,
    /// While data moved.
    RecoveryBegunInAMove,
    /// The layout of an attempt that was interrupted was handed over once more.
    RecoveryRepeated,
    /// Another attempt was begun before one had come into force that somebody had accepted.
    RecoveryOvertaken,
    RecoveryRefused,
    RecoveryInForce,
    RecoveryFinished,
    /// A replica that was in doubt of a partition is a source of it.
    SalvagedInDoubt,
    /// What was damaged of a salvaged partition was dropped.
    DamagedWhileSalvaging,
    /// What was promised of a key is lost, and what is left of it is promised from then on.
    PromiseLowered,
    /// A node that was called lost lived on, and learnt of it.
    LostCameBack,
    // What the world did.
    GreatLoss,
    MessageDropped,
    MessageDuplicated,
    LinkBroken,
    LinkGivenUp,
    CrashedBetweenEffects,
    PowerLost,
    AllPowerLost,
    UnsyncedEntriesLost,
    Paused,
    PausedBeyondDeadlines,
    CutOff,
    PairCut,
    OneWayCut,
    ClockJumped,
    AllClocksWentBack,
    SyncFailed,
    DiskFilled,
    DiskStalled,
    /// A page of a scan came to its end where nothing is.
    MuchRemoved,
    DeadForGood,
    /// A machine that holds data, while data moves.
    DeadForGoodInAMove,
    RolledBack,
    Cloned,
    RecordRotted,
    ReadFailed,
    LinkSlow,
    LogRefusedByTurns,
    /// A start was refused, since its log was damaged.
    LogDamaged,
    // What the world did in the middle of an operation on the key.
    DamagedInARead,
    DamagedInAWrite,
    DamagedInAMint,
    DamagedInAScan,
    /// While another replica was in doubt for the key.
    DamagedInAHeal,
    DamagedInACommit,
    KilledInTheMiddle,
    // A later generation of a replica that has lost the key came into force at a coordinator, or was heard of there,
    // which was in the middle of an operation on it.
    RaisedInARead,
    RaisedInAWrite,
    RaisedInAMint,
    RaisedInAScan,
    /// Somebody who had said what heals a key was heard of as a later generation before it was healed.
    RaisedInAHeal,
}

/// What was done how often, by its name: paths of the world, and the counters of the nodes.
#[derive(Debug, Default, Clone)]
pub(crate) struct Coverage(BTreeMap<String, u64>);

impl Coverage {
    pub(crate) fn count(&mut self, path: Path) {
        *self.0.entry(format!("{path:?}")).or_default() += 1;
    }

    /// What a process has counted by its end.
    pub(crate) fn add_counters(&mut self, counters: &Counters) {
        for (name, count) in counters.named() {
            *self.0.entry(name.to_owned()).or_default() += count;
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (path, count) in &other.0 {
            *self.0.entry(path.clone()).or_default() += count;
        }
    }

    /// The names of the paths that were never taken.
    pub(crate) fn untaken(&self) -> Vec<String> {
        let paths = Path::ALL.iter().map(|path| format!("{path:?}"));
        let counters = Counters::default();
        let counters = counters.named().map(|(name, _)| name.to_owned());
        paths.chain(counters).filter(|path| self.0.get(path).is_none_or(|count| *count == 0)).collect()
    }
}

/// One path a line.
impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(path, count)| writeln!(f, "{count:>12}  {path}"))
    }
}
