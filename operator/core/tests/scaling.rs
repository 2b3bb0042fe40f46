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
    check("a hold takes no pod", 2, &seen(&closed, 5), "rest, held for BelowReplicationFactor, 5 pods");
    check("nor a move", 5, &but(seen(&moving, 6), &all_wait), "Moving, 6 pods");
    let later = |seen: &mut Observed| {
        let of_later = Layout { epoch: Epoch(99), ..closed.clone() };
        seen.answers.insert(5, Answer::Here(well(5, &of_later)));
    };
    check("nor a look that is behind", 3, &but(seen(&closed, 6), &later), "RemovingPods, 6 pods");
    let drains = |answer: &mut NodeAnswer| answer.mode = NodeMode::Draining;
    check(
        "who drains is down",
        5,
        &but(seen(&admitted, 5), &edited(1, drains)),
        "Joining, held for Unhealthy, 5 pods",
    );
    check(
        "one that knows that nothing is missing is enough",
        5,
        &but(but(seen(&moving, 5), &all_wait), &edited(3, |a| a.transfer = Transfer::default())),
        "Finishing, to epoch 4 of 5, 5 pods",
    );
    let departed = |ordinal: u32| {
        let mut layout = three.clone();
        layout.departed.insert(node(ordinal));
        layout
    };
    check("who has departed is never a member again", 5, &seen(&departed(4), 5), "StartingPods, 5 pods");
    let lost = left.next(&Change::Lose(BTreeSet::from([node(4)]))).unwrap();
    let idle = lost.members.iter().filter(|member| member.node == node(3));
    let closed_but_lost = lost
        .next(&Change::Admit(idle.map(|member| Member { weight: 0, ..member.clone() }).collect()))
        .unwrap();
    check("nothing is moved to who is lost", 3, &seen(&closed_but_lost, 5), "RemovingPods, 3 pods");
}

fn set_replicas(observed: &mut Observed, replicas: Option<i32>) {
    match replicas {
        Some(_) => {
            let set = observed.children.stateful_set.as_mut().unwrap();
            set.spec.as_mut().unwrap().replicas = replicas;
        }
        None => observed.children.stateful_set = None,
    }
}

/// Of five nodes two hold nothing any more; in the second layout nothing can be moved there either.
fn left_by_two() -> (Layout, Layout) {
    let five = layout_of(5, 5);
    let members = five.members.iter().take(3).cloned().collect();
    let leaving = five.next(&Change::Move { members, replication_factor: 3 }).unwrap();
    let left = leaving.next(&Change::Finish).unwrap();
    let idle = left.members.iter().skip(3).map(|member| Member { weight: 0, ..member.clone() });
    let closed = left.next(&Change::Admit(idle.collect())).unwrap();
    (left, closed)
}

#[test]
fn who_goes_is_waited_for_until_its_pod_is_certainly_gone() {
    let (_, closed) = left_by_two();
    let lost = closed.next(&Change::Lose(BTreeSet::from([node(4)]))).unwrap();
    // By this layout there are pods 0 to 2 and perhaps 4, and the StatefulSet asks for so many.
    let look = |layout: &Layout, replicas: Option<i32>, pod: Option<k8s_openapi::api::core::v1::Pod>| {
        let mut observed = seen(layout, 3);
        set_replicas(&mut observed, replicas);
        observed.pods.extend(pod.map(|pod| (4, pod)));
        observed
    };
    let stays = || Some(fixtures::pod(false));
    let ends = || Some(fixtures::ending(fixtures::pod(false), 5));
    for (what, observed, expected) in [
        ("pods are gone", look(&closed, Some(3), None), "Dismissing, to epoch 8 of 3, 3 pods"),
        ("one is still there", look(&closed, Some(3), stays()), "Dismissing, to epoch 8 of 4, 3 pods"),
        ("one is about to end", look(&closed, Some(3), ends()), "Dismissing, to epoch 8 of 4, 3 pods"),
        (
            "its node is lost, and nobody told it to end",
            look(&lost, Some(3), stays()),
            "Dismissing, to epoch 9 of 4, 3 pods",
        ),
        (
            "its node is lost, and it will never end",
            look(&lost, Some(3), ends()),
            "Dismissing, to epoch 9 of 3, 3 pods",
        ),
        ("they are asked for again", look(&closed, Some(5), None), "RemovingPods, 3 pods"),
        ("nobody knows who asks for what", look(&closed, None, None), "RemovingPods, 3 pods"),
    ] {
        assert_eq!(next(&plan_of(&wanting(3), &observed)), expected, "{what}");
    }
}

