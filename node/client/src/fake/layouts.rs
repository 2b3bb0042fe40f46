//! How layouts follow each other in the fake: by the rules of core, and by what nodes say of themselves, which the test
//! decides. Nothing is voted upon, and no data moves.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use keystore_core::id::{Actor, ClusterId, Epoch, Incarnation, NodeId};
use keystore_core::layout::{FirstLayout, Layout, Member};
use keystore_core::partition::{Partition, PartitionCount};
use keystore_core::succession::{Change, Evidence, Standing, Step, check_gate, check_step};
use keystore_proto::client::reason;
use keystore_proto::v1;
use tonic::{Code, Status};

use super::{Fate, Shared, outcome};

/// What a partition has: see the disk of a fake.
const PARTITION_BYTES: u64 = 1 << 20;

/// The node with a UUID of this byte, called node-`n`.
pub fn member(n: u8) -> Member {
    Member {
        node: NodeId([n; 16]),
        actor: Actor(n.into()),
        name: format!("node-{n}"),
        zone: String::new(),
        weight: 1,
        is_lost: false,
    }
}

/// Epoch 1 on these members, with 16 partitions.
pub fn first_layout(members: Vec<Member>, replication_factor: usize) -> Layout {
    let first = Layout::first(FirstLayout {
        cluster: ClusterId([0xc1; 16]),
        incarnation: Incarnation { number: 1, id: 1 },
        partitions: PartitionCount::new(16).expect("16 is a power of two"),
        replication_factor,
        members,
        keyspaces: BTreeMap::new(),
    });
    first.expect("what a test asks for can be")
}

#[derive(Default)]
pub(super) struct Layouts {
    /// The latest epoch that a node acknowledges; of all others, any.
    pub held: BTreeMap<NodeId, Epoch>,
    pub cut_off: BTreeSet<NodeId>,
    /// How many partitions a node takes over with each look at it; all at once if `None`.
    pub pace: Option<usize>,
    pub fates: VecDeque<Fate>,
    /// How often any node was asked how it is.
    pub statuses: usize,
    /// What nodes have taken over, and in the phase that began with which epoch.
    merged: BTreeMap<(NodeId, Epoch), BTreeSet<Partition>>,
}

impl Layouts {
    /// Which epoch a node has acknowledged; 0 if it is no member.
    pub(super) fn fence(&self, layout: &Layout, node: NodeId) -> Epoch {
        match (layout.member(node), self.held.get(&node)) {
            (None, _) => Epoch(0),
            (Some(_), Some(held)) => layout.epoch.min(*held),
            (Some(_), None) => layout.epoch,
        }
    }

    pub(super) fn are_connected(&self, one: NodeId, other: NodeId) -> bool {
        !self.cut_off.contains(&one) && !self.cut_off.contains(&other)
    }

    /// A node takes over some more.
    pub(super) fn go_on(&mut self, layout: &Layout, node: NodeId) {
        self.statuses += 1;
        let Some(pace) = self.pace else { return };
        let merged = self.merged.entry((node, layout.phase_since)).or_default();
        let more: Vec<_> =
            to_take_over(layout, node).filter(|partition| !merged.contains(partition)).take(pace).collect();
        merged.extend(more);
    }

    pub(super) fn transfer(&self, layout: &Layout, node: NodeId) -> v1::TransferStatus {
        let done = self.merged(layout, node).len();
        let waits_for = match layout.is_joint() {
            true => check_gate(layout, Step::Finish, &self.evidence(layout)).err(),
            false => None,
        };
        v1::TransferStatus {
            partitions: to_take_over(layout, node).count() as u32,
            partitions_done: done as u32,
            records: done as u64,
            bytes: done as u64 * PARTITION_BYTES,
            records_held: 0,
            remaining_ms: (done > 0 && waits_for.is_some()).then_some(90_000),
            waits_for: waits_for.map(|error| error.to_string()).unwrap_or_default(),
        }
    }

