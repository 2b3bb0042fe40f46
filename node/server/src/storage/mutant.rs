//! The rules of the disk, each broken on purpose: what shows that the tests would notice. See
//! [`keystore_core::mutant`] for those of the core.
//!
//! The threads of the storage are many, so a mutant is of a whole process: of this crate's own tests, started once
//! more by one of them. In every other build [`is_on`] is false at compile time.

/// A rule that is broken, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mutant {
    /// Rule 1: an engine does not note how high the stamps of its records are.
    HighestIsNotNoted,
    /// Rule 12: a commit is reported as synced that was only written.
    ReportedUnsynced,
    /// Rule 12: a batch that cannot be read is the end of the log, whatever a later one says of it.
    EveryHoleIsATornTail,
    /// Rule 12: a start goes on behind a tail that may never have been synced.
    TailIsNotMadeDurable,
    /// Rule 13: the checkpoint says what the engine has not flushed.
    CheckpointWithoutAFlush,
    /// Rule 13: an engine that has less than the checkpoint says is used.
    StaleEnginesAreTrusted,
    /// Rule 13: sled's syncs do nothing.
    SledIsNotSynced,
    /// Rule 13: a small file gets its name before its content is on disk.
    StatesAreNotSynced,
}

#[cfg(test)]
pub(super) const VARIABLE: &str = "KEYSTORE_STORAGE_MUTANT";

#[cfg(test)]
pub(super) fn is_on(mutant: Mutant) -> bool {
    static ON: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let on = ON.get_or_init(|| std::env::var(VARIABLE).ok());
    on.as_ref().is_some_and(|on| *on == format!("{mutant:?}"))
}

#[cfg(not(test))]
pub(super) const fn is_on(_: Mutant) -> bool {
    false
}
