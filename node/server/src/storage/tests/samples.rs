//! Bytes of earlier releases, which every later one has to read. What is written today is compared as well, so
//! that a format does not change without anybody noticing.

use std::fs;
use std::sync::Arc;

use keystore_core::causal::{Change, Context, DotActor, OperationId, Siblings};
use keystore_core::effect::{Entry, Hint, SavedState};
use keystore_core::history::{self, Changes, Difference, History};
use keystore_core::id::{Actor, ClusterId, Epoch, Generation, Incarnation, Lineage, NodeId, Nonce};
use keystore_core::layout::{FirstLayout, Layout, Member};
use keystore_core::partition::{Partition, PartitionCount};
use keystore_core::paxos::{Ballot, Vote, Votes};
use keystore_core::record::{Body, Record};
use keystore_core::stamp::Stamp;
use keystore_core::succession::Change::{Admit, Dismiss, Finish, Move};
use keystore_core::succession::Standing;
use keystore_core::transfer::{Merge, Merges};

use super::{entry, identity, key, memory_dir, put};
use crate::storage::engine::EngineKind;
use crate::storage::found::{
    decode_engine, decode_generation, decode_history, decode_identity, decode_membership, decode_merges,
    decode_number, decode_peers, decode_position, decode_votes, encode_history, encode_identity,
    encode_position, encode_saved,
};
use crate::storage::log::{self, CommitLog, Position};
use crate::storage::state::{self, Kind};

macro_rules! sample {
    ($name:literal) => {
        include_bytes!(concat!("../../../tests/data/", $name)).as_slice()
    };
}

fn layout() -> Layout {
    let member = |n: u8| Member {
        node: NodeId([n; 16]),
        actor: Actor(n.into()),
        name: format!("demo-{n}"),
        zone: "a".into(),
        weight: 1,
        is_lost: false,
    };
    Layout::first(FirstLayout {
        cluster: ClusterId([9; 16]),
        incarnation: Incarnation { number: 1, id: 2 },
        partitions: PartitionCount::new(16).unwrap(),
        replication_factor: 3,
        members: (7..10).map(member).collect(),
        keyspaces: Default::default(),
    })
    .unwrap()
}

/// Data moves to a fourth node, and one that was a member once is none any more.
fn joint() -> Layout {
    let mut members = layout().members;
    let guest = Member { node: NodeId([6; 16]), actor: Actor(6), ..members[0].clone() };
    let fourth = Member { node: NodeId([10; 16]), actor: Actor(10), zone: "b".into(), ..members[0].clone() };
    let admitted = layout().next(&Admit(vec![guest, fourth.clone()])).unwrap();
    let dismissed = admitted.next(&Dismiss([NodeId([6; 16])].into())).unwrap();
    members.push(fourth);
    dismissed.next(&Move { members, replication_factor: 3 }).unwrap()
}

fn votes() -> Votes {
    let ballot = |round| Ballot { round, proposer: NodeId([7; 16]), generation: Generation(3) };
    let standing = Standing {
        fence: Epoch(4),
        phase: Epoch(4),
        whole: [Partition(0), Partition(9)].into(),
        ..Standing::default()
    };
    let evidence = [(NodeId([8; 16]), standing)].into();
    let layout = joint().next(&Finish).unwrap();
    let accepted = Some(Vote { ballot: ballot(1), layout, evidence });
    Votes { epoch: Epoch(5), promised: ballot(2), accepted }
}

fn merges() -> Merges {
    let pass = Some((NodeId([8; 16]), Some(key(1))));
    let merge = Merge { sources: [NodeId([7; 16])].into(), pass };
    let partitions = [(Partition(3), merge), (Partition(4), Merge::default())].into();
    Merges { phase: Epoch(4), partitions, ..Merges::default() }
}

