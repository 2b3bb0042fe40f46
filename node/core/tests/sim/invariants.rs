//! What has to hold at every single step, looked up in the simulated disks: the world knows what is synced where,
//! whatever the nodes believe.

use keystore_core::effect::{Alarm, Answer, Effect};
use keystore_core::id::NodeId;
use keystore_core::message::{Message, Origin, ReadOutcome, Refusal, Write, WriteOutcome};
use keystore_core::partition::RecordKey;
use keystore_core::quorum::Consistency;
use keystore_core::record::{Record, Version};
use keystore_core::stamp::Stamp;

use crate::coverage::Path;
use crate::history::{Checker, Violation};
use crate::machine::Standing;
use crate::world::World;

impl World {
    pub(crate) fn check_effect(&mut self, _n: usize, effect: &Effect) {
        if let Effect::Save { state: keystore_core::effect::SavedState::StampCeiling(_), .. } = effect {
            self.coverage.count(Path::ParkedOnTheCeiling);
        }
    }

    pub(crate) fn check_answer(&mut self, n: usize, index: usize, answer: &Answer) {
        let key = self.history[index].key.clone();
        match answer {
            Answer::Written { stamp, .. } => {
                let stamp = *stamp;
                if !self.is_held(&key, |record| record.stamp >= stamp) {
                    let what = format!("machine {n} acknowledged {:?} at {stamp:?}", self.history[index]);
                    self.violate(Violation::new(Checker::AcknowledgedIsSyncedOnAQuorum, &key, what));
                }
            }
            Answer::Read(Some(record)) => {
                let version = record.version();
                if !self.is_held(&key, |record| record.version() >= version) {
                    let what = format!("machine {n} answered {record:?} to {:?}", self.history[index]);
                    self.violate(Violation::new(Checker::AnsweredIsSyncedOnAQuorum, &key, what));
                }
            }
            Answer::Read(None) | Answer::Failed(_) | Answer::InitAccepted | Answer::InitRefused(_) => {}
        }
    }

    /// True if a quorum of the key's replicas hold what is asked for, synced, or have lost it since by a fault.
    fn is_held(&self, key: &RecordKey, holds: impl Fn(&Record) -> bool) -> bool {
        let sets = self.layout.replica_sets(key.partition(self.layout.partitions));
        let counts = |node: &NodeId| {
            let n = self.machines.iter().position(|machine| machine.id == *node).unwrap();
            self.machines[n].disk.ever_synced(key).any(&holds)
        };
        sets.satisfied(Consistency::Quorum, counts)
    }

    /// The machines that hold this key and can be asked.
    pub(crate) fn replicas(&self, key: &RecordKey) -> Vec<usize> {
        let sets = self.layout.replica_sets(key.partition(self.layout.partitions));
        let machine = |node: NodeId| self.machines.iter().position(|machine| machine.id == node);
        let replicas = sets.nodes().into_iter().filter_map(machine);
        replicas.filter(|n| self.machines[*n].standing != Standing::Gone).collect()
    }

    pub(crate) fn check_convergence(&mut self, key: &RecordKey) {
        let replicas = self.replicas(key);
        let held: Vec<_> = replicas.iter().map(|n| (n, self.machines[*n].disk.synced(key))).collect();
        let are_equal = held.windows(2).all(|pair| pair[0].1 == pair[1].1);
        // A replica whose record has rotted refuses the key until it is replaced.
        let is_rotten = replicas.iter().any(|n| self.machines[*n].disk.is_rotten(key));
        if !are_equal && !is_rotten {
            let what = format!("{held:?}");
            self.violate(Violation::new(Checker::ReplicasConverge, key, what));
        }
    }

    pub(crate) fn check_message(&mut self, n: usize, message: &Message) {
        match message {
            Message::Write(Write { call, record, origin: Origin::Client { .. }, key, .. }) => {
                let now = (record.stamp, (self.machines[n].life, *call));
                self.check_issued(n, key, now);
            }
            Message::Write(_) | Message::WriteAnswer { .. } | Message::Read { .. } => {}
            Message::ReadAnswer { outcome, .. } => self.check_shown(n, outcome),
            Message::InitAccepted { .. } => {}
        }
    }

    /// Rule 6: whatever happens to the clock, a node's stamps only grow, from one life to the next.
    fn check_issued(&mut self, n: usize, key: &RecordKey, now: (Stamp, (u64, keystore_core::message::Call))) {
        if let Some(last) = self.machines[n].issued
            && last != now
            && last.0 >= now.0
        {
            let what = format!("machine {n} issued {last:?}, and then {now:?}");
            self.violate(Violation::new(Checker::StampsOfANodeGrow, key, what));
        }
        self.machines[n].issued = Some(now);
    }

    /// Rule 3: what a replica shows is synced on its disk.
    fn check_shown(&mut self, n: usize, outcome: &ReadOutcome) {
        let version: Version = match outcome {
            ReadOutcome::Digest(version) => *version,
            ReadOutcome::Full(record) => record.version(),
            ReadOutcome::Missing | ReadOutcome::Refused(_) => return,
        };
        let disk = &self.machines[n].disk;
        // The answer does not name its key; versions are unique, so that any key will do.
        let is_synced = disk.keys().any(|key| disk.synced(key).is_some_and(|r| r.version() == version));
        if !is_synced {
            let what = format!("machine {n} shows {outcome:?}");
            self.violate(Violation { checker: Checker::VisibleMeansSynced, key: None, what });
        }
    }

    pub(crate) fn check_alarm(&mut self, n: usize, alarm: Alarm) {
        self.note(format_args!("machine {n}: {alarm:?}"));
        match alarm {
            Alarm::EqualStamps { key, stamp } => {
                let what = format!("machine {n} holds two records of {stamp:?}");
                self.violate(Violation::new(Checker::StampsAreUnique, &key, what));
            }
            Alarm::DamagedRecord { key } => {
                if !self.machines[n].disk.is_rotten(&key) {
                    let what = format!("machine {n} calls a whole record damaged");
                    self.violate(Violation::new(Checker::DoubtHasAReason, &key, what));
                }
            }
            Alarm::StaleGeneration { .. } => {}
        }
    }

    pub(crate) fn count_message(&mut self, message: &Message) {
        let path = match message {
            Message::Write(write) if write.origin == Origin::Repair && write.call.operation == 0 => {
                Path::ReadRepair
            }
            Message::Write(write) if write.origin == Origin::Repair => Path::WriteBack,
            Message::Write(write) if write.call.attempt > 1 => Path::StampedAnew,
            Message::WriteAnswer { outcome: WriteOutcome::Superseded(_), .. } => Path::Superseded,
            Message::WriteAnswer { outcome: WriteOutcome::Refused(refusal), .. } => match refusal {
                Refusal::DeadlinePassed => Path::RefusedAfterItsDeadline,
                Refusal::ClockSkew => Path::RefusedForClockSkew,
                Refusal::DiskFull => Path::RefusedForWantOfSpace,
                Refusal::InDoubt => Path::RefusedInDoubt,
                Refusal::Overloaded | Refusal::NotReplica | Refusal::NotInitialized => return,
            },
            _ => return,
        };
        self.coverage.count(path);
    }
}
