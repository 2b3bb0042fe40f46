//! Who votes on a layout, for what, and whose word counts.

use std::collections::BTreeSet;

use keystore_core::effect::{Answer, Effect, Event, ProposalError, RequestId, SavedState};
use keystore_core::id::{Epoch, Generation};
use keystore_core::layout::{KeyspaceMode, Layout};
use keystore_core::message::Message;
use keystore_core::node::{Node, Settings, Start};
use keystore_core::partition::Partition;
use keystore_core::paxos::{Ballot, Next, Proposer, Say, Verdict, Vote, Votes};
use keystore_core::succession::{Change, Evidence, Standing};

use crate::bench::effects::answer_in;
use crate::bench::{ME, PEER, first_layout, layout_of, now, start};
use crate::epochs::node;
use crate::linked::{Linked, saves};
use crate::succession::keyspace;

const BALLOT: Ballot = Ballot { round: 1, proposer: PEER, generation: Generation(7) };

fn to(numbers: &[u8]) -> Change {
    let all = first_layout(4, 3).members;
    let members = all.into_iter().filter(|member| numbers.contains(&member.node.0[0])).collect();
    Change::Move { members, replication_factor: 3 }
}

/// Nodes 1 to 3 hold everything since epoch 3; node 4 has left, and is a member still.
fn narrow() -> Layout {
    first_layout(4, 3).next(&to(&[1, 2, 3])).and_then(|joint| joint.next(&Change::Finish)).unwrap()
}

fn say(linked: &mut Linked, of: &Layout, epoch: u64, say: Say) -> Vec<Effect> {
    let message = Message::Paxos { epoch: Epoch(epoch), ballot: BALLOT, say: Box::new(say) };
    linked.frame((PEER, of.epoch.0), message)
}

fn said(effects: &[Effect]) -> Option<&Say> {
    effects.iter().find_map(|effect| match effect {
        Effect::Send { message: Message::Paxos { say, .. }, .. } => Some(&**say),
        _ => None,
    })
}

#[test]
pub(crate) fn an_acceptor_judges_what_it_votes_for() {
    let now = narrow();
    let mut linked = Linked::new((now.clone(), true), &[(PEER, 3)]);
    let layout = now.next(&to(&[2, 3, 4])).unwrap();
    let effects = say(&mut linked, &now, 4, Say::Accept { layout, evidence: Evidence::new() });
    assert!(matches!(said(&effects), Some(Say::Refused { .. })), "the gate is not open: {effects:?}");
    assert_eq!(saves(&effects), []);
    let layout = now.next(&Change::Dismiss([node(4)].into())).unwrap();
    let effects = say(&mut linked, &now, 4, Say::Accept { layout, evidence: Evidence::new() });
    assert!(matches!(saves(&effects)[..], [(_, SavedState::Votes(_))]), "{effects:?}");
}

/// Or a late message of an earlier ballot, and a third one that finds that, could choose something else once this is chosen.
#[test]
pub(crate) fn whoever_votes_under_a_ballot_has_promised_it() {
    let now = narrow();
    let layout = now.next(&keyspace("carts", KeyspaceMode::Lww)).unwrap();
    let accept = Say::Accept { layout, evidence: Evidence::new() };
    let later = Ballot { round: 2, ..BALLOT };
    let voted = Votes::default().judge(&now, later, &accept);
    let Some(Verdict::SaveThenSay(votes, Say::Accepted)) = voted else { panic!("{voted:?}") };
    for say in [Say::Prepare, accept] {
        let outbid = Verdict::Say(Say::Outbid { promised: later });
        assert_eq!(votes.judge(&now, BALLOT, &say), Some(outbid), "{say:?}");
    }
}

#[test]
pub(crate) fn only_a_voter_that_holds_the_layout_before_votes() {
    let now = narrow();
    let mut linked = Linked::new((now.clone(), true), &[(PEER, 3)]);
    assert_eq!(say(&mut linked, &now, 5, Say::Prepare), [], "it is behind, and asked again");
    let effects = say(&mut linked, &now, 4, Say::Prepare);
    assert!(matches!(saves(&effects)[..], [(_, SavedState::Votes(_))]), "{effects:?}");
    let effects = say(&mut linked, &now, 3, Say::Prepare);
    let is_told = matches!(&effects[..], [Effect::Send { message: Message::Layout { layout, .. }, .. }] if **layout == now);
    assert!(is_told, "that is decided: {effects:?}");

    let leaving = first_layout(4, 3).next(&to(&[2, 3, 4])).unwrap();
    assert!(!leaving.is_voter(ME));
    let mut linked = Linked::new((leaving.clone(), true), &[(PEER, 2)]);
    assert_eq!(say(&mut linked, &leaving, 3, Say::Prepare), []);
}

