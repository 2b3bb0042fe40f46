//! Leaves nothing of some partitions: what a node holds of them is from before it became a replica of them, and must
//! neither count nor come up again; or it is no replica of them any more, and wants the space.
//!
//! Page by page, each record's end goes through the log like a write. Nothing of these partitions is being written while
//! this goes on, so that an empty partition stays empty.
//!
//! What cannot be read cannot be cleared, since nobody knows what is there. That holds up nothing: the partition is left
//! as it is, and said to be ([`Clearing::unreadable`]); whoever needs it empty must not count it.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;

use crate::context::EffectIds;
use crate::effect::{Commit, CommitId, Effect, Entry, LoadId, NoPage, NotCommitted};
use crate::message::{Page, ScanRange};
use crate::mutant::{Mutant, is_on};
use crate::partition::{Partition, RecordKey};
use crate::quorum::Durability;

/// How many records are cleared at a time.
const PAGE_RECORDS: u32 = 512;
/// The same where nobody waits for it, and others do for the disk.
const BACKGROUND_RECORDS: u32 = 64;
/// How long nothing is tried again after the disk has refused.
const PAUSE_MS: u64 = 500;
/// How often a partition is tried in which something cannot be read, before it is left as it is.
const TRIES: u32 = 4;

#[derive(Debug)]
pub(crate) struct Clearing {
    partitions: VecDeque<Partition>,
    /// The page that is being read.
    load: Option<LoadId>,
    /// What is being written.
    commits: BTreeSet<CommitId>,
    /// Nothing is tried before this moment.
    from_ms: u64,
    cleared: u64,
    page_records: u32,
    /// How often the first of the partitions was tried in vain.
    tries: u32,
    /// Up to which key it was read, since it was begun from its beginning. That is done until nothing is found.
    behind: Option<RecordKey>,
    is_found: bool,
    /// Something of the page that is being written has no place any more.
    is_stuck: bool,
    unreadable: BTreeSet<Partition>,
}

impl Clearing {
    pub(crate) fn new(partitions: impl IntoIterator<Item = Partition>) -> Self {
        Self {
            partitions: partitions.into_iter().collect(),
            load: None,
            commits: BTreeSet::new(),
            from_ms: 0,
            cleared: 0,
            page_records: PAGE_RECORDS,
            tries: 0,
            behind: None,
            is_found: false,
            is_stuck: false,
            unreadable: BTreeSet::new(),
        }
    }

    /// In small pages.
    pub(crate) fn in_the_background(partitions: impl IntoIterator<Item = Partition>) -> Self {
        Self { page_records: BACKGROUND_RECORDS, ..Self::new(partitions) }
    }

