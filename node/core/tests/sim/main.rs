//! Whole clusters of the core in one seeded, single-threaded process.
//!
//! `KEYSTORE_SIM_SEED=N` runs one seed and prints what happened when it fails; `KEYSTORE_SIM_RUNS=N` runs the
//! first N on all cores.

#![allow(clippy::unwrap_used, reason = "a broken harness may panic")]
#![allow(
    clippy::disallowed_methods,
    reason = "which seeds to run comes from the environment; runs share the cores"
)]

mod aim;
mod answers;
mod coverage;
mod disk;
mod faults;
mod founding;
mod hints;
mod history;
mod invariants;
mod machine;
mod moves;
mod mutants;
mod network;
mod plan;
mod recoveries;
mod request;
mod rng;
mod run;
mod salvage;
mod stamps;
mod storage;
mod trace;
mod transfers;
mod variety;
mod violation;
mod workload;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

use coverage::Coverage;
use plan::Plan;
use rng::Rng;
use run::{Outcome, run, run_plan};

const SEEDS: u64 = 3_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn the_promises_hold_whatever_goes_wrong() {
    if let Some(seed) = number("KEYSTORE_SIM_SEED") {
        let Outcome { violation, coverage, trace_hash, story } = run(seed, true);
        println!("{coverage}seed {seed}: trace {trace_hash:016x}");
        assert!(violation.is_none(), "seed {seed}\n{story}");
        return;
    }
    let runs = number("KEYSTORE_SIM_RUNS").unwrap_or(SEEDS);
    let coverage = run_all(runs);
    println!("{coverage}{runs} runs");
    if runs >= SEEDS {
        assert_eq!(coverage.untaken(), Vec::<String>::new(), "paths that were never taken");
    }
}

/// Runs the first seeds, as many at a time as there are cores.
fn run_all(runs: u64) -> Coverage {
    let next = AtomicU64::new(0);
    let work = || {
        let mut total = Coverage::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= runs {
                return total;
            }
            let Outcome { violation, coverage, .. } = run(seed, false);
            if violation.is_some() {
                next.store(runs, Ordering::Relaxed);
                let story = run(seed, true).story;
                panic!("seed {seed}\n{story}\nreplay: ./dev.sh sim --seed {seed}");
            }
            total.add(&coverage);
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut total = Coverage::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            match worker.join() {
                Ok(coverage) => total.add(&coverage),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    total
}

#[test]
fn a_run_is_replayed_exactly() {
    for seed in [3, 4, 5, 6] {
        assert_eq!(run(seed, true).trace_hash, run(seed, true).trace_hash, "seed {seed}");
    }
}

/// The checks can fail: with disks that do not keep what they have synced, acknowledged writes do get lost.
#[test]
fn a_disk_that_lies_is_noticed() {
    let noticed = |seed: &u64| {
        let plan = Plan { disks_lie: true, faults: vec![faults::Fault::AllPowerLoss], ..Plan::calm() };
        run_plan(*seed, Rng::new(*seed), plan, false).violation.is_some()
    };
    assert_eq!((0..10).filter(noticed).count(), 10);
}
