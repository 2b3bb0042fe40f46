//! Recovery: which layout the survivors go on under, who accepts it, and when what they salvage counts.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bench;

use std::collections::{BTreeMap, BTreeSet};

use bench::{ME, PEER, first_layout, header, key, key_of, layout_of, now, record, start};
use keystore_core::effect::{Answer, Damaged, Effect, Event, LinkId, NoPage, RequestId, SavedState};
use keystore_core::id::{Epoch, Incarnation, NodeId, Nonce};
use keystore_core::layout::{Layout, Member};
use keystore_core::message::{
    Call, Header, Hello, Message, Origin, Page, Refusal, ScanOutcome, ScanRange, Want, Write,
};
use keystore_core::node::{Node, NodeState, Settings, Start};
use keystore_core::partition::Partition;
use keystore_core::peers::LinkRefusal;
use keystore_core::quorum::{Consistency, Durability};
use keystore_core::record::{Body, Record};
use keystore_core::recovery::{Attempt, Left, Losses, RecoveryError, RecoveryRefusal, plan_attempt};
use keystore_core::succession::{Change, Evidence, GateError, Standing, Step, SuccessionError, check_gate};
use proptest::prelude::*;

fn node(n: u8) -> NodeId {
    NodeId([n; 16])
}

fn nodes(numbers: impl IntoIterator<Item = u8>) -> BTreeSet<NodeId> {
    numbers.into_iter().map(node).collect()
}

fn attempt(number: u64) -> Incarnation {
    Incarnation { number, id: number + 40 }
}

fn lost(numbers: impl IntoIterator<Item = u8>) -> Losses {
    Losses { nodes: nodes(numbers), doubted: BTreeMap::new() }
}

/// The replicas of a partition in each ring that can be trusted are a quorum of it.
fn has_quorums(layout: &Layout, partition: Partition, losses: &Losses) -> bool {
    let is_trusted = |node: &NodeId| {
        let is_doubted = losses.doubted.get(node).is_some_and(|doubted| doubted.contains(&partition));
        !losses.nodes.contains(node) && !is_doubted
    };
    layout.replica_sets(partition).satisfied(Consistency::Quorum, is_trusted)
}

/// Whatever is lost next, nobody whose records are not merged yet is told to begin empty.
fn check_once_more(first: &Layout, losses: &Losses) {
    for member in first.members.iter().filter(|member| !member.is_lost) {
        let nodes = losses.nodes.iter().copied().chain([member.node]).collect();
        let Ok(second) = first.recovered(attempt(3), &Losses { nodes, doubted: BTreeMap::new() }) else {
            continue;
        };
        for (partition, sources) in &second.salvaged {
            for source in sources {
                assert_ne!(second.since(*partition, *source), Some(second.epoch), "{partition} of {source}");
            }
        }
    }
}

/// What holds of every layout of a recovery.
fn check(before: &Layout, losses: &Losses) {
    let after = before.recovered(attempt(2), losses).unwrap();
    assert_eq!(after.validate(), Ok(()));
    check_once_more(&after, losses);
    assert_eq!((after.epoch, after.incarnation), (Epoch(before.epoch.0 + 1), attempt(2)));
    assert!(after.members.iter().all(|member| member.is_lost == losses.nodes.contains(&member.node)));
    assert_eq!(after.is_joint(), before.is_joint());
    let left = after.members.len() - losses.nodes.len();
    for partition in before.partitions.all() {
        if has_quorums(before, partition, losses) {
            assert!(!after.salvaged.contains_key(&partition));
            assert_eq!(after.replicas(partition), before.replicas(partition), "it stays as it is");
            continue;
        }
        let sources: BTreeSet<_> = before.replicas(partition).into_iter().collect();
        let sources: BTreeSet<_> = sources.difference(&losses.nodes).copied().collect();
        assert_eq!(after.salvaged.get(&partition), Some(&sources), "all that are left, in doubt or not");
        let ring = after.ring().replicas(partition);
        assert!(after.rings().all(|other| other.replicas(partition) == ring), "one ring");
        assert_eq!(ring.len(), left.min(before.replication_factor));
        for replica in ring {
            assert!(!losses.nodes.contains(&replica.node));
            let since = before.since(partition, replica.node).unwrap_or(after.epoch);
            assert_eq!(replica.since, since, "who held it keeps what it has, others begin empty");
        }
        let kept = ring.iter().filter(|replica| sources.contains(&replica.node)).count();
        assert_eq!(kept, sources.len().min(ring.len()), "those that have something come first");
    }
}

