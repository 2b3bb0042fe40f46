//! What is salvaged of a partition: when it counts, and what becomes of what is damaged.

use std::collections::BTreeMap;

use keystore_core::effect::{
    Answer, CommitId, Damaged, Effect, Entry, Event, LoadId, NoPage, Operation, RequestId, SaveId, SavedState,
};
use keystore_core::id::Generation;
use keystore_core::layout::{KeyspaceMode, Layout};
use keystore_core::message::{
    Call, Message, Noted, Origin, Page, ReadOutcome, ScanOutcome, ScanRange, Want, Write,
};
use keystore_core::node::{NodeState, Settings, Start};
use keystore_core::quorum::Durability;
use keystore_core::record::{Body, Record};
use keystore_core::recovery::{Losses, RecoveryRefusal};
use keystore_core::succession::Change;

use crate::bench::effects::{answer_in, commit_in, load_in, messages, noted_in};
use crate::bench::{ME, PEER, first_layout, key, key_of, layout_of, now, record, request, start};
use crate::recovered::{attempt, lost};
use crate::surviving::{CALL, Survivor, decide, is_in_doubt, read, salvaging, salvaging_from};

#[test]
fn a_salvaged_partition_counts_once_all_that_is_left_is_merged() {
    let (mut survivor, layout) = salvaging();
    let asked = decide(&mut survivor, &layout);
    assert!(is_in_doubt(&survivor.frame(&layout, PEER, read())));
    let (call, origin) = (CALL, Origin::Repair);
    let write = Write { call, key: key(), record: record(5), origin, durability: Durability::Synced };
    assert!(is_in_doubt(&survivor.frame(&layout, PEER, Message::Write(write))));
    // What is left here is given away all the same.
    let mine = key().partition(layout.partitions);
    let range = ScanRange { partition: mine, prefix: Default::default(), after: None, limit: 10 };
    let load = asked_for(&mut survivor, &layout, call, &range);
    let effects = survivor.step(Event::Scanned { load, page: Ok(Page::default()) });
    let generation = |node| Generation(if node == ME { 1 } else { 7 });
    let noted: Noted = layout.replicas(mine).into_iter().map(generation).collect();
    assert_eq!(noted_in(effects), [noted], "with what is noted of the others, as every answer");

    merge_what_is_left(&mut survivor, &layout, asked);
    let effects = survivor.frame(&layout, PEER, read());
    assert!(matches!(effects[..], [Effect::Load { .. }]), "it counts: {effects:?}");
}

/// The other one asks for what is left in this range; returns what is read for it.
fn asked_for(survivor: &mut Survivor, layout: &Layout, call: Call, range: &ScanRange) -> LoadId {
    survivor.frame(layout, PEER, Message::Salvage { call, range: range.clone() });
    let effects = survivor.tick();
    let of = |effect: &Effect| match effect {
        Effect::Scan { load, range: of } => (of == range).then_some(*load),
        _ => None,
    };
    effects.iter().find_map(of).unwrap_or_else(|| panic!("{effects:?}"))
}

/// The other one has one record, and none of the other partitions.
fn merge_what_is_left(survivor: &mut Survivor, layout: &Layout, asked: Vec<Effect>) {
    let unsaved = merge_without_saving(survivor, layout, asked);
    note_saved(survivor, unsaved);
    assert_eq!(survivor.node.status(now(1)).transfer.done, 16);
}

fn note_saved(survivor: &mut Survivor, saves: Vec<SaveId>) {
    for save in saves {
        survivor.step(Event::Saved { save });
    }
}