    /// What is left to be cleared.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = Partition> {
        self.partitions.iter().copied()
    }

    /// Goes on with one of those that may be cleared; false if there is none.
    pub(crate) fn turn_to(&mut self, may_go: impl Fn(Partition) -> bool) -> bool {
        if self.load.is_some() || !self.commits.is_empty() {
            return true;
        }
        let Some(at) = self.partitions.iter().position(|partition| may_go(*partition)) else { return false };
        if at > 0 {
            self.partitions.rotate_left(at);
            self.begin();
        }
        true
    }

    pub(crate) fn is_done(&self) -> bool {
        self.partitions.is_empty()
    }

    /// Of which something could not be read, so that it may still hold whatever it held.
    pub(crate) fn unreadable(&self) -> &BTreeSet<Partition> {
        &self.unreadable
    }

    pub(crate) fn cleared(&self) -> u64 {
        self.cleared
    }

    /// When there is something to do that nothing else wakes up for.
    pub(crate) fn next_wakeup_ms(&self) -> Option<u64> {
        (!self.is_done() && self.load.is_none() && self.commits.is_empty()).then_some(self.from_ms)
    }

    /// True if it waits for nothing.
    pub(crate) fn is_due(&self, now_ms: u64) -> bool {
        self.next_wakeup_ms().is_some_and(|from_ms| from_ms <= now_ms)
    }

    /// Reads a page, if it waits for nothing.
    pub(crate) fn go_on(&mut self, now_ms: u64, ids: &mut EffectIds, effects: &mut Vec<Effect>) {
        let Some(partition) = self.partitions.front().copied().filter(|_| self.is_due(now_ms)) else {
            return;
        };
        let load = ids.next_load();
        self.load = Some(load);
        let after = self.behind.clone();
        let range = ScanRange { partition, prefix: Bytes::new(), after, limit: self.page_records };
        effects.push(Effect::Scan { load, range });
    }

    /// True if the page is one of ours.
    pub(crate) fn scanned(
        &mut self,
        load: LoadId,
        page: &Result<Page, NoPage>,
        (now_ms, ids): (u64, &mut EffectIds),
        effects: &mut Vec<Effect>,
    ) -> bool {
        if self.load != Some(load) {
            return false;
        }
        self.load = None;
        match page {
            Ok(page) => {
                let keys: Vec<_> = page.entries.iter().map(|(key, _)| key).collect();
                self.is_found |= !keys.is_empty();
                self.end(&keys, ids, effects);
                self.behind = page.until.as_ref().map(RecordKey::detached);
                if self.behind.is_none() && !std::mem::take(&mut self.is_found) {
                    self.next();
                }
            }
            Err(NoPage::Damaged(key)) => {
                self.is_found = true;
                self.end(&[key], ids, effects);
            }
            Err(NoPage::Unreadable) => self.try_again(now_ms),
        }
        true
    }

    fn next(&mut self) {
        self.partitions.pop_front();
        self.begin();
    }

    fn begin(&mut self) {
        self.tries = 0;
        self.behind = None;
        self.is_found = false;
    }

    fn try_again(&mut self, now_ms: u64) {
        self.tries += 1;
        self.from_ms = now_ms + PAUSE_MS;
        if self.tries >= TRIES {
            self.unreadable.extend(self.partitions.front());
            self.next();
        }
    }

    /// Synced, so that what is not to be seen any more is off the disk: whoever finds a partition empty, and takes up a layout
    /// by which it counts as such, must not find anything there after a crash.
    fn end(&mut self, keys: &[&RecordKey], ids: &mut EffectIds, effects: &mut Vec<Effect>) {
        for key in keys {
            let id = ids.next_commit();
            self.commits.insert(id);
            self.cleared += 1;
            let entry = Entry::Replace { key: (*key).clone(), record: None };
            let durability = match is_on(Mutant::ClearedIsNotSynced) {
                true => Durability::Periodic,
                false => Durability::Synced,
            };
            effects.push(Effect::Commit(Commit { id, entry, durability }));
        }
    }

    /// True if the commit is one of ours.
    pub(crate) fn committed(
        &mut self,
        commit: CommitId,
        outcome: Result<Durability, NotCommitted>,
        now_ms: u64,
    ) -> bool {
        if !self.commits.remove(&commit) {
            return false;
        }
        match outcome {
            Ok(_) => {}
            Err(NotCommitted::Refused) => self.from_ms = now_ms + PAUSE_MS,
            // Its place takes nothing any more, not even its end.
            Err(NotCommitted::Damaged) => self.is_stuck = true,
        }
        if self.commits.is_empty() && std::mem::take(&mut self.is_stuck) {
            self.try_again(now_ms);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Body, Record};
    use crate::stamp::Stamp;

    fn page_in(effects: &mut Vec<Effect>) -> Option<(LoadId, Partition)> {
        effects.drain(..).find_map(|effect| match effect {
            Effect::Scan { load, range } => Some((load, range.partition)),
            _ => None,
        })
    }

    #[test]
    fn a_partition_is_cleared_once_nothing_is_found_from_its_beginning_to_its_end() {
        let key = |n: u32| RecordKey::new("default", &n.to_be_bytes()).unwrap();
        let stamp = Stamp::LOWEST;
        let records = |keys: &[u32]| -> Vec<_> {
            keys.iter().map(|n| (key(*n), Record { stamp, body: Body::Tombstone })).collect()
        };
        let until = |n| Some(key(n));
        // What is found, up to where, and from where it goes on.
        let pages = [
            (Page::cut(records(&[1, 2])), until(2)),
            (Page { entries: Vec::new(), until: until(3) }, until(3)),
            (Page::whole(records(&[4])), None),
            // Something of before, which has come in between.
            (Page::cut(records(&[1])), until(1)),
            (Page::whole(Vec::new()), None),
            (Page { entries: Vec::new(), until: until(4) }, until(4)),
        ];
        let mut clearing = Clearing::new([Partition(1)]);
        let (mut ids, mut effects) = (EffectIds::default(), Vec::new());
        let mut from = None;
        for (page, behind) in pages {
            clearing.go_on(0, &mut ids, &mut effects);
            let Some(Effect::Scan { load, range }) = effects.pop() else { panic!("{clearing:?}") };
            assert_eq!(range.after, from);
            assert!(!clearing.is_due(60_000), "it waits for what is read");
            let found = page.entries.len();
            assert!(clearing.scanned(load, &Ok(page), (0, &mut ids), &mut effects));
            let ended = std::mem::take(&mut effects);
            assert_eq!(ended.len(), found);
            for effect in ended {
                let Effect::Commit(Commit { id, .. }) = effect else { panic!("{effect:?}") };
                assert!(clearing.committed(id, Ok(Durability::Synced), 0));
            }
            from = behind;
        }
        clearing.go_on(0, &mut ids, &mut effects);
        let Some(Effect::Scan { load, .. }) = effects.pop() else { panic!("{clearing:?}") };
        assert!(clearing.scanned(load, &Ok(Page::default()), (0, &mut ids), &mut effects));
        assert!(clearing.is_done());
        assert_eq!(clearing.cleared(), 4);
    }

    #[test]
    fn what_cannot_be_read_is_left_and_holds_up_nothing_behind_it() {
        let partitions = [Partition(1), Partition(2)];
        for mut clearing in [Clearing::new(partitions), Clearing::in_the_background(partitions)] {
            let (mut ids, mut effects) = (EffectIds::default(), Vec::new());
            for now_ms in (0..).step_by(1_000).take(10) {
                clearing.go_on(now_ms, &mut ids, &mut effects);
                let Some((load, partition)) = page_in(&mut effects) else { break };
                let page = match partition {
                    Partition(1) => Err(NoPage::Unreadable),
                    _ => Ok(Page::default()),
                };
                assert!(clearing.scanned(load, &page, (now_ms, &mut ids), &mut effects));
            }
            assert!(clearing.is_done());
            assert_eq!(*clearing.unreadable(), BTreeSet::from([Partition(1)]));
        }
    }
}
