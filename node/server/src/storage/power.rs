//! The observer of the tests: sees every call of [`super::file`] and every sync of the engines' libraries, fails what
//! it is told to, and plays power cuts on real files.
//!
//! A power cut keeps, of each file, what was synced last, and any subset of the 4 KiB pages written since; of each
//! directory, what was synced last, and any subset of the names changed since. Nothing else is assumed of the
//! file system, except that sled's snapshots are on disk once they have their names: sled syncs those by `fsync`,
//! which is not observed.
//!
//! A disk that has failed a sync is worse: Linux then calls pages clean that no disk holds, and no later sync writes
//! them. Such pages are *written off*: they can be read until they are dropped from memory.

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
        Ok(path) if path.is_dir() => before(Operation::SyncDirectory, &path),
        Ok(path) => before(Operation::SyncByLibrary, &path),
        Err(_) => Ok(()),
    }
}

/// `fsync(2)`, observed: the libraries of engines call it by themselves.
#[allow(unsafe_code, reason = "replacing a symbol of the C library is the only way to see those calls")]
#[unsafe(no_mangle)]
extern "C" fn fsync(fd: libc::c_int) -> libc::c_int {
    if let Err(error) = before_sync_of(fd) {
        let code = error.raw_os_error().unwrap_or(libc::EIO);
        // SAFETY: the number is that of this thread, and there for as long as it runs.
        unsafe { *libc::__errno_location() = code };
        return -1;
    }
    // SAFETY: the system call takes any number for a descriptor and fails with EBADF on one that is not open.
    let result = unsafe { libc::syscall(libc::SYS_fsync, fd) };
    if result == 0 { 0 } else { -1 }
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
    sees_libraries: bool,
}

#[derive(Default)]
struct Durable {
    /// Content at the last sync, by inode: names change.
    content: BTreeMap<u64, Vec<u8>>,
    /// Content at a sync that has failed, by inode: pages that are still the same have been written off.
    written_off: BTreeMap<u64, Vec<u8>>,
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
        Arc::new(Self { root: root.to_owned(), durable: Mutex::new(durable), sees_libraries: true })
    }

    /// As if what sled syncs by itself were never synced: to know that this would be noticed.
    pub(super) fn blind_to_libraries(root: &Path) -> Arc<Self> {
        let mut power = Arc::into_inner(Self::new(root)).expect("it is new");
        power.sees_libraries = false;
        Arc::new(power)
    }

    /// Copies everything into the empty directory `to`, as it is when the process is killed: what was written is
    /// there to be read, and what was not synced is still not durable. After a sync that has failed, it never will be.
    pub(super) fn kill(&self, to: &Path, failed_sync: bool) -> Arc<Self> {
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
        if failed_sync {
            copied.write_off(to);
        }
        Arc::new(Self {
            root: to.to_owned(),
            durable: Mutex::new(copied),
            sees_libraries: self.sees_libraries,
        })
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
            // The files of sled, and its empty directory for blobs.
            let is_of_sled = directory.join("db").exists() || directory.ends_with("blobs");
            let all_or_nothing = is_of_sled.then(|| rng.random_bool(kept));
            let mut names: Vec<_> = old.keys().chain(new.keys()).collect();
            names.sort();
            names.dedup();
            for name in names {
                let survives =
                    if all_or_nothing.unwrap_or_else(|| rng.random_bool(kept)) { &new } else { &old };
                let Some(inode) = survives.get(name).copied() else { continue };
                let is_snapshot_of_sled = is_of_sled && name.to_string_lossy().starts_with("snap.");
                let present = find(&directory, inode);
                let synced = durable.content.get(&inode);
                let content = match (present, synced) {
                    (Some(present), _) if is_snapshot_of_sled => present,
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
            Operation::SyncByLibrary if self.sees_libraries => durable.keep_content(path),
            // Advice that the kernel may ignore: it is heard where nothing else helps, in the engine.
            Operation::Forget if path.starts_with(self.root.join("engine")) => durable.forget(path),
            Operation::Create => durable.empty(path),
            Operation::SyncDirectory => {
                durable.names.insert(path.to_owned(), listing(path));
            }
            Operation::SyncByLibrary
            | Operation::Forget
            | Operation::Reserve
            | Operation::Write
            | Operation::Rename
            | Operation::Remove
            | Operation::Merge => {}
        }
        Ok(())
    }
}

impl Durable {
    /// A sync: everything but what has been written off is durable now.
    fn keep_content(&mut self, path: &Path) {
        let (Ok(mut content), Ok(metadata)) = (fs::read(path), fs::metadata(path)) else { return };
        if let Some(lost) = self.written_off.get(&metadata.ino()) {
            let durable = self.content.get(&metadata.ino()).map(Vec::as_slice).unwrap_or_default();
            restore(&mut content, lost, durable);
        }
        self.content.insert(metadata.ino(), content);
    }

    /// The syncs of all these files have failed.
    fn write_off(&mut self, root: &Path) {
        for directory in directories(root) {
            for (name, inode) in listing(&directory) {
                self.written_off.insert(inode, fs::read(directory.join(name)).unwrap());
            }
        }
    }

    /// What has been written off is not in memory any more either.
    fn forget(&mut self, path: &Path) {
        let (Ok(mut content), Ok(metadata)) = (fs::read(path), fs::metadata(path)) else { return };
        let Some(lost) = self.written_off.remove(&metadata.ino()) else { return };
        let durable = self.content.get(&metadata.ino()).map(Vec::as_slice).unwrap_or_default();
        restore(&mut content, &lost, durable);
        fs::write(path, content).unwrap();
    }

    /// Nothing is left of the pages of a file that is empty now.
    fn empty(&mut self, path: &Path) {
        if let Ok(metadata) = fs::metadata(path) {
            self.written_off.remove(&metadata.ino());
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

/// Where a page is still as it was when it was written off, it is what the disk holds.
fn restore(content: &mut [u8], lost: &[u8], durable: &[u8]) {
    for (index, page) in content.chunks_mut(PAGE_BYTES).enumerate() {
        let range = index * PAGE_BYTES..index * PAGE_BYTES + page.len();
        if lost.get(range.clone()) == Some(page) {
            let held = durable.get(range.start..).unwrap_or_default();
            let held = held.get(..page.len()).unwrap_or(held);
            page.fill(0);
            page[..held.len()].copy_from_slice(held);
        }
    }
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
