//! Rule 7: what a replica has missed is kept for it until it has it, and comes to it without anybody reading it.

use keystore_core::causal::Context;
use keystore_core::effect::Hint;
use keystore_core::id::NodeId;
use keystore_core::node::Settings;
use keystore_core::partition::RecordKey;
use keystore_core::record::Record;
use keystore_core::stamp::Stamp;

use crate::faults::Fault;
use crate::invariants::{covers, knows};
use crate::machine::{Machine, Standing};
use crate::plan::Plan;
use crate::violation::{Checker, Violation};
use crate::world::World;

/// After everything has healed no hint is left after this time, and no key in doubt: longer than such a key waits
/// for a generation and an attempt, and then a hint of it rests.
const DRAINED_WITHIN_MS: u64 = 90_000;

/// Faults after which a hint may be lost, or what a replica has taken because of one.
const LOSES_HINTS: &[Fault] = &[
    Fault::BitRot,
    Fault::ReadError,
    Fault::InTheMiddle,
    Fault::RollBack,
    Fault::Clone,
    Fault::FullDisk,
    Fault::FullByTurns,
];

/// What one process has to see to: that replicas of a key come to what it holds.
#[derive(Debug)]
pub(crate) struct Owed {
    machine: usize,
    life: u64,
    /// `None`: to each replica.
    target: Option<NodeId>,
    key: RecordKey,
    what: Missed,
}

#[derive(Debug)]
pub(crate) enum Missed {
    Stamp(Stamp),
    Token(Context),
    Record(Record),
}

impl Missed {
    fn is_met_by(&self, stored: &Record) -> bool {
        match self {
            Self::Stamp(stamp) => stored.stamp >= *stamp,
            Self::Token(token) => knows(stored, token),
            Self::Record(record) => covers(stored, record),
        }
    }
}

impl Plan {
    /// True if hints are neither too old nor too many.
    fn keeps_hints(&self) -> bool {
        let usual = Settings::default();
        self.settings.hint_bytes_max >= usual.hint_bytes_max
            && self.settings.hint_age_ms_max >= usual.hint_age_ms_max
    }

    fn hands_over(&self) -> bool {
        self.keeps_hints() && !self.moves() && !self.faults.iter().any(|fault| LOSES_HINTS.contains(fault))
    }
}

impl World {
    /// A coordinator has acknowledged a write that is synced. If it holds that itself, it is what keeps the hints.
    pub(crate) fn note_owed(&mut self, n: usize, key: &RecordKey, (stamp, token): (Stamp, Option<&Context>)) {
        if self.is_healed || !self.plan.hands_over() || self.machines[n].is_stale {
            return;
        }
        let machine = &self.machines[n];
        let what = match (machine.disk.synced(key), token) {
            (Some(stored), Some(token)) if knows(stored, token) => Missed::Token(token.clone()),
            // What superseded it here may have been acknowledged by others, who keep the hints then.
            (Some(stored), None) if stored.stamp == stamp => Missed::Stamp(stamp),
            _ => return,
        };
        self.owed.push(Owed { machine: n, life: machine.life, target: None, key: key.clone(), what });
    }

    /// Everything has healed: what is kept for others is now to be handed over. That is what was held when a hint was
    /// asked for: what has come since may be on nobody's mind, unless it was acknowledged.
    pub(crate) fn note_hints_kept(&mut self) {
        if !self.plan.hands_over() {
            return;
        }
        for (n, machine) in self.machines.iter().enumerate() {
            let hints = machine.disk.hints_kept().filter(|_| machine.node.is_some());
            self.owed.extend(hints.filter_map(|Hint { target, key, .. }| {
                let record = machine.hinted.get(&(*target, key.clone()))?;
                // What was only written may have been lost with the power.
                machine.disk.visible(key).filter(|stored| covers(stored, record))?;
                let what = Missed::Record(record.clone());
                Some(Owed { machine: n, life: machine.life, target: Some(*target), key: key.clone(), what })
            }));
        }
    }

    /// A hint is taken, or asked for again: its target may have missed what is held by now.
    pub(crate) fn note_hint(&mut self, n: usize, target: NodeId, key: &RecordKey) {
        if let Some(record) = self.machines[n].disk.visible(key).cloned() {
            self.machines[n].hinted.insert((target, key.clone()), record);
        }
    }

