//! What a node still holds of partitions that it is no replica of any more: when that goes, and that it stays gone.

use keystore_core::effect::{Commit, Effect, Entry, Event};
use keystore_core::layout::Layout;
use keystore_core::message::{Message, Page};
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
    let acknowledge = |linked: &mut Linked, from| {
        let standing = Standing { fence: epoch, phase: epoch, ..Standing::default() };
        linked.frame((from, epoch.0), Message::Standing(standing));
    };
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
