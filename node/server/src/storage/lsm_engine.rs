//! A log-structured merge tree, what lies below [`super::buffered_engine`]: the one module that knows the library.
//!
//! A memtable becomes tables of the tree as a whole, sorted as it is, and appears in one step: the library syncs
//! tables, their directory and the list of tables, in this order, and swaps the list by renaming. So what a crash
//! leaves is the tree before or the tree after. The note of how far that is lies in the tables themselves.
//!
//! ```text
//! records and hints, named as in [`super::item`]
//! 0xffff ‖ "flushed"                            → sequence u64
//! 0xffff ‖ "highest"                            → stamp 16 ‖ CRC-32C
//! ```
//!
//! A thread of its own merges tables into larger ones. Where it does not keep up, writing tables down waits for it.
//! A merge that met damage is not tried again: each leaves files behind that only a start removes. Reads go on, and
//! once there are too many runs of tables the engine has failed, and the node ends, before the library's own limit of
//! 255. The library keeps a checksum of its list of tables and does not look at it: here that is done before it opens.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use bytes::Bytes;
use keystore_core::effect::{Damaged, Hint};
use keystore_core::partition::RecordKey;
use keystore_core::record::Record;
use keystore_core::stamp::Stamp;
use lsm_tree::compaction::Leveled;
use lsm_tree::config::{
    BloomConstructionPolicy, CompressionPolicy, FilterPolicy, FilterPolicyEntry, HashRatioPolicy,
    PinningPolicy, RestartIntervalPolicy,
};
use lsm_tree::{
    AbstractTree as _, AnyTree, Cache, CompressionType, Config, DescriptorTable, Guard as _, SeqNo,
    SequenceNumberCounter, UserValue,
};
use xxhash_rust::xxh3::xxh3_128;

use super::base::{Base, Found, IsCovered, Written, encode_highest, highest_of_note, written};
use super::disk_usage::DiskUsage;
use super::engine::{EngineError, LoadError, ScanError};
use super::file::{self, DiskError, Operation};
use super::item;
use super::memtable::Memtable;

/// Readers take what there is when they begin, and keep it from being removed.
const NEWEST: SeqNo = SeqNo::MAX;
const FLUSHED_KEY: &[u8] = b"\xff\xffflushed";
pub(super) const HIGHEST_KEY: &[u8] = b"\xff\xffhighest";
/// What is open at once.
const FILES_MAX: usize = 512;
/// One read in a thousand looks into a table in vain.
const FILTER_BITS_PER_KEY: f32 = 14.0;
/// Within a block, a key is found by its hash, and then among so many.
const RESTART_INTERVAL: u8 = 8;
const HASH_RATIO: f32 = 1.0;
/// So many tables that may overlap are merged together into the level below: fewer, larger merges for each record.
const TABLES_MERGED: u8 = 8;
/// Runs of tables that overlap each other: from so many on, whoever writes another one waits for a merge. Each is
/// one more that a read may have to look into.
const RUNS_MAX: usize = 16;
/// Where merges fail.
const RUNS_TOO_MANY: usize = 128;
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// After a merge for which there was no space.
const TRY_AGAIN: Duration = Duration::from_secs(10);
/// What a merge of two levels takes of the disk until it is done, at most: a table and those that it overlaps.
const MERGE_BYTES_MAX: u64 = 1 << 30;
/// Says which list of tables counts: its number, its xxh3-128, how that was made.
const CURRENT: &str = "current";
/// Up to this size a copy is cheaper than keeping the whole block.
const COPY_BYTES_MAX: usize = 2 << 10;

pub(super) struct LsmEngine {
    directory: PathBuf,
    tree: AnyTree,
    merger: Merger,
}

