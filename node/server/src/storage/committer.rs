//! The thread that commits: takes all that waits, writes it to the log in one write, syncs once, applies it to the
//! engine, and only then reports.
//!
//! The order is the promise: what the engine shows and what is reported is in the log, synced if any commit of the
//! batch asked for it. A full disk refuses commits before anything of them is written; any other failure ends the
//! process.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keystore_core::effect::{Commit, CommitId, Entry, NotCommitted};
use keystore_core::quorum::Durability;

use super::checkpoint::{Checkpointer, Checkpoints};
use super::disk_usage::DiskUsage;
use super::error::FatalError;
use super::log::{self, AppendError, CommitLog};
use super::mutant::{Mutant, is_on};
use super::queue::{Queue, Wait};
use super::room::{Interval, SinceCheckpoint, Space};

/// The end of a commit.
pub type Committed = (CommitId, Result<Durability, NotCommitted>);

/// Commits that may wait; whoever hands over more waits for the log.
pub const COMMITS_WAITING_MAX: usize = 16_384;

/// A batch is closed once it has so many bytes, or a third of a segment if that is less, so that memory is bounded
/// and no commit waits for a long write. The largest record comes on top at most once.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// How much may be appended, and how much time may pass, before the free space is looked at again.
const FREE_CHECKED_EVERY_BYTES: u64 = 256 << 10;
const FREE_CHECKED_EVERY: Duration = Duration::from_millis(250);

/// When things happen that no commit asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rhythm {
    /// A commit with periodic durability is synced at most so much later.
    pub(super) sync_interval: Duration,
    /// Bytes of log after which a checkpoint is written.
    pub(super) checkpoint_bytes: u64,
    pub(super) segment_bytes: u64,
}

/// When the free space was looked at, and what was found.
struct FreeSpace {
    checked_at: Instant,
    appended_bytes: u64,
    /// Each of them gives room.
    checkpoints: u64,
    space: Space,
}

pub(super) struct Committer {
    log: CommitLog,
    checkpoints: Checkpoints,
    checkpointer: Checkpointer,
    rhythm: Rhythm,
    queue: Arc<Queue<Commit>>,
    report: Box<dyn FnMut(Vec<Committed>) + Send>,
    /// The batch being made: what is written, and who asked for it. Kept for their capacity.
    entries: Vec<Entry>,
    asked: Vec<(CommitId, Durability)>,
    unsynced_since: Option<Instant>,
    /// How much had been appended when the last checkpoint began.
    checkpointed_bytes: u64,
    free_space: Option<FreeSpace>,
    is_refusing: bool,
    batch_bytes_max: usize,
}

impl Committer {
    pub(super) fn new(
        log: CommitLog,
        (checkpoints, checkpointer): (Checkpoints, Checkpointer),
        rhythm: Rhythm,
        queue: Arc<Queue<Commit>>,
        report: Box<dyn FnMut(Vec<Committed>) + Send>,
    ) -> Self {
        let checkpointed_bytes = checkpoints.counters.log_appended_bytes.get();
        Self {
            log,
            checkpoints,
            checkpointer,
            rhythm,
            queue,
            report,
            entries: Vec::new(),
            asked: Vec::new(),
            unsynced_since: None,
            checkpointed_bytes,
            free_space: None,
            is_refusing: false,
            batch_bytes_max: usize::try_from(rhythm.segment_bytes / 3)
                .unwrap_or(usize::MAX)
                .min(BATCH_BYTES_MAX),
        }
    }

    /// Commits until the queue is closed, then leaves a log that says it is whole.
    pub(super) fn run(mut self) -> Result<(), FatalError> {
        let mut waiting = Vec::new();
        loop {
            let sync_at = self.unsynced_since.map(|since| since + self.rhythm.sync_interval);
            match self.queue.take(&mut waiting, sync_at) {
                Wait::Items => self.commit(&mut waiting)?,
                Wait::TimedOut => {}
                Wait::Closed => break,
            }
            if sync_at.is_some_and(|at| at <= Instant::now()) {
                self.sync()?;
            }
        }
        self.log.mark_clean_shutdown()?;
        self.checkpointer.finish()?;
        self.checkpoints.write_if_there_is_space(self.log.position())?;
        Ok(())
    }

    fn commit(&mut self, waiting: &mut Vec<Commit>) -> Result<(), FatalError> {
        let mut bytes = 0;
        for Commit { id, entry, durability } in waiting.drain(..) {
            bytes += log::entry_len(&entry);
            self.entries.push(entry);
            self.asked.push((id, durability));
            if bytes >= self.batch_bytes_max {
                self.commit_batch()?;
                bytes = 0;
            }
        }
        self.commit_batch()?;
        self.begin_checkpoint_if_due();
        Ok(())
    }