/// Returns how far it says that it has come, in the order in which that is to be saved.
fn merge_without_saving(survivor: &mut Survivor, layout: &Layout, mut asked: Vec<Effect>) -> Vec<SaveId> {
    let mut saves = Vec::new();
    while survivor.merges.counted.len() < 16 {
        // It looks through what it holds itself as well.
        let own = asked.iter().position(|effect| matches!(effect, Effect::Scan { .. }));
        let theirs = asked
            .iter()
            .position(|effect| matches!(effect, Effect::Send { message: Message::Salvage { .. }, .. }));
        let effects = match own.or(theirs).map(|at| asked.remove(at)) {
            Some(Effect::Scan { load, .. }) => {
                survivor.step(Event::Scanned { load, page: Ok(Page::default()) }).to_vec()
            }
            Some(Effect::Send { message: Message::Salvage { call, range }, .. }) => {
                give_what_is_left(survivor, layout, call, &range)
            }
            _ => survivor.tick(),
        };
        saves.extend(effects.iter().filter_map(|effect| match effect {
            Effect::Save { save, state: SavedState::Merges(_) } => Some(*save),
            _ => None,
        }));
        asked.extend(effects);
    }
    saves
}

fn give_what_is_left(survivor: &mut Survivor, layout: &Layout, call: Call, range: &ScanRange) -> Vec<Effect> {
    let is_mine = range.partition == key().partition(layout.partitions);
    let entries = if is_mine { vec![(key(), record(5))] } else { vec![] };
    let outcome = ScanOutcome::Page(Page::whole(entries));
    let mut effects = survivor.frame(layout, PEER, Message::ScanAnswer { call, outcome, noted: vec![] });
    if is_mine {
        assert!(is_in_doubt(&survivor.frame(layout, PEER, read())), "it is not on disk yet");
        let load = load_in(&effects);
        effects.extend(survivor.step(Event::Loaded { load, record: Ok(None) }).to_vec());
        let commit = commit_in(&effects).map(|commit| commit.id).unwrap();
        let outcome = Ok(Durability::Synced);
        effects.extend(survivor.step(Event::Committed { commit, outcome }).to_vec());
    }
    effects
}

/// A survivor for which everything counts again.
fn counting() -> (Survivor, Layout) {
    let (mut survivor, layout) = salvaging();
    let asked = decide(&mut survivor, &layout);
    merge_what_is_left(&mut survivor, &layout, asked);
    (survivor, layout)
}

fn mine(layout: &Layout) -> ScanRange {
    let partition = key().partition(layout.partitions);
    ScanRange { partition, prefix: Default::default(), after: None, limit: 128 }
}

/// By then it counts, and what it has lost may have been acknowledged with it.
#[test]
fn what_is_damaged_of_a_salvaged_partition_once_that_is_merged_is_healed_and_not_dropped() {
    let (mut survivor, layout) = counting();
    let load = load_in(&survivor.frame(&layout, PEER, read()));
    let effects = survivor.step(Event::Loaded { load, record: Err(Damaged) }).to_vec();
    check_is_healed(&mut survivor, &layout, effects);
}

/// What is damaged is asked of the other one, and takes its place.
fn check_is_healed(survivor: &mut Survivor, layout: &Layout, effects: Vec<Effect>) {
    survivor.effects = effects;
    let mut effects = survivor.save_all();
    effects.extend(survivor.link(layout, PEER));
    assert_eq!(commit_in(&effects), None);
    let asked = messages(&effects).into_iter().find_map(|message| match message {
        Message::Read { call, key: of, want: Want::Full } if *of == key() => Some(*call),
        _ => None,
    });
    let outcome = ReadOutcome::Full(record(5));
    let answer = Message::ReadAnswer { call: asked.unwrap(), outcome, noted: Vec::new() };
    let effects = survivor.frame(layout, PEER, answer);
    let healed = Entry::Replace { key: key(), record: Some(record(5)) };
    assert_eq!(commit_in(&effects).map(|commit| &commit.entry), Some(&healed));
}

