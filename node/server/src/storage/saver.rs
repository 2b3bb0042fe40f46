//! The thread that replaces the small states: a save is reported once its file is on disk under its name.

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
            for (_, state) in newest_of_each(&waiting) {
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

/// A state replaces the ones of its kind before it, so only the last of each has to be written.
fn newest_of_each(waiting: &[(SaveId, SavedState)]) -> impl Iterator<Item = &(SaveId, SavedState)> {
    waiting.iter().enumerate().filter_map(|(index, save)| {
        let mut later = waiting.iter().skip(index + 1);
        let is_replaced =
            later.any(|(_, state)| std::mem::discriminant(state) == std::mem::discriminant(&save.1));
        (!is_replaced).then_some(save)
    })
}
