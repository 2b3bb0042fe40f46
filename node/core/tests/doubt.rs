//! A node that has lost something, event by event: what it refuses, what it asks of others, and when it counts again.
//! And a node whose disk is not the one that the others know.

#![allow(clippy::unwrap_used, reason = "a broken harness may panic")]

use std::collections::BTreeMap;

use bytes::Bytes;
use keystore_core::effect::{
    Alarm, Answer, Causal, ClientRequest, Commit, CommitId, CommitRefused, Damaged, Deadline, Effect, Entry,
    Event, FailureReason, LinkId, LoadId, Now, Operation, RequestId, SaveId, SavedState,
};
use keystore_core::id::{Actor, ClusterId, Generation, Incarnation, NodeId, Nonce};
use keystore_core::layout::{FirstLayout, KeyspaceMode, Layout, Member};
use keystore_core::message::{
    Call, Header, Hello, Message, Mint, MintOutcome, Noted, Origin, Page, ReadOutcome, Refusal, ScanOutcome,
    ScanRange, Want, Write, WriteOutcome,
};
use keystore_core::node::{Node, Settings, Start};
use keystore_core::partition::{PartitionCount, RecordKey, encoded_prefix};
use keystore_core::peers::LinkRefusal;
use keystore_core::quorum::{Consistency, Durability};
use keystore_core::record::{Body, Record};
use keystore_core::stamp::Stamp;

const WALL_MS: u64 = 1_700_000_000_000;
const ME: NodeId = NodeId([1; 16]);
const A: NodeId = NodeId([2; 16]);
const B: NodeId = NodeId([3; 16]);

/// One node of a cluster, driven from the seats of all others.
struct Bench {
    node: Node,
    members: u8,
    now_ms: u64,
    generation: u64,
    /// Of each peer the link in use, and the generation that it speaks as.
    links: BTreeMap<NodeId, (LinkId, u64)>,
    last_link: u64,
    calls: u64,
}

impl Bench {
    /// The node of three serves, linked to both others.
    fn new() -> Self {
        Self::of(3)
    }

    fn of(members: u8) -> Self {
        let node = Node::new(start(members), Now { mono_ms: 0, wall_ms: WALL_MS });
        let mut bench =
            Self { node, members, now_ms: 0, generation: 1, links: BTreeMap::new(), last_link: 0, calls: 0 };
        for n in 2..=members {
            bench.link(NodeId([n; 16]), 7);
        }
        bench
    }

    fn step(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        let now = Now { mono_ms: self.now_ms, wall_ms: WALL_MS + self.now_ms };
        self.node.step(now, event, &mut effects);
        effects
    }

    fn header(&self, from: NodeId, generation: u64) -> Header {
        let Layout { cluster, incarnation, epoch, .. } = layout(self.members);
        Header { cluster, incarnation, epoch, from, to: ME, generation: Generation(generation) }
    }

    fn hello(&self, from: NodeId, generation: u64) -> Hello {
        Hello { header: self.header(from, generation), nonce: Nonce(generation) }
    }

    /// A peer says hello, and its identity is saved if it has to be. Returns all effects but saves.
    fn link(&mut self, peer: NodeId, generation: u64) -> Vec<Effect> {
        self.last_link += 1;
        let link = LinkId(self.last_link);
        self.links.insert(peer, (link, generation));
        let hello = self.hello(peer, generation);
        let mut effects = self.step(Event::LinkOffered { link, hello });
        let mut done = Vec::new();
        while let Some(effect) = (!effects.is_empty()).then(|| effects.remove(0)) {
            match effect {
                Effect::Save { save, state: SavedState::Peers(_) } => {
                    effects.extend(self.step(Event::Saved { save }));
                }
                other => done.push(other),
            }
        }
        done
    }

    fn frame(&mut self, from: NodeId, message: Message) -> Vec<Effect> {
        let (link, generation) = self.links[&from];
        let header = self.header(from, generation);
        self.step(Event::Frame { link, header, messages: vec![message] })
    }

    fn call(&mut self) -> Call {
        self.calls += 1;
        Call { operation: self.calls, attempt: 1 }
    }

    fn write(&mut self, key: &str, millis: u64, durability: Durability) -> (Call, Vec<Effect>) {
        let (call, key, record) = (self.call(), key_of(key), record(millis));
        let write = Write { call, key, record, origin: Origin::Repair, durability };
        (call, self.frame(A, Message::Write(write)))
    }

