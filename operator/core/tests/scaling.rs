//! What is done next about the number of nodes, and what is not: one look at a time.

#![allow(clippy::unwrap_used, reason = "a test's support may panic as the test itself")]

mod fixtures;

use std::collections::BTreeSet;

use fixtures::{
    at_rest, cluster, condition, decided, empty, look, node, plan_at, plan_of, remembers, serving, status_of,
};
use keystore_core::id::{Epoch, Incarnation, NodeId};
use keystore_core::layout::{Layout, Member};
use keystore_core::recovery::Losses;
use keystore_core::succession::Change;
use keystore_crds::{KeyStoreCluster, KeyStoreClusterStatus, NodeState};
use keystore_operator_core::hold::HoldReason;
use keystore_operator_core::identity::Identity;
use keystore_operator_core::observed::{Answer, Disk, HeldLayout, NodeAnswer, NodeMode, Observed, Transfer};
use keystore_operator_core::plan::{NodeStep, Plan};
use serde_json::json;

/// As `serving`, by this layout and linked to everybody.
fn well(ordinal: u32, layout: &Layout) -> NodeAnswer {
    let peers = layout.members.iter().map(|member| member.node).filter(|peer| *peer != node(ordinal));
    NodeAnswer {
        incarnation: layout.incarnation,
        epoch: layout.epoch,
        connected: peers.collect(),
        ..serving(ordinal)
    }
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
    let idle = left.members.iter().skip(3).map(|member| Member { weight: 0, ..member.clone() });
    let closed = left.next(&Change::Admit(idle.collect())).unwrap();
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
    check("which never come back", 3, &seen(&left, 5), "RemovingPods, to epoch 7 of 5, 5 pods");
    check("then pods", 3, &seen(&closed, 5), "RemovingPods, 3 pods");
    check(
        "not while somebody stays who is silent",
        3,
        &but(seen(&closed, 5), &silent(1)),
        "RemovingPods, 5 pods",
    );
    check("or late", 3, &but(seen(&closed, 5), &edited(1, |a| a.epoch.0 -= 1)), "RemovingPods, 5 pods");
    check(
        "or goes and is late",
        3,
        &but(seen(&closed, 5), &edited(4, |a| a.epoch.0 -= 1)),
        "RemovingPods, 5 pods",
    );
    check("one that goes may be silent", 3, &but(seen(&closed, 5), &silent(4)), "RemovingPods, 3 pods");
    let doubts = |answer: &mut NodeAnswer| answer.is_in_doubt = true;
    check(
        "or who stays has lost something",
        3,
        &but(seen(&closed, 5), &edited(1, doubts)),
        "RemovingPods, 3 pods",
    );
    let two_doubt = |seen: &mut Observed| [0, 1].into_iter().for_each(|at| edited(at, doubts)(seen));
    check("but no quorum may have", 3, &but(seen(&closed, 5), &two_doubt), "RemovingPods, 5 pods");
    check("then members", 3, &seen(&closed, 3), "Dismissing, to epoch 8 of 3, 3 pods");
    check("who are taken back before", 5, &seen(&left, 5), "Moving, to epoch 7 of 5, 5 pods");
    check("or are made whole members again", 5, &seen(&closed, 5), "Joining, to epoch 8 of 5, 5 pods");
    check("once they answer", 5, &but(seen(&closed, 5), &silent(4)), "StartingPods, 5 pods");
    check("also without pods", 5, &seen(&left, 3), "Joining, 5 pods");
}

#[test]
fn only_a_volume_that_is_certainly_gone_is_given_up() {
    let three = layout_of(3, 3);
    let fresh =
        || Some(NodeAnswer { node: NodeId([0x77; 16]), actor: keystore_core::id::Actor(77), ..empty(1) });
    let here = |ordinal| Some(well(ordinal, &three));
    let doubting = |ordinal| Some(NodeAnswer { is_in_doubt: true, ..well(ordinal, &three) });
    for (what, answers, expected) in [
        ("silent", vec![here(0), None, here(2)], "rest, 3 pods"),
        ("another node in its place", vec![here(0), fresh(), here(2)], "GivingUp, to epoch 2 of 3, 3 pods"),
        ("it answers elsewhere", vec![here(0), fresh(), here(2), here(1)], "RemovingPods, 3 pods"),
        (
            "one that is left has something damaged",
            vec![here(0), fresh(), doubting(2)],
            "GivingUp, held for Unhealthy, 3 pods",
        ),
        ("two at once", vec![here(0), fresh(), Some(empty(7))], "GivingUp, held for Unhealthy, 3 pods"),
    ] {
        let mut observed = seen(&three, 3);
        let told = look(answers, decided());
        (observed.answers, observed.pods) = (told.answers, told.pods);
        assert_eq!(next(&plan_of(&wanting(3), &observed)), expected, "{what}");
    }
}

