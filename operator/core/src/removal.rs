//! Which pods go, and when: how many there should be.
//!
//! Invariants: a pod is never taken away while its node holds a partition in a ring in force, nor before every member has
//! acknowledged that, nor while a layout that may come next could give it any. While none may go, one that somebody else
//! takes away (by lowering the StatefulSet, or deleting it) is called back.

use std::collections::BTreeSet;

use keystore_core::layout::Member;
use keystore_core::succession::Change;

use crate::aim::Aim;
use crate::members::Roster;
use crate::stage::Stage;

/// Pods and members that hold nothing any more.
pub(crate) fn plan_removal(roster: &Roster<'_>, aim: &Aim) -> Option<Stage> {
    let surplus = surplus(roster, aim);
    if surplus.is_empty() || aim.is_held {
        return None;
    }
    let pods = roster.pods(surplus);
    let needed = needed_pods(roster, aim);
    if let Some(obstacle) = find_obstacle(roster, needed) {
        return Some(Stage::waiting("RemovingPods", format!("{pods} can go, but not before {obstacle}")));
    }
    let leavers: Vec<_> =
        find_eligible(roster, needed).map(|member| Member { weight: 0, ..member.clone() }).collect();
    if leavers.is_empty() {
        let message = format!("{pods}: nothing is held there any more, pods go");
        return Some(Stage::waiting("RemovingPods", message));
    }
    let message =
        format!("{pods}: nothing is held there any more, and nothing can be moved there from now on");
    Some(Stage::change("RemovingPods", message, Change::Admit(leavers)))
}

/// Nothing is taken away before all that has to be known for it is known in this very look.
pub(crate) fn plan_replicas(roster: &Roster<'_>, aim: &Aim) -> u32 {
    let needed = needed_pods(roster, aim);
    let may_go = !aim.is_held
        && find_obstacle(roster, needed).is_none()
        && find_eligible(roster, needed).next().is_none();
    if may_go { needed } else { needed.max(kept_pods(roster)) }
}

/// The pods that exist or are asked for, and those of members, and are not needed.
pub(crate) fn surplus(roster: &Roster<'_>, aim: &Aim) -> BTreeSet<u32> {
    let needed = needed_pods(roster, aim);
    let members = roster.layout.members.iter().filter(|member| !member.is_lost);
    let of_members = members.filter_map(|member| roster.names.ordinal(&member.name));
    let asked_for = 0..roster.observed.live_replicas().unwrap_or(0);
    let pods = roster.observed.pods.keys().copied();
    of_members.chain(asked_for).chain(pods).filter(|ordinal| *ordinal >= needed).collect()
}

/// The members in pods from `needed` on to which the next layout could give data.
fn find_eligible<'a>(roster: &Roster<'a>, needed: u32) -> impl Iterator<Item = &'a Member> {
    let names = roster.names;
    let members = roster.layout.members.iter().filter(|member| !member.is_lost && member.weight > 0);
    members.filter(move |member| names.ordinal(&member.name).is_some_and(|ordinal| ordinal >= needed))
}

/// How many pods it takes to run every node that holds data, or is to.
fn needed_pods(roster: &Roster<'_>, aim: &Aim) -> u32 {
    let members = roster.layout.members.iter().map(|member| member.node);
    let holding = roster.ordinals(members.filter(|node| roster.owns(*node)));
    let highest = holding.iter().chain(&aim.ordinals).chain(&aim.in_the_end).max();
    highest.map_or(0, |highest| highest + 1)
}

/// How many pods there are to be while none may go: those that are asked for, and those of members, whatever is asked for.
/// A member without a weight whose pod ends already is not called back: nothing can be moved there. A pod that is no
/// member's has nothing to lose.
fn kept_pods(roster: &Roster<'_>) -> u32 {
    let is_kept = |member: &&Member| {
        let ends =
            || roster.names.ordinal(&member.name).is_none_or(|ordinal| roster.observed.has_ended(ordinal));
        !member.is_lost && (member.weight > 0 || !ends())
    };
    let members = roster.layout.members.iter().filter(is_kept);
    let highest = members.filter_map(|member| roster.names.ordinal(&member.name)).max();
    highest.map_or(0, |highest| highest + 1).max(roster.observed.live_replicas().unwrap_or(0))
}

/// Why pods from `needed` on cannot go yet. Whoever stays has to say itself that it has acknowledged the layout by which
/// they hold nothing: one that has not may still ask them under an earlier one. One that goes may be silent.
fn find_obstacle(roster: &Roster<'_>, needed: u32) -> Option<String> {
    let layout = roster.layout;
    if layout.is_moving() {
        return Some("the data has moved".to_owned());
    }
    // Of a recovery under way: who is left and has not accepted it is waited for.
    if !roster.observed.layout.as_ref().is_some_and(|held| held.decided) {
        return Some(format!("epoch {} is in force", layout.epoch));
    }
    if roster.is_behind() {
        return Some("the latest layout is known".to_owned());
    }
    let is_obstacle = |member: &&Member| {
        let ordinal = roster.names.ordinal(&member.name);
        let goes = !roster.owns(member.node) && ordinal.is_none_or(|ordinal| ordinal >= needed);
        let has_acknowledged = roster.answer_at_home(member.node).is_some_and(|answer| answer.holds(layout));
        let is_silent = roster.answer_of(member.node).is_none();
        let may_go_silently = goes && is_silent;
        !may_go_silently && !has_acknowledged
    };
    let members = layout.members.iter().filter(|member| !member.is_lost);
    let late: Vec<_> = members.filter(is_obstacle).map(|member| member.name.as_str()).collect();
    if !late.is_empty() {
        return Some(format!("{} has acknowledged epoch {}", late.join(", "), layout.epoch));
    }
    // What a pod that goes has left may be the last that a person could still recover from.
    let untrusted = roster.untrusted();
    let doubting = roster.pods(roster.ordinals(roster.in_doubt()));
    (untrusted > 0).then(|| {
        format!("{untrusted} partitions have a quorum of replicas to trust again (what is damaged at {doubting} has to heal, or a person accepts that with keystorectl recover)")
    })
}
