//! What is under way when a layout comes into force: it begins from nothing under that one, with the stamp and the
//! deadline that it has, and what was said of it before counts no longer.

use keystore_core::effect::{Answer, Causal, Commit, Effect, Entry, Event, Hint, Operation, SavedState};
use keystore_core::id::NodeId;
use keystore_core::layout::KeyspaceMode;
use keystore_core::message::{
    Call, Message, Mint, MintOutcome, Page, ReadOutcome, Refusal, ScanOutcome, ScanRange, Want, Write,
    WriteOutcome,
};
use keystore_core::node::{Node, Settings, Start};
use keystore_core::partition::RecordKey;
use keystore_core::quorum::{Consistency, Durability};

use crate::bench::effects::{answer_in, load_in, refusals};
use crate::bench::{ME, PEER, WALL_MS, first_layout, mint, now, put, record, request, start};
use crate::epochs::{key_in, node, write_of};
use crate::linked::{Linked, saves};
use crate::succession::keyspace;

/// What a replica says, whether it holds what is looked for or nothing yet; `None` to what is no request.
fn answer(message: &Message, holds: bool) -> Option<Message> {
    let noted = Vec::new();
    Some(match message {
        Message::Write(Write { call, .. }) => {
            let outcome = WriteOutcome::Held(Durability::Synced);
            Message::WriteAnswer { call: *call, outcome, noted }
        }
        Message::Mint(Mint { call, .. }) => {
            let outcome = MintOutcome::Minted { record: record(5), dot: None };
            Message::MintAnswer { call: *call, outcome, noted }
        }
        Message::Read { call, want, .. } => {
            let outcome = match want {
                _ if !holds => ReadOutcome::Missing,
                Want::Full => ReadOutcome::Full(record(5)),
                Want::Digest => ReadOutcome::Digest(record(5).version()),
            };
            Message::ReadAnswer { call: *call, outcome, noted }
        }
        Message::Scan { call, range, .. } => {
            let key = key_in(|partition| partition == range.partition, &first_layout(4, 3));
            let entries = if holds { vec![(key, record(5))] } else { Vec::new() };
            let outcome = ScanOutcome::Page(Page::whole(entries));
            Message::ScanAnswer { call: *call, outcome, noted }
        }
        _ => return None,
    })
}

/// Who is asked for what.
pub(crate) fn asked(effects: &[Effect]) -> Vec<(NodeId, Message)> {
    let sent = effects.iter().filter_map(|effect| match effect {
        Effect::Send { header, message, .. } => Some((header.to, message.clone())),
        _ => None,
    });
    sent.filter(|(_, message)| answer(message, true).is_some()).collect()
}

/// A write as it is whatever the number under which it is sent.
fn written(message: &Message) -> Option<Write> {
    match message {
        Message::Write(write) => Some(Write { call: Call { operation: 0, attempt: 0 }, ..write.clone() }),
        _ => None,
    }
}

/// A key that each of the other three holds, and this node does not.
pub(crate) fn key_elsewhere(keyspace: &str) -> RecordKey {
    let layout = first_layout(4, 3);
    let mut keys = (0..).map(|n| RecordKey::new(keyspace, format!("k{n}").as_bytes()).unwrap());
    keys.find(|key| !layout.is_replica(key.partition(layout.partitions), ME)).unwrap()
}

/// An operation for which a quorum is needed, and who is asked.
pub(crate) fn begin(operation: &Operation) -> (Linked, Vec<(NodeId, Message)>) {
    let others = [(PEER, 1), (node(3), 1), (node(4), 1)];
    let mut linked = Linked::new((first_layout(4, 3), true), &others);
    let effects = request((operation.clone(), Some(Consistency::Quorum)), 1, |event| linked.step(event));
    (linked, asked(&effects))
}

/// A layout of the same rings comes into force.
fn put_in_force(linked: &mut Linked) -> Vec<Effect> {
    let next = first_layout(4, 3).next(&keyspace("carts", KeyspaceMode::Lww)).unwrap();
    let effects = linked.learn((PEER, 2), &next);
    let [(save, SavedState::Layout { .. })] = saves(&effects)[..] else { panic!("{effects:?}") };
    linked.step(Event::Saved { save })
}

/// Of those that are asked under the second layout, one that had said nothing under the first is not enough; with the
/// one that had it is. Returns what follows.
fn check_both_are_needed(linked: &mut Linked, asked: &[(NodeId, Message)], told: NodeId) -> Vec<Effect> {
    let find = |is_told| asked.iter().find(|(to, _)| (*to == told) == is_told).expect("both are asked");
    let (other, message) = find(false);
    let effects = linked.frame((*other, 2), answer(message, true).unwrap());
    assert_eq!(answer_in(&effects), None, "of this epoch, there is one answer");
    let (_, message) = find(true);
    linked.frame((told, 2), answer(message, true).unwrap())
}

/// So many have answered, the first of whom holds what is looked for, when a layout comes into force.
fn check(operation: &Operation, answers: usize) -> Vec<Effect> {
    let (mut linked, mut before) = begin(operation);
    for at in 0..answers {
        let (from, message) = before[at].clone();
        let effects = linked.frame((from, 1), answer(&message, at == 0).unwrap());
        assert_eq!(answer_in(&effects), None, "{operation:?}: too few have answered");
        before.extend(asked(&effects));
    }
    let (told, _) = before[0];
    let effects = put_in_force(&mut linked);
    assert_eq!(answer_in(&effects), None, "{operation:?}");
    let again = asked(&effects);
    for write in again.iter().filter_map(|(_, message)| written(message)) {
        let is_same = before.iter().any(|(_, message)| written(message).as_ref() == Some(&write));
        assert!(is_same, "{write:?} was {before:?}");
    }
    // What was asked before is answered now, and what is asked now is answered as before.
    let late = before.iter().map(|(from, message)| (*from, 2, message));
    let early = again.iter().map(|(from, message)| (*from, 1, message));
    for (from, epoch, message) in late.chain(early) {
        let effects = linked.frame((from, epoch), answer(message, true).unwrap());
        assert_eq!(effects, [], "{message:?}");
    }
    check_both_are_needed(&mut linked, &again, told)
}