proptest! {
    #[test]
    fn whoever_is_lost_or_in_doubt_the_rest_goes_on(
        gone in prop::collection::btree_set(1u8..=6, 0..=5),
        doubted in prop::collection::btree_map(1u8..=6, prop::collection::btree_set(0u16..16, 0..16), 0..4),
        is_joint in any::<bool>(),
    ) {
        let before = first_layout(6, 3);
        let to = before.members.iter().filter(|member| member.node != node(1)).cloned().collect();
        let moving = before.next(&Change::Move { members: to, replication_factor: 3 }).unwrap();
        let doubted = doubted.into_iter().map(|(n, of)| (node(n), of.into_iter().map(Partition).collect()));
        let losses = Losses { nodes: nodes(gone), doubted: doubted.collect() };
        check(if is_joint { &moving } else { &before }, &losses);
    }
}

#[test]
fn what_cannot_be_recovered_is_refused() {
    let layout = layout_of(3);
    let refused = |incarnation, losses: &Losses| layout.recovered(incarnation, losses).unwrap_err();
    assert_eq!(refused(attempt(1), &lost([3])), RecoveryError::Incarnation { now: 1, found: 1 });
    assert_eq!(refused(attempt(2), &lost([9])), RecoveryError::NoMember(node(9)));
    assert_eq!(refused(attempt(2), &lost([1, 2, 3])), RecoveryError::NobodyIsLeft);
}

#[test]
fn what_is_salvaged_has_to_be_finished_before_anything_moves() {
    let layout = layout_of(3).recovered(attempt(2), &lost([3, 2])).unwrap();
    assert_eq!(layout.voters, [ME]);
    let members = vec![layout.members[0].clone()];
    let moving = layout.next(&Change::Move { members, replication_factor: 1 });
    assert_eq!(moving.unwrap_err(), SuccessionError::IsSalvaging);
    let voters = Layout { epoch: Epoch(3), salvaged: BTreeMap::new(), ..layout.clone() };
    let standing = Standing { fence: layout.epoch, phase: layout.phase_since, whole: BTreeSet::new() };
    let mut evidence = Evidence::from([(ME, standing)]);
    let step = keystore_core::succession::check_step(&layout, &voters).unwrap_err();
    assert!(
        matches!(step, SuccessionError::PhaseSince { .. }),
        "to drop what is salvaged is to finish: {step}"
    );
    let gate = check_gate(&layout, Step::Finish, &evidence).unwrap_err();
    assert!(matches!(gate, GateError::Fence { .. } | GateError::Merge { .. }), "{gate}");
    evidence.get_mut(&ME).unwrap().whole = layout.partitions.all().collect();
    assert_eq!(check_gate(&layout, Step::Finish, &evidence), Ok(()));
    let finished = layout.next(&Change::Finish).unwrap();
    assert!(finished.salvaged.is_empty() && !finished.is_moving());
    assert_eq!(finished.validate(), Ok(()), "with fewer replicas than are wanted");
}

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
    assert!(matches!(survivor.recover(&second)[..], [Effect::Save { .. }]), "a higher one takes its place");
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