impl LsmEngine {
    /// Opens or creates. `cache_bytes` bounds the blocks that are kept in memory; what tells tables apart (filters and
    /// indexes, about three bytes a record) comes on top.
    pub(super) fn open(directory: &Path, cache_bytes: u64) -> Result<Self, EngineError> {
        check_list_of_tables(directory)?;
        let (next, visible) = (SequenceNumberCounter::default(), SequenceNumberCounter::default());
        let filter = FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(FILTER_BITS_PER_KEY));
        let tree = Config::new(directory, next.clone(), visible.clone())
            .use_cache(Arc::new(Cache::with_capacity_bytes(cache_bytes)))
            .use_descriptor_table(Some(Arc::new(DescriptorTable::new(FILES_MAX))))
            .filter_policy(FilterPolicy::all(filter))
            // A read looks into each level: what tells whether in vain is in memory whole, and is no matter of luck, but
            // for tables that were written last.
            .filter_block_pinning_policy(PinningPolicy::all(true))
            .filter_block_partitioning_policy(PinningPolicy::all(false))
            .index_block_pinning_policy(PinningPolicy::all(true))
            .index_block_partitioning_policy(PinningPolicy::all(false))
            .data_block_compression_policy(CompressionPolicy::all(CompressionType::None))
            .data_block_hash_ratio_policy(HashRatioPolicy::all(HASH_RATIO))
            .data_block_restart_interval_policy(RestartIntervalPolicy::all(RESTART_INTERVAL))
            .open()?;
        if let Some(highest) = tree.get_highest_seqno() {
            next.fetch_max(highest + 1);
            visible.fetch_max(highest + 1);
        }
        let merger = Merger::start(tree.clone(), visible, directory.to_owned())
            .map_err(|error| DiskError::new("start a thread for", directory, error))?;
        Ok(Self { directory: directory.to_owned(), tree, merger })
    }

    /// True if there is a tree to open.
    pub(super) fn exists(directory: &Path) -> bool {
        directory.join(CURRENT).exists()
    }

    fn get(&self, name: &[u8]) -> Result<Option<UserValue>, lsm_tree::Error> {
        self.tree.get(name, NEWEST)
    }

    /// `Err` is a disk that fails; what is damaged is `Ok(None)`, as what is not there: it loses against anything.
    fn stored(&self, key: &RecordKey) -> Result<Option<Record>, EngineError> {
        match self.load(key) {
            Ok(stored) => Ok(stored),
            Err(LoadError::Damaged) => Ok(None),
            Err(LoadError::Io(error)) => Err(error),
        }
    }
}

impl Base for LsmEngine {
    fn load(&self, key: &RecordKey) -> Result<Option<Record>, LoadError> {
        match self.get(&item::record_name(key)) {
            Ok(None) => Ok(None),
            Ok(Some(stored)) => match Record::decode(key, &to_bytes(stored)) {
                Ok(record) => Ok(Some(record)),
                Err(_) => Err(LoadError::Damaged),
            },
            Err(error) if is_damage(&error) => Err(LoadError::Damaged),
            Err(error) => Err(LoadError::Io(error.into())),
        }
    }

    fn records<'a>(
        &'a self,
        names: &Range<Vec<u8>>,
        mut is_covered: IsCovered<'a>,
    ) -> Box<dyn Iterator<Item = Result<Found, ScanError>> + 'a> {
        let items = self.tree.range(names.clone(), NEWEST, None);
        Box::new(items.filter_map(move |item| {
            let (name, stored) = match item.into_inner() {
                Ok((name, _)) if is_covered(&name) => return None,
                Ok(item) => item,
                Err(error) if is_damage(&error) => return Some(Err(ScanError::Unreadable(error.into()))),
                Err(error) => return Some(Err(ScanError::Io(error.into()))),
            };
            let key = item::key_of_record(&name)?;
            let record = Record::decode(&key, &to_bytes(stored)).map(Some).map_err(|_| Damaged);
            Some(Ok(((key.slot(), key), record)))
        }))
    }

    fn hints(&self) -> Result<BTreeMap<Vec<u8>, Hint>, EngineError> {
        let mut hints = BTreeMap::new();
        for item in self.tree.range(item::hint_names(), NEWEST, None) {
            let (name, stored) = item.into_inner()?;
            if let Some(hint) = item::decode_hint(&name, &stored) {
                hints.insert(name.to_vec(), hint);
            }
        }
        Ok(hints)
    }

    fn write_down(&self, table: &Memtable, sequence: Option<u64>) -> Result<Vec<RecordKey>, EngineError> {
        let is_noted = |sequence| Ok::<_, EngineError>(self.flushed()? == sequence);
        if table.is_empty() && sequence.map_or(Ok(true), is_noted)? {
            return Ok(Vec::new());
        }
        self.merger.check()?;
        if self.tree.l0_run_count() >= RUNS_TOO_MANY {
            return Err(EngineError::GaveUp(
                "its tables cannot be merged, and there are too many".to_owned(),
            ));
        }
        let written_down = |error| no_space_or(error, &self.directory);
        // Looked at ahead: what does not come to its end leaves its files there until the next start.
        DiskUsage::expect_available(&self.directory, table.bytes() as u64).map_err(EngineError::of_write)?;
        let highest = self.highest()?.map(|noted| noted.max(table.highest()));
        let mut tables = self.tree.ingestion().map_err(written_down)?;
        for (key, held) in table.records() {
            let stored = if held.is_whole { None } else { self.stored(&key)? };
            match written(&key, held, stored)? {
                Written::Same => {}
                Written::Nothing => tables.write_tombstone(item::record_name(&key)).map_err(written_down)?,
                Written::Record(_, encoded) => {
                    tables.write(item::record_name(&key), &encoded[..]).map_err(written_down)?;
                }
            }
        }
        for (name, since_ms) in table.hints() {
            match since_ms {
                Some(since_ms) => {
                    tables.write(&name[..], item::encode_hint(name, since_ms)).map_err(written_down)?;
                }
                None => tables.write_tombstone(&name[..]).map_err(written_down)?,
            }
        }
        if let Some(sequence) = sequence {
            tables.write(FLUSHED_KEY, sequence.to_be_bytes()).map_err(written_down)?;
        }
        // What was not known once stays so: a note that can be read again later would not speak of these records.
        let note = highest.map_or_else(Vec::new, encode_highest);
        tables.write(HIGHEST_KEY, note).map_err(written_down)?;
        tables.finish().map_err(written_down)?;
        self.merger.merge();
        self.merger.wait_until(|| self.tree.l0_run_count() < RUNS_MAX);
        Ok(Vec::new())
    }

    fn flushed(&self) -> Result<u64, EngineError> {
        let noted = self.get(FLUSHED_KEY)?;
        let bytes = noted.and_then(|noted| noted.as_ref().try_into().ok());
        Ok(bytes.map_or(0, u64::from_be_bytes))
    }

    fn highest(&self) -> Result<Option<Stamp>, EngineError> {
        let notes = (|| Ok((self.get(HIGHEST_KEY)?, self.get(FLUSHED_KEY)?)))();
        match notes {
            Ok((highest, flushed)) => Ok(highest_of_note(highest.as_deref(), flushed.is_none())),
            Err(error) if is_damage(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn disk_bytes(&self) -> Result<u64, EngineError> {
        Ok(self.tree.disk_space())
    }

    /// A merge needs what it merges once more.
    fn written_for_each_byte(&self) -> u64 {
        2
    }
}

impl fmt::Debug for LsmEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LsmEngine").field("tables", &self.tree.table_count()).finish_non_exhaustive()
    }
}

