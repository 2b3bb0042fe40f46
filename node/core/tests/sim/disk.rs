//! The simulated disk of one machine: a log that is written and synced in groups, the records and hints that follow
//! from it, and small state files.
//!
//! What is synced survives everything but the faults that say otherwise. What is written survives the process, not
//! the machine's power: then any subset of it may be there. What waits survives nothing. A process sees (`load`) a
//! record only after its group was synced, or written where no commit of the group asked for more.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use keystore_core::effect::{Commit, Damaged, Entry, Hint, NoPage, NotCommitted, SaveId, SavedState};
use keystore_core::id::{Generation, Lineage, NodeId, Nonce};
use keystore_core::layout::Layout;
use keystore_core::message::{Page, ScanRange};
use keystore_core::partition::{PartitionCount, RecordKey};
use keystore_core::paxos::Votes;
use keystore_core::peers::PeerIdentities;
use keystore_core::quorum::Durability;
use keystore_core::record::Record;
use keystore_core::stamp::Stamp;
use keystore_core::transfer::Merges;

use crate::rng::Rng;

/// The small files.
#[derive(Debug, Default, Clone)]
pub(crate) struct State {
    pub(crate) generation: Generation,
    pub(crate) trusted_since: Generation,
    pub(crate) lineage: Lineage,
    pub(crate) ceiling_ms: u64,
    pub(crate) membership: Option<(Layout, bool)>,
    pub(crate) peers: PeerIdentities,
    pub(crate) votes: Votes,
    pub(crate) merges: Merges,
    /// No process may start from this disk again.
    pub(crate) is_set_aside: bool,
}

/// What the log comes to.
#[derive(Debug, Default, Clone)]
pub(crate) struct Content {
    records: BTreeMap<RecordKey, Record>,
    pub(crate) hints: BTreeMap<(NodeId, RecordKey), Hint>,
}

impl Content {
    /// What is read from a log may be below what is stored.
    fn replay(&mut self, entry: Entry) {
        match entry {
            Entry::Record { key, record } => {
                let merged = match self.records.remove(&key) {
                    Some(stored) => stored.merge(record),
                    None => record,
                };
                self.records.insert(key, merged);
            }
            other => self.apply(other),
        }
    }

    fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Record { key, record } | Entry::Replace { key, record: Some(record) } => {
                self.records.insert(key, record);
            }
            Entry::Replace { key, record: None } => {
                self.records.remove(&key);
            }
            Entry::Hint(hint) => {
                self.hints.insert((hint.target, hint.key.clone()), hint);
            }
            Entry::HintDone { target, key } => {
                self.hints.remove(&(target, key));
            }
        }
    }
}

#[derive(Debug, Default, Clone)]
pub(crate) struct Disk {
    pub(crate) state: State,
    synced: Content,
    /// What was synced before the disk was replaced by an older image of itself.
    lost: BTreeMap<RecordKey, Record>,
    /// What was answered as written, and went with the power before it was synced.
    lost_with_power: Vec<(RecordKey, Record)>,
    /// Keys of which something was stored that is not in what was committed after it.
    pub(crate) unmerged: Vec<RecordKey>,
    /// In the order in which it was written.
    written: Vec<Entry>,
    /// Being written and synced together, and whether there was no room for it: then nothing of it was written.
    group: Vec<(Commit, bool)>,
    waiting: VecDeque<Commit>,
    /// A group is being written, or is about to be.
    is_busy: bool,
    visible: Content,
    saves: VecDeque<(SaveId, SavedState)>,
    rotten: BTreeSet<RecordKey>,
    /// Of these, those whose place is gone as well.
    unreadable: BTreeSet<RecordKey>,
    /// Of these, the next read fails, and no other.
    failing: BTreeSet<RecordKey>,
    pub(crate) space: Space,
    /// No process can start from this log, and none has tried since.
    pub(crate) is_log_damaged: bool,
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

/// What the log takes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    #[default]
    Plenty,
    /// Nothing.
    Full,
    /// Now this commit, now not that one: what is short fits where what is long does not.
    ByTurns,
}

/// What has become of each commit of a group.
pub(crate) type Ended = Vec<(Commit, Result<Durability, NotCommitted>)>;

impl Disk {
    pub(crate) fn load(&mut self, key: &RecordKey) -> Result<Option<Record>, Damaged> {
        if self.failing.remove(key) || self.rotten.contains(key) {
            return Err(Damaged);
        }
        Ok(self.visible.records.get(key).cloned())
    }

