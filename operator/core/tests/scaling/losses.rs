//! Who is given up, when, and who decides on that.

use std::collections::BTreeSet;

use keystore_core::id::{Epoch, NodeId};
use keystore_core::layout::{Layout, Member};
use keystore_core::succession::Change;
use keystore_crds::KeyStoreCluster;
use keystore_operator_core::observed::{Answer, NodeAnswer, NodeMode, Observed};
use keystore_operator_core::plan::NodeStep;

use crate::fixtures;
use crate::fixtures::{condition, decided, empty, look, node, plan_at, plan_of, status_of};
use crate::looks::{
    away, doubting, layout_of, next, replacing, resource_of_three, seen, settled, wanting, well, wiped,
};

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