    fn merged(&self, layout: &Layout, node: NodeId) -> BTreeSet<Partition> {
        match self.pace {
            None => to_take_over(layout, node).collect(),
            Some(_) => self.merged.get(&(node, layout.phase_since)).cloned().unwrap_or_default(),
        }
    }

    fn evidence(&self, layout: &Layout) -> Evidence {
        let standing = |node: NodeId| Standing {
            fence: self.fence(layout, node),
            phase: layout.phase_since,
            whole: self.merged(layout, node),
            ..Standing::default()
        };
        layout.members.iter().map(|member| (member.node, standing(member.node))).collect()
    }
}

fn to_take_over(layout: &Layout, node: NodeId) -> impl Iterator<Item = Partition> {
    let mut partitions = Vec::new();
    if layout.is_joint() {
        partitions.extend(layout.partitions.all());
    }
    let takes_over = move |partition: &Partition| {
        layout.has_to_merge(*partition) && layout.ring().is_replica(*partition, node)
    };
    partitions.into_iter().filter(takes_over)
}

/// Decides on a proposal, or does what the script says.
pub(super) fn propose(shared: &mut Shared, expected: Epoch, next: Layout) -> Result<Layout, Status> {
    let unfit = |problem: String| Status::internal(problem);
    match shared.layouts.fates.pop_front() {
        None => decide(shared, expected, next),
        Some(Fate::Answer(status)) => Err(status),
        Some(Fate::DecideAndAnswer(status)) => decide(shared, expected, next).and(Err(status)),
        Some(Fate::TooLate(other)) => {
            change(shared, &other).map_err(unfit)?;
            decide(shared, expected, next)
        }
        Some(Fate::Outvoted(other)) => {
            change(shared, &other).map_err(unfit)?;
            shared.layout.clone().ok_or_else(|| unfit("no layout".to_owned()))
        }
    }
}

/// Makes a change as somebody else would.
pub(super) fn change(shared: &mut Shared, change: &Change) -> Result<(), String> {
    let now = shared.layout.as_ref().ok_or("no layout")?;
    let (epoch, next) = (now.epoch, now.next(change).map_err(|error| error.to_string())?);
    decide(shared, epoch, next).map(drop).map_err(|status| status.message().to_owned())
}

fn decide(shared: &mut Shared, expected: Epoch, next: Layout) -> Result<Layout, Status> {
    let now = shared.layout.as_ref();
    let now = now.ok_or_else(|| outcome(Code::FailedPrecondition, reason::NOT_INITIALIZED, 0, 0))?;
    if now.epoch != expected {
        return Err(outcome(Code::FailedPrecondition, reason::STALE_EPOCH, 0, 0));
    }
    let step = check_step(now, &next).map_err(|error| refused(&error))?;
    check_gate(now, step, &shared.layouts.evidence(now)).map_err(|error| refused(&error))?;
    let is_begin_or_end = matches!(step, Step::Begin | Step::Finish);
    if is_begin_or_end && let Some(late) = shared.layouts.late(now) {
        return Err(refused(&format!(
            "epoch {} is not acknowledged by {late}, which can be reached",
            now.epoch
        )));
    }
    // Whoever is named joins.
    shared.accepted.extend(next.members.iter().map(|member| (member.node, true)));
    shared.take_up(next.clone());
    Ok(next)
}

impl Layouts {
    /// A member that can be reached and has not acknowledged the layout.
    fn late(&self, layout: &Layout) -> Option<NodeId> {
        let reachable = layout.members.iter().filter(|member| !self.cut_off.contains(&member.node));
        reachable.map(|member| member.node).find(|node| self.fence(layout, *node) < layout.epoch)
    }
}

/// As [`outcome`], in the words of core.
fn refused(why: &dyn std::fmt::Display) -> Status {
    let status = outcome(Code::FailedPrecondition, reason::LAYOUT_REFUSED, 0, 0);
    let details = bytes::Bytes::copy_from_slice(status.details());
    Status::with_details(status.code(), format!("the layout cannot follow: {why}"), details)
}
