//! Every interleaving of small clusters: how layouts are decided, and what a change of rings waits for.
//!
//! The models are stateright's; what they step is the code that ships. `KEYSTORE_MODEL_DEPTH=1` explores further.

#![allow(clippy::unwrap_used, reason = "a broken model may panic")]
#![allow(clippy::disallowed_methods, reason = "how far to explore comes from the environment")]

mod cluster;
mod deciding;
mod explore;
mod interned;

use keystore_core::layout::Layout;
use keystore_core::succession::Change;

use crate::cluster::{first, keyspace, nodes, to};
use crate::deciding::{Deciding, Scenario, Want};
use crate::explore::{depth, explore};

fn one_node(_: u8, _: &Layout) -> Vec<Want> {
    vec![Want::of(keyspace("a")), Want::of(keyspace("b"))]
}

fn scenario_of_one() -> Scenario {
    Scenario {
        start: first(&[1]),
        nodes: 1,
        wants: one_node,
        epochs: 2,
        ballots: 3,
        crashes: 2,
        saves_take_time: true,
    }
}

fn two_nodes(n: u8, _: &Layout) -> Vec<Want> {
    let voters = Want { change: Change::Voters, away: &[1], is_rash: false };
    if n == 1 { vec![Want::of(keyspace("a"))] } else { vec![voters] }
}

fn scenario_of_two() -> Scenario {
    Scenario {
        start: first(&[1, 2]),
        nodes: 2,
        wants: two_nodes,
        epochs: 2,
        ballots: 2,
        crashes: 1,
        saves_take_time: true,
    }
}

fn three_nodes(n: u8, _: &Layout) -> Vec<Want> {
    match n {
        1 => vec![Want::of(keyspace("a"))],
        2 => vec![Want::of(Change::Lose(nodes(&[3])))],
        _ => vec![],
    }
}

fn scenario_of_three() -> Scenario {
    Scenario {
        start: first(&[1, 2, 3]),
        nodes: 3,
        wants: three_nodes,
        epochs: 1,
        ballots: 2,
        crashes: 0,
        saves_take_time: false,
    }
}

#[test]
fn try_it() {
    let only = std::env::var("ONLY").ok();
    for (name, scenario) in
        [("one", scenario_of_one()), ("two", scenario_of_two()), ("three", scenario_of_three())]
    {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let model = Deciding::new(scenario, None);
        let tables = model.tables();
        let (violation, _) = explore(name, model);
        println!("{:?}", tables.lock().unwrap().seen);
        if let Some((p, path)) = violation {
            panic!("{p}{path}");
        }
    }
}
