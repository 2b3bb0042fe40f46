//! The six conditions, each with a reason and a sentence that a tired person understands.
//!
//! Sentences hold names and decided numbers only, nothing that changes from look to look: the status of a cluster at rest
//! must not change.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use keystore_crds::{ConditionType, OperationKind};

use crate::children::{Kind, Write};
use crate::health::{Availability, Health};
use crate::hold::HoldReason;
use crate::identity::Identity;
use crate::names::APPROVE_ANNOTATION;
use crate::observed::Observed;
use crate::plan::{NodeStep, Plan};
use crate::trouble::explain;
use crate::validate::ValidCluster;

/// A condition before it has a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub type_: ConditionType,
    pub status: &'static str,
    pub reason: &'static str,
    pub message: String,
}

/// What the verdicts are made from.
pub struct Assessed<'a> {
    pub valid: &'a ValidCluster,
    pub observed: &'a Observed,
    pub plan: &'a Plan,
    pub health: &'a Health,
    /// The resource has never been reported as fully created.
    pub is_new: bool,
    pub now: Timestamp,
}

const TRUE: &str = "True";
const FALSE: &str = "False";
const UNKNOWN: &str = "Unknown";

fn verdict(
    type_: ConditionType,
    status: &'static str,
    reason: &'static str,
    message: impl Into<String>,
) -> Verdict {
    Verdict { type_, status, reason, message: message.into() }
}

pub fn judge(of: &Assessed<'_>) -> Vec<Verdict> {
    let available = judge_available(of);
    let progressing = judge_progressing(of);
    let degraded = judge_degraded(of);
    let stalled = judge_stalled(of);
    let ready = judge_ready(of, [&stalled, &progressing, &available, &degraded]);
    vec![ready, available, progressing, degraded, stalled, judge_update_pending(of)]
}

/// True only if nothing speaks against it; otherwise the first of what does.
fn judge_ready(of: &Assessed<'_>, [stalled, progressing, available, degraded]: [&Verdict; 4]) -> Verdict {
    let not = |reason, message: &str| verdict(ConditionType::Ready, FALSE, reason, message);
    if stalled.status == TRUE {
        return not("Held", &stalled.message);
    }
    if of.plan.kept_back > 0 && of.plan.waits_for.is_none() {
        return not(
            "Held",
            "spec.paused is true and changes wait for it: set it to false to let the operator go on",
        );
    }
    if progressing.status == TRUE {
        let initializing = progressing.reason == "Creating";
        return not(if initializing { "Initializing" } else { "OperationInProgress" }, &progressing.message);
    }
    if degraded.status == TRUE {
        return not("Degraded", &degraded.message);
    }
    if available.status != TRUE {
        return not("NotAvailable", &available.message);
    }
    let message = format!("{} nodes serve, as the spec says", of.valid.replicas);
    verdict(ConditionType::Ready, TRUE, "Converged", message)
}

fn judge_available(of: &Assessed<'_>) -> Verdict {
    let partitions = of.valid.partitions.get();
    let (status, reason, message) = match of.health.availability {
        Availability::NotInitialized => {
            (FALSE, "NotInitialized", "the store is not initialised yet".to_owned())
        }
        Availability::Met => {
            (TRUE, "QuorumAvailable", format!("all {partitions} partitions have their write quorum"))
        }
        Availability::Lost { partitions: lost } => {
            (FALSE, "QuorumLost", format!("{lost} of {partitions} partitions lack their write quorum"))
        }
        Availability::Unseen => {
            (UNKNOWN, "NodesUnreachable", "no node tells the operator how the store is".to_owned())
        }
    };
    verdict(ConditionType::Available, status, reason, message)
}

fn judge_progressing(of: &Assessed<'_>) -> Verdict {
    let running = |reason, message: String| verdict(ConditionType::Progressing, TRUE, reason, message);
    let in_force = matches!(of.plan.identity, Identity::InForce { .. });
    let creating = creation_progress(of).map(|(_, message)| ("Creating", message));
    let scaling = || {
        let progress = of.plan.progress.as_ref()?;
        Some((reason(progress.kind), with_troubles(of, progress.message.clone())))
    };
    let refused = |message: &str| match &of.plan.refusal {
        Some(why) => format!("{message}; not yet: {why}"),
        None => message.to_owned(),
    };
    let adding = || {
        let NodeStep::Propose(proposal) = &of.plan.node_step else { return None };
        let known = &of.plan.identity.layout()?.keyspaces;
        let adds = proposal.layout.keyspaces != *known;
        let swaps =
            || of.plan.refusal.is_some().then(|| refused("who votes in the place of a node that is away"));
        match adds {
            true => Some(("AddingKeyspaces", refused("adding the keyspaces that the spec names"))),
            // A moment's work, and told only where it takes longer.
            false => swaps().map(|message| ("Replacing", message)),
        }
    };
    let rolling = || rollout_progress(of).filter(|_| in_force).map(|message| ("Upgrading", message));
    match creating.or_else(scaling).or_else(adding).or_else(rolling) {
        Some((reason, message)) => running(reason, message),
        None => verdict(ConditionType::Progressing, FALSE, "Idle", "no operation runs"),
    }
}

