//! The data directory: whose it is, that one process has it, and that every small state in it is whole.
//!
//! [`DataDir::inspect`] only reads. A directory either is empty, or belongs to a node and every state is whole, or
//! is refused; a damaged identity is never replaced. A new node's states are written before its identity, so a
//! crash while one is made leaves a directory that still counts as empty.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use keystore_core::effect::SavedState;
use keystore_core::history::History;
use keystore_core::id::{Generation, Lineage};
use keystore_core::paxos::Votes;
use keystore_core::peers::PeerIdentities;
use keystore_core::transfer::Merges;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::engine::EngineKind;
use super::error::OpenError;
use super::file::{self, DiskError, NEW_SUFFIX};
use super::found::{
    Found, Identity, decode_engine, decode_generation, decode_history, decode_identity, decode_membership,
    decode_merges, decode_number, decode_peers, decode_position, decode_votes, encode_generation,
    encode_history, encode_identity, encode_membership, encode_merges, encode_number, encode_peers,
    encode_position, encode_saved, encode_votes,
};
use super::log::{self, Position};
use super::state::{self, Kind, StateError};

const LOG: &str = "log";
const ENGINE: &str = "engine";
/// What a node held that has departed, or whose disk was rolled back or is a copy: the latest such.
pub(super) const AWAY: &str = "set-aside.d";
const MOVING_AWAY: &str = "set-aside.d.new";
/// What mkfs leaves in the root of a volume.
const LOST_AND_FOUND: &str = "lost+found";
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// A data directory that no other process uses.
#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
    /// The lock is on the directory itself and ends with the process.
    _lock: File,
}

/// The whole of the small states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct States {
    /// With the generation of the last start.
    pub(super) found: Found,
    pub(super) checkpoint: Position,
    pub(super) engine: EngineKind,
}

impl States {
    fn new(identity: Identity, engine: EngineKind) -> Self {
        let found = Found {
            identity,
            generation: Generation(0),
            trusted_since: Generation(0),
            lineage: Lineage::default(),
            stamp_ceiling_ms: 0,
            membership: None,
            peers: PeerIdentities::new(),
            votes: Votes::default(),
            merges: Merges::default(),
            history: History::default(),
            hints: Vec::new(),
            highest: None,
        };
        Self { found, checkpoint: Position::default(), engine }
    }
}