    /// Reported batch by batch: nobody waits for the values of those behind.
    fn commit_batch(&mut self) -> Result<(), FatalError> {
        if self.entries.is_empty() {
            return Ok(());
        }
        let mut damaged = Vec::new();
        let outcome = if self.append()? {
            let is_sync_due = self.asked.iter().any(|(_, durability)| *durability == Durability::Synced);
            let is_reported_unsynced = is_on(Mutant::ReportedUnsynced);
            if is_sync_due && !is_reported_unsynced {
                self.sync()?;
            } else {
                self.unsynced_since.get_or_insert_with(Instant::now);
            }
            damaged = self.apply()?;
            Ok(if self.log.is_synced() || is_reported_unsynced {
                Durability::Synced
            } else {
                Durability::Periodic
            })
        } else {
            self.checkpoints.counters.log_refused.add(self.entries.len() as u64);
            Err(NotCommitted::Refused)
        };
        let mut outcomes: Vec<_> = self.asked.drain(..).map(|(id, _)| (id, outcome)).collect();
        for at in damaged {
            if let Some((_, outcome)) = outcomes.get_mut(at) {
                *outcome = Err(NotCommitted::Damaged);
            }
        }
        (self.report)(outcomes);
        self.entries.clear();
        Ok(())
    }

    /// False if the disk is full.
    fn append(&mut self) -> Result<bool, FatalError> {
        if !self.has_room()? {
            return Ok(false);
        }
        match self.log.append(&self.entries) {
            Ok(()) => Ok(true),
            Err(AppendError::NoSpace(error)) => {
                tracing::warn!(%error, "commits refused, the disk is full");
                Ok(false)
            }
            Err(AppendError::Failed(error)) => Err(error.into()),
        }
    }

    /// The positions of the entries that met damage.
    fn apply(&mut self) -> Result<Vec<usize>, FatalError> {
        let damaged = self.checkpoints.engine.apply(&self.entries)?;
        if !damaged.is_empty() {
            self.checkpoints.counters.records_damaged.add(damaged.len() as u64);
            tracing::error!(records = damaged.len(), "damaged records were left as they are");
        }
        self.checkpoints.counters.records_applied.add((self.entries.len() - damaged.len()) as u64);
        Ok(damaged)
    }

    fn sync(&mut self) -> Result<(), FatalError> {
        self.log.sync()?;
        self.unsynced_since = None;
        Ok(())
    }

    /// True if it has begun.
    fn begin_checkpoint_if_due(&mut self) -> bool {
        let engine = &self.checkpoints.engine;
        let appended = self.checkpoints.counters.log_appended_bytes.get();
        let interval = Interval {
            checkpoint_bytes: self.rhythm.checkpoint_bytes,
            flush_bytes: engine.flush_bytes(),
            wants_flush: engine.wants_flush(),
        };
        let log_bytes = interval.log_bytes(self.free_space.as_ref().map(|known| known.space));
        let appended_bytes = appended - self.checkpointed_bytes;
        let is_due = |put_off_for| SinceCheckpoint { appended_bytes, put_off_for }.is_due(log_bytes);
        let has_begun = self.checkpointer.begin_if(is_due, self.log.position());
        if has_begun {
            self.checkpointed_bytes = appended;
        }
        has_begun
    }

    /// Where only what is not written down yet is in the way, waits until it is: a commit is refused once that has
    /// not helped.
    fn has_room(&mut self) -> Result<bool, FatalError> {
        loop {
            // Asked first: what is looked at after the end of a checkpoint has what that gave back.
            let is_busy = self.checkpointer.is_busy();
            let space = self.look_at_space()?;
            if !space.is_low() {
                self.is_refusing = false;
                return Ok(true);
            }
            if space.unwritten_bytes == 0 || !(is_busy || self.begin_checkpoint_if_due()) {
                if !mem::replace(&mut self.is_refusing, true) {
                    tracing::warn!(?space, "commits refused, the disk is nearly full");
                }
                return Ok(false);
            }
            // It may take longer than a periodic commit waits for its sync.
            self.sync()?;
            self.checkpointer.wait();
        }
    }

    fn look_at_space(&mut self) -> Result<Space, FatalError> {
        let counters = &self.checkpoints.counters;
        let (appended_bytes, checkpoints) = (counters.log_appended_bytes.get(), counters.checkpoints.get());
        if let Some(known) = &self.free_space
            && known.checked_at.elapsed() < FREE_CHECKED_EVERY
            && appended_bytes - known.appended_bytes < FREE_CHECKED_EVERY_BYTES
            && checkpoints == known.checkpoints
        {
            return Ok(known.space);
        }
        let space = Space {
            // What is unwritten first: what is written down between the two counts twice, not never.
            unwritten_bytes: self.checkpoints.engine.unwritten_bytes(),
            reserve_bytes: self.checkpoints.engine.reserve_bytes(),
            usage: DiskUsage::of(self.checkpoints.data_dir.path())?,
        };
        self.free_space = Some(FreeSpace { checked_at: Instant::now(), appended_bytes, checkpoints, space });
        Ok(space)
    }
}
