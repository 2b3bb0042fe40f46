//! A node as a replica, event by event: what it refuses, and when it answers.

#![allow(clippy::unwrap_used, reason = "a broken harness may panic")]

mod bench;

use bench::effects::{answer_in, answers, commit_in, commits, load_in};
use bench::{
    Bench, LINK, ME, PEER, WALL_MS, header, hello, key, key_of, layout, many, now, put, record, start,
};
use bytes::Bytes;
use keystore_core::causal::{Change, OperationId};
use keystore_core::effect::{
    Alarm, Answer, CommitId, Damaged, Effect, Entry, Event, Failure, FailureReason, LinkId, LoadId,
    NotCommitted, Operation, RequestId, SaveId, SavedState,
};
use keystore_core::id::{ClusterId, Epoch, Generation, NodeId};
use keystore_core::layout::{Layout, Member};
use keystore_core::message::{
    Call, Message, Mint, MintOutcome, Origin, ReadOutcome, Refusal, Want, Write, WriteOutcome,
};
use keystore_core::node::{Node, Settings, Start, WARM_UP_MS_MAX};
use keystore_core::partition::RecordKey;
use keystore_core::quorum::Durability;
use keystore_core::record::{Body, Record};

/// What the node has noted of both replicas of the key.
fn noted() -> Vec<Generation> {
    let replicas = layout().replicas(key().partition(layout().partitions));
    replicas.into_iter().map(|node| Generation(if node == ME { 1 } else { 7 })).collect()
}

#[test]
fn a_write_is_answered_only_after_its_commit() {
    let mut bench = Bench::new();
    let (call, effects) = bench.client_write(5);
    assert_eq!(effects, [Effect::Load { load: LoadId(0), key: key() }]);
    let effects = bench.loaded(0, Ok(None));
    assert_eq!((commits(&effects), answers(&effects)), (1, vec![]));
    let effects = bench.committed(0);
    assert_eq!(answers(&effects), [(call, WriteOutcome::Held(Durability::Synced))]);
}

#[test]
fn a_superseded_write_is_answered_only_after_what_supersedes_it_is_durable() {
    let mut bench = Bench::new();
    let (higher, _) = bench.client_write(9);
    bench.loaded(0, Ok(None));
    let (lower, effects) = bench.client_write(5);
    assert_eq!(effects, [], "the higher record is not durable yet");
    let effects = bench.committed(0);
    let superseded = WriteOutcome::Superseded(record(9).stamp);
    assert_eq!(answers(&effects), [(higher, WriteOutcome::Held(Durability::Synced)), (lower, superseded)]);
}

#[test]
fn writes_that_wait_for_one_load_are_merged_in_their_order() {
    let mut bench = Bench::new();
    bench.client_write(5);
    bench.client_write(9);
    bench.client_write(7);
    let effects = bench.loaded(0, Ok(Some(record(1))));
    assert_eq!(commits(&effects), 2, "5 and 9 replace what is stored, 7 does not");
}

#[test]
fn a_write_below_the_stored_record_is_answered_at_once() {
    let mut bench = Bench::new();
    let (call, _) = bench.client_write(5);
    let effects = bench.loaded(0, Ok(Some(record(6))));
    assert_eq!(answers(&effects), [(call, WriteOutcome::Superseded(record(6).stamp))]);
    assert_eq!(commits(&effects), 0);
}

#[test]
fn the_same_record_again_is_committed_again() {
    let mut bench = Bench::new();
    bench.write(6, Origin::Repair);
    let effects = bench.loaded(0, Ok(Some(record(6))));
    assert_eq!(commits(&effects), 1, "it may have been written without a sync before");
}