    fn read(&mut self, key: &str) -> (Call, Vec<Effect>) {
        let call = self.call();
        (call, self.frame(A, Message::Read { call, key: key_of(key), want: Want::Full }))
    }

    /// A read meets a damaged record; returns what follows.
    fn damage(&mut self, key: &str) -> Vec<Effect> {
        let (_, effects) = self.read(key);
        let load = load_in(&effects);
        self.step(Event::Loaded { load, record: Err(Damaged) })
    }

    /// As `damage`, and the generation that follows is saved.
    fn raise(&mut self, key: &str) -> Vec<Effect> {
        let effects = self.damage(key);
        let (save, generation) = raise_in(&effects).unwrap();
        self.generation = generation;
        self.step(Event::Saved { save })
    }

    /// As `raise`, and both peers are linked again: returns the call by which they are asked.
    fn ask(&mut self, key: &str) -> Call {
        self.raise(key);
        self.link(A, 7);
        let effects = self.link(B, 7);
        let asked = asked_in(&effects);
        assert_eq!(asked.len(), 2, "both others are asked: {effects:?}");
        asked[0].1
    }

    fn answer(&mut self, from: NodeId, call: Call, outcome: ReadOutcome) -> Vec<Effect> {
        self.frame(from, Message::ReadAnswer { call, outcome, noted: Vec::new() })
    }

    fn tick(&mut self) -> Vec<Effect> {
        self.now_ms = self.now_ms.max(self.node.next_wakeup_ms().unwrap());
        self.step(Event::Tick)
    }

    fn committed(&mut self, commit: CommitId, durability: Durability) -> Vec<Effect> {
        self.step(Event::Committed { commit, outcome: Ok(durability) })
    }

    fn put(&mut self, key: &str, level: Consistency) -> Vec<Effect> {
        let causal = Causal::default();
        let operation = Operation::Put { key: key_of(key), value: Bytes::from("x"), ttl_ms: None, causal };
        let now = Now { mono_ms: self.now_ms, wall_ms: WALL_MS + self.now_ms };
        let deadline = Deadline::after(now, 5_000);
        let (consistency, durability) = (Some(level), None);
        let put = ClientRequest { id: RequestId(1), operation, consistency, durability, deadline };
        let mut effects = self.step(Event::Client(put));
        for effect in effects.clone() {
            if let Effect::Save { save, state: SavedState::StampCeiling(_) } = effect {
                effects.extend(self.step(Event::Saved { save }));
            }
        }
        effects
    }

    fn doubted(&self) -> usize {
        self.node.status(Now { mono_ms: self.now_ms, wall_ms: WALL_MS }).doubted_keys
    }
}

fn key_of(key: &str) -> RecordKey {
    RecordKey::new("default", key.as_bytes()).unwrap()
}

fn record(millis: u64) -> Record {
    let value = Bytes::from(millis.to_string());
    Record { stamp: Stamp::new(WALL_MS + millis, 0, Actor(2)), body: Body::Value(value) }
}

fn layout(members: u8) -> Layout {
    let member = |n: u8| Member {
        node: NodeId([n; 16]),
        actor: Actor(n.into()),
        name: String::new(),
        zone: String::new(),
        weight: 1,
    };
    Layout::first(FirstLayout {
        cluster: ClusterId([9; 16]),
        incarnation: Incarnation { number: 1, id: 1 },
        partitions: PartitionCount::new(16).unwrap(),
        replication_factor: members.into(),
        members: (1..=members).map(member).collect(),
        keyspaces: BTreeMap::from([("causal".to_owned(), KeyspaceMode::Siblings)]),
    })
    .unwrap()
}

fn start(members: u8) -> Start {
    Start {
        node: ME,
        actor: Actor(1),
        generation: Generation(1),
        nonce: Nonce(1),
        stamp_ceiling_ms: 0,
        membership: Some((layout(members), true)),
        peers: Default::default(),
        trusted_since: Generation(0),
        hints: Vec::new(),
        settings: Settings::default(),
    }
}

/// What somebody has noted of the replicas of a key: 7 of all but these.
fn noted(key: &str, but: &[(NodeId, u64)]) -> Noted {
    let layout = layout(3);
    let replicas = layout.replicas(key_of(key).partition(layout.partitions)).into_iter();
    let generation = |node| but.iter().find(|(of, _)| *of == node).map_or(7, |(_, generation)| *generation);
    replicas.map(|node| Generation(generation(node))).collect()
}