    /// A hint that is neither too old nor too many ends only once the target has what it may have missed.
    pub(crate) fn check_hint_done(&mut self, n: usize, target: NodeId, key: &RecordKey) {
        let hinted = self.machines[n].hinted.remove(&(target, key.clone()));
        let (Some(record), true) = (hinted, self.plan.keeps_hints()) else { return };
        let (layout, partition) = (self.layout_at(n), key.partition(self.layout.partitions));
        let are_replicas =
            [self.machines[n].id, target].iter().all(|node| layout.is_replica(partition, *node));
        if !are_replicas || layout.is_lost(target) {
            return;
        }
        // What was only written may be lost with the power, and is not there to be handed over.
        if !self.machines[n].disk.visible(key).is_some_and(|stored| covers(stored, &record)) {
            return;
        }
        let at_target = self.machines.iter().find(|machine| machine.id == target);
        let has_it = |machine: &Machine| machine.disk.ever_synced(key).any(|stored| covers(stored, &record));
        if at_target.is_some_and(|machine| !has_it(machine)) {
            let what = format!("machine {n} ends its hint for {target}, which does not have {record:?}");
            self.violate(Violation::new(Checker::HintsEndHeard, key, what));
        }
    }

    /// How many hints there are for members that are not gone, and how many keys in doubt.
    fn left(&self) -> (usize, usize) {
        let members = self.machines.iter().take(self.plan.machines());
        let is_gone = |node: &NodeId| {
            self.machines.iter().any(|machine| machine.id == *node && machine.standing == Standing::Gone)
        };
        let left = |machine: &Machine| {
            let Some(node) = &machine.node else { return (0, 0) };
            let status = node.status(machine.now(self.now_ms));
            let left = status.hints.targets.iter().filter(|(node, _)| !is_gone(node));
            (
                left.map(|(_, (hints, _))| hints).sum::<usize>(),
                status.doubted_keys + status.doubted_wholly.len(),
            )
        };
        members.map(left).fold((0, 0), |sum, left| (sum.0 + left.0, sum.1 + left.1))
    }

    /// Once all serve again, keys in doubt are healed and hints drain, and whoever has missed something has it then:
    /// nobody has read it.
    pub(crate) fn drain_hints(&mut self) {
        let deadline_ms = self.now_ms + DRAINED_WITHIN_MS;
        while self.left() != (0, 0) && self.violation.is_none() {
            let (hints, doubts) = self.left();
            if self.now_ms > deadline_ms && doubts > 0 {
                let what = format!("{doubts} keys are in doubt {DRAINED_WITHIN_MS} ms after all serve");
                return self.violate(Violation::of_the_world(Checker::DoubtsEnd, what));
            }
            if self.now_ms > deadline_ms {
                let of = |machine: &Machine| {
                    let status = machine.node.as_ref()?.status(machine.now(self.now_ms));
                    Some((machine.id, status.layout.map(|layout| layout.epoch), status.hints.targets))
                };
                let held: Vec<_> = self.machines.iter().filter_map(of).collect();
                let what = format!("{hints} hints are left {DRAINED_WITHIN_MS} ms after all serve: {held:?}");
                return self.violate(Violation::of_the_world(Checker::HintsDrain, what));
            }
            self.run_for(100);
        }
        for Owed { machine: n, life, target, key, what } in std::mem::take(&mut self.owed) {
            if self.machines[n].life != life {
                continue;
            }
            let is_asked = |m: &usize| target.is_none_or(|target| self.machines[*m].id == target);
            let holds = |m: usize| {
                let disk = &self.machines[m].disk;
                // What it had only written, and has lost with the power, it has not missed.
                disk.synced(&key).is_some_and(|stored| what.is_met_by(stored))
                    || disk.has_lost_with_power(&key, |record| what.is_met_by(record))
            };
            let without = self.replicas(&key).into_iter().filter(is_asked).find(|m| !holds(*m));
            if let Some(m) = without {
                let what = format!("machine {n} has not handed {what:?} over to machine {m}");
                return self.violate(Violation::new(Checker::MissedIsHandedOver, &key, what));
            }
        }
    }
}
