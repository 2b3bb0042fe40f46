//! Which layout may follow which: what may change at all, and what has to be so before it does.
//!
//! A move takes three layouts: `stable(A)`, `joint(A, B)`, `stable(B)`; from `joint` it may go back to `stable(A)` at any
//! time. So operations of neighbouring epochs always share a replica. Two gates keep it so across several epochs: a
//! change of rings waits until too few replicas are left that would take part in an operation of the phase before
//! (*fences*), and the new ring stands alone only once its replicas have merged what the old one held (*merges*).
//!
//! All of it is a function of two layouts and of what members have said of themselves ([`Evidence`]), so that whoever
//! proposes and whoever votes judge alike.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::id::{Epoch, NodeId};
use crate::layout::{KeyspaceMode, Layout, LayoutError, Member, Phase, choose_voters};
use crate::mutant::{Mutant, is_on};
use crate::partition::Partition;
use crate::placement::rearrange;
use crate::quorum::Consistency;
use crate::ring::{Replica, Ring};

/// What somebody wants of the next layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Begin to move the data to exactly these members; those who hold data now and are not named are to leave.
    Move { members: Vec<Member>, replication_factor: usize },
    /// These nodes as well, or these other zones and weights of members; they hold nothing before data moves to them. A
    /// member that is to go gets weight 0: no vote that is still to come out can give it data any more.
    Admit(Vec<Member>),
    /// The data has moved: the new ring stands alone.
    Finish,
    /// Back to the ring from which the data is moving.
    Abort,
    /// These members are dead for good.
    Lose(BTreeSet<NodeId>),
    /// These members, which hold nothing, are none any more.
    Dismiss(BTreeSet<NodeId>),
    /// Also these keyspaces.
    Keyspaces(BTreeMap<String, KeyspaceMode>),
    /// Nothing but those who vote.
    Voters,
}

/// Which step a layout is from the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The rings stay as they are.
    Same,
    Begin,
    Finish,
    Abort,
}

/// Why a layout cannot follow another one, whatever happens.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SuccessionError {
    #[error("the layout in force has epoch {now}, so the next one has epoch {expected}, not {found}", now = expected.0 - 1)]
    Epoch { expected: Epoch, found: Epoch },
    #[error("it is of another cluster or incarnation, or is a recovery, or has another number of partitions")]
    OtherCluster,
    #[error("data is moving already: that has to end or be aborted first")]
    IsMoving,
    #[error("no data is moving")]
    IsNotMoving,
    #[error("partitions are being salvaged: that has to be finished first")]
    IsSalvaging,
    #[error("the rings do not follow from those in force")]
    Rings,
    #[error("{0} cannot be given data: it has to be admitted first, with a weight")]
    NotAdmitted(NodeId),
    #[error("{0} is lost, and cannot be given data")]
    IsLost(NodeId),
    #[error(
        "a replica that stays has another epoch since which it has been one, or a new one an earlier epoch than this"
    )]
    Since,
    #[error("the phase began with epoch {expected}, not {found}")]
    PhaseSince { expected: Epoch, found: Epoch },
    #[error("the keyspace \"{0}\" is gone or has another mode")]
    Keyspace(String),
    #[error("member {0} holds data, or is not noted as departed, and cannot be left out")]
    LeftOut(NodeId),
    #[error(
        "member {0} may alone have what is left of partitions that are being salvaged: that has to be finished first, or \
         another recovery names it lost"
    )]
    IsSource(NodeId),
    #[error("node {0} has departed, and that has to stay noted")]
    Forgotten(NodeId),
    #[error("member {0} has another actor, or is no longer lost")]
    Changed(NodeId),
    #[error("{found} members are to vote, and there are as many as allow {expected}")]
    Voters { expected: usize, found: usize },
    #[error("{0} is no member")]
    NoMember(NodeId),
    #[error("nothing would change")]
    Nothing,
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// What a member has said of itself, all of it durable there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// The latest epoch that it has acknowledged.
    pub fence: Epoch,
    /// The phase of which `whole` speaks, by its first epoch.
    pub phase: Epoch,
    /// The partitions of the new ring of which it has merged enough replicas of the old one, and is in no doubt.
    pub whole: BTreeSet<Partition>,
    /// It drops what it holds of partitions of which it is no replica any more, and waits for nobody to go on with that.
    pub clears: bool,
    /// The partitions that it is a replica of and, or a key of which, it is in doubt of.
    pub doubted: BTreeSet<Partition>,
}