fn load_in(effects: &[Effect]) -> LoadId {
    let load = effects.iter().find_map(|effect| match effect {
        Effect::Load { load, .. } | Effect::Scan { load, .. } => Some(*load),
        _ => None,
    });
    load.unwrap_or_else(|| panic!("nothing is loaded: {effects:?}"))
}

fn commit_in(effects: &[Effect]) -> Option<&Commit> {
    effects.iter().find_map(|effect| if let Effect::Commit(commit) = effect { Some(commit) } else { None })
}

/// The save of a new generation.
fn raise_in(effects: &[Effect]) -> Option<(SaveId, u64)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Save { save, state: SavedState::Generation { generation, trusted_since } } => {
            assert_eq!(generation, trusted_since);
            Some((*save, generation.0))
        }
        _ => None,
    })
}

/// Who is asked for what it holds.
fn asked_in(effects: &[Effect]) -> Vec<(NodeId, Call, Generation)> {
    let asked = |effect: &Effect| match effect {
        Effect::Send { header, message: Message::Read { call, want: Want::Full, .. }, .. } => {
            Some((header.to, *call, header.generation))
        }
        _ => None,
    };
    effects.iter().filter_map(asked).collect()
}

fn messages(effects: &[Effect]) -> Vec<&Message> {
    let sent = effects.iter().filter_map(|effect| match effect {
        Effect::Send { message, .. } => Some(message),
        _ => None,
    });
    sent.collect()
}

fn write_outcomes(effects: &[Effect]) -> Vec<(Call, WriteOutcome)> {
    let outcome = |message: &Message| match message {
        Message::WriteAnswer { call, outcome, .. } => Some((*call, *outcome)),
        _ => None,
    };
    messages(effects).into_iter().filter_map(outcome).collect()
}

fn is_refused_in_doubt(effects: &[Effect]) -> bool {
    messages(effects).into_iter().any(|message| match message {
        Message::ReadAnswer { outcome, .. } => *outcome == ReadOutcome::Refused(Refusal::InDoubt),
        Message::WriteAnswer { outcome, .. } => *outcome == WriteOutcome::Refused(Refusal::InDoubt),
        Message::MintAnswer { outcome, .. } => *outcome == MintOutcome::Refused(Refusal::InDoubt),
        Message::ScanAnswer { outcome, .. } => *outcome == ScanOutcome::Refused(Refusal::InDoubt),
        _ => false,
    })
}

fn answer_in(effects: &[Effect]) -> Option<&Answer> {
    effects
        .iter()
        .find_map(|effect| if let Effect::Answer { answer, .. } = effect { Some(answer) } else { None })
}

#[test]
fn a_damaged_record_raises_the_generation_and_the_alarm() {
    let mut bench = Bench::new();
    let effects = bench.damage("k");
    assert!(is_refused_in_doubt(&effects));
    assert!(effects.contains(&Effect::Alarm(Alarm::DamagedRecord { key: key_of("k") })));
    let (save, generation) = raise_in(&effects).unwrap();
    assert_eq!((generation, bench.doubted()), (2, 1));
    assert_eq!(bench.node.hello(A).unwrap().header.generation, Generation(1), "not before it is durable");
    let effects = bench.step(Event::Saved { save });
    let closed = effects.iter().filter(|effect| matches!(effect, Effect::CloseLink { .. })).count();
    assert_eq!((closed, bench.node.status(Now::default()).connected.len()), (2, 0), "peers have to note it");
    let Hello { header, nonce } = bench.node.hello(A).unwrap();
    assert_eq!((header.generation, nonce), (Generation(2), Nonce(1)), "it is still the same process");
}

#[test]
fn while_in_doubt_the_key_is_refused_without_a_look_and_others_are_served() {
    let mut bench = Bench::new();
    bench.damage("k");
    for effects in [bench.read("k").1, bench.write("k", 5, Durability::Synced).1] {
        assert!(is_refused_in_doubt(&effects) && effects.len() == 1, "{effects:?}");
    }
    assert!(matches!(bench.read("other").1[..], [Effect::Load { .. }]));
}

