//! Where records are kept to be found again: the trait that every engine stands behind.
//!
//! An engine is a view of the commit log. It may lose what was not flushed, and nothing else; it never decides
//! which of two records stays, since that is what [`Record::merge`] is for. One contract suite runs against every
//! engine.

use std::fmt::Debug;

use keystore_core::partition::RecordKey;
use keystore_core::record::Record;
use thiserror::Error;

use super::file::DiskError;

/// An engine that cannot go on. What it holds is as after a crash.
#[derive(Debug, Error)]
pub enum EngineError {
    #[error("the storage engine failed: {0}")]
    Sled(#[from] sled::Error),
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// sled panics where it finds what it did not expect.
    #[error("it gave up on what it found: {0}")]
    GaveUp(String),
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

/// What a storage engine does. Any thread may load; one thread at a time applies, one flushes.
pub trait Storage: Send + Sync + Debug {
    /// The record under a key: some version that was applied, whole, never one older than a load that has
    /// returned before.
    fn load(&self, key: &RecordKey) -> Result<Option<Record>, LoadError>;

    /// Merges each record into what is stored under its key. A damaged one stays as it is, so that loads go on
    /// saying so: what it held is not known, and the new record may be older. Returns how many of those there were.
    fn apply(&self, records: &[(RecordKey, Record)]) -> Result<u64, EngineError>;

    /// Makes everything applied before this call durable, and notes that this includes all records up to
    /// `sequence`.
    fn flush(&self, sequence: u64) -> Result<(), EngineError>;

    /// The `sequence` of the last flush that the engine still knows of, 0 if there was none. A lower one than was
    /// flushed shows that the engine has lost something.
    fn flushed(&self) -> Result<u64, EngineError>;

    /// What the engine takes up on disk.
    fn bytes_on_disk(&self) -> Result<u64, EngineError>;
}
