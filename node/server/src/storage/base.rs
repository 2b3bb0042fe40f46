//! What lies below the memtable: where records are on disk.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;

use bytes::Bytes;
use keystore_core::effect::{Damaged, Hint};
use keystore_core::partition::RecordKey;
use keystore_core::record::Record;

use super::engine::{EngineError, LoadError, ScanError};
use super::memtable::{Held, Memtable};

/// A record and where it lies among all.
pub(super) type Found = ((u16, RecordKey), Result<Option<Record>, Damaged>);

/// Any thread may read; one at a time writes.
pub(super) trait Base: Send + Sync + Debug {
    fn load(&self, key: &RecordKey) -> Result<Option<Record>, LoadError>;

    /// The records between two names, in order; those that were removed meanwhile are `None`.
    fn records<'a>(
        &'a self,
        names: &Range<Vec<u8>>,
    ) -> Box<dyn Iterator<Item = Result<Found, ScanError>> + 'a>;

    /// All hints, by name.
    fn hints(&self) -> Result<BTreeMap<Vec<u8>, Hint>, EngineError>;

    /// Writes everything down, in order, by [`written`]. With a sequence it is durable when this returns, and so is a
    /// note that this includes all entries up to there. Returns the keys for which there is no place, since what
    /// holds it cannot be read.
    fn write_down(&self, table: &Memtable, sequence: Option<u64>) -> Result<Vec<RecordKey>, EngineError>;

    /// The sequence of the last note that is still there, 0 if there is none.
    fn flushed(&self) -> Result<u64, EngineError>;

    fn disk_bytes(&self) -> Result<u64, EngineError>;

    /// What it writes at once for a byte of a record, at most on the average.
    fn written_for_each_byte(&self) -> u64;
}

/// What is to be stored under a key from now on.
pub(super) enum Written {
    /// What is there already.
    Same,
    Nothing,
    /// A record, and what it is encoded.
    Record(Record, Bytes),
}

/// What comes of what is held in memory and what is stored; damage of the latter loses against anything.
pub(super) fn written(key: &RecordKey, held: &Held, stored: Option<Record>) -> Result<Written, EngineError> {
    let Some(encoded) = &held.record else { return Ok(Written::Nothing) };
    let record = held.decode(key).ok().flatten().ok_or_else(|| EngineError::Memory(key.clone()))?;
    let Some(stored) = stored.filter(|_| !held.is_whole) else {
        return Ok(Written::Record(record, encoded.clone()));
    };
    let (of_stored, of_held) = (stored.version(), record.version());
    let merged = stored.merge(record);
    Ok(match merged.version() {
        version if version == of_stored => Written::Same,
        version if version == of_held => Written::Record(merged, encoded.clone()),
        _ => {
            let encoded = merged.encode(key);
            Written::Record(merged, encoded)
        }
    })
}
