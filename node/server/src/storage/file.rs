//! Files and directories: the few calls that everything durable here is made of.
//!
//! Each error names what was attempted and on which path. What a caller must remember lives here too: a created,
//! renamed or removed name is durable only after its directory was synced. In tests every call passes by an
//! observer, which may fail it or play a power cut.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::mutant::{Mutant, is_on};
#[cfg(test)]
pub(super) use super::power::before;

/// A call to the file system that failed.
#[derive(Debug, Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct DiskError {
    pub action: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

impl DiskError {
    pub(super) fn new(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self { action, path: path.to_owned(), source }
    }

    /// True when the disk, or the quota on it, is full.
    pub fn is_no_space(&self) -> bool {
        is_no_space(&self.source)
    }
}

/// See [`DiskError::is_no_space`].
pub(super) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What is about to be done to a path.
#[cfg_attr(not(test), allow(dead_code, reason = "only the observer of the tests reads it"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// An empty file takes the place of what had that name.
    Create,
    Reserve,
    Write,
    SyncData,
    /// A sync by an engine's library: see [`super::sync_file_range`], and `fsync` in the tests.
    SyncByLibrary,
    /// What is cached of the file is dropped.
    Forget,
    SyncDirectory,
    Rename,
    Remove,
    /// Tables of a tree become others.
    Merge,
}

#[cfg(not(test))]
#[inline]
pub(super) fn before(_: Operation, _: &Path) -> io::Result<()> {
    Ok(())
}

/// An open file that remembers its path, for errors.
#[derive(Debug)]
pub(super) struct DiskFile {
    file: File,
    path: PathBuf,
}

/// How much is zeroed by one write.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

impl DiskFile {
    /// A new, empty file in place of whatever had that name.
    pub(super) fn create(path: &Path) -> Result<Self, DiskError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let file = before(Operation::Create, path)
            .and_then(|()| options.open(path))
            .map_err(|error| DiskError::new("create", path, error))?;
        Ok(Self { file, path: path.to_owned() })
    }

    pub(super) fn open(path: &Path) -> Result<Self, DiskError> {
        let file = File::open(path).map_err(|error| DiskError::new("open", path, error))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// A new file of so many zeros, written and synced: later writes within it change no metadata. The space is
    /// reserved first, so that a full disk is noticed before anything is written.
    pub(super) fn create_zeroed(path: &Path, bytes: u64) -> Result<Self, DiskError> {
        let new = Self::create(path)?;
        new.zero(0..bytes)?;
        Ok(new)
    }

    /// Makes a file of zeros longer.
    pub(super) fn zero(&self, bytes: Range<u64>) -> Result<(), DiskError> {
        before(Operation::Reserve, &self.path)
            .and_then(|()| reserve(&self.file, bytes.end))
            .map_err(|error| DiskError::new("reserve space for", &self.path, error))?;
        let mut offset = bytes.start;
        while offset < bytes.end {
            let rest = usize::try_from(bytes.end - offset).unwrap_or(usize::MAX);
            let zeros = ZEROS.get(..rest).unwrap_or(&ZEROS);
            self.write_at(zeros, offset)?;
            offset += zeros.len() as u64;
        }
        self.sync_all()
    }

    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), DiskError> {
        before(Operation::Write, &self.path)
            .and_then(|()| self.file.write_all_at(bytes, offset))
            .map_err(|error| DiskError::new("write to", &self.path, error))
    }

    pub(super) fn read_exact_at(&self, out: &mut [u8], offset: u64) -> Result<(), DiskError> {
        self.file.read_exact_at(out, offset).map_err(|error| DiskError::new("read", &self.path, error))
    }

    pub(super) fn len(&self) -> Result<u64, DiskError> {
        let metadata = self.file.metadata().map_err(|error| DiskError::new("look at", &self.path, error))?;
        Ok(metadata.len())
    }

    /// Syncs the content and what is needed to read it.
    pub(super) fn sync_data(&self) -> Result<(), DiskError> {
        before(Operation::SyncData, &self.path)
            .and_then(|()| self.file.sync_data())
            .map_err(|error| DiskError::new("sync", &self.path, error))
    }

    /// Makes later reads come from the disk, not from memory.
    fn forget_cached(&self) -> Result<(), DiskError> {
        before(Operation::Forget, &self.path)
            .and_then(|()| Ok(rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed)?))
            .map_err(|error| DiskError::new("drop the cached pages of", &self.path, error))
    }

    pub(super) fn sync_all(&self) -> Result<(), DiskError> {
        before(Operation::SyncData, &self.path)
            .and_then(|()| self.file.sync_all())
            .map_err(|error| DiskError::new("sync", &self.path, error))
    }

    /// Gives the file another name in the same directory, which the caller syncs.
    pub(super) fn rename(&mut self, to: &Path) -> Result<(), DiskError> {
        before(Operation::Rename, &self.path)
            .and_then(|()| fs::rename(&self.path, to))
            .map_err(|error| DiskError::new("rename", &self.path, error))?;
        self.path = to.to_owned();
        Ok(())
    }
}

