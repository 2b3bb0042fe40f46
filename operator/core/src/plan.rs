//! From what was seen to what is done: leaves no choice to the step that applies it.
//!
//! At most: write children that differ, drop configurations that nothing names and pods that a correction cannot
//! reach, and one step of the nodes: towards a first layout, or from the layout in force to the next.
//! Whatever is unsafe or impossible is held, with a sentence for a person. Invariant: while two identities are seen,
//! while the resource is paused or being deleted, or while a child's name belongs to someone else, nothing is written.

use k8s_openapi::jiff::Timestamp;
use keystore_core::id::ClusterId;
use keystore_core::layout::Layout;
use keystore_core::succession::{Step, check_step};
use keystore_crds::KeyStoreCluster;

use crate::build::{build_config_map, build_pod_template, node_image};
use crate::children::{ChildError, Kind, Write, find_leftover, plan_writes, wanted_children};
use crate::hold::{Hold, HoldReason, plan_hold};
use crate::identity::{Identity, Remembered, decide, is_complete};
use crate::observed::{NodeMode, Observed, known_pods};
use crate::outdated::plan_deletions;
use crate::rollout::decide_rollout;
use crate::scaling::{Progress, Proposal, Scaling, ScalingInput, plan_scaling};
use crate::validate::{ValidCluster, validate};

/// What is sent to nodes.
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
    /// Have this layout decided.
    Propose(Proposal),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub identity: Identity,
    pub writes: Vec<Write>,
    pub node_step: NodeStep,
    pub hold: Option<Hold>,
    /// The change of members and pods that is under way.
    pub progress: Option<Progress>,
    /// Why what was proposed beside that is not decided yet.
    pub refusal: Option<String>,
    /// The hash that a person has to approve before the pods are changed.
    pub pending_update: Option<String>,
    /// How many pods there should be.
    pub replicas: u32,
    /// The image that they run, or are about to.
    pub image: Option<String>,
    /// An object of an earlier resource of this name that is still being collected.
    pub waits_for: Option<String>,
    /// Nothing may be written: paused, held altogether, or waiting for an earlier resource to be gone.
    pub is_hands_off: bool,
    /// The spec cannot be acted upon, and the layout in force stands in for it.
    pub is_spec_refused: bool,
    /// What a person has to do about a loss, whatever else the hold says.
    pub urgent: Option<HoldReason>,
    /// How many steps that keeps back.
    pub kept_back: usize,
}

/// What the plan is made from. `fresh` is a random UUID, used only if this is the moment to mint one.
pub struct PlanInput<'a> {
    pub cluster: &'a KeyStoreCluster,
    pub valid: &'a ValidCluster,
    pub observed: &'a Observed,
    pub fresh: ClusterId,
    pub now: Timestamp,
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

pub fn plan(input: &PlanInput<'_>) -> Result<Plan, ChildError> {
    let PlanInput { cluster, valid, observed, now, .. } = *input;
    let remembered = remembered(cluster);
    let identity = decide(valid, observed, remembered);
    let scaling = match &identity {
        Identity::InForce { layout } => {
            Some(plan_scaling(ScalingInput { cluster, valid, layout, observed, now }))
        }
        _ => None,
    };
    let replicas = match &scaling {
        Some(scaling) => scaling.replicas,
        None => plan_replicas(input, &identity, remembered),
    };
    let in_force = remembered.was_in_force || matches!(identity, Identity::InForce { .. });
    let config_map = build_config_map(valid)?;
    let name = config_map.metadata.name.clone().unwrap_or_default();
    let template = build_pod_template(valid, &name);
    let rollout = decide_rollout(cluster, observed.children.stateful_set.as_ref(), template, in_force);
    let pending_update = rollout.pending.clone();
    let image = node_image(&rollout.template);
    let wanted = wanted_children(valid, &config_map, rollout, replicas)?;
    let scaling_hold = scaling.as_ref().and_then(|scaling| scaling.hold.clone());
    let hold = match plan_hold(valid, observed, (&identity, remembered), &wanted) {
        // What was asked for can wait; what is left to be done about a loss must not hide behind it.
        Some(hold) if !hold.reason.stops_everything() => {
            scaling_hold.filter(|other| other.reason.is_urgent()).or(Some(hold))
        }
        hold => hold.or(scaling_hold),
    };
    let urgent = hold.as_ref().map(|hold| hold.reason).filter(|reason| reason.is_urgent());
    let waits_for = find_leftover(valid, observed, &wanted);
    let untouchable = cluster.metadata.deletion_timestamp.is_some()
        || waits_for.is_some()
        || hold.as_ref().is_some_and(|hold| hold.reason.stops_everything());
    let mut plan = Plan {
        node_step: plan_node_step(&identity, scaling.as_ref(), input),
        progress: scaling.and_then(|scaling| scaling.progress),
        refusal: None,
        writes: [
            plan_writes(wanted, observed),
            plan_deletions(&valid.names, observed, (&identity, in_force)),
        ]
        .concat(),
        identity,
        hold,
        pending_update,
        replicas,
        image,
        waits_for,
        is_hands_off: untouchable || cluster.spec.paused,
        is_spec_refused: false,
        urgent,
        kept_back: 0,
    };
    if plan.is_hands_off {
        plan.keep_back();
    }
    Ok(plan)
}

