//! Work of the background, whichever it is: all of it keeps to one budget, which yields to clients, and what waits for it
//! is bounded.

use keystore_core::effect::{Effect, Event, Hint};
use keystore_core::held::{Digest, Digests, Held, Lacking};
use keystore_core::layout::Layout;
use keystore_core::message::{
    Call, Message, Page, Refusal, ScanOutcome, ScanRange, Want, Write, WriteOutcome,
};
use keystore_core::node::{Settings, Start};
use keystore_core::partition::Partition;
use keystore_core::quorum::Durability;
use keystore_core::record::{Body, Record};
use keystore_core::succession::{Change, Standing};
use keystore_core::transfer::Merges;

use crate::bench::effects::{load_in, refusals};
use crate::bench::{
    ME, NOTHING_HELD, PEER, WALL_MS, first_layout, key, key_of, layout_of, now, record, start,
};
use crate::epochs::{key_in, node};
use crate::linked::Linked;
use crate::moving::joiner_from;

/// Of the record that each page has.
const VALUE_BYTES: usize = 1 << 20;

/// Of the record that each hint is of.
const HINTED_BYTES: usize = 4_096;

/// A node on which work waits, and what was to be done at once.
type Working = (Linked, Vec<Effect>);
type Begin = fn(Settings) -> Working;

/// Another one that holds this asks for so many pages.
fn asked_for(linked: &mut Linked, pages: u64, held: &Held) -> Vec<Effect> {
    let epoch = linked.node.layout().unwrap().epoch.0;
    let range = ScanRange { partition: Partition(0), prefix: Default::default(), after: None, limit: 10 };
    let ask = |operation| {
        let call = Call { operation, attempt: 0 };
        let scan = Message::Scan { call, range: range.clone(), held: Some(held.clone()) };
        linked.frame((PEER, epoch), scan)
    };
    (0..pages).flat_map(ask).collect()
}

fn gives(settings: Settings) -> Working {
    let mut linked = stable(start(true, settings), layout_of(3));
    let effects = asked_for(&mut linked, 200, &NOTHING_HELD);
    (linked, effects)
}

/// To somebody who has it already.
fn gives_what_is_held(settings: Settings) -> Working {
    let mut linked = stable(start(true, settings), layout_of(3));
    let each = many().entries.iter().map(|(key, record)| Digest::of(key, record)).collect();
    let effects = asked_for(&mut linked, 200, &Held { until: None, digests: Digests::Each(each) });
    (linked, effects)
}

fn takes(settings: Settings) -> Working {
    (joiner_from(start(true, settings)).0, Vec::new())
}

/// It holds three quarters of what there is.
fn drops_what_is_others(settings: Settings) -> Working {
    let second = first_layout(4, 3).next(&Change::Admit(first_layout(5, 3).members)).unwrap();
    let standing = Standing { fence: second.epoch, phase: second.phase_since, ..Standing::default() };
    let mut linked = stable(start(true, settings), second.clone());
    let epoch = second.epoch.0;
    for other in second.members.iter().map(|member| member.node).filter(|other| *other != ME) {
        if other != PEER {
            linked.greet(Linked::header(other, epoch));
        }
        linked.frame((other, epoch), Message::Standing(standing.clone()));
    }
    (linked, Vec::new())
}

fn clears_what_it_could_not(settings: Settings) -> Working {
    let layout = layout_of(3);
    let elsewhere = layout.partitions.all().find(|of| *of != key().partition(layout.partitions)).unwrap();
    let merges = Merges { uncleared: [elsewhere].into(), ..Merges::default() };
    (stable(Start { merges, ..start(true, settings) }, layout), Vec::new())
}

fn stable(start: Start, layout: Layout) -> Linked {
    let epoch = layout.epoch.0;
    Linked::started(Start { membership: Some((layout, true)), ..start }, &[(PEER, epoch)])
}

/// A hundred reads are under way for clients.
fn read_much(linked: &mut Linked) {
    let layout = linked.node.layout().unwrap().clone();
    let doubted = linked.node.status(now(0)).doubted_partitions;
    let key = key_in(|of| layout.is_replica(of, ME) && !doubted.contains(&of), &layout);
    for operation in 0..100 {
        let (call, key) = (Call { operation, attempt: 0 }, key.clone());
        let read = Message::Read { call, key, want: Want::Full };
        let effects = linked.frame((PEER, layout.epoch.0), read);
        assert!(matches!(effects[..], [Effect::Load { .. }]), "{effects:?}");
    }
}

