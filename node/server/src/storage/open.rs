//! How a node comes back: check everything, then bump the generation, then replay, then begin a fresh segment.
//!
//! Up to the bump nothing is changed. After it a crash between any two steps is harmless: what is replayed is made
//! durable in the engine and the checkpoint is moved behind it *before* a fresh segment says that the log goes on
//! there, and old segments go last.

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use keystore_core::effect::SavedState;
use keystore_core::history::History;
use keystore_core::id::{Generation, Nonce};
use keystore_core::record::VALUE_BYTES_MAX;
use tokio::sync::watch;

use super::base::Base;
use super::buffered_engine::BufferedEngine;
use super::checkpoint::Checkpoints;
use super::counters::Counters;
use super::data_dir::{DataDir, States};
use super::disk_usage::DiskUsage;
use super::engine::{EngineError, EngineKind, Storage};
use super::error::{FatalError, OpenError};
use super::file;
use super::found::{Found, Identity};
use super::historian::Historian;
use super::log::{self, CommitLog, Position, ReadError};
use super::lsm_engine::{self, LsmEngine};
use super::memory_engine::MemoryEngine;
use super::mutant::{Mutant, is_on};
use super::set_aside::SetAside;
use super::sled_engine::SledEngine;

/// A segment takes at least the largest record twice, with its key and the headers.
pub const SEGMENT_BYTES_MIN: u64 = 2 * (VALUE_BYTES_MAX as u64) + (64 << 10);

/// What a start needs beside segments, at the least: below that, commits are refused.
const START_BYTES: u64 = 32 << 20;

/// How a data directory is used.
#[derive(Debug, Clone)]
pub struct Options {
    pub data_dir: PathBuf,
    /// Who the node becomes if the directory is empty. Its cluster name must be that of the directory otherwise.
    pub new_identity: Identity,
    /// The engine that the directory was made with, or is to be made with.
    pub engine: EngineKind,
    /// Size of a segment of the log, [`SEGMENT_BYTES_MIN`] or more. Up to two segments more than
    /// `checkpoint_bytes` are on disk.
    pub segment_bytes: u64,
    /// Bytes of log after which a checkpoint is written: more is longer to replay, less is more syncs. The memory
    /// engine waits for as much log as its last snapshot has, if that is more.
    pub checkpoint_bytes: u64,
    /// Memory for the engine's cache.
    pub cache_bytes: u64,
    /// A commit with periodic durability is synced at most so much later.
    pub sync_interval: Duration,
    /// How long a process that has the directory is waited for: the one before this, which is about to end.
    pub lock_patience: Duration,
}

/// An open data directory: the log and the engine agree, and nothing is being written yet.
#[derive(Debug)]
pub struct NodeStorage {
    pub(super) data_dir: Arc<DataDir>,
    pub(super) found: Found,
    pub(super) log: CommitLog,
    pub(super) checkpoints: Checkpoints,
    pub(super) options: Options,
    pub(super) historian: Historian,
}

impl NodeStorage {
    /// Opens the data directory of a node, or makes an empty one that of a new node.
    pub fn open(options: &Options) -> Result<Self, OpenError> {
        if options.segment_bytes < SEGMENT_BYTES_MIN {
            return Err(OpenError::SegmentTooSmall { found: options.segment_bytes, min: SEGMENT_BYTES_MIN });
        }
        Self::open_checked(options)
    }