impl Plan {
    /// True if some of it cannot be undone: pods go, a node is given up, or a move turns back, for which nodes drop what they
    /// have merged. It is looked at once more right before.
    pub fn is_destructive(&self, observed: &Observed) -> bool {
        let lost = |layout: &Layout| layout.members.iter().filter(|member| member.is_lost).count();
        let drops = |next: &Layout| {
            let is_less = |now: &Layout| lost(now) < lost(next) || check_step(now, next) == Ok(Step::Abort);
            self.identity.layout().is_some_and(is_less)
        };
        let takes_away = |write: &Write| match write {
            Write::DeletePod { .. } => true,
            Write::Apply { kind, .. } => {
                *kind == Kind::StatefulSet
                    && observed.live_replicas().is_some_and(|live| self.replicas < live)
            }
            Write::DeleteConfigMap { .. } => false,
        };
        self.writes.iter().any(takes_away)
            || matches!(&self.node_step, NodeStep::Propose(proposal) if drops(&proposal.layout))
    }

    fn keep_back(&mut self) {
        let step = std::mem::replace(&mut self.node_step, NodeStep::Nothing);
        self.kept_back = self.writes.len() + usize::from(step != NodeStep::Nothing);
        self.writes.clear();
        // What moves goes on moving, and what has not begun does not run.
        self.progress.take_if(|_| !self.identity.layout().is_some_and(Layout::is_joint));
    }

    /// What was planned cannot be written. What is to be done about a loss is the more urgent trouble.
    pub fn note_rejection(&mut self, rejection: Hold) {
        self.hold = self.hold.take().filter(|hold| hold.reason.is_urgent()).or(Some(rejection));
    }

    /// The store does not take the proposed layout yet, or nobody knows whether it has: the next look will tell.
    pub fn note_refusal(&mut self, why: &str) {
        let Some(layout) = self.identity.layout() else { return };
        let why = layout.with_names(why);
        match &mut self.progress {
            Some(progress) => progress.message = format!("{}; not yet: {why}", progress.message),
            None => self.refusal = Some(why),
        }
    }
}

/// Before a layout is in force, the members of the one that is on its way decide, and before there is one, the spec
/// does. Nothing that may belong to a store is scaled away: not while nodes are silent, and beside a store only pods
/// beyond all of its members, each of which answered in this very look.
fn plan_replicas(input: &PlanInput<'_>, identity: &Identity, remembered: Remembered) -> u32 {
    let PlanInput { cluster, valid, observed, .. } = *input;
    let live = observed.live_replicas().unwrap_or(0);
    let known = known_pods(cluster, &valid.names);
    let remembered_replicas = if remembered.was_in_force { known.max(1) } else { valid.replicas };
    match identity {
        Identity::InForce { layout } | Identity::Accepting { layout } => {
            let members = member_pods(valid, layout);
            if is_complete(valid, layout, observed) { members } else { live.max(members) }
        }
        // Every node of the spec answered, and none that answers belongs to a store.
        Identity::Empty { .. } | Identity::Nameless | Identity::Impossible { .. } => valid.replicas,
        Identity::Unknown { .. } | Identity::AllReplaced => live.max(remembered_replicas),
        Identity::Conflict { .. } => live,
    }
}

/// How many pods it takes to run every member.
fn member_pods(valid: &ValidCluster, layout: &Layout) -> u32 {
    let ordinals = layout.members.iter().filter_map(|member| valid.names.ordinal(&member.name));
    ordinals.max().map_or(valid.replicas, |highest| highest + 1)
}

fn plan_node_step(identity: &Identity, scaling: Option<&Scaling>, input: &PlanInput<'_>) -> NodeStep {
    let PlanInput { valid, observed, fresh, .. } = *input;
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
        Identity::InForce { .. } => {
            let proposal = scaling.and_then(|scaling| scaling.proposal.clone());
            proposal.map_or(NodeStep::Nothing, NodeStep::Propose)
        }
        Identity::Unknown { .. }
        | Identity::AllReplaced
        | Identity::Conflict { .. }
        | Identity::Impossible { .. } => NodeStep::Nothing,
    }
}