    /// A page as an engine reads it.
    pub(crate) fn scan(&mut self, range: &ScanRange, partitions: PartitionCount) -> Result<Page, NoPage> {
        let is_wanted = |key: &&RecordKey| {
            key.partition(partitions) == range.partition
                && key.encoded().starts_with(&range.prefix)
                && range.after.as_ref().is_none_or(|after| key.place() > after.place())
        };
        let mut keys: Vec<_> = self.visible.records.keys().filter(is_wanted).collect();
        keys.sort_by_key(|key| key.place());
        let is_cut = keys.len() > range.limit as usize;
        keys.truncate(range.limit as usize);
        if let Some(key) = keys.iter().find(|key| self.rotten.contains(**key)) {
            return Err(NoPage::Damaged((*key).clone()));
        }
        if let Some(key) = keys.iter().find(|key| self.failing.contains(**key)) {
            self.failing.remove(*key);
            return Err(NoPage::Unreadable);
        }
        let entries =
            keys.into_iter().filter_map(|key| Some((key.clone(), self.visible.records.get(key)?.clone())));
        let entries = entries.collect();
        Ok(if is_cut { Page::cut(entries) } else { Page::whole(entries) })
    }

    /// What would be there after a loss of power at this moment, at the least.
    pub(crate) fn synced(&self, key: &RecordKey) -> Option<&Record> {
        self.synced.records.get(key).filter(|_| !self.rotten.contains(key))
    }

    /// No record has a stamp above this one.
    pub(crate) fn highest(&self) -> Stamp {
        let stamps = self.visible.records.values().map(|record| record.stamp);
        stamps.max().unwrap_or(Stamp::LOWEST)
    }

    pub(crate) fn visible(&self, key: &RecordKey) -> Option<&Record> {
        self.visible.records.get(key)
    }

    pub(crate) fn hints(&self) -> impl Iterator<Item = &Hint> {
        self.synced.hints.values()
    }

    /// Those that the running process has, synced or not.
    pub(crate) fn hints_kept(&self) -> impl Iterator<Item = &Hint> {
        self.visible.hints.values()
    }

    /// What was synced last, whether it can be read or not.
    pub(crate) fn synced_last(&self, key: &RecordKey) -> Option<&Record> {
        self.synced.records.get(key)
    }

    /// Both what is synced and what has been, before a fault took it away: a replica that has lost a record has
    /// held it, and counted with right until then.
    pub(crate) fn ever_synced(&self, key: &RecordKey) -> impl Iterator<Item = &Record> {
        self.synced.records.get(key).into_iter().chain(self.lost.get(key))
    }

    /// True if something of this key was here and is not, as is allowed for what was not to be synced.
    pub(crate) fn has_lost_with_power(&self, key: &RecordKey, is_it: impl Fn(&Record) -> bool) -> bool {
        self.lost_with_power.iter().any(|(lost, record)| lost == key && is_it(record))
    }

