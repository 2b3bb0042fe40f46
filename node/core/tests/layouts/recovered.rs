//! Recovery: which layout the survivors go on under, and which attempt is the next one.

use std::collections::{BTreeMap, BTreeSet};

use keystore_core::id::{Epoch, Incarnation, NodeId};
use keystore_core::layout::{Layout, Member};
use keystore_core::partition::Partition;
use keystore_core::quorum::Consistency;
use keystore_core::recovery::{Attempt, Left, Losses, RecoveryError, plan_attempt};
use keystore_core::succession::{Change, Evidence, GateError, Standing, Step, SuccessionError, check_gate};
use proptest::prelude::*;

use crate::bench::{ME, first_layout, layout_of};

pub(crate) fn node(n: u8) -> NodeId {
    NodeId([n; 16])
}

pub(crate) fn nodes(numbers: impl IntoIterator<Item = u8>) -> BTreeSet<NodeId> {
    numbers.into_iter().map(node).collect()
}

pub(crate) fn attempt(number: u64) -> Incarnation {
    Incarnation { number, id: number + 40 }
}

pub(crate) fn lost(numbers: impl IntoIterator<Item = u8>) -> Losses {
    Losses { nodes: nodes(numbers), doubted: BTreeMap::new() }
}

fn has_quorums(layout: &Layout, partition: Partition, losses: &Losses) -> bool {
    let is_trusted = |node: &NodeId| {
        let is_doubted = losses.doubted.get(node).is_some_and(|doubted| doubted.contains(&partition));
        !losses.nodes.contains(node) && !is_doubted
    };
    layout.replica_sets(partition).satisfied(Consistency::Quorum, is_trusted)
}

/// Whatever is lost next, nobody whose records are not merged yet is told to begin empty.
fn check_once_more(first: &Layout, losses: &Losses) {
    for member in first.members.iter().filter(|member| !member.is_lost) {
        let nodes = losses.nodes.iter().copied().chain([member.node]).collect();
        let Ok(second) = first.recovered(attempt(3), &Losses { nodes, doubted: BTreeMap::new() }) else {
            continue;
        };
        for (partition, sources) in &second.salvaged {
            for source in sources {
                assert_ne!(second.since(*partition, *source), Some(second.epoch), "{partition} of {source}");
            }
        }
    }
}

/// What holds of every layout of a recovery.
fn check(before: &Layout, losses: &Losses) {
    let after = before.recovered(attempt(2), losses).unwrap();
    assert_eq!(after.validate(), Ok(()));
    check_once_more(&after, losses);
    assert_eq!((after.epoch, after.incarnation), (Epoch(before.epoch.0 + 1), attempt(2)));
    assert!(after.members.iter().all(|member| member.is_lost == losses.nodes.contains(&member.node)));
    assert_eq!(after.is_joint(), before.is_joint());
    let left = after.members.len() - losses.nodes.len();
    for partition in before.partitions.all() {
        if has_quorums(before, partition, losses) {
            assert!(!after.salvaged.contains_key(&partition));
            assert_eq!(after.replicas(partition), before.replicas(partition), "it stays as it is");
            continue;
        }
        let sources: BTreeSet<_> = before.replicas(partition).into_iter().collect();
        let sources: BTreeSet<_> = sources.difference(&losses.nodes).copied().collect();
        assert_eq!(after.salvaged.get(&partition), Some(&sources), "all that are left, in doubt or not");
        let ring = after.ring().replicas(partition);
        assert!(after.rings().all(|other| other.replicas(partition) == ring), "one ring");
        assert_eq!(ring.len(), left.min(before.replication_factor));
        for replica in ring {
            assert!(!losses.nodes.contains(&replica.node));
            let since = before.since(partition, replica.node).unwrap_or(after.epoch);
            assert_eq!(replica.since, since, "who held it keeps what it has, others begin empty");
        }
        let kept = ring.iter().filter(|replica| sources.contains(&replica.node)).count();
        assert_eq!(kept, sources.len().min(ring.len()), "those that have something come first");
    }
}

proptest! {
    #[test]
    fn whoever_is_lost_or_in_doubt_the_rest_goes_on(
        gone in prop::collection::btree_set(1u8..=6, 0..=5),
        doubted in prop::collection::btree_map(1u8..=6, prop::collection::btree_set(0u16..16, 0..16), 0..4),
        is_joint in any::<bool>(),
    ) {
        let before = first_layout(6, 3);
        let to = before.members.iter().filter(|member| member.node != node(1)).cloned().collect();
        let moving = before.next(&Change::Move { members: to, replication_factor: 3 }).unwrap();
        let doubted = doubted.into_iter().map(|(n, of)| (node(n), of.into_iter().map(Partition).collect()));
        let losses = Losses { nodes: nodes(gone), doubted: doubted.collect() };
        check(if is_joint { &moving } else { &before }, &losses);
    }
}

