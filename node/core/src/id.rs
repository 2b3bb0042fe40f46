//! Identities and counters as types of their own, so that a node is never taken for a cluster nor an epoch for
//! a generation. Nothing here is minted: identities are drawn at the edge and come in as bytes.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A text that is not a UUID in its hyphenated or plain hexadecimal form.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("\"{0}\" is not a UUID")]
pub struct UuidError(String);

macro_rules! uuid_type {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// Reads 16 bytes; `None` for any other length.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// True for the all-zero UUID, which stands for "none" on the wire.
            pub fn is_nil(&self) -> bool {
                self.0 == [0; 16]
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_uuid(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_uuid(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = UuidError;

            fn from_str(text: &str) -> Result<Self, UuidError> {
                parse_uuid(text).map(Self).ok_or_else(|| UuidError(text.to_owned()))
            }
        }
    };
}

uuid_type! {
    /// The identity of a storage node: drawn once for a data directory and kept in it.
    NodeId
}
uuid_type! {
    /// The identity of a cluster: drawn once by whoever initialises it.
    ClusterId
}

macro_rules! counter_type {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

counter_type! {
    /// The writer half of a stamp: random, minted together with the node's UUID, unique within a layout.
    Actor
}
counter_type! {
    /// The number of a decided layout within an incarnation; it only grows.
    Epoch
}
counter_type! {
    /// How often a data directory was opened by a starting node. Grows by one with every start.
    Generation
}
counter_type! {
    /// Drawn at every start: tells two processes apart that claim the same generation (a cloned disk).
    Nonce
}

/// The nonces under which a node was each of its latest generations, the present one's first: they tell the history
/// of one disk from that of its copy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lineage(VecDeque<Nonce>);

impl Lineage {
    /// How many generations are remembered: a node that was away for longer than so many starts of another one cannot
    /// tell its copies from it.
    pub const LEN_MAX: usize = 1_024;

    /// The next generation begins.
    pub fn begin(&mut self, nonce: Nonce) {
        self.0.push_front(nonce);
        self.0.truncate(Self::LEN_MAX);
    }

    /// Of the generation so many before the present one.
    pub fn before(&self, generations: u64) -> Option<Nonce> {
        self.0.get(usize::try_from(generations).ok()?).copied()
    }

    pub fn present(&self) -> Nonce {
        self.before(0).unwrap_or_default()
    }

    pub fn iter(&self) -> impl Iterator<Item = Nonce> {
        self.0.iter().copied()
    }
}

/// Of a disk that remembers no generation before.
impl From<Nonce> for Lineage {
    fn from(nonce: Nonce) -> Self {
        [nonce].into_iter().collect()
    }
}

impl FromIterator<Nonce> for Lineage {
    fn from_iter<T: IntoIterator<Item = Nonce>>(nonces: T) -> Self {
        Self(nonces.into_iter().take(Self::LEN_MAX).collect())
    }
}

impl Actor {
    /// Who mints the dots of a node that has lost nothing since the generation in which it was last in doubt, and
    /// nothing of this partition since the epoch in which it became a replica of it. Whoever may have lost a record
    /// never mints as the same again.
    pub fn minting(self, trusted_since: Generation, since: Epoch) -> u64 {
        let mut bytes = [0; 24];
        for (place, number) in bytes.chunks_exact_mut(8).zip([self.0, trusted_since.0, since.0]) {
            place.copy_from_slice(&number.to_be_bytes());
        }
        xxhash_rust::xxh3::xxh3_64(&bytes)
    }
}

/// Which life of the cluster a layout belongs to: it changes only through recovery from the loss of a majority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Incarnation {
    pub number: u64,
    pub id: u64,
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.number, self.id)
    }
}

fn write_uuid(bytes: &[u8; 16], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            f.write_str("-")?;
        }
        write!(f, "{byte:02x}")?;
    }
    Ok(())
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let hyphens_fit = match text.len() {
        32 => !text.contains('-'),
        36 => text.bytes().enumerate().all(|(i, c)| (c == b'-') == matches!(i, 8 | 13 | 18 | 23)),
        _ => false,
    };
    if !hyphens_fit {
        return None;
    }
    let mut digits = text.bytes().filter(|c| *c != b'-').map(|c| char::from(c).to_digit(16));
    let mut bytes = [0; 16];
    for byte in &mut bytes {
        let high = digits.next()??;
        let low = digits.next()??;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_reads_back_what_it_prints() {
        let id = NodeId(*b"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\xff");
        assert_eq!(id.to_string(), "00010203-0405-0607-0809-0a0b0c0d0eff");
        assert_eq!(id.to_string().parse::<NodeId>(), Ok(id));
        assert_eq!("000102030405060708090a0b0c0d0eff".parse::<NodeId>(), Ok(id));
    }

    #[test]
    fn a_lineage_forgets_what_is_long_ago() {
        let mut lineage = Lineage::default();
        let count = Lineage::LEN_MAX as u64 + 5;
        (1..=count).map(Nonce).for_each(|nonce| lineage.begin(nonce));
        assert_eq!((lineage.present(), lineage.before(1)), (Nonce(count), Some(Nonce(count - 1))));
        assert_eq!(lineage.iter().count(), Lineage::LEN_MAX);
        assert_eq!((lineage.before(count - 6), lineage.before(count - 5)), (Some(Nonce(6)), None));
        assert_eq!((1..=count).rev().map(Nonce).collect::<Lineage>(), lineage);
    }

    #[test]
    fn what_is_no_uuid_is_refused() {
        for text in
            ["", "x", "00010203-0405-0607-0809-0a0b0c0d0ef", "0001020304050607-0809-0a0b-0c0d0eff", "zz"]
        {
            assert!(text.parse::<ClusterId>().is_err(), "{text}");
        }
    }
}
