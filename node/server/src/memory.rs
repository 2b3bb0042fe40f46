//! The memory for clients' requests: what each of them holds, from when it is received until its answer is sent.
//!
//! What is large leaves a part of the whole to what is small: large values never turn small requests away. What comes
//! alone always fits.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// As much as this may take the last that there is.
pub const SMALL_BYTES: usize = 16 << 10;
/// What is larger leaves one part in so many.
const SMALL_SHARE: usize = 8;

/// All that there is of it.
#[derive(Debug, Clone)]
pub struct Memory {
    left: Arc<Semaphore>,
    bytes: usize,
}

/// A part of it, given back when dropped.
#[derive(Debug)]
pub struct Held {
    of: Memory,
    permit: OwnedSemaphorePermit,
}

/// What is held for answers that were handed to a connection and are not sent yet.
#[derive(Debug, Clone, Default)]
pub struct Unsent(Arc<Mutex<Option<Held>>>);

impl Memory {
    pub fn new(bytes: usize) -> Self {
        Self { left: Arc::new(Semaphore::new(bytes)), bytes }
    }

    /// `None` if there is not so much left.
    pub fn take(&self, bytes: usize) -> Option<Held> {
        let left = self.left.available_permits();
        let is_left_enough = left.saturating_sub(bytes) >= self.bytes / SMALL_SHARE;
        if bytes > SMALL_BYTES && !is_left_enough && left < self.bytes {
            return None;
        }
        let permits = u32::try_from(bytes).ok()?;
        let permit = Arc::clone(&self.left).try_acquire_many_owned(permits).ok()?;
        Some(Held { of: self.clone(), permit })
    }

    #[cfg(test)]
    pub fn left(&self) -> usize {
        self.left.available_permits()
    }
}

impl Held {
    pub fn bytes(&self) -> usize {
        self.permit.num_permits()
    }

    /// Gives back what is too much of it, or takes what it lacks; false if that is not there, and nothing has changed.
    pub fn fit(&mut self, bytes: usize) -> bool {
        if let Some(excess) = self.bytes().checked_sub(bytes) {
            drop(self.permit.split(excess));
            return true;
        }
        let more = self.of.take(bytes - self.bytes());
        more.map(|more| self.merge(more)).is_some()
    }

    /// So much of it, or what there is.
    pub fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes());
        let permit = self.permit.split(bytes).expect("no more than there is");
        Self { of: self.of.clone(), permit }
    }

    pub fn merge(&mut self, other: Self) {
        self.permit.merge(other.permit);
    }
}

impl Unsent {
    pub fn add(&self, held: Option<Held>) {
        let Some(held) = held else { return };
        let mut unsent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match unsent.as_mut() {
            Some(before) => before.merge(held),
            None => *unsent = Some(held),
        }
    }

    /// All of it: whoever takes it sends the answers.
    pub fn take(&self) -> Option<Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: usize = 100 * SMALL_BYTES;

    #[test]
    fn large_ones_leave_a_part_to_small_ones_and_one_alone_always_fits() {
        let memory = Memory::new(ALL);
        assert_eq!(memory.take(ALL).map(|held| held.bytes()), Some(ALL), "alone");
        let large: Vec<_> = std::iter::from_fn(|| memory.take(2 * SMALL_BYTES)).collect();
        assert_eq!(large.len(), 43, "and an eighth is left");
        let small: Vec<_> = std::iter::from_fn(|| memory.take(SMALL_BYTES)).collect();
        assert_eq!(small.len(), 14);
        assert_eq!(memory.left(), 0);
        drop((large, small));
        assert_eq!(memory.left(), ALL);
    }

    #[test]
    fn what_is_held_follows_the_size_of_the_answer() {
        let memory = Memory::new(ALL);
        let mut held = memory.take(SMALL_BYTES).unwrap();
        assert!(held.fit(10));
        assert_eq!(memory.left(), ALL - 10);
        assert!(held.fit(50 * SMALL_BYTES));
        assert_eq!(memory.left(), 50 * SMALL_BYTES);
        assert!(!held.fit(90 * SMALL_BYTES), "too little would be left");
        assert_eq!((held.bytes(), memory.left()), (50 * SMALL_BYTES, 50 * SMALL_BYTES));
        let unsent = Unsent::default();
        unsent.add(Some(held.split(10)));
        unsent.add(Some(held));
        assert_eq!(unsent.take().map(|held| held.bytes()), Some(50 * SMALL_BYTES));
        assert!(unsent.take().is_none());
        assert_eq!(memory.left(), ALL);
    }
}
