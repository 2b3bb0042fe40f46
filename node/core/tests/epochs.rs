//! How one node takes up the layouts that follow the first: nothing on its disk goes back, and nothing from before is left
//! where nothing may be.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bench;

use bench::{ME, PEER, first_layout, header, key_of, layout_of, now, record, start};
use keystore_core::effect::{Effect, Event, LinkId, NoPage, SavedState};
use keystore_core::id::{Epoch, NodeId, Nonce};
use keystore_core::layout::Layout;
use keystore_core::message::{Call, Header, Hello, Message, Origin, Page, Refusal, ScanOutcome, Want, Write};
use keystore_core::node::{Node, NodeState, Settings, Start};
use keystore_core::partition::{Partition, RecordKey};
use keystore_core::quorum::Durability;
use keystore_core::succession::Change;
use keystore_core::transfer::{Merge, Merges};

fn node(n: u8) -> NodeId {
    NodeId([n; 16])
}

/// A node that is linked to others, each of which speaks under an epoch of its own.
struct Linked {
    node: Node,
}

impl Linked {
    fn new(membership: (Layout, bool), peers: &[(NodeId, u64)]) -> Self {
        let start = Start { membership: Some(membership), ..start(true, Settings::default()) };
        let mut linked = Self { node: Node::new(start, now(0)) };
        for (peer, epoch) in peers {
            let hello = Hello { header: Self::header(*peer, *epoch), lineage: Nonce(7).into() };
            let effects = linked.step(Event::LinkOffered { link: Self::link(*peer), hello });
            for (save, _) in saves(&effects) {
                linked.step(Event::Saved { save });
            }
        }
        linked
    }

    fn link(peer: NodeId) -> LinkId {
        LinkId(peer.0[0].into())
    }

    fn header(from: NodeId, epoch: u64) -> Header {
        Header { epoch: Epoch(epoch), from, ..header(7) }
    }

    fn step(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.node.step(now(1), event, &mut effects);
        effects
    }

    fn frame(&mut self, (from, epoch): (NodeId, u64), message: Message) -> Vec<Effect> {
        let header = Self::header(from, epoch);
        self.step(Event::Frame { link: Self::link(from), header, messages: vec![message] })
    }

    fn learn(&mut self, from: (NodeId, u64), layout: &Layout) -> Vec<Effect> {
        self.frame(from, Message::Layout { layout: Box::new(layout.clone()), identities: Vec::new() })
    }
}

fn saves(effects: &[Effect]) -> Vec<(keystore_core::effect::SaveId, SavedState)> {
    let save = |effect: &Effect| match effect {
        Effect::Save { save, state } => Some((*save, state.clone())),
        _ => None,
    };
    effects.iter().filter_map(save).collect()
}

fn scan(effects: &[Effect]) -> Option<(keystore_core::effect::LoadId, Partition)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Scan { load, range } => Some((*load, range.partition)),
        _ => None,
    })
}

fn is_refused(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| match effect {
        Effect::Send { message, .. } => message.refusal() == Some(Refusal::StaleEpoch),
        _ => false,
    })
}

fn write_of(key: RecordKey) -> Message {
    let (call, record) = (Call { operation: 1, attempt: 1 }, record(5));
    Message::Write(Write { call, key, record, origin: Origin::Repair, durability: Durability::Synced })
}

