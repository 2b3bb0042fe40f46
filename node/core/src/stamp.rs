//! The stamp that orders all writes, and the hybrid logical clock that issues it.
//!
//! A stamp is 48 bits of milliseconds, 16 bits of counter and the 64-bit actor of the node that issued it, so
//! stamps are unique and totally ordered. Source: Kulkarni et al., "Logical Physical Clocks" (2014). The clock
//! issues only below a ceiling that was made durable ahead of use, and starts at the ceiling of the run before:
//! no stamp is ever issued twice, whatever the wall clock does.

use std::fmt;

use thiserror::Error;

use crate::id::Actor;
use crate::mutant::{Mutant, is_on};

const MILLIS_MAX: u64 = (1 << 48) - 1;

/// A write's place in the total order of writes: its global sequence number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    millis: u64,
    counter: u16,
    actor: Actor,
}

impl Stamp {
    /// None is below it.
    pub const LOWEST: Self = Self { millis: 0, counter: 0, actor: Actor(0) };

    /// `millis` beyond 48 bits are cut down to the highest that fits.
    pub fn new(millis: u64, counter: u16, actor: Actor) -> Self {
        Self { millis: millis.min(MILLIS_MAX), counter, actor }
    }

    /// Milliseconds since the Unix epoch.
    pub fn millis(self) -> u64 {
        self.millis
    }

    pub fn actor(self) -> Actor {
        self.actor
    }

    /// Milliseconds and counter: its place in the order, but for stamps of one moment by several actors.
    pub(crate) fn time(self) -> u64 {
        self.millis << 16 | u64::from(self.counter)
    }

    /// Big-endian, so that bytes order as stamps do.
    pub fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.time()) << 64 | u128::from(self.actor.0)).to_be_bytes()
    }

    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let value = u128::from_be_bytes(bytes);
        // The casts keep the low bits on purpose: that is how the fields are packed.
        let high = (value >> 64) as u64;
        Self { millis: high >> 16, counter: high as u16, actor: Actor(value as u64) }
    }

    /// Reads 16 bytes; `None` for any other length.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::from_bytes)
    }
}

/// 32 hexadecimal digits, which sort as stamps do.
impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.to_bytes()))
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}@{:x}", self.millis, self.counter, self.actor.0)
    }
}

/// The clock may not issue before a higher ceiling is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the stamp ceiling has to be raised and made durable first")]
pub struct CeilingReached;

/// How far ahead of the clock the ceiling is raised. A restart waits at most this long before it issues again.
pub const CEILING_STEP_MS: u64 = 1_000;

/// A hybrid logical clock of one actor.
#[derive(Debug, Clone)]
pub struct HybridClock {
    actor: Actor,
    millis: u64,
    counter: u16,
    /// Durable: no stamp with these or later milliseconds has been issued.
    ceiling_ms: u64,
    wanted_ms: u64,
}

impl HybridClock {
    /// `ceiling_ms` is what was durable when the node started; everything issued from now on is above it.
    pub fn new(actor: Actor, ceiling_ms: u64) -> Self {
        let millis = if is_on(Mutant::StartsBelowTheCeiling) { 0 } else { ceiling_ms };
        Self { actor, millis, counter: 0, ceiling_ms, wanted_ms: ceiling_ms }
    }

    /// Issues the next stamp: above all issued and all observed before, at least at the wall clock.
    pub fn issue(&mut self, wall_ms: u64) -> Result<Stamp, CeilingReached> {
        let (millis, counter) = self.next(wall_ms);
        if millis >= self.ceiling_ms && !is_on(Mutant::CeilingIsIgnored) {
            return Err(CeilingReached);
        }
        (self.millis, self.counter) = (millis, counter);
        Ok(Stamp::new(millis, counter, self.actor))
    }

    /// Raises the clock to a stamp seen elsewhere, so that what is issued next is above it.
    pub fn observe(&mut self, stamp: Stamp) {
        if (stamp.millis, stamp.counter) > (self.millis, self.counter) {
            (self.millis, self.counter) = (stamp.millis, stamp.counter);
        }
    }

    /// The ceiling to make durable now, if issuing would soon need one: asked once for each value.
    pub fn wanted_ceiling(&mut self, wall_ms: u64) -> Option<u64> {
        let (millis, _) = self.next(wall_ms);
        if millis + CEILING_STEP_MS / 2 < self.wanted_ms {
            return None;
        }
        self.wanted_ms = millis + CEILING_STEP_MS;
        Some(self.wanted_ms)
    }