/// Node 1 does not answer, nobody has a link to it, and its pod is not ready.
fn away(mut observed: Observed, ordinal: u32) -> Observed {
    observed.answers.insert(ordinal, Answer::Unreachable);
    observed.pods.insert(ordinal, fixtures::pod(false));
    for answer in observed.answers.values_mut() {
        let Answer::Here(answer) = answer else { continue };
        answer.connected.remove(&node(ordinal));
    }
    observed
}

/// As `wanting`, and who is away for a minute is replaced; with the status that a first look at this leads to.
fn replacing(replicas: u32, observed: &Observed, since: i64) -> KeyStoreCluster {
    let spec = json!({"replicas": replicas, "replaceAfterSeconds": 60});
    let mut cluster = cluster(&spec, remembers(fixtures::CLUSTER, Some(1)));
    cluster.status = Some(status_of(&cluster, observed, since));
    cluster
}

/// The status once all that is wanted of Kubernetes is there.
fn settled(cluster: &KeyStoreCluster, mut observed: Observed, now: i64) -> KeyStoreClusterStatus {
    let plan = plan_at(cluster, &observed, now);
    fixtures::settle(&mut observed, &plan);
    status_of(cluster, &observed, now)
}

#[test]
fn who_is_away_for_too_long_is_given_up_if_the_others_have_all_that_it_holds() {
    let three = layout_of(3, 3);
    let gone = away(seen(&three, 3), 1);
    let both = away(gone.clone(), 2);
    let ready = || {
        let mut observed = gone.clone();
        observed.pods.insert(1, fixtures::pod(true));
        observed
    };
    let linked = || {
        let mut observed = gone.clone();
        let Answer::Here(answer) = observed.answers.get_mut(&0).unwrap() else { panic!("silent") };
        answer.connected.insert(node(1));
        observed
    };
    let doubted = || {
        let mut observed = gone.clone();
        let Answer::Here(answer) = observed.answers.get_mut(&2).unwrap() else { panic!("silent") };
        answer.is_in_doubt = true;
        observed
    };
    let kubernetes_knows_since = |seconds: i64| {
        let mut observed = gone.clone();
        observed.pods.insert(1, fixtures::pod_since(false, seconds));
        observed
    };
    for (what, observed, now, expected) in [
        ("not yet", &gone, 59, "rest, 3 pods"),
        ("now", &gone, 60, "GivingUp, to epoch 2 of 3, 3 pods"),
        ("there is another node that does not serve", &both, 60, "GivingUp, held for Unhealthy, 3 pods"),
        (
            "one that is left has something damaged, and may need it for that",
            &doubted(),
            60,
            "GivingUp, held for Unhealthy, 3 pods",
        ),
        ("somebody has a link to it", &linked(), 1_000, "rest, 3 pods"),
        ("its pod is ready", &ready(), 1_000, "rest, 3 pods"),
        (
            "a status that is older than the pod's trouble",
            &kubernetes_knows_since(950),
            1_000,
            "rest, 3 pods",
        ),
        ("or not", &kubernetes_knows_since(930), 1_000, "GivingUp, to epoch 2 of 3, 3 pods"),
    ] {
        let resource = replacing(3, &gone, 0);
        assert_eq!(next(&plan_at(&resource, observed, now)), expected, "{what}");
    }
    let mut patient = replacing(3, &gone, 0);
    patient.spec.replace_after_seconds = 0;
    assert_eq!(next(&plan_at(&patient, &gone, 1_000_000)), "rest, 3 pods");

    let held = plan_at(&replacing(3, &both, 0), &both, 60).hold.unwrap();
    assert_eq!(
        held.message,
        "demo-1, demo-2 have been away for longer than spec.replaceAfterSeconds (60 s), and nothing is given up: without \
         demo-1, demo-2, which do not serve, of some partitions too few copies are left to rebuild it; bring nodes back, \
         or name what is lost for good with keystorectl recover"
    );
    let held = plan_at(&replacing(3, &doubted(), 0), &doubted(), 60).hold.unwrap();
    assert!(
        held.message.contains("(something at demo-2 is damaged, and may be whole only there)"),
        "{}",
        held.message
    );
    let status = status_of(&replacing(3, &gone, 0), &gone, 30);
    assert_eq!(
        condition(&status, "Degraded"),
        "True NodeDown: demo-1 does not serve; who is away for 60 s is replaced"
    );
    assert_eq!(status.nodes[1].down_since.as_ref().unwrap().0.as_second(), 0);
    let back = status_of(&replacing(3, &gone, 0), &seen(&three, 3), 30);
    assert_eq!(back.nodes[1].down_since, None);
}