/// A process that begins looks through what it holds before that counts again, and meets then what is damaged.
#[test]
pub(crate) fn what_has_counted_before_a_start_is_healed_after_it() {
    let (survivor, layout) = counting();
    let membership = Some((layout.clone(), true));
    let start = Start { membership, merges: survivor.merges, ..start(true, Settings::default()) };
    let mut again = Survivor::started(start);
    let mut effects = again.link(&layout, PEER);
    let load = loop {
        match effects
            .iter()
            .position(|effect| matches!(effect, Effect::Scan { .. }))
            .map(|at| effects.remove(at))
        {
            Some(Effect::Scan { load, range }) if range.partition == mine(&layout).partition => break load,
            Some(Effect::Scan { load, .. }) => {
                effects.extend(again.step(Event::Scanned { load, page: Ok(Page::default()) }).to_vec());
            }
            _ => effects = again.tick(),
        }
    };
    let effects = again.step(Event::Scanned { load, page: Err(NoPage::Damaged(key())) }).to_vec();
    check_is_healed(&mut again, &layout, effects);
}

/// What was left of it is there already; what has been written since is where the ring is.
#[test]
pub(crate) fn what_has_counted_and_is_in_doubt_as_a_whole_is_asked_of_the_ring() {
    let (mut survivor, layout) = counting();
    let call = CALL;
    let load = asked_for(&mut survivor, &layout, call, &mine(&layout));
    let effects = survivor.step(Event::Scanned { load, page: Err(NoPage::Unreadable) }).to_vec();
    survivor.effects = effects;
    survivor.save_all();
    let mut effects = survivor.link(&layout, PEER);
    let asked = loop {
        let is_asked = |message: &&Message| matches!(message, Message::Scan { .. } | Message::Salvage { .. });
        if let Some(asked) = messages(&effects).into_iter().find(is_asked).cloned() {
            break asked;
        }
        let own = effects.iter().find_map(|effect| match effect {
            Effect::Scan { load, .. } => Some(*load),
            _ => None,
        });
        effects = match own {
            Some(load) => survivor.step(Event::Scanned { load, page: Ok(Page::default()) }).to_vec(),
            None => survivor.tick(),
        };
    };
    assert!(matches!(asked, Message::Scan { .. }), "{asked:?}");
}

/// What goes before a partition counts may be among what was merged: all of that is asked for again, also by a process
/// that begins in between.
#[test]
fn what_is_damaged_before_a_partition_counts_goes_once_nothing_of_it_is_said_to_be_merged() {
    let (mut survivor, layout) = salvaging();
    let asked = decide(&mut survivor, &layout);
    merge_without_saving(&mut survivor, &layout, asked);
    let call = CALL;
    let load = asked_for(&mut survivor, &layout, call, &mine(&layout));
    let effects = survivor.step(Event::Scanned { load, page: Err(NoPage::Damaged(key())) }).to_vec();
    survivor.effects = effects;
    let effects = survivor.save_all();
    let dropped = Entry::Replace { key: key(), record: None };
    let at = |is_it: &dyn Fn(&Effect) -> bool| effects.iter().position(is_it);
    let saved = at(&|effect| matches!(effect, Effect::Save { state: SavedState::Merges(_), .. }));
    let commit = at(&|effect| matches!(effect, Effect::Commit(commit) if commit.entry == dropped));
    assert!(saved.is_some() && saved < commit, "{effects:?}");
    let partition = mine(&layout).partition;
    assert!(!survivor.merges.partitions.contains_key(&partition));
    assert!(!survivor.merges.counted.contains(&partition));
}

/// A process that begins before that is on disk would take what it holds for what has never counted.
#[test]
pub(crate) fn a_salvaged_partition_counts_once_that_is_on_disk() {
    let (mut survivor, layout) = salvaging();
    let asked = decide(&mut survivor, &layout);
    let saves = merge_without_saving(&mut survivor, &layout, asked);
    assert!(is_in_doubt(&survivor.frame(&layout, PEER, read())));
    note_saved(&mut survivor, saves);
    assert!(!is_in_doubt(&survivor.frame(&layout, PEER, read())));
}

