//! The status of a resource, from what was seen and what was planned.
//!
//! Invariant: two looks at a cluster at rest make equal statuses, so that nothing is written.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use keystore_core::layout::{Layout, Member};
use keystore_crds::{
    ConditionType, KeyStoreCluster, KeyStoreClusterStatus, LayoutPhase, NodeState, NodeStatus, Operation,
    OperationKind,
};

use crate::conditions::{Assessed, TRUE, Verdict, creation_progress, date, judge};
use crate::health::{Health, assess, by_node};
use crate::identity::Identity;
use crate::observed::{Answer, NodeMode, Observed};
use crate::plan::{NodeStep, Plan, remembered};
use crate::validate::{InvalidSpec, ValidCluster};

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
    let is_new = old.epoch.is_none() || old.operation.is_some();
    let assessed = Assessed { valid, observed, plan, health: &health, is_new, now };
    let (cluster_id, epoch, layout_phase) = identity_fields(plan, &old);
    KeyStoreClusterStatus {
        observed_generation: Some(valid.generation),
        replicas: count(observed.pods.len()),
        ready_replicas: count(observed.pods.keys().filter(|ordinal| observed.is_ready(**ordinal)).count()),
        selector: Some(valid.names.selector_text()),
        image: plan.image.clone(),
        cluster_id,
        epoch,
        layout_phase,
        operation: operation(&assessed, &old, now),
        nodes: nodes(input, &old, &health),
        conditions: date(judge(&assessed), &old.conditions, valid.generation, now),
    }
}

/// A spec that cannot be acted upon: what was seen before stays, and a person is asked.
pub fn plan_invalid_status(
    cluster: &KeyStoreCluster,
    error: &InvalidSpec,
    now: Timestamp,
) -> KeyStoreClusterStatus {
    let mut status = cluster.status.clone().unwrap_or_default();
    let generation = cluster.metadata.generation.unwrap_or_default();
    let verdict = |type_, status, reason| Verdict { type_, status, reason, message: error.to_string() };
    let ours = vec![
        verdict(ConditionType::Ready, "False", "Held"),
        verdict(ConditionType::Stalled, TRUE, "InvalidSpec"),
    ];
    let mut conditions = date(ours, &status.conditions, generation, now);
    let rest = status.conditions.drain(..).filter(|old| conditions.iter().all(|new| new.type_ != old.type_));
    let rest: Vec<Condition> = rest.collect();
    conditions.extend(rest);
    conditions.sort_by_key(|condition| ConditionType::ALL.iter().position(|t| t.as_str() == condition.type_));
    status.conditions = conditions;
    status.observed_generation = Some(generation);
    status
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
    let (phase, message) = creation_progress(of)?;
    let since = old.operation.as_ref().map_or(Time(now), |operation| operation.since.clone());
    Some(Operation { kind: OperationKind::Create, phase: phase.to_owned(), since, message })
}

fn nodes(input: StatusInput<'_>, old: &KeyStoreClusterStatus, health: &Health) -> Vec<NodeStatus> {
    let StatusInput { valid, observed, plan, .. } = input;
    match &plan.identity {
        Identity::InForce { layout } => member_nodes(valid, layout, observed, old),
        _ if !health.down.is_empty() || !health.replaced.is_empty() => remembered_nodes(old),
        Identity::Conflict { .. } => old.nodes.clone(),
        Identity::Accepting { .. }
        | Identity::Empty { .. }
        | Identity::Nameless
        | Identity::Unknown { .. }
        | Identity::AllReplaced
        | Identity::Impossible { .. } => joining_nodes(valid, observed, plan.replicas),
    }
}

/// In the pods' order, whatever the layout's.
fn member_nodes(
    valid: &ValidCluster,
    layout: &Layout,
    observed: &Observed,
    old: &KeyStoreClusterStatus,
) -> Vec<NodeStatus> {
    let heard = by_node(observed);
    let mut members: Vec<&Member> = layout.members.iter().collect();
    members.sort_by_key(|member| (valid.names.ordinal(&member.name), &member.name));
    let last_version = |pod: &str| old.nodes.iter().find(|node| node.pod == pod)?.version.clone();
    let node = |member: &Member| {
        let answer = heard.get(&member.node);
        NodeStatus {
            pod: member.name.clone(),
            node_id: Some(member.node.to_string()),
            zone: some_text(&member.zone),
            version: answer.map(|answer| answer.version.clone()).or_else(|| last_version(&member.name)),
            state: answer.map_or(NodeState::Down, |answer| state(answer.mode)),
            partitions: count(layout.owned(member.node)),
        }
    };
    members.into_iter().map(node).collect()
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
            partitions: 0,
        }
    };
    (0..replicas).map(node).collect()
}

/// A member that has not learned of the layout's force yet is still joining.
fn state(mode: NodeMode) -> NodeState {
    match mode {
        NodeMode::Uninitialized | NodeMode::Accepted => NodeState::Joining,
        NodeMode::Serving => NodeState::Serving,
        NodeMode::Draining => NodeState::Draining,
    }
}

fn some_text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
