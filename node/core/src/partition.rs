//! Where a key lives: its encoded form and the partition that its hash falls into.
//!
//! The hash input and the encoded key are the same bytes, `u16be(len keyspace) ‖ keyspace ‖ key`, so a key is
//! encoded once and never copied again on its way through coordinator, replica and engine. The function is part
//! of the data format: the vectors in the tests may never change.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

/// The longest key, in bytes, without its keyspace.
pub const KEY_BYTES_MAX: usize = 1024;
/// The longest name of a keyspace, in bytes.
pub const KEYSPACE_BYTES_MAX: usize = 64;
/// The keyspace that always exists.
pub const DEFAULT_KEYSPACE: &str = "default";

/// How many slots the hash space has: the largest number of partitions.
pub const SLOTS: u32 = 4096;

/// What the encoded keys begin with that are in a keyspace and begin with a prefix (which may be empty).
pub fn encoded_prefix(keyspace: &str, prefix: &[u8]) -> Result<Bytes, KeyError> {
    check_lengths(keyspace.len(), prefix.len().max(1))?;
    let length = u16::try_from(keyspace.len()).map_err(|_| KeyError::KeyspaceLength(keyspace.len()))?;
    let mut encoded = BytesMut::with_capacity(2 + keyspace.len() + prefix.len());
    encoded.put_u16(length);
    encoded.put_slice(keyspace.as_bytes());
    encoded.put_slice(prefix);
    Ok(encoded.freeze())
}

/// Why a keyspace and key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KeyError {
    #[error("a key has 1 to {KEY_BYTES_MAX} bytes, this one has {0}")]
    KeyLength(usize),
    #[error("a keyspace's name has 1 to {KEYSPACE_BYTES_MAX} bytes, this one has {0}")]
    KeyspaceLength(usize),
    #[error("the encoded key is cut short or its keyspace is not UTF-8")]
    Malformed,
}

/// A key within its keyspace, in the encoded form that is hashed, stored and sent. Cloning shares the bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey(Bytes);

impl RecordKey {
    pub fn new(keyspace: &str, key: &[u8]) -> Result<Self, KeyError> {
        check_lengths(keyspace.len(), key.len())?;
        let length = u16::try_from(keyspace.len()).map_err(|_| KeyError::KeyspaceLength(keyspace.len()))?;
        let mut encoded = BytesMut::with_capacity(2 + keyspace.len() + key.len());
        encoded.put_u16(length);
        encoded.put_slice(keyspace.as_bytes());
        encoded.put_slice(key);
        Ok(Self(encoded.freeze()))
    }

    /// Takes bytes from outside (a frame, a disk) and checks that they are an encoded key.
    pub fn from_encoded(encoded: Bytes) -> Result<Self, KeyError> {
        let (length, rest) = encoded.split_first_chunk::<2>().ok_or(KeyError::Malformed)?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (keyspace, key) = rest.split_at_checked(length).ok_or(KeyError::Malformed)?;
        std::str::from_utf8(keyspace).map_err(|_| KeyError::Malformed)?;
        check_lengths(keyspace.len(), key.len())?;
        Ok(Self(encoded))
    }

    /// The same key in memory of its own: a key that came in a frame keeps all of the frame alive.
    pub fn detached(&self) -> Self {
        Self(Bytes::copy_from_slice(&self.0))
    }

    pub fn encoded(&self) -> &Bytes {
        &self.0
    }

    pub fn keyspace(&self) -> &str {
        let end = 2 + self.keyspace_len();
        self.0.get(2..end).and_then(|name| std::str::from_utf8(name).ok()).unwrap_or_default()
    }

    /// The key as the user gave it.
    pub fn user_key(&self) -> Bytes {
        self.0.slice(2 + self.keyspace_len()..)
    }

    /// The partition of this key: the top bits of xxh3_64 with seed 0 over the encoded key.
    pub fn partition(&self, count: PartitionCount) -> Partition {
        let top = self.hash() >> (64 - u32::from(count.bits));
        Partition(u16::try_from(top).expect("at most 12 bits are kept"))
    }

    /// Where engines keep this key: by its slot, one of [`SLOTS`] slices of the hash space, then by its bytes. A
    /// partition is a range of slots, whatever number of partitions a cluster has, and scans go in this order.
    pub fn place(&self) -> (u16, &Bytes) {
        (self.slot(), &self.0)
    }

