//! What goes wrong: which fault strikes whom, and when it ends.
//!
//! Faults that take away what a replica has acknowledged strike at most as many members at a time as the promises
//! allow: fewer than a quorum of any partition. Everything else may come together.

use keystore_core::id::{NodeId, Nonce};
use keystore_core::layout::Layout;
use keystore_core::partition::RecordKey;
use keystore_core::quorum::Consistency;

use crate::coverage::Path;
use crate::disk::{Disk, Ending, Space};
use crate::machine::{Machine, Standing};
use crate::plan::Delivery;
use crate::world::{Pending, World};

macro_rules! faults {
    ($($(#[$meta:meta])* $name:ident,)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Fault {
            $($(#[$meta])* $name,)*
        }

        impl Fault {
            pub(crate) const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

faults! {
    /// A process is killed between two effects.
    Crash,
    PowerLoss,
    AllPowerLoss,
    Pause,
    LongPause,
    /// A member is cut off from all others.
    CutOff,
    /// Two members do not reach each other, others reach both.
    PairCut,
    OneWayCut,
    LinkBreak,
    /// What one member sends to another comes late for a while.
    SlowLink,
    Stall,
    SyncFailure,
    FullDisk,
    /// The log refuses and takes by turns.
    FullByTurns,
    ClockJump,
    /// All clocks go back at once.
    ClocksBack,
    DeadForGood,
    /// A machine is started from an image of its disk that is older than its last start.
    RollBack,
    /// A second process is started from an image of a disk.
    Clone,
    BitRot,
    /// A stored record cannot be read once, and then it can.
    ReadError,
    /// Something of that strikes in the middle of an operation: see [`crate::aim`].
    InTheMiddle,
    /// The log is damaged, which shows at the next start: that is refused, and so is every other.
    LogDamage,
}

/// What ends a fault.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mend {
    Network,
    Stall(usize),
    Disk(usize),
    /// The image was taken from this machine before its present life.
    StartClone(usize),
}

impl World {
    pub(crate) fn let_faults_in(&mut self) {
        if !self.plan.faults.is_empty() {
            self.strike_later();
        }
    }

    fn strike_later(&mut self) {
        let wait = self.rng.between(1, 2 * self.plan.fault_every_ms);
        self.after(wait, Pending::Fault);
    }

    pub(crate) fn strike(&mut self) {
        if self.is_healed {
            return;
        }
        let fault = self.rng.pick(&self.plan.faults);
        let n = self.rng.index(self.plan.machines());
        self.strike_with(fault, n);
        self.strike_later();
    }

    pub(crate) fn strike_with(&mut self, fault: Fault, n: usize) {
        match fault {
            Fault::Crash => {
                let effects = self.rng.between(0, 6);
                self.machines[n].crash_after = Some(effects);
            }
            Fault::PowerLoss => {
                self.coverage.count(Path::PowerLost);
                self.crash(n, Ending::PowerLost);
            }
            Fault::AllPowerLoss => {
                self.coverage.count(Path::AllPowerLost);
                for n in 0..self.machines.len() {
                    self.crash(n, Ending::PowerLost);
                }
            }
            Fault::Pause => {
                let for_ms = self.rng.between(10, 1_000);
                self.pause(n, for_ms);
            }
            Fault::LongPause => {
                let for_ms = self.rng.between(1_500, 6_000);
                self.pause(n, for_ms);
            }
            Fault::CutOff | Fault::PairCut | Fault::OneWayCut => self.cut(fault, n),
            Fault::LinkBreak => {
                let links = self.network.open();
                if !links.is_empty() {
                    let link = self.rng.pick(&links);
                    self.break_link(link);
                }
            }
            Fault::SlowLink => {
                let to = self.rng.index(self.machines.len());
                let for_ms = self.rng.between(20, 400);
                self.slow_down(n, to, for_ms);
            }
            Fault::Stall => {
                self.machines[n].stall_ms = 1;
                let wait = self.rng.between(500, 3_000);
                self.after(wait, Pending::Mend(Mend::Stall(n)));
            }
            Fault::SyncFailure => self.machines[n].sync_fails = true,
            Fault::FullDisk | Fault::FullByTurns => self.fill_disk(fault, n),
            Fault::ClockJump => {
                self.coverage.count(Path::ClockJumped);
                let by = self.jump();
                self.machines[n].clock_ms += by;
                self.note_clocks();
                self.note(format_args!("the clock of machine {n} jumps by {by} ms"));
            }
            Fault::ClocksBack => {
                self.coverage.count(Path::AllClocksWentBack);
                let by = self.rng.between(10, 20_000) as i64;
                for machine in &mut self.machines {
                    machine.clock_ms -= by;
                }
                self.note_clocks();
                self.note(format_args!("all clocks go back by {by} ms"));
            }
            Fault::DeadForGood => {
                if self.may_hurt(n) {
                    self.coverage.count(Path::DeadForGood);
                    self.note_death(n);
                    self.hurt.insert(n);
                    self.end_for_good(n);
                }
            }
            Fault::RollBack => self.roll_back(n),
            Fault::Clone => self.clone_disk(n),
            Fault::BitRot | Fault::ReadError => self.damage(fault, n),
            Fault::InTheMiddle => self.take_aim(),
            Fault::LogDamage => {
                if self.may_hurt(n) && !self.machines[n].is_stale {
                    self.hurt.insert(n);
                    self.machines[n].disk.is_log_damaged = true;
                    self.note(format_args!("machine {n}: its log is damaged"));
                }
            }
        }
    }

    /// A machine dies for good; the data that moves meanwhile has to arrive all the same.
    fn note_death(&mut self, n: usize) {
        if self.layout.is_joint() && self.layout.owned(self.machines[n].id) > 0 {
            self.coverage.count(Path::DeadForGoodInAMove);
            self.died_in = Some((self.layout.incarnation, self.layout.phase_since));
        }
    }

    fn note_clocks(&mut self) {
        for machine in &self.machines {
            let (slowest, fastest) = self.clock_range;
            self.clock_range = (slowest.min(machine.clock_ms), fastest.max(machine.clock_ms));
        }
    }

    fn jump(&mut self) -> i64 {
        let far = self.rng.pick(&[200, 2_000, 20_000]);
        self.rng.between(0, 2 * far) as i64 - far as i64
    }

    fn cut(&mut self, fault: Fault, n: usize) {
        let others: Vec<_> = (0..self.machines.len()).filter(|other| *other != n).collect();
        let Some(last) = others.len().checked_sub(1) else { return };
        let other = others[self.rng.between(0, last as u64) as usize];
        let (path, directions): (_, Vec<_>) = match fault {
            Fault::PairCut => (Path::PairCut, vec![(n, other), (other, n)]),
            Fault::OneWayCut => (Path::OneWayCut, vec![(n, other)]),
            _ => (Path::CutOff, others.iter().flat_map(|other| [(n, *other), (*other, n)]).collect()),
        };
        self.coverage.count(path);
        self.note(format_args!("cut {directions:?}"));
        self.block(&directions);
        let wait = self.rng.between(50, 4_000);
        self.after(wait, Pending::Mend(Mend::Network));
    }

    fn fill_disk(&mut self, fault: Fault, n: usize) {
        if !self.is_running(n) {
            return;
        }
        self.note(format_args!("the disk of machine {n} is full: {fault:?}"));
        if fault == Fault::FullByTurns {
            self.coverage.count(Path::LogRefusedByTurns);
            self.machines[n].disk.space = Space::ByTurns;
        } else {
            self.coverage.count(Path::DiskFilled);
            // Past the hard limit the node refuses clients' writes by itself; in the end the log takes nothing at all.
            if self.rng.chance(50) {
                self.machines[n].disk.space = Space::Full;
            }
            self.step(n, keystore_core::effect::Event::DiskFull(true));
        }
        let wait = self.rng.between(100, 2_000);
        self.after(wait, Pending::Mend(Mend::Disk(n)));
    }

    pub(crate) fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Network => self.unblock(),
            Mend::Stall(n) => self.machines[n].stall_ms = 0,
            Mend::Disk(n) => {
                self.machines[n].disk.space = Space::Plenty;
                self.step(n, keystore_core::effect::Event::DiskFull(false));
            }
            Mend::StartClone(n) => self.start_clone(n),
        }
    }

    /// True if this member may lose what it holds without any partition losing the promises, or the members the majority
    /// of those that vote.
    pub(crate) fn may_hurt(&self, n: usize) -> bool {
        let mut others: Vec<_> = self.hurt.iter().map(|hurt| self.machines[*hurt].id).collect();
        others.extend(&self.recovery.lost);
        let id = self.machines[n].id;
        let is_left = |node: &NodeId| *node != id && !others.contains(node);
        let bears_it = |layout: &Layout| {
            let keeps_quorum =
                |partition| layout.replica_sets(partition).satisfied(Consistency::Quorum, is_left);
            let voters = layout.voters.iter().filter(|voter| is_left(voter)).count();
            layout.partitions.all().all(keeps_quorum) && voters > layout.voters.len() / 2
        };
        !self.hurt.contains(&n) && !self.is_salvaging() && self.layouts_to_come().all(bears_it)
    }

    /// True if all other members know durably of a later start of this one than the image's: then whatever a
    /// process of that image says is refused by each of them. (If only some know, the disk was lost at a moment at
    /// which others were out of reach, which is more than a minority.)
    fn is_known_stale(&self, n: usize, image: &Disk) -> bool {
        if image.state.membership.is_none() {
            return false;
        }
        let id = self.machines[n].id;
        let knows = |machine: &Machine| {
            let known = machine.disk.state.peers.get(&id);
            known.is_some_and(|(generation, _)| *generation > image.state.generation)
        };
        let is_member = |machine: &&Machine| machine.id != id && self.layout.member(machine.id).is_some();
        let others = self.machines.iter().take(self.plan.machines()).filter(is_member);
        others.filter(|machine| machine.standing != Standing::Gone).all(knows)
    }

    fn roll_back(&mut self, n: usize) {
        let images = self.machines[n].images.len();
        let age = self.rng.between(0, images as u64) as usize;
        let Some(mut image) = self.machines[n].images.get(age).cloned() else { return };
        if !self.may_hurt(n) || !self.is_known_stale(n, &image) {
            return;
        }
        self.coverage.count(Path::RolledBack);
        self.hurt.insert(n);
        self.note(format_args!("machine {n} is rolled back to generation {}", image.state.generation));
        self.crash(n, Ending::PowerLost);
        self.start_alone(&mut image);
        self.machines[n].disk.roll_back(image);
        self.machines[n].doubted.clear();
        self.machines[n].is_stale = true;
    }

    /// A process has started from it a few times that nobody else has heard of.
    fn start_alone(&mut self, image: &mut Disk) {
        for _ in 0..self.rng.between(0, 4) {
            image.recover(Nonce(self.rng.next()));
        }
    }

    /// Ends the process; once its successor is known to all others, a second one is started from the same image.
    fn clone_disk(&mut self, n: usize) {
        let is_cloned = self.machines.len() > self.plan.machines();
        if is_cloned || !self.is_running(n) || self.plan.replication_factor < 3 {
            return;
        }
        self.crash(n, Ending::Killed);
        self.after(500, Pending::Mend(Mend::StartClone(n)));
    }

    fn start_clone(&mut self, n: usize) {
        let Some(mut image) = self.machines[n].images.front().cloned() else { return };
        if self.is_healed || self.machines.len() > self.plan.machines() || !self.is_known_stale(n, &image) {
            return;
        }
        self.coverage.count(Path::Cloned);
        let clone = self.machines.len();
        self.start_alone(&mut image);
        let mut machine = Machine::new(n, self.machines[n].clock_ms);
        machine.disk = image;
        machine.is_stale = true;
        self.machines.push(machine);
        self.note(format_args!("machine {clone} is a clone of machine {n}"));
        self.start(clone);
    }

    /// One of the stored records.
    fn damage(&mut self, fault: Fault, n: usize) {
        let keys: Vec<RecordKey> = self.machines[n].disk.keys().cloned().collect();
        if keys.is_empty() {
            return;
        }
        let key = &keys[self.rng.index(keys.len())];
        match fault {
            Fault::ReadError => self.fail_next_read(n, key),
            _ => self.rot(n, key),
        }
    }

    /// Ends all faults that end.
    pub(crate) fn heal(&mut self) {
        self.note("everything is healed");
        self.is_healed = true;
        self.delivery = match self.delivery {
            Delivery::Stream => Delivery::Stream,
            Delivery::Datagrams { .. } => Delivery::Datagrams { drop_percent: 0, duplicate_percent: 0 },
        };
        self.unblock();
        self.bring_back();
        self.aim = None;
        self.plan.slow_disk_percent = 0;
        // The clocks agree again, on the one that is furthest ahead: no stamp is far ahead of all of them then.
        let (_, fastest) = self.clock_range;
        for machine in &mut self.machines {
            machine.clock_ms = fastest;
        }
        for n in 0..self.machines.len() {
            self.resume(n);
            self.machines[n].crash_after = None;
            self.machines[n].sync_fails = false;
            self.machines[n].stall_ms = 0;
            self.mend(Mend::Disk(n));
        }
    }
}
