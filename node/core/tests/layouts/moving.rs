//! How one node takes over what others hold: whom it asks, what it says that it holds, and when it is whole.

use std::collections::BTreeSet;

use keystore_core::effect::{
    Answer, Commit, Effect, Entry, Event, NotCommitted, Operation, ProposalError, SavedState,
};
use keystore_core::id::{Epoch, Generation, NodeId};
use keystore_core::layout::{KeyspaceMode, Layout};
use keystore_core::message::{Call, Header, Message, Noted, Page, Refusal, ScanOutcome, ScanRange};
use keystore_core::node::{Settings, Start};
use keystore_core::partition::Partition;
use keystore_core::quorum::{Consistency, Durability};
use keystore_core::record::{Body, Record};
use keystore_core::succession::{Change, Standing};

use crate::bench::{ME, NOTHING_HELD, PEER, first_layout, key, key_of, now, record, request, start};
use crate::epochs::{key_in, node};
use crate::linked::{Linked, saves};
use crate::succession::keyspace;

/// This node joins three others that hold everything, to hold everything in place of the fourth.
fn joining() -> Layout {
    let all = first_layout(4, 3).members;
    let without = |gone| all.iter().filter(|member| member.node != gone).cloned().collect();
    let wide = first_layout(4, 3);
    let move_to = |members| Change::Move { members, replication_factor: 3 };
    let others = wide.next(&move_to(without(ME))).and_then(|moving| moving.next(&Change::Finish)).unwrap();
    others.next(&move_to(without(node(4)))).unwrap()
}

/// This node and the others take over what the last of so many has.
fn leaving_the_last(of: u8) -> (Layout, Layout) {
    let wide = first_layout(of, 3);
    let others = wide.members.iter().filter(|member| member.node != node(of)).cloned().collect();
    let joint = wide.next(&Change::Move { members: others, replication_factor: 3 }).unwrap();
    (wide, joint)
}

pub(crate) fn joiner() -> (Linked, Layout) {
    joiner_from(start(true, Settings::default()))
}

pub(crate) fn joiner_from(start: Start) -> (Linked, Layout) {
    let joint = joining();
    let epoch = joint.epoch.0;
    let start = Start { membership: Some((joint.clone(), true)), ..start };
    (Linked::started(start, &[(PEER, epoch), (node(3), epoch), (node(4), epoch)]), joint)
}

/// It is in the new ring alone, and one of the others in the old one: the two that are in both make both quorums.
#[test]
fn a_read_while_data_moves_asks_no_more_than_make_both_quorums() {
    let (mut linked, _) = joiner();
    let get = Operation::Get { key: key() };
    let effects = request((get, Some(Consistency::Quorum)), 1, |event| linked.step(event));
    let asked: BTreeSet<_> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Send { header, message: Message::Read { .. }, .. } => Some(header.to),
            _ => None,
        })
        .collect();
    assert_eq!(asked, [PEER, node(3)].into());
    assert!(effects.iter().all(|effect| !matches!(effect, Effect::Load { .. })), "{effects:?}");
}

/// What a source says, and which generations of the replicas it has noted.
pub(crate) struct Said(pub(crate) ScanOutcome, pub(crate) Noted);

impl From<ScanOutcome> for Said {
    fn from(outcome: ScanOutcome) -> Self {
        Self(outcome, Vec::new())
    }
}

/// Until all is taken over: each source is asked for pages, and answers, refuses or is silent. Returns after how many
/// milliseconds that was.
pub(crate) fn take_over<S: Into<Said>>(
    linked: &mut Linked,
    answer: impl FnMut(NodeId, &ScanRange) -> Option<S>,
) -> Option<u64> {
    take_over_onto(linked, answer, |_| Ok(Durability::Synced), |_, _| {})
}

