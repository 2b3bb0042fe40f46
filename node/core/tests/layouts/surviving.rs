//! Recovery: who accepts the layout of one, when it is in force, and when what is salvaged counts.

use std::collections::BTreeMap;

use keystore_core::effect::{Answer, Damaged, Effect, Entry, Event, LinkId, NoPage, RequestId, SavedState};
use keystore_core::id::{ClusterId, Epoch, Generation, Incarnation, NodeId, Nonce};
use keystore_core::layout::{KeyspaceMode, Layout};
use keystore_core::message::{
    Call, Header, Hello, Message, Noted, Origin, Page, ReadOutcome, Refusal, ScanOutcome, ScanRange, Want,
    Write,
};
use keystore_core::node::{Node, NodeState, Settings, Start};
use keystore_core::partition::Partition;
use keystore_core::peers::LinkRefusal;
use keystore_core::quorum::Durability;
use keystore_core::record::{Body, Record};
use keystore_core::recovery::{Losses, RecoveryRefusal};
use keystore_core::succession::Change;

use crate::bench::effects::{commit_in, load_in, messages, noted_in, refusals};
use crate::bench::{ME, PEER, first_layout, header, key, key_of, layout_of, now, record, start};
use crate::epochs::scan;
use crate::recovered::{attempt, lost, node};

/// A member of three that hold everything, the third of which is lost.
struct Survivor {
    node: Node,
    effects: Vec<Effect>,
}

impl Survivor {
    fn new(layout: Layout) -> Self {
        let start = Start { membership: Some((layout, true)), ..start(true, Settings::default()) };
        Self { node: Node::new(start, now(0)), effects: Vec::new() }
    }

    fn step(&mut self, event: Event) -> &[Effect] {
        self.effects.clear();
        self.node.step(now(1), event, &mut self.effects);
        &self.effects
    }

    fn recover(&mut self, layout: &Layout) -> Vec<Effect> {
        self.step(Event::Recover { request: RequestId(5), layout: Box::new(layout.clone()) }).to_vec()
    }

    fn save_all(&mut self) -> Vec<Effect> {
        let mut all = Vec::new();
        while let Some(Effect::Save { save, .. }) =
            self.effects.iter().find(|effect| matches!(effect, Effect::Save { .. }))
        {
            let save = *save;
            all.extend(self.step(Event::Saved { save }).to_vec());
        }
        all
    }

    fn state(&self) -> NodeState {
        self.node.status(now(1)).state
    }

    fn header(layout: &Layout, from: NodeId) -> Header {
        let Layout { incarnation, epoch, .. } = layout;
        Header { incarnation: *incarnation, epoch: *epoch, from, ..header(7) }
    }

    fn link(&mut self, layout: &Layout, from: NodeId) -> Vec<Effect> {
        let hello = Hello { header: Self::header(layout, from), lineage: Nonce(7).into() };
        let mut all = self.step(Event::LinkOffered { link: link_of(from), hello }).to_vec();
        all.extend(self.save_all());
        all
    }

    fn frame(&mut self, layout: &Layout, from: NodeId, message: Message) -> Vec<Effect> {
        let header = Self::header(layout, from);
        self.step(Event::Frame { link: link_of(from), header, messages: vec![message] }).to_vec()
    }
}

fn link_of(node: NodeId) -> LinkId {
    LinkId(node.0[0].into())
}

