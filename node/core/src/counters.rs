//! How often a node took the paths that are rare: for metrics, and for tests that want to know that a path was taken.

macro_rules! counters {
    ($($(#[$meta:meta])* $name:ident),* $(,)?) => {
        /// Counts since the start of the process.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$meta])* pub $name: u64),*
        }

        impl Counters {
            /// Each with its name.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }
        }
    };
}

counters! {
    /// Reads whose result had to be written to a quorum before it was answered.
    write_backs,
    /// Records sent to replicas that were behind, without anybody waiting for it.
    read_repairs,
    /// Writes that a higher stamp stood in the way of.
    stamped_anew,
    /// Writes that had to wait until a stamp might be issued.
    parked,
    /// Reads that asked one replica more since one was slow.
    speculative_reads,
    /// Reads that found something expired and wrote that down first.
    expired_marks,
    /// Writes that were given a dot.
    minted,
    /// Writes whose operation was among the siblings already.
    operations_met_again,
    /// Writes that were refused since a key had too many siblings.
    sibling_caps,
    /// Scan answers that were cut.
    scan_cuts,
    /// Answers that spoke of a generation that was not known before.
    generations_heard,
    hints_stored,
    hints_handed_over,
    /// Hints that were not kept since there were too many.
    hints_overflowed,
    /// Hints that were dropped since they were too old.
    hints_expired,
    /// Repairs that had to wait until what superseded them was synced.
    synced_anew,
    /// Generations that were raised while the process ran.
    generations_raised,
    /// Keys that came into doubt.
    doubts,
    /// Keys that were healed from other replicas.
    heals,
}
