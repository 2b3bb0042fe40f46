//! What a node still holds of partitions that it is no replica of any more: when that goes, and that it stays gone.

use std::collections::BTreeSet;

use keystore_core::effect::{Commit, Effect, Entry, Event, LinkId};
use keystore_core::id::NodeId;
use keystore_core::layout::Layout;
use keystore_core::message::{Message, Page};
use keystore_core::partition::Partition;
use keystore_core::quorum::Durability;
use keystore_core::succession::{Change, Standing};

use crate::bench::{ME, PEER, first_layout, key, now, record};
use crate::epochs::{node, scan};
use crate::linked::Linked;

/// All that this node held has moved to the three others.
fn left() -> Layout {
    let wide = first_layout(4, 3);
    let others = wide.members.iter().filter(|member| member.node != ME).cloned().collect();
    let moving = wide.next(&Change::Move { members: others, replication_factor: 3 });
    moving.and_then(|moving| moving.next(&Change::Finish)).unwrap()
}

fn tick(linked: &mut Linked, at_ms: u64) -> Vec<Effect> {
    let mut effects = Vec::new();
    linked.node.step(now(at_ms), Event::Tick, &mut effects);
    effects
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
        assert!(scan(&tick(&mut linked, at_ms)).is_none(), "one is away, and may still ask");
    }
    linked.greet(Linked::header(node(4), epoch.0));
    acknowledge(&mut linked, node(4));
    let (load, _) = scan(&tick(&mut linked, 8_000)).expect("all have acknowledged");
    let page = Page { entries: vec![(key(), record(5))], is_cut: false };
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

/// Of which partitions there is nothing any more by then.
fn drop_all(linked: &mut Linked, at_ms: u64) -> BTreeSet<Partition> {
    let mut dropped = BTreeSet::new();
    while let Some((load, partition)) = scan(&tick(linked, at_ms)) {
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
    assert_eq!(drop_all(&mut linked, 2_000), all_but(5), "one replica of that is left");
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

/// It may have been the only one to hear that something goes, and nobody would tell it that it has gone.
#[test]
pub(crate) fn whoever_hears_of_it_as_its_link_comes_up_hears_that_it_is_over() {
    let layout = left();
    let epoch = layout.epoch;
    let mut linked = Linked::new((layout, true), &[PEER, node(3)].map(|peer| (peer, epoch.0)));
    let acknowledge = |linked: &mut Linked, from| doubt(linked, from, &[]);
    acknowledge(&mut linked, PEER);
    acknowledge(&mut linked, node(3));
    tick(&mut linked, 1);
    let all = [PEER, node(3), node(4)].map(Linked::link);
    assert_eq!(
        told(&linked.greet(Linked::header(node(4), epoch.0)), true),
        all,
        "nobody is waited for any more"
    );
    acknowledge(&mut linked, node(4));
    for _ in 0..16 {
        let (load, _) = scan(&tick(&mut linked, 2)).expect("there is more");
        linked.step(Event::Scanned { load, page: Ok(Page::default()) });
    }
    let at_ms = linked.node.next_wakeup_ms().expect("it has something to tell");
    assert_eq!(told(&tick(&mut linked, at_ms), false), all);
}
