//! What a replica stores under a key, and how two records of one key merge into one.
//!
//! Merge is commutative, associative and idempotent: it keeps the higher version, a version being the stamp and
//! then the content. Two different contents under one stamp cannot come from this store; should they appear (a
//! cloned node, damaged memory), every replica still picks the same one, and [`Record::conflicts_with`] tells.

use std::cmp::Ordering;
use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

use crate::partition::RecordKey;
use crate::stamp::Stamp;

/// The largest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

/// A write as it is stored: its stamp, and a value or the mark that there is none.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    pub stamp: Stamp,
    pub body: Body,
}

/// What a write says about its key.
#[derive(Clone, PartialEq, Eq)]
pub enum Body {
    Value(Bytes),
    /// The key was deleted by the write of this stamp.
    Tombstone,
}

/// A record's place in the order of versions, without its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    pub stamp: Stamp,
    pub hash: u64,
}

impl Record {
    pub fn version(&self) -> Version {
        Version { stamp: self.stamp, hash: self.body.hash() }
    }

    /// The one record that both stand for.
    pub fn merge(self, other: Self) -> Self {
        if other.supersedes(&self) { other } else { self }
    }

    /// True if merging would keep this record and drop the other, different one.
    pub fn supersedes(&self, other: &Self) -> bool {
        self.stamp.cmp(&other.stamp).then_with(|| self.body.order(&other.body)) == Ordering::Greater
    }

    /// True if both bear one stamp and say different things: a broken invariant somewhere, worth an alarm.
    pub fn conflicts_with(&self, other: &Self) -> bool {
        self.stamp == other.stamp && self.body != other.body
    }

    /// How many bytes the value has; a tombstone has none.
    pub fn value_len(&self) -> usize {
        match &self.body {
            Body::Value(value) => value.len(),
            Body::Tombstone => 0,
        }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}={:?}", self.stamp, self.body)
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) if value.len() <= 32 => write!(f, "\"{}\"", value.escape_ascii()),
            Self::Value(value) => write!(f, "({} bytes)", value.len()),
            Self::Tombstone => f.write_str("deleted"),
        }
    }
}

impl Body {
    /// 64 bits of xxh3 over the kind and the value: part of the protocol between nodes.
    fn hash(&self) -> u64 {
        match self {
            // The lowest bit keeps a tombstone's hash apart from every value's.
            Self::Value(value) => xxh3_64(value) | 1,
            Self::Tombstone => 0,
        }
    }

    fn order(&self, other: &Self) -> Ordering {
        self.hash().cmp(&other.hash()).then_with(|| self.bytes().cmp(other.bytes()))
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Value(value) => value,
            Self::Tombstone => &[],
        }
    }
}

const FORMAT: u8 = 1;
const KIND_VALUE: u8 = 1;
const KIND_TOMBSTONE: u8 = 2;
const HEADER_BYTES: usize = 1 + 16 + 1;
const CHECKSUM_BYTES: usize = 4;

/// Why stored bytes are not the record of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RecordError {
    #[error("the stored record has {0} bytes, too few for any")]
    TooShort(usize),
    #[error("the checksum of the stored record does not match its content or key")]
    Checksum,
    #[error("the stored record has format {0}, which this version cannot read")]
    Format(u8),
    #[error("the stored record is of kind {0}, which this version cannot read")]
    Kind(u8),
}