#[test]
fn while_none_may_go_pods_that_somebody_takes_away_are_called_back() {
    let (left, closed) = left_by_two();
    for (what, layout, replicas, ends, expected) in [
        ("lowered by hand", &left, Some(3), false, 5),
        ("and told to end", &left, Some(3), true, 5),
        ("the StatefulSet is gone", &left, None, false, 5),
        ("nothing can be moved there any more", &closed, Some(3), false, 5),
        ("and they are about to end", &closed, Some(3), true, 3),
        ("data is there", &layout_of(5, 5), Some(3), true, 5),
    ] {
        let mut observed = seen(layout, 5);
        set_replicas(&mut observed, replicas);
        // An obstacle.
        observed.answers.insert(1, Answer::Unreachable);
        for ordinal in [3, 4].into_iter().filter(|_| ends) {
            let pod = fixtures::ending(fixtures::pod(true), 5);
            observed.pods.insert(ordinal, pod);
        }
        assert_eq!(plan_of(&wanting(3), &observed).replicas, expected, "{what}");
    }
}

#[test]
fn copies_that_are_missing_are_restored_before_a_store_grows() {
    let three = layout_of(3, 3);
    let lost = three.next(&Change::Lose(BTreeSet::from([node(1)]))).unwrap();
    // Demo-1 came back empty, demo-5 does not come at all, and demo-3 and demo-4 do where that is said.
    let without = |mut observed: Observed, silent: &[u32]| {
        silent.iter().for_each(|ordinal| drop(observed.answers.insert(*ordinal, Answer::Unreachable)));
        observed
    };
    let back = |layout: &Layout| wiped(seen(layout, 6), &[1]);
    let check = |what: &str, replicas: u32, observed: &Observed, expected: &str| {
        assert_eq!(next(&plan_of(&wanting(replicas), observed)), expected, "{what}");
    };
    check("who is there joins", 6, &without(back(&lost), &[5]), "Joining, to epoch 3 of 4, 6 pods");
    check("all at once where all are there", 6, &back(&lost), "Joining, to epoch 3 of 7, 6 pods");
    check("whoever it is", 6, &without(seen(&lost, 6), &[1, 4, 5]), "Joining, to epoch 3 of 4, 6 pods");
    check("not fewer than before", 6, &without(seen(&lost, 6), &[1, 3, 4, 5]), "StartingPods, 6 pods");
    check("growth alone waits for all", 6, &without(seen(&three, 6), &[5]), "StartingPods, 6 pods");
    let NodeStep::Propose(proposal) = plan_of(&wanting(6), &without(back(&lost), &[5])).node_step else {
        panic!("no proposal")
    };
    let joined = proposal.layout;
    // As `seen`, where the new member of demo-1 answers.
    let with_new = |layout: &Layout| {
        let mut observed = without(seen(layout, 6), &[5]);
        let mut answer = well(1, layout);
        answer.node = fresh(1).node;
        observed.answers.insert(1, Answer::Here(answer));
        for (ordinal, answer) in &mut observed.answers {
            let Answer::Here(answer) = answer else { continue };
            let peers =
                layout.members.iter().filter(|peer| !peer.is_lost && peer.name != format!("demo-{ordinal}"));
            answer.connected = peers.map(|peer| peer.node).collect();
        }
        observed
    };
    let plan = plan_of(&wanting(6), &with_new(&joined));
    assert_eq!(next(&plan), "Moving, to epoch 4 of 4, 6 pods");
    let progress = plan.progress.unwrap();
    assert_eq!((progress.kind, progress.to), (keystore_crds::OperationKind::Replace, 3));
    let NodeStep::Propose(proposal) = plan.node_step else { panic!("no proposal") };
    let moving = proposal.layout;
    check("that is not turned back", 6, &waiting(with_new(&moving)), "Moving, 6 pods");
    check("nor by one that asks for fewer", 4, &waiting(with_new(&moving)), "Moving, 6 pods");
    let grown = moving.next(&Change::Finish).unwrap();
    let plan = plan_of(&wanting(6), &with_new(&grown));
    assert!(next(&plan).starts_with("Dismissing, "), "{}", next(&plan));
    let dismissed = grown.next(&Change::Dismiss(BTreeSet::from([node(1)]))).unwrap();
    check("then it waits for all again", 6, &with_new(&dismissed), "StartingPods, 6 pods");
}

