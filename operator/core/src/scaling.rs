//! From a layout in force to the spec, one step at a time: which nodes join, to whom data moves, which pods go.
//!
//! Pods come before members, members before data, and all of that in the other order on the way down. What is done next
//! follows from the layout and from what nodes answer alone, so an operator that was away goes on where another one
//! stopped, and a spec that changes in the middle is nothing special. Which pods go is `removal`'s, who is given up
//! `loss`'s. Invariants: a move is turned back only while the nodes that it came from have everything; of two layouts one
//! is proposed, and the store judges it again.
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
use crate::loss::{AWAY_SECONDS, plan_loss, plan_voters};
use crate::members::{Roster, owners};
use crate::observed::{NodeAnswer, NodeMode, Observed};
use crate::removal::{plan_removal, plan_replicas, surplus};
use crate::space::{find_full_volume, find_lack_of_space};
use crate::stage::Stage;
use crate::undecidable::{find_half_accepted, find_lack_of_voters};
use crate::validate::ValidCluster;

/// What a person can do about damage that does not heal.
const DAMAGE_HINT: &str = "keystorectl status says what is damaged; where that lasts, replace the volume if other nodes hold all of it, and else \
     accept the loss with keystorectl recover";

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
    /// It builds on pods that are to be there, and are only once what is planned beside it has been written.
    pub needs_writes: bool,
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
    let stage = plan_stage(StageInput { valid, roster: &roster, aim: &aim, absences: &absences }, loss);
    let added = added_keyspaces(valid, layout);
    let change = added.or_else(|| stage.as_ref()?.change.clone());
    let change = change.or_else(|| plan_voters(&roster, &absences));
    let undecidable = change
        .as_ref()
        .and_then(|_| find_lack_of_voters(&roster, &absences))
        .or_else(|| find_half_accepted(&roster));
    let (proposal, refusal) =
        match change.map(|change| propose(&roster, &change).map_err(|error| (change, error))) {
            None => (None, None),
            Some(Ok(proposal)) => (proposal, None),
            Some(Err((change, error))) => (None, Some(impossible(&roster, &change, &error))),
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
    let replicas = plan_replicas(&roster, &aim);
    let holds = [aim.hold, refusal, held_loss, stage.and_then(|stage| stage.hold), undecidable];
    Scaling { replicas, proposal, progress, hold: most_urgent(holds) }
}

/// What people have to do about a loss comes before what they may do about a spec.
fn most_urgent(holds: [Option<Hold>; 5]) -> Option<Hold> {
    let mut holds: Vec<Hold> = holds.into_iter().flatten().collect();
    holds.sort_by_key(|hold| !hold.reason.is_urgent());
    holds.into_iter().next()
}

fn impossible(roster: &Roster<'_>, change: &Change, error: &SuccessionError) -> Hold {
    let step = match change {
        Change::Move { .. } => "to move data",
        Change::Admit(_) => "to take in members, or to let them go",
        Change::Finish => "to end the move",
        Change::Abort => "to turn the move back",
        Change::Lose(_) => "to give up who is lost",
        Change::Dismiss(_) => "to dismiss members",
        Change::Keyspaces(_) => "to add keyspaces",
        Change::Voters => "to choose who votes",
    };
    let named = |text: String, (ordinal, answer): (u32, &NodeAnswer)| {
        text.replace(&answer.node.to_string(), &roster.names.pod(ordinal))
    };
    let error = roster.observed.heard().fold(error.to_string(), named);
    let message = format!("the next step, {step}, cannot be taken: {}", roster.layout.with_names(&error));
    Hold { reason: HoldReason::Rejected, message }
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
        needs_writes: needs_writes(roster, change, &layout),
        layout,
    }))
}

