//! The one reader of the log: finds where it ends, and tells a torn tail from a hole.
//!
//! A segment that another one follows reaches exactly as far as the next one's header says; anything short of
//! that is damage. In the last segment a bad batch is a torn tail, which no one was promised, unless a batch
//! behind it, or the mark of a clean shutdown, says that it had been synced: then something acknowledged is gone,
//! and the log is damaged. Reading changes nothing.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use keystore_core::effect::Entry;
use thiserror::Error;

use super::Position;
use super::batch::{self, ALIGNMENT, Batch};
use super::segment::{self, BATCHES_FROM, Header};
use crate::storage::file::{self, DiskError};
use crate::storage::mutant::{Mutant, is_on};

/// Something that had been synced cannot be read any more.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "the commit log is damaged in {} at byte {offset}: {reason}; records from number {sequence} on, which this \
     node may have acknowledged, cannot be read. Nothing was changed; restore the file if you \
     can, the others serve on without this node",
    segment.display()
)]
pub struct LogDamaged {
    pub segment: PathBuf,
    pub offset: u64,
    /// Of the first record that is missing.
    pub sequence: u64,
    pub reason: Reason,
}

/// What gives the damage away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Reason {
    #[error("the segment is missing")]
    SegmentMissing,
    #[error("the segment's header is not whole, or of a format that this version cannot read")]
    SegmentHeader,
    #[error("the segment's header contradicts the checkpoint")]
    Checkpoint,
    #[error("the next segment continues elsewhere")]
    NextSegment,
    #[error("the batch cannot be read, but a later one says that it had been synced")]
    SyncedBatch,
    #[error("a whole batch does not continue the one before")]
    Chain,
    #[error("a batch with the right checksum does not hold records")]
    Content,
}

#[derive(Debug, Error)]
pub(in crate::storage) enum ReadError {
    #[error(transparent)]
    Damaged(#[from] LogDamaged),
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Where the log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::storage) struct End {
    /// Behind the last batch that counts.
    pub(in crate::storage) position: Position,
    /// Segments from the checkpoint on.
    pub(in crate::storage) segments: u64,
    /// Bytes of batches between the checkpoint and the end.
    pub(in crate::storage) bytes: u64,
}

/// Takes the entries of the log, one batch after the other.
pub(in crate::storage) type Visit<'a> = dyn FnMut(&[Entry]) + 'a;

/// Reads everything behind `from`, calls `visit` for each batch in order, and returns the end.
pub(in crate::storage) fn read(
    directory: &Path,
    from: Position,
    visit: &mut Visit<'_>,
) -> Result<End, ReadError> {
    let first = from.segment.max(1);
    let segments: Vec<u64> = ids(directory)?.into_iter().filter(|id| *id >= first).collect();
    let mut end = End { position: from, segments: segments.len() as u64, bytes: 0 };
    if segments.is_empty() && from.segment == 0 {
        return Ok(end);
    }
    let mut next = Some(load(directory, first, from.sequence)?);
    for id in first.. {
        let Some((header, bytes)) = next.take() else { break };
        if segments.last().is_some_and(|last| *last > id) {
            next = Some(load(directory, id + 1, end.position.sequence)?);
        }
        let segment = Segment {
            path: segment::path(directory, id),
            header,
            bytes,
            following: next.as_ref().map(|(header, _)| *header),
        };
        segment.enter(&mut end.position)?;
        let begun = end.position.offset;
        segment.read(&mut end.position, visit)?;
        end.bytes += end.position.offset - begun;
    }
    Ok(end)
}

/// The segments in a directory, in order.
pub(in crate::storage) fn ids(directory: &Path) -> Result<Vec<u64>, DiskError> {
    let mut ids: Vec<u64> =
        file::list(directory)?.iter().filter_map(|name| segment::from_name(name)).collect();
    ids.sort_unstable();
    Ok(ids)
}

fn load(directory: &Path, id: u64, sequence: u64) -> Result<(Header, Bytes), ReadError> {
    let path = segment::path(directory, id);
    let damaged = |reason| LogDamaged { segment: path.clone(), offset: 0, sequence: sequence + 1, reason };
    let bytes = file::read(&path)?.ok_or_else(|| damaged(Reason::SegmentMissing))?;
    match Header::decode(&bytes) {
        Some(header) if header.segment == id => Ok((header, bytes.into())),
        _ => Err(damaged(Reason::SegmentHeader).into()),
    }
}

struct Segment {
    path: PathBuf,
    header: Header,
    bytes: Bytes,
    following: Option<Header>,
}

impl Segment {
    /// Goes from the end of the segment before, or from the checkpoint, to the place where reading begins.
    fn enter(&self, position: &mut Position) -> Result<(), LogDamaged> {
        let begins_here =
            self.header.first_sequence == position.sequence + 1 && self.header.chain == position.chain;
        if position.segment == self.header.segment {
            let is_at_start = position.offset == BATCHES_FROM;
            let fits = position.offset >= BATCHES_FROM
                && position.offset <= self.bytes.len() as u64
                && self.header.first_sequence <= position.sequence + 1
                && (!is_at_start || begins_here);
            return if fits { Ok(()) } else { Err(self.damaged(*position, Reason::Checkpoint)) };
        }
        if !begins_here {
            return Err(self.damaged(*position, Reason::Checkpoint));
        }
        position.segment = self.header.segment;
        position.offset = BATCHES_FROM;
        Ok(())
    }

