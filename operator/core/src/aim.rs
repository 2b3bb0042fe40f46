//! Which pods are to hold the data, as far as that may be done.
//!
//! What the spec says, or, where that is held, those that hold it now. A hold never begins anything and undoes nothing
//! but a move towards what is held. A pod whose node is lost, and in which no other one answers, is passed over: the next
//! ordinal takes its place until it is back. Its pod and its volume are left alone.
//!
//! While copies are missing, as many nodes as hold the data get all of them first, of those that are there: what else the
//! spec says comes afterwards.

use std::collections::BTreeSet;

use keystore_core::id::Epoch;
use keystore_core::layout::{Layout, Member, Phase};
use keystore_core::quorum::Consistency;
use keystore_core::ring::Replica;
use keystore_core::succession::Change;

use crate::absence::Absences;
use crate::hold::{Hold, HoldReason};
use crate::members::{Roster, owners};
use crate::space::find_lack_of_space;
use crate::validate::ValidCluster;

pub(crate) struct Aim {
    /// The pods whose nodes are to hold the data.
    pub(crate) ordinals: BTreeSet<u32>,
    /// Those whose nodes are to hold it once no copy is missing. They run meanwhile.
    pub(crate) in_the_end: BTreeSet<u32>,
    /// What the spec says is not done.
    pub(crate) is_held: bool,
    /// Why, where no other hold says so.
    pub(crate) hold: Option<Hold>,
}

/// A pod that restarts answers by then: its node finds that it was given up, and comes as another one.
const PASSED_OVER_AFTER_SECONDS: u32 = 30;

pub(crate) fn plan_aim(valid: &ValidCluster, roster: &Roster<'_>, absences: &Absences) -> Aim {
    let layout = roster.layout;
    if valid.is_stand_in {
        let ordinals = roster.ordinals(owners(layout.ring()));
        return Aim { in_the_end: ordinals.clone(), ordinals, is_held: true, hold: None };
    }
    let now = roster.ordinals(owners(layout.source_ring()));
    let passed_over = find_passed_over(roster, absences);
    let is_other_store =
        (layout.replication_factor, layout.partitions) != (valid.replication_factor, valid.partitions);
    let wanted = substitute(&(0..valid.replicas).collect(), &passed_over);
    let wanted = keep_in_place(roster, &now, &wanted);
    let hold = if is_other_store { None } else { plan_aim_hold(valid, roster, (&now, &wanted)) };
    let is_held = is_other_store || hold.is_some();
    let kept = substitute(&now, &passed_over);
    let in_the_end = if is_held { kept.clone() } else { wanted };
    let first = find_restoring(roster, (&now, &kept), &in_the_end);
    Aim { ordinals: first.unwrap_or_else(|| in_the_end.clone()), in_the_end, is_held, hold }
}

/// A wanted pod that is no member's, and in which nobody answers, does not take the place of one that holds the data.
fn keep_in_place(roster: &Roster<'_>, now: &BTreeSet<u32>, wanted: &BTreeSet<u32>) -> BTreeSet<u32> {
    let is_vacant = |ordinal: &u32| !roster.is_named(*ordinal) && roster.stranger(*ordinal).is_none();
    let others: Vec<u32> = now.difference(wanted).copied().filter(|o| roster.live(*o).is_some()).collect();
    let vacant: Vec<u32> = wanted.iter().copied().filter(is_vacant).take(others.len()).collect();
    let others = others.into_iter().take(vacant.len());
    wanted.iter().copied().filter(|ordinal| !vacant.contains(ordinal)).chain(others).collect()
}

