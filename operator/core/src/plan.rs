//! From what was seen to what is done: leaves no choice to the step that applies it.
//!
//! At most: write children that differ, drop configurations that nothing names, and one step towards a first layout.
//! Whatever is unsafe or impossible is held, with a sentence for a person. Invariant: while two identities are seen,
//! while the resource is paused or being deleted, or while a child's name belongs to someone else, nothing is written.

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keystore_core::id::ClusterId;
use keystore_core::layout::Layout;
use keystore_crds::KeyStoreCluster;
use kube::Resource;
use serde::Serialize;
use serde_json::{Value, json};
use thiserror::Error;

use crate::build::{
    ConfigError, StatefulSetInput, build_budget, build_client_service, build_config_map,
    build_headless_service, build_pod_template, build_service_account, build_stateful_set,
};
use crate::differ::{differs, stamp};
use crate::identity::{Identity, Remembered, decide, replaced};
use crate::observed::{NodeMode, Observed};
use crate::rollout::{Rollout, config_maps, decide_rollout};
use crate::validate::{ValidCluster, validate};

#[derive(Debug, Error)]
pub enum PlanError {
    #[error("the configuration of the nodes cannot be built")]
    Config(#[from] ConfigError),
    #[error("a {kind} cannot be written as JSON")]
    Json {
        kind: Kind,
        #[source]
        source: serde_json::Error,
    },
}

/// The kinds of children, in the order in which they are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    ServiceAccount,
    ConfigMap,
    Service,
    PodDisruptionBudget,
    StatefulSet,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ServiceAccount => "ServiceAccount",
            Self::ConfigMap => "ConfigMap",
            Self::Service => "Service",
            Self::PodDisruptionBudget => "PodDisruptionBudget",
            Self::StatefulSet => "StatefulSet",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One write to the API server.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// Server-side apply; forced, with that UID as precondition, where the live object is ours.
    Apply { kind: Kind, name: String, object: Value, live_uid: Option<String> },
    /// With the UID as precondition.
    DeleteConfigMap { name: String, uid: String },
}

/// The step towards a first layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeStep {
    Nothing,
    /// Write the new UUID to the status, and do no more: it has to be remembered before any node learns of it.
    RecordCluster(ClusterId),
    /// Send this layout to these ordinals.
    Init {
        layout: Layout,
        ordinals: Vec<u32>,
    },
}

/// Why something that people asked for is not done, for the condition `Stalled`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    pub reason: HoldReason,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldReason {
    IdentityConflict,
    NameConflict,
    BelowReplicationFactor,
    LayoutMismatch,
    ScalingNotSupported,
    /// The API server refused what was planned; set by the step that applies it.
    Rejected,
}

impl HoldReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::IdentityConflict => "IdentityConflict",
            Self::NameConflict => "NameConflict",
            Self::BelowReplicationFactor => "BelowReplicationFactor",
            Self::LayoutMismatch => "LayoutMismatch",
            Self::ScalingNotSupported => "ScalingNotSupported",
            Self::Rejected => "Rejected",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub identity: Identity,
    pub writes: Vec<Write>,
    pub node_step: NodeStep,
    pub hold: Option<Hold>,
    /// The hash that a person has to approve before the pods are changed.
    pub pending_update: Option<String>,
    /// How many pods there should be.
    pub replicas: u32,
    /// An object of an earlier resource of this name that is still being collected.
    pub waits_for: Option<String>,
    /// Nothing may be written: paused, held altogether, or waiting for an earlier resource to be gone.
    pub is_hands_off: bool,
    /// How many steps that keeps back.
    pub kept_back: usize,
}

/// What the plan is made from. `fresh` is a random UUID, used only if this is the moment to mint one.
pub struct PlanInput<'a> {
    pub cluster: &'a KeyStoreCluster,
    pub valid: &'a ValidCluster,
    pub observed: &'a Observed,
    pub fresh: ClusterId,
}

/// The name of the configuration that a resource calls for; `None` where its spec is refused.
pub fn wanted_config_map(cluster: &KeyStoreCluster, default_image: &str) -> Option<String> {
    build_config_map(&validate(cluster, default_image).ok()?).ok()?.metadata.name
}

/// What the status remembers.
pub fn remembered(cluster: &KeyStoreCluster) -> Remembered {
    let status = cluster.status.as_ref();
    Remembered {
        cluster: status.and_then(|status| status.cluster_id.as_ref()?.parse().ok()),
        was_in_force: status.is_some_and(|status| status.epoch.is_some()),
    }
}

