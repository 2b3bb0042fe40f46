//! How one node takes up the layouts that follow the first: nothing on its disk goes back, and nothing from before is left
//! where nothing may be.

use keystore_core::effect::{Commit, Effect, Entry, Event, SavedState};
use keystore_core::id::{Epoch, NodeId};
use keystore_core::layout::Layout;
use keystore_core::message::{Call, Message, Origin, Page, Refusal, Want, Write};
use keystore_core::node::{NodeState, Settings, Start};
use keystore_core::partition::{Partition, RecordKey};
use keystore_core::quorum::Durability;
use keystore_core::succession::Change;

use crate::bench::effects::{commit_in, refusals};
use crate::bench::{ME, PEER, first_layout, key, key_of, layout_of, mint, now, record, start};
use crate::linked::{Linked, saves};

pub(crate) fn node(n: u8) -> NodeId {
    NodeId([n; 16])
}

pub(crate) fn scan(effects: &[Effect]) -> Option<(keystore_core::effect::LoadId, Partition)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Scan { load, range } => Some((*load, range.partition)),
        _ => None,
    })
}

/// As of another epoch than the one in force.
fn is_refused(effects: &[Effect]) -> bool {
    refusals(effects).contains(&Refusal::StaleEpoch)
}

pub(crate) fn write_of(key: RecordKey) -> Message {
    let (call, record) = (Call { operation: 1, attempt: 1 }, record(5));
    Message::Write(Write { call, key, record, origin: Origin::Repair, durability: Durability::Synced })
}

#[test]
pub(crate) fn what_all_have_accepted_comes_too_late_once_a_later_layout_is_being_saved() {
    let first = layout_of(3);
    let second = first.next(&Change::Admit(first_layout(4, 3).members)).unwrap();
    let mut linked = Linked::new((first.clone(), false), &[(PEER, 2), (node(3), 1)]);
    let later = saves(&linked.learn((PEER, 2), &second));
    let accepted = Message::InitAccepted { digest: first.digest(), reply_wanted: false, decided: true };
    let effects = linked.frame((node(3), 1), accepted);
    assert_eq!(saves(&effects), [], "nothing takes the place of the later one");
    let [(save, SavedState::Layout { .. })] = later[..] else { panic!("{later:?}") };
    linked.step(Event::Saved { save });
    assert_eq!(linked.node.layout(), Some(&second));
    assert_eq!(linked.node.status(now(1)).state, NodeState::Serving);
}

/// This node holds everything in epoch 1, nothing of some partitions in epoch 3 and everything again in epoch 4: but it has
/// missed what was between.
pub(crate) fn again() -> (Linked, Layout) {
    let first = first_layout(4, 3);
    let without_me: Vec<_> = first.members.iter().filter(|member| member.node != ME).cloned().collect();
    let moving = first.next(&Change::Move { members: without_me, replication_factor: 3 }).unwrap();
    let left = moving.next(&Change::Finish).unwrap();
    let back = left.next(&Change::Move { members: first.members.clone(), replication_factor: 3 }).unwrap();
    (Linked::new((first, true), &[(PEER, 4), (node(3), 1)]), back)
}

pub(crate) fn key_in(partition: impl Fn(Partition) -> bool, layout: &Layout) -> RecordKey {
    let mut keys = (0..).map(|n| key_of(&format!("k{n}")));
    keys.find(|key| partition(key.partition(layout.partitions))).unwrap()
}

#[test]
pub(crate) fn what_is_cleared_stays_empty_until_the_layout_is_in_force() {
    let (mut linked, back) = again();
    linked.learn((PEER, 4), &back);
    let mut effects = linked.tick(1);
    let mut cleared = Vec::new();
    while let Some((load, partition)) = scan(&effects) {
        let key = key_in(|of| of == partition, &back);
        assert!(is_refused(&linked.frame((node(3), 1), write_of(key.clone()))), "while it is being cleared");
        if cleared.contains(&partition) {
            effects = linked.step(Event::Scanned { load, page: Ok(Page::default()) });
            assert!(scan(&effects).is_none(), "what has come in meanwhile has its turn first");
            effects.extend(linked.tick(1));
            continue;
        }
        cleared.push(partition);
        let page = Page::whole(vec![(key.clone(), record(5))]);
        effects = linked.step(Event::Scanned { load, page: Ok(page) });
        let [Effect::Commit(Commit { id, entry, durability })] = &effects[..] else { panic!("{effects:?}") };
        // It may not come up again after a crash once the layout is on disk.
        assert_eq!((entry, *durability), (&Entry::Replace { key, record: None }, Durability::Synced));
        linked.step(Event::Committed { commit: *id, outcome: Ok(Durability::Synced) });
        effects = linked.tick(1);
    }
    assert!(!cleared.is_empty());
    let [(save, SavedState::Layout { .. })] = saves(&effects)[..] else { panic!("{effects:?}") };
    let write = write_of(key_in(|of| of == cleared[0], &back));
    assert!(is_refused(&linked.frame((node(3), 1), write)), "while the layout is being saved");
    linked.step(Event::Saved { save });
    assert_eq!(linked.node.layout(), Some(&back));
}