/// Who is given up, who votes and which keyspaces there are does not depend on pods. Any other layout does on those of all
/// that it could give data: that the StatefulSet asks for them already.
fn needs_writes(roster: &Roster<'_>, change: &Change, layout: &Layout) -> bool {
    let live = roster.observed.live_replicas().unwrap_or(0);
    let has_pod = |member: &Member| roster.names.ordinal(&member.name).is_none_or(|ordinal| ordinal < live);
    match change {
        Change::Lose(_) | Change::Keyspaces(_) | Change::Voters => false,
        Change::Move { .. } | Change::Admit(_) | Change::Dismiss(_) | Change::Finish | Change::Abort => {
            layout.members.iter().any(|member| !member.is_lost && member.weight > 0 && !has_pod(member))
        }
    }
}

/// What the next step is chosen from.
#[derive(Clone, Copy)]
struct StageInput<'a> {
    valid: &'a ValidCluster,
    roster: &'a Roster<'a>,
    aim: &'a Aim,
    absences: &'a Absences,
}

/// `loss` is who is to be given up, or why nobody is. Who is gone is said before anything else is decided: a move goes on
/// without them if quorums are left.
fn plan_stage(of: StageInput<'_>, loss: Option<Stage>) -> Option<Stage> {
    let StageInput { roster, aim, .. } = of;
    if loss.as_ref().is_some_and(|loss| loss.change.is_some()) {
        return loss;
    }
    if roster.layout.is_moving() {
        let is_met = aim.is_met_by_move(roster);
        return Some(if is_met { plan_moving(roster) } else { plan_turning_back(of) });
    }
    let next = plan_dismissal(roster, aim)
        .or_else(|| plan_admission(roster, aim))
        .or_else(|| plan_beginning(of))
        .or_else(|| plan_removal(roster, aim));
    next.or(loss)
}

/// Data moves to where it is not wanted. It goes on if it cannot go back: where it moves to may be all that is left of it.
/// Somebody that has only just fallen silent may restart, and is waited for.
fn plan_turning_back(of: StageInput<'_>) -> Stage {
    let StageInput { roster, absences, .. } = of;
    let uncounted = roster.uncounted();
    if roster.can_turn_back(&uncounted) {
        let message = "data goes back to where it was, since other nodes are to hold it now".to_owned();
        return Stage::change("TurningBack", message, Change::Abort);
    }
    let onward = plan_moving(roster);
    if onward.change.is_some() {
        return onward;
    }
    let replaced = roster.replaced();
    let may_restart = |node: NodeId| {
        let is_silent = roster.answer_of(node).is_none() && !roster.layout.is_lost(node);
        is_silent && !replaced.contains(&node) && !absences.is_away_for(node, AWAY_SECONDS)
    };
    let (restarting, gone): (BTreeSet<_>, BTreeSet<_>) =
        uncounted.iter().copied().partition(|node| may_restart(*node));
    if roster.can_turn_back(&gone) {
        let pods = roster.pods(roster.ordinals(restarting));
        let message = format!(
            "{}; other nodes are to hold the data now, and it goes back once {pods} say what they hold",
            onward.message
        );
        return Stage { message, ..onward };
    }
    let pods = roster.pods(roster.ordinals(uncounted));
    let message = format!(
        "other nodes are to hold the data now, and it does not go back: the nodes that it comes from lack copies without \
         {pods} (lost, damaged, or not answering), and what has moved may be all that is left of some; bring nodes back, or \
         name what is lost for good with keystorectl recover"
    );
    Stage::short(onward.phase, format!("{}; {message}", onward.message)).with_hold(message)
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
        message = format!("{message}; {}", layout.with_names(waits_for));
    }
    let is_damaged = |node: &NodeId| roster.answer_at_home(*node).is_some_and(|answer| answer.is_in_doubt);
    let damaged = layout.members.iter().map(|member| member.node).filter(is_damaged);
    let damaged = roster.pods(roster.ordinals(damaged));
    if !damaged.is_empty() {
        message = format!(
            "{message}; something on {damaged} is damaged, and healed from other nodes first; {DAMAGE_HINT}"
        );
    }
    let silent = owners(layout.ring()).into_iter().filter(|node| roster.answer_at_home(*node).is_none());
    let silent = roster.pods(roster.ordinals(silent.filter(|node| !layout.is_lost(*node))));
    if !silent.is_empty() {
        message = format!("{message}; {silent} cannot be reached");
    }
    if let Some(hold) = find_full_volume(roster) {
        return Stage::held_by(
            Hold { message: format!("{message}; {}", hold.message), ..hold.clone() },
            phase,
        )
        .with_hold(hold.message);
    }
    Stage::waiting(phase, message)
}

