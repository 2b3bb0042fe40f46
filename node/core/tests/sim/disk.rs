//! The simulated disk of one machine: a log and small state files, each with what is durable and what is on its way.
//!
//! A crash keeps what was durable and a random prefix of what was being written, in order. The engine holds what
//! was committed, and after a start what the log holds.

use std::collections::{BTreeMap, VecDeque};

use keystore_core::effect::{Commit, SaveId, SavedState};
use keystore_core::id::Generation;
use keystore_core::layout::Layout;
use keystore_core::partition::RecordKey;
use keystore_core::peers::PeerIdentities;
use keystore_core::record::Record;

use crate::rng::Rng;

#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) generation: Generation,
    pub(crate) ceiling_ms: u64,
    pub(crate) membership: Option<(Layout, bool)>,
    pub(crate) peers: PeerIdentities,
    log: Vec<(RecordKey, Record)>,
    engine: BTreeMap<RecordKey, Record>,
    commits: VecDeque<Commit>,
    saves: VecDeque<(SaveId, SavedState)>,
    /// A broken disk: it says that it has synced and has not. For the test that shows that such a loss is noticed.
    pub(crate) lies: bool,
}

impl Disk {
    pub(crate) fn load(&self, key: &RecordKey) -> Option<Record> {
        self.engine.get(key).cloned()
    }

    pub(crate) fn append(&mut self, commit: Commit) {
        self.commits.push_back(commit);
    }

    pub(crate) fn begin_save(&mut self, save: SaveId, state: SavedState) {
        self.saves.push_back((save, state));
    }

    /// Makes the oldest waiting commit durable and visible.
    pub(crate) fn sync_one(&mut self) -> Option<Commit> {
        let commit = self.commits.pop_front()?;
        if !self.lies {
            self.log.push((commit.key.clone(), commit.record.clone()));
        }
        self.store(commit.key.clone(), commit.record.clone());
        Some(commit)
    }

    pub(crate) fn finish_save(&mut self) -> Option<SaveId> {
        let (save, state) = self.saves.pop_front()?;
        self.keep(state);
        Some(save)
    }

    /// The process or the machine is gone.
    pub(crate) fn crash(&mut self, rng: &mut Rng) {
        let survivors = rng.index(self.commits.len() + 1);
        for commit in std::mem::take(&mut self.commits).into_iter().take(survivors) {
            self.log.push((commit.key, commit.record));
        }
        let survivors = rng.index(self.saves.len() + 1);
        for (_, state) in std::mem::take(&mut self.saves).into_iter().take(survivors) {
            self.keep(state);
        }
        self.engine.clear();
    }

    /// What a start does before anything is served.
    pub(crate) fn recover(&mut self) {
        self.generation.0 += 1;
        for (key, record) in self.log.clone() {
            self.store(key, record);
        }
    }

    fn store(&mut self, key: RecordKey, record: Record) {
        let merged = match self.engine.remove(&key) {
            Some(stored) => stored.merge(record),
            None => record,
        };
        self.engine.insert(key, merged);
    }

    fn keep(&mut self, state: SavedState) {
        match state {
            SavedState::StampCeiling(ms) => self.ceiling_ms = self.ceiling_ms.max(ms),
            SavedState::Layout { layout, decided } => self.membership = Some((layout, decided)),
            SavedState::Peers(peers) => self.peers = peers,
        }
    }
}
