//! Whom a member takes for one, and what becomes of whoever is none any more.

use keystore_core::effect::{Effect, Event, SavedState};
use keystore_core::id::{ClusterId, Generation, Incarnation};
use keystore_core::layout::Layout;
use keystore_core::message::{Header, Hello, Message};
use keystore_core::node::{Node, Settings, Start};
use keystore_core::peers::LinkRefusal;
use keystore_core::succession::Change;

use crate::bench::{ME, PEER, first_layout, layout_of, now, start};
use crate::epochs::node;
use crate::linked::{Linked, saves};

fn refusal(effects: &[Effect]) -> Option<LinkRefusal> {
    effects.iter().find_map(|effect| match effect {
        Effect::RefuseLink { refusal, .. } => Some(*refusal),
        _ => None,
    })
}

fn is_set_aside(effects: &[Effect]) -> bool {
    saves(effects).iter().any(|(_, state)| *state == SavedState::SetAside)
}

/// Node 4 holds nothing.
fn with_a_spare() -> Layout {
    layout_of(3).next(&Change::Admit(first_layout(4, 3).members)).unwrap()
}

#[test]
pub(crate) fn whoever_was_given_up_or_has_departed_is_turned_away() {
    for change in [Change::Lose([node(4)].into()), Change::Dismiss([node(4)].into())] {
        let layout = with_a_spare().next(&change).unwrap();
        let mut linked = Linked::new((layout, true), &[]);
        for epoch in 1..=3 {
            let effects = linked.greet(Linked::header(node(4), epoch));
            assert_eq!(refusal(&effects), Some(LinkRefusal::Departed), "{change:?}, epoch {epoch}");
        }
        assert_eq!(refusal(&linked.greet(Linked::header(node(5), 3))), Some(LinkRefusal::WrongNode));
        assert_eq!(refusal(&linked.greet(Linked::header(PEER, 1))), None, "a member that is behind");
    }
}

#[test]
pub(crate) fn whoever_learns_that_it_was_given_up_goes_on_no_more() {
    let mut linked = Linked::new((layout_of(3), true), &[(PEER, 2)]);
    let lost = layout_of(3).next(&Change::Lose([ME].into())).unwrap();
    assert!(is_set_aside(&linked.learn((PEER, 2), &lost)));
}

#[test]
pub(crate) fn whoever_learns_that_it_is_no_member_goes_on_no_more() {
    let without_me = first_layout(4, 3).members.split_off(1);
    let dropped = first_layout(4, 3)
        .next(&Change::Move { members: without_me, replication_factor: 3 })
        .and_then(|joint| joint.next(&Change::Finish))
        .and_then(|left| left.next(&Change::Dismiss([ME].into())))
        .unwrap();
    let mut linked = Linked::new((first_layout(4, 3), true), &[(PEER, 4)]);
    assert!(is_set_aside(&linked.learn((PEER, 4), &dropped)));
}

/// Nobody has told it that it was a member, and it may never become one again.
#[test]
pub(crate) fn whoever_has_departed_unaware_hears_it_when_it_is_turned_away() {
    let stranger = || {
        let start = Start { membership: None, ..start(true, Settings::default()) };
        Linked { node: Node::new(start, now(0)) }
    };
    let mut linked = stranger();
    linked.greet(Linked::header(PEER, 4));
    let mut without_me = with_a_spare();
    without_me.departed.insert(ME);
    without_me.members.remove(0);
    assert!(
        is_set_aside(&linked.learn((PEER, 4), &without_me)),
        "or from a layout, if it was linked by then"
    );
    let mut stranger = stranger();
    let refused = |refusal| Event::HelloRefused { peer: PEER, generation: Generation(1), refusal };
    assert_eq!(stranger.step(refused(LinkRefusal::WrongCluster)), []);
    assert!(is_set_aside(&stranger.step(refused(LinkRefusal::Departed))));
}

/// Nobody is left of those whom it knows: others took their places while it was away.
#[test]
fn whoever_has_departed_believes_that_whomever_it_hears_it_from() {
    let refused = |refusal| Event::HelloRefused { peer: node(9), generation: Generation(1), refusal };
    let mut linked = Linked::new((layout_of(3), true), &[]);
    assert_eq!(
        linked.step(refused(LinkRefusal::StaleGeneration)),
        [],
        "of its disk a stranger knows nothing"
    );
    assert!(is_set_aside(&linked.step(refused(LinkRefusal::Departed))));
}

#[test]
pub(crate) fn other_clusters_do_not_count() {
    let mut linked = Linked::new((layout_of(3), true), &[(PEER, 1)]);
    let cluster = ClusterId([8; 16]);
    let header = Header { cluster, ..Linked::header(node(3), 1) };
    let hello = Hello { header, lineage: keystore_core::id::Nonce(7).into() };
    let effects = linked.step(Event::LinkOffered { link: Linked::link(node(3)), hello });
    assert_eq!(refusal(&effects), Some(LinkRefusal::WrongCluster));
    let of_theirs = Layout { cluster, ..with_a_spare() };
    assert_eq!(saves(&linked.learn((PEER, 1), &of_theirs)), []);
}

/// After a recovery, nobody goes on under what is decided by whoever missed it; nor under a recovery before it was asked
/// to accept that.
#[test]
fn layouts_of_other_incarnations_are_not_taken_up() {
    let ours = Incarnation { number: 2, id: 2 };
    let (before, next) = (Layout { incarnation: ours, ..layout_of(3) }, with_a_spare());
    for (number, id) in [(1, 1), (2, 1), (3, 3)] {
        let mut linked = Linked::new((before.clone(), true), &[]);
        let header = Header { incarnation: ours, ..Linked::header(PEER, 2) };
        linked.greet(header);
        let mut hear = |incarnation| {
            let layout = Box::new(Layout { incarnation, ..next.clone() });
            let messages = vec![Message::Layout { layout, identities: Vec::new() }];
            saves(&linked.step(Event::Frame { link: Linked::link(PEER), header, messages }))
        };
        assert_eq!(hear(Incarnation { number, id }), [], "{number}, {id}");
        assert!(matches!(hear(ours)[..], [(_, SavedState::Layout { .. })]), "that of ours is");
    }
}
