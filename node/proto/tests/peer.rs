//! Frames between nodes keep what they carry, and what is malformed is refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use bytes::Bytes;
use keystore_core::causal::{Change, Context, DotActor, OperationId, Siblings};
use keystore_core::held::{Digest, Digests, Held, Lacking};
use keystore_core::id::{Actor, ClusterId, Epoch, Generation, Incarnation, Lineage, NodeId, Nonce};
use keystore_core::message::{
    Call, Header, Message, Mint, MintOutcome, Noted, Origin, Page, ReadOutcome, Refusal, ScanOutcome,
    ScanRange, Want, Write, WriteOutcome,
};
use keystore_core::partition::{KeyError, Partition, RecordKey};
use keystore_core::peers::LinkRefusal;
use keystore_core::quorum::Durability;
use keystore_core::record::{Body, Record, VALUE_BYTES_MAX, Version};
use keystore_core::stamp::Stamp;
use keystore_proto::error::WireError;
use keystore_proto::peer::{Content, Frame};
use keystore_proto::v1;
use prost::Message as _;

fn header() -> Header {
    Header {
        cluster: ClusterId([9; 16]),
        incarnation: Incarnation { number: 1, id: 77 },
        epoch: Epoch(1),
        from: NodeId([1; 16]),
        to: NodeId([2; 16]),
        generation: Generation(3),
    }
}

fn frame(content: Content) -> Frame {
    Frame { header: header(), content }
}

fn key() -> RecordKey {
    RecordKey::new("default", b"greeting").unwrap()
}

fn stamp() -> Stamp {
    Stamp::new(1_700_000_000_000, 7, Actor(42))
}

fn record(body: Body) -> Record {
    Record { stamp: stamp(), body }
}

const CALL: Call = Call { operation: 12, attempt: 1 };

fn noted() -> Noted {
    vec![Generation(3), Generation(0), Generation(u64::MAX)]
}

/// Siblings, expiry, scans and hints, which came after the first release.
fn later() -> Vec<Message> {
    let mut siblings = Siblings::default();
    let change = Change {
        stamp: stamp(),
        operation: OperationId([7; 16]),
        context: Context::default(),
        value: Some("hello".into()),
        expires_ms: Some(9),
    };
    let dot = siblings.mint(DotActor(1), change.clone()).unwrap();
    let merged = record(Body::Siblings(Arc::new(siblings)));
    let removal = Change { value: None, expires_ms: None, ..change.clone() };
    let mint = |change| Message::Mint(Mint { call: CALL, key: key(), change, deadline_wall_ms: 5 });
    let minted = |record, dot| MintOutcome::Minted { record, dot };
    let mint_answer = |outcome| Message::MintAnswer { call: CALL, outcome, noted: noted() };
    let scan = |after| {
        let range = ScanRange { partition: Partition(5), prefix: "p".into(), after, limit: 10 };
        Message::Scan { call: CALL, range, held: None }
    };
    let scan_answer = |outcome| Message::ScanAnswer { call: CALL, outcome, noted: noted() };
    let expiring = record(Body::Expiring { value: "v".into(), expires_ms: 9 });
    let entries = vec![(key(), expiring.clone()), (key(), record(Body::Expired))];
    let full =
        |record| Message::ReadAnswer { call: CALL, outcome: ReadOutcome::Full(record), noted: noted() };
    vec![
        mint(change),
        mint(removal),
        mint_answer(minted(merged.clone(), dot)),
        mint_answer(minted(merged.clone(), None)),
        mint_answer(MintOutcome::Refused(Refusal::TooManySiblings)),
        full(merged),
        full(expiring),
        full(record(Body::Expired)),
        scan(None),
        scan(Some(key())),
        scan_answer(ScanOutcome::Page(Page::cut(entries))),
        scan_answer(ScanOutcome::Page(Page::default())),
        scan_answer(ScanOutcome::Refused(Refusal::InDoubt)),
        Message::Hint { target: NodeId([2; 16]), key: key() },
    ]
}

