//! What holds when a recovery has come into force, by what was on the disks when those that are left accepted it.
//!
//! A partition that keeps a quorum to trust keeps all that was promised of it. Of any other, what is promised from then on
//! is what any of those had that are left of its replicas: no less, whatever was acknowledged or not, and no more. What
//! clients were told beyond that is not held against the store.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use keystore_core::causal::Context;
use keystore_core::effect::Values;
use keystore_core::id::NodeId;
use keystore_core::layout::Layout;
use keystore_core::message::ScanOutcome;
use keystore_core::partition::{Partition, RecordKey};
use keystore_core::quorum::Consistency;
use keystore_core::record::{Body, Record};
use keystore_core::stamp::Stamp;

use crate::coverage::Path;
use crate::invariants::{covers, knows};
use crate::plan::Class;
use crate::recoveries::Tried;
use crate::request::{Asked, Request, Told};
use crate::violation::{Checker, Violation};
use crate::world::World;

pub(crate) type Holdings = BTreeMap<RecordKey, Record>;

impl Tried {
    fn is_lost(&self, node: NodeId) -> bool {
        self.before.is_lost(node) || self.losses.nodes.contains(&node)
    }

    /// Those that held some of a partition and are left.
    fn holders(&self, partition: Partition) -> BTreeSet<NodeId> {
        let before = self.before.salvaged.get(&partition).into_iter().flatten().copied();
        let all = before.chain(self.before.replicas(partition));
        all.filter(|node| !self.is_lost(*node)).collect()
    }

    /// True if some ring in force has no quorum that can be trusted to have what was acknowledged.
    fn is_short(&self, partition: Partition) -> bool {
        let is_trusted = |node: &NodeId| {
            let doubted = self.losses.doubted.get(node);
            !self.is_lost(*node) && !doubted.is_some_and(|doubted| doubted.contains(&partition))
        };
        !self.before.replica_sets(partition).satisfied(Consistency::Quorum, is_trusted)
    }

    /// True if something of it may be lost: that, or a replica that counts for nothing yet has lost a source.
    fn may_have_lost(&self, partition: Partition) -> bool {
        let sources = self.before.salvaged.get(&partition).into_iter().flatten();
        self.is_short(partition) || sources.into_iter().any(|source| self.is_lost(*source))
    }

    /// Rule 24, of one partition.
    fn is_right(&self, partition: Partition) -> bool {
        let Self { before, layout, .. } = self;
        if !self.is_short(partition) {
            let is_kept =
                layout.rings().zip(before.rings()).all(|(a, b)| a.nodes(partition) == b.nodes(partition));
            // What has been written since is where the ring is.
            let all = before.salvaged.get(&partition).map(|_| self.holders(partition));
            return is_kept && layout.salvaged.get(&partition) == all.as_ref();
        }
        let ring = layout.ring().nodes(partition);
        let are_left = ring.iter().all(|node| !self.is_lost(*node));
        let is_one = layout.rings().all(|other| other.nodes(partition) == ring);
        let sources = layout.salvaged.get(&partition);
        !ring.is_empty() && are_left && is_one && sources == Some(&self.holders(partition))
    }
}

impl World {
    /// What is on a machine's disk as accepted is noted, with what else is there and can be read.
    pub(crate) fn note_accepted_by(&mut self, n: usize) {
        let machine = &self.machines[n];
        let Some((layout, _)) = &machine.disk.state.membership else { return };
        let accepted = (machine.id, layout.digest());
        let is_tried = self.recovery.layouts().any(|tried| tried.digest() == accepted.1);
        if !is_tried || self.recovery.accepted.contains_key(&accepted) {
            return;
        }
        let is_trusted = |key: &&RecordKey| machine.disk.is_readable(key) && !machine.in_doubt.contains(*key);
        let held = machine.disk.keys().filter(is_trusted);
        let held = held.filter_map(|key| Some((key.clone(), machine.disk.synced(key)?.clone()))).collect();
        self.recovery.accepted.insert(accepted, held);
    }

    /// A node is about to take up a layout of another incarnation.
    pub(crate) fn check_incarnation(&mut self, n: usize, before: &Layout, layout: &Layout) {
        let term = layout.term();
        let is_other = |tried: &Layout| tried.term() == term && tried.digest() != layout.digest();
        let is_tried = self.recovery.layouts().any(|tried| tried.digest() == layout.digest());
        let has_twin = self.recovery.layouts().any(is_other);
        if layout.incarnation.number <= before.incarnation.number || !is_tried || has_twin {
            let what = format!("machine {n} accepts {layout:?} after {before:?}");
            self.violate(Violation::of_the_world(Checker::IncarnationsOnlyGrow, what));
        }
    }

