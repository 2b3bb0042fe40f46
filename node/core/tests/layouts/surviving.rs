//! Recovery: who accepts the layout of one, when it is in force, and when what is salvaged counts.

use std::collections::BTreeMap;

use keystore_core::effect::{Answer, Effect, Event, LinkId, RequestId, SavedState};
use keystore_core::id::{ClusterId, Epoch, Incarnation, NodeId, Nonce};
use keystore_core::layout::{KeyspaceMode, Layout};
use keystore_core::message::{Call, Header, Hello, Message, Origin, Page, Refusal, Want, Write};
use keystore_core::node::{Node, NodeState, Settings, Start};
use keystore_core::partition::Partition;
use keystore_core::peers::LinkRefusal;
use keystore_core::quorum::Durability;
use keystore_core::recovery::{Losses, RecoveryRefusal};
use keystore_core::succession::Change;
use keystore_core::transfer::Merges;

use crate::bench::effects::{commit_in, load_in, refusals};
use crate::bench::{ME, PEER, first_layout, header, key, layout_of, mint, now, record, start};
use crate::epochs::scan;
use crate::recovered::{attempt, lost, node};

/// A member of three that hold everything, the third of which is lost.
pub(crate) struct Survivor {
    pub(crate) node: Node,
    pub(crate) effects: Vec<Effect>,
    /// As they were to be saved last.
    pub(crate) merges: Merges,
}

impl Survivor {
    pub(crate) fn new(layout: Layout) -> Self {
        Self::started(Start { membership: Some((layout, true)), ..start(true, Settings::default()) })
    }

    pub(crate) fn started(start: Start) -> Self {
        Self { merges: start.merges.clone(), node: Node::new(start, now(0)), effects: Vec::new() }
    }

    pub(crate) fn step(&mut self, event: Event) -> &[Effect] {
        self.step_at(1, event)
    }

    fn step_at(&mut self, at_ms: u64, event: Event) -> &[Effect] {
        self.effects.clear();
        self.node.step(now(at_ms), event, &mut self.effects);
        for effect in &self.effects {
            if let Effect::Save { state: SavedState::Merges(merges), .. } = effect {
                self.merges = merges.clone();
            }
        }
        &self.effects
    }

    /// Time passes until the node has something to do.
    pub(crate) fn tick(&mut self) -> Vec<Effect> {
        let at_ms = self.node.next_wakeup_ms().unwrap_or(1).max(1);
        self.step_at(at_ms, Event::Tick).to_vec()
    }

    pub(crate) fn recover(&mut self, layout: &Layout) -> Vec<Effect> {
        self.step(Event::Recover { request: RequestId(5), layout: Box::new(layout.clone()) }).to_vec()
    }

    pub(crate) fn save_all(&mut self) -> Vec<Effect> {
        let mut all = Vec::new();
        while let Some(Effect::Save { save, .. }) =
            self.effects.iter().find(|effect| matches!(effect, Effect::Save { .. }))
        {
            let save = *save;
            all.extend(self.step(Event::Saved { save }).to_vec());
        }
        all
    }

    pub(crate) fn state(&self) -> NodeState {
        self.node.status(now(1)).state
    }

    fn header(layout: &Layout, from: NodeId) -> Header {
        let Layout { incarnation, epoch, .. } = layout;
        Header { incarnation: *incarnation, epoch: *epoch, from, ..header(7) }
    }

    pub(crate) fn link(&mut self, layout: &Layout, from: NodeId) -> Vec<Effect> {
        let hello = Hello { header: Self::header(layout, from), lineage: Nonce(7).into() };
        let mut all = self.step(Event::LinkOffered { link: link_of(from), hello }).to_vec();
        all.extend(self.save_all());
        all
    }

