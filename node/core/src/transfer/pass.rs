//! One page of a pass: what this node holds of it is read, the source says what is lacking, and that is stored.

use std::collections::{BTreeSet, VecDeque};

use crate::effect::LoadId;
use crate::held::{Digest, Digests, Held};
use crate::id::NodeId;
use crate::message::{Call, ScanRange};
use crate::mutant::{Mutant, is_on};
use crate::partition::RecordKey;
use crate::record::Record;

#[derive(Debug)]
pub(super) struct Pass {
    pub(super) source: NodeId,
    pub(super) operation: u64,
    pub(super) due_ms: u64,
    pub(super) range: ScanRange,
    pub(super) stage: Stage,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// What this node holds is being read.
    Reading(LoadId),
    /// The same, and nobody is asked for it: all others are merged.
    Looking(LoadId),
    /// The source was asked: with one digest of all that is held, or with one of each.
    Asking { holding: Holding, says_each: bool },
    /// What has come is not on disk yet.
    Storing(Storing),
}

/// What this node holds of a page.
#[derive(Debug, Default)]
pub(crate) struct Holding {
    pub(super) each: Vec<Digest>,
    /// Up to this key it has looked; `None`: to the end of the partition.
    pub(super) until: Option<RecordKey>,
    /// What has to be written once more, for then all of it is synced; `None` if it is.
    pub(super) unsynced: Option<(RecordKey, Record)>,
}

#[derive(Debug)]
pub(super) struct Storing {
    /// What is not written yet, numbered.
    pub(super) left: VecDeque<(u32, (RecordKey, Record))>,
    /// What is being written.
    pub(super) written: BTreeSet<u32>,
    /// How far the page goes; `None` if it is the last one.
    pub(super) until: Option<RecordKey>,
    pub(super) has_failed: bool,
}

impl Pass {
    /// True if the source is to answer.
    pub(super) fn is_asking(&self) -> bool {
        matches!(self.stage, Stage::Asking { .. })
    }

    pub(super) fn reads(&self, load: LoadId) -> bool {
        matches!(self.stage, Stage::Reading(reading) | Stage::Looking(reading) if reading == load)
    }

    /// Names what the source is asked for, each time anew.
    pub(super) fn call(&self) -> Call {
        let again = matches!(self.stage, Stage::Asking { says_each: true, .. });
        Call { operation: self.operation, attempt: u32::from(again) }
    }
}

impl Holding {
    pub(crate) fn new(entries: &[(RecordKey, Record)], until: Option<RecordKey>, is_synced: bool) -> Self {
        let each = entries.iter().map(|(key, record)| Digest::of(key, record)).collect();
        let last = entries.last().filter(|_| !is_synced && !is_on(Mutant::HeldIsNotSynced));
        Self { each, until, unsynced: last.map(|(key, record)| (key.detached(), record.clone())) }
    }

    /// What the source is told.
    pub(super) fn said(&self, says_each: bool) -> Held {
        let each = if is_on(Mutant::WhatIsHeldIsNotSaid) { &[] } else { &self.each[..] };
        let digests = match says_each || each.is_empty() {
            true => Digests::Each(each.to_vec()),
            false => Digests::All(Digest::of_all(each)),
        };
        Held { until: self.until.clone(), digests }
    }
}
