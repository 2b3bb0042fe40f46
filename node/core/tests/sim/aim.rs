//! Faults that strike in the very middle of something: a record rots right after it was read for an answer, a
//! process ends right after it has told somebody what heals him. What comes over some links then comes late, so that
//! whoever asked goes on without it, or is still waiting when he hears that what he was told does not count.

use keystore_core::id::{Generation, NodeId};
use keystore_core::partition::RecordKey;
use keystore_core::quorum::{Consistency, Durability};

use crate::coverage::Path;
use crate::disk::Ending;
use crate::plan::Class;
use crate::request::Asked;
use crate::workload::Wish;
use crate::world::{Pending, World};

/// What a fault waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// A record was read, for whatever purpose.
    Loaded,
    /// It was read as part of a page.
    Scanned,
    Committed,
    /// A replica has told another one, which is in doubt, what it holds.
    Told,
}

/// What strikes then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blow {
    Rot,
    /// The next read of the record fails, and no other.
    ReadError,
    Kill,
}

impl World {
    pub(crate) fn take_aim(&mut self) {
        self.aim = Some(self.rng.pick(&[Moment::Loaded, Moment::Scanned, Moment::Committed, Moment::Told]));
    }

    /// Something has been done with a key; a fault that has waited for that strikes as soon as the step is over.
    pub(crate) fn moment(&mut self, moment: Moment, n: usize, key: &RecordKey) {
        if self.aim != Some(moment) || self.is_healed || n >= self.plan.machines() {
            return;
        }
        self.aim = None;
        let blow = match moment {
            Moment::Told => self.rng.pick(&[Blow::Kill, Blow::Kill, Blow::Rot]),
            _ => self.rng.pick(&[Blow::Rot, Blow::Rot, Blow::Rot, Blow::ReadError, Blow::Kill]),
        };
        let life = self.machines[n].life;
        self.after(0, Pending::Blow { machine: n, life, key: key.clone(), blow });
        self.slow_some_down(n, key);
    }

    /// Another replica of the key is heard late by all, or some links are slow.
    fn slow_some_down(&mut self, n: usize, key: &RecordKey) {
        let others: Vec<_> = self.replicas(key).into_iter().filter(|other| *other != n).collect();
        if !others.is_empty() && self.rng.chance(60) {
            let slow = self.rng.pick(&others);
            let for_ms = self.rng.between(20, 500);
            for to in 0..self.plan.machines() {
                self.slow_down(slow, to, for_ms);
            }
        }
        for from in 0..self.plan.machines() {
            for to in 0..self.plan.machines() {
                if self.rng.chance(15) {
                    let for_ms = self.rng.between(20, 300);
                    self.slow_down(from, to, for_ms);
                }
            }
        }
    }

    pub(crate) fn strike_blow(&mut self, n: usize, key: &RecordKey, blow: Blow) {
        match blow {
            Blow::Rot => self.rot(n, key),
            Blow::ReadError => self.fail_next_read(n, key),
            Blow::Kill => {
                self.coverage.count(Path::KilledInTheMiddle);
                return self.crash(n, Ending::Killed);
            }
        }
        // Somebody looks at it at once; of several keys, whatever comes may be the first, a commit perhaps.
        if self.plan.keys.len() > 1 && self.rng.chance(25) {
            return;
        }
        let asked = Asked::Get { key: key.clone() };
        let (level, durability) = (Consistency::One, Durability::Synced);
        let wish = Wish { client: self.plan.clients + 1, asked, level, durability, is_promised: false };
        self.ask(n, wish);
    }

    /// A stored record can no longer be read.
    pub(crate) fn rot(&mut self, n: usize, key: &RecordKey) {
        if !self.may_hurt(n) {
            return;
        }
        // It may have been replaced by a process that ended before it could say so.
        let is_whole = !self.machines[n].disk.is_rotten(key);
        if let Some(doubted) = self.machines[n].doubted.get_mut(key).filter(|_| is_whole) {
            doubted.is_healed = true;
        }
        let is_place_gone = self.rng.chance(50);
        if self.machines[n].disk.rot(key, is_place_gone) {
            self.coverage.count(Path::RecordRotted);
            self.note(format_args!("machine {n}: {key:?} rots"));
            self.is_damaged(n, key);
        }
    }