/// While copies are missing and not all that are wanted are there: those that are to hold the data until none is missing. A
/// move that restores them is not turned back for a spec that asks for fewer: where these cannot hold the data it would begin
/// again. `kept` are those that take it where what the spec says is held.
fn find_restoring(
    roster: &Roster<'_>,
    (now, kept): (&BTreeSet<u32>, &BTreeSet<u32>),
    wanted: &BTreeSet<u32>,
) -> Option<BTreeSet<u32>> {
    let layout = roster.layout;
    let is_short = |replicas: &[Replica]| {
        let left = replicas.iter().filter(|replica| !layout.is_lost(replica.node)).count();
        left < layout.replication_factor
    };
    if !layout.source_ring().iter().any(|(_, replicas)| is_short(replicas)) {
        return None;
    }
    let count = now.len().max(layout.replication_factor).min(wanted.len());
    if layout.is_joint() {
        let target = owners(layout.ring());
        let is_whole = !target.iter().any(|node| layout.is_lost(*node));
        let target = roster.ordinals(target);
        let is_known = target.iter().all(|ordinal| [wanted, now, kept].iter().any(|of| of.contains(ordinal)));
        return (is_whole && is_known && target.len() >= count).then_some(target);
    }
    let is_all_there = wanted.iter().all(|ordinal| is_there(roster, *ordinal));
    (!is_all_there).then(|| choose_restoring(roster, (now, wanted), count))
}

/// So many: first who holds data and is to stay, then who is there and is wanted, then who holds data, and at last who has
/// to be waited for.
fn choose_restoring(
    roster: &Roster<'_>,
    (now, wanted): (&BTreeSet<u32>, &BTreeSet<u32>),
    count: usize,
) -> BTreeSet<u32> {
    let holds = |ordinal: u32| roster.live(ordinal).is_some_and(|member| roster.owns(member.node));
    let rank = |ordinal: u32| match wanted.contains(&ordinal) {
        true if holds(ordinal) => Some(0),
        true if is_there(roster, ordinal) => Some(1),
        false if holds(ordinal) => Some(2),
        true => Some(3),
        false => None,
    };
    let ranked = wanted.union(now).filter_map(|ordinal| Some((rank(*ordinal)?, *ordinal)));
    let ranked: BTreeSet<(u8, u32)> = ranked.collect();
    ranked.into_iter().take(count).map(|(_, ordinal)| ordinal).collect()
}

/// True if a member answers in its pod, or one that may become a member, and the pod was not told to end.
fn is_there(roster: &Roster<'_>, ordinal: u32) -> bool {
    roster.is_heard(ordinal) && !roster.observed.has_ended(ordinal)
}

/// The pods of lost members in which nobody answers. A move under way is not turned back for one that does meanwhile.
fn find_passed_over(roster: &Roster<'_>, absences: &Absences) -> BTreeSet<u32> {
    let layout = roster.layout;
    let targets = roster.ordinals(owners(layout.ring()));
    let is_passed_over = |member: &&Member| {
        let ordinal = roster.names.ordinal(&member.name);
        let is_left_out = layout.is_joint() && ordinal.is_some_and(|ordinal| !targets.contains(&ordinal));
        member.is_lost
            && ordinal.is_some_and(|ordinal| roster.live(ordinal).is_none())
            && (is_left_out || absences.is_away_for(member.node, PASSED_OVER_AFTER_SECONDS))
    };
    let members = layout.members.iter().filter(is_passed_over);
    members.filter_map(|member| roster.names.ordinal(&member.name)).collect()
}

/// As many pods without those that are passed over: instead of each the first that is none of these.
fn substitute(wanted: &BTreeSet<u32>, passed_over: &BTreeSet<u32>) -> BTreeSet<u32> {
    let mut chosen: BTreeSet<u32> = wanted.difference(passed_over).copied().collect();
    let others = (0..).filter(|ordinal| !wanted.contains(ordinal) && !passed_over.contains(ordinal));
    let missing = wanted.len() - chosen.len();
    chosen.extend(others.take(missing));
    chosen
}

