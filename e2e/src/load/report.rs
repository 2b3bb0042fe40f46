//! What a load found: broken promises, and requests that failed when they should not have.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::checker::{check, unread_keys};
use crate::history::{Action, Operation, ReadOutcome, WriteOutcome};
use crate::store::Store;

use super::{Recorder, Settings, read_back};

/// How many of a kind are spelled out.
const SHOWN_MAX: usize = 5;

/// Which requests may fail.
#[derive(Clone, Copy, Debug)]
pub enum Allowance {
    /// None: whatever happened was planned.
    NoFailure,
    /// Those that were under way at a noted fault, or began within `within` of it; at most `failures_max` for each
    /// fault.
    AfterFaults { within: Duration, failures_max: usize },
}

/// A history, with everything read back at its end.
#[derive(Debug)]
pub struct Report {
    pub operations: Vec<Operation>,
    pub(super) started: Instant,
    pub(super) faults_ns: Vec<u64>,
    pub(super) stopped_ns: u64,
    pub(super) settings: Settings,
}

/// How much a load did; for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub operations: usize,
    pub writes_acknowledged: usize,
    pub writes_failed: usize,
    pub writes_unknown: usize,
    pub reads_answered: usize,
    pub reads_failed: usize,
    /// The longest time in which no request ended well.
    pub longest_gap: Duration,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests: {} writes acknowledged, {} failed, {} unknown; {} reads answered, {} failed; longest gap {} ms",
            self.operations,
            self.writes_acknowledged,
            self.writes_failed,
            self.writes_unknown,
            self.reads_answered,
            self.reads_failed,
            self.longest_gap.as_millis()
        )
    }
}

impl Report {
    /// What is wrong with this run, one finding a line; `Err` if anything is. `acknowledged_min` is the least
    /// number of acknowledged writes for the run to mean anything.
    pub fn judge(&self, allowance: Allowance, acknowledged_min: usize) -> Result<Summary, String> {
        let summary = self.summary();
        let mut findings = Vec::new();
        if summary.writes_acknowledged < acknowledged_min {
            findings.push(format!(
                "only {} writes acknowledged, {acknowledged_min} wanted",
                summary.writes_acknowledged
            ));
        }
        let violations = check(&self.operations);
        list(&mut findings, "promises broken", violations.iter().map(ToString::to_string));
        let unread = unread_keys(&self.operations);
        list(&mut findings, "keys that could not be read back", unread.iter().map(ToString::to_string));
        let failed = self.failures_beyond(allowance);
        list(
            &mut findings,
            "requests failed that should not",
            failed.iter().map(|failed| failed.to_string()),
        );
        if findings.is_empty() {
            return Ok(summary);
        }
        Err(format!("seed {}, {summary}\n{}", self.settings.seed, findings.join("\n")))
    }

    /// Requests that failed though the allowance does not cover them. Reading back is not judged: it retries.
    pub fn failures_beyond(&self, allowance: Allowance) -> Vec<&Operation> {
        let under_load = self.operations.iter().filter(|operation| operation.invoked_ns < self.stopped_ns);
        let mut failures: Vec<_> = under_load.filter(|operation| operation.error().is_some()).collect();
        failures.sort_by_key(|operation| operation.invoked_ns);
        let Allowance::AfterFaults { within, failures_max } = allowance else { return failures };
        let within_ns = u64::try_from(within.as_nanos()).unwrap_or(u64::MAX);
        let mut left = vec![failures_max; self.faults_ns.len()];
        failures.retain(|failure| {
            let mut faults = self.faults_ns.iter().zip(&mut left);
            let cover = faults.find(|(fault_ns, left)| {
                let fault_ns = **fault_ns;
                **left > 0
                    && failure.returned_ns >= fault_ns
                    && failure.invoked_ns <= fault_ns.saturating_add(within_ns)
            });
            match cover {
                Some((_, left)) => {
                    *left -= 1;
                    false
                }
                None => true,
            }
        });
        failures
    }

    /// Reads every key of the history again, for instance through a new store on the old volumes; the reads become
    /// part of the history. Says how many keys that were.
    pub async fn read_again<S: Store>(&mut self, store: &S) -> usize {
        let recorder = Arc::new(Recorder::resume(self.started, std::mem::take(&mut self.operations)));
        let count = read_back(store, &recorder, self.settings).await;
        self.operations = recorder.with(std::mem::take);
        count
    }

    pub fn summary(&self) -> Summary {
        let mut summary = Summary { operations: self.operations.len(), ..Summary::default() };
        for operation in &self.operations {
            let count = match &operation.action {
                Action::Put { outcome, .. } | Action::Delete { outcome } => match outcome {
                    WriteOutcome::Done(_) => &mut summary.writes_acknowledged,
                    WriteOutcome::Failed(_) => &mut summary.writes_failed,
                    WriteOutcome::Unknown(_) => &mut summary.writes_unknown,
                },
                Action::Get { outcome } => match outcome {
                    ReadOutcome::Found { .. } | ReadOutcome::Missing => &mut summary.reads_answered,
                    ReadOutcome::Error(_) => &mut summary.reads_failed,
                },
            };
            *count += 1;
        }
        summary.longest_gap = self.longest_gap();
        summary
    }

    fn longest_gap(&self) -> Duration {
        let ended_well = self.operations.iter().filter(|operation| operation.error().is_none());
        let mut times: Vec<u64> = ended_well
            .map(|operation| operation.returned_ns)
            .filter(|time| *time < self.stopped_ns)
            .collect();
        times.extend([0, self.stopped_ns]);
        times.sort_unstable();
        let gaps = times.iter().zip(times.iter().skip(1)).map(|(from, to)| to - from);
        Duration::from_nanos(gaps.max().unwrap_or(0))
    }
}

fn list(findings: &mut Vec<String>, what: &str, items: impl ExactSizeIterator<Item = String>) {
    let count = items.len();
    if count > 0 {
        let shown: Vec<_> = items.take(SHOWN_MAX).collect();
        findings.push(format!("{count} {what}, the first:\n  {}", shown.join("\n  ")));
    }
}
