//! What a run is made of, drawn from its seed: each seed gets a few kinds of fault, each with an intensity of its
//! own ("swarm testing", Groce et al. 2012), so that faults which hide each other also come alone.

use keystore_core::node::Settings;

use crate::faults::Fault;
use crate::rng::Rng;

/// Every request's deadline.
pub(crate) const TIMEOUT_MS: u64 = 2_000;

/// What is asked of a key, and so what holds of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Quorum or all, and synced: the promises hold.
    Strict,
    /// Sometimes at one: the promises hold for the others.
    Mixed,
    /// Sometimes not even synced: it converges.
    Loose,
    /// In a keyspace that keeps siblings, at quorum or all.
    Cart,
}

impl Class {
    const ALL: &[Self] = &[Self::Strict, Self::Mixed, Self::Loose, Self::Cart];
}

/// How messages of one link behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// In order, each once, until the link breaks.
    Stream,
    /// Each on its own: delayed, dropped, duplicated. More than a link may do, so that nothing hangs on its order.
    Datagrams { drop_percent: u64, duplicate_percent: u64 },
}

#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) nodes: usize,
    pub(crate) replication_factor: usize,
    /// Machines that are no members at first.
    pub(crate) spares: usize,
    /// About how often somebody sees to who the members are; 0: never.
    pub(crate) move_every_ms: u64,
    /// In how many zones the machines stand.
    pub(crate) zones: usize,
    /// Zones, weights, keyspaces and the number of replicas change as well.
    pub(crate) varies: bool,
    /// How many times so much is lost that only a person can have the rest go on.
    pub(crate) great_losses: usize,
    pub(crate) delivery: Delivery,
    pub(crate) delay_ms_max: u64,
    /// Each node's wall clock starts so far ahead, at most.
    pub(crate) skew_ms_max: u64,
    /// How many groups of commits in a hundred wait for a disk that stalls.
    pub(crate) slow_disk_percent: u64,
    pub(crate) faults: Vec<Fault>,
    /// Broken disks, which say that they have synced and have not.
    pub(crate) disks_lie: bool,
    /// About how long it is from one fault to the next.
    pub(crate) fault_every_ms: u64,
    pub(crate) clients: usize,
    pub(crate) keys: Vec<Class>,
    /// How many dials in a hundred reach somebody else.
    pub(crate) misdirected_percent: u64,
    /// How many puts in a hundred expire.
    pub(crate) ttl_percent: u64,
    pub(crate) scan_percent: u64,
    /// In keyspaces that keep siblings, nothing is replaced: a set of unique values, which grows.
    pub(crate) only_adds: bool,
    /// A client waits so long at most before it asks again.
    pub(crate) think_ms_max: u64,
    /// How long there are faults.
    pub(crate) duration_ms: u64,
    pub(crate) settings: Settings,
}

impl Plan {
    /// Three nodes, a good network, no faults.
    pub(crate) fn calm() -> Self {
        Self {
            nodes: 3,
            replication_factor: 3,
            spares: 0,
            move_every_ms: 0,
            zones: 1,
            varies: false,
            great_losses: 0,
            delivery: Delivery::Stream,
            delay_ms_max: 10,
            skew_ms_max: 100,
            slow_disk_percent: 0,
            faults: Vec::new(),
            disks_lie: false,
            fault_every_ms: 500,
            clients: 5,
            keys: vec![Class::Strict, Class::Strict, Class::Cart],
            misdirected_percent: 0,
            ttl_percent: 0,
            scan_percent: 10,
            only_adds: false,
            think_ms_max: 40,
            duration_ms: 5_000,
            settings: Settings::default(),
        }
    }

    /// True if bounds may be reached, and are worth a look at each step.
    pub(crate) fn has_small_bounds(&self) -> bool {
        let usual = Settings::default();
        self.settings.requests_max < usual.requests_max
            || self.settings.writes_max < usual.writes_max
            || self.settings.hint_bytes_max < usual.hint_bytes_max
    }

