//! One run from its seed to its verdict: a cluster begins, clients and faults come, everything heals, and then what
//! was promised has to be there.

use std::panic::{AssertUnwindSafe, catch_unwind};

use keystore_core::partition::RecordKey;
use keystore_core::quorum::{Consistency, Durability};

use crate::coverage::Coverage;
use crate::moves::MOVED_WITHIN_MS;
use crate::plan::{Class, Plan, TIMEOUT_MS};
use crate::request::{Asked, Told};
use crate::rng::Rng;
use crate::violation::{Checker, Violation};
use crate::workload::Wish;
use crate::world::World;

/// After everything has healed all members have to serve within this time.
const HEALED_WITHIN_MS: u64 = 30_000;

pub(crate) struct Outcome {
    pub(crate) violation: Option<Violation>,
    pub(crate) coverage: Coverage,
    pub(crate) trace_hash: u64,
    /// For people: the last lines that concern the violated key, and where all of them are.
    pub(crate) story: String,
}

/// Runs a seed with the plan that it draws.
pub(crate) fn run(seed: u64, is_traced: bool) -> Outcome {
    let mut rng = Rng::new(seed);
    let plan = Plan::draw(&mut rng);
    run_plan(seed, rng, plan, is_traced)
}

pub(crate) fn run_plan(seed: u64, rng: Rng, plan: Plan, is_traced: bool) -> Outcome {
    let mut world = World::new(rng, plan, is_traced);
    let ended = catch_unwind(AssertUnwindSafe(|| live(&mut world)));
    if ended.is_err() {
        let what = format!("a panic at {} ms", world.now_ms);
        world.violate(Violation::of_the_world(Checker::CoreDoesNotPanic, what));
    }
    let story = match &world.violation {
        Some(violation) if is_traced => tell_story(seed, &world, violation),
        _ => String::new(),
    };
    Outcome { trace_hash: world.trace.hash(), violation: world.violation, coverage: world.coverage, story }
}

fn tell_story(seed: u64, world: &World, violation: &Violation) -> String {
    let place = match world.trace.write(seed) {
        Ok(path) => format!("the whole trace is in {}", path.display()),
        Err(error) => format!("the whole trace cannot be written: {error}"),
    };
    let excerpt = world.trace.excerpt(violation.key.as_ref(), violation.until_ms);
    format!("{:?}\n{excerpt}{:?}: {}\n{place}", world.plan, violation.checker, violation.what)
}

fn live(world: &mut World) {
    world.init();
    if world.violation.is_some() {
        return;
    }
    world.let_clients_in();
    world.let_faults_in();
    world.let_the_steward_in();
    let duration_ms = world.plan.duration_ms;
    world.run_for(duration_ms);
    if world.violation.is_some() {
        return;
    }
    world.heal();
    world.note_hints_kept();
    world.run_for(5_000 + TIMEOUT_MS);
    let deadline = world.now_ms + HEALED_WITHIN_MS;
    while !world.all_serve() && world.now_ms < deadline && world.violation.is_none() {
        world.run_for(100);
    }
    let deadline = world.now_ms + MOVED_WITHIN_MS;
    while (world.is_unsettled() || world.left_behind().is_some())
        && world.now_ms < deadline
        && world.violation.is_none()
    {
        world.run_for(100);
    }
    if world.is_unsettled() {
        let what = format!("the move of epoch {} does not end: {:?}", world.layout.phase_since, world.layout);
        world.violate(Violation::of_the_world(Checker::MovesEnd, what));
    }
    world.check_left_behind();
    world.run_for(500);
    while !world.all_serve() && world.now_ms < deadline && world.violation.is_none() {
        world.run_for(100);
    }
    if !world.all_serve() {
        let what = "not all members serve after everything has healed".to_owned();
        world.violate(Violation::of_the_world(Checker::HealedClusterServes, what));
    }
    let deadline = world.now_ms + HEALED_WITHIN_MS;
    while world.unaware().is_some() && world.now_ms < deadline && world.violation.is_none() {
        world.run_for(100);
    }
    world.check_unaware();
    world.drain_hints();
    write_everything(world);
    read_everything(world);
    if world.violation.is_none() {
        world.check_history();
    }
    world.count_all();
}

/// Each key takes a write, through some node: what has healed serves.
fn write_everything(world: &mut World) {
    let deadline_ms = world.now_ms + HEALED_WITHIN_MS;
    for key in world.keys.clone() {
        for number in 0.. {
            let members = world.members();
            let machine = members[number % members.len()];
            if world.violation.is_some()
                || world.is_running(machine) && is_written(world, machine, (&key, number))
            {
                break;
            }
            if world.now_ms > deadline_ms {
                let what = format!("no write of {key:?} succeeds");
                return world.violate(Violation::new(Checker::HealedClusterServes, &key, what));
            }
            world.run_for(20);
        }
    }
}

fn is_written(world: &mut World, machine: usize, (key, number): (&RecordKey, usize)) -> bool {
    let value = format!("last {number}").into_bytes();
    let asked = match world.is_capped(key) {
        true => Asked::Delete { key: key.clone(), knows: None },
        false => Asked::Put { key: key.clone(), value, ttl_ms: None, knows: None, operation: None },
    };
    let told = last_request(world, machine, asked, Consistency::Quorum);
    matches!(told, Some(Told::Written { .. }))
}

/// Reads each key through each node, one after the other; then the replicas of each have to be equal. There is no
/// anti-entropy yet, and a read at `all` is what finds every difference: where a replica is gone, a read at
/// `quorum` meets all that are left. A replica that is in doubt refuses, and is healed by that: so the first reads
/// may fail, for a while.
fn read_everything(world: &mut World) {
    let deadline_ms = world.now_ms + HEALED_WITHIN_MS;
    for key in world.keys.clone() {
        let partition = key.partition(world.layout.partitions);
        let has_all = world.replicas(&key).len() == world.layout.replicas(partition).len();
        let level = if has_all { Consistency::All } else { Consistency::Quorum };
        for machine in world.members() {
            while world.is_running(machine) && !is_read(world, machine, (&key, level)) {
                if world.violation.is_some() {
                    return;
                }
                if world.now_ms > deadline_ms {
                    let what = format!("no read of {key:?} through machine {machine} succeeds");
                    return world.violate(Violation::new(Checker::HealedClusterServes, &key, what));
                }
                world.run_for(100);
            }
        }
    }
    world.run_for(1_000);
    for key in world.keys.clone() {
        world.check_convergence(&key);
    }
}

fn is_read(world: &mut World, machine: usize, (key, level): (&RecordKey, Consistency)) -> bool {
    let told = last_request(world, machine, Asked::Get { key: key.clone() }, level);
    matches!(told, Some(Told::Read(_)))
}

fn last_request(world: &mut World, machine: usize, asked: Asked, level: Consistency) -> Option<Told> {
    let is_promised = asked.key().is_some_and(|key| world.class(key) != Class::Loose);
    let (client, durability) = (world.plan.clients, Durability::Synced);
    let index = world.ask(machine, Wish { client, asked, level, durability, is_promised });
    while world.requests[index].told.is_none() && world.violation.is_none() {
        world.run_for(5);
    }
    world.requests[index].told.clone().map(|(_, told)| told)
}
