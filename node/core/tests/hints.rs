//! Hints, event by event: what is kept for a node that may have missed a write, and how it is handed over.

#![allow(clippy::unwrap_used, reason = "a broken harness may panic")]

mod bench;

use std::collections::{BTreeMap, BTreeSet};

use bench::{Bench, ME, PEER, WALL_MS, first_layout, header, key, layout, now, put, record, start};
use keystore_core::effect::{
    Commit, CommitId, Damaged, Effect, Entry, Event, Hint, LoadId, NotCommitted, SavedState,
};
use keystore_core::layout::Layout;
use keystore_core::message::{Call, Header, Message, Origin, Refusal, Write, WriteOutcome};
use keystore_core::node::{Settings, Start};
use keystore_core::partition::RecordKey;
use keystore_core::quorum::{Consistency, Durability};
use keystore_core::record::{Body, Record};
use keystore_core::succession::Change;
use proptest::prelude::*;

const HELD: WriteOutcome = WriteOutcome::Held(Durability::Synced);
const HOUR_MS: u64 = 3_600_000;

fn nth(n: u64) -> RecordKey {
    RecordKey::new("default", n.to_string().as_bytes()).unwrap()
}

fn hint(key: RecordKey, since_ms: u64) -> Hint {
    Hint { target: PEER, key, since_ms }
}

/// A node that was started with so many hints for its peer on disk.
fn starting_with(hints: Vec<Hint>, settings: Settings) -> Start {
    Start { hints, ..start(true, settings) }
}

fn loads(effects: &[Effect]) -> Vec<(LoadId, RecordKey)> {
    let load = |effect: &Effect| match effect {
        Effect::Load { load, key } => Some((*load, key.clone())),
        _ => None,
    };
    effects.iter().filter_map(load).collect()
}

fn entries(effects: &[Effect]) -> Vec<Entry> {
    let entry = |effect: &Effect| match effect {
        Effect::Commit(Commit { entry, .. }) => Some(entry.clone()),
        _ => None,
    };
    effects.iter().filter_map(entry).collect()
}

/// The records that were sent.
fn sent(effects: &[Effect]) -> Vec<Write> {
    let write = |effect: &Effect| match effect {
        Effect::Send { message: Message::Write(write), .. } => Some(write.clone()),
        _ => None,
    };
    effects.iter().filter_map(write).collect()
}

fn done(key: RecordKey) -> Entry {
    Entry::HintDone { target: PEER, key }
}

impl Bench {
    /// A coordinator asks for a hint.
    fn asked(&mut self, key: RecordKey) -> Vec<Effect> {
        self.frame(Message::Hint { target: PEER, key })
    }

    fn answer(&mut self, call: Call, outcome: WriteOutcome) -> Vec<Effect> {
        self.frame(Message::WriteAnswer { call, outcome, noted: Vec::new() })
    }

    /// Gives a record to the one load among the effects, and returns the call under which it is handed over.
    fn hand_over(&mut self, effects: &[Effect]) -> Call {
        let [(load, _)] = &loads(effects)[..] else { panic!("no load: {effects:?}") };
        let writes = sent(&self.loaded(load.0, Ok(Some(record(5)))));
        let [write] = &writes[..] else { panic!("no write: {writes:?}") };
        write.call
    }

    /// The other node has this layout, which is in force here then.
    fn take_up(&mut self, layout: &Layout) {
        let (layout, identities) = (Box::new(layout.clone()), Vec::new());
        let effects = self.frame(Message::Layout { layout, identities });
        let [Effect::Save { save, state: SavedState::Layout { .. } }] = effects[..] else {
            panic!("{effects:?}")
        };
        self.step(Event::Saved { save });
    }

    fn pending(&self) -> usize {
        self.node.status(now(self.at_ms)).hints.pending
    }

    fn wanted_by_repair(&self) -> usize {
        self.node.status(now(self.at_ms)).hints.partitions_wanted_by_repair
    }
}