#[test]
fn a_client_write_is_refused_past_its_deadline_far_ahead_or_without_space() {
    let late = Origin::Client { deadline_wall_ms: WALL_MS - 501 };
    let in_time = Origin::Client { deadline_wall_ms: WALL_MS + 1 };
    let cases = [
        (5, late, false, Refusal::DeadlinePassed),
        (501, in_time, false, Refusal::ClockSkew),
        (5, in_time, true, Refusal::DiskFull),
    ];
    for (millis, origin, disk_full, refusal) in cases {
        let mut bench = Bench::new();
        bench.step(Event::DiskFull(disk_full));
        let (call, effects) = bench.write(millis, origin);
        assert_eq!(answers(&effects), [(call, WriteOutcome::Refused(refusal))]);
        let (_, effects) = bench.write(millis, Origin::Repair);
        assert!(matches!(effects[..], [Effect::Load { .. }]), "a repair is not refused: {effects:?}");
    }
}

#[test]
fn writes_that_wait_for_one_record_are_as_many_as_may_be_under_way() {
    let mut bench = Bench::with(Settings { writes_max: 2, ..Settings::default() });
    for millis in [5, 6] {
        let (_, effects) = bench.client_write(millis);
        assert_eq!(answers(&effects), [], "it waits for the record");
    }
    let (call, effects) = bench.client_write(7);
    assert_eq!(answers(&effects), [(call, WriteOutcome::Refused(Refusal::Overloaded))]);
}

#[test]
fn more_writes_than_the_limit_are_refused() {
    let mut bench = Bench::with(Settings { writes_max: 1, ..Settings::default() });
    bench.client_write(5);
    let (call, effects) = bench.client_write(6);
    assert_eq!(answers(&effects), [(call, WriteOutcome::Refused(Refusal::Overloaded))]);
}

#[test]
fn a_coordinator_takes_its_share_of_the_writes_that_replicas_take() {
    // Two replicas, and two coordinators that may have as much to write.
    let mut bench = Bench::with(Settings { writes_max: 4, ..Settings::default() });
    for _ in 0..2 {
        let effects = bench.request(put(key()), None);
        assert_eq!(answer_in(&effects), None, "it waits for its replicas");
        assert!(effects.iter().any(|effect| matches!(effect, Effect::Send { .. })), "{effects:?}");
    }
    let effects = bench.request(put(key()), None);
    let overloaded = Failure { reason: FailureReason::Overloaded, acks: 0, needed: 0 };
    assert_eq!(answer_in(&effects), Some(&Answer::Failed(overloaded)));
    assert_eq!(effects.len(), 1, "nobody else hears of it: {effects:?}");
    let effects = bench.request(Operation::Get { key: key() }, None);
    assert_eq!(answer_in(&effects), None, "reads have no part in it");
    // Of bytes as well: a key of so many, and the value.
    let bytes = key().encoded().len() + 1;
    let mut bench = Bench::with(Settings { write_bytes_max: 2 * 2 * bytes, ..Settings::default() });
    let answers: Vec<_> = (0..3).map(|_| answer_in(&bench.request(put(key()), None)).cloned()).collect();
    assert_eq!(answers, [None, None, Some(Answer::Failed(overloaded))]);
}

#[test]
fn a_damaged_record_is_neither_read_nor_written_over_and_raises_an_alarm() {
    let mut bench = Bench::new();
    let alarm = Effect::Alarm(Alarm::DamagedRecord { key: key() });
    let (call, _) = bench.client_write(5);
    let effects = bench.loaded(0, Err(Damaged));
    assert_eq!(answers(&effects), [(call, WriteOutcome::Refused(Refusal::InDoubt))]);
    assert!(effects.contains(&alarm));
    let effects = bench.frame(Message::Read { call, key: key(), want: Want::Full });
    let outcome = ReadOutcome::Refused(Refusal::InDoubt);
    let is_refusal = |effect: &Effect| matches!(effect, Effect::Send { message, .. } if *message == Message::ReadAnswer { call, outcome: outcome.clone(), noted: noted() });
    assert!(effects.iter().any(is_refusal));
}

#[test]
fn a_full_log_refuses_the_write_and_all_that_was_merged_under_it() {
    let mut bench = Bench::new();
    let (higher, _) = bench.client_write(9);
    bench.loaded(0, Ok(None));
    let (lower, _) = bench.client_write(5);
    let effects = bench.step(Event::Committed { commit: CommitId(0), outcome: Err(NotCommitted::Refused) });
    let refused = WriteOutcome::Refused(Refusal::DiskFull);
    assert_eq!(answers(&effects), [(higher, refused), (lower, refused)]);
    let (_, effects) = bench.client_write(6);
    assert!(matches!(effects[..], [Effect::Load { .. }]), "nothing of the refused write is remembered");
}