/// `now` and `wanted` are the pods whose nodes hold the data, and those that are to.
fn plan_aim_hold(
    valid: &ValidCluster,
    roster: &Roster<'_>,
    (now, wanted): (&BTreeSet<u32>, &BTreeSet<u32>),
) -> Option<Hold> {
    let (replicas, factor) = (valid.replicas, valid.replication_factor);
    if (replicas as usize) < factor {
        let message = format!(
            "spec.replicas is {replicas} and replicationFactor {factor}: so few nodes cannot keep {factor} copies; the \
             {} that hold the data go on: set spec.replicas to at least {factor}",
            now.len()
        );
        return Some(Hold { reason: HoldReason::BelowReplicationFactor, message });
    }
    // Once data moves, part of it is counted twice; whether it fits was asked before.
    let shrinks = !roster.layout.is_joint() && now.len() > wanted.len();
    if shrinks { find_lack_of_space(valid, roster, wanted) } else { None }
}

impl Aim {
    /// The members that are to hold the data, in the order of their UUIDs; `None` while some are still to be made.
    pub(crate) fn members(&self, roster: &Roster<'_>) -> Option<Vec<Member>> {
        let members = self.present(roster);
        (members.len() == self.ordinals.len()).then_some(members)
    }

    /// Those of them that there are already, in the same order.
    fn present(&self, roster: &Roster<'_>) -> Vec<Member> {
        let replaced = roster.replaced();
        let live = |ordinal: &u32| roster.live(*ordinal).filter(|member| !replaced.contains(&member.node));
        let mut members: Vec<Member> = self.ordinals.iter().filter_map(live).cloned().collect();
        members.sort_by_key(|member| member.node);
        members
    }

    /// True if the data moves to where it is wanted.
    pub(crate) fn is_met_by_move(&self, roster: &Roster<'_>) -> bool {
        let layout = roster.layout;
        let Phase::Joint { from, .. } = &layout.phase else { return true };
        if owners(layout.ring()).iter().any(|node| layout.is_lost(*node)) {
            return self.is_met_without_the_lost(roster);
        }
        let Some(members) = self.members(roster) else { return false };
        let wanted: BTreeSet<_> = members.iter().map(|member| member.node).collect();
        let holders = owners(layout.ring());
        if holders == wanted {
            return true;
        }
        // Where there are more nodes than there is to place, some hold nothing: the move is made again to compare.
        let before = Layout {
            epoch: Epoch(layout.phase_since.0.saturating_sub(1).max(1)),
            phase_since: Epoch(1),
            replication_factor: from.replication_factor(),
            phase: Phase::Stable(from.clone()),
            ..layout.clone()
        };
        holders.is_subset(&wanted)
            && before.next(&plan_move(layout, members)).is_ok_and(|again| has_same_replicas(&again, layout))
    }
}

impl Aim {
    /// A move loses a node on the way: it goes on, and that node is replaced by the next one, if everybody else stays and a
    /// quorum is left of each partition.
    fn is_met_without_the_lost(&self, roster: &Roster<'_>) -> bool {
        let layout = roster.layout;
        let wanted: BTreeSet<_> = self.present(roster).iter().map(|member| member.node).collect();
        let has_quorum = |replicas: &[Replica]| {
            let left = replicas.iter().filter(|replica| !layout.is_lost(replica.node)).count();
            left >= Consistency::Quorum.needed(replicas.len())
        };
        owners(layout.ring()).iter().all(|node| layout.is_lost(*node) || wanted.contains(node))
            && layout.ring().iter().all(|(_, replicas)| has_quorum(replicas))
    }
}

pub(crate) fn plan_move(layout: &Layout, members: Vec<Member>) -> Change {
    Change::Move { members, replication_factor: layout.replication_factor }
}

fn has_same_replicas(a: &Layout, b: &Layout) -> bool {
    let holds = |(partition, replicas): (_, &[Replica])| {
        replicas.len() == b.ring().replicas(partition).len()
            && replicas.iter().all(|replica| b.ring().is_replica(partition, replica.node))
    };
    a.ring().iter().all(holds)
}
