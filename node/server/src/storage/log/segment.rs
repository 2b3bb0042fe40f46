//! A segment's file: its name, its header, and how one comes to be.
//!
//! The header has a page of its own, which no batch ever touches, and says where the chain continues: a segment
//! that follows another one proves how far that one reached, whatever bytes lie behind. The file gets its name
//! only after the header is on disk, so a segment with a bad header is damage, never a crash.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::Position;
use crate::storage::file::{self, DiskError, DiskFile};

const MAGIC: [u8; 4] = *b"KSSG";
/// Raised when batches or entries take forms that the release before cannot read. Format 1 had records only.
const FORMAT: u32 = 2;
const FORMATS_READ: RangeInclusive<u32> = 1..=FORMAT;
const HEADER_BYTES: usize = 4 + 4 + 8 + 8 + 4 + 8 + 4;
/// Where the first batch begins: a page of its own for the header.
pub(super) const BATCHES_FROM: u64 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) segment: u64,
    pub(super) first_sequence: u64,
    /// The checksum of the last batch before this segment.
    pub(super) chain: u32,
    /// Random: see [`super::batch`].
    pub(super) salt: u64,
}

impl Header {
    pub(super) fn encode(self) -> Vec<u8> {
        let Self { segment, first_sequence, chain, salt } = self;
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT.to_be_bytes());
        out.extend_from_slice(&segment.to_be_bytes());
        out.extend_from_slice(&first_sequence.to_be_bytes());
        out.extend_from_slice(&chain.to_be_bytes());
        out.extend_from_slice(&salt.to_be_bytes());
        let checksum = crc32c::crc32c(&out);
        out.extend_from_slice(&checksum.to_be_bytes());
        out
    }

    /// `None` if these bytes do not begin with a whole header of a format that this version reads.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let header = bytes.first_chunk::<HEADER_BYTES>()?;
        let (covered, checksum) = header.split_last_chunk::<4>()?;
        if crc32c::crc32c(covered) != u32::from_be_bytes(*checksum) {
            return None;
        }
        let (magic, rest) = covered.split_first_chunk::<4>()?;
        let (format, rest) = rest.split_first_chunk::<4>()?;
        let (segment, rest) = rest.split_first_chunk::<8>()?;
        let (first_sequence, rest) = rest.split_first_chunk::<8>()?;
        let (chain, rest) = rest.split_first_chunk::<4>()?;
        let salt = rest.first_chunk::<8>()?;
        (*magic == MAGIC && FORMATS_READ.contains(&u32::from_be_bytes(*format))).then_some(Self {
            segment: u64::from_be_bytes(*segment),
            first_sequence: u64::from_be_bytes(*first_sequence),
            chain: u32::from_be_bytes(*chain),
            salt: u64::from_be_bytes(*salt),
        })
    }
}

pub(in crate::storage) fn path(directory: &Path, segment: u64) -> PathBuf {
    directory.join(format!("{segment:020}.log"))
}

/// The segment that a file name stands for.
pub(in crate::storage) fn from_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    (digits.len() == 20).then(|| digits.parse().ok()).flatten()
}

/// Turns a file of zeros into the segment after `position`. When this returns, file, header and name are on disk.
pub(super) fn begin(
    directory: &Path,
    mut zeros: DiskFile,
    position: Position,
    salt: u64,
) -> Result<(DiskFile, Header), DiskError> {
    let header = Header {
        segment: position.segment + 1,
        first_sequence: position.sequence + 1,
        chain: position.chain,
        salt,
    };
    zeros.write_at(&header.encode(), 0)?;
    zeros.sync_data()?;
    zeros.rename(&path(directory, header.segment))?;
    file::sync_directory(directory)?;
    Ok((zeros, header))
}