    /// `ceiling_ms` is durable now.
    pub fn raise_ceiling(&mut self, ceiling_ms: u64) {
        self.ceiling_ms = self.ceiling_ms.max(ceiling_ms);
    }

    pub fn ceiling_ms(&self) -> u64 {
        self.ceiling_ms
    }

    /// The highest stamp issued or observed, as this actor's.
    pub fn latest(&self) -> Stamp {
        Stamp::new(self.millis, self.counter, self.actor)
    }

    /// True for the stamp of a fresh write that lies more than `skew_ms_max` ahead of the higher of both clocks.
    pub fn is_too_far_ahead(&self, stamp: Stamp, wall_ms: u64, skew_ms_max: u64) -> bool {
        stamp.millis > self.millis.max(wall_ms).saturating_add(skew_ms_max)
    }

    fn next(&self, wall_ms: u64) -> (u64, u16) {
        if wall_ms > self.millis {
            return (wall_ms, 0);
        }
        match self.counter.checked_add(1) {
            Some(counter) => (self.millis, counter),
            None => (self.millis + 1, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ready_clock(actor: u64) -> HybridClock {
        let mut clock = HybridClock::new(Actor(actor), 0);
        clock.raise_ceiling(u64::MAX);
        clock
    }

    proptest! {
        #[test]
        fn bytes_order_as_stamps_do(a in any::<(u64, u16, u64)>(), b in any::<(u64, u16, u64)>()) {
            let [a, b] = [a, b].map(|(millis, counter, actor)| Stamp::new(millis, counter, Actor(actor)));
            prop_assert_eq!(a.cmp(&b), a.to_bytes().cmp(&b.to_bytes()));
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
            prop_assert_eq!(Stamp::from_bytes(a.to_bytes()), a);
        }

        #[test]
        fn stamps_only_grow_whatever_the_wall_clock_does(walls in prop::collection::vec(0u64..1_000_000, 1..200)) {
            let mut clock = ready_clock(7);
            let mut last = None;
            for wall in walls {
                let stamp = clock.issue(wall).unwrap();
                prop_assert!(Some(stamp) > last);
                prop_assert!(stamp.millis() >= wall);
                last = Some(stamp);
            }
        }

        #[test]
        fn what_is_issued_is_above_what_was_observed(wall in 0u64..1000, seen in 0u64..2000, counter: u16) {
            let mut clock = ready_clock(1);
            let other = Stamp::new(seen, counter, Actor(u64::MAX));
            clock.observe(other);
            prop_assert!(clock.issue(wall).unwrap() > other);
        }
    }

    #[test]
    fn nothing_is_issued_at_or_above_the_ceiling() {
        let mut clock = HybridClock::new(Actor(1), 500);
        assert_eq!(clock.issue(499), Err(CeilingReached));
        assert_eq!(clock.wanted_ceiling(499), Some(500 + CEILING_STEP_MS));
        assert_eq!(clock.wanted_ceiling(499), None, "asked once");
        clock.raise_ceiling(1500);
        assert!(clock.issue(1499).is_ok());
        assert_eq!(clock.issue(1500), Err(CeilingReached));
    }

    #[test]
    fn after_a_restart_all_stamps_are_above_those_of_the_run_before() {
        let mut before = HybridClock::new(Actor(1), 0);
        before.raise_ceiling(2000);
        let last = before.issue(1999).unwrap();
        let mut after = HybridClock::new(Actor(1), 2000);
        after.raise_ceiling(9000);
        assert!(after.issue(100).unwrap() > last, "even when the wall clock was set back");
    }

    #[test]
    fn a_stamp_far_ahead_of_both_clocks_is_noticed() {
        let mut clock = ready_clock(1);
        let stamp = |millis| Stamp::new(millis, 0, Actor(2));
        assert!(!clock.is_too_far_ahead(stamp(1500), 1000, 500));
        assert!(clock.is_too_far_ahead(stamp(1501), 1000, 500));
        clock.observe(stamp(2000));
        assert!(!clock.is_too_far_ahead(stamp(2500), 1000, 500), "the logical clock counts as well");
    }
}