/// It has accepted a layout, and does not know that anybody else has.
#[test]
fn whoever_does_not_know_that_its_layout_is_decided_takes_no_part() {
    let accepted = layout_of(3);
    let layout = accepted.next(&keyspace("carts", KeyspaceMode::Lww)).unwrap();
    let mut linked = Linked::new((accepted.clone(), false), &[(PEER, 1)]);
    for of in [Say::Prepare, Say::Accept { layout, evidence: Evidence::new() }] {
        assert_eq!(say(&mut linked, &accepted, 2, of.clone()), [], "it saves and says nothing");
        assert_eq!(say(&mut linked, &accepted, 1, of), [], "nor does it call that layout decided");
    }
}

#[test]
pub(crate) fn only_the_voters_count() {
    let now = narrow();
    let layout = now.next(&Change::Dismiss([node(4)].into())).unwrap();
    let mut proposer = Proposer::new(&now, layout, Evidence::new(), BALLOT);
    let promise = || Say::Promise { accepted: None };
    assert_eq!(proposer.hear(node(4), BALLOT, promise()), Next::Wait);
    assert_eq!(proposer.hear(PEER, BALLOT, promise()), Next::Wait);
    assert!(matches!(proposer.hear(ME, BALLOT, promise()), Next::Say(_)));
}

/// Or what it may be given again is dropped before the layout is taken up there, and what is asked of that waits.
#[test]
pub(crate) fn no_data_moves_while_somebody_drops_what_it_has_left() {
    let now = narrow();
    let next = now.next(&to(&[2, 3, 4])).unwrap();
    let mut linked = Linked::new((now.clone(), true), &[(PEER, 3), (node(3), 3)]);
    let say = |linked: &mut Linked, from, clears| {
        let standing = Standing { fence: now.epoch, clears, ..Standing::default() };
        linked.frame((from, 3), Message::Standing(standing));
    };
    say(&mut linked, PEER, false);
    say(&mut linked, node(3), true);
    let effects = linked.propose(now.epoch, &next);
    let early = ProposalError::StillDrops { node: node(3) };
    assert!(
        matches!(&effects[..], [Effect::Answer { answer: Answer::ProposalFailed(error), .. }, ..] if *error == early),
        "{effects:?}"
    );
    assert_eq!(
        early.to_string(),
        format!(
            "the layout cannot follow yet: {} still drops what it holds of partitions that it has left",
            node(3)
        )
    );
    // Nothing else waits for that, nor does it where copies are missing.
    for change in [keyspace("carts", KeyspaceMode::Lww), Change::Lose([node(4)].into())] {
        let mut other = Linked::new((now.clone(), true), &[(PEER, 3), (node(3), 3)]);
        say(&mut other, PEER, false);
        say(&mut other, node(3), true);
        assert!(said(&other.propose(now.epoch, &now.next(&change).unwrap())).is_some(), "{change:?}");
    }
    say(&mut linked, node(3), false);
    assert!(said(&linked.propose(now.epoch, &next)).is_some());
    let short = now.next(&Change::Lose([node(3)].into())).unwrap();
    let next = short.next(&to(&[1, 2, 4])).unwrap();
    let mut linked = Linked::new((short.clone(), true), &[(PEER, short.epoch.0)]);
    let standing = Standing { fence: short.epoch, clears: true, ..Standing::default() };
    linked.frame((PEER, short.epoch.0), Message::Standing(standing));
    let effects = linked.propose(short.epoch, &next);
    assert!(matches!(effects[..], [Effect::Save { .. }]), "copies are missing: {effects:?}");
}

/// What is known of a member may be older than what it has said since: it is asked, and tells.
#[test]
pub(crate) fn whoever_is_waited_for_says_how_far_it_is() {
    let now = narrow();
    let next = now.next(&to(&[2, 3, 4])).unwrap();
    let mut linked = Linked::new((now.clone(), true), &[(PEER, 3), (node(3), 3)]);
    let standing = |clears| Message::Standing(Standing { fence: now.epoch, clears, ..Standing::default() });
    linked.frame((PEER, 3), standing(true));
    let mut asked = Vec::new();
    for late in [node(3), PEER] {
        let effects = linked.propose(now.epoch, &next);
        let to = effects.iter().find_map(|effect| match effect {
            Effect::Send { link, message: Message::Layout { layout, .. }, .. } if **layout == now => {
                Some(*link)
            }
            _ => None,
        });
        assert_eq!(to, Some(Linked::link(late)), "{effects:?}");
        linked.frame((node(3), 3), standing(false));
        asked.extend(to);
    }
    assert_eq!(asked.len(), 2);
    let effects = linked.learn((PEER, 3), &now);
    assert!(
        matches!(&effects[..], [Effect::Send { message: Message::Standing(standing), .. }] if standing.fence == now.epoch),
        "{effects:?}"
    );
}