/// What members have said of themselves.
pub type Evidence = BTreeMap<NodeId, Standing>;

/// What is missing before a layout may follow; it may come.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GateError {
    #[error(
        "partition {partition}: too few replicas have acknowledged epoch {epoch}; waiting for {}",
        list(waiting_for)
    )]
    Fence { partition: Partition, epoch: Epoch, waiting_for: Vec<NodeId> },
    #[error(
        "partition {partition} and {others} others: what the old replicas hold is not merged yet by {}",
        list(waiting_for)
    )]
    Merge { partition: Partition, others: usize, waiting_for: Vec<NodeId> },
    #[error("partition {partition}: so many of its new replicas are lost that no quorum of them is left")]
    Lost { partition: Partition },
}

fn list(nodes: &[NodeId]) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Layout {
    /// The layout that makes this change, or why there is none.
    pub fn next(&self, change: &Change) -> Result<Layout, SuccessionError> {
        self.next_without(change, &BTreeSet::new())
    }

    /// The same, for somebody who knows that these nodes are away: they do not vote on what follows, if others can.
    pub fn next_without(&self, change: &Change, away: &BTreeSet<NodeId>) -> Result<Layout, SuccessionError> {
        let now = Layout { epoch: Epoch(self.epoch.0 + 1), recovered_from: None, ..self.clone() };
        let mut next = now.clone();
        match change {
            Change::Move { members, replication_factor } => {
                self.plan_move(&mut next, members, *replication_factor)?;
            }
            Change::Admit(members) => next.admit(members),
            Change::Finish if !self.is_moving() => return Err(SuccessionError::IsNotMoving),
            Change::Finish => {
                next.phase = Phase::Stable(self.ring().clone());
                next.phase_since = next.epoch;
                next.salvaged.clear();
            }
            Change::Abort => {
                let Phase::Joint { from, .. } = &self.phase else { return Err(SuccessionError::IsNotMoving) };
                next.replication_factor = self.replication_factor_after_abort(from);
                next.phase = Phase::Stable(from.clone());
                next.phase_since = next.epoch;
            }
            Change::Lose(nodes) => next.lose(nodes)?,
            Change::Dismiss(nodes) => next.dismiss(nodes)?,
            Change::Keyspaces(keyspaces) => {
                next.keyspaces.extend(keyspaces.iter().map(|(name, mode)| (name.clone(), *mode)));
            }
            Change::Voters => {}
        }
        next.elect(away);
        if next == now {
            return Err(SuccessionError::Nothing);
        }
        check_step(self, &next)?;
        Ok(next)
    }

    fn plan_move(
        &self,
        next: &mut Layout,
        members: &[Member],
        replication_factor: usize,
    ) -> Result<(), SuccessionError> {
        let Phase::Stable(from) = &self.phase else { return Err(SuccessionError::IsMoving) };
        if !self.salvaged.is_empty() {
            return Err(SuccessionError::IsSalvaging);
        }
        if replication_factor > members.len() {
            return Err(LayoutError::ReplicationFactor(replication_factor).into());
        }
        check_admitted(self, members.iter().map(|member| member.node))?;
        let candidates: Vec<_> = members.iter().map(Member::candidate).collect();
        let to = rearrange(from, &candidates, self.partitions, replication_factor, next.epoch);
        // Whoever is not named stays a member: it is read from until its data has moved.
        next.admit(members);
        next.replication_factor = replication_factor;
        if to == *from {
            return Ok(());
        }
        if is_on(Mutant::FactorsChangeAtOnce) && replication_factor != self.replication_factor {
            next.phase = Phase::Stable(to);
            next.phase_since = next.epoch;
            return Ok(());
        }
        next.phase = Phase::Joint { from: from.clone(), to };
        next.phase_since = next.epoch;
        Ok(())
    }

    /// Partitions that were salvaged may all have fewer replicas than are wanted: the ring does not tell how many are.
    fn replication_factor_after_abort(&self, from: &Ring) -> usize {
        self.replication_factor.max(from.replication_factor())
    }

    fn admit(&mut self, members: &[Member]) {
        let is_named = |node: NodeId| members.iter().any(|member| member.node == node);
        self.members.retain(|member| !is_named(member.node));
        self.members.extend(members.iter().cloned());
        self.members.sort_by_key(|member| member.node);
    }

    fn lose(&mut self, nodes: &BTreeSet<NodeId>) -> Result<(), SuccessionError> {
        for node in nodes {
            let member = self.members.iter_mut().find(|member| member.node == *node);
            member.ok_or(SuccessionError::NoMember(*node))?.is_lost = true;
        }
        Ok(())
    }

    fn dismiss(&mut self, nodes: &BTreeSet<NodeId>) -> Result<(), SuccessionError> {
        if let Some(stranger) = nodes.iter().find(|node| self.member(**node).is_none()) {
            return Err(SuccessionError::NoMember(*stranger));
        }
        self.members.retain(|member| !nodes.contains(&member.node));
        self.departed.extend(nodes);
        Ok(())
    }

    /// Chooses who votes on the layout after this one.
    pub(crate) fn elect(&mut self, away: &BTreeSet<NodeId>) {
        let stake = |node| self.stake(node);
        self.voters = choose_voters(&self.members, &self.voters, stake, |node| away.contains(&node));
    }
}

