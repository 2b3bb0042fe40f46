//! What was applied last and is not in the engine's files yet, in the order of [`RecordKey::place`].
//!
//! Records are kept encoded: one allocation of their own, so that none keeps the frame alive in which it came.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};

use bytes::Bytes;
use keystore_core::effect::{Damaged, Hint};
use keystore_core::id::NodeId;
use keystore_core::partition::{RecordKey, SLOTS};
use keystore_core::record::Record;
use keystore_core::stamp::Stamp;

use super::item;
use super::mutant::{Mutant, is_on};

/// What an entry takes beside its bytes: two nodes of the tree half full, two counted allocations.
const ENTRY_OVERHEAD_BYTES: usize = 128;

#[derive(Debug)]
pub(super) struct Memtable {
    /// One tree for each slot: they are small, so that finding a place takes a few comparisons.
    slots: Vec<BTreeMap<Bytes, Held>>,
    /// By name; `None` is one that is to be forgotten.
    hints: BTreeMap<Vec<u8>, Option<u64>>,
    bytes: usize,
    /// Of all that was put here.
    highest: Stamp,
}

/// What is known of a key.
#[derive(Debug, Clone)]
pub(super) struct Held {
    /// Encoded; `None` is a key of which nothing is to be stored.
    pub(super) record: Option<Bytes>,
    /// True if what lies below counts no more; otherwise it still has to be merged.
    pub(super) is_whole: bool,
}

impl Held {
    fn bytes(&self) -> usize {
        self.record.as_ref().map_or(0, Bytes::len)
    }

    /// Memory, too, returns what was not written now and then.
    pub(super) fn decode(&self, key: &RecordKey) -> Result<Option<Record>, Damaged> {
        self.record.as_ref().map(|encoded| Record::decode(key, encoded).map_err(|_| Damaged)).transpose()
    }
}

impl Default for Memtable {
    fn default() -> Self {
        let slots = (0..SLOTS).map(|_| BTreeMap::new()).collect();
        Self { slots, hints: BTreeMap::new(), bytes: 0, highest: Stamp::LOWEST }
    }
}

impl Memtable {
    /// About what it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A stamp that no record is above.
    pub(super) fn highest(&self) -> Stamp {
        if is_on(Mutant::HighestIsNotNoted) { Stamp::LOWEST } else { self.highest }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    pub(super) fn get(&self, key: &RecordKey) -> Option<&Held> {
        self.slots.get(usize::from(key.slot()))?.get(key.encoded())
    }

    /// Merges a record with what is held here, or else `below`.
    pub(super) fn merge(&mut self, key: &RecordKey, record: &Record, below: Option<&Held>) {
        self.highest = self.highest.max(record.stamp);
        let held = self.get(key).or(below);
        let is_whole = held.is_some_and(|held| held.is_whole);
        // What is damaged is below: see the engine.
        let merged = match held.map(|held| held.decode(key)) {
            Some(Ok(Some(old))) => old.merge(record.clone()).encode(key),
            None | Some(Ok(None) | Err(Damaged)) => record.encode(key),
        };
        self.put(key, Held { record: Some(merged), is_whole });
    }

    pub(super) fn replace(&mut self, key: &RecordKey, record: Option<&Record>) {
        self.highest = record.map_or(self.highest, |record| self.highest.max(record.stamp));
        self.put(key, Held { record: record.map(|record| record.encode(key)), is_whole: true });
    }

    fn put(&mut self, key: &RecordKey, held: Held) {
        let Some(slot) = self.slots.get_mut(usize::from(key.slot())) else { return };
        self.bytes += held.bytes();
        match slot.get_mut(key.encoded()) {
            Some(old) => {
                self.bytes -= old.bytes();
                *old = held;
            }
            None => {
                self.bytes += key.encoded().len() + ENTRY_OVERHEAD_BYTES;
                slot.insert(Bytes::copy_from_slice(key.encoded()), held);
            }
        }
    }

    pub(super) fn keep_hint(&mut self, target: NodeId, key: &RecordKey, since_ms: Option<u64>) {
        let name = item::hint_name(target, key);
        let bytes = name.len() + ENTRY_OVERHEAD_BYTES;
        if self.hints.insert(name, since_ms).is_none() {
            self.bytes += bytes;
        }
    }

    /// By name, in order.
    pub(super) fn hints(&self) -> impl Iterator<Item = (&Vec<u8>, Option<u64>)> {
        self.hints.iter().map(|(name, since_ms)| (name, *since_ms))
    }

    /// Everything, in order.
    pub(super) fn records(&self) -> impl Iterator<Item = (RecordKey, &Held)> {
        let all = self.slots.iter().flatten();
        all.filter_map(|(encoded, held)| Some((RecordKey::from_encoded(encoded.clone()).ok()?, held)))
    }

    /// What lies between two names of records, in order.
    pub(super) fn between<'a>(
        &'a self,
        names: &'a Range<Vec<u8>>,
    ) -> impl Iterator<Item = (RecordKey, &'a Held)> {
        let (first, start) = slot_and_key(&names.start);
        let (last, end) = slot_and_key(&names.end);
        let slots = first..last + usize::from(!end.is_empty());
        let trees = slots.filter_map(move |slot| Some((slot, self.slots.get(slot)?)));
        let found = trees.flat_map(move |(slot, tree)| {
            let from = if slot == first { Bound::Included(start) } else { Bound::Unbounded };
            let to = if slot == last { Bound::Excluded(end) } else { Bound::Unbounded };
            tree.range::<[u8], _>((from, to))
        });
        found.filter_map(|(encoded, held)| Some((RecordKey::from_encoded(encoded.clone()).ok()?, held)))
    }
}

/// The parts of a record's name, or of a bound between such names.
fn slot_and_key(name: &[u8]) -> (usize, &[u8]) {
    match name.split_first_chunk::<2>() {
        Some((slot, encoded)) => (usize::from(u16::from_be_bytes(*slot)), encoded),
        None => (0, name),
    }
}

/// A hint as its name and time say it.
pub(super) fn hint(name: &[u8], since_ms: u64) -> Option<Hint> {
    item::decode_hint(name, &item::encode_hint(name, since_ms))
}
