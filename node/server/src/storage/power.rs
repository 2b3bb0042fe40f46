//! The observer of the tests: sees every call of [`super::file`] and every sync of sled, fails what it is told to,
//! and plays power cuts on real files.
//!
//! A power cut keeps, of each file, what was synced last, and any subset of the 4 KiB pages written since; of each
//! directory, what was synced last, and any subset of the names changed since. Nothing else is assumed of the
//! file system, except that sled's small files are on disk once they have their names: sled syncs those by
//! `fsync`, which is not observed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rand::Rng;
use rand::rngs::StdRng;

use super::file::Operation;

pub(super) trait Observer: Send + Sync {
    /// Called before the operation, which is not done if this is an error.
    fn before(&self, operation: Operation, path: &Path) -> io::Result<()>;
}

static OBSERVERS: RwLock<Vec<(PathBuf, Arc<dyn Observer>)>> = RwLock::new(Vec::new());

/// Ends the observation when dropped.
pub(super) struct Watch(PathBuf);

/// Observes everything at or below `root`, one observer at a time.
pub(super) fn watch(root: &Path, observer: Arc<dyn Observer>) -> Watch {
    OBSERVERS.write().unwrap().push((root.to_owned(), observer));
    Watch(root.to_owned())
}

impl Drop for Watch {
    fn drop(&mut self) {
        OBSERVERS.write().unwrap().retain(|(root, _)| *root != self.0);
    }
}

pub(super) fn before(operation: Operation, path: &Path) -> io::Result<()> {
    let observer = {
        let observers = OBSERVERS.read().unwrap();
        let found = observers.iter().find(|(root, _)| path.starts_with(root));
        found.map(|(_, observer)| observer.clone())
    };
    observer.map_or(Ok(()), |observer| observer.before(operation, path))
}

pub(super) fn before_sync_of(fd: libc::c_int) -> io::Result<()> {
    match fs::read_link(format!("/proc/self/fd/{fd}")) {
        Ok(path) => before(Operation::SyncData, &path),
        Err(_) => Ok(()),
    }
}

/// Fails operations that a test chooses.
pub(super) struct Faults<F>(pub(super) F);

impl<F: Fn(Operation, &Path) -> io::Result<()> + Send + Sync> Observer for Faults<F> {
    fn before(&self, operation: Operation, path: &Path) -> io::Result<()> {
        self.0(operation, path)
    }
}

const PAGE_BYTES: usize = 4096;

/// Remembers what is durable below a directory.
pub(super) struct PowerCut {
    root: PathBuf,
    durable: Mutex<Durable>,
}

#[derive(Default)]
struct Durable {
    /// Content at the last sync, by inode: names change.
    content: BTreeMap<u64, Vec<u8>>,
    names: BTreeMap<PathBuf, BTreeMap<OsString, u64>>,
}

impl PowerCut {
    /// Everything that is there now is durable. The directory has to be on tmpfs, which never uses an inode's
    /// number again.
    pub(super) fn new(root: &Path) -> Arc<Self> {
        let mut durable = Durable::default();
        for directory in directories(root) {
            let names = listing(&directory);
            for name in names.keys() {
                durable.keep_content(&directory.join(name));
            }
            durable.names.insert(directory, names);
        }
        Arc::new(Self { root: root.to_owned(), durable: Mutex::new(durable) })
    }

    /// Copies everything into the empty directory `to`, as it is when the process is killed: what was written is
    /// there to be read, and what was not synced is still not durable.
    pub(super) fn kill(&self, to: &Path) -> Arc<Self> {
        let durable = self.lock();
        let mut copied = Durable::default();
        for directory in directories(&self.root) {
            let target = to.join(directory.strip_prefix(&self.root).unwrap());
            fs::create_dir_all(&target).unwrap();
            let mut inodes = BTreeMap::new();
            for (name, inode) in listing(&directory) {
                let path = target.join(&name);
                match fs::copy(directory.join(&name), &path) {
                    // A thread of the node has just removed it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    other => drop(other.unwrap()),
                }
                inodes.insert(inode, fs::metadata(&path).unwrap().ino());
            }
            let old = durable.names.get(&directory).cloned().unwrap_or_default();
            for inode in old.values() {
                // What has no name any more gets a number that no file has.
                let unused = u64::MAX - inode;
                inodes.entry(*inode).or_insert(unused);
            }
            for (inode, new) in &inodes {
                if let Some(content) = durable.content.get(inode) {
                    copied.content.insert(*new, content.clone());
                }
            }
            copied
                .names
                .insert(target, old.into_iter().map(|(name, inode)| (name, inodes[&inode])).collect());
        }
        Arc::new(Self { root: to.to_owned(), durable: Mutex::new(copied) })
    }

