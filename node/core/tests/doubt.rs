//! A node that has lost something, event by event: what it refuses, what it asks of others, and when it counts again.

#![allow(clippy::unwrap_used, reason = "a broken harness may panic")]

mod bench;

use bench::effects::{answer_in, answers, commit_in, load_in, messages, refusals};
use bench::many::{A, B, Bench, asked_in, raise_in};
use bench::{NOTHING_HELD, key_of, layout_of, record};
use keystore_core::effect::{
    Alarm, Answer, Commit, Damaged, Effect, Entry, Event, FailureReason, NoPage, NotCommitted, Now,
};
use keystore_core::id::{Generation, NodeId, Nonce};
use keystore_core::message::{
    Call, Message, MintOutcome, Page, ReadOutcome, Refusal, ScanOutcome, ScanRange, WriteOutcome,
};
use keystore_core::partition::{RecordKey, encoded_prefix};
use keystore_core::quorum::{Consistency, Durability};

fn is_refused_in_doubt(effects: &[Effect]) -> bool {
    refusals(effects).contains(&Refusal::InDoubt)
}

/// What comes of waiting; others hear meanwhile what this node is in doubt of.
fn later<T>(bench: &mut Bench, find: impl Fn(&[Effect]) -> Option<T>) -> T {
    (0..20).find_map(|_| find(&bench.tick())).expect("it comes")
}

fn asked_later(bench: &mut Bench) -> Vec<(NodeId, Call, Generation)> {
    later(bench, |effects| Some(asked_in(effects)).filter(|asked| !asked.is_empty()))
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
    let hello = bench.node.hello(A).unwrap();
    assert_eq!(hello.identity(), (Generation(2), Nonce(1)), "it is still the same process");
    assert_eq!(hello.nonce_at(Generation(1)), Some(Nonce(1)), "and comes after what it was");
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
    let asked = asked_later(&mut bench);
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
    let (save, generation) = later(&mut bench, raise_in);
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
    assert_eq!(answers(&effects), [(call, refused)]);
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
    assert_eq!(answers(&effects), [], "nor is it said to be refused: it is in the log");
    let effects = bench.committed(commit, Durability::Synced);
    assert_eq!(answers(&effects), []);
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
    assert_eq!(answers(&effects), [(call, WriteOutcome::Superseded(record(9).stamp))]);
}

#[test]
fn a_heal_that_the_log_refuses_or_the_engine_cannot_take_is_tried_again() {
    for why in [NotCommitted::Refused, NotCommitted::Damaged] {
        let mut bench = Bench::new();
        let call = bench.ask("k");
        bench.answer(A, call, ReadOutcome::Missing);
        let effects = bench.answer(B, call, ReadOutcome::Full(record(9)));
        let heal = commit_in(&effects).unwrap().id;
        bench.step(Event::Committed { commit: heal, outcome: Err(why) });
        assert_eq!(bench.doubted(), 1);
        assert_eq!(asked_later(&mut bench).len(), 2);
    }
}

#[test]
fn a_write_that_the_engine_could_not_take_is_doubt_and_nobody_is_answered() {
    let mut bench = Bench::new();
    let (_, effects) = bench.write("k", 5, Durability::Synced);
    let effects = bench.step(Event::Loaded { load: load_in(&effects), record: Ok(None) });
    let commit = commit_in(&effects).unwrap().id;
    let effects = bench.step(Event::Committed { commit, outcome: Err(NotCommitted::Damaged) });
    assert!(answers(&effects).is_empty() && raise_in(&effects).is_some(), "{effects:?}");
    assert_eq!(bench.doubted(), 1);
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
    assert_eq!(later(&mut bench, raise_in).1, 3);
}

#[test]
fn a_scan_is_refused_where_it_would_speak_of_a_key_in_doubt() {
    let layout = layout_of(3);
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
    let effects = bench.frame(A, Message::Scan { call, range, held: None });
    let effects =
        bench.step(Event::Scanned { load: load_in(&effects), page: Err(NoPage::Damaged(damaged.clone())) });
    assert!(is_refused_in_doubt(&effects) && raise_in(&effects).is_some());
    for (range, entries, is_cut, is_refused, what) in cases {
        let call = bench.call();
        let effects = bench.frame(A, Message::Scan { call, range, held: None });
        let page = if is_cut { Page::cut(entries) } else { Page::whole(entries) };
        let effects = bench.step(Event::Scanned { load: load_in(&effects), page: Ok(page) });
        assert_eq!(is_refused_in_doubt(&effects), is_refused, "{what}: {effects:?}");
    }
}

