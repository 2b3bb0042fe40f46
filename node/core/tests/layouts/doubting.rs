//! Damage that a node meets while data moves: what it says of it, and who heals it.

use std::collections::BTreeSet;

use keystore_core::effect::{Damaged, Effect, Entry, Event, NoPage, ProposalError, SavedState};
use keystore_core::held::{Digest, Digests, Held};
use keystore_core::layout::{KeyspaceMode, Layout};
use keystore_core::message::{Call, Message, Page, ReadOutcome, ScanOutcome, ScanRange, Want};
use keystore_core::paxos::VoteError;
use keystore_core::succession::{Change, GateError, Standing};

use crate::bench::{ME, NOTHING_HELD, PEER, first_layout, key, now, record};
use crate::epochs::node;
use crate::linked::{Linked, saves};
use crate::moving::{empty, held_up, joined, joiner, take_over};
use crate::succession::keyspace;

/// A record turns out to be damaged; returns what follows.
fn damage(linked: &mut Linked, epoch: u64) -> Vec<Effect> {
    let read = Message::Read { call: Call { operation: 1, attempt: 0 }, key: key(), want: Want::Full };
    let effects = linked.frame((PEER, epoch), read);
    let [Effect::Load { load, .. }] = effects[..] else { panic!("{effects:?}") };
    linked.step(Event::Loaded { load, record: Err(Damaged) })
}

#[test]
pub(crate) fn what_is_in_doubt_is_not_said_to_be_held() {
    let (mut linked, joint) = joiner();
    let mine = key().partition(joint.partitions);
    let said = |linked: &mut Linked| {
        let mut effects = Vec::new();
        linked.node.step(now(1), Event::Tick, &mut effects);
        while let Some(effect) = effects.pop() {
            match effect {
                Effect::Scan { load, range } => {
                    let entries = if range.partition == mine { vec![(key(), record(5))] } else { Vec::new() };
                    let page = Ok(Page::whole(entries));
                    linked.node.step(now(1), Event::Scanned { load, page }, &mut effects);
                }
                Effect::Send { message: Message::Scan { range, held, .. }, .. }
                    if range.partition == mine =>
                {
                    return held;
                }
                Effect::Send { link, message: Message::Scan { call, .. }, .. } => {
                    let outcome = ScanOutcome::Page(Page::default());
                    let messages = vec![Message::ScanAnswer { call, outcome, noted: Vec::new() }];
                    let from = node(u8::try_from(link.0).unwrap());
                    let header = Linked::header(from, joint.epoch.0);
                    let frame = Event::Frame { link, header, messages };
                    linked.node.step(now(1), frame, &mut effects);
                    linked.node.step(now(1), Event::Tick, &mut effects);
                }
                _ => {}
            }
        }
        panic!("nobody was asked for it");
    };
    let all = Digests::All(Digest::of_all(&[Digest::of(&key(), &record(5))]));
    assert_eq!(said(&mut joiner().0), Some(Held { until: None, digests: all }));
    damage(&mut linked, joint.epoch.0);
    assert_eq!(said(&mut linked), Some(NOTHING_HELD));
}

#[test]
pub(crate) fn a_replica_in_doubt_is_not_whole() {
    let (mut linked, joint) = joined();
    damage(&mut linked, joint.epoch.0);
    let partition = key().partition(joint.partitions);
    let merge = GateError::Merge { partition, others: 0, waiting_for: vec![ME] };
    assert_eq!(held_up(&mut linked, &joint), Some(ProposalError::Refused(VoteError::Gate(merge))));
    let (mut linked, joint) = joined();
    assert_eq!(held_up(&mut linked, &joint), None);
}

/// A stretch of a partition cannot be read; returns what follows.
pub(crate) fn meet_what_cannot_be_read(linked: &mut Linked, layout: &Layout) -> Vec<Effect> {
    let partition = key().partition(layout.partitions);
    let range = ScanRange { partition, prefix: Default::default(), after: None, limit: 10 };
    let scan = Message::Scan { call: Call { operation: 900, attempt: 0 }, range, held: None };
    let effects = linked.frame((PEER, layout.epoch.0), scan);
    let [Effect::Scan { load, .. }] = effects[..] else { panic!("{effects:?}") };
    linked.step(Event::Scanned { load, page: Err(NoPage::Unreadable) })
}

/// The generation that follows is on disk, and everybody has noted it.
pub(crate) fn note_the_doubt(linked: &mut Linked, layout: &Layout, effects: &[Effect]) {
    for (save, _) in saves(effects) {
        linked.step(Event::Saved { save });
    }
    for from in [PEER, node(3), node(4)] {
        linked.greet(Linked::header(from, layout.epoch.0));
    }
}

/// What it had merged before, it may have lost.
#[test]
pub(crate) fn a_partition_that_comes_into_doubt_is_merged_anew() {
    let (mut linked, joint) = joined();
    let mine = key().partition(joint.partitions);
    let effects = meet_what_cannot_be_read(&mut linked, &joint);
    note_the_doubt(&mut linked, &joint, &effects);
    let mut asked = BTreeSet::new();
    let answer = |from, range: &ScanRange| {
        assert_eq!(range.partition, mine, "the others are in no doubt");
        asked.insert(from);
        empty()
    };
    take_over(&mut linked, answer).expect("it is merged");
    assert!(asked.len() >= 2, "{asked:?}");
    assert_eq!(linked.node.status(now(1)).doubted_wholly, []);
}

