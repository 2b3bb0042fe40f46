//! What engines keep: the names of records and hints in one ordered space, and the pages that are read from it.
//!
//! ```text
//! slot u16 ‖ encoded key                        → record
//! 0x2000 u16 ‖ target 16 ‖ encoded key          → since u64 ‖ CRC-32C over name and time
//! ```
//!
//! The slot is one of 4,096 slices of the hash space, whatever number of partitions the cluster has: a partition is
//! one range of slots. Numbers are big-endian, so the order of names is that of [`RecordKey::place`]. What else an
//! engine keeps has names of its own above the slots.

use std::cmp::Ordering;
use std::ops::Range;

use bytes::Bytes;
use keystore_core::effect::Hint;
use keystore_core::id::NodeId;
use keystore_core::message::{PAGE_BYTES_MAX, Page, ScanRange};
use keystore_core::partition::RecordKey;
use keystore_core::record::Record;

const HINTS: u16 = 0x2000;
const HINTS_END: u16 = HINTS + 1;

pub(super) fn record_name(key: &RecordKey) -> Vec<u8> {
    let (slot, encoded) = key.place();
    let mut name = Vec::with_capacity(2 + encoded.len());
    name.extend_from_slice(&slot.to_be_bytes());
    name.extend_from_slice(encoded);
    name
}

/// How the name of a key that lies in this slot compares with this one.
pub(super) fn compare_name(slot: u16, key: &RecordKey, name: &[u8]) -> Ordering {
    match name.split_first_chunk::<2>() {
        Some((first, encoded)) => {
            slot.cmp(&u16::from_be_bytes(*first)).then_with(|| key.encoded()[..].cmp(encoded))
        }
        None => Ordering::Greater,
    }
}

/// The least name above this record's.
pub(super) fn name_after(key: &RecordKey) -> Vec<u8> {
    let mut name = record_name(key);
    name.push(0);
    name
}

/// The key of a record's name.
pub(super) fn key_of_record(name: &[u8]) -> Option<RecordKey> {
    key_after::<2>(name)
}

fn key_after<const N: usize>(name: &[u8]) -> Option<RecordKey> {
    let (_, encoded) = name.split_first_chunk::<N>()?;
    RecordKey::from_encoded(Bytes::copy_from_slice(encoded)).ok()
}

pub(super) fn hint_name(target: NodeId, key: &RecordKey) -> Vec<u8> {
    let mut name = Vec::with_capacity(2 + target.0.len() + key.encoded().len());
    name.extend_from_slice(&HINTS.to_be_bytes());
    name.extend_from_slice(&target.0);
    name.extend_from_slice(key.encoded());
    name
}

/// The names of all hints.
pub(super) fn hint_names() -> Range<Vec<u8>> {
    HINTS.to_be_bytes().to_vec()..HINTS_END.to_be_bytes().to_vec()
}

pub(super) fn is_hint(name: &[u8]) -> bool {
    name.starts_with(&HINTS.to_be_bytes())
}

pub(super) fn encode_hint(name: &[u8], since_ms: u64) -> Vec<u8> {
    let since = since_ms.to_be_bytes();
    let checksum = crc32c::crc32c_append(crc32c::crc32c(name), &since);
    [&since[..], &checksum.to_be_bytes()[..]].concat()
}

/// A damaged time is that of the oldest hint there can be: name and target still say what is to be handed over. A
/// damaged name is nothing.
pub(super) fn decode_hint(name: &[u8], stored: &[u8]) -> Option<Hint> {
    let (_, rest) = name.split_first_chunk::<2>()?;
    let (target, _) = rest.split_first_chunk::<16>()?;
    let key = key_after::<18>(name)?;
    let since_ms = stored
        .first_chunk::<8>()
        .map(|since| u64::from_be_bytes(*since))
        .filter(|since_ms| stored == encode_hint(name, *since_ms))
        .unwrap_or_default();
    Some(Hint { target: NodeId(*target), key, since_ms })
}

/// The names of the records in these slots that a range asks for: one stretch after the other, in order.
pub(super) fn stretches(slots: Range<u32>, range: &ScanRange) -> impl Iterator<Item = Range<Vec<u8>>> {
    let after = range.after.as_ref().map(name_after);
    let whole = range.prefix.is_empty().then(|| slots.clone()).into_iter();
    let single = (!range.prefix.is_empty()).then(|| slots.map(|slot| slot..slot + 1)).into_iter().flatten();
    let prefix = range.prefix.clone();
    whole.chain(single).filter_map(move |slots| {
        let mut start = slot_name(slots.start);
        start.extend_from_slice(&prefix);
        let end = if prefix.is_empty() { None } else { successor(&start) };
        let end = end.unwrap_or_else(|| slot_name(slots.end));
        let start = after.clone().filter(|after| *after > start).unwrap_or(start);
        (start < end).then_some(start..end)
    })
}

fn slot_name(slot: u32) -> Vec<u8> {
    u16::try_from(slot).unwrap_or(u16::MAX).to_be_bytes().to_vec()
}

/// The least name above all that begin with this one.
fn successor(name: &[u8]) -> Option<Vec<u8>> {
    let last = name.iter().rposition(|byte| *byte != 0xff)?;
    let mut above = name.get(..=last)?.to_vec();
    *above.last_mut()? += 1;
    Some(above)
}

/// A page that is being filled.
pub(super) struct PageMaker {
    page: Page,
    limit: usize,
    bytes: usize,
}

impl PageMaker {
    pub(super) fn new(range: &ScanRange) -> Self {
        let limit = usize::try_from(range.limit).unwrap_or(usize::MAX).max(1);
        Self { page: Page::default(), limit, bytes: 0 }
    }

    /// True if the page takes no more, and there is more: it is cut here.
    pub(super) fn is_cut_before_next(&mut self) -> bool {
        let is_full = self.page.entries.len() >= self.limit;
        if is_full {
            self.cut();
        }
        is_full
    }

    /// Takes the record, unless the page is too large with it: then it is cut, and this is false.
    pub(super) fn take(&mut self, key: RecordKey, record: Record) -> bool {
        let bytes = key.encoded().len() + record.value_len();
        if !self.page.entries.is_empty() && self.bytes + bytes > PAGE_BYTES_MAX {
            self.cut();
            return false;
        }
        self.bytes += bytes;
        self.page.entries.push((key, record));
        true
    }

    /// How many records it takes.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    pub(super) fn is_empty(&self) -> bool {
        self.page.entries.is_empty()
    }

    /// There is more behind its last record.
    pub(super) fn cut(&mut self) {
        self.page.until = self.page.entries.last().map(|(key, _)| key.clone());
    }

    /// What it has, where there may be more behind this key.
    pub(super) fn finish_at(self, until: RecordKey) -> Page {
        Page { until: Some(until), ..self.page }
    }

    pub(super) fn finish(self) -> Page {
        self.page
    }
}