#[test]
fn a_write_among_siblings_that_the_log_refuses_stands_or_falls_with_the_next_commit_of_its_key() {
    let mut bench = Bench::new();
    let key = RecordKey::new("causal", b"k").unwrap();
    for n in 1..=3 {
        let change = Change {
            stamp: record(n).stamp,
            operation: OperationId([n as u8; 16]),
            context: Default::default(),
            value: Some(Bytes::from("x")),
            expires_ms: None,
        };
        let call = Call { operation: n, attempt: 2 };
        let mint = Mint { call, key: key.clone(), change, deadline_wall_ms: WALL_MS + 60_000 };
        bench.frame(Message::Mint(mint));
    }
    assert_eq!(commits(&bench.loaded(0, Ok(None))), 3);
    let mut ended = |commit, outcome| {
        let effects = bench.step(Event::Committed { commit: CommitId(commit), outcome });
        let answer = |effect: &Effect| match effect {
            Effect::Send { message: Message::MintAnswer { call, outcome, .. }, .. } => {
                Some((call.operation, matches!(outcome, MintOutcome::Minted { .. })))
            }
            _ => None,
        };
        effects.iter().filter_map(answer).collect::<Vec<_>>()
    };
    assert_eq!(ended(0, Err(NotCommitted::Refused)), []);
    assert_eq!(ended(1, Ok(Durability::Synced)), [(2, true), (1, true)], "the second commit holds both");
    assert_eq!(ended(2, Err(NotCommitted::Refused)), [(3, false)]);
}

#[test]
fn a_value_that_the_log_refuses_is_not_called_failed_while_it_is_committed_once_more() {
    let write = |n, millis, origin, durability| {
        let call = Call { operation: n, attempt: 1 };
        Message::Write(Write { call, key: key(), record: record(millis), origin, durability })
    };
    let client = Origin::Client { deadline_wall_ms: WALL_MS + 60_000 };
    for (outcome, answer) in [
        (Ok(Durability::Synced), WriteOutcome::Held(Durability::Synced)),
        (Err(NotCommitted::Refused), WriteOutcome::Refused(Refusal::DiskFull)),
    ] {
        let mut bench = Bench::new();
        bench.frame(write(1, 9, client, Durability::Periodic));
        bench.loaded(0, Ok(None));
        // What supersedes an older record has to be as durable as that one was to be.
        let effects = bench.frame(write(2, 5, Origin::Repair, Durability::Synced));
        assert_eq!(commits(&effects), 1);
        // Another value stands for itself.
        let effects = bench.frame(write(3, 12, client, Durability::Periodic));
        assert_eq!(commits(&effects), 1);
        let mut ended =
            |commit, outcome| answers(&bench.step(Event::Committed { commit: CommitId(commit), outcome }));
        assert_eq!(ended(0, Err(NotCommitted::Refused)), []);
        let told = ended(1, outcome);
        assert_eq!(told.last(), Some(&(Call { operation: 1, attempt: 1 }, answer)));
        assert_eq!(told.len(), 2);
        assert_eq!(ended(2, Err(NotCommitted::Refused)).len(), 1);
    }
}

#[test]
fn two_contents_under_one_stamp_raise_an_alarm() {
    let mut bench = Bench::new();
    bench.client_write(5);
    let other = Record { body: Body::Tombstone, ..record(5) };
    let effects = bench.loaded(0, Ok(Some(other)));
    assert!(effects.contains(&Effect::Alarm(Alarm::EqualStamps { key: key(), stamp: record(5).stamp })));
}

