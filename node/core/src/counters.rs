//! How often a node took the paths that are rare: for metrics, and for tests that want to know that a path was taken.

macro_rules! counters {
    ($(#[doc = $help:literal] $field:ident as $name:ident,)*) => {
        /// Counts since the start of the process.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Counters {
            $(#[doc = $help] pub $field: u64,)*
        }

        impl Counters {
            /// Each with the name that it has here.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($field), self.$field)),*].into_iter()
            }

            /// Each with the name that it has among metrics, and the sentence that explains it.
            pub fn described(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($name), $help.trim_ascii(), self.$field)),*].into_iter()
            }
        }
    };
}

counters! {
    /// Reads whose result went to a quorum before the answer
    write_backs as read_write_backs,
    /// Records sent to replicas that a read found behind
    read_repairs as read_repairs,
    /// Reads that asked one replica more since one was slow
    speculative_reads as read_speculations,
    /// Reads that found something expired and wrote that down
    expired_marks as read_expired_marks,
    /// Requests that began from nothing since another layout came into force
    reissued as requests_reissued,
    /// Layouts that this node has taken up
    epochs_taken_up as layout_changes,
    /// Requests of other nodes that were refused since they were of an earlier epoch
    stale_requests as layout_stale_requests,
    /// Frames that waited until this node had taken up the layout of their sender
    frames_ahead as layout_frames_ahead,
    /// Records that were dropped since they were from before this node became a replica of their partition
    records_cleared as layout_records_cleared,
    /// Records that were dropped since this node is no replica of their partition any more
    records_left as layout_records_left,
    /// Attempts to have a layout decided that began anew
    ballots_repeated as layout_ballots_repeated,
    /// Stamps drawn again since a higher one stood in the way
    stamped_anew as write_restamps,
    /// Writes that waited until a stamp might be issued
    parked as write_parked,
    /// Writes that this replica took without a look at what they replace, being above all that it may hold there
    written_unseen as write_unseen,
    /// Repairs that waited until what is above them was synced
    synced_anew as write_synced_anew,
    /// Writes that this replica has put beside others
    minted as siblings_minted,
    /// Of these, retries of one that was there already
    operations_met_again as siblings_met_again,
    /// Writes refused since a key had too many siblings
    sibling_caps as siblings_refused,
    /// Pages that this replica has cut
    scan_cuts as scan_cuts,
    /// News of a peer's generation that came with another's answer
    generations_heard as generations_heard,
    /// Generations that this process has raised
    generations_raised as generations_raised,
    /// Hints taken for nodes that may have missed a write
    hints_stored as hints_stored,
    /// Hints whose target has said that it has what it missed
    hints_handed_over as hints_handed_over,
    /// Hints that were not kept: too many, or no space on disk
    hints_overflowed as hints_overflowed,
    /// Hints that were dropped since they were too old
    hints_expired as hints_expired,
    /// Keys whose record turned out to be damaged
    doubts as doubts,
    /// Of these, keys that were healed from other replicas
    heals as heals,
    /// Partitions that have come into doubt as a whole
    doubted_partitions as partition_doubts,
    /// Of these, partitions that were healed from other replicas
    healed_partitions as partition_heals,
}