/// That is on its way to the disk, behind another layout, when that comes into force. Returns which saves tell of it.
fn overtaken_in_mid_save() -> (Survivor, Layout, Vec<SaveId>) {
    let (mut survivor, layout) = salvaging();
    let asked = decide(&mut survivor, &layout);
    let later = layout.next(&Change::Keyspaces([("carts".to_owned(), KeyspaceMode::Lww)].into())).unwrap();
    let learned = Message::Layout { layout: Box::new(later.clone()), identities: vec![] };
    let [Effect::Save { save, state: SavedState::Layout { .. } }] =
        survivor.frame(&layout, PEER, learned)[..]
    else {
        panic!("it is not saved");
    };
    let early = merge_without_saving(&mut survivor, &layout, asked);
    survivor.step(Event::Saved { save });
    assert_eq!(survivor.node.layout(), Some(&later));
    (survivor, later, early)
}

/// Nothing is on disk yet that says that it counts.
#[test]
fn a_salvaged_partition_does_not_count_under_the_next_layout_before_that_is_on_disk() {
    let (mut survivor, later, _) = overtaken_in_mid_save();
    assert!(is_in_doubt(&survivor.frame(&later, PEER, read())));
}

/// What is saved in between tells of other partitions, and may say that this one has not counted.
#[test]
fn what_was_saved_of_an_earlier_attempt_makes_no_salvaged_partition_count() {
    let (mut survivor, later, early) = overtaken_in_mid_save();
    survivor.merges.counted.clear();
    let late = merge_without_saving(&mut survivor, &later, Vec::new());
    note_saved(&mut survivor, early);
    assert!(is_in_doubt(&survivor.frame(&later, PEER, read())));
    note_saved(&mut survivor, late);
    assert!(!is_in_doubt(&survivor.frame(&later, PEER, read())));
}

/// What goes because it is damaged goes before that.
#[test]
pub(crate) fn a_salvaged_partition_does_not_count_while_something_of_it_is_damaged() {
    let (mut survivor, layout) = salvaging();
    let mut asked = decide(&mut survivor, &layout);
    for _ in 0..400 {
        let own = asked.iter().position(|effect| matches!(effect, Effect::Scan { .. }));
        let theirs = asked
            .iter()
            .position(|effect| matches!(effect, Effect::Send { message: Message::Salvage { .. }, .. }));
        let effects = match own.or(theirs).map(|at| asked.remove(at)) {
            Some(Effect::Scan { load, range }) => {
                let is_damaged = range == mine(&layout);
                let page = if is_damaged { Err(NoPage::Damaged(key())) } else { Ok(Page::default()) };
                survivor.step(Event::Scanned { load, page }).to_vec()
            }
            Some(Effect::Send { message: Message::Salvage { call, .. }, .. }) => {
                let outcome = ScanOutcome::Page(Page::default());
                survivor.frame(&layout, PEER, Message::ScanAnswer { call, outcome, noted: vec![] })
            }
            _ => survivor.tick(),
        };
        asked.extend(effects);
    }
    let counted: Vec<_> = layout.partitions.all().filter(|of| *of != mine(&layout).partition).collect();
    assert_eq!(survivor.merges.counted.iter().copied().collect::<Vec<_>>(), counted);
}

/// More may be lost by then than what this node has lost.
#[test]
pub(crate) fn what_has_counted_before_another_recovery_does_not_count_after_it() {
    let (mut survivor, layout) = counting();
    let next = layout.recovered(attempt(3), &lost([])).unwrap();
    survivor.recover(&next);
    survivor.save_all();
    survivor.link(&next, PEER);
    decide(&mut survivor, &next);
    assert_eq!(survivor.state(), NodeState::Serving);
    assert!(is_in_doubt(&survivor.frame(&next, PEER, read())));
}

