//! What waits for a thread that writes: everything is taken at once, so that one sync serves all of it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A bounded queue between the core thread and one writer.
#[derive(Debug)]
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    items_max: usize,
}

#[derive(Debug)]
struct State<T> {
    waiting: Vec<T>,
    is_closed: bool,
}

/// Why a wait for items ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    Items,
    TimedOut,
    /// Nothing waits and nothing will come.
    Closed,
}

impl<T> Queue<T> {
    pub(super) fn new(items_max: usize) -> Self {
        let state = State { waiting: Vec::new(), is_closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new(), items_max }
    }

    /// Hands over all items, waiting while more than the bound is there already. A closed queue drops them: its
    /// writer has failed, and the process is about to end.
    pub(super) fn put(&self, items: &mut Vec<T>) {
        let mut state = self.lock();
        while state.waiting.len() >= self.items_max && !state.is_closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.is_closed {
            items.clear();
            return;
        }
        state.waiting.append(items);
        drop(state);
        self.changed.notify_all();
    }

    /// Takes everything that waits into `items`, which is empty.
    pub(super) fn take(&self, items: &mut Vec<T>, until: Option<Instant>) -> Wait {
        let mut state = self.lock();
        loop {
            if !state.waiting.is_empty() {
                std::mem::swap(&mut state.waiting, items);
                drop(state);
                self.changed.notify_all();
                return Wait::Items;
            }
            if state.is_closed {
                return Wait::Closed;
            }
            let Some(until) = until else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Wait::TimedOut;
            }
            (state, _) = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Nothing more is taken in; what waits is still handed out.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// A poisoned lock still guards a whole state: no code panics while it is changed.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