pub fn plan(input: &PlanInput<'_>) -> Result<Plan, PlanError> {
    let PlanInput { cluster, valid, observed, fresh } = *input;
    let remembered = remembered(cluster);
    let identity = decide(valid, observed, remembered);
    let replicas = plan_replicas(input, &identity, remembered);
    let in_force = remembered.was_in_force || matches!(identity, Identity::InForce { .. });
    let config_map = build_config_map(valid)?;
    let name = config_map.metadata.name.clone().unwrap_or_default();
    let template = build_pod_template(valid, &name);
    let rollout = decide_rollout(cluster, observed.children.stateful_set.as_ref(), template, in_force);
    let pending_update = rollout.pending.clone();
    let wanted = wanted_children(valid, &config_map, rollout, replicas)?;
    let hold = plan_hold(input, &identity, &wanted);
    let waits_for = find_leftover(valid, observed, &wanted);
    let untouchable = cluster.metadata.deletion_timestamp.is_some()
        || waits_for.is_some()
        || hold.as_ref().is_some_and(|hold| hold.reason.stops_everything());
    let mut plan = Plan {
        node_step: plan_node_step(&identity, valid, observed, fresh),
        identity,
        writes: plan_writes(wanted, observed),
        hold,
        pending_update,
        replicas,
        waits_for,
        is_hands_off: untouchable || cluster.spec.paused,
        kept_back: 0,
    };
    if plan.is_hands_off {
        plan.keep_back();
    }
    Ok(plan)
}

impl HoldReason {
    fn stops_everything(self) -> bool {
        match self {
            Self::IdentityConflict | Self::NameConflict => true,
            // The store that runs goes on running, and a person may change their mind.
            Self::BelowReplicationFactor
            | Self::LayoutMismatch
            | Self::ScalingNotSupported
            | Self::Rejected => false,
        }
    }
}

impl Plan {
    fn keep_back(&mut self) {
        let step = std::mem::replace(&mut self.node_step, NodeStep::Nothing);
        self.kept_back = self.writes.len() + usize::from(step != NodeStep::Nothing);
        self.writes.clear();
    }
}

/// The members of the layout decide; before there is one, the spec does. While the nodes are silent, nothing that
/// may belong to the store is scaled away.
fn plan_replicas(input: &PlanInput<'_>, identity: &Identity, remembered: Remembered) -> u32 {
    let PlanInput { cluster, valid, observed, .. } = *input;
    let live = observed.live_replicas().unwrap_or(0);
    let known = cluster.status.as_ref().map_or(0, |status| u32::try_from(status.nodes.len()).unwrap_or(0));
    let remembered_replicas = if remembered.was_in_force { known.max(1) } else { valid.replicas };
    match identity {
        Identity::InForce { layout } | Identity::Accepting { layout } => member_pods(valid, layout),
        Identity::Empty { .. } | Identity::Nameless | Identity::Impossible { .. } => valid.replicas,
        Identity::Unknown { .. } if remembered.cluster.is_none() => valid.replicas,
        Identity::Unknown { .. } | Identity::AllReplaced => live.max(remembered_replicas),
        Identity::Conflict { .. } => live,
    }
}

/// How many pods it takes to run every member.
fn member_pods(valid: &ValidCluster, layout: &Layout) -> u32 {
    let ordinals = layout.members.iter().filter_map(|member| valid.names.ordinal(&member.name));
    ordinals.max().map_or(valid.replicas, |highest| highest + 1)
}

/// A wanted child beside the live object of that name.
struct Wanted {
    kind: Kind,
    name: String,
    object: Value,
}

fn wanted_children(
    valid: &ValidCluster,
    config_map: &ConfigMap,
    rollout: Rollout,
    replicas: u32,
) -> Result<Vec<Wanted>, PlanError> {
    let Rollout { template, template_hash, spec_hash, pending } = rollout;
    let stateful_set =
        build_stateful_set(valid, StatefulSetInput { replicas, template, template_hash, spec_hash });
    let mut wanted = vec![wanted(Kind::ServiceAccount, &build_service_account(valid))?];
    // While an update waits, the live template names an earlier configuration.
    if pending.is_none() {
        wanted.push(self::wanted(Kind::ConfigMap, config_map)?);
    }
    wanted.extend([
        self::wanted(Kind::Service, &build_headless_service(valid))?,
        self::wanted(Kind::Service, &build_client_service(valid))?,
        self::wanted(Kind::PodDisruptionBudget, &build_budget(valid))?,
        self::wanted(Kind::StatefulSet, &stateful_set)?,
    ]);
    Ok(wanted)
}

