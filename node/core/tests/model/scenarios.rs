//! Who wants which layouts, and what may go wrong meanwhile.

use keystore_core::layout::Layout;
use keystore_core::succession::Change;

use crate::cluster::{first, keyspace, members, nodes, to};
use crate::deciding::{Scenario, Want};
use crate::explore::depth;

/// One administrator after another, since a node proposes one layout at a time.
pub(crate) fn one_node() -> Scenario {
    Scenario {
        start: first(&[1]),
        nodes: 1,
        wants: |_, layout| {
            let all = vec![Want::of(keyspace("a")), Want::of(keyspace("b"))];
            if layout.epoch.0 == 1 { all } else { vec![Want::of(keyspace("c"))] }
        },
        epochs: 2,
        ballots: if depth() > 0 { &[4] } else { &[3] },
        crashes: 2,
        saves_take_time: true,
    }
}

/// The next layout but one may be voted on by the other node.
pub(crate) fn two_nodes() -> Scenario {
    fn wants(n: u8, layout: &Layout) -> Vec<Want> {
        let away: &[u8] = if layout.epoch.0 == 1 { &[1] } else { &[2] };
        let voters = Want { change: Change::Voters, away, is_rash: false };
        if n == 1 { vec![Want::of(keyspace("a"))] } else { vec![voters] }
    }
    Scenario {
        start: first(&[1, 2]),
        nodes: 2,
        wants,
        epochs: 2,
        ballots: if depth() > 0 { &[2, 2] } else { &[1, 1] },
        crashes: 1,
        saves_take_time: true,
    }
}

/// One of them wants a layout that leaves one voter.
fn three(ballots: &'static [u8], epochs: u64) -> Scenario {
    fn wants(n: u8, _: &Layout) -> Vec<Want> {
        match n {
            1 => vec![Want::of(keyspace("a"))],
            2 => vec![Want::of(Change::Lose(nodes(&[3])))],
            _ => vec![],
        }
    }
    Scenario {
        start: first(&[1, 2, 3]),
        nodes: 3,
        wants,
        epochs,
        ballots,
        crashes: 0,
        saves_take_time: false,
    }
}

pub(crate) fn three_nodes() -> Scenario {
    three(&[2, 1, 0], 1)
}

pub(crate) fn one_ballot() -> Scenario {
    three(&[1, 1, 0], 1)
}

pub(crate) fn one_proposer() -> Scenario {
    three(&[2, 0, 0], 1)
}

pub(crate) fn two_epochs() -> Scenario {
    three(&[1, 1, 0], 2)
}

pub(crate) fn crashes() -> Scenario {
    Scenario { crashes: 1, saves_take_time: true, ..three(&[1, 1, 0], 1) }
}

/// The data moves from nodes 1 and 2 to 2 and 3: one voter, then three, then one again. A node is in a hurry and has no
/// evidence that the data has moved.
pub(crate) fn a_move(ballots: &'static [u8]) -> Scenario {
    fn wants(n: u8, _: &Layout) -> Vec<Want> {
        match n {
            1 => vec![Want::of(to(&[2, 3])), Want::of(Change::Abort)],
            2 => vec![Want::of(Change::Finish)],
            _ => vec![Want { change: Change::Finish, away: &[], is_rash: true }],
        }
    }
    Scenario {
        start: first(&[1, 2]).next(&Change::Admit(members(&[3]))).unwrap(),
        nodes: 3,
        wants,
        epochs: 2,
        ballots,
        crashes: 0,
        saves_take_time: false,
    }
}