#[test]
fn a_pod_that_was_passed_over_and_vanishes_after_one_answer_is_waited_for_by_nobody() {
    let four = layout_of(3, 4);
    let members = [0, 2, 3].map(|ordinal| four.member(node(ordinal)).unwrap().clone());
    let moved = four.next(&Change::Move { members: members.into(), replication_factor: 3 }).unwrap();
    let moved = moved.next(&Change::Finish).unwrap();
    let dismissed = moved.next(&Change::Dismiss(BTreeSet::from([node(1)]))).unwrap();
    let mut vanished = seen(&dismissed, 4);
    vanished.answers.insert(1, Answer::Unreachable);
    assert_eq!(next(&plan_of(&wanting(3), &vanished)), "rest, 4 pods");
    let back = wiped(vanished.clone(), &[1]);
    assert_eq!(next(&plan_of(&wanting(3), &back)), "Joining, to epoch 6 of 4, 4 pods");
    assert_eq!(next(&plan_of(&wanting(4), &vanished)), "StartingPods, 4 pods", "it is wanted beside them");
}

#[test]
fn nobody_is_given_up_by_a_status_alone() {
    let three = layout_of(3, 3);
    let gone = away(seen(&three, 3), 1);
    let with_pod = |pod: Option<k8s_openapi::api::core::v1::Pod>| {
        let mut observed = gone.clone();
        observed.pods.remove(&1);
        observed.pods.extend(pod.map(|pod| (1, pod)));
        observed
    };
    let resource = replacing(3, &gone, 0);
    let new = |second| Some(fixtures::pod_without_conditions(second));
    let told = |second| Some(fixtures::ending(fixtures::pod_since(true, 0), second));
    let down_since = |observed: &Observed, now| {
        status_of(&resource, observed, now).nodes[1].down_since.as_ref().map(|time| time.0.as_second())
    };
    for (what, pod, since, expected) in [
        ("no pod", None, 0, "rest, 3 pods"),
        ("a new pod of which nothing is known", new(950), 950, "rest, 3 pods"),
        ("for as long as that", new(940), 940, "GivingUp, to epoch 2 of 3, 3 pods"),
        ("one that was told to end", told(950), 950, "rest, 3 pods"),
        ("and long ago", told(940), 940, "GivingUp, to epoch 2 of 3, 3 pods"),
    ] {
        let observed = with_pod(pod);
        assert_eq!(next(&plan_at(&resource, &observed, 1_000)), expected, "{what}");
        assert_eq!(down_since(&observed, 1_000), Some(since), "{what}");
    }
    // Somebody's clock is ahead.
    let ahead = replacing(3, &gone, 1_000);
    let status = status_of(&ahead, &gone, 10);
    assert_eq!(status.nodes[1].down_since.as_ref().unwrap().0.as_second(), 10);
}

#[test]
fn who_is_away_longest_is_given_up_first_and_who_is_gone_before_who_is_away() {
    let admitted = layout_of(3, 5);
    let mut observed = away(away(seen(&admitted, 5), 3), 4);
    observed.pods.insert(3, fixtures::pod_since(false, 20));
    observed.pods.insert(4, fixtures::pod_since(false, 10));
    let resource = replacing(3, &observed, 0);
    let NodeStep::Propose(proposal) = plan_at(&resource, &observed, 100).node_step else { panic!("none") };
    let lost = |layout: &Layout| layout.members.iter().position(|member| member.is_lost);
    assert_eq!(lost(&proposal.layout), Some(4));

    let five = layout_of(5, 5);
    let observed = away(wiped(seen(&five, 5), &[3]), 4);
    let resource = replacing(5, &observed, 0);
    let plan = plan_at(&resource, &observed, 60);
    assert_eq!(next(&plan), "GivingUp, to epoch 5 of 5, 5 pods");
    let NodeStep::Propose(proposal) = plan.node_step else { panic!("none") };
    assert_eq!(lost(&proposal.layout), Some(3));
}

