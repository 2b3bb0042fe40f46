//! sled, what lies below [`super::buffered_engine`]: the one module that knows it.
//!
//! sled 0.34.7 is trusted only as far as it deserves: its syncs are made real by [`super::sync_file_range`],
//! replay starts from a checkpoint outside, a note inside shows whether it has lost what it had flushed, no item
//! comes near the size from which sled uses blob files, which it never syncs, and it is never far ahead of its disk
//! ([`super::sled_lead`]).
//!
//! ```text
//! records and hints, named as in [`super::item`]; a record may be the head of one in chunks
//! (0x1000 + slot) u16 ‖ key bytes u16 ‖ key ‖ version 24 ‖ index u16   → chunk
//! 0x3000 u16 ‖ key                                                     → nothing: its chunks are being changed
//! 0xffff ‖ "flushed"                                                   → sequence u64
//! ```
//!
//! Chunks bear the version of their record. New ones are there before their head is, and old ones go after it, so
//! a reader in between sees either that a chunk is gone and the head is another one, or all of it. Since sled keeps
//! a prefix of what it was told, whatever a crash leaves in between is found by the note, and tidied up at the next
//! start. sled's own batches would do the same at the price of two syncs each.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use keystore_core::effect::{Damaged, Hint};
use keystore_core::partition::RecordKey;
use keystore_core::record::{Record, Version};
use keystore_core::stamp::Stamp;
use sled::{Db, IVec};

use super::base::{Base, Found, IsCovered, Written, written};
use super::engine::{EngineError, LoadError, ScanError};
use super::file::{self, DiskFile};
use super::item;
use super::memtable::{Held, Memtable};
use super::sled_lead::Lead;

/// sled moves what exceeds a quarter of its segment into blob files. A leaf that is written as a whole has up to
/// 20 items, so 20 of the largest must stay below: 20 × (16 KiB + a key) < 2 MiB / 4.
const ITEM_BYTES_MAX: usize = 16 << 10;
const SLED_SEGMENT_BYTES: usize = 2 << 20;

const CHUNKS_FROM: u16 = 0x1000;
const IN_CHANGE: u16 = 0x3000;
const FLUSHED_KEY: &[u8] = b"\xff\xffflushed";

/// The first byte of a head; a record begins with its format, which is small.
const HEAD: u8 = 0xc1;
const HEAD_BYTES: usize = 1 + VERSION_BYTES + 4;
const VERSION_BYTES: usize = 16 + 8;

/// Up to this size a copy is cheaper than sharing sled's buffer.
const COPY_BYTES_MAX: usize = 512;

#[derive(Debug)]
pub(super) struct SledEngine {
    db: Db,
    directory: PathBuf,
    lead: Mutex<Lead>,
    /// How many changes there are until a test has it fail.
    #[cfg(test)]
    pub(super) changes_left: std::sync::atomic::AtomicUsize,
}

/// Stands for a record whose bytes are in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    version: [u8; VERSION_BYTES],
    length: u32,
}

/// What a key holds.
enum Stored {
    Nothing,
    Record(Record),
    /// A record in chunks, and its head.
    Chunked(Record, Head),
    /// With its head, if it has one that can be read.
    Damaged(Option<Head>),
}

impl SledEngine {
    /// Opens or creates. `cache_bytes` bounds what sled keeps in memory.
    pub(super) fn open(directory: &Path, cache_bytes: u64) -> Result<Self, EngineError> {
        let db = sled::Config::new()
            .path(directory)
            .cache_capacity(cache_bytes)
            .segment_size(SLED_SEGMENT_BYTES)
            .flush_every_ms(None)
            .open()?;
        let engine = Self {
            db,
            directory: directory.to_owned(),
            lead: Mutex::default(),
            #[cfg(test)]
            changes_left: usize::MAX.into(),
        };
        engine.tidy_up()?;
        engine.sync_files()?;
        Ok(engine)
    }

    /// True if there is a database to open.
    pub(super) fn exists(directory: &Path) -> bool {
        directory.join("db").exists()
    }

    /// sled syncs its log and its snapshots. Here the names of files are synced, what it has written to its log
    /// through other calls, and its settings, which it never syncs: without those, after a power cut, it takes its
    /// log for one with segments of another size, and panics.
    fn sync_files(&self) -> Result<(), EngineError> {
        DiskFile::open(&self.directory.join("conf"))?.sync_all()?;
        DiskFile::open(&self.directory.join("db"))?.sync_all()?;
        file::sync_directory(&self.directory.join("blobs"))?;
        file::sync_directory(&self.directory)?;
        Ok(())
    }