    /// Puts what a power cut at this moment might leave into the empty directory `to`. Syncs wait meanwhile, so
    /// that nothing is found that was written only because of a later sync.
    pub(super) fn cut(&self, rng: &mut StdRng, to: &Path) {
        let durable = self.lock();
        // Often all is lost or all is kept; in between every mixture.
        let kept = [0.0, 0.1, 0.5, 0.9, 1.0][rng.random_range(0..5)];
        for directory in directories(&self.root) {
            let target = to.join(directory.strip_prefix(&self.root).unwrap());
            fs::create_dir_all(&target).unwrap();
            let old = durable.names.get(&directory).cloned().unwrap_or_default();
            let new = listing(&directory);
            let is_of_sled = directory.components().any(|part| part.as_os_str() == "engine");
            let all_or_nothing = is_of_sled.then(|| rng.random_bool(kept));
            let mut names: Vec<_> = old.keys().chain(new.keys()).collect();
            names.sort();
            names.dedup();
            for name in names {
                let survives =
                    if all_or_nothing.unwrap_or_else(|| rng.random_bool(kept)) { &new } else { &old };
                let Some(inode) = survives.get(name).copied() else { continue };
                let is_small_of_sled = is_of_sled && name != "db";
                let present = find(&directory, inode);
                let synced = durable.content.get(&inode);
                let content = match (present, synced) {
                    (Some(present), _) if is_small_of_sled => present,
                    (Some(present), Some(synced)) => mix(synced, &present, kept, rng),
                    (Some(present), None) => mix(&[], &present, kept, rng),
                    (None, Some(synced)) => synced.clone(),
                    (None, None) => Vec::new(),
                };
                fs::write(target.join(name), content).unwrap();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Durable> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for PowerCut {
    fn before(&self, operation: Operation, path: &Path) -> io::Result<()> {
        let mut durable = self.lock();
        match operation {
            Operation::SyncData => durable.keep_content(path),
            Operation::SyncDirectory => {
                durable.names.insert(path.to_owned(), listing(path));
            }
            Operation::Reserve | Operation::Write | Operation::Rename | Operation::Remove => {}
        }
        Ok(())
    }
}

impl Durable {
    fn keep_content(&mut self, path: &Path) {
        if let (Ok(content), Ok(metadata)) = (fs::read(path), fs::metadata(path)) {
            self.content.insert(metadata.ino(), content);
        }
    }
}

/// The root and all directories below it.
fn directories(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_owned()];
    for entry in fs::read_dir(root).unwrap().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(directories(&entry.path()));
        }
    }
    found
}

/// The files of a directory and their inodes.
fn listing(directory: &Path) -> BTreeMap<OsString, u64> {
    let entries = fs::read_dir(directory).unwrap().flatten();
    entries
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            metadata.is_file().then(|| (entry.file_name(), metadata.ino()))
        })
        .collect()
}

fn find(directory: &Path, inode: u64) -> Option<Vec<u8>> {
    let names = listing(directory);
    let (name, _) = names.iter().find(|(_, found)| **found == inode)?;
    fs::read(directory.join(name)).ok()
}

/// Pages of `new` with the given probability, of `old` otherwise.
fn mix(old: &[u8], new: &[u8], kept: f64, rng: &mut StdRng) -> Vec<u8> {
    let length = if rng.random_bool(kept) { new.len() } else { old.len() };
    let mut out = vec![0; length];
    for (index, page) in out.chunks_mut(PAGE_BYTES).enumerate() {
        let source = if rng.random_bool(kept) { new } else { old };
        let from = source.get(index * PAGE_BYTES..).unwrap_or_default();
        let bytes = page.len().min(from.len());
        page[..bytes].copy_from_slice(&from[..bytes]);
    }
    out
}
