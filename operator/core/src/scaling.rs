//! From a layout in force to the spec, one step at a time: which nodes join, to whom data moves, which pods go.
//!
//! Pods come before members, members before data, and all of that in the other order on the way down. What is done next
//! follows from the layout and from what nodes answer alone, so an operator that was away goes on where another one
//! stopped, and a spec that changes in the middle is nothing special. Invariants: a pod is never taken away while its node
//! holds a partition in a ring in force, nor before every member has acknowledged that, nor while a layout that may come
//! next could give it any; a member is given up only if another node answers in its pod; of two layouts one is proposed,
//! and the store judges it again.
//!
//! The next layout may be decided already, and nobody here know it: a proposer that died has left votes, and whatever is
//! proposed later brings them out. So a member gets weight 0 before its pod goes. Once that is decided, what was voted for
//! before can come no more, and nothing that follows gives data to a member without a weight, or to whoever is none.

use std::collections::BTreeSet;

use k8s_openapi::jiff::Timestamp;
use keystore_core::id::{Epoch, NodeId};
use keystore_core::layout::{KeyspaceMode, Layout, Member};
use keystore_core::succession::{Change, SuccessionError};
use keystore_crds::{KeyStoreCluster, OperationKind};

use crate::absence::Absences;
use crate::aim::{Aim, plan_aim, plan_move};
use crate::hold::{Hold, HoldReason};
use crate::loss::{VOTER_AWAY_SECONDS, plan_loss, plan_voters};
use crate::members::{Roster, owners};
use crate::observed::{NodeMode, Observed};
use crate::stage::Stage;
use crate::validate::ValidCluster;

/// What is done about the members and the pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scaling {
    /// How many pods there should be.
    pub replicas: u32,
    pub proposal: Option<Proposal>,
    /// `None` at rest.
    pub progress: Option<Progress>,
    pub hold: Option<Hold>,
}

/// A layout to be decided, and the pod whose node is asked to see to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    pub ordinal: u32,
    /// The epoch that it follows.
    pub expected: Epoch,
    pub layout: Layout,
}

/// An operation under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    pub kind: OperationKind,
    /// How many nodes held or were about to hold the data, and how many shall.
    pub from: u32,
    pub to: u32,
    pub phase: &'static str,
    pub message: String,
}

/// What the number of nodes is planned from.
#[derive(Clone, Copy)]
pub(crate) struct ScalingInput<'a> {
    pub(crate) cluster: &'a KeyStoreCluster,
    pub(crate) valid: &'a ValidCluster,
    pub(crate) layout: &'a Layout,
    pub(crate) observed: &'a Observed,
    pub(crate) now: Timestamp,
}

pub(crate) fn plan_scaling(input: ScalingInput<'_>) -> Scaling {
    let ScalingInput { cluster, valid, layout, observed, now } = input;
    let roster = Roster::new(&valid.names, layout, observed);
    let absences = Absences::new(cluster, &roster, now);
    let aim = plan_aim(valid, &roster, &absences);
    let loss = plan_loss(valid, &roster, &absences);
    let held_loss = loss.as_ref().and_then(|loss| loss.hold.clone());
    let stage = plan_stage(valid, &roster, &aim, loss);
    let added = added_keyspaces(valid, layout);
    let change = added.or_else(|| stage.as_ref()?.change.clone());
    let change = change.or_else(|| plan_voters(&roster, &absences));
    let undecidable = change
        .as_ref()
        .and_then(|_| find_lack_of_voters(&roster, &absences))
        .or_else(|| find_half_accepted(&roster));
    let (proposal, refusal) = match change.map(|change| propose(&roster, &change)) {
        None => (None, None),
        Some(Ok(proposal)) => (proposal, None),
        Some(Err(error)) => (None, Some(impossible(&error))),
    };
    let (kind, from) = operation(&roster, &aim);
    let to = count(aim.ordinals.len());
    let progress = stage.as_ref().map(|stage| Progress {
        kind,
        from,
        to,
        phase: stage.phase,
        message: stage.message.clone(),
    });
    Scaling {
        replicas: plan_replicas(&roster, &aim),
        proposal,
        progress,
        hold: aim.hold.or(refusal).or(held_loss).or_else(|| stage?.hold).or(undecidable),
    }
}