    pub fn slot(&self) -> u16 {
        let top = self.hash() >> (64 - SLOTS.trailing_zeros());
        u16::try_from(top).expect("at most 12 bits are kept")
    }

    pub(crate) fn hash(&self) -> u64 {
        xxh3_64(&self.0)
    }

    fn keyspace_len(&self) -> usize {
        match self.0.first_chunk::<2>() {
            Some(length) => usize::from(u16::from_be_bytes(*length)),
            None => 0,
        }
    }
}

impl fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.keyspace(), self.user_key().escape_ascii())
    }
}

fn check_lengths(keyspace: usize, key: usize) -> Result<(), KeyError> {
    if keyspace == 0 || keyspace > KEYSPACE_BYTES_MAX {
        return Err(KeyError::KeyspaceLength(keyspace));
    }
    if key == 0 || key > KEY_BYTES_MAX {
        return Err(KeyError::KeyLength(key));
    }
    Ok(())
}

/// One of the fixed slices of the hash space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(pub u16);

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// How many partitions the hash space is cut into: a power of two from 16 to 4096, fixed for a cluster's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionCount {
    bits: u8,
}

/// A number of partitions that is not a power of two from 16 to 4096.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the number of partitions is a power of two from 16 to 4096, not {0}")]
pub struct PartitionCountError(pub u32);

impl PartitionCount {
    /// The slots of a partition: a range of their numbers.
    pub fn slots(self, partition: Partition) -> std::ops::Range<u32> {
        let each = SLOTS >> self.bits;
        let first = u32::from(partition.0) * each;
        first..first + each
    }

    pub fn new(count: u32) -> Result<Self, PartitionCountError> {
        if !(16..=4096).contains(&count) || !count.is_power_of_two() {
            return Err(PartitionCountError(count));
        }
        let bits = u8::try_from(count.trailing_zeros()).map_err(|_| PartitionCountError(count))?;
        Ok(Self { bits })
    }

    pub fn get(self) -> u16 {
        1 << self.bits
    }

    pub fn all(self) -> impl Iterator<Item = Partition> {
        (0..self.get()).map(Partition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(keyspace: &str, key: &[u8], count: u32) -> u16 {
        RecordKey::new(keyspace, key).unwrap().partition(PartitionCount::new(count).unwrap()).0
    }

    #[test]
    fn the_partition_of_a_key_never_changes() {
        let vectors = include_str!("../tests/data/partition-vectors.txt");
        let lines: Vec<_> = vectors.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(lines.len() >= 8, "the vectors were read");
        for line in lines {
            let fields: Vec<_> = line.split_whitespace().collect();
            let [keyspace, key, count, expected] = fields[..] else { panic!("malformed vector: {line}") };
            assert_eq!(
                partition(keyspace, key.as_bytes(), count.parse().unwrap()),
                expected.parse().unwrap(),
                "{line}"
            );
        }
    }

    #[test]
    fn keyspace_and_key_are_told_apart() {
        let key = RecordKey::new("ab", b"cd").unwrap();
        assert_eq!((key.keyspace(), key.user_key().as_ref()), ("ab", b"cd".as_ref()));
        assert_ne!(key.encoded(), RecordKey::new("abc", b"d").unwrap().encoded());
        assert_eq!(RecordKey::from_encoded(key.encoded().clone()), Ok(key));
    }

    #[test]
    fn malformed_keys_are_refused() {
        let cases: [(&[u8], KeyError); 5] = [
            (b"", KeyError::Malformed),
            (b"\x00", KeyError::Malformed),
            (b"\x00\x05ab", KeyError::Malformed),
            (b"\x00\x01\xffk", KeyError::Malformed),
            (b"\x00\x01a", KeyError::KeyLength(0)),
        ];
        for (bytes, error) in cases {
            assert_eq!(RecordKey::from_encoded(Bytes::from_static(bytes)), Err(error));
        }
        assert_eq!(RecordKey::new("a", &[0; 1025]), Err(KeyError::KeyLength(1025)));
        assert_eq!(RecordKey::new("", b"k"), Err(KeyError::KeyspaceLength(0)));
    }

    #[test]
    fn only_powers_of_two_in_range_are_counts() {
        for count in [0, 1, 8, 17, 100, 8192] {
            assert_eq!(PartitionCount::new(count), Err(PartitionCountError(count)));
        }
        assert_eq!(PartitionCount::new(4096).unwrap().get(), 4096);
    }
}
