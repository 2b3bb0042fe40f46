//! How far sled may be ahead of its disk.
//!
//! sled hands each segment that it has filled to a pool of seven threads and goes on filling the next one, however
//! slow the disk is: what waits there is memory without a bound. Worse, once seven writes wait for a lock whose
//! holder waits for a truncation that is queued behind them, sled has stopped for ever. So the engine waits for the
//! disk before so many segments can be under way.
//!
//! What an operation writes is known only afterwards: a link of some bytes now and then rewrites its whole page,
//! and those of others to make room. The number of operations between two waits follows what the last ones wrote.

/// Half of what seven threads have in their hands.
const LOG_BYTES: usize = 6 << 20;
const ITEM_BYTES_MAX: usize = 2 << 20;
const OPERATIONS_MIN: usize = 16;
const OPERATIONS_MAX: usize = 1_024;

#[derive(Debug)]
pub(super) struct Lead {
    operations: usize,
    item_bytes: usize,
    operations_max: usize,
}

impl Default for Lead {
    fn default() -> Self {
        Self { operations: 0, item_bytes: 0, operations_max: OPERATIONS_MIN }
    }
}

impl Lead {
    /// One more operation; true if it is time to wait for the disk.
    pub(super) fn wrote(&mut self, item_bytes: usize) -> bool {
        self.operations += 1;
        self.item_bytes += item_bytes;
        self.operations >= self.operations_max || self.item_bytes >= ITEM_BYTES_MAX
    }

    /// The disk has everything; this many bytes had been missing.
    pub(super) fn caught_up(&mut self, log_bytes: usize) {
        let each = log_bytes / self.operations.max(1);
        let affordable = LOG_BYTES.checked_div(each).unwrap_or(usize::MAX);
        // More by steps, less at once.
        self.operations_max = affordable.min(2 * self.operations_max).clamp(OPERATIONS_MIN, OPERATIONS_MAX);
        (self.operations, self.item_bytes) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Operations until the disk is waited for.
    fn operations(lead: &mut Lead, item_bytes: usize) -> usize {
        (1..).find(|_| lead.wrote(item_bytes)).unwrap_or_default()
    }

    #[test]
    fn the_lead_follows_what_operations_write() {
        let mut lead = Lead::default();
        let mut last = operations(&mut lead, 100);
        assert_eq!(last, OPERATIONS_MIN, "nothing is known at first");
        for _ in 0..20 {
            lead.caught_up(last * 300);
            let next = operations(&mut lead, 100);
            assert!(next <= 2 * last);
            last = next;
        }
        assert_eq!(last, OPERATIONS_MAX);
        lead.caught_up(last * 60_000);
        last = operations(&mut lead, 100);
        assert_eq!(last, LOG_BYTES / 60_000, "large pages are noticed at once");
        lead.caught_up(last * (1 << 20));
        assert_eq!(operations(&mut lead, 100), OPERATIONS_MIN);
        lead.caught_up(0);
        assert_eq!(operations(&mut lead, ITEM_BYTES_MAX / 2), 2, "large items count by their bytes");
    }
}