#[test]
fn a_page_that_ends_where_nothing_is_left_is_read_on_and_told_up_to_its_last_record() {
    let count = layout_of(3).partitions;
    let of_one = |n: &u32| key_of(&format!("k{n}")).partition(count) == key_of("k").partition(count);
    let mut keys: Vec<_> = (0..).filter(of_one).take(3).map(|n| key_of(&format!("k{n}"))).collect();
    keys.sort_by(|one, other| one.place().cmp(&other.place()));
    let [gone, there, gone_too] = &keys[..] else { unreachable!() };
    let mut bench = Bench::new();
    let (_, effects) = bench.scan("k", None);
    let nothing = Page { entries: Vec::new(), until: Some(gone.clone()) };
    let effects = bench.step(Event::Scanned { load: load_in(&effects), page: Ok(nothing) });
    let [Effect::Scan { load, range }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(range.after.as_ref(), Some(gone));
    let page = Page { entries: vec![(there.clone(), record(5))], until: Some(gone_too.clone()) };
    let effects = bench.step(Event::Scanned { load: *load, page: Ok(page) });
    let messages = messages(&effects);
    let [Message::ScanAnswer { outcome: ScanOutcome::Page(page), .. }] = &messages[..] else {
        panic!("{effects:?}")
    };
    assert_eq!(page.until.as_ref(), Some(there), "a peer hears only that it is cut");
}

/// A peer asks for a page of the partition of a key, of which a stretch cannot be read; returns what follows.
fn meet_what_cannot_be_read(bench: &mut Bench, key: &str) -> Vec<Effect> {
    let (_, effects) = bench.scan(key, None);
    bench.step(Event::Scanned { load: load_in(&effects), page: Err(NoPage::Unreadable) })
}

/// Some 20 seconds go by. What this node reads of itself is as given, and of others these say that they hold nothing.
fn merge(bench: &mut Bench, own: &Result<Page, NoPage>, others: &[NodeId]) -> Vec<Effect> {
    merge_from(bench, own, |from, _| others.contains(&from).then(Page::default))
}

/// The same, and the others say these pages, or nothing.
fn merge_from(
    bench: &mut Bench,
    own: &Result<Page, NoPage>,
    mut page: impl FnMut(NodeId, &ScanRange) -> Option<Page>,
) -> Vec<Effect> {
    let until_ms = bench.now_ms + 20_000;
    let mut seen = Vec::new();
    while bench.now_ms < until_ms && bench.node.next_wakeup_ms().is_some() {
        let mut effects = bench.tick();
        while let Some(effect) = (!effects.is_empty()).then(|| effects.remove(0)) {
            let more = match &effect {
                Effect::Scan { load, .. } => bench.step(Event::Scanned { load: *load, page: own.clone() }),
                Effect::Load { load, .. } => bench.step(Event::Loaded { load: *load, record: Ok(None) }),
                Effect::Commit(commit) => bench.committed(commit.id, Durability::Synced),
                Effect::Send { header, message: Message::Scan { call, range, .. }, .. } => {
                    match page(header.to, range) {
                        None => Vec::new(),
                        Some(page) => {
                            let (call, outcome) = (*call, ScanOutcome::Page(page));
                            let answer = Message::ScanAnswer { call, outcome, noted: Vec::new() };
                            bench.frame(header.to, answer)
                        }
                    }
                }
                _ => Vec::new(),
            };
            effects.extend(more);
            seen.push(effect);
        }
    }
    seen
}

fn is_healed(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Alarm(Alarm::HealedPartition { .. })))
}

/// A key of another partition than that of this one.
fn elsewhere(key: &str) -> String {
    let partition = |key: &str| key_of(key).partition(layout_of(3).partitions);
    (0..).map(|n| format!("k{n}")).find(|other| partition(other) != partition(key)).unwrap()
}