#[test]
fn what_is_asked_of_others_is_asked_over_links_of_the_new_generation() {
    let mut bench = Bench::new();
    let effects = bench.raise("k");
    assert_eq!(asked_in(&effects), [], "nobody is linked");
    assert_eq!(asked_in(&bench.link(A, 7)), [], "one alone is too few");
    let effects = bench.link(B, 7);
    let asked: Vec<_> = asked_in(&effects).into_iter().map(|(to, _, of)| (to, of)).collect();
    assert_eq!(asked, [(A, Generation(2)), (B, Generation(2))]);
}

#[test]
fn what_all_others_hold_takes_the_place_of_the_damaged_record() {
    let mut bench = Bench::new();
    let call = bench.ask("k");
    let effects = bench.answer(A, call, ReadOutcome::Full(record(5)));
    assert!(commit_in(&effects).is_none(), "of three, both others have to be merged");
    let effects = bench.answer(B, call, ReadOutcome::Full(record(9)));
    let Commit { id, entry, durability } = commit_in(&effects).unwrap().clone();
    assert_eq!(entry, Entry::Replace { key: key_of("k"), record: Some(record(9)) });
    assert_eq!(durability, Durability::Synced);
    assert!(is_refused_in_doubt(&bench.read("k").1), "not before it is durable");
    let effects = bench.committed(id, Durability::Synced);
    assert!(effects.contains(&Effect::Alarm(Alarm::Healed { key: key_of("k") })));
    assert_eq!((bench.doubted(), bench.node.status(Now::default()).counters.heals), (0, 1));
    assert!(matches!(bench.read("k").1[..], [Effect::Load { .. }]));
}

#[test]
fn a_key_that_no_other_replica_has_is_left_empty() {
    let mut bench = Bench::new();
    let call = bench.ask("k");
    bench.answer(A, call, ReadOutcome::Missing);
    let effects = bench.answer(B, call, ReadOutcome::Missing);
    let expected = Entry::Replace { key: key_of("k"), record: None };
    assert_eq!(commit_in(&effects).unwrap().entry, expected);
}

#[test]
fn of_five_replicas_three_others_are_enough() {
    let mut bench = Bench::of(5);
    bench.raise("k");
    bench.link(A, 7);
    bench.link(B, 7);
    let call = asked_in(&bench.link(NodeId([4; 16]), 7))[0].1;
    bench.answer(A, call, ReadOutcome::Missing);
    bench.answer(B, call, ReadOutcome::Missing);
    let effects = bench.answer(NodeId([4; 16]), call, ReadOutcome::Full(record(5)));
    assert!(commit_in(&effects).is_some(), "{effects:?}");
}

#[test]
fn a_refusal_is_no_answer_and_the_others_are_asked_again_later() {
    let mut bench = Bench::new();
    let call = bench.ask("k");
    bench.answer(A, call, ReadOutcome::Full(record(5)));
    let effects = bench.answer(B, call, ReadOutcome::Refused(Refusal::InDoubt));
    assert_eq!((asked_in(&effects).len(), bench.doubted()), (0, 1));
    let asked = asked_in(&bench.tick());
    assert_eq!(asked.len(), 2, "from the beginning");
    assert_ne!(asked[0].1, call, "what was said to the first attempt does not count");
    bench.answer(A, call, ReadOutcome::Full(record(5)));
    bench.answer(B, call, ReadOutcome::Full(record(5)));
    assert_eq!(bench.doubted(), 1);
}

#[test]
fn who_does_not_answer_is_asked_again_and_less_and_less_often() {
    let mut bench = Bench::new();
    bench.ask("k");
    let mut asked_at = vec![bench.now_ms];
    while asked_at.len() < 6 {
        if !asked_in(&bench.tick()).is_empty() {
            asked_at.push(bench.now_ms);
        }
    }
    let pauses: Vec<_> = asked_at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.is_sorted() && pauses[0] < pauses[4], "{pauses:?}");
}

#[test]
fn an_answer_given_before_a_restart_of_its_sender_does_not_heal() {
    let mut bench = Bench::new();
    let call = bench.ask("k");
    bench.answer(A, call, ReadOutcome::Full(record(9)));
    bench.link(A, 8);
    let effects = bench.answer(B, call, ReadOutcome::Full(record(5)));
    assert!(commit_in(&effects).is_none());
}

