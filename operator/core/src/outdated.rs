//! Pods that a correction would not reach.
//!
//! A StatefulSet replaces a pod only once the one that it has replaced before is ready, and no pod is ready before its node
//! is a member, for which all that are to join with it have to answer: of a new cluster all nodes, of one that grows those
//! that it grows by. So a mistake in the spec would outlive its correction in all of these pods but one. Invariant: a pod
//! that answers is never deleted here, none of a member's, none of a StatefulSet with a ready pod while the layout is not
//! known (there a store is in force, whoever can be heard), and none of anybody else's.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::children::Write;
use crate::identity::Identity;
use crate::names::Names;
use crate::observed::{Answer, Observed};

/// What the StatefulSet's controller notes on each pod.
const REVISION_LABEL: &str = "controller-revision-hash";

/// The pods to delete: they do not answer, and are of an earlier template than the one that is applied.
pub(crate) fn plan_deletions(
    names: &Names,
    observed: &Observed,
    (identity, was_in_force): (&Identity, bool),
) -> Vec<Write> {
    let Some(set) = observed.children.stateful_set.as_ref() else { return Vec::new() };
    let Some(revision) = present_revision(set) else { return Vec::new() };
    let belongs_to_a_store = || {
        observed.heard().any(|(_, answer)| answer.cluster.is_some())
            || observed.pods.keys().any(|ordinal| observed.is_ready(*ordinal))
    };
    let is_nobodys = |ordinal: u32| match identity {
        Identity::InForce { layout } => {
            let pod = names.pod(ordinal);
            !observed.is_ready(ordinal) && layout.members.iter().all(|member| member.name != pod)
        }
        _ => !was_in_force && !belongs_to_a_store(),
    };
    let is_silent =
        |ordinal: &u32| observed.answers.get(ordinal) == Some(&Answer::Unreachable) && is_nobodys(*ordinal);
    let is_ours = |pod: &Pod| {
        let owner = pod.owner_references().iter().find(|owner| owner.controller == Some(true));
        owner.is_some_and(|owner| Some(&owner.uid) == set.metadata.uid.as_ref())
    };
    let outdated = observed.pods.iter().filter(|(ordinal, pod)| is_silent(ordinal) && !is_of(pod, revision));
    outdated
        .filter(|(_, pod)| is_ours(pod) && pod.metadata.deletion_timestamp.is_none())
        .filter_map(|(ordinal, pod)| Some(Write::DeletePod { name: names.pod(*ordinal), uid: pod.uid()? }))
        .collect()
}

/// The revision of the template as it is now, once the StatefulSet's controller has seen it.
fn present_revision(set: &StatefulSet) -> Option<&str> {
    let status = set.status.as_ref()?;
    let has_seen = status.observed_generation == set.metadata.generation;
    status.update_revision.as_deref().filter(|_| has_seen)
}

fn is_of(pod: &Pod, revision: &str) -> bool {
    // A pod without one is not the StatefulSet's.
    pod.labels().get(REVISION_LABEL).is_none_or(|label| label == revision)
}