impl DataDir {
    /// Takes the directory, which is made if it is missing; waits so long for another process to give it up.
    pub(super) fn lock(path: &Path, patience: Duration) -> Result<Self, OpenError> {
        fs::create_dir_all(path).map_err(|error| DiskError::new("create the directory", path, error))?;
        let lock = File::open(path).map_err(|error| DiskError::new("open", path, error))?;
        let begun = Instant::now();
        let mut is_told = false;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { path: path.to_owned(), _lock: lock }),
                Err(Errno::WOULDBLOCK) if begun.elapsed() < patience => {}
                Err(Errno::WOULDBLOCK) => return Err(OpenError::InUse(path.to_owned())),
                Err(error) => return Err(DiskError::new("lock", path, error.into()).into()),
            }
            if !std::mem::replace(&mut is_told, true) {
                let path = path.display();
                tracing::warn!(%path, ?patience, "another process has the data directory, waiting for its end");
            }
            thread::sleep(LOCK_RETRY);
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path.join(LOG)
    }

    pub(super) fn engine(&self) -> PathBuf {
        self.path.join(ENGINE)
    }

    /// Reads and checks everything but the content of log and engine. `None`: the directory is empty.
    pub(super) fn inspect(&self) -> Result<Option<States>, OpenError> {
        self.refuse_foreign()?;
        if self.path.join(Kind::Identity.file_name()).exists() {
            return self.read_states().map(Some);
        }
        self.refuse_without_identity()?;
        Ok(None)
    }

    /// Puts away what is in a directory that was set aside, in place of what was put away before: what is left is empty.
    /// Returns true if there was something. A crash in the middle of it is followed by the rest at the next start.
    pub(super) fn put_away(&self) -> Result<bool, DiskError> {
        let mark = self.path.join(Kind::SetAside.file_name());
        // Even a mark that is not whole is one: nothing else writes a file of that name.
        if !mark.exists() {
            return Ok(false);
        }
        let (away, moving) = (self.path.join(AWAY), self.path.join(MOVING_AWAY));
        let stays = |name: &str| {
            [LOST_AND_FOUND, AWAY, MOVING_AWAY].contains(&name) || name == Kind::SetAside.file_name()
        };
        for name in file::list(&self.path)?.into_iter().filter(|name| !stays(name)) {
            file::create_directory(&moving)?;
            let (from, to) = (self.path.join(&name), moving.join(&name));
            fs::rename(&from, &to).map_err(|error| DiskError::new("move", &from, error))?;
        }
        if moving.exists() {
            if away.exists() {
                fs::remove_dir_all(&away).map_err(|error| DiskError::new("remove", &away, error))?;
            }
            fs::rename(&moving, &away).map_err(|error| DiskError::new("move", &moving, error))?;
            file::sync_directory(&self.path)?;
        }
        fs::remove_file(&mark).map_err(|error| DiskError::new("remove", &mark, error))?;
        file::sync_directory(&self.path)?;
        Ok(true)
    }

    /// Makes an empty directory that of a new node.
    pub(super) fn create(&self, identity: Identity, engine: EngineKind) -> Result<States, DiskError> {
        let states = States::new(identity, engine);
        file::create_directory(&self.log())?;
        file::create_directory(&self.engine())?;
        for (kind, payload) in payloads(&states) {
            state::write(&self.path, kind, &payload)?;
        }
        state::write(&self.path, Kind::Identity, &encode_identity(&states.found.identity))?;
        file::sync_directories_above(&self.path)?;
        Ok(states)
    }

    pub(super) fn save(&self, saved: &SavedState) -> Result<(), DiskError> {
        let (kind, payload) = encode_saved(saved);
        state::write(&self.path, kind, &payload)
    }

    pub(super) fn save_history(&self, history: &History) -> Result<(), DiskError> {
        state::write(&self.path, Kind::History, &encode_history(history))
    }

    fn refuse_foreign(&self) -> Result<(), OpenError> {
        for name in file::list(&self.path)? {
            let state = name.strip_suffix(NEW_SUFFIX).unwrap_or(&name);
            let is_state = Kind::ALL.iter().any(|kind| kind.file_name() == state);
            if !is_state && ![LOG, ENGINE, AWAY, MOVING_AWAY, LOST_AND_FOUND].contains(&name.as_str()) {
                return Err(OpenError::Foreign(self.path.join(name)));
            }
        }
        let spare = log::spare_path(&self.log());
        for name in list_if_there(&self.log())? {
            let path = self.log().join(&name);
            if log::from_name(&name).is_none() && path != spare {
                return Err(OpenError::Foreign(path));
            }
        }
        Ok(())
    }

    /// Writes what the first release did not, so that whatever is missing later has been lost. What tells its directories
    /// from others comes last: a crash leaves one of the first release.
    pub(super) fn complete(&self, states: &States) -> Result<(), DiskError> {
        for (kind, payload) in payloads(states).into_iter().rev() {
            if !self.path.join(kind.file_name()).exists() {
                state::write(&self.path, kind, &payload)?;
            }
        }
        Ok(())
    }

    fn read_states(&self) -> Result<States, OpenError> {
        // The first release had one engine and no such file; nor did it decide on any layout but the first.
        let engine = match self.read(Kind::Engine, decode_engine) {
            Err(OpenError::State { problem: StateError::Missing, .. }) => None,
            read => Some(read?),
        };
        let (generation, trusted_since, lineage) = self.read(Kind::Generation, decode_generation)?;
        let found = Found {
            identity: self.read(Kind::Identity, decode_identity)?,
            generation,
            trusted_since,
            lineage,
            stamp_ceiling_ms: self.read(Kind::StampCeiling, decode_number)?,
            membership: self.read(Kind::Layout, decode_membership)?,
            peers: self.read(Kind::Peers, decode_peers)?,
            votes: or_first_release(self.read(Kind::Votes, decode_votes), engine)?,
            merges: or_first_release(self.read(Kind::Merges, decode_merges), engine)?,
            history: self.read_history(),
            // These are in the engine, which is not open yet.
            hints: Vec::new(),
            highest: None,
        };
        let checkpoint = self.read(Kind::Checkpoint, decode_position)?;
        for directory in [self.log(), self.engine()] {
            if !directory.is_dir() {
                return Err(OpenError::State { path: directory, problem: StateError::Missing });
            }
        }
        Ok(States { found, checkpoint, engine: engine.unwrap_or(EngineKind::Sled) })
    }

    /// Nobody needs it: one that cannot be read is begun anew.
    fn read_history(&self) -> History {
        match self.read(Kind::History, decode_history) {
            Ok(history) => history,
            Err(OpenError::State { problem: StateError::Missing, .. }) => History::default(),
            Err(error) => {
                tracing::warn!(%error, "the history of layouts cannot be read, and is begun anew");
                History::default()
            }
        }
    }

    fn read<T>(&self, kind: Kind, parse: fn(&[u8]) -> Result<T, StateError>) -> Result<T, OpenError> {
        let path = self.path.join(kind.file_name());
        let content = file::read(&path)?;
        let content = content.as_deref().ok_or(StateError::Missing);
        content
            .and_then(|content| state::decode(kind, content))
            .and_then(parse)
            .map_err(|problem| OpenError::State { path, problem })
    }

    /// Without an identity there may only be what [`DataDir::create`] had written before a crash.
    fn refuse_without_identity(&self) -> Result<(), OpenError> {
        let refuse = || Err(OpenError::NoIdentity(self.path.clone()));
        let nobody =
            Identity { node: Default::default(), actor: Default::default(), cluster_name: String::new() };
        let possible = [EngineKind::Sled, EngineKind::Lsm, EngineKind::Memory]
            .map(|engine| States::new(nobody.clone(), engine));
        for kind in Kind::ALL {
            let Some(content) = file::read(&self.path.join(kind.file_name()))? else { continue };
            let mut new = possible.iter().flat_map(payloads);
            if !new.any(|(found, payload)| found == kind && content == state::encode(kind, &payload)) {
                return refuse();
            }
        }
        if !list_if_there(&self.log())?.is_empty() || !list_if_there(&self.engine())?.is_empty() {
            return refuse();
        }
        Ok(())
    }
}