/// Which step `next` is from `now`; an error if it can be none.
pub fn check_step(now: &Layout, next: &Layout) -> Result<Step, SuccessionError> {
    next.validate()?;
    let expected = Epoch(now.epoch.0 + 1);
    if next.epoch != expected {
        return Err(SuccessionError::Epoch { expected, found: next.epoch });
    }
    if (next.cluster, next.incarnation, next.partitions) != (now.cluster, now.incarnation, now.partitions)
        || next.recovered_from.is_some()
    {
        return Err(SuccessionError::OtherCluster);
    }
    check_keyspaces(now, next)?;
    check_members(now, next)?;
    let voters = next.voters_wanted();
    if next.voters.len() != voters && !is_on(Mutant::FewVotersAreLegal) {
        return Err(SuccessionError::Voters { expected: voters, found: next.voters.len() });
    }
    let step = which_step(now, next)?;
    let phase_since = if step == Step::Same { now.phase_since } else { next.epoch };
    if next.phase_since != phase_since {
        return Err(SuccessionError::PhaseSince { expected: phase_since, found: next.phase_since });
    }
    let expected = match step {
        Step::Abort => now.replication_factor_after_abort(next.ring()),
        Step::Same | Step::Begin | Step::Finish => now.replication_factor,
    };
    // What was wanted of a move that went back is given up where the ring has as many as that.
    let is_had = || !next.is_moving() && next.ring().check_full(next.replication_factor).is_ok();
    let may_change =
        step == Step::Begin || step == Step::Same && is_had() || is_on(Mutant::FactorsChangeAlone);
    if next.replication_factor != expected && !may_change {
        return Err(SuccessionError::Rings);
    }
    Ok(step)
}

fn which_step(now: &Layout, next: &Layout) -> Result<Step, SuccessionError> {
    let is_salvaged = now.salvaged == next.salvaged;
    if now.phase == next.phase && is_salvaged {
        return Ok(Step::Same);
    }
    match (&now.phase, &next.phase) {
        (Phase::Stable(a), Phase::Stable(b)) if a == b && next.salvaged.is_empty() => Ok(Step::Finish),
        (Phase::Stable(_), Phase::Joint { .. }) if !now.salvaged.is_empty() => {
            Err(SuccessionError::IsSalvaging)
        }
        (Phase::Stable(a), Phase::Joint { from, to }) if a == from && is_salvaged => {
            to.check_full(next.replication_factor).map_err(LayoutError::from)?;
            check_since(a, to, next.epoch)?;
            check_admitted(now, to.iter().flat_map(|(_, replicas)| replicas).map(|replica| replica.node))?;
            Ok(Step::Begin)
        }
        (Phase::Joint { to, .. }, Phase::Stable(b)) if to == b && next.salvaged.is_empty() => {
            Ok(Step::Finish)
        }
        (Phase::Joint { from, .. }, Phase::Stable(a)) if from == a && is_salvaged => Ok(Step::Abort),
        (Phase::Joint { .. }, Phase::Joint { .. }) => Err(SuccessionError::IsMoving),
        (Phase::Stable(_), Phase::Stable(_)) if is_on(Mutant::RingsFollowAtOnce) => Ok(Step::Begin),
        (Phase::Stable(_), Phase::Stable(_))
            if is_on(Mutant::FactorsChangeAtOnce) && now.replication_factor != next.replication_factor =>
        {
            Ok(Step::Begin)
        }
        _ => Err(SuccessionError::Rings),
    }
}

