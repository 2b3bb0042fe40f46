//! How much the work of the background may move: one token bucket for all of it, which fills slower the more
//! clients want.
//!
//! Whoever is about to do something asks [`Budget::allows`], and says afterwards what it came to: a size is known
//! only once a record is read. So the bucket may be in debt, by no more than what is under way, and is waited for.

use crate::mutant::{Mutant, is_on};

/// While one request or write is under way, the background has this part of its rate; while two are, half of that, and so
/// on.
const REQUEST_WEIGHT: u64 = 3;
/// The background never gets less than this part of its rate: it would never be done.
const SHARE_MIN: u64 = 8;
/// Over how long those under way are averaged: clients that wait for their answers leave moments in which there are none,
/// and the background would have all of these.
const AVERAGED_MS: u64 = 100;
/// How long an idle bucket fills: what may go out at once.
const BURST_MS: u64 = 250;

/// In bytes; what is left is counted in thousandths of one, so that every millisecond adds a whole number.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes_per_s: u64,
    /// What it fills with at the moment.
    rate: u64,
    left: i64,
    /// How many requests and writes were under way of late, in thousandths.
    busy_thousandths: u64,
    at_ms: u64,
}

impl Budget {
    pub(crate) fn new(bytes_per_s: u64, now_ms: u64) -> Self {
        let bytes_per_s = bytes_per_s.max(SHARE_MIN);
        let left = signed(bytes_per_s * BURST_MS);
        Self { bytes_per_s, rate: bytes_per_s, left, busy_thousandths: 0, at_ms: now_ms }
    }

    /// True if something may be begun now, while so many requests and writes are under way.
    pub(crate) fn allows(&mut self, now_ms: u64, busy: usize) -> bool {
        self.note(now_ms, busy);
        self.left > 0
    }

    /// So many are under way, and were since this was last said: whoever changes that says so before.
    pub(crate) fn note(&mut self, now_ms: u64, busy: usize) {
        let busy = if is_on(Mutant::BackgroundDoesNotYield) { 0 } else { busy };
        let elapsed_ms = now_ms.saturating_sub(self.at_ms);
        self.at_ms = now_ms;
        self.rate =
            (self.bytes_per_s * 1_000 / self.divisor(busy, elapsed_ms)).max(self.bytes_per_s / SHARE_MIN);
        let gained = signed(self.rate.saturating_mul(elapsed_ms));
        self.left = self.left.saturating_add(gained).min(signed(self.bytes_per_s * BURST_MS));
    }

    /// By which part of its rate the background yields, in thousandths: at once to what is under way now, and to what was a
    /// moment ago.
    fn divisor(&mut self, busy: usize, elapsed_ms: u64) -> u64 {
        let now = u64::try_from(busy).unwrap_or(u64::MAX).saturating_mul(1_000);
        let new_ms = elapsed_ms.min(AVERAGED_MS);
        let old = self.busy_thousandths.saturating_mul(AVERAGED_MS - new_ms);
        self.busy_thousandths = old.saturating_add(now.saturating_mul(new_ms)) / AVERAGED_MS;
        self.busy_thousandths.max(now).saturating_mul(REQUEST_WEIGHT).max(1_000)
    }

    pub(crate) fn spend(&mut self, bytes: usize) {
        let spent = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(1_000);
        self.left = self.left.saturating_sub(signed(spent));
    }

    /// When something may be begun again, in milliseconds of the monotonic clock, at the present rate.
    pub(crate) fn ready_at_ms(&self) -> u64 {
        let missing = self.left.saturating_neg().saturating_add(1);
        match u64::try_from(missing) {
            Ok(missing) if missing > 0 => self.at_ms.saturating_add(missing.div_ceil(self.rate.max(1))),
            _ => self.at_ms,
        }
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many bytes go out within ten seconds, in pieces, while so much is under way.
    fn moved(bytes_per_s: u64, piece: usize, busy: usize) -> u64 {
        let mut budget = Budget::new(bytes_per_s, 0);
        let (mut now_ms, mut moved) = (0, 0);
        while now_ms < 10_000 {
            if budget.allows(now_ms, busy) {
                budget.spend(piece);
                moved += piece as u64;
            } else {
                assert!(budget.ready_at_ms() > now_ms, "whoever waits does not wait in vain");
                now_ms = budget.ready_at_ms();
            }
        }
        moved
    }

    #[test]
    fn what_goes_out_keeps_to_the_rate_whatever_the_size_of_its_pieces() {
        for piece in [1, 100, 70_000, 1 << 20] {
            let moved = moved(1 << 20, piece, 0);
            let expected = (10 << 20)..=(10 << 20) + (1 << 18) + piece as u64;
            assert!(expected.contains(&moved), "{moved} in pieces of {piece}");
        }
    }

    #[test]
    fn the_busier_the_node_the_less_goes_out_but_never_nothing() {
        let part = |busy| moved(1 << 20, 1_000, busy) as f64 / moved(1 << 20, 1_000, 0) as f64;
        assert!((0.3..=0.37).contains(&part(1)), "{}", part(1));
        assert!((0.14..=0.2).contains(&part(2)), "{}", part(2));
        assert!((0.12..=0.15).contains(&part(100_000)), "{}", part(100_000));
    }

    /// By how much the bucket fills in ten seconds, when it is said every so many milliseconds what is under way since.
    fn filled(every_ms: usize, is_busy: fn(u64) -> bool) -> i64 {
        let mut budget = Budget::new(1 << 20, 0);
        budget.spend(100 << 20);
        let before = budget.left;
        for now_ms in (0..=10_000).step_by(every_ms) {
            budget.note(now_ms, if is_busy(now_ms) { 8 } else { 0 });
        }
        budget.left - before
    }

    #[test]
    fn a_moment_without_requests_is_not_the_backgrounds() {
        for every_ms in [1, 5, 20] {
            let always = filled(every_ms, |_| true);
            let mostly = filled(every_ms, |ms| ms % 200 >= 20);
            assert!(mostly < always * 3 / 2, "{mostly} beside {always}, said every {every_ms} ms");
            let half = filled(every_ms, |ms| ms % 1_000 < 500);
            assert!(half > always * 2, "what is idle for longer is: {half} beside {always}");
        }
    }

    #[test]
    fn an_idle_bucket_fills_to_its_burst_and_no_further() {
        let mut budget = Budget::new(1_000, 0);
        assert!(budget.allows(3_600_000, 0));
        budget.spend(250);
        assert!(!budget.allows(3_600_000, 0), "a quarter of a second's worth is gone");
    }
}
