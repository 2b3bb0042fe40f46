//! What a replica stores under a key, and how two records of one key merge into one.
//!
//! Merge is commutative, associative and idempotent. Siblings merge by their causal contexts. Of other records it
//! keeps the higher version, a version being the stamp and then the content, where the mark that a value has expired
//! is above the value. Two different contents under one stamp cannot come from this store otherwise; should they
//! appear (a cloned node, damaged memory), every replica still picks the same one, and [`Record::conflicts_with`]
//! tells.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

use crate::causal::{CausalError, Context, Siblings};
use crate::mutant::{Mutant, is_on};
use crate::partition::RecordKey;
use crate::stamp::Stamp;

/// The largest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

/// What a replica stores under a key.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// Of the write; of siblings, the highest of all that came together in it.
    pub stamp: Stamp,
    pub body: Body,
}

/// What is known of the key.
#[derive(Clone, PartialEq, Eq)]
pub enum Body {
    Value(Bytes),
    /// A value that is gone from this moment on: wall clock, milliseconds since the Unix epoch.
    Expiring {
        value: Bytes,
        expires_ms: u64,
    },
    /// The key was deleted by the write of this stamp.
    Tombstone,
    /// The value of this stamp has expired, and a quorum was told so: it never returns, whatever a clock says.
    Expired,
    /// The values of a key in a keyspace that keeps concurrent writes.
    Siblings(Arc<Siblings>),
}

/// What a reader sees of a record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// In the order of their stamps; at most one unless the keyspace keeps siblings.
    pub values: Vec<(Bytes, Stamp)>,
    /// All that the reader has seen by this, in a keyspace that keeps siblings.
    pub context: Option<Context>,
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
        match (self.body, other.body) {
            (Body::Siblings(ours), Body::Siblings(theirs)) => {
                let merged =
                    if ours == theirs { ours } else { Arc::new(Arc::unwrap_or_clone(ours).merge(&theirs)) };
                Self { stamp: self.stamp.max(other.stamp), body: Body::Siblings(merged) }
            }
            (ours, theirs) => {
                let (ours, theirs) =
                    (Self { stamp: self.stamp, body: ours }, Self { stamp: other.stamp, body: theirs });
                if theirs.is_above(&ours) { theirs } else { ours }
            }
        }
    }

    /// True if merging would drop the other, different record: a write of it would never be seen.
    pub fn supersedes(&self, other: &Self) -> bool {
        let are_siblings = matches!((&self.body, &other.body), (Body::Siblings(_), Body::Siblings(_)));
        !are_siblings && !self.is_mark_of(other) && self.is_above(other)
    }

    fn is_above(&self, other: &Self) -> bool {
        self.stamp.cmp(&other.stamp).then_with(|| self.body.order(&other.body)) == Ordering::Greater
    }

    /// True if this says that the other, the very same write, has expired.
    fn is_mark_of(&self, other: &Self) -> bool {
        self.stamp == other.stamp
            && self.body == Body::Expired
            && matches!(other.body, Body::Expiring { .. } | Body::Expired)
    }

    /// True if both bear one stamp and say different things: a broken invariant somewhere, worth an alarm.
    pub fn conflicts_with(&self, other: &Self) -> bool {
        let are_siblings = matches!((&self.body, &other.body), (Body::Siblings(_), Body::Siblings(_)));
        self.stamp == other.stamp
            && self.body != other.body
            && !are_siblings
            && !self.is_mark_of(other)
            && !other.is_mark_of(self)
    }

    /// What is to be stored instead once something in this record has expired; `None` while nothing has.
    pub fn expired(&self, now_ms: u64) -> Option<Self> {
        let body = match &self.body {
            Body::Expiring { expires_ms, .. } if *expires_ms <= now_ms => Body::Expired,
            Body::Siblings(siblings) => {
                let mut left = Siblings::clone(siblings);
                if !left.expire(now_ms) {
                    return None;
                }
                Body::Siblings(Arc::new(left))
            }
            Body::Value(_) | Body::Expiring { .. } | Body::Tombstone | Body::Expired => return None,
        };
        Some(Self { stamp: self.stamp, body })
    }

    /// What a reader sees of this record, whatever has expired left out.
    pub fn reading(&self, now_ms: u64) -> Reading {
        match &self.body {
            Body::Value(value) => Reading { values: vec![(value.clone(), self.stamp)], context: None },
            Body::Expiring { value, expires_ms } if *expires_ms > now_ms => {
                Reading { values: vec![(value.clone(), self.stamp)], context: None }
            }
            Body::Expiring { .. } | Body::Tombstone | Body::Expired => Reading::default(),
            Body::Siblings(siblings) => {
                let is_live = |expires: Option<u64>| expires.is_none_or(|expires| expires > now_ms);
                let live = siblings.distinct().into_iter().filter(|sibling| is_live(sibling.expires_ms));
                Reading {
                    values: live.map(|sibling| (sibling.value.clone(), sibling.stamp)).collect(),
                    context: Some(siblings.context().clone()),
                }
            }
        }
    }

    /// How many bytes the content takes, on disk and in messages; a tombstone has none.
    pub fn value_len(&self) -> usize {
        self.body.payload_len()
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
            Self::Expiring { value, expires_ms } => write!(f, "({} bytes until {expires_ms})", value.len()),
            Self::Tombstone => f.write_str("deleted"),
            Self::Expired => f.write_str("expired"),
            Self::Siblings(siblings) => {
                f.debug_list()
                    .entries(siblings.values().map(|(dot, sibling)| (dot, &sibling.value)))
                    .finish()?;
                write!(f, " of {:?}", siblings.context())
            }
        }
    }
}

