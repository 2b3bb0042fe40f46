//! Which store do the pods hold? One table, from what was seen to what is concluded and done.

#![allow(clippy::unwrap_used, reason = "a test's support may panic as the test itself")]

mod fixtures;

use fixtures::{
    CLUSTER, FRESH, OTHER_CLUSTER, accepted, cluster, decided, empty, layout, look, node, of, plan_of,
    remembers, serving,
};
use keystore_core::id::NodeId;
use keystore_crds::KeyStoreClusterStatus;
use keystore_operator_core::identity::Identity;
use keystore_operator_core::observed::{HeldLayout, NodeAnswer, NodeMode};
use keystore_operator_core::plan::NodeStep;
use serde_json::json;

type Answers = Vec<Option<NodeAnswer>>;

/// The name of the conclusion and of the step that follows, with the ordinals concerned.
fn conclude(answers: Answers, held: Option<HeldLayout>, status: Option<KeyStoreClusterStatus>) -> String {
    let plan = plan_of(&cluster(&json!({}), status), &look(answers, held));
    let identity = match &plan.identity {
        Identity::InForce { .. } => "in force".to_owned(),
        Identity::Accepting { .. } => "accepting".to_owned(),
        Identity::Empty { .. } => "empty".to_owned(),
        Identity::Nameless => "nameless".to_owned(),
        Identity::Unknown { silent } => format!("unknown {silent:?}"),
        Identity::AllReplaced => "all replaced".to_owned(),
        Identity::Conflict { clusters, missing } => {
            let missing = if missing.is_some() { ", none the status's" } else { "" };
            format!("conflict of {}{missing}", clusters.len())
        }
        Identity::Impossible { error } => format!("impossible: {error}"),
    };
    let step = match &plan.node_step {
        NodeStep::Nothing => "nothing".to_owned(),
        NodeStep::RecordCluster(id) => format!("record {}", if *id == FRESH { "fresh" } else { "other" }),
        NodeStep::Init { layout, ordinals } => {
            assert_eq!(layout.cluster, CLUSTER);
            format!("init {ordinals:?}")
        }
        NodeStep::Propose(_) => "propose".to_owned(),
    };
    format!("{identity}, {step}")
}

fn all_empty() -> Answers {
    (0..3).map(|ordinal| Some(empty(ordinal))).collect()
}