#[test]
fn where_no_majority_is_left_to_decide_the_hold_says_so() {
    let three = layout_of(3, 3);
    let one_away = away(seen(&three, 5), 1);
    let two_away = away(one_away.clone(), 0);
    let after = |seconds: i64, observed: &Observed, replicas: u32| {
        plan_at(&replacing(replicas, observed, 0), observed, seconds)
    };
    let wanting_five = |seconds: i64, observed: &Observed| {
        let mut resource = replacing(5, observed, 0);
        resource.spec.replace_after_seconds = 0;
        plan_at(&resource, observed, seconds)
    };
    assert_eq!(
        next(&wanting_five(59, &two_away)),
        "Joining, to epoch 2 of 5, 5 pods",
        "they may be restarting"
    );
    let plan = wanting_five(60, &two_away);
    assert_eq!(next(&plan), "Joining, held for Unhealthy, to epoch 2 of 5, 5 pods");
    assert_eq!(
        plan.hold.unwrap().message,
        "nothing about members and data can be decided: of 3 nodes that vote 1 are left without demo-0, demo-1, and it \
         takes a majority; bring nodes back, or name what is lost for good with keystorectl recover"
    );
    assert_eq!(next(&wanting_five(60, &one_away)), "Joining, to epoch 2 of 5, 5 pods");
    let gone = away(away(seen(&three, 3), 1), 0);
    let at_rest = after(30, &gone, 3);
    assert_eq!(next(&at_rest), "rest, 3 pods", "nothing is wanted");
}

#[test]
fn who_is_lost_and_stays_away_is_replaced_in_another_pod_until_its_own_is_back() {
    let lost = layout_of(3, 3).next(&Change::Lose(BTreeSet::from([node(1)]))).unwrap();
    let resource = replacing(3, &away(seen(&lost, 3), 1), 0);
    let check = |what: &str, observed: &Observed, now: i64, expected: &str| {
        assert_eq!(next(&plan_at(&resource, observed, now)), expected, "{what}");
    };
    check("it may only be restarting", &away(seen(&lost, 3), 1), 29, "StartingPods, 3 pods");
    check("another pod", &away(seen(&lost, 3), 1), 30, "StartingPods, 4 pods");
    check("whose node joins", &away(seen(&lost, 4), 1), 30, "Joining, to epoch 3 of 4, 4 pods");
    let joined =
        lost.next(&Change::Admit(fixtures::layout(fixtures::CLUSTER, 4).members.split_off(3))).unwrap();
    check("and gets the data", &away(seen(&joined, 4), 1), 30, "Moving, to epoch 4 of 4, 4 pods");
    let NodeStep::Propose(proposal) = plan_at(&resource, &away(seen(&joined, 4), 1), 30).node_step else {
        panic!("no proposal")
    };
    let back = |layout: &Layout| {
        let mut observed = seen(layout, 4);
        let fresh = NodeAnswer { node: NodeId([0x77; 16]), actor: keystore_core::id::Actor(77), ..empty(1) };
        observed.answers.insert(1, Answer::Here(fresh));
        observed
    };
    let moving = proposal.layout;
    check("who is back does not turn that back", &back(&moving), 30, "Finishing, to epoch 5 of 4, 4 pods");
    let moved = moving.next(&Change::Finish).unwrap();
    check("at rest, with one pod more", &away(seen(&moved, 4), 1), 30, "rest, 4 pods");
    let status = settled(&resource, away(seen(&moved, 4), 1), 30);
    assert_eq!(condition(&status, "Ready"), "True Converged: 3 nodes serve, as the spec says");
    let states: Vec<_> = status.nodes.iter().map(|node| (node.pod.as_str(), node.state)).collect();
    let serving = NodeState::Serving;
    assert_eq!(
        states,
        [("demo-0", serving), ("demo-1", NodeState::Lost), ("demo-2", serving), ("demo-3", serving)]
    );
    check("once it is back, its former node goes", &back(&moved), 30, "Dismissing, to epoch 6 of 3, 4 pods");
    let dismissed = moved.next(&Change::Dismiss(BTreeSet::from([node(1)]))).unwrap();
    check("and it joins", &back(&dismissed), 30, "Joining, to epoch 7 of 4, 4 pods");
}

