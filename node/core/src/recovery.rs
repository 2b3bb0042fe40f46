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
use crate::layout::{Layout, LayoutError, Member, Phase, Term};
use crate::mutant::{Mutant, is_on};
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
    #[error(
        "it was made from an earlier layout than epoch {0}, which is known here to have been in force: ask all that are left once more"
    )]
    Overtaken(Epoch),
    #[error("another layout is just being accepted; try again")]
    Busy,
}

/// A member that is left, as it says itself.
#[derive(Debug, Clone, Copy)]
pub struct Left<'a> {
    /// The layout that it has accepted.
    pub layout: &'a Layout,
    /// True if that is in force at it.
    pub is_serving: bool,
}

/// What is to be done so that those that are left go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempt {
    /// Nothing: a recovery that names all that are lost is in force at all of them.
    InForce,
    /// Some of them have accepted this one, the others have to.
    GoOn(Layout),
    /// This one follows from `before`.
    Begin { before: Box<Layout>, layout: Layout },
}

/// What whoever has heard all that are left has to do next; `id` has never been drawn before.
///
/// Of an attempt that some have accepted, nothing is in force as long as one has not; meanwhile, others may have decided
/// on layouts after the one from which it was made, and moved data. Then it is void: what follows is made from the newest
/// layout that is known to have been in force, even if only an attempt tells of that (those that are left and serve may
/// all have missed it), and comes after all that anybody has accepted.
pub fn plan_attempt(left: &[Left<'_>], losses: &Losses, id: u64) -> Result<Attempt, RecoveryError> {
    let newest = left.iter().map(|left| left.layout).max_by_key(|layout| layout.term());
    let newest = newest.ok_or(RecoveryError::NobodyIsLeft)?;
    let (of_newest, behind): (Vec<&Left<'_>>, Vec<&Left<'_>>) =
        left.iter().partition(|left| left.layout.incarnation == newest.incarnation);
    let has_all = newest.incarnation.number > 1 && losses.nodes.iter().all(|node| newest.is_lost(*node));
    let is_whole = newest.short(losses).is_empty();
    if has_all && is_whole && behind.is_empty() && left.iter().all(|left| left.is_serving) {
        return Ok(Attempt::InForce);
    }
    let number = newest.incarnation.number;
    // Two who asked at the same time may have taken the same number: whoever has accepted one refuses the other.
    let is_in_time = behind.iter().all(|left| {
        left.layout.incarnation.number < number
            && left.layout.epoch < newest.epoch
            && newest.was_made_after(left.layout, left.is_serving)
    });
    // Those that have accepted and do not know of all others will hear of them.
    let is_open = of_newest.iter().all(|left| !left.is_serving) || is_whole && behind.is_empty();
    if has_all && is_in_time && is_open {
        return Ok(Attempt::GoOn(newest.clone()));
    }
    let made_from = |left: &&Left<'_>| {
        let Left { layout, is_serving } = left;
        (layout.stands_on(*is_serving), *is_serving, layout.epoch, layout.incarnation)
    };
    let before = left.iter().max_by_key(made_from).ok_or(RecoveryError::NobodyIsLeft)?;
    let recovered_from = Some(before.layout.stands_on(before.is_serving));
    let epoch = left.iter().map(|left| left.layout.epoch).max().unwrap_or(before.layout.epoch);
    let before = Layout { epoch, ..before.layout.clone() };
    // Whom a void attempt has called lost stays so; who is a member by that alone is none of what is in force.
    let called_lost = newest.members.iter().filter(|member| member.is_lost).map(|member| member.node);
    let is_concerned = |node: &NodeId| before.member(*node).is_some() || newest.member(*node).is_none();
    let nodes = losses.nodes.iter().copied().chain(called_lost).filter(is_concerned).collect();
    let losses = Losses { nodes, doubted: losses.doubted.clone() };
    let layout = before.recovered(Incarnation { number: number + 1, id }, &losses)?;
    let layout = Layout { recovered_from, ..layout };
    Ok(Attempt::Begin { before: Box::new(before), layout })
}