/// Members that hold nothing and are lost, or whose pods are gone for good, are none any more. One that is lost is kept until
/// another node answers in its pod: that is how it is known that the pod is not to be waited for. Where its pod is not wanted,
/// that it was told to end is enough: on a dead machine it never does.
fn plan_dismissal(roster: &Roster<'_>, aim: &Aim) -> Option<Stage> {
    let observed = roster.observed;
    let is_pod_gone = |member: &Member, ordinal: u32| {
        let is_asked_for = observed.live_replicas().is_none_or(|live| ordinal < live);
        let is_wanted = aim.ordinals.contains(&ordinal) || aim.in_the_end.contains(&ordinal);
        let is_over = !observed.pods.contains_key(&ordinal) || member.is_lost && observed.has_ended(ordinal);
        !is_asked_for && !is_wanted && is_over
    };
    let is_gone = |member: &&Member| {
        let ordinal = roster.names.ordinal(&member.name);
        let is_heard = roster.answer_of(member.node).is_some();
        let is_followed = |ordinal: u32| roster.stranger(ordinal).is_some() || roster.live(ordinal).is_some();
        let is_over = if member.is_lost { ordinal.is_none_or(is_followed) } else { false };
        // Where its machine is cut off from Kubernetes alone, it still answers the others, which do not let it go before.
        let is_needed = !member.is_lost && roster.untrusted() > 0 && roster.is_linked(member.node);
        !roster.owns(member.node)
            && !is_needed
            && (is_over || !is_heard && ordinal.is_some_and(|ordinal| is_pod_gone(member, ordinal)))
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
        // One that was told to end still answers for a while.
        if !roster.observed.stays(ordinal) {
            return None;
        }
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
    let waited_for: Vec<u32> = missing.into_iter().filter(|ordinal| joins(*ordinal).is_none()).collect();
    let ending: BTreeSet<u32> =
        waited_for.iter().copied().filter(|ordinal| roster.is_heard(*ordinal)).collect();
    let message = match ending.len() == waited_for.len() {
        true => will_not_stay(roster, ending),
        false => format!("waiting for {} to start and answer", roster.pods(waited_for)),
    };
    Some(Stage::waiting("StartingPods", message))
}

fn will_not_stay(roster: &Roster<'_>, ordinals: BTreeSet<u32>) -> String {
    format!(
        "waiting for {}: told to end, or the StatefulSet's controller has not taken up the last change",
        roster.pods(ordinals)
    )
}

/// Data moves only between nodes that are well.
fn plan_beginning(of: StageInput<'_>) -> Option<Stage> {
    let StageInput { valid, roster, aim, .. } = of;
    let layout = roster.layout;
    let members = aim.members(roster)?;
    let nodes: BTreeSet<_> = members.iter().map(|member| member.node).collect();
    if owners(layout.ring()) == nodes {
        return None;
    }
    let change = plan_move(layout, members);
    let next = match layout.next(&change) {
        // Fewer partitions than nodes: some hold nothing.
        Ok(next) if !next.is_joint() => return None,
        Err(SuccessionError::Nothing) => return None,
        // What is wrong with it is said where it is proposed.
        next => next.ok(),
    };
    let is_up =
        |node: &NodeId| roster.answer_at_home(*node).is_some_and(|answer| answer.mode == NodeMode::Serving);
    let down: BTreeSet<_> = nodes.iter().copied().filter(|node| roster.owns(*node) && !is_up(node)).collect();
    if !down.is_empty() {
        return Some(Stage::held(
            "Joining",
            format!(
                "data does not begin to move while nodes are down that hold it: {}; bring them back{}",
                roster.pods(roster.ordinals(down.iter().copied())),
                or_wait(of, &down)
            ),
        ));
    }
    // Where copies are missing, what is left is not waited for; and data may leave a disk that is damaged, if others have it.
    let doubting = roster.in_doubt();
    let damaged: BTreeSet<_> = doubting.iter().copied().filter(|node| roster.owns(*node)).collect();
    let (damaged, leaving): (BTreeSet<_>, BTreeSet<_>) =
        damaged.into_iter().partition(|node| nodes.contains(node));
    let damaged = match roster.can_do_without(&leaving, &doubting) {
        true => damaged,
        false => damaged.union(&leaving).copied().collect(),
    };
    let is_short = owners(layout.ring()).into_iter().any(|node| layout.is_lost(node));
    if !damaged.is_empty() && !is_short {
        let damaged = roster.pods(roster.ordinals(damaged));
        let message = format!(
            "data does not begin to move before what is damaged on {damaged} is healed from other nodes; {DAMAGE_HINT}"
        );
        return Some(Stage::held("Joining", message));
    }
    let late = roster.ordinals(nodes.iter().copied().filter(|node| !roster.serves_now(*node)));
    if !late.is_empty() {
        let message =
            format!("waiting for {} to take up epoch {} and serve", roster.pods(late), layout.epoch);
        return Some(Stage::waiting("Joining", message));
    }
    // Who gains nothing may restart, or be told to by a machine that never hears of it.
    let gains = |node: &NodeId| {
        next.as_ref().is_none_or(|next| {
            let is_gained = |p| next.ring().is_replica(p, *node) && !layout.ring().is_replica(p, *node);
            next.partitions.all().any(is_gained)
        })
    };
    let gaining = roster.ordinals(nodes.iter().copied().filter(gains));
    let ending: BTreeSet<u32> =
        gaining.into_iter().filter(|ordinal| !roster.observed.stays(*ordinal)).collect();
    if !ending.is_empty() {
        return Some(Stage::waiting("Joining", will_not_stay(roster, ending)));
    }
    let lacks = |node: &NodeId| {
        let linked = roster.answer_of(*node).map(|answer| &answer.connected);
        nodes.iter().any(|peer| peer != node && !linked.is_some_and(|linked| linked.contains(peer)))
    };
    let apart = roster.ordinals(nodes.iter().copied().filter(lacks));
    if !apart.is_empty() {
        let message = format!(
            "waiting for {} to reach all other nodes (port 7401: if this lasts, look for a NetworkPolicy between the pods)",
            roster.pods(apart)
        );
        return Some(Stage::waiting("Joining", message));
    }
    // Who takes the place of a lost node is not asked either.
    let grows = nodes.len() > owners(layout.ring()).len() && !is_short;
    if let Some(hold) = find_lack_of_space(valid, roster, &aim.ordinals).filter(|_| grows) {
        return Some(Stage::held_by(hold, "Joining"));
    }
    let message = format!("data begins to move to {} nodes", nodes.len());
    Some(Stage::change("Moving", message, change))
}

/// Who drains, or is reached by others, is not given up.
fn or_wait(of: StageInput<'_>, down: &BTreeSet<NodeId>) -> String {
    let are_away = down.iter().all(|node| of.absences.since(*node).is_some());
    let seconds = of.valid.replace_after_seconds.filter(|_| are_away);
    seconds.map(|seconds| format!(", or wait: after {seconds} s they are given up")).unwrap_or_default()
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
