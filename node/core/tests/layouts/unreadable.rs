//! What a node cannot read of its own: it counts for nothing, and holds up nobody else.

use keystore_core::effect::{Effect, Event, LinkId, NoPage, SavedState};
use keystore_core::id::{Epoch, Nonce};
use keystore_core::message::{Call, Hello, Message, Page, Refusal, Want};
use keystore_core::node::{Node, Settings, Start};
use keystore_core::partition::Partition;
use keystore_core::succession::Change;
use keystore_core::transfer::{Merge, Merges};

use crate::bench::effects::refusals;
use crate::bench::{ME, PEER, first_layout, now, start};
use crate::epochs::{again, key_in, node};
use crate::linked::Linked;

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