#[test]
fn damage_is_in_the_way_only_of_what_it_could_be_healed_from() {
    let observed = doubting(wiped(seen(&layout_of(3, 5), 5), &[4]), &[0, 1]);
    assert_eq!(next(&plan_of(&wanting(5), &observed)), "GivingUp, to epoch 3 of 5, 5 pods");
}

#[test]
fn who_answers_is_not_away_and_who_drains_cannot_be_relied_on() {
    let three = layout_of(3, 3);
    let gone = away(seen(&three, 3), 1);
    let mut answers = gone.clone();
    answers.answers.insert(1, Answer::Here(well(1, &three)));
    let mut drains = gone.clone();
    let Answer::Here(answer) = drains.answers.get_mut(&2).unwrap() else { panic!("silent") };
    answer.mode = NodeMode::Draining;
    let resource = replacing(3, &gone, 0);
    assert_eq!(next(&plan_at(&resource, &answers, 1_000)), "rest, 3 pods");
    assert_eq!(next(&plan_at(&resource, &drains, 1_000)), "GivingUp, held for Unhealthy, 3 pods");

    let lost = three.next(&Change::Lose(BTreeSet::from([node(1)]))).unwrap();
    let mut back = wiped(away(seen(&lost, 3), 1), &[1]);
    back.pods.insert(1, fixtures::pod_since(false, 0));
    let resource = replacing(3, &away(seen(&lost, 3), 1), 0);
    assert_eq!(next(&plan_at(&resource, &back, 30)), "Joining, to epoch 3 of 4, 3 pods");
}

#[test]
fn who_is_gone_votes_on_nothing_and_who_is_lost_proposes_nothing() {
    let three = layout_of(3, 3);
    let observed = away(wiped(seen(&three, 3), &[1]), 2);
    let resource = replacing(3, &observed, 0);
    assert_eq!(
        next(&plan_at(&resource, &observed, 60)),
        "GivingUp, held for Unhealthy, to epoch 2 of 3, 3 pods"
    );

    let mut behind = away(away(seen(&three, 5), 1), 2);
    let resource = replacing(5, &behind, 0);
    let Some(Answer::Here(answer)) = behind.answers.get_mut(&0) else { panic!("silent") };
    answer.epoch = Epoch(9);
    let plan = plan_at(&KeyStoreCluster { spec: wanting(5).spec, ..resource }, &behind, 60);
    assert_eq!(next(&plan), "Joining, 5 pods", "others know more");

    let lost = layout_of(3, 4).next(&Change::Lose(BTreeSet::from([node(0)]))).unwrap();
    let mut observed = seen(&lost, 4);
    for answer in observed.answers.values_mut() {
        let Answer::Here(answer) = answer else { continue };
        // The lost one is the best connected.
        if answer.node != node(0) {
            answer.connected.remove(&node(3));
        }
    }
    let mut resource = wanting(3);
    resource.spec.keyspaces =
        vec![keystore_crds::Keyspace { name: "more".to_owned(), mode: keystore_crds::KeyspaceMode::Lww }];
    let NodeStep::Propose(proposal) = plan_of(&resource, &observed).node_step else { panic!("none") };
    assert_ne!(proposal.ordinal, 0);
}

#[test]
fn of_two_members_in_one_pod_the_one_that_answers_counts_then_the_one_that_holds_most() {
    let three = layout_of(3, 3);
    let twin = |id: u8| Member {
        node: NodeId([id; 16]),
        actor: keystore_core::id::Actor(90),
        ..three.member(node(1)).unwrap().clone()
    };
    let shown = |id: u8, answering: Option<u8>| {
        let layout = three.next(&Change::Admit(vec![twin(id)])).unwrap();
        let mut observed = seen(&layout, 3);
        let answer = |id: u8| Answer::Here(NodeAnswer { node: NodeId([id; 16]), ..well(1, &layout) });
        observed.answers.insert(1, answering.map_or(Answer::Unreachable, answer));
        status_of(&wanting(3), &observed, 1).nodes[1].node_id.clone().unwrap()
    };
    let holder = node(1).0[0];
    for (answering, expected) in [(Some(0x99), 0x99), (Some(holder), holder), (None, holder)] {
        assert_eq!(shown(0x99, answering), NodeId([expected; 16]).to_string(), "{answering:?}");
    }
}

