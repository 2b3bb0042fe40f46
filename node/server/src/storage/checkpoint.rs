//! Checkpoints: how far the engine is durable, said outside the engine, and the end of old segments.
//!
//! The order is what makes it safe: the engine is flushed, then the checkpoint's file is on disk, and only then do
//! segments go that no start will read again. A crash between any two steps leaves more than is needed.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

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
    pub(super) fn write_if_there_is_space(&self, position: Position) -> Result<Outcome, FatalError> {
        match self.write(position) {
            Ok(()) => Ok(Outcome::Written),
            Err(FatalError::Engine(EngineError::NoSpace(error))) => {
                tracing::error!(%error, "checkpoint put off, the disk is full");
                Ok(Outcome::PutOff)
            }
            Err(error) => Err(error),
        }
    }
}

/// What became of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Written,
    PutOff,
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
    progress: Arc<Progress>,
    thread: Option<JoinHandle<Result<(), FatalError>>>,
}

/// What the thread and whoever asks it know of each other.
#[derive(Debug, Default)]
struct Progress {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_busy: bool,
    /// When the last one ended, if there was no space for it.
    put_off_at: Option<Instant>,
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, outcome: Outcome) {
        let put_off_at = (outcome == Outcome::PutOff).then(Instant::now);
        *self.lock() = State { is_busy: false, put_off_at };
        self.ended.notify_all();
    }
}

/// Nobody waits for a thread that has failed.
struct EndOfThread(Arc<Progress>);

impl Drop for EndOfThread {
    fn drop(&mut self) {
        self.0.lock().is_busy = false;
        self.0.ended.notify_all();
    }
}

impl Checkpointer {
    /// `failed` is told at once; [`Checkpointer::finish`] says it again.
    pub(super) fn start(
        checkpoints: Checkpoints,
        failed: impl Fn(&FatalError) + Send + 'static,
    ) -> Result<Self, DiskError> {
        // One position at a time: a newer one covers what an older one would.
        let (positions, asked) = sync_channel::<Position>(1);
        let progress = Arc::new(Progress::default());
        let told = EndOfThread(Arc::clone(&progress));
        let directory = checkpoints.data_dir.path().to_owned();
        let thread = thread::Builder::new()
            .name("checkpoint".into())
            .spawn(move || {
                for position in asked {
                    told.0.end(checkpoints.write_if_there_is_space(position).inspect_err(&failed)?);
                }
                Ok(())
            })
            .map_err(|error| DiskError::new("start a thread for", &directory, error))?;
        Ok(Self { positions: Some(positions), progress, thread: Some(thread) })
    }

    /// Begins a checkpoint unless one is under way; true if it has begun. `is_due` is told how long ago the last one
    /// ended, if there was no space for it.
    pub(super) fn begin_if(&self, is_due: impl FnOnce(Option<Duration>) -> bool, position: Position) -> bool {
        let Some(positions) = &self.positions else { return false };
        let mut state = self.progress.lock();
        if state.is_busy || !is_due(state.put_off_at.map(|at| at.elapsed())) {
            return false;
        }
        state.is_busy = positions.try_send(position).is_ok();
        state.is_busy
    }

    pub(super) fn is_busy(&self) -> bool {
        self.progress.lock().is_busy
    }

    /// Waits for the checkpoint under way, if there is one.
    pub(super) fn wait(&self) {
        let state = self.progress.lock();
        drop(self.progress.ended.wait_while(state, |state| state.is_busy));
    }

    /// Waits for the checkpoint under way, the last one.
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