#[test]
fn a_small_value_comes_whole_and_a_large_one_as_its_digest() {
    let call = Call { operation: 1, attempt: 0 };
    let large = Record { body: Body::Value(vec![1; 2_000].into()), ..record(5) };
    let cases = [
        (None, ReadOutcome::Missing),
        (Some(record(5)), ReadOutcome::Full(record(5))),
        (Some(large.clone()), ReadOutcome::Digest(large.version())),
    ];
    for (stored, outcome) in cases {
        let mut bench = Bench::new();
        bench.frame(Message::Read { call, key: key(), want: Want::Digest });
        let effects = bench.loaded(0, Ok(stored));
        let expected = Message::ReadAnswer { call, outcome, noted: noted() };
        assert!(matches!(&effects[..], [Effect::Send { message, .. }] if *message == expected));
    }
}

#[test]
fn a_member_that_does_not_know_of_all_refuses_requests() {
    let mut node = Node::new(start(false, Settings::default()), now(0));
    let mut effects = Vec::new();
    node.step(now(0), Event::LinkOffered { link: LINK, hello: hello(7) }, &mut effects);
    node.step(now(0), Event::Saved { save: SaveId(0) }, &mut effects);
    effects.clear();
    let call = Call { operation: 1, attempt: 1 };
    let origin = Origin::Repair;
    let write = Write { call, key: key(), record: record(5), origin, durability: Durability::Synced };
    let event = Event::Frame { link: LINK, header: header(7), messages: vec![Message::Write(write)] };
    node.step(now(0), event, &mut effects);
    assert_eq!(answers(&effects), [(call, WriteOutcome::Refused(Refusal::NotInitialized))]);
}

#[test]
fn serving_starts_when_all_members_have_accepted_and_that_is_durable() {
    let mut node = Node::new(start(false, Settings::default()), now(0));
    let mut effects = Vec::new();
    node.step(now(0), Event::LinkOffered { link: LINK, hello: hello(7) }, &mut effects);
    node.step(now(0), Event::Saved { save: SaveId(0) }, &mut effects);
    let digest = layout().digest();
    let messages = vec![Message::InitAccepted { digest, reply_wanted: true, decided: false }];
    effects.clear();
    node.step(now(0), Event::Frame { link: LINK, header: header(7), messages }, &mut effects);
    assert!(!node.status(now(0)).ready, "not before it is saved");
    let reply = Message::InitAccepted { digest, reply_wanted: false, decided: false };
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Send { message, .. } if *message == reply)));
    node.step(now(0), Event::Saved { save: SaveId(1) }, &mut effects);
    assert!(node.status(now(0)).ready);
}

#[test]
fn one_that_knows_of_all_convinces_one_that_does_not() {
    let mut node = Node::new(start(false, Settings::default()), now(0));
    let mut effects = Vec::new();
    node.step(now(0), Event::LinkOffered { link: LINK, hello: hello(7) }, &mut effects);
    node.step(now(0), Event::Saved { save: SaveId(0) }, &mut effects);
    effects.clear();
    let told = Message::InitAccepted { digest: layout().digest(), reply_wanted: false, decided: true };
    node.step(now(0), Event::Frame { link: LINK, header: header(7), messages: vec![told] }, &mut effects);
    assert!(matches!(effects[..], [Effect::Save { .. }]), "{effects:?}");
}

#[test]
fn a_link_that_closes_while_its_hello_is_saved_never_comes_into_use() {
    let mut node = Node::new(start(true, Settings::default()), now(0));
    let mut effects = Vec::new();
    node.step(now(0), Event::LinkOffered { link: LINK, hello: hello(7) }, &mut effects);
    node.step(now(0), Event::LinkClosed { link: LINK }, &mut effects);
    effects.clear();
    node.step(now(0), Event::Saved { save: SaveId(0) }, &mut effects);
    assert_eq!(effects, []);
    assert!(node.status(now(0)).connected.is_empty());
    node.step(now(0), Event::LinkOffered { link: LinkId(2), hello: hello(7) }, &mut effects);
    assert!(matches!(effects[..], [Effect::AcceptLink { .. }, ..]), "its identity was saved all the same");
}

