//! The disk guard: watches how full the data directory's disk is and tells the core when writes have to stop.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use keystore_core::effect::Event;
use rustix::fs::statvfs;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::Storage;
use crate::handle::CoreHandle;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Bytes of the file system that holds the data directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUse {
    pub used: u64,
    /// To this process; the file system may keep a reserve for root.
    pub available: u64,
    /// True past the hard limit: client writes are refused.
    pub full: bool,
}

impl DiskUse {
    pub fn total(&self) -> u64 {
        self.used + self.available
    }

    /// As `df` counts it, rounded up.
    pub fn used_percent(&self) -> u64 {
        (self.used * 100).div_ceil(self.total().max(1))
    }
}

pub struct DiskGuard {
    data_dir: PathBuf,
    soft_percent: u64,
    hard_percent: u64,
    is_warned: bool,
    shown: watch::Sender<DiskUse>,
}

impl DiskGuard {
    /// Looks once before anything is served.
    pub fn new(data_dir: PathBuf, storage: &Storage) -> io::Result<Self> {
        let guard = Self {
            data_dir,
            soft_percent: storage.soft_limit_percent.into(),
            hard_percent: storage.hard_limit_percent.into(),
            is_warned: false,
            shown: watch::Sender::default(),
        };
        let used = guard.measure(look(&guard.data_dir)?);
        guard.shown.send_replace(used);
        Ok(guard)
    }

    pub fn watch(&self) -> watch::Receiver<DiskUse> {
        self.shown.subscribe()
    }

    pub async fn run(mut self, core: CoreHandle, cancelled: CancellationToken) {
        core.tell(Event::DiskFull(self.shown.borrow().full));
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancelled.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let path = self.data_dir.clone();
            match tokio::task::spawn_blocking(move || look(&path)).await {
                Ok(Ok(found)) => self.follow(found, &core),
                Ok(Err(error)) => error!(%error, "cannot tell how full the disk is"),
                Err(error) => error!(%error, "cannot tell how full the disk is"),
            }
        }
    }

    fn follow(&mut self, found: DiskUse, core: &CoreHandle) {
        let found = self.measure(found);
        let before = self.shown.send_replace(found);
        let (used_percent, available_bytes) = (found.used_percent(), found.available);
        if found.full != before.full {
            core.tell(Event::DiskFull(found.full));
            if found.full {
                error!(used_percent, available_bytes, "the disk is full, client writes are refused");
            } else {
                info!(used_percent, available_bytes, "the disk has room again, client writes are accepted");
            }
        }
        let is_past_soft = used_percent >= self.soft_percent;
        if is_past_soft && !self.is_warned {
            warn!(used_percent, available_bytes, "the disk is nearly full");
        }
        self.is_warned = is_past_soft;
    }

    fn measure(&self, found: DiskUse) -> DiskUse {
        DiskUse { full: found.used_percent() >= self.hard_percent, ..found }
    }
}

fn look(path: &PathBuf) -> io::Result<DiskUse> {
    let found = statvfs(path)?;
    Ok(DiskUse {
        used: found.f_blocks.saturating_sub(found.f_bfree) * found.f_frsize,
        available: found.f_bavail * found.f_frsize,
        full: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_count_what_this_process_may_use() {
        let disk = |used, available| DiskUse { used, available, full: false };
        assert_eq!(disk(0, 100).used_percent(), 0);
        assert_eq!(disk(1, 999).used_percent(), 1);
        assert_eq!(disk(98, 2).used_percent(), 98);
        assert_eq!(disk(5, 0).used_percent(), 100);
        assert_eq!(disk(0, 0).used_percent(), 0);
    }
}
