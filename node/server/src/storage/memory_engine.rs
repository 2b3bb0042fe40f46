//! The engine that keeps everything in memory: what is durable is the commit log, and a snapshot now and then.
//!
//! The items are one ordered map that never changes (a red-black tree whose nodes are shared): applying a batch makes
//! another one, which shares all but the paths to what has changed, and puts it in the place of the one before in one
//! step. So a reader takes whatever map is there and waits for nobody, and writing a snapshot is reading one map to
//! its end while newer ones come. What a snapshot holds on to meanwhile is what was replaced since it began.
//!
//! Items are kept in their stored form, checksum included: memory, too, returns what was not written now and then.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use keystore_core::effect::{Entry, Hint};
use keystore_core::message::{Page, ScanRange};
use keystore_core::partition::RecordKey;
use keystore_core::record::Record;
use keystore_core::stamp::Stamp;
use rpds::RedBlackTreeMapSync;

use super::disk_usage::DiskUsage;
use super::engine::{EngineError, EngineSize, LoadError, ScanError, Storage};
use super::item::{self, PageMaker};
use super::{file, snapshot};

/// What the map takes for an item beside its name and value: two nodes of the tree with their counts, the two
/// pointers with their lengths, and what the allocator rounds up.
const ITEM_OVERHEAD_BYTES: u64 = 176;

type Items = RedBlackTreeMapSync<Box<[u8]>, Bytes>;

pub(super) struct MemoryEngine {
    directory: PathBuf,
    current: ArcSwap<View>,
    /// Of the snapshot on disk: what it says, which view it holds, how large it is.
    flushed_sequence: AtomicU64,
    flushed_version: AtomicU64,
    snapshot_bytes: AtomicU64,
    /// Of the snapshot being written.
    written_bytes: AtomicU64,
}

/// One state of the engine.
#[derive(Clone)]
struct View {
    items: Items,
    /// How many batches have been applied since the engine was opened.
    version: u64,
    /// Of the items in the form of a snapshot.
    bytes: u64,
    /// A stamp that no record is above, unless one of them was damaged.
    highest: Option<Stamp>,
}

impl MemoryEngine {
    /// Reads the snapshot, if there is one.
    pub(super) fn open(directory: &Path) -> Result<Self, EngineError> {
        let mut view = View { items: Items::new_sync(), version: 0, bytes: 0, highest: Some(Stamp::LOWEST) };
        let read = snapshot::read(directory, &mut |name, value| {
            let value = Bytes::copy_from_slice(value);
            if let Some(key) = item::key_of_record(name).filter(|_| !item::is_hint(name)) {
                let stored = Record::decode(&key, &value);
                view.highest =
                    view.highest.zip(stored.ok()).map(|(highest, stored)| highest.max(stored.stamp));
            }
            view.insert(name.to_vec(), value);
        })?;
        let read = read.unwrap_or_default();
        Ok(Self {
            directory: directory.to_owned(),
            current: ArcSwap::from_pointee(view),
            flushed_sequence: AtomicU64::new(read.sequence),
            flushed_version: AtomicU64::new(0),
            snapshot_bytes: AtomicU64::new(read.bytes),
            written_bytes: AtomicU64::new(0),
        })
    }

    /// True if there is a snapshot to read.
    pub(super) fn exists(directory: &Path) -> bool {
        snapshot::path(directory).exists()
    }
}

impl View {
    fn insert(&mut self, name: Vec<u8>, value: Bytes) {
        self.forget(&name);
        self.bytes += snapshot::item_bytes(&name, &value);
        self.items.insert_mut(name.into_boxed_slice(), value);
    }

    fn remove(&mut self, name: &[u8]) {
        if self.forget(name) {
            self.items.remove_mut(name);
        }
    }

    /// Takes what is stored under the name out of the count; false if there is nothing.
    fn forget(&mut self, name: &[u8]) -> bool {
        let Some(value) = self.items.get(name) else { return false };
        self.bytes -= snapshot::item_bytes(name, value);
        true
    }

    fn merge(&mut self, key: &RecordKey, record: &Record) {
        let name = item::record_name(key);
        let held = self.items.get(name.as_slice()).map(|stored| Record::decode(key, stored));
        let merged = match held {
            Some(Ok(held)) => {
                let version = held.version();
                let merged = held.merge(record.clone());
                if merged.version() == version {
                    return;
                }
                merged.encode(key)
            }
            // What is damaged is older: see the trait.
            None | Some(Err(_)) => record.encode(key),
        };
        self.insert(name, merged);
    }