fn impossible(error: &SuccessionError) -> Hold {
    let message = format!("the store cannot take the next step: {error}");
    Hold { reason: HoldReason::Rejected, message }
}

/// Why no layout can be decided at all, if it cannot: whatever is proposed waits for a majority of those who vote. That some
/// restart says nothing.
fn find_lack_of_voters(roster: &Roster<'_>, absences: &Absences) -> Option<Hold> {
    let mut missing: BTreeSet<_> = absences.away_for(VOTER_AWAY_SECONDS).into_iter().collect();
    missing.extend(roster.replaced());
    missing.retain(|node| roster.layout.voters.contains(node));
    let voters = roster.layout.voters.len();
    let left = voters - missing.len();
    (left * 2 <= voters && !roster.is_behind()).then(|| {
        let pods = roster.pods(roster.ordinals(missing));
        let message = format!(
            "nothing about members and data can be decided: of {voters} nodes that vote {left} are left without {pods}, and \
             it takes a majority; bring nodes back, or name what is lost for good with keystorectl recover"
        );
        Hold { reason: HoldReason::Unhealthy, message }
    })
}

/// Why nothing goes on after a recovery that some of those who are left have accepted, and others that answer have not.
fn find_half_accepted(roster: &Roster<'_>) -> Option<Hold> {
    let layout = roster.layout;
    let is_recovery = layout.incarnation.number > 1;
    if !is_recovery || roster.observed.layout.as_ref().is_none_or(|held| held.decided) {
        return None;
    }
    let answers = |member: &&Member| !member.is_lost && roster.answer_at_home(member.node).is_some();
    let present = layout.members.iter().filter(answers).map(|member| member.node);
    let holds = |node: &NodeId| roster.answer_of(*node).is_some_and(|answer| answer.holds(layout));
    let (accepted, others): (Vec<_>, Vec<_>) = present.partition(holds);
    (!others.is_empty()).then(|| {
        let (accepted, others) =
            (roster.pods(roster.ordinals(accepted)), roster.pods(roster.ordinals(others)));
        let message = format!(
            "{accepted} accepted a recovery that {others} did not, and serves nobody before all have: run keystorectl recover \
             again"
        );
        Hold { reason: HoldReason::Unhealthy, message }
    })
}

/// The keyspaces that the spec names and the store does not have; none while the two contradict each other.
fn added_keyspaces(valid: &ValidCluster, layout: &Layout) -> Option<Change> {
    let is_kept = |(name, mode): (&String, &KeyspaceMode)| {
        valid.keyspaces.get(name).is_some_and(|wanted| wanted == mode)
    };
    let is_new = |(name, _): &(&String, &KeyspaceMode)| !layout.keyspaces.contains_key(*name);
    let added: std::collections::BTreeMap<_, _> =
        valid.keyspaces.iter().filter(is_new).map(|(name, mode)| (name.clone(), *mode)).collect();
    (layout.keyspaces.iter().all(is_kept) && !added.is_empty()).then_some(Change::Keyspaces(added))
}

/// The layout that makes a change, and the node that can have it decided; none where none serves by the layout in force.
/// One that holds data comes first: it knows what was decided, and no pod is taken away before it says the same as all
/// others. Then the best connected one.
fn propose(roster: &Roster<'_>, change: &Change) -> Result<Option<Proposal>, SuccessionError> {
    let layout = roster.layout.next_without(change, &roster.silent())?;
    // Whoever has heard that nothing is missing can prove it to the others.
    let can_prove = |node: NodeId| {
        *change != Change::Finish
            || roster.answer_of(node).is_some_and(|answer| answer.transfer.waits_for.is_none())
    };
    let rank = |node: NodeId| {
        let links = roster.answer_of(node).map_or(0, |answer| {
            answer.connected.iter().filter(|peer| roster.layout.member(**peer).is_some()).count()
        });
        Some((roster.owns(node), links, std::cmp::Reverse(roster.ordinal(node)?)))
    };
    let fit = roster.layout.members.iter().filter(|member| !member.is_lost).map(|member| member.node);
    let fit = fit.filter(|node| roster.serves_now(*node) && can_prove(*node));
    let best = fit.filter_map(rank).max();
    if roster.is_behind() {
        return Ok(None);
    }
    Ok(best.map(|(.., std::cmp::Reverse(ordinal))| Proposal {
        ordinal,
        expected: roster.layout.epoch,
        layout,
    }))
}

