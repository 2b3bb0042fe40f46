//! What a node still holds of partitions that it is no replica of any more: when that goes, and that it stays gone.

use std::collections::BTreeSet;

use keystore_core::effect::{Answer, Commit, Effect, Entry, Event, LinkId, ProposalError};
use keystore_core::id::{Epoch, NodeId};
use keystore_core::layout::{KeyspaceMode, Layout};
use keystore_core::message::{Message, Page};
use keystore_core::partition::Partition;
use keystore_core::quorum::Durability;
use keystore_core::succession::{Change, Standing};

use crate::bench::{ME, PEER, first_layout, key, record};
use crate::epochs::{node, scan};
use crate::linked::{Linked, saves};
use crate::succession::keyspace;

/// All that this node held has moved to the three others.
fn left() -> Layout {
    let wide = first_layout(4, 3);
    let others = wide.members.iter().filter(|member| member.node != ME).cloned().collect();
    let moving = wide.next(&Change::Move { members: others, replication_factor: 3 });
    moving.and_then(|moving| moving.next(&Change::Finish)).unwrap()
}

#[test]
fn what_has_left_is_kept_until_each_member_has_acknowledged_that_and_goes_for_good_then() {
    let layout = left();
    let epoch = layout.epoch;
    let mut linked = Linked::new((layout, true), &[(PEER, epoch.0), (node(3), epoch.0)]);
    let acknowledge = |linked: &mut Linked, from| doubt(linked, from, &[]);
    acknowledge(&mut linked, PEER);
    acknowledge(&mut linked, node(3));
    for at_ms in [2_000, 4_000, 6_000] {
        assert!(scan(&linked.tick(at_ms)).is_none(), "one is away, and may still ask");
    }
    linked.greet(Linked::header(node(4), epoch.0));
    acknowledge(&mut linked, node(4));
    let (load, _) = scan(&linked.tick(8_000)).expect("all have acknowledged");
    let page = Page::whole(vec![(key(), record(5))]);
    let effects = linked.step(Event::Scanned { load, page: Ok(page) });
    let [Effect::Commit(Commit { entry: Entry::Replace { record: None, .. }, durability, .. })] =
        &effects[..]
    else {
        panic!("{effects:?}")
    };
    assert_eq!(
        *durability,
        Durability::Synced,
        "it must not come up again under a layout that gives it data"
    );
}

/// Over which links it was said that something still goes, or does not.
fn told(effects: &[Effect], clears: bool) -> Vec<LinkId> {
    let told = effects.iter().filter_map(|effect| match effect {
        Effect::Send { link, message: Message::Standing(standing), .. } => Some((*link, standing.clears)),
        _ => None,
    });
    told.filter(|(_, said)| *said == clears).map(|(link, _)| link).collect()
}

/// A peer says that it has acknowledged the layout, and what it is in doubt of.
fn doubt(linked: &mut Linked, from: NodeId, doubted: &[u16]) {
    let epoch = linked.node.layout().unwrap().epoch;
    let doubted = doubted.iter().map(|partition| Partition(*partition)).collect();
    let standing = Standing { fence: epoch, phase: epoch, doubted, ..Standing::default() };
    linked.frame((from, epoch.0), Message::Standing(standing));
}

/// What it answers to whoever sends it the layout that it has.
fn says_that_it_drops(linked: &mut Linked) -> bool {
    let layout = linked.node.layout().unwrap().clone();
    let effects = linked.learn((PEER, layout.epoch.0), &layout);
    let [.., Effect::Send { message: Message::Standing(standing), .. }] = &effects[..] else {
        panic!("{effects:?}")
    };
    standing.clears
}

/// Two of three peers have acknowledged the layout, and the third one is away.
fn without_the_last(layout: Layout) -> Linked {
    let peers = [PEER, node(3)];
    let epoch = layout.epoch.0;
    let mut linked = Linked::new((layout, true), &peers.map(|peer| (peer, epoch)));
    peers.into_iter().for_each(|peer| doubt(&mut linked, peer, &[]));
    linked
}

/// Longer than a pod takes to restart.
const LONG_MS: u64 = 30_001;

/// Of which partitions there is nothing any more by then.
fn drop_all(linked: &mut Linked, at_ms: u64) -> BTreeSet<Partition> {
    let mut dropped = BTreeSet::new();
    while let Some((load, partition)) = scan(&linked.tick(at_ms)) {
        linked.step(Event::Scanned { load, page: Ok(Page::default()) });
        dropped.insert(partition);
    }
    dropped
}

/// What is left may be the last copy of it that can be read.
#[test]
pub(crate) fn what_has_left_is_kept_while_too_few_replicas_are_in_no_doubt() {
    let layout = left();
    let all_but = |kept: u16| layout.partitions.all().filter(|of| of.0 != kept).collect::<BTreeSet<_>>();
    let peers = [PEER, node(3), node(4)].map(|peer| (peer, layout.epoch.0));
    let mut linked = Linked::new((layout.clone(), true), &peers);
    doubt(&mut linked, PEER, &[3, 5]);
    doubt(&mut linked, node(3), &[5]);
    doubt(&mut linked, node(4), &[]);
    assert!(says_that_it_drops(&mut linked));
    assert_eq!(drop_all(&mut linked, 2_000), all_but(5), "one replica of that is left");
    assert!(!says_that_it_drops(&mut linked), "nobody knows when that heals");
    assert!(linked.node.next_wakeup_ms().is_some_and(|at_ms| at_ms > 2_000), "it looks again");
    doubt(&mut linked, node(3), &[]);
    assert_eq!(drop_all(&mut linked, 6_000), [Partition(5)].into(), "two of three are a quorum");

    // Who is lost is not waited for, and no copy that can be trusted.
    let lost = left().next(&Change::Lose([node(4)].into())).unwrap();
    let peers = [PEER, node(3)].map(|peer| (peer, lost.epoch.0));
    let mut linked = Linked::new((lost, true), &peers);
    doubt(&mut linked, PEER, &[3]);
    doubt(&mut linked, node(3), &[]);
    assert_eq!(drop_all(&mut linked, 2_000), all_but(3));
}

