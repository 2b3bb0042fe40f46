//! Bytes of the first release, which every later one has to read. What is written today is compared as well, so
//! that a format does not change without anybody noticing.

use std::fs;

use keystore_core::effect::SavedState;
use keystore_core::id::{Actor, ClusterId, Generation, Incarnation, NodeId, Nonce};
use keystore_core::layout::{FirstLayout, Layout, Member};
use keystore_core::partition::PartitionCount;
use keystore_core::record::{Body, Record};
use keystore_core::stamp::Stamp;

use super::{entry, identity, key, memory_dir};
use crate::storage::found::{
    decode_identity, decode_membership, decode_number, decode_peers, decode_position, encode_identity,
    encode_number, encode_position, encode_saved,
};
use crate::storage::log::{self, Position};
use crate::storage::state::{self, Kind};

macro_rules! sample {
    ($name:literal) => {
        include_bytes!(concat!("../../../tests/data/storage-v1/", $name)).as_slice()
    };
}

fn layout() -> Layout {
    let member = |n: u8| Member {
        node: NodeId([n; 16]),
        actor: Actor(n.into()),
        name: format!("demo-{n}"),
        zone: "a".into(),
        weight: 1,
    };
    Layout::first(FirstLayout {
        cluster: ClusterId([9; 16]),
        incarnation: Incarnation { number: 1, id: 2 },
        partitions: PartitionCount::new(16).unwrap(),
        replication_factor: 3,
        members: (7..10).map(member).collect(),
    })
    .unwrap()
}

fn checkpoint() -> Position {
    Position { segment: 3, offset: 4160, sequence: 21, chain: 0xdead_beef }
}

fn states() -> Vec<(Kind, Vec<u8>)> {
    let peers = [(NodeId([8; 16]), (Generation(2), Nonce(3)))].into();
    vec![
        (Kind::Identity, encode_identity(&identity())),
        (Kind::Generation, encode_number(5)),
        encode_saved(&SavedState::StampCeiling(1_700_000_000_000)),
        encode_saved(&SavedState::Layout { layout: layout(), decided: true }),
        encode_saved(&SavedState::Peers(peers)),
        (Kind::Checkpoint, encode_position(checkpoint())),
    ]
}

#[test]
fn states_of_the_first_release_still_read() {
    let payload = |kind, bytes| state::decode(kind, bytes).unwrap();
    assert_eq!(decode_identity(payload(Kind::Identity, sample!("identity"))), Ok(identity()));
    assert_eq!(decode_number(payload(Kind::Generation, sample!("generation"))), Ok(5));
    assert_eq!(decode_number(payload(Kind::StampCeiling, sample!("stamp-ceiling"))), Ok(1_700_000_000_000));
    let membership = decode_membership(payload(Kind::Layout, sample!("layout")));
    assert_eq!(membership, Ok(Some((layout(), true))));
    let peers = [(NodeId([8; 16]), (Generation(2), Nonce(3)))].into();
    assert_eq!(decode_peers(payload(Kind::Peers, sample!("peers"))), Ok(peers));
    assert_eq!(decode_position(payload(Kind::Checkpoint, sample!("checkpoint"))), Ok(checkpoint()));
}

#[test]
fn states_are_written_as_the_first_release_did() {
    let samples = [
        sample!("identity"),
        sample!("generation"),
        sample!("stamp-ceiling"),
        sample!("layout"),
        sample!("peers"),
        sample!("checkpoint"),
    ];
    for ((kind, payload), sample) in states().into_iter().zip(samples) {
        assert_eq!(state::encode(kind, &payload), sample, "{kind:?}");
    }
}

#[test]
fn a_segment_of_the_first_release_still_reads() {
    let directory = memory_dir();
    fs::write(log::path(directory.path(), 1), sample!("segment.log")).unwrap();
    let mut records = Vec::new();
    let end = log::read(directory.path(), Position::default(), &mut |batch| records.extend_from_slice(batch));
    assert_eq!(records, segment_records().concat());
    assert_eq!(end.unwrap().position.sequence, 3);
}

fn segment_records() -> [Vec<(keystore_core::partition::RecordKey, Record)>; 2] {
    let deleted = Record { stamp: Stamp::new(9, 1, Actor(7)), body: Body::Tombstone };
    [vec![entry(1, 1), entry(2, 2)], vec![(key(1), deleted)]]
}