#[test]
fn a_cluster_of_the_largest_size_has_room_for_whoever_takes_the_place_of_a_lost_node() {
    let largest = u32::try_from(keystore_crds::REPLICAS_MAX).unwrap();
    let full = fixtures::layout(fixtures::CLUSTER, largest);
    let lost = full.next(&Change::Lose(BTreeSet::from([node(1)]))).unwrap();
    let gone = |pods: u32| away(seen(&lost, pods), 1);
    let resource = replacing(largest, &gone(largest), 0);
    assert_eq!(next(&plan_at(&resource, &gone(largest), 30)), "StartingPods, 65 pods");
    let plan = plan_at(&resource, &gone(largest + 1), 30);
    assert_eq!(next(&plan), "Joining, to epoch 3 of 65, 65 pods");
    let NodeStep::Propose(proposal) = plan.node_step else { panic!("no proposal") };
    let joined = away(seen(&proposal.layout, largest + 1), 1);
    assert_eq!(next(&plan_at(&resource, &joined, 30)), "Moving, to epoch 4 of 65, 65 pods");
    assert_eq!(keystore_core::layout::MEMBERS_MAX, 2 * keystore_crds::REPLICAS_MAX, "all may be lost");
}

#[test]
fn a_move_goes_on_without_a_node_that_is_lost_on_the_way_if_quorums_are_left() {
    let admitted = layout_of(3, 5);
    let members = admitted.members.clone();
    let moving = admitted.next(&Change::Move { members, replication_factor: 3 }).unwrap();
    let lost = moving.next(&Change::Lose(BTreeSet::from([node(3)]))).unwrap();
    let observed = away(seen(&lost, 5), 3);
    let resource = replacing(5, &observed, 0);
    assert_eq!(next(&plan_at(&resource, &observed, 0)), "Finishing, to epoch 5 of 5, 5 pods");
    assert_eq!(next(&plan_at(&resource, &observed, 30)), "Finishing, to epoch 5 of 5, 6 pods");
    let mut other_mind = resource.clone();
    other_mind.spec.replicas = 3;
    assert_eq!(next(&plan_at(&other_mind, &observed, 30)), "TurningBack, to epoch 5 of 5, 5 pods");
    let none_of_some = lost.next(&Change::Lose(BTreeSet::from([node(4)]))).unwrap();
    let observed = away(away(seen(&none_of_some, 5), 3), 4);
    assert_eq!(
        next(&plan_at(&resource, &waiting(observed), 0)),
        "TurningBack, to epoch 6 of 5, 5 pods",
        "where it moves to no quorum is left of some partitions"
    );
}

/// Nobody has merged what it needs.
fn waiting(mut observed: Observed) -> Observed {
    for answer in observed.answers.values_mut() {
        let Answer::Here(answer) = answer else { continue };
        answer.transfer = Transfer { waits_for: Some("a pass".to_owned()), ..Transfer::default() };
    }
    observed
}

/// Another node, empty, answers in these pods.
fn wiped(mut observed: Observed, ordinals: &[u32]) -> Observed {
    for ordinal in ordinals {
        observed.answers.insert(*ordinal, Answer::Here(fresh(*ordinal)));
        for answer in observed.answers.values_mut() {
            let Answer::Here(answer) = answer else { continue };
            answer.connected.remove(&node(*ordinal));
        }
    }
    observed
}

