//! Runs scenarios one after another, each in a sandbox of its own and under its deadline, and counts.
//!
//! One at a time: on two cores, stores that come up side by side make each other miss their deadlines.

use std::fmt;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::harness::sandbox::Sandbox;
use crate::scenarios::{Ending, Scenario};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

pub struct Runner {
    pub client: Client,
    /// Leave the namespace of a failed scenario as it is, to be looked at.
    pub keep_failed: bool,
    /// Ends the scenario under way as failed, cleans up after it and starts no other.
    pub interrupted: CancellationToken,
}

impl Runner {
    pub async fn run(&self, scenarios: &[Scenario]) -> Counts {
        let mut counts = Counts::default();
        for scenario in scenarios {
            if self.interrupted.is_cancelled() {
                break;
            }
            println!("{}: {}", title(scenario), scenario.shows);
            let started = Instant::now();
            let (count, verdict) = match self.run_one(scenario).await {
                Ok(Ending::Passed(figures)) => (&mut counts.passed, format!("passed ({figures})")),
                Ok(Ending::Skipped(why)) => (&mut counts.skipped, format!("skipped: {why}")),
                Err(error) => (&mut counts.failed, format!("FAILED: {error:#}")),
            };
            *count += 1;
            println!("{}: {} s: {verdict}\n", title(scenario), started.elapsed().as_secs());
        }
        counts
    }

    async fn run_one(&self, scenario: &Scenario) -> Result<Ending> {
        let sandbox = Sandbox::create(self.client.clone(), scenario.name).await?;
        let result = tokio::select! {
            result = tokio::time::timeout(scenario.deadline, (scenario.run)(&sandbox)) => {
                result.unwrap_or_else(|_| Err(anyhow!("not done within {} s", scenario.deadline.as_secs())))
            }
            () = self.interrupted.cancelled() => Err(anyhow!("interrupted")),
        };
        if result.is_err() && !self.interrupted.is_cancelled() {
            sandbox.print_diagnosis().await;
            if self.keep_failed {
                return result.with_context(|| format!("namespace {} is kept", sandbox.namespace));
            }
        }
        let removed = sandbox.remove().await.context("cleaning up");
        let ending = result?;
        removed?;
        Ok(ending)
    }
}

fn title(scenario: &Scenario) -> String {
    match scenario.number {
        Some(number) => format!("{number} {}", scenario.name),
        None => scenario.name.to_owned(),
    }
}