#[test]
fn a_hint_is_kept_on_disk_until_its_target_has_what_it_missed() {
    let mut bench = Bench::new();
    bench.unlink();
    bench.relink();
    let effects = bench.asked(key());
    assert_eq!(entries(&effects), [Entry::Hint(hint(key(), WALL_MS))]);
    bench.committed(0);
    bench.unlink();
    let effects = bench.relink();
    assert_eq!(loads(&effects), [(LoadId(0), key())]);
    let effects = bench.loaded(0, Ok(Some(record(5))));
    let [write] = &sent(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!((&write.key, &write.record, write.origin), (&key(), &record(5), Origin::Repair));
    assert_eq!(write.durability, Durability::Synced);
    let call = write.call;
    assert_eq!(bench.pending(), 1, "it was sent, and that is all");
    assert_eq!(entries(&bench.answer(call, HELD)), [done(key())]);
    assert_eq!((bench.pending(), bench.node.status(now(0)).counters.hints_handed_over), (0, 1));
    assert_eq!(bench.answer(call, HELD), [], "said twice");
    assert_eq!(bench.node.next_wakeup_ms(), None, "there is nothing left to do");
}

#[test]
fn a_write_that_a_replica_missed_leaves_a_hint_with_one_that_holds_it() {
    let mut bench = Bench::new();
    bench.request(put(key()), Some(Consistency::One));
    bench.loaded(0, Ok(None));
    let effects = bench.committed(0);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Answer { .. })));
    assert_eq!(entries(&effects), [], "the other replica may still say that it holds it");
    let effects = bench.unlink();
    assert_eq!(entries(&effects), [Entry::Hint(hint(key(), WALL_MS))]);
}

#[test]
fn a_target_that_is_linked_all_along_is_given_a_moment() {
    let mut bench = Bench::new();
    let effects = bench.asked(key());
    assert_eq!(loads(&effects), []);
    let effects = bench.wake();
    assert_eq!(loads(&effects).len(), 1);
    assert!((100..=1_000).contains(&bench.at_ms), "{}", bench.at_ms);
}

#[test]
fn a_hint_that_is_asked_for_again_changes_nothing_unless_it_is_on_its_way() {
    let mut bench = Bench::new();
    bench.asked(key());
    assert_eq!(bench.asked(key()), []);
    let effects = bench.wake();
    assert_eq!(bench.asked(key()), [], "its record may have been read before this write");
    let call = bench.hand_over(&effects);
    let effects = bench.answer(call, HELD);
    assert_eq!((entries(&effects), loads(&effects).len()), (vec![], 1), "it is handed over once more");
    let call = bench.hand_over(&effects);
    assert_eq!(entries(&bench.answer(call, HELD)), [done(key())]);
}

#[test]
fn what_ends_a_hint_and_what_does_not() {
    let higher = WriteOutcome::Superseded(record(9).stamp);
    let cases = [
        (HELD, true),
        (higher, true),
        (WriteOutcome::Refused(Refusal::NotReplica), true),
        (WriteOutcome::Refused(Refusal::Overloaded), false),
        (WriteOutcome::Refused(Refusal::DiskFull), false),
        (WriteOutcome::Refused(Refusal::InDoubt), false),
    ];
    for (outcome, ends) in cases {
        let mut bench = Bench::started(starting_with(vec![hint(key(), WALL_MS)], Settings::default()));
        let effects = bench.link();
        let call = bench.hand_over(&effects);
        let effects = bench.answer(call, outcome);
        let expected = if ends { vec![done(key())] } else { vec![] };
        assert_eq!((entries(&effects), loads(&effects)), (expected, vec![]), "{outcome:?}");
        assert_eq!(bench.pending(), usize::from(!ends), "{outcome:?}");
        if !ends {
            while loads(&bench.wake()).is_empty() {}
            assert!(bench.at_ms <= 10_000, "it is tried again: {outcome:?}");
        }
    }
}

