//! Who is away, and since when.
//!
//! A member is away while it does not answer, no node that answers has a link to it, and Kubernetes does not take its pod
//! for ready. Of a lost member it is the pod that is looked for: whoever answers there ends the absence. The status
//! remembers when it began, so that an operator that restarts goes on counting. Invariant: nobody is given up for having been
//! away for longer than Kubernetes has known that the pod is not ready, or than there has been a pod, whatever a status says
//! that somebody planted, or that nobody has written anew for a while.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::jiff::Timestamp;
use keystore_core::id::NodeId;
use keystore_core::layout::Member;
use keystore_crds::KeyStoreCluster;

use crate::members::Roster;

/// By UUID: the members that are away, and since when.
pub(crate) struct Absences {
    since: BTreeMap<NodeId, Timestamp>,
    /// Those for which a pod speaks, and not the status alone.
    witnessed: BTreeSet<NodeId>,
    now: Timestamp,
}

impl Absences {
    pub(crate) fn new(cluster: &KeyStoreCluster, roster: &Roster<'_>, now: Timestamp) -> Self {
        let members = roster.layout.members.iter();
        let away: Vec<_> = members.filter(|member| is_away(roster, member)).collect();
        let since = away.iter().map(|member| (member.node, away_since(cluster, roster, member, now)));
        let is_witnessed = |member: &&&Member| seen_since(roster, member).is_some();
        let witnessed = away.iter().filter(is_witnessed).map(|member| member.node);
        Self { since: since.collect(), witnessed: witnessed.collect(), now }
    }

    pub(crate) fn since(&self, node: NodeId) -> Option<Timestamp> {
        self.since.get(&node).copied()
    }

    /// True if it is away, and has been for that long.
    pub(crate) fn is_away_for(&self, node: NodeId, seconds: u32) -> bool {
        let away_ms = |since: Timestamp| self.now.as_millisecond().saturating_sub(since.as_millisecond());
        self.since(node).is_some_and(|since| away_ms(since) >= i64::from(seconds) * 1_000)
    }

    /// Those that may be given up for having been away for that long, longest first: whose pods say so as well.
    pub(crate) fn overdue(&self, seconds: u32) -> Vec<NodeId> {
        let mut away = self.away_for(seconds);
        away.retain(|node| self.witnessed.contains(node));
        away
    }

    /// Those that have been away for that long, longest first.
    pub(crate) fn away_for(&self, seconds: u32) -> Vec<NodeId> {
        let mut away: Vec<_> = self.since.iter().map(|(node, since)| (*since, *node)).collect();
        away.retain(|(_, node)| self.is_away_for(*node, seconds));
        away.sort_unstable();
        away.into_iter().map(|(_, node)| node).collect()
    }
}

fn is_away(roster: &Roster<'_>, member: &Member) -> bool {
    let ordinal = roster.names.ordinal(&member.name);
    let is_pod_ready = ordinal.is_some_and(|ordinal| roster.observed.is_ready(ordinal));
    let is_heard = if member.is_lost {
        ordinal.is_some_and(|ordinal| roster.answers(ordinal))
    } else {
        roster.answer_of(member.node).is_some() || roster.is_linked(member.node)
    };
    !is_pod_ready && !is_heard
}

fn away_since(cluster: &KeyStoreCluster, roster: &Roster<'_>, member: &Member, now: Timestamp) -> Timestamp {
    let id = member.node.to_string();
    let nodes = cluster.status.as_ref().map(|status| status.nodes.as_slice()).unwrap_or_default();
    let known = nodes.iter().find(|node| node.node_id.as_ref() == Some(&id));
    let remembered = known.and_then(|node| node.down_since.as_ref()).map_or(now, |since| since.0);
    remembered.max(seen_since(roster, member).unwrap_or(remembered)).min(now)
}

/// Since when Kubernetes has known that the member's pod is not ready; `None` where there is no pod.
fn seen_since(roster: &Roster<'_>, member: &Member) -> Option<Timestamp> {
    let pod = roster.observed.pods.get(&roster.names.ordinal(&member.name)?)?;
    let made = || pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    unready_since(pod).or_else(|| told_to_end(pod)).or_else(made)
}

/// When a pod was told to end, whatever it has said of itself since.
fn told_to_end(pod: &Pod) -> Option<Timestamp> {
    let by = pod.metadata.deletion_timestamp.as_ref()?.0;
    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
    Timestamp::from_second(by.as_second().saturating_sub(grace)).ok()
}

fn unready_since(pod: &Pod) -> Option<Timestamp> {
    let is_unready = |condition: &&PodCondition| condition.type_ == "Ready" && condition.status != "True";
    let mut conditions = pod.status.as_ref()?.conditions.iter().flatten();
    conditions.find(is_unready)?.last_transition_time.as_ref().map(|time| time.0)
}