#[test]
fn keys_that_come_into_doubt_before_the_save_share_a_generation_and_later_ones_do_not() {
    let mut bench = Bench::new();
    let first = bench.read("a").1;
    let second = bench.read("b").1;
    let (save, _) =
        raise_in(&bench.step(Event::Loaded { load: load_in(&first), record: Err(Damaged) })).unwrap();
    let late = bench.step(Event::Loaded { load: load_in(&second), record: Err(Damaged) });
    assert_eq!(raise_in(&late), None, "one at a time");
    bench.step(Event::Saved { save });
    bench.link(A, 7);
    let effects = bench.link(B, 7);
    assert_eq!(asked_in(&effects).len(), 2, "the first key alone is asked for: {effects:?}");
    let (save, generation) = raise_in(&bench.tick()).unwrap();
    assert_eq!(generation, 3);
    bench.step(Event::Saved { save });
    bench.link(A, 7);
    assert_eq!(asked_in(&bench.link(B, 7)).len(), 4, "both keys are asked for");
}

#[test]
fn the_more_keys_come_into_doubt_the_less_often_a_generation_is_raised() {
    let mut bench = Bench::new();
    let mut raised_at = Vec::new();
    for key in ["a", "b", "c", "d"] {
        let mut effects = bench.damage(key);
        let save = loop {
            match raise_in(&effects) {
                Some((save, _)) => break save,
                // Attempts to heal the keys before come in between.
                None => effects = bench.tick(),
            }
        };
        raised_at.push(bench.now_ms);
        bench.step(Event::Saved { save });
        bench.link(A, 7);
    }
    assert_eq!(raised_at, [0, 1_000, 3_000, 7_000]);
}

#[test]
fn no_generation_is_raised_while_no_peer_takes_this_node() {
    let mut bench = Bench::new();
    let (_, effects) = bench.read("k");
    for peer in [A, B] {
        let (link, _) = bench.links[&peer];
        bench.step(Event::LinkClosed { link });
    }
    let effects = bench.step(Event::Loaded { load: load_in(&effects), record: Err(Damaged) });
    assert_eq!((raise_in(&effects), bench.doubted()), (None, 1));
    assert!(raise_in(&bench.link(A, 7)).is_some());
}

#[test]
fn a_write_that_waits_for_a_damaged_record_is_refused_and_applied_nowhere() {
    let mut bench = Bench::new();
    let (call, waiting) = bench.write("k", 5, Durability::Synced);
    let effects = bench.damage("k");
    let refused = WriteOutcome::Refused(Refusal::InDoubt);
    assert_eq!(write_outcomes(&effects), [(call, refused)]);
    let effects = bench.step(Event::Loaded { load: load_in(&waiting), record: Ok(None) });
    assert_eq!(effects, [], "a result of before the doubt says nothing");
}

#[test]
fn a_write_that_is_being_committed_when_the_doubt_begins_is_never_acknowledged() {
    let mut bench = Bench::new();
    let (_, effects) = bench.write("k", 5, Durability::Synced);
    let effects = bench.step(Event::Loaded { load: load_in(&effects), record: Ok(None) });
    let commit = commit_in(&effects).unwrap().id;
    let effects = bench.damage("k");
    assert_eq!(write_outcomes(&effects), [], "nor is it said to be refused: it is in the log");
    let effects = bench.committed(commit, Durability::Synced);
    assert_eq!(write_outcomes(&effects), []);
}

#[test]
fn a_write_after_the_heal_is_merged_into_what_has_healed() {
    let mut bench = Bench::new();
    let (_, effects) = bench.write("k", 5, Durability::Synced);
    let effects = bench.step(Event::Loaded { load: load_in(&effects), record: Ok(None) });
    let commit = commit_in(&effects).unwrap().id;
    let call = bench.ask("k");
    bench.answer(A, call, ReadOutcome::Missing);
    let effects = bench.answer(B, call, ReadOutcome::Full(record(9)));
    let heal = commit_in(&effects).unwrap().id;
    bench.committed(commit, Durability::Synced);
    bench.committed(heal, Durability::Synced);
    let (call, effects) = bench.write("k", 7, Durability::Synced);
    let effects = bench.step(Event::Loaded { load: load_in(&effects), record: Ok(Some(record(9))) });
    assert_eq!(write_outcomes(&effects), [(call, WriteOutcome::Superseded(record(9).stamp))]);
}