#[test]
fn an_answer_to_a_call_of_the_process_before_does_not_count() {
    let mut bench = Bench::new();
    bench.request(put(key()), None);
    bench.loaded(0, Ok(None));
    bench.committed(0);
    let outcome = WriteOutcome::Held(Durability::Synced);
    for operation in 0..10 {
        let stale = Message::WriteAnswer { call: Call { operation, attempt: 1 }, outcome, noted: Vec::new() };
        assert_eq!(bench.frame(stale), [], "numbers of another generation mean nothing to this one");
    }
}

#[test]
fn a_write_above_the_stored_record_is_not_too_far_ahead() {
    let hour_ms = 3_600_000;
    let mut bench = Bench::new();
    bench.client_write(5);
    bench.loaded(0, Ok(Some(record(hour_ms))));
    let (_, effects) = bench.client_write(hour_ms + 1);
    assert!(matches!(effects[..], [Effect::Load { .. }]), "{effects:?}");
}

#[test]
fn what_follows_on_a_record_that_was_accepted_is_not_too_far_ahead_under_any_key() {
    let hour_ms = 3_600_000;
    let mut bench = Bench::new();
    bench.write(hour_ms, Origin::Repair);
    let other = RecordKey::new("default", b"other").unwrap();
    let write = Write {
        call: Call { operation: 2, attempt: 1 },
        key: other.clone(),
        record: record(hour_ms + 1),
        origin: Origin::Client { deadline_wall_ms: WALL_MS + 1_000 },
        durability: Durability::Synced,
    };
    assert_eq!(bench.frame(Message::Write(write)), [Effect::Load { load: LoadId(1), key: other }]);
}

#[test]
fn the_same_record_while_it_is_being_committed_joins_that_commit() {
    let mut bench = Bench::new();
    let (first, _) = bench.client_write(5);
    bench.loaded(0, Ok(None));
    let (second, effects) = bench.write(5, Origin::Repair);
    assert_eq!(effects, []);
    let held = WriteOutcome::Held(Durability::Synced);
    assert_eq!(answers(&bench.committed(0)), [(first, held), (second, held)]);
}

#[test]
fn writes_under_way_are_bounded_in_bytes_and_repairs_have_a_reserve() {
    let mut bench = Bench::with(Settings { write_bytes_max: 1_000, ..Settings::default() });
    let mut taken = |origin| (0..100).filter(|n| answers(&bench.write(100 + n, origin).1).is_empty()).count();
    let clients = taken(Origin::Client { deadline_wall_ms: WALL_MS + 1_000 });
    let repairs = taken(Origin::Repair);
    assert!((5..10).contains(&clients) && (1..5).contains(&repairs), "{clients} and {repairs}");
}

#[test]
fn a_full_disk_still_takes_deletes() {
    let mut bench = Bench::new();
    bench.step(Event::DiskFull(true));
    let call = Call { operation: 1, attempt: 1 };
    let record = Record { body: Body::Tombstone, ..record(5) };
    let origin = Origin::Client { deadline_wall_ms: WALL_MS + 1 };
    let write = Write { call, key: key(), record, origin, durability: Durability::Synced };
    assert!(matches!(bench.frame(Message::Write(write))[..], [Effect::Load { .. }]));
}

#[test]
fn a_starting_node_is_ready_once_it_reaches_quorums_or_has_waited_for_them() {
    let mut node = Node::new(start(true, Settings::default()), now(0));
    node.step(now(0), Event::Tick, &mut Vec::new());
    assert!(!node.status(now(0)).ready, "its peer has not been reached yet");
    assert!(node.status(now(WARM_UP_MS_MAX)).ready, "a peer that is down does not keep it away for ever");
    let mut bench = Bench::new();
    assert!(bench.node.status(now(0)).ready);
    bench.step(Event::LinkClosed { link: LINK });
    assert!(bench.node.status(now(0)).ready, "what happens later to others is not its own health");
}

#[test]
fn a_frame_that_does_not_fit_closes_its_link() {
    let mut bench = Bench::new();
    let message = Message::InitAccepted { digest: 1, reply_wanted: true, decided: false };
    let stale = Event::Frame { link: LINK, header: header(6), messages: vec![message] };
    assert_eq!(bench.step(stale), [Effect::CloseLink { link: LINK }]);
    assert!(bench.node.status(now(0)).connected.is_empty());
}