    pub(crate) fn fail_next_read(&mut self, n: usize, key: &RecordKey) {
        if self.may_hurt(n) && self.machines[n].disk.fail_next_read(key) {
            self.coverage.count(Path::ReadFailed);
            self.note(format_args!("machine {n}: the next read of {key:?} fails"));
            self.is_damaged(n, key);
        }
    }

    fn is_damaged(&mut self, n: usize, key: &RecordKey) {
        self.hurt.insert(n);
        let mut paths = self.in_the_middle(key, None, DAMAGED);
        if self.machines.iter().any(|machine| machine.in_doubt.contains(key)) {
            paths.push(Path::DamagedInAHeal);
        }
        for path in paths {
            self.coverage.count(path);
        }
    }

    /// A machine hears of a generation of a node that is later than all it knew of, its own included.
    pub(crate) fn count_raised(&mut self, n: usize, of: NodeId, generation: Generation) {
        let Some(raised) = self.machines.iter().find(|machine| machine.id == of) else { return };
        let is_lost = |doubted: &crate::machine::Doubted| doubted.in_generation < generation;
        let lost = raised.doubted.iter().filter(|(_, doubted)| is_lost(doubted) && !doubted.is_healed);
        let lost: Vec<_> = lost.map(|(key, _)| key.clone()).collect();
        let mut paths: Vec<_> =
            lost.iter().flat_map(|key| self.in_the_middle(key, Some(n), RAISED)).collect();
        let machine = &self.machines[n];
        let has_told = machine
            .told_of
            .values()
            .any(|(key, tellers)| machine.in_doubt.contains(key) && tellers.contains_key(&of));
        if has_told {
            paths.push(Path::RaisedInAHeal);
        }
        for path in paths {
            self.coverage.count(path);
        }
    }

    /// As what the requests of a key count that are under way, at one machine or at any.
    fn in_the_middle(
        &self,
        key: &RecordKey,
        at: Option<usize>,
        [read, write, mint, scan]: Paths,
    ) -> Vec<Path> {
        let is_at = |machine: usize| at.is_none_or(|at| at == machine);
        let under_way =
            self.requests.iter().filter(|request| request.told.is_none() && is_at(request.machine));
        under_way
            .filter_map(|request| match &request.asked {
                Asked::Get { key: of } => (of == key).then_some(read),
                Asked::Scan { keyspace, range } => {
                    self.keys_in(keyspace, range).contains(key).then_some(scan)
                }
                Asked::Put { key: of, .. } | Asked::Delete { key: of, .. } => {
                    (of == key).then_some(if self.class(key) == Class::Cart { mint } else { write })
                }
            })
            .collect()
    }

    /// What a machine has lost is replaced, or was not lost after all.
    pub(crate) fn is_whole_again(&mut self, n: usize) {
        let machine = &self.machines[n];
        let is_in_doubt = !machine.in_doubt.is_empty() || !machine.partitions_in_doubt.is_empty();
        let is_whole = !machine.disk.has_damage() && !is_in_doubt;
        if is_whole && !machine.disk.is_log_damaged && !machine.is_stale {
            self.hurt.remove(&n);
        }
    }
}

/// What is counted for a read, a write, one that is given a dot, and a scan.
type Paths = [Path; 4];

const DAMAGED: Paths =
    [Path::DamagedInARead, Path::DamagedInAWrite, Path::DamagedInAMint, Path::DamagedInAScan];
const RAISED: Paths = [Path::RaisedInARead, Path::RaisedInAWrite, Path::RaisedInAMint, Path::RaisedInAScan];