fn wanted<K: Resource + Serialize>(kind: Kind, object: &K) -> Result<Wanted, PlanError> {
    let mut value = serde_json::to_value(object).map_err(|source| PlanError::Json { kind, source })?;
    stamp(&mut value);
    Ok(Wanted { kind, name: object.meta().name.clone().unwrap_or_default(), object: value })
}

/// The live object that a wanted one would replace.
struct Live {
    metadata: ObjectMeta,
    object: Value,
}

fn live(wanted: &Wanted, observed: &Observed) -> Option<Live> {
    fn of<K: Resource + Serialize>(object: Option<&K>) -> Option<Live> {
        let object = object?;
        Some(Live { metadata: object.meta().clone(), object: json!(object) })
    }
    let children = &observed.children;
    let named = |live: &Live| live.metadata.name.as_deref() == Some(wanted.name.as_str());
    match wanted.kind {
        Kind::ServiceAccount => of(children.service_account.as_ref()),
        Kind::ConfigMap => of(children.config_maps.get(&wanted.name)),
        Kind::Service => of(children.headless_service.as_ref())
            .filter(named)
            .or_else(|| of(children.client_service.as_ref()).filter(named)),
        Kind::PodDisruptionBudget => of(children.budget.as_ref()),
        Kind::StatefulSet => of(children.stateful_set.as_ref()),
    }
}

fn plan_writes(wanted: Vec<Wanted>, observed: &Observed) -> Vec<Write> {
    let keep: Vec<String> =
        wanted.iter().filter(|w| w.kind == Kind::ConfigMap).map(|w| w.name.clone()).collect();
    let applies = wanted.into_iter().filter_map(|wanted| plan_apply(wanted, observed));
    applies.chain(plan_config_map_deletions(&keep, observed)).collect()
}

fn plan_apply(wanted: Wanted, observed: &Observed) -> Option<Write> {
    let live = live(&wanted, observed);
    // One that is on its way out is made anew once it is gone.
    let keeps = live.as_ref().is_some_and(|live| {
        live.metadata.deletion_timestamp.is_some() || !differs(&wanted.object, &live.object)
    });
    let Wanted { kind, name, object } = wanted;
    let live_uid = live.and_then(|live| live.metadata.uid);
    (!keeps).then_some(Write::Apply { kind, name, object, live_uid })
}

/// Configurations that neither the wanted nor the live template nor a revision names.
fn plan_config_map_deletions(keep: &[String], observed: &Observed) -> Vec<Write> {
    let children = &observed.children;
    // Without the StatefulSet one cannot tell what its pods, if any still run, have mounted.
    let Some(template) = children.stateful_set.as_ref().and_then(|set| Some(&set.spec.as_ref()?.template))
    else {
        return Vec::new();
    };
    let live = config_maps(template);
    let needed = |name: &str| {
        keep.iter().any(|kept| kept == name)
            || live.contains(&name)
            || children.config_maps_in_use.iter().any(|used| used == name)
    };
    let stale = children.config_maps.iter().filter(|(name, _)| !needed(name));
    stale
        .filter_map(|(name, map)| {
            Some(Write::DeleteConfigMap { name: name.clone(), uid: map.metadata.uid.clone()? })
        })
        .collect()
}

fn plan_node_step(
    identity: &Identity,
    valid: &ValidCluster,
    observed: &Observed,
    fresh: ClusterId,
) -> NodeStep {
    match identity {
        Identity::Nameless => NodeStep::RecordCluster(fresh),
        Identity::Empty { layout } => {
            NodeStep::Init { layout: layout.clone(), ordinals: (0..valid.replicas).collect() }
        }
        Identity::Accepting { layout } => {
            let empty = observed.heard().filter(|(_, answer)| answer.mode == NodeMode::Uninitialized);
            let members = empty.filter(|(_, answer)| layout.member(answer.node).is_some());
            let ordinals: Vec<_> = members.map(|(ordinal, _)| ordinal).collect();
            if ordinals.is_empty() {
                NodeStep::Nothing
            } else {
                NodeStep::Init { layout: layout.clone(), ordinals }
            }
        }
        Identity::InForce { .. }
        | Identity::Unknown { .. }
        | Identity::AllReplaced
        | Identity::Conflict { .. }
        | Identity::Impossible { .. } => NodeStep::Nothing,
    }
}