#[test]
fn what_all_have_accepted_comes_too_late_once_a_later_layout_is_being_saved() {
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
fn again() -> (Linked, Layout) {
    let first = first_layout(4, 3);
    let without_me: Vec<_> = first.members.iter().filter(|member| member.node != ME).cloned().collect();
    let moving = first.next(&Change::Move { members: without_me, replication_factor: 3 }).unwrap();
    let left = moving.next(&Change::Finish).unwrap();
    let back = left.next(&Change::Move { members: first.members.clone(), replication_factor: 3 }).unwrap();
    (Linked::new((first, true), &[(PEER, 4), (node(3), 1)]), back)
}

fn key_in(partition: impl Fn(Partition) -> bool, layout: &Layout) -> RecordKey {
    let mut keys = (0..).map(|n| key_of(&format!("k{n}")));
    keys.find(|key| partition(key.partition(layout.partitions))).unwrap()
}

#[test]
fn what_is_cleared_stays_empty_until_the_layout_is_in_force() {
    let (mut linked, back) = again();
    let mut effects = linked.learn((PEER, 4), &back);
    let mut cleared = Vec::new();
    while let Some((load, partition)) = scan(&effects) {
        cleared.push(partition);
        let write = write_of(key_in(|of| of == partition, &back));
        assert!(is_refused(&linked.frame((node(3), 1), write)), "while it is being cleared");
        effects = linked.step(Event::Scanned { load, page: Ok(Page::default()) });
    }
    assert!(!cleared.is_empty());
    let [(save, SavedState::Layout { .. })] = saves(&effects)[..] else { panic!("{effects:?}") };
    let write = write_of(key_in(|of| of == cleared[0], &back));
    assert!(is_refused(&linked.frame((node(3), 1), write)), "while the layout is being saved");
    linked.step(Event::Saved { save });
    assert_eq!(linked.node.layout(), Some(&back));
}

#[test]
fn what_is_not_cleared_is_served_meanwhile() {
    let (mut linked, back) = again();
    let before = linked.node.layout().unwrap().clone();
    let effects = linked.learn((PEER, 4), &back);
    assert!(scan(&effects).is_some());
    let stays = |partition| {
        before.is_replica(partition, ME) && back.since(partition, ME).is_none_or(|since| since == Epoch(1))
    };
    let call = Call { operation: 1, attempt: 0 };
    let read = Message::Read { call, key: key_in(stays, &before), want: Want::Full };
    let effects = linked.frame((node(3), 1), read);
    assert!(matches!(effects[..], [Effect::Load { .. }]), "{effects:?}");
}

/// Joins three others that hold everything and nothing; each is asked for pages, and answers, refuses or is silent. Returns
/// after how many milliseconds all is taken over.
fn joins(answer: impl Fn(NodeId, Partition) -> Option<ScanOutcome>) -> Option<u64> {
    let all = first_layout(4, 3).members;
    let others = all.iter().filter(|member| member.node != ME).cloned().collect();
    let first = {
        let moving =
            first_layout(4, 3).next(&Change::Move { members: others, replication_factor: 3 }).unwrap();
        moving.next(&Change::Finish).unwrap()
    };
    let with_me = all.iter().filter(|member| member.node != node(4)).cloned().collect();
    let joint = first.next(&Change::Move { members: with_me, replication_factor: 3 }).unwrap();
    let epoch = joint.epoch.0;
    let peers = [(PEER, epoch), (node(3), epoch), (node(4), epoch)];
    let mut linked = Linked::new((joint, true), &peers);
    let mut at_ms = 1;
    while at_ms < 600_000 {
        let mut effects = Vec::new();
        linked.node.step(now(at_ms), Event::Tick, &mut effects);
        while let Some(effect) = effects.pop() {
            let event = match effect {
                Effect::Scan { load, .. } => Event::Scanned { load, page: Ok(Page::default()) },
                Effect::Save { save, .. } => Event::Saved { save },
                Effect::Send { link, message: Message::Scan { call, range, .. }, .. } => {
                    let from = node(u8::try_from(link.0).unwrap());
                    let Some(outcome) = answer(from, range.partition) else { continue };
                    let messages = vec![Message::ScanAnswer { call, outcome, noted: Vec::new() }];
                    Event::Frame { link, header: Linked::header(from, epoch), messages }
                }
                _ => continue,
            };
            linked.node.step(now(at_ms), event, &mut effects);
        }
        let transfer = linked.node.status(now(at_ms)).transfer;
        if transfer.done == transfer.partitions {
            return Some(at_ms);
        }
        at_ms = linked.node.next_wakeup_ms().map_or(at_ms + 1_000, |wakeup_ms| wakeup_ms.max(at_ms + 1));
    }
    None
}

fn empty() -> Option<ScanOutcome> {
    Some(ScanOutcome::Page(Page::default()))
}

#[test]
fn a_source_that_refuses_or_says_nothing_holds_up_no_move() {
    let with_all = joins(|_, _| empty()).unwrap();
    assert!(with_all < 5_000, "{with_all}");
    let refuses = |from, partition: Partition| match (from, partition.0 % 2) {
        (PEER, 0) => Some(ScanOutcome::Refused(Refusal::InDoubt)),
        _ => empty(),
    };
    let without_one = joins(refuses).unwrap();
    assert!(without_one < 10_000, "two of three are enough: {without_one}");
    let silent = joins(|from, _| if from == PEER { None } else { empty() }).unwrap();
    assert!(silent < 60_000, "one is silent: {silent}");
    assert_eq!(joins(|from, _| if from == node(4) { empty() } else { None }), None, "one is not enough");
}

/// A node of four takes over partitions, all of which a process of before had merged, and reads its own as given. Returns
/// how many it has to take over, and how many it calls done after a while.
fn started_after_merging(own: impl Fn(Partition) -> Result<Page, NoPage>) -> (Linked, usize, usize) {
    let all = first_layout(4, 3).members;
    let joint = first_layout(4, 3)
        .next(&Change::Move {
            members: all.iter().filter(|member| member.node != node(4)).cloned().collect(),
            replication_factor: 3,
        })
        .unwrap();
    let sources = all.iter().map(|member| member.node).filter(|node| *node != ME).collect();
    let merge = Merge { sources, pass: None };
    let partitions = joint.partitions.all().map(|partition| (partition, merge.clone())).collect();
    let merges = Merges { phase: joint.phase_since, partitions, ..Merges::default() };
    let start = Start { membership: Some((joint, true)), merges, ..start(true, Settings::default()) };
    let mut linked = Linked { node: Node::new(start, now(0)) };
    let before = linked.node.status(now(1)).transfer;
    assert_eq!(before.done, 0, "nothing is called whole before it was read");
    for at_ms in 1..1_000 {
        let mut effects = Vec::new();
        linked.node.step(now(at_ms), Event::Tick, &mut effects);
        while let Some(effect) = effects.pop() {
            let event = match effect {
                Effect::Scan { load, range } => Event::Scanned { load, page: own(range.partition) },
                Effect::Save { save, .. } => Event::Saved { save },
                _ => continue,
            };
            linked.node.step(now(at_ms), event, &mut effects);
        }
    }
    let done = linked.node.status(now(1_000)).transfer.done;
    (linked, before.partitions, done)
}

#[test]
fn what_was_merged_before_a_start_is_whole_once_this_process_has_read_it() {
    let (_, partitions, done) = started_after_merging(|_| Ok(Page::default()));
    assert_eq!(partitions, done);
}

#[test]
fn what_was_in_doubt_before_a_start_is_not_called_whole_after_it() {
    let (linked, partitions, done) = started_after_merging(|_| Err(NoPage::Unreadable));
    assert_eq!(done, 0, "of {partitions}");
    assert_eq!(linked.node.status(now(1_000)).doubted_wholly.len(), partitions);
}

/// Steps and ticks until nothing more is to be done within so long; every page is as given.
fn go_on(
    linked: &mut Linked,
    mut effects: Vec<Effect>,
    (from_ms, until_ms): (u64, u64),
    own: &Result<Page, NoPage>,
) -> Vec<SavedState> {
    let (mut at_ms, mut saved) = (from_ms, Vec::new());
    loop {
        while let Some(effect) = (!effects.is_empty()).then(|| effects.remove(0)) {
            let event = match effect {
                Effect::Scan { load, .. } => Event::Scanned { load, page: own.clone() },
                Effect::Save { save, state } => {
                    saved.push(state);
                    Event::Saved { save }
                }
                _ => continue,
            };
            linked.node.step(now(at_ms), event, &mut effects);
        }
        at_ms = linked.node.next_wakeup_ms().map_or(until_ms, |wakeup_ms| wakeup_ms.max(at_ms + 1));
        if at_ms >= until_ms {
            return saved;
        }
        linked.node.step(now(at_ms), Event::Tick, &mut effects);
    }
}

#[test]
fn what_cannot_be_cleared_holds_up_no_layout_and_counts_for_nothing_until_it_is() {
    let (mut linked, back) = again();
    let cleared: Vec<_> =
        back.partitions.all().filter(|p| back.since(*p, ME).is_some_and(|since| since > Epoch(1))).collect();
    let effects = linked.learn((PEER, 4), &back);
    let saved = go_on(&mut linked, effects, (1, 120_000), &Err(NoPage::Unreadable));
    assert_eq!(linked.node.layout(), Some(&back), "it is acknowledged");
    let [SavedState::Merges(merges), SavedState::Layout { .. }, ..] = &saved[..] else { panic!("{saved:?}") };
    assert_eq!(merges.uncleared, cleared.iter().copied().collect(), "which is on disk before the layout is");
    let doubted = |linked: &Linked| linked.node.status(now(120_000)).doubted_wholly.len();
    assert_eq!(doubted(&linked), cleared.len());
    let key = key_in(|of| of == cleared[0], &back);
    // Its links have closed with the new generation.
    let link = LinkId(50);
    let hello = Hello { header: Linked::header(PEER, 4), lineage: Nonce(7).into() };
    linked.step(Event::LinkOffered { link, hello });
    let call = Call { operation: 7, attempt: 0 };
    let messages = vec![Message::Read { call, key, want: Want::Full }];
    let effects = linked.step(Event::Frame { link, header: Linked::header(PEER, 4), messages });
    let is_in_doubt = |effect: &Effect| match effect {
        Effect::Send { message, .. } => message.refusal() == Some(Refusal::InDoubt),
        _ => false,
    };
    assert!(effects.iter().any(is_in_doubt), "{effects:?}");
    let start = Start {
        membership: Some((back.clone(), true)),
        merges: merges.clone(),
        ..start(true, Settings::default())
    };
    let mut again = Linked { node: Node::new(start, now(0)) };
    assert_eq!(doubted(&again), cleared.len(), "a start does not forget it");
    let saved = go_on(&mut again, Vec::new(), (0, 120_000), &Ok(Page::default()));
    let is_cleared =
        |state: &SavedState| matches!(state, SavedState::Merges(merges) if merges.uncleared.is_empty());
    assert!(saved.iter().any(is_cleared), "as soon as it can be read, it is cleared: {saved:?}");
    assert_eq!(doubted(&again), cleared.len(), "and what others hold is not merged yet");
}