/// `loss` is who is to be given up, or why nobody is.
fn plan_stage(valid: &ValidCluster, roster: &Roster<'_>, aim: &Aim, loss: Option<Stage>) -> Option<Stage> {
    if !aim.is_met_by_move(roster) {
        let message = "data goes back to where it was, since other nodes are to hold it now".to_owned();
        return Some(Stage::change("TurningBack", message, Change::Abort));
    }
    if loss.as_ref().is_some_and(|loss| loss.change.is_some()) {
        return loss;
    }
    if roster.layout.is_moving() {
        return Some(plan_moving(roster));
    }
    let next = plan_dismissal(roster, aim)
        .or_else(|| plan_admission(roster, aim))
        .or_else(|| plan_beginning(valid, roster, aim))
        .or_else(|| plan_removal(roster, aim));
    next.or(loss)
}

/// Data moves to where it is wanted.
fn plan_moving(roster: &Roster<'_>) -> Stage {
    let layout = roster.layout;
    let serving = || {
        let nodes = layout.members.iter().map(|member| member.node);
        nodes.filter(|node| roster.serves_now(*node)).filter_map(|node| roster.answer_of(node))
    };
    if serving().any(|answer| answer.transfer.waits_for.is_none()) {
        let message = "all data has moved, the nodes agree on it".to_owned();
        return Stage::change("Finishing", message, Change::Finish);
    }
    let done: u32 = serving().map(|answer| answer.transfer.partitions_done).sum();
    let all: u32 = serving().map(|answer| answer.transfer.partitions).sum();
    let (phase, mut message) = match layout.salvaged.len() {
        0 => ("Moving", format!("{done} of {all} copies of partitions are where they are to be")),
        salvaged => (
            "Salvaging",
            format!(
                "{done} of {all} copies have all that is left of {salvaged} partitions; these serve nobody before"
            ),
        ),
    };
    let waits_for = serving().find_map(|answer| answer.transfer.waits_for.as_deref());
    if let Some(waits_for) = waits_for.filter(|_| done >= all) {
        message = format!("{message}; {}", with_pods(layout, waits_for));
    }
    let silent = owners(layout.ring()).into_iter().filter(|node| roster.answer_at_home(*node).is_none());
    let silent = roster.pods(roster.ordinals(silent.filter(|node| !layout.is_lost(*node))));
    if !silent.is_empty() {
        message = format!("{message}; {silent} cannot be reached");
    }
    Stage::waiting(phase, message)
}

/// The store speaks of nodes by their UUIDs, people by their pods.
pub(crate) fn with_pods(layout: &Layout, text: &str) -> String {
    let named = |text: String, member: &Member| text.replace(&member.node.to_string(), &member.name);
    layout.members.iter().fold(text.to_owned(), named)
}

/// Members that hold nothing and are lost, or whose pods are gone for good, are none any more. One that is lost is kept until
/// another node answers in its pod: that is how it is known that the pod is not to be waited for.
fn plan_dismissal(roster: &Roster<'_>, aim: &Aim) -> Option<Stage> {
    let observed = roster.observed;
    let is_pod_gone = |ordinal: u32| {
        let is_asked_for = observed.live_replicas().is_none_or(|live| ordinal < live);
        !is_asked_for && !observed.pods.contains_key(&ordinal) && !aim.ordinals.contains(&ordinal)
    };
    let is_gone = |member: &&Member| {
        let ordinal = roster.names.ordinal(&member.name);
        let is_heard = roster.answer_of(member.node).is_some();
        let is_followed = |ordinal: u32| roster.stranger(ordinal).is_some() || roster.live(ordinal).is_some();
        let is_over = if member.is_lost { ordinal.is_none_or(is_followed) } else { false };
        !roster.owns(member.node) && (is_over || !is_heard && ordinal.is_some_and(is_pod_gone))
    };
    let gone: BTreeSet<_> = roster.layout.members.iter().filter(is_gone).map(|member| member.node).collect();
    // After a recovery hardly anybody may be left: others join first, since a layout has a member for each replica.
    let is_enough_left = roster.layout.members.len() >= roster.layout.replication_factor + gone.len();
    let pods = roster.pods(roster.ordinals(gone.iter().copied()));
    let message = || format!("the former nodes of {pods} are members no longer");
    (!gone.is_empty() && is_enough_left)
        .then(|| Stage::change("Dismissing", message(), Change::Dismiss(gone)))
}