fn large() -> Page {
    let value = Record { body: Body::Value(vec![0; VALUE_BYTES].into()), ..record(5) };
    Page::whole(vec![(key(), value)])
}

/// As many small records as it takes for what comparing them costs to count.
fn many() -> Page {
    let entry = |n: u64| (key_of(&format!("k{n}")), record(5));
    Page::whole((0..64).map(entry).collect())
}

/// What the node reads, and what others say of it.
type Pages = (fn() -> Page, fn() -> ScanOutcome);
const DIFFERENT: Pages = (large, || ScanOutcome::Page(large()));
const SAME: Pages = (many, || ScanOutcome::Lacking(Lacking::default()));

/// How many pages of its own the node reads within a second, woken all the time.
fn pages_in_a_second(working: Working, pages: Pages) -> usize {
    pages_in_a_second_beside(working, pages, |_, _| {})
}

/// The same, and each time before it is woken, something happens to it.
fn pages_in_a_second_beside(
    (mut linked, mut effects): Working,
    (page, theirs): Pages,
    mut beside: impl FnMut(&mut Linked, u64),
) -> usize {
    let mut pages = 0;
    for at_ms in (1..1_000).step_by(10) {
        beside(&mut linked, at_ms);
        linked.node.step(now(at_ms), Event::Tick, &mut effects);
        while let Some(effect) = effects.pop() {
            let event = match effect {
                Effect::Scan { load, .. } => {
                    pages += 1;
                    Event::Scanned { load, page: Ok(page()) }
                }
                Effect::Load { load, .. } => Event::Loaded { load, record: Ok(None) },
                Effect::Commit(commit) => {
                    Event::Committed { commit: commit.id, outcome: Ok(Durability::Synced) }
                }
                Effect::Send { link, header, message: Message::Scan { call, .. } } => {
                    let outcome = theirs();
                    let messages = vec![Message::ScanAnswer { call, outcome, noted: Vec::new() }];
                    Event::Frame { link, header: Linked::header(header.to, header.epoch.0), messages }
                }
                _ => continue,
            };
            linked.node.step(now(at_ms), event, &mut effects);
        }
    }
    pages
}

/// How many records a node hands over within a second of those that it has kept for another one: a thousand. Meanwhile it
/// has reads under way, or has not.
fn handed_over_in_a_second(is_busy: bool, settings: Settings) -> usize {
    let target = node(3);
    let hint = |n| Hint { target, key: key_of(&format!("k{n}")), since_ms: WALL_MS };
    let hints = (0..1_000).map(hint).collect();
    let mut linked = stable(Start { hints, ..start(true, settings) }, layout_of(3));
    if is_busy {
        read_much(&mut linked);
    }
    let value = Record { body: Body::Value(vec![0; HINTED_BYTES].into()), ..record(5) };
    let mut effects = linked.greet(Linked::header(target, 1));
    let mut handed_over = 0;
    for at_ms in (1..1_000).step_by(10) {
        linked.node.step(now(at_ms), Event::Tick, &mut effects);
        while let Some(effect) = effects.pop() {
            let event = match effect {
                Effect::Load { load, .. } => Event::Loaded { load, record: Ok(Some(value.clone())) },
                Effect::Commit(commit) => {
                    Event::Committed { commit: commit.id, outcome: Ok(Durability::Synced) }
                }
                Effect::Send { link, message: Message::Write(Write { call, .. }), .. } => {
                    handed_over += 1;
                    let outcome = WriteOutcome::Held(Durability::Synced);
                    let messages = vec![Message::WriteAnswer { call, outcome, noted: Vec::new() }];
                    Event::Frame { link, header: Linked::header(target, 1), messages }
                }
                _ => continue,
            };
            linked.node.step(now(at_ms), event, &mut effects);
        }
    }
    handed_over
}

#[test]
pub(crate) fn what_is_kept_for_others_is_handed_over_within_the_budget_of_the_background() {
    let settings = Settings { background_bytes_per_s: 100 * HINTED_BYTES as u64, ..Settings::default() };
    let idle = handed_over_in_a_second(false, settings.clone());
    // What an idle bucket holds, and what is under way at a time, come on top.
    assert!((90..=160).contains(&idle), "{idle}");
    let busy = handed_over_in_a_second(true, settings);
    assert!((1..=70).contains(&busy), "while clients read: {busy}");
}