fn fresh(ordinal: u32) -> NodeAnswer {
    let id = u8::try_from(ordinal).unwrap() + 0x70;
    NodeAnswer { node: NodeId([id; 16]), actor: keystore_core::id::Actor(id.into()), ..empty(ordinal) }
}

fn doubting(mut observed: Observed, ordinals: &[u32]) -> Observed {
    for ordinal in ordinals {
        let Answer::Here(answer) = observed.answers.get_mut(ordinal).unwrap() else { panic!("silent") };
        answer.is_in_doubt = true;
    }
    observed
}

#[test]
fn a_move_goes_back_only_to_nodes_that_have_everything() {
    let admitted = layout_of(3, 5);
    let members = admitted.members.clone();
    let up = admitted.next(&Change::Move { members, replication_factor: 3 }).unwrap();
    let five = layout_of(5, 5);
    let members = five.members.iter().take(3).cloned().collect();
    let down = five.next(&Change::Move { members, replication_factor: 3 }).unwrap();
    let both_lost = up.next(&Change::Lose(BTreeSet::from([node(1), node(2)]))).unwrap();
    let busy = |layout: &Layout| waiting(seen(layout, 5));
    let silent = |mut observed: Observed, ordinal: u32| {
        observed.answers.insert(ordinal, Answer::Unreachable);
        observed
    };
    for (what, replicas, observed, expected) in [
        (
            "one volume is gone: the move goes on without it",
            5,
            wiped(busy(&up), &[1]),
            "GivingUp, to epoch 4 of 5, 5 pods",
        ),
        ("also where the move is to go back", 3, wiped(busy(&up), &[1]), "GivingUp, to epoch 4 of 5, 5 pods"),
        ("two volumes are gone", 5, wiped(busy(&up), &[1, 2]), "Moving, held for Unhealthy, 5 pods"),
        ("and it is to go back", 3, wiped(busy(&up), &[1, 2]), "Moving, held for Unhealthy, 5 pods"),
        ("two are lost", 5, wiped(busy(&both_lost), &[1, 2]), "Moving, held for Unhealthy, 5 pods"),
        (
            "all has moved: the leavers are not needed",
            3,
            wiped(seen(&down, 5), &[3, 4]),
            "Finishing, held for Unhealthy, to epoch 6 of 5, 5 pods",
        ),
        (
            "nor are they where it is to go back",
            5,
            wiped(seen(&down, 5), &[3, 4]),
            "Finishing, held for Unhealthy, to epoch 6 of 5, 5 pods",
        ),
        ("one is silent", 3, silent(busy(&up), 1), "TurningBack, to epoch 4 of 5, 5 pods"),
        (
            "two are silent: their disks may be gone",
            3,
            silent(silent(busy(&up), 1), 2),
            "Moving, held for Unhealthy, 5 pods",
        ),
        ("one has something damaged", 3, doubting(busy(&up), &[1]), "TurningBack, to epoch 4 of 5, 5 pods"),
        ("two have", 3, doubting(busy(&up), &[1, 2]), "Moving, held for Unhealthy, 5 pods"),
        (
            "who is to have it does not matter",
            3,
            wiped(doubting(busy(&up), &[4]), &[3]),
            "GivingUp, to epoch 4 of 5, 5 pods",
        ),
        ("a silent one neither", 3, silent(silent(busy(&up), 3), 4), "TurningBack, to epoch 4 of 5, 5 pods"),
    ] {
        assert_eq!(next(&plan_of(&wanting(replicas), &observed)), expected, "{what}");
    }
    let hold = plan_of(&wanting(3), &silent(silent(busy(&up), 1), 2)).hold.unwrap();
    assert_eq!(
        hold.message,
        "other nodes are to hold the data now, and it does not go back: the nodes that it comes from lack copies without \
         demo-1, demo-2 (lost, damaged, or not answering), and what has moved may be all that is left of some; bring nodes \
         back, or name what is lost for good with keystorectl recover"
    );
    let status = status_of(&wanting(5), &wiped(busy(&up), &[1, 2]), 1);
    assert_eq!(
        condition(&status, "Degraded"),
        "True NodeReplaced: what demo-1, demo-2 held is gone or given up; of some of it too few copies are left to rebuild \
         it (Stalled says what helps)"
    );
    let hold = plan_of(&wanting(2), &wiped(busy(&up), &[1, 2])).hold.unwrap();
    assert!(hold.message.contains("keystorectl recover"), "a spec does not hide a loss: {}", hold.message);
}