    /// Tests use smaller segments than records of any size allow.
    pub(super) fn open_checked(options: &Options) -> Result<Self, OpenError> {
        let data_dir = Arc::new(DataDir::lock(&options.data_dir, options.lock_patience)?);
        if data_dir.put_away()? {
            let path = data_dir.path().display();
            tracing::warn!(%path, "this directory was set aside: a new node begins in it, what it held is kept in set-aside.d");
        }
        make_room(&data_dir, options)?;
        let states = match data_dir.inspect()? {
            Some(states) => states,
            None => data_dir.create(options.new_identity.clone(), options.engine)?,
        };
        check_owner(&data_dir, &states, options)?;
        file::reread_from_disk(&data_dir.log())?;
        file::reread_from_disk(&data_dir.engine())?;
        let checkpoint = states.checkpoint;
        log::read(&data_dir.log(), checkpoint, &mut |_| {}).map_err(read_error)?;
        let engine = contained(&data_dir, || open_engine(&data_dir, checkpoint, options))?;
        data_dir.complete(&states)?;
        let mut found = states.found;
        found.generation = Generation(found.generation.0 + 1);
        found.lineage.begin(Nonce(rand::random()));
        let Found { generation, trusted_since, .. } = found;
        let lineage = found.lineage.clone();
        data_dir.save(&SavedState::Generation { generation, trusted_since, lineage })?;
        let checkpoints = Checkpoints {
            data_dir: Arc::clone(&data_dir),
            log_dir: data_dir.log(),
            engine,
            counters: Arc::default(),
        };
        let end = contained(&data_dir, || replay(&checkpoints, checkpoint))?;
        let log = begin_log(&checkpoints, end, options)?;
        found.hints = contained(&data_dir, || checkpoints.engine.hints().map_err(OpenError::Engine))?;
        // Of sled it never is.
        found.highest = contained(&data_dir, || checkpoints.engine.highest().map_err(OpenError::Engine))?;
        let historian = Historian::new(&found);
        Ok(Self { data_dir, found, log, checkpoints, options: options.clone(), historian })
    }

    /// What core starts from.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// The layouts that this node has taken up.
    pub fn history(&self) -> watch::Receiver<Arc<History>> {
        self.historian.watch()
    }

    /// For loads; only the committing thread applies.
    pub fn engine(&self) -> Arc<dyn Storage> {
        self.checkpoints.engine.clone()
    }

    pub fn counters(&self) -> Arc<Counters> {
        self.checkpoints.counters.clone()
    }
}

/// A start needs room for the log. What was set aside goes where it leaves none.
fn make_room(data_dir: &DataDir, options: &Options) -> Result<(), OpenError> {
    let path = data_dir.path();
    let Some(SetAside { bytes, .. }) = SetAside::of(path)? else { return Ok(()) };
    let available = DiskUsage::of(path)?.available;
    if available < START_BYTES + 2 * options.segment_bytes {
        tracing::warn!(bytes, available, "what was set aside is removed, it leaves no room for a start");
        SetAside::remove(path)?;
    }
    Ok(())
}

fn check_owner(data_dir: &DataDir, states: &States, options: &Options) -> Result<(), OpenError> {
    let Identity { node, actor, cluster_name } = &states.found.identity;
    let path = data_dir.path().to_owned();
    if states.engine != options.engine {
        return Err(OpenError::OtherEngine { path, found: states.engine, expected: options.engine });
    }
    if *cluster_name != options.new_identity.cluster_name {
        let expected = options.new_identity.cluster_name.clone();
        return Err(OpenError::OtherCluster { path, found: cluster_name.clone(), expected });
    }
    let Some((layout, _)) = &states.found.membership else { return Ok(()) };
    match layout.member(*node) {
        Some(member) if member.actor == *actor => Ok(()),
        _ => Err(OpenError::OtherNode { path, node: *node }),
    }
}

/// sled panics on some files that a power cut has left: that is damage like any other, said in a sentence.
fn contained<T>(data_dir: &DataDir, open: impl FnOnce() -> Result<T, OpenError>) -> Result<T, OpenError> {
    std::panic::catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text =
            text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no reason given");
        Err(engine_error(data_dir.engine(), EngineError::GaveUp(text.to_owned())))
    })
}

