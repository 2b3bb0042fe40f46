//! Recovery: how a cluster goes on that has lost the majority of its voters, or so many replicas of a partition that no
//! quorum is left. Nothing can be decided then, so a person decides: who is lost, and that what is left is enough.
//!
//! The layout that follows has a new incarnation. Each member that is left accepts it durably, in place of whatever it
//! belonged to, and serves under it only once all of them have: no two attempts are ever in force at one node, and
//! whoever missed one speaks as a lower incarnation, to which nobody listens. Phase and rings stay. Only a partition of
//! which too few replicas are left that can be trusted gets one ring of what is left, and is salvaged: whatever was
//! acknowledged and can be had at all is at one of the nodes that held it, so its replicas merge all of these before
//! they count.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::id::{ClusterId, Epoch, Incarnation, NodeId};
use crate::layout::{Layout, LayoutError, Member, Phase};
use crate::partition::Partition;
use crate::placement::fewest_first;
use crate::quorum::Consistency;
use crate::ring::{Replica, Ring};

/// What a person, and the nodes that are left, have said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Losses {
    /// Dead for good; those that are so already need not be named.
    pub nodes: BTreeSet<NodeId>,
    /// The partitions of which a node that is left may have lost something.
    pub doubted: BTreeMap<NodeId, BTreeSet<Partition>>,
}

/// Why there is no layout to recover with.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RecoveryError {
    #[error("{0} is no member")]
    NoMember(NodeId),
    #[error("nobody is left")]
    NobodyIsLeft,
    #[error("incarnation {found} is not above {now}, which is in force")]
    Incarnation { now: u64, found: u64 },
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// Why a node does not accept the layout of a recovery. It has changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RecoveryRefusal {
    #[error("this node belongs to no cluster: there is nothing to recover")]
    NotInitialized,
    #[error("this node belongs to cluster {0}")]
    OtherCluster(ClusterId),
    #[error("{0} is no member of this layout, or is named lost")]
    NoSurvivor(NodeId),
    #[error("incarnation {now} is accepted here: an attempt takes a higher number, not {found}")]
    Incarnation { now: u64, found: u64 },
    #[error("epoch {now} is accepted here: the layout has to come after that, not be of epoch {found}")]
    Epoch { now: Epoch, found: Epoch },
    #[error("another layout is just being accepted; try again")]
    Busy,
}

impl Layout {
    /// The layout under which those that are not lost go on.
    pub fn recovered(&self, incarnation: Incarnation, losses: &Losses) -> Result<Layout, RecoveryError> {
        if incarnation.number <= self.incarnation.number {
            let (now, found) = (self.incarnation.number, incarnation.number);
            return Err(RecoveryError::Incarnation { now, found });
        }
        if let Some(stranger) = losses.nodes.iter().find(|node| self.member(**node).is_none()) {
            return Err(RecoveryError::NoMember(*stranger));
        }
        let mut next = self.clone();
        next.incarnation = incarnation;
        next.epoch = Epoch(self.epoch.0 + 1);
        next.phase_since = next.epoch;
        for member in &mut next.members {
            member.is_lost |= losses.nodes.contains(&member.node);
        }
        if next.members.iter().all(|member| member.is_lost) {
            return Err(RecoveryError::NobodyIsLeft);
        }
        next.keep_somebody();
        next.salvage(losses);
        next.elect(&BTreeSet::new());
        next.validate()?;
        Ok(next)
    }

    /// Where only members are left that were to go, they stay.
    fn keep_somebody(&mut self) {
        if self.members.iter().any(|member| !member.is_lost && member.weight > 0) {
            return;
        }
        for member in self.members.iter_mut().filter(|member| !member.is_lost) {
            member.weight = 1;
        }
    }

    /// Gives each partition that has too few replicas to trust a ring of those that are left.
    fn salvage(&mut self, losses: &Losses) {
        let wanted = self.replication_factor;
        let is_trusted = |partition: Partition, node: &NodeId| {
            let is_doubted = losses.doubted.get(node).is_some_and(|doubted| doubted.contains(&partition));
            !is_doubted && !self.is_lost(*node)
        };
        let is_short = |partition: &Partition| {
            let trusted = |node: &NodeId| is_trusted(*partition, node);
            let sets: Vec<_> = self.rings().map(|ring| ring.nodes(*partition)).collect();
            let is_quorum = |set: &Vec<NodeId>| {
                set.iter().filter(|node| trusted(node)).count() >= Consistency::Quorum.needed(set.len())
            };
            !sets.iter().all(is_quorum)
        };
        let short: BTreeSet<_> = self.partitions.all().filter(is_short).collect();
        let left = |node: &NodeId| !self.is_lost(*node);
        let mut salvaged = self.salvaged.clone();
        for sources in salvaged.values_mut() {
            sources.retain(left);
        }
        for partition in &short {
            let sources = salvaged.entry(*partition).or_default();
            sources.extend(self.replicas(*partition).into_iter().filter(left));
        }
        let kept = |partition: Partition| -> Vec<Replica> {
            let nodes = self.replicas(partition).into_iter().filter(left).take(wanted);
            let since = |node| self.since(partition, node).unwrap_or(self.epoch);
            nodes.map(|node| Replica { node, since: since(node) }).collect()
        };
        let rings = self.rings().cloned().collect::<Vec<_>>();
        let left_over = |member: &&Member| !member.is_lost && member.weight > 0;
        let candidates: Vec<_> = self.members.iter().filter(left_over).map(Member::candidate).collect();
        // What is left of short partitions, filled up with whoever has the least.
        let mut lists: BTreeMap<_, _> =
            short.iter().map(|partition| (*partition, kept(*partition))).collect();
        let to = rings.last().cloned().unwrap_or_else(|| self.ring().clone());
        let mut owned: BTreeMap<_, _> = candidates
            .iter()
            .map(|candidate| {
                let elsewhere = to.iter().filter(|(partition, _)| !short.contains(partition));
                let elsewhere = elsewhere.filter(|(partition, _)| to.is_replica(*partition, candidate.node));
                let kept = lists.values().flatten().filter(|replica| replica.node == candidate.node);
                (candidate.node, (elsewhere.count() + kept.count()) as u64)
            })
            .collect();
        for (partition, list) in &mut lists {
            for node in fewest_first(*partition, &candidates, &owned) {
                if list.len() < wanted && !list.iter().any(|replica| replica.node == node) {
                    list.push(Replica { node, since: self.epoch });
                    *owned.entry(node).or_default() += 1;
                }
            }
        }
        let with = |ring: &Ring| {
            let list = |(partition, replicas): (Partition, &[Replica])| {
                lists.get(&partition).cloned().unwrap_or_else(|| replicas.to_vec())
            };
            Ring::new(ring.iter().map(list).collect())
        };
        let phase = match &self.phase {
            Phase::Stable(ring) => Phase::Stable(with(ring)),
            Phase::Joint { from, to } => Phase::Joint { from: with(from), to: with(to) },
        };
        (self.phase, self.salvaged) = (phase, salvaged);
    }
}
