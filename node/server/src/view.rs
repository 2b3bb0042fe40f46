//! What the core thread shows of the node to everybody else: a snapshot, replaced as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use keystore_core::id::{Epoch, Generation, NodeId};
use keystore_core::layout::Layout;
use keystore_core::node::{Counters, HintStatus, NodeState, Status};
use keystore_core::partition::{Partition, RecordKey};
use keystore_core::stamp::Stamp;
use keystore_core::transfer::TransferStatus;

/// The node as it was a moment ago; never older than a second while the core thread lives.
#[derive(Debug, Clone)]
pub struct View {
    pub state: NodeState,
    /// True if this node serves requests.
    pub ready: bool,
    pub layout: Option<Arc<Layout>>,
    /// 0 before the core thread has run.
    pub generation: Generation,
    pub connected: Vec<(NodeId, Generation)>,
    pub partitions_owned: usize,
    pub partitions_available: usize,
    pub requests_under_way: usize,
    pub writes_under_way: usize,
    pub latest_stamp: Stamp,
    pub doubted_keys: usize,
    pub doubted: Vec<(RecordKey, u64)>,
    pub doubted_partitions: BTreeSet<Partition>,
    pub doubted_wholly: Vec<(Partition, u64)>,
    pub hints: HintStatus,
    /// The latest epoch that each member has acknowledged, as far as this node has heard.
    pub fences: BTreeMap<NodeId, Epoch>,
    pub transfer: TransferStatus,
    pub move_waits_for: Option<String>,
    pub counters: Counters,
    /// When this was published, by the monotonic clock: how the core thread shows that it lives.
    pub published_ms: u64,
}

impl View {
    /// Before the core thread has run.
    pub fn starting() -> Self {
        Self {
            state: NodeState::Uninitialized,
            ready: false,
            layout: None,
            generation: Generation(0),
            connected: Vec::new(),
            partitions_owned: 0,
            partitions_available: 0,
            requests_under_way: 0,
            writes_under_way: 0,
            latest_stamp: Stamp::from_bytes([0; 16]),
            doubted_keys: 0,
            doubted: Vec::new(),
            doubted_partitions: BTreeSet::new(),
            doubted_wholly: Vec::new(),
            hints: HintStatus::default(),
            fences: BTreeMap::new(),
            transfer: TransferStatus::default(),
            move_waits_for: None,
            counters: Counters::default(),
            published_ms: 0,
        }
    }

    /// The view that follows this one.
    pub fn next(&self, status: Status<'_>, published_ms: u64) -> Self {
        let Status {
            state,
            ready,
            layout,
            generation,
            connected,
            partitions_owned,
            partitions_available,
            requests_under_way,
            writes_under_way,
            stamp_ceiling_ms: _,
            latest_stamp,
            doubted_keys,
            doubted,
            doubted_partitions,
            doubted_wholly,
            hints,
            fences,
            transfer,
            move_waits_for,
            counters,
        } = status;
        let layout = match (&self.layout, layout) {
            (Some(shown), Some(layout)) if **shown == *layout => Some(Arc::clone(shown)),
            (_, layout) => layout.map(|layout| Arc::new(layout.clone())),
        };
        Self {
            state,
            ready,
            layout,
            generation,
            connected,
            partitions_owned,
            partitions_available,
            requests_under_way,
            writes_under_way,
            latest_stamp,
            doubted_keys,
            doubted,
            doubted_partitions,
            doubted_wholly,
            hints,
            fences,
            transfer,
            move_waits_for,
            counters,
            published_ms,
        }
    }

    /// Why this node does not serve, for a person; `None` while it does.
    pub fn obstacle(&self) -> Option<&'static str> {
        match self.state {
            NodeState::Uninitialized => Some("this node belongs to no cluster yet: it waits for init"),
            NodeState::Accepted => Some("waiting until all members have accepted the layout"),
            NodeState::Draining => Some("this node is about to stop"),
            NodeState::Serving if self.ready => None,
            NodeState::Serving => Some(
                "starting: waiting for links to a quorum of the nodes, or for the clock to pass the stamps of the run before",
            ),
        }
    }
}

/// A first layout of these nodes, for tests.
#[cfg(test)]
pub(crate) fn layout_of(members: &[NodeId]) -> Layout {
    use keystore_core::id::{Actor, ClusterId, Incarnation};
    use keystore_core::layout::{FirstLayout, Member};
    let member = |(node, actor): (&NodeId, u64)| Member {
        node: *node,
        actor: Actor(actor),
        name: String::new(),
        zone: String::new(),
        weight: 1,
        is_lost: false,
    };
    Layout::first(FirstLayout {
        cluster: ClusterId([9; 16]),
        incarnation: Incarnation { number: 1, id: 2 },
        partitions: keystore_core::partition::PartitionCount::new(16).unwrap(),
        replication_factor: 1,
        members: members.iter().zip(1..).map(member).collect(),
        keyspaces: Default::default(),
    })
    .unwrap()
}