#[test]
fn only_what_builds_on_pods_that_are_not_asked_for_yet_waits_for_what_is_written() {
    let admitted = layout_of(3, 5);
    let members = admitted.members.clone();
    let moving = admitted.next(&Change::Move { members, replication_factor: 3 }).unwrap();
    for (what, replicas, observed, live, expected) in [
        ("an end of a move", 5, seen(&moving, 5), 5, false),
        ("to pods that are taken away", 5, seen(&moving, 5), 4, true),
        ("a loss", 5, wiped(waiting(seen(&moving, 5)), &[1]), 4, false),
        ("a way back", 3, waiting(seen(&moving, 5)), 5, false),
        ("a beginning", 5, seen(&admitted, 5), 5, false),
        ("in pods that are taken away", 5, seen(&admitted, 5), 4, true),
        ("who joins", 5, seen(&layout_of(3, 3), 5), 3, true),
    ] {
        let mut observed = observed;
        set_replicas(&mut observed, Some(live));
        let plan = plan_of(&wanting(replicas), &observed);
        let NodeStep::Propose(proposal) = &plan.node_step else { panic!("{what}: {}", next(&plan)) };
        assert_eq!(proposal.needs_writes, expected, "{what}");
    }
}

#[test]
fn what_is_in_the_way_is_told_by_pods_and_with_what_helps() {
    let admitted = layout_of(3, 5);
    let gone = away(seen(&admitted, 5), 1);
    let linked = || {
        let mut observed = seen(&admitted, 5);
        observed.answers.insert(1, Answer::Unreachable);
        observed
    };
    let hold = |observed: &Observed| {
        let resource = replacing(5, observed, 0);
        plan_at(&resource, observed, 1).hold.unwrap().message
    };
    let down = "data does not begin to move while nodes are down that hold it: demo-1; bring them back";
    assert_eq!(hold(&gone), format!("{down}, or wait: after 60 s they are given up"));
    assert_eq!(hold(&linked()), down, "who is reached by others is not given up");

    let three = layout_of(3, 3);
    let mut copied = seen(&three, 5);
    let actor = three.member(node(0)).unwrap().actor;
    copied.answers.insert(3, Answer::Here(NodeAnswer { actor, ..empty(3) }));
    let plan = plan_of(&wanting(5), &copied);
    assert_eq!(
        plan.hold.unwrap().message,
        "the store cannot take the next step: members demo-0 and demo-3 have the same actor"
    );

    let lost = three.next(&Change::Lose(BTreeSet::from([node(1)]))).unwrap();
    let mut copied = wiped(seen(&lost, 3), &[1]);
    copied.answers.insert(1, Answer::Here(NodeAnswer { actor, ..fresh(1) }));
    assert_eq!(next(&plan_of(&wanting(3), &copied)), "Joining, held for Rejected, 3 pods");
    assert_eq!(
        next(&plan_of(&wanting(2), &copied)),
        "Joining, held for BelowReplicationFactor, 3 pods",
        "what a person has asked for comes first"
    );

    let mut swap = {
        let four = layout_of(4, 4);
        let voter = (0..4).find(|ordinal| node(*ordinal) == four.voters[0]).unwrap();
        let observed = away(seen(&four, 4), voter);
        let mut resource = replacing(4, &observed, 0);
        resource.spec.replace_after_seconds = 0;
        (plan_at(&resource, &observed, 60), resource, observed)
    };
    swap.0.note_refusal("01010101-0101-0101-0101-010101010101 is not so far");
    let valid = keystore_operator_core::validate::validate(&swap.1, fixtures::IMAGE).unwrap();
    let now = k8s_openapi::jiff::Timestamp::from_second(60).unwrap();
    let mut observed = swap.2.clone();
    fixtures::settle(&mut observed, &swap.0);
    swap.0.writes.clear();
    let status = keystore_operator_core::status::plan_status(keystore_operator_core::status::StatusInput {
        cluster: &swap.1,
        valid: &valid,
        observed: &observed,
        plan: &swap.0,
        now,
    });
    assert_eq!(
        condition(&status, "Progressing"),
        "True Replacing: who votes in the place of a node that is away; not yet: demo-0 is not so far"
    );
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
        ("two are lost and do not know it", 3, busy(&both_lost), "Moving, held for Unhealthy, 5 pods"),
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
    let mut other_store = wanting(5);
    other_store.spec.replication_factor = 2;
    for resource in [&other_store, &wanting(2)] {
        let hold = plan_of(resource, &wiped(busy(&up), &[1, 2])).hold.unwrap();
        assert!(hold.message.contains("recover"), "a spec does not hide a loss: {}", hold.message);
    }
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

/// So much of each volume, in tenths of a GiB, and how much of that is in use; `None`: it does not say.
fn with_disks(layout: &Layout, disks: [Option<(u64, u64)>; 5]) -> Observed {
    let mut observed = seen(layout, 5);
    let tenth = (1 << 30) / 10;
    for (ordinal, disk) in (0..).zip(disks) {
        let Some(Answer::Here(answer)) = observed.answers.get_mut(&ordinal) else { continue };
        answer.disk = disk.map(|(total, used)| Disk {
            total_bytes: total * tenth,
            available_bytes: (total - used) * tenth,
            set_aside_bytes: 0,
        });
    }
    observed
}

#[test]
fn whether_data_fits_is_judged_by_all_who_hold_it_and_by_the_smallest_who_stays() {
    let five = layout_of(5, 5);
    let members = five.members.iter().take(3).cloned().collect();
    let leaving = five.next(&Change::Move { members, replication_factor: 3 }).unwrap();
    let lost = five.next(&Change::Lose(BTreeSet::from([node(4)]))).unwrap();
    let same = |used: u64| [Some((10, used)); 5];
    let with = |used: u64, ordinal: usize, disk: Option<(u64, u64)>| {
        let mut disks = same(used);
        disks[ordinal] = disk;
        disks
    };
    let (fits, held) = ("Moving, to epoch 5 of 5, 5 pods", "rest, held for InsufficientSpace, 5 pods");
    for (what, replicas, layout, disks, expected) in [
        ("it fits", 3, &five, same(5), fits),
        ("it does not", 3, &five, same(6), held),
        ("as many nodes as before", 5, &five, same(10), "rest, 5 pods"),
        (
            "once data moves that was asked before",
            3,
            &leaving,
            same(10),
            "Finishing, to epoch 6 of 5, 5 pods",
        ),
        ("one that stays is small", 3, &five, with(5, 1, Some((5, 5))), held),
        ("one that goes is small", 3, &five, with(4, 4, Some((5, 5))), fits),
        ("one that goes is large", 3, &five, with(5, 4, Some((20, 5))), fits),
        ("one does not say, and may be full", 3, &five, with(5, 4, None), held),
        ("it would fit even so", 3, &five, with(4, 4, None), fits),
        ("nor does it matter whether it stays", 3, &five, with(4, 1, None), fits),
        ("one shares its file system, and counts as the others", 3, &five, with(6, 4, Some((30, 1))), held),
        ("nobody says anything", 3, &five, [None; 5], fits),
    ] {
        assert_eq!(next(&plan_of(&wanting(replicas), &with_disks(layout, disks))), expected, "{what}");
    }
    let mut silent = with_disks(&five, same(6));
    silent.answers.insert(4, Answer::Unreachable);
    let plan = plan_of(&wanting(3), &silent);
    assert_eq!(next(&plan), held, "an answer that does not come begins nothing");
    let message = plan.hold.unwrap().message;
    assert!(message.contains("(demo-4 does not say how much it holds, and counts as full); "), "{message}");
    let lost_at = |used: u64| {
        let mut observed = with_disks(&lost, same(used));
        observed.answers.insert(4, Answer::Unreachable);
        next(&plan_of(&wanting(3), &observed))
    };
    assert_eq!(lost_at(6), "StartingPods, held for InsufficientSpace, 5 pods", "what it held is made anew");
    assert_eq!(lost_at(5), "Moving, to epoch 6 of 5, 5 pods", "and is no more than the others hold");
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
    let below = plan_of(&wanting(2), &observed).hold;
    assert_eq!(below, plan.hold, "a spec does not hide it");
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