#[test]
fn what_cannot_be_recovered_is_refused() {
    let layout = layout_of(3);
    let refused = |incarnation, losses: &Losses| layout.recovered(incarnation, losses).unwrap_err();
    assert_eq!(refused(attempt(1), &lost([3])), RecoveryError::Incarnation { now: 1, found: 1 });
    assert_eq!(refused(attempt(2), &lost([9])), RecoveryError::NoMember(node(9)));
    assert_eq!(refused(attempt(2), &lost([1, 2, 3])), RecoveryError::NobodyIsLeft);
}

#[test]
fn what_is_salvaged_has_to_be_finished_before_anything_moves() {
    let layout = layout_of(3).recovered(attempt(2), &lost([3, 2])).unwrap();
    assert_eq!(layout.voters, [ME]);
    let members = vec![layout.members[0].clone()];
    let moving = layout.next(&Change::Move { members, replication_factor: 1 });
    assert_eq!(moving.unwrap_err(), SuccessionError::IsSalvaging);
    let voters =
        Layout { epoch: Epoch(3), salvaged: BTreeMap::new(), recovered_from: None, ..layout.clone() };
    let standing = Standing { fence: layout.epoch, phase: layout.phase_since, ..Standing::default() };
    let mut evidence = Evidence::from([(ME, standing)]);
    let step = keystore_core::succession::check_step(&layout, &voters).unwrap_err();
    assert!(
        matches!(step, SuccessionError::PhaseSince { .. }),
        "to drop what is salvaged is to finish: {step}"
    );
    let gate = check_gate(&layout, Step::Finish, &evidence).unwrap_err();
    assert!(matches!(gate, GateError::Fence { .. } | GateError::Merge { .. }), "{gate}");
    evidence.get_mut(&ME).unwrap().whole = layout.partitions.all().collect();
    assert_eq!(check_gate(&layout, Step::Finish, &evidence), Ok(()));
    let finished = layout.next(&Change::Finish).unwrap();
    assert!(finished.salvaged.is_empty() && !finished.is_moving());
    assert_eq!(finished.validate(), Ok(()), "with fewer replicas than are wanted");
}

#[test]
fn a_recovery_gives_nothing_to_members_that_were_to_go_unless_nobody_else_is_left() {
    let idle = Member { weight: 0, ..first_layout(5, 3).member(node(5)).unwrap().clone() };
    let first = first_layout(4, 3).next(&Change::Admit(vec![idle])).unwrap();
    let some = first.recovered(attempt(2), &lost([1, 2, 3])).unwrap();
    assert_eq!((some.owned(node(5)), some.owned(node(4)) > 0), (0, true));
    let last = first.recovered(attempt(2), &lost([1, 2, 3, 4])).unwrap();
    assert_eq!((last.member(node(5)).unwrap().weight, last.owned(node(5))), (1, 16));
}