#[test]
fn a_hint_of_a_key_that_is_no_longer_held_ends() {
    let mut bench = Bench::started(starting_with(vec![hint(key(), WALL_MS)], Settings::default()));
    bench.link();
    let effects = bench.loaded(0, Ok(None));
    assert_eq!((entries(&effects), sent(&effects)), (vec![done(key())], vec![]));
}

#[test]
fn a_damaged_record_is_not_handed_over_and_its_hint_stays() {
    let mut bench = Bench::started(starting_with(vec![hint(key(), WALL_MS)], Settings::default()));
    bench.link();
    let effects = bench.loaded(0, Err(Damaged));
    assert_eq!((entries(&effects), sent(&effects), bench.pending()), (vec![], vec![], 1));
    assert_eq!(bench.node.status(now(0)).doubted_keys, 1, "it is healed from others first");
}

/// What was said under it may be of a replica that is none any more.
#[test]
fn a_hint_that_was_on_its_way_under_the_layout_before_goes_once_more_or_ends_with_its_target() {
    let before = layout();
    let as_before = before.next(&Change::Admit(first_layout(3, 2).members)).unwrap();
    let narrow = Change::Move { members: before.members.clone(), replication_factor: 1 };
    let narrower = before.next(&narrow).and_then(|moving| moving.next(&Change::Finish)).unwrap();
    let is_mine = |key: &RecordKey| narrower.is_replica(key.partition(narrower.partitions), ME);
    let key = (0..).map(nth).find(is_mine).unwrap();
    for (next, is_replica) in [(as_before, true), (narrower, false)] {
        let mut bench = Bench::started(starting_with(vec![hint(key.clone(), WALL_MS)], Settings::default()));
        let effects = bench.link();
        let call = bench.hand_over(&effects);
        bench.take_up(&next);
        let messages = vec![Message::WriteAnswer { call, outcome: HELD, noted: Vec::new() }];
        let header = Header { epoch: next.epoch, ..header(7) };
        let effects = bench.step(Event::Frame { link: bench.link, header, messages });
        assert_eq!(entries(&effects), [], "an answer to what was sent before ends nothing");
        if !is_replica {
            // It ends all the same where there is nobody to hand it over to.
            bench.unlink();
        }
        let effects = bench.step(Event::Tick);
        let (ends, again) = if is_replica { (vec![], 1) } else { (vec![done(key.clone())], 0) };
        assert_eq!((entries(&effects), loads(&effects).len()), (ends, again), "{is_replica}");
    }
}

#[test]
fn hints_of_keys_that_are_not_held_here_or_there_end_unheard() {
    let hints = (0..4).map(|n| hint(nth(n), WALL_MS)).collect();
    let start = starting_with(hints, Settings::default());
    let mut bench = Bench::started(Start { membership: Some((first_layout(2, 1), true)), ..start });
    let effects = bench.link();
    assert_eq!((entries(&effects).len(), loads(&effects), bench.pending()), (4, vec![], 0));
    assert_eq!(bench.asked(key()), [], "nor are such hints taken");
}

#[test]
fn a_target_that_refuses_is_left_alone_for_longer_each_time_and_then_given_one_at_a_time() {
    let hints: Vec<_> = (0..10).map(|n| hint(nth(n), WALL_MS)).collect();
    let mut bench = Bench::started(starting_with(hints, Settings::default()));
    let effects = bench.link();
    assert_eq!(loads(&effects).len(), 10);
    let calls: Vec<_> = loads(&effects)
        .iter()
        .map(|(load, _)| sent(&bench.loaded(load.0, Ok(Some(record(5)))))[0].call)
        .collect();
    for call in calls {
        bench.answer(call, WriteOutcome::Refused(Refusal::Overloaded));
    }
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let before_ms = bench.at_ms;
        let mut effects = bench.wake();
        while loads(&effects).is_empty() {
            effects = bench.wake();
        }
        pauses.push(bench.at_ms - before_ms);
        let call = bench.hand_over(&effects);
        bench.answer(call, WriteOutcome::Refused(Refusal::Overloaded));
    }
    assert!(pauses.is_sorted() && pauses[0] < 1_000 && pauses[7] == 10_000, "{pauses:?}");
    let mut effects = bench.wake();
    while loads(&effects).is_empty() {
        effects = bench.wake();
    }
    let call = bench.hand_over(&effects);
    let effects = bench.answer(call, HELD);
    assert!(loads(&effects).len() > 1, "once it has taken one, it is given more at a time");
}

