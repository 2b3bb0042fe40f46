//! What others want to take over from here: pages are read for them as far as the budget of the background allows.
//!
//! Each of the nodes that join has a budget of its own, and all of them ask the same few sources: that their clients
//! notice nothing is for the source to see to. Whoever asked first is served first; what nobody waits for any more is
//! dropped.

use std::collections::VecDeque;

use crate::context::Context;
use crate::held::Held;
use crate::id::NodeId;
use crate::message::{Call, Message, Refusal, ScanOutcome, ScanRange};
use crate::mutant::{Mutant, is_on};

/// A node asks for four pages at a time, and a layout has not many more members than this allows.
const WAITING_MAX: usize = 512;
/// How many pages are read at a time: what each costs is known only afterwards.
pub(crate) const READ_AT_ONCE_MAX: usize = 4;
/// Whoever asks gives up as long again after this: what is read by then has time to arrive.
const PATIENCE_MS: u64 = 2_500;

/// A page that somebody wants to take over.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) from: NodeId,
    pub(crate) call: Call,
    pub(crate) range: ScanRange,
    /// What it holds already; `None` for all that is left of a partition that is salvaged.
    pub(crate) held: Option<Held>,
}

#[derive(Debug, Default)]
pub(crate) struct Giving {
    /// With the moment at which nobody waits for it any more.
    waiting: VecDeque<(Wanted, u64)>,
}

impl Giving {
    pub(crate) fn ask(&mut self, wanted: Wanted, context: &mut Context<'_>) {
        if self.waiting.len() < WAITING_MAX {
            return self.waiting.push_back((wanted, context.now.mono_ms + PATIENCE_MS));
        }
        let outcome = ScanOutcome::Refused(Refusal::Overloaded);
        let answer = Message::ScanAnswer { call: wanted.call, outcome, noted: Vec::new() };
        context.send(wanted.from, answer);
    }

    /// The page to be read next, if one may be.
    pub(crate) fn next(&mut self, context: &mut Context<'_>) -> Option<Wanted> {
        let now_ms = context.now.mono_ms;
        self.waiting.retain(|(_, until_ms)| *until_ms > now_ms);
        let is_unbounded = is_on(Mutant::SourcesAreUnbounded);
        if self.waiting.is_empty() || !context.budget.allows(now_ms, context.busy) && !is_unbounded {
            return None;
        }
        self.waiting.pop_front().map(|(wanted, _)| wanted)
    }

    /// When the next page may be read.
    pub(crate) fn next_wakeup_ms(&self, ready_at_ms: u64) -> Option<u64> {
        self.waiting.front().map(|_| ready_at_ms)
    }

    /// Another layout is in force: whoever has asked asks anew.
    pub(crate) fn begin_epoch(&mut self) {
        self.waiting.clear();
    }

    /// A node is no longer reached, or known as a later generation.
    pub(crate) fn lose(&mut self, node: NodeId) {
        self.waiting.retain(|(wanted, _)| wanted.from != node);
    }
}
