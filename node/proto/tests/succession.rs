//! Layouts that follow others, and all that is said and saved on the way to them, keep what they carry.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use keystore_core::id::{Actor, ClusterId, Epoch, Generation, Incarnation, NodeId, Nonce};
use keystore_core::layout::{FirstLayout, KeyspaceMode, Layout, Member};
use keystore_core::message::{Header, Message};
use keystore_core::partition::{Partition, PartitionCount};
use keystore_core::paxos::{Ballot, Say, Vote, Votes};
use keystore_core::succession::{Change, Evidence, Standing};
use keystore_proto::peer::{Content, Frame};
use keystore_proto::succession::{votes_from_wire, votes_to_wire};
use keystore_proto::v1;
use prost::Message as _;

fn node(n: u8) -> NodeId {
    NodeId([n; 16])
}

fn member(n: u8) -> Member {
    let zone = format!("zone-{}", n % 2);
    let (actor, name) = (Actor(u64::from(n) << 40), format!("demo-{n}"));
    Member { node: node(n), actor, name, zone, weight: n.into(), is_lost: false }
}

/// Data moves from nodes 1 to 3 to nodes 2 to 4, of which one is lost; a fifth has departed.
fn joint() -> Layout {
    let first = Layout::first(FirstLayout {
        cluster: ClusterId([9; 16]),
        incarnation: Incarnation { number: 1, id: 77 },
        partitions: PartitionCount::new(16).unwrap(),
        replication_factor: 3,
        members: (1..=3).map(member).collect(),
        keyspaces: BTreeMap::from([("causal".to_owned(), KeyspaceMode::Siblings)]),
    });
    let changes = [
        Change::Admit(vec![member(4), member(5)]),
        Change::Dismiss([node(5)].into()),
        Change::Move { members: (2..=4).map(member).collect(), replication_factor: 3 },
        Change::Lose([node(3)].into()),
    ];
    changes.iter().fold(first.unwrap(), |layout, change| layout.next(change).unwrap())
}

/// As far as the first release said it.
fn standing() -> Standing {
    let whole = [0, 7, 15].map(Partition).into();
    Standing { fence: Epoch(5), phase: Epoch(4), whole, ..Standing::default() }
}

fn evidence() -> Evidence {
    [(node(1), Standing::default()), (node(2), standing())].into()
}

fn ballot(round: u64) -> Ballot {
    Ballot { round, proposer: node(2), generation: Generation(u64::MAX) }
}

fn vote() -> Vote {
    Vote { ballot: ballot(3), layout: joint(), evidence: evidence() }
}

fn votes() -> [Votes; 3] {
    [
        Votes::default(),
        Votes { epoch: Epoch(6), promised: ballot(1), accepted: None },
        Votes { epoch: Epoch(6), promised: ballot(u64::MAX), accepted: Some(vote()) },
    ]
}

fn everything() -> Frame {
    let says = [
        Say::Prepare,
        Say::Promise { accepted: None },
        Say::Promise { accepted: Some(vote()) },
        Say::Accept { layout: joint(), evidence: evidence() },
        Say::Accept { layout: joint(), evidence: Evidence::new() },
        Say::Accepted,
        Say::Outbid { promised: ballot(9) },
        Say::Refused { why: "no data is moving".to_owned() },
    ];
    let says = says.map(|say| Message::Paxos { epoch: Epoch(6), ballot: ballot(4), say: Box::new(say) });
    let finished = joint().next(&Change::Finish).unwrap();
    let identities = vec![(Generation(3), Nonce(u64::MAX)), (Generation(0), Nonce(0))];
    let others = [
        Message::Layout { layout: Box::new(joint()), identities: Vec::new() },
        Message::Layout { layout: Box::new(finished), identities },
        Message::Standing(Standing::default()),
        Message::Standing(standing()),
    ];
    let header = Header {
        cluster: ClusterId([9; 16]),
        incarnation: Incarnation { number: 1, id: 77 },
        epoch: Epoch(5),
        from: node(1),
        to: node(2),
        generation: Generation(3),
    };
    Frame { header, content: Content::Messages(others.into_iter().chain(says).collect()) }
}

fn read(bytes: &[u8]) -> Frame {
    Frame::try_from(v1::PeerFrame::decode(bytes).unwrap()).unwrap()
}

fn read_votes(bytes: &[u8]) -> Votes {
    votes_from_wire(v1::PaxosVotes::decode(bytes).unwrap()).unwrap()
}

#[test]
fn what_is_said_about_layouts_reads_back() {
    let layout = joint();
    assert!(layout.is_joint() && layout.is_lost(node(3)) && layout.departed.contains(&node(5)));
    let bytes = v1::PeerFrame::from(everything()).encode_to_vec();
    assert_eq!(read(&bytes), everything());
    let read = Layout::try_from(v1::Layout::from(&layout)).unwrap();
    assert_eq!((read.digest(), read), (layout.digest(), layout));
}

#[test]
fn what_a_node_says_of_itself_reads_back() {
    let doubted = [1, 9].map(Partition).into();
    let said = Message::Standing(Standing { clears: true, doubted, ..standing() });
    let frame = Frame { content: Content::Messages(vec![said]), ..everything() };
    assert_eq!(read(&v1::PeerFrame::from(frame.clone()).encode_to_vec()), frame);
}

#[test]
fn votes_read_back() {
    for votes in votes() {
        assert_eq!(read_votes(&votes_to_wire(&votes).encode_to_vec()), votes);
    }
}

#[test]
fn what_was_said_and_saved_by_the_first_release_of_this_still_reads() {
    let mut everything = everything();
    let Content::Messages(messages) = &mut everything.content else { unreachable!() };
    for message in messages {
        // Said since.
        if let Message::Layout { identities, .. } = message {
            identities.clear();
        }
    }
    assert_eq!(read(include_bytes!("data/peer-layouts-v1.bin")), everything);
    let [_, _, votes] = votes();
    assert_eq!(read_votes(include_bytes!("data/votes-v1.bin")), votes);
}

#[test]
fn a_vote_for_what_is_no_layout_is_refused() {
    let [_, _, votes] = votes();
    let spoil: [fn(&mut v1::PaxosVotes); 4] = [
        |votes| votes.promised = None,
        |votes| votes.vote.as_mut().unwrap().ballot = None,
        |votes| votes.vote.as_mut().unwrap().proposal = None,
        |votes| votes.vote.as_mut().unwrap().proposal.as_mut().unwrap().layout.as_mut().unwrap().epoch = 0,
    ];
    for spoil in spoil {
        let mut spoilt = votes_to_wire(&votes);
        spoil(&mut spoilt);
        assert!(votes_from_wire(spoilt).is_err());
    }
}