fn reason(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::Create => "Creating",
        OperationKind::ScaleUp => "ScalingUp",
        OperationKind::ScaleDown => "ScalingDown",
        OperationKind::Replace => "Replacing",
    }
}

/// The phase of a creation and what it waits for; `None` where nothing is being created.
pub fn creation_progress(of: &Assessed<'_>) -> Option<(&'static str, String)> {
    if let Some(leftover) = &of.plan.waits_for {
        let message = format!("waiting for {leftover} of an earlier resource of this name to be gone");
        return Some(("WaitingForNames", message));
    }
    match &of.plan.identity {
        _ if of.plan.is_hands_off => None,
        Identity::Unknown { .. } if of.health.availability == Availability::Unseen => None,
        Identity::Unknown { silent } => {
            let pods: Vec<_> = silent.iter().map(|ordinal| of.valid.names.pod(*ordinal)).collect();
            let message = with_troubles(of, format!("waiting for {} to answer", pods.join(", ")));
            Some(("WaitingForNodes", message))
        }
        Identity::Nameless | Identity::Empty { .. } => {
            Some(("Initializing", "giving the nodes their first layout".to_owned()))
        }
        Identity::Accepting { .. } => {
            let message = "waiting until every node has accepted the first layout".to_owned();
            Some(("Initializing", with_troubles(of, message)))
        }
        // Nodes serve a moment before they reach each other and before their pods are seen to be ready: no reason for
        // an alarm the first time.
        Identity::InForce { .. }
            if of.is_new && of.health.down.is_empty() && of.health.replaced.is_empty() =>
        {
            unsettled_pods(of).map(|lacking| ("WaitingForPods", format!("waiting for {lacking}")))
        }
        Identity::InForce { .. }
        | Identity::AllReplaced
        | Identity::Conflict { .. }
        | Identity::Impossible { .. } => None,
    }
}

/// What is still on its way to the pods, if anything is.
fn rollout_progress(of: &Assessed<'_>) -> Option<String> {
    let applies = of.plan.writes.iter().any(|w| matches!(w, Write::Apply { kind: Kind::StatefulSet, .. }));
    if applies {
        return Some("applying changes to the pods".to_owned());
    }
    let replicas = of.plan.replicas;
    if let Some(updated) = of.observed.children.stateful_set.as_ref().and_then(rolling_replicas) {
        let message = format!("{updated} of {replicas} pods are up to date, the others follow one by one");
        return Some(with_troubles(of, message));
    }
    None
}

/// While pods of two templates run: how many have the newest.
fn rolling_replicas(set: &StatefulSet) -> Option<i32> {
    let status = set.status.clone().unwrap_or_default();
    let is_behind =
        status.observed_generation.unwrap_or_default() < set.metadata.generation.unwrap_or_default();
    if is_behind {
        return Some(0);
    }
    (status.current_revision != status.update_revision).then(|| status.updated_replicas.unwrap_or(0))
}

fn judge_degraded(of: &Assessed<'_>) -> Verdict {
    let bad = |reason, message: String| verdict(ConditionType::Degraded, TRUE, reason, message);
    let Health { replaced, down, cut_off: _, availability: _ } = of.health;
    if of.plan.identity == Identity::AllReplaced {
        return bad(
            "NodeReplaced",
            "every node came back with an empty volume; nothing is initialised anew: bring the volumes back, or delete \
             this resource and its volumes to begin again without the data"
                .to_owned(),
        );
    }
    let salvaged = of.plan.identity.layout().map_or(0, |layout| layout.salvaged.len());
    if salvaged > 0 {
        return bad(
            "UnderReplicated",
            format!(
                "of {salvaged} partitions too many copies were lost; what keystorectl recover has found left of them is \
                 merged, and they are refused until that is done"
            ),
        );
    }
    if !replaced.is_empty() {
        let pods = replaced.join(", ");
        let what_now = match of.plan.urgent {
            Some(HoldReason::TooFewLeft) => {
                "of some of it too few copies are left to rebuild it (Stalled says what helps)"
            }
            Some(_) => "nothing can be decided about that (Stalled says what helps)",
            None => "it is rebuilt from the other nodes",
        };
        return bad("NodeReplaced", format!("what {pods} held is gone or given up; {what_now}"));
    }
    if !down.is_empty() {
        return bad(
            "NodeDown",
            with_troubles(
                of,
                format!("{} {} not serve{}", down.join(", "), does(down.len()), until_when(of)),
            ),
        );
    }
    let is_settled_in =
        matches!(of.plan.identity, Identity::InForce { .. }) && creation_progress(of).is_none();
    if let Some(lacking) = unsettled_pods(of).filter(|_| is_settled_in) {
        return bad("NodeDown", format!("waiting for {lacking}"));
    }
    verdict(ConditionType::Degraded, FALSE, "AsPromised", "no node is missing")
}