/// What the disk holds is not what was written; anything else is a disk that fails.
pub(super) fn is_damage(error: &lsm_tree::Error) -> bool {
    match error {
        lsm_tree::Error::Io(error) => {
            matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidData | ErrorKind::NotFound)
        }
        _ => true,
    }
}

fn to_bytes(stored: UserValue) -> Bytes {
    if stored.len() <= COPY_BYTES_MAX { Bytes::copy_from_slice(&stored) } else { Bytes::from_owner(stored) }
}

/// The list that counts is the one that was written.
fn check_list_of_tables(directory: &Path) -> Result<(), EngineError> {
    let Some(current) = file::read(&directory.join(CURRENT))? else { return Ok(()) };
    let damaged = |problem: &str| EngineError::GaveUp(format!("its list of tables is damaged: {problem}"));
    let (number, rest) =
        current.split_first_chunk::<8>().ok_or_else(|| damaged("nobody says which one counts"))?;
    let expected = rest.first_chunk::<16>().ok_or_else(|| damaged("it has no checksum"))?;
    let path = directory.join(format!("v{}", u64::from_le_bytes(*number)));
    let list = file::read(&path)?.ok_or_else(|| damaged("it is gone"))?;
    if xxh3_128(&list) == u128::from_le_bytes(*expected) {
        Ok(())
    } else {
        Err(damaged("its checksum is wrong"))
    }
}

/// The thread that merges tables.
struct Merger {
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
    handle: Thread,
}

#[derive(Default)]
struct State {
    is_wanted: AtomicBool,
    is_over: AtomicBool,
    /// Nothing is merged now: nobody waits for it.
    is_stuck: AtomicBool,
    /// How the disk has failed, which is told to whoever writes from then on.
    failed: Mutex<Option<(ErrorKind, String)>>,
}

impl Merger {
    fn start(tree: AnyTree, visible: SequenceNumberCounter, directory: PathBuf) -> io::Result<Self> {
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let run = move || shared.run(&tree, &visible, &directory);
        let thread = thread::Builder::new().name("merge".into()).spawn(run)?;
        let handle = thread.thread().clone();
        Ok(Self { state, thread: Some(thread), handle })
    }

    fn merge(&self) {
        self.state.is_wanted.store(true, Ordering::Release);
        self.handle.unpark();
    }