impl Layout {
    /// The newest layout in force that this stands on where it has been accepted: itself, once it is.
    fn stands_on(&self, is_in_force: bool) -> Term {
        self.recovered_from.filter(|_| !is_in_force).unwrap_or(self.term())
    }

    /// True of an attempt that misses nothing of what a member stands on that has accepted `before`.
    pub(crate) fn was_made_after(&self, before: &Layout, is_in_force: bool) -> bool {
        self.recovered_from >= Some(before.stands_on(is_in_force)) || is_on(Mutant::AttemptsOfThePastCount)
    }

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
        next.recovered_from = Some(self.term());
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

    /// The partitions that have too few replicas to trust in a ring in force.
    fn short(&self, losses: &Losses) -> BTreeSet<Partition> {
        let is_short = |partition: &Partition| {
            let is_trusted = |node: &NodeId| {
                let doubted = losses.doubted.get(node);
                let is_lost = self.is_lost(*node) || losses.nodes.contains(node);
                !is_lost && !doubted.is_some_and(|doubted| doubted.contains(partition))
            };
            let sets = self.rings().map(|ring| ring.nodes(*partition));
            let is_quorum = |set: &Vec<NodeId>| {
                set.iter().filter(|node| is_trusted(node)).count() >= Consistency::Quorum.needed(set.len())
            };
            !sets.into_iter().all(|set| is_quorum(&set))
        };
        match is_on(Mutant::ShortPartitionsStay) {
            true => BTreeSet::new(),
            false => self.partitions.all().filter(is_short).collect(),
        }
    }

    /// Gives each partition that has too few replicas to trust a ring of those that are left.
    fn salvage(&mut self, losses: &Losses) {
        let wanted = self.replication_factor;
        let short = match is_on(Mutant::WholePartitionsAreSalvaged) {
            true => self.partitions.all().collect(),
            false => self.short(losses),
        };
        let left = |node: &NodeId| !self.is_lost(*node) || is_on(Mutant::TheLostAreSalvaged);
        let mut salvaged = self.salvaged.clone();
        for (partition, sources) in &mut salvaged {
            // What has been merged of a source that is lost by now may be all that is left of that, and what has been
            // written since is at those that count.
            if !is_on(Mutant::OldSourcesAreEnough) || !sources.iter().all(left) {
                sources.extend(self.replicas(*partition));
            }
            sources.retain(left);
        }
        for partition in &short {
            let sources = salvaged.entry(*partition).or_default();
            sources.extend(self.replicas(*partition).into_iter().filter(left));
            if is_on(Mutant::TheDoubtedAreNoSources) {
                let is_doubted =
                    |node: &NodeId| losses.doubted.get(node).is_some_and(|of| of.contains(partition));
                sources.retain(|node| !is_doubted(node));
            }
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
            let is_source = |node| salvaged.get(partition).is_some_and(|sources| sources.contains(&node));
            for node in fewest_first(*partition, &candidates, &owned) {
                // A new replica begins empty, and what a source has is not merged yet.
                if list.len() < wanted && !is_source(node) {
                    list.push(Replica { node, since: self.epoch });
                    *owned.entry(node).or_default() += 1;
                }
            }
            if list.is_empty() {
                let sources = salvaged.get(partition).into_iter().flatten();
                list.extend(sources.take(1).map(|source| Replica { node: *source, since: Epoch(1) }));
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
            Phase::Joint { from, to } if is_on(Mutant::TheNewRingKeepsTheLost) => {
                Phase::Joint { from: with(from), to: to.clone() }
            }
            Phase::Joint { from, to } => Phase::Joint { from: with(from), to: with(to) },
        };
        (self.phase, self.salvaged) = (phase, salvaged);
    }
}