/// A replica that stays has been one since when it was; a new one is one from this epoch on.
fn check_since(from: &Ring, to: &Ring, epoch: Epoch) -> Result<(), SuccessionError> {
    let is_right = |partition: Partition, replica: &Replica| {
        let before = from.replicas(partition).iter().find(|before| before.node == replica.node);
        replica.since == before.map_or(epoch, |before| before.since)
    };
    let all =
        to.iter().all(|(partition, replicas)| replicas.iter().all(|replica| is_right(partition, replica)));
    if all || is_on(Mutant::AnySinceIsLegal) { Ok(()) } else { Err(SuccessionError::Since) }
}

/// Data is given only to members, whom everybody is linked to, and not to those that are to go: a vote for a layout may
/// come out when their disks are gone. And to nobody that is lost.
fn check_admitted(now: &Layout, mut nodes: impl Iterator<Item = NodeId>) -> Result<(), SuccessionError> {
    nodes.try_for_each(|node| match now.member(node) {
        Some(member) if member.is_lost && !is_on(Mutant::TheLostAreGivenData) => {
            Err(SuccessionError::IsLost(node))
        }
        Some(member) if member.weight > 0 => Ok(()),
        Some(_) | None => Err(SuccessionError::NotAdmitted(node)),
    })
}

fn check_keyspaces(now: &Layout, next: &Layout) -> Result<(), SuccessionError> {
    let is_kept = |(name, mode): &(&String, &KeyspaceMode)| next.keyspaces.get(*name) == Some(mode);
    match now.keyspaces.iter().find(|keyspace| !is_kept(keyspace)) {
        Some((name, _)) => Err(SuccessionError::Keyspace(name.clone())),
        None => Ok(()),
    }
}

fn check_members(now: &Layout, next: &Layout) -> Result<(), SuccessionError> {
    for member in &now.members {
        let is_source = now.salvaged.values().any(|sources| sources.contains(&member.node));
        let owns = now.rings().any(|ring| ring.owned(member.node) > 0);
        let holds_data = owns || is_source && !is_on(Mutant::SourcesAreDismissed);
        match next.member(member.node) {
            Some(kept) if kept.actor != member.actor || member.is_lost && !kept.is_lost => {
                return Err(SuccessionError::Changed(member.node));
            }
            Some(kept)
                if is_source && kept.is_lost && !member.is_lost && !is_on(Mutant::SourcesAreGivenUp) =>
            {
                return Err(SuccessionError::IsSource(member.node));
            }
            None if holds_data && !is_on(Mutant::HoldersAreDismissed)
                || !next.departed.contains(&member.node) && !is_on(Mutant::LeaversAreNotNoted) =>
            {
                return Err(SuccessionError::LeftOut(member.node));
            }
            Some(_) | None => {}
        }
    }
    match now.departed.difference(&next.departed).next() {
        Some(node) if !is_on(Mutant::TheDepartedAreForgotten) => Err(SuccessionError::Forgotten(*node)),
        Some(_) | None => Ok(()),
    }
}

/// What has to be so before a layout follows, by what members have said of themselves.
pub fn check_gate(now: &Layout, step: Step, evidence: &Evidence) -> Result<(), GateError> {
    match step {
        Step::Same | Step::Abort => Ok(()),
        Step::Begin => check_fences(now, evidence),
        Step::Finish => check_fences(now, evidence).and_then(|()| check_merges(now, evidence)),
    }
}