/// Every pod that is to hold data needs a member.
fn plan_admission(roster: &Roster<'_>, aim: &Aim) -> Option<Stage> {
    let is_missing = |ordinal: &u32| roster.live(*ordinal).is_none_or(|member| member.weight == 0);
    let missing: Vec<u32> = aim.ordinals.iter().copied().filter(is_missing).collect();
    if missing.is_empty() {
        return None;
    }
    let joins = |ordinal: u32| {
        if let Some(member) = roster.live(ordinal) {
            // It was about to go.
            let is_there = roster.answer_at_home(member.node).is_some();
            return is_there.then(|| Member { weight: 1, ..member.clone() });
        }
        let answer = roster.stranger(ordinal)?;
        Some(Member {
            node: answer.node,
            actor: answer.actor,
            name: roster.names.pod(ordinal),
            zone: roster.observed.zones.get(&ordinal).cloned().unwrap_or_default(),
            weight: 1,
            is_lost: false,
        })
    };
    let new: Vec<Member> = missing.iter().copied().filter_map(joins).collect();
    if new.len() == missing.len() {
        let message = format!("{} join, without data yet", roster.pods(missing));
        return Some(Stage::change("Joining", message, Change::Admit(new)));
    }
    let waited_for = missing.into_iter().filter(|ordinal| joins(*ordinal).is_none());
    let message = format!("waiting for {} to answer as a new node", roster.pods(waited_for));
    Some(Stage::waiting("StartingPods", message))
}

/// Data moves only between nodes that are well.
fn plan_beginning(valid: &ValidCluster, roster: &Roster<'_>, aim: &Aim) -> Option<Stage> {
    let layout = roster.layout;
    let members = aim.members(roster)?;
    let nodes: BTreeSet<_> = members.iter().map(|member| member.node).collect();
    if owners(layout.ring()) == nodes {
        return None;
    }
    let change = plan_move(layout, members);
    match layout.next(&change) {
        // Fewer partitions than nodes: some hold nothing.
        Ok(next) if !next.is_joint() => return None,
        Err(SuccessionError::Nothing) => return None,
        // What is wrong with it is said where it is proposed.
        Ok(_) | Err(_) => {}
    }
    let is_up =
        |node: &NodeId| roster.answer_at_home(*node).is_some_and(|answer| answer.mode == NodeMode::Serving);
    let down = nodes.iter().copied().filter(|node| roster.owns(*node) && !is_up(node));
    let down = roster.pods(roster.ordinals(down));
    if !down.is_empty() {
        return Some(Stage::held(
            "Joining",
            format!(
                "data does not begin to move while nodes are down that hold it: {down}; bring them back{}",
                or_wait(valid)
            ),
        ));
    }
    let late = roster.ordinals(nodes.iter().copied().filter(|node| !roster.serves_now(*node)));
    if !late.is_empty() {
        let message =
            format!("waiting for {} to take up epoch {} and serve", roster.pods(late), layout.epoch);
        return Some(Stage::waiting("Joining", message));
    }
    let lacks = |node: &NodeId| {
        let linked = roster.answer_of(*node).map(|answer| &answer.connected);
        nodes.iter().any(|peer| peer != node && !linked.is_some_and(|linked| linked.contains(peer)))
    };
    let apart = roster.ordinals(nodes.iter().copied().filter(lacks));
    if !apart.is_empty() {
        let message = format!("waiting for {} to reach all other nodes", roster.pods(apart));
        return Some(Stage::waiting("Joining", message));
    }
    let message = format!("data begins to move to {} nodes", nodes.len());
    Some(Stage::change("Moving", message, change))
}

