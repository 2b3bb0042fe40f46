//! Who takes the place of a node that is gone.

use std::collections::BTreeSet;

use keystore_core::id::NodeId;
use keystore_core::layout::Layout;
use keystore_core::succession::Change;
use keystore_crds::NodeState;
use keystore_operator_core::observed::{Answer, HeldLayout, NodeAnswer, Observed};
use keystore_operator_core::plan::NodeStep;

use crate::fixtures;
use crate::fixtures::{condition, empty, node, plan_at, plan_of, status_of};
use crate::looks::{away, fresh, layout_of, next, replacing, seen, settled, waiting, wanting, well, wiped};

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