/// Of each partition, fewer replicas than make a quorum are left that would take part in an operation of the phase
/// before this one.
fn check_fences(now: &Layout, evidence: &Evidence) -> Result<(), GateError> {
    // All members have accepted the first layout before it was in force, and there was no phase before.
    if now.phase_since == Epoch(1) || is_on(Mutant::ChangesDoNotWaitForFences) {
        return Ok(());
    }
    let has_fenced = |node: NodeId| {
        let is_fenced = evidence
            .get(&node)
            .is_some_and(|standing| standing.fence >= now.phase_since || is_on(Mutant::EarlierFencesCount));
        is_fenced && (!now.is_lost(node) || is_on(Mutant::FencesOfTheLostCount))
    };
    let shared = if is_on(Mutant::FencesOfTheNewRingCount) { now.ring() } else { now.source_ring() };
    for (partition, replicas) in shared.iter() {
        let needed = others_of_a_quorum(replicas.len()) - usize::from(is_on(Mutant::OneFenceFewer));
        let fenced = replicas.iter().filter(|replica| has_fenced(replica.node)).count();
        if fenced < needed {
            let waiting = replicas.iter().map(|replica| replica.node).filter(|node| !has_fenced(*node));
            let (epoch, waiting_for) = (now.phase_since, waiting.collect());
            return Err(GateError::Fence { partition, epoch, waiting_for });
        }
    }
    Ok(())
}

/// So many replicas share one with every quorum: N - W + 1.
pub fn others_of_a_quorum(replicas: usize) -> usize {
    replicas - Consistency::Quorum.needed(replicas) + 1
}

/// Each replica of the new ring that is not lost, and a quorum of them, has what the old one held.
fn check_merges(now: &Layout, evidence: &Evidence) -> Result<(), GateError> {
    if is_on(Mutant::MovesEndUnmerged) {
        return Ok(());
    }
    let is_whole = |partition: Partition, node: NodeId| {
        !now.has_to_merge(partition)
            || is_on(Mutant::TheKeptNeedNotMerge) && now.source_ring().is_replica(partition, node)
            || evidence.get(&node).is_some_and(|standing| {
                let is_of_now = standing.phase == now.phase_since || is_on(Mutant::EvidenceOutlivesItsPhase);
                is_of_now && standing.whole.contains(&partition)
            })
    };
    let mut missing = Vec::new();
    let mut waiting_for = BTreeSet::new();
    for (partition, replicas) in now.ring().iter() {
        let left: Vec<_> =
            replicas.iter().map(|replica| replica.node).filter(|node| !now.is_lost(*node)).collect();
        if left.len() < Consistency::Quorum.needed(replicas.len()) && !is_on(Mutant::LostQuorumsAreEnough) {
            return Err(GateError::Lost { partition });
        }
        let behind: Vec<_> = left.into_iter().filter(|node| !is_whole(partition, *node)).collect();
        let is_enough = behind.is_empty()
            || is_on(Mutant::AQuorumMerges)
                && replicas.len() - behind.len() >= Consistency::Quorum.needed(replicas.len());
        if !is_enough {
            missing.push(partition);
            waiting_for.extend(behind);
        }
    }
    match missing.first() {
        None => Ok(()),
        Some(partition) => Err(GateError::Merge {
            partition: *partition,
            others: missing.len() - 1,
            waiting_for: waiting_for.into_iter().collect(),
        }),
    }
}

impl Layout {
    /// True if the replicas of a partition have to merge what the old ones hold: they are not the very same, whose
    /// quorums share a replica whichever ring they are of; or it is salvaged.
    pub fn has_to_merge(&self, partition: Partition) -> bool {
        if self.salvaged.contains_key(&partition) {
            return true;
        }
        let nodes = |ring: &Ring| -> BTreeSet<_> {
            ring.replicas(partition).iter().map(|replica| replica.node).collect()
        };
        match &self.phase {
            Phase::Stable(_) => false,
            Phase::Joint { from, to } => nodes(from) != nodes(to),
        }
    }
}
