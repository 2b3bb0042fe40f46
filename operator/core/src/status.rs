//! The status of a resource, from what was seen and what was planned.
//!
//! Invariant: two looks at a cluster at rest make equal statuses, so that nothing is written.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use keystore_core::layout::{Layout, Member};
use keystore_crds::{
    ConditionType, KeyStoreCluster, KeyStoreClusterStatus, LayoutPhase, NodeState, NodeStatus, Operation,
    OperationKind,
};

use crate::absence::Absences;
use crate::conditions::{Assessed, creation_progress, date, judge};
use crate::health::{Availability, Health, assess};
use crate::identity::Identity;
use crate::members::Roster;
use crate::observed::{Answer, NodeAnswer, NodeMode, Observed};
use crate::plan::{NodeStep, Plan, remembered};
use crate::validate::ValidCluster;

/// What a status is made from.
#[derive(Clone, Copy)]
pub struct StatusInput<'a> {
    pub cluster: &'a KeyStoreCluster,
    pub valid: &'a ValidCluster,
    pub observed: &'a Observed,
    pub plan: &'a Plan,
    pub now: Timestamp,
}

pub fn plan_status(input: StatusInput<'_>) -> KeyStoreClusterStatus {
    let StatusInput { cluster, valid, observed, plan, now } = input;
    let old = cluster.status.clone().unwrap_or_default();
    let health = assess(valid, &plan.identity, observed, remembered(cluster).was_in_force);
    let creates = |operation: &Operation| operation.kind == OperationKind::Create;
    let is_new = old.epoch.is_none() || old.operation.as_ref().is_some_and(creates);
    let assessed = Assessed { valid, observed, plan, health: &health, is_new, now };
    let (cluster_id, epoch, layout_phase) = identity_fields(plan, &old);
    KeyStoreClusterStatus {
        observed_generation: Some(valid.generation),
        replicas: count(observed.pods.len()),
        ready_replicas: count(observed.pods.keys().filter(|ordinal| observed.is_ready(**ordinal)).count()),
        selector: Some(valid.names.selector_text()),
        image: if plan.is_spec_refused { old.image.clone() } else { plan.image.clone() },
        cluster_id,
        epoch,
        layout_phase,
        operation: operation(&assessed, &old, now),
        nodes: nodes(input, &old, &health),
        conditions: conditions(&assessed, &old, now),
    }
}

/// What is not known at the moment stays as it was known: while the spec is refused, whether an update waits, and while no
/// node shows the layout, whether it changes.
fn conditions(of: &Assessed<'_>, old: &KeyStoreClusterStatus, now: Timestamp) -> Vec<Condition> {
    let mut conditions = date(judge(of), &old.conditions, of.valid.generation, now);
    let is_unknown = |type_: &str| {
        type_ == ConditionType::UpdatePending.as_str() && of.plan.is_spec_refused
            || type_ == ConditionType::Progressing.as_str() && is_unseen(of)
    };
    for condition in conditions.iter_mut().filter(|condition| is_unknown(&condition.type_)) {
        if let Some(known) = old.conditions.iter().find(|known| known.type_ == condition.type_) {
            *condition = known.clone();
        }
    }
    conditions
}

/// There is a layout, and nobody shows it.
fn is_unseen(of: &Assessed<'_>) -> bool {
    matches!(of.plan.identity, Identity::Unknown { .. }) && of.health.availability == Availability::Unseen
}

/// Cluster UUID, epoch, phase. What nobody shows at the moment stays as it was reported last.
fn identity_fields(
    plan: &Plan,
    old: &KeyStoreClusterStatus,
) -> (Option<String>, Option<i64>, Option<LayoutPhase>) {
    if let NodeStep::RecordCluster(id) = &plan.node_step {
        return (Some(id.to_string()), old.epoch, old.layout_phase);
    }
    match &plan.identity {
        Identity::InForce { layout } => {
            let epoch = i64::try_from(layout.epoch.0).unwrap_or(i64::MAX);
            let phase = if layout.is_joint() { LayoutPhase::Joint } else { LayoutPhase::Stable };
            (Some(layout.cluster.to_string()), Some(epoch), Some(phase))
        }
        Identity::Accepting { layout } => (Some(layout.cluster.to_string()), old.epoch, old.layout_phase),
        Identity::Empty { .. }
        | Identity::Nameless
        | Identity::Unknown { .. }
        | Identity::AllReplaced
        | Identity::Conflict { .. }
        | Identity::Impossible { .. } => (old.cluster_id.clone(), old.epoch, old.layout_phase),
    }
}

fn operation(of: &Assessed<'_>, old: &KeyStoreClusterStatus, now: Timestamp) -> Option<Operation> {
    if is_unseen(of) {
        return old.operation.clone();
    }
    let number = |count: u32| Some(i32::try_from(count).unwrap_or(i32::MAX));
    let mut operation = match creation_progress(of) {
        Some((phase, message)) => Operation {
            kind: OperationKind::Create,
            from: None,
            to: None,
            phase: phase.to_owned(),
            since: Time(now),
            message,
        },
        None => {
            let progress = of.plan.progress.as_ref()?;
            Operation {
                kind: progress.kind,
                from: number(progress.from),
                to: number(progress.to),
                phase: progress.phase.to_owned(),
                since: Time(now),
                message: progress.message.clone(),
            }
        }
    };
    // The same as before: it began then, and from there.
    let is_same = |old: &&Operation| old.kind == operation.kind && old.to == operation.to;
    if let Some(same) = old.operation.as_ref().filter(is_same) {
        operation.since = same.since.clone();
        operation.from = same.from;
    }
    Some(operation)
}

