//! What moves between disks, and what does not: nothing that its new owner has said it holds comes once more, and what
//! does not come is on its disk before it counts as merged.

use std::collections::BTreeMap;

use keystore_core::id::{Epoch, NodeId};
use keystore_core::message::{Call, ScanOutcome, ScanRange};
use keystore_core::partition::RecordKey;
use keystore_core::record::Record;
use keystore_core::transfer::Merges;

use crate::coverage::Path;
use crate::invariants::covers;
use crate::violation::{Checker, Violation};
use crate::world::World;

/// What a machine takes over, as the world sees it.
#[derive(Debug, Default)]
pub(crate) struct TakingOver {
    /// By the operation in which it asks for a page: what it held of the partition when it did.
    held: BTreeMap<u64, BTreeMap<RecordKey, Record>>,
    /// What others have not sent it, since it holds that.
    spared: Vec<Spared>,
}

#[derive(Debug)]
struct Spared {
    phase: Epoch,
    source: NodeId,
    key: RecordKey,
    record: Record,
}

impl TakingOver {
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }
}

impl World {
    /// A machine asks for a page that it takes over.
    pub(crate) fn note_page_wanted(&mut self, n: usize, (to, call): (NodeId, Call), range: &ScanRange) {
        // A client scans one keyspace.
        if !range.prefix.is_empty() {
            return;
        }
        let partitions = self.layout.partitions;
        let phase = self.layout_at(n).phase_since;
        self.check_spared(n, phase, |spared| {
            spared.source == to
                && spared.key.partition(partitions) == range.partition
                && range.after.as_ref().is_some_and(|after| spared.key.place() <= after.place())
        });
        let machine = &self.machines[n];
        let is_lost = |key: &RecordKey| machine.in_doubt.contains(key) || machine.damaged.contains(key);
        let held = match machine.unread.contains(&range.partition) {
            true => BTreeMap::new(),
            false => self.shown(n, range, None).filter(|(key, _)| !is_lost(key)).collect(),
        };
        self.machines[n].taking_over.held.entry(call.operation).or_insert(held);
    }

    /// What a machine shows of a range, up to a key.
    fn shown<'a>(
        &'a self,
        n: usize,
        range: &'a ScanRange,
        until: Option<&'a RecordKey>,
    ) -> impl Iterator<Item = (RecordKey, Record)> + 'a {
        let disk = &self.machines[n].disk;
        let is_in = move |key: &&RecordKey| {
            key.partition(self.layout.partitions) == range.partition
                && range.after.as_ref().is_none_or(|after| key.place() > after.place())
                && until.is_none_or(|until| key.place() <= until.place())
        };
        disk.keys().filter(is_in).filter_map(|key| Some((key.clone(), disk.visible(key)?.clone())))
    }

    /// Rule 23: only what differs moves.
    pub(crate) fn check_moved(
        &mut self,
        n: usize,
        (to, call): (NodeId, Call),
        (range, outcome): (&ScanRange, &ScanOutcome),
    ) {
        let Some(target) = self.machines.iter().position(|machine| machine.id == to) else { return };
        let Some(held) = self.machines[target].taking_over.held.get(&call.operation) else { return };
        let entries = match outcome {
            ScanOutcome::Page(page) => &page.entries,
            ScanOutcome::Lacking(lacking) => &lacking.entries,
            ScanOutcome::Differs => return self.coverage.count(Path::PageDiffers),
            ScanOutcome::Refused(_) => return,
        };
        let is_held = |(key, record): &&(RecordKey, Record)| held.get(key) == Some(record);
        if let Some((key, record)) = entries.iter().find(is_held).cloned() {
            let what = format!("machine {n} sends {record:?} to machine {target}, which has held it");
            self.violate(Violation::new(Checker::OnlyWhatDiffersMoves, &key, what));
        }
        let ScanOutcome::Lacking(lacking) = outcome else { return };
        let phase = self.layout_at(target).phase_since;
        let source = self.machines[n].id;
        let is_sent = |key: &RecordKey| lacking.entries.iter().any(|(sent, _)| sent == key);
        let spared: Vec<_> = self
            .shown(n, range, lacking.until.as_ref())
            .filter(|(key, _)| !is_sent(key))
            .map(|(key, record)| Spared { phase, source, key, record })
            .collect();
        if !spared.is_empty() {
            self.coverage.count(Path::RecordsSpared);
        }
        self.machines[target].taking_over.spared.extend(spared);
    }

    /// A machine is about to write down how far it has come.
    pub(crate) fn check_merges(&mut self, n: usize, merges: &Merges) {
        let partitions = self.layout.partitions;
        let is_behind = |spared: &Spared| {
            let merge = merges.partitions.get(&spared.key.partition(partitions));
            merge.is_some_and(|merge| {
                let pass = merge.pass.as_ref().filter(|(source, _)| *source == spared.source);
                let reached = pass.and_then(|(_, after)| after.as_ref());
                merge.sources.contains(&spared.source)
                    || reached.is_some_and(|reached| spared.key.place() <= reached.place())
            })
        };
        self.check_spared(n, merges.phase, is_behind);
    }

    /// What lies behind a machine is on its disk.
    fn check_spared(&mut self, n: usize, phase: Epoch, is_behind: impl Fn(&Spared) -> bool) {
        let machine = &mut self.machines[n];
        let spared = std::mem::take(&mut machine.taking_over.spared);
        let of_now = spared.into_iter().filter(|spared| spared.phase == phase);
        let (behind, ahead): (Vec<_>, Vec<_>) = of_now.partition(is_behind);
        machine.taking_over.spared = ahead;
        let disk = &self.machines[n].disk;
        let is_missing =
            |spared: &&Spared| !disk.ever_synced(&spared.key).any(|stored| covers(stored, &spared.record));
        if let Some(Spared { source, key, record, .. }) = behind.iter().find(is_missing) {
            let what =
                format!("machine {n} has merged {source}, was not sent {record:?} and has not synced it");
            self.violate(Violation::new(Checker::WhatIsSparedIsHeld, key, what));
        }
    }
}