#[test]
fn a_heal_that_the_log_refuses_is_tried_again() {
    let mut bench = Bench::new();
    let call = bench.ask("k");
    bench.answer(A, call, ReadOutcome::Missing);
    let effects = bench.answer(B, call, ReadOutcome::Full(record(9)));
    let heal = commit_in(&effects).unwrap().id;
    bench.step(Event::Committed { commit: heal, outcome: Err(CommitRefused) });
    assert_eq!(bench.doubted(), 1);
    assert_eq!(asked_in(&bench.tick()).len(), 2);
}

#[test]
fn a_damaged_key_that_has_healed_may_come_into_doubt_again() {
    let mut bench = Bench::new();
    let call = bench.ask("k");
    bench.answer(A, call, ReadOutcome::Missing);
    let effects = bench.answer(B, call, ReadOutcome::Full(record(9)));
    let heal = commit_in(&effects).unwrap().id;
    bench.committed(heal, Durability::Synced);
    bench.damage("k");
    assert_eq!(raise_in(&bench.tick()).unwrap().1, 3);
}

#[test]
fn a_scan_is_refused_where_it_would_speak_of_a_key_in_doubt() {
    let layout = layout(3);
    let keys = (0..).map(|n: u32| key_of(&format!("k{n}")));
    let mut keys: Vec<_> = keys.filter(|key| key.partition(layout.partitions).0 == 0).take(3).collect();
    keys.sort_by(|a, b| a.place().cmp(&b.place()));
    let [first, damaged, last] = &keys[..] else { panic!() };
    let entry = |key: &RecordKey| (key.clone(), record(1));
    let range = ScanRange {
        partition: damaged.partition(layout.partitions),
        prefix: encoded_prefix("default", b"").unwrap(),
        after: None,
        limit: 10,
    };
    let elsewhere = encoded_prefix("causal", b"").unwrap();
    let cases = [
        (range.clone(), vec![entry(first), entry(last)], false, true, "past it"),
        (range.clone(), vec![entry(first)], true, false, "before it"),
        (
            ScanRange { after: Some(damaged.clone()), ..range.clone() },
            vec![entry(last)],
            false,
            false,
            "after it",
        ),
        (ScanRange { prefix: elsewhere, ..range.clone() }, vec![], false, false, "elsewhere"),
    ];
    let mut bench = Bench::new();
    let call = bench.call();
    let effects = bench.frame(A, Message::Scan { call, range });
    let effects = bench.step(Event::Scanned { load: load_in(&effects), page: Err(damaged.clone()) });
    assert!(is_refused_in_doubt(&effects) && raise_in(&effects).is_some());
    for (range, entries, is_cut, is_refused, what) in cases {
        let call = bench.call();
        let effects = bench.frame(A, Message::Scan { call, range });
        let page = Page { entries, is_cut };
        let effects = bench.step(Event::Scanned { load: load_in(&effects), page: Ok(page) });
        assert_eq!(is_refused_in_doubt(&effects), is_refused, "{what}: {effects:?}");
    }
}

#[test]
fn after_a_doubt_dots_are_minted_by_a_fresh_actor() {
    let mut bench = Bench::new();
    let dot = |bench: &mut Bench| {
        let key = RecordKey::new("causal", b"k").unwrap();
        let change = keystore_core::causal::Change {
            stamp: record(1).stamp,
            operation: keystore_core::causal::OperationId([bench.calls as u8; 16]),
            context: Default::default(),
            value: Some(Bytes::from("x")),
            expires_ms: None,
        };
        let call = bench.call();
        let mint = Mint { call, key, change, deadline_wall_ms: WALL_MS + 60_000 };
        let effects = bench.frame(A, Message::Mint(mint));
        let effects = bench.step(Event::Loaded { load: load_in(&effects), record: Ok(None) });
        let commit = commit_in(&effects).unwrap().id;
        match messages(&bench.committed(commit, Durability::Synced))[..] {
            [Message::MintAnswer { outcome: MintOutcome::Minted { dot: Some(dot), .. }, .. }] => *dot,
            ref other => panic!("{other:?}"),
        }
    };
    let before = dot(&mut bench);
    bench.ask("k");
    let after = dot(&mut bench);
    assert_eq!((before.counter, after.counter), (1, 1));
    assert_ne!(before.actor, after.actor, "the first dot may be one of those that were lost");
}

