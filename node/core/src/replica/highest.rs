//! Which stamps nothing stored is above: what lies there is written without a look at what it replaces.
//!
//! The highest stamp is kept of each bucket of keys, and of what was stored when the process started only one for
//! all: an array that is small however many keys there are. Stamps of one moment that differ in their actors count
//! as equal, so a bound may say less than is so, never more.

use crate::mutant::{Mutant, is_on};
use crate::partition::RecordKey;
use crate::stamp::Stamp;

/// A bucket that several keys share costs a look where their writes overtake each other: of so many, seldom.
const BUCKETS: usize = 1 << 16;

#[derive(Debug)]
pub(super) struct Highest {
    /// Of what was there from the start.
    floor: u64,
    buckets: Vec<u64>,
}

impl Highest {
    /// No record that is stored already has a stamp above this one; `None`: nobody knows.
    pub(super) fn new(stored: Option<Stamp>) -> Self {
        let floor =
            if is_on(Mutant::NothingIsThereAtAStart) { 0 } else { stored.map_or(u64::MAX, Stamp::time) };
        Self { floor, buckets: vec![0; BUCKETS] }
    }

    /// True if no record of the key has this stamp or a higher one.
    pub(super) fn is_below(&self, key: &RecordKey, stamp: Stamp) -> bool {
        let highest = self.buckets.get(bucket(key)).map_or(u64::MAX, |highest| self.floor.max(*highest));
        stamp.time() > highest || is_on(Mutant::OneMomentIsAnOrder) && stamp.time() == highest
    }

    /// A record with this stamp may be stored from now on.
    pub(super) fn raise(&mut self, key: &RecordKey, stamp: Stamp) {
        if let Some(highest) = self.buckets.get_mut(bucket(key)) {
            *highest = stamp.time().max(*highest);
        }
    }
}

fn bucket(key: &RecordKey) -> usize {
    // The cast keeps the low bits on purpose: partitions and slots are made of the high ones.
    key.hash() as usize % BUCKETS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::Actor;

    fn key(n: u32) -> RecordKey {
        RecordKey::new("default", &n.to_be_bytes()).unwrap()
    }

    fn stamp((millis, counter, actor): (u64, u16, u64)) -> Stamp {
        Stamp::new(millis, counter, Actor(actor))
    }

    proptest! {
        #[test]
        fn what_is_called_above_all_is_above_all(
            stored in prop::option::of((0u64..4, 0u16..3, 0u64..3)),
            raised in prop::collection::vec((0u32..70_000, (0u64..4, 0u16..3, 0u64..3)), 0..20),
            asked in (0u64..5, 0u16..3, 0u64..3),
        ) {
            let stored = stored.map(stamp);
            let mut highest = Highest::new(stored);
            for (n, of) in &raised {
                highest.raise(&key(*n), stamp(*of));
            }
            let asked = stamp(asked);
            for (n, _) in &raised {
                if highest.is_below(&key(*n), asked) {
                    prop_assert!(stored.is_some_and(|stored| stored < asked));
                    prop_assert!(raised.iter().all(|(other, of)| other != n || stamp(*of) < asked));
                }
            }
        }
    }

    #[test]
    fn a_key_is_not_looked_up_for_what_another_bucket_holds() {
        let mut highest = Highest::new(Some(stamp((5, 0, 1))));
        let other = (1..).map(key).find(|other| bucket(other) != bucket(&key(0))).unwrap();
        highest.raise(&key(0), stamp((9, 0, 1)));
        assert!(!highest.is_below(&key(0), stamp((9, 0, 2))), "of the same moment");
        assert!(highest.is_below(&key(0), stamp((9, 1, 0))));
        assert!(highest.is_below(&other, stamp((5, 1, 0))));
        assert!(!highest.is_below(&other, stamp((5, 0, 2))));
        assert!(!Highest::new(None).is_below(&key(0), stamp((u64::MAX, u16::MAX, 0))), "nobody knows");
    }
}