#[test]
pub(crate) fn answers_of_different_epochs_never_add_up() {
    let key = key_elsewhere("default");
    let partition = key.partition(first_layout(4, 3).partitions);
    let range = ScanRange { partition, prefix: Default::default(), after: None, limit: 10 };
    let scan = Operation::Scan { keyspace: "default".to_owned(), range };
    let get = Operation::Get { key: key.clone() };
    // With two answers, what the first one holds is being written back.
    for (operation, answers) in [
        (put(key), 1),
        (put(key_elsewhere("causal")), 1),
        (get.clone(), 1),
        (get, 2),
        (scan.clone(), 1),
        (scan, 2),
    ] {
        let effects = check(&operation, answers);
        let is_done = matches!(
            answer_in(&effects),
            Some(Answer::Written { .. } | Answer::Read(_) | Answer::Scanned { .. })
        );
        assert!(is_done, "{operation:?} after {answers}: {effects:?}");
    }
    // What a delete is to remove is read first; then it is given a dot.
    let effects = check(&Operation::Delete { key: key_elsewhere("causal"), causal: Causal::default() }, 1);
    assert!(matches!(asked(&effects)[..], [(_, Message::Mint(_))]), "{effects:?}");
}

/// It is waited for, since another one would be a second sibling.
#[test]
fn a_dot_that_was_asked_for_under_an_earlier_layout_is_no_acknowledgement() {
    let (mut linked, before) = begin(&put(key_elsewhere("causal")));
    let [(told, mint @ Message::Mint(_))] = &before[..] else { panic!("{before:?}") };
    assert_eq!(asked(&put_in_force(&mut linked)), [], "the dot is waited for");
    let effects = linked.frame((*told, 1), answer(mint, true).unwrap());
    let effects = check_both_are_needed(&mut linked, &asked(&effects), *told);
    assert!(matches!(answer_in(&effects), Some(Answer::Written { acks: 2, .. })), "{effects:?}");
}

/// Its target may have become another replica of it in between.
#[test]
pub(crate) fn what_was_handed_over_under_an_earlier_layout_is_handed_over_once_more() {
    let layout = first_layout(4, 3);
    let is_shared = |of| layout.is_replica(of, ME) && layout.is_replica(of, PEER);
    let key = key_in(is_shared, &layout);
    let hints = vec![Hint { target: PEER, key: key.clone(), since_ms: WALL_MS }];
    let membership = Some((layout, true));
    let start = Start { membership, hints, ..start(true, Settings::default()) };
    let mut linked = Linked { node: Node::new(start, now(0)) };
    let hand_over = |linked: &mut Linked, effects: &[Effect]| {
        let load = load_in(effects);
        let effects = linked.step(Event::Loaded { load, record: Ok(Some(record(5))) });
        let [(PEER, write)] = &asked(&effects)[..] else { panic!("{effects:?}") };
        answer(write, true).unwrap()
    };
    let effects = linked.greet(Linked::header(PEER, 1));
    let early = hand_over(&mut linked, &effects);
    put_in_force(&mut linked);
    assert_eq!(linked.frame((PEER, 2), early), [], "that was said of what it was before");
    let effects = linked.step(Event::Tick);
    let answered = hand_over(&mut linked, &effects);
    let effects = linked.frame((PEER, 2), answered);
    let [Effect::Commit(Commit { entry, .. })] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(*entry, Entry::HintDone { target: PEER, key });
}

/// Whoever has asked begins anew under the later layout, and what was read for it is read once more.
#[test]
pub(crate) fn what_a_replica_reads_for_others_ends_with_the_layout() {
    let layout = first_layout(4, 3);
    let mine = |keyspace: &str| {
        let mut keys = (0..).map(|n| RecordKey::new(keyspace, format!("k{n}").as_bytes()).unwrap());
        keys.find(|key| layout.is_replica(key.partition(layout.partitions), ME)).unwrap()
    };
    let call = Call { operation: 7, attempt: 0 };
    let asked = [
        Message::Read { call, key: mine("default"), want: Want::Full },
        write_of(mine("default")),
        Message::Mint(mint(call, mine("causal"))),
    ];
    for message in asked {
        let mut linked = Linked::new((layout.clone(), true), &[(PEER, 1), (node(3), 1)]);
        let load = load_in(&linked.frame((node(3), 1), message.clone()));
        let effects = put_in_force(&mut linked);
        // A dot is waited for: whoever has asked hears that none was given.
        let is_mint = matches!(message, Message::Mint(_));
        assert_eq!(refusals(&effects).contains(&Refusal::StaleEpoch), is_mint, "{effects:?}");
        assert_eq!(linked.step(Event::Loaded { load, record: Ok(None) }), [], "{message:?}");
        let again = linked.frame((node(3), 2), message.clone());
        assert!(matches!(again[..], [Effect::Load { .. }]), "{message:?}: {again:?}");
    }
}
