//! The disk guard: watches how full the data directory's disk is and tells the core when writes have to stop. What the
//! directory keeps of a node that it is not any more goes before that.
//!
//! What the engine will need for its next flush counts as used: it has to be there when that time comes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use keystore_core::effect::Event;
use keystore_core::node::NodeState;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::Storage;
use crate::handle::CoreHandle;
use crate::storage::{DiskUsage, EngineError, EngineSize, Keeping, SetAside, Storage as Engine};

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The space of the file system that holds the data directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUse {
    pub space: DiskUsage,
    pub engine: EngineSize,
    /// How much of what is used is kept of a node that this directory is not any more: it goes when it is in the way.
    pub set_aside_bytes: u64,
    /// How much of what is available the engine's next flush will take.
    pub reserve_bytes: u64,
    /// True past the hard limit: client writes are refused.
    pub full: bool,
}

impl DiskUse {
    fn used_percent(&self) -> u8 {
        let available = self.space.available.saturating_sub(self.reserve_bytes);
        DiskUsage { available, ..self.space }.used_percent()
    }
}

pub struct DiskGuard {
    data_dir: PathBuf,
    engine: Arc<dyn Engine>,
    soft_percent: u8,
    hard_percent: u8,
    keeping: Keeping,
    set_aside: Option<SetAside>,
    is_warned: bool,
    shown: watch::Sender<DiskUse>,
}

impl DiskGuard {
    /// Looks once before anything is served.
    pub fn new(data_dir: PathBuf, engine: Arc<dyn Engine>, storage: &Storage) -> Result<Self, EngineError> {
        let set_aside = SetAside::of(&data_dir)?;
        let found = look(&data_dir, &*engine, (storage.hard_limit_percent, set_aside))?;
        let keeping = Keeping {
            soft_percent: storage.soft_limit_percent,
            hard_percent: storage.hard_limit_percent,
            keep: Duration::from_secs(u64::from(storage.set_aside_keep_hours) * 3_600),
        };
        Ok(Self {
            data_dir,
            engine,
            soft_percent: storage.soft_limit_percent,
            hard_percent: storage.hard_limit_percent,
            keeping,
            set_aside,
            is_warned: false,
            shown: watch::Sender::new(found),
        })
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
            let (path, engine) = (self.data_dir.clone(), Arc::clone(&self.engine));
            let known = (self.hard_percent, self.set_aside);
            match tokio::task::spawn_blocking(move || look(&path, &*engine, known)).await {
                Ok(Ok(found)) => self.follow(found, &core),
                Ok(Err(error)) => error!(%error, "cannot tell how full the disk is"),
                Err(error) => error!(%error, "cannot tell how full the disk is"),
            }
            self.clear_set_aside(core.view().state == NodeState::Serving).await;
        }
    }

    /// What was set aside goes once it is in the way, or old.
    async fn clear_set_aside(&mut self, is_serving: bool) {
        let Some(set_aside) = self.set_aside else { return };
        let used_percent = self.shown.borrow().used_percent();
        let Some(why) = set_aside.obstacle(self.keeping, used_percent, is_serving) else { return };
        let path = self.data_dir.clone();
        let bytes = set_aside.bytes;
        match tokio::task::spawn_blocking(move || SetAside::remove(&path)).await {
            Ok(Ok(())) => {
                info!(bytes, why, "what was set aside is removed");
                self.set_aside = None;
            }
            Ok(Err(error)) => warn!(%error, why, "what was set aside cannot be removed"),
            Err(error) => warn!(%error, why, "what was set aside cannot be removed"),
        }
    }

    fn follow(&mut self, found: DiskUse, core: &CoreHandle) {
        let before = self.shown.send_replace(found);
        let used_percent = found.used_percent();
        let (available_bytes, reserve_bytes) = (found.space.available, found.reserve_bytes);
        if found.full != before.full {
            core.tell(Event::DiskFull(found.full));
            if found.full {
                error!(
                    used_percent,
                    available_bytes, reserve_bytes, "the disk is full, client writes are refused"
                );
            } else {
                info!(
                    used_percent,
                    available_bytes, reserve_bytes, "the disk has room again, client writes are accepted"
                );
            }
        }
        let is_past_soft = used_percent >= self.soft_percent;
        if is_past_soft && !self.is_warned {
            warn!(used_percent, available_bytes, reserve_bytes, "the disk is nearly full");
        }
        self.is_warned = is_past_soft;
    }
}

fn look(
    data_dir: &Path,
    engine: &dyn Engine,
    (hard_percent, set_aside): (u8, Option<SetAside>),
) -> Result<DiskUse, EngineError> {
    let reserve_bytes = engine.reserve_bytes();
    let set_aside_bytes = set_aside.map_or(0, |set_aside| set_aside.bytes);
    let (space, engine) = (DiskUsage::of(data_dir)?, engine.size()?);
    let mut found = DiskUse { space, engine, set_aside_bytes, reserve_bytes, full: false };
    found.full = found.used_percent() >= hard_percent;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_engine_will_need_counts_as_used() {
        let space = DiskUsage { total: 1000, available: 600 };
        for (reserve_bytes, percent) in [(0, 40), (100, 50), (590, 99), (600, 100), (u64::MAX, 100)] {
            let used = DiskUse { space, reserve_bytes, ..DiskUse::default() };
            assert_eq!(used.used_percent(), percent, "{reserve_bytes} bytes");
        }
    }
}