/// Or two replicas, each of which has lost something that the other has, would wait for each other.
#[test]
pub(crate) fn what_has_counted_counts_when_the_move_turns_back() {
    let before = layout_of(3);
    let members = before.members.clone();
    let joint = before.next(&Change::Move { members, replication_factor: 2 }).unwrap();
    let (mut survivor, layout) = salvaging_from(joint);
    assert!(layout.is_joint());
    let asked = decide(&mut survivor, &layout);
    merge_what_is_left(&mut survivor, &layout, asked);
    let back = layout.next(&Change::Abort).unwrap();
    survivor.effects =
        survivor.frame(&layout, PEER, Message::Layout { layout: Box::new(back.clone()), identities: vec![] });
    survivor.save_all();
    assert_eq!(survivor.node.layout(), Some(&back));
    assert!(!is_in_doubt(&survivor.frame(&back, PEER, read())));
}

/// Whoever asked for a recovery that is overtaken hears of it.
#[test]
fn a_recovery_on_its_way_into_force_that_is_overtaken_is_answered() {
    let before = first_layout(4, 3);
    let attempted = before.recovered(attempt(2), &lost([3, 4])).unwrap();
    let mut survivor = Survivor::new(before.clone());
    survivor.link(&before, PEER);
    survivor.recover(&attempted);
    let effects = survivor.tick();
    assert!(matches!(effects[..], [Effect::Scan { .. }, ..]), "something has to go first: {effects:?}");
    let with = |name: &str| Change::Keyspaces([(name.to_owned(), KeyspaceMode::Lww)].into());
    let next = before.next(&with("carts")).unwrap().next(&with("users")).unwrap();
    let overtaken = Answer::RecoveryRefused(RecoveryRefusal::Overtaken(next.epoch));
    let effects =
        survivor.frame(&before, PEER, Message::Layout { layout: Box::new(next), identities: vec![] });
    assert!(effects.contains(&Effect::Answer { request: RequestId(5), answer: overtaken }), "{effects:?}");
}

/// Nobody can say what its damaged record was, and whoever recovers has accepted that.
#[test]
fn the_only_one_left_drops_what_is_damaged() {
    let before = layout_of(3);
    let mut survivor = Survivor::new(before.clone());
    survivor.link(&before, PEER);
    let call = Call { operation: 900, attempt: 1 };
    let effects = survivor.frame(&before, PEER, Message::Read { call, key: key(), want: Want::Full });
    let [Effect::Load { load, .. }] = effects[..] else { panic!("{effects:?}") };
    survivor.step(Event::Loaded { load, record: Err(Damaged) });
    survivor.save_all();
    let doubted = survivor.node.status(now(1)).doubted_partitions.clone();
    let losses = Losses { doubted: BTreeMap::from([(ME, doubted)]), ..lost([2, 3]) };
    let layout = before.recovered(attempt(2), &losses).unwrap();
    survivor.recover(&layout);
    let effects = go_on(&mut survivor);
    assert_eq!(survivor.state(), NodeState::Serving);
    let [commit] = commits_in(&effects)[..] else { panic!("{effects:?}") };
    survivor.step(Event::Committed { commit, outcome: Ok(Durability::Synced) });
    assert_eq!(survivor.node.status(now(1)).doubted_keys, 0);
}

/// All that is to be saved is, and time passes.
fn go_on(survivor: &mut Survivor) -> Vec<Effect> {
    let mut effects = survivor.save_all();
    for _ in 0..40 {
        effects.extend(survivor.tick());
        effects.extend(survivor.save_all());
    }
    effects
}

fn commits_in(effects: &[Effect]) -> Vec<CommitId> {
    let commit = |effect: &Effect| match effect {
        Effect::Commit(commit) => Some(commit.id),
        _ => None,
    };
    effects.iter().filter_map(commit).collect()
}

