//! The history of layouts that this node has taken up: shown to people, and kept in a small file beside the others.
//!
//! It is information and nothing else. So a file that cannot be written is not the end of the process, and one that cannot
//! be read is begun anew. Whoever asks sees a layout in it as soon as it is on disk; the file follows.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use keystore_core::effect::SavedState;
use keystore_core::history::{Changes, Entry, History};
use keystore_core::layout::Layout;
use tokio::sync::watch;

use super::data_dir::DataDir;
use super::found::Found;

#[derive(Debug)]
pub(super) struct Historian {
    shown: watch::Sender<Arc<History>>,
    /// The layout that was in force here last.
    latest: Option<Layout>,
    is_written: bool,
}

impl Historian {
    pub(super) fn new(found: &Found) -> Self {
        let mut history = found.history.clone();
        let in_force = found.membership.as_ref().filter(|(_, decided)| *decided);
        // The process may have ended before this was noted.
        let is_news = in_force.is_some_and(|(layout, _)| history.note(Entry::new(layout, None, None)));
        let latest = in_force.map(|(layout, _)| layout.clone());
        Self { shown: watch::channel(Arc::new(history)).0, latest, is_written: !is_news }
    }

    pub(super) fn watch(&self) -> watch::Receiver<Arc<History>> {
        self.shown.subscribe()
    }

    /// A state is on disk.
    pub(super) fn saved(&mut self, state: &SavedState) {
        let SavedState::Layout { layout, decided: true } = state else { return };
        let mut history = History::clone(&self.shown.borrow());
        if history.note(Entry::new(layout, self.changes_to(layout), Some(wall_ms()))) {
            self.shown.send_replace(Arc::new(history));
            self.is_written = false;
        }
        self.latest = Some(layout.clone());
    }

    fn changes_to(&self, layout: &Layout) -> Option<Changes> {
        match &self.latest {
            Some(before) => Some(Changes::between(before, layout)),
            None if layout.epoch.0 == 1 => Some(Changes::of_first()),
            None => None,
        }
    }

    /// Brings the file up to date.
    pub(super) fn write(&mut self, data_dir: &DataDir) {
        if self.is_written {
            return;
        }
        let history = Arc::clone(&self.shown.borrow());
        match data_dir.save_history(&history) {
            Ok(()) => self.is_written = true,
            // With the next state that is saved it is tried again.
            Err(error) => tracing::warn!(%error, "the history of layouts cannot be written"),
        }
    }
}

fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