fn history() -> History {
    let entry = |number, epoch| history::Entry {
        incarnation: Incarnation { number, id: 2 },
        epoch: Epoch(epoch),
        is_joint: false,
        taken_up_ms: None,
        changes: None,
        members: 4,
        voters: 3,
    };
    let first = history::Entry {
        taken_up_ms: Some(1_700_000_000_000),
        changes: Some(Changes::of_first()),
        members: 3,
        ..entry(1, 1)
    };
    let differences = vec![Difference::Recovered { salvaged: 16 }, Difference::Lost(2), Difference::Voters];
    let recovered = history::Entry {
        incarnation: Incarnation { number: 2, id: 9 },
        taken_up_ms: Some(1_700_000_001_000),
        changes: Some(Changes { differences, partitions_moved: 16 }),
        voters: 1,
        ..entry(2, 5)
    };
    [first, history::Entry { is_joint: true, ..entry(1, 3) }, recovered].into_iter().collect()
}

fn checkpoint() -> Position {
    Position { segment: 3, offset: 4160, sequence: 21, chain: 0xdead_beef }
}

#[test]
fn states_of_the_first_release_still_read() {
    let payload = |kind, bytes| state::decode(kind, bytes).unwrap();
    assert_eq!(decode_identity(payload(Kind::Identity, sample!("storage-v1/identity"))), Ok(identity()));
    let generation = decode_generation(payload(Kind::Generation, sample!("storage-v1/generation")));
    assert_eq!(generation, Ok((Generation(5), Generation(0), Lineage::default())));
    let ceiling = decode_number(payload(Kind::StampCeiling, sample!("storage-v1/stamp-ceiling")));
    assert_eq!(ceiling, Ok(1_700_000_000_000));
    let membership = decode_membership(payload(Kind::Layout, sample!("storage-v1/layout")));
    assert_eq!(membership, Ok(Some((layout(), true))));
    let peers = [(NodeId([8; 16]), (Generation(2), Nonce(3)))].into();
    assert_eq!(decode_peers(payload(Kind::Peers, sample!("storage-v1/peers"))), Ok(peers));
    let position = decode_position(payload(Kind::Checkpoint, sample!("storage-v1/checkpoint")));
    assert_eq!(position, Ok(checkpoint()));
}

#[test]
fn states_of_the_second_release_still_read() {
    let payload = |kind, bytes| state::decode(kind, bytes).unwrap();
    let generation = decode_generation(payload(Kind::Generation, sample!("storage-v2/generation")));
    assert_eq!(generation, Ok((Generation(5), Generation(4), Lineage::default())));
    let membership = decode_membership(payload(Kind::Layout, sample!("storage-v2/layout")));
    assert_eq!(membership, Ok(Some((layout(), true))));
    let engine = decode_engine(payload(Kind::Engine, sample!("storage-v2/storage-engine")));
    assert_eq!(engine, Ok(EngineKind::Memory));
    assert!(payload(Kind::SetAside, sample!("storage-v2/set-aside")).is_empty());
}

#[test]
fn states_of_the_third_release_still_read() {
    let payload = state::decode(Kind::Generation, sample!("storage-v3/generation")).unwrap();
    let lineage = [Nonce(7), Nonce(6)].into_iter().collect();
    assert_eq!(decode_generation(payload), Ok((Generation(5), Generation(4), lineage)));
}

#[test]
fn states_of_the_fourth_release_still_read() {
    let payload = |kind, bytes| state::decode(kind, bytes).unwrap();
    let membership = decode_membership(payload(Kind::Layout, sample!("storage-v4/layout")));
    assert_eq!(membership, Ok(Some((joint(), true))));
    assert_eq!(decode_votes(payload(Kind::Votes, sample!("storage-v4/votes"))), Ok(votes()));
    assert_eq!(decode_merges(payload(Kind::Merges, sample!("storage-v4/merges"))), Ok(merges()));
}

#[test]
fn states_of_the_fifth_release_still_read() {
    let payload = state::decode(Kind::History, sample!("storage-v5/history")).unwrap();
    assert_eq!(decode_history(payload), Ok(history()));
}