    fn find(&self, key: &RecordKey) -> Result<Stored, EngineError> {
        match self.get(&item::record_name(key))? {
            Some(item) => self.resolve(key, item),
            None => Ok(Stored::Nothing),
        }
    }

    /// What an item stands for that was found under the key's name.
    fn resolve(&self, key: &RecordKey, mut item: IVec) -> Result<Stored, EngineError> {
        loop {
            let Some(head) = Head::decode(&item) else {
                return Ok(decoded(key, &to_bytes(item)).map_or(Stored::Damaged(None), Stored::Record));
            };
            let chunks = self.chunks(key, head)?;
            if let Some(record) = chunks.and_then(|stored| decoded(key, &stored)) {
                return Ok(Stored::Chunked(record, head));
            }
            // A chunk that is missing has either been replaced together with the head, or it is damage. Each turn
            // of this loop means that a whole write has come in between, so it ends.
            match self.get(&item::record_name(key))? {
                None => return Ok(Stored::Nothing),
                Some(now) if now != item => item = now,
                Some(_) => return Ok(Stored::Damaged(Some(head))),
            }
        }
    }

    /// A page that sled cannot read is damage of the record, not the end of the engine.
    fn get(&self, key: &[u8]) -> Result<Option<IVec>, EngineError> {
        match self.db.get(key) {
            Err(sled::Error::Corruption { .. }) => Ok(Some(IVec::from(&[][..]))),
            other => Ok(other?),
        }
    }

