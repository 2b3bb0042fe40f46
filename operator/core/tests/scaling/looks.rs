//! What the planner sees and says, in tests of single looks.

use keystore_core::id::NodeId;
use keystore_core::layout::{Layout, Member};
use keystore_core::succession::Change;
use keystore_crds::{KeyStoreCluster, KeyStoreClusterStatus};
use keystore_operator_core::observed::{Answer, HeldLayout, NodeAnswer, Observed, Transfer};
use keystore_operator_core::plan::{NodeStep, Plan};
use serde_json::json;

use crate::fixtures;
use crate::fixtures::{at_rest, cluster, decided, empty, look, node, plan_at, remembers, serving, status_of};

/// As `serving`, by this layout and linked to everybody.
pub(crate) fn well(ordinal: u32, layout: &Layout) -> NodeAnswer {
    let peers = layout.members.iter().map(|member| member.node).filter(|peer| *peer != node(ordinal));
    NodeAnswer {
        incarnation: layout.incarnation,
        epoch: layout.epoch,
        connected: peers.collect(),
        ..serving(ordinal)
    }
}

/// A layout and so many pods of which all answer well that are members, and the others as empty nodes.
pub(crate) fn seen(layout: &Layout, pods: u32) -> Observed {
    let answer = |ordinal| match layout.member(node(ordinal)) {
        Some(_) => Some(well(ordinal, layout)),
        None => Some(empty(ordinal)),
    };
    let (_, rest) = at_rest(&json!({}));
    let mut observed =
        look((0..pods).map(answer).collect(), Some(HeldLayout { layout: layout.clone(), decided: true }));
    observed.children = rest.children;
    let set = observed.children.stateful_set.as_mut().unwrap();
    set.spec.as_mut().unwrap().replicas = Some(pods.cast_signed());
    observed
}

pub(crate) fn wanting(replicas: u32) -> KeyStoreCluster {
    cluster(&json!({"replicas": replicas}), remembers(fixtures::CLUSTER, Some(1)))
}

/// Data on so many nodes, of so many members.
pub(crate) fn layout_of(holders: u32, members: u32) -> Layout {
    let mut layout = decided().unwrap().layout;
    let all = fixtures::layout(fixtures::CLUSTER, members).members;
    if members > 3 {
        layout = layout.next(&Change::Admit(all.clone())).unwrap();
    }
    if holders > 3 {
        let members = all.into_iter().take(holders as usize).collect();
        layout = layout.next(&Change::Move { members, replication_factor: 3 }).unwrap();
        layout = layout.next(&Change::Finish).unwrap();
    }
    layout
}

/// `Phase, held for Reason, to N members, N pods`, where it is so.
pub(crate) fn next(plan: &Plan) -> String {
    let mut said =
        vec![plan.progress.as_ref().map_or("rest".to_owned(), |progress| progress.phase.to_owned())];
    said.extend(plan.hold.as_ref().map(|hold| format!("held for {}", hold.reason.as_str())));
    if let NodeStep::Propose(proposal) = &plan.node_step {
        said.push(format!("to epoch {} of {}", proposal.layout.epoch, proposal.layout.members.len()));
    }
    said.push(format!("{} pods", plan.replicas));
    said.join(", ")
}

pub(crate) fn set_replicas(observed: &mut Observed, replicas: Option<i32>) {
    match replicas {
        Some(_) => {
            let set = observed.children.stateful_set.as_mut().unwrap();
            set.spec.as_mut().unwrap().replicas = replicas;
        }
        None => observed.children.stateful_set = None,
    }
}

/// Of five nodes two hold nothing any more; in the second layout nothing can be moved there either.
pub(crate) fn left_by_two() -> (Layout, Layout) {
    let five = layout_of(5, 5);
    let members = five.members.iter().take(3).cloned().collect();
    let leaving = five.next(&Change::Move { members, replication_factor: 3 }).unwrap();
    let left = leaving.next(&Change::Finish).unwrap();
    let idle = left.members.iter().skip(3).map(|member| Member { weight: 0, ..member.clone() });
    let closed = left.next(&Change::Admit(idle.collect())).unwrap();
    (left, closed)
}

/// Node 1 does not answer, nobody has a link to it, and its pod is not ready.
pub(crate) fn away(mut observed: Observed, ordinal: u32) -> Observed {
    observed.answers.insert(ordinal, Answer::Unreachable);
    observed.pods.insert(ordinal, fixtures::pod(false));
    for answer in observed.answers.values_mut() {
        let Answer::Here(answer) = answer else { continue };
        answer.connected.remove(&node(ordinal));
    }
    observed
}

/// As `wanting`, and who is away for a minute is replaced; with the status that a first look at this leads to.
pub(crate) fn replacing(replicas: u32, observed: &Observed, since: i64) -> KeyStoreCluster {
    let spec = json!({"replicas": replicas, "replaceAfterSeconds": 60});
    let mut cluster = cluster(&spec, remembers(fixtures::CLUSTER, Some(1)));
    cluster.status = Some(status_of(&cluster, observed, since));
    cluster
}

/// The status once all that is wanted of Kubernetes is there.
pub(crate) fn settled(cluster: &KeyStoreCluster, mut observed: Observed, now: i64) -> KeyStoreClusterStatus {
    let plan = plan_at(cluster, &observed, now);
    fixtures::settle(&mut observed, &plan);
    status_of(cluster, &observed, now)
}

/// Nobody has merged what it needs.
pub(crate) fn waiting(mut observed: Observed) -> Observed {
    for answer in observed.answers.values_mut() {
        let Answer::Here(answer) = answer else { continue };
        answer.transfer = Transfer { waits_for: Some("a pass".to_owned()), ..Transfer::default() };
    }
    observed
}

/// Another node, empty, answers in these pods.
pub(crate) fn wiped(mut observed: Observed, ordinals: &[u32]) -> Observed {
    for ordinal in ordinals {
        observed.answers.insert(*ordinal, Answer::Here(fresh(*ordinal)));
        for answer in observed.answers.values_mut() {
            let Answer::Here(answer) = answer else { continue };
            answer.connected.remove(&node(*ordinal));
        }
    }
    observed
}

pub(crate) fn fresh(ordinal: u32) -> NodeAnswer {
    let id = u8::try_from(ordinal).unwrap() + 0x70;
    NodeAnswer { node: NodeId([id; 16]), actor: keystore_core::id::Actor(id.into()), ..empty(ordinal) }
}

pub(crate) fn doubting(mut observed: Observed, ordinals: &[u32]) -> Observed {
    for ordinal in ordinals {
        let Answer::Here(answer) = observed.answers.get_mut(ordinal).unwrap() else { panic!("silent") };
        answer.is_in_doubt = true;
    }
    observed
}

pub(crate) fn resource_of_three(observed: &Observed) -> KeyStoreCluster {
    let mut resource = replacing(3, observed, 0);
    resource.spec.replace_after_seconds = 0;
    resource
}
