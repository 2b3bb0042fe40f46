//! One batch of entries as bytes.
//!
//! ```text
//! magic u32 | checksum u32 | chain u32 | kind u32 | entries u32 | body bytes u32 | segment u64
//! | sequence of the first entry u64 | synced up to u64 | entries | zeros to a multiple of 8
//! ```
//!
//! Numbers are big-endian. The checksum is CRC-32C, begun with the segment's salt, over all that follows it: the
//! salt is random, so no value that a client stores can look like a batch of the segment that holds it.

use bytes::{Buf, Bytes};
use keystore_core::effect::Entry;

use super::entry::{self, entry_len};

pub(super) const MAGIC: u32 = u32::from_be_bytes(*b"KSLB");
pub(super) const HEADER_BYTES: usize = 6 * 4 + 3 * 8;
/// Batches begin at multiples of this, so that looking for one takes an eighth of the comparisons.
pub(super) const ALIGNMENT: usize = 8;
const CHECKSUM_COVERS_FROM: usize = 8;

/// What a batch is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Entries,
    /// Written and synced after everything else, when the process stops: all before it had been synced.
    CleanShutdown,
}

const KIND_ENTRIES: u32 = 1;
const KIND_CLEAN_SHUTDOWN: u32 = 2;

/// Everything in a batch but its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) chain: u32,
    pub(super) kind: Kind,
    pub(super) segment: u64,
    pub(super) first_sequence: u64,
    /// The last entry that was known to be on disk when this batch was written.
    pub(super) synced: u64,
}

/// A batch whose checksum is right.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    pub(super) header: Header,
    pub(super) checksum: u32,
    entries: u32,
    body: Bytes,
    /// Where the next batch begins, from this one's beginning.
    pub(super) length: usize,
}

/// The bytes that a batch of these entries takes.
pub(super) fn encoded_len(entries: &[Entry]) -> usize {
    let body: usize = entries.iter().map(entry_len).sum();
    (HEADER_BYTES + body).next_multiple_of(ALIGNMENT)
}

/// Puts a batch into `out`, which is cleared first, and returns its checksum.
pub(super) fn encode(header: Header, salt: u64, entries: &[Entry], out: &mut Vec<u8>) -> u32 {
    let Header { chain, kind, segment, first_sequence, synced } = header;
    out.clear();
    out.extend_from_slice(&MAGIC.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    let kind = match kind {
        Kind::Entries => KIND_ENTRIES,
        Kind::CleanShutdown => KIND_CLEAN_SHUTDOWN,
    };
    let body: usize = entries.iter().map(entry_len).sum();
    for number in [chain, kind, count(entries.len()), count(body)] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    for number in [segment, first_sequence, synced] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    for entry in entries {
        entry::encode(entry, out);
    }
    let checksum = checksum(salt, out.get(CHECKSUM_COVERS_FROM..).unwrap_or_default());
    if let Some(place) = out.get_mut(4..8) {
        place.copy_from_slice(&checksum.to_be_bytes());
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    checksum
}

fn count(n: usize) -> u32 {
    u32::try_from(n).expect("a batch is below 4 GiB")
}

fn checksum(salt: u64, covered: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&salt.to_be_bytes()), covered)
}

/// Reads the batch at the beginning of `bytes`; `None` if there is none that is whole.
pub(super) fn decode(salt: u64, bytes: &Bytes) -> Option<Batch> {
    if bytes.len() < HEADER_BYTES {
        return None;
    }
    let mut fields = bytes.slice(..HEADER_BYTES);
    if fields.get_u32() != MAGIC {
        return None;
    }
    let found = fields.get_u32();
    let (chain, kind, entries, body_len) =
        (fields.get_u32(), fields.get_u32(), fields.get_u32(), fields.get_u32());
    let (segment, first_sequence, synced) = (fields.get_u64(), fields.get_u64(), fields.get_u64());
    let end = HEADER_BYTES.checked_add(usize::try_from(body_len).ok()?)?;
    let covered = bytes.get(CHECKSUM_COVERS_FROM..end)?;
    if checksum(salt, covered) != found {
        return None;
    }
    let kind = match kind {
        KIND_ENTRIES => Kind::Entries,
        KIND_CLEAN_SHUTDOWN => Kind::CleanShutdown,
        _ => return None,
    };
    Some(Batch {
        header: Header { chain, kind, segment, first_sequence, synced },
        checksum: found,
        entries,
        body: bytes.slice(HEADER_BYTES..end),
        length: end.next_multiple_of(ALIGNMENT),
    })
}

/// Puts the checksum right, then reads the batch; `Some(None)` if its body makes no sense. For [`super::super::fuzzing`].
pub(in crate::storage) fn decode_repaired(bytes: &[u8]) -> Option<Option<Vec<Entry>>> {
    let mut bytes = bytes.to_vec();
    bytes.get_mut(..4)?.copy_from_slice(&MAGIC.to_be_bytes());
    let body_len = u32::from_be_bytes(*bytes.get(20..)?.first_chunk()?);
    let end = HEADER_BYTES.checked_add(usize::try_from(body_len).ok()?)?;
    let right = checksum(0, bytes.get(CHECKSUM_COVERS_FROM..end)?);
    bytes.get_mut(4..8)?.copy_from_slice(&right.to_be_bytes());
    let batch = decode(0, &bytes.into())?;
    assert!(batch.last_sequence() >= batch.header.first_sequence.saturating_sub(1));
    Some(batch.entries())
}

impl Batch {
    /// The sequence number of the last entry; that before the first one if the batch has none.
    pub(super) fn last_sequence(&self) -> u64 {
        self.header.first_sequence.saturating_add(u64::from(self.entries)).saturating_sub(1)
    }

    /// The entries, sharing the batch's bytes. `None` if the body does not hold what the header says, which a
    /// right checksum rules out, unless a later version wrote it.
    pub(super) fn entries(&self) -> Option<Vec<Entry>> {
        let mut body = self.body.clone();
        let mut entries = Vec::new();
        for _ in 0..self.entries {
            entries.push(entry::decode(&mut body)?);
        }
        body.is_empty().then_some(entries)
    }
}