    fn chunks(&self, key: &RecordKey, head: Head) -> Result<Option<Bytes>, EngineError> {
        let Ok(length) = usize::try_from(head.length) else { return Ok(None) };
        let mut stored = Vec::new();
        for name in Self::chunk_names(key, head) {
            match self.get(&name)? {
                Some(chunk) => stored.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
        Ok((stored.len() == length).then(|| stored.into()))
    }

    /// Puts the record in the place of what is there, whose head is given; `None` removes it.
    fn store(
        &self,
        key: &RecordKey,
        record: Option<(Version, &[u8])>,
        replaced: Option<Head>,
    ) -> Result<(), EngineError> {
        let name = item::record_name(key);
        let large = record.filter(|(_, encoded)| encoded.len() > ITEM_BYTES_MAX);
        let head = large.map(|(version, encoded)| Head::of(version, encoded.len()));
        let has_chunks = head.is_some() || replaced.is_some();
        if has_chunks {
            self.insert(&in_change_name(key), &[])?;
        }
        if let (Some(head), Some((_, encoded))) = (head, large) {
            for (name, chunk) in Self::chunk_names(key, head).zip(encoded.chunks(ITEM_BYTES_MAX)) {
                self.insert(&name, chunk)?;
            }
        }
        match (head, record) {
            (Some(head), _) => self.insert(&name, &head.encode())?,
            (None, Some((_, encoded))) => self.insert(&name, encoded)?,
            (None, None) => self.remove(&name)?,
        }
        if has_chunks {
            self.remove_chunks(key, replaced.filter(|replaced| Some(*replaced) != head))?;
        }
        Ok(())
    }

    fn remove_chunks(&self, key: &RecordKey, head: Option<Head>) -> Result<(), EngineError> {
        for name in head.into_iter().flat_map(|head| Self::chunk_names(key, head)) {
            self.remove(&name)?;
        }
        self.remove(&in_change_name(key))
    }

    fn insert(&self, name: &[u8], item: &[u8]) -> Result<(), EngineError> {
        self.db.insert(name, item)?;
        self.wrote(name.len() + item.len())
    }

    fn remove(&self, name: &[u8]) -> Result<(), EngineError> {
        self.db.remove(name)?;
        self.wrote(name.len())
    }

    /// Waits for the disk once sled is as far ahead of it as it may be.
    fn wrote(&self, bytes: usize) -> Result<(), EngineError> {
        #[cfg(test)]
        if self.changes_left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed) == 1 {
            return Err(EngineError::GaveUp("a test has it fail here".into()));
        }
        let mut lead = self.lead.lock().unwrap_or_else(PoisonError::into_inner);
        if lead.wrote(bytes) {
            lead.caught_up(self.db.flush()?);
        }
        Ok(())
    }

    /// Removes chunks that no head stands for: a crash has come in the middle of a change.
    fn tidy_up(&self) -> Result<(), EngineError> {
        for item in self.db.range(IN_CHANGE.to_be_bytes()..(IN_CHANGE + 1).to_be_bytes()) {
            let (name, _) = item?;
            match self.tidy_up_after(&name) {
                // It stays as it is: its record is damaged too.
                Err(EngineError::Sled(sled::Error::Corruption { .. })) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Of the key with this note.
    fn tidy_up_after(&self, note: &[u8]) -> Result<(), EngineError> {
        if let Some(key) = item::key_of_record(note) {
            let head = self.get(&item::record_name(&key))?.and_then(|item| Head::decode(&item));
            let of_head: Vec<_> = head.into_iter().flat_map(|head| Self::chunk_names(&key, head)).collect();
            for chunk in self.db.scan_prefix(chunk_prefix(&key)).keys() {
                let chunk = chunk?;
                if !of_head.iter().any(|name| *name == *chunk) {
                    self.remove(&chunk)?;
                }
            }
        }
        self.remove(note)
    }

    /// Merges what is held with what is stored, or puts it in its place.
    pub(super) fn write_record(&self, key: &RecordKey, held: &Held) -> Result<(), EngineError> {
        let (stored, head) = match self.find(key)? {
            Stored::Nothing => (None, None),
            Stored::Record(record) => (Some(record), None),
            Stored::Chunked(record, head) => (Some(record), Some(head)),
            Stored::Damaged(head) => (None, head),
        };
        match written(key, held, stored)? {
            Written::Same => Ok(()),
            Written::Nothing => self.store(key, None, head),
            Written::Record(record, encoded) => self.store(key, Some((record.version(), &encoded)), head),
        }
    }

    fn flush(&self, sequence: u64) -> Result<(), EngineError> {
        self.db.insert(FLUSHED_KEY, &sequence.to_be_bytes())?;
        self.db.flush()?;
        self.sync_files()
    }

    fn chunk_names(key: &RecordKey, head: Head) -> impl Iterator<Item = Vec<u8>> + use<> {
        let mut prefix = chunk_prefix(key);
        prefix.extend_from_slice(&head.version);
        let chunks = usize::try_from(head.length).unwrap_or(usize::MAX).div_ceil(ITEM_BYTES_MAX);
        (0..=u16::MAX).take(chunks).map(move |index| {
            let mut name = prefix.clone();
            name.extend_from_slice(&index.to_be_bytes());
            name
        })
    }
}

impl Base for SledEngine {
    fn load(&self, key: &RecordKey) -> Result<Option<Record>, LoadError> {
        match self.find(key)? {
            Stored::Nothing => Ok(None),
            Stored::Record(record) | Stored::Chunked(record, _) => Ok(Some(record)),
            Stored::Damaged(_) => Err(LoadError::Damaged),
        }
    }

    fn records<'a>(
        &'a self,
        names: &Range<Vec<u8>>,
        mut is_covered: IsCovered<'a>,
    ) -> Box<dyn Iterator<Item = Result<Found, ScanError>> + 'a> {
        Box::new(self.db.range(names.clone()).filter_map(move |item| {
            let (name, item) = match item {
                Ok((name, _)) if is_covered(&name) => return None,
                Ok(item) => item,
                Err(error) => return Some(Err(unreadable(error))),
            };
            let key = item::key_of_record(&name)?;
            let record = match self.resolve(&key, item) {
                Ok(Stored::Nothing) => Ok(None),
                Ok(Stored::Record(record) | Stored::Chunked(record, _)) => Ok(Some(record)),
                Ok(Stored::Damaged(_)) => Err(Damaged),
                Err(error) => return Some(Err(error.into())),
            };
            Some(Ok(((key.slot(), key), record)))
        }))
    }

    fn hints(&self) -> Result<BTreeMap<Vec<u8>, Hint>, EngineError> {
        let mut hints = BTreeMap::new();
        for item in self.db.range(item::hint_names()) {
            let (name, stored) = item?;
            if let Some(hint) = item::decode_hint(&name, &stored) {
                hints.insert(name.to_vec(), hint);
            }
        }
        Ok(hints)
    }

    fn write_down(&self, table: &Memtable, sequence: Option<u64>) -> Result<Vec<RecordKey>, EngineError> {
        let mut unreadable = Vec::new();
        for (key, held) in table.records() {
            match self.write_record(&key, held) {
                Ok(()) => {}
                Err(EngineError::Sled(sled::Error::Corruption { .. })) => unreadable.push(key),
                Err(error) => return Err(error),
            }
        }
        for (name, since_ms) in table.hints() {
            let result = match since_ms {
                Some(since_ms) => self.insert(name, &item::encode_hint(name, since_ms)),
                None => self.remove(name),
            };
            match result {
                // A hint counts towards nothing: repair finds what was missed.
                Err(EngineError::Sled(error @ sled::Error::Corruption { .. })) => {
                    tracing::error!(%error, "a hint cannot be kept");
                }
                other => other?,
            }
        }
        if let Some(sequence) = sequence {
            self.flush(sequence)?;
        }
        Ok(unreadable)
    }

    fn flushed(&self) -> Result<u64, EngineError> {
        let noted = self.get(FLUSHED_KEY)?;
        let bytes = noted.and_then(|noted| noted.as_ref().try_into().ok());
        Ok(bytes.map_or(0, u64::from_be_bytes))
    }

    /// Never known: a page that cannot be read takes no write either, and nobody but a look at what is there finds that
    /// out before the write is acknowledged.
    fn highest(&self) -> Result<Option<Stamp>, EngineError> {
        Ok(None)
    }

    fn disk_bytes(&self) -> Result<u64, EngineError> {
        Ok(self.db.size_on_disk()?)
    }

    /// Its files grew by up to 2.2 bytes in every measurement (values of 0 to 200,000 bytes, new, replaced, few among
    /// many) and it wrote up to 6.8, most of that where it had given segments back. In between, since it cannot be
    /// told to stop half-way: the room costs nothing but flushes that come earlier.
    fn written_for_each_byte(&self) -> u64 {
        4
    }
}

impl Head {
    fn of(Version { stamp, hash }: Version, length: usize) -> Self {
        let mut version = [0; VERSION_BYTES];
        let (left, right) = version.split_at_mut(16);
        left.copy_from_slice(&stamp.to_bytes());
        right.copy_from_slice(&hash.to_be_bytes());
        Self { version, length: u32::try_from(length).expect("a record is below 4 GiB") }
    }

    fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES);
        out.push(HEAD);
        out.extend_from_slice(&self.version);
        out.extend_from_slice(&self.length.to_be_bytes());
        out
    }

