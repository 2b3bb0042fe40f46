//! What nodes have noted of one another's generations, event by event: whose word counts no longer, and when a node's own
//! disk is not the one that the others know.

#![allow(clippy::unwrap_used, reason = "a broken harness may panic")]

mod bench;

use bench::effects::{answer_in, load_in, messages, noted_in};
use bench::many::{A, B, Bench, noted};
use bench::{ME, NOTHING_HELD, key_of, layout_of, record};
use keystore_core::effect::{Alarm, Answer, Effect, Event, FailureReason, LinkId, Now, SavedState};
use keystore_core::id::{Generation, NodeId};
use keystore_core::message::{Message, Page, Want, WriteOutcome};
use keystore_core::peers::LinkRefusal;
use keystore_core::quorum::{Consistency, Durability};

#[test]
fn an_acknowledgement_counts_no_longer_once_its_sender_is_known_as_a_later_generation() {
    let write_in = |effects: &[Effect]| {
        let call =
            |message: &&Message| if let Message::Write(write) = message { Some(write.call) } else { None };
        messages(effects).iter().find_map(call).unwrap()
    };
    let held = |bench: &mut Bench, from, call, noted| {
        let outcome = WriteOutcome::Held(Durability::Synced);
        bench.frame(from, Message::WriteAnswer { call, outcome, noted })
    };
    // Its hello alone, even if the link breaks before the identity is saved.
    let mut bench = Bench::new();
    let effects = bench.put("k", Consistency::Quorum);
    let call = write_in(&effects);
    held(&mut bench, A, call, noted("k", &[(ME, 1)]));
    let hello = bench.hello(A, 8);
    bench.step(Event::LinkOffered { link: LinkId(99), hello });
    bench.step(Event::LinkClosed { link: LinkId(99) });
    let effects = held(&mut bench, B, call, noted("k", &[(ME, 1), (A, 8)]));
    assert_eq!(answer_in(&effects), None, "only B's counts");
    // What another one has noted.
    let mut bench = Bench::new();
    let effects = bench.put("k", Consistency::Quorum);
    let call = write_in(&effects);
    held(&mut bench, A, call, noted("k", &[(ME, 1)]));
    let effects = held(&mut bench, B, call, noted("k", &[(ME, 1), (A, 8)]));
    assert_eq!(answer_in(&effects), None, "only B's counts");
    assert_eq!(bench.node.status(Now::default()).counters.generations_heard, 1);
}

#[test]
fn an_answer_speaks_of_no_generation_that_is_not_on_disk_yet() {
    let noted_of_a = |bench: &mut Bench| {
        let call = bench.call();
        let effects = bench.frame(B, Message::Read { call, key: key_of("k"), want: Want::Full });
        let effects = bench.step(Event::Loaded { load: load_in(&effects), record: Ok(None) });
        match messages(&effects)[..] {
            [Message::ReadAnswer { noted, .. }] => noted.clone(),
            ref other => panic!("{other:?}"),
        }
    };
    let mut bench = Bench::new();
    let hello = bench.hello(A, 8);
    let effects = bench.step(Event::LinkOffered { link: LinkId(99), hello });
    let [Effect::Save { save, state: SavedState::Peers(_) }] = effects[..] else { panic!("{effects:?}") };
    assert_eq!(noted_of_a(&mut bench), noted("k", &[(ME, 1)]), "a crash could still forget it");
    bench.step(Event::Saved { save });
    assert_eq!(noted_of_a(&mut bench), noted("k", &[(ME, 1), (A, 8)]));
}

/// A page that was asked for is read, and empty.
fn scanned(bench: &mut Bench, effects: &[Effect]) -> Vec<Effect> {
    bench.step(Event::Scanned { load: load_in(effects), page: Ok(Page::default()) })
}

/// Or whoever counts it would not hear that a replica has lost what it once said.
#[test]
fn every_answer_of_a_replica_says_what_it_has_noted_of_the_others() {
    type Asked = fn(&mut Bench) -> Vec<Effect>;
    let cases: [(&str, Asked); 8] = [
        ("a write that is held", |bench| {
            let effects = bench.write("k", 5, Durability::Synced).1;
            let effects = bench.loaded(&effects, Ok(None));
            bench.synced(&effects)
        }),
        ("a write that is superseded", |bench| {
            let effects = bench.write("k", 5, Durability::Synced).1;
            bench.loaded(&effects, Ok(Some(record(9))))
        }),
        ("a write that is refused", |bench| {
            bench.damage("k");
            bench.write("k", 5, Durability::Synced).1
        }),
        ("a dot", |bench| {
            let effects = bench.mint("k").1;
            let effects = bench.loaded(&effects, Ok(None));
            bench.synced(&effects)
        }),
        ("a read", |bench| {
            let effects = bench.read("k").1;
            bench.loaded(&effects, Ok(Some(record(5))))
        }),
        ("a read that is refused", |bench| bench.damage("k")),
        ("a page", |bench| {
            let effects = bench.scan("k", None).1;
            scanned(bench, &effects)
        }),
        ("a page that is taken over", |bench| {
            let effects = bench.scan("k", Some(NOTHING_HELD)).1;
            scanned(bench, &effects)
        }),
    ];
    for (what, ask) in cases {
        let effects = ask(&mut Bench::new());
        assert_eq!(noted_in(&effects), [noted("k", &[(ME, 1)])], "{what}");
    }
}

