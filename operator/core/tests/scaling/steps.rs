//! One step at a time towards the number of nodes that is asked for.

use std::collections::BTreeSet;

use keystore_core::id::Epoch;
use keystore_core::layout::{FirstLayout, Layout, Member};
use keystore_core::partition::PartitionCount;
use keystore_core::succession::Change;
use keystore_crds::KeyStoreClusterStatus;
use keystore_operator_core::events::plan_events;
use keystore_operator_core::observed::{Answer, Disk, NodeAnswer, NodeMode, Observed, Transfer};
use keystore_operator_core::plan::NodeStep;
use serde_json::json;

use crate::fixtures;
use crate::fixtures::{cluster, condition, empty, node, plan_at, plan_of, status_of};
use crate::looks::{
    away, doubting, fresh, layout_of, left_by_two, next, replacing, seen, set_replicas, settled, waiting,
    wanting, well, wiped,
};

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
    ] {
        let mut observed = observed;
        set_replicas(&mut observed, Some(live));
        let plan = plan_of(&wanting(replicas), &observed);
        let NodeStep::Propose(proposal) = &plan.node_step else { panic!("{what}: {}", next(&plan)) };
        assert_eq!(proposal.needs_writes, expected, "{what}");
    }
}

#[test]
fn what_cannot_be_undone_is_known_as_such() {
    let (three, admitted, (_, closed)) = (layout_of(3, 3), layout_of(3, 5), left_by_two());
    let members = admitted.members.clone();
    let moving = admitted.next(&Change::Move { members, replication_factor: 3 }).unwrap();
    for (what, replicas, observed, expected) in [
        ("nothing", 3, seen(&three, 3), false),
        ("pods come", 5, seen(&three, 3), false),
        ("nodes join", 5, seen(&three, 5), false),
        ("data begins to move", 5, seen(&admitted, 5), false),
        ("it has moved", 5, seen(&moving, 5), false),
        ("nodes drop what has moved", 3, waiting(seen(&moving, 5)), true),
        ("a node is given up", 5, wiped(waiting(seen(&moving, 5)), &[1]), true),
        ("pods go", 3, seen(&closed, 5), true),
    ] {
        assert_eq!(plan_of(&wanting(replicas), &observed).is_destructive(&observed), expected, "{what}");
    }
}

/// Its machine is cut off from Kubernetes alone, and of what it has left, too little is trusted elsewhere: who is missing joins
/// first.
#[test]
fn nobody_is_dismissed_whom_the_others_would_not_let_go() {
    let (_, closed) = left_by_two();
    let lost = closed.next(&Change::Lose([node(1)].into())).unwrap();
    let successor = |mut observed: Observed| {
        observed.answers.insert(1, Answer::Here(empty(41)));
        observed
    };
    let look = || successor(seen(&lost, 3));
    assert_eq!(next(&plan_of(&wanting(3), &look())), "Dismissing, to epoch 9 of 3, 3 pods");
    assert_eq!(next(&plan_of(&wanting(3), &doubting(look(), &[2]))), "Joining, to epoch 9 of 6, 3 pods");
    let mut gone = doubting(look(), &[2]);
    for answer in gone.answers.values_mut() {
        let Answer::Here(answer) = answer else { continue };
        answer.connected.retain(|peer| ![node(3), node(4)].contains(peer));
    }
    assert_eq!(next(&plan_of(&wanting(3), &gone)), "Dismissing, to epoch 9 of 3, 3 pods");
}

#[test]
fn no_pod_goes_while_of_what_a_lost_node_held_too_little_is_trusted() {
    let (_, closed) = left_by_two();
    let lost = wiped(seen(&closed.next(&Change::Lose([node(1)].into())).unwrap(), 5), &[1]);
    assert_eq!(plan_of(&wanting(3), &lost).replicas, 3);
    assert_eq!(plan_of(&wanting(3), &doubting(lost, &[2])).replicas, 5);
}

