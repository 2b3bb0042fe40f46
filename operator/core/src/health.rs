//! How the store is, as far as the operator can see.
//!
//! A member counts as up only if it answered, under the UUID that the layout names, that it serves. What was not
//! seen is reported as unseen, never as gone. A member that holds nothing is missed by nobody.

use std::collections::{BTreeMap, BTreeSet};

use keystore_core::id::NodeId;
use keystore_core::layout::{Layout, Member};
use keystore_core::quorum::Consistency;

use crate::identity::{Identity, replaced};
use crate::observed::{NodeAnswer, NodeMode, Observed};
use crate::validate::ValidCluster;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// No layout is in force yet.
    NotInitialized,
    /// Every partition has its write quorum.
    Met,
    /// So many partitions lack it.
    Lost { partitions: usize },
    /// No node says anything about it.
    Unseen,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    pub availability: Availability,
    /// Pods whose node should serve and does not, or cannot be reached.
    pub down: Vec<String>,
    /// Pods whose node serves and does not reach the quorum of every partition.
    pub cut_off: Vec<String>,
    /// Pods whose node came back as another one, or was given up as lost, with what it held.
    pub replaced: Vec<String>,
}

/// `was_in_force`: the status remembers a layout that nobody shows at the moment.
pub fn assess(valid: &ValidCluster, identity: &Identity, observed: &Observed, was_in_force: bool) -> Health {
    match identity {
        Identity::InForce { layout } => assess_layout(valid, layout, observed),
        Identity::Unknown { silent } if was_in_force => Health {
            availability: Availability::Unseen,
            down: silent.iter().map(|ordinal| valid.names.pod(*ordinal)).collect(),
            cut_off: Vec::new(),
            replaced: Vec::new(),
        },
        Identity::AllReplaced => Health {
            availability: Availability::Lost { partitions: usize::from(valid.partitions.get()) },
            down: Vec::new(),
            cut_off: Vec::new(),
            replaced: observed.heard().map(|(ordinal, _)| valid.names.pod(ordinal)).collect(),
        },
        Identity::Conflict { .. } => Health {
            availability: Availability::Unseen,
            down: Vec::new(),
            cut_off: Vec::new(),
            replaced: Vec::new(),
        },
        Identity::Unknown { .. }
        | Identity::Accepting { .. }
        | Identity::Empty { .. }
        | Identity::Nameless
        | Identity::Impossible { .. } => Health {
            availability: Availability::NotInitialized,
            down: Vec::new(),
            cut_off: Vec::new(),
            replaced: Vec::new(),
        },
    }
}

fn assess_layout(valid: &ValidCluster, layout: &Layout, observed: &Observed) -> Health {
    let heard = by_node(observed);
    let replaced = replaced(valid, layout, observed);
    let serving: BTreeSet<NodeId> =
        layout.members.iter().filter(|m| !m.is_lost && serves(m, &heard)).map(|m| m.node).collect();
    let is_replaced = |member: &Member| member.is_lost || replaced.values().any(|node| *node == member.node);
    let holders = || layout.members.iter().filter(|member| layout.rings().any(|r| r.owned(member.node) > 0));
    let down = holders().filter(|member| !serving.contains(&member.node) && !is_replaced(member));
    let partitions = layout.partitions.get().into();
    let reached = |member: &Member| heard.get(&member.node).map_or(0, |answer| answer.partitions_available);
    let serves = |member: &&Member| serving.contains(&member.node);
    let cut_off = holders().filter(serves).filter(|member| reached(member) < partitions);
    let best = layout.members.iter().filter(serves).map(reached).max().unwrap_or(0);
    Health {
        availability: if heard.is_empty() {
            Availability::Unseen
        } else {
            availability(layout, &serving, best)
        },
        down: in_order(valid, down.map(|member| member.name.clone()).collect()),
        cut_off: in_order(valid, cut_off.map(|member| member.name.clone()).collect()),
        replaced: in_order(
            valid,
            holders().filter(|member| is_replaced(member)).map(|member| member.name.clone()).collect(),
        ),
    }
}

/// demo-2 before demo-10.
fn in_order(valid: &ValidCluster, mut pods: Vec<String>) -> Vec<String> {
    pods.sort_by_key(|pod| (valid.names.ordinal(pod), pod.clone()));
    pods.dedup();
    pods
}

/// What was heard, by the UUID that answered.
pub fn by_node(observed: &Observed) -> BTreeMap<NodeId, &NodeAnswer> {
    observed.heard().map(|(_, answer)| (answer.node, answer)).collect()
}

fn serves(member: &Member, heard: &BTreeMap<NodeId, &NodeAnswer>) -> bool {
    heard.get(&member.node).is_some_and(|answer| answer.mode == NodeMode::Serving)
}

/// A partition is lost if too few of its replicas serve, or if no node reaches enough of those that do: `best` is of
/// how many partitions the best connected node reaches a quorum.
fn availability(layout: &Layout, serving: &BTreeSet<NodeId>, best: u32) -> Availability {
    let has_quorum = |partition: &_| {
        layout.replica_sets(*partition).satisfied(Consistency::Quorum, |node| serving.contains(node))
    };
    let without = layout.partitions.all().filter(|partition| !has_quorum(partition)).count();
    let unreached = usize::from(layout.partitions.get()).saturating_sub(best as usize);
    match without.max(unreached) {
        0 => Availability::Met,
        partitions => Availability::Lost { partitions },
    }
}
