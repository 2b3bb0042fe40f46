//! The one writer of the log: a batch is one write, and one sync makes all batches before it durable.
//!
//! The next segment is prepared ahead, so that a full disk shows as a refusal before anything is written. Any
//! other failure leaves the log in a state that only a new start can read: the process has to end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use keystore_core::effect::Entry;
use thiserror::Error;

use super::Position;
use super::batch::{self, Kind};
use super::preallocate::{Preallocator, prepare, spare_path};
use super::segment::{self, BATCHES_FROM};
use crate::storage::counters::Counters;
use crate::storage::file::{DiskError, DiskFile};

/// Why a batch is not in the log.
#[derive(Debug, Error)]
pub(in crate::storage) enum AppendError {
    /// Nothing was written and nothing else has changed; later batches may find space again.
    #[error("the disk is full: {0}")]
    NoSpace(DiskError),
    /// What is on disk is not known.
    #[error(transparent)]
    Failed(DiskError),
}

#[derive(Debug)]
pub(in crate::storage) struct CommitLog {
    directory: PathBuf,
    segment_bytes: u64,
    file: DiskFile,
    header: segment::Header,
    /// Of the segment in use: as large as all, or larger for a batch that needs it.
    file_bytes: u64,
    position: Position,
    synced: u64,
    /// Holds the batch that is being written; kept for its capacity.
    buffer: Vec<u8>,
    preallocator: Preallocator,
    counters: Arc<Counters>,
}

impl CommitLog {
    /// Begins a new segment after `end`, which is where the log ends for good: what may lie behind it in older
    /// segments never counts again.
    pub(in crate::storage) fn begin(
        directory: &Path,
        segment_bytes: u64,
        end: Position,
        counters: Arc<Counters>,
    ) -> Result<Self, DiskError> {
        let zeros = prepare(&spare_path(directory), segment_bytes)?;
        let (file, header) = segment::begin(directory, zeros, end, rand::random())?;
        let mut log = Self {
            directory: directory.to_owned(),
            segment_bytes,
            file,
            header,
            file_bytes: segment_bytes,
            position: Position { segment: header.segment, offset: BATCHES_FROM, ..end },
            synced: end.sequence,
            buffer: Vec::new(),
            preallocator: Preallocator::start(directory, segment_bytes)?,
            counters,
        };
        log.preallocator.ask();
        Ok(log)
    }

    /// Writes one batch. It is durable after the next [`CommitLog::sync`].
    pub(in crate::storage) fn append(&mut self, entries: &[Entry]) -> Result<(), AppendError> {
        self.make_room(batch::encoded_len(entries))?;
        self.write(Kind::Entries, entries).map_err(AppendError::Failed)?;
        self.counters.log_batches.add(1);
        self.counters.log_records.add(entries.len() as u64);
        Ok(())
    }

    /// Makes everything written so far durable.
    pub(in crate::storage) fn sync(&mut self) -> Result<(), DiskError> {
        if self.is_synced() {
            return Ok(());
        }
        self.sync_file()
    }

    /// Says in the log that all of it is on disk: the last thing before the process ends. Where the mark does not
    /// fit any more, it is left out.
    pub(in crate::storage) fn mark_clean_shutdown(&mut self) -> Result<(), DiskError> {
        self.sync()?;
        let length = batch::encoded_len(&[]) as u64;
        if self.position.offset + length <= self.file_bytes {
            self.write(Kind::CleanShutdown, &[])?;
            self.sync_file()?;
        }
        Ok(())
    }

    pub(in crate::storage) fn is_synced(&self) -> bool {
        self.synced == self.position.sequence
    }

    /// The end of what has been written.
    pub(in crate::storage) fn position(&self) -> Position {
        self.position
    }

    fn sync_file(&mut self) -> Result<(), DiskError> {
        let begun = Instant::now();
        self.file.sync_data()?;
        self.synced = self.position.sequence;
        self.counters.log_sync_seconds.observe(begun.elapsed());
        Ok(())
    }

    /// The siblings of one key may be larger than a segment: they get one that is large enough.
    fn make_room(&mut self, length: usize) -> Result<(), AppendError> {
        let bytes = length as u64;
        if self.position.offset + bytes <= self.file_bytes {
            return Ok(());
        }
        let file_bytes = self.segment_bytes.max(BATCHES_FROM + bytes);
        let zeros = self.preallocator.take().and_then(|zeros| {
            if file_bytes > self.segment_bytes {
                zeros.zero(self.segment_bytes..file_bytes)?;
            }
            Ok(zeros)
        });
        let zeros = zeros.map_err(|error| match error.is_no_space() {
            true => AppendError::NoSpace(error),
            false => AppendError::Failed(error),
        })?;
        self.rotate(zeros).map_err(AppendError::Failed)?;
        self.file_bytes = file_bytes;
        Ok(())
    }

    /// The new segment's header says that everything before it is on disk: so that comes first.
    fn rotate(&mut self, zeros: DiskFile) -> Result<(), DiskError> {
        self.sync()?;
        (self.file, self.header) = segment::begin(&self.directory, zeros, self.position, rand::random())?;
        self.position.segment = self.header.segment;
        self.position.offset = BATCHES_FROM;
        self.counters.log_segments.add(1);
        self.preallocator.ask();
        Ok(())
    }

    fn write(&mut self, kind: Kind, entries: &[Entry]) -> Result<(), DiskError> {
        let header = batch::Header {
            chain: self.position.chain,
            kind,
            segment: self.header.segment,
            first_sequence: self.position.sequence + 1,
            synced: self.synced,
        };
        let checksum = batch::encode(header, self.header.salt, entries, &mut self.buffer);
        self.file.write_at(&self.buffer, self.position.offset)?;
        self.position.offset += self.buffer.len() as u64;
        self.position.sequence += entries.len() as u64;
        self.position.chain = checksum;
        self.counters.log_appended_bytes.add(self.buffer.len() as u64);
        self.counters.log_sequence.set(self.position.sequence);
        Ok(())
    }
}