#[test]
fn a_voter_that_is_away_is_swapped_for_a_member_that_is_there() {
    let three = layout_of(3, 3);
    let four =
        three.next(&Change::Admit(fixtures::layout(fixtures::CLUSTER, 4).members.split_off(3))).unwrap();
    let members = four.members.clone();
    let four = four.next(&Change::Move { members, replication_factor: 3 }).unwrap();
    let four = four.next(&Change::Finish).unwrap();
    let voter = four.voters[0];
    let ordinal = (0..4).find(|ordinal| node(*ordinal) == voter).unwrap();
    let observed = away(seen(&four, 4), ordinal);
    let mut resource = replacing(4, &observed, 0);
    resource.spec.replace_after_seconds = 0;
    assert_eq!(next(&plan_at(&resource, &observed, 59)), "rest, 4 pods");
    let plan = plan_at(&resource, &observed, 60);
    assert_eq!(next(&plan), "rest, to epoch 5 of 4, 4 pods");
    let NodeStep::Propose(proposal) = &plan.node_step else { panic!("no proposal") };
    assert!(!proposal.layout.is_voter(voter) && proposal.layout.voters.len() == 3);
    let status = settled(&resource, observed, 60);
    assert!(condition(&status, "Progressing").starts_with("False Idle"));
    let swapped = away(seen(&proposal.layout, 4), ordinal);
    assert_eq!(next(&plan_at(&resource, &swapped, 60)), "rest, 4 pods");
    let other = away(seen(&three, 3), 1);
    assert_eq!(
        next(&plan_at(&resource_of_three(&other), &other, 1_000)),
        "rest, 3 pods",
        "nobody else is there"
    );
}

fn resource_of_three(observed: &Observed) -> KeyStoreCluster {
    let mut resource = replacing(3, observed, 0);
    resource.spec.replace_after_seconds = 0;
    resource
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
    assert!(
        condition(&status, "Degraded").starts_with("True NodeReplaced: what demo-1 held is gone or given up")
    );

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
    let with_set_aside = |total: u64, available: u64, set_aside_bytes: u64| {
        let mut observed = seen(&five, 5);
        for answer in observed.answers.values_mut() {
            let Answer::Here(answer) = answer else { continue };
            answer.disk = Some(Disk { total_bytes: total, available_bytes: available, set_aside_bytes });
        }
        plan_of(&wanting(3), &observed)
    };
    let with = |total: u64, available: u64| with_set_aside(total, available, 0);
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
        next(&with_set_aside(gib, gib * 4 / 10, gib / 10)),
        "Moving, to epoch 5 of 5, 5 pods",
        "what is set aside goes when it is in the way"
    );
    assert_eq!(
        next(&with(100 * gib, gib)),
        "Moving, to epoch 5 of 5, 5 pods",
        "a file system shared with others"
    );
    let reason = HoldReason::InsufficientSpace;
    assert_eq!(reason.as_str(), "InsufficientSpace");
}

fn recovered_without(now: &Layout, lost: &[u32]) -> Layout {
    let nodes = lost.iter().map(|ordinal| node(*ordinal)).collect();
    now.recovered(Incarnation { number: 2, id: 2 }, &Losses { nodes, ..Losses::default() }).unwrap()
}

/// As `seen`; other nodes, empty ones, answer in the pods of those that are lost.
fn seen_recovered(layout: &Layout, pods: u32) -> Observed {
    let mut observed = seen(layout, pods);
    for ordinal in (0..pods).filter(|ordinal| layout.is_lost(node(*ordinal))) {
        let fresh = u8::try_from(ordinal).unwrap() + 0x70;
        let actor = keystore_core::id::Actor(fresh.into());
        let answer = NodeAnswer { node: NodeId([fresh; 16]), actor, ..empty(ordinal) };
        observed.answers.insert(ordinal, Answer::Here(answer));
    }
    observed
}