/// Reserves space where the file system can; where it cannot, writing the zeros finds out.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL) => Ok(()),
        other => other.map_err(io::Error::from),
    }
}

/// Replaces a small file so that, whatever happens, either the old or the new content is there afterwards.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<(), DiskError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut new = DiskFile::create(&new_name(path))?;
    new.write_at(content, 0)?;
    if !is_on(Mutant::StatesAreNotSynced) {
        new.sync_all()?;
    }
    new.rename(path)?;
    sync_directory(directory)
}

/// The suffix of a file that is being written and has not got its name yet.
pub(super) const NEW_SUFFIX: &str = ".new";

pub(super) fn new_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(NEW_SUFFIX);
    name.into()
}

pub(super) fn sync_directory(path: &Path) -> Result<(), DiskError> {
    before(Operation::SyncDirectory, path)
        .and_then(|()| File::open(path)?.sync_all())
        .map_err(|error| DiskError::new("sync the directory", path, error))
}

/// Syncs the directories in which this one and those around it have their names, up to the root of the file system:
/// any of them may have been made just now. One that may not be read was made by somebody else.
pub(super) fn sync_directories_above(path: &Path) -> Result<(), DiskError> {
    let failed = |error| DiskError::new("look at", path, error);
    let path = path.canonicalize().map_err(failed)?;
    let device = fs::metadata(&path).map_err(failed)?.dev();
    for above in path.ancestors().skip(1) {
        if fs::metadata(above).map_err(failed)?.dev() != device {
            break;
        }
        match sync_directory(above) {
            Err(error) if error.source.kind() == io::ErrorKind::PermissionDenied => break,
            other => other?,
        }
    }
    Ok(())
}

/// Syncs every file of a directory, then drops what of them is cached. After a sync has failed, Linux keeps what it
/// could not write in memory and calls it clean: a process that started then would read what no disk holds, and the
/// next sync would succeed. Directories within are left alone.
pub(super) fn reread_from_disk(directory: &Path) -> Result<(), DiskError> {
    for name in list(directory)? {
        let path = directory.join(name);
        if path.is_file() {
            let file = DiskFile::open(&path)?;
            file.sync_data()?;
            file.forget_cached()?;
        } else if path.is_dir() {
            reread_from_disk(&path)?;
        }
    }
    sync_directory(directory)
}

/// The bytes of the files in a directory, those of directories within left alone.
pub(super) fn sizes(directory: &Path) -> Result<u64, DiskError> {
    let mut bytes = 0;
    for name in list(directory)? {
        let path = directory.join(name);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => bytes += metadata.len(),
            Ok(_) => {}
            // It was renamed or removed after it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(DiskError::new("look at", &path, error)),
        }
    }
    Ok(bytes)
}

pub(super) fn create_directory(path: &Path) -> Result<(), DiskError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(|error| DiskError::new("create the directory", path, error)),
    }
}

/// Removes a file, which the caller makes durable by syncing the directory.
pub(super) fn remove(path: &Path) -> Result<(), DiskError> {
    match before(Operation::Remove, path).and_then(|()| fs::remove_file(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|error| DiskError::new("remove", path, error)),
    }
}

/// The whole content; `None` if there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, DiskError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(DiskError::new("read", path, error)),
    }
}

/// The names in a directory, sorted; those that are not UTF-8 in a readable form that matches no name of ours.
pub(super) fn list(path: &Path) -> Result<Vec<String>, DiskError> {
    let failed = |error| DiskError::new("list", path, error);
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
