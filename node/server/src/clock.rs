//! Both clocks of the process, in the milliseconds that core counts in.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use keystore_core::effect::Now;

/// Cheap to copy; all copies share one origin.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
    offset_ms: i64,
}

impl Clock {
    /// `offset_ms` is added to the wall clock.
    pub fn new(offset_ms: i64) -> Self {
        Self { origin: Instant::now(), offset_ms }
    }

    pub fn now(&self) -> Now {
        // A wall clock before 1970 reads as 1970: stamps then follow the ceiling alone.
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            mono_ms: millis(self.origin.elapsed()),
            wall_ms: millis(wall).saturating_add_signed(self.offset_ms),
        }
    }

    pub fn mono_ms(&self) -> u64 {
        millis(self.origin.elapsed())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