#[test]
pub(crate) fn all_work_of_the_background_keeps_to_its_budget_and_yields_to_clients() {
    // With what a page of theirs costs, in bytes.
    let works: [(&str, Begin, u64, Pages); 6] = [
        ("gives", gives, VALUE_BYTES as u64, DIFFERENT),
        ("gives what is held", gives_what_is_held, 64 * 128, SAME),
        ("takes", takes, VALUE_BYTES as u64, DIFFERENT),
        ("compares", takes, 64 * 128, SAME),
        ("drops what is others'", drops_what_is_others, 128, DIFFERENT),
        ("clears what it could not", clears_what_it_could_not, 4_096, DIFFERENT),
    ];
    for (what, work, page_bytes, pages) in works {
        let settings = Settings { background_bytes_per_s: 8 * page_bytes, ..Settings::default() };
        let idle = pages_in_a_second(work(settings.clone()), pages);
        assert!((8..=16).contains(&idle), "{what}: 8 a second, and what an idle bucket holds: {idle}");
        let mut busy = work(settings);
        read_much(&mut busy.0);
        let busy = pages_in_a_second(busy, pages);
        assert!((1..=5).contains(&busy), "{what} while clients read: {busy}");
    }
}

/// It is woken each time just when all that was under way is answered.
#[test]
fn what_clients_wanted_since_the_node_was_woken_last_counts() {
    let settings = Settings { background_bytes_per_s: 8 * VALUE_BYTES as u64, ..Settings::default() };
    let read = |linked: &mut Linked, at_ms: u64| {
        let mut begun = Vec::new();
        for operation in 0..100 {
            let read = Message::Read { call: Call { operation, attempt: 0 }, key: key(), want: Want::Full };
            let (link, header) = (Linked::link(PEER), Linked::header(PEER, 1));
            let frame = Event::Frame { link, header, messages: vec![read] };
            linked.node.step(now(at_ms.saturating_sub(9)), frame, &mut begun);
        }
        for effect in begun {
            let Effect::Load { load, .. } = effect else { panic!("{effect:?}") };
            linked.node.step(now(at_ms), Event::Loaded { load, record: Ok(None) }, &mut Vec::new());
        }
    };
    let pages = pages_in_a_second_beside(gives(settings), DIFFERENT, read);
    assert!((1..=5).contains(&pages), "{pages}");
}

/// What each costs is known only once it is read.
#[test]
fn a_source_reads_only_so_many_pages_at_a_time() {
    let (mut linked, mut effects) = gives(Settings::default());
    for at_ms in 1..=100 {
        linked.node.step(now(at_ms), Event::Tick, &mut effects);
    }
    let pages = effects.iter().filter(|effect| matches!(effect, Effect::Scan { .. })).count();
    assert_eq!(pages, 4);
}

#[test]
fn a_source_keeps_only_so_many_waiting() {
    let mut linked = stable(start(true, Settings::default()), layout_of(3));
    let effects = asked_for(&mut linked, 600, &NOTHING_HELD);
    assert_eq!(refusals(&effects), vec![Refusal::Overloaded; 600 - 512]);
}

/// Whoever has asked has given up, and asks once more.
#[test]
fn a_source_reads_nothing_that_nobody_waits_for_any_more() {
    // What the first page costs takes five seconds.
    let settings = Settings { background_bytes_per_s: VALUE_BYTES as u64 / 5, ..Settings::default() };
    let mut linked = stable(start(true, settings), layout_of(3));
    asked_for(&mut linked, 2, &NOTHING_HELD);
    let load = load_in(&linked.tick(1));
    linked.step(Event::Scanned { load, page: Ok(large()) });
    assert_eq!(linked.tick(10_000), []);
}

#[test]
fn a_node_takes_over_only_so_many_partitions_at_a_time() {
    let (mut linked, _) = joiner_from(start(true, Settings::default()));
    let mut asked = 0;
    for at_ms in (1..5_000).step_by(10) {
        for effect in linked.tick(at_ms) {
            let Effect::Scan { load, .. } = effect else { continue };
            let effects = linked.step(Event::Scanned { load, page: Ok(Page::default()) });
            asked += effects.iter().filter(|effect| matches!(effect, Effect::Send { .. })).count();
        }
    }
    assert_eq!(asked, 4, "nobody answers, and that is waited for");
}