impl Body {
    /// 64 bits of xxh3 over the content: part of the protocol between nodes. A tombstone is below, and the mark that
    /// a value has expired above every value.
    fn hash(&self) -> u64 {
        match self {
            Self::Tombstone => 0,
            Self::Expired if is_on(Mutant::ExpiredMarkLoses) => 1,
            Self::Expired => u64::MAX,
            // The lowest bit keeps a tombstone's hash apart from every value's.
            Self::Value(value) => (xxh3_64(value) | 1).min(u64::MAX - 2),
            Self::Expiring { .. } | Self::Siblings(_) => (xxh3_64(&self.payload()) | 1).min(u64::MAX - 2),
        }
    }

    fn order(&self, other: &Self) -> Ordering {
        self.hash()
            .cmp(&other.hash())
            .then_with(|| self.kind().cmp(&other.kind()))
            .then_with(|| self.payload().cmp(&other.payload()))
    }

    /// The number of this kind of content, on disk and in messages.
    pub fn kind(&self) -> u8 {
        match self {
            Self::Value(_) => KIND_VALUE,
            Self::Tombstone => KIND_TOMBSTONE,
            Self::Expiring { .. } => KIND_EXPIRING,
            Self::Expired => KIND_EXPIRED,
            Self::Siblings(_) => KIND_SIBLINGS,
        }
    }

    pub(crate) fn payload_len(&self) -> usize {
        match self {
            Self::Value(value) => value.len(),
            Self::Expiring { value, .. } => 8 + value.len(),
            Self::Tombstone | Self::Expired => 0,
            Self::Siblings(siblings) => siblings.encoded_len(),
        }
    }

    /// Appends the content, without its kind and length.
    pub fn put_payload(&self, out: &mut impl BufMut) {
        match self {
            Self::Value(value) => out.put_slice(value),
            Self::Expiring { value, expires_ms } => {
                out.put_u64(*expires_ms);
                out.put_slice(value);
            }
            Self::Tombstone | Self::Expired => {}
            Self::Siblings(siblings) => siblings.put(out),
        }
    }

    /// What [`Body::put_payload`] appends, copied only where it has to be put together.
    pub fn payload(&self) -> Bytes {
        match self {
            Self::Value(value) => value.clone(),
            Self::Tombstone | Self::Expired => Bytes::new(),
            Self::Expiring { .. } | Self::Siblings(_) => {
                let mut out = BytesMut::with_capacity(self.payload_len());
                self.put_payload(&mut out);
                out.freeze()
            }
        }
    }

    /// The content of a kind. Values share the given bytes.
    pub fn from_payload(kind: u8, mut payload: Bytes) -> Result<Self, RecordError> {
        match kind {
            KIND_VALUE => Ok(Self::Value(payload)),
            KIND_EXPIRING => match payload.try_get_u64() {
                Ok(expires_ms) => Ok(Self::Expiring { value: payload, expires_ms }),
                Err(_) => Err(RecordError::TooShort(payload.len())),
            },
            KIND_TOMBSTONE => Ok(Self::Tombstone),
            KIND_EXPIRED => Ok(Self::Expired),
            KIND_SIBLINGS => Ok(Self::Siblings(Arc::new(Siblings::decode(payload)?))),
            other => Err(RecordError::Kind(other)),
        }
    }
}

const FORMAT: u8 = 1;
const KIND_VALUE: u8 = 1;
const KIND_TOMBSTONE: u8 = 2;
const KIND_EXPIRING: u8 = 3;
const KIND_EXPIRED: u8 = 4;
const KIND_SIBLINGS: u8 = 5;
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
    #[error("the siblings of the stored record cannot be read: {0}")]
    Siblings(#[from] CausalError),
}

impl Record {
    /// The form on disk: format, stamp, kind, value, and a CRC-32C over the key and all that precedes, so that a
    /// record under a wrong key is noticed as surely as a flipped bit.
    pub fn encode(&self, key: &RecordKey) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER_BYTES + self.value_len() + CHECKSUM_BYTES);
        out.put_u8(FORMAT);
        out.put_slice(&self.stamp.to_bytes());
        out.put_u8(self.body.kind());
        self.body.put_payload(&mut out);
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
        let body = Body::from_payload(kind, content.slice(HEADER_BYTES..))?;
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
            Just(Body::Expired),
            (0u64..3).prop_map(|expires_ms| Body::Expiring { value: "v".into(), expires_ms }),
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