#[test]
fn what_this_node_held_for_its_own_client_before_the_doubt_does_not_count_after_it() {
    let mut bench = Bench::new();
    let effects = bench.put("mine", Consistency::Quorum);
    let effects = bench.step(Event::Loaded { load: load_in(&effects), record: Ok(None) });
    let commit = commit_in(&effects).unwrap().id;
    assert_eq!(answer_in(&bench.committed(commit, Durability::Synced)), None, "one of two");
    let effects = bench.raise("k");
    let Some(Answer::Failed(failure)) = answer_in(&effects) else { panic!("{effects:?}") };
    assert_eq!((failure.reason, failure.acks), (FailureReason::OutcomeUnknown, 0));
}

#[test]
fn an_acknowledgement_counts_no_longer_once_its_sender_is_known_as_a_later_generation() {
    let write_in = |effects: &[Effect]| {
        let call =
            |message: &&Message| if let Message::Write(write) = message { Some(write.call) } else { None };
        messages(effects).iter().find_map(call).unwrap()
    };
    let held = |bench: &mut Bench, from, call, noted| {
        let outcome = WriteOutcome::Held(Durability::Synced);
        bench.frame(from, Message::WriteAnswer { call, outcome, noted })
    };
    // Its hello alone, even if the link breaks before the identity is saved.
    let mut bench = Bench::new();
    let effects = bench.put("k", Consistency::Quorum);
    let call = write_in(&effects);
    held(&mut bench, A, call, noted("k", &[(ME, 1)]));
    let hello = bench.hello(A, 8);
    bench.step(Event::LinkOffered { link: LinkId(99), hello });
    bench.step(Event::LinkClosed { link: LinkId(99) });
    let effects = held(&mut bench, B, call, noted("k", &[(ME, 1), (A, 8)]));
    assert_eq!(answer_in(&effects), None, "only B's counts");
    // What another one has noted.
    let mut bench = Bench::new();
    let effects = bench.put("k", Consistency::Quorum);
    let call = write_in(&effects);
    held(&mut bench, A, call, noted("k", &[(ME, 1)]));
    let effects = held(&mut bench, B, call, noted("k", &[(ME, 1), (A, 8)]));
    assert_eq!(answer_in(&effects), None, "only B's counts");
    assert_eq!(bench.node.status(Now::default()).counters.generations_heard, 1);
}

#[test]
fn an_answer_speaks_of_no_generation_that_is_not_on_disk_yet() {
    let noted_of_a = |bench: &mut Bench| {
        let call = bench.call();
        let effects = bench.frame(B, Message::Read { call, key: key_of("k"), want: Want::Full });
        let effects = bench.step(Event::Loaded { load: load_in(&effects), record: Ok(None) });
        match messages(&effects)[..] {
            [Message::ReadAnswer { noted, .. }] => noted.clone(),
            ref other => panic!("{other:?}"),
        }
    };
    let mut bench = Bench::new();
    let hello = bench.hello(A, 8);
    let effects = bench.step(Event::LinkOffered { link: LinkId(99), hello });
    let [Effect::Save { save, state: SavedState::Peers(_) }] = effects[..] else { panic!("{effects:?}") };
    assert_eq!(noted_of_a(&mut bench), noted("k", &[(ME, 1)]), "a crash could still forget it");
    bench.step(Event::Saved { save });
    assert_eq!(noted_of_a(&mut bench), noted("k", &[(ME, 1), (A, 8)]));
}

#[test]
fn all_news_of_an_answer_are_taken_in_before_anything_is_concluded_from_it() {
    let mut bench = Bench::of(5);
    let [c, d] = [NodeId([4; 16]), NodeId([5; 16])];
    let effects = bench.put("k", Consistency::Quorum);
    let call = messages(&effects)
        .iter()
        .find_map(|m| if let Message::Write(write) = m { Some(write.call) } else { None })
        .unwrap();
    let layout = layout(5);
    let replicas = layout.replicas(key_of("k").partition(layout.partitions));
    let held = |bench: &mut Bench, from, later: &[NodeId]| {
        let of = |node: &NodeId| {
            if *node == ME {
                1
            } else if later.contains(node) {
                8
            } else {
                7
            }
        };
        let noted = replicas.iter().map(|node| Generation(of(node))).collect();
        let outcome = WriteOutcome::Held(Durability::Synced);
        bench.frame(from, Message::WriteAnswer { call, outcome, noted })
    };
    assert_eq!(answer_in(&held(&mut bench, A, &[])), None);
    assert_eq!(answer_in(&held(&mut bench, B, &[])), None);
    assert_eq!(answer_in(&held(&mut bench, c, &[A, B])), None, "the third, and the first two are void");
    assert_eq!(answer_in(&held(&mut bench, d, &[A, B])), None);
}