fn plan_hold(input: &PlanInput<'_>, identity: &Identity, wanted: &[Wanted]) -> Option<Hold> {
    let PlanInput { valid, observed, .. } = *input;
    if let Identity::Conflict { clusters } = identity {
        let clusters: Vec<_> = clusters.iter().map(ToString::to_string).collect();
        return Some(Hold {
            reason: HoldReason::IdentityConflict,
            message: format!(
                "the volumes hold {} different stores ({}); nothing is touched until only the volumes of one are left",
                clusters.len(),
                clusters.join(", ")
            ),
        });
    }
    let name_conflict = plan_name_conflict(valid, observed, wanted);
    name_conflict.or_else(|| match identity.held_layout() {
        Some(layout) => plan_accepting_hold(valid, observed, identity)
            .or_else(|| plan_layout_mismatch(valid, layout))
            .or_else(|| plan_scaling_hold(valid, layout)),
        None => plan_first_layout_hold(valid, identity),
    })
}

/// A first layout that cannot be made of what is there.
fn plan_first_layout_hold(valid: &ValidCluster, identity: &Identity) -> Option<Hold> {
    if (valid.replicas as usize) < valid.replication_factor {
        return Some(Hold {
            reason: HoldReason::BelowReplicationFactor,
            message: format!(
                "spec.replicas is {} and replicationFactor {}: set spec.replicas to at least {}",
                valid.replicas, valid.replication_factor, valid.replication_factor
            ),
        });
    }
    let Identity::Impossible { error } = identity else { return None };
    Some(Hold {
        reason: HoldReason::IdentityConflict,
        message: format!("the nodes cannot form a store: {error}; a volume may be a copy of another"),
    })
}

/// A child's name that is taken by an object which this very resource does not control.
fn plan_name_conflict(valid: &ValidCluster, observed: &Observed, wanted: &[Wanted]) -> Option<Hold> {
    let taken = wanted.iter().find(|wanted| {
        live(wanted, observed).is_some_and(|live| match owner(&live.metadata) {
            None => true,
            Some(owner) => owner.uid != valid.uid && !is_predecessor(valid, owner),
        })
    })?;
    Some(Hold {
        reason: HoldReason::NameConflict,
        message: format!(
            "{} {} exists and does not belong to this resource; delete or rename it, or give this resource another name",
            taken.kind, taken.name
        ),
    })
}

/// A child of a deleted resource of the same name: Kubernetes collects it, and then its name is free.
fn find_leftover(valid: &ValidCluster, observed: &Observed, wanted: &[Wanted]) -> Option<String> {
    let leftover = wanted.iter().find(|wanted| {
        live(wanted, observed)
            .is_some_and(|live| owner(&live.metadata).is_some_and(|o| is_predecessor(valid, o)))
    })?;
    Some(format!("{} {}", leftover.kind, leftover.name))
}

fn owner(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata.owner_references.as_deref()?.iter().find(|owner| owner.controller == Some(true))
}

fn is_predecessor(valid: &ValidCluster, owner: &OwnerReference) -> bool {
    owner.kind == KeyStoreCluster::kind(&()) && owner.name == valid.names.cluster && owner.uid != valid.uid
}

/// A first layout that can never take force, because a member's volume is gone before it accepted.
fn plan_accepting_hold(valid: &ValidCluster, observed: &Observed, identity: &Identity) -> Option<Hold> {
    let Identity::Accepting { layout } = identity else { return None };
    let replaced = replaced(valid, layout, observed);
    let pod = valid.names.pod(*replaced.keys().next()?);
    Some(Hold {
        reason: HoldReason::IdentityConflict,
        message: format!(
            "{pod} lost its volume before the store was initialised, so its first layout can never take force; nothing \
             was stored yet: delete this resource and its volumes, and create it again"
        ),
    })
}

fn plan_layout_mismatch(valid: &ValidCluster, layout: &Layout) -> Option<Hold> {
    let (factor, partitions) = (layout.replication_factor, layout.partitions);
    if factor == valid.replication_factor && partitions == valid.partitions {
        return None;
    }
    Some(Hold {
        reason: HoldReason::LayoutMismatch,
        message: format!(
            "the volumes hold a store with replicationFactor {factor} and partitions {}, which the spec cannot change; \
             delete this resource (volumes are kept) and create it with these values",
            partitions.get()
        ),
    })
}

fn plan_scaling_hold(valid: &ValidCluster, layout: &Layout) -> Option<Hold> {
    let members = layout.members.len();
    if valid.replicas as usize == members {
        return None;
    }
    Some(Hold {
        reason: HoldReason::ScalingNotSupported,
        message: format!(
            "spec.replicas is {} and the store has {members} nodes; this version cannot scale a store that is \
             initialised: set spec.replicas back to {members}",
            valid.replicas
        ),
    })
}
