//! Where records are kept to be found again: the trait that every engine stands behind.
//!
//! An engine is a view of the commit log. It may lose what was not flushed, and nothing else; it never decides
//! which of two records stays, since that is what [`Record::merge`] is for. One contract suite runs against every
//! engine.

use std::fmt::{self, Debug};
use std::ops::Range;
use std::path::PathBuf;

use keystore_core::effect::{Entry, Hint};
use keystore_core::message::{Page, ScanRange};
use keystore_core::partition::RecordKey;
use keystore_core::record::Record;
use keystore_core::stamp::Stamp;
use thiserror::Error;

use super::file::DiskError;

/// The engines there are. A data directory belongs to one of them for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    Sled,
    Lsm,
    Memory,
}

impl EngineKind {
    /// Its name in configurations and on disk.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sled => "sled",
            Self::Lsm => "lsm",
            Self::Memory => "memory",
        }
    }

    pub(super) fn from_name(name: &[u8]) -> Option<Self> {
        [Self::Sled, Self::Lsm, Self::Memory].into_iter().find(|kind| kind.name().as_bytes() == name)
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An engine that cannot go on. What it holds is as after a crash.
#[derive(Debug, Error)]
pub enum EngineError {
    #[error("the storage engine failed: {0}")]
    Sled(#[from] sled::Error),
    #[error("the storage engine failed: {0}")]
    Lsm(#[from] lsm_tree::Error),
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Nothing is lost: what was flushed before still stands, and the next flush may find space again.
    #[error("there is no space for what the engine has to write: {0}")]
    NoSpace(DiskError),
    /// Nothing is lost: the log has it, and the next start reads it from there.
    #[error("the record of {0:?} was damaged in memory")]
    Memory(RecordKey),
    /// sled panics where it finds what it did not expect.
    #[error("it gave up on what it found: {0}")]
    GaveUp(String),
    #[error("{} is damaged at byte {offset}: {problem}", path.display())]
    Snapshot { path: PathBuf, offset: u64, problem: &'static str },
}

impl EngineError {
    /// Of a write that is as if it had not begun.
    pub(super) fn of_write(error: DiskError) -> Self {
        if error.is_no_space() { Self::NoSpace(error) } else { Self::Disk(error) }
    }
}

/// Why there is no answer to a read.
#[derive(Debug, Error)]
pub enum LoadError {
    /// Something is stored under the key that is not a whole record of it.
    #[error("the stored record is damaged")]
    Damaged,
    #[error(transparent)]
    Io(#[from] EngineError),
}

/// Why there is no page.
#[derive(Debug, Error)]
pub enum ScanError {
    /// What is stored under this key of the range is not a whole record of it.
    #[error("the stored record of {0:?} is damaged")]
    Damaged(RecordKey),
    /// What lies in the range cannot be read at all, so nobody knows whose records these are.
    #[error("a stretch of what is stored cannot be read: {0}")]
    Unreadable(EngineError),
    #[error(transparent)]
    Io(#[from] EngineError),
}

/// How large an engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineSize {
    pub disk_bytes: u64,
    /// Of what is kept in memory for as long as it is stored; 0 for an engine that only caches.
    pub memory_bytes: u64,
}

/// What a storage engine does. Any thread may load and scan; one thread at a time applies, one flushes.
pub trait Storage: Send + Sync + Debug {
    /// The record under a key: some version that was applied, whole, never one older than a load that has
    /// returned before.
    fn load(&self, key: &RecordKey) -> Result<Option<Record>, LoadError>;

    /// The first records of a range, which lies in these slots (see [`RecordKey::place`]), in order.
    fn scan(&self, slots: Range<u32>, range: &ScanRange) -> Result<Page, ScanError>;

    /// All hints that are kept, by target and key.
    fn hints(&self) -> Result<Vec<Hint>, EngineError>;

    /// Applies what is read from the log, in order, records by merging: what is stored may be newer. Where that is
    /// damaged, the entry takes its place: it was once the newest, and whatever is newer comes after it. Returns the
    /// positions of the entries that were left out because there is no place for them: what holds it is damaged.
    fn replay(&self, entries: &[Entry]) -> Result<Vec<usize>, EngineError>;

    /// The same for what is committed now, whose records have been merged with what is stored: an engine need not
    /// look at that.
    fn apply(&self, entries: &[Entry]) -> Result<Vec<usize>, EngineError> {
        self.replay(entries)
    }

    /// Makes everything applied before this call durable, and notes that this includes all entries up to
    /// `sequence`. Loads, scans and applies go on meanwhile.
    fn flush(&self, sequence: u64) -> Result<(), EngineError>;

    /// The `sequence` of the last flush that the engine still knows of, 0 if there was none. A lower one than was
    /// flushed shows that the engine has lost something.
    fn flushed(&self) -> Result<u64, EngineError>;

    /// A stamp that no record is above, whatever becomes of what was not flushed; `None` if that is not known.
    fn highest(&self) -> Result<Option<Stamp>, EngineError>;

    /// What the next flush writes, whatever little has changed: flushing pays once the log has grown by as much.
    fn flush_bytes(&self) -> u64;

    /// What a flush still needs of the disk before it can give back what the one before took.
    fn reserve_bytes(&self) -> u64;

    /// What the next flush will write to the disk, about: it is given back by a flush, so it is no reason to refuse
    /// anything before one was tried.
    fn unwritten_bytes(&self) -> u64 {
        0
    }

    /// True if more is kept in memory than should be before the next flush.
    fn wants_flush(&self) -> bool {
        false
    }

    fn size(&self) -> Result<EngineSize, EngineError>;
}