#[test]
pub(crate) fn a_change_of_rings_waits_for_each_member_that_can_be_reached() {
    let now = narrow();
    let next = now.next(&to(&[2, 3, 4])).unwrap();
    let mut linked = Linked::new((now.clone(), true), &[(PEER, 3), (node(3), 2)]);
    let standing = |fence| Message::Standing(Standing { fence: Epoch(fence), ..Standing::default() });
    linked.frame((PEER, 3), standing(3));
    linked.frame((node(3), 2), standing(2));
    let effects = linked.propose(now.epoch, &next);
    let late = ProposalError::Unacknowledged { node: node(3), epoch: Epoch(3) };
    assert!(
        matches!(&effects[..], [Effect::Answer { answer: Answer::ProposalFailed(error), .. }, ..] if *error == late),
        "{effects:?}"
    );
    linked.frame((node(3), 3), standing(3));
    assert!(said(&linked.propose(now.epoch, &next)).is_some());
}

/// Not only one of the same rings.
#[test]
pub(crate) fn a_change_of_rings_waits_for_the_very_layout_in_force() {
    let now = narrow().next(&keyspace("carts", KeyspaceMode::Lww)).unwrap();
    assert_eq!((now.phase_since, now.epoch), (Epoch(3), Epoch(4)));
    let mut linked = Linked::new((now.clone(), true), &[(PEER, 4), (node(3), 3)]);
    for (from, fence) in [(PEER, 4), (node(3), 3)] {
        let standing = Standing { fence: Epoch(fence), ..Standing::default() };
        linked.frame((from, fence), Message::Standing(standing));
    }
    let effects = linked.propose(now.epoch, &now.next(&to(&[2, 3, 4])).unwrap());
    let late = ProposalError::Unacknowledged { node: node(3), epoch: now.epoch };
    assert_eq!(answer_in(&effects), Some(&Answer::ProposalFailed(late)), "{effects:?}");
}

/// Whoever hears that it is no member any more sets its data aside at once.
#[test]
pub(crate) fn whoever_answers_and_may_have_the_last_copy_stays_a_member() {
    let now = narrow();
    let goes = now.next(&Change::Dismiss([node(4)].into())).unwrap();
    let needed = ProposalError::StillNeeded { node: node(4) };
    assert_eq!(
        needed.to_string(),
        format!(
            "the layout cannot follow yet: what {} has left may still be asked for, or be the last copy that can be read",
            node(4)
        )
    );
    let failed = |error| Some(Answer::ProposalFailed(error));
    let all = [PEER, node(3), node(4)];
    let propose = |linked: &mut Linked| answer_in(&linked.propose(now.epoch, &goes)).cloned();
    let say = |linked: &mut Linked, from, doubted: &[u16]| {
        let doubted = doubted.iter().map(|partition| Partition(*partition)).collect();
        let standing = Standing { fence: now.epoch, doubted, ..Standing::default() };
        linked.frame((from, 3), Message::Standing(standing));
    };
    let mut linked = Linked::new((now.clone(), true), &all.map(|peer| (peer, 3)));
    say(&mut linked, PEER, &[]);
    say(&mut linked, node(4), &[]);
    assert_eq!(propose(&mut linked), failed(needed.clone()), "node 3 may ask it still");
    for from in [PEER, node(3)] {
        say(&mut linked, from, &[5]);
    }
    assert_eq!(propose(&mut linked), failed(needed), "of one partition, one copy can be read");
    say(&mut linked, PEER, &[]);
    assert_eq!(propose(&mut linked), None, "two of three are a quorum");
    // Who goes as well and is away asks for nothing.
    let both = narrow().next(&Change::Admit(vec![first_layout(5, 3).members[4].clone()])).unwrap();
    let mut linked = Linked::new((both.clone(), true), &all.map(|peer| (peer, 4)));
    for from in all {
        let standing = Standing { fence: both.epoch, ..Standing::default() };
        linked.frame((from, 4), Message::Standing(standing));
    }
    let go = both.next(&Change::Dismiss([node(4), node(5)].into())).unwrap();
    assert_eq!(answer_in(&linked.propose(both.epoch, &go)), None);
    let one = both.next(&Change::Dismiss([node(4)].into())).unwrap();
    let mut linked = Linked::new((both.clone(), true), &all.map(|peer| (peer, 4)));
    for from in all {
        let standing = Standing { fence: both.epoch, ..Standing::default() };
        linked.frame((from, 4), Message::Standing(standing));
    }
    assert!(answer_in(&linked.propose(both.epoch, &one)).is_some(), "the last one may ask it still");
    // Of who does not answer, nobody can ask for anything.
    let mut linked = Linked::new((now.clone(), true), &[(PEER, 3)]);
    assert_eq!(propose(&mut linked), None);
}