    pub(crate) fn frame(&mut self, layout: &Layout, from: NodeId, message: Message) -> Vec<Effect> {
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
pub(crate) fn a_recovery_is_accepted_durably_and_only_above_what_was_accepted() {
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
    let mut stranger = Survivor::started(Start { membership: None, ..start(true, Settings::default()) });
    let layout = layout_of(3).recovered(attempt(2), &lost([3])).unwrap();
    assert_eq!(refusal(&stranger.recover(&layout)), RecoveryRefusal::NotInitialized);
}

pub(crate) const CALL: Call = Call { operation: 900, attempt: 1 };

pub(crate) fn read() -> Message {
    Message::Read { call: CALL, key: key(), want: Want::Full }
}

pub(crate) fn is_in_doubt(effects: &[Effect]) -> bool {
    refusals(effects).contains(&Refusal::InDoubt)
}

/// Two of three are left, and one of them is in doubt of everything: nothing can be trusted to be whole.
pub(crate) fn salvaging() -> (Survivor, Layout) {
    salvaging_from(layout_of(3))
}

pub(crate) fn salvaging_from(before: Layout) -> (Survivor, Layout) {
    let doubted = BTreeMap::from([(PEER, before.partitions.all().collect())]);
    let layout = before.recovered(attempt(2), &Losses { doubted, ..lost([3]) }).unwrap();
    let mut survivor = Survivor::new(before);
    survivor.recover(&layout);
    survivor.save_all();
    survivor.link(&layout, PEER);
    (survivor, layout)
}

/// All that are left have accepted; returns what is done then.
pub(crate) fn decide(survivor: &mut Survivor, layout: &Layout) -> Vec<Effect> {
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

/// Of what is salvaged nothing counts yet, not even what was minted here before.
#[test]
fn what_was_being_committed_when_a_recovery_is_accepted_is_answered_to_nobody() {
    let before = layout_of(3);
    let call = Call { operation: 900, attempt: 0 };
    for accepts in [false, true] {
        let mut survivor = Survivor::new(before.clone());
        survivor.link(&before, PEER);
        let load = load_in(&survivor.frame(&before, PEER, Message::Mint(mint(call, key()))));
        let effects = survivor.step(Event::Loaded { load, record: Ok(None) });
        let commit = commit_in(effects).unwrap().id;
        let layout = before.recovered(attempt(3), &lost([3])).unwrap();
        if accepts {
            survivor.recover(&layout);
            survivor.save_all();
            survivor.link(&layout, PEER);
        }
        let effects = survivor.step(Event::Committed { commit, outcome: Ok(Durability::Synced) });
        let is_answer =
            |effect: &Effect| matches!(effect, Effect::Send { message: Message::MintAnswer { .. }, .. });
        assert_eq!(effects.iter().any(is_answer), !accepts, "{effects:?}");
    }
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
    let mut survivor = Survivor::started(start);
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
    survivor.recover(&later);
    let mut effects = survivor.tick();
    while let Some((load, partition)) = scan(&effects) {
        gained.retain(|gained| *gained != partition);
        effects = survivor.step(Event::Scanned { load, page: Ok(Page::default()) }).to_vec();
        effects.extend(survivor.tick());
    }
    assert_eq!(gained, [], "they were not cleared");
    assert!(matches!(effects[..], [Effect::Save { state: SavedState::Layout { .. }, .. }]), "{effects:?}");
}

/// Whoever was to take it over from here is lost, perhaps before it had: what is here is all that is left.
#[test]
fn what_was_to_be_salvaged_from_a_node_that_is_given_it_alone_is_not_cleared() {
    let before = first_layout(2, 1);
    let alone = before.members[..1].to_vec();
    let joint = before.next(&Change::Move { members: alone, replication_factor: 1 }).unwrap();
    let doubted = BTreeMap::from([(PEER, joint.partitions.all().collect())]);
    let salvaging = joint.recovered(attempt(2), &Losses { doubted, ..lost([]) }).unwrap();
    let is_source_alone = |of: &Partition| {
        salvaging.salvaged.get(of).is_some_and(|sources| sources.contains(&ME))
            && !salvaging.is_replica(*of, ME)
    };
    let held: Vec<_> = salvaging.partitions.all().filter(is_source_alone).collect();
    assert!(!held.is_empty());
    let last = salvaging.recovered(attempt(3), &lost([2])).unwrap();
    assert!(held.iter().all(|of| last.since(*of, ME) == Some(Epoch(1))));
    let mut survivor = Survivor::new(joint);
    survivor.recover(&salvaging);
    survivor.save_all();
    survivor.link(&salvaging, PEER);
    decide(&mut survivor, &salvaging);
    assert_eq!(survivor.state(), NodeState::Serving);
    let effects = survivor.recover(&last);
    assert!(
        matches!(effects[..], [Effect::Save { state: SavedState::Layout { .. }, .. }]),
        "nothing goes first: {effects:?}"
    );
    survivor.save_all();
    assert_eq!(survivor.state(), NodeState::Serving);
}