/// What becomes of whoever stays away.
fn until_when(of: &Assessed<'_>) -> String {
    let seconds = of.valid.replace_after_seconds;
    seconds.map(|seconds| format!("; who is away for {seconds} s is replaced")).unwrap_or_default()
}

fn does(pods: usize) -> &'static str {
    if pods == 1 { "does" } else { "do" }
}

/// What the pods of serving nodes still lack.
fn unsettled_pods(of: &Assessed<'_>) -> Option<String> {
    let holders = of.plan.identity.layout().map(|layout| {
        let held = layout.members.iter().filter(|member| layout.rings().any(|r| r.owned(member.node) > 0));
        held.filter_map(|member| of.valid.names.ordinal(&member.name)).collect::<BTreeSet<u32>>()
    });
    // One that has just come is not missed yet, and one that is about to go no more.
    let is_missed = |ordinal: &u32| holders.as_ref().is_none_or(|holders| holders.contains(ordinal));
    let pods = (0..of.plan.replicas).filter(is_missed).filter(|ordinal| !of.observed.is_ready(*ordinal));
    let unready: Vec<_> = pods.map(|ordinal| of.valid.names.pod(ordinal)).collect();
    if !unready.is_empty() {
        return Some(with_troubles(of, format!("{} to be ready", unready.join(", "))));
    }
    let cut_off = &of.health.cut_off;
    (!cut_off.is_empty()).then(|| format!("{} to reach the other nodes", cut_off.join(", ")))
}

/// What is waited for, and what is known of why it does not come.
fn with_troubles(of: &Assessed<'_>, message: String) -> String {
    match explain(&of.valid.names, &of.observed.pods, of.now) {
        Some(troubles) => format!("{message}; {troubles}"),
        None => message,
    }
}

fn judge_stalled(of: &Assessed<'_>) -> Verdict {
    match &of.plan.hold {
        Some(hold) => verdict(ConditionType::Stalled, TRUE, hold.reason.as_str(), hold.message.clone()),
        None => verdict(ConditionType::Stalled, FALSE, "NothingHeld", "nothing waits for a person"),
    }
}

fn judge_update_pending(of: &Assessed<'_>) -> Verdict {
    match &of.plan.pending_update {
        Some(hash) => verdict(
            ConditionType::UpdatePending,
            TRUE,
            "OperatorUpgraded",
            format!(
                "this version of the operator would change the pods, and restart them one by one; to let it, run: \
                 kubectl -n {} annotate ksc {} --overwrite {APPROVE_ANNOTATION}={hash}",
                of.valid.names.namespace, of.valid.names.cluster
            ),
        ),
        None => verdict(
            ConditionType::UpdatePending,
            FALSE,
            "UpToDate",
            "the pods are as this operator makes them",
        ),
    }
}

/// Conditions with times: a condition whose status stays keeps the time of its last change.
pub fn date(verdicts: Vec<Verdict>, old: &[Condition], generation: i64, now: Timestamp) -> Vec<Condition> {
    let since = |verdict: &Verdict| {
        let before = old.iter().find(|condition| condition.type_ == verdict.type_.as_str());
        before.filter(|condition| condition.status == verdict.status).map(|c| c.last_transition_time.clone())
    };
    let dated = |verdict: Verdict| Condition {
        last_transition_time: since(&verdict).unwrap_or(Time(now)),
        type_: verdict.type_.as_str().to_owned(),
        status: verdict.status.to_owned(),
        reason: verdict.reason.to_owned(),
        message: verdict.message,
        observed_generation: Some(generation),
    };
    verdicts.into_iter().map(dated).collect()
}