#[test]
fn a_stretch_that_cannot_be_read_is_doubt_of_its_whole_partition() {
    let mut bench = Bench::new();
    let (waiting, _) = bench.read("k");
    let begun = [None, Some(NOTHING_HELD)].map(|held| load_in(&bench.scan("k", held).1));
    let effects = meet_what_cannot_be_read(&mut bench, "k");
    let partition = key_of("k").partition(layout_of(3).partitions);
    assert!(effects.contains(&Effect::Alarm(Alarm::DoubtedPartition { partition })));
    let refused = [Refusal::InDoubt; 2];
    assert_eq!(
        refusals(&effects),
        refused,
        "the page, and the read {waiting:?} that was under way: {effects:?}"
    );
    assert_eq!(raise_in(&effects).unwrap().1, 2);
    let asked = [
        bench.read("k").1,
        bench.write("k", 5, Durability::Synced).1,
        bench.mint("k").1,
        bench.scan("k", None).1,
        bench.scan("k", Some(NOTHING_HELD)).1,
    ];
    for effects in asked {
        assert!(is_refused_in_doubt(&effects) && effects.len() == 1, "without a look: {effects:?}");
    }
    for load in begun {
        let effects = bench.step(Event::Scanned { load, page: Ok(Page::default()) });
        assert!(is_refused_in_doubt(&effects), "a page that was begun before: {effects:?}");
    }
    assert!(matches!(bench.read(&elsewhere("k")).1[..], [Effect::Load { .. }]));
    let status = bench.node.status(Now::default());
    assert_eq!(status.doubted_wholly, [(partition, 0)]);
    assert!(status.doubted_partitions.contains(&partition));
}

#[test]
fn a_partition_in_doubt_counts_again_once_enough_others_are_merged_and_all_of_it_can_be_read() {
    let whole = Ok(Page::default());
    let mut bench = Bench::new();
    let effects = meet_what_cannot_be_read(&mut bench, "k");
    assert!(!is_healed(&merge(&mut bench, &whole, &[A, B])), "over links of before");
    let (save, _) = raise_in(&effects).unwrap();
    bench.step(Event::Saved { save });
    bench.link(A, 7);
    assert!(!is_healed(&merge(&mut bench, &whole, &[A])), "of three, both others have to be merged");
    bench.link(B, 7);
    assert!(!is_healed(&merge(&mut bench, &Err(NoPage::Unreadable), &[A, B])), "it still cannot be read");
    assert!(is_refused_in_doubt(&bench.read("k").1));
    assert!(is_healed(&merge(&mut bench, &whole, &[])), "nobody is asked again");
    assert!(matches!(bench.read("k").1[..], [Effect::Load { .. }]));
    assert_eq!(bench.node.status(Now::default()).doubted_wholly, []);
}

#[test]
fn who_is_known_as_a_later_generation_is_merged_once_more() {
    let mut bench = Bench::new();
    let effects = meet_what_cannot_be_read(&mut bench, "k");
    bench.step(Event::Saved { save: raise_in(&effects).unwrap().0 });
    bench.link(A, 7);
    merge(&mut bench, &Ok(Page::default()), &[A]);
    bench.link(A, 8);
    bench.link(B, 7);
    assert!(!is_healed(&merge(&mut bench, &Ok(Page::default()), &[B])));
    assert!(is_healed(&merge(&mut bench, &Ok(Page::default()), &[A])));
}

#[test]
fn a_later_generation_is_merged_from_the_beginning_however_far_the_earlier_one_was_read() {
    let mut bench = Bench::new();
    let effects = meet_what_cannot_be_read(&mut bench, "k");
    bench.step(Event::Saved { save: raise_in(&effects).unwrap().0 });
    for generation in [7, 8] {
        bench.link(A, generation);
        let mut asked = Vec::new();
        merge_from(&mut bench, &Ok(Page::default()), |_, range| {
            asked.push(range.after.is_some());
            let first = Page::cut(vec![(key_of("k"), record(5))]);
            range.after.is_none().then_some(first)
        });
        assert!(asked.len() >= 2, "{asked:?}");
        let expected: Vec<_> = (0..asked.len()).map(|n| n > 0).collect();
        assert_eq!(asked, expected, "as generation {generation}");
    }
}

#[test]
fn beyond_so_many_keys_the_partition_of_the_next_is_in_doubt() {
    let mut bench = Bench::new();
    for n in 0..16_384 {
        bench.damage(&format!("k{n}"));
    }
    assert_eq!((bench.doubted(), bench.node.status(Now::default()).doubted_wholly.len()), (16_384, 0));
    bench.damage("one more");
    let partition = key_of("one more").partition(layout_of(3).partitions);
    assert_eq!(bench.node.status(Now::default()).doubted_wholly, [(partition, 0)]);
    let other = (0..).map(|n| format!("other{n}"));
    let other =
        other.into_iter().find(|key| key_of(key).partition(layout_of(3).partitions) == partition).unwrap();
    assert!(is_refused_in_doubt(&bench.read(&other).1), "another key of that partition");
}

#[test]
fn after_a_doubt_dots_are_minted_by_a_fresh_actor() {
    let mut bench = Bench::new();
    let dot = |bench: &mut Bench| {
        let (_, effects) = bench.mint("siblings");
        let effects = bench.loaded(&effects, Ok(None));
        match messages(&bench.synced(&effects))[..] {
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
