//! Rules of the disk broken on purpose, and the test that notices.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::storage::mutant::{Mutant, VARIABLE};

/// A test under a mutant fails long before.
const CAUGHT_WITHIN: Duration = Duration::from_secs(120);

/// The mutant, its rule, and the test that has to fail.
const LINES: &[(Mutant, u8, &str)] = &[
    (Mutant::HighestIsNotNoted, 1, "power_loss::after_a_power_cut_every_synced_commit_is_there"),
    (Mutant::ReportedUnsynced, 12, "power_loss::after_a_power_cut_every_synced_commit_is_there"),
    (
        Mutant::EveryHoleIsATornTail,
        12,
        "log_ends::a_flipped_bit_anywhere_in_a_batch_that_a_later_one_calls_synced_is_damage",
    ),
    (
        Mutant::TailIsNotMadeDurable,
        12,
        "power_loss::a_tail_that_no_disk_holds_is_made_durable_before_the_log_goes_on_behind_it",
    ),
    (Mutant::CheckpointWithoutAFlush, 13, "power_loss::after_a_power_cut_every_synced_commit_is_there"),
    (Mutant::StaleEnginesAreTrusted, 13, "refusals::an_engine_that_lost_what_was_flushed_is_refused"),
    (Mutant::SledIsNotSynced, 13, "power_loss::after_a_power_cut_sled_has_what_was_flushed"),
    (Mutant::StatesAreNotSynced, 13, "power_loss::after_a_power_cut_every_synced_commit_is_there"),
];

/// True if the test fails in a process with this mutant; without one it has to pass, which `cargo test` sees to.
fn is_caught(mutant: Mutant, test: &str) -> bool {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("storage::tests::{test}")])
        .env(VARIABLE, format!("{mutant:?}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + CAUGHT_WITHIN;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return !status.success();
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// What a power cut takes depends on what threads of a library were at: some runs meet nothing that matters.
const RUNS_MAX: usize = 5;

#[test]
fn each_mutant_is_caught_by_its_test() {
    let is_caught = |mutant, test| (0..RUNS_MAX).any(|_| is_caught(mutant, test));
    let missed: Vec<_> = LINES.iter().filter(|(mutant, _, test)| !is_caught(*mutant, test)).collect();
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

#[test]
fn rules_12_and_13_have_their_mutants() {
    for rule in [12, 13] {
        assert!(LINES.iter().filter(|(_, of, _)| *of == rule).count() >= 2, "rule {rule}");
    }
}
