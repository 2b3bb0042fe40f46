//! Every interleaving of small clusters: how layouts are decided, and what a change of rings waits for.
//!
//! The models are stateright's; what they step is the code that ships. `KEYSTORE_MODEL_DEPTH=1` explores further.

#![allow(clippy::unwrap_used, reason = "a broken model may panic")]
#![allow(clippy::disallowed_methods, reason = "how far to explore comes from the environment")]
#![allow(clippy::disallowed_types, reason = "the checker has threads, and shares the model with them")]

mod cluster;
mod deciding;
mod explore;
mod fences;
mod interned;
mod scenarios;

use std::collections::BTreeSet;

use keystore_core::layout::Layout;
use keystore_core::mutant::Mutant;
use keystore_core::succession::Change;

use crate::cluster::{first, members, nodes, to};
use crate::deciding::{Deciding, Scenario, Seen};
use crate::explore::explore;
use crate::fences::Fences;

fn check_decided(name: &str, scenario: Scenario, expected: &[Seen], layouts: usize) {
    let model = Deciding::new(scenario, None);
    let tables = model.tables();
    let (violation, _) = explore(name, model);
    if let Some((property, steps)) = violation {
        panic!("{name}: not so: {property}{steps}");
    }
    let seen = tables.lock().unwrap().seen.clone();
    let decided = seen.iter().filter(|seen| matches!(seen, Seen::Decided(_))).count();
    assert_eq!(decided, layouts, "{name}: {seen:?}");
    assert!(expected.iter().all(|expected| seen.contains(expected)), "{name}: {seen:?}");
}

#[test]
fn one_node_decides_one_layout_an_epoch() {
    let expected = [Seen::Outbid, Seen::FoundAndProposed, Seen::CrashedWhileSaving];
    check_decided("one node", scenarios::one_node(), &expected, 4);
}

#[test]
fn two_nodes_decide_one_layout_an_epoch_though_the_voter_changes() {
    let expected = [Seen::Outbid, Seen::FoundAndProposed, Seen::CrashedWhileSaving, Seen::SkippedAnEpoch];
    check_decided("two nodes", scenarios::two_nodes(), &expected, 4);
}

#[test]
fn three_nodes_decide_one_layout_an_epoch() {
    let found = [Seen::Outbid, Seen::FoundAndProposed];
    check_decided("three nodes", scenarios::one_ballot(), &found, 2);
    check_decided("three nodes, two ballots of one", scenarios::one_proposer(), &found, 1);
    if explore::depth() > 0 {
        check_decided("three nodes, several ballots", scenarios::three_nodes(), &found, 2);
        check_decided("three nodes, crashes", scenarios::crashes(), &[Seen::CrashedWhileSaving], 2);
    }
}

#[test]
fn three_nodes_decide_two_layouts_one_after_the_other() {
    check_decided("three nodes, two epochs", scenarios::two_epochs(), &[Seen::SkippedAnEpoch], 3);
}

#[test]
fn a_move_is_decided_step_by_step_and_voters_refuse_what_has_no_evidence() {
    check_decided("a move", scenarios::a_move(&[1, 1, 0]), &[], 3);
    check_decided("a move, and a rash end", scenarios::a_move(&[1, 0, 1]), &[Seen::Refused], 2);
}

#[test]
fn the_model_of_the_decision_notices_broken_rules() {
    let lines: [(Mutant, fn() -> Scenario); 6] = [
        (Mutant::PromisesAreForgotten, scenarios::one_ballot),
        (Mutant::PromisesHideVotes, scenarios::one_ballot),
        (Mutant::FoundVotesAreIgnored, scenarios::one_ballot),
        (Mutant::AnyBallotCounts, scenarios::one_proposer),
        (Mutant::OneVoteFewer, scenarios::one_ballot),
        (Mutant::VotesBeforeTheyAreSaved, scenarios::one_node),
    ];
    for (mutant, scenario) in lines {
        let (violation, _) = explore(&format!("{mutant:?}"), Deciding::new(scenario(), Some(mutant)));
        let (property, steps) = violation.unwrap_or_else(|| panic!("{mutant:?} is not noticed"));
        println!("  not so: {property}{steps}");
    }
}

fn admitted(ring: &[u8], others: &[u8]) -> Layout {
    first(ring).next(&Change::Admit(members(others))).unwrap()
}

fn moves(start: Layout, nodes: u8, changes: Vec<Change>, mutant: Option<Mutant>) -> Fences {
    let changes = [vec![Change::Finish, Change::Abort], changes].concat();
    let epochs = if explore::depth() > 0 { 6 } else { 5 };
    Fences { start, nodes, changes, epochs, mutant, layouts: Default::default(), seen: Default::default() }
}

fn one_replica(mutant: Option<Mutant>) -> Fences {
    moves(admitted(&[1], &[2]), 2, vec![to(&[1]), to(&[2])], mutant)
}

fn two_replicas(mutant: Option<Mutant>) -> Fences {
    moves(admitted(&[1, 2], &[3]), 3, vec![to(&[1, 2]), to(&[2, 3]), to(&[1, 2, 3])], mutant)
}

fn three_replicas(mutant: Option<Mutant>) -> Fences {
    let changes = vec![to(&[2, 3, 4]), to(&[1, 2, 3]), Change::Lose(nodes(&[3]))];
    moves(admitted(&[1, 2, 3], &[4]), 4, changes, mutant)
}

#[test]
fn no_operation_of_a_phase_that_is_over_gets_its_quorum() {
    use fences::Seen::{Aborted, Began, BeganAfterAnAbort, Finished, OldAcknowledgement, OldOperation};
    for (name, model) in [
        ("fences, one replica", one_replica(None)),
        ("fences, two replicas", two_replicas(None)),
        ("fences, three replicas", three_replicas(None)),
    ] {
        let seen = model.seen.clone();
        let (violation, _) = explore(name, model);
        if let Some((property, steps)) = violation {
            panic!("{name}: not so: {property}{steps}");
        }
        let mut expected = BTreeSet::from([Began, Finished, Aborted, BeganAfterAnAbort, OldOperation]);
        // The quorum of two is both, and one replica is fenced at once.
        if name.contains("three") {
            expected.insert(OldAcknowledgement);
        }
        let seen = seen.lock().unwrap().clone();
        assert!(expected.is_subset(&seen), "{name}: {seen:?}");
    }
}

#[test]
fn the_model_of_fences_notices_that_nobody_waits_for_them() {
    for model in [one_replica, two_replicas, three_replicas] {
        let (violation, _) =
            explore("ChangesDoNotWaitForFences", model(Some(Mutant::ChangesDoNotWaitForFences)));
        let (property, steps) = violation.expect("it is noticed");
        println!("  not so: {property}{steps}");
    }
}
