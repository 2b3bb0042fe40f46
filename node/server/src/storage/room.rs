//! Decides, from what is free on the disk and what is still to be written there, whether commits go on and whether a
//! checkpoint is due. Looks at nothing by itself.
//!
//! The invariant: whatever commits were let through, the next flush fits.

use std::time::Duration;

use super::disk_usage::DiskUsage;

/// Below this many free bytes, or a quarter of the disk if that is less, commits are refused: the engine could not
/// store them any more, and it cannot be told to stop half-way. What its next flush needs as a whole is not free.
const FREE_BYTES_MIN: u64 = 16 << 20;
const FREE_SHARE_MIN: u64 = 4;

/// A checkpoint for which there was no space is tried again so long after its end, however little was appended
/// meanwhile: nobody says when space comes back, and while commits are refused nothing is appended.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// What is free, and what wants it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Space {
    pub(super) usage: DiskUsage,
    /// See [`super::engine::Storage::reserve_bytes`].
    pub(super) reserve_bytes: u64,
    /// See [`super::engine::Storage::unwritten_bytes`].
    pub(super) unwritten_bytes: u64,
}

impl Space {
    fn free_bytes(self) -> u64 {
        self.usage.available.saturating_sub(self.reserve_bytes)
    }

    fn kept_bytes(self) -> u64 {
        FREE_BYTES_MIN.min(self.usage.total / FREE_SHARE_MIN)
    }

    /// One more commit might not fit.
    pub(super) fn is_low(self) -> bool {
        self.free_bytes().saturating_sub(self.unwritten_bytes) < self.kept_bytes()
    }

    /// A flush now leaves more room than one later. Always so before anything is refused that a flush could help.
    pub(super) fn is_tight(self) -> bool {
        let room = self.free_bytes().saturating_sub(self.kept_bytes());
        self.unwritten_bytes > 0 && room / 2 < self.unwritten_bytes
    }
}

/// What asks for checkpoints, beside a disk that fills up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Interval {
    /// Of log, as configured.
    pub(super) checkpoint_bytes: u64,
    /// See [`super::engine::Storage::flush_bytes`].
    pub(super) flush_bytes: u64,
    /// See [`super::engine::Storage::wants_flush`].
    pub(super) wants_flush: bool,
}

impl Interval {
    /// How much log makes a checkpoint due, given the space that was found last.
    pub(super) fn log_bytes(self, space: Option<Space>) -> u64 {
        let Self { checkpoint_bytes, flush_bytes, wants_flush } = self;
        let is_early = wants_flush || space.is_some_and(Space::is_tight);
        let every = if is_early { 1 } else { checkpoint_bytes };
        // An engine that writes itself down as a whole does so once the log has grown by as much: no byte of a
        // client is then written more than twice on the average. Where commits are refused, the log never would.
        if space.is_some_and(Space::is_low) { every } else { every.max(flush_bytes) }
    }
}

/// What decides whether a checkpoint begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct SinceCheckpoint {
    /// To the log, since the last one began.
    pub(super) appended_bytes: u64,
    /// How long ago it ended without having found space.
    pub(super) put_off_for: Option<Duration>,
}

impl SinceCheckpoint {
    /// True once so much was appended, or once it is time to look for space again.
    pub(super) fn is_due(self, every_bytes: u64) -> bool {
        match self.put_off_for {
            Some(put_off_for) => put_off_for >= TRY_AGAIN,
            None => self.appended_bytes >= every_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn space([total, available, reserve, unwritten]: [u64; 4]) -> Space {
        let usage = DiskUsage { total: total * MIB, available: available * MIB };
        Space { usage, reserve_bytes: reserve * MIB, unwritten_bytes: unwritten * MIB }
    }

    #[test]
    fn commits_are_refused_where_the_next_flush_might_not_fit() {
        for (sizes, is_low, is_tight) in [
            // Total, available, reserve, unwritten.
            ([1_000, 500, 0, 0], false, false),
            ([1_000, 16, 0, 0], false, false),
            ([1_000, 15, 0, 0], true, false),
            ([40, 10, 0, 0], false, false),
            ([40, 9, 0, 0], true, false),
            ([1_000, 500, 485, 0], true, false),
            ([1_000, 500, 0, 242], false, false),
            ([1_000, 500, 0, 243], false, true),
            ([1_000, 500, 200, 143], false, true),
            ([1_000, 500, 0, 484], false, true),
            ([1_000, 500, 0, 485], true, true),
            ([1_000, 20, 0, 5], true, true),
            ([1_000, 0, 0, 1], true, true),
        ] {
            let space = space(sizes);
            assert_eq!((space.is_low(), space.is_tight()), (is_low, is_tight), "{sizes:?}");
        }
    }

    #[test]
    fn whatever_a_flush_could_help_is_tight_before_it_is_low() {
        for available in 0..100 {
            for unwritten in 1..100 {
                let space = space([1_000, available, 3, unwritten]);
                assert!(!space.is_low() || space.is_tight(), "{space:?}");
            }
        }
    }

    #[test]
    fn checkpoints_come_sooner_where_space_is_short() {
        let (wide, tight, low) =
            (space([1_000, 500, 0, 1]), space([1_000, 50, 0, 20]), space([1_000, 50, 49, 0]));
        for (flush_bytes, wants_flush, space, log_bytes) in [
            (0, false, None, 64),
            (0, true, None, 1),
            (0, false, Some(wide), 64),
            (0, false, Some(tight), 1),
            (0, true, Some(wide), 1),
            (200, false, None, 200),
            (200, false, Some(wide), 200),
            (200, false, Some(low), 64),
        ] {
            let interval = Interval { checkpoint_bytes: 64, flush_bytes, wants_flush };
            assert_eq!(interval.log_bytes(space), log_bytes, "{interval:?}, {space:?}");
        }
    }

    #[test]
    fn a_checkpoint_is_due_by_what_was_appended_and_after_a_pause_once_it_was_put_off() {
        let millis = |millis| Some(Duration::from_millis(millis));
        for (appended_bytes, put_off_for, is_due) in [
            (99, None, false),
            (100, None, true),
            (0, millis(999), false),
            (0, millis(1_000), true),
            (100, millis(999), false),
        ] {
            let since = SinceCheckpoint { appended_bytes, put_off_for };
            assert_eq!(since.is_due(100), is_due, "{since:?}");
        }
    }
}