/// The same, and what is taken over is written as the disk will. Whatever is `saved` is told of with the time.
fn take_over_onto<S: Into<Said>>(
    linked: &mut Linked,
    mut answer: impl FnMut(NodeId, &ScanRange) -> Option<S>,
    mut disk: impl FnMut(&Commit) -> Result<Durability, NotCommitted>,
    mut saved: impl FnMut(u64, SavedState),
) -> Option<u64> {
    let epoch = linked.node.layout().unwrap().epoch.0;
    let mut at_ms = 1;
    while at_ms < 600_000 {
        let mut effects = Vec::new();
        linked.node.step(now(at_ms), Event::Tick, &mut effects);
        while let Some(effect) = effects.pop() {
            let event = match effect {
                Effect::Scan { load, .. } => Event::Scanned { load, page: Ok(Page::default()) },
                Effect::Save { save, state } => {
                    saved(at_ms, state);
                    Event::Saved { save }
                }
                Effect::Load { load, .. } => Event::Loaded { load, record: Ok(None) },
                Effect::Commit(commit) => Event::Committed { commit: commit.id, outcome: disk(&commit) },
                Effect::Send { link, message: Message::Scan { call, range, .. }, .. } => {
                    let from = node(u8::try_from(link.0).unwrap());
                    let Some(said) = answer(from, &range) else { continue };
                    let Said(outcome, noted) = said.into();
                    let messages = vec![Message::ScanAnswer { call, outcome, noted }];
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

pub(crate) fn empty() -> Option<ScanOutcome> {
    Some(ScanOutcome::Page(Page::default()))
}

#[test]
fn a_source_that_refuses_or_says_nothing_holds_up_no_move() {
    let joins =
        |answer: &dyn Fn(NodeId, &ScanRange) -> Option<ScanOutcome>| take_over(&mut joiner().0, answer);
    let with_all = joins(&|_, _| empty()).unwrap();
    assert!(with_all < 5_000, "{with_all}");
    let refuses = |from, range: &ScanRange| match (from, range.partition.0 % 2) {
        (PEER, 0) => Some(ScanOutcome::Refused(Refusal::InDoubt)),
        _ => empty(),
    };
    let without_one = joins(&refuses).unwrap();
    assert!(without_one < 10_000, "two of three are enough: {without_one}");
    let silent = joins(&|from, _| if from == PEER { None } else { empty() }).unwrap();
    assert!(silent < 60_000, "one is silent: {silent}");
    assert_eq!(joins(&|from, _| if from == node(4) { empty() } else { None }), None, "one is not enough");
}

#[test]
pub(crate) fn a_pass_that_goes_on_with_another_source_begins_at_the_beginning() {
    let (mut linked, joint) = joiner();
    let mine = key().partition(joint.partitions);
    let mut begun = Vec::new();
    let first_page = || ScanOutcome::Page(Page::cut(vec![(key(), record(5))]));
    let answer = |from, range: &ScanRange| match (range.partition == mine, &range.after) {
        (true, None) if begun.contains(&from) => empty(),
        (true, None) => {
            begun.push(from);
            // The first one says nothing any more from then on.
            if begun.len() == 1 { Some(first_page()) } else { empty() }
        }
        (true, Some(_)) => None,
        (false, _) => empty(),
    };
    take_over(&mut linked, answer).expect("it is taken over from others");
    assert!(begun.len() >= 3, "the others have been asked for all of it: {begun:?}");
}

/// Each source says a page, then nothing for a while: whoever is turned to meanwhile, nothing is read twice.
#[test]
fn a_pass_that_comes_back_to_a_source_goes_on_where_it_left_off() {
    let (mut linked, joint) = joiner();
    let mine = key().partition(joint.partitions);
    let (mut begun, mut silent) = (Vec::new(), BTreeSet::new());
    let answer = |from, range: &ScanRange| match (range.partition == mine, &range.after) {
        (true, None) => {
            begun.push(from);
            Some(ScanOutcome::Page(Page::cut(vec![(key(), record(5))])))
        }
        (true, Some(_)) if silent.insert(from) => None,
        _ => empty(),
    };
    take_over(&mut linked, answer).expect("it is taken over");
    let sources: BTreeSet<_> = begun.iter().copied().collect();
    assert!(sources.len() >= 2, "{begun:?}");
    assert_eq!(begun.len(), sources.len(), "each is read from the beginning once: {begun:?}");
}

#[test]
pub(crate) fn a_page_counts_once_all_of_it_is_on_disk() {
    let (mut linked, joint) = joiner();
    let mine = key().partition(joint.partitions);
    let answer = |_, range: &ScanRange| {
        let entries = if range.partition == mine { vec![(key(), record(5))] } else { Vec::new() };
        Some(ScanOutcome::Page(Page::whole(entries)))
    };
    let (mut refused, mut written) = (0, 0);
    let disk = |commit: &Commit| {
        let is_record = matches!(commit.entry, Entry::Record { .. });
        assert_eq!(commit.durability, Durability::Synced, "the source may be gone after a crash");
        if is_record && refused < 8 {
            refused += 1;
            return Err(NotCommitted::Refused);
        }
        written += usize::from(is_record);
        Ok(Durability::Synced)
    };
    take_over_onto(&mut linked, answer, disk, |_, _| {}).expect("the disk has room again");
    assert_eq!(refused, 8);
    assert!(written > 0, "it is taken over for as long as it is not on disk");
}

/// Whatever else the node does waits for what it does in one step.
#[test]
fn a_page_is_written_in_parts_and_counts_once_all_of_them_are_on_disk() {
    let (mut linked, joint) = joiner();
    let mine = key().partition(joint.partitions);
    let keys = (0..).map(|n| key_of(&format!("k{n}"))).filter(|key| key.partition(joint.partitions) == mine);
    let page: Vec<_> = keys.take(100).map(|key| (key, record(5))).collect();
    let answer = |_, range: &ScanRange| {
        let entries = if range.partition == mine { page.clone() } else { Vec::new() };
        Some(ScanOutcome::Page(Page::whole(entries)))
    };
    let (mut tries, mut written) = (0, BTreeSet::new());
    let disk = |commit: &Commit| {
        if let Entry::Record { key, .. } = &commit.entry {
            tries += 1;
            if tries == 50 {
                return Err(NotCommitted::Refused);
            }
            written.insert(key.clone());
        }
        Ok(Durability::Synced)
    };
    take_over_onto(&mut linked, answer, disk, |_, _| {}).expect("the disk has room again");
    assert_eq!(written.len(), page.len());
    assert!(tries > 200, "each of two sources says all of it, and one of them twice: {tries}");

    let (mut linked, _) = joiner();
    let mut in_steps = BTreeSet::new();
    for at_ms in 1..1_000 {
        let mut effects = Vec::new();
        linked.node.step(now(at_ms), Event::Tick, &mut effects);
        while let Some(effect) = effects.pop() {
            let event = match effect {
                Effect::Scan { load, .. } => Event::Scanned { load, page: Ok(Page::default()) },
                Effect::Load { load, .. } => Event::Loaded { load, record: Ok(None) },
                Effect::Commit(commit) => {
                    Event::Committed { commit: commit.id, outcome: Ok(Durability::Synced) }
                }
                Effect::Send { link, header, message: Message::Scan { call, range, .. } } => {
                    let outcome = answer(header.to, &range).unwrap();
                    let messages = vec![Message::ScanAnswer { call, outcome, noted: Vec::new() }];
                    Event::Frame { link, header: Linked::header(header.to, header.epoch.0), messages }
                }
                _ => continue,
            };
            let mut of_step = Vec::new();
            linked.node.step(now(at_ms), event, &mut of_step);
            in_steps.insert(of_step.iter().filter(|effect| matches!(effect, Effect::Load { .. })).count());
            effects.extend(of_step);
        }
    }
    assert_eq!(in_steps, [0, 4, 32].into(), "three parts, and the rest of a hundred");
}

/// A tick is for one page. Who has nobody to ask does not use it up.
#[test]
fn partitions_without_a_source_hold_up_no_other() {
    let (_, joint) = leaving_the_last(5);
    let takes_over = |of: &Partition| joint.has_to_merge(*of) && joint.ring().is_replica(*of, ME);
    let first_of = |peer| {
        let mut all = joint.partitions.all().filter(takes_over);
        all.position(|of| joint.source_ring().is_replica(of, peer)).map(|at| (at, peer))
    };
    // Nobody but one is there, who has nothing of some that come first.
    let (before, peer) = [PEER, node(3), node(4), node(5)].into_iter().filter_map(first_of).max().unwrap();
    assert!(before > 0);
    let first = joint.partitions.all().filter(takes_over).nth(before);
    let mut linked = Linked::new((joint.clone(), true), &[(peer, joint.epoch.0)]);
    let effects = linked.step(Event::Tick);
    let asked = effects.iter().find_map(|effect| match effect {
        Effect::Scan { range, .. } => Some(range.partition),
        _ => None,
    });
    assert_eq!(asked, first);
}

/// It would come, be refused and come again, at the cost of those who have it.
#[test]
pub(crate) fn a_node_whose_disk_is_full_asks_for_nothing_that_it_gains_until_there_is_room() {
    let (mut linked, _) = joiner();
    linked.step(Event::DiskFull(true));
    let mut asked = 0;
    let mut count = |_, _: &ScanRange| {
        asked += 1;
        empty()
    };
    assert_eq!(take_over(&mut linked, &mut count), None);
    assert_eq!(asked, 0);
    linked.step(Event::DiskFull(false));
    assert!(take_over(&mut linked, |_, _| empty()).is_some());
}

/// A move to other nodes may be what makes room on it.
#[test]
fn a_node_whose_disk_is_full_compares_what_it_has() {
    let (wide, joint) = leaving_the_last(4);
    let epoch = joint.epoch.0;
    let is_gained = |of: &Partition| joint.ring().is_replica(*of, ME) && !wide.is_replica(*of, ME);
    let gained = joint.partitions.all().filter(is_gained).count();
    let peers = [PEER, node(3), node(4)].map(|peer| (peer, epoch));
    let mut linked = Linked::new((joint, true), &peers);
    linked.step(Event::DiskFull(true));
    let answer = |_, range: &ScanRange| {
        assert!(wide.is_replica(range.partition, ME), "there is no room for {}", range.partition);
        empty()
    };
    assert_eq!(take_over(&mut linked, answer), None);
    let transfer = linked.node.status(now(1)).transfer;
    assert_eq!(transfer.done, transfer.partitions - gained);
    assert!(gained > 0);
}

/// Or a start would begin it at the beginning, each time anew.
#[test]
pub(crate) fn a_pass_goes_on_after_a_start_behind_what_it_had_stored() {
    let (mut linked, joint) = joiner();
    let mine = key().partition(joint.partitions);
    // The last one that would be asked is the only one that has a page, and goes silent behind it.
    let answer = |from, range: &ScanRange| match (range.partition == mine, from == node(4), &range.after) {
        (false, ..) => empty(),
        (true, false, _) => Some(ScanOutcome::Refused(Refusal::InDoubt)),
        (true, true, None) => Some(ScanOutcome::Page(Page::cut(vec![(key(), record(5))]))),
        (true, true, Some(_)) => None,
    };
    let mut cursor = None;
    let saved = |at_ms, state| {
        if let SavedState::Merges(merges) = state
            && let Some(Some((source, Some(after)))) =
                merges.partitions.get(&mine).map(|merge| merge.pass.clone())
        {
            cursor.get_or_insert((at_ms, merges, (source, after)));
        }
    };
    take_over_onto(&mut linked, answer, |_| Ok(Durability::Synced), saved);
    let (saved_ms, merges, pass) = cursor.expect("how far the pass has come is saved");
    assert_eq!(pass, (node(4), key()));
    assert!(saved_ms <= 2_000, "within a second of the page, which others had refused before: {saved_ms}");
    let (mut again, _) = joiner_from(Start { merges, ..start(true, Settings::default()) });
    let mut asked = Vec::new();
    let answer = |from, range: &ScanRange| {
        if range.partition == mine {
            asked.push((from, range.after.clone()));
        }
        empty()
    };
    take_over(&mut again, answer).unwrap();
    assert_eq!(asked[0], (node(4), Some(key())));
}

/// Its source may have become another replica of it in between.
#[test]
pub(crate) fn a_page_that_was_asked_for_under_an_earlier_layout_is_asked_for_once_more() {
    let (mut linked, joint) = joiner();
    let mut effects = linked.step(Event::Tick);
    let mut asked = None;
    while let Some(effect) = effects.pop() {
        match effect {
            Effect::Scan { load, .. } => {
                effects.extend(linked.step(Event::Scanned { load, page: Ok(Page::default()) }));
            }
            Effect::Send { header, message: Message::Scan { call, range, .. }, .. } => {
                asked = Some((header.to, call, range.partition));
            }
            _ => {}
        }
    }
    let (source, call, partition) = asked.expect("others are asked for what they hold");
    let next = joint.next(&keyspace("carts", KeyspaceMode::Lww)).unwrap();
    for (save, _) in saves(&linked.learn((PEER, joint.epoch.0), &next)) {
        linked.step(Event::Saved { save });
    }
    assert_eq!(linked.node.layout(), Some(&next));
    let entries = vec![(key_in(|of| of == partition, &next), record(5))];
    let outcome = ScanOutcome::Page(Page::whole(entries));
    let late = Message::ScanAnswer { call, outcome, noted: Vec::new() };
    assert_eq!(linked.frame((source, next.epoch.0), late), []);
    assert!(take_over(&mut linked, |_, _| empty()).is_some());
}

#[test]
pub(crate) fn whoever_was_given_up_is_not_asked() {
    let (mut linked, joint) = joiner();
    let without = joint.next(&Change::Lose([node(4)].into())).unwrap();
    let effects = linked.learn((PEER, joint.epoch.0), &without);
    for (save, _) in saves(&effects) {
        linked.step(Event::Saved { save });
    }
    let mut asked = BTreeSet::new();
    let answer = |from, _: &ScanRange| {
        asked.insert(from);
        empty()
    };
    take_over(&mut linked, answer).unwrap();
    assert_eq!(asked, [PEER, node(3)].into(), "its link is still up");
}

/// Others who join ask for so many pages at once, each of which holds a value of so many bytes. Returns how many are
/// read at most before others have their turn, and how many are answered within a second.
fn gives(pages: u64, value_bytes: usize) -> (usize, usize) {
    let (mut linked, joint) = joiner();
    let mine = key().partition(joint.partitions);
    let value = Record { body: Body::Value(vec![0; value_bytes].into()), ..record(5) };
    let mut effects = Vec::new();
    for operation in 0..pages {
        let range = ScanRange { partition: mine, prefix: Default::default(), after: None, limit: 10 };
        let call = Call { operation, attempt: 0 };
        effects.extend(linked.frame((PEER, 4), Message::Scan { call, range, held: Some(NOTHING_HELD) }));
    }
    let reads =
        |effects: &[Effect]| effects.iter().filter(|effect| matches!(effect, Effect::Scan { .. })).count();
    let (mut at_once, mut all, mut at_ms) = (reads(&effects), 0, 1);
    while at_ms < 1_000 {
        let mut read = 0;
        linked.node.step(now(at_ms), Event::Tick, &mut effects);
        while let Some(effect) = effects.pop() {
            all += usize::from(matches!(effect, Effect::Send { message: Message::ScanAnswer { .. }, .. }));
            let Effect::Scan { load, .. } = effect else { continue };
            read += 1;
            let page = Ok(Page::whole(vec![(key(), value.clone())]));
            linked.node.step(now(at_ms), Event::Scanned { load, page }, &mut effects);
        }
        at_once = at_once.max(read);
        // Woken more often than it wants.
        at_ms = linked.node.next_wakeup_ms().map_or(at_ms + 10, |next_ms| next_ms.clamp(at_ms, at_ms + 10));
    }
    (at_once, all)
}

#[test]
pub(crate) fn a_source_gives_no_more_than_its_budget_however_many_ask() {
    let (at_once, all) = gives(200, 1 << 20);
    assert!(at_once <= 2, "one for others, and one that this node takes over: {at_once}");
    assert!((8..=20).contains(&all), "8 MiB a second, and what was read already: {all}");
    assert_eq!(gives(200, 100).1, 200, "what is small goes at once");
}

/// All is merged, and everybody has said so.
pub(crate) fn joined() -> (Linked, Layout) {
    let (mut linked, joint) = joiner();
    take_over(&mut linked, |_, _| empty()).unwrap();
    let epoch = joint.epoch;
    for from in [PEER, node(3), node(4)] {
        let standing = Standing {
            fence: epoch,
            phase: epoch,
            whole: joint.partitions.all().collect(),
            ..Standing::default()
        };
        linked.frame((from, epoch.0), Message::Standing(standing));
    }
    (linked, joint)
}

/// Why the end of a move is not proposed; `None` if it is.
pub(crate) fn held_up(linked: &mut Linked, joint: &Layout) -> Option<ProposalError> {
    let effects = linked.propose(joint.epoch, &joint.next(&Change::Finish).unwrap());
    effects.into_iter().find_map(|effect| match effect {
        Effect::Answer { answer: Answer::ProposalFailed(error), .. } => Some(error),
        _ => None,
    })
}

#[test]
pub(crate) fn what_a_member_said_before_it_started_anew_is_no_evidence() {
    let (mut linked, joint) = joined();
    linked.greet(Header { generation: Generation(8), ..Linked::header(PEER, joint.epoch.0) });
    let error = held_up(&mut linked, &joint);
    assert!(error.is_some(), "it may have lost what it had merged");
    assert_eq!(joint.epoch, Epoch(4));
}

/// The old ring has as many fences as it needs without node 4, which is to hold nothing.
#[test]
fn the_end_of_a_move_waits_for_each_member_that_can_be_reached() {
    let (mut linked, joint) = joined();
    let behind = Standing { fence: Epoch(joint.epoch.0 - 1), ..Standing::default() };
    linked.frame((node(4), joint.epoch.0), Message::Standing(behind));
    let late = ProposalError::Unacknowledged { node: node(4), epoch: joint.epoch };
    assert_eq!(held_up(&mut linked, &joint), Some(late));
}