#[test]
fn all_news_of_an_answer_are_taken_in_before_anything_is_concluded_from_it() {
    let mut bench = Bench::of(5);
    let [c, d] = [NodeId([4; 16]), NodeId([5; 16])];
    let effects = bench.put("k", Consistency::Quorum);
    let call = messages(&effects)
        .iter()
        .find_map(|m| if let Message::Write(write) = m { Some(write.call) } else { None })
        .unwrap();
    let layout = layout_of(5);
    let replicas = layout.replicas(key_of("k").partition(layout.partitions));
    let held = |bench: &mut Bench, from, later: &[NodeId]| {
        let of = |node: &NodeId| {
            if *node == ME {
                1
            } else if later.contains(node) {
                8
            } else {
                7
            }
        };
        let noted = replicas.iter().map(|node| Generation(of(node))).collect();
        let outcome = WriteOutcome::Held(Durability::Synced);
        bench.frame(from, Message::WriteAnswer { call, outcome, noted })
    };
    assert_eq!(answer_in(&held(&mut bench, A, &[])), None);
    assert_eq!(answer_in(&held(&mut bench, B, &[])), None);
    assert_eq!(answer_in(&held(&mut bench, c, &[A, B])), None, "the third, and the first two are void");
    assert_eq!(answer_in(&held(&mut bench, d, &[A, B])), None);
}

#[test]
fn a_node_that_is_refused_as_stale_serves_no_more_and_says_so_once_its_disk_is_set_aside() {
    let mut bench = Bench::new();
    let stale = LinkRefusal::StaleGeneration;
    let refused =
        |generation, refusal| Event::HelloRefused { peer: A, generation: Generation(generation), refusal };
    assert_eq!(bench.step(refused(1, LinkRefusal::WrongCluster)), []);
    assert_eq!(bench.step(refused(0, stale)), [], "an earlier generation of ours was on its way");
    let stranger = NodeId([77; 16]);
    let by_stranger = Event::HelloRefused { peer: stranger, generation: Generation(1), refusal: stale };
    assert_eq!(bench.step(by_stranger), []);
    let effects = bench.step(refused(1, stale));
    let save = effects.iter().find_map(|effect| match effect {
        Effect::Save { save, state: SavedState::SetAside } => Some(*save),
        _ => None,
    });
    let closed = effects.iter().filter(|effect| matches!(effect, Effect::CloseLink { .. })).count();
    assert_eq!((closed, bench.node.hello(A)), (2, None));
    assert_eq!(bench.read("k").1, [], "nothing is answered");
    let effects = bench.put("k", Consistency::One);
    assert!(matches!(answer_in(&effects), Some(Answer::Failed(_))), "{effects:?}");
    assert_eq!(bench.node.next_wakeup_ms(), None);
    let effects = bench.step(Event::Saved { save: save.unwrap() });
    assert_eq!(effects, [Effect::Alarm(Alarm::StaleGeneration { peer: A })]);
}

#[test]
fn a_refusal_of_the_generation_before_a_doubt_says_nothing_about_the_disk() {
    let mut bench = Bench::new();
    bench.raise("k");
    let refusal = LinkRefusal::StaleGeneration;
    let late = Event::HelloRefused { peer: A, generation: Generation(1), refusal };
    assert_eq!(bench.step(late), []);
    assert!(bench.node.hello(A).is_some());
}

#[test]
fn a_node_that_hears_of_a_later_generation_of_itself_sets_its_disk_aside() {
    let mut bench = Bench::new();
    let effects = bench.put("k", Consistency::Quorum);
    let call = messages(&effects)
        .iter()
        .find_map(|m| if let Message::Write(write) = m { Some(write.call) } else { None })
        .unwrap();
    let outcome = WriteOutcome::Held(Durability::Synced);
    let effects = bench.frame(A, Message::WriteAnswer { call, outcome, noted: noted("k", &[(ME, 5)]) });
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Save { state: SavedState::SetAside, .. })));
    let Some(Answer::Failed(failure)) = answer_in(&effects) else { panic!("{effects:?}") };
    assert_eq!(failure.reason, FailureReason::OutcomeUnknown);
}