    fn decode(item: &[u8]) -> Option<Self> {
        let (kind, rest) = item.split_first()?;
        let (version, length) = rest.split_first_chunk::<VERSION_BYTES>()?;
        let length = u32::from_be_bytes(length.try_into().ok()?);
        (*kind == HEAD).then_some(Self { version: *version, length })
    }
}

/// What the names of all chunks of a key begin with.
fn chunk_prefix(key: &RecordKey) -> Vec<u8> {
    let slot = CHUNKS_FROM + key.slot();
    let length = u16::try_from(key.encoded().len()).expect("an encoded key has at most 1,090 bytes");
    let mut prefix = Vec::with_capacity(2 + 2 + key.encoded().len() + VERSION_BYTES + 2);
    prefix.extend_from_slice(&slot.to_be_bytes());
    prefix.extend_from_slice(&length.to_be_bytes());
    prefix.extend_from_slice(key.encoded());
    prefix
}

fn in_change_name(key: &RecordKey) -> Vec<u8> {
    [&IN_CHANGE.to_be_bytes(), &key.encoded()[..]].concat()
}

fn decoded(key: &RecordKey, stored: &Bytes) -> Option<Record> {
    Record::decode(key, stored).ok()
}

/// As for a single record: damage is no reason to stop serving what is whole.
fn unreadable(error: sled::Error) -> ScanError {
    match error {
        sled::Error::Corruption { .. } => ScanError::Unreadable(error.into()),
        other => ScanError::Io(other.into()),
    }
}

fn to_bytes(item: IVec) -> Bytes {
    if item.len() <= COPY_BYTES_MAX { Bytes::copy_from_slice(&item) } else { Bytes::from_owner(item) }
}