/// What is said of a page that is held, which came after the second.
fn latest() -> Vec<Message> {
    let (one, other) = (Digest(7), Digest(u128::MAX));
    let scan = |until, digests| {
        let range = ScanRange { partition: Partition(5), prefix: Bytes::new(), after: None, limit: 10 };
        Message::Scan { call: CALL, range, held: Some(Held { until, digests }) }
    };
    let scan_answer = |outcome| Message::ScanAnswer { call: CALL, outcome, noted: noted() };
    let lacking = |entries, until| scan_answer(ScanOutcome::Lacking(Lacking { entries, until }));
    vec![
        scan(None, Digests::All(one)),
        scan(Some(key()), Digests::Each(vec![one, other])),
        scan(Some(key()), Digests::Each(Vec::new())),
        lacking(vec![(key(), record(Body::Tombstone))], Some(key())),
        lacking(Vec::new(), None),
        scan_answer(ScanOutcome::Differs),
    ]
}

fn writes() -> Vec<Message> {
    let write = |record, origin, durability| {
        Message::Write(Write { call: CALL, key: key(), record, origin, durability })
    };
    let outcome = |outcome| Message::WriteAnswer { call: CALL, outcome, noted: noted() };
    let client = Origin::Client { deadline_wall_ms: 1_700_000_005_000 };
    vec![
        write(record(Body::Value("hello".into())), client, Durability::Synced),
        write(record(Body::Value(Bytes::new())), client, Durability::Periodic),
        write(record(Body::Tombstone), Origin::Repair, Durability::Synced),
        outcome(WriteOutcome::Held(Durability::Synced)),
        outcome(WriteOutcome::Held(Durability::Periodic)),
        outcome(WriteOutcome::Superseded(stamp())),
    ]
}

fn reads() -> Vec<Message> {
    let read = |want| Message::Read { call: CALL, key: key(), want };
    let outcome = |outcome| Message::ReadAnswer { call: CALL, outcome, noted: noted() };
    vec![
        read(Want::Full),
        read(Want::Digest),
        outcome(ReadOutcome::Missing),
        outcome(ReadOutcome::Digest(Version { stamp: stamp(), hash: u64::MAX })),
        outcome(ReadOutcome::Full(record(Body::Value("hello".into())))),
        outcome(ReadOutcome::Full(record(Body::Tombstone))),
        Message::InitAccepted { digest: 5, reply_wanted: true, decided: false },
    ]
}

fn refusals() -> Vec<Message> {
    let all = [
        Refusal::DeadlinePassed,
        Refusal::ClockSkew,
        Refusal::InDoubt,
        Refusal::DiskFull,
        Refusal::Overloaded,
        Refusal::NotReplica,
        Refusal::NotInitialized,
        Refusal::TooManySiblings,
    ];
    all.into_iter()
        .flat_map(|refusal| {
            [
                Message::WriteAnswer { call: CALL, outcome: WriteOutcome::Refused(refusal), noted: noted() },
                Message::ReadAnswer { call: CALL, outcome: ReadOutcome::Refused(refusal), noted: noted() },
            ]
        })
        .collect()
}

fn hello(lineage: Lineage, unpacks: bool) -> Content {
    Content::Hello { lineage, unpacks }
}

fn everything() -> Frame {
    frame(Content::Messages([writes(), reads(), refusals(), later()].concat()))
}

fn of_pages_held() -> Frame {
    frame(Content::Messages(latest()))
}

fn decode(bytes: &[u8]) -> Result<Frame, WireError> {
    Frame::try_from(v1::PeerFrame::decode(bytes).unwrap())
}

#[test]
fn a_frame_reads_back_what_was_sent() {
    let refusals = [
        LinkRefusal::NotInitialized,
        LinkRefusal::WrongCluster,
        LinkRefusal::WrongNode,
        LinkRefusal::StaleGeneration,
    ];
    let mut frames = vec![
        frame(hello([u64::MAX, 0, 7].map(Nonce).into_iter().collect(), true)),
        everything(),
        of_pages_held(),
    ];
    frames.extend(refusals.map(|refusal| frame(Content::Refusal(refusal))));
    for frame in frames {
        let bytes = v1::PeerFrame::from(frame.clone()).encode_to_vec();
        assert_eq!(decode(&bytes), Ok(frame));
    }
}

