//! One entry of a batch as bytes.
//!
//! ```text
//! key bytes u16 | kind u8 | value bytes u32 | stamp or node 16 | key | value
//! ```
//!
//! | kind | entry | stamp or node | value |
//! |---|---|---|---|
//! | 1 to 63 | a record to be merged; its content is of this kind | stamp | content |
//! | 64 | the record of the key is removed | zeros | |
//! | 65 to 127 | a record that takes the place of what is there; its content is of this kind less 64 | stamp | content |
//! | 128 | a hint | target | since u64 |
//! | 129 | the end of a hint | target | |
//!
//! The first release wrote records of kinds 1 and 2.

use bytes::{Buf, Bytes};
use keystore_core::effect::{Entry, Hint};
use keystore_core::id::NodeId;
use keystore_core::partition::RecordKey;
use keystore_core::record::{Body, Record};
use keystore_core::stamp::Stamp;

const HEADER_BYTES: usize = 2 + 1 + 4 + 16;
const REPLACE: u8 = 64;
const HINT: u8 = 128;
const HINT_DONE: u8 = 129;

/// The bytes that an entry adds to a batch.
pub(in crate::storage) fn entry_len(entry: &Entry) -> usize {
    let (key, value_len) = match entry {
        Entry::Record { key, record } | Entry::Replace { key, record: Some(record) } => {
            (key, record.value_len())
        }
        Entry::Replace { key, record: None } | Entry::HintDone { key, .. } => (key, 0),
        Entry::Hint(hint) => (&hint.key, size_of::<u64>()),
    };
    HEADER_BYTES + key.encoded().len() + value_len
}

pub(in crate::storage) fn encode(entry: &Entry, out: &mut Vec<u8>) {
    match entry {
        Entry::Record { key, record } => encode_record(0, key, record, out),
        Entry::Replace { key, record: Some(record) } => encode_record(REPLACE, key, record, out),
        Entry::Replace { key, record: None } => encode_header((key, REPLACE, 0), [0; 16], out),
        Entry::Hint(Hint { target, key, since_ms }) => {
            encode_header((key, HINT, size_of::<u64>()), target.0, out);
            out.extend_from_slice(&since_ms.to_be_bytes());
        }
        Entry::HintDone { target, key } => encode_header((key, HINT_DONE, 0), target.0, out),
    }
}

fn encode_record(base: u8, key: &RecordKey, Record { stamp, body }: &Record, out: &mut Vec<u8>) {
    let kind = body.kind();
    debug_assert!((1..REPLACE).contains(&kind), "kinds of content have numbers of their own");
    let payload = body.payload();
    encode_header((key, base + kind, payload.len()), stamp.to_bytes(), out);
    out.extend_from_slice(&payload);
}

/// Everything but the value.
fn encode_header(
    (key, kind, value_len): (&RecordKey, u8, usize),
    stamp_or_node: [u8; 16],
    out: &mut Vec<u8>,
) {
    let key = key.encoded();
    let key_len = u16::try_from(key.len()).expect("an encoded key has at most 1,090 bytes");
    let value_len = u32::try_from(value_len).expect("a record is far below 4 GiB");
    out.extend_from_slice(&key_len.to_be_bytes());
    out.push(kind);
    out.extend_from_slice(&value_len.to_be_bytes());
    out.extend_from_slice(&stamp_or_node);
    out.extend_from_slice(key);
}

/// Takes an entry from the front, sharing its bytes; `None` if it is none that this version knows.
pub(in crate::storage) fn decode(bytes: &mut Bytes) -> Option<Entry> {
    if bytes.len() < HEADER_BYTES {
        return None;
    }
    let key_len = usize::from(bytes.get_u16());
    let kind = bytes.get_u8();
    let value_len = usize::try_from(bytes.get_u32()).ok()?;
    let stamp_or_node: [u8; 16] = bytes.split_to(16).as_ref().try_into().ok()?;
    if bytes.len() < key_len.checked_add(value_len)? {
        return None;
    }
    let key = RecordKey::from_encoded(bytes.split_to(key_len)).ok()?;
    let mut value = bytes.split_to(value_len);
    let target = NodeId(stamp_or_node);
    let record = |kind, value| {
        let body = Body::from_payload(kind, value).ok()?;
        Some(Record { stamp: Stamp::from_bytes(stamp_or_node), body })
    };
    match kind {
        1..REPLACE => Some(Entry::Record { key, record: record(kind, value)? }),
        REPLACE if value.is_empty() => Some(Entry::Replace { key, record: None }),
        REPLACE..HINT => Some(Entry::Replace { key, record: Some(record(kind - REPLACE, value)?) }),
        HINT => {
            let since_ms = value.try_get_u64().ok()?;
            value.is_empty().then_some(Entry::Hint(Hint { target, key, since_ms }))
        }
        HINT_DONE => value.is_empty().then_some(Entry::HintDone { target, key }),
        _ => None,
    }
}
