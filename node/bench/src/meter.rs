//! What the servers have used in a stretch of time, and what others have.

use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

use crate::proc;
use crate::servers::Servers;

/// Up to this share of one core may go to others. What the kernel does for the servers' disks is among it.
pub(crate) const DISTURBANCE_MAX: f64 = 0.25;

/// Runs from its start until it is read.
pub(crate) struct Meter {
    begun: Instant,
    counters: Counters,
}

#[derive(Debug, Clone, Copy)]
struct Counters {
    busy: Duration,
    servers: Duration,
    own: Duration,
    written: u64,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Used {
    pub(crate) time: Duration,
    /// By the servers, summed.
    pub(crate) cpu: Duration,
    /// To disks, by all servers.
    pub(crate) written: u64,
    /// By all servers, at the end.
    pub(crate) resident: u64,
    /// By this process.
    pub(crate) own: Duration,
    /// By neither these servers nor this process: what disturbed the measurement.
    pub(crate) others: Duration,
}

impl Meter {
    pub(crate) fn start(servers: &Servers) -> Result<Self> {
        Ok(Self { begun: Instant::now(), counters: Counters::read(servers)? })
    }

    pub(crate) fn read(&self, servers: &Servers) -> Result<Used> {
        let time = self.begun.elapsed();
        let (before, after) = (self.counters, Counters::read(servers)?);
        let resident = servers.resident_bytes()?;
        let (cpu, own) = (after.servers.saturating_sub(before.servers), after.own - before.own);
        let written = after.written.saturating_sub(before.written);
        let others = (after.busy.saturating_sub(before.busy)).saturating_sub(cpu + own);
        Ok(Used { time, cpu, written, resident, own, others })
    }
}

impl Counters {
    fn read(servers: &Servers) -> Result<Self> {
        Ok(Self {
            busy: proc::machine_busy()?,
            servers: servers.cpu_time()?,
            own: proc::cpu_time(std::process::id())?,
            written: servers.written_bytes()?,
        })
    }
}

impl Used {
    /// This process's CPU time, as a share of one core: near 1 its one thread was what was measured.
    pub(crate) fn own_share(&self) -> f64 {
        self.own.as_secs_f64() / self.time.as_secs_f64().max(1e-3)
    }

    /// Others' CPU time, as a share of one core.
    pub(crate) fn disturbance(&self) -> f64 {
        self.others.as_secs_f64() / self.time.as_secs_f64().max(1e-3)
    }
}