fn or_wait(valid: &ValidCluster) -> String {
    let seconds = valid.replace_after_seconds;
    seconds.map(|seconds| format!(", or wait: after {seconds} s they are given up")).unwrap_or_default()
}

/// Pods and members that hold nothing any more.
fn plan_removal(roster: &Roster<'_>, aim: &Aim) -> Option<Stage> {
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

/// The members in pods from `needed` on to which the next layout could give data.
fn find_eligible<'a>(roster: &Roster<'a>, needed: u32) -> impl Iterator<Item = &'a Member> {
    let names = roster.names;
    let members = roster.layout.members.iter().filter(|member| !member.is_lost && member.weight > 0);
    members.filter(move |member| names.ordinal(&member.name).is_some_and(|ordinal| ordinal >= needed))
}

/// The pods that exist or are asked for, and those of members, and are not needed.
fn surplus(roster: &Roster<'_>, aim: &Aim) -> BTreeSet<u32> {
    let needed = needed_pods(roster, aim);
    let members = roster.layout.members.iter().filter(|member| !member.is_lost);
    let of_members = members.filter_map(|member| roster.names.ordinal(&member.name));
    let asked_for = 0..roster.observed.live_replicas().unwrap_or(0);
    let pods = roster.observed.pods.keys().copied();
    of_members.chain(asked_for).chain(pods).filter(|ordinal| *ordinal >= needed).collect()
}

/// How many pods it takes to run every node that holds data, or is to.
fn needed_pods(roster: &Roster<'_>, aim: &Aim) -> u32 {
    let members = roster.layout.members.iter().map(|member| member.node);
    let holding = roster.ordinals(members.filter(|node| roster.owns(*node)));
    let highest = holding.iter().chain(&aim.ordinals).max();
    highest.map_or(0, |highest| highest + 1)
}

/// Nothing is taken away before all that has to be known for it is known in this very look.
fn plan_replicas(roster: &Roster<'_>, aim: &Aim) -> u32 {
    let live = roster.observed.live_replicas().unwrap_or(0);
    let needed = needed_pods(roster, aim);
    let may_go = !aim.is_held
        && find_obstacle(roster, needed).is_none()
        && find_eligible(roster, needed).next().is_none();
    if may_go { needed } else { live.max(needed) }
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
        format!("{untrusted} partitions have a quorum of replicas to trust again (what is damaged at {doubting} has to heal)")
    })
}

/// What the operation is called, and from how many nodes it comes.
fn operation(roster: &Roster<'_>, aim: &Aim) -> (OperationKind, u32) {
    let layout = roster.layout;
    let to = &aim.ordinals;
    let holding = roster.ordinals(owners(layout.source_ring()));
    let staying = roster.ordinals(owners(layout.ring()));
    if layout.is_joint() && staying == *to {
        let kind = match to.len().cmp(&holding.len()) {
            std::cmp::Ordering::Greater => OperationKind::ScaleUp,
            std::cmp::Ordering::Less => OperationKind::ScaleDown,
            std::cmp::Ordering::Equal => OperationKind::Replace,
        };
        return (kind, count(holding.len()));
    }
    if layout.is_moving() && !layout.is_joint() {
        return (OperationKind::Replace, count(to.len()));
    }
    let present: BTreeSet<u32> = staying.union(&surplus(roster, aim)).copied().collect();
    let grows = !to.is_subset(&staying);
    let shrinks = !present.is_subset(to);
    match (grows, shrinks) {
        (true, false) => (OperationKind::ScaleUp, count(staying.len())),
        (true, true) if to.len() == staying.len() => (OperationKind::Replace, count(to.len())),
        (true, true) if to.len() > staying.len() => (OperationKind::ScaleUp, count(staying.len())),
        (_, true) => (OperationKind::ScaleDown, count(present.len())),
        (false, false) => (OperationKind::Replace, count(to.len())),
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