#[test]
fn a_node_that_is_refused_as_stale_serves_no_more_and_says_so_once_its_disk_is_set_aside() {
    let mut bench = Bench::new();
    let stale = LinkRefusal::StaleGeneration;
    let refused =
        |generation, refusal| Event::HelloRefused { peer: A, generation: Generation(generation), refusal };
    assert_eq!(bench.step(refused(1, LinkRefusal::WrongCluster)), []);
    assert_eq!(bench.step(refused(0, stale)), [], "an earlier generation of ours was on its way");
    let stranger = NodeId([77; 16]);
    let by_stranger = Event::HelloRefused { peer: stranger, generation: Generation(1), refusal: stale };
    assert_eq!(bench.step(by_stranger), []);
    let effects = bench.step(refused(1, stale));
    let save = effects.iter().find_map(|effect| match effect {
        Effect::Save { save, state: SavedState::SetAside } => Some(*save),
        _ => None,
    });
    let closed = effects.iter().filter(|effect| matches!(effect, Effect::CloseLink { .. })).count();
    assert_eq!((closed, bench.node.hello(A)), (2, None));
    assert_eq!(bench.read("k").1, [], "nothing is answered");
    let effects = bench.put("k", Consistency::One);
    assert!(matches!(answer_in(&effects), Some(Answer::Failed(_))), "{effects:?}");
    assert_eq!(bench.node.next_wakeup_ms(), None);
    let effects = bench.step(Event::Saved { save: save.unwrap() });
    assert_eq!(effects, [Effect::Alarm(Alarm::StaleGeneration { peer: A })]);
}

#[test]
fn a_refusal_of_the_generation_before_a_doubt_says_nothing_about_the_disk() {
    let mut bench = Bench::new();
    bench.raise("k");
    let refusal = LinkRefusal::StaleGeneration;
    let late = Event::HelloRefused { peer: A, generation: Generation(1), refusal };
    assert_eq!(bench.step(late), []);
    assert!(bench.node.hello(A).is_some());
}

#[test]
fn a_node_that_hears_of_a_later_generation_of_itself_sets_its_disk_aside() {
    let mut bench = Bench::new();
    let effects = bench.put("k", Consistency::Quorum);
    let call = messages(&effects)
        .iter()
        .find_map(|m| if let Message::Write(write) = m { Some(write.call) } else { None })
        .unwrap();
    let outcome = WriteOutcome::Held(Durability::Synced);
    let effects = bench.frame(A, Message::WriteAnswer { call, outcome, noted: noted("k", &[(ME, 5)]) });
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Save { state: SavedState::SetAside, .. })));
    assert_eq!(answer_in(&effects), None);
}

#[test]
fn a_repair_below_a_record_that_is_only_written_waits_until_that_is_synced() {
    let mut bench = Bench::new();
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
    assert_eq!(write_outcomes(&bench.committed(anew.id, Durability::Synced)), [(pending, superseded)]);

    // Another key is written, after that the store does not say what is synced.
    let (_, effects) = bench.write("other", 9, Durability::Periodic);
    let effects = bench.step(Event::Loaded { load: load_in(&effects), record: Ok(None) });
    let written = commit_in(&effects).unwrap().id;
    bench.committed(written, Durability::Periodic);
    let (call, effects) = bench.write("k", 5, Durability::Synced);
    let effects = bench.step(Event::Loaded { load: load_in(&effects), record: Ok(Some(record(9))) });
    let anew = commit_in(&effects).unwrap().id;
    assert_eq!(write_outcomes(&bench.committed(anew, Durability::Synced)), [(call, superseded)]);

    // A sync covers all that was written before.
    let (call, effects) = bench.write("k", 6, Durability::Synced);
    let effects = bench.step(Event::Loaded { load: load_in(&effects), record: Ok(Some(record(9))) });
    assert_eq!((commit_in(&effects), write_outcomes(&effects)), (None, vec![(call, superseded)]));
}
