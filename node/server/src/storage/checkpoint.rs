//! Checkpoints: how far the engine is durable, said outside the engine, and the end of old segments.
//!
//! The order is what makes it safe: the engine is flushed, then the checkpoint's file is on disk, and only then do
//! segments go that no start will read again. A crash between any two steps leaves more than is needed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::counters::Counters;
use super::data_dir::DataDir;
use super::engine::{EngineError, Storage};
use super::error::FatalError;
use super::file::{self, DiskError};
use super::found::encode_position;
use super::log::{self, Position};
use super::mutant::{Mutant, is_on};
use super::state::{self, Kind};

/// Where checkpoints are written and what they cover.
#[derive(Debug, Clone)]
pub(super) struct Checkpoints {
    /// Locked for as long as anything may be written.
    pub(super) data_dir: Arc<DataDir>,
    pub(super) log_dir: PathBuf,
    pub(super) engine: Arc<dyn Storage>,
    pub(super) counters: Arc<Counters>,
}

impl Checkpoints {
    /// Everything up to `position` has been applied: makes it durable and moves the start of replay there.
    pub(super) fn write(&self, position: Position) -> Result<(), FatalError> {
        let begun = Instant::now();
        if !is_on(Mutant::CheckpointWithoutAFlush) {
            self.engine.flush(position.sequence)?;
        }
        state::write(self.data_dir.path(), Kind::Checkpoint, &encode_position(position))?;
        self.counters.log_segments.subtract(remove_segments(&self.log_dir, position.segment)?);
        self.counters.checkpoints.add(1);
        self.counters.checkpoint_seconds.observe(begun.elapsed());
        Ok(())
    }

    /// As [`Checkpoints::write`], except where only the engine lacks space: then all stays as it is, and the log
    /// keeps what a start needs.
    pub(super) fn write_if_there_is_space(&self, position: Position) -> Result<(), FatalError> {
        match self.write(position) {
            Err(FatalError::Engine(EngineError::NoSpace(error))) => {
                tracing::error!(%error, "checkpoint put off, the disk is full");
                Ok(())
            }
            result => result,
        }
    }
}

/// Removes the segments before this one and returns how many there were.
fn remove_segments(log_dir: &Path, before: u64) -> Result<u64, DiskError> {
    let mut removed = 0;
    for id in log::ids(log_dir)?.into_iter().take_while(|id| *id < before) {
        file::remove(&log::path(log_dir, id))?;
        removed += 1;
    }
    if removed > 0 {
        file::sync_directory(log_dir)?;
    }
    Ok(removed)
}

/// The thread that writes checkpoints while commits go on.
#[derive(Debug)]
pub(super) struct Checkpointer {
    positions: Option<SyncSender<Position>>,
    is_busy: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), FatalError>>>,
}

impl Checkpointer {
    /// `failed` is told at once; [`Checkpointer::finish`] says it again.
    pub(super) fn start(
        checkpoints: Checkpoints,
        failed: impl Fn(&FatalError) + Send + 'static,
    ) -> Result<Self, DiskError> {
        // One position at a time: a newer one covers what an older one would.
        let (positions, asked) = sync_channel::<Position>(1);
        let is_busy = Arc::new(AtomicBool::new(false));
        let busy = is_busy.clone();
        let directory = checkpoints.data_dir.path().to_owned();
        let thread = thread::Builder::new()
            .name("checkpoint".into())
            .spawn(move || {
                for position in asked {
                    checkpoints.write_if_there_is_space(position).inspect_err(&failed)?;
                    busy.store(false, Ordering::Release);
                }
                Ok(())
            })
            .map_err(|error| DiskError::new("start a thread for", &directory, error))?;
        Ok(Self { positions: Some(positions), is_busy, thread: Some(thread) })
    }

    /// Begins a checkpoint unless one is under way; true if it has begun.
    pub(super) fn begin(&self, position: Position) -> bool {
        let Some(positions) = &self.positions else { return false };
        if self.is_busy.swap(true, Ordering::Acquire) {
            return false;
        }
        positions.try_send(position).is_ok()
    }

    /// Waits for the checkpoint under way.
    pub(super) fn finish(&mut self) -> Result<(), FatalError> {
        self.positions = None;
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(FatalError::Panicked("checkpoint")),
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        // Whoever cares for the result has called `finish` before.
        let _ = self.finish();
    }
}