#[test]
fn an_uninitialised_node_takes_a_layout_that_names_it_and_refuses_a_second_first_one() {
    let offered = |layout: Layout| {
        let uninitialised = Start { membership: None, ..start(false, Settings::default()) };
        let mut node = Node::new(uninitialised, now(0));
        let mut effects = Vec::new();
        node.step(now(0), Event::LinkOffered { link: LINK, hello: hello(7) }, &mut effects);
        let [Effect::Save { save, state: SavedState::Peers(_) }] = effects[..] else { panic!("{effects:?}") };
        effects.clear();
        node.step(now(0), Event::Saved { save }, &mut effects);
        let [Effect::AcceptLink { hello: ours, .. }] = &effects[..] else { panic!("{effects:?}") };
        assert_eq!((ours.header.epoch, ours.header.to), (Epoch(0), PEER));
        effects.clear();
        let messages = vec![Message::Layout { layout: Box::new(layout), identities: Vec::new() }];
        node.step(now(0), Event::Frame { link: LINK, header: header(7), messages }, &mut effects);
        // Whom the sender knows comes first.
        if let [Effect::Save { save, state: SavedState::Peers(_) }] = effects[..] {
            effects.clear();
            node.step(now(0), Event::Saved { save }, &mut effects);
        }
        (node, effects)
    };
    let (_, effects) = offered(layout());
    assert!(matches!(effects[..], [Effect::Save { state: SavedState::Layout { decided: true, .. }, .. }]));
    let stranger = Member { node: NodeId([9; 16]), ..layout().members[0].clone() };
    let (mut node, mut effects) = offered(Layout { members: vec![stranger], ..layout() });
    assert_eq!(effects, [], "it is not for us");
    effects.clear();
    node.step(now(0), Event::Init { request: RequestId(1), layout: layout() }, &mut effects);
    assert!(matches!(effects[..], [Effect::Save { .. }]), "answered once it is durable");
    let other = Layout { cluster: ClusterId([8; 16]), ..layout() };
    effects.clear();
    node.step(now(0), Event::Init { request: RequestId(2), layout: other }, &mut effects);
    assert!(matches!(effects[..], [Effect::Answer { request: RequestId(2), .. }]), "refused even meanwhile");
}

#[test]
fn a_repair_below_a_record_that_is_only_written_waits_until_that_is_synced() {
    let mut bench = many::Bench::new();
    let (_, effects) = bench.write("k", 9, Durability::Periodic);
    let effects = bench.step(Event::Loaded { load: load_in(&effects), record: Ok(None) });
    let written = commit_in(&effects).unwrap().id;
    let (pending, effects) = bench.write("k", 4, Durability::Synced);
    let anew = commit_in(&effects).unwrap().clone();
    assert_eq!(
        (anew.durability, anew.entry),
        (Durability::Synced, Entry::Record { key: key_of("k"), record: record(9) })
    );
    bench.committed(written, Durability::Periodic);
    let superseded = WriteOutcome::Superseded(record(9).stamp);
    assert_eq!(answers(&bench.committed(anew.id, Durability::Synced)), [(pending, superseded)]);

    // Another key is written, after that the store does not say what is synced.
    let (_, effects) = bench.write("other", 9, Durability::Periodic);
    let effects = bench.step(Event::Loaded { load: load_in(&effects), record: Ok(None) });
    let written = commit_in(&effects).unwrap().id;
    bench.committed(written, Durability::Periodic);
    let (call, effects) = bench.write("k", 5, Durability::Synced);
    let effects = bench.step(Event::Loaded { load: load_in(&effects), record: Ok(Some(record(9))) });
    let anew = commit_in(&effects).unwrap().id;
    assert_eq!(answers(&bench.committed(anew, Durability::Synced)), [(call, superseded)]);

    // A sync covers all that was written before.
    let (call, effects) = bench.write("k", 6, Durability::Synced);
    let effects = bench.step(Event::Loaded { load: load_in(&effects), record: Ok(Some(record(9))) });
    assert_eq!((commit_in(&effects), answers(&effects)), (None, vec![(call, superseded)]));
}