#[test]
fn a_silent_target_holds_a_window_of_hints_and_its_late_answer_counts() {
    let hints = (0..100).map(|n| hint(nth(n), WALL_MS)).collect();
    let mut bench = Bench::started(starting_with(hints, Settings::default()));
    let effects = bench.link();
    let window = loads(&effects);
    assert_eq!(window.len(), 32);
    let calls: Vec<_> =
        window.iter().map(|(load, _)| sent(&bench.loaded(load.0, Ok(Some(record(5)))))[0].call).collect();
    let mut under_way = 0;
    while bench.at_ms < 60_000 {
        let more = loads(&bench.wake()).len();
        under_way += more;
        assert!(more <= 1, "one at a time is enough to find out");
    }
    assert!((4..20).contains(&under_way), "{under_way} in a minute");
    let effects = bench.answer(calls[31], HELD);
    assert_eq!(entries(&effects), [done(window[31].1.clone())]);
}

#[test]
fn nothing_is_done_for_a_target_that_is_not_linked() {
    let settings = Settings { hint_age_ms_max: 3 * HOUR_MS, ..Settings::default() };
    let mut bench = Bench::started(starting_with(vec![hint(key(), WALL_MS)], settings));
    assert_eq!(bench.step(Event::Tick), []);
    assert_eq!(bench.node.next_wakeup_ms(), Some(3 * HOUR_MS), "but to drop it when it is too old");
    bench.link();
    bench.unlink();
    assert_eq!(bench.loaded(0, Ok(Some(record(5)))), [], "it would go nowhere");
    assert_eq!(bench.node.next_wakeup_ms(), Some(3 * HOUR_MS));
    let effects = bench.relink();
    assert_eq!(loads(&effects).len(), 1);
}

#[test]
fn more_hints_than_the_bound_are_left_to_repair() {
    let mut bench = Bench::with(Settings { hint_bytes_max: 1_000, ..Settings::default() });
    let kept = (0..50).filter(|n| !entries(&bench.asked(nth(*n))).is_empty()).count();
    let status = bench.node.status(now(0));
    assert!((2..5).contains(&kept), "{kept}");
    assert_eq!((status.hints.pending, status.hints.targets[&PEER].0), (kept, kept));
    assert!(status.hints.bytes <= 1_000);
    assert_eq!(status.counters.hints_overflowed as usize, 50 - kept);
    assert!((10..=16).contains(&status.hints.partitions_wanted_by_repair), "{:?}", status.hints);
}

#[test]
fn a_bound_that_was_lowered_drops_the_newest_hints() {
    let hints: Vec<_> = (0..1_000).map(|n| hint(nth(n), WALL_MS + n)).collect();
    let settings = Settings { hint_bytes_max: 1_000, ..Settings::default() };
    let mut bench = Bench::started(starting_with(hints, settings));
    let mut dropped = Vec::new();
    while bench.pending() > 3 {
        let effects = bench.step(Event::Tick);
        dropped.extend(entries(&effects));
    }
    let expected: Vec<_> = (0..1_000).rev().take(dropped.len()).map(|n| done(nth(n))).collect();
    assert_eq!(dropped, expected);
}

