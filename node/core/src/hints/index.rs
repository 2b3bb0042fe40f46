//! The hints in memory: by age, by target and key, and by what their target is given next.
//!
//! It keeps its maps in step: every hint is in exactly one of its target's sets, the one of its stage, and bytes are
//! those of all hints. How much a target is given at a time stands here, what happens to a hint in [`super`].

use std::collections::{BTreeMap, BTreeSet};

use crate::effect::LoadId;
use crate::id::NodeId;
use crate::partition::RecordKey;

/// What a hint takes up beside its key: its places in four ordered maps, whose nodes are half empty, and the
/// allocation of the key.
const HINT_BYTES: usize = 320;

/// How many hints are on their way to one target: enough to fill a link, few enough that a target which dies in the
/// middle of them holds little.
const WINDOW: usize = 32;
/// How long a target that refuses is left alone: this, twice as long after each refusal in a row, up to the most.
const PAUSE_MS: u64 = 200;
const PAUSE_MS_MAX: u64 = 10_000;

/// Names a hint in memory: the older, the lower.
pub(super) type Number = u64;

#[derive(Debug)]
pub(super) struct Kept {
    pub(super) target: NodeId,
    /// In memory of its own: what came in a frame or from a log would keep all of that in memory.
    pub(super) key: RecordKey,
    /// By the monotonic clock: see [`super::HintStore::new`].
    pub(super) expires_ms: u64,
    pub(super) stage: Stage,
    pub(super) awaits: Awaits,
    /// It was asked for again after its record was.
    pub(super) is_renewed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Ready,
    /// Until then.
    Resting(u64),
    /// Within the target's window, until then.
    UnderWay(u64),
}

/// What will be heard of a hint. The answer of a target that has taken too long is good as long as no other is asked
/// for: else one that is always slow would be handed the same for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaits {
    Nothing,
    Record(LoadId),
    Answer(u64),
}

#[derive(Debug, Default)]
pub(super) struct Target {
    pub(super) bytes: usize,
    pub(super) ready: BTreeSet<Number>,
    pub(super) resting: BTreeSet<(u64, Number)>,
    pub(super) under_way: BTreeSet<(u64, Number)>,
    /// Refusals and silences since it last took something.
    pub(super) failures: u32,
    pub(super) paused_until_ms: u64,
}

#[derive(Debug, Default)]
pub(super) struct Index {
    /// By age, so also by the time at which they expire.
    pub(super) hints: BTreeMap<Number, Kept>,
    pub(super) numbers: BTreeMap<(NodeId, RecordKey), Number>,
    pub(super) targets: BTreeMap<NodeId, Target>,
    pub(super) bytes: usize,
    last: Number,
}

impl Index {
    pub(super) fn insert(
        &mut self,
        (target, key): (NodeId, RecordKey),
        expires_ms: u64,
        stage: Stage,
    ) -> Number {
        self.last += 1;
        let number = self.last;
        self.bytes += cost(&key);
        self.targets.entry(target).or_default().bytes += cost(&key);
        self.numbers.insert((target, key.clone()), number);
        let awaits = Awaits::Nothing;
        self.hints.insert(number, Kept { target, key, expires_ms, stage, awaits, is_renewed: false });
        self.stage(number, stage);
        number
    }

    pub(super) fn remove(&mut self, number: Number) -> Option<Kept> {
        let kept = self.hints.remove(&number)?;
        self.numbers.remove(&(kept.target, kept.key.clone()));
        self.bytes -= cost(&kept.key);
        if let Some(target) = self.targets.get_mut(&kept.target) {
            target.bytes -= cost(&kept.key);
            target.take(number, kept.stage);
            if target.len() == 0 {
                self.targets.remove(&kept.target);
            }
        }
        Some(kept)
    }

    pub(super) fn stage(&mut self, number: Number, stage: Stage) {
        let Some(kept) = self.hints.get_mut(&number) else { return };
        let Some(target) = self.targets.get_mut(&kept.target) else { return };
        target.take(number, kept.stage);
        kept.stage = stage;
        match stage {
            Stage::Ready => target.ready.insert(number),
            Stage::Resting(until) => target.resting.insert((until, number)),
            Stage::UnderWay(until) => target.under_way.insert((until, number)),
        };
    }
}

impl Target {
    pub(super) fn len(&self) -> usize {
        self.ready.len() + self.resting.len() + self.under_way.len()
    }

    /// A target that has failed gets one at a time until it takes one.
    pub(super) fn has_room(&self) -> bool {
        let window = if self.failures == 0 { WINDOW } else { 1 };
        !self.ready.is_empty() && self.under_way.len() < window
    }

    pub(super) fn pause_ms(&self) -> u64 {
        (PAUSE_MS << self.failures.saturating_sub(1)).min(PAUSE_MS_MAX)
    }

    pub(super) fn take(&mut self, number: Number, stage: Stage) {
        match stage {
            Stage::Ready => self.ready.remove(&number),
            Stage::Resting(until) => self.resting.remove(&(until, number)),
            Stage::UnderWay(until) => self.under_way.remove(&(until, number)),
        };
    }
}

pub(super) fn cost(key: &RecordKey) -> usize {
    HINT_BYTES + key.encoded().len()
}