    /// The disk is replaced by an older image of itself.
    pub(crate) fn roll_back(&mut self, image: Self) {
        let lost = std::mem::take(&mut self.synced.records);
        *self = Self { lost, ..image };
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &RecordKey> {
        self.visible.records.keys()
    }

    /// True if the log was idle and has to be woken.
    pub(crate) fn append(&mut self, commit: Commit) -> bool {
        self.waiting.push_back(commit);
        !std::mem::replace(&mut self.is_busy, true)
    }

    /// Writes all that waits and has room; true if a sync has to follow before anything of it is visible.
    pub(crate) fn write_group(&mut self, rng: &mut Rng) -> bool {
        for commit in self.waiting.drain(..) {
            let is_refused = match self.space {
                Space::Plenty => false,
                Space::Full => true,
                Space::ByTurns => rng.chance(50),
            };
            if !is_refused {
                self.written.push(commit.entry.clone());
            }
            self.group.push((commit, is_refused));
        }
        self.group.iter().any(|(commit, _)| commit.durability == Durability::Synced)
    }

    /// Ends the group that was written, synced or not, and says what became of each commit.
    pub(crate) fn end_group(&mut self, is_synced: bool) -> Ended {
        let group = std::mem::take(&mut self.group);
        let asks =
            |(commit, is_refused): &(Commit, bool)| !is_refused && commit.durability == Durability::Synced;
        if is_synced && group.iter().any(asks) {
            self.sync();
        }
        let durability = if self.written.is_empty() { Durability::Synced } else { Durability::Periodic };
        let end = |(commit, is_refused): (Commit, bool)| {
            if is_refused {
                return (commit, Err(NotCommitted::Refused));
            }
            // A place that is gone takes nothing, until it is made anew.
            if let Entry::Record { key, .. } = &commit.entry
                && self.unreadable.contains(key)
            {
                return (commit, Err(NotCommitted::Damaged));
            }
            if let Entry::Record { key, .. } | Entry::Replace { key, .. } = &commit.entry {
                self.rotten.remove(key);
                self.failing.remove(key);
                self.unreadable.remove(key);
            }
            if let Entry::Record { key, record } = &commit.entry
                && let Some(stored) = self.visible.records.get(key)
                && stored.clone().merge(record.clone()).version() != record.version()
            {
                self.unmerged.push(key.clone());
            }
            self.visible.apply(commit.entry.clone());
            (commit, Ok(durability))
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
        self.keep_written(written);
    }

    fn keep_written(&mut self, written: Vec<Entry>) {
        if !self.lies {
            for entry in written {
                if let Entry::Replace { key, .. } = &entry
                    && let Some(record) = self.synced.records.get(key)
                {
                    self.lost.insert(key.clone(), record.clone());
                }
                if let Entry::Replace { key, .. } = &entry {
                    self.rotten.remove(key);
                    self.unreadable.remove(key);
                }
                self.synced.replay(entry);
            }
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
        self.failing.clear();
        self.is_busy = false;
        let written = std::mem::take(&mut self.written);
        // Those of the last group were not answered yet.
        let unanswered = std::mem::take(&mut self.group).iter().filter(|(_, is_refused)| !is_refused).count();
        let (before, answered) = (written.len(), written.len().saturating_sub(unanswered));
        let cut = (ending == Ending::PowerLost && rng.chance(50)).then(|| rng.index(before + 1));
        let mut kept = Vec::new();
        for (at, entry) in written.into_iter().enumerate() {
            if ending == Ending::Killed || cut.map_or_else(|| rng.chance(50), |cut| at < cut) {
                kept.push(entry);
            } else if let (Entry::Record { key, record }, true) = (entry, at < answered) {
                self.lost_with_power.push((key, record));
            }
        }
        let lost = before - kept.len();
        self.keep_written(kept);
        self.visible = Content::default();
        let survivors = rng.index(self.saves.len() + 1);
        for (_, state) in std::mem::take(&mut self.saves).into_iter().take(survivors) {
            self.keep(state);
        }
        lost
    }

    /// What a start does before anything is served: the log's tail is synced, the generation raised.
    pub(crate) fn recover(&mut self, nonce: Nonce) {
        self.state.generation.0 += 1;
        self.state.lineage.begin(nonce);
        self.visible = self.synced.clone();
    }

    /// A stored record can no longer be read; true if there was one.
    pub(crate) fn rot(&mut self, key: &RecordKey, is_place_gone: bool) -> bool {
        let is_new = self.visible.records.contains_key(key) && self.rotten.insert(key.clone());
        if is_new && is_place_gone {
            self.unreadable.insert(key.clone());
        }
        is_new
    }

    /// The next read of a stored record fails; true if there is one.
    pub(crate) fn fail_next_read(&mut self, key: &RecordKey) -> bool {
        self.visible.records.contains_key(key)
            && !self.rotten.contains(key)
            && self.failing.insert(key.clone())
    }

    /// True if something that is stored cannot be read, or will not be the next time.
    pub(crate) fn has_damage(&self) -> bool {
        !self.rotten.is_empty() || !self.failing.is_empty()
    }

    pub(crate) fn is_rotten(&self, key: &RecordKey) -> bool {
        self.rotten.contains(key)
    }

    /// True if what is stored can be read, and will be the next time.
    pub(crate) fn is_readable(&self, key: &RecordKey) -> bool {
        !self.rotten.contains(key) && !self.failing.contains(key)
    }

    fn keep(&mut self, state: SavedState) {
        match state {
            SavedState::StampCeiling(ms) => self.state.ceiling_ms = self.state.ceiling_ms.max(ms),
            SavedState::Votes(votes) => self.state.votes = votes,
            SavedState::Merges(merges) => self.state.merges = merges,
            SavedState::Layout { layout, decided } => self.state.membership = Some((layout, decided)),
            SavedState::Peers(peers) => self.state.peers = peers,
            SavedState::Generation { generation, trusted_since, lineage } => {
                self.state.lineage = lineage;
                self.state.generation = generation;
                self.state.trusted_since = trusted_since;
            }
            SavedState::SetAside => self.state.is_set_aside = true,
        }
    }
}