    /// The first node knows that all that are left have accepted the layout of a recovery.
    pub(crate) fn note_recovered(&mut self, n: usize, layout: &Layout) {
        let digest = layout.digest();
        let has_accepted = |node: &NodeId| self.recovery.accepted.contains_key(&(*node, digest));
        let mut left = layout.members.iter().filter(|member| !member.is_lost).map(|member| member.node);
        if let Some(other) = left.find(|node| !has_accepted(node)) {
            let what =
                format!("machine {n} serves as {:?}, and {other} has not accepted", layout.incarnation);
            return self.violate(Violation::of_the_world(Checker::ServingMeansAllAccepted, what));
        }
        let place = self.recovery.tried.iter().position(|tried| tried.layout.digest() == digest);
        let Some(place) = place else { return };
        let mut tried = self.recovery.tried.remove(place);
        tried.has_been_in_force = true;
        self.check_salvages(&tried);
        self.lower_promises(&tried);
        self.count_in_force(&tried);
        self.recovery.tried.insert(place, tried);
        self.floors_then = self.floors.clone();
        self.let_the_lost_return();
    }

    fn check_salvages(&mut self, tried: &Tried) {
        let (before, after) = (&tried.before, &tried.layout);
        let wrong = after.partitions.all().find(|partition| !tried.is_right(*partition));
        let is_new = after.epoch > before.epoch && after.phase_since == after.epoch;
        if wrong.is_some() || !is_new || before.is_joint() != after.is_joint() {
            let what = format!("{wrong:?}, {:?} lost: {after:?} after {before:?}", tried.losses);
            self.violate(Violation::of_the_world(Checker::WhatIsShortIsSalvaged, what));
        }
    }

    fn count_in_force(&mut self, tried: &Tried) {
        self.coverage.count(Path::RecoveryInForce);
        let is_source = |(partition, sources): (&Partition, &BTreeSet<NodeId>)| {
            let mut doubted = tried.losses.doubted.iter().filter(|(_, of)| of.contains(partition));
            doubted.any(|(node, _)| sources.contains(node))
        };
        if tried.layout.salvaged.iter().any(is_source) {
            self.coverage.count(Path::SalvagedInDoubt);
        }
        self.note(format_args!("{:?} is in force", tried.layout.incarnation));
    }

    /// What was promised of what is salvaged is what is left of it.
    fn lower_promises(&mut self, tried: &Tried) {
        self.recovery.left.clear();
        let digest = tried.layout.digest();
        for key in self.keys.clone() {
            let partition = key.partition(tried.layout.partitions);
            if !tried.layout.salvaged.contains_key(&partition) {
                continue;
            }
            let held = |node: &NodeId| self.recovery.accepted.get(&(*node, digest))?.get(&key).cloned();
            let left = tried.holders(partition).iter().filter_map(held).reduce(Record::merge);
            if self.may_have_lost(tried, partition) {
                self.lower(&key, left.as_ref());
            }
            self.recovery.left.extend(left.map(|left| (key, left)));
        }
    }

    /// The same, of an attempt that was made from others which have come to nothing.
    fn may_have_lost(&self, tried: &Tried, partition: Partition) -> bool {
        let is_void =
            |other: &&Tried| other.layout.incarnation == tried.before.incarnation && !other.has_been_in_force;
        tried.may_have_lost(partition)
            || self
                .recovery
                .tried
                .iter()
                .find(is_void)
                .is_some_and(|void| self.may_have_lost(void, partition))
    }

    fn lower(&mut self, key: &RecordKey, left: Option<&Record>) {
        let stamp = left.map(|record| record.stamp);
        let is_lost = match self.class(key) {
            Class::Cart => self.requests.iter().any(|request| is_beyond(request, key, left)),
            Class::Strict | Class::Mixed | Class::Loose => self.floors.get(key).copied() > stamp,
        };
        if is_lost {
            self.coverage.count(Path::PromiseLowered);
            let line = format!("of {key:?}, {left:?} is left of {:?}", self.floors.get(key));
            self.note(line);
        }
        let beyond: Vec<_> = self.requests.iter().map(|request| is_beyond(request, key, left)).collect();
        for (request, is_beyond) in self.requests.iter_mut().zip(&beyond) {
            if *is_beyond || is_lost && shows_nothing(request, key) {
                request.lost.insert(key.clone());
            }
        }
        match stamp.filter(|_| matches!(self.class(key), Class::Strict | Class::Mixed)) {
            Some(stamp) => drop(self.floors.insert(key.clone(), stamp)),
            None => drop(self.floors.remove(key)),
        }
        for machine in &mut self.machines {
            if let Some(doubted) = machine.doubted.get_mut(key) {
                doubted.floor = doubted.floor.min(stamp);
            }
        }
    }

