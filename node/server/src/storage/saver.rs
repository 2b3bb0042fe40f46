//! The thread that replaces the small states: a save is reported once its file is on disk under its name.

use std::mem::discriminant;
use std::sync::Arc;

use keystore_core::effect::{SaveId, SavedState};

use super::counters::Counters;
use super::data_dir::DataDir;
use super::error::FatalError;
use super::historian::Historian;
use super::queue::{Queue, Wait};

/// Saves that may wait: core asks for few at a time.
pub(super) const SAVES_WAITING_MAX: usize = 256;

pub(super) struct Saver {
    pub(super) data_dir: Arc<DataDir>,
    pub(super) queue: Arc<Queue<(SaveId, SavedState)>>,
    pub(super) report: Box<dyn FnMut(Vec<SaveId>) + Send>,
    pub(super) counters: Arc<Counters>,
    pub(super) historian: Historian,
}

impl Saver {
    /// Saves until the queue is closed.
    pub(super) fn run(mut self) -> Result<(), FatalError> {
        self.historian.write(&self.data_dir);
        let mut waiting = Vec::new();
        while self.queue.take(&mut waiting, None) != Wait::Closed {
            for state in newest_of_each_run(&waiting) {
                self.data_dir.save(state)?;
                self.counters.states_saved.add(1);
                self.historian.saved(state);
            }
            (self.report)(waiting.drain(..).map(|(id, _)| id).collect());
            self.historian.write(&self.data_dir);
        }
        Ok(())
    }
}

/// A state replaces the ones of its kind before it, so of a run of one kind only the last has to be written. What was asked
/// for before another kind is on disk before that: what a layout relies on, for one, must not come after it.
fn newest_of_each_run(waiting: &[(SaveId, SavedState)]) -> impl Iterator<Item = &SavedState> {
    let runs = waiting.chunk_by(|(_, before), (_, after)| discriminant(before) == discriminant(after));
    runs.filter_map(|run| run.last()).map(|(_, state)| state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_replaced_at_once_is_not_written() {
        let ceiling = SavedState::StampCeiling;
        let asked = [
            ceiling(1),
            ceiling(2),
            SavedState::SetAside,
            ceiling(3),
            SavedState::Votes(Default::default()),
            SavedState::Votes(Default::default()),
            ceiling(4),
        ];
        let waiting: Vec<_> = asked.into_iter().zip(1..).map(|(state, id)| (SaveId(id), state)).collect();
        let written: Vec<_> = newest_of_each_run(&waiting).cloned().collect();
        let votes = SavedState::Votes(Default::default());
        assert_eq!(written, [ceiling(2), SavedState::SetAside, ceiling(3), votes, ceiling(4)]);
    }
}