impl Record {
    /// The form on disk: format, stamp, kind, value, and a CRC-32C over the key and all that precedes, so that a
    /// record under a wrong key is noticed as surely as a flipped bit.
    pub fn encode(&self, key: &RecordKey) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER_BYTES + self.value_len() + CHECKSUM_BYTES);
        out.put_u8(FORMAT);
        out.put_slice(&self.stamp.to_bytes());
        out.put_u8(match self.body {
            Body::Value(_) => KIND_VALUE,
            Body::Tombstone => KIND_TOMBSTONE,
        });
        out.put_slice(self.body.bytes());
        let checksum = crc32c::crc32c_append(crc32c::crc32c(key.encoded()), &out);
        out.put_u32(checksum);
        out.freeze()
    }

    /// Reads what [`Record::encode`] wrote for this very key. The value shares the given bytes.
    pub fn decode(key: &RecordKey, stored: &Bytes) -> Result<Self, RecordError> {
        let content_len = stored
            .len()
            .checked_sub(CHECKSUM_BYTES)
            .filter(|len| *len >= HEADER_BYTES)
            .ok_or(RecordError::TooShort(stored.len()))?;
        let content = stored.slice(..content_len);
        let checksum = crc32c::crc32c_append(crc32c::crc32c(key.encoded()), &content);
        if stored.slice(content_len..) != checksum.to_be_bytes()[..] {
            return Err(RecordError::Checksum);
        }
        let header = content.first_chunk::<HEADER_BYTES>().ok_or(RecordError::TooShort(stored.len()))?;
        let [format, stamp @ .., kind] = *header;
        if format != FORMAT {
            return Err(RecordError::Format(format));
        }
        let body = match kind {
            KIND_VALUE => Body::Value(content.slice(HEADER_BYTES..)),
            KIND_TOMBSTONE => Body::Tombstone,
            other => return Err(RecordError::Kind(other)),
        };
        Ok(Self { stamp: Stamp::from_bytes(stamp), body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Actor;
    use proptest::prelude::*;

    fn record() -> impl Strategy<Value = Record> {
        // Few stamps and short values, so that equal stamps with different contents come up.
        let body = prop_oneof![
            Just(Body::Tombstone),
            prop::collection::vec(0u8..3, 0..3).prop_map(|value| Body::Value(value.into())),
        ];
        (0u64..4, 0u64..2, body)
            .prop_map(|(millis, actor, body)| Record { stamp: Stamp::new(millis, 0, Actor(actor)), body })
    }

    proptest! {
        #[test]
        fn merge_is_commutative_associative_and_idempotent(a in record(), b in record(), c in record()) {
            prop_assert_eq!(a.clone().merge(b.clone()), b.clone().merge(a.clone()));
            prop_assert_eq!(a.clone().merge(b.clone()).merge(c.clone()), a.clone().merge(b.merge(c)));
            prop_assert_eq!(a.clone().merge(a.clone()), a);
        }

        #[test]
        fn merge_keeps_the_higher_version(a in record(), b in record()) {
            let merged = a.clone().merge(b.clone());
            prop_assert_eq!(merged.version(), a.version().max(b.version()));
            prop_assert_eq!(a.version() == b.version(), a == b);
        }

        #[test]
        fn a_stored_record_reads_back(record in record(), flipped in any::<prop::sample::Index>(), bit in 0u8..8) {
            let key = RecordKey::new("default", b"k").unwrap();
            let stored = record.encode(&key);
            prop_assert_eq!(Record::decode(&key, &stored), Ok(record));
            let mut damaged = stored.to_vec();
            damaged[flipped.index(stored.len())] ^= 1 << bit;
            prop_assert_eq!(Record::decode(&key, &damaged.into()), Err(RecordError::Checksum));
            let other = RecordKey::new("default", b"l").unwrap();
            prop_assert_eq!(Record::decode(&other, &stored), Err(RecordError::Checksum));
        }
    }

    #[test]
    fn bytes_of_the_first_release_still_read() {
        let key = RecordKey::new("default", b"greeting").unwrap();
        let stored = Bytes::from_static(include_bytes!("../tests/data/record-v1.bin"));
        let record =
            Record { stamp: Stamp::new(1_700_000_000_000, 7, Actor(42)), body: Body::Value("hello".into()) };
        assert_eq!(Record::decode(&key, &stored), Ok(record.clone()));
        assert_eq!(record.encode(&key), stored);
    }
}