/// The engine, if it still has what the checkpoint says was made durable in it.
fn open_engine(
    data_dir: &Arc<DataDir>,
    checkpoint: Position,
    options: &Options,
) -> Result<Arc<dyn Storage>, OpenError> {
    let path = data_dir.engine();
    let expected = checkpoint.sequence;
    let exists = match options.engine {
        EngineKind::Sled => SledEngine::exists(&path),
        EngineKind::Lsm => LsmEngine::exists(&path),
        EngineKind::Memory => MemoryEngine::exists(&path),
    };
    if expected > 0 && !exists {
        return Err(OpenError::EngineBehind { path, found: 0, expected });
    }
    let buffered = |base: Box<dyn Base>| -> Arc<dyn Storage> {
        let engine = BufferedEngine::new(base, options.checkpoint_bytes);
        // A tree merges its tables for a while after everything else has ended.
        Arc::new(engine.in_locked(Arc::clone(data_dir)))
    };
    let engine: Result<Arc<dyn Storage>, _> = match options.engine {
        EngineKind::Sled => SledEngine::open(&path, options.cache_bytes).map(|base| buffered(Box::new(base))),
        EngineKind::Lsm => LsmEngine::open(&path, options.cache_bytes).map(|base| buffered(Box::new(base))),
        EngineKind::Memory => MemoryEngine::open(&path).map(|engine| Arc::new(engine) as _),
    };
    let engine = engine.map_err(|error| engine_error(path.clone(), error))?;
    let found = engine.flushed().map_err(|error| engine_error(path.clone(), error))?;
    if found < expected && !is_on(Mutant::StaleEnginesAreTrusted) {
        return Err(OpenError::EngineBehind { path, found, expected });
    }
    Ok(engine)
}

/// Merges everything behind the checkpoint into the engine and returns where the log ends.
fn replay(checkpoints: &Checkpoints, from: Position) -> Result<Position, OpenError> {
    let Checkpoints { log_dir, engine, counters, .. } = checkpoints;
    let mut failed: Result<(), EngineError> = Ok(());
    let end = log::read(log_dir, from, &mut |records| {
        if failed.is_err() {
            return;
        }
        match engine.replay(records) {
            Ok(damaged) => counters.records_damaged.add(damaged.len() as u64),
            Err(error) => failed = Err(error),
        }
        counters.records_applied.add(records.len() as u64);
        counters.records_replayed.add(records.len() as u64);
    })
    .map_err(read_error)?;
    failed.map_err(OpenError::Engine)?;
    counters.log_segments.set(end.segments);
    counters.log_sequence.set(end.position.sequence);
    tracing::info!(
        records = counters.records_replayed.get(),
        bytes = end.bytes,
        segments = end.segments,
        sequence = end.position.sequence,
        "commit log replayed"
    );
    Ok(end.position)
}

/// The first checkpoint makes what was replayed durable without the log; only then may a new segment say that the
/// log goes on behind it, since the tail that was read may never have been synced.
fn begin_log(checkpoints: &Checkpoints, end: Position, options: &Options) -> Result<CommitLog, OpenError> {
    if !is_on(Mutant::TailIsNotMadeDurable) {
        checkpoints.write(end).map_err(fatal_error)?;
    }
    let counters = checkpoints.counters.clone();
    let log = CommitLog::begin(&checkpoints.log_dir, options.segment_bytes, end, counters)?;
    checkpoints.counters.log_segments.add(1);
    checkpoints.write(log.position()).map_err(fatal_error)?;
    Ok(log)
}

fn read_error(error: ReadError) -> OpenError {
    match error {
        ReadError::Damaged(damaged) => damaged.into(),
        ReadError::Disk(error) => error.into(),
    }
}

fn engine_error(path: PathBuf, error: EngineError) -> OpenError {
    match error {
        EngineError::Sled(sled::Error::Io(_)) | EngineError::Disk(_) | EngineError::NoSpace(_) => {
            OpenError::Engine(error)
        }
        EngineError::Lsm(source) if lsm_engine::is_damage(&source) => {
            OpenError::EngineDamaged { path, source: EngineError::Lsm(source) }
        }
        EngineError::Lsm(_) | EngineError::Memory(_) => OpenError::Engine(error),
        source @ (EngineError::Sled(_) | EngineError::GaveUp(_) | EngineError::Snapshot { .. }) => {
            OpenError::EngineDamaged { path, source }
        }
    }
}

fn fatal_error(error: FatalError) -> OpenError {
    match error {
        FatalError::Disk(error) => error.into(),
        FatalError::Engine(error) => OpenError::Engine(error),
        FatalError::Panicked(_) => {
            unreachable!("a checkpoint written on this thread has no other failure")
        }
    }
}