#[test]
fn the_first_layout_comes_only_from_nodes_that_all_said_they_are_empty() {
    let is_accepted = |ordinal| Some(of(CLUSTER, NodeMode::Accepted, ordinal));
    let minted = || remembers(CLUSTER, None);
    let served = || remembers(CLUSTER, Some(1));
    let one_silent = || vec![Some(empty(0)), None, Some(empty(2))];
    for (name, answers, held, status, expected) in [
        ("new cluster", all_empty(), None, None, "nameless, record fresh"),
        ("UUID recorded", all_empty(), None, minted(), "empty, init [0, 1, 2]"),
        ("one is silent", one_silent(), None, None, "unknown {1}, nothing"),
        ("one is silent, UUID recorded", one_silent(), None, minted(), "unknown {1}, nothing"),
        ("no pod yet", vec![None, None, None], None, None, "unknown {0, 1, 2}, nothing"),
        (
            "one says that it is empty and that it belongs to a store",
            vec![Some(NodeAnswer { cluster: Some(CLUSTER), ..empty(0) }), Some(empty(1)), Some(empty(2))],
            None,
            minted(),
            "unknown {0}, nothing",
        ),
        (
            "init was interrupted after the first",
            vec![is_accepted(0), Some(empty(1)), Some(empty(2))],
            accepted(),
            minted(),
            "accepting, init [1, 2]",
        ),
        (
            "init was interrupted, and one is silent",
            vec![is_accepted(0), None, Some(empty(2))],
            accepted(),
            minted(),
            "accepting, init [2]",
        ),
        (
            "init was interrupted, and the status was lost",
            vec![is_accepted(0), Some(empty(1)), Some(empty(2))],
            accepted(),
            None,
            "accepting, init [1, 2]",
        ),
        (
            "one holds a store and does not tell its layout",
            vec![is_accepted(0), Some(empty(1)), Some(empty(2))],
            None,
            minted(),
            "unknown {0}, nothing",
        ),
        (
            "the layout was in force and its nodes have yet to find each other again",
            vec![is_accepted(0), None, Some(empty(2))],
            accepted(),
            served(),
            "in force, nothing",
        ),
        ("all accepted", (0..3).map(is_accepted).collect(), accepted(), minted(), "accepting, nothing"),
        (
            "old volumes are adopted, also while one pod is slow",
            vec![Some(serving(0)), None, Some(serving(2))],
            decided(),
            None,
            "in force, nothing",
        ),
        (
            "an emptied node of a store is not initialised",
            vec![Some(serving(0)), Some(empty(1)), Some(serving(2))],
            decided(),
            served(),
            "in force, nothing",
        ),
        ("all volumes were lost", all_empty(), None, served(), "all replaced, nothing"),
        ("all were lost, one is silent", one_silent(), None, served(), "unknown {1}, nothing"),
        (
            "two stores",
            vec![Some(serving(0)), Some(of(OTHER_CLUSTER, NodeMode::Serving, 1)), None],
            decided(),
            served(),
            "conflict of 2, nothing",
        ),
        (
            "the status names another store than the nodes",
            vec![Some(serving(0)), Some(serving(1)), Some(serving(2))],
            decided(),
            remembers(OTHER_CLUSTER, Some(7)),
            "conflict of 1, none the status's, nothing",
        ),
        (
            "one came back with another store and the others are silent",
            vec![Some(serving(0)), None, None],
            decided(),
            remembers(OTHER_CLUSTER, Some(1)),
            "conflict of 1, none the status's, nothing",
        ),
        (
            "one came back with another store and does not tell its layout",
            vec![Some(serving(0)), Some(empty(1)), Some(empty(2))],
            None,
            remembers(OTHER_CLUSTER, Some(1)),
            "conflict of 1, none the status's, nothing",
        ),
        (
            "the status names a store that was not in force yet, and the nodes hold another",
            vec![Some(serving(0)), Some(serving(1)), Some(serving(2))],
            decided(),
            remembers(OTHER_CLUSTER, None),
            "conflict of 1, none the status's, nothing",
        ),
        (
            "two stores, neither of which the status names",
            vec![Some(serving(0)), Some(of(FRESH, NodeMode::Serving, 1)), None],
            decided(),
            remembers(OTHER_CLUSTER, Some(1)),
            "conflict of 2, none the status's, nothing",
        ),
    ] {
        assert_eq!(conclude(answers, held, status), expected, "{name}");
    }
}

#[test]
fn a_cloned_volume_makes_no_layout() {
    let mut answers = all_empty();
    answers[2] = Some(NodeAnswer { node: node(0), ..empty(2) });
    let conclusion = conclude(answers, None, remembers(CLUSTER, None));
    assert!(conclusion.starts_with("impossible: "), "{conclusion}");
}

#[test]
fn an_interrupted_init_is_repeated_with_the_very_same_layout() {
    let resource = cluster(&json!({}), remembers(CLUSTER, None));
    let first = plan_of(&resource, &look(all_empty(), None));
    let again = plan_of(&resource, &look(all_empty(), None));
    assert_eq!(first.node_step, again.node_step);
    let NodeStep::Init { layout: sent, .. } = first.node_step else { panic!("{:?}", first.node_step) };
    assert_eq!(
        sent,
        layout(CLUSTER, 3),
        "zones and members come from what was seen, the UUID from the status"
    );
}

#[test]
fn a_volume_lost_between_acceptances_is_for_a_person_to_solve() {
    let lost = NodeAnswer { node: NodeId([0x99; 16]), ..empty(1) };
    let answers = vec![Some(of(CLUSTER, NodeMode::Accepted, 0)), Some(lost), Some(empty(2))];
    let plan = plan_of(&cluster(&json!({}), remembers(CLUSTER, None)), &look(answers, accepted()));
    assert_eq!(plan.node_step, NodeStep::Nothing);
    assert!(plan.hold.unwrap().message.contains("demo-1 lost its volume"));
}
