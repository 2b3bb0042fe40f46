//! What a node cannot read of its own: it counts for nothing, and holds up nobody else.

use std::collections::BTreeSet;

use keystore_core::effect::{Commit, Effect, Event, LinkId, NoPage, SavedState};
use keystore_core::id::{Epoch, Nonce};
use keystore_core::layout::Layout;
use keystore_core::message::{
    Call, Hello, Message, Origin, Page, Refusal, ScanOutcome, ScanRange, Want, Write,
};
use keystore_core::node::{Node, Settings, Start};
use keystore_core::partition::Partition;
use keystore_core::quorum::Durability;
use keystore_core::succession::Change;
use keystore_core::transfer::{Merge, Merges};

use crate::bench::effects::refusals;
use crate::bench::{ME, PEER, first_layout, key, key_of, now, record, start};
use crate::doubting::{meet_what_cannot_be_read, note_the_doubt};
use crate::epochs::{again, key_in, node};
use crate::linked::Linked;
use crate::moving::joined;

/// A node of four takes over what the last one has.
fn moving() -> Layout {
    let all = first_layout(4, 3).members;
    let members = all.iter().filter(|member| member.node != node(4)).cloned().collect();
    first_layout(4, 3).next(&Change::Move { members, replication_factor: 3 }).unwrap()
}

/// It starts with so much of each partition merged by a process of before.
fn start_with(merge: impl Fn(Partition) -> Merge) -> Start {
    let joint = moving();
    let partitions = joint.partitions.all().map(|partition| (partition, merge(partition))).collect();
    let merges = Merges { phase: joint.phase_since, partitions, ..Merges::default() };
    Start { membership: Some((joint, true)), merges, ..start(true, Settings::default()) }
}

/// All was merged, and it reads its own as given. Returns how many it has to take over, and how many it calls done after a
/// while.
fn started_after_merging(own: impl Fn(Partition) -> Result<Page, NoPage>) -> (Linked, usize, usize) {
    let sources: BTreeSet<_> = [PEER, node(3), node(4)].into();
    let start = start_with(|_| Merge { sources: sources.clone(), pass: None });
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

/// What is behind the place at which a pass goes on, and what is behind a damaged record, may be all that was read of it.
#[test]
pub(crate) fn what_was_skipped_is_read_before_a_partition_is_whole() {
    let joint = moving();
    let is_kept = |partition| {
        let is_in_both =
            first_layout(4, 3).is_replica(partition, ME) && joint.ring().is_replica(partition, ME);
        is_in_both && joint.has_to_merge(partition)
    };
    let mine = joint.partitions.all().find(|partition| is_kept(*partition)).unwrap();
    let keys = (0..).map(|n| key_of(&format!("k{n}"))).filter(|key| key.partition(joint.partitions) == mine);
    let mut keys: Vec<_> = keys.take(2).collect();
    keys.sort_by(|one, other| one.place().cmp(&other.place()));
    let [damaged, last] = &keys[..] else { unreachable!() };
    // What it reads behind nothing, and behind the damaged record; behind the last one is nothing.
    let cases = [
        ("nothing is damaged", Some(None), [Ok(Page::default()), Ok(Page::default())], true),
        (
            "the beginning was skipped",
            Some(Some(last)),
            [Err(NoPage::Unreadable), Ok(Page::default())],
            false,
        ),
        (
            "what comes behind a damaged record was",
            None,
            [Err(NoPage::Damaged(damaged.clone())), Err(NoPage::Unreadable)],
            false,
        ),
    ];
    for (what, pass, own, is_whole) in cases {
        let pass = pass.map(|behind| (PEER, behind.cloned()));
        let merge = |partition| match partition == mine {
            true => Merge { sources: BTreeSet::new(), pass: pass.clone() },
            false => Merge { sources: [PEER, node(3), node(4)].into(), pass: None },
        };
        let epoch = joint.epoch.0;
        let peers = [PEER, node(3), node(4)].map(|peer| (peer, epoch));
        let mut linked = Linked::started(start_with(merge), &peers);
        let page = |range: &ScanRange| match &range.after {
            _ if range.partition != mine => Ok(Page::default()),
            None => own[0].clone(),
            Some(after) if after == damaged => own[1].clone(),
            Some(_) => Ok(Page::default()),
        };
        for at_ms in 1..2_000 {
            let mut effects = linked.tick(at_ms);
            while let Some(effect) = effects.pop() {
                effects.extend(match effect {
                    Effect::Scan { load, range } => linked.step(Event::Scanned { load, page: page(&range) }),
                    Effect::Load { load, .. } => linked.step(Event::Loaded { load, record: Ok(None) }),
                    Effect::Save { save, .. } => linked.step(Event::Saved { save }),
                    Effect::Commit(Commit { id: commit, .. }) => {
                        linked.step(Event::Committed { commit, outcome: Ok(Durability::Synced) })
                    }
                    // Each has to note the generation that follows a doubt.
                    Effect::CloseLink { link } => {
                        let peer = peers.iter().find(|(peer, _)| Linked::link(*peer) == link).unwrap().0;
                        linked.greet(Linked::header(peer, epoch))
                    }
                    Effect::Send { header, message: Message::Scan { call, range, .. }, .. } => {
                        let page = match &range.after {
                            None => Page::cut(vec![(last.clone(), record(5))]),
                            Some(_) => Page::default(),
                        };
                        let outcome = ScanOutcome::Page(page);
                        let answer = Message::ScanAnswer { call, outcome, noted: Vec::new() };
                        linked.frame((header.to, epoch), answer)
                    }
                    _ => Vec::new(),
                });
            }
        }
        let transfer = linked.node.status(now(2_000)).transfer;
        assert_eq!(transfer.partitions - transfer.done, usize::from(!is_whole), "{what}");
    }
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
pub(crate) fn what_cannot_be_cleared_holds_up_no_layout_and_counts_for_nothing_until_it_is() {
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
    assert_eq!(refusals(&effects), [Refusal::InDoubt], "{effects:?}");
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

/// The numbers of two nodes may be the same.
#[test]
pub(crate) fn what_others_write_under_the_number_of_a_pass_is_refused_in_doubt() {
    let (mut linked, joint) = joined();
    let effects = meet_what_cannot_be_read(&mut linked, &joint);
    note_the_doubt(&mut linked, &joint, &effects);
    let asked = (1..100).find_map(|n| {
        let [Effect::Scan { load, .. }] = linked.tick(n * 100)[..] else { return None };
        match &linked.step(Event::Scanned { load, page: Ok(Page::default()) })[..] {
            [Effect::Send { message: Message::Scan { call, .. }, .. }] => Some(*call),
            _ => None,
        }
    });
    let call = asked.expect("what others hold is asked for");
    let (key, origin, durability) = (key(), Origin::Repair, Durability::Synced);
    let write = Write { call, key, record: record(5), origin, durability };
    let effects = linked.frame((PEER, joint.epoch.0), Message::Write(write));
    assert_eq!(refusals(&effects), [Refusal::InDoubt], "{effects:?}");
}
