//! What lies below the memtable: where records are on disk.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;

use bytes::Bytes;
use keystore_core::effect::{Damaged, Hint};
use keystore_core::partition::RecordKey;
use keystore_core::record::Record;
use keystore_core::stamp::Stamp;

use super::engine::{EngineError, LoadError, ScanError};
use super::memtable::{Held, Memtable};

/// A record and where it lies among all.
pub(super) type Found = ((u16, RecordKey), Result<Option<Record>, Damaged>);

/// Says of each name in turn, in order, whether what lies there is of no use: it need not be looked at.
pub(super) type IsCovered<'a> = Box<dyn FnMut(&[u8]) -> bool + 'a>;

/// Any thread may read; one at a time writes.
pub(super) trait Base: Send + Sync + Debug {
    fn load(&self, key: &RecordKey) -> Result<Option<Record>, LoadError>;

    /// The records between two names, in order, without those that are covered; those that were removed meanwhile are
    /// `None`.
    fn records<'a>(
        &'a self,
        names: &Range<Vec<u8>>,
        is_covered: IsCovered<'a>,
    ) -> Box<dyn Iterator<Item = Result<Found, ScanError>> + 'a>;

    /// All hints, by name.
    fn hints(&self) -> Result<BTreeMap<Vec<u8>, Hint>, EngineError>;

    /// Writes everything down, in order, by [`written`], and notes the highest stamp. With a sequence it is durable
    /// when this returns, and so is a note that this includes all entries up to there. Returns the keys for which there
    /// is no place, since what holds it cannot be read.
    fn write_down(&self, table: &Memtable, sequence: Option<u64>) -> Result<Vec<RecordKey>, EngineError>;

    /// The sequence of the last note that is still there, 0 if there is none.
    fn flushed(&self) -> Result<u64, EngineError>;

    /// What was noted of the highest stamp: see [`highest_of_note`].
    fn highest(&self) -> Result<Option<Stamp>, EngineError>;

    fn disk_bytes(&self) -> Result<u64, EngineError>;

    /// What it writes at once for a byte of a record, at most on the average.
    fn written_for_each_byte(&self) -> u64;
}

/// The highest stamp is noted with the records, or before them.
pub(super) fn encode_highest(stamp: Stamp) -> Vec<u8> {
    let stamp = stamp.to_bytes();
    [&stamp[..], &crc32c::crc32c(&stamp).to_be_bytes()].concat()
}

/// A stamp that no record is above. Where nothing was ever flushed there is none; otherwise a note that is not there,
/// since an earlier version has written the records, or is damaged, says nothing.
pub(super) fn highest_of_note(note: Option<&[u8]>, is_new: bool) -> Option<Stamp> {
    let Some(note) = note else { return is_new.then_some(Stamp::LOWEST) };
    let stamp = note.first_chunk().map(|stamp| Stamp::from_bytes(*stamp))?;
    (note == encode_highest(stamp)).then_some(stamp)
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

#[cfg(test)]
mod tests {
    use keystore_core::id::Actor;

    use super::*;

    #[test]
    fn a_note_that_is_not_whole_says_nothing() {
        let stamp = Stamp::new(7, 3, Actor(5));
        let note = encode_highest(stamp);
        assert_eq!(highest_of_note(Some(&note), false), Some(stamp));
        assert_eq!(highest_of_note(None, true), Some(Stamp::LOWEST), "there are no records");
        assert_eq!(highest_of_note(None, false), None, "an earlier version has written them");
        for at in 0..note.len() {
            let mut spoilt = note.clone();
            spoilt[at] ^= 1;
            assert_eq!(highest_of_note(Some(&spoilt), false), None);
            assert_eq!(highest_of_note(note.get(..at), true), None);
        }
    }
}