#[test]
fn a_salvaged_partition_counts_once_all_that_is_left_is_merged() {
    let (mut survivor, layout) = salvaging();
    survivor.frame(
        &layout,
        PEER,
        Message::InitAccepted { digest: layout.digest(), reply_wanted: false, decided: true },
    );
    let asked = survivor.save_all();
    let call = Call { operation: 900, attempt: 1 };
    let read = || Message::Read { call, key: key(), want: Want::Full };
    let refused = |effects: &[Effect]| {
        effects.iter().any(|effect| match effect {
            Effect::Send { message, .. } => message.refusal() == Some(Refusal::InDoubt),
            _ => false,
        })
    };
    assert!(refused(&survivor.frame(&layout, PEER, read())));
    let origin = Origin::Repair;
    let write = Write { call, key: key(), record: record(5), origin, durability: Durability::Synced };
    assert!(refused(&survivor.frame(&layout, PEER, Message::Write(write))));
    // What is left here is given away all the same.
    let mine = key().partition(layout.partitions);
    let range = ScanRange { partition: mine, prefix: Default::default(), after: None, limit: 10 };
    let effects = survivor.frame(&layout, PEER, Message::Salvage { call, range });
    assert!(matches!(effects[..], [Effect::Scan { .. }]), "{effects:?}");

    // The other one has one record, and none of the other partitions.
    let mut asked = asked;
    let mut is_merged = false;
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
                is_merged = true;
                break;
            }
            continue;
        };
        let is_mine = range.partition == mine;
        let entries = if is_mine { vec![(key(), record(5))] } else { vec![] };
        let outcome = ScanOutcome::Page(Page { entries, is_cut: false });
        let answer = Message::ScanAnswer { call, outcome, noted: vec![] };
        let rest: Vec<_> = asked
            .iter()
            .filter(|effect| !matches!(effect, Effect::Send { message: Message::Salvage { call: of, .. }, .. } if *of == call))
            .cloned()
            .collect();
        let mut more = survivor.frame(&layout, PEER, answer);
        if is_mine {
            assert!(refused(&survivor.frame(&layout, PEER, read())), "it is not on disk yet");
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
    assert!(is_merged);
    let effects = survivor.frame(&layout, PEER, read());
    assert!(matches!(effects[..], [Effect::Load { .. }]), "it counts: {effects:?}");
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
fn a_recovery_gives_nothing_to_members_that_were_to_go_unless_nobody_else_is_left() {
    let idle = Member { weight: 0, ..first_layout(5, 3).member(node(5)).unwrap().clone() };
    let first = first_layout(4, 3).next(&Change::Admit(vec![idle])).unwrap();
    let some = first.recovered(attempt(2), &lost([1, 2, 3])).unwrap();
    assert_eq!((some.owned(node(5)), some.owned(node(4)) > 0), (0, true));
    let last = first.recovered(attempt(2), &lost([1, 2, 3, 4])).unwrap();
    assert_eq!((last.member(node(5)).unwrap().weight, last.owned(node(5))), (1, 16));
}

#[test]
fn what_is_to_be_done_follows_from_what_those_say_that_are_left() {
    let before = layout_of(3);
    let losses = lost([3]);
    let first = before.recovered(attempt(2), &losses).unwrap();
    let plan = |left: &[(&Layout, bool)], losses: &Losses| {
        let left: Vec<_> =
            left.iter().map(|(layout, is_serving)| Left { layout, is_serving: *is_serving }).collect();
        plan_attempt(&left, losses, 77).unwrap()
    };
    let begins = |attempt: Attempt| match attempt {
        Attempt::Begin { before, layout } => (before.phase, layout.incarnation.number, layout.epoch),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        begins(plan(&[(&before, true), (&before, true)], &losses)),
        (before.phase.clone(), 2, Epoch(2))
    );
    let half = Attempt::GoOn(first.clone());
    assert_eq!(plan(&[(&first, false), (&before, true)], &losses), half, "interrupted");
    assert_eq!(plan(&[(&first, false), (&first, true)], &losses), half, "one does not know of all");
    assert_eq!(plan(&[(&first, true), (&first, true)], &losses), Attempt::InForce);
    assert_eq!(begins(plan(&[(&first, false), (&before, true)], &lost([2, 3]))).1, 3, "more is lost");

    // Those that had not accepted went on, and moved data.
    let members = before.members[..2].to_vec();
    let moving = before.next(&Change::Move { members, replication_factor: 2 }).unwrap();
    let moved = moving.next(&Change::Finish).unwrap();
    let (phase, number, epoch) = begins(plan(&[(&first, false), (&moved, true)], &losses));
    assert_eq!(
        (phase, number, epoch),
        (moved.phase.clone(), 3, Epoch(4)),
        "it is made from what is in force"
    );
    match plan(&[(&first, false), (&moved, true)], &Losses::default()) {
        Attempt::Begin { layout, .. } => assert!(layout.is_lost(node(3)), "who was called lost stays so"),
        other => panic!("{other:?}"),
    }

    // The same after an attempt that was void has raised the epoch of the next one.
    let more = lost([2, 3]);
    let first = moving.recovered(attempt(2), &losses).unwrap();
    let Attempt::Begin { layout: second, .. } = plan(&[(&first, false), (&moving, true)], &more) else {
        panic!("more is lost");
    };
    assert!(second.epoch > moved.epoch);
    let (phase, number, _) = begins(plan(&[(&second, false), (&moved, true)], &more));
    assert_eq!((phase, number), (moved.phase.clone(), 4));
    let goes_on = Attempt::GoOn(second.clone());
    assert_eq!(plan(&[(&second, false), (&moving, true)], &more), goes_on, "nobody has gone on");
    assert_eq!(plan(&[(&second, false), (&before, true)], &more), goes_on, "one is behind");

    // Two attempts of one number, the later one made from what the others had moved to: neither can come into force.
    let second = |of: &Layout, id| of.recovered(Incarnation { number: 2, id }, &losses).unwrap();
    for (of_early, of_late) in [(1, 9), (9, 1)] {
        let (early, late) = (second(&before, of_early), second(&moved, of_late));
        let (phase, number, epoch) = begins(plan(&[(&early, false), (&late, false)], &losses));
        assert_eq!((phase, number, epoch), (late.phase.clone(), 3, Epoch(late.epoch.0 + 1)));
    }

    // After a recovery, the others may have given somebody up by a vote.
    let given_up = first.next(&Change::Lose(nodes([2]))).unwrap();
    let (_, number, _) = begins(plan(&[(&given_up, true)], &Losses::default()));
    assert_eq!(number, 3, "of all partitions, one replica of three is left");
}

#[test]
fn what_was_merged_of_a_source_that_is_lost_by_now_is_merged_by_all() {
    let before = first_layout(6, 3);
    let salvaging = before.recovered(attempt(2), &lost([1, 2, 3])).unwrap();
    let sole = |(partition, sources): (&Partition, &BTreeSet<NodeId>)| {
        (sources.len() == 1).then(|| (*partition, *sources.first().unwrap()))
    };
    let (partition, source) = salvaging.salvaged.iter().find_map(sole).unwrap();
    let losses = Losses { nodes: BTreeSet::from([source]), ..Losses::default() };
    let after = salvaging.recovered(attempt(3), &losses).unwrap();
    let left: BTreeSet<_> =
        salvaging.replicas(partition).into_iter().filter(|node| *node != source).collect();
    assert_eq!(after.salvaged.get(&partition), Some(&left));
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

#[test]
fn what_is_being_committed_when_a_recovery_is_accepted_ends_before_it_is_in_force() {
    let before = layout_of(3);
    let layout = before.recovered(attempt(2), &lost([3])).unwrap();
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
    let accepted = Message::InitAccepted { digest: layout.digest(), reply_wanted: false, decided: true };
    survivor.frame(&layout, PEER, accepted);
    survivor.save_all();
    assert_eq!(
        survivor.state(),
        NodeState::Accepted,
        "others would not be given what is not in the store yet"
    );
    let effects =
        survivor.step(Event::Committed { commit: commit.unwrap(), outcome: Ok(Durability::Synced) }).to_vec();
    assert!(
        matches!(effects[..], [Effect::Save { state: SavedState::Layout { decided: true, .. }, .. }]),
        "nobody waits for it any more: {effects:?}"
    );
    survivor.save_all();
    assert_eq!(survivor.state(), NodeState::Serving);
    assert!(survivor.node.is_idle());
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

#[test]
fn a_move_that_turns_back_after_a_recovery_leaves_the_number_of_replicas_that_is_wanted() {
    let left = first_layout(3, 3).recovered(attempt(2), &lost([2, 3])).unwrap();
    let all = first_layout(5, 3).members;
    let wanted = [0, 3, 4].map(|at: usize| all[at].clone());
    let moving = left
        .next(&Change::Finish)
        .and_then(|layout| layout.next(&Change::Admit(all[3..].to_vec())))
        .and_then(|layout| layout.next(&Change::Move { members: wanted.to_vec(), replication_factor: 3 }))
        .unwrap();
    let back = moving.next(&Change::Abort).unwrap();
    assert_eq!((back.ring().replication_factor(), back.replication_factor), (1, 3));
}

/// A survivor that serves, and of which somebody merges what is left of a partition.
fn merged_by_another() -> (Survivor, Layout, ScanRange) {
    let (mut survivor, layout) = salvaging();
    let decided = Message::InitAccepted { digest: layout.digest(), reply_wanted: false, decided: true };
    survivor.frame(&layout, PEER, decided);
    survivor.save_all();
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
