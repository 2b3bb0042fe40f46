//! A world of pods, volumes, nodes and layouts around the planner, in which anything may happen at any time: the operator
//! ends after any of its acts, nodes go down, come back, or are dead for good, and their pods never end, volumes are lost,
//! disks are damaged and healed, nodes are given up by others, an old status is planted, people change their minds; what was
//! proposed and not heard of again comes out later, whatever is proposed then. After each act of the planner what it must
//! never do is looked for, and that it says why where the spec is not reached and it does nothing; once everything is quiet
//! the spec is reached and nothing more is done.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's support may panic as the test itself")]

#[path = "../fixtures/mod.rs"]
mod fixtures;
mod acts;
mod fates;
mod judges;
mod world;

use crate::world::{ROOMS, World};

const SEEDS: u64 = 150;

#[test]
fn whatever_happens_the_spec_is_reached_and_no_copy_is_lost_on_the_way() {
    let (mut proposals, mut given_up, mut surfaced) = (0, 0, 0);
    for seed in 1..=SEEDS {
        let ended = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            world.live_through();
            world.come_to_rest();
            world.expect_rest();
            (world.proposals, world.given_up, world.surfaced)
        });
        let of_world = ended.unwrap_or_else(|_| panic!("seed {seed}"));
        proposals += of_world.0;
        given_up += of_world.1;
        surfaced += of_world.2;
    }
    assert!(proposals > 1_000, "the worlds hardly moved: {proposals} proposals");
    assert!(given_up > 30, "hardly anybody stayed away: {given_up} were given up");
    assert!(surfaced > 50, "hardly a vote came out later: {surfaced}");
}

/// Data fits onto so many nodes, and not onto fewer: the spec is reached once there is room.
#[test]
fn what_does_not_fit_stays_where_it_is_and_is_whole() {
    let mut held = 0;
    for seed in 1..=SEEDS {
        let ended = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            world.room = Some(ROOMS.start + seed % (ROOMS.end - ROOMS.start));
            world.live_through();
            world.come_to_rest();
            world.expect_calm();
            let is_held = world.is_held();
            world.room = None;
            world.come_to_rest();
            world.expect_rest();
            is_held
        });
        held += usize::from(ended.unwrap_or_else(|_| panic!("seed {seed}")));
    }
    assert!(held > 10, "hardly ever was there too little room: {held}");
}

#[test]
fn what_a_recovery_has_left_is_merged_and_filled_up_whatever_happens() {
    let (mut salvaged, mut joint) = (0, 0);
    for seed in 1..=SEEDS {
        let ended = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            world.live_through();
            world.down.clear();
            let is_joint = world.layout.is_joint();
            world.recover();
            world.live_through();
            world.come_to_rest();
            world.expect_rest();
            (world.salvaged, is_joint)
        });
        let of_world = ended.unwrap_or_else(|_| panic!("seed {seed}"));
        salvaged += of_world.0;
        joint += usize::from(of_world.1);
    }
    assert!(salvaged > 500, "hardly a quorum was lost: {salvaged} partitions were salvaged");
    assert!(joint > 10, "hardly a recovery in the middle of a move: {joint}");
}