#[test]
fn who_joins_is_in_the_zone_of_its_machine() {
    let mut observed = seen(&layout_of(3, 3), 5);
    observed.zones = [(3, "zone-3".to_owned())].into();
    let NodeStep::Propose(proposal) = plan_of(&wanting(5), &observed).node_step else {
        panic!("nobody joins")
    };
    let zone = |ordinal: u32| proposal.layout.member(node(ordinal)).unwrap().zone.as_str();
    assert_eq!([zone(2), zone(3), zone(4)], ["zone-2", "zone-3", ""], "the last one's has no label");
}

/// Of 20 nodes 16 can hold one of 16 copies.
#[test]
fn with_more_nodes_than_copies_all_moves_end() {
    let all = fixtures::layout(fixtures::CLUSTER, 20);
    let mut layout = Layout::first(FirstLayout {
        cluster: all.cluster,
        incarnation: all.incarnation,
        partitions: PartitionCount::new(16).unwrap(),
        replication_factor: 1,
        members: all.members.into_iter().take(10).collect(),
        keyspaces: all.keyspaces,
    })
    .unwrap();
    let spec = json!({"replicas": 20, "replicationFactor": 1, "partitions": 16});
    let resource = cluster(&spec, fixtures::remembers(fixtures::CLUSTER, Some(1)));
    let mut said = Vec::new();
    while said.len() < 5 {
        let plan = plan_of(&resource, &seen(&layout, 20));
        said.push(next(&plan));
        let NodeStep::Propose(proposal) = plan.node_step else { break };
        layout = proposal.layout;
    }
    let expected = [
        "Joining, to epoch 2 of 20, 20 pods",
        "Moving, to epoch 3 of 20, 20 pods",
        "Finishing, to epoch 4 of 20, 20 pods",
        "rest, 20 pods",
    ];
    assert_eq!(said, expected);
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
        "the next step, to take in members, or to let them go, cannot be taken: members demo-0 and demo-3 have the same actor"
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
fn a_move_that_waits_for_what_is_damaged_says_so() {
    let five = layout_of(5, 5);
    let members = five.members.iter().take(3).cloned().collect();
    let leaving = five.next(&Change::Move { members, replication_factor: 3 }).unwrap();
    let message = |observed: &Observed| plan_of(&wanting(3), observed).progress.unwrap().message;
    let part = "; something on demo-1, demo-4 is damaged, and healed from other nodes first";
    assert!(!message(&waiting(seen(&leaving, 5))).contains("damaged"));
    let doubted = message(&waiting(doubting(seen(&leaving, 5), &[1, 4])));
    assert!(doubted.contains(part), "{doubted}");
}

/// Under two rings each write would need a quorum of both, and there is one replica less.
#[test]
fn data_does_not_begin_to_move_before_what_is_damaged_is_healed_unless_copies_are_missing() {
    let three = layout_of(3, 5);
    let waits = plan_of(&wanting(5), &doubting(seen(&three, 5), &[1]));
    assert_eq!(next(&waits), "Joining, held for Unhealthy, 5 pods");
    let message = waits.progress.unwrap().message;
    let why = "data does not begin to move before what is damaged on demo-1 is healed from other nodes";
    assert!(message.starts_with(why), "{message}");
    // Nothing that it holds is to move; or all of it leaves it.
    let moves = "Moving, to epoch 3 of 5, 5 pods";
    let five = layout_of(5, 5);
    let leaving = plan_of(&wanting(4), &doubting(seen(&five, 5), &[4]));
    assert_eq!(next(&leaving), "Moving, to epoch 5 of 5, 5 pods");
    let two = plan_of(&wanting(3), &doubting(seen(&five, 5), &[3, 4]));
    assert_eq!(next(&two), "Joining, held for Unhealthy, 5 pods", "too few others have what both hold");
    assert_eq!(next(&plan_of(&wanting(5), &doubting(seen(&three, 5), &[4]))), moves);
    let lost = three.next(&Change::Lose([node(2)].into())).unwrap();
    let short = plan_of(&wanting(5), &doubting(seen(&lost, 5), &[1]));
    assert!(!short.progress.unwrap().message.contains("damaged"));
}

#[test]
fn a_move_to_a_volume_that_is_full_says_so() {
    let three = layout_of(3, 4);
    let members = three.members.clone();
    let joint = three.next(&Change::Move { members, replication_factor: 3 }).unwrap();
    let with = |ordinal: u32, partitions_done: u32, is_full: bool| {
        let mut observed = waiting(seen(&joint, 4));
        let Some(Answer::Here(answer)) = observed.answers.get_mut(&ordinal) else { panic!("it answers") };
        (answer.transfer.partitions, answer.transfer.partitions_done) = (9, partitions_done);
        answer.disk =
            Some(Disk { total_bytes: 1 << 30, available_bytes: 1 << 20, set_aside_bytes: 0, is_full });
        plan_of(&wanting(4), &observed)
    };
    for (what, ordinal, partitions_done, is_full) in [
        ("there is room", 3, 0, false),
        ("it has all that it is to have", 3, 9, true),
        ("nothing that is new to it moves there", 0, 0, true),
    ] {
        assert_eq!(with(ordinal, partitions_done, is_full).hold, None, "{what}");
    }
    let plan = with(3, 0, true);
    assert_eq!(next(&plan), "Moving, held for InsufficientSpace, 4 pods");
    let message = "no more data moves to demo-3, for the volume is full: expand its claim, where the storage class can, or set spec.replicas back \
                   to 3";
    assert_eq!(plan.hold.unwrap().message, message);
    assert!(plan.progress.unwrap().message.ends_with(message));
}

#[test]
fn an_operation_that_is_held_up_or_cannot_be_seen_is_not_told_as_ended() {
    let three = layout_of(3, 3);
    let resource = |replicas: u32, paused: bool, status: Option<KeyStoreClusterStatus>| {
        cluster(&json!({"replicas": replicas, "paused": paused}), status)
    };
    let told = |old: &KeyStoreClusterStatus, new: &KeyStoreClusterStatus| -> Vec<String> {
        let ends = plan_events(Some(old), new).into_iter().filter(|event| event.action == "Progressing");
        ends.map(|event| event.reason).collect()
    };
    let rests = status_of(&wanting(3), &seen(&three, 3), 1);
    let runs = status_of(&resource(5, false, Some(rests.clone())), &seen(&three, 3), 2);
    assert_eq!(told(&rests, &runs), ["ScalingUp"]);
    let again = |replicas, paused, observed: &Observed| {
        status_of(&resource(replicas, paused, Some(runs.clone())), observed, 9)
    };

    let mut unseen = seen(&three, 3);
    unseen.answers.values_mut().for_each(|answer| *answer = Answer::Unreachable);
    unseen.layout = None;
    let unseen = again(5, false, &unseen);
    assert_eq!(told(&runs, &unseen), Vec::<String>::new());
    assert_eq!(unseen.operation, runs.operation);
    assert_eq!(condition(&unseen, "Progressing"), condition(&runs, "Progressing"));

    assert_eq!(told(&runs, &again(5, true, &seen(&three, 3))), ["ScalingUpStopped"]);
    assert_eq!(told(&runs, &again(2, false, &seen(&three, 3))), ["ScalingUpStopped"]);
    // What was asked for is taken back before anything of it was done.
    assert_eq!(told(&runs, &again(3, false, &seen(&three, 3))), ["ScalingUpWithdrawn"]);
    let five = layout_of(5, 5);
    let done = settled(&resource(5, false, Some(runs.clone())), seen(&five, 5), 9);
    assert_eq!(told(&runs, &done), ["ScaledUp"]);
}
