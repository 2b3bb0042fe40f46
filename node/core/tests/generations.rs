//! What a replica said before it is known as a later generation, or went out of reach, event by event: the former may be
//! lost by now, and counts for nothing that is still under way.

#![allow(clippy::unwrap_used, reason = "a broken harness may panic")]

mod bench;

use bench::effects::answer_in;
use bench::{Bench, LINK, WALL_MS, hello, key, layout, put, record};
use keystore_core::causal::Siblings;
use keystore_core::effect::{Answer, Effect, Event, FailureReason, LinkId, Operation};
use keystore_core::id::Actor;
use keystore_core::message::{Call, Message, MintOutcome, Page, ReadOutcome, ScanOutcome, ScanRange};
use keystore_core::partition::{RecordKey, encoded_prefix};
use keystore_core::record::{Body, Record};
use keystore_core::stamp::Stamp;

fn call_in(effects: &[Effect]) -> Call {
    let call = |effect: &Effect| match effect {
        Effect::Send { message: Message::Read { call, .. } | Message::Scan { call, .. }, .. } => Some(*call),
        Effect::Send { message: Message::Mint(mint), .. } => Some(mint.call),
        _ => None,
    };
    effects.iter().find_map(call).unwrap_or_else(|| panic!("nobody is asked: {effects:?}"))
}

/// The peer is back as a later generation, which is not on disk here yet: whose end does that make of the request?
fn ended_by_its_return(bench: &mut Bench) -> Option<FailureReason> {
    let effects = bench.step(Event::LinkOffered { link: LinkId(LINK.0 + 7), hello: hello(8) });
    match answer_in(&effects)? {
        Answer::Failed(failure) => Some(failure.reason),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_read_does_not_count_what_a_replica_said_as_an_earlier_generation() {
    let mut bench = Bench::new();
    let call = call_in(&bench.request(Operation::Get { key: key() }, None));
    let outcome = ReadOutcome::Full(record(1));
    let effects = bench.frame(Message::ReadAnswer { call, outcome, noted: Vec::new() });
    assert_eq!(answer_in(&effects), None, "one of two");
    assert_eq!(ended_by_its_return(&mut bench), Some(FailureReason::QuorumUnreachable));
}

#[test]
fn a_read_that_knows_of_a_version_which_nobody_in_reach_has_ends_at_once() {
    let mut bench = Bench::new();
    let call = call_in(&bench.request(Operation::Get { key: key() }, None));
    let outcome = ReadOutcome::Digest(record(9).version());
    bench.frame(Message::ReadAnswer { call, outcome, noted: Vec::new() });
    bench.unlink();
    let effects = bench.loaded(0, Ok(Some(record(1))));
    let Some(Answer::Failed(failure)) = answer_in(&effects) else { panic!("{effects:?}") };
    assert_eq!(failure.reason, FailureReason::QuorumUnreachable);
}

#[test]
fn a_scan_does_not_count_what_a_replica_said_as_an_earlier_generation() {
    let mut bench = Bench::new();
    let range = ScanRange {
        partition: key().partition(layout().partitions),
        prefix: encoded_prefix("default", b"").unwrap(),
        after: None,
        limit: 10,
    };
    let call = call_in(&bench.request(Operation::Scan { keyspace: "default".to_owned(), range }, None));
    let outcome = ScanOutcome::Page(Page::whole(vec![(key(), record(1))]));
    let effects = bench.frame(Message::ScanAnswer { call, outcome, noted: Vec::new() });
    assert_eq!(answer_in(&effects), None, "one of two");
    assert_eq!(ended_by_its_return(&mut bench), Some(FailureReason::QuorumUnreachable));
}

#[test]
fn a_write_among_siblings_does_not_count_the_dot_of_an_earlier_generation() {
    let mut bench = Bench::new();
    bench.step(Event::DiskFull(true));
    let key = RecordKey::new("causal", b"k").unwrap();
    // This node has no space for it, so the peer is asked for a dot, and has the write before we have it.
    let call = call_in(&bench.request(put(key), None));
    let stamp = Stamp::new(WALL_MS, 0, Actor(1));
    let record = Record { stamp, body: Body::Siblings(Siblings::default().into()) };
    let outcome = MintOutcome::Minted { record, dot: None };
    let effects = bench.frame(Message::MintAnswer { call, outcome, noted: Vec::new() });
    assert_eq!(answer_in(&effects), None, "one of two");
    assert_eq!(ended_by_its_return(&mut bench), Some(FailureReason::OutcomeUnknown));
}
