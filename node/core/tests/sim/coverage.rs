//! How often rare things happened: a wide run in which one of them never does proves nothing of it, and fails.

use std::collections::BTreeMap;

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
    /// A read wrote its result back to a quorum before it answered.
    WriteBack,
    /// A read repaired a replica that was behind after its answer.
    ReadRepair,
    /// A replica held something higher than what it was to write.
    Superseded,
    /// A coordinator stamped a write a second time.
    StampedAnew,
    /// A write waited for a stamp that may be issued.
    ParkedOnTheCeiling,
    /// A replica refused a write because its deadline had passed, and so on.
    RefusedAfterItsDeadline,
    RefusedForClockSkew,
    RefusedForWantOfSpace,
    RefusedInDoubt,
    /// A link was replaced by a newer one before its end was heard.
    LinkReplaced,
    /// A link was refused to a process of a rolled-back or cloned disk.
    StaleGenerationRefused,
    // What the world did.
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
    DeadForGood,
    RolledBack,
    Cloned,
    RecordRotted,
}

#[derive(Debug, Default, Clone)]
pub(crate) struct Coverage(BTreeMap<Path, u64>);

impl Coverage {
    pub(crate) fn count(&mut self, path: Path) {
        *self.0.entry(path).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (path, count) in &other.0 {
            *self.0.entry(*path).or_default() += count;
        }
    }

    pub(crate) fn of(&self, path: Path) -> u64 {
        self.0.get(&path).copied().unwrap_or(0)
    }

    /// The paths that were never taken.
    pub(crate) fn untaken(&self) -> Vec<Path> {
        Path::ALL.iter().copied().filter(|path| self.of(*path) == 0).collect()
    }
}