/// Nobody has merged what is left, so that nothing that is salvaged can be reached.
fn unfinished(mut observed: Observed, layout: &Layout) -> Observed {
    let salvaged = u32::try_from(layout.salvaged.len()).unwrap();
    for answer in observed.answers.values_mut() {
        let Answer::Here(answer) = answer else { continue };
        answer.partitions_available = u32::from(layout.partitions.get()) - salvaged;
        answer.transfer = Transfer {
            partitions: salvaged,
            partitions_done: 0,
            waits_for: Some("partition 0: not merged yet".to_owned()),
        };
    }
    observed
}

#[test]
fn what_a_recovery_has_left_is_merged_before_anything_else_is_done() {
    let salvaged = recovered_without(&layout_of(3, 3), &[1, 2]);
    let resource = wanting(3);
    let check = |what: &str, observed: &Observed, expected: &str| {
        let plan = plan_of(&resource, observed);
        assert_eq!(next(&plan), expected, "{what}: {:?}", plan.hold);
    };
    let busy = unfinished(seen_recovered(&salvaged, 3), &salvaged);
    check("merging", &busy, "Salvaging, 3 pods");
    let status = settled(&resource, busy, 1);
    assert_eq!(
        condition(&status, "Degraded"),
        "True UnderReplicated: of 256 partitions too many copies were lost; what keystorectl recover has found left of \
         them is merged, and they are refused until that is done"
    );
    assert_eq!(
        condition(&status, "Available"),
        "False QuorumLost: 256 of 256 partitions lack their write quorum"
    );
    assert_eq!(
        condition(&status, "Progressing"),
        "True Replacing: 0 of 256 copies have all that is left of 256 partitions; these serve nobody before"
    );
    check("merged", &seen_recovered(&salvaged, 3), "Finishing, to epoch 3 of 3, 3 pods");
    let finished = salvaged.next(&Change::Finish).unwrap();
    let none_left = seen_recovered(&finished, 3);
    check(
        "others join, since a layout has a member for each replica",
        &none_left,
        "Joining, to epoch 4 of 5, 3 pods",
    );
    let NodeStep::Propose(proposal) = plan_of(&resource, &none_left).node_step else { panic!("no proposal") };
    let new = proposal.layout;
    let mut joined = seen(&new, 3);
    joined.answers = none_left.answers;
    for answer in joined.answers.values_mut() {
        let Answer::Here(answer) = answer else { panic!("silent") };
        (answer.incarnation, answer.epoch, answer.cluster) = (new.incarnation, new.epoch, Some(new.cluster));
    }
    check("the lost go", &joined, "Dismissing, to epoch 5 of 3, 3 pods");
}

#[test]
fn who_may_alone_have_something_of_a_salvaged_partition_is_waited_for() {
    let five = layout_of(5, 5);
    let salvaged = recovered_without(&five, &[3, 4]);
    let source = *salvaged.salvaged.values().flatten().next().unwrap();
    let ordinal = (0..5).find(|ordinal| node(*ordinal) == source).unwrap();
    let observed = away(unfinished(seen_recovered(&salvaged, 5), &salvaged), ordinal);
    let plan = plan_at(&replacing(5, &observed, 0), &observed, 1_000);
    assert_eq!(next(&plan), "Salvaging, held for Unhealthy, 5 pods");
    let message = plan.hold.unwrap().message;
    assert!(message.contains("nothing is given up") && message.contains("keystorectl recover"), "{message}");
    let mut replaced = unfinished(seen_recovered(&salvaged, 5), &salvaged);
    let fresh =
        NodeAnswer { node: NodeId([0x60; 16]), actor: keystore_core::id::Actor(60), ..empty(ordinal) };
    replaced.answers.insert(ordinal, Answer::Here(fresh));
    assert_eq!(next(&plan_of(&wanting(5), &replaced)), "Salvaging, held for Unhealthy, 5 pods");
    assert_eq!(next(&plan_of(&wanting(3), &observed)), "Salvaging, 5 pods", "no pod goes");
}