#[test]
fn states_are_written_as_the_samples_were() {
    let peers = [(NodeId([8; 16]), (Generation(2), Nonce(3)))].into();
    let lineage = [Nonce(7), Nonce(6)].into_iter().collect();
    let generation =
        SavedState::Generation { generation: Generation(5), trusted_since: Generation(4), lineage };
    let encoded = |(kind, payload): (Kind, Vec<u8>)| state::encode(kind, &payload);
    let saved = |state: SavedState| encoded(encode_saved(&state));
    let states = [
        (encoded((Kind::Identity, encode_identity(&identity()))), sample!("storage-v1/identity")),
        (saved(generation), sample!("storage-v3/generation")),
        (saved(SavedState::StampCeiling(1_700_000_000_000)), sample!("storage-v1/stamp-ceiling")),
        (saved(SavedState::Layout { layout: joint(), decided: true }), sample!("storage-v4/layout")),
        (saved(SavedState::Votes(votes())), sample!("storage-v4/votes")),
        (saved(SavedState::Merges(merges())), sample!("storage-v4/merges")),
        (saved(SavedState::Peers(peers)), sample!("storage-v1/peers")),
        (encoded((Kind::Checkpoint, encode_position(checkpoint()))), sample!("storage-v1/checkpoint")),
        (encoded((Kind::Engine, EngineKind::Memory.name().into())), sample!("storage-v2/storage-engine")),
        (saved(SavedState::SetAside), sample!("storage-v2/set-aside")),
        (encoded((Kind::History, encode_history(&history()))), sample!("storage-v5/history")),
    ];
    for (index, (written, sample)) in states.into_iter().enumerate() {
        assert_eq!(written, sample, "state {index}");
    }
}

fn entries_of(segment: &[u8]) -> Vec<Entry> {
    let directory = memory_dir();
    fs::write(log::path(directory.path(), 1), segment).unwrap();
    let mut entries = Vec::new();
    let end = log::read(directory.path(), Position::default(), &mut |batch| entries.extend_from_slice(batch));
    assert_eq!(end.unwrap().position.sequence, entries.len() as u64);
    entries
}

#[test]
fn segments_of_every_release_still_read() {
    assert_eq!(entries_of(sample!("storage-v1/segment.log")), first_entries());
    assert_eq!(entries_of(sample!("storage-v2/segment.log")), [first_entries(), later_entries()].concat());
}

/// All that the first release wrote.
fn first_entries() -> Vec<Entry> {
    let deleted = Record { stamp: Stamp::new(9, 1, Actor(7)), body: Body::Tombstone };
    put([entry(1, 1), entry(2, 2), (key(1), deleted)])
}

/// What the second one added.
fn later_entries() -> Vec<Entry> {
    let stamp = Stamp::new(10, 1, Actor(7));
    let mut siblings = Siblings::default();
    for (n, value) in [(1, "one"), (2, "two")] {
        let change = Change {
            stamp: Stamp::new(n.into(), 0, Actor(7)),
            operation: OperationId([n; 16]),
            context: Context::default(),
            value: Some(value.into()),
            expires_ms: (n == 2).then_some(99),
        };
        siblings.mint(DotActor(n.into()), change).unwrap();
    }
    let bodies = [
        Body::Expiring { value: "until then".into(), expires_ms: 99 },
        Body::Expired,
        Body::Siblings(siblings.into()),
    ];
    let mut entries = put(bodies.map(|body| (key(3), Record { stamp, body })));
    entries.extend([
        Entry::Replace { key: key(1), record: None },
        Entry::Replace { key: key(2), record: Some(Record { stamp, body: Body::Tombstone }) },
        Entry::Hint(Hint { target: NodeId([8; 16]), key: key(2), since_ms: 1_700_000_000_000 }),
        Entry::HintDone { target: NodeId([8; 16]), key: key(2) },
    ]);
    entries
}

/// Every kind of entry keeps its number: the salt of a segment is random, so only the entries can be compared.
#[test]
fn entries_are_written_as_the_samples_were() {
    let directory = memory_dir();
    let mut log = CommitLog::begin(directory.path(), 8192, Position::default(), Arc::default()).unwrap();
    log.append(&first_entries()).unwrap();
    log.append(&later_entries()).unwrap();
    drop(log);
    let written = fs::read(log::path(directory.path(), 1)).unwrap();
    let sample = sample!("storage-v2/segment.log");
    assert_eq!(written.len(), sample.len());
    // Header, two batches: salt and checksums differ.
    let differing = (0..sample.len()).filter(|at| written[*at] != sample[*at]).count();
    assert!(differing <= 8 + 4 + 2 * 4 + 4, "{differing} bytes");
}
