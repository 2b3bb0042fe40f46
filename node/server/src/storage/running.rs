//! The threads that write: started together, ended together, and one that fails ends the process.

use std::fmt;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use keystore_core::effect::{Commit, SaveId, SavedState};
use thiserror::Error;

use super::checkpoint::Checkpointer;
use super::committer::{COMMITS_WAITING_MAX, Committed, Committer, Rhythm};
use super::error::FatalError;
use super::file::DiskError;
use super::open::NodeStorage;
use super::queue::Queue;
use super::saver::{SAVES_WAITING_MAX, Saver};

/// Where the threads report to. None of these may wait for a thread that hands over commits or saves.
pub struct Reports {
    /// Commits, in the order in which they were handed over.
    pub committed: Box<dyn FnMut(Vec<Committed>) + Send>,
    /// Saves, in the order in which they were handed over.
    pub saved: Box<dyn FnMut(Vec<SaveId>) + Send>,
    /// Says the error and ends the process: nothing may be acknowledged after this. Called on any thread, at most
    /// once by each.
    pub fatal: Arc<dyn Fn(&FatalError) + Send + Sync>,
}

impl fmt::Debug for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reports").finish_non_exhaustive()
    }
}

/// Hands work to the threads; cheap to clone.
#[derive(Debug, Clone)]
pub struct StorageHandle {
    commits: Arc<Queue<Commit>>,
    saves: Arc<Queue<(SaveId, SavedState)>>,
}

impl StorageHandle {
    /// Hands over all commits and leaves the vector empty. Waits while very many are waiting already.
    pub fn commit(&self, commits: &mut Vec<Commit>) {
        if !commits.is_empty() {
            self.commits.put(commits);
        }
    }

    /// Hands over a state to be saved.
    pub fn save(&self, id: SaveId, state: SavedState) {
        self.saves.put(&mut vec![(id, state)]);
    }
}

/// A thread has failed, which was reported as fatal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the storage could not be closed cleanly")]
pub struct UncleanShutdown;

/// The threads of an open storage.
#[derive(Debug)]
pub struct RunningStorage {
    handle: StorageHandle,
    threads: Vec<JoinHandle<Result<(), FatalError>>>,
}

impl NodeStorage {
    /// Starts the threads.
    pub fn run(self, reports: Reports) -> Result<RunningStorage, DiskError> {
        let Self { data_dir, found: _, log, checkpoints, options, historian } = self;
        let Reports { committed, saved, fatal } = reports;
        let handle = StorageHandle {
            commits: Arc::new(Queue::new(COMMITS_WAITING_MAX)),
            saves: Arc::new(Queue::new(SAVES_WAITING_MAX)),
        };
        let rhythm = Rhythm {
            sync_interval: options.sync_interval,
            checkpoint_bytes: options.checkpoint_bytes,
            segment_bytes: options.segment_bytes,
        };
        let tell = fatal.clone();
        let checkpointer = Checkpointer::start(checkpoints.clone(), move |error| tell(error))?;
        let saver = Saver {
            data_dir,
            queue: handle.saves.clone(),
            report: saved,
            counters: checkpoints.counters.clone(),
            historian,
        };
        let committer =
            Committer::new(log, (checkpoints, checkpointer), rhythm, handle.commits.clone(), committed);

        let mut running = RunningStorage { handle, threads: Vec::new() };
        running.start("log", &options.data_dir, fatal.clone(), || committer.run())?;
        running.start("state", &options.data_dir, fatal, || saver.run())?;
        Ok(running)
    }
}

impl RunningStorage {
    pub fn handle(&self) -> StorageHandle {
        self.handle.clone()
    }

    /// Does all that was handed over, syncs it, and leaves a log that says it is whole. What is handed over from
    /// now on is dropped.
    pub fn shutdown(mut self) -> Result<(), UncleanShutdown> {
        self.end()
    }

    fn start(
        &mut self,
        name: &str,
        directory: &std::path::Path,
        fatal: Arc<dyn Fn(&FatalError) + Send + Sync>,
        run: impl FnOnce() -> Result<(), FatalError> + Send + 'static,
    ) -> Result<(), DiskError> {
        let handle = self.handle.clone();
        let body = move || {
            let result = run();
            if let Err(error) = &result {
                fatal(error);
                handle.commits.close();
                handle.saves.close();
            }
            result
        };
        let thread = thread::Builder::new()
            .name(name.into())
            .spawn(body)
            .map_err(|error| DiskError::new("start a thread for", directory, error))?;
        self.threads.push(thread);
        Ok(())
    }

    fn end(&mut self) -> Result<(), UncleanShutdown> {
        self.handle.commits.close();
        self.handle.saves.close();
        let mut result = Ok(());
        for thread in self.threads.drain(..) {
            if !matches!(thread.join(), Ok(Ok(()))) {
                result = Err(UncleanShutdown);
            }
        }
        result
    }
}

impl Drop for RunningStorage {
    fn drop(&mut self) {
        // Whoever wants to know how it ended has called `shutdown`.
        let _ = self.end();
    }
}
