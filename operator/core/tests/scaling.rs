//! What is done next about the number of nodes, and what is not: one look at a time.

#![allow(clippy::unwrap_used, reason = "a test's support may panic as the test itself")]

mod fixtures;

use std::collections::BTreeSet;

use fixtures::{
    at_rest, cluster, condition, decided, empty, look, node, plan_of, remembers, serving, status_of,
};
use keystore_core::id::NodeId;
use keystore_core::layout::Layout;
use keystore_core::succession::Change;
use keystore_crds::{KeyStoreCluster, NodeState};
use keystore_operator_core::hold::HoldReason;
use keystore_operator_core::observed::{Answer, Disk, HeldLayout, NodeAnswer, NodeMode, Observed, Transfer};
use keystore_operator_core::plan::{NodeStep, Plan};
use serde_json::json;

/// As `serving`, by this layout and linked to everybody.
fn well(ordinal: u32, layout: &Layout) -> NodeAnswer {
    let peers = layout.members.iter().map(|member| member.node).filter(|peer| *peer != node(ordinal));
    NodeAnswer { epoch: layout.epoch.0, connected: peers.collect(), ..serving(ordinal) }
}

/// A layout and so many pods of which all answer well that are members, and the others as empty nodes.
fn seen(layout: &Layout, pods: u32) -> Observed {
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

fn wanting(replicas: u32) -> KeyStoreCluster {
    cluster(&json!({"replicas": replicas}), remembers(fixtures::CLUSTER, Some(1)))
}

/// Data on so many nodes, of so many members.
fn layout_of(holders: u32, members: u32) -> Layout {
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
fn next(plan: &Plan) -> String {
    let mut said =
        vec![plan.progress.as_ref().map_or("rest".to_owned(), |progress| progress.phase.to_owned())];
    said.extend(plan.hold.as_ref().map(|hold| format!("held for {}", hold.reason.as_str())));
    if let NodeStep::Propose(proposal) = &plan.node_step {
        said.push(format!("to epoch {} of {}", proposal.layout.epoch, proposal.layout.members.len()));
    }
    said.push(format!("{} pods", plan.replicas));
    said.join(", ")
}

#[test]
fn each_look_leads_to_one_step() {
    let three = layout_of(3, 3);
    let admitted = layout_of(3, 5);
    let five = layout_of(5, 5);
    let members = |layout: &Layout, count: usize| layout.members.iter().take(count).cloned().collect();
    let moving =
        admitted.next(&Change::Move { members: members(&admitted, 5), replication_factor: 3 }).unwrap();
    let leaving = five.next(&Change::Move { members: members(&five, 3), replication_factor: 3 }).unwrap();
    let left = leaving.next(&Change::Finish).unwrap();
    let check = |what: &str, replicas: u32, observed: &Observed, expected: &str| {
        assert_eq!(next(&plan_of(&wanting(replicas), observed)), expected, "{what}");
    };
    let but = |mut observed: Observed, edit: &dyn Fn(&mut Observed)| {
        edit(&mut observed);
        observed
    };
    let silent = |ordinal: u32| {
        move |seen: &mut Observed| {
            seen.answers.insert(ordinal, Answer::Unreachable);
        }
    };
    let edited = |ordinal: u32, edit: fn(&mut NodeAnswer)| {
        move |seen: &mut Observed| {
            let Answer::Here(answer) = seen.answers.get_mut(&ordinal).unwrap() else { panic!("silent") };
            edit(answer);
        }
    };
    let waits = |answer: &mut NodeAnswer| {
        answer.transfer = Transfer { waits_for: Some("a pass".to_owned()), ..Transfer::default() };
    };
    let all_wait = |seen: &mut Observed| (0..5).for_each(|ordinal| edited(ordinal, waits)(seen));
    check("at rest", 3, &seen(&three, 3), "rest, 3 pods");
    check("pods first", 5, &seen(&three, 3), "StartingPods, 5 pods");
    check("all have to answer", 5, &but(seen(&three, 5), &silent(4)), "StartingPods, 5 pods");
    check("then members", 5, &seen(&three, 5), "Joining, to epoch 2 of 5, 5 pods");
    check(
        "who have to serve",
        5,
        &but(seen(&admitted, 5), &edited(4, |a| a.mode = NodeMode::Uninitialized)),
        "Joining, 5 pods",
    );
    check(
        "and to be linked",
        5,
        &but(seen(&admitted, 5), &edited(4, |a| a.connected.clear())),
        "Joining, 5 pods",
    );
    check("a new one may be down", 5, &but(seen(&admitted, 5), &silent(4)), "Joining, 5 pods");
    check("an old one not", 5, &but(seen(&admitted, 5), &silent(1)), "Joining, held for Unhealthy, 5 pods");
    check("then data", 5, &seen(&admitted, 5), "Moving, to epoch 3 of 5, 5 pods");
    check("which takes a while", 5, &but(seen(&moving, 5), &all_wait), "Moving, 5 pods");
    check("until all is there", 5, &seen(&moving, 5), "Finishing, to epoch 4 of 5, 5 pods");
    check("another number turns it back", 3, &seen(&moving, 5), "TurningBack, to epoch 4 of 5, 5 pods");
    check(
        "one that is held as well",
        2,
        &seen(&moving, 5),
        "TurningBack, held for BelowReplicationFactor, to epoch 4 of 5, 5 pods",
    );
    check(
        "after which nothing is undone",
        2,
        &seen(&admitted, 5),
        "rest, held for BelowReplicationFactor, 5 pods",
    );
    check("on the way down data first", 3, &seen(&five, 5), "Moving, to epoch 5 of 5, 5 pods");
    check("then pods", 3, &seen(&left, 5), "RemovingPods, 3 pods");
    check(
        "not while somebody stays who is silent",
        3,
        &but(seen(&left, 5), &silent(1)),
        "RemovingPods, 5 pods",
    );
    check("or late", 3, &but(seen(&left, 5), &edited(1, |a| a.epoch -= 1)), "RemovingPods, 5 pods");
    check(
        "or goes and is late",
        3,
        &but(seen(&left, 5), &edited(4, |a| a.epoch -= 1)),
        "RemovingPods, 5 pods",
    );
    check("one that goes may be silent", 3, &but(seen(&left, 5), &silent(4)), "RemovingPods, 3 pods");
    check("then members", 3, &seen(&left, 3), "Dismissing, to epoch 7 of 3, 3 pods");
    check("who are taken back before", 5, &seen(&left, 5), "Moving, to epoch 7 of 5, 5 pods");
    check("also without pods", 5, &seen(&left, 3), "Joining, 5 pods");
}

#[test]
fn only_a_volume_that_is_certainly_gone_is_given_up() {
    let three = layout_of(3, 3);
    let fresh =
        || Some(NodeAnswer { node: NodeId([0x77; 16]), actor: keystore_core::id::Actor(77), ..empty(1) });
    let here = |ordinal| Some(well(ordinal, &three));
    for (what, answers, expected) in [
        ("silent", vec![here(0), None, here(2)], "rest, 3 pods"),
        ("another node in its place", vec![here(0), fresh(), here(2)], "GivingUp, to epoch 2 of 3, 3 pods"),
        ("it answers elsewhere", vec![here(0), fresh(), here(2), here(1)], "RemovingPods, 3 pods"),
        ("two at once", vec![here(0), fresh(), Some(empty(7))], "GivingUp, held for Unhealthy, 3 pods"),
    ] {
        let mut observed = seen(&three, 3);
        let told = look(answers, decided());
        (observed.answers, observed.pods) = (told.answers, told.pods);
        assert_eq!(next(&plan_of(&wanting(3), &observed)), expected, "{what}");
    }
}

#[test]
fn a_replaced_node_is_shown_once_and_as_what_it_is() {
    let lost = layout_of(3, 3).next(&Change::Lose(BTreeSet::from([node(1)]))).unwrap();
    let mut observed = seen(&lost, 3);
    let fresh = NodeAnswer { node: NodeId([0x77; 16]), actor: keystore_core::id::Actor(77), ..empty(1) };
    observed.answers.insert(1, Answer::Here(fresh));
    let plan = plan_of(&wanting(3), &observed);
    assert_eq!(next(&plan), "Joining, to epoch 3 of 4, 3 pods");
    let status = status_of(&wanting(3), &observed, 1);
    assert_eq!(status.nodes[1].state, NodeState::Lost);
    assert!(condition(&status, "Progressing").starts_with("True Replacing"));
    assert!(condition(&status, "Degraded").starts_with("True NodeReplaced: what demo-1 held is gone"));

    let NodeStep::Propose(proposal) = plan.node_step else { panic!("no proposal") };
    observed.layout = Some(HeldLayout { layout: proposal.layout, decided: true });
    let status = status_of(&wanting(3), &observed, 1);
    let pods: Vec<_> = status.nodes.iter().map(|node| (node.pod.as_str(), node.state)).collect();
    let expected =
        [("demo-0", NodeState::Serving), ("demo-1", NodeState::Joining), ("demo-2", NodeState::Serving)];
    assert_eq!(pods, expected);
}

#[test]
fn data_that_does_not_fit_onto_fewer_nodes_stays_where_it_is() {
    let five = layout_of(5, 5);
    let with = |total: u64, available: u64| {
        let mut observed = seen(&five, 5);
        for answer in observed.answers.values_mut() {
            let Answer::Here(answer) = answer else { continue };
            answer.disk = Some(Disk { total_bytes: total, available_bytes: available });
        }
        plan_of(&wanting(3), &observed)
    };
    let gib = 1 << 30;
    let plan = with(gib, gib * 4 / 10);
    assert_eq!(next(&plan), "rest, held for InsufficientSpace, 5 pods");
    assert_eq!(
        plan.hold.unwrap().message,
        "spec.replicas is 3, and the data of 5 nodes does not fit onto so few: each would hold about 1.1 GiB, and of the \
         smallest volume (1.0 GiB) 90 % may be used, so about 110 MiB are missing on each; nothing is moved: set \
         spec.replicas higher, or delete data"
    );
    assert_eq!(next(&with(gib, gib / 2)), "Moving, to epoch 5 of 5, 5 pods");
    assert_eq!(
        next(&with(100 * gib, gib)),
        "Moving, to epoch 5 of 5, 5 pods",
        "a file system shared with others"
    );
    let reason = HoldReason::InsufficientSpace;
    assert_eq!(reason.as_str(), "InsufficientSpace");
}
