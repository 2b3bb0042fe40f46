//! What follows a recovery.

use keystore_core::id::{Epoch, Incarnation, NodeId};
use keystore_core::layout::{Layout, Member};
use keystore_core::recovery::Losses;
use keystore_core::succession::Change;
use keystore_operator_core::identity::Identity;
use keystore_operator_core::observed::{Answer, HeldLayout, NodeAnswer, NodeMode, Observed, Transfer};
use keystore_operator_core::plan::NodeStep;
use serde_json::json;

use crate::fixtures::{cluster, condition, empty, node, plan_at, plan_of};
use crate::looks::{away, layout_of, next, replacing, seen, settled, wanting, well};

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
