//! The form of a small durable file: magic, kind, format, length, payload, CRC-32C over all of it.
//!
//! A file is either provably whole and of this kind and format, or it is an error; nothing is guessed. It is
//! replaced by writing a new one beside it, so a crash leaves the old or the new, and a leftover `.new` file says
//! nothing.

use std::path::Path;

use thiserror::Error;

use super::file::{self, DiskError};

const MAGIC: [u8; 4] = *b"KSST";
const HEADER_BYTES: usize = 4 + 2 + 2 + 4;
const CHECKSUM_BYTES: usize = 4;

/// Which state a file holds: part of the file, so that one cannot be taken for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Identity,
    Generation,
    StampCeiling,
    Layout,
    Peers,
    Checkpoint,
    Engine,
    SetAside,
    Votes,
    Merges,
    History,
}

impl Kind {
    pub(super) const ALL: [Self; 11] = [
        Self::Identity,
        Self::Generation,
        Self::StampCeiling,
        Self::Layout,
        Self::Peers,
        Self::Checkpoint,
        Self::Engine,
        Self::SetAside,
        Self::Votes,
        Self::Merges,
        Self::History,
    ];

    pub(super) fn file_name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Generation => "generation",
            Self::StampCeiling => "stamp-ceiling",
            Self::Layout => "layout",
            Self::Peers => "peers",
            Self::Checkpoint => "checkpoint",
            Self::Engine => "storage-engine",
            Self::SetAside => "set-aside",
            Self::Votes => "votes",
            Self::Merges => "merges",
            Self::History => "history",
        }
    }

    fn number(self) -> u16 {
        match self {
            Self::Identity => 1,
            Self::Generation => 2,
            Self::StampCeiling => 3,
            Self::Layout => 4,
            Self::Peers => 5,
            Self::Checkpoint => 6,
            Self::Engine => 7,
            Self::SetAside => 8,
            Self::Votes => 9,
            Self::Merges => 10,
            Self::History => 11,
        }
    }

    /// Raised when the payload takes a form that the release before cannot read; all lower ones are read.
    fn format(self) -> u16 {
        match self {
            Self::Generation => 3,
            Self::Identity
            | Self::StampCeiling
            | Self::Layout
            | Self::Peers
            | Self::Checkpoint
            | Self::Engine
            | Self::SetAside
            | Self::Votes
            | Self::Merges
            | Self::History => 1,
        }
    }
}

/// Why a file is not the state that it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum StateError {
    #[error("it is missing")]
    Missing,
    #[error("it has {0} bytes, too few for any state")]
    TooShort(usize),
    #[error("it does not begin as a state of a node does")]
    Magic,
    #[error("its length or its checksum does not match its content")]
    Checksum,
    #[error("it holds a state of another kind ({0})")]
    Kind(u16),
    #[error("it has format {0}, which this version cannot read")]
    Format(u16),
    #[error("its checksum is right and its content makes no sense: {0}")]
    Content(&'static str),
}

pub(super) fn encode(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("states are far below 4 GiB");
    let mut out = Vec::with_capacity(HEADER_BYTES + payload.len() + CHECKSUM_BYTES);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&kind.number().to_be_bytes());
    out.extend_from_slice(&kind.format().to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(payload);
    let checksum = crc32c::crc32c(&out);
    out.extend_from_slice(&checksum.to_be_bytes());
    out
}

/// The payload.
pub(super) fn decode(kind: Kind, content: &[u8]) -> Result<&[u8], StateError> {
    let short = StateError::TooShort(content.len());
    let (covered, checksum) = content.split_last_chunk::<CHECKSUM_BYTES>().ok_or(short)?;
    let (header, payload) = covered.split_first_chunk::<HEADER_BYTES>().ok_or(short)?;
    let [m0, m1, m2, m3, k0, k1, f0, f1, length @ ..] = *header;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(StateError::Magic);
    }
    let is_whole = usize::try_from(u32::from_be_bytes(length)) == Ok(payload.len());
    if !is_whole || crc32c::crc32c(covered) != u32::from_be_bytes(*checksum) {
        return Err(StateError::Checksum);
    }
    let (found_kind, format) = (u16::from_be_bytes([k0, k1]), u16::from_be_bytes([f0, f1]));
    if found_kind != kind.number() {
        return Err(StateError::Kind(found_kind));
    }
    if !(1..=kind.format()).contains(&format) {
        return Err(StateError::Format(format));
    }
    Ok(payload)
}

pub(super) fn write(directory: &Path, kind: Kind, payload: &[u8]) -> Result<(), DiskError> {
    file::replace(&directory.join(kind.file_name()), &encode(kind, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_reads_back_and_any_flipped_or_missing_byte_is_noticed() {
        let whole = encode(Kind::Generation, b"payload");
        assert_eq!(decode(Kind::Generation, &whole), Ok(&b"payload"[..]));
        for index in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[index] ^= 0x10;
            assert!(decode(Kind::Generation, &flipped).is_err(), "byte {index}");
            assert!(decode(Kind::Generation, &whole[..index]).is_err(), "cut at {index}");
        }
    }

    #[test]
    fn kinds_are_told_apart() {
        let numbers: std::collections::BTreeSet<_> = Kind::ALL.into_iter().map(Kind::number).collect();
        assert_eq!(numbers.len(), Kind::ALL.len());
    }

    #[test]
    fn a_state_of_another_kind_or_format_is_refused() {
        assert_eq!(decode(Kind::Peers, &encode(Kind::Layout, b"")), Err(StateError::Kind(4)));
        let mut newer = encode(Kind::Layout, b"");
        newer[7] = 2;
        let end = newer.len() - CHECKSUM_BYTES;
        let checksum = crc32c::crc32c(&newer[..end]);
        newer[end..].copy_from_slice(&checksum.to_be_bytes());
        assert_eq!(decode(Kind::Layout, &newer), Err(StateError::Format(2)));
    }
}