#[test]
fn frames_of_the_first_release_still_read() {
    let mut first: Vec<_> = [writes(), reads(), refusals()].concat();
    for message in &mut first {
        if let Message::WriteAnswer { noted, .. } | Message::ReadAnswer { noted, .. } = message {
            noted.clear();
        }
    }
    let came_later = |message: &Message| {
        matches!(
            message,
            Message::WriteAnswer { outcome: WriteOutcome::Refused(Refusal::TooManySiblings), .. }
                | Message::ReadAnswer { outcome: ReadOutcome::Refused(Refusal::TooManySiblings), .. }
        )
    };
    first.retain(|message| !came_later(message));
    assert_eq!(decode(include_bytes!("data/peer-messages-v1.bin")), Ok(frame(Content::Messages(first))));
    assert_eq!(decode(include_bytes!("data/peer-messages-v2.bin")), Ok(everything()));
    assert_eq!(decode(include_bytes!("data/peer-messages-v3.bin")), Ok(of_pages_held()));
    assert_eq!(decode(include_bytes!("data/peer-hello-v1.bin")), Ok(frame(hello(Nonce(8).into(), false))));
    assert_eq!(decode(include_bytes!("data/peer-hello-v2.bin")), Ok(frame(hello(Nonce(8).into(), true))));
}

fn check_refused(spoil: impl FnOnce(&mut v1::PeerFrame), expected: WireError) {
    let write = writes().remove(0);
    let mut wire = v1::PeerFrame::from(frame(Content::Messages(vec![write])));
    spoil(&mut wire);
    assert_eq!(Frame::try_from(wire), Err(expected));
}

fn write_of(frame: &mut v1::PeerFrame) -> &mut v1::WriteMessage {
    match &mut message_of(frame).kind {
        Some(v1::peer_message::Kind::Write(write)) => write,
        other => panic!("not a write: {other:?}"),
    }
}

fn message_of(frame: &mut v1::PeerFrame) -> &mut v1::PeerMessage {
    match &mut frame.kind {
        Some(v1::peer_frame::Kind::Messages(messages)) => &mut messages.messages[0],
        other => panic!("no messages: {other:?}"),
    }
}

#[test]
fn a_malformed_frame_is_refused_whole() {
    let length = |field, found| WireError::Length { field, found, expected: 16 };
    check_refused(|frame| frame.header = None, WireError::Missing("header"));
    check_refused(|frame| frame.kind = None, WireError::Missing("kind"));
    check_refused(
        |frame| frame.header.as_mut().unwrap().from = Bytes::from_static(b"short"),
        length("from", 5),
    );
    check_refused(
        |frame| frame.header.as_mut().unwrap().incarnation = None,
        WireError::Missing("incarnation"),
    );
    check_refused(|frame| message_of(frame).kind = None, WireError::Missing("kind"));
    check_refused(|frame| write_of(frame).record = None, WireError::Missing("record"));
    check_refused(|frame| write_of(frame).record.as_mut().unwrap().stamp = Bytes::new(), length("stamp", 0));
    check_refused(
        |frame| write_of(frame).key = Bytes::from_static(b"\x00\x07defaul"),
        WireError::Key(KeyError::Malformed),
    );
    check_refused(
        |frame| write_of(frame).record.as_mut().unwrap().value = Some(vec![0; VALUE_BYTES_MAX + 1].into()),
        WireError::ValueLength { found: VALUE_BYTES_MAX + 1, max: VALUE_BYTES_MAX },
    );
    check_refused(
        |frame| {
            message_of(frame).kind = Some(v1::peer_message::Kind::WriteAnswer(v1::WriteAnswer {
                outcome: Some(v1::write_answer::Outcome::Refused(99)),
            }));
        },
        WireError::UnknownValue { field: "refused", found: 99 },
    );
    let scan = |each: &'static [u8]| {
        let digests = v1::held_message::Digests::Each(Bytes::from_static(each));
        let held = v1::HeldMessage { until: Bytes::new(), digests: Some(digests) };
        let scan = v1::ScanMessage { held: Some(held), ..v1::ScanMessage::default() };
        Some(v1::peer_message::Kind::Scan(scan))
    };
    check_refused(|frame| message_of(frame).kind = scan(&[1; 17]), length("each", 1));
}
