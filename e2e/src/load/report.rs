//! What a load found: broken promises, and requests that failed when they should not have.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use keystore_history::{History, Key, Operation, Promise, Rules, WriteOutcome, check, unread_keys};
use tokio::time::Instant;

use super::recorder::{SCENARIO, micros};
use super::{Recorder, Settings, read_back};
use crate::store::{CAUSAL_KEYSPACE, Store};

/// How many of a kind are spelled out.
const SHOWN_MAX: usize = 5;

/// Which requests may fail.
#[derive(Clone, Copy, Debug)]
pub enum Allowance {
    /// None: whatever happened was planned.
    NoFailure,
    /// Those that were under way at a noted fault, or began within `within` of it; at most `failures_max` for each
    /// fault, of which a batch is one.
    AfterFaults { within: Duration, failures_max: usize },
}

/// A history, with everything read back at its end.
#[derive(Debug)]
pub struct Report {
    pub history: History,
    pub(super) started: Instant,
    pub(super) faults_us: Vec<u64>,
    pub(super) stopped_us: u64,
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
    pub scans: usize,
    pub reads_failed: usize,
    /// The longest time in which no request ended well.
    pub longest_gap: Duration,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests: {} writes acknowledged, {} failed, {} unknown; {} reads answered, {} failed; {} scans; longest gap {} ms",
            self.operations,
            self.writes_acknowledged,
            self.writes_failed,
            self.writes_unknown,
            self.reads_answered,
            self.reads_failed,
            self.scans,
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
        let rules = self.rules();
        let violations = check(&self.history, &rules);
        list(&mut findings, "promises broken", violations.iter().map(ToString::to_string));
        let unread = unread_keys(&self.history);
        list(&mut findings, "keys that could not be read back", unread.iter().map(|key| format!("{key:?}")));
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

    /// How many reads have shown that an acknowledged write is gone, and how many keys could not be read at all.
    pub fn lost_writes(&self) -> usize {
        let violations = check(&self.history, &self.rules());
        let lost = violations.iter().filter(|found| found.promise == Promise::AcknowledgedIsReadable).count();
        lost + unread_keys(&self.history).len()
    }

    pub(super) fn rules(&self) -> Rules {
        Rules {
            causal_keyspaces: BTreeSet::from([CAUSAL_KEYSPACE.to_owned()]),
            write_quorum: Some(self.settings.write_quorum),
            ..Rules::default()
        }
    }

    /// Requests of clients that failed though the allowance does not cover them. Reading back is not judged: it
    /// retries.
    pub fn failures_beyond(&self, allowance: Allowance) -> Vec<&Operation> {
        let is_judged =
            |operation: &&Operation| operation.asked_at < self.stopped_us && operation.session != SCENARIO;
        let under_load = self.history.operations.iter().filter(is_judged);
        let mut failures: Vec<_> = under_load.filter(|operation| operation.error().is_some()).collect();
        failures.sort_by_key(|operation| operation.asked_at);
        let Allowance::AfterFaults { within, failures_max } = allowance else { return failures };
        let within_us = micros(within);
        let mut left = vec![failures_max; self.faults_us.len()];
        // The operations of a batch fail together, and are one request.
        let mut covered = BTreeSet::new();
        failures.retain(|failure| {
            let request = (failure.session, failure.asked_at);
            if covered.contains(&request) {
                return false;
            }
            let mut faults = self.faults_us.iter().zip(&mut left);
            let cover = faults.find(|(fault_us, left)| {
                let fault_us = **fault_us;
                **left > 0
                    && failure.answered_at >= fault_us
                    && failure.asked_at <= fault_us.saturating_add(within_us)
            });
            match cover {
                Some((_, left)) => {
                    *left -= 1;
                    covered.insert(request);
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
        let recorder = Arc::new(Recorder::resume(self.started, std::mem::take(&mut self.history)));
        let count = read_back(store, &recorder, self.settings).await;
        self.history = recorder.with(std::mem::take);
        count
    }

    /// Every key that was asked for.
    pub fn keys(&self) -> BTreeSet<Key> {
        self.history.operations.iter().map(|operation| operation.key.clone()).collect()
    }

    pub fn summary(&self) -> Summary {
        let operations = &self.history.operations;
        let mut summary =
            Summary { operations: operations.len(), scans: self.history.scans.len(), ..Summary::default() };
        for operation in operations {
            let count = match operation.write_outcome() {
                Some(WriteOutcome::Done { .. }) => &mut summary.writes_acknowledged,
                Some(WriteOutcome::Failed(_)) => &mut summary.writes_failed,
                Some(WriteOutcome::Unknown { .. }) => &mut summary.writes_unknown,
                None if operation.error().is_none() => &mut summary.reads_answered,
                None => &mut summary.reads_failed,
            };
            *count += 1;
        }
        summary.longest_gap = self.longest_gap();
        summary
    }

    fn longest_gap(&self) -> Duration {
        let ended_well = self.history.operations.iter().filter(|operation| operation.error().is_none());
        let mut times: Vec<u64> = ended_well
            .map(|operation| operation.answered_at)
            .filter(|time| *time < self.stopped_us)
            .collect();
        times.extend([0, self.stopped_us]);
        times.sort_unstable();
        let gaps = times.iter().zip(times.iter().skip(1)).map(|(from, to)| to - from);
        Duration::from_micros(gaps.max().unwrap_or(0))
    }
}

fn list(findings: &mut Vec<String>, what: &str, items: impl ExactSizeIterator<Item = String>) {
    let count = items.len();
    if count > 0 {
        let shown: Vec<_> = items.take(SHOWN_MAX).collect();
        findings.push(format!("{count} {what}, the first:\n  {}", shown.join("\n  ")));
    }
}