/// Nobody else is in doubt of anything, and all the same one copy beside it is too few.
#[test]
fn what_has_left_is_kept_while_too_many_replicas_are_lost() {
    let all = left().partitions.all().collect();
    for (lost, gone) in [(vec![node(4)], all), (vec![node(3), node(4)], BTreeSet::new())] {
        let layout = left().next(&Change::Lose(lost.iter().copied().collect())).unwrap();
        let epoch = layout.epoch.0;
        let peers = [PEER, node(3)].into_iter().filter(|peer| !lost.contains(peer));
        let peers: Vec<_> = peers.map(|peer| (peer, epoch)).collect();
        let mut linked = Linked::new((layout, true), &peers);
        for (peer, _) in peers {
            doubt(&mut linked, peer, &[]);
        }
        assert_eq!(drop_all(&mut linked, 2_000), gone, "{} of three are lost", lost.len());
    }
}

/// It may have been the only one to hear that something goes, and nobody would tell it that it has gone.
#[test]
pub(crate) fn whoever_hears_of_it_as_its_link_comes_up_hears_that_it_is_over() {
    let layout = left();
    let epoch = layout.epoch;
    let mut linked = without_the_last(layout);
    let acknowledge = |linked: &mut Linked, from| doubt(linked, from, &[]);
    linked.tick(1);
    linked.tick(LONG_MS);
    let all = [PEER, node(3), node(4)].map(Linked::link);
    assert_eq!(
        told(&linked.greet(Linked::header(node(4), epoch.0)), true),
        all,
        "nobody is waited for any more"
    );
    acknowledge(&mut linked, node(4));
    for _ in 0..16 {
        let (load, _) = scan(&linked.tick(2)).expect("there is more");
        linked.step(Event::Scanned { load, page: Ok(Page::default()) });
    }
    let at_ms = linked.node.next_wakeup_ms().expect("it has something to tell");
    assert_eq!(told(&linked.tick(at_ms), false), all);
}

/// It comes back soon, and what would be dropped at once before data moves can go before.
#[test]
fn data_that_is_to_move_waits_for_whoever_is_away_as_long_as_a_restart_takes() {
    let mut linked = without_the_last(left());
    let propose = |linked: &mut Linked| {
        let layout = linked.node.layout().unwrap().clone();
        let members = layout.members.iter().take(3).cloned().collect();
        let next = layout.next(&Change::Move { members, replication_factor: 3 }).unwrap();
        let effects = linked.propose(layout.epoch, &next);
        effects.iter().find_map(|effect| match effect {
            Effect::Answer { answer: Answer::ProposalFailed(error), .. } => Some(error.clone()),
            _ => None,
        })
    };
    for at_ms in [1, 10_000, LONG_MS - 1] {
        linked.tick(at_ms);
        assert!(says_that_it_drops(&mut linked), "{at_ms}");
        assert_eq!(propose(&mut linked), Some(ProposalError::StillDrops { node: ME }), "itself as well");
    }
    linked.tick(LONG_MS + 1_000);
    assert!(!says_that_it_drops(&mut linked), "it blocks no move for ever");
    assert_eq!(propose(&mut linked), None);
}

#[test]
fn nobody_waits_for_what_does_not_go_for_want_of_space() {
    let mut linked = without_the_last(left());
    assert!(says_that_it_drops(&mut linked));
    linked.step(Event::DiskFull(true));
    assert!(!says_that_it_drops(&mut linked));
}

/// Who votes, or which keyspaces there are, has nothing to do with what has left.
#[test]
fn whoever_has_acknowledged_these_rings_is_not_waited_for_under_a_later_layout_of_them() {
    let layout = left();
    let later = layout.next(&keyspace("carts", KeyspaceMode::Lww)).unwrap();
    let mut linked = without_the_last(later.clone());
    assert!(scan(&linked.tick(2_000)).is_none());
    let standing =
        |fence| Message::Standing(Standing { fence, phase: layout.phase_since, ..Standing::default() });
    linked.greet(Linked::header(node(4), later.epoch.0));
    let before = Epoch(layout.phase_since.0 - 1);
    linked.frame((node(4), later.epoch.0), standing(before));
    assert!(scan(&linked.tick(4_000)).is_none(), "under the rings before it may still ask");
    linked.frame((node(4), later.epoch.0), standing(layout.phase_since));
    assert!(scan(&linked.tick(6_000)).is_some());
}

#[test]
fn what_has_left_goes_under_a_layout_that_is_taken_up_as_well_as_after_a_start() {
    let wide = first_layout(4, 3);
    let others = wide.members.iter().filter(|member| member.node != ME).cloned().collect();
    let moving = wide.next(&Change::Move { members: others, replication_factor: 3 }).unwrap();
    let left = moving.next(&Change::Finish).unwrap();
    let peers = [PEER, node(3), node(4)];
    let mut linked = Linked::new((moving, true), &peers.map(|peer| (peer, left.epoch.0)));
    for (save, _) in saves(&linked.learn((PEER, left.epoch.0), &left)) {
        linked.step(Event::Saved { save });
    }
    assert_eq!(linked.node.layout(), Some(&left));
    peers.into_iter().for_each(|peer| doubt(&mut linked, peer, &[]));
    assert!(scan(&linked.tick(2_000)).is_some());
}
