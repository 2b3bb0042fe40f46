//! A move goes back only to nodes that have everything.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use keystore_core::layout::Layout;
use keystore_core::succession::Change;
use keystore_crds::KeyStoreCluster;
use keystore_operator_core::observed::{Answer, Observed};

use crate::fixtures::{condition, ending, node, plan_at, plan_of, status_of};
use crate::looks::{
    away, doubting, layout_of, left_by_two, next, seen, set_replicas, waiting, wanting, wiped,
};

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
            "two are silent: their disks may be gone, or they restart",
            3,
            silent(silent(busy(&up), 1), 2),
            "Moving, 5 pods",
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
    let two_away = away(away(busy(&up), 1), 2);
    let resource = KeyStoreCluster { status: Some(status_of(&wanting(3), &two_away, 0)), ..wanting(3) };
    let plan = plan_at(&resource, &two_away, 59);
    let waits =
        "other nodes are to hold the data now, and it goes back once demo-1, demo-2 say what they hold";
    assert!(plan.progress.as_ref().unwrap().message.ends_with(waits), "{plan:?}");
    assert_eq!(next(&plan), "Moving, 5 pods");
    let plan = plan_at(&resource, &two_away, 60);
    assert_eq!(next(&plan), "Moving, held for Unhealthy, 5 pods");
    assert_eq!(
        plan.hold.unwrap().message,
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

/// It would be gone a moment later, with its part of each quorum.
#[test]
fn nobody_is_given_data_whose_pod_was_told_to_end() {
    let (_, closed) = left_by_two();
    let admitted = layout_of(3, 5);
    let told_at = |ordinal: u32, mut observed: Observed| {
        let pod = observed.pods.remove(&ordinal).unwrap();
        observed.pods.insert(ordinal, ending(pod, 0));
        observed
    };
    let told = |observed: Observed| told_at(4, observed);
    let replaced = |mut observed: Observed| {
        let owner = OwnerReference {
            uid: "another one".to_owned(),
            controller: Some(true),
            ..OwnerReference::default()
        };
        observed.pods.get_mut(&4).unwrap().metadata.owner_references = Some(vec![owner]);
        observed
    };
    let known = |mut observed: Observed, generation: i64| {
        let set = observed.children.stateful_set.as_mut().unwrap();
        set.metadata.generation = Some(7);
        set.status.get_or_insert_default().observed_generation = Some(generation);
        observed
    };
    let asked_for = |mut observed: Observed, replicas: i32| {
        set_replicas(&mut observed, Some(replicas));
        observed
    };
    for (what, observed, expected) in [
        ("they were about to go, and stay", seen(&closed, 5), "Joining, to epoch 8 of 5, 5 pods"),
        ("one ends already", told(seen(&closed, 5)), "StartingPods, 5 pods"),
        ("they are called back first", asked_for(seen(&closed, 5), 3), "StartingPods, 5 pods"),
        ("who ends pods has not heard of it", known(seen(&closed, 5), 6), "StartingPods, 5 pods"),
        ("it has", known(seen(&closed, 5), 7), "Joining, to epoch 8 of 5, 5 pods"),
        ("new members", seen(&admitted, 5), "Moving, to epoch 3 of 5, 5 pods"),
        ("one of them ends", told(seen(&admitted, 5)), "Joining, 5 pods"),
        ("one ends that gains nothing", told_at(1, seen(&admitted, 5)), "Moving, to epoch 3 of 5, 5 pods"),
        ("one is of an earlier StatefulSet", replaced(seen(&admitted, 5)), "Joining, 5 pods"),
    ] {
        assert_eq!(next(&plan_of(&wanting(5), &observed)), expected, "{what}");
    }
}
