//! The disk guard: watches how full the data directory's disk is and tells the core when writes have to stop.

use std::path::PathBuf;
use std::time::Duration;

use keystore_core::effect::Event;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::Storage;
use crate::handle::CoreHandle;
use crate::storage::{DiskError, DiskUsage};

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The space of the file system that holds the data directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUse {
    pub space: DiskUsage,
    /// True past the hard limit: client writes are refused.
    pub full: bool,
}

pub struct DiskGuard {
    data_dir: PathBuf,
    soft_percent: u8,
    hard_percent: u8,
    is_warned: bool,
    shown: watch::Sender<DiskUse>,
}

impl DiskGuard {
    /// Looks once before anything is served.
    pub fn new(data_dir: PathBuf, storage: &Storage) -> Result<Self, DiskError> {
        let guard = Self {
            data_dir,
            soft_percent: storage.soft_limit_percent,
            hard_percent: storage.hard_limit_percent,
            is_warned: false,
            shown: watch::Sender::default(),
        };
        let used = guard.measure(DiskUsage::of(&guard.data_dir)?);
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
            match tokio::task::spawn_blocking(move || DiskUsage::of(&path)).await {
                Ok(Ok(found)) => self.follow(found, &core),
                Ok(Err(error)) => error!(%error, "cannot tell how full the disk is"),
                Err(error) => error!(%error, "cannot tell how full the disk is"),
            }
        }
    }

    fn follow(&mut self, space: DiskUsage, core: &CoreHandle) {
        let found = self.measure(space);
        let before = self.shown.send_replace(found);
        let (used_percent, available_bytes) = (space.used_percent(), space.available);
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

    fn measure(&self, space: DiskUsage) -> DiskUse {
        DiskUse { space, full: space.used_percent() >= self.hard_percent }
    }
}