#[test]
fn the_log_is_not_given_more_at_a_time_than_it_has_room_for() {
    let mut bench = Bench::new();
    let mut written: Vec<_> = (0..3_000).flat_map(|n| entries(&bench.asked(nth(n)))).collect();
    assert_eq!((written.len(), bench.pending()), (1_024, 3_000));
    bench.at_ms = 400;
    for commit in 0..3_000 {
        written.extend(entries(&bench.committed(commit)));
    }
    assert_eq!(written, (0..3_000).map(|n| Entry::Hint(hint(nth(n), written_at(n)))).collect::<Vec<_>>());
    bench.at_ms = 3 * HOUR_MS;
    assert_eq!(bench.step(Event::Tick).len(), 1_024);
    assert!(bench.node.next_wakeup_ms().is_none_or(|at| at > bench.at_ms), "it waits for the log alone");
    assert_eq!(bench.committed(3_000).len(), 1, "and goes on with it");
}

fn written_at(n: u64) -> u64 {
    if n < 1_024 { WALL_MS } else { WALL_MS + 400 }
}

#[test]
fn a_hint_that_the_log_refuses_is_left_to_repair() {
    let mut bench = Bench::new();
    bench.asked(key());
    bench.step(Event::Committed { commit: CommitId(0), outcome: Err(NotCommitted::Refused) });
    assert_eq!((bench.pending(), bench.wanted_by_repair()), (0, 1));
    assert_eq!(bench.node.next_wakeup_ms(), None);
}

#[test]
fn hints_are_dropped_for_their_age_and_not_for_a_clock_that_jumps() {
    let mut bench = Bench::new();
    bench.asked(key());
    bench.unlink();
    bench.wall_jump_ms = 1_000 * HOUR_MS;
    bench.at_ms = 2 * HOUR_MS;
    assert_eq!((bench.step(Event::Tick), bench.pending()), (vec![], 1));
    bench.at_ms = 3 * HOUR_MS;
    assert_eq!(bench.step(Event::Tick).len(), 1);
    let counters = bench.node.status(now(0)).counters;
    assert_eq!((bench.pending(), bench.wanted_by_repair(), counters.hints_expired), (0, 1, 1));
}

#[test]
fn a_start_measures_what_is_left_of_an_age_and_leaves_time_to_be_handed_over() {
    let cases = [
        (WALL_MS - HOUR_MS, 2 * HOUR_MS, "two hours are left"),
        (WALL_MS - 100 * HOUR_MS, 60_000, "too old by the clock: perhaps it jumped, perhaps all were away"),
        (WALL_MS + 100 * HOUR_MS, 3 * HOUR_MS, "the clock went back"),
    ];
    for (since_ms, expires_ms, what) in cases {
        let hints = vec![hint(key(), since_ms)];
        let bench = Bench::started(starting_with(hints, Settings::default()));
        assert_eq!(bench.node.next_wakeup_ms(), Some(expires_ms), "{what}");
    }
}

#[test]
fn large_records_are_handed_over_at_the_rate_of_the_background() {
    let hints = (0..100).map(|n| hint(nth(n), WALL_MS)).collect();
    let settings = Settings { background_bytes_per_s: 1 << 20, ..Settings::default() };
    let mut bench = Bench::started(starting_with(hints, settings));
    let large = Record { body: Body::Value(vec![7; 100_000].into()), ..record(5) };
    let mut effects = bench.link();
    while bench.pending() > 0 {
        if loads(&effects).is_empty() {
            effects = bench.wake();
        }
        let mut next = Vec::new();
        for (load, _) in loads(&effects) {
            for write in sent(&bench.loaded(load.0, Ok(Some(large.clone())))) {
                next.extend(bench.answer(write.call, HELD));
            }
        }
        effects = next;
    }
    assert!((5_000..=10_000).contains(&bench.at_ms), "10 MB took {} ms", bench.at_ms);
}