/// It may have been acknowledged since: what it was is gone only once somebody gives that up, with another recovery.
#[test]
fn the_only_one_left_keeps_what_is_damaged_once_it_has_counted() {
    let before = layout_of(3);
    let layout = before.recovered(attempt(2), &lost([2, 3])).unwrap();
    let mut survivor = Survivor::new(before);
    survivor.recover(&layout);
    let asked = survivor.save_all();
    merge_what_is_left(&mut survivor, &layout, asked);
    let get = |survivor: &mut Survivor| {
        let get = Operation::Get { key: key() };
        request((get, None), 1, |event| survivor.step(event).to_vec())
    };
    let load = load_in(&get(&mut survivor));
    let answered = survivor.step(Event::Loaded { load, record: Err(Damaged) }).to_vec();
    assert!(matches!(answer_in(&answered), Some(Answer::Failed(_))), "{answered:?}");
    assert_eq!(commits_in(&go_on(&mut survivor)), []);
    let answered = get(&mut survivor);
    assert!(matches!(answer_in(&answered), Some(Answer::Failed(_))), "{answered:?}");
    let status = survivor.node.status(now(1));
    assert_eq!(status.doubted_keys, 1);

    let losses = Losses { doubted: BTreeMap::from([(ME, status.doubted_partitions.clone())]), ..lost([]) };
    survivor.recover(&layout.recovered(attempt(3), &losses).unwrap());
    let effects: Vec<_> = (0..4).flat_map(|_| go_on(&mut survivor)).collect();
    assert_eq!(commits_in(&effects).len(), 1, "{effects:?}");
}

/// A survivor that serves, and of which somebody merges what is left of a partition.
fn merged_by_another() -> (Survivor, Layout, ScanRange) {
    let (mut survivor, layout) = salvaging();
    decide(&mut survivor, &layout);
    assert_eq!(survivor.state(), NodeState::Serving);
    let range = mine(&layout);
    (survivor, layout, range)
}

fn is_scan_answer(effect: &Effect) -> bool {
    matches!(effect, Effect::Send { message: Message::ScanAnswer { .. }, .. })
}

#[test]
fn what_is_left_is_given_away_within_the_budget() {
    let (mut survivor, layout, range) = merged_by_another();
    let value = Record { body: Body::Value(vec![0; 1 << 20].into()), ..record(5) };
    let mut effects = Vec::new();
    for operation in 0..200 {
        let call = Call { operation, attempt: 0 };
        effects.extend(survivor.frame(&layout, PEER, Message::Salvage { call, range: range.clone() }));
    }
    let mut given = 0;
    for at_ms in (1..1_000).step_by(10) {
        survivor.node.step(now(at_ms), Event::Tick, &mut effects);
        while let Some(effect) = effects.pop() {
            given += usize::from(is_scan_answer(&effect));
            let Effect::Scan { load, .. } = effect else { continue };
            let page = Ok(Page::whole(vec![(key(), value.clone())]));
            survivor.node.step(now(at_ms), Event::Scanned { load, page }, &mut effects);
        }
    }
    assert!((8..=20).contains(&given), "8 MiB a second, and what was read already: {given}");
}

#[test]
fn what_lies_before_a_damaged_record_is_read_in_few_pages() {
    let (mut survivor, layout, range) = merged_by_another();
    let call = Call { operation: 900, attempt: 0 };
    survivor.frame(&layout, PEER, Message::Salvage { call, range });
    let mut effects = survivor.tick();
    // The 101st of them cannot be read.
    let mut limits = Vec::new();
    while let Some(Effect::Scan { load, range }) =
        effects.iter().find(|effect| matches!(effect, Effect::Scan { .. })).cloned()
    {
        limits.push(range.limit);
        let entries = (0..range.limit).map(|_| (key(), record(5))).collect();
        let page = match range.limit {
            0..=100 => Ok(Page::cut(entries)),
            _ => Err(NoPage::Damaged(key_of("damaged"))),
        };
        effects = survivor.step(Event::Scanned { load, page }).to_vec();
        if effects.iter().any(is_scan_answer) {
            break;
        }
    }
    assert_eq!(limits, [128, 64]);
}
