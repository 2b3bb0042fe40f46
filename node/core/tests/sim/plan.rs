//! What a run is made of, drawn from its seed: each seed gets a few kinds of fault, each with an intensity of its
//! own ("swarm testing", Groce et al. 2012), so that faults which hide each other also come alone.

use keystore_core::node::Settings;

use crate::faults::Fault;
use crate::rng::Rng;

/// Every request's deadline.
pub(crate) const TIMEOUT_MS: u64 = 2_000;

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
    pub(crate) keys: u64,
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
            delivery: Delivery::Stream,
            delay_ms_max: 10,
            skew_ms_max: 100,
            slow_disk_percent: 0,
            faults: Vec::new(),
            disks_lie: false,
            fault_every_ms: 500,
            clients: 5,
            keys: 3,
            think_ms_max: 40,
            duration_ms: 5_000,
            settings: Settings::default(),
        }
    }

    pub(crate) fn draw(rng: &mut Rng) -> Self {
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
        Self {
            nodes,
            replication_factor,
            delivery,
            delay_ms_max: rng.pick(&[2, 10, 30, 60]),
            skew_ms_max: rng.pick(&[0, 450, 450, 3_000]),
            slow_disk_percent: rng.pick(&[0, 0, 5, 20]),
            faults,
            disks_lie: false,
            fault_every_ms: rng.pick(&[100, 300, 300, 1_000]),
            clients: rng.between(2, 8) as usize,
            keys: rng.between(1, 6),
            think_ms_max: rng.pick(&[5, 40, 150]),
            duration_ms: rng.between(3_000, 8_000),
            settings: Settings::default(),
        }
    }
}
