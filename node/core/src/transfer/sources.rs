//! Which sources are asked: one that keeps us waiting, or refuses, holds up neither its partitions, while others can be
//! asked, nor others'.

use std::collections::BTreeMap;

use crate::id::NodeId;
use crate::partition::{Partition, RecordKey};

/// How long a source is not asked again: doubled from one failure to the next up to the second.
const SHUN_MS: (u64, u64) = (500, 15_000);

#[derive(Debug, Default)]
pub(super) struct Sources {
    /// Of one partition, by those who refuse it; of all, by those who say nothing.
    shunned: BTreeMap<(NodeId, Option<Partition>), Shunned>,
    /// How far passes had come that go on with another source.
    left_off: BTreeMap<(Partition, NodeId), Option<RecordKey>>,
}

#[derive(Debug)]
struct Shunned {
    until_ms: u64,
    for_ms: u64,
}

impl Sources {
    pub(super) fn shun(&mut self, source: NodeId, of: Option<Partition>, now_ms: u64) {
        let before = self.shunned.get(&(source, of)).map_or(0, |shunned| shunned.for_ms);
        let for_ms = (before * 2).clamp(SHUN_MS.0, SHUN_MS.1);
        self.shunned.insert((source, of), Shunned { until_ms: now_ms + for_ms, for_ms });
    }

    pub(super) fn answered(&mut self, source: NodeId, partition: Partition) {
        self.shunned.remove(&(source, None));
        self.shunned.remove(&(source, Some(partition)));
    }

    /// From when on a source may be asked for a partition.
    pub(super) fn ready_at_ms(&self, source: NodeId, partition: Partition) -> u64 {
        let until = |of| self.shunned.get(&(source, of)).map_or(0, |shunned| shunned.until_ms);
        until(None).max(until(Some(partition)))
    }

    pub(super) fn leave_off(&mut self, partition: Partition, source: NodeId, after: Option<RecordKey>) {
        self.left_off.insert((partition, source), after);
    }

    /// All passes of a partition begin anew.
    pub(super) fn forget(&mut self, partition: Partition) {
        self.left_off.retain(|(of, _), _| *of != partition);
    }

    /// Behind which key a pass goes on.
    pub(super) fn resume(&mut self, partition: Partition, source: NodeId) -> Option<RecordKey> {
        self.left_off.remove(&(partition, source)).flatten()
    }
}