/// Nor is anybody waited for where data is to go back, or where no ring changes: that is wanted just when somebody is slow.
#[test]
fn what_turns_a_move_back_waits_for_nobody() {
    let joint = narrow().next(&to(&[2, 3, 4])).unwrap();
    for change in [Change::Abort, keyspace("carts", KeyspaceMode::Lww)] {
        let peers = [PEER, node(3), node(4)];
        let mut linked = Linked::new((joint.clone(), true), &peers.map(|peer| (peer, 3)));
        for peer in peers {
            let standing = Standing { fence: Epoch(3), clears: true, ..Standing::default() };
            linked.frame((peer, 3), Message::Standing(standing));
        }
        let effects = linked.propose(joint.epoch, &joint.next(&change).unwrap());
        assert!(said(&effects).is_some(), "{change:?}: {effects:?}");
    }
}

/// What was wanted of another layout may not be wanted of this one.
#[test]
pub(crate) fn a_proposal_is_for_the_layout_that_it_expects() {
    let now = narrow();
    let next = now.next(&keyspace("carts", KeyspaceMode::Lww)).unwrap();
    let mut linked = Linked::new((now.clone(), true), &[(PEER, 3)]);
    for expected in [2, 4].map(Epoch) {
        let effects = linked.propose(expected, &next);
        let other = ProposalError::Epoch { now: now.epoch, expected };
        assert!(
            matches!(&effects[..], [Effect::Answer { answer: Answer::ProposalFailed(error), .. }] if *error == other),
            "{effects:?}"
        );
    }
    assert!(said(&linked.propose(now.epoch, &next)).is_some());
}

#[test]
fn of_the_votes_that_are_found_the_highest_is_proposed_with_its_evidence() {
    let now = narrow();
    let vote = |round: u64| {
        let standing = Standing { fence: Epoch(round), ..Standing::default() };
        Vote {
            ballot: Ballot { round, ..BALLOT },
            layout: now.next(&keyspace(&format!("of-{round}"), KeyspaceMode::Lww)).unwrap(),
            evidence: Evidence::from([(node(3), standing)]),
        }
    };
    let own = now.next(&Change::Dismiss([node(4)].into())).unwrap();
    let ballot = Ballot { round: 3, ..BALLOT };
    for found in [[Some(1), Some(2)], [Some(2), Some(1)], [Some(2), None], [None, Some(2)]] {
        let mut proposer = Proposer::new(&now, own.clone(), Evidence::new(), ballot);
        let [first, second] = found.map(|round| Say::Promise { accepted: round.map(vote) });
        assert_eq!(proposer.hear(PEER, ballot, first), Next::Wait);
        let Vote { layout, evidence, .. } = vote(2);
        let accept = Next::Say(Box::new(Say::Accept { layout, evidence }));
        assert_eq!(proposer.hear(ME, ballot, second), accept, "{found:?}");
    }
}

/// A vote under it would count for whatever else was proposed under it.
#[test]
fn no_ballot_is_used_twice_not_even_by_another_process() {
    let layout = layout_of(3);
    let next = layout.next(&keyspace("carts", KeyspaceMode::Lww)).unwrap();
    let mut used = BTreeSet::new();
    for generation in [1, 2].map(Generation) {
        let membership = Some((layout.clone(), true));
        let start = Start { membership, generation, ..start(true, Settings::default()) };
        let mut linked = Linked { node: Node::new(start, now(0)) };
        linked.greet(Linked::header(PEER, 1));
        let mut at_ms = 1;
        // Nobody answers, so it is given up after some attempts; then it is wanted once more.
        for request in [1, 2].map(RequestId) {
            let (expected, wanted) = (layout.epoch, Box::new(next.clone()));
            let mut event = Event::Propose { request, expected, layout: wanted };
            let before = used.len();
            loop {
                let mut effects = Vec::new();
                linked.node.step(now(at_ms), event, &mut effects);
                for effect in &effects {
                    if let Effect::Send { message: Message::Paxos { ballot, .. }, .. } = effect {
                        assert!(used.insert(*ballot), "{ballot:?} of {used:?}");
                    }
                }
                if answer_in(&effects).is_some() {
                    break;
                }
                (at_ms, event) = (at_ms + 500, Event::Tick);
            }
            assert!(used.len() > before + 1, "it is tried more than once");
        }
    }
}
