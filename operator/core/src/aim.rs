//! Which pods are to hold the data, as far as that may be done.
//!
//! What the spec says, or, where that is held, those that hold it now. A hold never begins anything and undoes nothing
//! but a move towards what is held.

use std::collections::BTreeSet;

use keystore_core::id::Epoch;
use keystore_core::layout::{Layout, Member, Phase};
use keystore_core::succession::Change;

use crate::hold::{Hold, HoldReason};
use crate::members::{Roster, owners};
use crate::space::find_lack_of_space;
use crate::validate::ValidCluster;

pub(crate) struct Aim {
    /// The pods whose nodes are to hold the data.
    pub(crate) ordinals: BTreeSet<u32>,
    /// What the spec says is not done.
    pub(crate) is_held: bool,
    /// Why, where no other hold says so.
    pub(crate) hold: Option<Hold>,
}

pub(crate) fn plan_aim(valid: &ValidCluster, roster: &Roster<'_>) -> Aim {
    let layout = roster.layout;
    let now = roster.ordinals(owners(layout.source_ring()));
    let is_other_store =
        (layout.replication_factor, layout.partitions) != (valid.replication_factor, valid.partitions);
    let hold = if is_other_store { None } else { plan_aim_hold(valid, roster, &now) };
    if is_other_store || hold.is_some() {
        return Aim { ordinals: now, is_held: true, hold };
    }
    Aim { ordinals: (0..valid.replicas).collect(), is_held: false, hold: None }
}

fn plan_aim_hold(valid: &ValidCluster, roster: &Roster<'_>, now: &BTreeSet<u32>) -> Option<Hold> {
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
    let shrinks = !roster.layout.is_joint() && now.iter().any(|ordinal| *ordinal >= replicas);
    let message = find_lack_of_space(valid, roster, replicas).filter(|_| shrinks)?;
    Some(Hold { reason: HoldReason::InsufficientSpace, message })
}

impl Aim {
    /// The members that are to hold the data, in the order of their UUIDs; `None` while some are still to be made.
    pub(crate) fn members(&self, roster: &Roster<'_>) -> Option<Vec<Member>> {
        let replaced = roster.replaced();
        let live =
            |ordinal: &u32| roster.live(*ordinal).filter(|member| !replaced.contains(&member.node)).cloned();
        let mut members: Vec<Member> = self.ordinals.iter().map(live).collect::<Option<_>>()?;
        members.sort_by_key(|member| member.node);
        Some(members)
    }

    /// True if the data moves to where it is wanted.
    pub(crate) fn is_met_by_move(&self, roster: &Roster<'_>) -> bool {
        let layout = roster.layout;
        let Phase::Joint { from, .. } = &layout.phase else { return true };
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

pub(crate) fn plan_move(layout: &Layout, members: Vec<Member>) -> Change {
    Change::Move { members, replication_factor: layout.replication_factor }
}

fn has_same_replicas(a: &Layout, b: &Layout) -> bool {
    let holds = |(partition, replicas): (_, &[keystore_core::ring::Replica])| {
        replicas.len() == b.ring().replicas(partition).len()
            && replicas.iter().all(|replica| b.ring().is_replica(partition, replica.node))
    };
    a.ring().iter().all(holds)
}
