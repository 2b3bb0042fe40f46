//! Rule 6: whatever happens to clocks and processes, a node's stamps only grow, and are known on its disk before
//! they are used.

use keystore_core::effect::{Commit, Effect, Entry};
use keystore_core::id::Epoch;
use keystore_core::message::Call;
use keystore_core::partition::RecordKey;
use keystore_core::stamp::Stamp;

use crate::violation::{Checker, Violation};
use crate::world::World;

impl World {
    /// A machine uses a stamp for a write, under this call.
    pub(crate) fn check_issued(&mut self, n: usize, key: &RecordKey, (stamp, call): (Stamp, Call)) {
        // What was sent before is sent again to others, or under another layout, with the stamp that it has.
        let machine = &self.machines[n];
        let is_old = machine.last_issued.max(machine.accepted).is_some_and(|last| last >= stamp);
        let may_be_reissued = is_old && call.attempt > 1 && self.layout_at(n).epoch > Epoch(1);
        if machine.issued.get(&call) == Some(&stamp) || may_be_reissued {
            self.machines[n].issued.insert(call, stamp);
            return;
        }
        // A disk that was rolled back has lost its ceiling as well: what keeps its stamps from mattering is rule 15.
        let last = self.machines[n].last_issued.filter(|_| !self.machines[n].is_stale);
        if self.machines[n].issued.insert(call, stamp).is_some() || last.is_some_and(|last| last >= stamp) {
            let what = format!("machine {n} issued {last:?}, and then {stamp:?} for {call:?}");
            self.violate(Violation::new(Checker::StampsOfANodeGrow, key, what));
        }
        self.machines[n].last_issued = Some(stamp);
        if let Some(accepted) = self.machines[n].accepted.filter(|accepted| *accepted > stamp) {
            let what = format!("machine {n} accepted {accepted:?}, and then issued {stamp:?}");
            self.violate(Violation::new(Checker::StampsAreAboveWhatWasAccepted, key, what));
        }
        self.check_own_stamp(n, key, stamp);
    }

    /// What holds whenever a stamp is used, the first time or once more: it is below the ceiling on disk, and not
    /// below the one that its process found there; and the clock had the time to come up to that one.
    pub(crate) fn check_own_stamp(&mut self, n: usize, key: &RecordKey, stamp: Stamp) {
        let machine = &self.machines[n];
        if stamp.actor() != machine.actor {
            return;
        }
        let (ceiling_ms, started) = (machine.disk.state.ceiling_ms, machine.started);
        if stamp.millis() >= ceiling_ms {
            let what = format!("machine {n} issued {stamp:?}, the ceiling on its disk being {ceiling_ms}");
            self.violate(Violation::new(Checker::StampsAreBelowTheCeiling, key, what));
        }
        if stamp.millis() < started.ceiling_ms || self.now_ms < started.stamps_from_ms {
            let what = format!("machine {n} issued {stamp:?}, having found {started:?} when it started");
            self.violate(Violation::new(Checker::StartsWaitForTheClock, key, what));
        }
    }

    /// A process is about to store records up to this stamp.
    pub(crate) fn note_accepted(&mut self, n: usize, stamp: Option<Stamp>) {
        let accepted = &mut self.machines[n].accepted;
        *accepted = (*accepted).max(stamp);
    }
}

/// The stamp of what a process merges and stores.
pub(crate) fn accepted_by(effect: &Effect) -> Option<Stamp> {
    match effect {
        Effect::Commit(Commit { entry: Entry::Record { record, .. }, .. }) => Some(record.stamp),
        _ => None,
    }
}