#[test]
fn what_is_to_be_done_follows_from_what_those_say_that_are_left() {
    let before = layout_of(3);
    let losses = lost([3]);
    let first = before.recovered(attempt(2), &losses).unwrap();
    let plan = |left: &[(&Layout, bool)], losses: &Losses| {
        let left: Vec<_> =
            left.iter().map(|(layout, is_serving)| Left { layout, is_serving: *is_serving }).collect();
        plan_attempt(&left, losses, 77).unwrap()
    };
    let begins = |attempt: Attempt| match attempt {
        Attempt::Begin { before, layout } => (before.phase, layout.incarnation.number, layout.epoch),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        begins(plan(&[(&before, true), (&before, true)], &losses)),
        (before.phase.clone(), 2, Epoch(2))
    );
    let half = Attempt::GoOn(first.clone());
    assert_eq!(plan(&[(&first, false), (&before, true)], &losses), half, "interrupted");
    assert_eq!(plan(&[(&first, false), (&first, true)], &losses), half, "one does not know of all");
    assert_eq!(plan(&[(&first, true), (&first, true)], &losses), Attempt::InForce);
    assert_eq!(begins(plan(&[(&first, false), (&before, true)], &lost([2, 3]))).1, 3, "more is lost");

    // Those that had not accepted went on, and moved data.
    let members = before.members[..2].to_vec();
    let moving = before.next(&Change::Move { members, replication_factor: 2 }).unwrap();
    let moved = moving.next(&Change::Finish).unwrap();
    let (phase, number, epoch) = begins(plan(&[(&first, false), (&moved, true)], &losses));
    assert_eq!(
        (phase, number, epoch),
        (moved.phase.clone(), 3, Epoch(4)),
        "it is made from what is in force"
    );
    match plan(&[(&first, false), (&moved, true)], &Losses::default()) {
        Attempt::Begin { layout, .. } => assert!(layout.is_lost(node(3)), "who was called lost stays so"),
        other => panic!("{other:?}"),
    }

    // The same after an attempt that was void has raised the epoch of the next one.
    let more = lost([2, 3]);
    let first = moving.recovered(attempt(2), &losses).unwrap();
    let Attempt::Begin { layout: second, .. } = plan(&[(&first, false), (&moving, true)], &more) else {
        panic!("more is lost");
    };
    assert!(second.epoch > moved.epoch);
    let (phase, number, _) = begins(plan(&[(&second, false), (&moved, true)], &more));
    assert_eq!((phase, number), (moved.phase.clone(), 4));
    let goes_on = Attempt::GoOn(second.clone());
    assert_eq!(plan(&[(&second, false), (&moving, true)], &more), goes_on, "nobody has gone on");
    assert_eq!(plan(&[(&second, false), (&before, true)], &more), goes_on, "one is behind");

    // Two attempts of one number, the later one made from what the others had moved to: neither can come into force.
    let second = |of: &Layout, id| of.recovered(Incarnation { number: 2, id }, &losses).unwrap();
    for (of_early, of_late) in [(1, 9), (9, 1)] {
        let (early, late) = (second(&before, of_early), second(&moved, of_late));
        let (phase, number, epoch) = begins(plan(&[(&early, false), (&late, false)], &losses));
        assert_eq!((phase, number, epoch), (late.phase.clone(), 3, Epoch(late.epoch.0 + 1)));
    }

    // Who is left and serves has missed all of it: only the attempt tells what was in force.
    let of_moved = moved.recovered(attempt(2), &losses).unwrap();
    match plan(&[(&of_moved, false), (&before, true)], &more) {
        Attempt::Begin { before, layout } => {
            assert_eq!((before.phase, layout.recovered_from), (of_moved.phase, Some(moved.term())));
        }
        other => panic!("{other:?}"),
    }

    // After a recovery, the others may have given somebody up by a vote.
    let given_up = first.next(&Change::Lose(nodes([2]))).unwrap();
    let (_, number, _) = begins(plan(&[(&given_up, true)], &Losses::default()));
    assert_eq!(number, 3, "of all partitions, one replica of three is left");
}

#[test]
fn what_was_merged_of_a_source_that_is_lost_by_now_is_merged_by_all() {
    let before = first_layout(6, 3);
    let salvaging = before.recovered(attempt(2), &lost([1, 2, 3])).unwrap();
    let sole = |(partition, sources): (&Partition, &BTreeSet<NodeId>)| {
        (sources.len() == 1).then(|| (*partition, *sources.first().unwrap()))
    };
    let (partition, source) = salvaging.salvaged.iter().find_map(sole).unwrap();
    let losses = Losses { nodes: BTreeSet::from([source]), ..Losses::default() };
    let after = salvaging.recovered(attempt(3), &losses).unwrap();
    let left: BTreeSet<_> =
        salvaging.replicas(partition).into_iter().filter(|node| *node != source).collect();
    assert_eq!(after.salvaged.get(&partition), Some(&left));
}

/// By then they have what was written since, and those that had something first may not.
#[test]
pub(crate) fn what_is_salvaged_once_more_is_merged_of_all_its_replicas() {
    let before = first_layout(6, 3);
    let salvaging = before.recovered(attempt(2), &lost([1, 2, 3])).unwrap();
    let again = salvaging.recovered(attempt(3), &lost([])).unwrap();
    assert_eq!(again.salvaged.len(), salvaging.salvaged.len());
    for (partition, sources) in &again.salvaged {
        let of_before = &salvaging.salvaged[partition];
        let all: BTreeSet<_> = salvaging.replicas(*partition).into_iter().chain(of_before.clone()).collect();
        assert_eq!(*sources, all);
    }
}

#[test]
fn a_move_that_turns_back_after_a_recovery_leaves_the_number_of_replicas_that_is_wanted() {
    let left = first_layout(3, 3).recovered(attempt(2), &lost([2, 3])).unwrap();
    let all = first_layout(5, 3).members;
    let wanted = [0, 3, 4].map(|at: usize| all[at].clone());
    let moving = left
        .next(&Change::Finish)
        .and_then(|layout| layout.next(&Change::Admit(all[3..].to_vec())))
        .and_then(|layout| layout.next(&Change::Move { members: wanted.to_vec(), replication_factor: 3 }))
        .unwrap();
    let back = moving.next(&Change::Abort).unwrap();
    assert_eq!((back.ring().replication_factor(), back.replication_factor), (1, 3));
}