fn refusal(effects: &[Effect]) -> RecoveryRefusal {
    match effects {
        [Effect::Answer { request: RequestId(5), answer: Answer::RecoveryRefused(refusal) }] => {
            refusal.clone()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_recovery_is_accepted_durably_and_only_above_what_was_accepted() {
    let before = layout_of(3);
    let first = before.recovered(attempt(3), &lost([3])).unwrap();
    let mut survivor = Survivor::new(before.clone());
    survivor.link(&before, PEER);
    let effects = survivor.recover(&first);
    assert!(
        matches!(&effects[..], [Effect::Save { state: SavedState::Layout { layout, decided: false }, .. }] if *layout == first),
        "it is answered once it is durable: {effects:?}"
    );
    assert_eq!(refusal(&survivor.recover(&first)), RecoveryRefusal::Busy, "until then");
    survivor.effects = effects;
    let effects = survivor.save_all();
    assert!(effects.contains(&Effect::CloseLink { link: link_of(PEER) }), "nobody of before counts");
    assert!(effects.contains(&Effect::Answer { request: RequestId(5), answer: Answer::RecoveryAccepted }));
    assert_eq!(survivor.state(), NodeState::Accepted);

    assert_eq!(
        survivor.recover(&first),
        [Effect::Answer { request: RequestId(5), answer: Answer::RecoveryAccepted }],
        "once more"
    );
    let incarnation = |found| RecoveryRefusal::Incarnation { now: 3, found };
    let same = Layout { incarnation: Incarnation { number: 3, id: 9 }, ..first.clone() };
    assert_eq!(refusal(&survivor.recover(&same)), incarnation(3));
    assert_eq!(
        refusal(&survivor.recover(&before.recovered(attempt(2), &lost([3])).unwrap())),
        incarnation(2)
    );
    let behind = before.recovered(attempt(4), &lost([3])).unwrap();
    let epoch = RecoveryRefusal::Epoch { now: Epoch(2), found: Epoch(2) };
    assert_eq!(refusal(&survivor.recover(&behind)), epoch);
    let without_me = first.recovered(attempt(4), &lost([1])).unwrap();
    assert_eq!(refusal(&survivor.recover(&without_me)), RecoveryRefusal::NoSurvivor(ME));
    let second = first.recovered(attempt(4), &lost([])).unwrap();
    let of_theirs = Layout { cluster: ClusterId([8; 16]), ..second.clone() };
    assert_eq!(refusal(&survivor.recover(&of_theirs)), RecoveryRefusal::OtherCluster(first.cluster));
    assert!(matches!(survivor.recover(&second)[..], [Effect::Save { .. }]), "a higher one takes its place");
}

#[test]
pub(crate) fn an_attempt_that_misses_what_was_in_force_is_refused() {
    let before = layout_of(3);
    let after = before.next(&Change::Lose([node(3)].into())).unwrap();
    // Attempts that came to nothing have raised the epoch of this one above what is in force here.
    let of_before = Layout { epoch: Epoch(7), ..before.clone() }.recovered(attempt(4), &lost([3])).unwrap();
    let of_before = Layout { recovered_from: Some(before.term()), ..of_before };
    let mut survivor = Survivor::new(after.clone());
    assert_eq!(refusal(&survivor.recover(&of_before)), RecoveryRefusal::Overtaken(after.epoch));
    let of_now = after.recovered(attempt(3), &lost([3])).unwrap();
    assert!(matches!(survivor.recover(&of_now)[..], [Effect::Save { .. }]));
    survivor.save_all();
    // It has accepted what tells of that, and serves nothing any more.
    assert_eq!(refusal(&survivor.recover(&of_before)), RecoveryRefusal::Overtaken(of_now.epoch));
}

#[test]
fn a_node_without_a_cluster_has_nothing_to_recover() {
    let mut stranger = Survivor {
        node: Node::new(Start { membership: None, ..start(true, Settings::default()) }, now(0)),
        effects: vec![],
    };
    let layout = layout_of(3).recovered(attempt(2), &lost([3])).unwrap();
    assert_eq!(refusal(&stranger.recover(&layout)), RecoveryRefusal::NotInitialized);
}

const CALL: Call = Call { operation: 900, attempt: 1 };

fn read() -> Message {
    Message::Read { call: CALL, key: key(), want: Want::Full }
}

fn is_in_doubt(effects: &[Effect]) -> bool {
    refusals(effects).contains(&Refusal::InDoubt)
}

/// Two of three are left, and one of them is in doubt of everything: nothing can be trusted to be whole.
fn salvaging() -> (Survivor, Layout) {
    let before = layout_of(3);
    let doubted = BTreeMap::from([(PEER, before.partitions.all().collect())]);
    let layout = before.recovered(attempt(2), &Losses { doubted, ..lost([3]) }).unwrap();
    let mut survivor = Survivor::new(before);
    survivor.recover(&layout);
    survivor.save_all();
    survivor.link(&layout, PEER);
    (survivor, layout)
}

/// All that are left have accepted; returns what is done then.
fn decide(survivor: &mut Survivor, layout: &Layout) -> Vec<Effect> {
    let decided = Message::InitAccepted { digest: layout.digest(), reply_wanted: false, decided: true };
    survivor.frame(layout, PEER, decided);
    survivor.save_all()
}

#[test]
fn nothing_is_served_before_all_that_are_left_have_accepted() {
    let (mut survivor, layout) = salvaging();
    let third = Survivor::header(&layout_of(3), node(3));
    let accepted = |digest| Message::InitAccepted { digest, reply_wanted: false, decided: false };
    survivor.frame(&layout, PEER, accepted(layout.digest() + 1));
    assert_eq!(survivor.state(), NodeState::Accepted, "of another layout");
    survivor.frame(&layout, PEER, accepted(layout.digest()));
    survivor.save_all();
    assert_eq!(survivor.state(), NodeState::Serving, "whoever is lost is not waited for");
    // Only now is anybody turned away for good.
    let hello = Hello { header: third, lineage: Nonce(3).into() };
    let effects = survivor.step(Event::LinkOffered { link: link_of(node(3)), hello });
    assert!(matches!(effects, [Effect::RefuseLink { refusal: LinkRefusal::Departed, .. }]), "{effects:?}");
}

/// Once that is on disk, whatever has been accepted by then is in force.
#[test]
fn no_other_attempt_is_accepted_while_one_is_coming_into_force() {
    let (mut survivor, layout) = salvaging();
    let next = layout.recovered(attempt(3), &lost([])).unwrap();
    let accepted = Message::InitAccepted { digest: layout.digest(), reply_wanted: false, decided: true };
    let effects = survivor.frame(&layout, PEER, accepted);
    assert_eq!(refusal(&survivor.recover(&next)), RecoveryRefusal::Busy);
    survivor.effects = effects;
    survivor.save_all();
    assert_eq!(survivor.state(), NodeState::Serving);
    assert!(matches!(survivor.recover(&next)[..], [Effect::Save { .. }]), "from then on one is");
}

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
    let effects = survivor.frame(&layout, PEER, Message::Salvage { call, range });
    let [Effect::Scan { load, .. }] = effects[..] else { panic!("{effects:?}") };
    let effects = survivor.step(Event::Scanned { load, page: Ok(Page::default()) });
    let generation = |node| Generation(if node == ME { 1 } else { 7 });
    let noted: Noted = layout.replicas(mine).into_iter().map(generation).collect();
    assert_eq!(noted_in(effects), [noted], "with what is noted of the others, as every answer");

    merge_what_is_left(&mut survivor, &layout, asked);
    let effects = survivor.frame(&layout, PEER, read());
    assert!(matches!(effects[..], [Effect::Load { .. }]), "it counts: {effects:?}");
}

/// The other one has one record, and none of the other partitions.
fn merge_what_is_left(survivor: &mut Survivor, layout: &Layout, mut asked: Vec<Effect>) {
    for _ in 0..400 {
        // It looks through what it holds itself as well.
        let own = asked.iter().position(|effect| matches!(effect, Effect::Scan { .. }));
        if let Some(Effect::Scan { load, .. }) = own.map(|at| asked.remove(at)) {
            asked.extend(survivor.step(Event::Scanned { load, page: Ok(Page::default()) }).to_vec());
            continue;
        }
        let next = asked.iter().find_map(|effect| match effect {
            Effect::Send { message: Message::Salvage { call, range }, .. } => Some((*call, range.clone())),
            _ => None,
        });
        let Some((call, range)) = next else {
            let at = survivor.node.next_wakeup_ms().unwrap_or(1).max(1);
            survivor.effects.clear();
            survivor.node.step(now(at), Event::Tick, &mut survivor.effects);
            asked = survivor.effects.clone();
            if survivor.node.status(now(1)).transfer.done == 16 {
                return;
            }
            continue;
        };
        let is_mine = range.partition == key().partition(layout.partitions);
        let entries = if is_mine { vec![(key(), record(5))] } else { vec![] };
        let outcome = ScanOutcome::Page(Page { entries, is_cut: false });
        let answer = Message::ScanAnswer { call, outcome, noted: vec![] };
        let rest: Vec<_> = asked
            .iter()
            .filter(|effect| !matches!(effect, Effect::Send { message: Message::Salvage { call: of, .. }, .. } if *of == call))
            .cloned()
            .collect();
        let mut more = survivor.frame(layout, PEER, answer);
        if is_mine {
            assert!(is_in_doubt(&survivor.frame(layout, PEER, read())), "it is not on disk yet");
            let load = more.iter().find_map(|effect| match effect {
                Effect::Load { load, .. } => Some(*load),
                _ => None,
            });
            more.extend(survivor.step(Event::Loaded { load: load.unwrap(), record: Ok(None) }).to_vec());
            let commit = more.iter().find_map(|effect| match effect {
                Effect::Commit(commit) => Some(commit.id),
                _ => None,
            });
            let outcome = Ok(Durability::Synced);
            more.extend(survivor.step(Event::Committed { commit: commit.unwrap(), outcome }).to_vec());
        }
        asked = rest.into_iter().chain(more).collect();
    }
    panic!("it is not merged");
}

/// By then it counts, and what it has lost may have been acknowledged with it.
#[test]
fn what_is_damaged_of_a_salvaged_partition_once_that_is_merged_is_healed_and_not_dropped() {
    let (mut survivor, layout) = salvaging();
    let asked = decide(&mut survivor, &layout);
    merge_what_is_left(&mut survivor, &layout, asked);
    let effects = survivor.frame(&layout, PEER, read());
    let mut effects = survivor.step(Event::Loaded { load: load_in(&effects), record: Err(Damaged) }).to_vec();
    effects.extend(survivor.save_all());
    effects.extend(survivor.link(&layout, PEER));
    assert_eq!(commit_in(&effects), None);
    let asked = messages(&effects).into_iter().find_map(|message| match message {
        Message::Read { call, key: of, want: Want::Full } if *of == key() => Some(*call),
        _ => None,
    });
    let outcome = ReadOutcome::Full(record(5));
    let answer = Message::ReadAnswer { call: asked.unwrap(), outcome, noted: Vec::new() };
    let effects = survivor.frame(&layout, PEER, answer);
    let healed = Entry::Replace { key: key(), record: Some(record(5)) };
    assert_eq!(commit_in(&effects).map(|commit| &commit.entry), Some(&healed));
}

/// Nothing moves, and all the same a change of rings waits for whoever says that it has fenced the phase.
#[test]
fn fences_are_told_after_a_recovery_that_salvages_nothing() {
    let before = layout_of(3);
    let mut survivor = Survivor::new(before.clone());
    let layout = before.recovered(attempt(2), &lost([3])).unwrap();
    assert!(layout.salvaged.is_empty());
    survivor.recover(&layout);
    survivor.save_all();
    survivor.link(&layout, PEER);
    let accepted = Message::InitAccepted { digest: layout.digest(), reply_wanted: false, decided: false };
    survivor.frame(&layout, PEER, accepted);
    let effects = survivor.save_all();
    assert_eq!(survivor.state(), NodeState::Serving);
    let told = effects.iter().find_map(|effect| match effect {
        Effect::Send { message: Message::Standing(standing), .. } => Some(standing.fence),
        _ => None,
    });
    assert_eq!(told, Some(layout.epoch), "{effects:?}");
}

#[test]
fn a_survivor_that_is_alone_serves_after_a_start_as_well() {
    let layout = layout_of(3).recovered(attempt(2), &lost([2, 3])).unwrap();
    let start = Start { membership: Some((layout, false)), ..start(true, Settings::default()) };
    let mut survivor = Survivor { node: Node::new(start, now(0)), effects: Vec::new() };
    survivor.step(Event::Tick);
    survivor.save_all();
    assert_eq!(survivor.state(), NodeState::Serving);
}

/// Others bring it into force: by saying that they serve, or with a layout on which they have decided since.
#[test]
pub(crate) fn what_is_being_committed_when_a_recovery_is_accepted_ends_before_it_is_in_force() {
    let before = layout_of(3);
    let layout = before.recovered(attempt(2), &lost([3])).unwrap();
    let later = layout.next(&Change::Keyspaces([("carts".to_owned(), KeyspaceMode::Lww)].into())).unwrap();
    let accepted = Message::InitAccepted { digest: layout.digest(), reply_wanted: false, decided: true };
    let learned = Message::Layout { layout: Box::new(later.clone()), identities: Vec::new() };
    for (said, under) in [(accepted, &layout), (learned, &later)] {
        let mut survivor = Survivor::new(before.clone());
        survivor.link(&before, PEER);
        let call = Call { operation: 900, attempt: 1 };
        let (origin, durability) = (Origin::Repair, Durability::Synced);
        let write = Write { call, key: key(), record: record(5), origin, durability };
        let mut effects = survivor.frame(&before, PEER, Message::Write(write));
        if let Some(load) = effects.iter().find_map(|effect| match effect {
            Effect::Load { load, .. } => Some(*load),
            _ => None,
        }) {
            effects = survivor.step(Event::Loaded { load, record: Ok(None) }).to_vec();
        }
        let commit = effects.iter().find_map(|effect| match effect {
            Effect::Commit(commit) => Some(commit.id),
            _ => None,
        });
        survivor.recover(&layout);
        survivor.save_all();
        survivor.link(&layout, PEER);
        survivor.frame(under, PEER, said);
        survivor.save_all();
        assert_eq!(
            survivor.state(),
            NodeState::Accepted,
            "others would not be given what is not in the store yet"
        );
        let outcome = Ok(Durability::Synced);
        let effects = survivor.step(Event::Committed { commit: commit.unwrap(), outcome }).to_vec();
        assert!(
            matches!(effects[..], [Effect::Save { state: SavedState::Layout { decided: true, .. }, .. }]),
            "nobody waits for it any more: {effects:?}"
        );
        survivor.save_all();
        assert_eq!(survivor.state(), NodeState::Serving);
        assert!(survivor.node.is_idle());
    }
}

/// It has accepted an attempt that came to nothing, while others decided on a layout that gives it data, of the very epoch.
#[test]
fn what_a_void_attempt_has_hidden_is_cleared_all_the_same() {
    let before = first_layout(4, 3);
    let void = before.recovered(attempt(2), &lost([4])).unwrap();
    let mut survivor = Survivor::new(before.clone());
    survivor.recover(&void);
    survivor.save_all();
    let others = before.members.iter().filter(|member| member.node != node(4)).cloned().collect();
    let joint = before.next(&Change::Move { members: others, replication_factor: 3 }).unwrap();
    assert_eq!(joint.epoch, void.epoch);
    let gained = |partition: &Partition| joint.since(*partition, ME) == Some(joint.epoch);
    let mut gained: Vec<_> = joint.partitions.all().filter(gained).collect();
    assert!(!gained.is_empty());
    let later = joint.recovered(attempt(3), &lost([4])).unwrap();
    let mut effects = survivor.recover(&later);
    while let Some((load, partition)) = scan(&effects) {
        gained.retain(|gained| *gained != partition);
        effects = survivor.step(Event::Scanned { load, page: Ok(Page::default()) }).to_vec();
    }
    assert_eq!(gained, [], "they were not cleared");
    assert!(matches!(effects[..], [Effect::Save { state: SavedState::Layout { .. }, .. }]), "{effects:?}");
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
    let mut effects = survivor.save_all();
    effects.extend(survivor.step(Event::Tick).to_vec());
    assert_eq!(survivor.state(), NodeState::Serving);
    let commits: Vec<_> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Commit(commit) => Some(commit.id),
            _ => None,
        })
        .collect();
    let [commit] = commits[..] else { panic!("{effects:?}") };
    survivor.step(Event::Committed { commit, outcome: Ok(Durability::Synced) });
    assert_eq!(survivor.node.status(now(1)).doubted_keys, 0);
}