/// What may happen while hints are kept and handed over.
#[derive(Debug, Clone, Copy)]
enum Happening {
    Asked(u64),
    Wake,
    Unlink,
    Relink,
    /// One of those that wait.
    Loaded(usize),
    Answered(usize, bool),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => (0u64..6).prop_map(Happening::Asked),
        3 => Just(Happening::Wake),
        1 => Just(Happening::Unlink),
        1 => Just(Happening::Relink),
        4 => any::<usize>().prop_map(Happening::Loaded),
        4 => any::<(usize, bool)>().prop_map(|(which, held)| Happening::Answered(which, held)),
    ]
}

/// A disk, a record and a target beside the node.
struct World {
    bench: Bench,
    /// What the log comes to.
    disk: BTreeSet<RecordKey>,
    loads: Vec<(LoadId, RecordKey)>,
    writes: Vec<Write>,
    /// How often each key was written, at each loading and at the target.
    held: BTreeMap<RecordKey, u64>,
    target: BTreeMap<RecordKey, u64>,
    is_linked: bool,
}

impl World {
    fn take(&mut self, effects: &[Effect]) {
        for entry in entries(effects) {
            match entry {
                Entry::Hint(hint) => assert!(self.disk.insert(hint.key)),
                Entry::HintDone { key, .. } => assert!(self.disk.remove(&key)),
                Entry::Record { .. } | Entry::Replace { .. } => panic!("hints change no record"),
            }
        }
        self.loads.extend(loads(effects));
        self.writes.extend(sent(effects));
    }

    fn happen(&mut self, happening: Happening) {
        let effects = match happening {
            Happening::Asked(n) if self.is_linked => {
                *self.held.entry(nth(n)).or_default() += 1;
                self.bench.asked(nth(n))
            }
            Happening::Wake if self.bench.node.next_wakeup_ms().is_some_and(|at| at < HOUR_MS) => {
                self.bench.wake()
            }
            Happening::Unlink if self.is_linked => {
                self.is_linked = false;
                self.bench.unlink()
            }
            Happening::Relink => {
                self.is_linked = true;
                self.bench.relink()
            }
            Happening::Loaded(which) if !self.loads.is_empty() => {
                let (load, key) = self.loads.remove(which % self.loads.len());
                let version = self.held.get(&key).copied().unwrap_or(0);
                self.bench.loaded(load.0, Ok((version > 0).then(|| record(version))))
            }
            Happening::Answered(which, held) if self.is_linked && !self.writes.is_empty() => {
                let Write { call, key, record, .. } = self.writes.remove(which % self.writes.len());
                let version = record.stamp.millis() - WALL_MS;
                let known = self.target.entry(key).or_default();
                let outcome = if held { HELD } else { WriteOutcome::Refused(Refusal::Overloaded) };
                *known = (*known).max(if held { version } else { 0 });
                self.bench.answer(call, outcome)
            }
            _ => return,
        };
        self.take(&effects);
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_disk_agrees_and_in_the_end_the_target_has_it_all(
        happenings in prop::collection::vec(happening(), 0..120)
    ) {
        let mut world = World {
            bench: Bench::new(),
            disk: BTreeSet::new(),
            loads: Vec::new(),
            writes: Vec::new(),
            held: BTreeMap::new(),
            target: BTreeMap::new(),
            is_linked: true,
        };
        for happening in happenings {
            world.happen(happening);
            prop_assert_eq!(world.disk.len(), world.bench.pending());
        }
        world.happen(Happening::Relink);
        for _ in 0..2_000 {
            if world.disk.is_empty() {
                break;
            }
            let next = match (world.loads.is_empty(), world.writes.is_empty()) {
                (false, _) => Happening::Loaded(0),
                (true, false) => Happening::Answered(0, true),
                (true, true) => Happening::Wake,
            };
            world.happen(next);
        }
        prop_assert!(world.disk.is_empty(), "left: {:?}", world.disk);
        prop_assert_eq!(world.target, world.held);
    }
}
