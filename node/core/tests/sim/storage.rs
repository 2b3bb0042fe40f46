//! What becomes of what a process asks of its disk, and when: groups of commits, small files, pages of scans.

use keystore_core::effect::{Commit, Entry, Event, NoPage, NotCommitted};
use keystore_core::message::{Page, ScanRange};
use keystore_core::partition::{DEFAULT_KEYSPACE, RecordKey};
use keystore_core::quorum::Durability;

use crate::aim::Moment;
use crate::coverage::Path;
use crate::disk::Ending;
use crate::violation::{Checker, Violation};
use crate::world::{Pending, World};

/// A commit of periodic durability is synced at most so much later.
const SYNC_EVERY_MS: u64 = 1_000;

impl World {
    /// How long a write that is synced takes.
    pub(crate) fn disk_delay(&mut self, n: usize) -> u64 {
        let is_stalled = self.machines[n].stall_ms > 0 || self.rng.chance(self.plan.slow_disk_percent);
        if is_stalled {
            self.coverage.count(Path::DiskStalled);
        }
        if is_stalled { self.rng.between(1, 2_500) } else { self.rng.between(1, 10) }
    }

    pub(crate) fn write_group(&mut self, n: usize, life: u64) {
        let is_synced = self.machines[n].disk.write_group(&mut self.rng);
        if !is_synced {
            self.after(SYNC_EVERY_MS, Pending::PeriodicSync { machine: n, life });
            return self.end_group(n, false);
        }
        let delay = self.disk_delay(n);
        self.after(delay, Pending::EndGroup { machine: n, life, is_synced });
    }

    pub(crate) fn end_group(&mut self, n: usize, is_synced: bool) {
        if is_synced && self.machines[n].sync_fails {
            self.coverage.count(Path::SyncFailed);
            return self.crash(n, Ending::PowerLost);
        }
        let life = self.machines[n].life;
        let ended = self.machines[n].disk.end_group(is_synced);
        for key in std::mem::take(&mut self.machines[n].disk.unmerged) {
            let what = format!("machine {n} commits what is not above all that it stores");
            self.violate(Violation::new(Checker::CommitsHoldWhatIsStored, &key, what));
        }
        for (Commit { id, entry, .. }, outcome) in ended {
            if outcome == Ok(Durability::Synced) {
                self.check_dots_synced(n, &entry);
            }
            if let (Entry::Record { key, .. }, Err(NotCommitted::Damaged)) = (&entry, outcome) {
                self.coverage.count(Path::DamagedInACommit);
                self.machines[n].damaged.insert(key.clone());
            }
            if self.machines[n].life == life {
                self.step(n, Event::Committed { commit: id, outcome });
            }
            if let (Entry::Record { key, .. }, Ok(_)) = (&entry, outcome) {
                self.moment(Moment::Committed, n, key);
            }
        }
        if self.machines[n].life == life && self.machines[n].disk.goes_on() {
            self.after(0, Pending::WriteGroup { machine: n, life });
        }
    }

    pub(crate) fn end_save(&mut self, n: usize) {
        let (before, id) = (self.machines[n].disk.state.generation, self.machines[n].id);
        let acknowledged = self.machines[n].disk.state.membership.as_ref().map(|(layout, _)| layout.epoch);
        let Some(save) = self.machines[n].disk.finish_save() else { return };
        self.check_emptiness(n, acknowledged.unwrap_or_default());
        let machine = &mut self.machines[n];
        if let Some((layout, _)) = &machine.disk.state.membership {
            machine.partitions_in_doubt.retain(|partition| layout.is_replica(*partition, id));
        }
        self.note_accepted_by(n);
        let generation = self.machines[n].disk.state.generation;
        if generation > before {
            self.count_raised(n, id, generation);
        }
        self.step(n, Event::Saved { save });
    }

    pub(crate) fn read_page(&mut self, n: usize, range: &ScanRange) -> Result<Page, NoPage> {
        let page = self.machines[n].disk.scan(range, self.layout.partitions);
        match &page {
            Ok(page) => {
                if let Some((key, _)) = page.entries.first() {
                    self.moment(Moment::Scanned, n, key);
                }
            }
            Err(NoPage::Damaged(key)) => drop(self.machines[n].damaged.insert(key.clone())),
            Err(NoPage::Unreadable) => {}
        }
        if page.is_err() {
            self.machines[n].unread.insert(range.partition);
        } else if self.machines[n].unread.remove(&range.partition) {
            self.is_whole_again(n);
        }
        let mut page = page?;
        if page.entries.len() > 1 && self.rng.chance(20) {
            // As if its records were so long that no more of them fit into a page.
            page.entries.truncate(1);
            page = Page::cut(page.entries);
        }
        if range.prefix.is_empty() && self.rng.chance(10) {
            self.end_where_much_was_removed(&mut page, range);
        }
        Ok(page)
    }

    /// As if so much had been removed in a part of the range that the engine came no further than there.
    fn end_where_much_was_removed(&mut self, page: &mut Page, range: &ScanRange) {
        let removed = (0..64).map(|n: u32| format!("removed/{n}"));
        let removed = removed.filter_map(|key| RecordKey::new(DEFAULT_KEYSPACE, key.as_bytes()).ok());
        let mut within: Vec<_> = removed
            .filter(|key| key.partition(self.layout.partitions) == range.partition)
            .filter(|key| range.after.as_ref().is_none_or(|after| key.place() > after.place()))
            .filter(|key| page.until.as_ref().is_none_or(|until| key.place() < until.place()))
            .collect();
        if !within.is_empty() {
            let until = within.swap_remove(self.rng.index(within.len()));
            page.entries.retain(|(key, _)| key.place() < until.place());
            page.until = Some(until);
            self.coverage.count(Path::MuchRemoved);
        }
    }
}