    fn check(&self) -> Result<(), EngineError> {
        let failed = self.state.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.as_ref().map_or(Ok(()), |(kind, error)| {
            Err(lsm_tree::Error::Io(io::Error::new(*kind, format!("merging tables: {error}"))).into())
        })
    }

    /// Unless nothing is merged.
    fn wait_until(&self, is_enough: impl Fn() -> bool) {
        let has_ended = || self.thread.as_ref().is_none_or(JoinHandle::is_finished);
        while !is_enough() && !self.state.is_stuck.load(Ordering::Acquire) && !has_ended() {
            thread::sleep(LOOK_AGAIN);
        }
    }
}

impl State {
    fn run(&self, tree: &AnyTree, visible: &SequenceNumberCounter, directory: &Path) {
        while !self.is_over.load(Ordering::Acquire) {
            if !self.is_wanted.swap(false, Ordering::AcqRel) {
                thread::park();
                continue;
            }
            match self.merge(tree, visible, directory) {
                Ok(()) => self.is_stuck.store(false, Ordering::Release),
                Err(error) if is_no_space(&error) => {
                    tracing::warn!(%error, "tables are merged later, the disk is full");
                    self.is_stuck.store(true, Ordering::Release);
                    self.is_wanted.store(true, Ordering::Release);
                    thread::park_timeout(TRY_AGAIN);
                }
                Err(error) => {
                    tracing::error!(%error, "tables cannot be merged any more");
                    if let lsm_tree::Error::Io(source) = &error
                        && !is_damage(&error)
                    {
                        let failed = (source.kind(), source.to_string());
                        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(failed);
                    }
                    return self.is_stuck.store(true, Ordering::Release);
                }
            }
        }
    }

    /// One step at a time, until nothing changes any more.
    fn merge(
        &self,
        tree: &AnyTree,
        visible: &SequenceNumberCounter,
        directory: &Path,
    ) -> Result<(), lsm_tree::Error> {
        let strategy = Arc::new(Leveled::default().with_l0_threshold(TABLES_MERGED));
        let mut before = None;
        while before != Some(tree.current_version().id()) && !self.is_over.load(Ordering::Acquire) {
            before = Some(tree.current_version().id());
            // Looked at ahead: a merge that finds the disk full leaves there what it has written.
            let available = DiskUsage::of(directory).map_or(u64::MAX, |usage| usage.available);
            if available < merge_bytes(tree) {
                return Err(lsm_tree::Error::Io(ErrorKind::StorageFull.into()));
            }
            file::before(Operation::Merge, directory)?;
            tree.compact(strategy.clone(), visible.get())?;
        }
        Ok(())
    }
}

/// What the next merge may take of the disk until it is done. The newest tables are merged all at once, with all of the
/// level below.
fn merge_bytes(tree: &AnyTree) -> u64 {
    let version = tree.current_version();
    let below = version.iter_levels().skip(1).find(|level| !level.is_empty());
    let newest = version.l0().size() + below.map_or(0, |level| level.size());
    newest.max(MERGE_BYTES_MAX).min(tree.disk_space())
}

/// Nothing of an ingestion is there before its end.
fn no_space_or(error: lsm_tree::Error, directory: &Path) -> EngineError {
    match error {
        lsm_tree::Error::Io(error) if file::is_no_space(&error) => {
            EngineError::NoSpace(DiskError::new("write a table in", directory, error))
        }
        other => other.into(),
    }
}

fn is_no_space(error: &lsm_tree::Error) -> bool {
    matches!(error, lsm_tree::Error::Io(error) if file::is_no_space(error))
}

impl Drop for Merger {
    /// Waits for the merge under way: the next process must not meet it.
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::Release);
        self.handle.unpark();
        if let Some(thread) = self.thread.take() {
            // It has no result; a panic has been told.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
impl LsmEngine {
    pub(super) fn raw(&self, name: &[u8]) -> Option<Vec<u8>> {
        self.get(name).unwrap().map(|stored| stored.to_vec())
    }

    pub(super) fn put_raw(&self, name: &[u8], stored: &[u8]) {
        let mut tables = self.tree.ingestion().unwrap();
        tables.write(name, stored).unwrap();
        tables.finish().unwrap();
    }

    pub(super) fn remove_raw(&self, name: &[u8]) {
        let mut tables = self.tree.ingestion().unwrap();
        tables.write_tombstone(name).unwrap();
        tables.finish().unwrap();
    }

    /// How many runs of tables overlap each other.
    pub(super) fn runs(&self) -> usize {
        self.tree.l0_run_count()
    }
}