/// Every state but the identity.
fn payloads(states: &States) -> [(Kind, Vec<u8>); 8] {
    let States { found, checkpoint, engine } = states;
    let membership = found.membership.as_ref().map(|(layout, decided)| (layout, *decided));
    [
        (Kind::Engine, engine.name().as_bytes().to_vec()),
        (Kind::Generation, encode_generation(found.generation, found.trusted_since, &found.lineage)),
        (Kind::StampCeiling, encode_number(found.stamp_ceiling_ms)),
        (Kind::Layout, encode_membership(membership)),
        (Kind::Peers, encode_peers(&found.peers)),
        (Kind::Checkpoint, encode_position(*checkpoint)),
        (Kind::Votes, encode_votes(&found.votes)),
        (Kind::Merges, encode_merges(&found.merges)),
    ]
}

/// Of a state that the first release did not have, and so no name of an engine beside it.
fn or_first_release<T: Default>(
    read: Result<T, OpenError>,
    engine: Option<EngineKind>,
) -> Result<T, OpenError> {
    match read {
        Err(OpenError::State { problem: StateError::Missing, .. }) if engine.is_none() => Ok(T::default()),
        read => read,
    }
}

fn list_if_there(directory: &Path) -> Result<Vec<String>, DiskError> {
    if directory.exists() { file::list(directory) } else { Ok(Vec::new()) }
}