/// Of the old ring one other replica is left, which is too few.
#[test]
pub(crate) fn a_key_in_doubt_is_healed_by_the_new_ring_once_that_has_taken_over_what_the_old_one_held() {
    let joint = replacing_the_third(&three_and_one());
    let mut linked = Linked::new((joint.clone(), true), &[PEER, node(4)].map(|peer| (peer, joint.epoch.0)));
    assert_eq!(asked(raise(&mut linked, &joint)), None, "who joins may have nothing yet");
    assert_eq!(asked(linked.tick(60_000)), None, "nor later");
    say_whole(&mut linked, &joint);
    let call = asked(linked.tick(120_000)).expect("they have all that the old ring had");
    let mut effects = Vec::new();
    for (from, outcome) in [(PEER, ReadOutcome::Missing), (node(4), ReadOutcome::Full(record(5)))] {
        let answer = Message::ReadAnswer { call, outcome, noted: Vec::new() };
        effects = linked.frame((from, joint.epoch.0), answer);
    }
    let [Effect::Commit(commit)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(commit.entry, Entry::Replace { key: key(), record: Some(record(5)) });
}

/// Who joins has dropped since whatever it had taken over then.
#[test]
fn what_the_new_ring_said_before_a_move_turned_back_heals_nothing_when_it_begins_anew() {
    let joint = replacing_the_third(&three_and_one());
    let back = joint.next(&Change::Abort).unwrap();
    let again = replacing_the_third(&back);
    let mut linked = Linked::new((joint.clone(), true), &[PEER, node(4)].map(|peer| (peer, joint.epoch.0)));
    say_whole(&mut linked, &joint);
    for layout in [&back, &again] {
        for (save, _) in saves(&linked.learn((PEER, layout.epoch.0), layout)) {
            linked.step(Event::Saved { save });
        }
        assert_eq!(linked.node.layout(), Some(layout));
    }
    assert_eq!(asked(raise(&mut linked, &again)), None, "it was said of an earlier phase");
    assert_eq!(asked(linked.tick(60_000)), None, "and nothing since");
    say_whole(&mut linked, &again);
    assert!(asked(linked.tick(120_000)).is_some());
}

/// Three hold everything, and a fourth is there.
pub(crate) fn three_and_one() -> Layout {
    first_layout(3, 3).next(&Change::Admit(first_layout(4, 3).members)).unwrap()
}

/// What the third holds moves to the fourth.
pub(crate) fn replacing_the_third(before: &Layout) -> Layout {
    let members = before.members.iter().filter(|member| member.node != node(3)).cloned().collect();
    before.next(&Change::Move { members, replication_factor: 3 }).unwrap()
}

/// A key comes into doubt, and all who can be reached note that; returns what follows.
pub(crate) fn raise(linked: &mut Linked, layout: &Layout) -> Vec<Effect> {
    for (save, _) in saves(&damage(linked, layout.epoch.0)) {
        linked.step(Event::Saved { save });
    }
    let peers = [PEER, node(4)].into_iter();
    peers.flat_map(|peer| linked.greet(Linked::header(peer, layout.epoch.0))).collect()
}

/// Those of the new ring who can be reached say that they have all that the old one held.
pub(crate) fn say_whole(linked: &mut Linked, layout: &Layout) {
    let Layout { epoch, phase_since: phase, partitions, .. } = *layout;
    for from in [PEER, node(4)] {
        let whole = partitions.all().collect();
        let standing = Standing { fence: epoch, phase, whole, ..Standing::default() };
        linked.frame((from, epoch.0), Message::Standing(standing));
    }
}

/// How others are asked for what they hold of a key.
pub(crate) fn asked(effects: Vec<Effect>) -> Option<Call> {
    effects.into_iter().find_map(|effect| match effect {
        Effect::Send { message: Message::Read { call, .. }, .. } => Some(call),
        _ => None,
    })
}

/// Over links of before, they would say what a write that is acknowledged with this node may come behind.
#[test]
pub(crate) fn nobody_is_asked_for_what_is_in_doubt_before_that_is_noted_whatever_layout_comes() {
    let (mut linked, joint) = joined();
    let mine = key().partition(joint.partitions);
    let raised = meet_what_cannot_be_read(&mut linked, &joint);
    let next = joint.next(&keyspace("carts", KeyspaceMode::Lww)).unwrap();
    let effects = linked.learn((PEER, next.epoch.0), &next);
    let [(save, SavedState::Layout { .. })] = saves(&effects)[..] else { panic!("{effects:?}") };
    linked.step(Event::Saved { save });
    let is_read = |effects: &[Effect]| {
        effects.iter().any(|effect| matches!(effect, Effect::Scan { range, .. } if range.partition == mine))
    };
    assert!((1..100).all(|n| !is_read(&linked.tick(n * 100))), "it is not on disk yet");
    note_the_doubt(&mut linked, &next, &raised);
    assert!((101..200).any(|n| is_read(&linked.tick(n * 100))), "and then it is merged");
}