#[test]
pub(crate) fn what_is_not_cleared_is_served_meanwhile() {
    let (mut linked, back) = again();
    let before = linked.node.layout().unwrap().clone();
    linked.learn((PEER, 4), &back);
    assert!(scan(&linked.tick(1)).is_some());
    let stays = |partition| {
        before.is_replica(partition, ME) && back.since(partition, ME).is_none_or(|since| since == Epoch(1))
    };
    let call = Call { operation: 1, attempt: 0 };
    let read = Message::Read { call, key: key_in(stays, &before), want: Want::Full };
    let effects = linked.frame((node(3), 1), read);
    assert!(matches!(effects[..], [Effect::Load { .. }]), "{effects:?}");
}

/// A write of the layout before is on its way to the disk: what may be left of it has to be known first.
#[test]
pub(crate) fn nothing_is_cleared_while_writes_of_it_are_under_way() {
    for is_loading in [false, true] {
        let (mut linked, back) = again();
        let is_cleared = |partition| back.since(partition, ME).is_some_and(|since| since > Epoch(1));
        let effects = linked.frame((node(3), 1), write_of(key_in(is_cleared, &back)));
        let [Effect::Load { load, .. }] = effects[..] else { panic!("{effects:?}") };
        if is_loading {
            linked.learn((PEER, 4), &back);
            assert!(scan(&linked.tick(1)).is_none(), "what is stored is being read for it");
        }
        let effects = linked.step(Event::Loaded { load, record: Ok(None) });
        let commit = commit_in(&effects).expect("it is written").id;
        if !is_loading {
            linked.learn((PEER, 4), &back);
        }
        assert!(scan(&linked.tick(1)).is_none(), "it is waited for");
        linked.step(Event::Committed { commit, outcome: Ok(Durability::Synced) });
        let effects = linked.tick(1);
        assert!(scan(&effects).is_some(), "{effects:?}");
    }
}

#[test]
pub(crate) fn what_is_said_under_a_later_layout_waits_for_that() {
    let (mut linked, _) = again();
    let before = linked.node.layout().unwrap().clone();
    let key = key_in(|partition| before.is_replica(partition, ME), &before);
    let read =
        || Message::Read { call: Call { operation: 1, attempt: 0 }, key: key.clone(), want: Want::Full };
    assert_eq!(linked.frame((PEER, 4), read()), []);
    assert!(is_refused(&linked.frame((PEER, 0), read())), "and under an earlier one it is refused");
    let effects = linked.frame((PEER, 1), read());
    assert!(matches!(effects[..], [Effect::Load { .. }]), "{effects:?}");
}

/// One that is far behind is sent all that others do, and has no memory for it.
#[test]
fn what_is_said_under_a_later_layout_waits_within_bounds() {
    let read = Message::Read { call: Call { operation: 1, attempt: 0 }, key: key(), want: Want::Full };
    let written = key().encoded().len() + record(5).value_len();
    let minted = Message::Mint(mint(Call { operation: 1, attempt: 0 }, key()));
    let cases = [
        ("messages", 64 << 20, read, 65_536),
        ("bytes of writes", 10 * written, write_of(key()), 10),
        ("bytes of siblings", 10 * (key().encoded().len() + 1), minted, 10),
    ];
    for (what, write_bytes_max, message, room) in cases {
        let settings = Settings { write_bytes_max, ..Settings::default() };
        let start = Start { membership: Some((layout_of(3), true)), ..start(true, settings) };
        let mut linked = Linked::started(start, &[(PEER, 2), (node(3), 2)]);
        let send = |linked: &mut Linked, from, messages| {
            let (link, header) = (Linked::link(from), Linked::header(from, 2));
            linked.step(Event::Frame { link, header, messages })
        };
        assert_eq!(send(&mut linked, PEER, vec![message.clone(); room]), [], "{what}: they wait");
        for from in [PEER, node(3)] {
            let effects = send(&mut linked, from, vec![message.clone()]);
            assert!(is_refused(&effects), "{what}: one too many of {from}: {effects:?}");
        }
        linked.step(Event::LinkClosed { link: Linked::link(PEER) });
        assert_eq!(send(&mut linked, node(3), vec![message.clone()]), [], "{what}: there is room again");
    }
}