/// A survivor that serves, and of which somebody merges what is left of a partition.
fn merged_by_another() -> (Survivor, Layout, ScanRange) {
    let (mut survivor, layout) = salvaging();
    decide(&mut survivor, &layout);
    assert_eq!(survivor.state(), NodeState::Serving);
    let partition = key().partition(layout.partitions);
    (survivor, layout, ScanRange { partition, prefix: Default::default(), after: None, limit: 128 })
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
    let reads = effects.iter().filter(|effect| matches!(effect, Effect::Scan { .. })).count();
    assert_eq!(reads, 4, "what they come to is known only then");
    let mut given = 0;
    for at_ms in (1..1_000).step_by(10) {
        survivor.node.step(now(at_ms), Event::Tick, &mut effects);
        while let Some(effect) = effects.pop() {
            given += usize::from(is_scan_answer(&effect));
            let Effect::Scan { load, .. } = effect else { continue };
            let page = Ok(Page { entries: vec![(key(), value.clone())], is_cut: false });
            survivor.node.step(now(at_ms), Event::Scanned { load, page }, &mut effects);
        }
    }
    assert!((8..=20).contains(&given), "8 MiB a second, and what was read already: {given}");
}

#[test]
fn what_lies_before_a_damaged_record_is_read_in_few_pages() {
    let (mut survivor, layout, range) = merged_by_another();
    let call = Call { operation: 900, attempt: 0 };
    let mut effects = survivor.frame(&layout, PEER, Message::Salvage { call, range });
    // The 101st of them cannot be read.
    let mut limits = Vec::new();
    while let Some(Effect::Scan { load, range }) =
        effects.iter().find(|effect| matches!(effect, Effect::Scan { .. })).cloned()
    {
        limits.push(range.limit);
        let entries = (0..range.limit).map(|_| (key(), record(5))).collect();
        let page = match range.limit {
            0..=100 => Ok(Page { entries, is_cut: true }),
            _ => Err(NoPage::Damaged(key_of("damaged"))),
        };
        effects = survivor.step(Event::Scanned { load, page }).to_vec();
        if effects.iter().any(is_scan_answer) {
            break;
        }
    }
    assert_eq!(limits, [128, 64]);
}