    fn read(&self, position: &mut Position, visit: &mut Visit<'_>) -> Result<(), LogDamaged> {
        loop {
            if let Some(following) = self.following
                && following.first_sequence == position.sequence + 1
                && following.chain == position.chain
            {
                return Ok(());
            }
            let Some(batch) = self.batch_at(position.offset) else {
                return self.judge_end(*position);
            };
            let header = batch.header;
            let continues = header.segment == self.header.segment
                && header.first_sequence == position.sequence + 1
                && header.chain == position.chain;
            if !continues {
                return Err(self.damaged(*position, Reason::Chain));
            }
            let entries = batch.entries().ok_or_else(|| self.damaged(*position, Reason::Content))?;
            visit(&entries);
            position.sequence = batch.last_sequence();
            position.chain = batch.checksum;
            position.offset += batch.length as u64;
        }
    }

    /// There is no whole batch at this place: is this where the log ends?
    fn judge_end(&self, position: Position) -> Result<(), LogDamaged> {
        if self.following.is_some() {
            return Err(self.damaged(position, Reason::NextSegment));
        }
        if is_on(Mutant::EveryHoleIsATornTail) {
            return Ok(());
        }
        let mut offset = position.offset + ALIGNMENT as u64;
        while offset < self.bytes.len() as u64 {
            if self.has_magic_at(offset)
                && let Some(later) = self.batch_at(offset)
                && later.header.synced > position.sequence
            {
                return Err(self.damaged(position, Reason::SyncedBatch));
            }
            offset += ALIGNMENT as u64;
        }
        Ok(())
    }

    fn has_magic_at(&self, offset: u64) -> bool {
        let place = usize::try_from(offset).ok().and_then(|offset| self.bytes.get(offset..));
        place.is_some_and(|bytes| bytes.starts_with(&batch::MAGIC.to_be_bytes()))
    }

    fn batch_at(&self, offset: u64) -> Option<Batch> {
        let offset = usize::try_from(offset).ok().filter(|offset| *offset <= self.bytes.len())?;
        batch::decode(self.header.salt, &self.bytes.slice(offset..))
    }

    fn damaged(&self, position: Position, reason: Reason) -> LogDamaged {
        LogDamaged {
            segment: self.path.clone(),
            offset: position.offset,
            sequence: position.sequence + 1,
            reason,
        }
    }
}