#[test]
fn a_recovery_in_the_middle_of_a_move_is_finished_with_it_or_turns_back() {
    let admitted = layout_of(3, 5);
    let members = admitted.members.clone();
    let moving = admitted.next(&Change::Move { members, replication_factor: 3 }).unwrap();
    let salvaged = recovered_without(&moving, &[0, 1]);
    assert!(salvaged.is_joint() && !salvaged.salvaged.is_empty());
    let busy = unfinished(seen_recovered(&salvaged, 5), &salvaged);
    let plan = next(&plan_of(&wanting(5), &busy));
    assert!(plan.starts_with("Salvaging, ") || plan.starts_with("TurningBack, to epoch 5 of 5, "), "{plan}");
    let back = salvaged.next(&Change::Abort).unwrap();
    assert_eq!(back.salvaged, salvaged.salvaged);
    let busy = unfinished(seen_recovered(&back, 5), &back);
    assert_eq!(next(&plan_of(&wanting(5), &busy)), "Salvaging, 5 pods");
    assert!(
        next(&plan_of(&wanting(5), &seen_recovered(&back, 5))).starts_with("Finishing, to epoch 6 of 5, ")
    );
}

#[test]
fn a_recovery_that_some_have_not_accepted_yet_is_no_first_layout_and_takes_no_pod() {
    let left = layout_of(3, 5);
    let idle = left.members.iter().skip(3).map(|member| Member { weight: 0, ..member.clone() });
    let closed = left.next(&Change::Admit(idle.collect())).unwrap();
    let recovered = recovered_without(&closed, &[1]);
    assert!(recovered.salvaged.is_empty());
    let mut observed = seen_recovered(&recovered, 5);
    observed.layout = Some(HeldLayout { layout: recovered.clone(), decided: false });
    for answer in observed.answers.values_mut() {
        let Answer::Here(answer) = answer else { continue };
        answer.mode = if answer.cluster.is_some() { NodeMode::Accepted } else { answer.mode };
    }
    observed.answers.insert(4, Answer::Unreachable);
    let unremembered = cluster(&json!({"replicas": 3}), None);
    for resource in [wanting(3), unremembered] {
        let plan = plan_of(&resource, &observed);
        assert!(matches!(plan.identity, Identity::InForce { .. }), "{:?}", plan.identity);
        assert_eq!((plan.replicas, &plan.hold, &plan.node_step), (5, &None, &NodeStep::Nothing));
    }
    let before = layout_of(5, 5);
    observed.answers.insert(2, Answer::Here(well(2, &before)));
    let plan = plan_of(&wanting(3), &observed);
    assert_eq!((plan.replicas, &plan.node_step), (5, &NodeStep::Nothing));
    let message = plan.hold.unwrap().message;
    assert!(message.contains("a recovery that demo-2 did not"), "{message}");
    assert!(message.ends_with("run keystorectl recover again"), "{message}");
}

#[test]
fn whoever_a_recovery_has_left_behind_counts_for_nothing_whatever_its_epoch() {
    let five = layout_of(5, 5);
    let recovered = Layout { incarnation: Incarnation { number: 2, id: 2 }, ..five.clone() };
    let still_before = |epoch: u64, ordinal: u32| {
        let mut observed = seen(&recovered, 5);
        let before = Layout { epoch: Epoch(epoch), ..five.clone() };
        observed.answers.insert(ordinal, Answer::Here(well(ordinal, &before)));
        observed
    };
    let check = |what: &str, replicas: u32, observed: &Observed, expected: &str| {
        assert_eq!(next(&plan_of(&wanting(replicas), observed)), expected, "{what}");
    };
    check("nobody", 4, &seen(&recovered, 5), "Moving, to epoch 5 of 5, 5 pods");
    check("the same epoch is none", 4, &still_before(1, 0), "Joining, 5 pods");
    check("one that is not to hold data", 4, &still_before(1, 4), "Moving, to epoch 5 of 5, 5 pods");
    check("a later epoch of before is not news", 4, &still_before(9, 4), "Moving, to epoch 5 of 5, 5 pods");
    let later = Layout { incarnation: Incarnation { number: 3, id: 1 }, epoch: Epoch(1), ..five.clone() };
    let mut behind = seen(&recovered, 5);
    behind.answers.insert(4, Answer::Here(well(4, &later)));
    check("an earlier epoch of a later recovery is", 4, &behind, "Moving, 5 pods");
}