    fn apply(&mut self, entry: &Entry) {
        if let Entry::Record { record, .. } | Entry::Replace { record: Some(record), .. } = entry {
            self.highest = self.highest.map(|highest| highest.max(record.stamp));
        }
        match entry {
            Entry::Record { key, record } => self.merge(key, record),
            Entry::Replace { key, record: Some(record) } => {
                self.insert(item::record_name(key), record.encode(key));
            }
            Entry::Replace { key, record: None } => self.remove(&item::record_name(key)),
            Entry::Hint(Hint { target, key, since_ms }) => {
                let name = item::hint_name(*target, key);
                let value = item::encode_hint(&name, *since_ms).into();
                self.insert(name, value);
            }
            Entry::HintDone { target, key } => self.remove(&item::hint_name(*target, key)),
        }
    }

    fn within(&self, names: &Range<Vec<u8>>) -> impl Iterator<Item = (&[u8], &Bytes)> {
        let bounds = (
            std::ops::Bound::Included(names.start.as_slice()),
            std::ops::Bound::Excluded(names.end.as_slice()),
        );
        self.items.range::<[u8], _>(bounds).map(|(name, value)| (&**name, value))
    }
}

impl Storage for MemoryEngine {
    fn load(&self, key: &RecordKey) -> Result<Option<Record>, LoadError> {
        let view = self.current.load();
        let Some(stored) = view.items.get(item::record_name(key).as_slice()) else { return Ok(None) };
        Record::decode(key, stored).map(Some).map_err(|_| LoadError::Damaged)
    }

    fn scan(&self, slots: Range<u32>, range: &ScanRange) -> Result<Page, ScanError> {
        let view = self.current.load();
        let mut page = PageMaker::new(range);
        for names in item::stretches(slots, range) {
            for (name, stored) in view.within(&names) {
                if page.is_cut_before_next() {
                    return Ok(page.finish());
                }
                let Some(key) = item::key_of_record(name) else { continue };
                let Ok(record) = Record::decode(&key, stored) else { return Err(ScanError::Damaged(key)) };
                if !page.take(key, record) {
                    return Ok(page.finish());
                }
            }
        }
        Ok(page.finish())
    }

    fn hints(&self) -> Result<Vec<Hint>, EngineError> {
        let view = self.current.load();
        let names = item::hint_names();
        Ok(view.within(&names).filter_map(|(name, stored)| item::decode_hint(name, stored)).collect())
    }

    fn replay(&self, entries: &[Entry]) -> Result<Vec<usize>, EngineError> {
        let mut next = View::clone(&self.current.load());
        next.version += 1;
        for entry in entries {
            next.apply(entry);
        }
        self.current.store(Arc::new(next));
        Ok(Vec::new())
    }

    fn flush(&self, sequence: u64) -> Result<(), EngineError> {
        let view = self.current.load_full();
        // A start and an end ask twice. The sequence alone does not tell: after a power cut the numbers of periodic
        // commits that the snapshot held and the log has lost are given again.
        let is_flushed = view.version == self.flushed_version.load(Ordering::Acquire)
            && sequence == self.flushed_sequence.load(Ordering::Acquire);
        if is_flushed {
            return Ok(());
        }
        let items = view.items.iter().map(|(name, value)| (&**name, &**value));
        let written = |bytes| self.written_bytes.store(bytes, Ordering::Relaxed);
        let result = DiskUsage::expect_available(&self.directory, view.bytes)
            .and_then(|()| snapshot::write(&self.directory, sequence, items, written));
        self.written_bytes.store(0, Ordering::Relaxed);
        let bytes = result.map_err(EngineError::of_write)?;
        self.snapshot_bytes.store(bytes, Ordering::Relaxed);
        self.flushed_version.store(view.version, Ordering::Release);
        self.flushed_sequence.store(sequence, Ordering::Release);
        Ok(())
    }

    fn flushed(&self) -> Result<u64, EngineError> {
        Ok(self.flushed_sequence.load(Ordering::Acquire))
    }

    fn highest(&self) -> Result<Option<Stamp>, EngineError> {
        Ok(self.current.load().highest)
    }

    fn flush_bytes(&self) -> u64 {
        self.snapshot_bytes.load(Ordering::Relaxed)
    }

    fn reserve_bytes(&self) -> u64 {
        self.current.load().bytes.saturating_sub(self.written_bytes.load(Ordering::Relaxed))
    }

    fn size(&self) -> Result<EngineSize, EngineError> {
        let view = self.current.load();
        let items = view.items.size() as u64;
        let disk_bytes = file::sizes(&self.directory)?;
        Ok(EngineSize { disk_bytes, memory_bytes: view.bytes + items * ITEM_OVERHEAD_BYTES })
    }
}

impl fmt::Debug for MemoryEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let items = self.current.load().items.size();
        f.debug_struct("MemoryEngine")
            .field("directory", &self.directory)
            .field("items", &items)
            .finish_non_exhaustive()
    }
}
