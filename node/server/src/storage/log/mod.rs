//! The commit log: what was acknowledged is in it and synced, before it is anywhere else.
//!
//! The log is a row of segments, each a preallocated file that was filled with zeros, so that syncing a batch
//! changes no metadata. A batch is chained to the one before by segment, sequence number and checksum, and says
//! up to where the log was synced when it was written: so a hole can be told from a torn tail. [`mod@read`] is the one
//! reader, [`CommitLog`] the one writer; where reading starts is said by a checkpoint outside the log.

mod entry;
mod batch;
mod preallocate;
mod read;
mod segment;
mod write;

pub(super) use batch::decode_repaired;
pub(super) use entry::{decode as decode_entry, encode as encode_entry, entry_len};
pub(super) use preallocate::spare_path;
pub use read::{LogDamaged, Reason};
pub(super) use read::{ReadError, ids, read};
pub(super) use segment::{from_name, path};
pub(super) use write::{AppendError, CommitLog};

/// A place between two batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Position {
    /// 0: before the first segment.
    pub(super) segment: u64,
    /// Bytes from the beginning of the segment.
    pub(super) offset: u64,
    /// Of the last entry before this place; 0 before the first.
    pub(super) sequence: u64,
    /// The checksum of the batch before this place; 0 before the first.
    pub(super) chain: u32,
}
