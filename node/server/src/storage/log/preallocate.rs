//! Prepares the next segment's file while the present one is being written.
//!
//! Filling a file with zeros takes long, and finding out that the disk is full is best done early: so a thread
//! keeps one file ahead. The file bears a name that says nothing until it becomes a segment.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use crate::storage::file::{self, DiskError, DiskFile, NEW_SUFFIX};

/// The file that is prepared: one at a time, so one name is enough.
pub(in crate::storage) fn spare_path(directory: &Path) -> PathBuf {
    directory.join(format!("segment{NEW_SUFFIX}"))
}

/// The thread and what it was asked for.
#[derive(Debug)]
pub(super) struct Preallocator {
    requests: Option<SyncSender<()>>,
    files: Receiver<Result<DiskFile, DiskError>>,
    is_asked: bool,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Preallocator {
    pub(super) fn start(directory: &Path, segment_bytes: u64) -> Result<Self, DiskError> {
        // One request and one file at a time is all there ever is.
        let (requests, asked) = sync_channel(1);
        let (give, files) = sync_channel(1);
        let path = spare_path(directory);
        let prepared = path.clone();
        let thread = thread::Builder::new()
            .name("log-segments".into())
            .spawn(move || {
                for () in asked {
                    if give.send(prepare(&prepared, segment_bytes)).is_err() {
                        return;
                    }
                }
            })
            .map_err(|error| DiskError::new("start a thread for", directory, error))?;
        Ok(Self { requests: Some(requests), files, is_asked: false, path, thread: Some(thread) })
    }

    /// Begins with the next file, unless that was asked for already.
    pub(super) fn ask(&mut self) {
        if !self.is_asked {
            self.is_asked = self.requests.as_ref().is_some_and(|requests| requests.try_send(()).is_ok());
        }
    }

    /// The next file, as soon as it is there. An error of an earlier attempt is not believed before another one:
    /// there may be space again.
    pub(super) fn take(&mut self) -> Result<DiskFile, DiskError> {
        let was_asked_before = self.is_asked;
        match self.ask_and_wait() {
            Err(_) if was_asked_before => self.ask_and_wait(),
            result => result,
        }
    }

    fn ask_and_wait(&mut self) -> Result<DiskFile, DiskError> {
        self.ask();
        self.is_asked = false;
        let ended = |_| DiskError::new("prepare", &self.path, io::Error::other("its thread has ended"));
        self.files.recv().map_err(ended)?
    }
}

impl Drop for Preallocator {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by itself.
            let _ = thread.join();
        }
    }
}

/// A file of zeros; nothing is left of it if that fails.
pub(super) fn prepare(path: &Path, segment_bytes: u64) -> Result<DiskFile, DiskError> {
    DiskFile::create_zeroed(path, segment_bytes).inspect_err(|_| {
        // What takes up the last space of a full disk goes; the error that matters is the first one.
        let _ = file::remove(path);
    })
}