    /// A replica says something of a key that counts.
    pub(crate) fn check_salvaged(&mut self, n: usize, key: &RecordKey) {
        let layout = self.layout_at(n);
        let is_salvaged = layout.salvaged.contains_key(&key.partition(layout.partitions));
        if !is_salvaged || layout.incarnation != self.layout.incarnation {
            return;
        }
        let Some(left) = self.recovery.left.get(key) else { return };
        if !self.machines[n].disk.ever_synced(key).any(|stored| covers(stored, left)) {
            let what = format!("machine {n} speaks of {key:?}, and {left:?} was left of it");
            self.violate(Violation::new(Checker::SalvagedIsMergedFirst, key, what));
        }
    }

    pub(crate) fn check_partition_salvaged(&mut self, n: usize, partition: Partition) {
        let of = self.layout.partitions;
        let keys = self.recovery.left.keys().filter(|key| key.partition(of) == partition);
        for key in keys.cloned().collect::<Vec<_>>() {
            self.check_salvaged(n, &key);
        }
    }

    /// What is given away of a partition that is salvaged can be read, and is on disk. Its source may be in doubt of the
    /// partition as a whole: whatever can be read is what is left of it.
    pub(crate) fn check_left_page(&mut self, n: usize, outcome: &ScanOutcome) {
        let ScanOutcome::Page(page) = outcome else { return };
        for (key, record) in &page.entries {
            if self.machines[n].in_doubt.contains(key) {
                let what = format!("machine {n} gives away {key:?}, for which it is in doubt");
                self.violate(Violation::new(Checker::InDoubtSaysNothing, key, what));
            }
            self.check_visible(n, key, |stored| stored == record);
        }
    }

    /// What is damaged of a partition that is salvaged is in nobody's way: there is no quorum to heal it from. Once this
    /// machine has counted for it, what it holds may have been acknowledged with it.
    pub(crate) fn may_drop_what_is_damaged(&mut self, n: usize, key: &RecordKey) -> bool {
        let layout = self.layout_at(n);
        let partition = key.partition(layout.partitions);
        let merges = &self.machines[n].disk.state.merges;
        let has_counted = merges.counted_in == layout.incarnation && merges.counted.contains(&partition);
        let is_salvaging = layout.salvaged.contains_key(&partition) && !has_counted;
        let may_drop = is_salvaging && self.machines[n].in_doubt.contains(key);
        if may_drop {
            self.coverage.count(Path::DamagedWhileSalvaging);
        }
        may_drop
    }
}

/// True if a client was told more of a key than is left of it: a value that is not there, or that one is gone which is.
fn is_beyond(request: &Request, key: &RecordKey, left: Option<&Record>) -> bool {
    let has_stamp = |stamp: Stamp| left.is_some_and(|left| left.stamp >= stamp);
    let has_token = |token: &Bytes, is_told: &dyn Fn(&Bytes) -> bool| {
        let token = Context::from_token(key, token).unwrap();
        left.is_some_and(|left| knows(left, &token) && !shows_again(left, &token, is_told))
    };
    let is_left = |values: &Values| match &values.context {
        Some(token) => has_token(token, &|value| values.values.iter().any(|(told, _)| told == value)),
        None => values.values.iter().all(|(_, stamp)| has_stamp(*stamp)),
    };
    let is_its_own = |value: &Bytes| matches!(&request.asked, Asked::Put { value: own, .. } if own == value);
    let is_of_it = request.asked.key() == Some(key);
    match request.told.as_ref().map(|(_, told)| told) {
        Some(Told::Written { token: Some(token), .. }) if is_of_it => !has_token(token, &is_its_own),
        Some(Told::Written { stamp, token: None, .. }) if is_of_it => !has_stamp(*stamp),
        Some(Told::Read(values)) if is_of_it => !is_left(values),
        Some(Told::Scanned { entries, .. }) => {
            entries.iter().any(|(found, values)| found == key && !is_left(values))
        }
        _ => false,
    }
}

/// True if a record has a value that the token covers, and that whoever was told it was not shown.
fn shows_again(left: &Record, token: &Context, is_told: &dyn Fn(&Bytes) -> bool) -> bool {
    let Body::Siblings(siblings) = &left.body else { return false };
    siblings.values().any(|(dot, sibling)| token.contains(dot) && !is_told(&sibling.value))
}

/// True if a client was told that there is nothing of a key, or may have been.
fn shows_nothing(request: &Request, key: &RecordKey) -> bool {
    match request.told.as_ref().map(|(_, told)| told) {
        Some(Told::Read(values)) => request.asked.key() == Some(key) && values.values.is_empty(),
        Some(Told::Scanned { entries, .. }) => !entries.iter().any(|(found, _)| found == key),
        _ => false,
    }
}