fn nodes(input: StatusInput<'_>, old: &KeyStoreClusterStatus, health: &Health) -> Vec<NodeStatus> {
    let StatusInput { valid, observed, plan, .. } = input;
    match &plan.identity {
        Identity::InForce { layout } => member_nodes(input, layout, old),
        _ if !health.down.is_empty() || !health.replaced.is_empty() => remembered_nodes(old),
        Identity::Conflict { .. } => old.nodes.clone(),
        _ if plan.is_spec_refused => old.nodes.clone(),
        Identity::Accepting { .. }
        | Identity::Empty { .. }
        | Identity::Nameless
        | Identity::Unknown { .. }
        | Identity::AllReplaced
        | Identity::Impossible { .. } => joining_nodes(valid, observed, plan.replicas),
    }
}

/// In the pods' order, whatever the layout's: each pod of a member once, and those of nodes that are about to join.
fn member_nodes(input: StatusInput<'_>, layout: &Layout, old: &KeyStoreClusterStatus) -> Vec<NodeStatus> {
    let StatusInput { cluster, valid, observed, plan, now } = input;
    let roster = Roster::new(&valid.names, layout, observed);
    let absences = Absences::new(cluster, &roster, now);
    let named = |member: &&Member| (valid.names.ordinal(&member.name), member.name.clone());
    let mut pods: BTreeSet<_> = layout.members.iter().map(|member| named(&member)).collect();
    let is_joining = |ordinal: &u32| roster.stranger(*ordinal).is_some() && plan.progress.is_some();
    pods.extend((0..plan.replicas).filter(is_joining).map(|o| (Some(o), valid.names.pod(o))));
    let last_version = |pod: &str| old.nodes.iter().find(|node| node.pod == pod)?.version.clone();
    let node = |(ordinal, pod): (Option<u32>, String)| {
        let lost = || layout.members.iter().find(|member| member.name == pod);
        let member = ordinal.and_then(|ordinal| roster.live(ordinal)).or_else(lost);
        let answer = match member {
            Some(member) => roster.answer_of(member.node),
            None => ordinal.and_then(|ordinal| roster.stranger(ordinal)),
        };
        let zone = match member {
            Some(member) => some_text(&member.zone),
            None => ordinal.and_then(|ordinal| observed.zones.get(&ordinal).cloned()),
        };
        NodeStatus {
            node_id: member.map(|m| m.node).or_else(|| Some(answer?.node)).map(|node| node.to_string()),
            zone,
            version: answer.map(|answer| answer.version.clone()).or_else(|| last_version(&pod)),
            state: member.map_or(NodeState::Joining, |member| member_state(layout, member, answer)),
            partitions: count(member.map_or(0, |member| layout.owned(member.node))),
            down_since: member.and_then(|member| absences.since(member.node)).map(Time),
            pod,
        }
    };
    pods.into_iter().map(node).collect()
}

/// What a member does, by the rings and by what it says.
fn member_state(layout: &Layout, member: &Member, answer: Option<&NodeAnswer>) -> NodeState {
    let Some(answer) = answer.filter(|_| !member.is_lost) else {
        return if member.is_lost { NodeState::Lost } else { NodeState::Down };
    };
    let had = layout.source_ring().owned(member.node) > 0;
    let keeps = layout.ring().owned(member.node) > 0;
    match answer.mode {
        NodeMode::Uninitialized | NodeMode::Accepted => NodeState::Joining,
        NodeMode::Draining => NodeState::Draining,
        NodeMode::Serving if had && !keeps => NodeState::Draining,
        NodeMode::Serving if !had => NodeState::Joining,
        NodeMode::Serving => NodeState::Serving,
    }
}

/// Nobody shows the layout: its members are known from before, and none of them is seen to serve.
fn remembered_nodes(old: &KeyStoreClusterStatus) -> Vec<NodeStatus> {
    old.nodes.iter().cloned().map(|node| NodeStatus { state: NodeState::Down, ..node }).collect()
}

fn joining_nodes(valid: &ValidCluster, observed: &Observed, replicas: u32) -> Vec<NodeStatus> {
    let node = |ordinal: u32| {
        let answer = observed.answers.get(&ordinal).and_then(Answer::here);
        NodeStatus {
            pod: valid.names.pod(ordinal),
            node_id: answer.map(|answer| answer.node.to_string()),
            zone: observed.zones.get(&ordinal).cloned(),
            version: answer.map(|answer| answer.version.clone()),
            state: NodeState::Joining,
            down_since: None,
            partitions: 0,
        }
    };
    (0..replicas).map(node).collect()
}

fn some_text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
