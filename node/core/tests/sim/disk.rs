//! The simulated disk of one machine: a log that is written and synced in groups, the records that follow from it,
//! and small state files.
//!
//! What is synced survives everything but the faults that say otherwise. What is written survives the process, not
//! the machine's power: then any subset of it may be there. What waits survives nothing. A process sees (`load`) a
//! record only after its group was synced, or written where no commit of the group asked for more.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use keystore_core::effect::{Commit, CommitId, CommitRefused, Damaged, SaveId, SavedState};
use keystore_core::id::Generation;
use keystore_core::layout::Layout;
use keystore_core::partition::RecordKey;
use keystore_core::peers::PeerIdentities;
use keystore_core::quorum::Durability;
use keystore_core::record::Record;

use crate::rng::Rng;

type Records = BTreeMap<RecordKey, Record>;

/// The small files.
#[derive(Debug, Default, Clone)]
pub(crate) struct State {
    pub(crate) generation: Generation,
    pub(crate) ceiling_ms: u64,
    pub(crate) membership: Option<(Layout, bool)>,
    pub(crate) peers: PeerIdentities,
}

#[derive(Debug, Default, Clone)]
pub(crate) struct Disk {
    pub(crate) state: State,
    synced: Records,
    /// What was synced before the disk was replaced by an older image of itself.
    lost: Records,
    /// In the order in which it was written.
    written: Vec<(RecordKey, Record)>,
    /// Being written and synced together.
    group: Vec<Commit>,
    /// The disk was full when the group came: nothing of it was written.
    is_refused: bool,
    waiting: VecDeque<Commit>,
    /// A group is being written, or is about to be.
    is_busy: bool,
    visible: Records,
    saves: VecDeque<(SaveId, SavedState)>,
    rotten: BTreeSet<RecordKey>,
    /// No more commits are taken.
    pub(crate) is_full: bool,
    /// A broken disk: it says that it has synced and has not. For the test that shows that such a loss is noticed.
    pub(crate) lies: bool,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It was killed: the machine goes on.
    Killed,
    /// The machine lost its power, or a sync failed, which leaves as little to rely on.
    PowerLost,
}

pub(crate) type Ended = Vec<(CommitId, Result<Durability, CommitRefused>)>;

impl Disk {
    pub(crate) fn load(&self, key: &RecordKey) -> Result<Option<Record>, Damaged> {
        if self.rotten.contains(key) { Err(Damaged) } else { Ok(self.visible.get(key).cloned()) }
    }

    /// What would be there after a loss of power at this moment, at the least.
    pub(crate) fn synced(&self, key: &RecordKey) -> Option<&Record> {
        self.synced.get(key).filter(|_| !self.rotten.contains(key))
    }

    /// Both what is synced and what has been, before a fault took it away: a replica that has lost a record has
    /// held it, and counted with right until then.
    pub(crate) fn ever_synced(&self, key: &RecordKey) -> impl Iterator<Item = &Record> {
        self.synced.get(key).into_iter().chain(self.lost.get(key))
    }

    /// The disk is replaced by an older image of itself.
    pub(crate) fn roll_back(&mut self, image: Self) {
        let lost = std::mem::take(&mut self.synced);
        *self = Self { lost, ..image };
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &RecordKey> {
        self.visible.keys()
    }

    /// True if the log was idle and has to be woken.
    pub(crate) fn append(&mut self, commit: Commit) -> bool {
        self.waiting.push_back(commit);
        !std::mem::replace(&mut self.is_busy, true)
    }

    /// Writes all that waits; true if a sync has to follow before anything of it is visible.
    pub(crate) fn write_group(&mut self) -> bool {
        self.group = self.waiting.drain(..).collect();
        self.is_refused = self.is_full;
        if !self.is_refused {
            self.written.extend(self.group.iter().map(|c| (c.key.clone(), c.record.clone())));
        }
        self.group.iter().any(|commit| commit.durability == Durability::Synced)
    }

    /// Ends the group that was written, synced or not, and says what became of each commit.
    pub(crate) fn end_group(&mut self, is_synced: bool) -> Ended {
        let group = std::mem::take(&mut self.group);
        if self.is_refused {
            return group.into_iter().map(|commit| (commit.id, Err(CommitRefused))).collect();
        }
        if is_synced {
            self.sync();
        }
        let durability = if self.written.is_empty() { Durability::Synced } else { Durability::Periodic };
        let end = |commit: Commit| {
            self.rotten.remove(&commit.key);
            self.visible.insert(commit.key, commit.record);
            (commit.id, Ok(durability))
        };
        group.into_iter().map(end).collect()
    }

    /// True if another group is to be written now; else the log is idle.
    pub(crate) fn goes_on(&mut self) -> bool {
        self.is_busy = !self.waiting.is_empty();
        self.is_busy
    }

    pub(crate) fn sync(&mut self) {
        let written = std::mem::take(&mut self.written);
        if !self.lies {
            self.synced.extend(written);
        }
    }

    pub(crate) fn begin_save(&mut self, save: SaveId, state: SavedState) {
        self.saves.push_back((save, state));
    }

    pub(crate) fn finish_save(&mut self) -> Option<SaveId> {
        let (save, state) = self.saves.pop_front()?;
        self.keep(state);
        Some(save)
    }

    /// The process is gone; returns how many written entries were lost with it.
    pub(crate) fn crash(&mut self, ending: Ending, rng: &mut Rng) -> usize {
        self.waiting.clear();
        self.group.clear();
        self.is_busy = false;
        let mut written = std::mem::take(&mut self.written);
        let before = written.len();
        match ending {
            Ending::Killed => {}
            Ending::PowerLost if rng.chance(50) => written.truncate(rng.index(before + 1)),
            Ending::PowerLost => written.retain(|_| rng.chance(50)),
        }
        let lost = before - written.len();
        if !self.lies {
            self.synced.extend(written);
        }
        self.visible.clear();
        let survivors = rng.index(self.saves.len() + 1);
        for (_, state) in std::mem::take(&mut self.saves).into_iter().take(survivors) {
            self.keep(state);
        }
        lost
    }

    /// What a start does before anything is served: the log's tail is synced, the generation raised.
    pub(crate) fn recover(&mut self) {
        self.state.generation.0 += 1;
        self.visible = self.synced.clone();
    }

    /// A stored record can no longer be read; true if there was one.
    pub(crate) fn rot(&mut self, key: &RecordKey) -> bool {
        self.visible.contains_key(key) && self.rotten.insert(key.clone())
    }

    pub(crate) fn is_rotten(&self, key: &RecordKey) -> bool {
        self.rotten.contains(key)
    }

    fn keep(&mut self, state: SavedState) {
        match state {
            SavedState::StampCeiling(ms) => self.state.ceiling_ms = self.state.ceiling_ms.max(ms),
            SavedState::Layout { layout, decided } => self.state.membership = Some((layout, decided)),
            SavedState::Peers(peers) => self.state.peers = peers,
        }
    }
}