    /// Mostly something of everything; at times much of what is rare.
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let plan = Self::draw_any(rng);
        let plan = match rng.between(1, 100) {
            1..=15 => plan.in_the_middle(rng),
            16..=20 => plan.by_turns(rng),
            _ => plan,
        };
        let plan = if rng.chance(40) { plan.moving(rng) } else { plan };
        if rng.chance(15) { plan.recovering(rng) } else { plan }
    }

    /// More is lost than the store can bear. Whose disk is a copy is not drawn beside that: a copy of what was called lost
    /// is of a lower incarnation like the original.
    fn recovering(self, rng: &mut Rng) -> Self {
        let moving = if self.moves() { self } else { self.moving(rng) };
        let is_copy = |fault: &Fault| matches!(fault, Fault::RollBack | Fault::Clone);
        Self {
            great_losses: rng.pick(&[1, 1, 2]),
            faults: moving.faults.iter().copied().filter(|fault| !is_copy(fault)).collect(),
            ..moving
        }
    }

    /// Nodes join and leave in the middle of it.
    fn moving(self, rng: &mut Rng) -> Self {
        Self {
            spares: rng.between(1, 3) as usize,
            move_every_ms: rng.pick(&[40, 100, 100, 300]),
            zones: rng.pick(&[1, 1, 2, 3]),
            varies: rng.chance(50),
            ..self
        }
    }

    /// Replicas lose what they have just read or written, while many look at few keys and some links are slow.
    fn in_the_middle(self, rng: &mut Rng) -> Self {
        let (nodes, replication_factor) = rng.pick(&[(5, 3), (5, 3), (5, 3), (5, 5), (3, 3)]);
        let faults = [Fault::InTheMiddle, Fault::SlowLink].into_iter();
        let class = rng.pick(&[Class::Strict, Class::Strict, Class::Cart]);
        Self {
            nodes,
            replication_factor,
            faults: faults.chain(self.faults.into_iter().filter(|_| rng.chance(10))).collect(),
            fault_every_ms: rng.pick(&[40, 80]),
            slow_disk_percent: rng.pick(&[0, 0, 5, 20]),
            keys: vec![class; rng.pick(&[1, 1, 4])],
            scan_percent: rng.pick(&[0, 0, 70]),
            ..self
        }
        .busy(rng)
    }

    /// Logs refuse and take what comes of one key.
    fn by_turns(self, rng: &mut Rng) -> Self {
        let faults = [Fault::FullByTurns].into_iter();
        Self {
            faults: faults.chain(self.faults.into_iter().filter(|_| rng.chance(10))).collect(),
            fault_every_ms: rng.pick(&[100, 200]),
            slow_disk_percent: rng.pick(&[5, 20]),
            keys: vec![Class::Cart],
            ..self
        }
        .busy(rng)
    }

    fn busy(self, rng: &mut Rng) -> Self {
        let delay_ms_max = rng.pick(&[10, 30]);
        let settings = Settings { speculate_ms: self.settings.speculate_ms, ..Settings::default() };
        Self { clients: 12, think_ms_max: 10, duration_ms: 4_000, delay_ms_max, settings, ..self }
    }

    fn draw_any(rng: &mut Rng) -> Self {
        let (nodes, replication_factor) =
            rng.pick(&[(3, 3), (3, 3), (3, 3), (5, 3), (5, 3), (5, 5), (3, 2), (3, 1)]);
        let delivery = if rng.chance(50) {
            Delivery::Stream
        } else {
            let drop_percent_max = rng.pick(&[0, 5, 25]);
            Delivery::Datagrams {
                drop_percent: rng.between(0, drop_percent_max),
                duplicate_percent: rng.pick(&[0, 0, 5, 20]),
            }
        };
        let share = rng.pick(&[10, 25, 60]);
        let faults = Fault::ALL.iter().copied().filter(|_| rng.chance(share)).collect();
        let classes: Vec<_> = Class::ALL.iter().copied().filter(|_| rng.chance(50)).collect();
        let classes = if classes.is_empty() { vec![Class::Strict] } else { classes };
        let count = rng.between(1, 6);
        let keys = (0..count).map(|_| rng.pick(&classes)).collect();
        Self {
            nodes,
            replication_factor,
            spares: 0,
            move_every_ms: 0,
            zones: 1,
            varies: false,
            great_losses: 0,
            delivery,
            delay_ms_max: rng.pick(&[2, 10, 30, 60]),
            skew_ms_max: rng.pick(&[0, 450, 450, 3_000]),
            slow_disk_percent: rng.pick(&[0, 0, 5, 20]),
            faults,
            disks_lie: false,
            fault_every_ms: rng.pick(&[100, 300, 300, 1_000]),
            clients: rng.between(2, 8) as usize,
            keys,
            misdirected_percent: rng.pick(&[0, 0, 0, 30]),
            ttl_percent: rng.pick(&[0, 0, 20, 60]),
            scan_percent: rng.pick(&[0, 5, 20]),
            only_adds: rng.chance(15),
            think_ms_max: rng.pick(&[5, 40, 150]),
            duration_ms: rng.between(3_000, 8_000),
            settings: settings(rng),
        }
    }
}

/// Bounds so small that they are reached, now and then.
fn settings(rng: &mut Rng) -> Settings {
    let usual = Settings::default();
    let few = |rng: &mut Rng, usual: usize, few: usize| if rng.chance(15) { few } else { usual };
    Settings {
        requests_max: few(rng, usual.requests_max, 2),
        writes_max: few(rng, usual.writes_max, 4),
        digest_bytes_min: few(rng, usual.digest_bytes_min, 0),
        // Two hints.
        hint_bytes_max: few(rng, usual.hint_bytes_max, 800),
        hint_age_ms_max: if rng.chance(15) { 1_000 } else { usual.hint_age_ms_max },
        speculate_ms: rng.pick(&[5, usual.speculate_ms, usual.speculate_ms, 10_000]),
        restart_ms: rng.pick(&[0, 0, 200, usual.restart_ms]),
        stored_at_once: rng.pick(&[1, 2, usual.stored_at_once]),
        ..usual
    }
}
